// The three products of attention on packed rows, and the keep factors of dropout. Register tiles; see simd.h for the
// macros. A strip's scores lie as (rows, W): row r is a key, its W lanes are the queries, so that the softmax over the
// keys of a query runs down the rows and never across a register.

namespace sinmdm::cpu::window::SINMDM_ISA {

// scores[r][lane] = sum_d keys[r][d] columns[d][lane] + (base[lane] + table[lane - r]), for R rows from `row`. `base`
// and `table` may be null. Per d: Q registers of queries and R broadcast keys for R Q multiply-adds. The sums of the
// panels are added to one another, and what may be large beside them comes last: a single chain loses digits with every
// step.
template <typename C, int Q, int R>
SINMDM_KERNEL void score_tile(Panels<C> keys, int64_t row, const C* columns, const C* base, const C* table, C* scores) {
  constexpr int64_t L = kLanes<C>, W = Q * L;
  for (int64_t panel = 0; panel < keys.count(); ++panel) {
    const C* key = keys.at(panel, row);
    V<C> sum[R][Q];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) sum[r][q] = V<C>{};
    }
    for (int64_t d = 0; d < keys.columns(panel); ++d, columns += W) {
      V<C> query[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) query[q] = load<C>(columns + q * L);
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) sum[r][q] += query[q] * key[r * kPanel + d];
      }
    }
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        C* score = scores + r * W + q * L;
        V<C> total = sum[r][q];
        if (panel > 0) total += load<C>(score);
        if (panel + 1 == keys.count()) {
          V<C> offset{};
          if (base != nullptr) offset += load<C>(base + q * L);
          if (table != nullptr) offset += load<C>(table - r + q * L);
          total += offset;
        }
        store<C>(score, total);
      }
    }
  }
}

// The same for `count` rows.
template <typename C, int Q>
SINMDM_TARGET void score_rows(Panels<C> keys, int64_t row, int64_t count, const C* columns, const C* base,
                              const C* table, C* scores) {
  constexpr int R = SINMDM_ROWS / Q;
  constexpr int64_t W = Q * kLanes<C>;
  const auto table_at = [table](int64_t r) { return table == nullptr ? nullptr : table - r; };
  int64_t r = 0;
  for (; r + R <= count; r += R) {
    score_tile<C, Q, R>(keys, row + r, columns, base, table_at(r), scores + r * W);
  }
  for (; r + 4 <= count; r += 4) {
    score_tile<C, Q, 4>(keys, row + r, columns, base, table_at(r), scores + r * W);
  }
  for (; r < count; ++r) score_tile<C, Q, 1>(keys, row + r, columns, base, table_at(r), scores + r * W);
}

constexpr int kTogether = 4;  // queries, or keys, that share the registers of a row

// Long sums are taken in runs, which are then added to one another: a single chain loses digits with every step.
constexpr int64_t kChain = 128;

// to[i] = factor[i] to[i] + sum_r weights[r][i] rows[r] for the G queries i from the lane that `weights` points at, in
// N registers of a panel; a null `factor` means that `to` is not read.
template <typename C, int W, int G, int N>
SINMDM_KERNEL void gather_tile(const C* weights, const C* rows, int64_t count, const C* factor, C* to) {
  constexpr int64_t L = kLanes<C>;
  V<C> sum[G][N];
#pragma GCC unroll 4
  for (int i = 0; i < G; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) sum[i][c] = V<C>{};
  }
  for (int64_t r = 0; r < count; ++r) {
    V<C> row[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) row[c] = load<C>(rows + r * kPanel + c * L);
#pragma GCC unroll 4
    for (int i = 0; i < G; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) sum[i][c] += row[c] * weights[r * W + i];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < G; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) {
      C* target = to + i * kPanel + c * L;
      store<C>(target, factor == nullptr ? sum[i][c] : load<C>(target) * factor[i] + sum[i][c]);
    }
  }
}

