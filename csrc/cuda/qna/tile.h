// How qna_attention is cut for a GPU, and what its kernels do with the rows of a tile in shared memory.
//
// A block owns a tile of one sequence: some neighbouring outputs (in the backward: keys) of some neighbouring heads. It
// walks over the columns of the window, `columns` at a time (the networks' windows are one such step), and copies what
// its tile sees there to shared memory: each number comes from device memory once, and the columns - 1 rows that two
// neighbouring tiles share come a second time from the second cache.
//
// A row is the channels of one head at one frame, cut into chunks of 16 bytes; the last may be filled up with zeros. In
// memory and here the heads of a frame lie side by side, so that neighbouring threads, each with a chunk, copy and read
// a whole frame of the tile. Frames are an odd number of chunks apart: a chunk of 8 frames lies in 8 different banks.
//     frame 0   | head 0: chunk 0, chunk 1, ... | head 1: ... | ... |
//     frame 1   | ...
// A thread holds its chunk of kTogether neighbouring outputs, its group, in registers: every row that is read from
// shared memory serves all of them. Their weights lie in the order in which they are used, as a band that is skewed by
// one output a column (here of 4 outputs, 3 columns, stride 1; ".": not of the window, never used), one access of 16
// bytes a row. Groups are an odd number of such accesses apart, so that those of a warp go to different banks.
//     row 0   w00  .    .    .
//     row 1   w01  w10  .    .
//     row 2   w02  w11  w20  .
//     row 3   .    w12  w21  w30
//     row 4   .    .    w22  w31
//     row 5   .    .    .    w32
#pragma once

#include <algorithm>

#include "cuda/device.h"
#include "cuda/ptx.h"
#include "cuda/qna/problem.h"

namespace sinmdm::cuda::qna {

constexpr int kThreads = 256;            // of a block, at most
constexpr int kColumns = 16;             // of the window that are taken at a time, at most
constexpr int kFrameChunks = 32;         // of a tile's heads at one frame, at most, unless it is one head
constexpr int kSharedBytes = 64 * 1024;  // of a block, at most, as long as it has groups to give up
constexpr int kBlocks = 132;             // if there are fewer they are cut smaller: an H200's multiprocessors

template <typename T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // elements of a chunk
template <typename T>
constexpr int kTogether = 16 / static_cast<int>(sizeof(Computed<T>));  // outputs, or keys, of a group
template <typename T>
constexpr int kResident = sizeof(T) == 8 ? 2 : 3;  // blocks of a multiprocessor that registers must suffice for
template <typename T>
constexpr bool kTensorCores = sizeof(T) == 2;  // multiply the rows; float32 and float64 must not be rounded for them

template <typename T>
struct alignas(16) Chunk {
  T x[kChunk<T>];
};

// Divides by a number that a launch has in common, without the two dozen instructions of a division.
struct Divisor {
  int number = 1, shift = 31;
  uint32_t factor = 1u << 31;  // 2^shift / number, rounded up: exact for what is below 2^31

  Divisor() = default;
  explicit Divisor(int n) : number(n) {
    while (int64_t{1} << (shift - 31) < n) ++shift;
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + n - 1) / n);
  }
  __device__ __forceinline__ int quotient(int x) const {
    return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(x)) * factor >> shift);
  }
  __device__ __forceinline__ int remainder(int x) const { return x - quotient(x) * number; }
};

// How a launch is cut. Nothing of it depends on the device.
struct Tile {
  int heads, sets;       // of a tile, and such sets of heads of a frame
  int chunks;            // of a row
  int groups;            // of kTogether outputs or keys
  int columns, step;     // columns at a time, and rows from what an output sees there to what the next does
  int pitch, row_bytes;  // numbers from group to group of the weights, bytes from frame to frame
  int64_t tiles;         // of a sequence
  int threads;
  Divisor by_heads, by_sets, by_chunks, by_width, by_tiles;
  // Where things lie in shared memory: rows of the other side and, in the backward, of the tile's own; weights, and
  // products of rows in the same order; numbers of the other side's rows, of the bias, and of the tile's own rows.
  int rows, own_rows, weights, products, others, bias, own, shared_bytes;

  int64_t blocks(const Problem& p) const { return p.batch * tiles * sets; }
};

