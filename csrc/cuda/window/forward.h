// window_attention, forward.
//
// A block takes one head and walks over `walk` tiles of queries. Of a tile it loads kOwn queries and, kOther at a time,
// the slots that these see; each warp has 16 of the queries, and meets of the slots only the tiles of 16 that it sees:
// with 16 + 16 columns three of the six, which is one group, whose softmax is taken at one go. Wider windows go over
// several groups with a running maximum. The bias of a group lies in registers, and is loaded anew only where a group
// is unlike the one before; in the middle of a sequence all first groups are alike.
#pragma once

#include "cuda/window/pairs.h"

namespace sinmdm::cuda::window {

template <typename T, int kDim>
constexpr int forward_shared_bytes() {
  using Cut = Config<T, kDim>;
  return (Cut::kOwn + 2 * Cut::kOther) * Cut::kPitch * static_cast<int>(sizeof(T));
}

// tiles: of a sequence; total: of the batch.
template <typename T, int kDim>
__global__ void __launch_bounds__(Config<T, kDim>::kThreads, Config<T, kDim>::kResident)
    window_forward(const __grid_constant__ Forward p, int tiles, int total, int walk) {
  using Cut = Config<T, kDim>;
  using C = Computed<T>;
  constexpr auto kNone = -static_cast<C>(INFINITY);
  T* queries = reinterpret_cast<T*>(shared_memory());
  T* keys = queries + Cut::kOwn * Cut::kPitch;
  T* values = keys + Cut::kOther * Cut::kPitch;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int h = static_cast<int>(blockIdx.x) % p.heads, kv_head = h / p.group;
  const int begin = static_cast<int>(blockIdx.x) / p.heads * walk;
  T* own = queries + warp * kRows * Cut::kPitch;
  const int reach = p.reach;
  Columns<T> group_columns[Cut::kGroup];
  uint32_t inside = 0;  // eight bits each
  int loaded = -1;      // distance of the group that these are of; no group has this one

  for (int tile = begin; tile < min(begin + walk, total); ++tile) {
    const int b = tile / tiles, i0 = tile % tiles * Cut::kOwn;
    const int iw = i0 + warp * kRows, n = length_of(p, b), base = i0 - reach;
    const Range all = visible_slots(p, n, i0, Cut::kOwn), mine = visible_slots(p, n, iw, kRows);
    const int first = (all.begin - base) / Cut::kOther;
    const int last = all.begin < all.end ? (all.end - base + Cut::kOther - 1) / Cut::kOther : first;
    C sums[kDim / 8][4], highest[2], denominator[2];
    for (bool careful = false;; careful = true) {
      clear(sums);
      highest[0] = highest[1] = kNone;
      denominator[0] = denominator[1] = 0;
      for (int chunk = first; chunk < last; ++chunk) {
        const int slot0 = base + chunk * Cut::kOther;
        __syncthreads();  // nobody reads what was there
        if (chunk == first) {
          load_rows<T, kDim>(queries, Cut::kOwn, p, p.q, b, h, [&](int row) { return i0 + row < n ? i0 + row : -1; });
        }
        const auto frame = [&](int row) { return frame_at(p, n, slot0 + row); };
        load_rows<T, kDim>(keys, Cut::kOther, p, p.k, b, kv_head, frame);
        load_rows<T, kDim>(values, Cut::kOther, p, p.v, b, kv_head, frame);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        const int sub_first = max(mine.begin - slot0, 0) / kRows;
        const int sub_last = min((mine.end - slot0 + kRows - 1) / kRows, Cut::kSubs);
        for (int sub = sub_first; sub < sub_last; sub += Cut::kGroup) {
          const int group0 = slot0 + kRows * sub, distance = group0 - iw + reach;
          if (distance != loaded) {
            inside = 0;
#pragma unroll
            for (int j = 0; j < Cut::kGroup; ++j) {
              inside |= group_columns[j].template load<1>(p, h, distance + kRows * j) << (8 * j);
            }
            loaded = distance;
          }
          C pairs[Cut::kGroup][2][4];
          C higher[2] = {highest[0], highest[1]};
#pragma unroll
          for (int j = 0; j < Cut::kGroup; ++j) {
            const bool there = sub + j < sub_last;
            uint32_t visible = 0;
            if (there) {
              products_of<T, kDim>(pairs[j], own, keys + kRows * (sub + j) * Cut::kPitch);
              visible = visible_pairs<false>(p, n, iw, group0 + kRows * j, inside >> (8 * j) & 0xFF);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              C& x = pairs[j][i / 4][i % 4];
              x = (visible >> i & 1) != 0 ? x * value_of<C>(p.score_scale) + group_columns[j].bias[i / 4][i % 4]
                                          : kNone;
              higher[i % 4 / 2] = larger(x, higher[i % 4 / 2]);
            }
          }
          C shift[2];
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            higher[row] = max_of_row(higher[row]);
            shift[row] = higher[row] == kNone ? C(0) : higher[row];  // nothing seen yet: 2^-inf = 0, and not NaN
            const C rescale = power_of_two(highest[row] - shift[row]);
            highest[row] = higher[row];
            denominator[row] *= rescale;
#pragma unroll
            for (int i = 0; i < kDim / 4; ++i) sums[i / 2][2 * row + i % 2] *= rescale;
          }
#pragma unroll
          for (int j = 0; j < Cut::kGroup; ++j) {
            if (sub + j >= sub_last) continue;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              C& x = pairs[j][i / 4][i % 4];
              x = power_of_two(x - shift[i % 4 / 2]);
              denominator[i % 4 / 2] += x;
            }
            if (p.drops) {
              const uint32_t kept = kept_pairs<false>(p, n, iw, group0 + kRows * j, h, b);
#pragma unroll
              for (int i = 0; i < 8; ++i) pairs[j][i / 4][i % 4] *= (kept >> i & 1) != 0 ? C(1) : C(0);
            }
            // Asked again, for it is of rare use, and registers are scarce.
            const uint32_t visible =
                careful ? visible_pairs<false>(p, n, iw, group0 + kRows * j, inside >> (8 * j) & 0xFF) : 0;
            add_products<T, kDim>(sums, pairs[j], visible, values + kRows * (sub + j) * Cut::kPitch, careful);
          }
        }
      }
      // Everybody goes over the tile again where a sum of anybody's is not finite, for the slots are loaded together.
      if (careful || !__syncthreads_or(!all_finite(sums))) break;
    }
    C factor[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const C total_weight = sum_of_row(denominator[row]);
      factor[row] = (p.drops ? value_of<C>(p.keep_scale) : C(1)) /
                    (total_weight == C(0) ? C(1) : total_weight);  // 0 where a query sees nothing
      const int i = iw + g + 8 * row;
      if (t == 0 && i < p.frames) {
        const C lse = C(0.6931471805599453) * (highest[row] + log2(total_weight));
        static_cast<C*>(p.lse)[(static_cast<int64_t>(b) * p.frames + i) * p.heads + h] = lse;
      }
    }
    store_rows<T, kDim>(own, p, p.out, b, h, iw, p.frames, sums, factor[0], factor[1]);
  }
}

}  // namespace sinmdm::cuda::window
