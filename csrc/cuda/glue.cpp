// Registers the CUDA bodies of the native ops. Plain C++: it compiles, links and loads also beside a torch without
// CUDA.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "cuda/launch.h"

// Lives in libtorch_cuda, which a CPU torch does not have: weak, so that the library loads there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace sinmdm::cuda {

namespace ts = torch::stable;

namespace {

CUstream_st* current_stream(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "sinmdm: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<CUstream_st*>(stream);
}

void check_launch(const char* kernel, int error) {
  STD_TORCH_CHECK(error == 0, "sinmdm: ", kernel, " could not be launched: ", error_text(error));
}

}  // namespace

void philox_normal(int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame,
                   ts::Tensor out) {
  const ts::accelerator::DeviceGuard guard(out.get_device_index());
  check_launch(
      "philox_normal",
      launch_philox_normal(static_cast<uint64_t>(seed), step.const_data_ptr<int64_t>(),
                           sample.const_data_ptr<int64_t>(), frame.const_data_ptr<int64_t>(), out.size(0), out.size(1),
                           out.size(2), out.mutable_data_ptr<float>(), current_stream(out.get_device_index())));
}

std::string build() {
  char version[16];
  runtime_version(version);
  return version;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sinmdm, m) {
  m.def("cuda_build() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(sinmdm, CompositeExplicitAutograd, m) {
  m.impl("cuda_build", TORCH_BOX(&build));
}
STABLE_TORCH_LIBRARY_IMPL(sinmdm, CUDA, m) {
  m.impl("philox_normal_native", TORCH_BOX(&philox_normal));
}

}  // namespace sinmdm::cuda
