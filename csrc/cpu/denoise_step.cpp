#include "cpu/noise.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;

// All states (B, frames, channels) with any strides (0 where broadcast); float32 but for the two predictions;
// coefficients (B, 10) contiguous float32; step, sample, frame (B,) int64. Bytes a state element: 12 for x_t,
// model_output and out, 4 more for each other operand.
void denoise_step(const ts::Tensor& x_t, const ts::Tensor& model_output, const ts::Tensor& coefficients,
                  const std::optional<ts::Tensor>& unconditional, const std::optional<ts::Tensor>& known,
                  const std::optional<ts::Tensor>& mask, const std::optional<ts::Tensor>& previous_x0,
                  const std::optional<ts::Tensor>& noise, bool clips, bool draws, int64_t seed, const ts::Tensor& step,
                  const ts::Tensor& sample, const ts::Tensor& frame, ts::Tensor out, std::optional<ts::Tensor> x0_out) {
  const noise::Kernels& loops = noise_kernels();
  const Operand x(x_t), model(model_output), other = optional_operand(unconditional), held = optional_operand(known);
  const Operand share = optional_operand(mask), previous = optional_operand(previous_x0);
  const Operand given = optional_operand(noise);
  const Result result(out);
  const Result x0 = x0_out.has_value() ? Result(*x0_out) : Result();
  const auto* rows = reinterpret_cast<const noise::Step*>(coefficients.const_data_ptr<float>());
  const Draw draw(seed, step, sample, frame, x.channels);
  for_each_block(x_t.size(0), x_t.size(1) * x_t.size(2), [&](int64_t b, int64_t begin, int64_t count) {
    float buffers[9][kBlock];
    const auto block = [&](const Operand& operand, int slot) -> const float* {
      return operand.given() ? operand.read(loops, b, begin, count, buffers[slot]) : nullptr;
    };
    NormalsBuffer normals;
    const float* z = draws ? draw.read(loops, b, begin, count, normals) : block(given, 0);
    float* target = result.target(b, begin, buffers[7]);
    float* x0_target = x0.given() ? x0.target(b, begin, buffers[8]) : nullptr;
    const noise::States states{
        block(x, 1), block(model, 2), block(other, 3), block(held, 4), block(share, 5), block(previous, 6),
        z,           target,          x0_target};
    loops.denoise(rows[b], clips, states, count);
    result.write(b, begin, count, target);
    if (x0.given()) x0.write(b, begin, count, x0_target);
  });
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("denoise_step_native", TORCH_BOX(&denoise_step));
}

}  // namespace sinmdm::cpu
