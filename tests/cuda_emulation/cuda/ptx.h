// What csrc/cuda/ptx.h has in machine instructions, on the CPU: the fragments lie as the PTX ISA lays them out ("Matrix
// fragments for mma.m16n8k16 with floating point type", "ldmatrix"), and asynchronous copies land at their wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace sinmdm::cuda {

inline char* shared_memory() { return emulation::block->shared; }

inline void copy_async_16(void* to, const void* from, bool present) {
  const auto address = static_cast<char*>(to);
  const emulation::Block& block = *emulation::block;
  if (address < block.shared || address + 16 > block.shared + block.shared_bytes) {
    emulation::fail("an asynchronous copy goes to where the block's shared memory is not");
  }
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (present && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    emulation::fail("an asynchronous copy is not aligned to its 16 bytes");
  }
  memset(address, 0xFF, 16);  // until it lands, what was there before may be gone
  emulation::self().open.push_back({address, static_cast<const char*>(from), present ? size_t{16} : size_t{0}});
}

inline void copy_async_commit() {
  emulation::Thread& thread = emulation::self();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

template <int kPending>
inline void copy_async_wait() {
  emulation::Thread& thread = emulation::self();
  while (thread.groups.size() > kPending) {
    emulation::land(thread.groups.front());
    thread.groups.erase(thread.groups.begin());
  }
}

namespace detail {

struct MatrixLoad {
  const uint16_t* row;
  uint32_t* to;
};

template <bool kTransposed>
void load_matrices(void** all) {
  for (int lane = 0; lane < emulation::kWarp; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t value = 0;
      for (int e = 0; e < 2; ++e) {
        const int line = lane / 4, pair = 2 * (lane % 4) + e;
        const int row = kTransposed ? pair : line, column = kTransposed ? line : pair;
        const uint16_t* from = static_cast<MatrixLoad*>(all[8 * matrix + row])->row;
        value |= static_cast<uint32_t>(from[column]) << (16 * e);
      }
      static_cast<MatrixLoad*>(all[lane])->to[matrix] = value;
    }
  }
}

inline float widened(uint16_t bits, __half) { return __half2float(__half{bits}); }
inline float widened(uint16_t bits, __nv_bfloat16) { return __bfloat162float(__nv_bfloat16{bits}); }

struct Product {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

template <typename T>
void multiply(void** all) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < emulation::kWarp; ++lane) {
    const Product& operands = *static_cast<Product*>(all[lane]);
    const int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = group + ((i & 2) != 0 ? 8 : 0), k = 2 * in_group + (i & 1) + (i >= 4 ? 8 : 0);
      a[row][k] = widened(static_cast<uint16_t>(operands.a[i / 2] >> (16 * (i & 1))), T());
    }
    for (int i = 0; i < 4; ++i) {
      const int k = 2 * in_group + (i & 1) + (i >= 2 ? 8 : 0);
      b[k][group] = widened(static_cast<uint16_t>(operands.b[i / 2] >> (16 * (i & 1))), T());
    }
  }
  for (int lane = 0; lane < emulation::kWarp; ++lane) {
    float* c = static_cast<Product*>(all[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane % 4) + (i & 1);
      for (int k = 0; k < 16; ++k) c[i] += a[row][k] * b[k][column];
    }
  }
}

}  // namespace detail

inline void load_matrices(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) {
  detail::MatrixLoad mine{static_cast<const uint16_t*>(row), to};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("a matrix's row is not aligned to its 16 bytes", line);
  emulation::together("ldmatrix", line, &mine, detail::load_matrices<false>);
}

inline void load_matrices_transposed(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) {
  detail::MatrixLoad mine{static_cast<const uint16_t*>(row), to};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("a matrix's row is not aligned to its 16 bytes", line);
  emulation::together("ldmatrix.trans", line, &mine, detail::load_matrices<true>);
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE()) {
  const uint32_t b[2] = {b0, b1};
  detail::Product mine{c, a, b};
  emulation::together("mma", line, &mine, detail::multiply<T>);
}

}  // namespace sinmdm::cuda
