#include "cpu/isa.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

namespace sinmdm::cpu {

int instruction_set() {
  static const char* const names[] = {"baseline", "avx2", "avx512"};
#if SINMDM_X86_SETS
  static const int best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? 2 : avx2 ? 1 : 0;
  }();
#ifdef SINMDM_AVX512_TARGET  // the wide registers, compiled for narrower ones: to run them on any machine
  constexpr int last = 2;
#else
  const int last = best;
#endif
#else
  constexpr int best = 0, last = 0;
#endif
  const char* named = std::getenv("SINMDM_CPU_ISA");
  if (named == nullptr || *named == '\0') return best;
  std::string list;
  for (int i = 0; i <= last; ++i) {
    if (std::string(named) == names[i]) return i;
    list += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  STD_TORCH_CHECK(false, "SINMDM_CPU_ISA must be one of ", list, " on this processor, got ", named);
}

}  // namespace sinmdm::cpu