// For `count` outputs or keys a sequence. products: whether own rows are multiplied with the others; numbers: how many
// go with each of the others.
template <typename T>
Tile tile_of(const Problem& p, int64_t count, int step, bool products, int numbers) {
  const auto ceil_div = [](auto a, auto b) { return (a + b - 1) / b; };
  Tile t;
  t.chunks = ceil_div(p.dim, kChunk<T>);
  if (products && kTensorCores<T>) t.chunks += t.chunks % 2;  // which take two at a time: zeros may follow head_dim
  t.sets = ceil_div(p.heads, std::max(1, kFrameChunks / t.chunks));
  t.heads = ceil_div(p.heads, t.sets);
  t.columns = static_cast<int>(std::min<int64_t>(p.size, kColumns));
  t.step = step;
  const int width = t.heads * t.chunks, band = (kTogether<T> - 1) * step + t.columns;
  t.pitch = (band | 1) * kTogether<T>;
  t.row_bytes = (width | 1) * 16;
  const auto cut = [&](int groups) {
    constexpr int kNumber = static_cast<int>(sizeof(Computed<T>));
    const int owned = groups * kTogether<T>, staged = (owned - 1) * step + t.columns;
    t.groups = groups, t.tiles = ceil_div(count, static_cast<int64_t>(owned));
    t.threads = ceil_div(groups * width, 32) * 32;
    t.shared_bytes = 0;
    const auto take = [&](int bytes) {
      const int begin = t.shared_bytes;
      t.shared_bytes += ceil_div(bytes, 16) * 16;
      return begin;
    };
    t.rows = take(staged * t.row_bytes);
    t.own_rows = take(products ? owned * t.row_bytes : 0);
    t.weights = take(groups * t.heads * t.pitch * kNumber);
    t.products = take(products ? groups * t.heads * t.pitch * kNumber : 0);
    t.others = take(numbers * staged * t.heads * kNumber);
    t.bias = take(t.columns * t.heads * kNumber);
    t.own = take(3 * owned * t.heads * kNumber);
  };
  // 32 outputs of the networks' heads. Of narrower ones more, so that a block has warps; of wider ones fewer.
  const int most = std::max(1, kThreads / width);
  cut(std::min(std::max(8, 64 / width), most));
  if (t.blocks(p) < kBlocks) cut(std::min(t.groups, 4));
  while (t.shared_bytes > kSharedBytes && t.groups > 1) cut(t.groups / 2);
  t.by_heads = Divisor(t.heads), t.by_sets = Divisor(t.sets), t.by_chunks = Divisor(t.chunks);
  t.by_width = Divisor(width), t.by_tiles = Divisor(static_cast<int>(t.tiles));
  return t;
}

struct Range {
  int64_t begin, end;
};

// Columns or rows of a step.
struct Part {
  int begin, end;
  __device__ __forceinline__ bool has(int x) const { return x >= begin && x < end; }
};

// What the backward has to know of an output: its highest logit, one over its sum of weights, rowsum(P dP).
template <typename C>
struct alignas(16) Statistics {
  C highest, reciprocal, delta, unused;
};

__device__ __forceinline__ float exponential(float x) {
  return exp2f(x * 1.4426950408889634f);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}
// The one that is no NaN.
__device__ __forceinline__ float larger(float a, float b) {
  return fmaxf(a, b);
}
__device__ __forceinline__ double larger(double a, double b) {
  return fmax(a, b);
}

template <typename T>
__device__ __forceinline__ const Chunk<T>& chunk_in(const char* shared) {
  return *reinterpret_cast<const Chunk<T>*>(shared);
}
template <typename T>
__device__ __forceinline__ void widen_chunk(const Chunk<T>& from, Computed<T> (&to)[kChunk<T>]) {
  const Chunk<T> chunk = from;
#pragma unroll
  for (int e = 0; e < kChunk<T>; ++e) to[e] = widen(chunk.x[e]);
}

// A block's view of its tile, and of its thread's place there.
template <typename T>
struct Block {
  using C = Computed<T>;
  static constexpr int kGroup = kTogether<T>;

  const Problem& p;
  const Tile& tile;
  int64_t batch, first, n;  // sequence, its first output or key here, and its real frames
  int number;               // of the tile, among those of the batch
  int first_head;
  int group, place;  // of this thread's chunk: group, and which chunk of a frame of the tile

