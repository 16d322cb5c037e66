"""window_attention against its contract, written out term by term, and against float64 in every dtype."""

import math
from dataclasses import dataclass, fields, replace
from functools import cache

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor

from sinmdm.kernels import window_attention
from sinmdm.kernels.philox.reference import philox4x32

OP = "window_attention"
SEED = 2**63 + 11  # with the sign bit of the 64-bit key set


@dataclass(frozen=True)
class Case:
    """One call: its sizes and options."""

    frames: int
    window: tuple[int, int]
    boundary: str = "clip"
    lengths: tuple[int, ...] | None = None
    batch: int = 2
    heads: int = 2
    kv_heads: int = 2
    dim: int = 3
    bias: bool = True
    dropout_p: float = 0.0
    scale: float | None = None

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)[3:] if getattr(self, f.name) != f.default}
        return f"T{self.frames}-{self.window}-{self.boundary}" + "".join(f"-{n}={x}" for n, x in given.items())

    @property
    def columns(self) -> int:
        size = sum(self.window) + 1
        return 2 * size - 1 if self.boundary == "shift" else size

    @property
    def terms(self) -> int:
        """The longest sum in a result: a bias column adds up every query of the batch, each a sum over head_dim."""
        return self.batch * self.frames + self.columns + self.dim

    def options(self) -> dict:
        lengths = None if self.lengths is None else torch.tensor(self.lengths)
        return {
            "window": self.window,
            "boundary": self.boundary,
            "lengths": lengths,
            "scale": self.scale,
            "dropout_p": self.dropout_p,
            "seed": SEED if self.dropout_p else None,
        }

    def inputs(self, dtype: torch.dtype = torch.float64, bias_dtype: torch.dtype | None = None) -> list[Tensor | None]:
        """q, k, v, rel_bias, seeded by tests/conftest.py; half types hold exactly what float64 is given."""
        q = torch.randn(self.batch, self.frames, self.heads, self.dim, dtype=torch.float64)
        k, v = torch.randn(2, self.batch, self.frames, self.kv_heads, self.dim, dtype=torch.float64)
        rel_bias = torch.randn(self.heads, self.columns, dtype=torch.float64) if self.bias else None
        dtypes = (dtype, dtype, dtype, bias_dtype or dtype)
        return [
            None if x is None else x.to(d).requires_grad_() for x, d in zip((q, k, v, rel_bias), dtypes, strict=True)
        ]


@cache
def visible_pairs(case: Case) -> list[list[list[tuple[int, int]]]]:
    """[batch][query] -> (key frame, bias column) of everything the query sees, straight from the contract."""
    left, right = case.window
    size = left + right + 1
    rows = []
    for n in case.lengths or (case.frames,) * case.batch:
        row = []
        for i in range(case.frames):
            seen = []
            if i < n and case.boundary == "shift":
                start = min(max(i - left, 0), n - size)
                seen = [(j, j - i + left + right) for j in range(start, start + size)]
            elif i < n:
                for offset in range(-left, right + 1):
                    if case.boundary == "circular":
                        seen.append(((i + offset) % n, offset + left))
                    elif 0 <= i + offset < n:
                        seen.append((i + offset, offset + left))
            row.append(seen)
        rows.append(row)
    return rows


def kept(case: Case, columns: Tensor) -> Tensor:
    """(B, H, T, M) dropout factor of the pairs under these bias columns (B, T, M)."""
    batch, frames, _ = columns.shape
    column = columns[:, None]
    counter = (
        column // 4,
        torch.arange(frames)[:, None],
        torch.arange(case.heads)[:, None, None],
        torch.arange(batch)[:, None, None, None],
    )
    words = torch.stack(torch.broadcast_tensors(*philox4x32(counter, SEED)))
    word = words.gather(0, (column % 4).expand(words.shape[1:])[None])[0]
    return (word >= round(case.dropout_p * 2**32)).double() / (1 - case.dropout_p)


