"""Infinities and NaN in the inputs: as the definition gives for the outputs that see them, and no other changes."""

import math

import pytest
import torch
from tolerance import assert_same_formula
from torch import Tensor

from sinmdm.kernels import qna_attention

OP = "qna_attention"
BATCH, FRAMES, HEADS, DIM = 2, 150, 2, 20  # more than one tile of frames and one vector of channels
LEFT, RIGHT = 3, 2
SIZE = LEFT + RIGHT + 1
TERMS = BATCH * FRAMES + SIZE + DIM
PLACES = (0, 37, 127, 128, FRAMES - 1)  # both ends, inside a tile, about where one begins
VALUES = {"nan": math.nan, "+inf": math.inf, "-inf": -math.inf}
NAMES = ("scores", "values", "rel_bias", "grad_out")


def output_by_output(scores: Tensor, values: Tensor, rel_bias: Tensor, boundary: str, stride: int) -> Tensor:
    """Every output with copies of the keys that it sees and of no other, so that nothing else reaches it."""
    outs = []
    for i in range(0, FRAMES, stride):
        offsets = [o for o in range(-LEFT, RIGHT + 1) if boundary == "circular" or 0 <= i + o < FRAMES]
        keys, columns = [(i + o) % FRAMES for o in offsets], [o + LEFT for o in offsets]
        logits = scores[:, keys] + rel_bias[:, columns].T
        highest = logits.detach().amax(1, keepdim=True)
        hidden = highest == -math.inf  # all of them: nothing is seen
        weights = (logits - highest.masked_fill(hidden, 0)).exp()
        total = weights.sum(1, keepdim=True).masked_fill(hidden, 1)
        outs.append(((weights / total)[..., None] * values[:, keys]).sum(1))
    return torch.stack(outs, 1)


def results(tensors: dict[str, Tensor], boundary: str, stride: int, backend: str | None) -> dict[str, Tensor]:
    leaves = [tensors[name].clone().requires_grad_() for name in NAMES[:3]]
    if backend is None:
        out = output_by_output(*leaves, boundary, stride)
    else:
        out = qna_attention(*leaves, window=(LEFT, RIGHT), boundary=boundary, stride=stride, backend=backend)
    gradients = torch.autograd.grad(out, leaves, tensors["grad_out"])
    return {"out": out.detach(), **dict(zip(("dscores", "dvalues", "drel_bias"), gradients, strict=True))}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("boundary", ["clip", "circular"])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_has_its_effect_where_it_is_seen_and_nowhere_else(
    name: str, value: str, boundary: str, stride: int, backend: str
) -> None:
    outputs = -(-FRAMES // stride)
    shapes = ((BATCH, FRAMES, HEADS), (BATCH, FRAMES, HEADS, DIM), (HEADS, SIZE), (BATCH, outputs, HEADS, DIM))
    sound = {key: torch.randn(shape, dtype=torch.float64) for key, shape in zip(NAMES, shapes, strict=True)}
    before = results(sound, boundary, stride, backend)
    for place in PLACES if name != "rel_bias" else (0, SIZE - 1):
        ill = {key: x.clone() for key, x in sound.items()}
        if name == "rel_bias":
            ill[name][1, place] = VALUES[value]
        else:
            ill[name][(1, min(place, ill[name].shape[1] - 1), 0, *([DIM - 1] * (ill[name].dim() - 3)))] = VALUES[value]
        expected = results(ill, boundary, stride, None)
        for key, actual in results(ill, boundary, stride, backend).items():
            finite = expected[key].isfinite()
            assert torch.equal(actual.isfinite(), finite), (key, place)
            assert_same_formula(key, actual[finite], expected[key][finite], TERMS)
        # What none of it reaches keeps its bits.
        after = results(ill, boundary, stride, backend)
        for key in ("out", "dscores", "dvalues"):
            now, then = (x[key][:, :, 0] if name == "rel_bias" else x[key][0] for x in (after, before))
            assert torch.equal(now, then), (key, place)
