#include "cpu/noise.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;

// x0, noise, out (B, frames, channels) float32 with any strides, noise_out contiguous; out may be x0; coefficients
// (B, 2) contiguous float32 rows of (signal, sigma); step, sample, frame (B,) int64. Bytes a state element: 8, and 4
// for each of noise and noise_out.
void q_sample(const ts::Tensor& x0, const ts::Tensor& coefficients, const std::optional<ts::Tensor>& noise,
              int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame, ts::Tensor out,
              std::optional<ts::Tensor> noise_out) {
  const noise::Kernels& loops = noise_kernels();
  const Operand x(x0), given = optional_operand(noise);
  const Result result(out);
  const Result drawn = noise_out.has_value() ? Result(*noise_out) : Result();
  const float* rows = coefficients.const_data_ptr<float>();
  const Draw draw(seed, step, sample, frame, x.channels);
  for_each_block(x0.size(0), x0.size(1) * x0.size(2), [&](int64_t b, int64_t begin, int64_t count) {
    float x_buffer[kBlock], z_buffer[kBlock], out_buffer[kBlock];
    NormalsBuffer normals;
    const float* z =
        given.given() ? given.read(loops, b, begin, count, z_buffer) : draw.read(loops, b, begin, count, normals);
    const float* block = x.read(loops, b, begin, count, x_buffer);
    float* target = result.target(b, begin, out_buffer);
    loops.add_noise(rows[2 * b], rows[2 * b + 1], block, z, count, target);
    result.write(b, begin, count, target);
    if (drawn.given()) std::copy(z, z + count, drawn.target(b, begin, nullptr));
  });
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("q_sample_native", TORCH_BOX(&q_sample));
}

}  // namespace sinmdm::cpu
