// Registers the CUDA half itself: what it was built with, and the noise. Plain C++, as every glue file here: it compiles,
// links and loads also beside a torch without CUDA.
#include <string>

#include "cuda/glue.h"

namespace sinmdm::cuda {

void philox_normal(int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame,
                   ts::Tensor out) {
  const Context context(out);
  check_launch("philox_normal",
               launch_philox_normal(static_cast<uint64_t>(seed), step.const_data_ptr<int64_t>(),
                                    sample.const_data_ptr<int64_t>(), frame.const_data_ptr<int64_t>(), out.size(0),
                                    out.size(1), out.size(2), out.mutable_data_ptr<float>(), context.stream));
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
STABLE_TORCH_LIBRARY_IMPL(sinmdm, SINMDM_DEVICE, m) {
  m.impl("philox_normal_native", TORCH_BOX(&philox_normal));
}

}  // namespace sinmdm::cuda
