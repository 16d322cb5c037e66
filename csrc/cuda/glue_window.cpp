// Registers window_attention for CUDA: tensors to a window::Problem, results and scratch allocated.
#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "cuda/glue.h"
#include "cuda/window/problem.h"

namespace sinmdm::cuda {

using torch::headeronly::ScalarType;
using namespace window;

namespace {

constexpr int64_t kMostPositions = int64_t{1} << 30;  // frames and window together: positions are of 32 bits

struct Options {
  int64_t left, right;
  double scale;
  int64_t boundary;
  double dropout_p;
  int64_t seed;
};

// The kernels read operands through the pointers that they write results through, and write through the results' only.
Rows rows_of(const ts::Tensor& x, bool& aligned) {
  const auto bytes = static_cast<int64_t>(x.element_size());
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride * bytes % 16 == 0; };
  aligned = aligned && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.size(3) * bytes % 16 == 0 &&
            fits(x.size(0), x.stride(0)) && fits(x.size(1), x.stride(1)) && fits(x.size(2), x.stride(2));
  return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

void fill(Problem& p, const ts::Tensor& q, const ts::Tensor& k, const ts::Tensor& v,
          const std::optional<ts::Tensor>& bias, const std::optional<ts::Tensor>& lengths, const Options& options) {
  int64_t left = options.left, right = options.right;
  const int64_t frames = q.size(1);
  p.boundary = static_cast<Boundary>(options.boundary);
  if (p.boundary == Boundary::clip) {  // what lies beyond either end is never seen
    left = std::min(left, frames - 1), right = std::min(right, frames - 1);
  }
  STD_TORCH_CHECK(frames + left + right < kMostPositions, "frames + left + right must be below 2**30, got ",
                  frames + left + right);
  const int64_t rows = q.size(0) * (frames + 64) * q.size(2);
  STD_TORCH_CHECK(rows < int64_t{1} << 34, "batch * frames * heads must be below 2**34, got about ", rows);
  p.batch = static_cast<int>(q.size(0)), p.frames = static_cast<int>(frames), p.heads = static_cast<int>(q.size(2));
  p.dim = static_cast<int>(q.size(3)), p.group = static_cast<int>(q.size(2) / k.size(2));
  p.left = static_cast<int>(left), p.size = static_cast<int>(left + right + 1);
  const bool shift = p.boundary == Boundary::shift;
  p.reach = shift ? p.size - 1 : p.left, p.columns = shift ? 2 * p.size - 1 : p.size;
  p.cut = static_cast<int>(options.left - left);
  p.element = element_of(q);
  STD_TORCH_CHECK(SINMDM_WINDOW_FLOAT64 || p.element != Element::float64,
                  "window_attention in CUDA C++ takes float16, bfloat16, float32, not float64");
  p.aligned = true, p.scale = Factor(options.scale);
  p.score_scale = Factor(options.scale * 1.4426950408889634);
  p.q = rows_of(q, p.aligned), p.k = rows_of(k, p.aligned), p.v = rows_of(v, p.aligned);
  p.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
  p.bias_float32 = bias.has_value() && bias->scalar_type() == ScalarType::Float;
  p.bias_head = bias.has_value() ? bias->stride(0) : 0;
  p.lengths = lengths.has_value() ? lengths->const_data_ptr() : nullptr;
  p.lengths_int32 = lengths.has_value() && lengths->scalar_type() == ScalarType::Int;
  const double threshold = std::nearbyint(options.dropout_p * 0x1p32);
  p.drops = threshold > 0, p.limit = p.drops ? static_cast<uint32_t>(threshold - 1) : 0;
  p.keep_scale = Factor(1 / (1 - options.dropout_p)), p.seed = static_cast<uint64_t>(options.seed);
}

const Launchers& launchers_of(const Problem& p) {
#if SINMDM_WINDOW_FLOAT64
  if (p.element == Element::float64) return kFloat64;
#endif
  return p.element == Element::float32 ? kFloat32 : p.element == Element::float16 ? kFloat16 : kBfloat16;
}

}  // namespace

// q (B, T, H, D), k, v (B, T, H_kv, D), any strides; rel_bias (H, columns) in q's dtype or float32;
// lengths (B), int32 or int64. To out (B, T, H, D) and lse (B, T, H), contiguous.
std::tuple<ts::Tensor, ts::Tensor> window_attention(const ts::Tensor& q_any, const ts::Tensor& k_any,
                                                    const ts::Tensor& v_any,
                                                    const std::optional<ts::Tensor>& rel_bias_any,
                                                    const std::optional<ts::Tensor>& lengths_any, int64_t left,
                                                    int64_t right, double scale, int64_t boundary, double dropout_p,
                                                    int64_t seed) {
  const Context context(q_any);
  const ts::Tensor q = unit_stride(q_any), k = unit_stride(k_any), v = unit_stride(v_any);
  const std::optional<ts::Tensor> lengths = packed(lengths_any), rel_bias = packed(rel_bias_any);
  ts::Tensor out = ts::new_empty(q, q.sizes());
  ts::Tensor lse = ts::new_empty(q, {q.size(0), q.size(1), q.size(2)}, computed_in(q));
  if (q.size(0) == 0) return {out, lse};
  Forward p;
  fill(p, q, k, v, rel_bias, lengths, {left, right, scale, boundary, dropout_p, seed});
  p.out = rows_of(out, p.aligned), p.lse = lse.mutable_data_ptr();
  check_launch("window_attention", launchers_of(p).forward(p, context.stream));
  return {out, lse};
}

// dq, dk, dv like q, k, v, contiguous, and the bias gradient (H, columns) in the dtype of the computation (empty unless
// bias_grad).
std::tuple<ts::Tensor, ts::Tensor, ts::Tensor, ts::Tensor> window_attention_backward(
    const ts::Tensor& grad_out_any, const std::optional<ts::Tensor>& grad_lse_any, const ts::Tensor& q_any,
    const ts::Tensor& k_any, const ts::Tensor& v_any, const std::optional<ts::Tensor>& rel_bias_any,
    const std::optional<ts::Tensor>& lengths_any, const ts::Tensor& out_any, const ts::Tensor& lse_any, int64_t left,
    int64_t right, double scale, int64_t boundary, double dropout_p, int64_t seed, bool bias_grad) {
  const Context context(q_any);
  const ts::Tensor grad_out = unit_stride(grad_out_any), out = unit_stride(out_any), lse = ts::contiguous(lse_any);
  const ts::Tensor q = unit_stride(q_any), k = unit_stride(k_any), v = unit_stride(v_any);
  const std::optional<ts::Tensor> lengths = packed(lengths_any), rel_bias = packed(rel_bias_any);
  const std::optional<ts::Tensor> grad_lse = packed(grad_lse_any);
  ts::Tensor dq = ts::new_empty(q, q.sizes()), dk = ts::new_empty(k, k.sizes()), dv = ts::new_empty(v, v.sizes());
  const ScalarType computed = computed_in(q);
  if (q.size(0) == 0) {
    return {dq, dk, dv, bias_grad ? ts::new_zeros(q, rel_bias->sizes(), computed) : ts::new_empty(q, {0}, computed)};
  }
  STD_TORCH_CHECK(!bias_grad || rel_bias->size(1) < kMostPositions << 1, "rel_bias must have below 2**31 columns, got ",
                  bias_grad ? rel_bias->size(1) : 0);
  Backward p;
  fill(p, q, k, v, rel_bias, lengths, {left, right, scale, boundary, dropout_p, seed});
  p.grad_out = rows_of(grad_out, p.aligned), p.out = rows_of(out, p.aligned);
  p.dq = rows_of(dq, p.aligned), p.dk = rows_of(dk, p.aligned), p.dv = rows_of(dv, p.aligned);
  p.lse = const_cast<void*>(lse.const_data_ptr());
  p.grad_lse = grad_lse.has_value() ? grad_lse->const_data_ptr() : nullptr;
  const int64_t numbers = launchers_of(p).partial_numbers(p);
  ts::Tensor delta = q.element_size() > 2 ? ts::new_empty(lse, lse.sizes()) : ts::new_empty(lse, {0});
  ts::Tensor partial = ts::new_empty(lse, {bias_grad ? numbers : 0});
  ts::Tensor dbias = bias_grad ? ts::new_empty(lse, rel_bias->sizes()) : ts::new_empty(lse, {0});
  p.delta = delta.mutable_data_ptr();
  p.partial = bias_grad ? partial.mutable_data_ptr() : nullptr;
  p.dbias = dbias.mutable_data_ptr(), p.width = bias_grad ? static_cast<int>(rel_bias->size(1)) : 0;
  check_launch("window_attention_backward", launchers_of(p).backward(p, context.stream));
  return {dq, dk, dv, dbias};
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, SINMDM_DEVICE, m) {
  m.impl("window_attention_native", TORCH_BOX(&window_attention));
  m.impl("window_attention_backward_native", TORCH_BOX(&window_attention_backward));
}

}  // namespace sinmdm::cuda
