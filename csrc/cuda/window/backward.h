// window_attention, backward, with P the weights and dP = dO V^T: dS = P (dP - delta), delta = rowsum(P dP) - dlse;
// dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO, and the bias gets the sums of dS along its diagonals (Dao et al.
// 2022, appendix B).
//
// A block owns kOwn frames. As queries they meet the slots that they see, and give dQ and their share of the bias
// gradient; as keys they meet the queries that see them, and give dK and dV. Under a narrow window one block does all
// of this with rows that it loads once: kOther queries with their dO and kOther keys with their values, the block's own
// among them. Every operand then comes from device memory once, and neighbours' rows from the second cache; there is no
// pass before it, and nothing is atomic. Otherwise it holds its own rows and meets kOther of the other side at a time.
//
// By Toeplitz, dS of a group has the same place for every tile: each thread keeps its sums over a walk of tiles in
// shared memory, 8 kGroup numbers that are its own. They are added up along their diagonals only at the walk's end, to
// one row of numbers a block, and those rows are added up in a fixed order.
#pragma once

#include "cuda/window/pairs.h"

namespace sinmdm::cuda::window {

// What one launch computes.
struct Work {
  bool queries, bias, keys;
  bool together;  // all of the rows that these need are loaded at once
  int tiles;      // of a sequence
  int total;      // of the batch
  int walk;       // of a block
  int groups;     // of slots, for the bias gradient where it is alone: group c is the slots 16 kGroup c further on
};

// Two statistics of each query, where it is wanted the threads' sums of dS, and rows: of two operands on either side,
// or at the end the sums once more, to be added up.
template <typename T, int kDim>
constexpr int backward_shared_bytes(bool together, bool bias) {
  using Cut = Config<T, kDim>;
  constexpr int kSkewed = Cut::kOwn * Cut::kDiagonals * static_cast<int>(sizeof(Computed<T>));
  const int rows = 2 * ((together ? Cut::kOther : Cut::kOwn) + Cut::kOther);
  const int bytes = rows * Cut::kPitch * static_cast<int>(sizeof(T));
  const int numbers = 2 * Cut::kOther + (bias ? 8 * Cut::kGroup * Cut::kThreads : 0);
  return (bytes > kSkewed ? bytes : kSkewed) + numbers * static_cast<int>(sizeof(Computed<T>));
}

// One block's view of its shared memory, and of the sequence that it is at.
template <typename T, int kDim>
struct Block {
  using Cut = Config<T, kDim>;
  using C = Computed<T>;
  static constexpr auto kLog2E = static_cast<C>(1.4426950408889634);

  static constexpr int kRowsOfOne = Cut::kOther * Cut::kPitch;

  const Backward& p;
  // Where the block's own rows begin, in elements from rows(), and how far its second operand lies from the first: of
  // queries and dO, or of keys and values. The other side are the others, kRowsOfOne from one another.
  int own = 0, own_span = Cut::kOwn * Cut::kPitch, other = 2 * Cut::kOwn * Cut::kPitch;
  int own_statistics = 0;  // number of the block's first query in lse() and delta()
  bool has_bias_sums;
  int warp, lane, b = 0, n = 0;

  __device__ __forceinline__ Block(const Backward& problem, bool bias)
      : p(problem), has_bias_sums(bias), warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}

  // Of queries in shared memory; lse in units of log2 e.
  __device__ __forceinline__ C* lse() const { return reinterpret_cast<C*>(shared_memory()); }
  __device__ __forceinline__ C* delta() const { return lse() + Cut::kOther; }
  // This thread's sums of dS, 8 kGroup of them at a pitch of kThreads.
  __device__ __forceinline__ C* bias_sums() const { return delta() + Cut::kOther + threadIdx.x; }
  __device__ __forceinline__ T* rows() const {
    return reinterpret_cast<T*>(delta() + Cut::kOther + (has_bias_sums ? 8 * Cut::kGroup * Cut::kThreads : 0));
  }
  // The first and the second operand of the warp's own rows, and of the other side's.
  __device__ __forceinline__ T* own1() const { return rows() + own + kRows * warp * Cut::kPitch; }
  __device__ __forceinline__ T* own2() const { return own1() + own_span; }
  __device__ __forceinline__ T* other1() const { return rows() + other; }
  __device__ __forceinline__ T* other2() const { return other1() + kRowsOfOne; }

