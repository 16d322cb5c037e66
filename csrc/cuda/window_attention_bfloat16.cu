#include "cuda/window/launchers.h"

namespace sinmdm::cuda::window {

extern const Launchers kBfloat16 = launchers_of<__nv_bfloat16>();

}  // namespace sinmdm::cuda::window