  __device__ __forceinline__ Block(const Problem& problem, const Tile& cut) : p(problem), tile(cut) {
    const auto block = static_cast<int>(blockIdx.x);
    number = tile.by_sets.quotient(block), first_head = tile.by_sets.remainder(block) * tile.heads;
    batch = tile.by_tiles.quotient(number);
    first = static_cast<int64_t>(tile.by_tiles.remainder(number)) * (tile.groups * kGroup);
    n = p.frames;
    if (p.lengths != nullptr) {  // the caller's promise: a broken one must not read elsewhere
      const int64_t given = p.lengths_int32 ? static_cast<const int32_t*>(p.lengths)[batch]
                                            : static_cast<const int64_t*>(p.lengths)[batch];
      n = max(int64_t{0}, min(given, p.frames));
    }
    group = tile.by_width.quotient(static_cast<int>(threadIdx.x));
    place = tile.by_width.remainder(static_cast<int>(threadIdx.x));
  }

  // Of this thread's chunk: its head within the tile, its first channel; whether there is such a chunk.
  __device__ __forceinline__ int head() const { return tile.by_chunks.quotient(place); }
  __device__ __forceinline__ int channel() const { return tile.by_chunks.remainder(place) * kChunk<T>; }
  __device__ __forceinline__ bool active() const { return group < tile.groups && first_head + head() < p.heads; }

  __device__ __forceinline__ C* numbers(int begin) const { return reinterpret_cast<C*>(shared_memory() + begin); }

  // (output or key, head) pairs of the tile are numbered group by group, then head by head.
  __device__ __forceinline__ int pair_of_group(int r) const { return (group * tile.heads + head()) * kGroup + r; }
  __device__ __forceinline__ int head_of(int pair) const { return tile.by_heads.remainder(pair / kGroup); }
  __device__ __forceinline__ int place_of(int pair) const {
    return tile.by_heads.quotient(pair / kGroup) * kGroup + pair % kGroup;
  }
  // Where the pair's weight, or product, of the step's column 0 is; that of column c is kGroup * c further on.
  __device__ __forceinline__ int band_of(int pair) const {
    return pair / kGroup * tile.pitch + pair % kGroup * (tile.step * kGroup + 1);
  }

  __device__ __forceinline__ Statistics<C>& statistics(void* of_all, int64_t t, int h) const {
    return static_cast<Statistics<C>*>(of_all)[(batch * p.outputs + t) * p.heads + h];
  }

  // Columns in which any of the frames low ... high meets a frame, where column 0 is that of `back` frames earlier.
  __device__ __forceinline__ Range columns_met(int64_t low, int64_t high, int64_t back) const {
    if (low >= n) return {0, 0};
    if (p.circular) return {0, p.size};
    return {max(int64_t{0}, back - high), min(p.size, n + back - low)};
  }

  // A slot is a place on the axis that windows are laid on: a frame; or nothing; or under "circular" a number whose
  // remainder modulo n is the frame. Of the `count` slots from `first` on those that are frames themselves:
  __device__ __forceinline__ Part frames_among(int64_t first, int count) const {
    const auto place = [&](int64_t slot) {
      return static_cast<int>(max(int64_t{0}, min(slot - first, static_cast<int64_t>(count))));
    };
    return {place(0), place(n)};
  }
  // The frame at any slot, or -1.
  __device__ __forceinline__ int64_t frame_at(int64_t slot) const {
    if (slot >= 0 && slot < n) return slot;
    if (!p.circular) return -1;
    const int64_t frame = slot % n;
    return frame < 0 ? frame + n : frame;
  }

  // This thread's chunk in device memory, of the row that is number `frame` there.
  __device__ __forceinline__ T* chunk_at(const Rows& rows, int64_t frame) const {
    return static_cast<T*>(rows.data) + batch * rows.batch + (first_head + head()) * rows.head + channel() +
           frame * rows.frame;
  }
  __device__ __forceinline__ void store(const Rows& to, int64_t frame, const C (&from)[kChunk<T>]) const {
    T* at = chunk_at(to, frame);
    Chunk<T> chunk;
#pragma unroll
    for (int e = 0; e < kChunk<T>; ++e) chunk.x[e] = narrow<T>(from[e]);
    if (to.aligned) {
      if (channel() < p.dim) *reinterpret_cast<Chunk<T>*>(at) = chunk;
      return;
    }
#pragma unroll
    for (int e = 0; e < kChunk<T>; ++e) {
      if (channel() + e < p.dim) at[e] = chunk.x[e];
    }
  }

