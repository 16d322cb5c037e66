// qna_attention, forward: out_i = sum_j exp(s_j + r_{j-i}) v_j / sum_j exp(s_j + r_{j-i}), a step of the window at a
// time; between steps sums are scaled from one highest logit to the next (Milakov and Gimelshein 2018). The windows of
// the networks are one step, whose softmax is computed while the values are on their way.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cuda/qna/tile.h"

namespace sinmdm::cuda::qna {

template <typename C>
constexpr C kNever = -std::numeric_limits<C>::infinity();  // no logit yet

// One block writes its tile's outputs; or of a Backward the Statistics of each of them, (batch, outputs, heads). delta
// is taken from the same dP as the backward's, and not as rowsum(dO O): where one weight is nearly 1, delta and its dP
// cancel, and so do their roundings.
template <typename T, typename P>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    attend(const __grid_constant__ P p, const __grid_constant__ Tile tile) {
  using C = Computed<T>;
  constexpr bool kStatistics = std::is_same_v<P, Backward>;
  constexpr int kGroup = kTogether<T>;
  const Block<T> block(p, tile);
  const int owned = tile.groups * kGroup, pairs = owned * tile.heads;
  C* const weights = block.numbers(tile.weights);
  C* const scores = block.numbers(tile.others);
  C* const bias = block.numbers(tile.bias);
  C* const highest = block.numbers(tile.own);  // of a pair, so far; the thread's own until a barrier, as are the others
  C* const total = highest + pairs;            // sum of weights
  C* const extra = total + pairs;              // delta, or what the last step scaled the sums by
  for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
    highest[pair] = kNever<C>, total[pair] = 0, extra[pair] = 0;
  }

  const int64_t end = min(block.first + owned, p.outputs);
  const auto real = [&](int64_t t) { return t < end && t * p.stride < block.n; };  // and not padded
  const int64_t first_frame = block.first * p.stride;
  const Range met = block.columns_met(first_frame, (end - 1) * p.stride, p.left);
  if constexpr (kStatistics) {
    block.stage(p.grad_out, owned, tile.own_rows, [&](int x) { return real(block.first + x) ? block.first + x : -1; });
  }
  C sums[kGroup][kChunk<T>] = {};
  for (int64_t begin = met.begin; begin < met.end; begin += tile.columns) {
    const int columns = static_cast<int>(min(static_cast<int64_t>(tile.columns), met.end - begin));
    const int staged = (owned - 1) * tile.step + columns;
    const int64_t slot = first_frame - p.left + begin;
    const Part frames = block.frames_among(slot, p.stride == tile.step ? staged : 0);
    const auto frame_of = [&](int x) {
      if (frames.has(x)) return slot + x;  // nearly always
      return block.frame_at(slot + x / tile.step * p.stride + x % tile.step);
    };
    if (begin != met.begin) __syncthreads();  // until all have read what this step writes over
    block.stage(p.values, staged, tile.rows, frame_of);
    block.for_each_head(staged, [&](int x, int h, int index) {
      const int64_t frame = frame_of(x);
      scores[index] = frame >= 0 ? block.score_at(frame, h) : C(0);
    });
    block.for_each_head(columns, [&](int c, int h, int index) { bias[index] = block.bias_at(begin + c, h); });
    __syncthreads();
    const auto seen_by = [&](int place) -> Part {
      const int64_t t = block.first + place;
      if (!real(t)) return {0, 0};
      return p.circular ? Part{0, columns} : block.frames_among(t * p.stride - p.left + begin, columns);
    };
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
      const int h = block.head_of(pair), place = block.place_of(pair);
      const Part seen = seen_by(place);
      C* const band = weights + block.band_of(pair);
      const C* const score = scores + place * tile.step * tile.heads + h;
      C high = highest[pair];
      for (int c = seen.begin; c < seen.end; ++c) {
        const C logit = score[c * tile.heads] + bias[c * tile.heads + h];
        band[c * kGroup] = logit;
        high = larger(high, logit);  // a NaN shows in the sum
      }
      const C base = high == kNever<C> ? C(0) : high, scale = exponential(highest[pair] - base);
      C sum = total[pair] * scale;
      for (int c = 0; c < seen.begin; ++c) band[c * kGroup] = 0;
      for (int c = seen.begin; c < seen.end; ++c) {
        const C weight = exponential(band[c * kGroup] - base);
        band[c * kGroup] = weight;
        sum += weight;
      }
      for (int c = seen.end; c < columns; ++c) band[c * kGroup] = 0;
      highest[pair] = high, total[pair] = sum;
      extra[pair] = kStatistics ? extra[pair] * scale : scale;
    }
    copy_async_wait<0>();
    __syncthreads();
    if constexpr (kStatistics) {
      block.multiply_rows(columns);
      __syncthreads();
      const C* const products = block.numbers(tile.products);
      for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
        const Part seen = seen_by(block.place_of(pair));
        const int band = block.band_of(pair);
        C delta = extra[pair];
        for (int c = seen.begin; c < seen.end; ++c) delta += weights[band + c * kGroup] * products[band + c * kGroup];
        extra[pair] = delta;
      }
    } else if (block.active()) {
      if (begin != met.begin) {
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
          const C scale = extra[block.pair_of_group(r)];
#pragma unroll
          for (int e = 0; e < kChunk<T>; ++e) sums[r][e] *= scale;
        }
      }
      block.add_rows(columns, sums);
    }
  }
  copy_async_wait<0>();  // of rows that no step wanted

  const auto reciprocal = [&](int pair) { return 1 / (total[pair] == 0 ? C(1) : total[pair]); };
  if constexpr (kStatistics) {
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
      const int64_t t = block.first + block.place_of(pair);
      const int h = block.first_head + block.head_of(pair);
      if (!real(t) || h >= p.heads) continue;  // nobody asks for those of padded outputs
      const C high = highest[pair] == kNever<C> ? C(0) : highest[pair], inverse = reciprocal(pair);
      block.statistics(p.scratch, t, h) = {high, inverse, extra[pair] * inverse, 0};
    }
  } else if (block.active()) {
#pragma unroll
    for (int r = 0; r < kGroup; ++r) {
      const int64_t t = block.first + block.group * kGroup + r;
      if (t >= end) continue;
      const C scale = real(t) ? reciprocal(block.pair_of_group(r)) : C(0);
#pragma unroll
      for (int e = 0; e < kChunk<T>; ++e) sums[r][e] = real(t) ? sums[r][e] * scale : C(0);
      block.store(p.out, t, sums[r]);
    }
  }
}

template <typename T, typename P>
int launch_attend(const P& p, CUstream_st* stream) {
  const auto step = static_cast<int>(std::min<int64_t>({p.stride, p.size, kColumns}));
  constexpr bool kStatistics = std::is_same_v<P, Backward>;
  const Tile tile = tile_of<T>(p, p.outputs, step, kStatistics, 1);
  const dim3 grid(static_cast<unsigned>(tile.blocks(p)));
  return launch(attend<T, P>, grid, tile.threads, tile.shared_bytes, stream, p, tile);
}

}  // namespace sinmdm::cuda::qna
