#include "cuda/qna/attend.h"

namespace sinmdm::cuda::qna {

int launch_forward(const Forward& p, CUstream_st* stream) {
  return with_element(p.element, [&](auto element) { return launch_attend<decltype(element)>(p, stream); });
}

}  // namespace sinmdm::cuda::qna
