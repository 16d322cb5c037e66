// Vectors of one instruction set. Included by the file of that set between its definitions of
//   SINMDM_ISA       the namespace that keeps the sets apart,
//   SINMDM_TARGET    the attribute that lets the compiler use the set,
//   SINMDM_BYTES     the size of a register.
// No include guard: each set includes it once, and so do the files that build on it.

#define SINMDM_INLINE SINMDM_TARGET __attribute__((always_inline))  // for lambdas
#define SINMDM_KERNEL SINMDM_INLINE inline

namespace sinmdm::cpu::SINMDM_ISA {

template <typename C>
struct Simd;
template <>
struct Simd<float> {
  using Int = int32_t;
  typedef float V __attribute__((vector_size(SINMDM_BYTES)));
  typedef int32_t I __attribute__((vector_size(SINMDM_BYTES)));
  typedef float Unaligned __attribute__((vector_size(SINMDM_BYTES), aligned(4), may_alias));
};
template <>
struct Simd<double> {
  using Int = int64_t;
  typedef double V __attribute__((vector_size(SINMDM_BYTES)));
  typedef int64_t I __attribute__((vector_size(SINMDM_BYTES)));
  typedef double Unaligned __attribute__((vector_size(SINMDM_BYTES), aligned(8), may_alias));
};

template <typename C>
using V = typename Simd<C>::V;
template <typename C>
using I = typename Simd<C>::I;
template <typename C>
constexpr int64_t kLanes = SINMDM_BYTES / sizeof(C);

template <typename C>
SINMDM_KERNEL V<C> load(const C* from) {
  return *reinterpret_cast<const typename Simd<C>::Unaligned*>(from);
}

template <typename C>
SINMDM_KERNEL void store(C* to, V<C> x) {
  *reinterpret_cast<typename Simd<C>::Unaligned*>(to) = x;
}

template <typename C>
SINMDM_KERNEL I<C> bits(V<C> x) {
  I<C> i;
  memcpy(&i, &x, sizeof(i));
  return i;
}

template <typename C>
SINMDM_KERNEL V<C> from_bits(I<C> i) {
  V<C> x;
  memcpy(&x, &i, sizeof(x));
  return x;
}

// Rows in memory, to and from the dtype of the computation.

SINMDM_KERNEL void widen(const float* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) store<float>(to + i, load<float>(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

SINMDM_KERNEL void widen(const double* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

SINMDM_KERNEL float as_float(uint32_t word) {
  float x;
  memcpy(&x, &word, 4);
  return x;
}

SINMDM_KERNEL uint32_t as_word(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  return word;
}

SINMDM_KERNEL float widened_bfloat16(uint16_t x) {
  return as_float(static_cast<uint32_t>(x) << 16);
}

SINMDM_KERNEL void widen_bfloat16(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widened_bfloat16(from[i]);
}

SINMDM_KERNEL void narrow_bfloat16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {  // to nearest, ties to even
    const uint32_t word = as_word(from[i]);
    const uint32_t rounded = (word + 0x7FFF + (word >> 16 & 1)) >> 16;
    to[i] = static_cast<uint16_t>((word & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
  }
}

// Scaling by 2^112 moves the exponent from half's bias to float's and makes subnormals normal on the way.
SINMDM_KERNEL float widened_float16(uint16_t x) {
  const uint32_t half = x, magnitude = (half & 0x7FFF) << 13;
  const uint32_t scaled = as_word(as_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7F800000;  // infinities and NaNs
  return as_float(((half & 0x7C00) == 0x7C00 ? special : scaled) | (half & 0x8000) << 16);
}

SINMDM_KERNEL void widen_float16(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widened_float16(from[i]);
}

SINMDM_KERNEL void narrow_float16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t word = as_word(from[i]), sign = word >> 16 & 0x8000, magnitude = word & 0x7FFFFFFF;
    const uint32_t normal = (magnitude - (112u << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13;  // ties to even
    const uint32_t subnormal = as_word(as_float(magnitude) + 0.5f) - 0x3F000000;  // the sum rounds at 2^-24
    const uint32_t large = magnitude > 0x7F800000 ? 0x7E00 : 0x7C00;
    const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
    to[i] = static_cast<uint16_t>((magnitude >= 0x47800000 ? large : finite) | sign);
  }
}

}  // namespace sinmdm::cpu::SINMDM_ISA
