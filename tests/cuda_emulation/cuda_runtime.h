// CUDA C++ on the CPU, for the tests: with this folder first among the include paths, g++ compiles the kernels of
// csrc/cuda for the host, as they are, so that sanitizers see every access of theirs.
//
// Blocks run one after the other. A block's threads are fibres, each with a stack of its own, and one runs until it
// waits: at a barrier, or where a warp acts together (shuffles, votes, matrix instructions). Then the rest of its warp
// runs, and only when a warp can do no more, the next one: between two barriers warps are as far apart as they can be.
// Which thread goes first changes from block to block, up and down, so that a missing barrier is read through from
// either side. Shared memory is a block of the heap, as large as the launch says, all of it NaN at the start. The
// process ends with a message where a kernel does what a GPU answers with a hang, a wrong result or nothing at all:
//   - a thread waits for others that have ended or wait elsewhere (at another line, for another instruction)
//   - a launch asks for more shared memory than its kernel was given leave for
//   - an asynchronous copy is not aligned, or is never waited for
// What it cannot see: hazards between threads of one warp that the order of fibres hides; the memory model's weaker
// orders; bank conflicts; time.
//
// The emulator's own bookkeeping is not instrumented (EMULATOR): the sanitizers watch the kernels, and a warp that
// meets costs 32 changes of the stack and little else.
#pragma once

#if !defined(__x86_64__)
#error "the emulation switches stacks with instructions of x86-64"
#endif

#include <dlfcn.h>
#include <execinfo.h>
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <set>
#include <type_traits>
#include <utility>
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
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

