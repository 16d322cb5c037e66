#include "cpu/noise.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;

namespace {

// One row of Schedule.step_coefficients.
struct Step {
  float x_to_x0, model_to_x0, of_x0, of_x, of_previous, of_noise;
};

// Null pointers are operands that are not given. The result may lie where x does: each element is read before it is
// written.
SINMDM_CLONES
void combine(const Step& c, const float* x, const float* model, const float* known, const float* mask,
             const float* previous, const float* z, int64_t count, float* out) {
  float result[kBlock];
  if (known != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      const float x0 = c.x_to_x0 * x[i] + c.model_to_x0 * model[i];
      result[i] = c.of_x0 * (known[i] * mask[i] + x0 * (1.0f - mask[i])) + c.of_x * x[i];
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      result[i] = c.of_x0 * (c.x_to_x0 * x[i] + c.model_to_x0 * model[i]) + c.of_x * x[i];
    }
  }
  if (previous != nullptr) {
    for (int64_t i = 0; i < count; ++i) result[i] += c.of_previous * previous[i];
  }
  if (z != nullptr) {
    for (int64_t i = 0; i < count; ++i) result[i] += c.of_noise * z[i];
  }
  std::copy(result, result + count, out);
}

}  // namespace

// All states (B, frames, channels) with any strides (0 where broadcast); float32 but for model_output; coefficients
// (B, 6) contiguous float32; step, sample (B,) int64. Bytes a state element: 12 for x, model_output and out.
void denoise_step(const ts::Tensor& x_t, const ts::Tensor& model_output, const ts::Tensor& coefficients,
                  const std::optional<ts::Tensor>& known, const std::optional<ts::Tensor>& mask,
                  const std::optional<ts::Tensor>& previous_x0, const std::optional<ts::Tensor>& noise, bool draws,
                  int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, ts::Tensor out) {
  const Operand x(x_t), model(model_output), held = optional_operand(known), share = optional_operand(mask);
  const Operand previous = optional_operand(previous_x0), given = optional_operand(noise);
  const Result result(out);
  const Step* rows = reinterpret_cast<const Step*>(coefficients.const_data_ptr<float>());
  const Draw draw{static_cast<uint64_t>(seed), step.const_data_ptr<int64_t>(), sample.const_data_ptr<int64_t>()};
  for_each_block(x_t.size(0), x_t.size(1) * x_t.size(2), [&](int64_t b, int64_t begin, int64_t count) {
    float buffers[7][kBlock];
    const auto block = [&](const Operand& operand, int slot) -> const float* {
      return operand.given() ? operand.read(b, begin, count, buffers[slot]) : nullptr;
    };
    const float* z = block(given, 5);
    if (draws) {
      draw.fill(b, begin, count, buffers[5]);
      z = buffers[5];
    }
    float* target = result.target(b, begin, buffers[6]);
    combine(rows[b], block(x, 0), block(model, 1), block(held, 2), block(share, 3), block(previous, 4), z, count,
            target);
    result.write(b, begin, count, target);
  });
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("denoise_step_native", TORCH_BOX(&denoise_step));
}

}  // namespace sinmdm::cpu
