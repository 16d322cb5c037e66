#include <cmath>

#include "cpu/isa.h"
#include "cpu/window_match/problem.h"

#if SINMDM_X86_SETS
// A test compiles the same loops for another set, to run them on processors that have no such registers.
#ifdef SINMDM_AVX512_TARGET
#define SINMDM_TARGET __attribute__((target(SINMDM_AVX512_TARGET)))
#else
#define SINMDM_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#endif
#define SINMDM_ISA avx512
#define SINMDM_BYTES 64
#include "cpu/window_match/kernels.h"

namespace sinmdm::cpu::match {

const Kernels kAvx512{avx512::pack, avx512::distances, avx512::walk};

}  // namespace sinmdm::cpu::match

#endif
