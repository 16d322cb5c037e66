// The bodies of one instruction set. See cpu/simd.h for what the including file defines.
//
// Target frames lie along the lanes. Distances are computed in the inputs' dtype, by differences; what is summed of
// them is a double.

#include "cpu/simd.h"

namespace sinmdm::cpu::match::SINMDM_ISA {

using namespace cpu::SINMDM_ISA;

constexpr int64_t kRun = 64;  // features whose squares are added up before they go to the total: roundings stay few
constexpr int64_t kTile = SINMDM_BYTES == 64 ? 8 : 4;  // source frames that fit into the registers, by two vectors
constexpr double kInfinite = __builtin_huge_val();

template <typename C>
SINMDM_TARGET void pack_tasks(const Packing& p, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t index = task / p.panels(), first = task % p.panels() * kPanel;
    const C* from = reinterpret_cast<const C*>(p.target + index * p.target_step) + first * p.features;
    C* to = reinterpret_cast<C*>(p.packed + index * p.packed_step()) + first * p.features;
    for (int64_t c = 0; c < kPanel; ++c) {
      const bool real = first + c < p.target_frames;
      for (int64_t f = 0; f < p.features; ++f) to[f * kPanel + c] = real ? from[c * p.features + f] : C(0);
    }
  }
}

// Adds the squared differences of kTile source frames and two vectors of target frames, over a run of features, to sums
// (kTile, kPanel).
template <typename C>
SINMDM_KERNEL void add_squares(const C* const* rows, const C* columns, Range run, C* sums) {
  constexpr int64_t L = kLanes<C>;
  V<C> left[kTile]{}, right[kTile]{};
  for (int64_t f = run.begin; f < run.end; ++f) {
    const V<C> y0 = load<C>(columns + f * kPanel), y1 = load<C>(columns + f * kPanel + L);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kTile; ++r) {
      const V<C> d0 = y0 - rows[r][f], d1 = y1 - rows[r][f];
      left[r] += d0 * d0, right[r] += d1 * d1;
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kTile; ++r) {
    store<C>(sums + r * kPanel, load<C>(sums + r * kPanel) + left[r]);
    store<C>(sums + r * kPanel + L, load<C>(sums + r * kPanel + L) + right[r]);
  }
}

// Rows of a sample's distances, from group `groups.begin` of kRows on; a panel of the target stays in the cache.
template <typename C>
SINMDM_TARGET void tiles_of(const Tiles& p, int64_t sample, Range groups) {
  const C* source = reinterpret_cast<const C*>(p.source + sample * p.source_step) + p.begin * p.features;
  const C* packed = reinterpret_cast<const C*>(p.packed + sample * p.packed_step());
  double* distances = p.states[sample].distances;
  const Range rows = Range{groups.begin * kRows, groups.end * kRows}.clipped({0, p.rows});
  for (int64_t panel = 0; panel < p.panels(); ++panel) {
    const C* columns = packed + panel * kPanel * p.features;
    for (int64_t row = rows.begin; row < rows.end; row += kTile) {
      const C* frames[kTile];  // those beyond the last are the last once more
      for (int64_t r = 0; r < kTile; ++r) frames[r] = source + std::min(row + r, rows.end - 1) * p.features;
      C sums[kTile * kPanel] = {};
      for (int64_t f = 0; f < p.features; f += kRun) {
        const Range run{f, std::min(f + kRun, p.features)};
        for (int64_t c = 0; c < kPanel; c += 2 * kLanes<C>) add_squares<C>(frames, columns + c, run, sums + c);
      }
      for (int64_t r = 0; r < std::min(kTile, rows.end - row); ++r) {
        double* to = distances + (row + r) * p.stride() + panel * kPanel;
        for (int64_t c = 0; c < kPanel; ++c) to[c] = std::sqrt(static_cast<double>(sums[r * kPanel + c]));
      }
    }
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    std::fill(distances + row * p.stride() + p.target_frames, distances + (row + 1) * p.stride(), kInfinite);
  }
}

template <typename C>
SINMDM_TARGET void distance_tasks(const Tiles& p, int64_t begin, int64_t end) {
  const int64_t groups = p.groups();
  for (int64_t task = begin; task < end;) {
    const int64_t sample = task / groups, first = task % groups, last = std::min(groups, first + end - task);
    tiles_of<C>(p, sample, {first, last});
    task += last - first;
  }
}

// The smaller one; NaN where either is.
SINMDM_KERNEL V<double> smaller(V<double> x, V<double> y) {
  return ((x < y) | (x != x)) ? x : y;
}

SINMDM_KERNEL double least_of(V<double> x) {
  double least = x[0];
  for (int64_t i = 1; i < kLanes<double>; ++i) least = x[i] < least || x[i] != x[i] ? x[i] : least;
  return least;
}

