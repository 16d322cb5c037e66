#include "cpu/window/problem.h"

// Whatever the compiler targets by itself: on x86-64 16 registers of 16 bytes and no fused multiply-add.
#define SINMDM_ISA baseline
#define SINMDM_TARGET
#define SINMDM_BYTES 16
#define SINMDM_ROWS 8
#define SINMDM_COLUMNS 2
#include "cpu/window/kernels.h"

namespace sinmdm::cpu::window {

const Kernels kBaseline{baseline::forward, baseline::backward};

}  // namespace sinmdm::cpu::window
