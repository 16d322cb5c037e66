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

// Softmax of a strip: weights (size, kLanes), 0 where an output sees nothing. Scores of slots that do not exist are
// -inf, which leaves them out as long as the bias is finite; where it is not, `rows` tell them apart.
template <typename C>
SINMDM_TARGET void weigh(const Problem& p, const Strip<C>& strip, const C* scores, const C* bias, const C* const* rows,
                         C* weights) {
  constexpr int64_t L = kLanes<C>;
  V<C> high = V<C>{} + kNever<C>;
  for (int64_t o = 0; o < p.size(); ++o) {
    V<C> x = strip.at(scores, o) + bias[o];
    if (!std::isfinite(bias[o])) {
      for (int64_t l = 0; l < strip.count; ++l) {
        if (rows[strip.begin[l] + o] == nullptr) x[l] = kNever<C>;
      }
    }
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
  const V<C> inverse = total == C(0) ? V<C>{} : C(1) / total;
  for (int64_t o = 0; o < p.size(); ++o) store<C>(weights + o * L, load<C>(weights + o * L) * inverse);
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

// Rows (heads, dim) of results, from the frame `first` on: written in place (`copy` is null) where memory has them in
// the dtype of the computation and in whole registers, else by way of a copy.
template <typename C>
struct Results {
  C* copy;  // (frames, heads, whole registers)

  static int64_t copied(const Problem& p, int64_t frames) { return frames * p.together * whole_registers<C>(p.dim); }
  // The row of the first head at frame t; those of the others follow one another.
  SINMDM_KERNEL C* at(const Problem& p, const Rows& rows, const Tile& tile, int64_t first, int64_t t) const {
    if (copy == nullptr) return reinterpret_cast<C*>(rows.at(tile.b, t, tile.h));
    return copy + (t - first) * p.together * whole_registers<C>(p.dim);
  }
  SINMDM_KERNEL void finish(const Problem& p, const Rows& rows, const Tile& tile, Range frames) const {
    if (copy == nullptr) return;
    const int64_t width = whole_registers<C>(p.dim), run = width == p.dim ? p.together : 1;
    for (int64_t t = frames.begin; t < frames.end; ++t) {
      const C* from = at(p, rows, tile, frames.begin, t);
      for (int64_t i = 0; i < p.together; i += run) {
        store_row<C>(p.element, from + i * width, run * p.dim, rows.at(tile.b, t, tile.h + i));
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
                  Scratch::bytes<C>(Results<C>::copied(p, L)));
  RowTable<C> values{scratch.take<const C*>(most), scratch.take<C>(RowTable<C>::copied(p, most)), 0};
  C* scores = scratch.take<C>(heads * pitch);
  C* weights = scratch.take<C>(heads * p.size() * L);
  const Results<C> results{RowTable<C>::in_place(p) ? nullptr : scratch.take<C>(Results<C>::copied(p, L))};
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
        weigh<C>(p, strip, scores + i * pitch, static_cast<const C*>(p.bias) + (h + i) * p.size(), values.row,
                 weights + i * p.size() * L);
      }
      for (int64_t l = 0; l < strip.count; ++l) {
        C* row = results.at(p, p.out, tile, t, t + l);
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
      results.finish(p, p.out, tile, {t, t + strip.count});
    }
  }
}

// Outputs that see a tile are taken `kSeen` of their frames at a time, so that what is kept of their pairs does not
// grow with the square of the window.
constexpr int64_t kSeen = 256;

template <typename C>
struct BackwardBuffers {
  RowTable<C> values, grads;
  Results<C> dvalues;
  C* dscores;   // (frames, heads)
  C* scores;    // (heads, pitch)
  C* weights;   // (heads, size, kLanes), of a strip
  C* products;  // (heads, size, kLanes) registers, of a strip
  C* sums;      // (heads, size, kLanes)
  // Of the pairs of a part of the outputs, by their frame's slot, kLanes zeros before and after it: (heads, size, row).
  C *pair_weights, *pair_gradients;
  int64_t pitch, row;
};

// The pairs of the outputs at the frames `part` of tile.queries: weights P, and gradients of their logits P (dP -
// delta) with dP = do . v and delta = sum_j P dP.
template <typename C>
SINMDM_TARGET void see(const Backward& p, const Tile& tile, Range part, const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>;
  using Int = typename Simd<C>::Int;
  const int64_t heads = p.together, size = p.size(), origin = part.begin - tile.queries.begin;
  std::fill(s.pair_weights, s.pair_weights + heads * size * s.row, C(0));
  std::fill(s.pair_gradients, s.pair_gradients + heads * size * s.row, C(0));
  I<C> lane;
  for (Int l = 0; l < L; ++l) lane[l] = l;
  for (int64_t u = origin; u < origin + part.size();) {
    Strip<C> strip{0, {}, true};
    for (; u < origin + part.size() && strip.count < L; ++u) {
      if (s.grads.row[u] != nullptr) strip.begin[strip.count++] = u;
    }
    if (strip.count == 0) continue;
    strip.neighbours = strip.begin[strip.count - 1] == strip.begin[0] + strip.count - 1;
    for (int64_t i = 0; i < heads; ++i) {
      weigh<C>(p, strip, s.scores + i * s.pitch, static_cast<const C*>(p.bias) + (tile.h + i) * size, s.values.row,
               s.weights + i * size * L);
    }
    for (int64_t l = 0; l < strip.count; ++l) {
      const C* const* rows = s.values.row + strip.begin[l];
      in_blocks<C>(p, [&](int64_t i, int64_t d, auto heads_in, auto registers) SINMDM_INLINE {
        constexpr int G = heads_in.value, R = registers.value;
        const C* grad = s.grads.row[strip.begin[l]] + i * s.grads.head + d;
        V<C> x[G][R];
#pragma GCC unroll 8
        for (int k = 0; k < G * R; ++k) x[k / R][k % R] = load<C>(grad + k / R * s.grads.head + k % R * L);
        for (int64_t o = 0; o < size; ++o) {
          C* to = s.products + ((i * size + o) * L + l) * L;
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g, to += size * L * L) {
            V<C> product = d == 0 ? V<C>{} : load<C>(to);
            if (rows[o] != nullptr) {
              const C* value = rows[o] + (i + g) * s.values.head + d;
#pragma GCC unroll 4
              for (int r = 0; r < R; ++r) product += x[g][r] * load<C>(value + r * L);
            }
            store<C>(to, product);
          }
        }
      });
    }
    const I<C> there = lane < static_cast<Int>(strip.count);
    for (int64_t i = 0; i < heads; ++i) {
      V<C> delta{};
      for (int64_t o = 0; o < size; ++o) {
        C* products = s.products + (i * size + o) * L * L;
        const V<C> dweight = lane_sums<C>(products);
        delta += load<C>(s.weights + (i * size + o) * L) * dweight;
        store<C>(products, dweight);
      }
      for (int64_t o = 0; o < size; ++o) {
        const int64_t at = (i * size + o) * s.row + L + strip.begin[0] - origin;
        V<C> weight = load<C>(s.weights + (i * size + o) * L);
        V<C> dlogit = weight * (load<C>(s.products + (i * size + o) * L * L) - delta);
        weight = there ? weight : V<C>{}, dlogit = there ? dlogit : V<C>{};
        if (strip.neighbours) {
          store<C>(s.pair_weights + at, weight), store<C>(s.pair_gradients + at, dlogit);
        } else {
          for (int64_t l = 0; l < strip.count; ++l) {
            const int64_t further = strip.begin[l] - strip.begin[0];
            s.pair_weights[at + further] = weight[l], s.pair_gradients[at + further] = dlogit[l];
          }
        }
      }
    }
  }
}

// Adds to the gradients of up to kLanes frames from `frame` on what they have from the pairs of the outputs at `part`.
template <typename C>
SINMDM_TARGET void gather(const Backward& p, const Tile& tile, Range part, int64_t frame, int64_t count,
                          const BackwardBuffers<C>& s) {
  constexpr int64_t L = kLanes<C>;
  using Int = typename Simd<C>::Int;
  const int64_t size = p.size(), heads = p.together;
  const bool fresh = part.begin == tile.queries.begin;
  // Column o is that of the query p.left - o further on: queries run backwards as columns do forwards.
  const int64_t latest = frame + p.left;
  const Range columns = Range{latest - part.end + 1, latest - part.begin + L}.clipped({0, size});
  I<C> lane;
  for (Int l = 0; l < L; ++l) lane[l] = l;
  const I<C> there = lane < static_cast<Int>(count);
  C* dscores = s.dscores + (frame - tile.frames.begin) * heads;
  for (int64_t i = 0; i < heads; ++i) {
    V<C> dscore{};
    for (int64_t o = columns.begin; o < columns.end; ++o) {
      const V<C> dlogit = load<C>(s.pair_gradients + (i * size + o) * s.row + L + latest - o - part.begin);
      C* sum = s.sums + (i * size + o) * L;
      dscore += dlogit;
      store<C>(sum, load<C>(sum) + (there ? dlogit : V<C>{}));
    }
    for (int64_t l = 0; l < count; ++l) {
      dscores[l * heads + i] = fresh ? dscore[l] : dscores[l * heads + i] + dscore[l];
    }
  }
  for (int64_t l = 0; l < count; ++l) {
    const Range own = Range{latest + l - part.end + 1, latest + l - part.begin + 1}.clipped({0, size});
    const C* const* rows = s.grads.row + latest + l - tile.queries.begin;
    C* row = s.dvalues.at(p, p.dvalues, tile, tile.frames.begin, frame + l);
    in_blocks<C>(p, [&](int64_t i, int64_t d, auto heads_in, auto registers) SINMDM_INLINE {
      constexpr int G = heads_in.value, R = registers.value;
      C* to = row + i * whole_registers<C>(p.dim) + d;
      const C* weights = s.pair_weights + i * size * s.row + L + latest + l - part.begin;
      V<C> total[G][R];
#pragma GCC unroll 8
      for (int k = 0; k < G * R; ++k) {
        total[k / R][k % R] = fresh ? V<C>{} : load<C>(to + k / R * whole_registers<C>(p.dim) + k % R * L);
      }
      for (int64_t o = own.begin; o < own.end; ++o) {
        if (rows[-o] == nullptr) continue;
        const C* grad = rows[-o] + i * s.grads.head + d;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          const C weight = weights[(g * size + o) * s.row - o];
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) total[g][r] += weight * load<C>(grad + g * s.grads.head + r * L);
        }
      }
#pragma GCC unroll 8
      for (int k = 0; k < G * R; ++k) store<C>(to + k / R * whole_registers<C>(p.dim) + k % R * L, total[k / R][k % R]);
    });
  }
}