namespace emulation {

#define UNWATCHED __attribute__((no_sanitize("address", "undefined"), optimize("O3")))
#define EMULATOR UNWATCHED __attribute__((noinline))
#define EMULATOR_PART UNWATCHED __attribute__((always_inline))  // of those

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 17;
constexpr size_t kPage = 4096;
constexpr size_t kSharedByDefault = 48 * 1024;
// What a block may have on the least of the architectures, sm_86 to sm_120.
inline thread_local size_t shared_at_most = 99 * 1024;

enum class Wait { nothing, block, warp, forever };

// 16 bytes to shared memory; zeros where not `present`.
struct Copy {
  char* to;
  const char* from;
  bool present;
};

struct Thread {
  void* stack = nullptr;  // where it goes on
  int position = 0;       // in the order in which the block's threads run
  int number = 0;
  uint3 index{};
  Wait wait = Wait::nothing;
  int line = 0;
  std::vector<Copy> copies;    // those that have not landed, the oldest first
  std::vector<size_t> groups;  // how many copies each committed group has, the oldest first
  size_t uncommitted = 0;
};

// What the lanes of a warp bring to a thing that they do together, and find there afterwards.
union Table {
  uint64_t values[kWarp];
  unsigned votes;
  uint16_t rows[kWarp][8];
  struct {
    float a[16][16], b[16][8], c[16][8];
  } product;
};

struct Warp {
  const char* what = nullptr;
  int line = 0, arrived = 0;
  unsigned ready = 0;  // bit p: the thread at position p of the warp can run
  // Two, in turn: a lane may be at the next meeting while another still reads what this one left, but not further.
  alignas(16) Table tables[2];
  int turn = 0;
};

struct Block {
  dim3 grid, size;
  uint3 index{};
  char* shared = nullptr;
  size_t shared_bytes = 0;
  int count = 0;              // of its threads
  bool down = false;          // whether the last of them runs first
  Thread* threads = nullptr;  // by position
  Warp* warps = nullptr;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  int at_barrier = 0, ended = 0;
  bool votes = false, any = false;  // of the barrier that is waited at, and of the last one
  Thread main;                      // what launched the kernel
  bool entered = false;
  const void* main_bottom = nullptr;
  size_t main_size = 0;
};

// Where a load finds them without a call: the kernels read them at every turn.
#define THREADS_OWN thread_local __attribute__((tls_model("initial-exec")))
inline THREADS_OWN Block* block = nullptr;
inline THREADS_OWN Thread* running = nullptr;
inline THREADS_OWN bool downwards = false;  // the order in which the next block's threads run

inline Thread& self() {
  return *running;
}
EMULATOR_PART inline int lane() {
  return running->number & (kWarp - 1);
}

[[noreturn]] inline void fail(const char* what, int line = 0) {
  fprintf(stderr, "cuda emulation: %s", what);
  if (line != 0) fprintf(stderr, " (line %d)", line);
  if (running != nullptr) fprintf(stderr, ", thread %d", running->number);
  if (block != nullptr) fprintf(stderr, ", block (%u, %u, %u)", block->index.x, block->index.y, block->index.z);
  fprintf(stderr, "\n");
  fflush(stderr);
  abort();
}

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

// Nobody can go on: whatever the threads wait for will not happen. Says it of each run of threads that wait alike.
[[noreturn]] inline void report_deadlock() {
  const Block& b = *block;
  const auto at = [&](int number) -> const Thread& { return b.threads[b.down ? b.count - 1 - number : number]; };
  for (int begin = 0, end = 0; begin < b.count; begin = end) {
    const Thread& thread = at(begin);
    while (end < b.count && at(end).wait == thread.wait && at(end).line == thread.line) ++end;
    if (thread.wait == Wait::forever) {
      fprintf(stderr, "cuda emulation: threads %d to %d have ended\n", begin, end - 1);
    } else {
      fprintf(stderr, "cuda emulation: threads %d to %d wait %s, line %d\n", begin, end - 1,
              thread.wait == Wait::block ? "at a barrier" : "for their warp", thread.line);
    }
  }
  running = nullptr;
  fail("a barrier was not reached by all threads");
}

// All threads are at the barrier: they may go on.
EMULATOR inline void open_barrier() {
  Block& b = *block;
  for (int i = 0; i < b.count; ++i) {
    if (b.threads[i].line != b.threads[0].line) report_deadlock();
  }
  for (int i = 0; i < b.count; ++i) b.threads[i].wait = Wait::nothing;
  for (int i = 0; i < b.count / kWarp; ++i) b.warps[i].ready = 0xFFFFFFFFu;
  b.any = b.votes;
  b.votes = false;
  b.at_barrier = 0;
}

// Who goes on when the running thread cannot: the next of its warp, or else the first of the first warp that can.
EMULATOR inline Thread* next_thread() {
  Block& b = *block;
  const int position = running->position, place = position % kWarp, warp = position / kWarp;
  if (const unsigned ready = b.warps[warp].ready; ready != 0) {
    const unsigned from_here = ready >> place | ready << (kWarp - place) % kWarp;
    return &b.threads[warp * kWarp + (place + __builtin_ctz(from_here)) % kWarp];
  }
  if (b.at_barrier == b.count) open_barrier();
  for (int i = 0; i < b.count / kWarp; ++i) {
    if (b.warps[i].ready != 0) return &b.threads[i * kWarp + __builtin_ctz(b.warps[i].ready)];
  }
  if (b.ended == b.count) return &b.main;
  report_deadlock();
}

// The running thread waits, for good where it has ended.
EMULATOR inline void wait(Wait what, int line) {
  Thread& thread = *running;
  thread.wait = what;
  thread.line = line;
  block->warps[thread.position / kWarp].ready &= ~(1u << thread.position % kWarp);
  Thread* next = next_thread();
  if (next == &thread) return;
  running = next;
#if defined(__SANITIZE_ADDRESS__)
  if (next == &block->main) __sanitizer_start_switch_fiber(nullptr, block->main_bottom, block->main_size);
#endif
  sinmdm_emulation_switch(&thread.stack, next->stack);
}

// The first function of every thread.
EMULATOR inline void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  if (!block->entered) __sanitizer_finish_switch_fiber(nullptr, &block->main_bottom, &block->main_size);
#endif
  block->entered = true;
  block->body(block->arguments);
  if (!running->copies.empty()) fail("a thread ended before it waited for its asynchronous copies");
  ++block->ended;
  wait(Wait::forever, 0);
  fail("a thread that has ended was run again");
}

// The stacks of `count` threads, kept for the next launch; the page below each may not be touched. They are one piece
// of memory, which for AddressSanitizer is one stack: it need not hear of every change from thread to thread.
inline char* stack_memory(size_t count) {
  static thread_local char* memory = nullptr;
  static thread_local size_t have = 0;
  if (have >= count) return memory;
  if (memory != nullptr) munmap(memory, have * kStack);
  void* mapped =
      mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) fail("no memory for the threads' stacks");
  memory = static_cast<char*>(mapped);
  have = count;
  for (size_t i = 0; i < count; ++i) mprotect(memory + i * kStack, kPage, PROT_NONE);
  return memory;
}

