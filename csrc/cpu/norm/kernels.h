// The bodies of one instruction set. See cpu/simd.h for what the including file defines.
//
// Rows of channels lie along the lanes. Sums over frames are kept channel by channel, a register beside the other.

// clang-format off: each builds on those before it
#include "cpu/simd.h"
#include "cpu/softmax.h"
// clang-format on

namespace sinmdm::cpu::norm::SINMDM_ISA {

using namespace cpu::SINMDM_ISA;

constexpr int64_t kRun = 64;  // frames whose sums are added up before they go to the total: roundings stay few

template <typename C>
constexpr int64_t whole_registers(int64_t count) {
  return (count + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

// A row of `count` numbers in the dtype of the computation: in place where it is that already and in whole registers,
// else in `copy`, with zeros up to a whole register.
template <typename C>
SINMDM_KERNEL const C* row_of(const Problem& p, const char* from, int64_t count, C* copy) {
  const bool same = p.element == Element::float32 || p.element == Element::float64;
  if (same && count % kLanes<C> == 0) return reinterpret_cast<const C*>(from);
  load_row<C>(p.element, from, count, copy);
  for (int64_t c = count; c < whole_registers<C>(count); ++c) copy[c] = 0;
  return copy;
}

// Where a row of results is computed, and what brings it to memory.
template <typename C>
SINMDM_KERNEL C* result_row(const Problem& p, char* to, int64_t count, C* copy) {
  const bool same = p.element == Element::float32 || p.element == Element::float64;
  return same && count % kLanes<C> == 0 ? reinterpret_cast<C*>(to) : copy;
}

template <typename C>
SINMDM_KERNEL void finish_row(const Problem& p, const C* row, int64_t count, char* to) {
  if (reinterpret_cast<const char*>(row) != to) store_row<C>(p.element, row, count, to);
}

template <typename C>
SINMDM_KERNEL C total_of(V<C> x) {
  using Int = typename Simd<C>::Int;
  I<C> lane;
#pragma GCC unroll 16
  for (Int i = 0; i < kLanes<C>; ++i) lane[i] = i;
#pragma GCC unroll 4
  for (Int step = kLanes<C> / 2; step > 0; step /= 2) x += __builtin_shuffle(x, lane ^ step);
  return x[0];
}

// 1 / (1 + e^-z), by the power of a number that is not positive.
template <typename C>
SINMDM_KERNEL V<C> sigmoid(V<C> z) {
  const V<C> e = exp2_weight<C>((z < C(0) ? z : -z) * static_cast<C>(kLog2E));
  return (z < C(0) ? e : V<C>{} + C(1)) / (C(1) + e);
}

template <typename C>
SINMDM_KERNEL V<C> activated(const Problem& p, V<C> z) {
  return p.silu ? z * sigmoid<C>(z) : z;
}

// The gradient of what enters the activation.
template <typename C>
SINMDM_KERNEL V<C> before_activation(const Problem& p, V<C> grad, V<C> z) {
  if (!p.silu) return grad;
  const V<C> s = sigmoid<C>(z);
  return grad * (s + z * s * (C(1) - s));
}

template <typename C>
struct Buffers {
  C *gain, *offset;     // (width), zeros up to a whole register
  C *mean, *rstd;       // (width), a channel's group's
  C *first, *second;    // (width): sums of a run, and what is made of them
  double *sum1, *sum2;  // (width)
  C *x, *grad, *out;    // rows

  static int64_t bytes(const Problem& p) {
    const int64_t width = whole_registers<C>(p.width());
    return 9 * Scratch::bytes<C>(width) + 2 * Scratch::bytes<double>(width);
  }
  Buffers(const Problem& p, Scratch& scratch) {
    const int64_t width = whole_registers<C>(p.width());
    for (C** part : {&gain, &offset, &mean, &rstd, &first, &second, &x, &grad, &out}) *part = scratch.take<C>(width);
    sum1 = scratch.take<double>(width), sum2 = scratch.take<double>(width);
  }
  void load_affine(const Problem& p, int64_t b, int64_t channel) {
    const int64_t width = p.width();
    const C* from = static_cast<const C*>(p.gain) + b * p.gain_row + channel;
    const C* from_offset = static_cast<const C*>(p.offset) + b * p.offset_row + channel;
    for (int64_t c = 0; c < whole_registers<C>(width); ++c) {
      gain[c] = c < width ? from[c] : C(0);
      offset[c] = c < width ? from_offset[c] : C(0);
    }
  }
};

// Mean and 1 / sqrt(variance + eps) of one row; lanes beyond `count` are left out.
template <typename C>
SINMDM_KERNEL void row_statistics(const Problem& p, const C* row, int64_t count, C& mean, C& rstd) {
  constexpr int64_t L = kLanes<C>;
  V<C> sum{};
  for (int64_t c = 0; c < count; c += L) sum += load<C>(row + c);
  mean = total_of<C>(sum) / count;
  V<C> squares{};
  int64_t c = 0;
  for (; c + L <= count; c += L) {
    const V<C> d = load<C>(row + c) - mean;
    squares += d * d;
  }
  C rest = 0;
  for (; c < count; ++c) rest += (row[c] - mean) * (row[c] - mean);
  rstd = static_cast<C>(1 / std::sqrt(static_cast<double>(total_of<C>(squares) + rest) / count + p.eps));
}

// Sums over a group's channels to each of its channels, divided by its size.
inline void spread(const double* sums, int64_t width, int64_t group, double count, double* to) {
  for (int64_t begin = 0; begin < width; begin += group) {
    double total = 0;
    for (int64_t c = begin; c < begin + group; ++c) total += sums[c];
    for (int64_t c = begin; c < begin + group; ++c) to[c] = total / count;
  }
}

// Adds the runs' sums to the totals, and empties them.
template <typename C>
SINMDM_KERNEL void flush(C* run, int64_t width, double* total) {
  for (int64_t c = 0; c < width; ++c) total[c] += run[c], run[c] = 0;
}

// Mean and 1 / sqrt(variance + eps) of the groups of `width` channels over all frames, in two passes.
template <typename C>
SINMDM_TARGET void group_statistics(const Problem& p, int64_t b, int64_t channel, const Buffers<C>& s) {
  constexpr int64_t L = kLanes<C>;
  const int64_t width = p.width(), group = p.channels / p.groups, whole = whole_registers<C>(width);
  const double count = static_cast<double>(p.frames) * group;
  for (int pass = 0; pass < 2; ++pass) {
    std::fill(s.first, s.first + whole, C(0));
    std::fill(s.sum1, s.sum1 + whole, 0.0);
    for (int64_t t = 0; t < p.frames; ++t) {
      const C* row = row_of<C>(p, p.at(p.x, b, t) + channel * bytes_of(p.element), width, s.x);
      for (int64_t c = 0; c < whole; c += L) {
        V<C> x = load<C>(row + c);
        if (pass == 1) x -= load<C>(s.mean + c), x *= x;
        store<C>(s.first + c, load<C>(s.first + c) + x);
      }
      if (t % kRun == kRun - 1) flush<C>(s.first, whole, s.sum1);
    }
    flush<C>(s.first, whole, s.sum1);
    spread(s.sum1, width, group, count, s.sum2);
    for (int64_t c = 0; c < whole; ++c) {
      if (pass == 0) {
        s.mean[c] = c < width ? static_cast<C>(s.sum2[c]) : C(0);
      } else {
        s.rstd[c] = c < width ? static_cast<C>(1 / std::sqrt(s.sum2[c] + p.eps)) : C(0);
      }
    }
  }
}

template <typename C>
SINMDM_TARGET void forward_tasks(const Forward& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<C>;
  const int64_t width = p.width(), whole = whole_registers<C>(width);
  Scratch scratch(Buffers<C>::bytes(p));
  Buffers<C> s(p, scratch);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / p.tiles(), part = task % p.tiles();
    const int64_t channel = p.groups == 0 ? 0 : part * width;
    const Range frames =
        p.groups == 0 ? Range{part * kLayerTile, std::min((part + 1) * kLayerTile, p.frames)} : Range{0, p.frames};
    s.load_affine(p, b, channel);
    if (p.groups != 0) group_statistics<C>(p, b, channel, s);
    for (int64_t t = frames.begin; t < frames.end; ++t) {
      const C* x = row_of<C>(p, p.at(p.x, b, t) + channel * bytes_of(p.element), width, s.x);
      char* to = p.at(p.out, b, t) + channel * bytes_of(p.element);
      C* out = result_row<C>(p, to, width, s.out);
      if (p.groups == 0) {
        C mean, rstd;
        row_statistics<C>(p, x, width, mean, rstd);
        for (int64_t c = 0; c < whole; c += L) {
          const V<C> z = (load<C>(x + c) - mean) * rstd * load<C>(s.gain + c) + load<C>(s.offset + c);
          store<C>(out + c, activated<C>(p, z));
        }
      } else {
        for (int64_t c = 0; c < whole; c += L) {
          const V<C> normed = (load<C>(x + c) - load<C>(s.mean + c)) * load<C>(s.rstd + c);
          store<C>(out + c, activated<C>(p, normed * load<C>(s.gain + c) + load<C>(s.offset + c)));
        }
      }
      finish_row<C>(p, out, width, to);
    }
  }
}

// With n the normed input, z = gain n + offset and g the gradient of z: dgain = sum g n, doffset = sum g, and
// dx = rstd (gain g - mean(gain g) - n mean(gain g n)), means over what has its statistics together.
template <typename C>
SINMDM_TARGET void backward_tasks(const Backward& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<C>;
  const int64_t width = p.width(), whole = whole_registers<C>(width);
  Scratch scratch(Buffers<C>::bytes(p));
  Buffers<C> s(p, scratch);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / p.tiles(), part = task % p.tiles();
    const bool layer = p.groups == 0;
    const int64_t channel = layer ? 0 : part * width, at = channel * bytes_of(p.element);
    const Range frames =
        layer ? Range{part * kLayerTile, std::min((part + 1) * kLayerTile, p.frames)} : Range{0, p.frames};
    s.load_affine(p, b, channel);
    if (!layer) group_statistics<C>(p, b, channel, s);
    std::fill(s.first, s.first + whole, C(0));
    std::fill(s.second, s.second + whole, C(0));
    std::fill(s.sum1, s.sum1 + whole, 0.0);
    std::fill(s.sum2, s.sum2 + whole, 0.0);
    for (int64_t t = frames.begin; t < frames.end; ++t) {
      const C* x = row_of<C>(p, p.at(p.x, b, t) + at, width, s.x);
      const C* grad = row_of<C>(p, p.at(p.grad_out, b, t) + at, width, s.grad);
      if (layer) {
        C mean, rstd;
        row_statistics<C>(p, x, width, mean, rstd);
        char* to = p.at(p.dx, b, t) + at;
        C* dx = result_row<C>(p, to, width, s.out);
        V<C> sum1{}, sum2{};
        for (int64_t c = 0; c < whole; c += L) {
          const V<C> n = (load<C>(x + c) - mean) * rstd, gain = load<C>(s.gain + c);
          const V<C> g = before_activation<C>(p, load<C>(grad + c), gain * n + load<C>(s.offset + c));
          store<C>(s.first + c, load<C>(s.first + c) + g);
          store<C>(s.second + c, load<C>(s.second + c) + g * n);
          sum1 += gain * g, sum2 += gain * g * n;
          store<C>(dx + c, gain * g);
        }
        const C mean1 = total_of<C>(sum1) / width, mean2 = total_of<C>(sum2) / width;
        for (int64_t c = 0; c < whole; c += L) {
          const V<C> n = (load<C>(x + c) - mean) * rstd;
          store<C>(dx + c, (load<C>(dx + c) - mean1 - n * mean2) * rstd);
        }
        finish_row<C>(p, dx, width, to);
      } else {
        for (int64_t c = 0; c < whole; c += L) {
          const V<C> n = (load<C>(x + c) - load<C>(s.mean + c)) * load<C>(s.rstd + c);
          const V<C> g = before_activation<C>(p, load<C>(grad + c), load<C>(s.gain + c) * n + load<C>(s.offset + c));
          store<C>(s.first + c, load<C>(s.first + c) + g);
          store<C>(s.second + c, load<C>(s.second + c) + g * n);
        }
      }
      if (t % kRun == kRun - 1) flush<C>(s.first, whole, s.sum1), flush<C>(s.second, whole, s.sum2);
    }
    flush<C>(s.first, whole, s.sum1), flush<C>(s.second, whole, s.sum2);
    const int64_t row = (b * p.parts() + (layer ? part : 0)) * p.channels + channel;
    for (int64_t c = 0; c < width; ++c) {
      static_cast<C*>(p.doffset)[row + c] = static_cast<C>(s.sum1[c]);
      static_cast<C*>(p.dgain)[row + c] = static_cast<C>(s.sum2[c]);
    }
    if (layer) continue;
    const int64_t group = p.channels / p.groups;
    const double count = static_cast<double>(p.frames) * group;
    for (int64_t c = 0; c < width; ++c) s.sum1[c] *= s.gain[c], s.sum2[c] *= s.gain[c];
    spread(s.sum1, width, group, count, s.sum1);
    spread(s.sum2, width, group, count, s.sum2);
    for (int64_t c = 0; c < whole; ++c) {
      s.first[c] = c < width ? static_cast<C>(s.sum1[c]) : C(0);
      s.second[c] = c < width ? static_cast<C>(s.sum2[c]) : C(0);
    }
    for (int64_t t = 0; t < p.frames; ++t) {
      const C* x = row_of<C>(p, p.at(p.x, b, t) + at, width, s.x);
      const C* grad = row_of<C>(p, p.at(p.grad_out, b, t) + at, width, s.grad);
      char* to = p.at(p.dx, b, t) + at;
      C* dx = result_row<C>(p, to, width, s.out);
      for (int64_t c = 0; c < whole; c += L) {
        const V<C> rstd = load<C>(s.rstd + c), n = (load<C>(x + c) - load<C>(s.mean + c)) * rstd;
        const V<C> gain = load<C>(s.gain + c);
        const V<C> g = before_activation<C>(p, load<C>(grad + c), gain * n + load<C>(s.offset + c));
        store<C>(dx + c, (gain * g - load<C>(s.first + c) - n * load<C>(s.second + c)) * rstd);
      }
      finish_row<C>(p, dx, width, to);
    }
  }
}

SINMDM_TARGET void forward(const Forward& p, int64_t begin, int64_t end) {
  if (p.element == Element::float64) return forward_tasks<double>(p, begin, end);
  forward_tasks<float>(p, begin, end);
}

SINMDM_TARGET void backward(const Backward& p, int64_t begin, int64_t end) {
  if (p.element == Element::float64) return backward_tasks<double>(p, begin, end);
  backward_tasks<float>(p, begin, end);
}

}  // namespace sinmdm::cpu::norm::SINMDM_ISA