  // This thread's chunk of `count` rows to shared memory at `to`: row x from number_of(x), zeros where that is
  // negative.
  template <typename NumberOf>
  __device__ __forceinline__ void stage(const Rows& from, int count, int to, const NumberOf& number_of) const {
    if (!active()) return;
    const T* source = chunk_at(from, 0);
    char* target = shared_memory() + to + place * 16;
    for (int x = group; x < count; x += tile.groups) {
      const int64_t number = number_of(x);
      const T* at = source + (number >= 0 ? number : 0) * from.frame;
      if (from.aligned) {
        copy_async_16(target + x * tile.row_bytes, at, number >= 0 && channel() < p.dim);
      } else {
        Chunk<T> chunk;
#pragma unroll
        for (int e = 0; e < kChunk<T>; ++e) {
          chunk.x[e] = number >= 0 && channel() + e < p.dim ? at[e] : narrow<T>(0);
        }
        *reinterpret_cast<Chunk<T>*>(target + x * tile.row_bytes) = chunk;
      }
    }
    copy_async_commit();
  }

  // Calls body(x, head of the tile, index) for each of `count` rows and each head, by turns among the threads.
  template <typename Body>
  __device__ __forceinline__ void for_each_head(int count, const Body& body) const {
    for (int index = threadIdx.x; index < count * tile.heads; index += blockDim.x) {
      const int h = first_head + tile.by_heads.remainder(index);
      if (h < p.heads) body(tile.by_heads.quotient(index), h, index);
    }
  }

  __device__ __forceinline__ C score_at(int64_t frame, int h) const {
    return widen(
        static_cast<const T*>(p.scores.data)[batch * p.scores.batch + frame * p.scores.frame + h * p.scores.head]);
  }
  __device__ __forceinline__ C bias_at(int64_t column, int h) const {
    const int64_t at = h * p.bias_head + column * p.bias_column;
    return p.bias_float32 ? static_cast<const float*>(p.bias)[at] : widen(static_cast<const T*>(p.bias)[at]);
  }

