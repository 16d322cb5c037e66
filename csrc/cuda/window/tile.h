// What a warp does with 16 rows of its own and 16 rows of the other side, all of them in shared memory.
//
// Rows are kPitch elements apart, 16 bytes more than they are long: eight neighbouring ones then lie in different banks
// for every access of 16 bytes. Numbers of 16 x 16 pairs lie as the tensor cores want them: with g = lane / 4 and
// t = lane % 4, pairs[half][i] is row g + 8 (i / 2), column 8 half + 2 t + i % 2; and numbers of 16 rows x D likewise,
// sums[block][i], with column 8 block + .... Half types are multiplied by the tensor cores; float32 and float64, which
// must not be rounded, by FMA in the same layout. One kernel is then right for all of them.
#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "cuda/ptx.h"
#include "cuda/window/problem.h"

namespace sinmdm::cuda::window {

constexpr int kRows = 16;  // of a warp, and of the other side at a time

// Blocks of narrow rows that a multiprocessor is to hold, by its shared memory: registers are limited accordingly.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
constexpr int kMostResident = 2;
#else
constexpr int kMostResident = 3;
#endif

// How a block is cut for elements T and rows of kDim (head_dim padded to a bucket). A block owns kWarps tiles of 16
// rows and holds kSubs tiles of the other side: as many as kGroup for each of its warps, whose windows move on by one
// tile from warp to warp.
template <typename T, int kDim>
struct Config {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kWarps = kRowBytes <= 256 ? 4 : kRowBytes <= 512 ? 2 : 1;
  static constexpr int kGroup = kRowBytes <= 256 ? 3 : 1;
  static constexpr int kSubs = kWarps - 1 + kGroup;
  static constexpr int kThreads = 32 * kWarps, kOwn = kRows * kWarps, kOther = kRows * kSubs;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // elements of a 16-byte access
  static constexpr int kPitch = kDim + kChunk;
  static constexpr bool kTensorCores = sizeof(T) == 2;
  // The window whose bias gradient one group of each warp holds whole.
  static constexpr int kNarrow = kRows * (kGroup - 1) + 1;
  // Numbers of the bias gradient that a block writes: diagonals of 16 rows and a group of slots, and one to spare.
  static constexpr int kDiagonals = kRows * kGroup + kRows;
  // float32 and float64 are held to their own rounding: delta is summed up from P dP by the queries, stored, and read
  // by the keys in a launch of their own. Half types round more than O does, and take rowsum(dO O).
  static constexpr bool kStoresDelta = sizeof(T) > 2;
  static constexpr int kResident = kTensorCores && kRowBytes <= 128 ? kMostResident : kWarps == 4 ? 2 : 1;
  // Whether the backward may load all rows of a tile at once: they must leave room for other blocks.
  static constexpr bool kTogether = !kStoresDelta && kRowBytes <= 128;
};

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};
template <typename T>
struct alignas(16) Chunk {
  T x[16 / sizeof(T)];
};

// Rows `frame(r)` of head h, sequence b to shared memory, zeros where that is negative and beyond head_dim: 16 bytes at
// a time and asynchronously where the operand allows it, else element by element. The block does it together.
template <typename T, int kDim, typename Frame>
__device__ __forceinline__ void load_rows(T* to, int rows, const Problem& p, const Rows& from, int b, int h,
                                          const Frame& frame) {
  using Cut = Config<T, kDim>;
  constexpr int kChunks = kDim / Cut::kChunk, kAcross = kChunks < Cut::kThreads ? kChunks : Cut::kThreads;
  const T* head = static_cast<const T*>(from.data) + b * from.batch + h * from.head;
  const int first_row = threadIdx.x / kAcross;
  const auto source_of = [&](int f) { return head + static_cast<int64_t>(f < 0 ? 0 : f) * from.frame; };
  if (p.aligned) {
#pragma unroll 1  // a copy waits for nothing
    for (int row = first_row; row < rows; row += Cut::kThreads / kAcross) {
      const int f = frame(row);
      const T* source = source_of(f);
#pragma unroll
      for (int d = threadIdx.x % kAcross * Cut::kChunk; d < kDim; d += kAcross * Cut::kChunk) {
        copy_async_16(to + row * Cut::kPitch + d, source + d, f >= 0 && d < p.dim);
      }
    }
  } else {
#pragma unroll 1
    for (int row = first_row; row < rows; row += Cut::kThreads / kAcross) {
      const int f = frame(row);
      const T* source = source_of(f);
#pragma unroll 1
      for (int d = threadIdx.x % kAcross; d < kDim; d += kAcross) {
        to[row * Cut::kPitch + d] = f >= 0 && d < p.dim ? source[d] : narrow<T>(0);
      }
    }
  }
}

