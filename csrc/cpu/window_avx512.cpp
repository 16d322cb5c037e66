#include "cpu/isa.h"
#include "cpu/window/problem.h"

#if SINMDM_X86_SETS
// 32 registers of 64 bytes; the broadcast is part of the multiply-add. A test compiles the same tiles for another set,
// to run them on processors that have no such registers.
#ifdef SINMDM_AVX512_TARGET
#define SINMDM_TARGET __attribute__((target(SINMDM_AVX512_TARGET)))
#else
#define SINMDM_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#endif
#define SINMDM_ISA avx512
#define SINMDM_BYTES 64
#define SINMDM_ROWS 24
#define SINMDM_COLUMNS 4
#include "cpu/window/kernels.h"

namespace sinmdm::cpu::window {

const Kernels kAvx512{avx512::forward, avx512::backward};

}  // namespace sinmdm::cpu::window

#endif
