"""Windows of one motion and their nearest windows in another, in plain PyTorch: the definition.

Li et al. 2022, GANimator, supplement: nearest neighbours of windows (coverage, local diversity) and the patched nearest
neighbour (global diversity).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Distances held at once: 8 MiB in float64, or as many rows of the table as a window has where that is more.
BLOCK_ELEMENTS = 1 << 20


def window_match(source: Tensor, target: Tensor, window: int, rebuild: bool) -> tuple[Tensor, Tensor]:
    """(nearest, cost) of source (n or 1, L, F) and target (n or 1, N, F): (n, L - window + 1), and (n,) or (0,)."""
    n = len(target) if len(source) == 1 else len(source)
    nearest = source.new_empty(n, source.shape[1] - window + 1)
    cost = source.new_empty(n if rebuild else 0)
    for i, (one, other) in enumerate(zip(source.expand(n, -1, -1), target.expand(n, -1, -1), strict=True)):
        least = []
        rebuilding = _Rebuilding(other, window)
        for sums, distances in _window_sums(one, other, window):
            least.append(sums.amin(dim=1))
            if rebuild:
                rebuilding.add(sums, distances)
        nearest[i] = torch.cat(least) / window
        if rebuild:
            cost[i] = rebuilding.best[-1]
    return nearest, cost


class _Rebuilding:
    """The least cost of the source's first frames, row after row: with t the window, D[i, k] the distance of source
    frame i to target frame k, W(i, k) the sum of the t entries of D on the diagonal that ends at [i-1, k-1], G(i) the
    least cost of the first i frames and H(i, k) that of those whose last piece ends before target frame k,

        H(i, k) = min(H(i-1, k-1) + D[i-1, k-1],  G(i-t) + W(i, k)),   G(i) = min_k H(i, k),   G(0) = 0
    """

    def __init__(self, target: Tensor, window: int) -> None:
        infinite = target.new_full((), torch.inf)
        self.window = window
        self.best = [torch.zeros_like(infinite)] + [infinite] * (window - 1)  # G(0), G(1), ...
        self.cost = infinite.expand(len(target) - window + 1)  # H(i, k) for k = window, ..., target frames

    def add(self, sums: Tensor, distances: Tensor) -> None:
        """The next rows, as _window_sums gives them."""
        t = self.window
        for window_sum, last_frame in zip(sums, distances[t - 1 :, t:], strict=True):
            longer = self.cost[:-1] + last_frame
            self.cost = self.best[-t] + window_sum
            torch.minimum(self.cost[1:], longer, out=self.cost[1:])
            self.best.append(self.cost.amin())


def _window_sums(source: Tensor, target: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the windows of source (L, F), in order, against all those of target (N, F).

    Yields (sums, distances). sums (block, N - window + 1) is the frame distance summed over a pair of windows,
    distances (block + window - 1, N) that of the source frames they span.
    """
    windows, width = len(source) - window + 1, len(target)
    block = max(window, BLOCK_ELEMENTS // width)
    for start in range(0, windows, block):
        rows = min(block, windows - start)
        # By differences: the product form |a|^2 - 2ab + |b|^2 in float32 has no digit left at distances of 1e-3.
        frames = source[start : start + rows + window - 1]
        distances = torch.cdist(frames, target, compute_mode="donot_use_mm_for_euclid_dist").contiguous()
        diagonals = distances.as_strided((rows, width - window + 1, window), (width, 1, width + 1))
        yield diagonals.sum(dim=2), distances
