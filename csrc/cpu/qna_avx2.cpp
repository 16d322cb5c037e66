#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/qna/problem.h"

#if SINMDM_X86_SETS
#define SINMDM_ISA avx2
#define SINMDM_TARGET __attribute__((target("avx2,fma")))
#define SINMDM_BYTES 32
#include "cpu/qna/kernels.h"

namespace sinmdm::cpu::qna {

const Kernels kAvx2{avx2::forward, avx2::backward};

}  // namespace sinmdm::cpu::qna

#endif
