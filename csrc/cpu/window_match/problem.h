// One call of window_match on the CPU: its operands, what is kept of a sample from row to row, and how the work is cut
// into tasks. Nothing here depends on the instruction set or on the thread count.
//
// Source frames are taken in order, a block of rows of the table of distances at a time: first the distances, which is
// nearly all of the work, in tiles; then, sample by sample, a walk over the rows.
#pragma once

#include "cpu/operands.h"

namespace sinmdm::cpu::match {

constexpr int64_t kPanel = 32;        // target frames that lie side by side when packed
constexpr int64_t kRows = 8;          // source frames of a task
constexpr int64_t kMargin = 8;        // doubles of the widest register
constexpr int64_t kBlock = 1 << 18;   // distances of a block, or as many rows as a window has
constexpr int64_t kMemory = 1 << 26;  // bytes of the states of samples that are worked on together

// Of one sample. Rows are `stride` doubles apart; beyond the target's frames every distance and sum is infinite. With t
// the window, each run of t rows (the first begins at row 0) is summed along diagonals from both ends: a window that
// ends in one run is the sum of what it has there from the run's first row on, and of what it has in the run before.
struct State {
  double* distances;  // (rows of a block, stride)
  double* prefix;     // (kMargin + stride): sums from the run's first row to the last one walked, where they end
  double* suffix;     // (t + 1, stride): row j holds sums of the run before from its row j on; row t is zero
  double* cost;       // (kMargin + stride): H of the last row walked, from target frame t on
  double* best;       // (frames + 1): G
};

// source (samples or 1, frames, features), target (samples or 1, target_frames, features), contiguous.
struct Problem {
  int64_t samples;  // that are worked on together
  int64_t frames, target_frames, features, window;
  bool rebuild;
  Element element;
  const char *source, *target;
  int64_t source_step, target_step;  // bytes from one sample to the next; 0: all share it
  char* packed;                      // targets: (panels, features, kPanel), zeros beyond the frames
  State* states;                     // (samples)
  char *nearest, *cost;              // (samples, windows), (samples)

  int64_t windows() const { return frames - window + 1; }
  int64_t starts() const { return target_frames - window + 1; }
  int64_t panels() const { return (target_frames + kPanel - 1) / kPanel; }
  int64_t stride() const { return panels() * kPanel + kMargin; }
  int64_t block() const { return window * std::max<int64_t>(1, kBlock / (window * stride())); }
  int64_t targets() const { return target_step == 0 ? 1 : samples; }
  int64_t packed_step() const { return target_step == 0 ? 0 : packed_bytes(); }
  int64_t packed_bytes() const { return panels() * kPanel * features * bytes_of(element); }
};

// A task packs a panel of a target.
struct Packing : Problem {
  int64_t tasks() const { return targets() * panels(); }
};

// The rows of a block: source frames from `begin` on, a multiple of the window.
struct Block : Problem {
  int64_t begin, rows;
};

// A task computes kRows rows of the distances of a sample.
struct Tiles : Block {
  int64_t groups() const { return (rows + kRows - 1) / kRows; }
  int64_t tasks() const { return samples * groups(); }
};

// A task walks over the rows of a sample.
struct Walk : Block {
  int64_t tasks() const { return samples; }
};

struct Kernels {
  void (*pack)(const Packing&, int64_t begin, int64_t end);
  void (*distances)(const Tiles&, int64_t begin, int64_t end);
  void (*walk)(const Walk&, int64_t begin, int64_t end);
};

extern const Kernels kBaseline;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace sinmdm::cpu::match
