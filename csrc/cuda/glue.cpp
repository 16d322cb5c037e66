// Registers what the CUDA half was built with. Plain C++, as every glue file here: it compiles, links and loads also
// beside a torch without CUDA.
#include "cuda/glue.h"

#include <string>

namespace sinmdm::cuda {

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

}  // namespace sinmdm::cuda