EMULATOR inline void run_block(Block& state, char* stacks) {
  state.down = downwards;
  downwards = !downwards;
  const unsigned width = state.size.x, height = state.size.y;
  for (int i = 0; i < state.count; ++i) {
    Thread& thread = state.threads[i];
    thread.position = i;
    thread.number = state.down ? state.count - 1 - i : i;
    const auto number = static_cast<unsigned>(thread.number);
    thread.index = {number % width, number / width % height, number / (width * height)};
    thread.wait = Wait::nothing;
    thread.groups.clear();
    // Aligned to 16 bytes after the return address, and elsewhere in its page than its neighbours: else the tops of all
    // stacks would compete for the same lines of the cache.
    char* top = stacks + (i + 1) * kStack - i * 7 % 64 * 64;
    void** frame = reinterpret_cast<void**>(top) - 2;
    *frame = reinterpret_cast<void*>(&run_thread);
    thread.stack = frame - 6;  // six registers of any value
  }
  for (int i = 0; i < state.count / kWarp; ++i) {
    state.warps[i].arrived = 0;
    state.warps[i].ready = 0xFFFFFFFFu;
  }
  state.at_barrier = state.ended = 0;
  state.votes = state.entered = false;
  block = &state;
  running = &state.threads[0];
#if defined(__SANITIZE_ADDRESS__)
  void* kept = nullptr;
  __sanitizer_start_switch_fiber(&kept, stacks, state.count * kStack);
#endif
  sinmdm_emulation_switch(&state.main.stack, running->stack);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(kept, nullptr, nullptr);
#endif
  block = nullptr;
  running = nullptr;
}

// All threads of a block.
EMULATOR inline void barrier(int line, bool vote = false) {
  ++block->at_barrier;
  block->votes |= vote;
  wait(Wait::block, line);
}

// Of the next meeting of the running thread's warp.
EMULATOR_PART inline Table& table() {
  Warp& warp = block->warps[static_cast<unsigned>(running->position) / kWarp];
  return warp.tables[warp.turn];
}

// All 32 threads of a warp. True for the last one, which then may do something for all of them: nobody else runs until
// it waits. What they bring lies in `table`, each puts it there before and finds the result afterwards.
EMULATOR inline bool meet(const char* what, int line) {
  Warp& warp = block->warps[static_cast<unsigned>(running->position) / kWarp];
  if (warp.arrived == 0) {
    warp.what = what, warp.line = line;
  } else if (warp.what != what || warp.line != line) {
    fprintf(stderr, "cuda emulation: lane %d does %s (line %d) where others do %s (line %d)\n", lane(), what, line,
            warp.what, warp.line);
    fail("the threads of a warp do not act together");
  }
  if (++warp.arrived < kWarp) {
    wait(Wait::warp, line);
    return false;
  }
  Thread* threads = running - running->position % kWarp;
  for (int i = 0; i < kWarp; ++i) threads[i].wait = Wait::nothing;
  warp.ready = 0xFFFFFFFFu;
  warp.arrived = 0;
  warp.turn ^= 1;
  return true;
}

// The value that lane `from` brings.
EMULATOR inline uint64_t exchange_bits(const char* what, int line, uint64_t bits, int from) {
  Table& shared = table();
  shared.values[lane()] = bits;
  meet(what, line);
  return shared.values[from];
}

template <typename T>
T exchange(const char* what, int line, T value, int from) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange_bits(what, line, bits, from);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

EMULATOR inline unsigned ballot(int line, bool vote) {
  Table& shared = table();
  if (block->warps[static_cast<unsigned>(running->position) / kWarp].arrived == 0) shared.votes = 0;
  shared.votes |= static_cast<unsigned>(vote) << lane();
  meet("a vote", line);
  return shared.votes;
}

inline void require_full(unsigned mask, int line) {
  if (mask != 0xFFFFFFFFu) fail("only whole warps are emulated: a mask must be 0xffffffff", line);
}

// The oldest group of copies.
inline void land_group(Thread& thread) {
  const auto end = thread.copies.begin() + static_cast<std::ptrdiff_t>(thread.groups.front());
  for (auto copy = thread.copies.begin(); copy != end; ++copy) {
    if (copy->present) {
      memcpy(copy->to, copy->from, 16);
    } else {
      memset(copy->to, 0, 16);
    }
  }
  thread.copies.erase(thread.copies.begin(), end);
  thread.groups.erase(thread.groups.begin());
}

