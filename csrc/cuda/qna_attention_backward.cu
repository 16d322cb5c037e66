// qna_attention, backward, with P the weights, dP = dO V^T and delta = rowsum(P dP): dL = P (dP - delta), dV = P^T dO;
// a score has the sum of dL over the outputs that see it, the bias the sums along the diagonals.
//
// Three kernels: `attend` goes once more through the outputs, for their statistics; `through_keys` gathers for each key
// what the outputs that see it give to it; `add_partial` adds up what its tiles have of the bias gradient, in a fixed
// order. Nothing is atomic. Columns are mirrored here: column c of a key is that of the output c frames after the first
// that sees it, right frames before the key; it is column size - 1 - c of the bias.
#include "cuda/qna/attend.h"

namespace sinmdm::cuda::qna {

namespace {

constexpr int kNoOutput = -1;  // in place of a reciprocal, where there is no output

// What one launch of through_keys does: columns [begin, end), to the gradients of keys, or to partial sums of the bias
// gradient (heads, end - begin, tiles of the batch), or to both.
struct Pass {
  int64_t begin, end;
  bool gradients;
  void* partial;
};

// A block owns its keys' rows and walks over the rows of dO that meet them, at every frame, also where a stride leaves
// none. A step has three parts: the products dP; weights and dL, a thread all columns of a (key, head) pair, in place
// of the products; dV, as the forward adds up its outputs, beside the sums of each column over the tile.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    through_keys(const __grid_constant__ Backward p, const __grid_constant__ Tile tile,
                 const __grid_constant__ Pass pass) {
  using C = Computed<T>;
  constexpr int kGroup = kTogether<T>;
  const Block<T> block(p, tile);
  const int owned = tile.groups * kGroup, pairs = owned * tile.heads;
  C* const weights = block.numbers(tile.weights);
  C* const products = block.numbers(tile.products);
  auto* const others = reinterpret_cast<Statistics<C>*>(shared_memory() + tile.others);
  C* const bias = block.numbers(tile.bias);
  C* const scores = block.numbers(tile.own);  // of the keys; the thread's own, as their gradients are
  C* const dscores = scores + pairs;
  for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
    const int64_t j = block.first + block.place_of(pair);
    const int h = block.first_head + block.head_of(pair);
    scores[pair] = j < block.n && h < p.heads ? block.score_at(j, h) : C(0);
    dscores[pair] = 0;
  }
  block.stage(p.values, owned, tile.own_rows, [&](int x) { return block.first + x < block.n ? block.first + x : -1; });

  const int64_t chunks = p.batch * tile.tiles;
  const Range met = block.columns_met(block.first, min(block.first + owned, block.n) - 1, p.right);
  C sums[kGroup][kChunk<T>] = {};
  for (int64_t begin = pass.begin; begin < pass.end; begin += tile.columns) {
    const int columns = static_cast<int>(min(static_cast<int64_t>(tile.columns), pass.end - begin));
    const auto partial = [&](int c, int h) -> C& {
      const int64_t row = h * (pass.end - pass.begin) + (begin - pass.begin + c);
      return static_cast<C*>(pass.partial)[row * chunks + block.number];
    };
    if (begin + columns <= met.begin || begin >= met.end) {
      if (pass.partial != nullptr) block.for_each_head(columns, [&](int c, int h, int) { partial(c, h) = 0; });
      continue;
    }
    const int staged = owned - 1 + columns;
    const int64_t slot = block.first - p.right + begin;
    const Part frames = block.frames_among(slot, p.stride == 1 ? staged : 0);
    const auto output_of = [&](int x) -> int64_t {
      if (frames.has(x)) return slot + x;  // nearly always
      const int64_t frame = block.frame_at(slot + x);
      return frame >= 0 && frame % p.stride == 0 ? frame / p.stride : -1;
    };
    __syncthreads();  // until all have read what this step writes over
    block.stage(p.grad_out, staged, tile.rows, output_of);
    block.for_each_head(staged, [&](int x, int h, int index) {
      const int64_t t = output_of(x);
      others[index] = t >= 0 ? block.statistics(p.scratch, t, h) : Statistics<C>{0, kNoOutput, 0, 0};
    });
    block.for_each_head(columns,
                        [&](int c, int h, int index) { bias[index] = block.bias_at(p.size - 1 - (begin + c), h); });
    copy_async_wait<0>();
    __syncthreads();
    block.multiply_rows(columns);
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
      const int h = block.head_of(pair), place = block.place_of(pair), band = block.band_of(pair);
      const bool present = block.first + place < block.n;
      const C score = scores[pair];
      C dscore = dscores[pair];
      for (int c = 0; c < columns; ++c) {
        const Statistics<C> other = others[(place + c) * tile.heads + h];
        const bool seen = present && other.reciprocal != kNoOutput;
        const C weight = exponential(score + bias[c * tile.heads + h] - other.highest) * other.reciprocal;
        const C dlogit = weight * (products[band + c * kGroup] - other.delta);
        weights[band + c * kGroup] = seen ? weight : C(0);
        products[band + c * kGroup] = seen ? dlogit : C(0);
        dscore += seen ? dlogit : C(0);
      }
      dscores[pair] = dscore;
    }
    __syncthreads();
    if (pass.gradients && block.active()) block.add_rows(columns, sums);
    if (pass.partial != nullptr) {
      block.for_each_head(columns, [&](int c, int h, int) {
        C sum = 0;
        for (int place = 0; place < tile.groups; ++place) {
          const C* at = products + (place * tile.heads + h - block.first_head) * tile.pitch + c * kGroup;
#pragma unroll
          for (int r = 0; r < kGroup; ++r) sum += at[r * (kGroup + 1)];
        }
        partial(c, h) = sum;
      });
    }
  }
  copy_async_wait<0>();  // where the keys' rows were not wanted

  if (!pass.gradients) return;
  for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
    const int64_t j = block.first + block.place_of(pair);
    const int h = block.first_head + block.head_of(pair);
    if (j < p.frames && h < p.heads) {
      static_cast<T*>(p.dscores)[(block.batch * p.frames + j) * p.heads + h] = narrow<T>(dscores[pair]);
    }
  }
  if (!block.active()) return;