def by_definition(case: Case, q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, lse): each query's keys gathered one by one."""
    pairs = visible_pairs(case)
    width = max(len(seen) for row in pairs for seen in row)
    keys, columns = torch.zeros(2, case.batch, case.frames, width, dtype=torch.int64)
    real = torch.zeros(case.batch, case.frames, width, dtype=torch.bool)
    for b, row in enumerate(pairs):
        for i, seen in enumerate(row):
            if seen:
                keys[b, i, : len(seen)], columns[b, i, : len(seen)] = torch.tensor(seen).T
                real[b, i, : len(seen)] = True
    row = torch.arange(case.batch)[:, None, None]
    heads = torch.arange(case.heads) // (case.heads // case.kv_heads)
    seen_k, seen_v = (x[row, keys][:, :, :, heads] for x in (k, v))  # (B, T, M, H, D)
    scale = 1 / math.sqrt(case.dim) if case.scale is None else case.scale
    scores = scale * torch.einsum("bthd,btmhd->bhtm", q, seen_k)
    if rel_bias is not None:
        scores = scores + rel_bias.to(scores.dtype)[:, columns].transpose(0, 1)
    scores = scores.masked_fill(~real[:, None], -torch.inf)
    some = real.any(-1)[:, None, :, None]
    weights = scores.masked_fill(~some, 0).softmax(-1).masked_fill(~some, 0)
    if case.dropout_p:
        weights = weights * kept(case, columns).to(weights.dtype)
    return torch.einsum("bhtm,btmhd->bthd", weights, seen_v), scores.logsumexp(-1).transpose(1, 2)


def masked_softmax(case: Case, q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, lse) of the plain composition: all T x T scores, a mask, softmax. No window meets a frame twice here."""
    mask = torch.zeros(case.batch, case.frames, case.frames, dtype=torch.bool)
    columns = torch.zeros(case.batch, case.frames, case.frames, dtype=torch.int64)
    for b, row in enumerate(visible_pairs(case)):
        for i, seen in enumerate(row):
            for j, column in seen:
                mask[b, i, j], columns[b, i, j] = True, column
    k, v = (x.repeat_interleave(case.heads // case.kv_heads, 2).transpose(1, 2) for x in (k, v))
    scale = 1 / math.sqrt(case.dim) if case.scale is None else case.scale
    scores = scale * (q.transpose(1, 2) @ k.transpose(-1, -2))
    if rel_bias is not None:
        scores = scores + rel_bias.to(scores.dtype)[:, columns].transpose(0, 1)
    scores = scores.masked_fill(~mask[:, None], -torch.inf)
    some = mask.any(-1)[:, None, :, None]
    weights = scores.masked_fill(~some, 0).softmax(-1).masked_fill(~some, 0)
    return (weights @ v).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)


def cotangents(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of out and of lse; the latter only where lse is finite."""
    grad_out = torch.randn(case.batch, case.frames, case.heads, case.dim, dtype=torch.float64).to(dtype)
    grad_lse = torch.randn(case.batch, case.frames, case.heads, dtype=torch.float64)
    return grad_out, grad_lse.to(torch.promote_types(dtype, torch.float32))


def results(out: Tensor, lse: Tensor, inputs: list, grads: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """out, lse and the gradients of whatever inputs want one."""
    wanted = {
        n: x for n, x in zip(("dq", "dk", "dv", "drel_bias"), inputs, strict=True) if x is not None and x.requires_grad
    }
    # Padded queries have lse = -inf, whose gradient is nobody's: the sums leave them out.
    finite = lse.detach().isfinite()
    loss = (out * grads[0].to(out.dtype)).sum() + (lse * grads[1].to(lse.dtype))[finite].sum()
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(wanted, gradients, strict=True))}


def run(case: Case, inputs: list, grads: tuple[Tensor, Tensor], backend: str) -> dict[str, Tensor]:
    out, lse = window_attention(*inputs, **case.options(), return_lse=True, backend=backend)
    return results(out, lse, inputs, grads)


