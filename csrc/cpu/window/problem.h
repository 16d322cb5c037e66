// One call of window_attention on the CPU: its operands, how it is cut into tasks, and which keys a strip of queries
// sees. Nothing here depends on the instruction set or on the thread count.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/operands.h"
#include "philox.h"

namespace sinmdm::cpu::window {

constexpr int64_t kPanel = 32;          // columns of a packed row that lie together, see simd.h
constexpr int64_t kLongRun = 2048;      // bytes of neighbouring heads that are read at one go: a long run of memory
constexpr int64_t kMostSums = 1 << 18;  // numbers that the bias gradient of a task is added up in

constexpr int64_t kMostLanes = 32;  // queries in a strip, at most; also the padding on both sides of a bias table

// Scores are kept in units of log2 e, so that a weight is one power of two: `table` holds rel_bias * log2 e.
struct Problem {
  int64_t batch, frames, heads, kv_heads, dim;
  int64_t left, right;
  int64_t cut;  // bias columns before the first: of offsets that no two frames are apart
  Boundary boundary;
  Element element;
  double scale;
  double dropout_p;
  uint64_t seed;
  const int64_t* lengths;  // (batch), or null
  const void* table;       // (heads, columns + 2 kMostLanes) in the dtype of the computation, reversed; or null
  Rows q, k, v;
  void* lse;  // (batch, frames, heads), contiguous, in the dtype of the computation

  int64_t size() const { return left + right + 1; }
  int64_t columns() const { return boundary == Boundary::shift ? 2 * size() - 1 : size(); }
  int64_t pitch() const { return columns() + 2 * kMostLanes; }
  int64_t group() const { return heads / kv_heads; }
  int64_t length(int64_t b) const { return lengths == nullptr ? frames : std::clamp<int64_t>(lengths[b], 0, frames); }
  int64_t lse_at(int64_t b, int64_t t, int64_t h) const { return (b * frames + t) * heads + h; }
  int64_t frame_of(int64_t slot, int64_t n) const { return boundary == Boundary::circular ? wrapped(slot, n) : slot; }
};

// Where the value of column c of a head's row of the table lies: columns run backwards, so that the columns
// c, c - 1, c - 2, ... that the queries i, i + 1, i + 2, ... have for one key are one run of memory.
inline int64_t table_index(const Problem& p, int64_t column) {
  return kMostLanes + p.columns() - 1 - column;
}

// The slots that query i of a sequence of n frames sees. A slot is a position on the key axis: the key frame itself,
// or under "circular" a number whose remainder modulo n is the frame, so that a frame met again is another slot.
inline Range visible_slots(const Problem& p, int64_t n, int64_t i) {
  switch (p.boundary) {
    case Boundary::clip:
      return {std::max<int64_t>(0, i - p.left), std::min(n, i + p.right + 1)};
    case Boundary::circular:
      return {i - p.left, i + p.right + 1};
    default: {
      const int64_t start = std::max<int64_t>(0, std::min(i - p.left, n - p.size()));
      return {start, start + p.size()};
    }
  }
}

// The queries that see any of the slots in `keys`; under "circular" numbers whose remainder modulo n is the frame.
inline Range seeing_queries(const Problem& p, int64_t n, Range keys) {
  switch (p.boundary) {
    case Boundary::clip:
      return {std::max<int64_t>(0, keys.begin - p.right), std::min(n, keys.end + p.left)};
    case Boundary::circular:
      return {keys.begin - p.right, keys.end + p.left};
    default:
      return {keys.begin < p.size() ? 0 : keys.begin - p.right,
              keys.end > n - p.size() ? n : std::min(n, keys.end + p.left)};
  }
}

// `lanes` queries from `query` on, side by side in a vector, against the rows `slots` of the key axis. Query lane l
// sees the slots from see[l].begin to see[l].end; slot s has the bias column s - (query + l) + origin for it.
struct Strip {
  int64_t query, lanes, origin;
  Range slots;
  Range see[kMostLanes];
};

inline Strip strip_of(const Problem& p, int64_t n, int64_t query, int64_t end, int64_t width) {
  Strip strip;
  strip.query = query;
  strip.lanes = std::min(width, end - query);
  strip.origin = p.boundary == Boundary::shift ? p.left + p.right : p.left;
  for (int64_t lane = 0; lane < width; ++lane) {
    strip.see[lane] = lane < strip.lanes ? visible_slots(p, n, query + lane) : Range{0, 0};
  }
  strip.slots = {strip.see[0].begin, strip.see[strip.lanes - 1].end};
  return strip;
}

constexpr int64_t kLeastTasks = 16;  // so many threads get something to do, where there is enough

// Forward: a task is a tile of queries of some neighbouring heads.
struct Forward : Problem {
  Rows out;

  int64_t tile() const { return 128; }
  int64_t tiles() const { return (frames + tile() - 1) / tile(); }
  // Keys packed at a time, beside their values, for every head of a task.
  int64_t segment() const { return std::min<int64_t>(tile() + size() - 1, 160); }
  // As many as make the run of memory that they have in a frame long, while their packed rows are not far; and as leave
  // enough tasks. Either whole groups of query heads or a part of one.
  int64_t task_heads() const {
    const int64_t most = std::max<int64_t>(1, kLongRun / (std::max(dim, kPanel) * bytes_of(element)));
    for (int64_t count = std::min(heads, most); count > 1; --count) {
      const bool whole = heads % count == 0 && (group() % count == 0 || count % group() == 0);
      if (whole && batch * tiles() * heads / count >= kLeastTasks) return count;
    }
    return 1;
  }
  int64_t tasks() const { return batch * tiles() * (heads / task_heads()); }
};

// Backward: a task owns the frames of a run of chunks of some neighbouring key heads: it writes their dq (for every
// query head of their groups), dk and dv, and one partial sum of the bias gradient a query head. Queries beyond a
// chunk's ends whose window reaches into it are computed again for its dk and dv, so that no two tasks write one place.
struct Backward : Problem {
  Rows grad_out, out, dq, dk, dv;
  const void* grad_lse;  // like lse, or null
  bool bias_grad;
  double* dbias;  // (batch, parts, heads, columns); null unless bias_grad

  int64_t chunk() const { return std::clamp<int64_t>((size() + 63) / 64 * 64, 128, 1024); }
  // As many as make the partial sums of the bias gradient no larger than the frames they sum over.
  int64_t chunks_in_task() const { return bias_grad ? (columns() + chunk() - 1) / chunk() : 1; }
  int64_t task_frames() const { return chunk() * chunks_in_task(); }
  int64_t parts() const { return (frames + task_frames() - 1) / task_frames(); }
  // Keys packed at a time, beside their values and the gradients of both, for every head of a task.
  int64_t segment() const { return std::min<int64_t>(chunk() + size() - 1, 512); }
  int64_t task_kv_heads() const {
    int64_t most = kLongRun / (std::max(dim, kPanel) * group() * bytes_of(element));
    if (bias_grad) most = std::min(most, kMostSums / ((columns() + kMostLanes) * kMostLanes * group()));
    for (int64_t count = std::min(kv_heads, most); count > 1; --count) {
      if (kv_heads % count == 0 && batch * parts() * kv_heads / count >= kLeastTasks) return count;
    }
    return 1;
  }
  int64_t tasks() const { return batch * parts() * (kv_heads / task_kv_heads()); }
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

}  // namespace sinmdm::cpu::window
