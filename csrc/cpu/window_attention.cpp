// window_attention on the CPU: tensors to a window::Problem, the choice of instruction set, tasks to threads.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/isa.h"
#include "cpu/tensors.h"
#include "cpu/window/problem.h"

namespace sinmdm::cpu {

namespace ts = torch::stable;
using torch::headeronly::ScalarType;
using namespace window;

namespace {

const Kernels& kernels() {
#if SINMDM_X86_SETS
  static const Kernels* const sets[] = {&kBaseline, &kAvx2, &kAvx512};
#else
  static const Kernels* const sets[] = {&kBaseline};
#endif
  return *sets[instruction_set()];
}

struct Options {
  int64_t left, right;
  double scale;
  Boundary boundary;
  double dropout_p;
  int64_t seed;
};

template <typename C>
std::vector<C> table_of(const Problem& p, const std::optional<ts::Tensor>& bias) {
  std::vector<C> table(bias.has_value() ? p.heads * p.pitch() : 0, C(0));
  if (!bias.has_value()) return table;
  with_typed(*bias, [&](const auto* data) {
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t column = 0; column < p.columns(); ++column) {
        const C value = static_cast<C>(data[h * bias->stride(0) + (p.cut + column) * bias->stride(1)]);
        table[h * p.pitch() + table_index(p, column)] = static_cast<C>(value * kLog2E);
      }
    }
  });
  return table;
}

// Calls body(problem filled in but for the results), with what the problem points at alive. C is the dtype of the
// computation.
template <typename C, typename P, typename Body>
void with_problem(const ts::Tensor& q_any, const ts::Tensor& k_any, const ts::Tensor& v_any,
                  const std::optional<ts::Tensor>& bias, const std::optional<ts::Tensor>& lengths,
                  const Options& options, const Body& body) {
  const ts::Tensor q = unit_stride(q_any), k = unit_stride(k_any), v = unit_stride(v_any);
  P p;
  p.batch = q.size(0), p.frames = q.size(1), p.heads = q.size(2), p.dim = q.size(3), p.kv_heads = k.size(2);
  p.left = options.left, p.right = options.right, p.boundary = options.boundary;
  if (p.boundary == Boundary::clip) {  // what lies beyond either end is never seen
    p.left = std::min(p.left, p.frames - 1), p.right = std::min(p.right, p.frames - 1);
  }
  p.cut = options.left - p.left;
  p.element = element_of(q), p.scale = options.scale;
  p.dropout_p = options.dropout_p, p.seed = static_cast<uint64_t>(options.seed);
  p.q = rows_of(q), p.k = rows_of(k), p.v = rows_of(v);
  const int64_t least = p.boundary == Boundary::shift ? p.size() : 0;
  const std::vector<int64_t> real = read_lengths(lengths, p.batch, least, p.frames);
  p.lengths = lengths.has_value() ? real.data() : nullptr;
  const std::vector<C> table = table_of<C>(p, bias);
  p.table = bias.has_value() ? table.data() : nullptr;
  body(p);
}

template <typename P>
double pairs(const P& p) {
  return static_cast<double>(p.batch) * p.heads * p.frames * std::min(p.size(), p.frames);
}

template <typename C>
void run_forward(const ts::Tensor& q, const ts::Tensor& k, const ts::Tensor& v, const std::optional<ts::Tensor>& bias,
                 const std::optional<ts::Tensor>& lengths, const Options& options, ts::Tensor& out, ts::Tensor& lse) {
  const Kernels& set = kernels();
  with_problem<C, Forward>(q, k, v, bias, lengths, options, [&](Forward& p) {
    p.out = rows_of(out), p.lse = lse.mutable_data_ptr();
    in_parallel(p, 2 * pairs(p) * p.dim, set.forward);
  });
}

