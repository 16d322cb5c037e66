// CUDA C++ on the CPU, for the tests: with this folder first among the include paths, g++ compiles the kernels of
// csrc/cuda for the host, as they are, so that sanitizers see every access of theirs.
//
// Blocks run one after the other. A block's threads are fibres, each with a stack of its own, and one runs until it
// waits: at a barrier, or where a warp acts together (shuffles, votes, matrix instructions). Which thread goes
// first changes from block to block, up and down, so that a missing barrier is read through from either side. Shared
// memory is a block of the heap, as large as the launch says, all of it NaN at the start. The process ends with a
// message where a kernel does what a GPU answers with a hang, a wrong result or nothing at all:
//   - a thread waits for others that have ended or wait elsewhere (at another line, for another instruction)
//   - shared memory of one kernel launch is asked for beyond what it was given
//   - an asynchronous copy is not aligned, or is never waited for
// What it cannot see: hazards between threads of one warp that the order of fibres hides; the memory model's weaker
// orders; bank conflicts; time.
#pragma once

#if !defined(__x86_64__)
#error "the emulation switches stacks with instructions of x86-64"
#endif

#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 18;

[[noreturn]] inline void fail(const char* what, int line = 0) {
  fprintf(stderr, "cuda emulation: %s", what);
  if (line != 0) fprintf(stderr, " (line %d)", line);
  fprintf(stderr, "\n");
  fflush(stderr);
  abort();
}

enum class Wait { nothing, block, warp, forever };

struct Copy {
  char* to;
  const char* from;
  size_t present;  // bytes copied; the rest of 16 becomes 0
};

// What the threads of a warp bring to a thing that they do together.
struct Warp {
  const char* what = nullptr;
  int line = 0, arrived = 0;
  void* operands[kWarp] = {};
};

struct Thread {
  void* stack = nullptr;    // where it goes on
  char* memory = nullptr;   // of its stack
  void* shadow = nullptr;   // AddressSanitizer's, while it does not run
  uint3 index{};
  int number = 0;
  Wait wait = Wait::nothing;
  int line = 0;
  bool vote = false;
  std::vector<std::vector<Copy>> groups;  // committed copies, the oldest first
  std::vector<Copy> open;

  int lane() const { return number % kWarp; }
};

struct Block {
  dim3 grid, size;
  uint3 index{};
  char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::function<void()> body;
  Thread* running = nullptr;
  void* scheduler = nullptr;
  void* scheduler_shadow = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  bool any = false;  // the vote of the last barrier
};

inline thread_local Block* block = nullptr;
inline thread_local bool downwards = false;  // the order in which the next block's threads run

inline Thread& self() { return *block->running; }

// Saves the registers that a call keeps, and the stack's place; goes on where `to` was saved.
extern "C" void sinmdm_emulation_switch(void** from, void* to);
asm(R"(
.weak sinmdm_emulation_switch
.type sinmdm_emulation_switch, @function
sinmdm_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sinmdm_emulation_switch, .-sinmdm_emulation_switch
)");

inline void to_scheduler([[maybe_unused]] bool for_good) {
  Thread& thread = self();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &thread.shadow, block->scheduler_bottom, block->scheduler_size);
#endif
  sinmdm_emulation_switch(&thread.stack, block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(thread.shadow, nullptr, nullptr);
#endif
}

inline void to_thread(Thread& thread) {
  block->running = &thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block->scheduler_shadow, thread.memory, kStack);
#endif
  sinmdm_emulation_switch(&block->scheduler, thread.stack);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->scheduler_shadow, nullptr, nullptr);
#endif
}

// The first function of every thread.
inline void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_bottom, &block->scheduler_size);
#endif
  block->body();
  Thread& thread = self();
  if (!thread.open.empty() || !thread.groups.empty()) fail("a thread ended before it waited for its asynchronous copies");
  thread.wait = Wait::forever;
  to_scheduler(true);
  fail("a thread that has ended was run again");
}

// Stacks are kept for the next block; the page below each may not be touched.
inline char* stack_memory(size_t number) {
  static thread_local std::vector<char*> stacks;
  while (stacks.size() <= number) {
    void* memory = mmap(nullptr, kStack + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a thread's stack");
    mprotect(memory, 4096, PROT_NONE);
    stacks.push_back(static_cast<char*>(memory) + 4096);
  }
  return stacks[number];
}

inline void start(Thread& thread, size_t number) {
  thread.memory = stack_memory(number);
  void** top = reinterpret_cast<void**>(thread.memory + kStack) - 2;  // 16-byte aligned after the return address
  *top = reinterpret_cast<void*>(&run_thread);
  thread.stack = top - 6;  // six registers of any value
}

inline void release(Wait what, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    if (block->threads[i].wait == what) block->threads[i].wait = Wait::nothing;
  }
}

// Nobody can go on: whatever the first waiting thread waits for will not happen.
[[noreturn]] inline void report_deadlock() {
  for (Thread& thread : block->threads) {
    if (thread.wait == Wait::forever) continue;
    fprintf(stderr, "cuda emulation: thread %d of block (%u, %u) waits %s, line %d\n", thread.number, block->index.x,
            block->index.y, thread.wait == Wait::block ? "at a barrier" : "for its warp", thread.line);
  }
  fail("a barrier was not reached by all threads");
}