// x, infinite from lane `count` on.
SINMDM_KERNEL V<double> first_lanes(V<double> x, int64_t count) {
  V<double> lane{};
  for (int64_t i = 0; i < kLanes<double>; ++i) lane[i] = static_cast<double>(i);
  return lane < static_cast<double>(count) ? x : V<double>{} + kInfinite;
}

SINMDM_KERNEL void put(const Problem& p, char* to, int64_t index, double x) {
  if (p.element == Element::float64) {
    reinterpret_cast<double*>(to)[index] = x;
  } else {
    reinterpret_cast<float*>(to)[index] = static_cast<float>(x);
  }
}

// The sums of a run of rows of distances from each row to the last, along diagonals.
SINMDM_KERNEL void sum_from_the_end(const Problem& p, const double* distances, double* suffix) {
  constexpr int64_t L = kLanes<double>;
  const int64_t stride = p.stride();
  std::copy_n(distances + (p.window - 1) * stride, stride, suffix + (p.window - 1) * stride);
  for (int64_t j = p.window - 2; j >= 0; --j) {
    const double* row = distances + j * stride;
    double *to = suffix + j * stride, *below = to + stride;
    for (int64_t k = 0; k < stride - L; k += L) {
      store<double>(to + k, load<double>(row + k) + load<double>(below + k + 1));
    }
    std::fill(to + p.target_frames, to + stride, kInfinite);
  }
}

// G of the source frames up to and with one, and the least sum of the window that ends with it.
struct Ending {
  double best, least;
};

// H(i, k) = min(H(i-1, k-1) + D[i-1, k-1], G(i-t) + W(i, k)) in place, over the first frames of the target's windows.
// `ends` and `suffix` are the parts of the window sums W, `row` the distances of the window's last frames. Lanes beyond
// the target's last window add up no window's parts, at times to NaN, and are made infinite.
template <bool rebuild>
SINMDM_KERNEL Ending end_windows(const Problem& p, const double* ends, const double* suffix, const double* row,
                                 double before, double* cost) {
  constexpr int64_t L = kLanes<double>;
  V<double> least = V<double>{} + kInfinite, best = least;
  const int64_t whole = (p.starts() + L - 1) / L * L;
  for (int64_t k = whole - L; k >= 0; k -= L) {
    const int64_t real = p.starts() - k;
    V<double> sum = load<double>(ends + k) + load<double>(suffix + k);
    if (real < L) sum = first_lanes(sum, real);
    least = smaller(sum, least);
    if (rebuild) {
      V<double> cheapest = smaller(load<double>(cost + k - 1) + load<double>(row + k), before + sum);
      if (real < L) cheapest = first_lanes(cheapest, real);
      store<double>(cost + k, cheapest);
      best = smaller(cheapest, best);
    }
  }
  return {least_of(best), least_of(least)};
}

SINMDM_TARGET void walk_sample(const Walk& p, int64_t sample) {
  constexpr int64_t L = kLanes<double>;
  const State& s = p.states[sample];
  const int64_t t = p.window, stride = p.stride();
  double *prefix = s.prefix + kMargin, *cost = s.cost + kMargin;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t frame = p.begin + row, j = frame % t;
    const double* distances = s.distances + row * stride;
    if (j == 0) std::fill(prefix, prefix + stride, 0.0);
    for (int64_t k = stride - L; k >= 0; k -= L) {
      store<double>(prefix + k, load<double>(prefix + k - 1) + load<double>(distances + k));
    }
    std::fill(prefix + p.target_frames, prefix + stride, kInfinite);
    if (frame + 1 >= t) {
      const double *ends = prefix + t - 1, *suffix = s.suffix + (j + 1) * stride, *last = distances + t - 1;
      const double before = s.best[frame + 1 - t];
      const Ending found = p.rebuild ? end_windows<true>(p, ends, suffix, last, before, cost)
                                     : end_windows<false>(p, ends, suffix, last, before, cost);
      put(p, p.nearest, sample * p.windows() + frame + 1 - t, found.least / static_cast<double>(t));
      s.best[frame + 1] = found.best;
    }
    if (j == t - 1) sum_from_the_end(p, s.distances + (row - j) * stride, s.suffix);
  }
  if (p.rebuild && p.begin + p.rows == p.frames) put(p, p.cost, sample, s.best[p.frames]);
}

SINMDM_TARGET void pack(const Packing& p, int64_t begin, int64_t end) {
  if (p.element == Element::float64) return pack_tasks<double>(p, begin, end);
  pack_tasks<float>(p, begin, end);
}

SINMDM_TARGET void distances(const Tiles& p, int64_t begin, int64_t end) {
  if (p.element == Element::float64) return distance_tasks<double>(p, begin, end);
  distance_tasks<float>(p, begin, end);
}

SINMDM_TARGET void walk(const Walk& p, int64_t begin, int64_t end) {
  for (int64_t sample = begin; sample < end; ++sample) walk_sample(p, sample);
}

}  // namespace sinmdm::cpu::match::SINMDM_ISA
