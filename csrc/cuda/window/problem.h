// One call of window_attention on a GPU, as plain C++ and the kernels see it.
#pragma once

#include <cstdint>

#include "cuda/element.h"

struct CUstream_st;

namespace sinmdm::cuda::window {

enum class Boundary : int { clip, circular, shift };  // in the order of kernels/_window.py

// A (batch, frames, heads, head_dim) operand with a unit last stride; the others are in elements.
struct Rows {
  void* data = nullptr;
  int64_t batch = 0, frame = 0, head = 0;
};

// A factor in either dtype of the computation, so that a kernel takes it from where its arguments lie.
struct Factor {
  double float64 = 0;
  float float32 = 0;

  Factor() = default;
  explicit Factor(double x) : float64(x), float32(static_cast<float>(x)) {}
};

struct Problem {
  int batch, frames, heads, group, dim;  // group: query heads that share a key head
  int left, size;                        // size = left + right + 1, the keys that a query sees
  int reach;                             // how far back a query may look: left, or size - 1 under "shift"
  int columns;                           // of the bias that any query meets: size, or 2 size - 1 under "shift"
  Boundary boundary;
  Element element;
  bool aligned;               // every row of every operand lies on 16 bytes and is a multiple of them
  Factor scale, score_scale;  // of the products; and in units of log2 e, in which scores are kept
  Rows q, k, v;
  const void* bias;  // (heads, columns), or null; in q's dtype, or bias_float32
  bool bias_float32;
  int64_t bias_head;    // from one head's row to the next one's
  int cut;              // bias columns before the first that any query meets
  const void* lengths;  // (batch), contiguous int64 unless lengths_int32, or null
  bool lengths_int32;
  bool drops;  // dropout: kept are the words above `limit`, their weights times keep_scale
  uint32_t limit;
  Factor keep_scale;
  uint64_t seed;
  void* lse;  // (batch, frames, heads), contiguous, in the dtype of the computation
};

struct Forward : Problem {
  Rows out;
};

struct Backward : Problem {
  Rows grad_out, out, dq, dk, dv;
  const void* grad_lse;  // like lse, or null
  void* delta;           // scratch like lse, for dtypes that store it
  void* partial;         // scratch of the bias gradient's partial sums; null where it is not wanted
  void* dbias;           // (heads, width) in the dtype of the computation
  int width;
};

// The kernels for one type of elements, on the current device. Of results, all are written.
struct Launchers {
  int (*forward)(const Forward& p, CUstream_st* stream);  // to a cudaError_t
  int (*backward)(const Backward& p, CUstream_st* stream);
  int64_t (*partial_numbers)(const Problem& p);  // how many Backward::partial holds
};

extern const Launchers kFloat32, kFloat16, kBfloat16;
extern const Launchers kFloat64;  // not on a GPU, where it is the reference's: SINMDM_WINDOW_FLOAT64

}  // namespace sinmdm::cuda::window
