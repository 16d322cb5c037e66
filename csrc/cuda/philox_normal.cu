#include "cuda/state.h"

namespace sinmdm::cuda {

namespace {

__global__ void __launch_bounds__(kThreads, kBlocks)
    philox_normal_kernel(const Sizes sizes, const Draw draw, const State out) {
  with_part(sizes, draw, [&](const auto& part) {
    Groups z;
    with_noise(draw, State(), part, [&](int j, const float (&drawn)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) z[j][i] = drawn[i];
    });
    store(out, part, z);
  });
}

}  // namespace

int launch_philox_normal(const Sizes& sizes, const Draw& draw, const State& out, CUstream_st* stream) {
  return launch_tiles(philox_normal_kernel, sizes, draw, stream, sizes, draw, out);
}

}  // namespace sinmdm::cuda