template <typename C>
SINMDM_TARGET void backward_tasks(const Backward& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<C>;
  const int64_t heads = p.together, blocks = p.heads / heads, size = p.size();
  const int64_t most = std::min(p.tile(), p.frames), most_queries = most + size - 1,
                most_slots = most_queries + size - 1;
  const int64_t queries_copied = RowTable<C>::copied(p, most_queries),
                slots_copied = RowTable<C>::copied(p, most_slots);
  const bool direct = RowTable<C>::in_place(p) && most_queries <= kSeen;  // else a row is added to time and again
  const int64_t dvalues_copied = direct ? 0 : Results<C>::copied(p, most);
  BackwardBuffers<C> s;
  s.pitch = most_slots + L, s.row = std::min(most_queries, kSeen) + 2 * L;
  Scratch scratch(Scratch::bytes<const C*>(most_queries) + Scratch::bytes<const C*>(most_slots) +
                  Scratch::bytes<C>(queries_copied) + Scratch::bytes<C>(slots_copied) +
                  Scratch::bytes<C>(dvalues_copied) + Scratch::bytes<C>(most * heads) +
                  Scratch::bytes<C>(heads * s.pitch) + 2 * Scratch::bytes<C>(heads * size * L) +
                  Scratch::bytes<C>(heads * size * L * L) + 2 * Scratch::bytes<C>(heads * size * s.row));
  s.grads = {scratch.take<const C*>(most_queries), scratch.take<C>(queries_copied), 0};
  s.values = {scratch.take<const C*>(most_slots), scratch.take<C>(slots_copied), 0};
  s.dvalues.copy = direct ? nullptr : scratch.take<C>(dvalues_copied);
  s.dscores = scratch.take<C>(most * heads);
  s.scores = scratch.take<C>(heads * s.pitch);
  s.weights = scratch.take<C>(heads * size * L), s.sums = scratch.take<C>(heads * size * L);
  s.products = scratch.take<C>(heads * size * L * L);
  s.pair_weights = scratch.take<C>(heads * size * s.row), s.pair_gradients = scratch.take<C>(heads * size * s.row);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t place = task / blocks, first = place % p.tiles() * p.tile();
    Tile tile{place / p.tiles(), task % blocks * heads, p.length(place / p.tiles()), {first, first + p.tile()}, {}};
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
      for (int64_t from = tile.queries.begin; from < tile.queries.end; from += kSeen) {
        const Range part{from, std::min(from + kSeen, tile.queries.end)};
        see<C>(p, tile, part, s);
        for (int64_t t = first; t < tile.frames.end; t += L) {
          gather<C>(p, tile, part, t, std::min(L, tile.frames.end - t), s);
        }
      }
      s.dvalues.finish(p, p.dvalues, tile, tile.frames);
      for (int64_t t = first; t < tile.frames.end; ++t) {
        store_row<C>(p.element, s.dscores + (t - first) * heads, heads, p.dscores.at(tile.b, t, tile.h));
      }
    }
    for (int64_t i = 0; i < heads; ++i) {
      double* to = p.dbias + (place * p.heads + tile.h + i) * size;
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
