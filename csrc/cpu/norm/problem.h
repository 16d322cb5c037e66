// One call of norm_affine on the CPU: its operands and how it is cut into tasks. Nothing here depends on the
// instruction set or on the thread count.
#pragma once

#include "cpu/operands.h"

namespace sinmdm::cpu::norm {

constexpr int64_t kLeastTasks = 16;  // so many threads get something to do, where there is enough
constexpr int64_t kLeastRun = 64;    // channels of a task's rows, at least: a run of memory
constexpr int64_t kLayerTile = 64;   // frames of a task where each frame has statistics of its own

// x (batch, frames, channels) contiguous; gain and offset (batch, channels) in the dtype of the computation, their rows
// so many numbers apart.
struct Problem {
  int64_t batch, frames, channels;
  int64_t groups;  // of channels, with statistics over all frames; 0: each frame has its own, over all channels
  double eps;
  bool silu;
  Element element;
  const char* x;
  const void *gain, *offset;
  int64_t gain_row, offset_row;

  const char* at(const char* data, int64_t b, int64_t t) const {
    return data + (b * frames + t) * channels * bytes_of(element);
  }
  char* at(char* data, int64_t b, int64_t t) const { return data + (b * frames + t) * channels * bytes_of(element); }
  // Channels of a task: whole groups, all of them where there are enough motions.
  int64_t width() const {
    if (groups == 0) return channels;
    const int64_t group = channels / groups;
    for (int64_t parts = 1; parts < groups; ++parts) {
      const bool fine = groups % parts == 0 && channels / parts >= kLeastRun && (groups / parts * group) % 16 == 0;
      if (fine && batch * parts >= kLeastTasks) return channels / parts;
    }
    for (int64_t parts = groups; parts > 1; --parts) {
      if (groups % parts == 0 && channels / parts >= kLeastRun && (channels / parts) % 16 == 0) return channels / parts;
    }
    return channels;
  }
  int64_t tiles() const { return groups == 0 ? (frames + kLayerTile - 1) / kLayerTile : channels / width(); }
  int64_t tasks() const { return frames == 0 ? 0 : batch * tiles(); }
};

struct Forward : Problem {
  char* out;
};

// dgain and doffset have a row for each task of a motion where statistics are a frame's own, else for each motion.
struct Backward : Problem {
  const char* grad_out;
  char* dx;
  void *dgain, *doffset;

  int64_t parts() const { return groups == 0 ? std::max<int64_t>(tiles(), 1) : 1; }
};

struct Kernels {
  void (*forward)(const Forward&, int64_t begin, int64_t end);
  void (*backward)(const Backward&, int64_t begin, int64_t end);
};

extern const Kernels kBaseline;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace sinmdm::cpu::norm
