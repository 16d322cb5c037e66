// Of a warp's 16 x 16 pairs: which are visible, under which bias, and which dropout keeps. Bit 4 half + i is that of
// pairs[half][i].
#pragma once

#include "cuda/window/geometry.h"
#include "cuda/window/tile.h"

namespace sinmdm::cuda::window {

// What the bias and the window are for a tile depends only on how far apart its two sides are: on `offset`, the column
// of its first pair. Kept over tiles that are alike.
template <typename T>
struct Columns {
 public:
  Computed<T> bias[2][4];

  // Of head h; returns the bits of the pairs whose column is one of the bias. kStep: 1 where columns go up with the
  // other side's position, -1 where they go down.
  template <int kStep>
  __device__ __forceinline__ uint32_t load(const Problem& p, int h, int offset) {
    const int lane = threadIdx.x % 32, first = offset + kStep * (lane % 4 * 2 - lane / 4);
    uint32_t inside = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool is = static_cast<unsigned>(first + kStep * column_of(i)) < static_cast<unsigned>(p.columns);
      inside |= static_cast<uint32_t>(is) << i;
    }
    const int64_t at = h * p.bias_head + p.cut + first;
    if (p.bias == nullptr) {
      clear(bias);
    } else if (p.bias_float32) {
      take<kStep>(static_cast<const float*>(p.bias) + at, inside);
    } else {
      take<kStep>(static_cast<const T*>(p.bias) + at, inside);
    }
    return inside;
  }

 private:
  // How many columns pair i lies after the lane's first.
  static __device__ __forceinline__ constexpr int column_of(int i) { return 8 * (i / 4) + i % 2 - i % 4 / 2 * 8; }

  // In units of log2 e, as scores are kept: a weight is one power of two.
  template <int kStep, typename B>
  __device__ __forceinline__ void take(const B* from, uint32_t inside) {
    constexpr auto kLog2E = static_cast<Computed<T>>(1.4426950408889634);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool is = (inside >> i & 1) != 0;
      bias[i / 4][i % 4] = is ? kLog2E * static_cast<Computed<T>>(widen(from[kStep * column_of(i)])) : Computed<T>(0);
    }
  }
};

// Bits of the pairs that are visible, of a warp's rows from `own0` on and the positions from `other0` on.
template <bool kOwnIsKey>
__device__ __forceinline__ uint32_t visible_pairs(const Problem& p, int n, int own0, int other0, uint32_t inside) {
  const bool ends = p.boundary != Boundary::circular && (other0 < 0 || other0 + kRows > n);
  if (p.boundary != Boundary::shift && own0 + kRows <= n && !ends) return inside;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t visible = 0;
#pragma unroll 1  // of rare use: short rather than fast
  for (int i = 0; i < 8; ++i) {
    const int own = own0 + g + i % 4 / 2 * 8, other = other0 + 8 * (i / 4) + 2 * t + i % 2;
    const bool seen = kOwnIsKey ? sees<true>(p, n, other, own) : sees<false>(p, n, own, other);
    visible |= static_cast<uint32_t>(seen) << i;
  }
  return visible;
}

// Bits of the pairs that dropout keeps.
template <bool kOwnIsKey>
__device__ __forceinline__ uint32_t kept_pairs(const Problem& p, int n, int own0, int other0, int h, int b) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t kept = 0;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const int own = own0 + g + i % 4 / 2 * 8, other = other0 + 8 * (i / 4) + 2 * t + i % 2;
    const int query = kOwnIsKey ? other : own, slot = kOwnIsKey ? own : other;
    // Of a hidden pair, whose column may be none, the answer does not count.
    const bool is = is_kept(p, slot - query + p.reach, kOwnIsKey ? frame_at(p, n, query) : query, h, b);
    kept |= static_cast<uint32_t>(is) << i;
  }
  return kept;
}

}  // namespace sinmdm::cuda::window