// The warp's 16 rows of `to` (contiguous), from frame i0 on and below `end`, by way of shared memory that is the warp's
// own: neighbouring lanes then write neighbouring 16 bytes.
template <typename T, int kDim>
__device__ __forceinline__ void store_rows(T* scratch, const Problem& p, const Rows& to, int b, int h, int i0, int end,
                                           const Computed<T> (&sums)[kDim / 8][4], Computed<T> factor0,
                                           Computed<T> factor1) {
  using Cut = Config<T, kDim>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int block = 0; block < kDim / 8; ++block) {
    T* row = scratch + g * Cut::kPitch + 8 * block + 2 * t;
    const auto& s = sums[block];
    *reinterpret_cast<Pair<T>*>(row) = {narrow<T>(s[0] * factor0), narrow<T>(s[1] * factor0)};
    *reinterpret_cast<Pair<T>*>(row + 8 * Cut::kPitch) = {narrow<T>(s[2] * factor1), narrow<T>(s[3] * factor1)};
  }
  __syncwarp();
  constexpr int kChunks = kDim / Cut::kChunk;
  T* head = static_cast<T*>(to.data) + b * to.batch + h * to.head;
  for (int at = lane; at < kRows * kChunks; at += 32) {
    const int row = at / kChunks, d = at % kChunks * Cut::kChunk;
    if (i0 + row >= end) continue;
    const T* source = scratch + row * Cut::kPitch + d;
    T* target = head + static_cast<int64_t>(i0 + row) * to.frame + d;
    if (p.aligned) {
      if (d < p.dim) *reinterpret_cast<Chunk<T>*>(target) = *reinterpret_cast<const Chunk<T>*>(source);
    } else {
#pragma unroll
      for (int e = 0; e < Cut::kChunk; ++e) {
        if (d + e < p.dim) target[e] = source[e];
      }
    }
  }
}

// The same from the registers where they lie, four bytes or more at a time.
template <typename T, int kDim>
__device__ __forceinline__ void store_pairs(const Problem& p, const Rows& to, int b, int h, int i0, int end,
                                            const Computed<T> (&sums)[kDim / 8][4], Computed<T> factor) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = i0 + g + 8 * half;
    if (i >= end) continue;
    T* row = static_cast<T*>(to.data) + b * to.batch + h * to.head + i * to.frame;
#pragma unroll
    for (int block = 0; block < kDim / 8; ++block) {
      const int d = 8 * block + 2 * t;
      const T x = narrow<T>(sums[block][2 * half] * factor), y = narrow<T>(sums[block][2 * half + 1] * factor);
      if (p.aligned) {
        if (d < p.dim) *reinterpret_cast<Pair<T>*>(row + d) = {x, y};
      } else {
        if (d < p.dim) row[d] = x;
        if (d + 1 < p.dim) row[d + 1] = y;
      }
    }
  }
}

template <typename C, int kBlocks>
__device__ __forceinline__ void clear(C (&numbers)[kBlocks][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) numbers[i / 4][i % 4] = 0;
}

