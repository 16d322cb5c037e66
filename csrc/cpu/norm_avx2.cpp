#include <cmath>

#include "cpu/isa.h"
#include "cpu/norm/problem.h"

#if SINMDM_X86_SETS
#define SINMDM_ISA avx2
#define SINMDM_TARGET __attribute__((target("avx2,fma")))
#define SINMDM_BYTES 32
#include "cpu/norm/kernels.h"

namespace sinmdm::cpu::norm {

const Kernels kAvx2{avx2::forward, avx2::backward};

}  // namespace sinmdm::cpu::norm

#endif
