// Small kernels that show the emulation at work, for test_cuda_emulation.py: `snippets NAME` runs one and ends with 0
// where it finds what it expects. The names under "What ends the process" must not get that far.
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/ptx.h"

namespace {

using namespace sinmdm::cuda;

void expect(bool is, const char* what) {
  if (is) return;
  fprintf(stderr, "unexpected: %s\n", what);
  exit(1);
}

// Memory as a GPU allocates it.
template <typename T>
struct Array {
  explicit Array(int size) : size(size), data(new (std::align_val_t(256)) T[size]) {}
  ~Array() { ::operator delete[](data, std::align_val_t(256)); }
  T& operator[](int i) { return data[i]; }
  operator T*() { return data; }
  int size;
  T* data;
};

// Barriers -----------------------------------------------------------------------------------------------------------

// Each thread hands its number on to the next, as often as there are threads: everyone has everyone's sum.
__global__ void ring(int* sums) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const int threads = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
  int held = me, sum = 0;
  for (int i = 0; i < threads; ++i) {
    shared[me] = held;
    __syncthreads();
    held = shared[(me + threads - 1) % threads];
    sum += held;
    __syncthreads();
  }
  sums[blockIdx.x * threads + me] = sum;
}

void barriers() {
  Array<int> sums(3 * 96);
  launch(ring, dim3(3), 96, 96 * 4, nullptr, sums.data);
  for (int i = 0; i < sums.size; ++i) expect(sums[i] == 96 * 95 / 2, "a sum around the ring");
}

__global__ void place(int* seen) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++seen[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

void indices() {
  Array<int> seen(2 * 3 * 4 * 64);
  for (int i = 0; i < seen.size; ++i) seen[i] = 0;
  const cudaLaunchConfig_t config{dim3(4, 3, 2), dim3(8, 4, 2), 0, nullptr, nullptr, 0};
  cudaLaunchKernelEx(&config, place, seen.data);
  for (int i = 0; i < seen.size; ++i) expect(seen[i] == 1, "every thread of every block once");
}

// Threads wait for those of their warp and of their block by turns, and not all of them equally often.
__global__ void mixed(int* results) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int value = lane;
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < warp; ++i) value = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
    const int last = __syncthreads_or(round == 4 && threadIdx.x == 77);
    if (last != 0) value += 1000;
  }
  results[threadIdx.x] = value;
}

void barriers_and_shuffles() {
  Array<int> results(128);
  launch(mixed, dim3(1), 128, 0, nullptr, results.data);
  for (int i = 0; i < 128; ++i) {
    const int warp = i / 32, lane = i % 32;
    expect(results[i] == 1000 + (warp % 2 == 1 ? lane ^ 1 : lane), "a lane's partner, and a vote in the last round");
  }
}

// Warps --------------------------------------------------------------------------------------------------------------

template <typename T>
__global__ void exchange(T* to) {
  const int lane = threadIdx.x % 32;
  const T mine = static_cast<T>(100 * (threadIdx.x / 32) + lane) + static_cast<T>(0.5);
  to[4 * threadIdx.x] = __shfl_sync(0xFFFFFFFFu, mine, (lane * 7 + 3) % 32);
  to[4 * threadIdx.x + 1] = __shfl_xor_sync(0xFFFFFFFFu, mine, 5);
  to[4 * threadIdx.x + 2] = __shfl_down_sync(0xFFFFFFFFu, mine, 9);
  to[4 * threadIdx.x + 3] = __shfl_sync(0xFFFFFFFFu, mine, 32 + 4);  // a lane's number is taken modulo 32
}

template <typename T>
void shuffles_of() {
  Array<T> to(4 * 64);
  launch(exchange<T>, dim3(1), 64, 0, nullptr, to.data);
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, from[4] = {(lane * 7 + 3) % 32, lane ^ 5, lane + 9 < 32 ? lane + 9 : lane, 4};
    for (int kind = 0; kind < 4; ++kind) {
      const T expected = static_cast<T>(100 * (i / 32) + from[kind]) + static_cast<T>(0.5);
      expect(to[4 * i + kind] == expected, "a shuffled value");
    }
  }
}

void shuffles() {
  shuffles_of<int>();
  shuffles_of<unsigned>();
  shuffles_of<float>();
  shuffles_of<double>();
}

__global__ void vote(unsigned* to) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  to[4 * threadIdx.x] = __ballot_sync(0xFFFFFFFFu, lane % 3 == warp);
  to[4 * threadIdx.x + 1] = __any_sync(0xFFFFFFFFu, warp == 1 && lane == 31);
  to[4 * threadIdx.x + 2] = __syncthreads_or(threadIdx.x == 63) != 0;
  to[4 * threadIdx.x + 3] = __syncthreads_or(0) != 0;
}