# One comment a regime. Heads, head_dim and lengths vary along the way; sizes stay small enough for the double loop.
SMALL = [
    Case(7, (2, 2)),  # the ordinary window
    Case(7, (0, 0)),  # only itself: the softmax of one key
    Case(1, (0, 0)),  # one frame, one key
    Case(1, (3, 2)),  # one frame under a wide window
    Case(9, (3, 0)),  # causal
    Case(9, (0, 3)),  # anticausal
    Case(9, (1, 4)),  # asymmetric
    Case(5, (8, 11)),  # wider than the sequence on both sides
    Case(9, (2, 2), lengths=(9, 4)),  # one sequence shorter than the other
    Case(9, (2, 1), lengths=(0, 1)),  # nothing at all, and a single frame
    Case(9, (2, 2), heads=4, kv_heads=2, dim=5),  # grouped queries
    Case(9, (2, 2), heads=3, kv_heads=1, dim=1),  # one key head for all, head_dim 1
    Case(9, (2, 2), bias=False),  # no bias
    Case(9, (2, 2), scale=-0.7),  # a scale of the caller's, negative
    Case(9, (2, 2), scale=0.0),  # the bias alone decides
    Case(9, (2, 3), dropout_p=0.4, lengths=(9, 6)),  # dropout, six columns: across a Philox counter
    Case(9, (2, 2), "circular"),  # wraps at both ends
    Case(9, (3, 0), "circular"),  # wraps at the front only
    Case(5, (4, 6), "circular"),  # meets every frame again, on both sides
    Case(9, (2, 2), "circular", lengths=(9, 4)),  # wraps at each one's own length
    Case(9, (5, 3), "circular", lengths=(0, 1)),  # one frame that every offset meets; none
    Case(9, (3, 4), "circular", lengths=(3, 8), dropout_p=0.3, heads=4, kv_heads=1),  # all of it at once
    Case(9, (2, 2), "shift"),  # slides inward at both ends
    Case(5, (2, 2), "shift"),  # exactly K frames: everyone sees everything
    Case(9, (0, 3), "shift"),  # slides at the far end only
    Case(9, (3, 0), "shift"),  # slides at the near end only
    Case(1, (0, 0), "shift"),  # one frame
    Case(9, (1, 3), "shift", lengths=(5, 7), heads=4, kv_heads=2, dropout_p=0.5),  # lengths down to K
    Case(23, (10, 3), lengths=(23, 17)),  # a window of more than half the sequence
]
# A tile holds 65 queries: a full one, one more frame, two tiles, a third begun; windows inside one tile and wider.
TILES = [
    Case(65, (2, 3), batch=1),
    Case(66, (2, 3), lengths=(66, 65)),
    Case(130, (16, 16), lengths=(130, 71), heads=4, kv_heads=2, dim=8),
    Case(131, (70, 5), batch=1),  # a window wider than a tile
    Case(140, (0, 70), batch=1, dropout_p=0.2),
    Case(130, (7, 9), "circular", lengths=(130, 66)),
    Case(131, (100, 80), "circular", lengths=(64, 131)),  # meets frames again over several tiles
    Case(200, (9, 4), "shift", lengths=(200, 64)),
    Case(140, (40, 80), "shift", batch=1),
]


@pytest.mark.parametrize("case", SMALL + TILES, ids=str)
def test_equals_the_definition_in_float64(case: Case, backend: str) -> None:
    inputs, grads = case.inputs(), cotangents(case, torch.float64)
    actual = run(case, inputs, grads, backend)
    expected = results(*by_definition(case, *inputs), inputs, grads)
    for name, value in expected.items():
        assert_same_formula(name, actual[name], value, case.terms)


@pytest.mark.parametrize("case", [c for c in SMALL if c.boundary != "circular" and not c.dropout_p], ids=str)
def test_the_two_formulas_of_this_file_agree(case: Case) -> None:
    inputs, grads = case.inputs(), cotangents(case, torch.float64)
    first, second = (results(*f(case, *inputs), inputs, grads) for f in (by_definition, masked_softmax))
    for name in first:
        assert_same_formula(name, first[name], second[name], case.terms)