// products (16 x 16) = own (16 x kDim) other (16 x kDim)^T.
template <typename T, int kDim>
__device__ __forceinline__ void products_of(Computed<T> (&products)[2][4], const T* own, const T* other) {
  using Cut = Config<T, kDim>;
  const int lane = threadIdx.x % 32;
  clear(products);
  if constexpr (Cut::kTensorCores) {
    const T* a_row = own + lane % 16 * Cut::kPitch + lane / 16 * 8;
    const T* b_row = other + (lane % 8 + lane / 16 * 8) * Cut::kPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t a[4], b[4];
      load_matrices(a, a_row + d);
      load_matrices(b, b_row + d);
      multiply_add<T>(products[0], a, b[0], b[1]);
      multiply_add<T>(products[1], a, b[2], b[3]);
    }
  } else {
    constexpr int kChunk = Cut::kChunk;
    const T* row = own + lane / 4 * Cut::kPitch;
    const T* column = other + lane % 4 * 2 * Cut::kPitch;
#pragma unroll 4
    for (int d = 0; d < kDim; d += kChunk) {
      const auto a0 = *reinterpret_cast<const Chunk<T>*>(row + d);
      const auto a1 = *reinterpret_cast<const Chunk<T>*>(row + 8 * Cut::kPitch + d);
#pragma unroll
      for (int n = 0; n < 4; ++n) {  // columns 2 t, 2 t + 1, 8 + 2 t, 8 + 2 t + 1
        const auto x = *reinterpret_cast<const Chunk<T>*>(column + (n / 2 * 8 + n % 2) * Cut::kPitch + d);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
          products[n / 2][n % 2] += a0.x[e] * x.x[e];
          products[n / 2][2 + n % 2] += a1.x[e] * x.x[e];
        }
      }
    }
  }
}

// A pair of 16-bit elements, infinities and NaN left out.
template <typename T>
__device__ __forceinline__ uint32_t finite_part(uint32_t pair) {
  constexpr uint32_t kExponent = std::is_same<T, __half>::value ? 0x7C00 : 0x7F80;
  if ((pair & kExponent) == kExponent) pair &= 0xFFFF0000;
  if ((pair >> 16 & kExponent) == kExponent) pair &= 0xFFFF;
  return pair;
}

// sums (16 x kDim) += weights (16 x 16) other (16 x kDim), by the tensor cores; kFinite: of other's finite elements.
template <typename T, int kDim, bool kFinite>
__device__ __forceinline__ void add_by_mma(float (&sums)[kDim / 8][4], const float (&weights)[2][4], const T* other) {
  const int lane = threadIdx.x % 32;
  const uint32_t a[4] = {pack<T>(weights[0][0], weights[0][1]), pack<T>(weights[0][2], weights[0][3]),
                         pack<T>(weights[1][0], weights[1][1]), pack<T>(weights[1][2], weights[1][3])};
  const T* b_row = other + lane % 16 * Config<T, kDim>::kPitch + lane / 16 * 8;
#pragma unroll
  for (int block = 0; block < kDim / 8; block += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, b_row + 8 * block);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = kFinite ? finite_part<T>(b[i]) : b[i];
    multiply_add<T>(sums[block], a, b[0], b[1]);
    multiply_add<T>(sums[block + 1], a, b[2], b[3]);
  }
}

