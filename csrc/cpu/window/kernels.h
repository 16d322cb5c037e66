// The bodies of one instruction set. See cpu/simd.h and cpu/window/simd.h for what the including file defines.

// clang-format off: each builds on those before it
#include "cpu/simd.h"
#include "cpu/softmax.h"
#include "cpu/window/simd.h"
#include "cpu/window/products.h"
#include "cpu/window/forward.h"
#include "cpu/window/backward.h"
// clang-format on

namespace sinmdm::cpu::window::SINMDM_ISA {

// Registers of queries in a strip. One for narrow windows: a strip of W queries computes W - 1 pairs a query that it
// does not need. Two for wide ones: half as many broadcasts a product.
constexpr int64_t kWide = 48;
template <typename C>
constexpr int kNarrow = kLanes<C> >= kTogether ? 1 : kTogether / kLanes<C>;

SINMDM_TARGET void forward(const Forward& p, int64_t begin, int64_t end) {
  if (p.element == Element::float64) return forward_tasks<double, kNarrow<double>>(p, begin, end);
  if (p.size() >= kWide) return forward_tasks<float, 2>(p, begin, end);
  forward_tasks<float, kNarrow<float>>(p, begin, end);
}

SINMDM_TARGET void backward(const Backward& p, int64_t begin, int64_t end) {
  if (p.element == Element::float64) return backward_tasks<double, kNarrow<double>>(p, begin, end);
  if (p.size() >= kWide) return backward_tasks<float, 2>(p, begin, end);
  backward_tasks<float, kNarrow<float>>(p, begin, end);
}

}  // namespace sinmdm::cpu::window::SINMDM_ISA
