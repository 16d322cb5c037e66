// Standard normals from the words of philox.h: its box_muller in fewer instructions. The quadrant, and the distance
// from it, are taken out of the word's bits, where that rounds numbers; the factor -2 is in the logarithm's constants;
// and every multiplication with an addition is fused in so many words, so that all kernels have the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/ptx.h"
#include "philox.h"

namespace sinmdm::cuda {

__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// -2 ln u of u = ((word >> 9) + 1/2) 2^-23.
__device__ __forceinline__ float minus_two_log(uint32_t word) {
  const float u = float_of(word >> 9 | 0x3F800000u) - (1.0f - 0x1p-24f);  // bits behind the point of 1
  const uint32_t bits = bits_of(u);
  const uint32_t exponent = (bits - 0x3F3504F3u) & 0xFF800000u;  // still in its place, times 2^23
  const float f = float_of(bits - exponent) - 1.0f;
  const float square = f * f;
  float p = fmaf(-2 * -0.07644633203744888f, f, -2 * 0.12761884927749634f);
  p = fmaf(p, f, -2 * -0.13156017661094666f);
  p = fmaf(p, f, -2 * 0.14201374351978302f);
  p = fmaf(p, f, -2 * -0.16623802483081818f);
  p = fmaf(p, f, -2 * 0.200012668967247f);
  p = fmaf(p, f, -2 * -0.25000807642936707f);
  p = fmaf(p, f, -2 * 0.3333333134651184f);
  const float of_fraction = fmaf(square * f, p, fmaf(-2.0f, f, square));
  return fmaf(static_cast<float>(static_cast<int32_t>(exponent)), -2 * 0.6931471805599453f * 0x1p-23f, of_fraction);
}

// (cos, sin) of 2 pi v for v = ((word >> 9) + 1/2) 2^-23.
__device__ __forceinline__ void cos_sin_of(uint32_t word, float& cosine, float& sine) {
  // Four times the signed distance from the nearest quarter turn: again bits behind the point, the highest turned over
  // (which adds 1/2) and below the lowest the half that every v has. A power of 4 in each constant takes the 4 back.
  const float r = float_of((word >> 7 & 0x007FFFFCu) ^ 0x3FC00002u) - 1.5f;
  const float square = r * r;
  float s = fmaf(-75.39356231689453f * 0x1p-14f, square, 81.59235382080078f * 0x1p-10f);
  s = fmaf(s, square, -41.3416633605957f * 0x1p-6f);
  s = fmaf(s, square, 6.2831854820251465f * 0x1p-2f);
  s *= r;
  float c = fmaf(59.202796936035156f * 0x1p-16f, square, -85.44229888916016f * 0x1p-12f);
  c = fmaf(c, square, 64.9393081665039f * 0x1p-8f);
  c = fmaf(c, square, -19.739208221435547f * 0x1p-4f);
  c = fmaf(c, square, 1.0f);
  const uint32_t quarter = word + 0x20000000u;  // the nearest's number modulo 4 in the top two bits
  const bool odd = static_cast<int32_t>(2 * word + 0x40000000u) < 0;
  const float x = odd ? s : c, y = odd ? c : s;
  cosine = float_of(bits_of(x) ^ ((quarter + 0x40000000u) & 0x80000000u));  // below 0 in quarters 1 and 2
  sine = float_of(bits_of(y) ^ (quarter & 0x80000000u));
}

__device__ __forceinline__ void box_muller(uint32_t word0, uint32_t word1, float& z0, float& z1) {
  const float radius = square_root(minus_two_log(word0));
  cos_sin_of(word1, z0, z1);
  z0 *= radius;
  z1 *= radius;
}

// The normals of four neighbouring elements.
__device__ __forceinline__ void normals_of(const Words& words, float (&z)[4]) {
  box_muller(words.x0, words.x1, z[0], z[1]);
  box_muller(words.x2, words.x3, z[2], z[3]);
}

}  // namespace sinmdm::cuda
