// Which key a query sees, and under which bias column. A position on the key axis is a slot: the frame itself, or under
// "circular" a number whose remainder modulo n is the frame, so that a frame met again is another slot. Query i meets
// slot x under column x - i + reach. The positions of queries that see a key are numbered in the same way.
#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "cuda/window/problem.h"
#include "philox.h"

namespace sinmdm::cuda::window {

template <typename C>
__device__ __forceinline__ C value_of(const Factor& factor) {
  if constexpr (std::is_same<C, float>::value) {
    return factor.float32;
  } else {
    return factor.float64;
  }
}

struct Range {
  int begin, end;
};

// Real frames of sequence b. The values are the caller's promise; a broken one must not read elsewhere.
__device__ __forceinline__ int length_of(const Problem& p, int b) {
  if (p.lengths == nullptr) return p.frames;
  const int64_t n =
      p.lengths_int32 ? static_cast<const int32_t*>(p.lengths)[b] : static_cast<const int64_t*>(p.lengths)[b];
  return static_cast<int>(n < 0 ? 0 : n < p.frames ? n : p.frames);
}

// The first slot that query i sees under "shift".
__device__ __forceinline__ int first_slot(const Problem& p, int n, int i) {
  return max(min(i - p.left, n - p.size), 0);
}

// The slots that any of `rows` queries from i0 on sees.
__device__ __forceinline__ Range visible_slots(const Problem& p, int n, int i0, int rows) {
  if (i0 >= n) return {0, 0};
  const int last = min(i0 + rows, n) - 1;
  if (p.boundary == Boundary::shift) return {first_slot(p, n, i0), first_slot(p, n, last) + p.size};
  const Range all{i0 - p.left, last - p.left + p.size};
  return p.boundary == Boundary::circular ? all : Range{max(all.begin, 0), min(all.end, n)};
}

// The positions of the queries that see any of `rows` keys from j0 on.
__device__ __forceinline__ Range seeing_queries(const Problem& p, int n, int j0, int rows) {
  if (j0 >= n) return {0, 0};
  const int end = min(j0 + rows, n), right = p.size - 1 - p.left;
  const Range all{j0 - right, end + p.left};
  if (p.boundary == Boundary::circular) return all;
  // Under "shift" the window stands still at both ends, and more queries see the keys there.
  const bool at_front = p.boundary == Boundary::shift && j0 < p.size;
  const bool at_back = p.boundary == Boundary::shift && end > n - p.size;
  return {at_front ? 0 : max(all.begin, 0), at_back ? n : min(all.end, n)};
}

// The frame at a position, or -1 where there is none.
__device__ __forceinline__ int frame_at(const Problem& p, int n, int position) {
  if (static_cast<unsigned>(position) < static_cast<unsigned>(n)) return position;
  if (p.boundary != Boundary::circular || n == 0) return -1;
  const int frame = position % n;
  return frame < 0 ? frame + n : frame;
}

// Whether query i sees slot x. One of them is a row that a warp owns, and so a frame and no position beyond the ends.
template <bool kOwnIsKey>
__device__ __forceinline__ bool sees(const Problem& p, int n, int i, int x) {
  const int own = kOwnIsKey ? x : i, other = kOwnIsKey ? i : x;
  if (own >= n) return false;
  if (p.boundary == Boundary::shift) {
    const int start = first_slot(p, n, i);
    return other >= 0 && other < n && x >= start && x < start + p.size;
  }
  const bool inside = static_cast<unsigned>(x - i + p.left) < static_cast<unsigned>(p.size);
  return inside && (p.boundary == Boundary::circular || (other >= 0 && other < n));
}

// Whether dropout keeps a weight: by word `o` mod 4 of counter (o div 4, query, head, batch), o the column of the whole
// bias.
__device__ __forceinline__ bool is_kept(const Problem& p, int column, int i, int h, int b) {
  const uint32_t o = static_cast<uint32_t>(p.cut) + static_cast<uint32_t>(column);
  const Words w =
      philox4x32_10(Words{o / 4, static_cast<uint32_t>(i), static_cast<uint32_t>(h), static_cast<uint32_t>(b)}, p.seed);
  return (o % 4 < 2 ? (o % 4 == 0 ? w.x0 : w.x1) : (o % 4 == 2 ? w.x2 : w.x3)) > p.limit;
}

}  // namespace sinmdm::cuda::window
