"""Edits with the masks of the published code (Raab et al. 2024, `sample.edit`), frame for frame.

They differ from ours in that transitions are ten frames at an in-betweening and six at an expansion, not alike on both
sides, that the first given frame of a right-hand part is generated, and that the way over the ground leads wherever the
generated steps do. Its body halves are `compose` with "upper-body" and "lower-body" on the "mixamo" and "humanml"
layouts; its harmonisation is `harmonise` with compat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..motion import Motion
from ..run import Run
from .applications import encoded
from .edit import Edit, EditError

BETWEEN_RAMP, EXPANSION_RAMP = 10, 6


def in_betweening_mask(frames: int, prefix_end: float = 0.25, suffix_start: float = 0.75) -> Tensor:
    """(frames,): 1, with a hole between two shares of the length and ramps that eat into what is given.

    Raises: EditError where the shares are none, or leave no hole.
    """
    begin, end = int(prefix_end * frames), int(suffix_start * frames)
    if not 0 <= prefix_end < suffix_start <= 1 or begin == end:
        raise EditError(
            f"prefix_end and suffix_start must be rising shares of the {frames} frames with a frame between them, "
            f"got {prefix_end} and {suffix_start}"
        )
    mask = torch.ones(frames)
    mask[begin:end] = 0
    for f in range(BETWEEN_RAMP):
        if begin - f >= 0:  # as published, where the left ramp is cut short, so is the right one
            mask[begin - f] = f / BETWEEN_RAMP
            if end + f < frames:
                mask[end + f] = f / BETWEEN_RAMP
    return mask


def expansion_mask(frames: int, prefix: int, suffix: int) -> Tensor:
    """(prefix + frames + suffix,): 1 in the middle, ramps of six frames into it, the first given frame generated."""
    mask = torch.zeros(prefix + frames + suffix)
    mask[prefix : prefix + frames] = 1
    for f in range(EXPANSION_RAMP):
        for at in (prefix + f, prefix + frames - f):
            if 0 <= at < len(mask):
                mask[at] = f / EXPANSION_RAMP
    return mask


def in_between(
    run: Run, *, prefix_end: float = 0.25, suffix_start: float = 0.75, reference: Motion | None = None
) -> Edit:
    """The published in-betweening: what lies between two shares of the reference is made anew."""
    known, source = encoded(run, reference)
    mask = in_betweening_mask(len(known), prefix_end, suffix_start)
    seams = int(prefix_end * len(known)), int(suffix_start * len(known))
    return _edit(run, known, mask, source, seams)


def expand(
    run: Run, *, prefix_length: float = 0.15, suffix_length: float = 0.15, reference: Motion | None = None
) -> Edit:
    """The published expansion: so large shares of the reference's length are added before and after it."""
    known, source = encoded(run, reference)
    for name, share in (("prefix_length", prefix_length), ("suffix_length", suffix_length)):
        if not 0 <= share <= 10:
            raise EditError(f"{name} must be a share from 0 to 10, got {share}")
    prefix, suffix = int(len(known) * prefix_length), int(len(known) * suffix_length)
    if prefix + suffix == 0:
        raise EditError(f"prefix_length and suffix_length must add a frame, got {prefix_length} and {suffix_length}")
    longer = torch.cat([known[:1].expand(prefix, -1), known, known[-2:-1].expand(suffix, -1)])
    seams = tuple(seam for seam in (prefix, prefix + len(known)) if 0 < seam < len(longer))
    return _edit(run, longer, expansion_mask(len(known), prefix, suffix), source, seams)


def _edit(run: Run, known: Tensor, mask: Tensor, source: Motion, seams: tuple[int, ...]) -> Edit:
    return Edit(run.layout.starting(source), known, mask[:, None].expand(known.shape).contiguous(), seams=seams)
