#include "cpu/noise.h"

#include "cpu/isa.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;
using torch::headeronly::ScalarType;

namespace {

template <typename T>
void gather(const T* data, const Operand& x, int64_t b, int64_t begin, int64_t count, float* buffer) {
  const T* row = data + b * x.stride[0];
  if (x.packed) {
    for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<float>(row[begin + i]);
    return;
  }
  int64_t frame = begin / x.channels, channel = begin % x.channels;
  for (int64_t i = 0; i < count; ++i) {
    buffer[i] = static_cast<float>(row[frame * x.stride[1] + channel * x.stride[2]]);
    if (++channel == x.channels) channel = 0, ++frame;
  }
}

template <typename View>
void set_layout(View& view, const ts::Tensor& x) {
  for (int d = 0; d < 3; ++d) view.stride[d] = x.stride(d);
  view.channels = std::max<int64_t>(x.size(2), 1);
  view.packed = (x.size(2) <= 1 || x.stride(2) == 1) && (x.size(1) <= 1 || x.stride(1) == x.size(2));
}

}  // namespace

const noise::Kernels& noise_kernels() {
#if SINMDM_X86_SETS
  static const noise::Kernels* const sets[] = {&noise::kBaseline, &noise::kAvx2, &noise::kAvx512};
#else
  static const noise::Kernels* const sets[] = {&noise::kBaseline};
#endif
  return *sets[instruction_set()];
}

Operand::Operand(const ts::Tensor& x) : data(x.const_data_ptr()), dtype(x.scalar_type()) {
  set_layout(*this, x);
}

const float* Operand::read(const noise::Kernels& loops, int64_t b, int64_t begin, int64_t count, float* buffer) const {
  switch (dtype) {
    case ScalarType::Float: {
      const float* floats = static_cast<const float*>(data);
      if (packed) return floats + b * stride[0] + begin;
      gather(floats, *this, b, begin, count, buffer);
      return buffer;
    }
    case ScalarType::Double:
      gather(static_cast<const double*>(data), *this, b, begin, count, buffer);
      return buffer;
    default:
      if (packed) {
        const uint16_t* halves = static_cast<const uint16_t*>(data) + b * stride[0] + begin;
        loops.widen_halves(dtype == ScalarType::BFloat16, halves, count, buffer);
      } else if (dtype == ScalarType::BFloat16) {
        gather(static_cast<const c10::BFloat16*>(data), *this, b, begin, count, buffer);
      } else {
        gather(static_cast<const c10::Half*>(data), *this, b, begin, count, buffer);
      }
      return buffer;
  }
}

Operand optional_operand(const std::optional<ts::Tensor>& x) {
  return x.has_value() ? Operand(*x) : Operand();
}

Result::Result(ts::Tensor& x) : data(static_cast<float*>(x.mutable_data_ptr())) {
  set_layout(*this, x);
}

float* Result::target(int64_t b, int64_t begin, float* buffer) const {
  return packed ? data + b * stride[0] + begin : buffer;
}

void Result::write(int64_t b, int64_t begin, int64_t count, const float* values) const {
  if (packed) return;
  int64_t frame = begin / channels, channel = begin % channels;
  for (int64_t i = 0; i < count; ++i) {
    data[b * stride[0] + frame * stride[1] + channel * stride[2]] = values[i];
    if (++channel == channels) channel = 0, ++frame;
  }
}

}  // namespace sinmdm::cpu

#define SINMDM_TEXT_OF(x) #x
#define SINMDM_TEXT(x) SINMDM_TEXT_OF(x)

// Found in the file by kernels/_native.py, which does not load a library that was built from other sources.
extern "C" __attribute__((visibility("default"), used)) const char sinmdm_source_hash[] =
    "sinmdm-source-hash:" SINMDM_TEXT(SINMDM_SOURCE_HASH);
