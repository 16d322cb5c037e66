"""Infinities and NaN in the inputs: as the definition gives for the rows that see them, and no other row changes."""

import math

import pytest
import torch
from tolerance import assert_same_formula
from torch import Tensor

from sinmdm.kernels import window_attention

OP = "window_attention"
BATCH, FRAMES, HEADS, KV_HEADS, DIM = 2, 72, 2, 1, 20  # more than one tile of queries and one vector of channels
LEFT, RIGHT = 3, 2
SIZE = LEFT + RIGHT + 1
TERMS = BATCH * FRAMES + SIZE + DIM
PLACES = (0, 37, 64, FRAMES - 1)  # both ends, inside a tile, about where one begins
VALUES = {"nan": math.nan, "+inf": math.inf, "-inf": -math.inf}
NAMES = ("q", "k", "v", "rel_bias", "grad_out", "grad_lse")


def seen(i: int, boundary: str) -> tuple[list[int], list[int]]:
    """The frames that query i sees, and the bias columns under which it does."""
    if boundary == "shift":
        start = min(max(i - LEFT, 0), FRAMES - SIZE)
        keys = list(range(start, start + SIZE))
        return keys, [j - i + LEFT + RIGHT for j in keys]
    offsets = [o for o in range(-LEFT, RIGHT + 1) if boundary == "circular" or 0 <= i + o < FRAMES]
    return [(i + o) % FRAMES for o in offsets], [o + LEFT for o in offsets]


def row_by_row(q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor, boundary: str) -> tuple[Tensor, Tensor]:
    """(out, lse): every query with copies of the keys that it sees and of no other, so that nothing else reaches it."""
    windows = [seen(i, boundary) for i in range(FRAMES)]
    outs: list[Tensor] = [q] * FRAMES
    lses: list[Tensor] = [q] * FRAMES
    for count in {len(keys) for keys, _ in windows}:
        rows = [i for i, (keys, _) in enumerate(windows) if len(keys) == count]
        keys, columns = (torch.tensor([windows[i][part] for i in rows]) for part in (0, 1))
        products = (q[:, rows, None] * k[:, keys]).sum(-1)  # (B, rows, keys, H): one key head for all
        scores = products / math.sqrt(DIM) + rel_bias[:, columns].movedim(0, -1)
        highest = scores.detach().amax(2, keepdim=True)
        hidden = highest == -math.inf  # all of them: nothing is seen
        shift = highest.masked_fill(hidden, 0)
        weights = (scores - shift).exp()
        total = weights.sum(2, keepdim=True).masked_fill(hidden, 1)
        out = ((weights / total)[..., None] * v[:, keys]).sum(2)
        lse = (shift + total.log()).masked_fill(hidden, -math.inf)[:, :, 0]
        for index, i in enumerate(rows):
            outs[i], lses[i] = out[:, index], lse[:, index]
    return torch.stack(outs, 1), torch.stack(lses, 1)


def results(tensors: dict[str, Tensor], boundary: str, backend: str | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """out, lse and the gradients: by a backend in `dtype`, or row by row in float64 from what `dtype` holds."""
    held = {name: x.to(dtype) for name, x in tensors.items() if name != "grad_lse"}
    held["grad_lse"] = tensors["grad_lse"].to(torch.promote_types(dtype, torch.float32))
    if backend is None:
        held = {name: x.double() for name, x in held.items()}
    leaves = [held[name].clone().requires_grad_() for name in NAMES[:4]]
    if backend is None:
        out, lse = row_by_row(*leaves, boundary)
    else:
        out, lse = window_attention(*leaves, window=(LEFT, RIGHT), boundary=boundary, return_lse=True, backend=backend)
    gradients = torch.autograd.grad((out, lse), leaves, (held["grad_out"], held["grad_lse"]))
    names = ("dq", "dk", "dv", "drel_bias")
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(names, gradients, strict=True))}


def draw() -> dict[str, Tensor]:
    columns = {"rel_bias": 2 * SIZE - 1}  # as wide as any boundary needs
    sizes = {"k": (BATCH, FRAMES, KV_HEADS, DIM), "v": (BATCH, FRAMES, KV_HEADS, DIM)}
    drawn = {name: torch.randn(sizes.get(name, (BATCH, FRAMES, HEADS, DIM)), dtype=torch.float64) for name in NAMES}
    return drawn | {
        "rel_bias": torch.randn(HEADS, columns["rel_bias"], dtype=torch.float64),
        "grad_lse": torch.randn(BATCH, FRAMES, HEADS, dtype=torch.float64),
    }


