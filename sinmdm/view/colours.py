"""The colours of pictures and videos, as #rrggbb; the page has the same ones (page.css), and darker ones besides."""

from __future__ import annotations

GIVEN = "#0069ad"  # what came from a file
GENERATED = "#d9600a"  # what the network made
PAGE = "#f4f6f8"  # behind everything
INK = "#18212c"  # text
MUTED = "#596675"  # lesser text
GRID = "#b3bdc9"  # lines
SHADE = 0.2  # how much darker the page is in a shadow


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of a "#rrggbb", each 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def mixed(colour: str, other: str, share: float) -> tuple[int, int, int]:
    """Red, green and blue of what has that share of the other colour, 0 to 1."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(rgb(colour), rgb(other), strict=True))
    return red, green, blue
