"""What an edit came out like: whether the given parts stayed, where the root arrived, and how smooth the seams are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..motion import Clip, Motion
from .edit import Edit

AROUND = 5  # frames on each side of a seam that it is judged by
PERCENTILE = 0.99


def accelerations(clip: Clip) -> Tensor:
    """(frames - 2, J) float64: how fast each joint's velocity in the world changes, units per second squared."""
    return clip.positions().diff(n=2, dim=0).norm(dim=-1) * clip.fps**2


def seam_roughness(edited: Clip, seams: tuple[int, ...], clip: Clip) -> list[float]:
    """For each seam the largest acceleration of a joint within five frames of it, over the 99th percentile of the
    clip's own accelerations (over its joints and frames)."""
    usual = accelerations(clip).flatten().quantile(PERCENTILE)
    found = accelerations(edited)
    return [
        float(found[max(0, seam - AROUND - 1) : seam + AROUND].max() / usual) if len(found) else 0.0 for seam in seams
    ]


def kept_error(edit: Edit, features: Tensor) -> float:
    """Largest difference from what was given, over all features (frames, size) whose mask is 1; 0 where none is."""
    kept = edit.mask == 1
    return float((features - edit.known)[kept].abs().max()) if bool(kept.any()) else 0.0


def arrival_error(edit: Edit, features: Tensor) -> float:
    """How far the root is from the places to meet, at worst, in the features' units: features (frames, size)."""
    worst = 0.0
    for path, meets in zip(edit.layout.paths, edit.meets, strict=False):
        if len(meets.frames) > 1:
            way = path.values(features)[meets.frames] - meets.values
            off = way - way[:1]
            if path.period is not None:
                off = off - path.period * (off / path.period).round()
            worst = max(worst, float(off.abs().max()))
    return worst


def report(edit: Edit, features: Tensor, edited: Motion, clip: Motion) -> dict[str, Any]:
    """The numbers of one motion, as JSON takes them."""
    out: dict[str, Any] = {"kept_error": kept_error(edit, features), "arrival_error": arrival_error(edit, features)}
    seams = edit.seams
    if edit.circular:  # twice round: the seam is where the second begins
        edited, seams = edit.layout.decode(features.repeat(2, 1)), (len(features),)
    if seams and isinstance(edited, Clip) and isinstance(clip, Clip):
        rough = seam_roughness(edited, seams, clip)
        out["seams"] = [{"frame": seam, "roughness": each} for seam, each in zip(seams, rough, strict=True)]
    return out