  // Of rows that are loaded together: queries from position i0 - right on, dO, keys from i0 - left on, values. Which of
  // them are the block's own, and which the other side.
  template <bool kOwnIsKey>
  __device__ __forceinline__ void take_sides() {
    const int right = p.size - 1 - p.left;
    own = kOwnIsKey ? 2 * kRowsOfOne + p.left * Cut::kPitch : right * Cut::kPitch;
    other = kOwnIsKey ? 0 : 2 * kRowsOfOne;
    own_span = kRowsOfOne;
    own_statistics = right;
  }

  __device__ __forceinline__ void load_together(int i0, int h) {
    const auto query = [&](int row) { return frame_at(p, n, i0 - (p.size - 1 - p.left) + row); };
    const auto key = [&](int row) { return frame_at(p, n, i0 - p.left + row); };
    __syncthreads();  // nobody reads what was there
    load_rows<T, kDim>(rows(), Cut::kOther, p, p.q, b, h, query);
    load_rows<T, kDim>(rows() + kRowsOfOne, Cut::kOther, p, p.grad_out, b, h, query);
    load_rows<T, kDim>(rows() + 2 * kRowsOfOne, Cut::kOther, p, p.k, b, h, key);
    load_rows<T, kDim>(rows() + 3 * kRowsOfOne, Cut::kOther, p, p.v, b, h, key);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    load_statistics(rows() + kRowsOfOne, Cut::kOther, h, true, query);
    __syncthreads();
  }

  __device__ __forceinline__ int64_t at(int frame, int h) const {
    return (static_cast<int64_t>(b) * p.frames + frame) * p.heads + h;
  }

  // lse and delta of the queries at `frame(r)`, whose dO is in shared memory; four lanes a row. 0 where there is none.
  // with_delta: otherwise it is not known yet.
  template <typename Frame>
  __device__ __forceinline__ void load_statistics(const T* grads, int count, int h, bool with_delta,
                                                  const Frame& frame) const {
    for (int row = threadIdx.x / 4; row < count; row += Cut::kThreads / 4) {  // whole warps, as rows are
      const int f = frame(row);
      C sum = 0;
      if (f >= 0 && with_delta && !Cut::kStoresDelta) {
        const T* out = static_cast<const T*>(p.out.data) + b * p.out.batch + f * p.out.frame + h * p.out.head;
        const T* grad = grads + row * Cut::kPitch;
        for (int d = lane % 4 * Cut::kChunk; d < p.dim; d += 4 * Cut::kChunk) {
          if (p.aligned) {
            const auto o = *reinterpret_cast<const Chunk<T>*>(out + d),
                       x = *reinterpret_cast<const Chunk<T>*>(grad + d);
#pragma unroll
            for (int e = 0; e < Cut::kChunk; ++e) sum += widen(o.x[e]) * widen(x.x[e]);
          } else {
            for (int e = d; e < min(d + Cut::kChunk, p.dim); ++e) sum += widen(out[e]) * widen(grad[e]);
          }
        }
      }
      sum = sum_of_row(sum);
      if (lane % 4 != 0) continue;
      C log_denominator = 0;
      if (f >= 0) {
        log_denominator = static_cast<const C*>(p.lse)[at(f, h)] * kLog2E;
        // A query that sees nothing: all its scores are -inf, and so its weights become 0.
        if (log_denominator == -static_cast<C>(INFINITY)) log_denominator = 0;
        if (with_delta && Cut::kStoresDelta) {
          sum = static_cast<const C*>(p.delta)[at(f, h)];
        } else if (with_delta && p.grad_lse != nullptr) {
          sum -= static_cast<const C*>(p.grad_lse)[at(f, h)];
        }
      }
      lse()[row] = log_denominator;
      delta()[row] = sum;
    }
  }

