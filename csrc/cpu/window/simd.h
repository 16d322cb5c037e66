// What the tiles of attention add to the vectors of cpu/simd.h. Beside the definitions that those need, the including
// file has
//   SINMDM_ROWS      rows of a score tile, one register each, that stay in registers beside their operands,
//   SINMDM_COLUMNS   registers side by side in the other products.
// No include guard: each set includes it once, and so do the files that build on it.

namespace sinmdm::cpu::window::SINMDM_ISA {

using namespace cpu::SINMDM_ISA;

// Rows of head_dim numbers, cut into panels of kPanel columns: panel p of row r begins at data + (p rows + r) kPanel.
// Rows then lie at one distance whatever the head_dim, which the register tiles have as a constant, and close together:
// in memory the heads of a frame lie between one row of a head and the next. Columns from the head_dim to a whole
// number of registers are zero.
template <typename C>
SINMDM_KERNEL int64_t padded(int64_t dim) {
  return (dim + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

template <typename C>
struct Panels {
  C* data;
  int64_t rows, dim;

  // Rows that a panel is given: its length in bytes leaves a remainder when divided by the 4096 after which addresses
  // share a cache set, so that the panels of one row, and of the buffers beside it, do not push each other out.
  static int64_t spread(int64_t rows) {
    constexpr int64_t turn = 4096 / (kPanel * static_cast<int64_t>(sizeof(C)));
    return (rows + turn - 1) / turn * turn + 5;
  }
  static int64_t size(int64_t rows, int64_t dim) { return (dim + kPanel - 1) / kPanel * kPanel * spread(rows); }
  SINMDM_KERNEL int64_t count() const { return (dim + kPanel - 1) / kPanel; }
  // Columns of a panel: those of the head_dim, and with the zeros that follow them.
  SINMDM_KERNEL int64_t columns(int64_t panel) const { return std::min(kPanel, dim - panel * kPanel); }
  SINMDM_KERNEL int64_t width(int64_t panel) const { return padded<C>(columns(panel)); }
  SINMDM_KERNEL C* at(int64_t panel, int64_t row) const { return data + (panel * spread(rows) + row) * kPanel; }

  SINMDM_KERNEL void load_from(Element element, const char* from, int64_t row) const {
    for (int64_t panel = 0; panel < count(); ++panel) {
      C* to = at(panel, row);
      load_row<C>(element, from + panel * kPanel * bytes_of(element), columns(panel), to);
      for (int64_t d = columns(panel); d < width(panel); ++d) to[d] = 0;
    }
  }

  // Stores a row times `factor`. What is returned is zero where all of it is finite, and NaN elsewhere.
  SINMDM_KERNEL C store_to(Element element, int64_t row, C factor, char* to) const {
    const bool same = sizeof(C) == 8 || element == Element::float32;
    V<C> check{};
    for (int64_t panel = 0; panel < count(); ++panel) {
      C* from = at(panel, row);
      char* target = to + panel * kPanel * bytes_of(element);
      for (int64_t c = 0; c < width(panel); c += kLanes<C>) {
        const V<C> x = load<C>(from + c) * factor;
        check += x * C(0);
        if (same && c + kLanes<C> <= columns(panel)) {
          store<C>(reinterpret_cast<C*>(target) + c, x);
        } else {
          store<C>(from + c, x);
        }
      }
      const int64_t done = same ? columns(panel) / kLanes<C> * kLanes<C> : 0;
      store_row<C>(element, from + done, columns(panel) - done, target + done * bytes_of(element));
    }
    C sum = 0;
    for (int64_t l = 0; l < kLanes<C>; ++l) sum += check[l];
    return sum;
  }

  SINMDM_KERNEL void clear() const { std::fill(data, data + size(rows, dim), C(0)); }
};

// Rows `slots` of `heads` heads from `h` on; those of head i go to row i * stride and on. Frame by frame, because the
// heads of a frame are neighbours in memory, and one long run is read much faster than one short run a frame.
template <typename C>
SINMDM_TARGET void pack(const Problem& p, const Rows& rows, int64_t b, int64_t h, int64_t heads, int64_t n, Range slots,
                        Panels<C> to, int64_t stride) {
  for (int64_t slot = slots.begin; slot < slots.end; ++slot) {
    const int64_t frame = p.frame_of(slot, n);
    for (int64_t i = 0; i < heads; ++i) {
      to.load_from(p.element, rows.at(b, frame, h + i), i * stride + slot - slots.begin);
    }
  }
}

// `count` rows from `first` times `factor` to (dim, width) columns; up to `width` the rest is zero. In squares of one
// register: at each stage rows `step` apart exchange halves of every block of 2 step.
template <typename C>
SINMDM_TARGET void transpose(Panels<C> rows, int64_t first, int64_t count, int64_t width, C factor, C* to) {
  using Int = typename Simd<C>::Int;
  constexpr Int L = kLanes<C>;
  for (int64_t d = 0; d < rows.dim; d += L) {
    for (int64_t row = 0; row < width; row += L) {
      V<C> x[L];
#pragma GCC unroll 16
      for (Int i = 0; i < L; ++i) {
        const bool there = row + i < count;
        x[i] = there ? load<C>(rows.at(d / kPanel, first + row + i) + d % kPanel) * factor : V<C>{};
      }
      I<C> lane;
#pragma GCC unroll 16
      for (Int i = 0; i < L; ++i) lane[i] = i;
#pragma GCC unroll 4
      for (Int step = L / 2; step > 0; step /= 2) {
#pragma GCC unroll 16
        for (Int i = 0; i < L; ++i) {
          if (i & step) continue;
          const I<C> odd = (lane & step) != 0;
          const V<C> a = x[i], b = x[i + step];
          x[i] = __builtin_shuffle(a, b, odd ? lane - step + L : lane);
          x[i + step] = __builtin_shuffle(a, b, odd ? lane + L : lane + step);
        }
      }
#pragma GCC unroll 16
      for (Int i = 0; i < L; ++i) {
        if (d + i < rows.dim) store<C>(to + (d + i) * width + row, x[i]);
      }
    }
  }
}

}  // namespace sinmdm::cpu::window::SINMDM_ISA
