// The bodies of one instruction set. See cpu/simd.h for what the including file defines.
//
// Softmax weights are computed for a strip of neighbouring frames, one a lane; rows of values and gradients are then
// taken one by one, head_dim along the lanes. An output's terms are those of its window and no others: a NaN or infinity
// that it does not see is never read.

// clang-format off: each builds on those before it
#include "cpu/simd.h"
#include "cpu/softmax.h"
// clang-format on

namespace sinmdm::cpu::qna::SINMDM_ISA {

using namespace cpu::SINMDM_ISA;

constexpr int kBlock = 4;  // registers of a row that are taken together

template <typename C>
constexpr C kNever = -std::numeric_limits<C>::infinity();

template <typename C>
constexpr int64_t whole_registers(int64_t dim) {
  return (dim + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

template <typename C>
SINMDM_KERNEL C sum(V<C> x) {
  using Int = typename Simd<C>::Int;
  I<C> lane;
#pragma GCC unroll 16
  for (Int i = 0; i < kLanes<C>; ++i) lane[i] = i;
#pragma GCC unroll 4
  for (Int step = kLanes<C> / 2; step > 0; step /= 2) x += __builtin_shuffle(x, lane ^ step);
  return x[0];
}

// The rows (heads, dim) at neighbouring slots, in the dtype of the computation and in whole registers: in place where
// they are that already, else as a copy. Null where a slot has none.
template <typename C>
struct RowTable {
  const C** row;  // by slot, from `origin`
  C* copy;
  int64_t origin, head;  // head: numbers between the rows of neighbouring heads

  static bool in_place(const Problem& p) {
    return p.dim % kLanes<C> == 0 && (p.element == Element::float32 || p.element == Element::float64);
  }
  static int64_t copied(const Problem& p, int64_t slots) {
    return in_place(p) ? 0 : std::min(slots, p.frames) * p.task_heads() * whole_registers<C>(p.dim);
  }

  // Of `slots` those that `there(slot)` says exist; a slot's row is number `index(slot)` of `rows`.
  template <typename There, typename Index>
  SINMDM_KERNEL void fill(const Problem& p, const Rows& rows, int64_t b, int64_t h, int64_t n, Range slots,
                          const There& there, const Index& index) {
    origin = slots.begin;
    const int64_t width = whole_registers<C>(p.dim), heads = p.task_heads();
    head = in_place(p) ? rows.head / static_cast<int64_t>(sizeof(C)) : width;
    int64_t count = 0;
    for (int64_t slot = slots.begin; slot < slots.end; ++slot) {
      const C*& to = row[slot - origin];
      if (!there(slot)) {
        to = nullptr;
      } else if (in_place(p)) {
        to = reinterpret_cast<const C*>(rows.at(b, index(slot), h));
      } else if (slot - origin >= n && there(slot - n)) {  // a frame met again
        to = row[slot - n - origin];
      } else {
        C* at = copy + count++ * heads * width;
        for (int64_t i = 0; i < heads; ++i) {
          load_row<C>(p.element, rows.at(b, index(slot), h + i), p.dim, at + i * width);
          for (int64_t d = p.dim; d < width; ++d) at[i * width + d] = 0;
        }
        to = at;
      }
    }
  }
};

template <typename C>
SINMDM_KERNEL C load_number(Element element, const char* from) {
  C x;
  load_row<C>(element, from, 1, &x);
  return x;
}

// Scores of the slots `slots` of p.task_heads() heads from h on to (heads, pitch), -inf where there is no such frame and
// in what is left of a row.
template <typename C>
SINMDM_TARGET void load_scores(const Problem& p, int64_t b, int64_t h, int64_t n, Range slots, int64_t pitch, C* to) {
  for (int64_t i = 0; i < p.task_heads(); ++i) {
    C* row = to + i * pitch;
    const auto fill = [&](const auto& convert) SINMDM_INLINE {
      for (int64_t slot = slots.begin; slot < slots.end; ++slot) {
        row[slot - slots.begin] =
            p.exists(slot, n) ? convert(p.scores.at(b, p.frame_of(slot, n), h + i)) : kNever<C>;
      }
    };
    if (p.element == Element::float32 || p.element == Element::float64) {
      fill([](const char* from) SINMDM_INLINE { return *reinterpret_cast<const C*>(from); });
    } else {
      fill([&p](const char* from) SINMDM_INLINE { return load_number<C>(p.element, from); });
    }
    for (int64_t s = slots.size(); s < pitch; ++s) row[s] = kNever<C>;
  }
}

// Up to kLanes outputs side by side: lane l sees the scores from begin[l] on. Lanes from `count` on compute what nobody
// reads.
template <typename C>
struct Strip {
  int64_t count, begin[kLanes<C>];
  bool neighbours;  // begin[l] = begin[0] + l

  SINMDM_KERNEL V<C> at(const C* numbers, int64_t o) const {
    if (neighbours) return load<C>(numbers + begin[0] + o);
    V<C> x{};
    for (int64_t l = 0; l < count; ++l) x[l] = numbers[begin[l] + o];
    return x;
  }
};

// Softmax of a strip: weights (size, kLanes) relative to `highest`, and the inverse of their sum, 0 where an output
// sees nothing.
template <typename C>
SINMDM_TARGET void weigh(const Problem& p, const Strip<C>& strip, const C* scores, const C* bias, C* weights,
                         V<C>& highest, V<C>& inverse) {
  constexpr int64_t L = kLanes<C>;
  V<C> high = V<C>{} + kNever<C>;
  for (int64_t o = 0; o < p.size(); ++o) {
    const V<C> x = strip.at(scores, o) + bias[o];
    store<C>(weights + o * L, x);
    high = x > high ? x : high;
  }
  high = high == kNever<C> ? V<C>{} : high;
  V<C> total{};
  for (int64_t o = 0; o < p.size(); ++o) {
    const V<C> weight = exp2_weight<C>((load<C>(weights + o * L) - high) * static_cast<C>(kLog2E));
    total += weight;
    store<C>(weights + o * L, weight);
  }
  highest = high;
  inverse = total == C(0) ? V<C>{} : C(1) / total;
}

// sum_o weights[o] row[o], d registers from `d` on, of the offsets whose rows exist.
template <typename C, int N>
SINMDM_KERNEL void sum_rows(const C* const* rows, int64_t size, int64_t at, const C* weights, V<C>* total) {
  for (int k = 0; k < N; ++k) total[k] = V<C>{};
  for (int64_t o = 0; o < size; ++o) {
    if (rows[o] == nullptr) continue;
    const C weight = weights[o * kLanes<C>];
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) total[k] += weight * load<C>(rows[o] + at + k * kLanes<C>);
  }
}

// Calls body(first number, registers as a constant) for a row of `width` numbers, block by block.
template <typename C, typename Body>
SINMDM_KERNEL void in_blocks(int64_t width, const Body& body) {
  int64_t d = 0;
  for (; d + kBlock * kLanes<C> <= width; d += kBlock * kLanes<C>) body(d, std::integral_constant<int, kBlock>());
  for (; d + 2 * kLanes<C> <= width; d += 2 * kLanes<C>) body(d, std::integral_constant<int, 2>());
  for (; d < width; d += kLanes<C>) body(d, std::integral_constant<int, 1>());
}

// Stores N registers, the numbers from d on of a row of p.dim, to where the row begins.
template <typename C, int N>
SINMDM_KERNEL void store_registers(const Problem& p, const V<C>* x, int64_t d, char* to) {
  constexpr int64_t L = kLanes<C>;
  const int64_t count = std::min<int64_t>(N * L, p.dim - d);
  char* target = to + d * bytes_of(p.element);
  if (count == N * L && (p.element == Element::float32 || p.element == Element::float64)) {
    for (int k = 0; k < N; ++k) store<C>(reinterpret_cast<C*>(target) + k * L, x[k]);
    return;
  }
  alignas(64) C row[N * L];
  for (int k = 0; k < N; ++k) store<C>(row + k * L, x[k]);
  store_row<C>(p.element, row, count, target);
}

template <typename C>
SINMDM_TARGET void forward_tasks(const Forward& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<C>;
  const int64_t heads = p.task_heads(), blocks = p.heads / heads, width = whole_registers<C>(p.dim);
  const int64_t most = (std::min(p.tile(), p.outputs()) - 1) * p.stride + p.size(), pitch = most + L;
  Scratch scratch(Scratch::bytes<const C*>(most) + Scratch::bytes<C>(RowTable<C>::copied(p, most)) +
                  Scratch::bytes<C>(heads * pitch) + Scratch::bytes<C>(p.size() * L));
  RowTable<C> values{scratch.take<const C*>(most), scratch.take<C>(RowTable<C>::copied(p, most)), 0, 0};
  C* scores = scratch.take<C>(heads * pitch);
  C* weights = scratch.take<C>(p.size() * L);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks / p.tiles(), h = task % blocks * heads, n = p.length(b);
    const int64_t first = task / blocks % p.tiles() * p.tile(), last = std::min(first + p.tile(), p.outputs());
    const int64_t real = std::clamp((n + p.stride - 1) / p.stride, first, last);
    for (int64_t t = real; t < last; ++t) {
      for (int64_t i = 0; i < heads; ++i) std::memset(p.out.at(b, t, h + i), 0, p.dim * bytes_of(p.element));
    }
    if (real == first) continue;
    const Range slots{first * p.stride - p.left, (real - 1) * p.stride + p.right + 1};
    load_scores<C>(p, b, h, n, slots, pitch, scores);
    values.fill(
        p, p.values, b, h, n, slots, [&](int64_t slot) SINMDM_INLINE { return p.exists(slot, n); },
        [&](int64_t slot) SINMDM_INLINE { return p.frame_of(slot, n); });
    for (int64_t t = first; t < real; t += L) {
      Strip<C> strip{std::min(L, real - t), {}, p.stride == 1};
      for (int64_t l = 0; l < strip.count; ++l) strip.begin[l] = (t - first + l) * p.stride;
      for (int64_t i = 0; i < heads; ++i) {
        V<C> highest, inverse;
        weigh<C>(p, strip, scores + i * pitch, static_cast<const C*>(p.bias) + (h + i) * p.size(), weights, highest,
                 inverse);
        for (int64_t l = 0; l < strip.count; ++l) {
          char* to = p.out.at(b, t + l, h + i);
          in_blocks<C>(width, [&](int64_t d, auto n_registers) SINMDM_INLINE {
            constexpr int N = n_registers.value;
            V<C> total[N];
            sum_rows<C, N>(values.row + strip.begin[l], p.size(), i * values.head + d, weights + l, total);
            for (int k = 0; k < N; ++k) total[k] *= inverse[l];
            store_registers<C, N>(p, total, d, to);
          });
        }
      }
    }
  }
}

// What the backward keeps of the outputs that see a tile, by their frame's slot; `inverse` is 0 where there is none.
template <typename C>
struct Seen {
  C *highest, *inverse, *delta;  // (slots) of one head
};

template <typename C>
struct BackwardBuffers {
  RowTable<C> values, grads;
  C *scores, *weights, *products, *sums;  // (heads, pitch), (size, kLanes), (size, kLanes), (heads, size, kLanes)
  Seen<C> seen;
  int64_t pitch;
};

// Of the outputs whose frames lie at `queries` their softmax's maximum and sum, and delta = sum_j P_ij (do_i . v_j).
template <typename C>
SINMDM_TARGET void see(const Backward& p, int64_t h, int64_t i, Range queries, const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>;
  const int64_t width = whole_registers<C>(p.dim);
  for (int64_t u = 0; u < queries.size() + L; ++u) s.seen.inverse[u] = s.seen.highest[u] = s.seen.delta[u] = 0;
  for (int64_t u = 0; u < queries.size();) {
    Strip<C> strip{0, {}, true};
    for (; u < queries.size() && strip.count < L; ++u) {
      if (s.grads.row[u] != nullptr) strip.begin[strip.count++] = u;
    }
    if (strip.count == 0) continue;
    strip.neighbours = strip.begin[strip.count - 1] == strip.begin[0] + strip.count - 1;
    V<C> highest, inverse;
    weigh<C>(p, strip, s.scores + i * s.pitch, static_cast<const C*>(p.bias) + (h + i) * p.size(), s.weights, highest,
             inverse);
    for (int64_t l = 0; l < strip.count; ++l) {
      const int64_t at = strip.begin[l];
      const C* grad = s.grads.row[at] + i * s.grads.head;
      V<C> product{};
      in_blocks<C>(width, [&](int64_t d, auto n_registers) SINMDM_INLINE {
        constexpr int N = n_registers.value;
        V<C> total[N];
        sum_rows<C, N>(s.values.row + at, p.size(), i * s.values.head + d, s.weights + l, total);
        for (int k = 0; k < N; ++k) product += total[k] * load<C>(grad + d + k * L);
      });
      s.seen.highest[at] = highest[l], s.seen.inverse[at] = inverse[l], s.seen.delta[at] = sum<C>(product) * inverse[l];
    }
  }
}

// Gradients of up to kLanes frames from `frame` on: every output that sees one of them, offset by offset.
template <typename C>
SINMDM_TARGET void gather(const Backward& p, int64_t b, int64_t h, int64_t i, Range queries, int64_t frame,
                          int64_t count, const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>;
  using Int = typename Simd<C>::Int;
  const int64_t width = whole_registers<C>(p.dim), size = p.size();
  const int64_t own = frame - queries.begin;  // the frame among the queries; among the slots it lies p.left further
  const C* bias = static_cast<const C*>(p.bias) + (h + i) * size;
  const V<C> scores = load<C>(s.scores + i * s.pitch + own + p.left);
  I<C> lane;
  for (Int l = 0; l < L; ++l) lane[l] = l;
  const I<C> there = lane < static_cast<Int>(count);
  // Column o is that of the query p.left - o further on; queries run backwards as columns do forwards.
  for (int64_t o = 0; o < size; ++o) {
    const int64_t u = own + p.left - o;
    const V<C> inverse = load<C>(s.seen.inverse + u), highest = load<C>(s.seen.highest + u);
    const V<C> weight = exp2_weight<C>((scores + bias[o] - highest) * static_cast<C>(kLog2E)) * inverse;
    store<C>(s.weights + o * L, there & (inverse != C(0)) ? weight : V<C>{});
    store<C>(s.products + o * L, V<C>{});
  }
  for (int64_t l = 0; l < count; ++l) {
    const C* value = s.values.row[own + p.left + l] + i * s.values.head;
    char* to = p.dvalues.at(b, frame + l, h + i);
    in_blocks<C>(width, [&](int64_t d, auto n_registers) SINMDM_INLINE {
      constexpr int N = n_registers.value;
      V<C> v[N], total[N];
#pragma GCC unroll 4
      for (int k = 0; k < N; ++k) v[k] = load<C>(value + d + k * L), total[k] = V<C>{};
      const C* const* rows = s.grads.row + own + p.left + l;
      for (int64_t o = 0; o < size; ++o) {
        if (rows[-o] == nullptr) continue;
        const C* grad = rows[-o] + i * s.grads.head + d;
        const C weight = s.weights[o * L + l];
        V<C> product{};
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) {
          const V<C> g = load<C>(grad + k * L);
          product += g * v[k], total[k] += weight * g;
        }
        s.products[o * L + l] += sum<C>(product);
      }
      store_registers<C, N>(p, total, d, to);
    });
  }
  V<C> dscore{};
  C* sums = s.sums + i * size * L;
  for (int64_t o = 0; o < size; ++o) {
    const V<C> delta = load<C>(s.seen.delta + own + p.left - o);
    const V<C> weight = load<C>(s.weights + o * L);
    const V<C> dlogit = weight * (load<C>(s.products + o * L) - delta);
    dscore += dlogit;
    store<C>(sums + o * L, load<C>(sums + o * L) + (there ? dlogit : V<C>{}));
  }
  for (int64_t l = 0; l < count; ++l) {
    const C x = dscore[l];
    store_row<C>(p.element, &x, 1, p.dscores.at(b, frame + l, h + i));
  }
}

