#include "cuda/window/launchers.h"

namespace sinmdm::cuda::window {

template int launch_forward<Element::float32>(const Forward&, CUstream_st*);
template int launch_backward<Element::float32>(const Backward&, CUstream_st*);
template int64_t partial_numbers<Element::float32>(const Problem&);

}  // namespace sinmdm::cuda::window
