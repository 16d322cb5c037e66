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

namespace sinmdm::cpu {

// One library for every x86-64 machine: the loops below are compiled for AVX-512, AVX2 and the baseline, and the loader
// picks. Elsewhere the plain loop is built.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SINMDM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SINMDM_CLONES
#endif

constexpr int64_t kBlock = 1024;  // elements; a multiple of 64, so that a block starts at a counter and fits in L1

// z[0 .. 4 * groups): the normals of the counters first .. first + groups; groups a multiple of 16.
void normals(uint64_t seed, uint64_t first, uint32_t step, uint32_t sample, int64_t groups, float* z);

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
  const float* read(int64_t b, int64_t begin, int64_t count, float* buffer) const;
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

// One draw's names: the key, and each row's counter words.
struct Draw {
  uint64_t seed;
  const int64_t* step;
  const int64_t* sample;

  void fill(int64_t b, int64_t begin, int64_t count, float* z) const {
    normals(seed, static_cast<uint64_t>(begin) / 4, static_cast<uint32_t>(step[b]), static_cast<uint32_t>(sample[b]),
            (count + 63) / 64 * 16, z);
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
