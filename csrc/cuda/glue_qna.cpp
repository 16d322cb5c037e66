// Registers qna_attention for CUDA: tensors to a qna::Problem, results and scratch allocated.
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "cuda/glue.h"
#include "cuda/qna/problem.h"

namespace sinmdm::cuda {

namespace {

using torch::headeronly::ScalarType;
using namespace qna;

struct Options {
  int64_t left, right, stride;
  bool circular;
};

// Of x (B, T, H, ...). The kernels write through the results' pointers only.
Rows rows_of(const ts::Tensor& x) {
  const auto bytes = static_cast<int64_t>(x.element_size());
  bool aligned =
      x.dim() == 4 && x.size(3) * bytes % 16 == 0 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int64_t axis = 0; axis < 3; ++axis) aligned = aligned && (x.size(axis) <= 1 || x.stride(axis) * bytes % 16 == 0);
  return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2), aligned};
}

// Fills p in. Returns how many bias columns are cut off before its first: of offsets that no two frames are apart.
int64_t fill(Problem& p, const ts::Tensor& scores, const ts::Tensor& values, const ts::Tensor& bias,
             const std::optional<ts::Tensor>& lengths, const Options& options) {
  p.batch = values.size(0), p.frames = values.size(1);
  p.heads = static_cast<int>(values.size(2)), p.dim = static_cast<int>(values.size(3));
  p.left = options.left, p.right = options.right, p.circular = options.circular;
  if (!p.circular) {  // what lies beyond either end is never seen
    p.left = std::min(p.left, p.frames - 1), p.right = std::min(p.right, p.frames - 1);
  }
  p.size = p.left + p.right + 1;
  p.stride = std::min(options.stride, p.frames), p.outputs = (p.frames + p.stride - 1) / p.stride;
  p.element = element_of(values);
  p.scores = rows_of(scores), p.values = rows_of(values);
  const int64_t cut = options.left - p.left;
  p.bias_float32 = bias.scalar_type() == ScalarType::Float;
  p.bias_head = bias.stride(0), p.bias_column = bias.stride(1);
  p.bias =
      static_cast<const char*>(bias.const_data_ptr()) + cut * p.bias_column * static_cast<int64_t>(bias.element_size());
  p.lengths = lengths.has_value() ? lengths->const_data_ptr() : nullptr;
  p.lengths_int32 = lengths.has_value() && lengths->scalar_type() == ScalarType::Int;
  return cut;
}

// scores (B, T, H), values (B, T, H, D), rel_bias (H, K) in values' dtype or float32, any strides; lengths (B), int32
// or int64. To (B, ceil(T / stride), H, D), contiguous.
ts::Tensor qna_attention(const ts::Tensor& scores, const ts::Tensor& values_any, const ts::Tensor& rel_bias,
                         const std::optional<ts::Tensor>& lengths_any, int64_t left, int64_t right, int64_t stride,
                         int64_t boundary) {
  const Context context(values_any);
  const ts::Tensor values = unit_stride(values_any);
  const std::optional<ts::Tensor> lengths = packed(lengths_any);
  Forward p;
  fill(p, scores, values, rel_bias, lengths, {left, right, stride, boundary != 0});
  ts::Tensor out = ts::new_empty(values, {p.batch, p.outputs, values.size(2), values.size(3)});
  if (p.batch == 0) return out;
  p.out = rows_of(out);
  check_launch("qna_attention", launch_forward(p, context.stream));
  return out;
}

// Gradients of scores and values, contiguous, and of rel_bias in the dtype of the computation.
std::tuple<ts::Tensor, ts::Tensor, ts::Tensor> qna_attention_backward(
    const ts::Tensor& grad_out_any, const ts::Tensor& scores, const ts::Tensor& values_any, const ts::Tensor& rel_bias,
    const std::optional<ts::Tensor>& lengths_any, int64_t left, int64_t right, int64_t stride, int64_t boundary) {
  const Context context(values_any);
  const ts::Tensor grad_out = unit_stride(grad_out_any), values = unit_stride(values_any);
  const std::optional<ts::Tensor> lengths = packed(lengths_any);
  Backward p;
  const int64_t cut = fill(p, scores, values, rel_bias, lengths, {left, right, stride, boundary != 0});
  ts::Tensor dscores = ts::new_empty(scores, scores.sizes()), dvalues = ts::new_empty(values, values.sizes());
  const ScalarType computed = computed_in(values);
  const bool all = p.batch > 0 && p.size == rel_bias.size(1);  // or some columns no query meets
  ts::Tensor dbias =
      all ? ts::new_empty(values, rel_bias.sizes(), computed) : ts::new_zeros(values, rel_bias.sizes(), computed);
  if (p.batch == 0) return {dscores, dvalues, dbias};
  ts::Tensor scratch = ts::new_empty(values, {scratch_numbers(p)}, computed);
  p.grad_out = rows_of(grad_out), p.dvalues = rows_of(dvalues);
  p.dscores = dscores.mutable_data_ptr(), p.scratch = scratch.mutable_data_ptr();
  p.dbias = static_cast<char*>(dbias.mutable_data_ptr()) + cut * static_cast<int64_t>(dbias.element_size());
  p.dbias_head = dbias.stride(0);
  check_launch("qna_attention_backward", launch_backward(p, context.stream));
  return {dscores, dvalues, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sinmdm, SINMDM_DEVICE, m) {
  m.impl("qna_attention_native", TORCH_BOX(&qna_attention));
  m.impl("qna_attention_backward_native", TORCH_BOX(&qna_attention_backward));
}

}  // namespace sinmdm::cuda