  // Pairs times `scale`, 0 where dropout drops them.
  __device__ __forceinline__ void times_kept(C (&pairs)[2][4], uint32_t kept, C scale) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) pairs[i / 4][i % 4] *= (kept >> i & 1) != 0 ? scale : C(0);
  }

  // Calls body(j, row of the other side in shared memory, weights, dP, kept, visible) for every 16 x 16 pairs of this
  // warp's rows from own0 + 16 warp on and the other side's positions in `mine`, which they meet. The other side is
  // there already or loaded kOther positions at a time, numbers [first, last) from `base` on, of head h (queries) and
  // kv_head (keys). fixed: only one group, whose first tile is the warp's own number; j is then the tile's number in
  // the group.
  template <bool kOwnIsKey, typename Body>
  __device__ __forceinline__ void walk(int own0, int base, int first, int last, bool there, Range mine, bool fixed,
                                       int h, int kv_head, const Body& body) {
    const int own_w = own0 + kRows * warp;
    const int g = lane / 4, t = lane % 4;
    for (int chunk = first; chunk < last; ++chunk) {
      const int other0 = base + chunk * Cut::kOther;
      if (!there) {
        const auto frame = [&](int row) { return frame_at(p, n, other0 + row); };
        __syncthreads();  // nobody reads what was there
        load_rows<T, kDim>(other1(), Cut::kOther, p, kOwnIsKey ? p.q : p.k, b, kOwnIsKey ? h : kv_head, frame);
        load_rows<T, kDim>(other2(), Cut::kOther, p, kOwnIsKey ? p.grad_out : p.v, b, kOwnIsKey ? h : kv_head, frame);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        if (kOwnIsKey) {
          load_statistics(other2(), Cut::kOther, h, true, frame);
          __syncthreads();
        }
      }
      const int sub_first = fixed ? warp : max(mine.begin - other0, 0) / kRows;
      int sub_last = mine.begin < mine.end ? min((mine.end - other0 + kRows - 1) / kRows, Cut::kSubs) : 0;
      if (fixed) sub_last = min(sub_last, warp + Cut::kGroup);
      for (int sub = sub_first; sub < sub_last; sub += Cut::kGroup) {
#pragma unroll 1
        for (int j = 0; j < Cut::kGroup; ++j) {
          if (sub + j >= sub_last) continue;
          const int other_s = other0 + kRows * (sub + j), row = kRows * (sub + j);
          C weights[2][4], gradients[2][4];
          products_of<T, kDim>(weights, own1(), other1() + row * Cut::kPitch);
          products_of<T, kDim>(gradients, own2(), other2() + row * Cut::kPitch);
          const int offset = p.reach + (kOwnIsKey ? own_w - other_s : other_s - own_w);
          Columns<T> bias;  // not before it is needed: its lines stay in the first cache, and registers are scarce
          const uint32_t inside = bias.template load<kOwnIsKey ? -1 : 1>(p, h, offset);
          const uint32_t visible = visible_pairs<kOwnIsKey>(p, n, own_w, other_s, inside);
          const uint32_t kept = p.drops ? kept_pairs<kOwnIsKey>(p, n, own_w, other_s, h, b) : 0;
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const C shift = lse()[kOwnIsKey ? row + 8 * (i / 4) + 2 * t + i % 2
                                            : own_statistics + kRows * warp + g + i % 4 / 2 * 8];
            C& x = weights[i / 4][i % 4];
            x = (visible >> i & 1) != 0 ? power_of_two(x * value_of<C>(p.score_scale) + bias.bias[i / 4][i % 4] - shift)
                                        : C(0);
          }
          if (p.drops) times_kept(gradients, kept, value_of<C>(p.keep_scale));
          body(j, row, weights, gradients, kept, visible);
        }
      }
    }
  }

  // dS of pairs, 0 where they are not visible.
  template <bool kOwnIsKey>
  __device__ __forceinline__ void score_gradients(C (&gradients)[2][4], const C (&weights)[2][4], int row,
                                                  uint32_t visible) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const C less =
          delta()[kOwnIsKey ? row + 8 * (i / 4) + 2 * t + i % 2 : own_statistics + kRows * warp + g + i % 4 / 2 * 8];
      C& x = gradients[i / 4][i % 4];
      x = (visible >> i & 1) != 0 ? weights[i / 4][i % 4] * (x - less) : C(0);
    }
  }

  // The queries from i0 on: their dQ, and their dS added to bias_sums(), of one group of slots where the bias is alone.
  __device__ __forceinline__ void of_queries(const Work& work, int i0, int h, int slot_group) {
    const int kv_head = h / p.group, iw = i0 + kRows * warp;
    const Range all = visible_slots(p, n, i0, Cut::kOwn), mine = visible_slots(p, n, iw, kRows);
    int base = i0 - p.reach;
    int first = (all.begin - base) / Cut::kOther;
    int last = all.begin < all.end ? (all.end - base + Cut::kOther - 1) / Cut::kOther : first;
    if (!work.queries) {
      base += kRows * Cut::kGroup * slot_group;
      const bool any = all.begin < base + Cut::kOther && all.end > base;
      first = 0, last = any ? 1 : 0;
    }
    if (first < last && !work.together) {
      __syncthreads();  // nobody reads what was there
      const auto frame = [&](int row) { return i0 + row < n ? i0 + row : -1; };
      load_rows<T, kDim>(rows(), Cut::kOwn, p, p.q, b, h, frame);
      load_rows<T, kDim>(rows() + own_span, Cut::kOwn, p, p.grad_out, b, h, frame);
      copy_async_commit();
      copy_async_wait<0>();
      __syncthreads();
      const bool sum_up_delta = work.queries && Cut::kStoresDelta;
      load_statistics(rows() + own_span, Cut::kOwn, h, !sum_up_delta, frame);
      __syncthreads();
      if (sum_up_delta) {
        C sums[2] = {0, 0};
        walk<false>(i0, base, first, last, false, mine, false, h, kv_head,
                    [&](int, int, C(&weights)[2][4], C(&gradients)[2][4], uint32_t, uint32_t visible) {
#pragma unroll
                      for (int i = 0; i < 8; ++i) {
                        const C x = weights[i / 4][i % 4] * gradients[i / 4][i % 4];
                        sums[i % 4 / 2] += (visible >> i & 1) != 0 ? x : C(0);
                      }
                    });
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = kRows * warp + lane / 4 + 8 * half, i = i0 + row;
          C sum = sum_of_row(sums[half]);
          if (lane % 4 != 0) continue;
          if (i < n && p.grad_lse != nullptr) sum -= static_cast<const C*>(p.grad_lse)[at(i, h)];
          delta()[row] = sum;
          if (i < n) static_cast<C*>(p.delta)[at(i, h)] = sum;
        }
        __syncwarp();  // a warp reads its own rows only
      }
    }
    C sums[kDim / 8][4];
    for (bool careful = false;; careful = true) {
      clear(sums);
      walk<false>(i0, base, first, last, work.together, mine, work.bias, h, kv_head,
                  [&](int j, int row, C(&weights)[2][4], C(&gradients)[2][4], uint32_t, uint32_t visible) {
                    score_gradients<false>(gradients, weights, row, visible);
                    if (work.bias && !careful) {
#pragma unroll
                      for (int i = 0; i < 8; ++i) bias_sums()[(8 * j + i) * Cut::kThreads] += gradients[i / 4][i % 4];
                    }
                    if (work.queries) {
                      add_products<T, kDim>(sums, gradients, visible, other1() + row * Cut::kPitch, careful);
                    }
                  });
      if (careful || !work.queries || !__syncthreads_or(!all_finite(sums))) break;
    }
    if (!work.queries) return;
    const C scale = value_of<C>(p.scale);
    if (work.together) {  // the keys have yet to meet these rows
      store_pairs<T, kDim>(p, p.dq, b, h, iw, p.frames, sums, scale);
    } else {
      store_rows<T, kDim>(own1(), p, p.dq, b, h, iw, p.frames, sums, scale, scale);
    }
  }

  // dK and dV of the keys from j0 on, from all query heads that share them.
  __device__ __forceinline__ void of_keys(const Work& work, int j0, int kv_head) {
    const int jw = j0 + kRows * warp;
    const Range all = seeing_queries(p, n, j0, Cut::kOwn), mine = seeing_queries(p, n, jw, kRows);
    const int base = j0 - (p.boundary == Boundary::shift ? p.size - 1 : p.size - 1 - p.left);
    const int first = (all.begin - base) / Cut::kOther;
    const int last = all.begin < all.end ? (all.end - base + Cut::kOther - 1) / Cut::kOther : first;
    if (first < last && !work.together) {
      __syncthreads();  // nobody reads what was there
      const auto frame = [&](int row) { return j0 + row < n ? j0 + row : -1; };
      load_rows<T, kDim>(rows(), Cut::kOwn, p, p.k, b, kv_head, frame);
      load_rows<T, kDim>(rows() + own_span, Cut::kOwn, p, p.v, b, kv_head, frame);
      copy_async_commit();  // waited for with the other side's first rows
    }
    // Of long rows, registers hold one of the two gradients at a time: first dV, then dK.
    constexpr int kParts = kDim > 128 ? 2 : 1;
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
      C sums[kDim / 8][4], more[kParts == 1 ? kDim / 8 : 1][4];
      for (bool careful = false;; careful = true) {
        clear(sums);
        clear(more);
        for (int h = kv_head * p.group; h < (kv_head + 1) * p.group; ++h) {
          walk<true>(j0, base, first, last, work.together, mine, false, h, kv_head,
                     [&](int, int row, C(&weights)[2][4], C(&gradients)[2][4], uint32_t kept, uint32_t visible) {
                       score_gradients<true>(gradients, weights, row, visible);
                       if (p.drops) times_kept(weights, kept, C(1));
                       const T *rows1 = other1() + row * Cut::kPitch, *rows2 = other2() + row * Cut::kPitch;
                       if constexpr (kParts == 1) {
                         add_products<T, kDim>(sums, weights, visible, rows2, careful);
                         add_products<T, kDim>(more, gradients, visible, rows1, careful);
                       } else {
#pragma unroll
                         for (int i = 0; i < 8; ++i) {
                           if (part == 1) weights[i / 4][i % 4] = gradients[i / 4][i % 4];
                         }
                         add_products<T, kDim>(sums, weights, visible, part == 0 ? rows2 : rows1, careful);
                       }
                     });
        }
        if (careful || !__syncthreads_or(!all_finite(sums) || !all_finite(more))) break;
      }
      // By way of rows that nobody reads any more: the keys are needed for the second part.
      __syncthreads();
      T* scratch = other1() + kRows * warp * Cut::kPitch;
      // What dropout does to dV waits until here: half types hold the weights, but not what a large factor makes of
      // them.
      const C scale = value_of<C>(p.scale), keep_scale = p.drops ? value_of<C>(p.keep_scale) : C(1);
      const C factor = kParts == 1 || part == 0 ? keep_scale : scale;
      const Rows& to = kParts == 1 || part == 0 ? p.dv : p.dk;
      store_rows<T, kDim>(scratch, p, to, b, kv_head, jw, p.frames, sums, factor, factor);
      if constexpr (kParts == 1) store_rows<T, kDim>(scratch, p, p.dk, b, kv_head, jw, p.frames, more, scale, scale);
    }
  }

  // The block's sums of dS along their diagonals: number e is column e - 15 of the group. Each row of a warp's sums is
  // moved so that diagonals are columns.
  __device__ __forceinline__ void write_bias(C* partial) const {
    constexpr int kWidth = Cut::kDiagonals;
    C* skewed = reinterpret_cast<C*>(rows());
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8 * Cut::kGroup; ++i) {
      const int row = lane / 4 + i % 4 / 2 * 8, column = 8 * (i / 4) + lane % 4 * 2 + i % 2;
      skewed[(kRows * warp + row) * kWidth + column - row + kRows - 1] = bias_sums()[i * Cut::kThreads];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < kWidth; e += Cut::kThreads) {
      C sum = 0;
      for (int row = 0; row < Cut::kOwn; ++row) {
        const int column = e - (kRows - 1) + row % kRows;
        if (column >= 0 && column < kRows * Cut::kGroup) sum += skewed[row * kWidth + e];
      }
      partial[e] = sum;
    }
  }
};

