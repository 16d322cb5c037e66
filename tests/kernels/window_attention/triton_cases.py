"""The cases of test_triton_interpreted.py, which runs them with TRITON_INTERPRET=1: the Triton kernels on the CPU.

The tiles are those of a GPU, so that the sizes here are small ones of everything: less than a tile, a tile and a bit,
several tiles of queries, several of keys. float64 is not for Triton: exact results are computed in it, and compared
with the kernels' in the dtypes that they take.
"""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tolerance import assert_same_formula, relative_error
from torch import Tensor

from sinmdm.kernels import _dispatch, window_attention


def _sibling(name: str) -> ModuleType:
    """A test module of this folder: pytest imports them by path, and so no name leads to them."""
    spec = importlib.util.spec_from_file_location(f"triton_cases_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


parity, non_finite = _sibling("test_parity"), _sibling("test_non_finite")
Case = parity.Case
BF16_ULP = 2.0**-7


def run(case: Case, inputs: list, grads: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return parity.run(case, inputs, grads, "triton")


def exact_of(case: Case, inputs: list, grads: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    wide = [None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    return parity.results(*parity.by_definition(case, *wide), wide, tuple(g.double() for g in grads))


def assert_budget(case: Case, inputs: list, grads: tuple[Tensor, Tensor], actual: dict[str, Tensor]) -> None:
    """As tolerance.assert_within_budget, with an ulp more for bfloat16: the interpreter cuts float32 off to it."""
    exact = exact_of(case, inputs, grads)
    composition = parity.by_definition if case.boundary == "circular" or case.dropout_p else parity.masked_softmax
    eager = parity.results(*composition(case, *inputs), inputs, grads)
    for name, value in actual.items():
        cut = BF16_ULP if value.dtype == torch.bfloat16 else 0.0
        error, allowed = relative_error(value, exact[name]), 1.5 * relative_error(eager[name], exact[name]) + 1e-7 + cut
        assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


def assert_exact(case: Case, inputs: list, grads: tuple[Tensor, Tensor], actual: dict[str, Tensor]) -> None:
    """The formula up to the order of its sums."""
    for name, value in exact_of(case, inputs, grads).items():
        assert_same_formula(name, actual[name], value.to(actual[name].dtype), case.terms)


def test_the_interpreter_is_there_and_no_default() -> None:
    assert _dispatch.machine_lacks("triton") is None
    assert _dispatch.choose("window_attention", None, torch.zeros(1)) == "reference"
    assert _dispatch.choose("window_attention", "triton", torch.zeros(1)) == "triton"


# test_parity's small ones that are as many regimes to the kernels; the others differ from these in what Python does.
SMALL = [
    Case(7, (0, 0), batch=1),  # only itself: the softmax of one key
    Case(1, (0, 0), batch=1),  # one frame, one key
    Case(1, (3, 2), batch=1),  # one frame under a wide window: most of the bias has no gradient
    Case(9, (3, 0), batch=1),  # causal
    Case(5, (8, 11), batch=1),  # wider than the sequence on both sides
    Case(9, (2, 1), lengths=(0, 1)),  # nothing at all, and a single frame
    Case(9, (2, 2), batch=1, heads=4, kv_heads=2, dim=5),  # grouped queries
    Case(9, (2, 2), batch=1, bias=False, scale=-0.7),  # no bias; a scale of the caller's, negative
    Case(9, (2, 3), dropout_p=0.4, lengths=(9, 6), heads=1, kv_heads=1),  # dropout
    Case(5, (4, 6), "circular", batch=1, heads=1, kv_heads=1),  # meets every frame again, on both sides
    Case(9, (5, 3), "circular", lengths=(0, 1), heads=1, kv_heads=1),  # one frame that every offset meets; none
    Case(9, (3, 4), "circular", lengths=(3, 8), dropout_p=0.3, heads=2, kv_heads=1),  # all of it at once
    Case(5, (2, 2), "shift", batch=1),  # exactly K frames: everyone sees everything
    Case(9, (1, 3), "shift", lengths=(5, 7), heads=2, kv_heads=1, dropout_p=0.5),  # lengths down to K
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_equals_the_definition(case: Case) -> None:
    inputs, grads = case.inputs(torch.float32), parity.cotangents(case, torch.float32)
    assert_exact(case, inputs, grads, run(case, inputs, grads))


# A program's own tile holds 16 or 32 frames, and a tile of the other side 32; with float32 up to 17 bias columns fit
# one tile of slots, with half types up to 33.
TILES = [
    Case(33, (2, 3), lengths=(33, 32), heads=1, kv_heads=1, dim=16),  # a tile and one frame; a tile
    Case(70, (8, 8), batch=1, heads=1, kv_heads=1, dim=8),  # the widest of one tile of slots; a program sums several
    Case(40, (9, 8), batch=1, dim=8),  # one column more: the bias gradient has programs of its own
    Case(36, (35, 5), batch=1, heads=2, kv_heads=1),  # a window wider than a tile, grouped
    Case(34, (0, 60), batch=1, heads=1, kv_heads=1, dropout_p=0.2),  # and than the sequence, with dropout
    Case(36, (7, 9), "circular", lengths=(36, 20), heads=1, kv_heads=1),
    Case(20, (50, 30), "circular", lengths=(20, 13), heads=1, kv_heads=1),  # meets frames again over several tiles
    Case(50, (9, 4), "shift", lengths=(50, 14), heads=1, kv_heads=1),
]


@pytest.mark.parametrize("case", TILES, ids=str)
def test_is_as_near_to_float64_as_the_plain_composition(case: Case) -> None:
    inputs, grads = case.inputs(torch.float32), parity.cotangents(case, torch.float32)
    first = run(case, inputs, grads)
    assert_budget(case, inputs, grads, first)
    again = run(case, inputs, grads)
    assert all(torch.equal(again[name], value) for name, value in first.items())


HALF = [
    Case(40, (16, 16), batch=1, heads=1, kv_heads=1, dim=64),  # the main configuration
    Case(23, (4, 3), "circular", lengths=(23, 5), heads=2, kv_heads=1, dim=8),
    Case(36, (40, 8), batch=1, dim=20),  # several tiles of keys
]


@pytest.mark.parametrize(
    ("dtype", "bias_dtype"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("case", HALF, ids=str)
def test_half_types(case: Case, dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    inputs, grads = case.inputs(dtype, bias_dtype), parity.cotangents(case, dtype)
    actual = run(case, inputs, grads)
    assert actual["out"].dtype == actual["dq"].dtype == dtype
    assert actual["drel_bias"].dtype == inputs[3].dtype
    assert_budget(case, inputs, grads, actual)


@pytest.mark.parametrize("dim", [1, 16, 17, 33, 64, 129, 256])
def test_any_head_dim(dim: int) -> None:
    case = Case(11, (2, 2), dim=dim, batch=1, heads=1, kv_heads=1)
    for dtype, check in ((torch.float32, assert_exact), (torch.float16, assert_budget)):
        inputs, grads = case.inputs(dtype), parity.cotangents(case, dtype)
        check(case, inputs, grads, run(case, inputs, grads))


@pytest.mark.parametrize("layout", range(5))
def test_any_strides(layout: int) -> None:
    case = Case(9, (2, 3), lengths=(9, 5), heads=2, kv_heads=1, dim=4)
    inputs, grads = case.inputs(torch.float32), parity.cotangents(case, torch.float32)
    expected = run(case, inputs, grads)
    views = [parity._views(x)[layout][1].requires_grad_() for x in inputs[:3]]
    actual = run(case, [*views, inputs[3]], (parity._views(grads[0])[layout][1], grads[1]))
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_offsets_of_more_than_31_bits() -> None:
    # Untouched memory but for the frames that are there: 2^31 + 2^21 elements from the first to the last.
    case = Case(3, (1, 1), heads=1, kv_heads=1, dim=4)
    inputs, grads = case.inputs(torch.float16), parity.cotangents(case, torch.float16)
    expected = run(case, inputs, grads)
    for strides in ((2**31 + 8, 64, 8, 1), (2**21, 2**30, 8, 1)):
        far = []
        for x in (*inputs[:3], grads[0]):
            far.append(torch.empty(2**31 + 2**22, dtype=torch.float16).as_strided(x.shape, strides))
            far[-1].copy_(x.detach())
        actual = run(case, [*(x.requires_grad_() for x in far[:3]), inputs[3]], (far[3], grads[1]))
        assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
def test_what_lies_in_the_padding_never_leaks(boundary: str) -> None:
    case = Case(20, (1, 2), boundary, lengths=(20, 4), kv_heads=1, dim=4)
    inputs, grads = case.inputs(torch.float32), parity.cotangents(case, torch.float32)
    expected = run(case, inputs, grads)
    padding = torch.arange(20) >= torch.tensor(case.lengths)[:, None]
    q, k, v, *poisoned = (x.detach().clone() for x in (*inputs[:3], *grads))
    for x in (q, k, v, *poisoned):
        x[padding] = torch.nan
    leaves = [x.requires_grad_() for x in (q, k, v, inputs[3].detach().clone())]
    out, lse = window_attention(*leaves, **case.options(), return_lse=True, backend="triton")
    gradients = torch.autograd.grad((out, lse), leaves, poisoned)
    actual = {"out": out, "lse": lse, **dict(zip(("dq", "dk", "dv", "drel_bias"), gradients, strict=True))}
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    assert not any(actual[name][padding].any() for name in ("out", "dq", "dk", "dv"))
    assert bool((actual["lse"][padding] == -torch.inf).all())


# One tile of slots; several (and products that are looked through only afterwards: those of half types).
@pytest.mark.parametrize(
    ("boundary", "window", "dtype"),
    [("clip", 2, torch.float32), ("circular", 2, torch.float16), ("shift", 12, torch.float32)],
    ids=str,
)
def test_only_rows_that_see_it_change(
    boundary: str, window: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One element that is not finite in each input in turn, near the edge of a tile.
    sizes = {"BATCH": 1, "HEADS": 2, "FRAMES": 36, "LEFT": window, "RIGHT": 2, "SIZE": window + 3, "DIM": 8}
    for name, value in sizes.items():
        monkeypatch.setattr(non_finite, name, value)
    tensors = non_finite.fit(non_finite.draw(), boundary)
    clean = non_finite.results(tensors, boundary, "triton", dtype)
    clean_exact = non_finite.results(tensors, boundary, None, dtype)
    planted = {"q": math.nan, "k": -math.inf, "v": math.inf, "rel_bias": math.nan, "grad_out": -math.inf}
    for number, (name, value) in enumerate(planted.items()):
        poisoned = non_finite.planted(tensors, name, (31, 15, 16, 5, 32)[number], value)
        actual = non_finite.results(poisoned, boundary, "triton", dtype)
        exact = non_finite.results(poisoned, boundary, None, dtype)
        for key in exact:
            what = f"{key}, {value} in {name}"
            non_finite.assert_as_defined(what, actual[key], exact[key], same_kind=key in ("out", "lse"))
            if key in ("out", "lse"):
                changed = exact[key].isnan() | (exact[key] != clean_exact[key])
                changed = changed.any(-1) if key == "out" else changed
                assert name == "rel_bias" or not changed.all()
                assert torch.equal(actual[key][~changed], clean[key][~changed]), f"{what}: another row has changed"


def test_a_bias_of_minus_infinity_hides_keys() -> None:
    case = Case(9, (2, 0))
    q, k, v, _ = case.inputs(torch.float32)
    blind = torch.tensor([0.5, -torch.inf, -torch.inf]).expand(2, 3).clone().requires_grad_()
    out, lse = window_attention(q, k, v, blind, window=(2, 0), return_lse=True, backend="triton")
    assert not out[:, :2].any()
    assert bool((lse[:, :2] == -torch.inf).all())
    assert torch.equal(out[:, 2:], v[:, :-2])  # of one key, whose weight is 1
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v, blind))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not gradients[0][:, :2].any()
    assert not gradients[3][:, 1:].any()


def test_large_scores_stay_finite() -> None:
    q = torch.full((1, 9, 1, 4), 10.0, requires_grad=True)
    k = torch.randn(1, 9, 1, 4) * 10
    out, lse = window_attention(q, k, k, window=3, scale=1.5, return_lse=True, backend="triton")
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert all(bool(x.isfinite().all()) for x in (out, lse, gradient))


@pytest.mark.parametrize(
    ("boundary", "seed"), [("clip", 2**32 + 2**31 + 1), ("circular", 2**31), ("shift", 2**64 - 5), ("clip", 0)]
)
def test_dropout_drops_what_the_reference_drops(seed: int, boundary: str) -> None:
    zeros, identity = torch.zeros(2, 20, 2, 20), torch.eye(20)[None, :, None].expand(2, 20, 1, 20)
    weights = [
        window_attention(
            zeros, zeros[:, :, :1], identity, window=(4, 2), boundary=boundary, dropout_p=0.6, seed=seed, backend=name
        )
        for name in ("triton", "reference")
    ]
    assert torch.equal(weights[0] > 0, weights[1] > 0)
    assert 0.2 < float((weights[0] > 0).float().mean()) / (7 / 20) < 0.6


def test_gradients_only_for_those_that_want_one() -> None:
    case = Case(34, (20, 3), batch=1)
    inputs, grads = case.inputs(torch.float32), parity.cotangents(case, torch.float32)
    expected = run(case, inputs, grads)
    frozen = [*(x.detach().clone().requires_grad_() for x in inputs[:3]), inputs[3].detach()]
    actual = run(case, frozen, grads)
    assert set(actual) == set(expected) - {"drel_bias"}
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())
    out = window_attention(*inputs, **case.options(), backend="triton")  # no gradient of lse
    gradients = torch.autograd.grad((out * grads[0]).sum(), inputs)
    only = exact_of(case, inputs, (grads[0], torch.zeros_like(grads[1])))
    for name, value in zip(("dq", "dk", "dv", "drel_bias"), gradients, strict=True):
        assert_same_formula(name, value, only[name].float(), case.terms)


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
def test_empty_batch(boundary: str) -> None:
    inputs = Case(9, (2, 2), boundary, batch=0).inputs(torch.float32)
    out, lse = window_attention(*inputs, window=2, boundary=boundary, return_lse=True, backend="triton")
    gradients = torch.autograd.grad(out.sum() + lse.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]
    assert not gradients[3].any()


def test_float64_is_declined() -> None:
    q = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    with pytest.raises(_dispatch.BackendError, match="it takes float16, bfloat16, float32, not float64"):
        window_attention(q, q, q, window=1, backend="triton")
