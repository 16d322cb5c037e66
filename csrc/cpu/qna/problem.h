// One call of qna_attention on the CPU: its operands and how it is cut into tasks. Nothing here depends on the
// instruction set or on the thread count.
#pragma once

#include "cpu/operands.h"

namespace sinmdm::cpu::qna {

// Of neighbouring heads that a task takes: rows of a tile, and what is kept of a tile's pairs, then fit the caches.
constexpr int64_t kMostChannels = 512, kMostColumns = 256;

inline int64_t heads_together(int64_t heads, int64_t dim, int64_t size) {
  for (int64_t count = std::min({heads, kMostChannels / dim, kMostColumns / size}); count > 1; --count) {
    if (heads % count == 0) return count;
  }
  return 1;
}

struct Problem {
  int64_t batch, frames, heads, dim;
  int64_t together;  // heads that a task takes, see heads_together
  int64_t left, right, stride;
  int64_t cut;  // bias columns before the first: of offsets that no two frames are apart
  Boundary boundary;
  Element element;
  const int64_t* lengths;  // (batch), or null
  const void* bias;        // (heads, size) in the dtype of the computation, contiguous
  Rows scores, values;     // scores (batch, frames, heads): as rows of one number

  int64_t size() const { return left + right + 1; }
  int64_t outputs() const { return (frames + stride - 1) / stride; }
  int64_t length(int64_t b) const { return lengths == nullptr ? frames : std::clamp<int64_t>(lengths[b], 0, frames); }
  // A slot is a position on the key axis: a frame, or under "circular" a number whose remainder modulo n is the frame.
  int64_t frame_of(int64_t slot, int64_t n) const { return boundary == Boundary::circular ? wrapped(slot, n) : slot; }
  // Frames in a task. Beside a wide window a larger tile, so that a task's halo is not many times its own frames.
  int64_t span() const { return std::max<int64_t>(128, size() / 2); }
};

// A task is a tile of outputs of some neighbouring heads.
struct Forward : Problem {
  Rows out;

  int64_t tile() const { return std::max<int64_t>(1, span() / stride); }
  int64_t tiles() const { return (outputs() + tile() - 1) / tile(); }
  int64_t tasks() const { return batch * tiles() * (heads / together); }
};

// A task owns a tile of frames of some neighbouring heads: it writes their gradients and one partial sum of the bias
// gradient. Of the outputs that see them, also those of neighbouring tiles, it computes the softmax again, so that no
// two tasks write one place.
struct Backward : Problem {
  Rows grad_out, dscores, dvalues;
  double* dbias;  // (batch, tiles, heads, size)

  int64_t tile() const { return span(); }
  int64_t tiles() const { return (frames + tile() - 1) / tile(); }
  int64_t tasks() const { return batch * tiles() * (heads / together); }
};

// The bodies of one instruction set: tasks begin .. end.
struct Kernels {
  void (*forward)(const Forward&, int64_t begin, int64_t end);
  void (*backward)(const Backward&, int64_t begin, int64_t end);
};

extern const Kernels kBaseline;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace sinmdm::cpu::qna