template <typename T, int kDim>
__global__ void __launch_bounds__(Config<T, kDim>::kThreads, Config<T, kDim>::kResident)
    window_backward(const __grid_constant__ Backward p, const __grid_constant__ Work work) {
  using Cut = Config<T, kDim>;
  using C = Computed<T>;
  Block<T, kDim> block(p, work.bias);
  const int heads = work.queries || work.bias ? p.heads : p.heads / p.group;
  const int program = static_cast<int>(blockIdx.x), h = program % heads, slot_group = program / heads % work.groups;
  const int begin = program / heads / work.groups * work.walk;
  if (work.bias) {
    for (int i = 0; i < 8 * Cut::kGroup; ++i) block.bias_sums()[i * Cut::kThreads] = 0;
  }
  for (int tile = begin; tile < min(begin + work.walk, work.total); ++tile) {
    block.b = tile / work.tiles;
    block.n = length_of(p, block.b);
    const int i0 = tile % work.tiles * Cut::kOwn;
    if (work.together) {
      block.load_together(i0, h);
      block.template take_sides<false>();
    }
    if (work.queries || work.bias) block.of_queries(work, i0, h, slot_group);
    if (work.together) block.template take_sides<true>();
    if (work.keys) block.of_keys(work, i0, h);
  }
  if (work.bias) {
    block.write_bias(static_cast<C*>(p.partial) + static_cast<int64_t>(program) * Cut::kDiagonals);
  }
}

