// The CUDA kernels as plain C++ sees them: no torch and no CUDA header. A launcher returns a cudaError_t.
#pragma once

#include <cstdint>

#include "cuda/element.h"

struct CUstream_st;

namespace sinmdm::cuda {

// "13.0" for the CUDA runtime that was linked in; `buffer` holds at least 16 characters.
void runtime_version(char* buffer);

const char* error_text(int error);

// Diffusion states: (rows, frames, channels) tensors on the current device with any strides, in elements; none where
// `data` is null.
struct State {
  void* data = nullptr;
  int64_t row = 0, frame = 0, channel = 0;
  int64_t next_frame = 0;  // from a frame's last channel to the next one's first
  Element element = Element::float32;
  bool packed = true;  // a row is one run of memory
};

struct Sizes {
  int64_t rows, elements, channels;  // elements = frames * channels
  bool packed;                       // all states are
};

// (rows) int64.
struct Integers {
  const int64_t* data = nullptr;
  int64_t stride = 0;
};

// What names the noise that is drawn; no `step` where none is.
struct Draw {
  uint64_t seed = 0;
  Integers step, sample, frame;
};

int launch_philox_normal(const Sizes& sizes, const Draw& draw, const State& out, CUstream_st* stream);

// coefficients (rows, 2) contiguous; out may be x0; noise_out may be absent, and noise where it is drawn.
struct QSample {
  Sizes sizes;
  Draw draw;
  State x0, noise;
  const float* coefficients;
  State out, noise_out;
};
int launch_q_sample(const QSample& call, CUstream_st* stream);

// coefficients (rows, 10) contiguous; out and x0_out may each be one of the operands, of which only x_t and
// model_output have to be there, and known and mask with one another. Only model_output and unconditional may be of
// other numbers than float32.
struct DenoiseStep {
  Sizes sizes;
  Draw draw;
  State x_t, model_output, unconditional, known, mask, previous_x0, noise;
  const float* coefficients;
  bool clips;
  State out, x0_out;
};
int launch_denoise_step(const DenoiseStep& call, CUstream_st* stream);

}  // namespace sinmdm::cuda
