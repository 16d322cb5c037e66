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
  Computed<T> bias[2][4];
  uint32_t inside = 0;  // bits of the pairs whose column is one of the bias

  // Of head h; `step` is 1 where columns go up with the other side's position, -1 where they go down.
  template <int kStep>
  __device__ __forceinline__ void load(const Problem& p, int h, int offset, int columns) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    inside = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = offset + kStep * (8 * (i / 4) + 2 * t + i % 2 - g - i % 4 / 2 * 8);
      const bool is = static_cast<unsigned>(column) < static_cast<unsigned>(columns);
      inside |= static_cast<uint32_t>(is) << i;
      bias[i / 4][i % 4] = is && p.bias != nullptr ? bias_at<T>(p, h, column) : Computed<T>(0);
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
