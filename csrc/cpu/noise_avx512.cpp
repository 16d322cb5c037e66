#include "cpu/isa.h"
#include "cpu/noise/table.h"

#if SINMDM_X86_SETS
#include <immintrin.h>

#define SINMDM_ISA avx512
#define SINMDM_BYTES 64
// A test compiles the same loops for another set, to run them on processors that have no such registers.
#ifdef SINMDM_AVX512_TARGET
#define SINMDM_TARGET __attribute__((target(SINMDM_AVX512_TARGET)))
#else
#define SINMDM_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define SINMDM_WIDEN_PRODUCT(a, b) ((Wide)_mm512_mul_epu32((__m512i)(a), (__m512i)(b)))
#define SINMDM_SQUARE_ROOT(x) ((Vector)_mm512_sqrt_ps((__m512)(x)))
#endif
#include "cpu/noise/kernels.h"

namespace sinmdm::cpu::noise {

const Kernels kAvx512 = avx512::kTable;

}  // namespace sinmdm::cpu::noise

#endif
