// The loops over blocks of a diffusion state, for one instruction set: the noise stream, and what is done with it. See
// cpu/simd.h for what the including file defines; it may also define
//   SINMDM_WIDEN_PRODUCT(a, b)  the products of the low halves of the 64-bit lanes of two vectors, of type Wide,
//   SINMDM_SQUARE_ROOT(x)       the square roots of a Vector.
#include "cpu/simd.h"

namespace sinmdm::cpu::noise::SINMDM_ISA {

using namespace cpu::SINMDM_ISA;

constexpr int kSingles = SINMDM_BYTES / 4, kWides = SINMDM_BYTES / 8;
static_assert(kCounters % kSingles == 0);

using Vector = V<float>;
using Ints = I<float>;
typedef uint32_t Words32 __attribute__((vector_size(SINMDM_BYTES)));
typedef uint64_t Wide __attribute__((vector_size(SINMDM_BYTES)));

template <typename To, typename From>
SINMDM_KERNEL To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

SINMDM_KERNEL Vector to_float(Ints x) {
  return __builtin_convertvector(x, Vector);
}

SINMDM_KERNEL Wide product(Wide a, uint32_t factor) {
  const Wide b = Wide{} + factor;
#ifdef SINMDM_WIDEN_PRODUCT
  return SINMDM_WIDEN_PRODUCT(a, b);
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

SINMDM_KERNEL Vector square_root(Vector x) {
#ifdef SINMDM_SQUARE_ROOT
  return SINMDM_SQUARE_ROOT(x);
#else
  for (int l = 0; l < kSingles; ++l) x[l] = sqrtf(x[l]);
  return x;
#endif
}

// Four words of kWides counters, each in the low half of a 64-bit lane; the high halves are anything.
struct Counters {
  Wide x0, x1, x2, x3;
};

SINMDM_KERNEL void round_of(Counters& c, uint32_t key0, uint32_t key1) {
  const Wide product0 = product(c.x0, 0xD2511F53u), product1 = product(c.x2, 0xCD9E8D57u);
  c = Counters{(product1 >> 32) ^ c.x1 ^ (Wide{} + key0), product1, (product0 >> 32) ^ c.x3 ^ (Wide{} + key1),
               product0};
}

// Which counter of kSingles neighbouring ones a 32-bit lane holds: such that interleaving four registers by 32 and then
// by 64 bits, which both work within 128 bits, gives the normals in the order of memory.
constexpr int counter_in_lane(int lane) {
  return lane % 4 * (kSingles / 4) + lane / 4;
}

// -2 ln u of u in (0, 1): philox.h's log_unit, the factor in its constants.
SINMDM_KERNEL Vector minus_two_log(Vector u) {
  const Ints bits = cast<Ints>(u);
  const Ints exponent = (bits - 0x3F3504F3) & static_cast<int32_t>(0xFF800000u);  // still in its place, times 2^23
  const Vector f = cast<Vector>(bits - exponent) - 1.0f;
  const Vector square = f * f;
  Vector p = -2 * -0.07644633203744888f * f + -2 * 0.12761884927749634f;
  p = p * f + -2 * -0.13156017661094666f;
  p = p * f + -2 * 0.14201374351978302f;
  p = p * f + -2 * -0.16623802483081818f;
  p = p * f + -2 * 0.200012668967247f;
  p = p * f + -2 * -0.25000807642936707f;
  p = p * f + -2 * 0.3333333134651184f;
  return to_float(exponent) * (-2 * 0.6931471805599453f * 0x1p-23f) + (square * f * p + (square - 2.0f * f));
}

// (cos, sin) of 2 pi v for v = ((word >> 9) + 1/2) 2^-23: quarter and remainder are taken from the integers.
SINMDM_KERNEL void cos_sin_of(Ints word, Vector& cosine, Vector& sine) {
  // In units of 2^-24 v is (word >> 8) | 1, and its signed distance from the nearest quarter turn are 22 bits of it.
  const Vector r = to_float(cast<Ints>(cast<Words32>(word) << 2) >> 10 | 1) * 0x1p-24f;
  const Vector square = r * r;
  Vector s = -75.39356231689453f * square + 81.59235382080078f;
  s = s * square + -41.3416633605957f;
  s = s * square + 6.2831854820251465f;
  s *= r;
  Vector c = 59.202796936035156f * square + -85.44229888916016f;
  c = c * square + 64.9393081665039f;
  c = c * square + -19.739208221435547f;
  c = c * square + 1.0f;
  const Words32 quarter_bits = cast<Words32>(word) + 0x20000000u;  // its number modulo 4 in the top two bits
  const Ints quarter = cast<Ints>(quarter_bits), odd = cast<Ints>(quarter_bits << 1);
  const Ints sign = static_cast<int32_t>(0x80000000u) + Ints{};
  const Vector x = odd < 0 ? s : c, y = odd < 0 ? c : s;
  cosine = cast<Vector>(cast<Ints>(x) ^ ((quarter ^ odd) & sign));
  sine = cast<Vector>(cast<Ints>(y) ^ (quarter & sign));
}

SINMDM_KERNEL void box_muller(Ints word0, Ints word1, Vector& z0, Vector& z1) {
  const Vector u = to_float(cast<Ints>(cast<Words32>(word0) >> 9)) * 0x1p-23f + 0x1p-24f;  // exact
  const Vector radius = square_root(minus_two_log(u));
  cos_sin_of(word1, z0, z1);
  z0 *= radius;
  z1 *= radius;
}

// Even 32-bit lanes from the low halves of `even`, odd ones from those of `odd`.
SINMDM_KERNEL Ints merge(Wide even, Wide odd) {
  return cast<Ints>((even & 0xFFFFFFFFu) | odd << 32);
}

// As __builtin_shuffle's unpack of 32-bit (step 1) or 64-bit (step 2) parts, the low or the high half of each 128 bits.
template <int step>
SINMDM_KERNEL Vector interleave(Vector a, Vector b, bool high) {
  Ints from;
#pragma GCC unroll 16
  for (int l = 0; l < kSingles; ++l) {
    const int within = l % 4, source = step == 1 ? within / 2 : within % 2;
    const bool second = step == 1 ? within % 2 : within / 2;
    from[l] = l / 4 * 4 + source + (high ? 2 : 0) + (second ? kSingles : 0);
  }
  return __builtin_shuffle(a, b, from);
}

// The normals of kSingles counters, in order.
SINMDM_KERNEL void normals_of(Wide even, Wide odd, uint32_t high, uint32_t step, uint32_t sample, uint64_t seed,
                              float* z) {
  Counters a{even, Wide{} + high, Wide{} + step, Wide{} + sample}, b{odd, a.x1, a.x2, a.x3};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    round_of(a, key0, key1);
    round_of(b, key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  Vector z0, z1, z2, z3;
  box_muller(merge(a.x0, b.x0), merge(a.x1, b.x1), z0, z1);
  box_muller(merge(a.x2, b.x2), merge(a.x3, b.x3), z2, z3);
#pragma GCC unroll 2
  for (int high_half = 0; high_half < 2; ++high_half) {
    const Vector first = interleave<1>(z0, z1, high_half), second = interleave<1>(z2, z3, high_half);
    store<float>(z + 2 * high_half * kSingles, interleave<2>(first, second, false));
    store<float>(z + (2 * high_half + 1) * kSingles, interleave<2>(first, second, true));
  }
}

// See Kernels.
SINMDM_TARGET void normals(uint64_t seed, uint64_t first, uint32_t step, uint32_t sample, int64_t groups, float* z) {
  Wide even, odd;
#pragma GCC unroll 8
  for (int l = 0; l < kWides; ++l) {
    even[l] = counter_in_lane(2 * l);
    odd[l] = counter_in_lane(2 * l + 1);
  }
  for (int64_t g = 0; g < groups;) {
    // Up to where the counters' second word changes, if that is before the end: seldom.
    const uint64_t low = (first + g) & 0xFFFFFFFFu, left = (uint64_t{1} << 32) - low;
    const uint32_t high = static_cast<uint32_t>((first + g) >> 32);
    const int64_t end = left < static_cast<uint64_t>(groups - g) ? g + static_cast<int64_t>(left) : groups;
    uint64_t counter = low;
    for (; g + kSingles <= end; g += kSingles, counter += kSingles) {
      normals_of(even + counter, odd + counter, high, step, sample, seed, z + 4 * g);
    }
    for (; g < end; ++g, ++counter) {
      float lanes[4 * kSingles];
      normals_of(even + counter, odd + counter, high, step, sample, seed, lanes);
      std::copy(lanes, lanes + 4, z + 4 * g);
    }
  }
}

SINMDM_TARGET void add_noise(float signal, float sigma, const float* x, const float* z, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kSingles <= count; i += kSingles) {
    store<float>(out + i, load<float>(x + i) * signal + load<float>(z + i) * sigma);
  }
  for (; i < count; ++i) out[i] = x[i] * signal + z[i] * sigma;
}

// C is Vector, or float for the elements that fill no vector.
template <typename C>
SINMDM_KERNEL C read(const float* from) {
  C x;
  memcpy(&x, from, sizeof(x));
  return x;
}

template <typename C>
SINMDM_KERNEL void denoise_at(const Step& c, bool clips, const States& s, int64_t i) {
  const C x = read<C>(s.x + i);
  C raw = x * c.x_to_x0 + read<C>(s.model + i) * c.model_to_x0;
  if (s.unconditional != nullptr) raw += read<C>(s.unconditional + i) * c.unconditional_to_x0;
  C x0 = raw;
  if (clips) {  // the comparisons are false for NaN, which stays
    const C limit = C{} + c.limit;
    x0 = raw < -limit ? -limit : raw;
    x0 = (x0 > limit ? limit : x0) * c.scale;
  }
  if (s.known != nullptr) {
    const C mask = read<C>(s.mask + i);
    x0 = read<C>(s.known + i) * mask + x0 * (1.0f - mask);
  }
  C result = x0 * c.of_x0 + x * c.of_x;
  if (clips && c.of_raw != 0.0f) result += raw * c.of_raw;  // raw may be infinite where x0 is not
  if (s.previous != nullptr) result += read<C>(s.previous + i) * c.of_previous;
  if (s.z != nullptr) result += read<C>(s.z + i) * c.of_noise;
  if (s.x0 != nullptr) memcpy(s.x0 + i, &x0, sizeof(x0));
  memcpy(s.out + i, &result, sizeof(result));
}

SINMDM_TARGET void denoise(const Step& coefficients, bool clips, const States& states, int64_t count) {
  const Step c = coefficients;  // copies: nothing that is written may be one of them
  const States s = states;
  int64_t i = 0;
  for (; i + kSingles <= count; i += kSingles) denoise_at<Vector>(c, clips, s, i);
  for (; i < count; ++i) denoise_at<float>(c, clips, s, i);
}

SINMDM_TARGET void widen_halves(bool brain, const uint16_t* from, int64_t count, float* to) {
  if (brain) {
    widen_bfloat16(from, count, to);
  } else {
    widen_float16(from, count, to);
  }
}

constexpr Kernels kTable{normals, add_noise, denoise, widen_halves};

}  // namespace sinmdm::cpu::noise::SINMDM_ISA
