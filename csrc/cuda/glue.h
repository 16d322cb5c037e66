// What the registrations of the CUDA ops share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "cuda/context.h"
#include "cuda/element.h"
#include "cuda/launch.h"

namespace sinmdm::cuda {

namespace ts = torch::stable;

inline void check_launch(const char* kernel, int error) {
  STD_TORCH_CHECK(error == 0, "sinmdm: ", kernel, " could not be launched: ", error_text(error));
}

inline Element element_of(const ts::Tensor& x) {
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
inline torch::headeronly::ScalarType computed_in(const ts::Tensor& x) {
  using torch::headeronly::ScalarType;
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// x (B, T, H, D) with neighbouring numbers along its last axis.
inline ts::Tensor unit_stride(const ts::Tensor& x) {
  return x.size(3) > 1 && x.stride(3) != 1 ? ts::contiguous(x) : x;
}

inline std::optional<ts::Tensor> packed(const std::optional<ts::Tensor>& x) {
  return x.has_value() && !x->is_contiguous() ? std::optional<ts::Tensor>(ts::contiguous(*x)) : x;
}

}  // namespace sinmdm::cuda
