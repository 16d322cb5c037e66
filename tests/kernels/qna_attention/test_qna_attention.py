"""qna_attention against its contract, written out term by term, and its promises beside its values."""

from dataclasses import dataclass, fields, replace
from functools import cache

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor

from sinmdm.kernels import qna_attention

OP = "qna_attention"


@dataclass(frozen=True)
class Case:
    """One call: its sizes and options."""

    frames: int
    window: tuple[int, int]
    stride: int = 1
    boundary: str = "clip"
    lengths: tuple[int, ...] | None = None
    batch: int = 2
    heads: int = 2
    dim: int = 3

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)[2:] if getattr(self, f.name) != f.default}
        return f"T{self.frames}-{self.window}" + "".join(f"-{n}={x}" for n, x in given.items())

    @property
    def columns(self) -> int:
        return sum(self.window) + 1

    @property
    def outputs(self) -> int:
        return -(-self.frames // self.stride)

    @property
    def terms(self) -> int:
        """The longest sum in a result: a bias column adds up every output of the batch, each a sum over head_dim."""
        return self.batch * self.frames + self.columns + self.dim

    def options(self) -> dict:
        lengths = None if self.lengths is None else torch.tensor(self.lengths)
        return {"window": self.window, "stride": self.stride, "boundary": self.boundary, "lengths": lengths}

    def inputs(self, dtype: torch.dtype = torch.float64, bias_dtype: torch.dtype | None = None) -> list[Tensor]:
        """scores, values, rel_bias."""
        scores = torch.randn(self.batch, self.frames, self.heads, dtype=torch.float64)
        values = torch.randn(self.batch, self.frames, self.heads, self.dim, dtype=torch.float64)
        rel_bias = torch.randn(self.heads, self.columns, dtype=torch.float64)
        return [
            x.to(d).requires_grad_()
            for x, d in zip((scores, values, rel_bias), (dtype, dtype, bias_dtype or dtype), strict=True)
        ]

    def cotangent(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(self.batch, self.outputs, self.heads, self.dim, dtype=torch.float64).to(dtype)


@cache
def visible_pairs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """(frames, columns, real), each (B, outputs, K): everything an output sees, straight from the contract."""
    left, right = case.window
    frames, columns = torch.zeros(2, case.batch, case.outputs, case.columns, dtype=torch.int64)
    real = torch.zeros(case.batch, case.outputs, case.columns, dtype=torch.bool)
    for b, n in enumerate(case.lengths or (case.frames,) * case.batch):
        for t in range(case.outputs):
            i = case.stride * t
            for offset in range(-left, right + 1):
                j, column = i + offset, offset + left
                if i < n and (case.boundary == "circular" or 0 <= j < n):
                    frames[b, t, column], columns[b, t, column], real[b, t, column] = j % n, column, True
    return frames, columns, real


def by_definition(case: Case, scores: Tensor, values: Tensor, rel_bias: Tensor) -> Tensor:
    """exp(s_j + r_{j-i}) over its sum: the plain composition, each output's keys gathered one by one."""
    frames, columns, real = visible_pairs(case)
    row = torch.arange(case.batch)[:, None, None]
    logits = scores[row, frames] + rel_bias.to(scores.dtype).T[columns]  # (B, outputs, K, H)
    logits = logits.masked_fill(~real[..., None], -torch.inf)
    some = real.any(-1)[..., None, None]
    weights = logits.masked_fill(~some, 0).softmax(2).masked_fill(~some, 0)
    return torch.einsum("btkh,btkhd->bthd", weights, values[row, frames])


def results(out: Tensor, inputs: list[Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(out, inputs, grad_out.to(out.dtype))
    return {"out": out.detach(), **dict(zip(("dscores", "dvalues", "drel_bias"), gradients, strict=True))}


def run(case: Case, inputs: list[Tensor], grad_out: Tensor, backend: str) -> dict[str, Tensor]:
    return results(qna_attention(*inputs, **case.options(), backend=backend), inputs, grad_out)


# One comment a regime.
SMALL = [
    Case(9, (1, 1)),  # the networks' own window
    Case(9, (3, 3)),  # the first release's
    Case(9, (0, 0)),  # one key
    Case(9, (1, 2)),  # an even window
    Case(9, (0, 3)),  # one side
    Case(9, (3, 0)),  # the other
    Case(1, (0, 0)),  # one frame, one key
    Case(1, (3, 2), stride=3),  # one frame under a wide window and a stride
    Case(5, (8, 9)),  # wider than the sequence
    Case(9, (1, 1), lengths=(9, 4)),  # padded
    Case(9, (2, 1), lengths=(0, 1)),  # nothing, and one frame
    Case(8, (1, 1), stride=2),  # even length, stride 2
    Case(9, (1, 1), stride=2),  # odd: the last output sits on the last frame
    Case(10, (2, 2), stride=3),  # 10 = 3 * 3 + 1
    Case(11, (1, 0), stride=3),  # 11 = 3 * 3 + 2
    Case(9, (0, 0), stride=4),  # keys that nobody sees
    Case(9, (1, 2), stride=2, lengths=(7, 4)),  # padded, stride
    Case(4, (1, 1), stride=9),  # a stride beyond the end
    Case(9, (2, 2), boundary="circular"),  # wraps
    Case(9, (2, 1), boundary="circular", stride=2, lengths=(9, 4)),  # wraps at each one's own length
    Case(5, (6, 7), boundary="circular", stride=3),  # meets frames again
    Case(9, (5, 4), boundary="circular", lengths=(0, 1)),  # one frame that every offset meets
    Case(9, (1, 1), heads=1, dim=1),
    # What a row is taken in: several heads of one, two or four registers, or one head piece by piece.
    *(Case(20, (1, 2), heads=heads, dim=dim) for heads in (3, 4) for dim in (4, 8, 16, 20, 32, 33, 64)),
    Case(20, (1, 1), heads=8, dim=128, batch=1),  # more heads than a task takes
    Case(20, (1, 1), heads=5, dim=256, batch=1),  # rows of more than 4 KB
]
# A tile holds 65 // stride outputs: full tiles, one more, windows wider than one.
TILES = [
    Case(66, (1, 1), lengths=(66, 65)),
    Case(200, (3, 3), stride=2, lengths=(200, 131), dim=8),
    Case(200, (2, 2), stride=3, batch=1),
    Case(300, (2, 2), lengths=(300, 129), heads=4, dim=8),  # the CPU's tiles hold 128 frames
    Case(300, (3, 1), stride=2, boundary="circular", heads=4, dim=16, lengths=(257, 300)),
    Case(140, (80, 70), batch=1),
    Case(140, (90, 70), stride=2, boundary="circular", lengths=(140, 70)),
]


@pytest.mark.parametrize("case", SMALL + TILES, ids=str)
def test_equals_the_definition_in_float64(case: Case, backend: str) -> None:
    inputs, grad_out = case.inputs(), case.cotangent()
    expected = results(by_definition(case, *inputs), inputs, grad_out)
    for name, actual in run(case, inputs, grad_out, backend).items():
        assert_same_formula(name, actual, expected[name], case.terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(70, (1, 1), lengths=(70, 33), dim=32),  # the networks' window over two tiles
        Case(140, (7, 7), heads=4, dim=32),  # their widest
        Case(40, (2, 3), heads=3, dim=20),  # rows of no whole register
        Case(40, (3, 3), stride=2, dim=8),
        Case(40, (4, 4), boundary="circular", lengths=(40, 3), dim=16),
        Case(12, (1, 2), dim=256, batch=1),
    ],
    ids=str,
)
def test_is_as_near_to_float64_as_the_plain_composition(case: Case, dtype: torch.dtype, backend: str) -> None:
    for bias_dtype in {dtype, torch.float32}:
        inputs, grad_out = case.inputs(dtype, bias_dtype), case.cotangent(dtype)
        exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
        exact = results(by_definition(case, *exact_inputs), exact_inputs, grad_out)
        eager = results(by_definition(case, *inputs), inputs, grad_out)
        for name, actual in run(case, inputs, grad_out, backend).items():
            assert actual.dtype == (bias_dtype if name == "drel_bias" else dtype)
            assert_within_budget(name, actual, exact[name], eager[name])


def test_equals_the_published_quotient_of_convolutions(backend: str) -> None:
    # What SinMDM's networks compute: two depthwise convolutions of exp(u) v and exp(u) with exp(r), then a division.
    case = Case(17, (1, 1), heads=3, dim=4)
    scores, values, rel_bias = (x.detach() for x in case.inputs())
    exponential = scores.exp().transpose(1, 2).flatten(0, 1)[:, None]  # (B H, 1, T)
    weighted = (scores.exp()[..., None] * values).permute(0, 2, 3, 1).flatten(0, 1)  # (B H, D, T)
    kernel = rel_bias.exp().repeat(case.batch, 1)  # (B H, K)
    pad = torch.nn.functional.pad
    total = (pad(exponential, case.window).unfold(-1, 3, 1) * kernel[:, None, None]).sum(-1)
    above = (pad(weighted, case.window).unfold(-1, 3, 1) * kernel[:, None, None]).sum(-1)
    expected = (above / total).reshape(case.batch, 3, 4, 17).permute(0, 3, 1, 2)
    assert_same_formula("out", qna_attention(scores, values, rel_bias, window=1, backend=backend), expected, case.terms)


def test_scores_of_100_in_float16_stay_finite(backend: str) -> None:
    # exp(100) overflows float16 and float32: the published quotient gives NaN here.
    case = Case(20, (2, 2), dim=4)
    scores, values, rel_bias = (x.detach() for x in case.inputs(torch.float16))
    scores = scores.sign().mul(100).requires_grad_()
    inputs = [scores, values.requires_grad_(), rel_bias.requires_grad_()]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    grad_out = case.cotangent(torch.float16)
    actual = run(case, inputs, grad_out, backend)
    assert all(bool(x.isfinite().all()) for x in actual.values())
    exact = results(by_definition(case, *exact_inputs), exact_inputs, grad_out)
    eager = results(by_definition(case, *inputs), inputs, grad_out)
    assert_within_budget("out", actual["out"], exact["out"], eager["out"])


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_a_constant_added_to_all_scores_changes_nothing(shift: float, backend: str) -> None:
    # Wk_bias does that. Powers of two would hide a rounding, so the scores are whole numbers, which lose nothing.
    case = Case(20, (2, 2))
    scores, values, rel_bias = (x.detach() for x in case.inputs(torch.float32))
    scores, rel_bias = scores.round(), rel_bias.round()
    expected = qna_attention(scores, values, rel_bias, window=2, backend=backend)
    actual = qna_attention(scores + shift, values, rel_bias, window=2, backend=backend)
    # exp and log at 1e4 instead of 1 carry an absolute error of 1e4 eps into every exponent.
    bound = 4 * 1e4 * torch.finfo(torch.float32).eps
    assert float((actual - expected).norm() / expected.norm()) <= bound


@pytest.mark.parametrize("boundary", ["clip", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_lies_in_the_padding_never_leaks(boundary: str, stride: int, backend: str) -> None:
    case = Case(80, (2, 1), stride, boundary, (80, 70, 3), batch=3)
    inputs, grad_out = case.inputs(), case.cotangent()
    expected = run(case, inputs, grad_out, backend)
    padding = torch.arange(80) >= torch.tensor(case.lengths)[:, None]
    poisoned = [x.detach().clone() for x in (inputs[0], inputs[1], grad_out)]
    for x, where in zip(poisoned, (padding, padding, padding[:, ::stride]), strict=True):
        x[where] = torch.nan
    tensors = [poisoned[0].requires_grad_(), poisoned[1].requires_grad_(), inputs[2]]
    actual = run(case, tensors, poisoned[2], backend)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    for name in ("dscores", "dvalues"):
        assert not actual[name][padding].any(), f"{name} is not 0 in the padding"
    assert not actual["out"][padding[:, ::stride]].any()


def test_padding_changes_nothing(backend: str) -> None:
    case = Case(90, (3, 2), stride=2, lengths=(90, 66), batch=2)
    inputs, grad_out = case.inputs(), case.cotangent()
    together = run(case, inputs, grad_out, backend)
    bias_gradient = torch.zeros_like(together["drel_bias"])
    for b, n in enumerate(case.lengths):
        alone = replace(case, frames=n, lengths=None, batch=1)
        cut = [x.detach()[b : b + 1, :n].requires_grad_() for x in inputs[:2]] + [inputs[2]]
        expected = run(alone, cut, grad_out[b : b + 1, : alone.outputs], backend)
        bias_gradient += expected.pop("drel_bias")
        for name, value in expected.items():
            assert_same_formula(name, together[name][b : b + 1, : value.shape[1]], value, case.terms)
    assert_same_formula("drel_bias", together["drel_bias"], bias_gradient, case.terms)


def test_any_strides_in_memory(backend: str) -> None:
    case = Case(9, (2, 1), dim=4)
    inputs, grad_out = case.inputs(), case.cotangent()
    expected = run(case, inputs, grad_out, backend)
    wide = torch.full((2, 9, 2, 12), torch.nan, dtype=torch.float64)
    wide[..., 4:8] = inputs[1].detach()
    for name, scores, values, given in (
        (
            "(B, H, T, D)",
            inputs[0].detach().transpose(1, 2).contiguous().transpose(1, 2),
            inputs[1].detach().transpose(1, 2).contiguous().transpose(1, 2),
            grad_out.transpose(1, 2).contiguous().transpose(1, 2),
        ),
        (
            "slices of wider buffers, head_dim before frames",
            torch.stack([inputs[0].detach()] * 3, -1)[..., 1],
            wide[..., 4:8],
            grad_out.transpose(1, 3).contiguous().transpose(1, 3),
        ),
    ):
        assert not scores.is_contiguous()
        assert not values.is_contiguous()
        tensors = [scores.requires_grad_(), values.requires_grad_(), inputs[2]]
        for key, actual in run(case, tensors, given, backend).items():
            assert_same_formula(f"{key}, {name}", actual, expected[key], case.terms)


@pytest.mark.parametrize("boundary", ["clip", "circular"])
def test_empty_batch(boundary: str, backend: str) -> None:
    case = Case(9, (1, 1), stride=2, boundary=boundary, batch=0)
    inputs = case.inputs()
    lengths = torch.zeros(0, dtype=torch.int64)
    out = qna_attention(*inputs, window=1, stride=2, boundary=boundary, lengths=lengths, backend=backend)
    assert out.shape == (0, 5, 2, 3)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]
    assert not gradients[2].any()


@pytest.mark.parametrize("stride", [1, 2])
def test_twenty_runs_give_the_same_bits(stride: int, backend: str) -> None:
    case = Case(200, (2, 2), stride, lengths=(200, 77), dim=16)
    inputs, grad_out = case.inputs(torch.float32), case.cotangent(torch.float32)
    first = run(case, inputs, grad_out, backend)
    for _ in range(19):
        again = run(case, inputs, grad_out, backend)
        assert all(torch.equal(again[name], value) for name, value in first.items())


GRADCHECK = [
    Case(5, (1, 1), lengths=(5, 3), dim=2),
    Case(5, (1, 2), stride=2, dim=2),  # an even window, every second frame
    Case(5, (1, 1), stride=3, lengths=(4, 2), dim=1),
    Case(3, (4, 5), dim=1),  # wider than T
    Case(1, (1, 1), dim=2),
    Case(4, (0, 0), dim=2),  # one key: the scores have no effect
    Case(4, (1, 1), boundary="circular", stride=2, lengths=(4, 3), dim=1),
    Case(3, (4, 3), boundary="circular", lengths=(3, 1), dim=1),
]


@pytest.mark.parametrize("case", GRADCHECK, ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    assert torch.autograd.gradcheck(lambda *x: qna_attention(*x, **case.options(), backend=backend), case.inputs())


def test_a_second_derivative_is_a_clear_error(backend: str) -> None:
    inputs = Case(9, (1, 1)).inputs()
    out = qna_attention(*inputs, window=1, backend=backend)
    (gradient,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="qna_attention has no second derivative"):
        gradient.sum().backward()


def good() -> dict:
    scores, values, rel_bias = (x.detach() for x in Case(9, (1, 1)).inputs(torch.float32))
    return {"scores": scores, "values": values, "rel_bias": rel_bias, "window": 1}


def bad_values() -> dict[str, tuple[dict, type[Exception], str]]:
    """What is wrong -> (changed arguments, error, what its message must say)."""
    g = good()
    long = torch.zeros(1, 2, 1, 257)
    return {
        "values of three dimensions": ({"values": g["values"][0]}, ValueError, r"values must have shape.*\(9, 2, 3\)"),
        "values of integers": ({"values": g["values"].int()}, TypeError, "values must be float16.*got int32"),
        "no frames": ({"values": g["values"][:, :0], "scores": g["scores"][:, :0]}, ValueError, "values needs a frame"),
        "no heads": ({"values": g["values"][:, :, :0]}, ValueError, "values needs a frame, a head"),
        "head_dim 0": ({"values": g["values"][..., :0]}, ValueError, "values needs.*head_dim from 1 to 256"),
        "head_dim 257": ({"values": long, "scores": long[..., 0]}, ValueError, "values needs.*head_dim from 1 to 256"),
        "scores' shape": ({"scores": g["scores"][:, 1:]}, ValueError, r"scores.*\(2, 9, 2\), got \(2, 8, 2\)"),
        "scores' dtype": ({"scores": g["scores"].double()}, TypeError, "scores must be float32, got float64"),
        "scores' device": ({"scores": g["scores"].to("meta")}, ValueError, "scores must be on values's device cpu"),
        "negative window": ({"window": (-1, 2)}, ValueError, "window must be"),
        "window None": ({"window": None}, ValueError, "window must be.*None"),
        "shift": ({"boundary": "shift"}, ValueError, "boundary must be one of clip, circular, got 'shift'"),
        "stride 0": ({"stride": 0}, ValueError, r"stride must be an int >= 1 and < 2\*\*31, got 0"),
        "stride True": ({"stride": True}, ValueError, r"stride must be an int >= 1.*got True"),
        "fractional stride": ({"stride": 1.0}, ValueError, r"stride must be an int >= 1.*got 1\.0"),
        "a stride of 2^31": ({"stride": 2**31}, ValueError, r"stride must be an int >= 1 and < 2\*\*31"),
        "bias columns": ({"rel_bias": torch.zeros(2, 4)}, ValueError, r"rel_bias.*\(2, 3\), got \(2, 4\)"),
        "bias heads": ({"rel_bias": torch.zeros(1, 3)}, ValueError, "rel_bias must have shape"),
        "bias dtype": ({"rel_bias": torch.zeros(2, 3).half()}, TypeError, "rel_bias must be float32, got float16"),
        "bias device": ({"rel_bias": g["rel_bias"].to("meta")}, ValueError, "rel_bias must be on values's device cpu"),
        "lengths' shape": ({"lengths": torch.tensor([9])}, ValueError, r"lengths.*\(2,\), got \(1,\)"),
        "lengths' dtype": ({"lengths": torch.tensor([9.0, 9.0])}, TypeError, "lengths must be int32 or int64"),
        "too long": ({"lengths": torch.tensor([9, 10])}, ValueError, "lengths must be from 0 to 9.*10"),
        "negative length": ({"lengths": torch.tensor([-1, 9])}, ValueError, "lengths must be from 0 to 9.*-1"),
        "unknown backend": ({"backend": "gpu"}, ValueError, "backend must be one of cpu, cuda, reference, triton"),
    }


@pytest.mark.parametrize("what", bad_values())
def test_errors_name_the_argument(what: str) -> None:
    qna_attention(**good())  # what the case is changed from is fine
    changed, error, message = bad_values()[what]
    with pytest.raises(error, match=message):
        qna_attention(**good() | changed)