void votes() {
  Array<unsigned> to(4 * 64);
  launch(vote, dim3(1), 64, 0, nullptr, to.data);
  for (int i = 0; i < 64; ++i) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; ++lane) ballot |= static_cast<unsigned>(lane % 3 == i / 32u) << lane;
    expect(to[4 * i] == ballot, "__ballot_sync");
    expect(to[4 * i + 1] == i / 32u, "__any_sync");
    expect(to[4 * i + 2] == 1, "__syncthreads_or of one");
    expect(to[4 * i + 3] == 0, "__syncthreads_or of none");
  }
}

// Matrices -----------------------------------------------------------------------------------------------------------
// Small whole numbers, whose products and sums every type here holds exactly: results are equal or wrong.

float number_of(__half x) {
  return __half2float(x);
}
float number_of(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
void draw(Array<T>& to, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < to.size; ++i) to[i] = narrow<T>(static_cast<float>(random() % 33) - 16);
}

template <typename T>
uint32_t pair_of(T low, T high) {
  uint16_t bits[2];
  memcpy(bits, &low, 2);
  memcpy(bits + 1, &high, 2);
  return bits[0] | static_cast<uint32_t>(bits[1]) << 16;
}

// The formulas of the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", word by word:
//   groupID = %laneid >> 2, threadID_in_group = %laneid % 4
//   row of A's a_i = groupID for 0 <= i < 2 || 4 <= i < 6, groupID + 8 otherwise
//   col of A's a_i = threadID_in_group * 2 + (i & 0x1) for i < 4, threadID_in_group * 2 + (i & 0x1) + 8 for i >= 4
//   row of B's b_i = threadID_in_group * 2 + (i & 0x1) for i < 2, threadID_in_group * 2 + (i & 0x1) + 8 for i >= 2
//   col of B's b_i = groupID
//   row of C's c_i = groupID for i < 2, groupID + 8 for i >= 2
//   col of C's c_i = threadID_in_group * 2 + (i & 0x1)
template <typename T>
__global__ void product_by_formulas(const T* a, const T* b, const float* c, float* to) {
  const int group = static_cast<int>(threadIdx.x) >> 2, in_group = static_cast<int>(threadIdx.x) % 4;
  T as[8], bs[4];
  float cs[4];
  for (int i = 0; i < 8; ++i) {
    const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
    const int column = i < 4 ? in_group * 2 + (i & 0x1) : in_group * 2 + (i & 0x1) + 8;
    as[i] = a[16 * row + column];
  }
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? in_group * 2 + (i & 0x1) : in_group * 2 + (i & 0x1) + 8;
    bs[i] = b[8 * row + group];
    cs[i] = c[8 * (i < 2 ? group : group + 8) + in_group * 2 + (i & 0x1)];
  }
  const uint32_t a_pairs[4] = {pair_of(as[0], as[1]), pair_of(as[2], as[3]), pair_of(as[4], as[5]),
                               pair_of(as[6], as[7])};
  multiply_add<T>(cs, a_pairs, pair_of(bs[0], bs[1]), pair_of(bs[2], bs[3]));
  for (int i = 0; i < 4; ++i) to[8 * (i < 2 ? group : group + 8) + in_group * 2 + (i & 0x1)] = cs[i];
}

// As the kernels do it: both matrices row by row in shared memory, a's fragments by ldmatrix and b's by ldmatrix.trans.
template <typename T>
__global__ void product_by_loads(const T* a, const T* b, const float*, float* to) {
  T* shared = reinterpret_cast<T*>(shared_memory());
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * 16; i += 32) shared[i] = a[i];
  for (int i = lane; i < 16 * 8; i += 32) shared[16 * 16 + i] = b[i];
  __syncwarp();
  uint32_t as[4], bs[4];
  load_matrices(as, shared + lane % 16 * 16 + lane / 16 * 8);
  load_matrices_transposed(bs, shared + 16 * 16 + lane % 16 * 8);  // its last two matrices are its first two
  float cs[4] = {};
  multiply_add<T>(cs, as, bs[0], bs[1]);
  for (int i = 0; i < 4; ++i) to[8 * (lane / 4 + i / 2 * 8) + lane % 4 * 2 + i % 2] = cs[i];
}