#pragma unroll
  for (int r = 0; r < kGroup; ++r) {
    const int64_t j = block.first + block.group * kGroup + r;
    if (j >= p.frames) continue;
#pragma unroll
    for (int e = 0; e < kChunk<T>; ++e) sums[r][e] = j < block.n ? sums[r][e] : C(0);
    block.store(p.dvalues, j, sums[r]);
  }
}

// One block one number of dbias, of head blockIdx.x / columns: the sum of its chunks of `partial`.
template <typename C>
__global__ void __launch_bounds__(kThreads) add_partial(const C* __restrict__ partial, int64_t chunks, int64_t columns,
                                                        C* __restrict__ dbias, int64_t dbias_head) {
  const C* from = partial + blockIdx.x * chunks;
  C sum = 0;
#pragma unroll 4
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) sum += from[chunk];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
  C* const sums = reinterpret_cast<C*>(shared_memory());
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) sum += sums[warp];
  dbias[blockIdx.x / columns * dbias_head - blockIdx.x % columns] = sum;
}

template <typename T>
Tile keys_tile(const Problem& p) {
  return tile_of<T>(p, p.frames, 1, true, sizeof(Statistics<Computed<T>>) / sizeof(Computed<T>));
}

// Columns whose partial sums are held at a time: no more numbers than `values` has.
int64_t columns_together(const Problem& p, const Tile& tile) {
  return std::clamp<int64_t>(p.frames * p.dim / tile.tiles, 1, p.size);
}

template <typename T>
int launch(const Backward& p, CUstream_st* stream) {
  using C = Computed<T>;
  const Tile tile = keys_tile<T>(p);
  const int64_t together = columns_together(p, tile), chunks = p.batch * tile.tiles;
  C* const partial = static_cast<C*>(p.scratch) + 4 * p.batch * p.outputs * p.heads;
  const auto through = [&](const Pass& pass) {
    const dim3 grid(static_cast<unsigned>(tile.blocks(p)));
    return cuda::launch(through_keys<T>, grid, tile.threads, tile.shared_bytes, stream, p, tile, pass);
  };
  int error = launch_attend<T>(p, stream);
  if (error == cudaSuccess && together < p.size) error = through({0, p.size, true, nullptr});
  for (int64_t begin = 0; begin < p.size && error == cudaSuccess; begin += together) {
    const int64_t end = std::min(begin + together, p.size);
    error = through({begin, end, together == p.size, partial});
    if (error != cudaSuccess) break;
    C* const last = static_cast<C*>(p.dbias) + (p.size - 1 - begin);
    const dim3 grid(static_cast<unsigned>(p.heads * (end - begin)));
    error = cuda::launch(add_partial<C>, grid, kThreads, kThreads / 32 * static_cast<int>(sizeof(C)), stream, partial,
                         chunks, end - begin, last, p.dbias_head);
  }
  return error;
}

}  // namespace

int launch_backward(const Backward& p, CUstream_st* stream) {
  return with_element(p.element, [&](auto element) { return launch<decltype(element)>(p, stream); });
}

int64_t scratch_numbers(const Problem& p) {
  const Tile tile = with_element(p.element, [&](auto element) { return keys_tile<decltype(element)>(p); });
  return p.heads * p.batch * (4 * p.outputs + columns_together(p, tile) * tile.tiles);
}

}  // namespace sinmdm::cuda::qna