// Appends to the file that SINMDM_EMULATION_LAUNCHES names, if there is that variable, where in this library the kernel
// lies and which of its exported functions are launching it; once a process.
inline void log_launch(const void* kernel) {
  static const char* const path = getenv("SINMDM_EMULATION_LAUNCHES");
  static std::set<std::pair<const void*, const void*>> known;
  if (path == nullptr) return;
  void* frames[32];
  const int depth = backtrace(frames, 32);
  for (int i = 0; i < depth; ++i) {
    Dl_info of_kernel, caller;
    if (dladdr(kernel, &of_kernel) == 0 || dladdr(frames[i], &caller) == 0) continue;
    if (caller.dli_fbase != of_kernel.dli_fbase || caller.dli_sname == nullptr) continue;
    if (!known.insert({kernel, caller.dli_saddr}).second) continue;
    FILE* file = fopen(path, "a");
    if (file == nullptr) fail("the file of SINMDM_EMULATION_LAUNCHES cannot be written");
    fprintf(
        file, "%lx %s\n",
        static_cast<unsigned long>(static_cast<const char*>(kernel) - static_cast<const char*>(of_kernel.dli_fbase)),
        caller.dli_sname);
    fclose(file);
  }
}

// The kernels that may have more shared memory than by default, and how much.
inline std::map<const void*, size_t>& leave() {
  static thread_local std::map<const void*, size_t> given;
  return given;
}

inline void check_launch(const void* kernel, dim3 grid, size_t threads, size_t shared_bytes) {
  if (threads == 0 || threads > 1024 || threads % kWarp != 0) fail("a block must be of 1 to 32 whole warps");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("no such grid");
  const auto given = leave().find(kernel);
  if (shared_bytes > (given == leave().end() ? kSharedByDefault : given->second)) {
    fail("a launch asks for more shared memory than its kernel was given leave for");
  }
}

}  // namespace emulation

inline void __syncthreads(int line = __builtin_LINE()) {
  emulation::barrier(line);
}
inline int __syncthreads_or(int vote, int line = __builtin_LINE()) {
  emulation::barrier(line, vote != 0);
  return emulation::block->any;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  emulation::meet("__syncwarp", line);
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
  return emulation::exchange("__shfl_xor_sync", line, value, emulation::lane() ^ by);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int by, int line = __builtin_LINE()) {
  emulation::require_full(mask, line);
  const int lane = emulation::lane();
  return emulation::exchange("__shfl_down_sync", line, value, lane + by < emulation::kWarp ? lane + by : lane);
}

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
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

// An error, as a GPU gives one, where not every architecture has as much shared memory.
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  const auto address = reinterpret_cast<const void*>(kernel);
  if (bytes < 0 || static_cast<size_t>(bytes) > emulation::shared_at_most) return cudaErrorInvalidValue;
  emulation::leave()[address] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "more than 99 KiB of shared memory, which not every device has";
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 size = config->blockDim, grid = config->gridDim;
  const size_t count = static_cast<size_t>(size.x) * size.y * size.z, shared_bytes = config->dynamicSmemBytes;
  const auto address = reinterpret_cast<const void*>(kernel);
  emulation::check_launch(address, grid, count, shared_bytes);
  emulation::log_launch(address);
  const auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  char* stacks = emulation::stack_memory(count);
  std::vector<emulation::Thread> threads(count);
  std::vector<emulation::Warp> warps(count / emulation::kWarp);
  emulation::Block block;
  block.grid = grid, block.size = size, block.count = static_cast<int>(count);
  block.threads = threads.data(), block.warps = warps.data();
  block.body = [](const void* given) { (*static_cast<decltype(body)*>(given))(); };
  block.arguments = &body;
  block.shared_bytes = shared_bytes;
  block.shared = static_cast<char*>(::operator new(shared_bytes, std::align_val_t(128)));
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block.index = {x, y, z};
        memset(block.shared, 0xFF, shared_bytes);
        emulation::run_block(block, stacks);
      }
    }
  }
  ::operator delete(block.shared, std::align_val_t(128));
  return cudaSuccess;
}

#define threadIdx (emulation::self().index)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)
