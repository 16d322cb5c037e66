// The types of numbers that operands hold, by name: for code that has no CUDA header.
#pragma once

namespace sinmdm::cuda {

enum class Element : int { float32, float64, float16, bfloat16 };

}  // namespace sinmdm::cuda