def fit(tensors: dict[str, Tensor], boundary: str) -> dict[str, Tensor]:
    """`tensors` with the bias as wide as `boundary` wants it."""
    columns = 2 * SIZE - 1 if boundary == "shift" else SIZE
    return tensors | {"rel_bias": tensors["rel_bias"][:, :columns].contiguous()}


def planted(tensors: dict[str, Tensor], name: str, place: int, value: float) -> dict[str, Tensor]:
    """`tensors` with one element of one of them replaced."""
    changed = tensors[name].clone()
    if name == "rel_bias":
        changed[1, place % changed.shape[1]] = value
    else:
        changed[0, place, -1, ...] = value if changed.dim() == 3 else changed[0, place, -1]
        if changed.dim() == 4:
            changed[0, place, -1, 7] = value
    return tensors | {name: changed}


def assert_as_defined(name: str, actual: Tensor, exact: Tensor, same_kind: bool) -> None:
    """Equal to rounding where `exact` is finite, and not finite where it is not; with `same_kind`, NaN and either
    infinity each where it has them. (In a gradient the order of a sum decides between NaN and an infinity.)"""
    exact = exact.to(actual.dtype)
    assert torch.equal(actual.isfinite(), exact.isfinite()), f"{name}: other elements are finite"
    if same_kind:
        assert torch.equal(actual.isnan(), exact.isnan()), f"{name}: NaN elsewhere"
        assert torch.equal(actual == math.inf, exact == math.inf), f"{name}: +inf elsewhere"
        assert torch.equal(actual == -math.inf, exact == -math.inf), f"{name}: -inf elsewhere"
    wild = ~exact.isfinite()
    assert_same_formula(name, actual.masked_fill(wild, 0), exact.masked_fill(wild, 0), TERMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_only_rows_that_see_it_change(name: str, value: str, boundary: str, dtype: torch.dtype, backend: str) -> None:
    tensors = fit(draw(), boundary)
    clean, clean_exact = (results(tensors, boundary, b, dtype) for b in (backend, None))
    for place in PLACES[: None if dtype == torch.float32 else 1]:
        poisoned = planted(tensors, name, place, VALUES[value])
        actual, exact = (results(poisoned, boundary, b, dtype) for b in (backend, None))
        for key in exact:
            what = f"{key}, {value} in {name} at {place}"
            assert_as_defined(what, actual[key], exact[key], same_kind=value == "nan" or key in ("out", "lse"))
            changed = exact[key].isnan() | (exact[key] != clean_exact[key])
            if key in ("out", "dq", "dk", "dv"):
                changed = changed.any(-1)
            if name != "rel_bias" and key != "drel_bias":
                assert not changed.all(), f"{what}: the test sees no row that must not change"
            if key in ("out", "lse"):
                assert torch.equal(actual[key][~changed], clean[key][~changed]), f"{what}: another row has changed"
            else:
                assert_same_formula(what, actual[key][~changed], clean[key][~changed], TERMS)


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
def test_one_sequence_of_nan_leaves_the_others_alone(boundary: str, backend: str) -> None:
    tensors = {name: x.float() for name, x in fit(draw(), boundary).items()}
    clean = results(tensors, boundary, backend, torch.float32)
    poisoned = {name: x.clone() for name, x in tensors.items()}
    for name in ("q", "k", "v", "grad_out", "grad_lse"):
        poisoned[name][0] = math.nan
    actual = results(poisoned, boundary, backend, torch.float32)
    for name in ("out", "lse", "dq", "dk", "dv"):
        assert actual[name][0].isnan().all(), name
        assert torch.equal(actual[name][1], clean[name][1]), name
    assert actual["drel_bias"].isnan().any()


def test_scores_that_overflow_stay_in_their_rows(backend: str) -> None:
    # Finite inputs whose products are not: query 40 and key 41 alone.
    tensors = {name: x.float() for name, x in fit(draw(), "clip").items()}
    clean = results(tensors, "clip", backend, torch.float32)
    tensors["q"] = tensors["q"].clone()
    tensors["k"] = tensors["k"].clone()
    tensors["q"][0, 40] = 3e30
    tensors["k"][0, 41] = 3e30
    actual = results(tensors, "clip", backend, torch.float32)
    assert actual["out"][0, 40].isnan().all()
    far = [i for i in range(FRAMES) if abs(i - 41) > LEFT + RIGHT]
    for name in ("out", "lse"):
        assert torch.equal(actual[name][0, far], clean[name][0, far]), name
    for name in ("out", "lse", "dq", "dk", "dv"):
        assert actual[name][0, far].isfinite().all(), name
        assert torch.equal(actual[name][1], clean[name][1]), name
