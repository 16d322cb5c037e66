// Which set of instructions the kernels use: one library for every x86-64 machine holds them compiled for several.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SINMDM_X86_SETS 1
#else
#define SINMDM_X86_SETS 0
#endif

namespace sinmdm::cpu {

// The best set that this processor has, or the lesser one that the environment variable SINMDM_CPU_ISA names, as an
// index into tables of kernels in the order baseline, avx2, avx512.
int instruction_set();

}  // namespace sinmdm::cpu
