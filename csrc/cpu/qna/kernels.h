// The bodies of one instruction set. See cpu/simd.h for what the including file defines.
//
// Softmax weights are computed for a strip of neighbouring frames, one a lane; rows of values and gradients are then
// taken one by one, head_dim along the lanes. An output's terms are those of its window and no others: a NaN or
// infinity that it does not see is never read.

// clang-format off: each builds on those before it
#include "cpu/simd.h"
#include "cpu/softmax.h"
// clang-format on

namespace sinmdm::cpu::qna::SINMDM_ISA {

using namespace cpu::SINMDM_ISA;

constexpr int kBlock = 4;      // registers of a row that are taken together
constexpr int64_t kAhead = 8;  // frames from a row that is copied to the one that is fetched meanwhile

template <typename C>
constexpr C kNever = -std::numeric_limits<C>::infinity();

template <typename C>
constexpr int64_t whole_registers(int64_t dim) {
  return (dim + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

// The sum of the lanes of each of kLanes registers, register l's in lane l; they lie one after another. A stage adds up
// pairs: of two registers it makes one, whose halves of every block of 2 step lanes are theirs.
template <typename C>
SINMDM_KERNEL V<C> lane_sums(const C* registers) {
  using Int = typename Simd<C>::Int;
  constexpr Int L = kLanes<C>;
  I<C> lane;
#pragma GCC unroll 16
  for (Int i = 0; i < L; ++i) lane[i] = i;
  V<C> x[L];
#pragma GCC unroll 16
  for (Int i = 0; i < L; ++i) x[i] = load<C>(registers + i * L);
#pragma GCC unroll 4
  for (Int step = L / 2; step > 0; step /= 2) {
    const I<C> second = (lane & step) != 0;
#pragma GCC unroll 8
    for (Int i = 0; i < step; ++i) {
      const V<C> a = x[i], b = x[i + step];
      x[i] = __builtin_shuffle(a, b, second ? lane + L : lane) +
             __builtin_shuffle(a, b, second ? lane + L - step : lane + step);
    }
  }
  return x[0];
}

// Frames, or outputs, of the heads from h on of a sequence of n frames. In the backward outputs at the frames `queries`
// see them.
struct Tile {
  int64_t b, h, n;
  Range frames, queries;
};

// The rows (heads, dim) at neighbouring slots, in the dtype of the computation and in whole registers: in place where
// they are that already, else as a copy. Null where a slot has none.
template <typename C>
struct RowTable {
  const C** row;  // by slot, from the first
  C* copy;
  int64_t head;  // numbers between the rows of neighbouring heads

  static bool in_place(const Problem& p) {
    return p.dim % kLanes<C> == 0 && (p.element == Element::float32 || p.element == Element::float64);
  }
  static int64_t copied(const Problem& p, int64_t slots) {
    return in_place(p) ? 0 : std::min(slots, p.frames) * p.together * whole_registers<C>(p.dim);
  }

  // Of `slots` those that are frames of the sequence, and of these every `stride`-th: row number frame / stride.
  SINMDM_KERNEL void fill(const Problem& p, const Rows& rows, const Tile& tile, Range slots, int64_t stride) {
    const int64_t width = whole_registers<C>(p.dim), heads = p.together;
    const bool direct = in_place(p);
    head = direct ? rows.head / static_cast<int64_t>(sizeof(C)) : width;
    int64_t count = 0;
    for (int64_t slot = 0; slot < slots.size(); ++slot) {
      const int64_t frame = p.frame_of(slots.begin + slot, tile.n);
      const int64_t index = stride == 1 ? frame : frame / stride;  // a division costs as much as a row's arithmetic
      if (frame < 0 || frame >= tile.n || index * stride != frame) {
        row[slot] = nullptr;
      } else if (direct) {
        row[slot] = reinterpret_cast<const C*>(rows.at(tile.b, index, tile.h));
        // Tiles are read head by head, which no hardware foresees.
        for (int64_t i = 0; i < heads; ++i) {
          for (int64_t d = 0; d < p.dim; d += 64 / sizeof(C)) __builtin_prefetch(row[slot] + i * head + d);
        }
      } else if (slot >= tile.n && row[slot - tile.n] != nullptr) {  // a frame met again
        row[slot] = row[slot - tile.n];
      } else {
        C* at = copy + count++ * heads * width;
        __builtin_prefetch(rows.at(tile.b, index + kAhead, tile.h));
        row[slot] = at;
        const int64_t run = width == p.dim && rows.head == p.dim * bytes_of(p.element) ? heads : 1;
        for (int64_t i = 0; i < heads; i += run, at += run * width) {
          load_row<C>(p.element, rows.at(tile.b, index, tile.h + i), run * p.dim, at);
          for (int64_t d = p.dim; d < width; ++d) at[d] = 0;
        }
      }
    }
  }
};

// `count` numbers `distance` bytes apart.
template <typename C>
SINMDM_KERNEL void load_column(Element element, const char* from, int64_t distance, int64_t count, C* to) {
  if (element == Element::float32 || element == Element::float64) {
    for (int64_t i = 0; i < count; ++i) to[i] = *reinterpret_cast<const C*>(from + i * distance);
  } else if (element == Element::bfloat16) {
    for (int64_t i = 0; i < count; ++i)
      to[i] = widened_bfloat16(*reinterpret_cast<const uint16_t*>(from + i * distance));
  } else {
    for (int64_t i = 0; i < count; ++i)
      to[i] = widened_float16(*reinterpret_cast<const uint16_t*>(from + i * distance));
  }
}

// Scores of the slots `slots` of p.together heads from h on to (heads, pitch), -inf where there is no such frame
// and in what is left of a row.
template <typename C>
SINMDM_TARGET void load_scores(const Problem& p, int64_t b, int64_t h, int64_t n, Range slots, int64_t pitch, C* to) {
  const Range there = p.boundary == Boundary::circular ? slots : slots.clipped({0, n});
  for (int64_t i = 0; i < p.together; ++i) {
    C* row = to + i * pitch;
    for (int64_t s = 0; s < there.begin - slots.begin; ++s) row[s] = kNever<C>;
    for (int64_t slot = there.begin; slot < there.end;) {  // runs of neighbouring frames
      const int64_t frame = p.frame_of(slot, n), end = std::min(there.end, slot + n - frame);
      load_column<C>(p.element, p.scores.at(b, frame, h + i), p.scores.frame, end - slot, row + slot - slots.begin);
      slot = end;
    }
    for (int64_t s = there.end - slots.begin; s < pitch; ++s) row[s] = kNever<C>;
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

// Calls body(i, d, G, R), G and R as constants, for the blocks of a row of p.together heads: of the heads i .. i + G -
// 1 the R registers from number d on. What a row costs beside its arithmetic is so shared by several heads.
template <typename C, typename Body>
SINMDM_KERNEL void in_blocks(const Problem& p, const Body& body) {
  using std::integral_constant;
  constexpr int64_t L = kLanes<C>;
  const int64_t heads = p.together, width = whole_registers<C>(p.dim);
  if (width == L && heads % 4 == 0) {
    for (int64_t i = 0; i < heads; i += 4) body(i, 0, integral_constant<int, 4>(), integral_constant<int, 1>());
  } else if (width == 2 * L && heads % 4 == 0) {
    for (int64_t i = 0; i < heads; i += 4) body(i, 0, integral_constant<int, 4>(), integral_constant<int, 2>());
  } else if (width == 4 * L && heads % 2 == 0) {
    for (int64_t i = 0; i < heads; i += 2) body(i, 0, integral_constant<int, 2>(), integral_constant<int, 4>());
  } else {
    for (int64_t i = 0; i < heads; ++i) {
      int64_t d = 0;
      for (; d + 4 * L <= width; d += 4 * L) body(i, d, integral_constant<int, 1>(), integral_constant<int, 4>());
      for (; d < width; d += L) body(i, d, integral_constant<int, 1>(), integral_constant<int, 1>());
    }
  }
}

// total[g][r] = sum_o weights[g][o] rows[o][g][r], of the offsets whose rows exist; weights (heads, size, kLanes).
template <typename C, int G, int R>
SINMDM_KERNEL void sum_rows(const C* const* rows, int64_t size, int64_t head, int64_t at, const C* weights,
                            V<C> (&total)[G][R]) {
  constexpr int64_t L = kLanes<C>;
#pragma GCC unroll 8
  for (int k = 0; k < G * R; ++k) total[k / R][k % R] = V<C>{};
  for (int64_t o = 0; o < size; ++o) {
    if (rows[o] == nullptr) continue;
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const C weight = weights[(g * size + o) * L];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) total[g][r] += weight * load<C>(rows[o] + at + g * head + r * L);
    }
  }
}

// Rows (heads, dim) of results at the frames of a strip: written in place where memory has them in the dtype of the
// computation and in whole registers, else by way of a copy.
template <typename C>
struct Results {
  C* copy;  // (kLanes, heads, whole registers)

  static int64_t copied(const Problem& p) {
    return RowTable<C>::in_place(p) ? 0 : kLanes<C> * p.together * whole_registers<C>(p.dim);
  }
  // The row of the first head; those of the others follow one another.
  SINMDM_KERNEL C* at(const Problem& p, const Rows& rows, const Tile& tile, int64_t t, int64_t l) const {
    if (RowTable<C>::in_place(p)) return reinterpret_cast<C*>(rows.at(tile.b, t + l, tile.h));
    return copy + l * p.together * whole_registers<C>(p.dim);
  }
  // Rows of the frames t .. t + count - 1, whose heads lie side by side.
  SINMDM_KERNEL void finish(const Problem& p, const Rows& rows, const Tile& tile, int64_t t, int64_t count) const {
    if (RowTable<C>::in_place(p)) return;
    const int64_t run = whole_registers<C>(p.dim) == p.dim ? p.together : 1;
    for (int64_t l = 0; l < count; ++l) {
      for (int64_t i = 0; i < p.together; i += run) {
        store_row<C>(p.element, at(p, rows, tile, t, l) + i * whole_registers<C>(p.dim), run * p.dim,
                     rows.at(tile.b, t + l, tile.h + i));
      }
    }
  }
};

template <typename C>
SINMDM_TARGET void forward_tasks(const Forward& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<C>;
  const int64_t heads = p.together, blocks = p.heads / heads, width = whole_registers<C>(p.dim);
  const int64_t most = (std::min(p.tile(), p.outputs()) - 1) * p.stride + p.size(), pitch = most + L;
  Scratch scratch(Scratch::bytes<const C*>(most) + Scratch::bytes<C>(RowTable<C>::copied(p, most)) +
                  Scratch::bytes<C>(heads * pitch) + Scratch::bytes<C>(heads * p.size() * L) +
                  Scratch::bytes<C>(Results<C>::copied(p)));
  RowTable<C> values{scratch.take<const C*>(most), scratch.take<C>(RowTable<C>::copied(p, most)), 0};
  C* scores = scratch.take<C>(heads * pitch);
  C* weights = scratch.take<C>(heads * p.size() * L);
  const Results<C> results{scratch.take<C>(Results<C>::copied(p))};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks / p.tiles(), h = task % blocks * heads, n = p.length(b);
    const int64_t first = task / blocks % p.tiles() * p.tile(), last = std::min(first + p.tile(), p.outputs());
    const int64_t real = std::clamp((n + p.stride - 1) / p.stride, first, last);
    const Tile tile{b, h, n, {first, real}, {}};
    for (int64_t t = real; t < last; ++t) {
      for (int64_t i = 0; i < heads; ++i) std::memset(p.out.at(b, t, h + i), 0, p.dim * bytes_of(p.element));
    }
    if (real == first) continue;
    const Range slots{first * p.stride - p.left, (real - 1) * p.stride + p.right + 1};
    load_scores<C>(p, b, h, n, slots, pitch, scores);
    values.fill(p, p.values, tile, slots, 1);
    for (int64_t t = first; t < real; t += L) {
      Strip<C> strip{std::min(L, real - t), {}, p.stride == 1};
      for (int64_t l = 0; l < strip.count; ++l) strip.begin[l] = (t - first + l) * p.stride;
      for (int64_t i = 0; i < heads; ++i) {
        V<C> highest, inverse;
        C* own = weights + i * p.size() * L;
        weigh<C>(p, strip, scores + i * pitch, static_cast<const C*>(p.bias) + (h + i) * p.size(), own, highest,
                 inverse);
        for (int64_t o = 0; o < p.size(); ++o) store<C>(own + o * L, load<C>(own + o * L) * inverse);
      }
      for (int64_t l = 0; l < strip.count; ++l) {
        C* row = results.at(p, p.out, tile, t, l);
        in_blocks<C>(p, [&](int64_t i, int64_t d, auto heads_in, auto registers) SINMDM_INLINE {
          constexpr int G = heads_in.value, R = registers.value;
          V<C> total[G][R];
          sum_rows<C, G, R>(values.row + strip.begin[l], p.size(), values.head, i * values.head + d,
                            weights + i * p.size() * L + l, total);
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g) {
            C* to = row + (i + g) * whole_registers<C>(p.dim) + d;
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) store<C>(to + r * L, total[g][r]);
          }
        });
      }
      results.finish(p, p.out, tile, t, strip.count);
    }
  }
}