# Where every query sees one key, dS is 0 and the plain composition finds exactly that: its relative error says nothing.
DTYPE_CASES = [
    Case(9, (2, 2), lengths=(9, 4)),  # within one tile, padded
    Case(23, (10, 3), heads=4, kv_heads=2, dim=8),  # wide, grouped
    Case(70, (8, 8), dim=32),  # two tiles
    Case(40, (3, 3), "circular", lengths=(40, 2), dim=16),  # wraps, also a window wider than the loop
    Case(70, (5, 5), "shift", dim=16),
    Case(20, (4, 4), dim=256, batch=1),  # the largest head_dim
    Case(150, (40, 60), dim=64, batch=1),  # a window of many tiles
    Case(80, (16, 16), dim=128, batch=1),  # long rows
    Case(50, (5, 3), dim=20, heads=4, kv_heads=2),  # rows of half types that do not lie on 16 bytes
    Case(70, (16, 16), lengths=(70, 33), dim=64, dropout_p=0.3),  # dropout under the window that is used most
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", DTYPE_CASES, ids=str)
def test_is_as_near_to_float64_as_the_plain_composition(case: Case, dtype: torch.dtype, backend: str) -> None:
    inputs, grads = case.inputs(dtype), cotangents(case, dtype)
    exact_inputs = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    exact = results(*by_definition(case, *exact_inputs), exact_inputs, grads)
    composition = by_definition if case.boundary == "circular" or case.dropout_p else masked_softmax
    eager = results(*composition(case, *inputs), inputs, grads)
    for name, actual in run(case, inputs, grads, backend).items():
        assert actual.dtype == (torch.float32 if name == "lse" else dtype)
        assert_within_budget(name, actual, exact[name], eager[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_float32_bias_under_another_dtype(dtype: torch.dtype, backend: str) -> None:
    case = Case(23, (4, 3), dim=8)
    inputs, grads = case.inputs(dtype, torch.float32), cotangents(case, dtype)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = results(*by_definition(case, *exact_inputs), exact_inputs, grads)
    eager = results(*masked_softmax(case, *inputs), inputs, grads)
    actual = run(case, inputs, grads, backend)
    assert actual["drel_bias"].dtype == torch.float32
    for name in actual:
        assert_within_budget(name, actual[name], exact[name], eager[name])


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 31, 33, 64, 100, 129, 256])
def test_any_head_dim(dim: int, backend: str) -> None:
    # Around every power of two a kernel may pad to, and one between.
    case = Case(11, (2, 2), dim=dim)
    inputs, grads = case.inputs(), cotangents(case, torch.float64)
    expected = results(*by_definition(case, *inputs), inputs, grads)
    for name, actual in run(case, inputs, grads, backend).items():
        assert_same_formula(name, actual, expected[name], case.terms)


def _views(x: Tensor) -> list[tuple[str, Tensor]]:
    """x (B, T, H, D) as memory lays it out in other ways, with NaN in whatever lies between."""
    batch, frames, heads, dim = x.shape
    wide = torch.full((batch, frames, heads, 3 * dim), torch.nan, dtype=x.dtype)
    wide[..., dim : 2 * dim] = x.detach()
    long = torch.full((batch, 2 * frames + 1, heads, dim), torch.nan, dtype=x.dtype)
    long[:, 1::2] = x.detach()
    return [
        ("(B, H, T, D) transposed", x.detach().transpose(1, 2).contiguous().transpose(1, 2)),
        ("a slice of a wider buffer", wide[..., dim : 2 * dim]),
        ("every second frame", long[:, 1::2]),
        ("last dimension strided", x.detach().transpose(1, 3).contiguous().transpose(1, 3)),
        ("batch innermost", x.detach().movedim(0, -1).contiguous().movedim(-1, 0)),
    ]


@pytest.mark.parametrize("layout", range(5))
def test_any_strides(layout: int, backend: str) -> None:
    case = Case(9, (2, 3), lengths=(9, 5), heads=2, dim=4)
    inputs, grads = case.inputs(), cotangents(case, torch.float64)
    expected = run(case, inputs, grads, backend)
    name, grad_out = _views(grads[0])[layout]
    views = [_views(x)[layout][1].requires_grad_() for x in inputs[:3]]
    assert not all(x.is_contiguous() for x in (*views, grad_out)), name
    actual = run(case, [*views, inputs[3]], (grad_out, grads[1]), backend)
    for key in expected:
        assert_same_formula(f"{key}, {name}", actual[key], expected[key], case.terms)


def test_one_projection_for_all_three(backend: str) -> None:
    # q, k, v as a QKV projection gives them: slices of one buffer, whose gradient is the three side by side.
    case = Case(9, (2, 2), dim=4)
    qkv = torch.randn(2, 9, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    window_attention(*qkv.unbind(2), window=case.window, backend=backend).square().sum().backward()
    apart = [x.detach().clone().requires_grad_() for x in qkv.unbind(2)]
    by_definition(case, *apart, None)[0].square().sum().backward()
    assert_same_formula("dqkv", qkv.grad, torch.stack([x.grad for x in apart], 2), case.terms)


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
def test_what_lies_in_the_padding_never_leaks(boundary: str, backend: str) -> None:
    case = Case(80, (1, 2), boundary, lengths=(80, 70, 4), batch=3, kv_heads=1, dim=4)
    inputs, grads = case.inputs(), cotangents(case, torch.float64)
    expected = run(case, inputs, grads, backend)
    padding = torch.arange(80) >= torch.tensor(case.lengths)[:, None]
    poisoned = [x.detach().clone() for x in (*inputs[:3], *grads)]
    for x in poisoned:
        x[padding] = torch.nan
    q, k, v, grad_out, grad_lse = poisoned
    tensors = [x.requires_grad_() for x in (q, k, v, inputs[3].detach().clone())]
    out, lse = window_attention(*tensors, **case.options(), return_lse=True, backend=backend)
    gradients = torch.autograd.grad((out, lse), tensors, (grad_out, grad_lse))
    actual = {"out": out, "lse": lse, **dict(zip(("dq", "dk", "dv", "drel_bias"), gradients, strict=True))}
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    for name in ("out", "dq", "dk", "dv"):
        assert not actual[name][padding].any(), f"{name} is not 0 in the padding"
    assert bool((actual["lse"][padding] == -torch.inf).all())


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
def test_padding_changes_nothing(boundary: str, backend: str) -> None:
    # Each sequence gives what it gives alone, without padding.
    case = Case(90, (3, 2), boundary, lengths=(90, 66, 8), batch=3)
    inputs, grads = case.inputs(), cotangents(case, torch.float64)
    together = run(case, inputs, grads, backend)
    bias_gradient = torch.zeros_like(together["drel_bias"])
    for b, n in enumerate(case.lengths):
        alone = replace(case, frames=n, lengths=None, batch=1)
        cut = [x.detach()[b : b + 1, :n].requires_grad_() for x in inputs[:3]] + [inputs[3]]
        expected = run(alone, cut, tuple(g[b : b + 1, :n] for g in grads), backend)
        bias_gradient += expected.pop("drel_bias")
        for name, value in expected.items():
            assert_same_formula(name, together[name][b : b + 1, :n], value, case.terms)
    assert_same_formula("drel_bias", together["drel_bias"], bias_gradient, case.terms)


def test_lengths_as_int32(backend: str) -> None:
    case = Case(9, (2, 2), lengths=(9, 4))
    inputs = case.inputs()
    expected = window_attention(*inputs, **case.options(), backend=backend)
    options = case.options() | {"lengths": torch.tensor(case.lengths, dtype=torch.int32)}
    assert torch.equal(window_attention(*inputs, **options, backend=backend), expected)


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
def test_empty_batch(boundary: str, backend: str) -> None:
    case = Case(9, (2, 2), boundary, batch=0)
    inputs = case.inputs()
    out, lse = window_attention(
        *inputs, window=2, boundary=boundary, lengths=torch.zeros(0, dtype=torch.int64), return_lse=True,
        backend=backend,
    )  # fmt: skip
    assert out.shape == (0, 9, 2, 3)
    assert lse.shape == (0, 9, 2)
    gradients = torch.autograd.grad(out.sum() + lse.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]
    assert not gradients[3].any()


def test_a_bias_of_minus_infinity_hides_keys(backend: str) -> None:
    # The bias as a mask. Causal through it equals causal through the window, and where it hides every key nothing is
    # seen, as in padding: out and gradients 0, never NaN.
    case = Case(9, (2, 2))
    q, k, v, _ = case.inputs()
    masking = torch.tensor([0.3, -0.2, 0.1, -torch.inf, -torch.inf], dtype=torch.float64).expand(2, 5)
    masking = masking.clone().requires_grad_()
    out = window_attention(q, k, v, masking, window=2, backend=backend)
    causal = masking.detach()[:, :3].clone().requires_grad_()
    expected = window_attention(q, k, v, causal, window=(2, 0), backend=backend)
    assert_same_formula("out", out, expected, case.terms)
    weight = torch.randn_like(out)
    actual_gradients = torch.autograd.grad((out * weight).sum(), (q, k, v, masking))
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (q, k, v, causal))
    for name, x, y in zip("qkv", actual_gradients[:3], expected_gradients[:3], strict=True):
        assert_same_formula(f"d{name}", x, y, case.terms)
    assert_same_formula("drel_bias", actual_gradients[3][:, :3], expected_gradients[3], case.terms)
    assert not actual_gradients[3][:, 3:].any()

    blind = torch.tensor([0.5, -torch.inf, -torch.inf], dtype=torch.float64).expand(2, 3).clone().requires_grad_()
    out, lse = window_attention(q, k, v, blind, window=(2, 0), return_lse=True, backend=backend)
    assert not out[:, :2].any()
    assert bool((lse[:, :2] == -torch.inf).all())
    gradients = torch.autograd.grad((out * weight).sum(), (q, k, v, blind))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not gradients[0][:, :2].any()


def test_large_scores_stay_finite(backend: str) -> None:
    # exp(600) overflows every dtype here: the row's maximum must be subtracted.
    for dtype in (torch.float16, torch.float32):
        q = torch.full((1, 9, 1, 4), 10.0, dtype=dtype, requires_grad=True)
        k = torch.randn(1, 9, 1, 4).to(dtype) * 10
        out, lse = window_attention(q, k, k, window=3, scale=1.5, return_lse=True, backend=backend)
        (gradient,) = torch.autograd.grad(out.sum(), q)
        assert all(bool(x.isfinite().all()) for x in (out, lse, gradient))
        assert float(lse.detach().abs().max()) > 100


GRADCHECK = [
    Case(4, (1, 1), dim=2, lengths=(4, 2)),  # interior and edge, padded
    Case(4, (0, 0), dim=2),  # one key
    Case(4, (2, 0), dim=2, heads=2, kv_heads=1),  # causal, shared key head
    Case(4, (1, 2), dim=1, dropout_p=0.4),  # asymmetric with dropout
    Case(3, (5, 4), dim=1),  # wider than T
    Case(1, (1, 1), dim=2),  # T = 1
    Case(4, (1, 1), "circular", dim=2, lengths=(4, 3)),
    Case(3, (4, 3), "circular", dim=1, lengths=(3, 1)),  # frames met again
    Case(4, (2, 1), "circular", dim=1, heads=2, kv_heads=1, dropout_p=0.4),
    Case(5, (1, 1), "shift", dim=1, lengths=(5, 3)),
    Case(4, (0, 2), "shift", dim=1, heads=2, kv_heads=1, dropout_p=0.4),
    Case(4, (1, 1), dim=2, bias=False, scale=0.7),
]


@pytest.mark.parametrize("case", GRADCHECK, ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    inputs = [x for x in case.inputs() if x is not None]

    def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = window_attention(*tensors, **case.options(), return_lse=True, backend=backend)
        return out, lse.masked_fill(lse == -torch.inf, 0)  # padded queries: a constant

    assert torch.autograd.gradcheck(both, inputs)
