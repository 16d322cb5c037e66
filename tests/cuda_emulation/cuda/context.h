// csrc/cuda/context.h for emulated kernels: the ops are registered for tensors of the CPU, which has no streams.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

struct CUstream_st;

#define SINMDM_DEVICE CPU
#define SINMDM_WINDOW_FLOAT64 1

namespace sinmdm::cuda {

struct Context {
  explicit Context(const torch::stable::Tensor&) {}
  CUstream_st* stream = nullptr;
};

}  // namespace sinmdm::cuda
