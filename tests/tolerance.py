"""How far two results may lie apart. The bounds are derived, never picked by hand.

Two rules:

`assert_within_budget`: a result in some dtype against the same formula in float64. Its relative Frobenius error may be
1.5 times that of the plain PyTorch composition in the same dtype, plus 1e-7 (the rounding of one float32 operation,
for cases in which the plain composition happens to be exact).

`assert_same_formula`: two evaluations of one formula in the same dtype that only add up in another order. A sum of n
terms is off by at most n eps times the sum of the terms' magnitudes (Higham 2002, eq. 4.4). With inputs of order one
and signs at random that sum is about sqrt(n) times the result, so n^1.5 eps bounds one sum; two results, each behind at
most two sums and a softmax, give the factor 8.
"""

import torch
from torch import Tensor


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact| in the Frobenius norm (|actual| where exact is 0); infinite where NaNs differ.

    Infinities, as lse has them, must be the same on both sides and are left out.
    """
    if actual.shape != exact.shape:
        raise AssertionError(f"shapes differ: {tuple(actual.shape)} and {tuple(exact.shape)}")
    actual, exact = actual.detach().cpu().double(), exact.detach().cpu().double()
    if exact.isnan().any():
        raise AssertionError("the exact result has NaNs")
    infinite = exact.isinf()
    if not torch.equal(actual[infinite], exact[infinite]):
        return float("inf")
    difference = (actual - exact)[~infinite].norm()
    scale = exact[~infinite].norm()
    error = difference / scale if scale > 0 else difference
    return float(error) if error.isfinite() else float("inf")


def assert_within_budget(name: str, actual: Tensor, exact: Tensor, eager: Tensor) -> None:
    """`actual` is as near to the float64 result `exact` as 1.5 times the plain composition `eager`, plus 1e-7."""
    error, allowed = relative_error(actual, exact), 1.5 * relative_error(eager, exact) + 1e-7
    assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


def assert_same_formula(name: str, actual: Tensor, expected: Tensor, terms: int) -> None:
    """`actual` and `expected`, in one dtype, differ by no more than the order of a sum of `terms` terms explains."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} and {expected.dtype}"
    error, allowed = relative_error(actual, expected), 8 * max(terms, 1) ** 1.5 * torch.finfo(expected.dtype).eps
    assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"
