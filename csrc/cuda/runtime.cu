#include <cuda_runtime.h>

#include <cstdio>

#include "cuda/launch.h"

namespace sinmdm::cuda {

void runtime_version(char* buffer) {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  snprintf(buffer, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

const char* error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace sinmdm::cuda