// The same by FMA, of every pair; or of `visible` ones (bit 4 half + i is that of pairs[half][i]), and there only of
// what the tensor cores have left out, if they were at work.
template <typename T, int kDim, bool kVisible>
__device__ __forceinline__ void add_by_fma(Computed<T> (&sums)[kDim / 8][4], const Computed<T> (&weights)[2][4],
                                           [[maybe_unused]] uint32_t visible, const T* other) {
  using Cut = Config<T, kDim>;
  using C = Computed<T>;
  constexpr auto kInfinity = static_cast<C>(INFINITY);
  const int lane = threadIdx.x % 32;
#pragma unroll(kVisible ? 1 : 2)  // what is of rare use is short
  for (int half = 0; half < 2; ++half) {
#pragma unroll 1
    for (int pair = 0; pair < 4; ++pair) {  // whose lane of the four has the weights of columns 2 pair, 2 pair + 1
      const int source = lane / 4 * 4 + pair;
      [[maybe_unused]] const uint32_t seen = kVisible ? __shfl_sync(0xFFFFFFFFu, visible, source) >> (4 * half) : 0;
#pragma unroll(kVisible ? 1 : 2)
      for (int e = 0; e < 2; ++e) {
        // Chosen, and not indexed: registers have no addresses.
        const C mine0 = half == 0 ? (e == 0 ? weights[0][0] : weights[0][1]) : (e == 0 ? weights[1][0] : weights[1][1]);
        const C mine1 = half == 0 ? (e == 0 ? weights[0][2] : weights[0][3]) : (e == 0 ? weights[1][2] : weights[1][3]);
        const C w0 = __shfl_sync(0xFFFFFFFFu, mine0, source), w1 = __shfl_sync(0xFFFFFFFFu, mine1, source);
        const T* row = other + (8 * half + 2 * pair + e) * Cut::kPitch + lane % 4 * 2;
        const bool seen0 = !kVisible || (seen >> e & 1) != 0, seen1 = !kVisible || (seen >> (2 + e) & 1) != 0;
#pragma unroll
        for (int block = 0; block < kDim / 8; ++block) {
          const auto both = *reinterpret_cast<const Pair<T>*>(row + 8 * block);
          const C x = widen(both.x), y = widen(both.y);
          const bool takes_x = !(kVisible && Cut::kTensorCores) || !(x < kInfinity && x > -kInfinity);
          const bool takes_y = !(kVisible && Cut::kTensorCores) || !(y < kInfinity && y > -kInfinity);
          if (seen0 && takes_x) sums[block][0] += w0 * x;
          if (seen0 && takes_y) sums[block][1] += w0 * y;
          if (seen1 && takes_x) sums[block][2] += w1 * x;
          if (seen1 && takes_y) sums[block][3] += w1 * y;
        }
      }
    }
  }
}

// sums (16 x kDim) += weights (16 x 16) other (16 x kDim), of weights that are 0 where not `visible`. An infinity or
// NaN of `other` then spoils every row; `careful` leaves it to the rows that see it, at a price, and the others' bits
// alone.
template <typename T, int kDim>
__device__ __forceinline__ void add_products(Computed<T> (&sums)[kDim / 8][4], const Computed<T> (&weights)[2][4],
                                             uint32_t visible, const T* other, bool careful) {
  if constexpr (Config<T, kDim>::kTensorCores) {
    if (careful) {
      add_by_mma<T, kDim, true>(sums, weights, other);
      add_by_fma<T, kDim, true>(sums, weights, visible, other);
    } else {
      add_by_mma<T, kDim, false>(sums, weights, other);
    }
  } else if (careful) {
    add_by_fma<T, kDim, true>(sums, weights, visible, other);
  } else {
    add_by_fma<T, kDim, false>(sums, weights, visible, other);
  }
}

// Of a number and NaN, the number.
__device__ __forceinline__ float larger(float x, float y) {
  return fmaxf(x, y);
}
__device__ __forceinline__ double larger(double x, double y) {
  return fmax(x, y);
}

// Over the four lanes that share a row.
template <typename C>
__device__ __forceinline__ C sum_of_row(C x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}
template <typename C>
__device__ __forceinline__ C max_of_row(C x) {
  x = larger(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return larger(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

template <typename C, int kBlocks>
__device__ __forceinline__ bool all_finite(const C (&sums)[kBlocks][4]) {
  C zeros = 0;
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) zeros += sums[i / 4][i % 4] * C(0);  // 0 times anything finite is 0
  return zeros == C(0);
}

}  // namespace sinmdm::cuda::window
