#include "cpu/noise.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;

// out (B, frames, channels) contiguous float32; step, sample, frame (B,) int64.
void philox_normal(int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame,
                   ts::Tensor out) {
  const noise::Kernels& loops = noise_kernels();
  const Result result(out);
  const Draw draw(seed, step, sample, frame, result.channels);
  for_each_block(out.size(0), out.size(1) * out.size(2), [&](int64_t b, int64_t begin, int64_t count) {
    NormalsBuffer normals;
    const float* z = draw.read(loops, b, begin, count, normals);
    std::copy(z, z + count, result.target(b, begin, nullptr));
  });
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("philox_normal_native", TORCH_BOX(&philox_normal));
}

}  // namespace sinmdm::cpu
