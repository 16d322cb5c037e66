#include <cmath>

#include "cpu/window_match/problem.h"

// Whatever the compiler targets by itself.
#define SINMDM_ISA baseline
#define SINMDM_TARGET
#define SINMDM_BYTES 16
#include "cpu/window_match/kernels.h"

namespace sinmdm::cpu::match {

const Kernels kBaseline{baseline::pack, baseline::distances, baseline::walk};

}  // namespace sinmdm::cpu::match
