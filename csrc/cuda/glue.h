// What the registrations of the CUDA ops share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/context.h"
#include "cuda/launch.h"

namespace sinmdm::cuda {

namespace ts = torch::stable;

inline void check_launch(const char* kernel, int error) {
  STD_TORCH_CHECK(error == 0, "sinmdm: ", kernel, " could not be launched: ", error_text(error));
}

}  // namespace sinmdm::cuda
