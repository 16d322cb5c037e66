"""What an edit came out like: whether the given parts stayed, where the root arrived, and how smooth the seams are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..motion import Clip, Motion
from .edit import Edit

AROUND = 5  # frames on each side of a seam that it is judged by
PERCENTILE = 0.99
SEAM = 2 * AROUND + 1


def accelerations(clip: Clip) -> Tensor:
    """(frames - 2, J) float64: how fast each joint's velocity in the world changes, units per second squared."""
    return clip.positions().diff(n=2, dim=0).norm(dim=-1) * clip.fps**2


def roughness(edited: Clip, clip: Clip) -> Tensor | None:
    """(frames,) float64: for each frame the largest acceleration of a joint within five frames of it, over the 99th
    percentile of the clip's own accelerations, of all its joints and frames. None where the clip stands still."""
    if len(clip) < 3 or len(edited) < 3:
        return None
    usual = accelerations(clip).flatten().quantile(PERCENTILE)
    if usual == 0:
        return None
    worst = accelerations(edited).amax(1)  # of frames 1, 2, ...
    padded = torch.nn.functional.pad(worst[None, None], (AROUND + 1, AROUND + 1), value=0.0)
    return torch.nn.functional.max_pool1d(padded, SEAM, 1)[0, 0] / usual


def kept_error(edit: Edit, features: Tensor) -> float | None:
    """Largest difference from what was given, over all features (frames, size) whose mask is 1; None where none is."""
    kept = edit.mask == 1
    return float((features - edit.known)[kept].abs().max()) if bool(kept.any()) else None


def arrival_error(edit: Edit, features: Tensor) -> float | None:
    """How far the root is from the places to meet, at worst, in the features' units: features (frames, size).

    None where no place is to be met. Only differences count: what is tied together may lie anywhere.
    """
    errors: list[Tensor] = []
    for path, meets in zip(edit.layout.paths, edit.meets, strict=False):
        way, values = path.values(features)[meets.frames], meets.values.double()
        off = [(way[group] - way[group[:1]]) - (values[group] - values[group[:1]]) for group in meets.groups]
        off = [each for each in off if len(each) > 1]
        if edit.circular and len(meets.frames):
            off.append(path.steps(features.double()).sum(0, keepdim=True))
        errors += [x if path.period is None else x - path.period * (x / path.period).round() for x in off]
    return max((float(each.abs().max()) for each in errors), default=None)


def report(edit: Edit, features: Tensor, edited: Motion, clip: Motion) -> dict[str, Any]:
    """The numbers of one motion, as JSON takes them; None for what it does not have.

    `usual` says what to hold the seams' roughness against: the median of the clip's own frames, and that of frames
    which are generated with all that is near them.
    """
    out: dict[str, Any] = {"kept_error": kept_error(edit, features), "arrival_error": arrival_error(edit, features)}
    seams = edit.seams
    if edit.circular:  # twice round: the seam is where the second begins
        edited, seams = edit.layout.decode(features.repeat(2, 1)), (len(features),)
    if not seams or not isinstance(edited, Clip) or not isinstance(clip, Clip):
        return out
    rough, own = roughness(edited, clip), roughness(clip, clip)
    if rough is None or own is None:
        return out | {"seams": [{"frame": seam, "roughness": None} for seam in seams]}
    out["seams"] = [{"frame": seam, "roughness": float(rough[min(seam, len(rough) - 1)])} for seam in seams]
    near = torch.zeros(len(edited), dtype=torch.bool)
    near[: len(edit)] = edit.given_frames
    for seam in seams:
        near[max(0, seam - AROUND) : seam + AROUND] = True
    spread = torch.nn.functional.max_pool1d(near.double()[None, None], SEAM, 1, AROUND)[0, 0]
    inside = rough[spread == 0]
    out["usual"] = {"clip": float(own.median()), "generated": float(inside.median()) if len(inside) else None}
    return out
