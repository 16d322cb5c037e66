#include <cmath>

#include "cpu/isa.h"
#include "cpu/window_match/problem.h"

#if SINMDM_X86_SETS
#define SINMDM_ISA avx2
#define SINMDM_TARGET __attribute__((target("avx2,fma")))
#define SINMDM_BYTES 32
#include "cpu/window_match/kernels.h"

namespace sinmdm::cpu::match {

const Kernels kAvx2{avx2::pack, avx2::distances, avx2::walk};

}  // namespace sinmdm::cpu::match

#endif
