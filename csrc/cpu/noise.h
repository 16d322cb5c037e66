// Blocks of the noise stream, and the walk over a (batch, frames, channels) state in such blocks, on the CPU.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cpu/noise/table.h"

namespace sinmdm::cpu {

constexpr int64_t kBlock = 1024;  // elements: a block of every operand fits in L1

// The loops of the set of instructions in use.
const noise::Kernels& noise_kernels();

// A (batch, frames, channels) operand with any strides, read as float32 by runs of the row-major element index.
struct Operand {
  const void* data = nullptr;
  torch::headeronly::ScalarType dtype = torch::headeronly::ScalarType::Float;
  int64_t stride[3] = {0, 0, 0};  // in elements, over batch, frame, channel
  int64_t channels = 1;
  bool packed = false;  // a row is one run of memory

  Operand() = default;
  explicit Operand(const torch::stable::Tensor& x);
  bool given() const { return data != nullptr; }
  // Elements begin .. begin + count of row b: in place where they are packed float32, otherwise copied to `buffer`.
  const float* read(const noise::Kernels& loops, int64_t b, int64_t begin, int64_t count, float* buffer) const;
};

// The same for the float32 result.
struct Result {
  float* data = nullptr;
  int64_t stride[3] = {0, 0, 0};
  int64_t channels = 1;
  bool packed = false;

  Result() = default;
  explicit Result(torch::stable::Tensor& x);
  bool given() const { return data != nullptr; }
  // Where to compute the elements: in place, or in `buffer`, which `write` then scatters.
  float* target(int64_t b, int64_t begin, float* buffer) const;
  void write(int64_t b, int64_t begin, int64_t count, const float* values) const;
};

Operand optional_operand(const std::optional<torch::stable::Tensor>& x);

// Where a block's normals are computed: whole vectors of counters, of which the first and the last may reach beyond it.
struct NormalsBuffer {
  alignas(64) float z[kBlock + 4 + 4 * noise::kCounters];
};

// One draw's names: the key, each row's counter words, and the number of its first element in the stream.
struct Draw {
  uint64_t seed;
  const int64_t* step;
  const int64_t* sample;
  const int64_t* frame;
  int64_t channels;

  Draw(int64_t seed, const torch::stable::Tensor& step, const torch::stable::Tensor& sample,
       const torch::stable::Tensor& frame, int64_t channels)
      : seed(static_cast<uint64_t>(seed)),
        step(step.const_data_ptr<int64_t>()),
        sample(sample.const_data_ptr<int64_t>()),
        frame(frame.const_data_ptr<int64_t>()),
        channels(channels) {}

  // The normals of elements begin .. begin + count of row b, somewhere in `buffer`.
  const float* read(const noise::Kernels& loops, int64_t b, int64_t begin, int64_t count, NormalsBuffer& buffer) const {
    const uint64_t element = static_cast<uint64_t>(frame[b]) * static_cast<uint64_t>(channels) + begin;
    const int64_t skipped = static_cast<int64_t>(element % 4);
    constexpr int64_t whole = 4 * noise::kCounters;
    loops.normals(seed, element / 4, static_cast<uint32_t>(step[b]), static_cast<uint32_t>(sample[b]),
                  (skipped + count + whole - 1) / whole * noise::kCounters, buffer.z);
    return buffer.z + skipped;
  }
};

// Calls body(b, begin, count) for every block of every row, on all threads; blocks do not depend on the thread count.
template <typename Body>
void for_each_block(int64_t rows, int64_t elements, const Body& body) {
  const int64_t blocks = (elements + kBlock - 1) / kBlock;
  if (rows == 0 || blocks == 0) return;
  torch::stable::parallel_for(0, rows * blocks, 4, [&](int64_t low, int64_t high) {
    for (int64_t i = low; i < high; ++i) {
      const int64_t begin = i % blocks * kBlock;
      body(i / blocks, begin, std::min(kBlock, elements - begin));
    }
  });
}

}  // namespace sinmdm::cpu
