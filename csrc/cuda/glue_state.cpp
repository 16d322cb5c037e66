// Registers philox_normal, q_sample and denoise_step for CUDA. Nothing is allocated or copied: tensors are taken as
// they lie.
#include <cstdint>
#include <optional>

#include "cuda/glue.h"

namespace sinmdm::cuda {

namespace {

using OptionalTensor = std::optional<ts::Tensor>;

// The states of a call, all of one shape.
class States {
 public:
  explicit States(const ts::Tensor& x) : sizes_{x.size(0), x.size(1) * x.size(2), x.size(2), true}, frames_(x.size(1)) {
    constexpr int64_t kMost = int64_t{1} << 31;
    STD_TORCH_CHECK(frames_ <= kMost && sizes_.channels <= kMost, "a state must have at most 2**31 frames and channels",
                    ", got ", frames_, " and ", sizes_.channels);
  }

  // The kernels read through the pointers that they write through, and write to the results only.
  State of(const ts::Tensor& x) {
    const int64_t frame = x.stride(1), channel = x.stride(2);
    const bool packed = (channel == 1 || sizes_.channels == 1) && (frame == sizes_.channels || frames_ == 1);
    sizes_.packed &= packed;
    return {const_cast<void*>(x.const_data_ptr()),   x.stride(0),   frame, channel,
            frame - (sizes_.channels - 1) * channel, element_of(x), packed};
  }

  State of(const OptionalTensor& x) { return x.has_value() ? of(*x) : State(); }

  const Sizes& sizes() const { return sizes_; }

 private:
  Sizes sizes_;
  int64_t frames_;
};

Integers integers_of(const ts::Tensor& x) {
  return {x.const_data_ptr<int64_t>(), x.stride(0)};
}

Draw draw_of(int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame) {
  return {static_cast<uint64_t>(seed), integers_of(step), integers_of(sample), integers_of(frame)};
}

void philox_normal(int64_t seed, const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame,
                   ts::Tensor out) {
  const Context context(out);
  States states(out);
  const State target = states.of(out);
  check_launch("philox_normal",
               launch_philox_normal(states.sizes(), draw_of(seed, step, sample, frame), target, context.stream));
}

void q_sample(const ts::Tensor& x0, const ts::Tensor& coefficients, const OptionalTensor& noise, int64_t seed,
              const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame, ts::Tensor out,
              OptionalTensor noise_out) {
  const Context context(x0);
  States states(x0);
  QSample call;
  call.x0 = states.of(x0);
  call.noise = states.of(noise);
  call.out = states.of(out);
  call.noise_out = states.of(noise_out);
  call.sizes = states.sizes();
  if (!noise.has_value()) call.draw = draw_of(seed, step, sample, frame);
  call.coefficients = coefficients.const_data_ptr<float>();
  check_launch("q_sample", launch_q_sample(call, context.stream));
}

void denoise_step(const ts::Tensor& x_t, const ts::Tensor& model_output, const ts::Tensor& coefficients,
                  const OptionalTensor& unconditional, const OptionalTensor& known, const OptionalTensor& mask,
                  const OptionalTensor& previous_x0, const OptionalTensor& noise, bool clips, bool draws, int64_t seed,
                  const ts::Tensor& step, const ts::Tensor& sample, const ts::Tensor& frame, ts::Tensor out,
                  OptionalTensor x0_out) {
  const Context context(x_t);
  States states(x_t);
  DenoiseStep call;
  call.x_t = states.of(x_t);
  call.model_output = states.of(model_output);
  call.unconditional = states.of(unconditional);
  call.known = states.of(known);
  call.mask = states.of(mask);
  call.previous_x0 = states.of(previous_x0);
  call.noise = states.of(noise);
  call.out = states.of(out);
  call.x0_out = states.of(x0_out);
  call.sizes = states.sizes();
  if (draws) call.draw = draw_of(seed, step, sample, frame);
  call.coefficients = coefficients.const_data_ptr<float>();
  call.clips = clips;
  check_launch("denoise_step", launch_denoise_step(call, context.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sinmdm, SINMDM_DEVICE, m) {
  m.impl("philox_normal_native", TORCH_BOX(&philox_normal));
  m.impl("q_sample_native", TORCH_BOX(&q_sample));
  m.impl("denoise_step_native", TORCH_BOX(&denoise_step));
}

}  // namespace sinmdm::cuda