template <typename C>
void run_backward(const ts::Tensor& grad_out_any, const std::optional<ts::Tensor>& grad_lse, const ts::Tensor& q,
                  const ts::Tensor& k, const ts::Tensor& v, const std::optional<ts::Tensor>& bias,
                  const std::optional<ts::Tensor>& lengths, const ts::Tensor& out_any, const ts::Tensor& lse_any,
                  const Options& options, ts::Tensor& dq, ts::Tensor& dk, ts::Tensor& dv, ts::Tensor* dbias) {
  const ts::Tensor grad_out = unit_stride(grad_out_any), out = unit_stride(out_any), lse = ts::contiguous(lse_any);
  const std::optional<ts::Tensor> dlse =
      grad_lse.has_value() ? std::optional<ts::Tensor>(ts::contiguous(*grad_lse)) : std::nullopt;
  const Kernels& set = kernels();
  with_problem<C, Backward>(q, k, v, bias, lengths, options, [&](Backward& p) {
    p.grad_out = rows_of(grad_out), p.out = rows_of(out), p.lse = const_cast<void*>(lse.const_data_ptr());
    p.grad_lse = dlse.has_value() ? dlse->const_data_ptr() : nullptr;
    p.dq = rows_of(dq), p.dk = rows_of(dk), p.dv = rows_of(dv);
    p.bias_grad = dbias != nullptr;
    const int64_t columns = p.columns();
    std::vector<double> partial(dbias == nullptr ? 0 : p.batch * p.parts() * p.heads * columns);
    p.dbias = dbias == nullptr ? nullptr : partial.data();
    in_parallel(p, 5 * pairs(p) * p.dim, set.backward);
    if (dbias == nullptr) return;
    // The parts are added up in the order of the frames, whoever computed them. Columns that were cut off the window,
    // of offsets that no two frames are apart, keep their zeros.
    std::vector<double> sums(p.heads * columns);
    for (int64_t part = 0; part < p.batch * p.parts(); ++part) {
      const double* row = partial.data() + part * p.heads * columns;
      for (int64_t i = 0; i < p.heads * columns; ++i) sums[i] += row[i];
    }
    const int64_t width = dbias->size(1);
    C* total = static_cast<C*>(dbias->mutable_data_ptr());
    std::fill(total, total + p.heads * width, C(0));
    for (int64_t i = 0; i < p.heads * columns; ++i) {
      total[i / columns * width + p.cut + i % columns] = static_cast<C>(sums[i]);
    }
  });
}

}  // namespace

// q (B, T, H, D), k, v (B, T, H_kv, D), any strides; rel_bias (H, columns) in any dtype; lengths (B), int32 or int64.
// To out (B, T, H, D) and lse (B, T, H), contiguous.
std::tuple<ts::Tensor, ts::Tensor> window_attention(const ts::Tensor& q, const ts::Tensor& k, const ts::Tensor& v,
                                                    const std::optional<ts::Tensor>& rel_bias,
                                                    const std::optional<ts::Tensor>& lengths, int64_t left,
                                                    int64_t right, double scale, int64_t boundary, double dropout_p,
                                                    int64_t seed) {
  const Options options{left, right, scale, static_cast<Boundary>(boundary), dropout_p, seed};
  ts::Tensor out = ts::new_empty(q, q.sizes());
  ts::Tensor lse = ts::new_empty(q, {q.size(0), q.size(1), q.size(2)}, computed_in(q));
  if (q.scalar_type() == ScalarType::Double) {
    run_forward<double>(q, k, v, rel_bias, lengths, options, out, lse);
  } else {
    run_forward<float>(q, k, v, rel_bias, lengths, options, out, lse);
  }
  return {out, lse};
}

// dq, dk, dv like q, k, v, contiguous, and the bias gradient (H, columns) in the dtype of the computation (empty unless
// bias_grad).
std::tuple<ts::Tensor, ts::Tensor, ts::Tensor, ts::Tensor> window_attention_backward(
    const ts::Tensor& grad_out, const std::optional<ts::Tensor>& grad_lse, const ts::Tensor& q, const ts::Tensor& k,
    const ts::Tensor& v, const std::optional<ts::Tensor>& rel_bias, const std::optional<ts::Tensor>& lengths,
    const ts::Tensor& out, const ts::Tensor& lse, int64_t left, int64_t right, double scale, int64_t boundary,
    double dropout_p, int64_t seed, bool bias_grad) {
  const Options options{left, right, scale, static_cast<Boundary>(boundary), dropout_p, seed};
  ts::Tensor dq = ts::new_empty(q, q.sizes()), dk = ts::new_empty(k, k.sizes()), dv = ts::new_empty(v, v.sizes());
  ts::Tensor dbias =
      bias_grad ? ts::new_empty(q, rel_bias->sizes(), computed_in(q)) : ts::new_empty(q, {0}, computed_in(q));
  ts::Tensor* wanted = bias_grad ? &dbias : nullptr;
  if (q.scalar_type() == ScalarType::Double) {
    run_backward<double>(grad_out, grad_lse, q, k, v, rel_bias, lengths, out, lse, options, dq, dk, dv, wanted);
  } else {
    run_backward<float>(grad_out, grad_lse, q, k, v, rel_bias, lengths, out, lse, options, dq, dk, dv, wanted);
  }
  return {dq, dk, dv, dbias};
}

STABLE_TORCH_LIBRARY_IMPL(sinmdm, CPU, m) {
  m.impl("window_attention_native", TORCH_BOX(&window_attention));
  m.impl("window_attention_backward_native", TORCH_BOX(&window_attention_backward));
}

}  // namespace sinmdm::cpu
