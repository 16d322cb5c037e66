// qna_attention on the CPU: tensors to a qna::Problem, the choice of instruction set, tasks to threads.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/isa.h"
#include "cpu/qna/problem.h"
#include "cpu/tensors.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;
using torch::headeronly::ScalarType;
using namespace qna;

namespace {

const Kernels& kernels() {
#if SINMDM_X86_SETS
  static const Kernels* const sets[] = {&kBaseline, &kAvx2, &kAvx512};
#else
  static const Kernels* const sets[] = {&kBaseline};
#endif
  return *sets[instruction_set()];
}

struct Options {
  int64_t left, right, stride;
  Boundary boundary;
};

// Calls body(problem filled in but for the results), with what the problem points at alive. C is the dtype of the
// computation.
template <typename C, typename P, typename Body>
void with_problem(const ts::Tensor& scores, const ts::Tensor& values_any, const ts::Tensor& bias,
                  const std::optional<ts::Tensor>& lengths, const Options& options, const Body& body) {
  const ts::Tensor values = unit_stride(values_any);
  P p;
  p.batch = values.size(0), p.frames = values.size(1), p.heads = values.size(2), p.dim = values.size(3);
  p.left = options.left, p.right = options.right, p.stride = options.stride, p.boundary = options.boundary;
  if (p.boundary == Boundary::clip) {  // what lies beyond either end is never seen
    p.left = std::min(p.left, p.frames - 1), p.right = std::min(p.right, p.frames - 1);
  }
  p.cut = options.left - p.left;
  p.together = heads_together(p.heads, p.dim, p.size());
  p.element = element_of(values);
  p.scores = rows_of(scores), p.values = rows_of(values);
  const std::vector<int64_t> real = read_lengths(lengths, p.batch, 0, p.frames);
  p.lengths = lengths.has_value() ? real.data() : nullptr;
  std::vector<C> table(p.heads * p.size());
  with_typed(bias, [&](const auto* data) {
    for (int64_t i = 0; i < p.heads * p.size(); ++i) {
      const int64_t column = p.cut + i % p.size();
      table[i] = static_cast<C>(data[i / p.size() * bias.stride(0) + column * bias.stride(1)]);
    }
  });
  p.bias = table.data();
  body(p);
}

template <typename P>
double terms(const P& p) {
  return static_cast<double>(p.batch) * p.outputs() * p.heads * std::min(p.size(), p.frames) * (p.dim + 16);
}

template <typename C>
void run_forward(const ts::Tensor& scores, const ts::Tensor& values, const ts::Tensor& bias,
                 const std::optional<ts::Tensor>& lengths, const Options& options, ts::Tensor& out) {
  with_problem<C, Forward>(scores, values, bias, lengths, options, [&](Forward& p) {
    p.out = rows_of(out);
    in_parallel(p, terms(p), kernels().forward);
  });
}

template <typename C>
void run_backward(const ts::Tensor& grad_out_any, const ts::Tensor& scores, const ts::Tensor& values,
                  const ts::Tensor& bias, const std::optional<ts::Tensor>& lengths, const Options& options,
                  ts::Tensor& dscores, ts::Tensor& dvalues, ts::Tensor& dbias) {
  const ts::Tensor grad_out = unit_stride(grad_out_any);
  with_problem<C, Backward>(scores, values, bias, lengths, options, [&](Backward& p) {
    p.grad_out = rows_of(grad_out), p.dscores = rows_of(dscores), p.dvalues = rows_of(dvalues);
    const int64_t size = p.size(), parts = p.batch * p.tiles();
    std::vector<double> partial(parts * p.heads * size);
    p.dbias = partial.data();
    in_parallel(p, 4 * terms(p), kernels().backward);
    // The parts are added up in the order of the frames, whoever computed them. Columns that were cut off the window,
    // of offsets that no two frames are apart, are 0.
    std::vector<double> sums(p.heads * size);
    for (int64_t part = 0; part < parts; ++part) {
      const double* row = partial.data() + part * p.heads * size;
      for (int64_t i = 0; i < p.heads * size; ++i) sums[i] += row[i];
    }
    const int64_t width = dbias.size(1);
    C* total = static_cast<C*>(dbias.mutable_data_ptr());
    std::fill(total, total + p.heads * width, C(0));
    for (int64_t i = 0; i < p.heads * size; ++i) {
      total[i / size * width + p.cut + i % size] = static_cast<C>(sums[i]);
    }
  });
}

}  // namespace

// scores (B, T, H), values (B, T, H, D), rel_bias (H, K) in any dtype, any strides; lengths (B), int32 or int64.
// To (B, ceil(T / stride), H, D), contiguous.
ts::Tensor qna_attention(const ts::Tensor& scores, const ts::Tensor& values, const ts::Tensor& rel_bias,
                         const std::optional<ts::Tensor>& lengths, int64_t left, int64_t right, int64_t stride,
                         int64_t boundary) {
  const Options options{left, right, stride, static_cast<Boundary>(boundary)};
  const int64_t outputs = (values.size(1) + stride - 1) / stride;
  ts::Tensor out = ts::new_empty(values, {values.size(0), outputs, values.size(2), values.size(3)});
  if (values.scalar_type() == ScalarType::Double) {
    run_forward<double>(scores, values, rel_bias, lengths, options, out);
  } else {
    run_forward<float>(scores, values, rel_bias, lengths, options, out);
  }
  return out;
}

// Gradients of scores and values, contiguous, and of rel_bias in the dtype of the computation.
std::tuple<ts::Tensor, ts::Tensor, ts::Tensor> qna_attention_backward(
    const ts::Tensor& grad_out, const ts::Tensor& scores, const ts::Tensor& values, const ts::Tensor& rel_bias,
    const std::optional<ts::Tensor>& lengths, int64_t left, int64_t right, int64_t stride, int64_t boundary) {
  const Options options{left, right, stride, static_cast<Boundary>(boundary)};
  ts::Tensor dscores = ts::new_empty(scores, scores.sizes()), dvalues = ts::new_empty(values, values.sizes());
  ts::Tensor dbias = ts::new_empty(values, rel_bias.sizes(), computed_in(values));
  if (values.scalar_type() == ScalarType::Double) {
    run_backward<double>(grad_out, scores, values, rel_bias, lengths, options, dscores, dvalues, dbias);
  } else {
    run_backward<float>(grad_out, scores, values, rel_bias, lengths, options, dscores, dvalues, dbias);
  }
  return {dscores, dvalues, dbias};
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("qna_attention_native", TORCH_BOX(&qna_attention));
  m.impl("qna_attention_backward_native", TORCH_BOX(&qna_attention_backward));
}

}  // namespace sinmdm::cpu