// What the backward keeps of the outputs that see a tile, by their frame's slot; `inverse` is 0 where there is none.
template <typename C>
struct Seen {
  C *highest, *inverse, *delta;  // (heads, pitch)
};

template <typename C>
struct BackwardBuffers {
  RowTable<C> values, grads;
  Results<C> dvalues;
  C* dscores;   // (kLanes, heads)
  C* scores;    // (heads, pitch)
  C* weights;   // (heads, size, kLanes)
  C* products;  // (heads, size, kLanes) registers; size 1 for what is summed over the window
  C* sums;      // (heads, size, kLanes)
  Seen<C> seen;
  int64_t pitch;
};

// Of the outputs at tile.queries their softmax's maximum and sum, and delta = sum_j P_ij (do_i . v_j) = do_i . out_i.
template <typename C>
SINMDM_TARGET void see(const Backward& p, const Tile& tile, const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>;
  const int64_t width = whole_registers<C>(p.dim), heads = p.together, queries = tile.queries.size();
  for (C* part : {s.seen.highest, s.seen.inverse, s.seen.delta}) std::fill(part, part + heads * s.pitch, C(0));
  for (int64_t u = 0; u < queries;) {
    Strip<C> strip{0, {}, true};
    for (; u < queries && strip.count < L; ++u) {
      if (s.grads.row[u] != nullptr) strip.begin[strip.count++] = u;
    }
    if (strip.count == 0) continue;
    strip.neighbours = strip.begin[strip.count - 1] == strip.begin[0] + strip.count - 1;
    for (int64_t i = 0; i < heads; ++i) {
      V<C> highest, inverse;
      C* weights = s.weights + i * p.size() * L;
      weigh<C>(p, strip, s.scores + i * s.pitch, static_cast<const C*>(p.bias) + (tile.h + i) * p.size(), weights,
               highest, inverse);
      for (int64_t l = 0; l < strip.count; ++l) {
        const int64_t at = i * s.pitch + strip.begin[l];
        s.seen.highest[at] = highest[l], s.seen.inverse[at] = inverse[l];
      }
    }
    for (int64_t l = 0; l < strip.count; ++l) {
      in_blocks<C>(p, [&](int64_t i, int64_t d, auto heads_in, auto registers) SINMDM_INLINE {
        constexpr int G = heads_in.value, R = registers.value;
        V<C> total[G][R];
        sum_rows<C, G, R>(s.values.row + strip.begin[l], p.size(), s.values.head, i * s.values.head + d,
                          s.weights + i * p.size() * L + l, total);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          const C* grad = s.grads.row[strip.begin[l]] + (i + g) * s.grads.head + d;
          C* to_product = s.products + ((i + g) * L + l) * L;
          V<C> product = d == 0 ? V<C>{} : load<C>(to_product);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) product += total[g][r] * load<C>(grad + r * L);
          store<C>(to_product, product);
        }
      });
    }
    for (int64_t i = 0; i < heads; ++i) {
      const V<C> delta = lane_sums<C>(s.products + i * L * L);  // of lanes from strip.count on nothing is kept
      for (int64_t l = 0; l < strip.count; ++l) {
        const int64_t at = i * s.pitch + strip.begin[l];
        s.seen.delta[at] = delta[l] * s.seen.inverse[at];
      }
    }
  }
}