template <typename T>
void products_of() {
  for (unsigned seed = 0; seed < 10; ++seed) {
    Array<T> a(16 * 16), b(16 * 8), c(16 * 8);
    draw(a, seed), draw(b, 100 + seed), draw(c, 200 + seed);
    Array<float> start(16 * 8), by_formulas(16 * 8), by_loads(16 * 8);
    for (int i = 0; i < 16 * 8; ++i) start[i] = number_of(c[i]);
    launch(product_by_formulas<T>, dim3(1), 32, 0, nullptr, a.data, b.data, start.data, by_formulas.data);
    launch(product_by_loads<T>, dim3(1), 32, 2 * 16 * 24, nullptr, a.data, b.data, start.data, by_loads.data);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float product = 0;
        for (int k = 0; k < 16; ++k) product += number_of(a[16 * row + k]) * number_of(b[8 * k + column]);
        expect(by_formulas[8 * row + column] == product + start[8 * row + column], "mma, by the ISA's formulas");
        expect(by_loads[8 * row + column] == product, "mma of what ldmatrix loads");
      }
    }
  }
}

// Every 16-bit number but NaN, each as the first element of a times one.
template <typename T>
__global__ void widen_all(float* to) {
  for (uint32_t first = 0; first < 65536; first += 16) {
    uint32_t a[4] = {}, b[2] = {};
    const uint32_t mine = first + threadIdx.x / 4;
    if (threadIdx.x % 4 == 0) a[0] = mine, a[1] = mine + 8;
    if (threadIdx.x == 0) b[0] = pair_of(narrow<T>(1.0f), narrow<T>(0.0f));
    float c[4] = {};
    multiply_add<T>(c, a, b[0], b[1]);
    if (threadIdx.x % 4 == 0) to[mine] = c[0], to[mine + 8] = c[2];
  }
}

template <typename T>
void widened() {
  Array<float> to(65536);
  launch(widen_all<T>, dim3(1), 32, 0, nullptr, to.data);
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    T x;
    memcpy(&x, &bits, 2);
    const float expected = number_of(x);
    expect(to[i] == expected || (std::isnan(to[i]) && std::isnan(expected)), "a number that mma widens");
  }
}

void half_product() {
  products_of<__half>();
  widened<__half>();
}
void bfloat16_product() {
  products_of<__nv_bfloat16>();
  widened<__nv_bfloat16>();
}

// "ldmatrix": thread 8 m + r brings the address of row r of matrix m; of each matrix thread t gets elements 2 (t % 4)
// and the next of row t / 4, and with .trans elements t / 4 of rows 2 (t % 4) and the next. Here element c of row r of
// matrix m is the number 64 m + 8 r + c, and the rows lie in any order.
template <bool kTransposed>
__global__ void load(uint32_t* to) {
  uint16_t* shared = reinterpret_cast<uint16_t*>(shared_memory());
  const int lane = threadIdx.x, place = (lane * 11 + 5) % 32;
  for (int c = 0; c < 8; ++c) shared[8 * place + c] = static_cast<uint16_t>(8 * lane + c);
  __syncwarp();
  uint32_t mine[4];
  if (kTransposed) {
    load_matrices_transposed(mine, shared + 8 * place);
  } else {
    load_matrices(mine, shared + 8 * place);
  }
  for (int m = 0; m < 4; ++m) to[4 * lane + m] = mine[m];
}

template <bool kTransposed>
void loads() {
  Array<uint32_t> to(4 * 32);
  launch(load<kTransposed>, dim3(1), 32, 32 * 16, nullptr, to.data);
  for (unsigned t = 0; t < 32; ++t) {
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned line = t / 4, pair = 2 * (t % 4);
      const unsigned low = kTransposed ? 64 * m + 8 * pair + line : 64 * m + 8 * line + pair;
      const unsigned high = kTransposed ? 64 * m + 8 * (pair + 1) + line : 64 * m + 8 * line + pair + 1;
      expect(to[static_cast<int>(4 * t + m)] == (low | high << 16), "an element that ldmatrix loads");
    }
  }
}

void matrix_loads() {
  loads<false>();
  loads<true>();
}

// Asynchronous copies ------------------------------------------------------------------------------------------------

__global__ void copy(const float* from, float* to) {
  float* shared = reinterpret_cast<float*>(shared_memory()) + 12 * threadIdx.x;
  for (int i = 0; i < 12; ++i) shared[i] = -1;
  const float* mine = from + 8 * threadIdx.x;
  copy_async_16(shared, mine, true);
  copy_async_commit();
  copy_async_16(shared + 4, mine + 4, true);
  copy_async_16(shared + 8, nullptr, false);
  copy_async_commit();
  float* result = to + 12 * 3 * threadIdx.x;
  for (int i = 0; i < 12; ++i) result[i] = shared[i];
  copy_async_wait<1>();
  for (int i = 0; i < 12; ++i) result[12 + i] = shared[i];
  copy_async_wait<0>();
  for (int i = 0; i < 12; ++i) result[24 + i] = shared[i];
}

