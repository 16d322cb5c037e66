// What the ops on sequences need of their tensors: torch's view of an operand to that of cpu/operands.h.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <vector>

#include "cpu/operands.h"

namespace sinmdm::cpu {

constexpr double kLeastWork = 1 << 16;  // multiply-adds that are worth waking a thread for

inline Element element_of(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::Double:
      return Element::float64;
    case ScalarType::Half:
      return Element::float16;
    default:
      return Element::bfloat16;
  }
}

// The dtype that half types are computed in, too.
inline torch::headeronly::ScalarType computed_in(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// x with neighbouring numbers along its last axis.
inline torch::stable::Tensor unit_stride(const torch::stable::Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) > 1 && x.stride(last) != 1 ? torch::stable::contiguous(x) : x;
}

// Of x (batch, frames, heads, ...). The kernels read operands through the pointers that they write results through, and
// write through the results' only.
inline Rows rows_of(const torch::stable::Tensor& x) {
  const int64_t bytes = static_cast<int64_t>(x.element_size());
  return {static_cast<char*>(const_cast<void*>(x.const_data_ptr())), x.stride(0) * bytes, x.stride(1) * bytes,
          x.stride(2) * bytes};
}

// lengths (batch), int32 or int64, each from `least` to `frames`; empty where there are none. Python looked at them
// already, but for calls from a compiled graph.
inline std::vector<int64_t> read_lengths(const std::optional<torch::stable::Tensor>& lengths, int64_t batch,
                                         int64_t least, int64_t frames) {
  std::vector<int64_t> real(lengths.has_value() ? batch : 0);
  for (size_t b = 0; b < real.size(); ++b) {
    const int64_t at = static_cast<int64_t>(b) * lengths->stride(0);
    real[b] = lengths->scalar_type() == torch::headeronly::ScalarType::Long ? lengths->const_data_ptr<int64_t>()[at]
                                                                            : lengths->const_data_ptr<int32_t>()[at];
    STD_TORCH_CHECK(real[b] >= least && real[b] <= frames, "lengths must be from ", least, " to ", frames, ", got ",
                    real[b]);
  }
  return real;
}

// Calls body(data) with x's numbers as a pointer to their type.
template <typename Body>
void with_typed(const torch::stable::Tensor& x, const Body& body) {
  const void* data = x.const_data_ptr();
  switch (element_of(x)) {
    case Element::float32:
      return body(static_cast<const float*>(data));
    case Element::float64:
      return body(static_cast<const double*>(data));
    case Element::float16:
      return body(static_cast<const c10::Half*>(data));
    default:
      return body(static_cast<const c10::BFloat16*>(data));
  }
}

// The tasks of p to threads; `work` is what they do in all, in multiply-adds.
template <typename P>
void in_parallel(const P& p, double work, void (*body)(const P&, int64_t, int64_t)) {
  if (p.tasks() == 0) return;
  const int64_t grain = std::max<int64_t>(1, static_cast<int64_t>(kLeastWork * p.tasks() / std::max(work, 1.0)));
  torch::stable::parallel_for(0, p.tasks(), grain, [&p, body](int64_t begin, int64_t end) { body(p, begin, end); });
}

}  // namespace sinmdm::cpu
