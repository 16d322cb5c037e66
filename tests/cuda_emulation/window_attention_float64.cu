// window_attention for float64, which a GPU build leaves out: on the CPU it lets the tests of the contract, which are
// in float64, run the kernels as they are. Its longest rows need more shared memory than a GPU has.
#include "cuda/window/launchers.h"

namespace sinmdm::cuda::window {

namespace {

template <typename Call>
int with_room(const Call& call) {
  const size_t usual = emulation::shared_at_most;
  emulation::shared_at_most = 256 * 1024;
  const int error = call();
  emulation::shared_at_most = usual;
  return error;
}

int forward(const Forward& p, CUstream_st* stream) {
  return with_room([&] { return forward_of<double>(p, stream); });
}

int backward(const Backward& p, CUstream_st* stream) {
  return with_room([&] { return backward_of<double>(p, stream); });
}

}  // namespace

extern const Launchers kFloat64 = {forward, backward, partial_numbers_of<double>};

}  // namespace sinmdm::cuda::window
