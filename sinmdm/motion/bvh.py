"""BVH text to skeleton and numbers and back, losing nothing.

No library serves: pybvh 0.9 refuses position channels below the root, and bvhio 1.5 keeps quaternions in single
precision instead of the file's angles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from .skeleton import CHANNELS, Skeleton

_SPELLING = {channel.lower(): channel for channel in CHANNELS}
_BLOCK = 32  # frames formatted at once: one by one is slower, and so are thousands, which the cache does not hold


class BVHError(ValueError):
    """A BVH file that cannot be understood: says which file, which line and what is wrong."""


class _Lines:
    """The non-blank lines of a text, stripped, one at a time; knows the number of the latest."""

    def __init__(self, text: str) -> None:
        self.number = 0
        self._lines = re.split(r"\r\n|\r|\n", text)

    def __iter__(self) -> Iterator[str]:
        while self.number < len(self._lines):
            self.number += 1
            if line := self._lines[self.number - 1].strip():
                yield line

    def rest(self) -> list[str]:
        return self._lines[self.number :]


def parse(text: str, source: str = "<text>") -> tuple[Skeleton, float, np.ndarray]:
    """Skeleton, frame time in seconds and values (frames, channels) float64 of a BVH text.

    Keywords in any case; names up to the end of their line (spaces and colons kept); joints with any channels.
    Raises: BVHError naming `source` and the line.
    """
    lines = _Lines(text)
    try:
        skeleton = _parse_hierarchy(lines)
        frames, frame_time = _parse_header(lines)
        return skeleton, frame_time, _parse_rows(lines, frames, skeleton.channel_count)
    except ValueError as error:
        raise BVHError(f"{source}, line {lines.number}: {error}") from None


def _statements(lines: _Lines) -> Iterator[str]:
    for line in lines:
        yield from (part.strip() for part in re.split(r"([{}])", line) if part.strip())


def _parse_hierarchy(lines: _Lines) -> Skeleton:
    names: list[str] = []
    parents: list[int] = []
    offsets: list[tuple[float, float, float] | None] = []
    channels: list[tuple[str, ...]] = []
    end_sites: list[list[tuple[float, float, float]]] = []
    blocks: list[int | None] = []  # the open braces, outermost first: a joint's index, or None for an End Site
    site: tuple[float, float, float] | None = None  # the OFFSET of the End Site that is open
    opening: int | None = None
    awaiting_brace = False

    statements = _statements(lines)
    if next(statements, "").upper() != "HIERARCHY":
        raise ValueError("not a BVH file: it must begin with HIERARCHY")
    for statement in statements:
        keyword, *tail = statement.split(None, 1)
        keyword, rest = keyword.upper(), "".join(tail)
        if awaiting_brace != (keyword == "{"):
            raise ValueError(f"expected '{{', found {statement!r}" if awaiting_brace else "a '{' that opens nothing")
        if keyword == "{":
            blocks.append(opening)
            awaiting_brace = False
        elif keyword in ("ROOT", "JOINT"):
            if (keyword == "ROOT") == bool(names):
                raise ValueError("one ROOT must come first, and only one is allowed")
            if not rest:
                raise ValueError(f"{keyword} without a name")
            if names and (not blocks or blocks[-1] is None):
                raise ValueError(f"joint {rest!r} lies outside any joint")
            parents.append(blocks[-1] if blocks and blocks[-1] is not None else -1)
            opening, awaiting_brace = len(names), True
            names.append(rest)
            offsets.append(None)
            channels.append(())
            end_sites.append([])
        elif keyword == "MOTION" and not rest and not blocks:
            break
        elif not blocks:
            raise ValueError(f"expected ROOT or MOTION, found {statement[:60]!r}")
        elif keyword == "}":
            if blocks.pop() is None and blocks[-1] is not None:
                if site is None:
                    raise ValueError(f"an End Site of joint {names[blocks[-1]]!r} has no OFFSET")
                end_sites[blocks[-1]].append(site)
                site = None
        elif keyword == "OFFSET":
            joint = blocks[-1]
            if (site if joint is None else offsets[joint]) is not None:
                raise ValueError("a second OFFSET in one block")
            if joint is None:
                site = _triple(rest)
            else:
                offsets[joint] = _triple(rest)
        elif keyword == "CHANNELS" and (joint := blocks[-1]) is not None:
            channels[joint] = _channels(rest)
        elif keyword == "END" and rest[:4].upper() == "SITE" and blocks[-1] is not None:
            opening, awaiting_brace = None, True
        else:
            raise ValueError(f"expected OFFSET, CHANNELS, JOINT, End Site or '}}', found {statement[:60]!r}")
    else:
        raise ValueError("the file ends inside the hierarchy, before MOTION")
    if not names:
        raise ValueError("MOTION without a ROOT before it")
    for name, offset_or_none in zip(names, offsets, strict=True):
        if offset_or_none is None:
            raise ValueError(f"joint {name!r} has no OFFSET")
    return Skeleton(tuple(names), tuple(parents), np.array(offsets), tuple(channels), tuple(map(tuple, end_sites)))


def _triple(text: str) -> tuple[float, float, float]:
    parts = text.split()
    if len(parts) != 3:
        raise ValueError(f"OFFSET needs 3 numbers, has {len(parts)}")
    x, y, z = map(_number, parts)
    return x, y, z


def _number(text: str) -> float:
    if "_" in text:  # Python's own spelling of numbers, and nobody else's
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(text)


def _channels(text: str) -> tuple[str, ...]:
    count, *names = text.split() or [""]
    if not count.isdecimal() or int(count) != len(names):
        raise ValueError(f"CHANNELS says {count!r} and lists {len(names)}")
    if unknown := [name for name in names if name.lower() not in _SPELLING]:
        raise ValueError(f"unknown channel {unknown[0]!r}; allowed are {', '.join(CHANNELS)}")
    return tuple(_SPELLING[name.lower()] for name in names)


def _parse_header(lines: _Lines) -> tuple[int, float]:
    following = iter(lines)
    found = re.fullmatch(r"frames\s*:?\s*(\d+)", next(following, ""), re.IGNORECASE)
    if not found:
        raise ValueError("after MOTION must come 'Frames: <count>'")
    frames = int(found[1])
    found = re.fullmatch(r"frame\s*time\s*:?\s*(\S+)", next(following, ""), re.IGNORECASE)
    if not found:
        raise ValueError("after Frames must come 'Frame Time: <seconds>'")
    frame_time = _number(found[1])
    if not (math.isfinite(frame_time) and frame_time > 0):
        raise ValueError(f"Frame Time is {found[1]}, must be positive seconds")
    return frames, frame_time


def _parse_rows(lines: _Lines, frames: int, channels: int) -> np.ndarray:
    first = lines.number + 1
    rows = [(number, row) for number, line in enumerate(lines.rest(), first) if (row := line.split())]
    for number, row in rows:
        if len(row) != channels:
            lines.number = number
            raise ValueError(f"{len(row)} numbers where the hierarchy has {channels} channels")
    lines.number = rows[-1][0] if rows else lines.number
    if frames == 0:
        raise ValueError("Frames is 0, a clip needs at least one")
    if len(rows) != frames:
        raise ValueError(f"the header says {frames} frames, the file has {len(rows)}")
    if channels == 0:
        raise ValueError("the hierarchy has no channels, so that nothing in it can move")
    try:
        values = np.array([list(map(float, row)) for _, row in rows], dtype=np.float64)
    except ValueError:
        _refuse_first_bad(lines, rows)
        raise
    if any("_" in number for _, row in rows for number in row):
        _refuse_first_bad(lines, rows)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        lines.number = rows[int(bad.argmax())][0]
        raise ValueError("a number that is not finite")
    return values


def _refuse_first_bad(lines: _Lines, rows: list[tuple[int, list[str]]]) -> None:
    for number, row in rows:
        lines.number = number
        for text in row:
            _number(text)


def header(skeleton: Skeleton, frames: int, frame_time: float) -> bytes:
    """The part of a BVH file before its rows, UTF-8: offsets, End Sites and frame time (seconds) exact."""
    out = ["HIERARCHY"]
    children: list[list[int]] = [[] for _ in skeleton.names]
    for joint, parent in enumerate(skeleton.parents[1:], 1):
        children[parent].append(joint)
    pending: list[tuple[int, int | str]] = [(0, 0)]
    while pending:
        depth, item = pending.pop()
        indent = "\t" * depth
        if isinstance(item, str):
            out.append(indent + item)
            continue
        own = skeleton.channels[item]
        out += [
            f"{indent}{'JOINT' if item else 'ROOT'} {skeleton.names[item]}",
            f"{indent}{{",
            f"{indent}\tOFFSET {_numbers(skeleton.offsets[item])}",
            " ".join([f"{indent}\tCHANNELS {len(own)}", *own]),
        ]
        for site in skeleton.end_sites[item]:
            out += [f"{indent}\tEnd Site", f"{indent}\t{{", f"{indent}\t\tOFFSET {_numbers(site)}", f"{indent}\t}}"]
        pending.append((depth, "}"))
        pending += [(depth + 1, child) for child in reversed(children[item])]
    out += ["MOTION", f"Frames: {frames}", f"Frame Time: {_numbers([frame_time])}"]
    return ("\n".join(out) + "\n").encode()


def rows(values: np.ndarray) -> Iterator[bytes]:
    """The rows of values (frames, channels), some frames at a time: to 9 decimals, no exponents."""
    row = b" ".join([b"%.9f"] * values.shape[1]) + b"\n"
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        yield (row * len(block)) % tuple(block.ravel().tolist())


def _numbers(numbers: np.ndarray | list[float] | tuple[float, ...]) -> str:
    return " ".join(np.format_float_positional(number, trim="0") for number in numbers)
