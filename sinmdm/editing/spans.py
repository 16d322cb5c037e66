"""Stretches of frames: which are given, and how much of them where they meet what is generated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

WIDTH = 10  # frames of a transition, where the span has room for it

Span = tuple[int, int]


def check_pairs(name: str, pairs: object) -> list[tuple[int, int]]:
    """The pairs of frames. Raises: ValueError where they are no pairs of whole numbers."""
    wanted = isinstance(pairs, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(type(frame) is int for frame in pair) for pair in pairs
    )
    if not wanted:
        raise ValueError(f"{name} must be pairs of whole numbers of frames, got {pairs!r}")
    return [(begin, end) for begin, end in pairs]  # type: ignore[attr-defined]


def check_spans(name: str, spans: Sequence[Span], frames: int) -> list[Span]:
    """The spans (first frame, frame after the last) in order. Raises: ValueError where one is empty, outside, or
    overlaps another, or there is none."""
    if not spans:
        raise ValueError(f"{name} must have at least one span")
    for begin, end in check_pairs(name, spans):
        if begin >= end:
            raise ValueError(f"{name} must end after they begin, begin:end, got {begin}:{end}")
        if not 0 <= begin < end <= frames:
            raise ValueError(f"{name} must lie within the {frames} frames, begin:end, got {begin}:{end}")
    ordered = sorted(spans)
    for (begin, end), (after, last) in pairwise(ordered):
        if after < end:
            raise ValueError(f"{name} must not overlap, but {begin}:{end} and {after}:{last} do")
    return ordered


def others(spans: Sequence[Span], frames: int) -> list[Span]:
    """The stretches between ordered spans."""
    edges = [0, *(edge for span in spans for edge in span), frames]
    return [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if begin < end]


def transition_width(width: int | None, span: int, sides: int) -> int:
    """Frames of a transition on each of so many sides of a span.

    Raises: ValueError where a width that was asked for leaves no frame of the span as it is.
    """
    room = (span - 1) // max(sides, 1)
    if width is None:
        return min(WIDTH, room)
    if isinstance(width, bool) or not isinstance(width, int) or width < 0:
        raise ValueError(f"width must be a whole number of frames, 0 or more, got {width!r}")
    if sides and width > room:
        raise ValueError(
            f"width must leave a frame of each span as it is, at most {room} for {span} frames, got {width}"
        )
    return width


def span_mask(span: int, before: bool, after: bool, width: int | None) -> Tensor:
    """(span,) float32: 1, and falling evenly towards the sides on which something generated lies."""
    width = transition_width(width, span, before + after)
    mask = torch.ones(span)
    ramp = torch.arange(1, width + 1) / (width + 1)
    if before and width:
        mask[:width] = ramp
    if after and width:
        mask[span - width :] = ramp.flip(0)
    return mask
