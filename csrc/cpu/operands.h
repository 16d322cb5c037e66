// Operands of an op on sequences, as its kernels on the CPU see them. Nothing here depends on the instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace sinmdm::cpu {

enum class Boundary { clip, circular, shift };  // in the order of kernels/_window.py
enum class Element { float32, float64, float16, bfloat16 };

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

constexpr int64_t bytes_of(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// A (batch, frames, heads, head_dim) operand with a unit last stride; the others are in bytes and 64 bits wide.
struct Rows {
  char* data = nullptr;
  int64_t batch = 0, frame = 0, head = 0;

  char* at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * frame + h * head; }
};

inline int64_t wrapped(int64_t slot, int64_t n) {
  const int64_t remainder = slot % n;
  return remainder < 0 ? remainder + n : remainder;
}

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
  Range clipped(Range other) const {
    const int64_t low = std::max(begin, other.begin);
    return {low, std::max(low, std::min(end, other.end))};
  }
};

// Scratch of one thread: one block, handed out in parts that lie on cache lines.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : block_(static_cast<char*>(::operator new(bytes, std::align_val_t(64)))) {
#ifdef SINMDM_POISON_SCRATCH  // all bits set is a NaN: whoever reads what was not written shows it
    std::memset(block_, 0xFF, bytes);
#endif
  }
  ~Scratch() { ::operator delete(block_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(block_ + used_);
    used_ += bytes<T>(count);
    return part;
  }
  template <typename T>
  static int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  char* block_;
  int64_t used_ = 0;
};

}  // namespace sinmdm::cpu
