// The noise of every backend, for host and device: Philox4x32-10 (Salmon et al. 2011) and Box-Muller.
// kernels/philox/reference.py defines the stream; the constants here are the same, and a test compares them.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SINMDM_INLINE __host__ __device__ __forceinline__
#else
#include <cmath>
#define SINMDM_INLINE inline __attribute__((always_inline))
#endif

namespace sinmdm {

struct Words {
  uint32_t x0, x1, x2, x3;
};

SINMDM_INLINE Words philox4x32_10(Words c, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c.x0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c.x2;
    uint32_t half0[2], half1[2];  // copied: nvcc adds a zero to what a shift by 32 leaves
    memcpy(half0, &product0, 8);
    memcpy(half1, &product1, 8);
    c = Words{half1[1] ^ c.x1 ^ key0, half1[0], half0[1] ^ c.x3 ^ key1, half0[0]};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// The counter of the four elements 4 * group .. 4 * group + 3 of a sample's draw.
SINMDM_INLINE Words counter_of(uint64_t group, uint32_t step, uint32_t sample) {
  return Words{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), step, sample};
}

// In (0, 1), never an end.
SINMDM_INLINE float uniform(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

// Natural logarithm of u in (0, 1): ln(1 + f) = f - f^2/2 + f^3 P(f) after scaling 1 + f into [sqrt(1/2), sqrt(2)).
SINMDM_INLINE float log_unit(float u) {
  uint32_t bits;
  memcpy(&bits, &u, 4);
  // Adding the distance from sqrt(1/2) to 1 carries into the exponent exactly where the mantissa is above sqrt(2).
  const uint32_t shifted = bits + (0x3F800000u - 0x3F3504F3u);
  const int32_t exponent = static_cast<int32_t>(shifted >> 23) - 127;
  bits -= static_cast<uint32_t>(exponent) << 23;
  float f;
  memcpy(&f, &bits, 4);
  f -= 1.0f;
  const float square = f * f;
  float p = -0.07644633203744888f;
  p = p * f + 0.12761884927749634f;
  p = p * f + -0.13156017661094666f;
  p = p * f + 0.14201374351978302f;
  p = p * f + -0.16623802483081818f;
  p = p * f + 0.200012668967247f;
  p = p * f + -0.25000807642936707f;
  p = p * f + 0.3333333134651184f;
  return static_cast<float>(exponent) * 0.6931471805599453f + (f - 0.5f * square + square * f * p);
}

// (cos, sin) of 2 pi v for v in (0, 1).
SINMDM_INLINE void cos_sin_turns(float v, float& cosine, float& sine) {
  const int32_t quarter = static_cast<int32_t>(4.0f * v + 0.5f);
  const float r = v - 0.25f * static_cast<float>(quarter);
  const float square = r * r;
  float s = -75.39356231689453f;
  s = s * square + 81.59235382080078f;
  s = s * square + -41.3416633605957f;
  s = s * square + 6.2831854820251465f;
  s *= r;
  float c = 59.202796936035156f;
  c = c * square + -85.44229888916016f;
  c = c * square + 64.9393081665039f;
  c = c * square + -19.739208221435547f;
  c = c * square + 1.0f;
  const bool odd = (quarter & 1) != 0;
  const float x = odd ? s : c, y = odd ? c : s;
  const int32_t quadrant = quarter & 3;
  cosine = (quadrant == 1 || quadrant == 2) ? -x : x;
  sine = quadrant >= 2 ? -y : y;
}

// Two independent standard normals from two words.
SINMDM_INLINE void box_muller(uint32_t word0, uint32_t word1, float& z0, float& z1) {
  const float radius = sqrtf(-2.0f * log_unit(uniform(word0)));
  cos_sin_turns(uniform(word1), z0, z1);
  z0 *= radius;
  z1 *= radius;
}

}  // namespace sinmdm
