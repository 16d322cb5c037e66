// norm_affine on the CPU: tensors to a norm::Problem, the choice of instruction set, tasks to threads.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "cpu/isa.h"
#include "cpu/norm/problem.h"
#include "cpu/tensors.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;
using namespace norm;

namespace {

const Kernels& kernels() {
#if SINMDM_X86_SETS
  static const Kernels* const sets[] = {&kBaseline, &kAvx2, &kAvx512};
#else
  static const Kernels* const sets[] = {&kBaseline};
#endif
  return *sets[instruction_set()];
}

template <typename P>
P problem_of(const ts::Tensor& x, const ts::Tensor& gain, const ts::Tensor& offset, int64_t groups, double eps,
             bool silu) {
  P p;
  p.batch = x.size(0), p.frames = x.size(1), p.channels = x.size(2);
  p.groups = groups, p.eps = eps, p.silu = silu, p.element = element_of(x);
  p.x = static_cast<const char*>(x.const_data_ptr());
  p.gain = gain.const_data_ptr(), p.offset = offset.const_data_ptr();
  p.gain_row = gain.size(0) == 1 ? 0 : gain.stride(0), p.offset_row = offset.size(0) == 1 ? 0 : offset.stride(0);
  return p;
}

double work(const Problem& p) {
  return static_cast<double>(p.batch) * p.frames * p.channels * (p.silu ? 24 : 8);
}

}  // namespace

// x (B, T, C) contiguous; gain and offset (B or 1, C), rows without gaps, in the dtype of the computation. To x's
// shape.
ts::Tensor norm_affine(const ts::Tensor& x, const ts::Tensor& gain, const ts::Tensor& offset, int64_t groups,
                       double eps, bool silu) {
  ts::Tensor out = ts::new_empty(x, x.sizes());
  Forward p = problem_of<Forward>(x, gain, offset, groups, eps, silu);
  p.out = static_cast<char*>(out.mutable_data_ptr());
  in_parallel(p, work(p), kernels().forward);
  return out;
}

// dx like x; dgain and doffset (B, parts, C) in the dtype of the computation, to be summed over the parts.
std::tuple<ts::Tensor, ts::Tensor, ts::Tensor> norm_affine_backward(const ts::Tensor& grad_out, const ts::Tensor& x,
                                                                    const ts::Tensor& gain, const ts::Tensor& offset,
                                                                    int64_t groups, double eps, bool silu) {
  Backward p = problem_of<Backward>(x, gain, offset, groups, eps, silu);
  ts::Tensor dx = ts::new_empty(x, x.sizes());
  ts::Tensor dgain = ts::new_empty(gain, {p.batch, p.parts(), p.channels});
  ts::Tensor doffset = ts::new_empty(gain, {p.batch, p.parts(), p.channels});
  p.grad_out = static_cast<const char*>(grad_out.const_data_ptr());
  p.dx = static_cast<char*>(dx.mutable_data_ptr());
  p.dgain = dgain.mutable_data_ptr(), p.doffset = doffset.mutable_data_ptr();
  if (p.frames == 0) {  // no task writes them
    std::memset(p.dgain, 0, dgain.numel() * dgain.element_size());
    std::memset(p.doffset, 0, doffset.numel() * doffset.element_size());
  }
  in_parallel(p, 2 * work(p), kernels().backward);
  return {dx, dgain, doffset};
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("norm_affine_native", TORCH_BOX(&norm_affine));
  m.impl("norm_affine_backward_native", TORCH_BOX(&norm_affine_backward));
}

}  // namespace sinmdm::cpu
