#include "cpu/noise.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;

// out (B, frames, channels) contiguous float32; step, sample (B,) int64.
void philox_normal(int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, ts::Tensor out) {
  const Draw draw{static_cast<uint64_t>(seed), step.const_data_ptr<int64_t>(), sample.const_data_ptr<int64_t>()};
  const Result result(out);
  for_each_block(out.size(0), out.size(1) * out.size(2), [&](int64_t b, int64_t begin, int64_t count) {
    float z[kBlock];
    draw.fill(b, begin, count, z);
    std::copy(z, z + count, result.target(b, begin, nullptr));
  });
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("philox_normal_native", TORCH_BOX(&philox_normal));
}

}  // namespace sinmdm::cpu