inline void run_block(Block& state) {
  block = &state;
  const size_t count = state.threads.size();
  for (size_t i = 0; i < count; ++i) start(state.threads[i], i);
  const bool down = downwards;
  downwards = !downwards;
  for (size_t ended = 0; ended < count;) {
    bool progress = false;
    size_t at_barrier = 0;
    for (size_t n = 0; n < count; ++n) {
      Thread& thread = state.threads[down ? count - 1 - n : n];
      if (thread.wait == Wait::nothing) {
        to_thread(thread);
        progress = true;
        ended += thread.wait == Wait::forever;
      }
    }
    for (Thread& thread : state.threads) at_barrier += thread.wait == Wait::block;
    if (at_barrier == count) {
      state.any = false;
      for (Thread& thread : state.threads) {
        if (thread.line != state.threads[0].line) report_deadlock();
        state.any |= thread.vote;
      }
      release(Wait::block, 0, count);
    } else if (!progress && ended < count) {
      report_deadlock();
    }
  }
  block = nullptr;
}

// All threads of a block.
inline void barrier(int line, bool vote = false) {
  Thread& thread = self();
  thread.line = line;
  thread.vote = vote;
  thread.wait = Wait::block;
  to_scheduler(false);
}

// All 32 threads of a warp: each brings its operands, and the last one does for all of them what `act` does.
template <typename Act>
void together(const char* what, int line, void* operands, const Act& act) {
  Thread& thread = self();
  Warp& warp = block->warps[thread.number / kWarp];
  if (warp.arrived == 0) {
    warp.what = what, warp.line = line;
  } else if (warp.what != what || warp.line != line) {
    fprintf(stderr, "cuda emulation: lane %d does %s (line %d) where others do %s (line %d)\n", thread.lane(), what,
            line, warp.what, warp.line);
    fail("the threads of a warp do not act together");
  }
  warp.operands[thread.lane()] = operands;
  if (++warp.arrived < kWarp) {
    thread.line = line;
    thread.wait = Wait::warp;
    to_scheduler(false);
    return;
  }
  act(warp.operands);
  warp.arrived = 0;
  const size_t begin = thread.number / kWarp * kWarp;
  release(Wait::warp, begin, begin + kWarp);
}

template <typename T>
T exchange(const char* what, int line, T value, int from) {
  struct Operand {
    T value, result;
    int from;
  } mine{value, T(), from};
  together(what, line, &mine, [](void** all) {
    for (int lane = 0; lane < kWarp; ++lane) {
      Operand& to = *static_cast<Operand*>(all[lane]);
      to.result = static_cast<Operand*>(all[to.from])->value;
    }
  });
  return mine.result;
}

inline unsigned ballot(int line, bool vote) {
  struct Operand {
    bool vote;
    unsigned result;
  } mine{vote, 0};
  together("a vote", line, &mine, [](void** all) {
    unsigned votes = 0;
    for (int lane = 0; lane < kWarp; ++lane) votes |= static_cast<unsigned>(static_cast<Operand*>(all[lane])->vote) << lane;
    for (int lane = 0; lane < kWarp; ++lane) static_cast<Operand*>(all[lane])->result = votes;
  });
  return mine.result;
}

inline void require_full(unsigned mask, int line) {
  if (mask != 0xFFFFFFFFu) fail("only whole warps are emulated: a mask must be 0xffffffff", line);
}

inline void land(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    memset(copy.to, 0, 16);
    memcpy(copy.to, copy.from, copy.present);
  }
}

}  // namespace emulation

inline void __syncthreads(int line = __builtin_LINE()) { emulation::barrier(line); }
inline int __syncthreads_or(int vote, int line = __builtin_LINE()) {
  emulation::barrier(line, vote != 0);
  return emulation::block->any;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  emulation::together("__syncwarp", line, nullptr, [](void**) {});
}
inline int __any_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  return emulation::ballot(line, vote != 0) != 0;
}
inline unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  return emulation::ballot(line, vote != 0);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  return emulation::exchange("__shfl_sync", line, value, from % emulation::kWarp);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  return emulation::exchange("__shfl_xor_sync", line, value, emulation::self().lane() ^ by);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int by, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  const int lane = emulation::self().lane();
  return emulation::exchange("__shfl_down_sync", line, value, lane + by < emulation::kWarp ? lane + by : lane);
}

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 size = config->blockDim, grid = config->gridDim;
  const size_t count = static_cast<size_t>(size.x) * size.y * size.z;
  if (count == 0 || count > 1024 || count % emulation::kWarp != 0) emulation::fail("a block must be of 1 to 32 whole warps");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) emulation::fail("no such grid");
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        emulation::Block block;
        block.grid = grid, block.size = size, block.index = {x, y, z};
        block.shared_bytes = config->dynamicSmemBytes;
        block.shared = static_cast<char*>(::operator new(block.shared_bytes, std::align_val_t(128)));
        memset(block.shared, 0xFF, block.shared_bytes);
        block.warps.resize(count / emulation::kWarp);
        block.threads.resize(count);
        for (size_t i = 0; i < count; ++i) {
          emulation::Thread& thread = block.threads[i];
          thread.number = static_cast<int>(i);
          thread.index = {static_cast<unsigned>(i) % size.x, static_cast<unsigned>(i) / size.x % size.y,
                          static_cast<unsigned>(i) / (size.x * size.y)};
        }
        block.body = [&] { kernel(static_cast<Parameters>(arguments)...); };
        emulation::run_block(block);
        ::operator delete(block.shared, std::align_val_t(128));
      }
    }
  }
  return cudaSuccess;
}

#define threadIdx (emulation::self().index)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)
