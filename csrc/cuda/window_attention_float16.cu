#include "cuda/window/launchers.h"

namespace sinmdm::cuda::window {

extern const Launchers kFloat16 = launchers_of<__half>();

}  // namespace sinmdm::cuda::window
