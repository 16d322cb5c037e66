#include "cpu/isa.h"
#include "cpu/window/problem.h"

#if SINMDM_X86_SETS
// 16 registers of 32 bytes.
#define SINMDM_ISA avx2
#define SINMDM_TARGET __attribute__((target("avx2,fma")))
#define SINMDM_BYTES 32
#define SINMDM_ROWS 12
#define SINMDM_COLUMNS 2
#include "cpu/window/kernels.h"

namespace sinmdm::cpu::window {

const Kernels kAvx2{avx2::forward, avx2::backward};

}  // namespace sinmdm::cpu::window

#endif