// Gradients of up to kLanes frames from `frame` on: every output that sees one of them, offset by offset.
template <typename C>
SINMDM_TARGET void gather(const Backward& p, const Tile& tile, int64_t frame, int64_t count,
                          const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>;
  using Int = typename Simd<C>::Int;
  const int64_t size = p.size(), heads = p.together;
  // Where the frame lies among the queries; among the slots it lies p.left further. Column o is that of the query
  // p.left - o further on: queries run backwards as columns do forwards.
  const int64_t own = frame - tile.queries.begin, latest = own + p.left;
  I<C> lane;
  for (Int l = 0; l < L; ++l) lane[l] = l;
  const I<C> there = lane < static_cast<Int>(count);
  for (int64_t i = 0; i < heads; ++i) {
    const C* bias = static_cast<const C*>(p.bias) + (tile.h + i) * size;
    const V<C> scores = load<C>(s.scores + i * s.pitch + own + p.left);
    for (int64_t o = 0; o < size; ++o) {
      const int64_t at = i * s.pitch + latest - o;
      const V<C> inverse = load<C>(s.seen.inverse + at), highest = load<C>(s.seen.highest + at);
      const V<C> weight = exp2_weight<C>((scores + bias[o] - highest) * static_cast<C>(kLog2E)) * inverse;
      store<C>(s.weights + (i * size + o) * L, there & (inverse != C(0)) ? weight : V<C>{});
    }
  }
  for (int64_t l = 0; l < count; ++l) {
    const C* const* rows = s.grads.row + latest + l;
    C* row = s.dvalues.at(p, p.dvalues, tile, frame, l);
    in_blocks<C>(p, [&](int64_t i, int64_t d, auto heads_in, auto registers) SINMDM_INLINE {
      constexpr int G = heads_in.value, R = registers.value;
      V<C> v[G][R], total[G][R];
      const C* value = s.values.row[latest + l] + i * s.values.head + d;
#pragma GCC unroll 8
      for (int k = 0; k < G * R; ++k) {
        v[k / R][k % R] = load<C>(value + k / R * s.values.head + k % R * L);
        total[k / R][k % R] = V<C>{};
      }
      for (int64_t o = 0; o < size; ++o) {
        C* to_product = s.products + ((i * size + o) * L + l) * L;
        if (rows[-o] == nullptr) {
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g) store<C>(to_product + g * size * L * L, V<C>{});
          continue;
        }
        const C* grad = rows[-o] + i * s.grads.head + d;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          const C weight = s.weights[((i + g) * size + o) * L + l];
          V<C> product = d == 0 ? V<C>{} : load<C>(to_product + g * size * L * L);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            const V<C> x = load<C>(grad + g * s.grads.head + r * L);
            product += x * v[g][r], total[g][r] += weight * x;
          }
          store<C>(to_product + g * size * L * L, product);
        }
      }
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        C* to = row + (i + g) * whole_registers<C>(p.dim) + d;
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) store<C>(to + r * L, total[g][r]);
      }
    });
  }
  for (int64_t i = 0; i < heads; ++i) {
    V<C> dscore{};
    for (int64_t o = 0; o < size; ++o) {
      const int64_t column = i * size + o;
      const V<C> delta = load<C>(s.seen.delta + i * s.pitch + latest - o);
      const V<C> dlogit = load<C>(s.weights + column * L) * (lane_sums<C>(s.products + column * L * L) - delta);
      dscore += dlogit;
      C* sum = s.sums + column * L;
      store<C>(sum, load<C>(sum) + (there ? dlogit : V<C>{}));
    }
    for (int64_t l = 0; l < count; ++l) s.dscores[l * heads + i] = dscore[l];
  }
}