template <typename C, int W, int G>
SINMDM_KERNEL void gather_group(const C* weights, Panels<C> rows, int64_t row, int64_t count, const C* factor,
                                Panels<C> to, int64_t lane) {
  constexpr int64_t L = kLanes<C>, N = std::min<int64_t>(SINMDM_COLUMNS, kPanel / L);
  for (int64_t panel = 0; panel < rows.count(); ++panel) {
    const C* from = rows.at(panel, row);
    C* target = to.at(panel, lane);
    int64_t c = 0;
    for (; c + N * L <= rows.width(panel); c += N * L) {
      gather_tile<C, W, G, N>(weights, from + c, count, factor, target + c);
    }
    for (; c < rows.width(panel); c += L) gather_tile<C, W, G, 1>(weights, from + c, count, factor, target + c);
  }
}

// The pairs that a strip does not see have weight 0. Where a row that some of a group see holds an infinity or NaN, the
// products with such a 0 would carry it to the rest of the group. Then the result is made again with `exact`: each
// query by itself, with what it sees and in the same order, so that whoever does not see the row gets the bits of
// always.
//
// For every lane i: to[first + i] = factor[i] to[first + i] + sum over the slots of weights[slot - slots.begin][i]
// rows[slot - origin].
template <typename C, int Q>
SINMDM_TARGET void gather_rows(const Strip& strip, const C* weights, Range slots, Panels<C> rows, int64_t origin,
                               const C* factor, bool exact, Panels<C> to, int64_t first) {
  constexpr int64_t W = Q * kLanes<C>;
  alignas(64) C ones[W];
  if (slots.size() > kChain) {
    for (C& one : ones) one = 1;
    for (int64_t begin = slots.begin; begin < slots.end; begin += kChain, factor = ones) {
      gather_rows<C, Q>(strip, weights + (begin - slots.begin) * W, {begin, std::min(begin + kChain, slots.end)}, rows,
                        origin, factor, exact, to, first);
    }
    return;
  }
  const int64_t group = exact ? 1 : kTogether;
  for (int64_t lane = 0; lane < strip.lanes; lane += group) {
    // The windows of later queries begin and end no earlier.
    const int64_t last = std::min(lane + group, strip.lanes) - 1;
    const Range seen = Range{strip.see[lane].begin, strip.see[last].end}.clipped(slots);
    const C* from = weights + (seen.begin - slots.begin) * W + lane;
    const C* scale = factor == nullptr ? nullptr : factor + lane;
    if (exact) {
      gather_group<C, W, 1>(from, rows, seen.begin - origin, seen.size(), scale, to, first + lane);
    } else {
      gather_group<C, W, kTogether>(from, rows, seen.begin - origin, seen.size(), scale, to, first + lane);
    }
  }
}

// to[r] += sum_i weights[r][i] queries[i] for R rows r, in N registers of a panel.
template <typename C, int W, int R, int N>
SINMDM_KERNEL void scatter_tile(const C* weights, const C* queries, int64_t lanes, C* to) {
  constexpr int64_t L = kLanes<C>;
  V<C> sum[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) sum[r][c] = V<C>{};
  }
  for (int64_t i = 0; i < lanes; ++i) {
    V<C> query[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) query[c] = load<C>(queries + i * kPanel + c * L);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) sum[r][c] += query[c] * weights[r * W + i];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) {
      C* target = to + r * kPanel + c * L;
      store<C>(target, load<C>(target) + sum[r][c]);
    }
  }
}

template <typename C, int W, int R>
SINMDM_KERNEL void scatter_group(const C* weights, Panels<C> queries, int64_t lane, int64_t lanes, Panels<C> to,
                                 int64_t row) {
  constexpr int64_t L = kLanes<C>, N = std::min<int64_t>(SINMDM_COLUMNS, kPanel / L);
  for (int64_t panel = 0; panel < to.count(); ++panel) {
    const C* from = queries.at(panel, lane);
    C* target = to.at(panel, row);
    int64_t c = 0;
    for (; c + N * L <= to.width(panel); c += N * L) {
      scatter_tile<C, W, R, N>(weights, from + c, lanes, target + c);
    }
    for (; c < to.width(panel); c += L) scatter_tile<C, W, R, 1>(weights, from + c, lanes, target + c);
  }
}

