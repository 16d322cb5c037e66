// What the kernels on diffusion states share: which elements a thread has, and their loads, stores and noise.
//
// A tile is kTile elements of one row (element = frame * channels + channel), and a block's own. Its elements go to the
// threads in groups of four, so that a warp's groups lie side by side and a thread has its loads in flight together:
//
//   elements  0 - 3   4 - 7  ... 252 - 255  256 - 259  ...  ... 1020 - 1023
//   thread      0       1    ...     63          0      ...  ...      63
//   its group   0       0    ...      0          1      ...  ...       3
//
// Where noise is drawn, a group is a counter: the tiles of a row whose first element is number `first` of its stream
// begin first % 4 elements earlier, and what then lies before the row or behind it is left out.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/normals.h"

namespace sinmdm::cuda {

// A normal costs about as many instructions as a GPU issues while memory brings its element. Four groups: what a thread
// does once is then a small part of them, and enough loads are in flight. Small blocks: a motion of 200 frames is to
// reach many multiprocessors. kBlocks on each of these is what the registers are cut for.
constexpr int kThreads = 64, kGroups = 4, kStride = 4 * kThreads, kTile = kGroups * kStride, kBlocks = 10;

// A number for each element of a thread's groups.
using Groups = float[kGroups][4];

template <typename Body>
__device__ __forceinline__ void each(const Body& body) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) body(j, i);
  }
}

__device__ __forceinline__ bool given(const State& state) {
  return state.data != nullptr;
}

__device__ __forceinline__ bool draws(const Draw& draw) {
  return draw.step.data != nullptr;
}

__device__ __forceinline__ int64_t of_row(const Integers& integers, int64_t row) {
  return integers.data[row * integers.stride];
}

// Where a thread's first group lies.
struct Place {
  int64_t row, begin;  // begin: its first element in the row, from -3 on
  uint64_t counter;
};

// A thread's groups. kWhole: all of the tile is the row's, and every state packed; the rest then has no meaning.
template <bool kWhole>
struct Part : Place {
  int low, high;  // of the elements from `begin` on, those that are the row's; none where `high` is not above 0
  bool cut;       // the row's ends go through a group
  // For states that are not read by groups: where `begin` lies, how far it is from a group to the next, and bits: for
  // each element whether it is a frame's last, and from bit 16 on for each group whether the next one's channel, so
  // many further, is in the frame after.
  int frame, frames_on;
  uint32_t channel, channels_on, bits;

  // Whether element i of group j is the row's.
  __device__ __forceinline__ bool inside(int j, int i) const {
    return kWhole || ((j > 0 || i >= low) && j * kStride + i < high);
  }

  // Where group j begins, from `begin` on; one beyond the row is read as the first, and not written.
  __device__ __forceinline__ int at(int j) const { return kWhole || j * kStride < high ? j * kStride : 0; }

  __device__ __forceinline__ void find_ends(int64_t begin_of_tile, int64_t elements) {
    low = begin < 0 ? static_cast<int>(-begin) : 0;
    high = static_cast<int>(min(elements - begin_of_tile, int64_t{kTile}) - (begin - begin_of_tile));
    const int beyond = high % kStride;
    cut = low > 0 || (beyond > 0 && beyond < 4);
  }

  __device__ __forceinline__ void find_frames(uint32_t channels) {
    const uint64_t element = static_cast<uint64_t>(begin + 4 * static_cast<int64_t>(channels));  // not below 0
    frame = static_cast<int>(static_cast<int64_t>(element / channels) - 4);
    channel = static_cast<uint32_t>(element % channels);
    frames_on = static_cast<int>(kStride / channels);
    channels_on = kStride % channels;
    bits = 0;
    uint32_t first = channel;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      uint32_t here = first;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool last = ++here == channels;
        bits |= static_cast<uint32_t>(last) << (4 * j + i);
        here = last ? 0 : here;
      }
      first += channels_on;
      const bool beyond = first >= channels;
      bits |= static_cast<uint32_t>(beyond) << (16 + j);
      first -= beyond ? channels : 0;
    }
  }

  // Calls body(j, i, place) for each element i of each group j that is the row's, with its place in the row's memory.
  template <typename Body>
  __device__ __forceinline__ void for_each(const State& state, const Body& body) const {
    int64_t group = frame * state.frame + channel * state.channel;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      int64_t place = group;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (inside(j, i)) body(j, i, place);
        place += bits >> (4 * j + i) & 1 ? state.next_frame : state.channel;
      }
      group += frames_on * state.frame + channels_on * state.channel;
      if (bits >> (16 + j) & 1) group += state.next_frame - state.channel;
    }
  }
};

// Calls body(part) with this thread's part of the block's tile, if it has one.
template <typename Body>
__device__ __forceinline__ void with_part(const Sizes& sizes, const Draw& draw, const Body& body) {
  const int64_t row = blockIdx.z * gridDim.y + blockIdx.y;
  if (row >= sizes.rows) return;
  int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  uint64_t counter = static_cast<uint64_t>(blockIdx.x) * (kTile / 4) + threadIdx.x;
  if (draws(draw)) {
    const uint64_t first = static_cast<uint64_t>(of_row(draw.frame, row)) * static_cast<uint64_t>(sizes.channels);
    begin -= static_cast<int64_t>(first % 4);
    counter += first / 4;
  }
  const Place place{row, begin + 4 * threadIdx.x, counter};
  if (sizes.packed && begin >= 0 && begin + kTile <= sizes.elements) {
    body(Part<true>{place});
  } else {
    Part<false> part{place};
    part.find_ends(begin, sizes.elements);
    if (part.high <= 0) return;
    if (!sizes.packed || part.cut) part.find_frames(static_cast<uint32_t>(sizes.channels));
    body(part);
  }
}

