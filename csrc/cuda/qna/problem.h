// One call of qna_attention on a GPU, as plain C++ and the kernels see it.
#pragma once

#include <cstdint>

#include "cuda/element.h"

struct CUstream_st;

namespace sinmdm::cuda::qna {

// A (batch, frames, heads, head_dim) tensor with a unit last stride; the others are in elements.
struct Rows {
  void* data = nullptr;
  int64_t batch = 0, frame = 0, head = 0;
  bool aligned = false;  // every row begins on 16 bytes and is a multiple of them
};

struct Problem {
  int64_t batch, frames, outputs;
  int heads, dim;
  int64_t left, right, size;  // size = left + right + 1; under "clip" cut to what two frames can be apart
  int64_t stride;             // at most `frames`
  bool circular;
  Element element;
  Rows scores, values;  // scores (batch, frames, heads): as rows of one number
  const void* bias;     // (heads, size), in the dtype of values unless bias_float32
  bool bias_float32;
  int64_t bias_head, bias_column;  // its strides
  const void* lengths;             // (batch), contiguous int64 unless lengths_int32, or null
  bool lengths_int32;
};

struct Forward : Problem {
  Rows out;
};

// Results are contiguous.
struct Backward : Problem {
  Rows grad_out;
  void* scratch;  // scratch_numbers(problem) numbers of the dtype of the computation
  void* dscores;
  Rows dvalues;
  void* dbias;  // (heads, size) in the dtype of the computation, its rows dbias_head apart
  int64_t dbias_head;
};

// On the current device; both return a cudaError_t, and write all of their results. There is at least one sequence.
int launch_forward(const Forward& p, CUstream_st* stream);
int launch_backward(const Backward& p, CUstream_st* stream);
int64_t scratch_numbers(const Problem& p);

}  // namespace sinmdm::cuda::qna