// For every slot: to[slot - origin] += sum_i weights[slot - slots.begin][i] queries[row + i].
template <typename C, int Q>
SINMDM_TARGET void scatter_rows(const Strip& strip, const C* weights, Range slots, Panels<C> queries, int64_t row,
                                bool exact, Panels<C> to, int64_t origin) {
  constexpr int64_t W = Q * kLanes<C>;
  const int64_t first = slots.begin - origin;
  int64_t r = 0;
  for (; !exact && r + kTogether <= slots.size(); r += kTogether) {
    scatter_group<C, W, kTogether>(weights + r * W, queries, row, strip.lanes, to, first + r);
  }
  for (; r < slots.size(); ++r) {
    int64_t lane = 0, end = strip.lanes;
    while (exact && lane < end && strip.see[lane].end <= slots.begin + r) ++lane;
    while (exact && lane < end && strip.see[end - 1].begin > slots.begin + r) --end;
    scatter_group<C, W, 1>(weights + r * W + lane, queries, row + lane, end - lane, to, first + r);
  }
}

// keep[slot - slots.begin][lane]: 1 / (1 - p) where the weight of a visible pair is kept, 0 where it is dropped. The
// bit of bias column o, counted with those that were cut, is word o mod 4 of the counter (o div 4, query, head, batch).
template <typename C>
SINMDM_TARGET void keep_factors(const Problem& p, const Strip& strip, int64_t b, int64_t h, int64_t n, Range slots,
                                int64_t width, C* keep) {
  const uint64_t threshold = static_cast<uint64_t>(std::nearbyint(p.dropout_p * 4294967296.0));
  const C kept = static_cast<C>(1 / (1 - p.dropout_p));
  uint32_t query[kMostLanes] = {};
  for (int64_t l = 0; l < strip.lanes; ++l) query[l] = static_cast<uint32_t>(p.frame_of(strip.query + l, n));
  std::fill(keep, keep + slots.size() * width, C(0));
  const int64_t last = strip.query + strip.lanes - 1;
  const int64_t low = p.cut + std::max<int64_t>(0, slots.begin - last + strip.origin);
  const int64_t high = p.cut + std::min(p.columns(), slots.end - strip.query + strip.origin);
  for (int64_t group = low / 4; group * 4 < high; ++group) {
    uint32_t words[4][kMostLanes];
    for (int64_t l = 0; l < width; ++l) {
      const Words w = philox4x32_10(
          Words{static_cast<uint32_t>(group), query[l], static_cast<uint32_t>(h), static_cast<uint32_t>(b)}, p.seed);
      words[0][l] = w.x0, words[1][l] = w.x1, words[2][l] = w.x2, words[3][l] = w.x3;
    }
    for (int64_t word = 0; word < 4; ++word) {
      for (int64_t l = 0; l < strip.lanes; ++l) {
        const int64_t slot = 4 * group + word - p.cut - strip.origin + strip.query + l;
        if (slot < slots.begin || slot >= slots.end) continue;
        keep[(slot - slots.begin) * width + l] = words[word][l] >= threshold ? kept : C(0);
      }
    }
  }
}

// The visible rows of each lane, relative to slots.begin and small enough for a lane's integer.
template <typename C, int Q>
struct Sight {
  typename Simd<C>::Int begin[Q * kLanes<C>], end[Q * kLanes<C>];
  int64_t all_from = 0, all_to;  // the rows that every lane sees

  SINMDM_KERNEL Sight(const Strip& strip, Range slots) : all_to(slots.size()) {
    for (int64_t l = 0; l < Q * kLanes<C>; ++l) {
      const int64_t low = std::clamp<int64_t>(strip.see[l].begin - slots.begin, 0, slots.size());
      const int64_t high = std::clamp<int64_t>(strip.see[l].end - slots.begin, 0, slots.size());
      begin[l] = static_cast<typename Simd<C>::Int>(low);
      end[l] = static_cast<typename Simd<C>::Int>(high);
      all_from = std::max(all_from, low);
      all_to = std::min(all_to, high);
    }
  }
  SINMDM_KERNEL I<C> row(int64_t r, int q) const {
    I<C> low, high;
    memcpy(&low, begin + q * kLanes<C>, sizeof(low));
    memcpy(&high, end + q * kLanes<C>, sizeof(high));
    const I<C> at = I<C>{} + static_cast<typename Simd<C>::Int>(r);
    return (at >= low) & (at < high);
  }
  SINMDM_KERNEL bool all(int64_t r) const { return r >= all_from && r < all_to; }
};

}  // namespace sinmdm::cpu::window::SINMDM_ISA
