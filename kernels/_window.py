"""The geometry of a sliding window, for the reference implementations: which key each query of a tile sees, and under
which column of the bias. Frames are walked in tiles of queries, so that nothing of size frames x frames is ever made.

Every boundary rule is brought to one form. A *slot* is a position on the key axis; query i sees the slots p from
start(i) to start(i) + K - 1, under bias column p - i + shift, so that the bias of a tile is a Toeplitz matrix.
    clip      slot p is frame p; start(i) = i - left, and slots outside the sequence are not visible
    circular  slot p is frame (p - left) mod n of an axis padded by `left` in front; start(i) = i
    shift     slot p is frame p; start(i) = clamp(i - left, 0, n - K)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BOUNDARIES = ("clip", "circular", "shift")
TILE = 64  # queries in a tile: a tile's keys are then mostly the window's own for the small windows of motion models


@dataclass(frozen=True)
class Tile:
    """Queries `queries`, the slots `slots` that any of them may see, and how the two relate.

    columns: (M, P) int64, the bias column of each pair, out of range where the pair is not visible.
    visible: (M, P) or (B, M, P) bool.
    """

    queries: slice
    slots: slice
    columns: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Window:
    """A window over sequences of `frames` frames, `lengths` (B,) of which are real (None: all)."""

    left: int
    right: int
    boundary: str
    frames: int
    lengths: Tensor | None
    device: torch.device

    @property
    def size(self) -> int:
        """K, the number of keys a query sees inside the sequence."""
        return self.left + self.right + 1

    @property
    def columns(self) -> int:
        """Width of the bias: K, or 2K - 1 under "shift", where a key may be up to K - 1 frames away on either side."""
        return 2 * self.size - 1 if self.boundary == "shift" else self.size

    def _lengths(self) -> Tensor:
        """(B, 1) or (1, 1) real frames of each sequence, at least 0 and at most `frames`."""
        if self.lengths is None:
            return torch.full((1, 1), self.frames, device=self.device)
        return self.lengths.to(torch.int64).clamp(0, self.frames)[:, None]

    def erase_padding(self, x: Tensor) -> Tensor:
        """`x` (B, frames, ...) with zeros beyond each length, so that nothing there (NaN included) has an effect."""
        if self.lengths is None:
            return x
        padding = torch.arange(self.frames, device=self.device) >= self._lengths()
        return x.masked_fill(padding.reshape(*padding.shape, *[1] * (x.dim() - 2)), 0)

    def to_slots(self, x: Tensor) -> Tensor:
        """`x` (B, frames, ...) laid out along the slots."""
        if self.boundary != "circular":
            return x
        slots = torch.arange(self.frames + self.left + self.right, device=self.device)
        frames = (slots - self.left) % self._lengths().clamp(min=1)
        row = torch.arange(len(x), device=self.device)[:, None]
        return x[row, frames.expand(len(x), -1)]

    def from_slots(self, gradient: Tensor) -> Tensor:
        """The transpose of `to_slots`: each frame adds up its slots, in the order of the slots."""
        if self.boundary != "circular":
            return gradient
        lengths = [int(n) for n in self._lengths().expand(len(gradient), 1)]
        total = gradient.new_zeros(len(gradient), self.frames, *gradient.shape[2:])
        for row, slots, n in zip(total, gradient, lengths, strict=True):
            begin = self.left % n if n else len(slots)  # the first slot that holds frame 0
            if n and begin:
                row[n - begin : n] += slots[:begin]
            for first in range(begin, len(slots), max(n, 1)):
                part = slots[first : first + n]
                row[: len(part)] += part
        return total

    def tiles(self, stride: int = 1) -> Iterator[Tile]:
        """Tiles of queries at the frames 0, stride, 2 stride, ...; `queries` counts queries, not frames."""
        count = -(-self.frames // stride)
        tile = max(TILE, min(self.size, 1024)) // stride + 1
        n = self._lengths()[:, :, None]
        for begin in range(0, count, tile):
            end = min(begin + tile, count)
            first, last = begin * stride, (end - 1) * stride
            i = torch.arange(begin, end, device=self.device)[:, None] * stride
            if self.boundary == "clip":
                slots = slice(max(0, first - self.left), min(self.frames, last + self.right + 1))
            elif self.boundary == "circular":
                slots = slice(first, last + self.size)
            else:
                slots = slice(
                    max(0, first - self.left - self.right), min(self.frames, max(self.size, last + self.right + 1))
                )
            p = torch.arange(slots.start, slots.stop, device=self.device)
            if self.boundary == "clip":
                columns = p - i + self.left
                visible = (columns >= 0) & (columns < self.size) & (p < n)
            elif self.boundary == "circular":
                columns = p - i
                visible = (columns >= 0) & (columns < self.size)
            else:
                columns = p - i + self.left + self.right
                start = torch.minimum(i - self.left, n - self.size).clamp(min=0)
                visible = (p >= start) & (p < start + self.size)
            visible = visible & (i < n)
            yield Tile(slice(begin, end), slots, columns, visible)

    def bias_of(self, tile: Tile, rel_bias: Tensor) -> Tensor:
        """(H, M, P) bias of a tile, of `rel_bias` (H, columns); anything where the pair is not visible."""
        return rel_bias[:, tile.columns.clamp(0, self.columns - 1)]

    def add_diagonals(self, tile: Tile, gradient: Tensor, total: Tensor, stride: int = 1) -> None:
        """Add a tile's score gradient (H, M, P), zero where not visible, to `total` (H, columns): the transpose of
        `bias_of`. Row by row in a fixed order, so that the sum is the same bits every time."""
        heads, rows, width = gradient.shape
        # Row i of the tile lies `stride` columns further left than row i - 1. Laying the rows out at a pitch that is
        # `stride` longer than their own and reading them back at the pitch of a common axis skews them into line.
        length = width + (rows - 1) * stride
        skewed = gradient.new_zeros(heads, rows, length + stride)
        skewed[:, :, :width] = gradient.flip(1)
        skewed = skewed.flatten(1)[:, : rows * length].reshape(heads, rows, length)
        first = int(tile.columns[-1, 0])  # the column under which the skewed axis starts
        low, high = max(first, 0), min(first + length, self.columns)
        total[:, low:high] += skewed.sum(1)[:, low - first : high - first]


def sum_visible(weights: Tensor, x: Tensor, visible: Tensor) -> Tensor:
    """weights @ x, of weights (B, H, M, P) that are 0 where not `visible`; there x may be an infinity or NaN too."""
    # Compiled code takes the inputs to be finite: this decision depends on them.
    if torch.compiler.is_compiling() or bool((finite := x.isfinite()).all()):
        return weights @ x
    total = weights @ x.masked_fill(~finite, 0)
    for p in (~finite).flatten(0, 1).any(-1).any(0).nonzero().flatten().tolist():
        terms = weights[..., p, None] * x[:, :, None, p]
        total += terms.masked_fill(~visible[..., p, None] | finite[:, :, None, p], 0)
    return total


def pairs_visible(tile: Tile) -> Tensor:
    """A tile's `visible`, to go with (B, H, M, P)."""
    return tile.visible if tile.visible.dim() == 2 else tile.visible[:, None]
