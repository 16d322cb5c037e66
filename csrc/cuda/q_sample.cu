#include "cuda/state.h"

namespace sinmdm::cuda {

namespace {

// A thread reads all of its elements before it writes any: out may be x0. Bytes an element: 8, and 4 for each of a
// noise that is given and one that is returned.
template <bool kWhole>
__device__ __forceinline__ void add_noise(const QSample& call, const Part<kWhole>& part) {
  const float signal = call.coefficients[2 * part.row], sigma = call.coefficients[2 * part.row + 1];
  Groups x, z;
  load(call.x0, part, x);
  with_noise(call.draw, call.noise, part, [&](int j, const float (&noise)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      z[j][i] = noise[i];
      x[j][i] = fmaf(sigma, noise[i], signal * x[j][i]);
    }
  });
  if (given(call.noise_out)) store(call.noise_out, part, z);
  store(call.out, part, x);
}

__global__ void __launch_bounds__(kThreads, kBlocks) q_sample_kernel(const QSample call) {
  with_part(call.sizes, call.draw, [&](const auto& part) { add_noise(call, part); });
}

}  // namespace

int launch_q_sample(const QSample& call, CUstream_st* stream) {
  return launch_tiles(q_sample_kernel, call.sizes, call.draw, stream, call);
}

}  // namespace sinmdm::cuda