void copies() {
  Array<float> from(8 * 32), to(36 * 32);
  for (int i = 0; i < from.size; ++i) from[i] = static_cast<float>(i);
  launch(copy, dim3(1), 32, 12 * 4 * 32, nullptr, from.data, to.data);
  for (int t = 0; t < 32; ++t) {
    for (int i = 0; i < 12; ++i) {
      const float expected = i < 8 ? from[8 * t + i] : 0;
      expect(std::isnan(to[36 * t + i]), "nothing is there before a wait, nor what was there before");
      const float after_one = to[36 * t + 12 + i];
      expect(i < 4 ? after_one == expected : std::isnan(after_one), "after a wait for all but one, the first is");
      expect(to[36 * t + 24 + i] == expected, "after a wait for all of them, everything is");
    }
  }
}

// Missing barriers ---------------------------------------------------------------------------------------------------
// A thread and the one of the neighbouring warp, whose number is `by` larger; those at the end have none.

__global__ void read_after_write(int by, bool barrier, float* to) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int threads = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x), other = me + by;
  shared[me] = 1;
  if (barrier) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  to[blockIdx.x * threads + me] = other >= 0 && other < threads ? shared[other] : 1;
}

__global__ void write_after_read(int by, bool barrier, float* to) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int threads = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x), other = me + by;
  shared[me] = 1;
  __syncthreads();
  to[blockIdx.x * threads + me] = other >= 0 && other < threads ? shared[other] : 1;
  if (barrier) __syncthreads();
  shared[me] = 2;
}

void missing_barrier(void (*kernel)(int, bool, float*)) {
  Array<float> to(2 * 96);
  const auto wrong_in = [&](int block) {
    int wrong = 0;
    for (int i = 0; i < 96; ++i) wrong += to[96 * block + i] != 1;
    return wrong;
  };
  int wrong[2][2];
  for (const int by : {-32, 32}) {
    launch(kernel, dim3(2), 96, 96 * 4, nullptr, by, true, to.data);
    expect(wrong_in(0) + wrong_in(1) == 0, "with the barrier nothing is wrong");
    launch(kernel, dim3(2), 96, 96 * 4, nullptr, by, false, to.data);
    for (int block = 0; block < 2; ++block) wrong[by > 0][block] = wrong_in(block);
  }
  for (int block = 0; block < 2; ++block) {
    expect(wrong[0][block] + wrong[1][block] == 64, "every block's neighbours on one side show that it is missing");
    expect(wrong[block][0] + wrong[block][1] == 64, "those on either side do, in one block of two");
  }
}

void missing_barrier_before_a_read() {
  missing_barrier(read_after_write);
}
void missing_barrier_before_a_write() {
  missing_barrier(write_after_read);
}

__global__ void unwritten(float* to) {
  to[threadIdx.x] = reinterpret_cast<float*>(shared_memory())[threadIdx.x];
  reinterpret_cast<float*>(shared_memory())[threadIdx.x] = 1;  // the next block must not find it
}

void shared_memory_is_nan_at_the_start() {
  Array<float> to(32);
  launch(unwritten, dim3(3), 32, 128, nullptr, to.data);
  for (int i = 0; i < 32; ++i) expect(std::isnan(to[i]), "NaN");
}

// What ends the process ----------------------------------------------------------------------------------------------

__global__ void skip_barrier() {
  if (threadIdx.x != 40) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void barrier_instead_of_shuffle(float* to) {
  if (threadIdx.x == 3) __syncthreads();
  *to = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
}
__global__ void different_instructions(float* to) {
  *to = threadIdx.x < 16 ? __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1) : __shfl_sync(0xFFFFFFFFu, 1.0f, 0);
}
__global__ void different_places(float* to) {
  if (threadIdx.x < 16) {
    *to = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
  } else {
    *to = __shfl_xor_sync(0xFFFFFFFFu, 2.0f, 1);
  }
}
__global__ void half_a_warp(float* to) {
  if (threadIdx.x < 16) *to = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
}
__global__ void partial_mask(float* to) {
  *to = __shfl_xor_sync(0x0000FFFFu, 1.0f, 1);
}
__global__ void copy_to(const float* from, int to_offset, int from_offset, bool wait) {
  char* shared = shared_memory();
  copy_async_16(shared + to_offset, reinterpret_cast<const char*>(from) + from_offset, true);
  copy_async_commit();
  if (wait) copy_async_wait<0>();
}
__global__ void load_from(int offset) {
  uint32_t mine[4];
  load_matrices(mine, shared_memory() + offset + 16 * threadIdx.x);
}
__global__ void read_at(int at, float* to) {
  *to = reinterpret_cast<float*>(shared_memory())[at];
}
__global__ void write_at(int at) {
  reinterpret_cast<float*>(shared_memory())[at] = 1;
}
__global__ void read_vector(int at, float* to) {
  *to = reinterpret_cast<float4*>(shared_memory() + at)->x;
}
__global__ void recurse(volatile int* depth) {
  volatile char frame[1024];
  frame[0] = static_cast<char>(++*depth);
  if (*depth > 0) recurse(depth);
  frame[1] = frame[0];
}

