// What csrc/cuda/ptx.h has in machine instructions, on the CPU: the fragments lie as the PTX ISA lays them out ("Matrix
// fragments for mma.m16n8k16 with floating point type", "ldmatrix"), and asynchronous copies land at their wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace sinmdm::cuda {

inline char* shared_memory() {
  return emulation::block->shared;
}

inline void copy_async_16(void* to, const void* from, bool present, int line = __builtin_LINE()) {
  const auto address = static_cast<char*>(to);
  const emulation::Block& block = *emulation::block;
  if (address < block.shared || address + 16 > block.shared + block.shared_bytes) {
    emulation::fail("an asynchronous copy goes to where the block's shared memory is not", line);
  }
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (present && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    emulation::fail("an asynchronous copy is not aligned to its 16 bytes", line);
  }
  memset(address, 0xFF, 16);  // until it lands, what was there before may be gone
  emulation::Thread& thread = emulation::self();
  thread.copies.push_back({address, static_cast<const char*>(from), present});
  ++thread.uncommitted;
}

inline void copy_async_commit() {
  emulation::Thread& thread = emulation::self();
  thread.groups.push_back(thread.uncommitted);
  thread.uncommitted = 0;
}

template <int kPending>
inline void copy_async_wait() {
  emulation::Thread& thread = emulation::self();
  while (thread.groups.size() > kPending) emulation::land_group(thread);
}

namespace detail {

// Each lane reads its row when it comes, and not when all have come: what another lane writes to it without a
// __syncwarp before may then be missing, as it may on a GPU.
inline emulation::Table& bring_row(const char* what, const void* row, int line) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    emulation::fail("a matrix's row is not aligned to its 16 bytes", line);
  }
  emulation::Table& table = emulation::table();
  memcpy(table.rows[emulation::lane()], row, 16);
  emulation::meet(what, line);
  return table;
}

EMULATOR_PART inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
EMULATOR_PART inline float widened(uint32_t bits, __nv_bfloat16) {
  return float_of(bits << 16);
}
// As __half2float, which is a call into the compiler's library.
EMULATOR_PART inline float widened(uint32_t bits, __half) {
  const uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3FF;
  const float subnormal = static_cast<float>(static_cast<int>(mantissa)) * 0x1p-24f;
  const float size =
      exponent == 0 ? subnormal : float_of((exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
  return sign != 0 ? -size : size;
}

template <typename T>
EMULATOR void multiply_add(float* c, const uint32_t* a, const uint32_t* b, int line) {
  auto& product = emulation::table().product;
  const int lane = emulation::lane(), group = lane / 4, pair = 2 * (lane % 4);
  for (int i = 0; i < 8; ++i) {
    product.a[group + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = widened(a[i / 2] >> (16 * (i % 2)) & 0xFFFF, T());
  }
  for (int i = 0; i < 4; ++i) {
    product.b[pair + i % 2 + i / 2 * 8][group] = widened(b[i / 2] >> (16 * (i % 2)) & 0xFFFF, T());
  }
  for (int i = 0; i < 4; ++i) product.c[group + i / 2 * 8][pair + i % 2] = c[i];
  if (emulation::meet("mma", line)) {
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 8; ++column) product.c[row][column] += product.a[row][k] * product.b[k][column];
      }
    }
  }
  for (int i = 0; i < 4; ++i) c[i] = product.c[group + i / 2 * 8][pair + i % 2];
}

}  // namespace detail

inline void load_matrices(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) {
  const emulation::Table& table = detail::bring_row("ldmatrix", row, line);
  const int lane = emulation::lane();
  for (int matrix = 0; matrix < 4; ++matrix) memcpy(&to[matrix], &table.rows[8 * matrix + lane / 4][2 * (lane % 4)], 4);
}

inline void load_matrices_transposed(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) {
  const emulation::Table& table = detail::bring_row("ldmatrix.trans", row, line);
  const int lane = emulation::lane();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const int first = 8 * matrix + 2 * (lane % 4);
    to[matrix] = table.rows[first][lane / 4] | static_cast<uint32_t>(table.rows[first + 1][lane / 4]) << 16;
  }
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE()) {
  const uint32_t b[2] = {b0, b1};
  detail::multiply_add<T>(c, a, b, line);
}

template <typename T>
uint32_t pack(float low, float high);
template <>
inline uint32_t pack<__half>(float low, float high) {
  return __float2half_rn(low).bits | static_cast<uint32_t>(__float2half_rn(high).bits) << 16;
}
template <>
inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  return __float2bfloat16_rn(low).bits | static_cast<uint32_t>(__float2bfloat16_rn(high).bits) << 16;
}

inline float power_of_two(float x) {
  const float result = exp2f(x);
  return result < 0x1p-126f ? 0.0f : result;
}

inline float square_root(float x) {
  return sqrtf(x);
}

}  // namespace sinmdm::cuda