constexpr int kSlices = 32;

// One block 32 columns of a head's bias gradient, or those that no query meets: they are 0. kSlices threads a column
// take every kSlices-th row of partial sums (chunks, groups, heads, width); in what order they are added up depends on
// nothing.
template <typename C>
__global__ void __launch_bounds__(32 * kSlices)
    window_add_partial(const __grid_constant__ Backward p, int chunks, int groups, int slots) {
  C* sums = reinterpret_cast<C*>(shared_memory());
  const int width = slots + kRows, slice = threadIdx.x / 32;
  const int h = static_cast<int>(blockIdx.x) % p.heads;
  const int at = static_cast<int>(blockIdx.x) / p.heads * 32 + static_cast<int>(threadIdx.x) % 32, column = at - p.cut;
  C sum = 0;
  if (column >= 0 && column < p.columns) {
    int group = (column + kRows - 1) / slots;
    for (int e = column + kRows - 1 - slots * group; group >= 0 && e < slots + kRows - 1; --group, e += slots) {
      if (group >= groups) continue;
      const int64_t row = static_cast<int64_t>(groups) * p.heads * width;
      const C* from = static_cast<const C*>(p.partial) + (static_cast<int64_t>(group) * p.heads + h) * width + e;
#pragma unroll 4  // on their way together
      for (int chunk = slice; chunk < chunks; chunk += kSlices) sum += from[chunk * row];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || at >= p.width) return;
  for (int other = 1; other < kSlices; ++other) sum += sums[32 * other + threadIdx.x];
  static_cast<C*>(p.dbias)[static_cast<int64_t>(h) * p.width + at] = sum;
}

}  // namespace sinmdm::cuda::window
