#include "cpu/isa.h"
#include "cpu/noise/table.h"

// Whatever the compiler targets by itself: on x86-64 registers of 16 bytes and no fused multiply-add.
#define SINMDM_ISA baseline
#define SINMDM_TARGET
#define SINMDM_BYTES 16
#if SINMDM_X86_SETS
#include <emmintrin.h>
#define SINMDM_WIDEN_PRODUCT(a, b) ((Wide)_mm_mul_epu32((__m128i)(a), (__m128i)(b)))
#define SINMDM_SQUARE_ROOT(x) ((Vector)_mm_sqrt_ps((__m128)(x)))
#endif
#include "cpu/noise/kernels.h"

namespace sinmdm::cpu::noise {

const Kernels kBaseline = baseline::kTable;

}  // namespace sinmdm::cpu::noise