const std::map<std::string, std::function<void()>>& snippets() {
  static Array<float> global(64);
  static int depth = 0;
  static const std::map<std::string, std::function<void()>> all = {
      {"barriers", barriers},
      {"indices", indices},
      {"barriers_and_shuffles", barriers_and_shuffles},
      {"shuffles", shuffles},
      {"votes", votes},
      {"half_product", half_product},
      {"bfloat16_product", bfloat16_product},
      {"matrix_loads", matrix_loads},
      {"copies", copies},
      {"missing_barrier_before_a_read", missing_barrier_before_a_read},
      {"missing_barrier_before_a_write", missing_barrier_before_a_write},
      {"shared_memory_is_nan_at_the_start", shared_memory_is_nan_at_the_start},

      {"skip_barrier", [] { launch(skip_barrier, dim3(1), 64, 0, nullptr); }},
      {"two_barriers", [] { launch(two_barriers, dim3(1), 64, 0, nullptr); }},
      {"barrier_instead_of_shuffle", [] { launch(barrier_instead_of_shuffle, dim3(1), 64, 0, nullptr, global.data); }},
      {"different_instructions", [] { launch(different_instructions, dim3(1), 32, 0, nullptr, global.data); }},
      {"different_places", [] { launch(different_places, dim3(1), 32, 0, nullptr, global.data); }},
      {"half_a_warp", [] { launch(half_a_warp, dim3(1), 32, 0, nullptr, global.data); }},
      {"partial_mask", [] { launch(partial_mask, dim3(1), 32, 0, nullptr, global.data); }},
      {"copy_to_unaligned", [] { launch(copy_to, dim3(1), 32, 64, nullptr, global.data, 8, 0, true); }},
      {"copy_from_unaligned", [] { launch(copy_to, dim3(1), 32, 64, nullptr, global.data, 16, 4, true); }},
      {"copy_outside", [] { launch(copy_to, dim3(1), 32, 64, nullptr, global.data, 64, 0, true); }},
      {"copy_not_waited_for", [] { launch(copy_to, dim3(1), 32, 64, nullptr, global.data, 0, 0, false); }},
      {"copy_from_outside", [] { launch(copy_to, dim3(1), 32, 64, nullptr, global.data, 0, 256, true); }},
      {"row_unaligned", [] { launch(load_from, dim3(1), 32, 1024, nullptr, 8); }},
      {"row_outside", [] { launch(load_from, dim3(1), 32, 1024, nullptr, 1024 - 31 * 16); }},
      {"read_outside", [] { launch(read_at, dim3(1), 32, 64, nullptr, 16, global.data); }},
      {"write_outside", [] { launch(write_at, dim3(1), 32, 64, nullptr, -1); }},
      {"read_unaligned", [] { launch(read_vector, dim3(1), 32, 64, nullptr, 4, global.data); }},
      {"threads_of_no_warp", [] { launch(skip_barrier, dim3(1), 33, 0, nullptr); }},
      {"no_blocks", [] { launch(skip_barrier, dim3(0), 32, 0, nullptr); }},
      {"deep_stack", [] { launch(recurse, dim3(1), 32, 0, nullptr, &depth); }},
      {"shared_memory_without_leave",
       [] {
         const cudaLaunchConfig_t config{dim3(1), dim3(32), 64 * 1024, nullptr, nullptr, 0};
         cudaLaunchKernelEx(&config, skip_barrier);
       }},
      {"shared_memory_beyond_any", [] {
         const int error = launch(write_at, dim3(1), 32, 100 * 1024, nullptr, 0);
         expect(error == cudaSuccess, cudaGetErrorString(error));
       }}};
  return all;
}

}  // namespace

int main(int count, char** names) {
  expect(count == 2 && snippets().count(names[1]) == 1, "usage: snippets NAME");
  snippets().at(names[1])();
  return 0;
}