template <typename C>
SINMDM_TARGET void backward_tasks(const Backward& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<C>;
  const int64_t heads = p.task_heads(), blocks = p.heads / heads, size = p.size();
  const int64_t most_queries = std::min(p.tile(), p.frames) + size - 1, most_slots = most_queries + size - 1;
  const int64_t queries_copied = RowTable<C>::copied(p, most_queries), slots_copied = RowTable<C>::copied(p, most_slots);
  BackwardBuffers<C> s;
  s.pitch = most_slots + L;
  Scratch scratch(Scratch::bytes<const C*>(most_queries) + Scratch::bytes<const C*>(most_slots) +
                  Scratch::bytes<C>(queries_copied) + Scratch::bytes<C>(slots_copied) +
                  Scratch::bytes<C>(heads * s.pitch) + 2 * Scratch::bytes<C>(size * L) +
                  Scratch::bytes<C>(heads * size * L) + 3 * Scratch::bytes<C>(most_queries + L));
  s.grads = {scratch.take<const C*>(most_queries), scratch.take<C>(queries_copied), 0, 0};
  s.values = {scratch.take<const C*>(most_slots), scratch.take<C>(slots_copied), 0, 0};
  s.scores = scratch.take<C>(heads * s.pitch);
  s.weights = scratch.take<C>(size * L), s.products = scratch.take<C>(size * L);
  s.sums = scratch.take<C>(heads * size * L);
  for (C** part : {&s.seen.highest, &s.seen.inverse, &s.seen.delta}) *part = scratch.take<C>(most_queries + L);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks / p.tiles(), tile = task / blocks % p.tiles(), h = task % blocks * heads;
    const int64_t n = p.length(b);
    const int64_t first = tile * p.tile(), last = std::min(first + p.tile(), p.frames), real = std::clamp(n, first, last);
    std::fill(s.sums, s.sums + heads * size * L, C(0));
    for (int64_t t = real; t < last; ++t) {
      for (int64_t i = 0; i < heads; ++i) {
        std::memset(p.dvalues.at(b, t, h + i), 0, p.dim * bytes_of(p.element));
        std::memset(p.dscores.at(b, t, h + i), 0, bytes_of(p.element));
      }
    }
    if (real > first) {
      const Range queries{first - p.right, real + p.left}, slots{queries.begin - p.left, queries.end + p.right};
      load_scores<C>(p, b, h, n, slots, s.pitch, s.scores);
      s.values.fill(
          p, p.values, b, h, n, slots, [&](int64_t slot) SINMDM_INLINE { return p.exists(slot, n); },
          [&](int64_t slot) SINMDM_INLINE { return p.frame_of(slot, n); });
      s.grads.fill(
          p, p.grad_out, b, h, n, queries,
          [&](int64_t u) SINMDM_INLINE { return p.exists(u, n) && p.frame_of(u, n) % p.stride == 0; },
          [&](int64_t u) SINMDM_INLINE { return p.frame_of(u, n) / p.stride; });
      for (int64_t i = 0; i < heads; ++i) {
        see<C>(p, h, i, queries, s);
        for (int64_t t = first; t < real; t += L) {
          gather<C>(p, b, h, i, queries, t, std::min(L, real - t), s);
        }
      }
    }
    for (int64_t i = 0; i < heads; ++i) {
      double* to = p.dbias + ((b * p.tiles() + tile) * p.heads + h + i) * size;
      for (int64_t o = 0; o < size; ++o) to[o] = sum<C>(load<C>(s.sums + (i * size + o) * L));
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

}  // namespace sinmdm::cpu::qna::SINMDM_ISA
