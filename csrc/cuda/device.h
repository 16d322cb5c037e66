// What every kernel needs: elements of any type as the numbers they are computed in, and launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

struct CUstream_st;

namespace sinmdm::cuda {

__device__ __forceinline__ float widen(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ double widen(double x) {
  return x;
}

// What a T is computed in.
template <typename T>
struct ComputedIn {
  using type = float;
};
template <>
struct ComputedIn<double> {
  using type = double;
};
template <typename T>
using Computed = typename ComputedIn<T>::type;

template <typename T>
__device__ __forceinline__ T narrow(Computed<T> x);
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ double narrow<double>(double x) {
  return x;
}

// Beside ptx.h's for float.
__device__ __forceinline__ double power_of_two(double x) {
  return exp2(x);
}

template <typename T>
struct Same {
  using type = T;  // from which no template argument is deduced
};

// What every device gives a block that asks for it.
constexpr int kMostShared = 99 * 1024;

// Launches `kernel` with `shared_bytes` of shared memory on `stream`; a cudaError_t. Neither allocates nor waits, so
// that a graph may capture it.
template <typename... Parameters>
int launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, CUstream_st* stream,
           typename Same<Parameters>::type... parameters) {
  if (shared_bytes > 48 * 1024) {
    // More than that has to be asked for: always the same, for another thread may be about to launch the kernel, too.
    const int most = shared_bytes > kMostShared ? shared_bytes : kMostShared;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != cudaSuccess) return error;
  }
  const cudaLaunchConfig_t config{
      grid, dim3(static_cast<unsigned>(threads)), static_cast<size_t>(shared_bytes), stream, nullptr, 0};
  return cudaLaunchKernelEx(&config, kernel, parameters...);
}

}  // namespace sinmdm::cuda
