#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "cuda/launch.h"
#include "philox.h"

namespace sinmdm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // the grid's y size ends at 65535; larger work is walked over

// One thread a counter: four normals, stored as one 16-byte write where the rows lie on such.
__global__ void __launch_bounds__(kThreads)
    philox_normal_kernel(uint64_t seed, const int64_t* __restrict__ step, const int64_t* __restrict__ sample,
                         int64_t rows, int64_t elements, float* __restrict__ out) {
  const int64_t groups = (elements + 3) / 4;
  const bool aligned = elements % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  for (int64_t b = blockIdx.y; b < rows; b += gridDim.y) {
    for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < groups;
         g += static_cast<int64_t>(gridDim.x) * kThreads) {
      const Words w =
          philox4x32_10(counter_of(g, static_cast<uint32_t>(step[b]), static_cast<uint32_t>(sample[b])), seed);
      float z[4];
      box_muller(w.x0, w.x1, z[0], z[1]);
      box_muller(w.x2, w.x3, z[2], z[3]);
      float* row = out + b * elements + 4 * g;
      if (aligned) {
        *reinterpret_cast<float4*>(row) = make_float4(z[0], z[1], z[2], z[3]);
      } else {
        for (int64_t i = 0; i < 4 && 4 * g + i < elements; ++i) row[i] = z[i];
      }
    }
  }
}

}  // namespace

void runtime_version(char* buffer) {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  snprintf(buffer, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

const char* error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

int launch_philox_normal(uint64_t seed, const int64_t* step, const int64_t* sample, int64_t rows, int64_t elements,
                         float* out, CUstream_st* stream) {
  if (rows == 0 || elements == 0) return cudaSuccess;
  const int64_t blocks = ((elements + 3) / 4 + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(std::min(blocks, kMaxBlocks)),
                  static_cast<unsigned>(std::min<int64_t>(rows, kMaxBlocks - 1)));
  philox_normal_kernel<<<grid, kThreads, 0, stream>>>(seed, step, sample, rows, elements, out);
  return cudaGetLastError();
}

}  // namespace sinmdm::cuda
