// The loops over blocks of a diffusion state that are compiled for several sets of instructions: noise/kernels.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace sinmdm::cpu::noise {

constexpr int64_t kCounters = 16;  // what the widest set computes side by side

// One row of coefficients: kernels/schedule.py, STEP_COLUMNS.
struct Step {
  float x_to_x0, model_to_x0, unconditional_to_x0, limit, scale;
  float of_x0, of_raw, of_x, of_previous, of_noise;
};

// Runs of a state's elements. Null are operands that are not given; `mask` is where `known` is. A result may lie
// exactly where an operand does: each element is read before it is written.
struct States {
  const float *x, *model, *unconditional, *known, *mask, *previous, *z;
  float *out, *x0;
};

struct Kernels {
  // z[0 .. 4 groups): the normals of the counters first, first + 1, ... of a draw.
  void (*normals)(uint64_t seed, uint64_t first, uint32_t step, uint32_t sample, int64_t groups, float* z);
  void (*add_noise)(float signal, float sigma, const float* x, const float* z, int64_t count, float* out);
  void (*denoise)(const Step& coefficients, bool clips, const States& states, int64_t count);
  void (*widen_halves)(bool brain, const uint16_t* from, int64_t count, float* to);
};

extern const Kernels kBaseline, kAvx2, kAvx512;

}  // namespace sinmdm::cpu::noise
