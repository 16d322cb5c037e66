// The CUDA kernels as plain C++ sees them: no torch and no CUDA header. A launcher returns a cudaError_t.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sinmdm::cuda {

// "13.0" for the CUDA runtime that was linked in; `buffer` holds at least 16 characters.
void runtime_version(char* buffer);

const char* error_text(int error);

// out (rows, frames, channels) contiguous float32; step, sample, frame (rows) int64; all on the current device.
int launch_philox_normal(uint64_t seed, const int64_t* step, const int64_t* sample, const int64_t* frame, int64_t rows,
                         int64_t frames, int64_t channels, float* out, CUstream_st* stream);

}  // namespace sinmdm::cuda
