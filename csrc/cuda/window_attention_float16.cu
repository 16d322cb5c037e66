#include "cuda/window/launchers.h"

namespace sinmdm::cuda::window {

template int launch_forward<Element::float16>(const Forward&, CUstream_st*);
template int launch_backward<Element::float16>(const Backward&, CUstream_st*);
template int64_t partial_numbers<Element::float16>(const Problem&);

}  // namespace sinmdm::cuda::window
