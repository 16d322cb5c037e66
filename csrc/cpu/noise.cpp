#include "cpu/noise.h"

#include "philox.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;
using torch::headeronly::ScalarType;

namespace {

constexpr int64_t kLanes = 16;  // counters computed side by side: one AVX-512 register of 32-bit words

SINMDM_CLONES
void normals_16(uint64_t seed, uint64_t first, uint32_t step, uint32_t sample, int64_t groups, float* __restrict z) {
  for (int64_t g = 0; g < groups; g += kLanes) {
    uint32_t w0[kLanes], w1[kLanes], w2[kLanes], w3[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      const Words w = philox4x32_10(counter_of(first + g + l, step, sample), seed);
      w0[l] = w.x0, w1[l] = w.x1, w2[l] = w.x2, w3[l] = w.x3;
    }
    float z0[kLanes], z1[kLanes], z2[kLanes], z3[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) box_muller(w0[l], w1[l], z0[l], z1[l]);
    for (int64_t l = 0; l < kLanes; ++l) box_muller(w2[l], w3[l], z2[l], z3[l]);
    float* block = z + 4 * g;
    for (int64_t l = 0; l < kLanes; ++l) {
      block[4 * l] = z0[l], block[4 * l + 1] = z1[l], block[4 * l + 2] = z2[l], block[4 * l + 3] = z3[l];
    }
  }
}

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

void normals(uint64_t seed, uint64_t first, uint32_t step, uint32_t sample, int64_t groups, float* z) {
  normals_16(seed, first, step, sample, groups, z);
}

Operand::Operand(const ts::Tensor& x) : data(x.const_data_ptr()), dtype(x.scalar_type()) {
  set_layout(*this, x);
}

const float* Operand::read(int64_t b, int64_t begin, int64_t count, float* buffer) const {
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
    case ScalarType::Half:
      gather(static_cast<const c10::Half*>(data), *this, b, begin, count, buffer);
      return buffer;
    default:
      gather(static_cast<const c10::BFloat16*>(data), *this, b, begin, count, buffer);
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
