#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/qna/problem.h"

// Whatever the compiler targets by itself.
#define SINMDM_ISA baseline
#define SINMDM_TARGET
#define SINMDM_BYTES 16
#include "cpu/qna/kernels.h"

namespace sinmdm::cpu::qna {

const Kernels kBaseline{baseline::forward, baseline::backward};

}  // namespace sinmdm::cpu::qna