// kCount neighbours as one access.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T of[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ bool aligned(const T* first) {
  return reinterpret_cast<uintptr_t>(first) % alignof(Pack<T, kCount>) == 0;
}

template <int kCount, typename T, bool kWhole>
__device__ __forceinline__ void load_packs(const T* first, const Part<kWhole>& part, Groups& to) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int i = 0; i < 4; i += kCount) {
      const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(first + part.at(j) + i);
#pragma unroll
      for (int n = 0; n < kCount; ++n) to[j][i + n] = static_cast<float>(widen(pack.of[n]));
    }
  }
}

template <int kCount, bool kWhole>
__device__ __forceinline__ void store_packs(float* first, const Part<kWhole>& part, const Groups& from) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    if (!part.inside(j, 0)) continue;
#pragma unroll
    for (int i = 0; i < 4; i += kCount) {
      Pack<float, kCount> pack;
#pragma unroll
      for (int n = 0; n < kCount; ++n) pack.of[n] = from[j][i + n];
      *reinterpret_cast<Pack<float, kCount>*>(first + j * kStride + i) = pack;
    }
  }
}

// Packed rows in pieces as large as they lie aligned to; others, and groups that are cut, element by element. Elements
// that are not the row's are anything.
template <typename T, bool kWhole>
__device__ __forceinline__ void load_as(const State& state, const Part<kWhole>& part, Groups& to) {
  const T* row = static_cast<const T*>(state.data) + part.row * state.row;
  if (kWhole || (state.packed && !part.cut)) {
    const T* first = row + part.begin;
    if (aligned<4>(first)) return load_packs<4>(first, part, to);
    if (aligned<2>(first)) return load_packs<2>(first, part, to);
    return load_packs<1>(first, part, to);
  }
  each([&](int j, int i) { to[j][i] = 0.0f; });
  part.for_each(state, [&](int j, int i, int64_t at) { to[j][i] = static_cast<float>(widen(row[at])); });
}

template <bool kWhole>
__device__ __forceinline__ void load(const State& state, const Part<kWhole>& part, Groups& to) {
  load_as<float>(state, part, to);
}

template <bool kWhole>
__device__ __forceinline__ void load_any(const State& state, const Part<kWhole>& part, Groups& to) {
  if (state.element == Element::float32) return load_as<float>(state, part, to);
  if (state.element == Element::bfloat16) return load_as<__nv_bfloat16>(state, part, to);
  if (state.element == Element::float16) return load_as<__half>(state, part, to);
  return load_as<double>(state, part, to);
}

template <bool kWhole>
__device__ __forceinline__ void store(const State& state, const Part<kWhole>& part, const Groups& from) {
  float* row = static_cast<float*>(state.data) + part.row * state.row;
  if (kWhole || (state.packed && !part.cut)) {
    float* first = row + part.begin;
    if (aligned<4>(first)) return store_packs<4>(first, part, from);
    if (aligned<2>(first)) return store_packs<2>(first, part, from);
    return store_packs<1>(first, part, from);
  }
  part.for_each(state, [&](int j, int i, int64_t at) { row[at] = from[j][i]; });
}

// Calls body(j, z) with the noise of each group j: drawn, or that of `noise` where nothing is drawn. False, and no
// call, where there is neither.
template <bool kWhole, typename Body>
__device__ __forceinline__ bool with_noise(const Draw& draw, const State& noise, const Part<kWhole>& part,
                                           const Body& body) {
  if (draws(draw)) {
    const uint32_t step = static_cast<uint32_t>(of_row(draw.step, part.row));
    const uint32_t sample = static_cast<uint32_t>(of_row(draw.sample, part.row));
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      float z[4];
      normals_of(philox4x32_10(counter_of(part.counter + j * kThreads, step, sample), draw.seed), z);
      body(j, z);
    }
    return true;
  }
  if (!given(noise)) return false;
  Groups z;
  load(noise, part, z);
#pragma unroll
  for (int j = 0; j < kGroups; ++j) body(j, z[j]);
  return true;
}

// Launches `kernel` with a block for every tile of every row.
template <typename... Parameters>
int launch_tiles(void (*kernel)(Parameters...), const Sizes& sizes, const Draw& draw, CUstream_st* stream,
                 const typename Same<Parameters>::type&... parameters) {
  if (sizes.rows == 0 || sizes.elements == 0) return cudaSuccess;
  // A row that begins within a counter ends up to three elements later in its tiles.
  const bool shifts = draw.step.data != nullptr && sizes.channels % 4 != 0;
  const int64_t tiles = (sizes.elements + (shifts ? 3 : 0) + kTile - 1) / kTile;
  // Two of the grid's sides end at 65535: rows are cut into parts of one size, the last of which may go beyond them.
  const int64_t parts = (sizes.rows + 65534) / 65535;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>((sizes.rows + parts - 1) / parts),
                  static_cast<unsigned>(parts));
  return launch(kernel, grid, kThreads, 0, stream, parameters...);
}

}  // namespace sinmdm::cuda
