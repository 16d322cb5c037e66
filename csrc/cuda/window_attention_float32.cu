#include "cuda/window/launchers.h"

namespace sinmdm::cuda::window {

extern const Launchers kFloat32 = launchers_of<float>();

}  // namespace sinmdm::cuda::window
