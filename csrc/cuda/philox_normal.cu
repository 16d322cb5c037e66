#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "philox.h"

namespace sinmdm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // the grid's y size ends at 65535; larger work is walked over

// One thread a counter: four normals, stored as one 16-byte write where the row's counters lie on such.
__global__ void __launch_bounds__(kThreads)
    philox_normal_kernel(uint64_t seed, const int64_t* __restrict__ step, const int64_t* __restrict__ sample,
                         const int64_t* __restrict__ frame, int64_t rows, int64_t frames, int64_t channels,
                         float* __restrict__ out) {
  const int64_t elements = frames * channels;
  for (int64_t b = blockIdx.y; b < rows; b += gridDim.y) {
    const uint64_t first = static_cast<uint64_t>(frame[b]) * static_cast<uint64_t>(channels);
    const int64_t skipped = static_cast<int64_t>(first % 4);  // normals of the first counter that come before the row
    const int64_t groups = (skipped + elements + 3) / 4;
    float* row = out + b * elements - skipped;
    const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < groups;
         g += static_cast<int64_t>(gridDim.x) * kThreads) {
      const Words w = philox4x32_10(
          counter_of(first / 4 + g, static_cast<uint32_t>(step[b]), static_cast<uint32_t>(sample[b])), seed);
      float z[4];
      box_muller(w.x0, w.x1, z[0], z[1]);
      box_muller(w.x2, w.x3, z[2], z[3]);
      const int64_t begin = 4 * g, end = skipped + elements;
      if (aligned && begin >= skipped && begin + 4 <= end) {
        *reinterpret_cast<float4*>(row + begin) = make_float4(z[0], z[1], z[2], z[3]);
      } else {
        for (int64_t i = begin; i < begin + 4; ++i) {
          if (i >= skipped && i < end) row[i] = z[i - begin];
        }
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

int launch_philox_normal(uint64_t seed, const int64_t* step, const int64_t* sample, const int64_t* frame, int64_t rows,
                         int64_t frames, int64_t channels, float* out, CUstream_st* stream) {
  if (rows == 0 || frames * channels == 0) return cudaSuccess;
  const int64_t blocks = (frames * channels / 4 + 1 + kThreads) / kThreads;
  const dim3 grid(static_cast<unsigned>(std::min(blocks, kMaxBlocks)),
                  static_cast<unsigned>(std::min<int64_t>(rows, kMaxBlocks - 1)));
  return launch(philox_normal_kernel, grid, kThreads, 0, stream, seed, step, sample, frame, rows, frames, channels, out);
}

}  // namespace sinmdm::cuda
