// window_attention for float64, which a GPU build leaves out: on the CPU it lets the tests of the contract, which are
// in float64, run the kernels as they are.
#include "cuda/window/launchers.h"

namespace sinmdm::cuda::window {

template int launch_forward<Element::float64>(const Forward&, CUstream_st*);
template int launch_backward<Element::float64>(const Backward&, CUstream_st*);
template int64_t partial_numbers<Element::float64>(const Problem&);

}  // namespace sinmdm::cuda::window