template <typename C>
SINMDM_TARGET void backward_tasks(const Backward& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<C>;
  const int64_t heads = p.together, blocks = p.heads / heads, size = p.size();
  const int64_t most_queries = std::min(p.tile(), p.frames) + size - 1, most_slots = most_queries + size - 1;
  const int64_t queries_copied = RowTable<C>::copied(p, most_queries),
                slots_copied = RowTable<C>::copied(p, most_slots);
  BackwardBuffers<C> s;
  s.pitch = most_slots + L;
  Scratch scratch(Scratch::bytes<const C*>(most_queries) + Scratch::bytes<const C*>(most_slots) +
                  Scratch::bytes<C>(queries_copied) + Scratch::bytes<C>(slots_copied) +
                  4 * Scratch::bytes<C>(heads * s.pitch) + Scratch::bytes<C>(heads * size * L) +
                  Scratch::bytes<C>(heads * size * L * L) + Scratch::bytes<C>(heads * size * L) +
                  Scratch::bytes<C>(Results<C>::copied(p)) + Scratch::bytes<C>(L * heads));
  s.grads = {scratch.take<const C*>(most_queries), scratch.take<C>(queries_copied), 0};
  s.values = {scratch.take<const C*>(most_slots), scratch.take<C>(slots_copied), 0};
  for (C** part : {&s.scores, &s.seen.highest, &s.seen.inverse, &s.seen.delta}) {
    *part = scratch.take<C>(heads * s.pitch);
  }
  s.weights = scratch.take<C>(heads * size * L), s.products = scratch.take<C>(heads * size * L * L);
  s.sums = scratch.take<C>(heads * size * L);
  s.dvalues.copy = scratch.take<C>(Results<C>::copied(p)), s.dscores = scratch.take<C>(L * heads);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / blocks, first = part % p.tiles() * p.tile();
    Tile tile{part / p.tiles(), task % blocks * heads, p.length(part / p.tiles()), {first, first + p.tile()}, {}};
    tile.frames.end = std::min(tile.frames.end, p.frames);
    std::fill(s.sums, s.sums + heads * size * L, C(0));
    for (int64_t t = std::max(tile.n, first); t < tile.frames.end; ++t) {
      for (int64_t h = tile.h; h < tile.h + heads; ++h) {
        std::memset(p.dvalues.at(tile.b, t, h), 0, p.dim * bytes_of(p.element));
        std::memset(p.dscores.at(tile.b, t, h), 0, bytes_of(p.element));
      }
    }
    tile.frames.end = std::min(tile.frames.end, tile.n);
    if (tile.frames.end > first) {
      tile.queries = {first - p.right, tile.frames.end + p.left};
      const Range slots{tile.queries.begin - p.left, tile.queries.end + p.right};
      load_scores<C>(p, tile.b, tile.h, tile.n, slots, s.pitch, s.scores);
      s.values.fill(p, p.values, tile, slots, 1);
      s.grads.fill(p, p.grad_out, tile, tile.queries, p.stride);
      see<C>(p, tile, s);
      for (int64_t t = first; t < tile.frames.end; t += L) {
        const int64_t count = std::min(L, tile.frames.end - t);
        gather<C>(p, tile, t, count, s);
        s.dvalues.finish(p, p.dvalues, tile, t, count);
        for (int64_t l = 0; l < count; ++l) {
          store_row<C>(p.element, s.dscores + l * heads, heads, p.dscores.at(tile.b, t + l, tile.h));
        }
      }
    }
    for (int64_t i = 0; i < heads; ++i) {
      double* to = p.dbias + (part * p.heads + tile.h + i) * size;
      for (int64_t o = 0; o < size; ++o) {
        to[o] = 0;
        for (int64_t l = 0; l < L; ++l) to[o] += s.sums[(i * size + o) * L + l];
      }
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
