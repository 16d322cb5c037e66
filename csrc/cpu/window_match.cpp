// window_match on the CPU: tensors to match::Problems, the choice of instruction set, tasks to threads.

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/tensors.h"
#include "cpu/window_match/problem.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;
using namespace match;

namespace {

const Kernels& kernels() {
#if SINMDM_X86_SETS
  static const Kernels* const sets[] = {&kBaseline, &kAvx2, &kAvx512};
#else
  static const Kernels* const sets[] = {&kBaseline};
#endif
  return *sets[instruction_set()];
}

template <typename Task>
Task with_problem(const Problem& p) {
  Task task;
  static_cast<Problem&>(task) = p;
  return task;
}

int64_t state_bytes(const Problem& p) {
  return Scratch::bytes<double>(p.block() * p.stride()) + Scratch::bytes<double>((p.window + 1) * p.stride()) +
         2 * Scratch::bytes<double>(kMargin + p.stride()) + Scratch::bytes<double>(p.frames + 1);
}

// Before the first row: nothing summed, and nothing can be rebuilt but no frames at all.
State first_state(const Problem& p, Scratch& scratch) {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  State s;
  s.distances = scratch.take<double>(p.block() * p.stride());
  s.suffix = scratch.take<double>((p.window + 1) * p.stride());
  s.prefix = scratch.take<double>(kMargin + p.stride());
  s.cost = scratch.take<double>(kMargin + p.stride());
  s.best = scratch.take<double>(p.frames + 1);
  std::fill_n(s.suffix + p.window * p.stride(), p.stride(), 0.0);
  std::fill_n(s.prefix, kMargin, 0.0);
  std::fill_n(s.cost, kMargin + p.stride(), infinite);
  std::fill_n(s.best, p.window, infinite);
  s.best[0] = 0;
  return s;
}

// The samples of p, from the first row to the last. Targets are packed already where all share one.
void match_together(Problem p, bool pack) {
  Scratch scratch(p.samples * state_bytes(p));
  std::vector<State> states;
  for (int64_t i = 0; i < p.samples; ++i) states.push_back(first_state(p, scratch));
  p.states = states.data();
  if (pack) {
    const auto packing = with_problem<Packing>(p);
    in_parallel(packing, static_cast<double>(p.targets()) * p.target_frames * p.features, kernels().pack);
  }
  auto tiles = with_problem<Tiles>(p);
  auto walk = with_problem<Walk>(p);
  for (int64_t begin = 0; begin < p.frames; begin += p.block()) {
    tiles.begin = walk.begin = begin;
    tiles.rows = walk.rows = std::min(p.block(), p.frames - begin);
    const double pairs = static_cast<double>(p.samples) * walk.rows * p.target_frames;
    in_parallel(tiles, pairs * p.features, kernels().distances);
    in_parallel(walk, pairs * 8, kernels().walk);
  }
}

}  // namespace

// source (n or 1, L, F) and target (n or 1, N, F), contiguous, float32 or float64. To nearest (n, L - window + 1) and,
// with rebuild, cost (n), else (0).
std::tuple<ts::Tensor, ts::Tensor> window_match(const ts::Tensor& source, const ts::Tensor& target, int64_t window,
                                                bool rebuild) {
  const int64_t n = source.size(0) == 1 ? target.size(0) : source.size(0);
  ts::Tensor nearest = ts::new_empty(source, {n, source.size(1) - window + 1});
  ts::Tensor cost = ts::new_empty(source, {rebuild ? n : 0});
  Problem p;
  p.frames = source.size(1), p.target_frames = target.size(1), p.features = source.size(2);
  p.window = window, p.rebuild = rebuild, p.element = element_of(source);
  const int64_t bytes = bytes_of(p.element);
  p.source_step = source.size(0) == 1 ? 0 : p.frames * p.features * bytes;
  p.target_step = target.size(0) == 1 ? 0 : p.target_frames * p.features * bytes;
  // No result depends on how many are worked on together: each has a state of its own.
  const int64_t fit = std::max<int64_t>(1, kMemory / (state_bytes(p) + p.packed_step()));
  const int64_t together = std::min({n, fit, static_cast<int64_t>(ts::get_num_threads())});
  p.samples = together;
  Scratch packed(std::max<int64_t>(1, p.targets() * p.packed_bytes()));
  p.packed = packed.take<char>(p.targets() * p.packed_bytes());
  for (int64_t first = 0; first < n; first += together) {
    p.samples = std::min(together, n - first);
    p.source = static_cast<const char*>(source.const_data_ptr()) + first * p.source_step;
    p.target = static_cast<const char*>(target.const_data_ptr()) + first * p.target_step;
    p.nearest = static_cast<char*>(nearest.mutable_data_ptr()) + first * p.windows() * bytes;
    p.cost = static_cast<char*>(cost.mutable_data_ptr()) + (rebuild ? first * bytes : 0);
    match_together(p, first == 0 || p.target_step != 0);
  }
  return {nearest, cost};
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("window_match_native", TORCH_BOX(&window_match));
}

}  // namespace sinmdm::cpu
