#include "cpu/isa.h"
#include "cpu/noise/table.h"

#if SINMDM_X86_SETS
#include <immintrin.h>

#define SINMDM_ISA avx2
#define SINMDM_TARGET __attribute__((target("avx2,fma")))
#define SINMDM_BYTES 32
#define SINMDM_WIDEN_PRODUCT(a, b) ((Wide)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define SINMDM_SQUARE_ROOT(x) ((Vector)_mm256_sqrt_ps((__m256)(x)))
#include "cpu/noise/kernels.h"

namespace sinmdm::cpu::noise {

const Kernels kAvx2 = avx2::kTable;

}  // namespace sinmdm::cpu::noise

#endif
