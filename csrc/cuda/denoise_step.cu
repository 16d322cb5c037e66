#include "cuda/state.h"

namespace sinmdm::cuda {

namespace {

// A row's coefficients: kernels/schedule.py's STEP_COLUMNS.
struct Step {
  float x_to_x0, model_to_x0, unconditional_to_x0, limit, scale, of_x0, of_raw, of_x, of_previous, of_noise;
};

// A thread reads all of its elements before it writes any: a result may be one of the operands. Terms are added as
// operands come, so that few are held at a time, and fused in so many words: how the operands lie, and which others
// there are, makes no difference to the bits. Bytes an element: 12 for x_t, model_output and out, 4 more for each other
// state.
template <bool kWhole>
__device__ __forceinline__ void make_step(const DenoiseStep& call, const Part<kWhole>& part) {
  const Step& c = reinterpret_cast<const Step*>(call.coefficients)[part.row];
  Groups x, model, x0, result;
  load(call.x_t, part, x);
  load_any(call.model_output, part, model);
  const auto start = [&](int j, int i) {
    x0[j][i] = fmaf(c.model_to_x0, model[j][i], c.x_to_x0 * x[j][i]);
    result[j][i] = c.of_x * x[j][i];
  };
  const bool noisy = with_noise(call.draw, call.noise, part, [&](int j, const float (&z)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      start(j, i);
      result[j][i] = fmaf(c.of_noise, z[i], result[j][i]);
    }
  });
  if (!noisy) each(start);
  if (given(call.unconditional)) {
    load_any(call.unconditional, part, model);
    each([&](int j, int i) { x0[j][i] = fmaf(c.unconditional_to_x0, model[j][i], x0[j][i]); });
  }
  if (call.clips) {
    if (c.of_raw != 0.0f) {  // the raw x0 may be infinite where the clipped one is not
      each([&](int j, int i) { result[j][i] = fmaf(c.of_raw, x0[j][i], result[j][i]); });
    }
    const float scale = c.limit == c.limit ? c.scale : c.limit;  // a limit of NaN makes all NaN
    each([&](int j, int i) {
      const float above = x0[j][i] < -c.limit ? -c.limit : x0[j][i];  // comparisons are false for NaN, which stays
      x0[j][i] = (above > c.limit ? c.limit : above) * scale;
    });
  }
  if (given(call.known)) {
    Groups known, mask;
    load(call.known, part, known);
    load(call.mask, part, mask);
    each([&](int j, int i) { x0[j][i] = fmaf(known[j][i], mask[j][i], x0[j][i] * (1.0f - mask[j][i])); });
  }
  each([&](int j, int i) { result[j][i] = fmaf(c.of_x0, x0[j][i], result[j][i]); });
  if (given(call.previous_x0)) {
    Groups previous;
    load(call.previous_x0, part, previous);
    each([&](int j, int i) { result[j][i] = fmaf(c.of_previous, previous[j][i], result[j][i]); });
  }
  if (given(call.x0_out)) store(call.x0_out, part, x0);
  store(call.out, part, result);
}

__global__ void __launch_bounds__(kThreads, kBlocks) denoise_step_kernel(const DenoiseStep call) {
  with_part(call.sizes, call.draw, [&](const auto& part) { make_step(call, part); });
}

}  // namespace

int launch_denoise_step(const DenoiseStep& call, CUstream_st* stream) {
  return launch_tiles(denoise_step_kernel, call.sizes, call.draw, stream, call);
}

}  // namespace sinmdm::cuda
