// The device and stream of a call. Plain C++: no CUDA header, and it loads also beside a torch without CUDA.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

struct CUstream_st;

// The dispatch key of the ops; tests/cuda_emulation/cuda/context.h has another.
#define SINMDM_DEVICE CUDA
// Whether window_attention takes float64: on a GPU that is the reference's, in the emulation the tests of its contract.
#define SINMDM_WINDOW_FLOAT64 0

// Lives in libtorch_cuda, which a CPU torch does not have: weak, so that the library loads there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace sinmdm::cuda {

// Makes the device of `x` the current one while it lives, and finds torch's current stream there.
struct Context {
  explicit Context(const torch::stable::Tensor& x) : guard(x.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "sinmdm: this torch has no CUDA");
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &current));
    stream = static_cast<CUstream_st*>(current);
  }

  torch::stable::accelerator::DeviceGuard guard;
  CUstream_st* stream = nullptr;
};

}  // namespace sinmdm::cuda
