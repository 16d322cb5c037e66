"""The cases of test_triton.py, which runs them with TRITON_INTERPRET=1: the Triton kernels on the CPU.

The tiles are those of a GPU: 32 frames of one head of 64 channels or 4 of 32, and up to 256 frames of narrow ones, so
that the sizes here are less than a tile, a tile and a bit, several. float64 is not for Triton: exact results are
computed in it, and compared with the kernels' in the dtypes that they take.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tolerance import assert_same_formula, relative_error
from torch import Tensor

from sinmdm.kernels import _dispatch, qna_attention
from sinmdm.kernels.qna_attention import triton as launchers


def _module(path: str) -> ModuleType:
    """A test module by its path from here: pytest imports them by path, and so no name leads to them."""
    spec = importlib.util.spec_from_file_location(f"qna_cases_{Path(path).stem}", Path(__file__).parent / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


parity, non_finite = _module("test_qna_attention.py"), _module("test_non_finite.py")
attention_parity = _module("../window_attention/test_parity.py")
Case = parity.Case
BF16_ULP = 2.0**-7


def run(case: Case, inputs: list[Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    return parity.run(case, inputs, grad_out, "triton")


def exact_of(case: Case, inputs: list[Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    wide = [x.detach().double().requires_grad_() for x in inputs]
    return parity.results(parity.by_definition(case, *wide), wide, grad_out.double())


def assert_budget(case: Case, inputs: list[Tensor], grad_out: Tensor, actual: dict[str, Tensor]) -> None:
    """As tolerance.assert_within_budget, with an ulp more for bfloat16: the interpreter cuts float32 off to it."""
    exact = exact_of(case, inputs, grad_out)
    eager = parity.results(parity.by_definition(case, *inputs), inputs, grad_out)
    for name, value in actual.items():
        cut = BF16_ULP if value.dtype == torch.bfloat16 else 0.0
        error, allowed = relative_error(value, exact[name]), 1.5 * relative_error(eager[name], exact[name]) + 1e-7 + cut
        assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


def assert_exact(case: Case, inputs: list[Tensor], grad_out: Tensor, actual: dict[str, Tensor]) -> None:
    """The formula up to the order of its sums."""
    for name, value in exact_of(case, inputs, grad_out).items():
        assert_same_formula(name, actual[name], value.to(actual[name].dtype), case.terms)


def test_the_interpreter_is_there_and_no_default() -> None:
    assert _dispatch.choose("qna_attention", None, torch.zeros(1)) == "reference"
    assert _dispatch.choose("qna_attention", "triton", torch.zeros(1)) == "triton"


ONE_FRAME = {"boundary": "circular", "lengths": (0, 1)}
WIDTHS = [(1, 1), (1, 5), (3, 8), (4, 32), (3, 64), (5, 20), (20, 1), (1, 256), (2, 129)]  # heads, head_dim
SMALL = [
    # test_qna_attention's that differ in windows, lengths and strides. But of one frame that every offset meets the
    # gradients of score and bias are 0, and float64 has them as rounding: that frame beside others, whose are not.
    *(case for case in parity.SMALL if case.dim == 3 and case != replace(case, **ONE_FRAME)),
    Case(9, (5, 4), boundary="circular", lengths=(2, 1)),
    *(Case(9, (1, 2), heads=heads, dim=dim, batch=1) for heads, dim in WIDTHS),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_equals_the_definition(case: Case) -> None:
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    assert_exact(case, inputs, grad_out, run(case, inputs, grad_out))


TILES = [
    Case(33, (1, 1), heads=4, dim=32, lengths=(33, 32)),  # a tile and one frame; a tile
    Case(70, (7, 7), heads=3, dim=32, batch=1),  # a group of heads that is not full
    Case(70, (1, 2), heads=6, dim=32, batch=1),  # two groups, the second not full
    Case(260, (3, 2), heads=1, dim=1, batch=1),  # the longest tile and a bit
    Case(40, (2, 3), heads=2, dim=64, stride=2, lengths=(40, 17)),
    Case(100, (4, 0), heads=4, dim=32, stride=3, batch=1),
    Case(40, (40, 30), heads=4, dim=32, batch=1),  # a window wider than a tile and than the sequence
    Case(40, (5, 4), heads=4, dim=32, boundary="circular", lengths=(40, 33)),
    Case(40, (17, 12), heads=2, dim=5, boundary="circular", lengths=(40, 7)),  # meets frames again
    Case(50, (6, 9), heads=4, dim=32, boundary="circular", stride=3, batch=1),
]


@pytest.mark.parametrize("case", TILES, ids=str)
def test_is_as_near_to_float64_as_the_plain_composition(case: Case) -> None:
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    first = run(case, inputs, grad_out)
    assert_budget(case, inputs, grad_out, first)
    again = run(case, inputs, grad_out)
    assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize(
    ("dtype", "bias_dtype"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("case", [TILES[0], TILES[4], TILES[8], Case(12, (1, 2), dim=256, batch=1)], ids=str)
def test_half_types(case: Case, dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    inputs, grad_out = case.inputs(dtype, bias_dtype), case.cotangent(dtype)
    actual = run(case, inputs, grad_out)
    assert actual["out"].dtype == actual["dscores"].dtype == actual["dvalues"].dtype == dtype
    assert actual["drel_bias"].dtype == bias_dtype
    assert_budget(case, inputs, grad_out, actual)


def test_the_bias_gradient_of_the_widest_windows_a_few_columns_at_a_time() -> None:
    case = Case(70, (35, 38), heads=1, dim=1, batch=1)  # 74 columns, a number each; values has 70
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    assert_budget(case, inputs, grad_out, run(case, inputs, grad_out))


def test_more_tiles_than_are_added_up_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "CHUNKS", 4)
    case = Case(200, (1, 1), heads=4, dim=32)  # 14 tiles
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    assert_exact(case, inputs, grad_out, run(case, inputs, grad_out))


def test_scores_of_100_in_float16_stay_finite() -> None:
    parity.test_scores_of_100_in_float16_stay_finite("triton")


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    parity.test_a_constant_added_to_all_scores_changes_nothing(1e4, "triton")


@pytest.mark.parametrize("boundary", ["clip", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_lies_in_the_padding_never_leaks(boundary: str, stride: int) -> None:
    case = Case(40, (2, 1), stride, boundary, (40, 30, 3), batch=3)
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    expected = run(case, inputs, grad_out)
    padding = torch.arange(40) >= torch.tensor(case.lengths)[:, None]
    scores, values, poisoned = (x.detach().clone() for x in (inputs[0], inputs[1], grad_out))
    for x, where in ((scores, padding), (values, padding), (poisoned, padding[:, ::stride])):
        x[where] = torch.nan
    actual = run(case, [scores.requires_grad_(), values.requires_grad_(), inputs[2]], poisoned)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert not any(actual[name][padding].any() for name in ("dscores", "dvalues"))
    assert not actual["out"][padding[:, ::stride]].any()


@pytest.mark.parametrize("layout", range(5))
def test_any_strides(layout: int) -> None:
    case = Case(9, (2, 1), dim=4)
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    expected = run(case, inputs, grad_out)
    scores, values, given = (attention_parity._views(x)[layout][1] for x in (inputs[0][..., None], inputs[1], grad_out))
    actual = run(case, [scores[..., 0].requires_grad_(), values.requires_grad_(), inputs[2]], given)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_offsets_of_more_than_31_bits() -> None:
    # Untouched memory but for the frames that are there: 2^31 + 2^21 elements from the first to the last.
    case = Case(3, (1, 1), dim=4)
    inputs, grad_out = case.inputs(torch.float16), case.cotangent(torch.float16)
    expected = run(case, inputs, grad_out)
    for strides in ((2**31 + 8, 64, 8, 1), (2**21, 2**30, 8, 1), (2**21, 64, 2**31 + 8, 1)):
        far = []
        for x in (inputs[0][..., None], inputs[1], grad_out):
            far.append(torch.empty(2**31 + 2**22, dtype=torch.float16).as_strided(x.shape, strides))
            far[-1].copy_(x.detach())
        actual = run(case, [far[0][..., 0].requires_grad_(), far[1].requires_grad_(), inputs[2]], far[2])
        assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("boundary", ["clip", "circular"])
@pytest.mark.parametrize("value", non_finite.VALUES)
def test_what_is_not_finite_stays_where_it_is_seen(
    value: str, boundary: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {"FRAMES": 36, "HEADS": 3, "TERMS": 2 * 36 + non_finite.SIZE + non_finite.DIM}.items():
        monkeypatch.setattr(non_finite, name, size)
    outputs = -(-36 // stride)
    shapes = ((2, 36, 3), (2, 36, 3, non_finite.DIM), (3, non_finite.SIZE), (2, outputs, 3, non_finite.DIM))
    sound = {key: torch.randn(shape) for key, shape in zip(non_finite.NAMES, shapes, strict=True)}
    before = non_finite.results(sound, boundary, stride, "triton")
    for number, name in enumerate(non_finite.NAMES):
        ill = {key: x.clone() for key, x in sound.items()}
        # In the second sequence and its first head, about where a tile begins; the bias's in all sequences' second.
        place = (1, 5) if name == "rel_bias" else (1, min(30 + number, ill[name].shape[1] - 1), 0)
        ill[name][(*place, *[4] * (ill[name].dim() - len(place)))] = non_finite.VALUES[value]
        actual = non_finite.results(ill, boundary, stride, "triton")
        wide = {key: x.double() for key, x in ill.items()}
        for key, exact in non_finite.results(wide, boundary, stride, None).items():
            finite = exact.isfinite()
            assert torch.equal(actual[key].isfinite(), finite), (name, key)
            assert_same_formula(key, actual[key][finite], exact[finite].float(), non_finite.TERMS)
            if key != "drel_bias":  # what none of it reaches keeps its bits
                now, then = (x[key][:, :, 0] if name == "rel_bias" else x[key][0] for x in (actual, before))
                assert torch.equal(now, then), (name, key)


def test_a_score_of_minus_infinity_hides_a_key() -> None:
    scores, values, rel_bias = (x.detach() for x in Case(9, (1, 0)).inputs(torch.float32))
    scores[:, 3:5] = -torch.inf
    leaves = [x.requires_grad_() for x in (scores, values, rel_bias)]
    out = qna_attention(*leaves, window=(1, 0), backend="triton")
    assert not out[:, 4].any()  # sees nothing else
    assert torch.equal(out[:, 3], values[:, 2])
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not gradients[0][:, 3:5].any()
    assert not gradients[1][:, 3:5].any()


def test_padding_changes_nothing() -> None:
    case = Case(50, (3, 2), stride=2, lengths=(50, 37), dim=8)
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    together = run(case, inputs, grad_out)
    for b, n in enumerate(case.lengths):
        alone = replace(case, frames=n, lengths=None, batch=1)
        cut = [x.detach()[b : b + 1, :n].requires_grad_() for x in inputs[:2]] + [inputs[2]]
        for name, value in run(alone, cut, grad_out[b : b + 1, : alone.outputs]).items():
            if name != "drel_bias":
                assert torch.equal(together[name][b : b + 1, : value.shape[1]], value), name


@pytest.mark.parametrize("boundary", ["clip", "circular"])
def test_the_largest_stride(boundary: str) -> None:
    inputs = Case(9, (2, 2)).inputs(torch.float32)
    out = qna_attention(*inputs, window=2, stride=2**31 - 1, boundary=boundary, backend="triton")
    first = qna_attention(*inputs, window=2, boundary=boundary, backend="triton")[:, :1]
    assert torch.equal(out, first)


@pytest.mark.parametrize("boundary", ["clip", "circular"])
def test_empty_batch(boundary: str) -> None:
    inputs = Case(9, (1, 1), batch=0).inputs(torch.float32)
    lengths = torch.zeros(0, dtype=torch.int64)
    out = qna_attention(*inputs, window=1, stride=2, boundary=boundary, lengths=lengths, backend="triton")
    assert out.shape == (0, 5, 2, 3)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]
    assert not gradients[2].any()


def test_float64_is_declined() -> None:
    with pytest.raises(_dispatch.BackendError, match="it takes float16, bfloat16, float32, not float64"):
        qna_attention(*Case(9, (1, 1)).inputs(), window=1, backend="triton")