  // Products of each group's own rows with the others in its band.
  __device__ __forceinline__ void multiply_rows(int columns) const {
    const int band = (kGroup - 1) * tile.step + columns;
    if constexpr (kTensorCores<T>) {
      multiply_by_warps(columns, band);
    } else {
      multiply_by_threads(band);
    }
  }
  // Neighbouring threads take neighbouring rows of the others against the same own ones, two rows a thread.
  __device__ __forceinline__ void multiply_by_threads(int band) const {
    const int half = (band + 1) / 2;
    for (int item = threadIdx.x; item < tile.groups * tile.heads * half; item += blockDim.x) {
      const int place = item / half, x0 = item % half, x1 = min(x0 + half, band - 1);
      const int row = tile.by_heads.quotient(place) * kGroup * tile.row_bytes;
      const int at_head = tile.by_heads.remainder(place) * tile.chunks * 16;
      const char* own = shared_memory() + tile.own_rows + row + at_head;
      const char* other = shared_memory() + tile.rows + row * tile.step + at_head;
      Chunk<C> product0{}, product1{};
      for (int chunk = 0; chunk < tile.chunks; ++chunk, own += 16, other += 16) {
        C other0[kChunk<T>], other1[kChunk<T>];
        widen_chunk(chunk_in<T>(other + x0 * tile.row_bytes), other0);
        widen_chunk(chunk_in<T>(other + x1 * tile.row_bytes), other1);
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
          C value[kChunk<T>], term0 = 0, term1 = 0;  // a chunk's terms by themselves: long chains lose accuracy
          widen_chunk(chunk_in<T>(own + r * tile.row_bytes), value);
#pragma unroll
          for (int e = 0; e < kChunk<T>; ++e) term0 += other0[e] * value[e], term1 += other1[e] * value[e];
          product0.x[r] += term0, product1.x[r] += term1;
        }
      }
      auto* to = reinterpret_cast<Chunk<C>*>(numbers(tile.products) + place * tile.pitch);
      to[x0] = product0;
      if (x0 + half < band) to[x1] = product1;
    }
  }
  // A warp takes 16 own rows of a head against 16 of the others at a time. Fragments lie as ptx.h says.
  __device__ __forceinline__ void multiply_by_warps(int columns, int band) const {
    const int owned = tile.groups * kGroup, lane = threadIdx.x % 32;
    for (int task = threadIdx.x / 32; task < (owned + 15) / 16 * tile.heads; task += blockDim.x / 32) {
      const int h = tile.by_heads.remainder(task), first_row = tile.by_heads.quotient(task) * 16;
      const int last_row = min(first_row + 16, owned) - 1, at_head = h * tile.chunks * 16;
      const int last = last_row * tile.step + columns - 1;  // of the others that meet these
      const char* own = shared_memory() + tile.own_rows + at_head + lane / 16 * 16 +
                        min(first_row + lane % 16, last_row) * tile.row_bytes;
      const char* others = shared_memory() + tile.rows + at_head + lane / 8 % 2 * 16;
      // Of the two rows whose products come to this lane: their group's band, its length, the row that it begins with.
      C* to[2];
      int limit[2], begin[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first_row + lane / 4 + 8 * i, place = row / kGroup;
        to[i] = numbers(tile.products) + (place * tile.heads + h) * tile.pitch + row % kGroup;
        limit[i] = row <= last_row ? band : 0, begin[i] = place * kGroup * tile.step - lane % 4 * 2;
      }
      for (int x0 = first_row * tile.step; x0 <= last; x0 += 16) {
        const char* other = others + min(x0 + lane % 8 + lane / 16 * 8, last) * tile.row_bytes;
        float sums[2][4] = {};
        for (int at = 0; at < tile.chunks * 16; at += 32) {
          uint32_t a[4], b[4];
          load_matrices(a, own + at);
          load_matrices(b, other + at);
          multiply_add<T>(sums[0], a, b[0], b[1]);
          multiply_add<T>(sums[1], a, b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int x = x0 + i / 4 * 8 + i % 2 - begin[i % 4 / 2];
          if (x >= 0 && x < limit[i % 4 / 2]) to[i % 4 / 2][x * kGroup] = sums[i / 4][i % 4];
        }
      }
    }
  }

  // The group's sums += weights times the staged rows that each of its outputs sees. A row outside an output's window
  // may hold an infinity or NaN, and is left out rather than weighed with 0.
  __device__ __forceinline__ void add_rows(int columns, C (&sums)[kGroup][kChunk<T>]) const {
    const int ramp = (kGroup - 1) * tile.step;
    const C* weights = numbers(tile.weights) + (group * tile.heads + head()) * tile.pitch;
    const char* row = shared_memory() + tile.rows + group * kGroup * tile.step * tile.row_bytes + place * 16;
    int x = 0;
    for (; x < ramp; ++x) add_row<false>(weights, row, x, columns, sums);
    for (; x < columns; ++x) add_row<true>(weights, row, x, columns, sums);
    for (; x < ramp + columns; ++x) add_row<false>(weights, row, x, columns, sums);
  }
  template <bool kAllSee>
  __device__ __forceinline__ void add_row(const C* weights, const char* row, int x, int columns,
                                          C (&sums)[kGroup][kChunk<T>]) const {
    const auto weight = *reinterpret_cast<const Chunk<C>*>(weights + x * kGroup);
    C value[kChunk<T>];
    widen_chunk(chunk_in<T>(row + x * tile.row_bytes), value);
#pragma unroll
    for (int r = 0; r < kGroup; ++r) {
      if (kAllSee || static_cast<unsigned>(x - r * tile.step) < static_cast<unsigned>(columns)) {
#pragma unroll
        for (int e = 0; e < kChunk<T>; ++e) sums[r][e] += weight.x[r] * value[e];
      }
    }
  }
};

// Calls body(T()) with the type of the elements.
template <typename Body>
auto with_element(Element element, const Body& body) {
  switch (element) {
    case Element::float32:
      return body(float());
    case Element::float64:
      return body(double());
    case Element::float16:
      return body(__half());
    default:
      return body(__nv_bfloat16());
  }
}

}  // namespace sinmdm::cuda::qna
