// Launches of window_attention for elements T: which bucket of head_dim, how many blocks, what each computes.
#pragma once

#include <type_traits>

#include "cuda/window/backward.h"
#include "cuda/window/forward.h"

namespace sinmdm::cuda::window {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Tiles that a block walks over, so that what it does once is paid once; but fewer where the blocks would not fill a
// device: 132 multiprocessors with 3 blocks each, and some to follow. A constant, so that every device adds up in the
// same order.
constexpr int kMostWalk = 8, kBlocks = 4 * 132;

inline int walk_of(int64_t tiles, int64_t blocks_a_tile) {
  const int64_t wanted = tiles * blocks_a_tile / kBlocks;
  return static_cast<int>(wanted < 1 ? 1 : wanted > kMostWalk ? kMostWalk : wanted);
}

// The bias gradient's launch: partial sums are one number for each frame of a head at most, unless there is one chunk.
struct BiasCut {
  int groups, walk, chunks;
};

template <typename T, int kDim>
BiasCut bias_cut(const Problem& p) {
  using Cut = Config<T, kDim>;
  constexpr int kSlots = kRows * Cut::kGroup;
  const int groups = p.columns <= Cut::kNarrow ? 1 : static_cast<int>(ceil_div(p.columns + kRows - 1, kSlots));
  const int64_t total = ceil_div(p.frames, Cut::kOwn) * p.batch;
  const int64_t most = static_cast<int64_t>(p.frames) * p.batch / (int64_t{groups} * (kSlots + kRows));
  const int64_t least_walk = ceil_div(total, most < 1 ? 1 : most), walk = walk_of(total, int64_t{1} * groups * p.heads);
  const int64_t chosen = walk < least_walk ? least_walk : walk;
  return {groups, static_cast<int>(chosen), static_cast<int>(ceil_div(total, chosen))};
}

// Calls body with the smallest bucket that holds head_dim, as a constant.
template <typename Body>
auto with_bucket(int dim, const Body& body) {
  if (dim <= 32) return body(std::integral_constant<int, 32>());
  if (dim <= 64) return body(std::integral_constant<int, 64>());
  if (dim <= 128) return body(std::integral_constant<int, 128>());
  return body(std::integral_constant<int, 256>());
}

template <typename T>
int forward_of(const Forward& p, CUstream_st* stream) {
  return with_bucket(p.dim, [&](auto bucket) {
    constexpr int kDim = decltype(bucket)::value;
    using Cut = Config<T, kDim>;
    const int tiles = static_cast<int>(ceil_div(p.frames, Cut::kOwn));
    const int total = tiles * p.batch, walk = walk_of(total, p.heads);
    const dim3 grid(static_cast<unsigned>(ceil_div(total, walk) * p.heads));
    return launch(window_forward<T, kDim>, grid, Cut::kThreads, forward_shared_bytes<T, kDim>(), stream, p, tiles,
                  total, walk);
  });
}

template <typename T>
int64_t partial_numbers_of(const Problem& p) {
  return with_bucket(p.dim, [&](auto bucket) {
    constexpr int kDim = decltype(bucket)::value;
    const BiasCut cut = bias_cut<T, kDim>(p);
    return int64_t{1} * cut.chunks * cut.groups * p.heads * Config<T, kDim>::kDiagonals;
  });
}

template <typename T>
int backward_of(const Backward& p, CUstream_st* stream) {
  return with_bucket(p.dim, [&](auto bucket) {
    constexpr int kDim = decltype(bucket)::value;
    using Cut = Config<T, kDim>;
    const int tiles = static_cast<int>(ceil_div(p.frames, Cut::kOwn));
    const int total = tiles * p.batch;
    const BiasCut cut = bias_cut<T, kDim>(p);
    const bool bias = p.partial != nullptr, narrow = p.columns <= Cut::kNarrow;
    // Key heads that several query heads share have blocks of their own, which go through all of these.
    const bool fused = p.group == 1 && !Cut::kStoresDelta;
    const auto run = [&](bool queries, bool with_bias, bool keys) {
      const bool together = Cut::kTogether && queries && keys && narrow && p.boundary != Boundary::shift;
      const int walk = with_bias ? cut.walk : 1, groups = with_bias ? cut.groups : 1;
      const int heads = queries || with_bias ? p.heads : p.heads / p.group;
      const dim3 grid(static_cast<unsigned>(ceil_div(total, walk) * groups * heads));
      return launch(window_backward<T, kDim>, grid, Cut::kThreads, backward_shared_bytes<T, kDim>(together, with_bias),
                    stream, p, Work{queries, with_bias, keys, together, tiles, total, walk, groups});
    };
    int error = run(true, bias && narrow, fused);
    if (error == 0 && !fused) error = run(false, false, true);
    if (error == 0 && bias && !narrow) error = run(false, true, false);
    if (error == 0 && bias) {
      constexpr int kThreads = 32 * kSlices;
      const dim3 grid(static_cast<unsigned>(ceil_div(p.width, 32) * p.heads));
      error = launch(window_add_partial<Computed<T>>, grid, kThreads, kThreads * static_cast<int>(sizeof(Computed<T>)),
                     stream, p, cut.chunks, cut.groups, kRows * Cut::kGroup);
    }
    return error;
  });
}

template <typename T>
constexpr Launchers launchers_of() {
  return {forward_of<T>, backward_of<T>, partial_numbers_of<T>};
}

}  // namespace sinmdm::cuda::window
