#include <cmath>

#include "cpu/norm/problem.h"

// Whatever the compiler targets by itself.
#define SINMDM_ISA baseline
#define SINMDM_TARGET
#define SINMDM_BYTES 16
#include "cpu/norm/kernels.h"

namespace sinmdm::cpu::norm {

const Kernels kBaseline{baseline::forward, baseline::backward};

}  // namespace sinmdm::cpu::norm
