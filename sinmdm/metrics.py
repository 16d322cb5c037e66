"""How well samples of a single-motion model cover the clip they learnt, and how much they differ from it.

Metrics take samples (n, frames, features) and a clip (frames, features) in the same features and at the same frame
rate, float32 or float64, and return one value a sample, (n,), in the wider of the two types. A frame distance is
Euclidean over the features of a frame, in their own units. Definitions and defaults are those published: coverage,
global and local diversity by Li et al. 2022, GANimator; inter and intra diversity by Raab et al. 2024, Single Motion
Diffusion. The defaults were set for 30 frames a second and 24 joints of 6 numbers.

A NaN in a sample makes its distances NaN and its coverage 0. Nothing that searches windows carries a gradient.

Raises: every function raises ValueError when a tensor has the wrong rank or type, feature counts differ, a window is
below one frame, or a motion is too short for its windows (the published code returns NaN or infinity there).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "coverage",
    "energy",
    "global_diversity",
    "inter_diversity",
    "intra_diversity",
    "intra_diversity_difference",
    "local_diversity",
    "nearest_window_distance",
]

# Distances held at once: 8 MiB in float64, or as many rows of the table as a window has where that is more.
_BLOCK_ELEMENTS = 1 << 20


def coverage(samples: Tensor, clip: Tensor, *, window: int = 30, threshold: float = 2.0) -> Tensor:
    """Share of the clip's windows that a sample comes near: (n,), in [0, 1].

    A window of `window` frames counts when its nearest window in the sample lies at a mean frame distance below
    `threshold`. As published the clip's last window is left out, so the clip needs more than `window` frames.
    At the published threshold a frozen mean pose covers nearly all of a dance: compare with baselines.
    """
    samples, clip = _checked(samples, clip, window, frames=(window, window + 1))
    nearest = torch.stack([_nearest(clip, sample, window)[:-1] for sample in samples])
    return (nearest < threshold).to(clip.dtype).mean(dim=1)


def global_diversity(samples: Tensor, clip: Tensor, *, min_window: int = 30) -> Tensor:
    """Mean frame distance of a sample to its best rebuilding from pieces of the clip: (n,), 0 for a plain copy.

    The sample is cut into pieces of at least t = `min_window` frames and each is laid on a stretch of the clip of its
    length, so that the total distance is least (patched nearest neighbour). With D[i, k] the distance of sample frame
    i to clip frame k, W(i, k) the sum of the t entries of D on the diagonal that ends at [i-1, k-1], G(i) the least
    cost of the first i frames and H(i, k) that of those whose last piece ends before clip frame k:

        H(i, k) = min(H(i-1, k-1) + D[i-1, k-1],  G(i-t) + W(i, k)),   G(i) = min_k H(i, k),   G(0) = 0

    and the value is G(frames) / frames. One pass over D; memory is a block of its rows. A sample whose length is no
    sum of lengths from t to the clip's cannot be rebuilt and has infinity: the clip is then shorter than 2t - 1 frames.
    """
    samples, clip = _checked(samples, clip, min_window, frames=(min_window, min_window), name="min_window")
    return torch.stack([_rebuilding_cost(sample, clip, min_window) / len(sample) for sample in samples])


def local_diversity(samples: Tensor, clip: Tensor, *, window: int = 15) -> Tensor:
    """Mean frame distance of a sample's windows to their nearest windows in the clip: (n,), 0 for a plain copy.

    As published the sample's last window is left out, so samples need more than `window` frames.
    """
    samples, clip = _checked(samples, clip, window, frames=(window + 1, window))
    return torch.stack([_nearest(sample, clip, window)[:-1].mean() for sample in samples])


def inter_diversity(samples: Tensor, clip: Tensor | None = None) -> Tensor:
    """Distance of each sample to the one before it, and of the first to the last: (n,), 0 where n is 1.

    As published the distance is the Frobenius norm of the whole difference divided by the number of frames. That is
    no mean frame distance: it shrinks with the square root of the length, so compare equal lengths only.
    The clip does not enter; it is a parameter so that all metrics can be called alike.
    """
    _check_motion("samples", samples, rank=3)
    return _motion_distance(samples, samples.roll(1, dims=0))


def intra_diversity(samples: Tensor, clip: Tensor | None = None, *, window: int = 15, seed: int = 10) -> Tensor:
    """Distance of two random windows of one sample, as :func:`inter_diversity` measures it: (n,).

    The windows begin at the frames `numpy.random.RandomState(seed).randint(frames - window, size=(n, 2))`; as
    published the last window is never drawn, and 10 is the published seed. The clip does not enter.
    """
    _check_motion("samples", samples, rank=3)
    _check_window(window, samples=(samples, window + 1))
    return _two_windows_distance(samples, samples.shape[1] - window, window, np.random.RandomState(seed))


def intra_diversity_difference(samples: Tensor, clip: Tensor, *, window: int = 15, seed: int = 10) -> Tensor:
    """How far a sample's intra diversity is from the clip's own, absolute: (n,); published is the mean.

    One generator draws the samples' windows as in :func:`intra_diversity`, then for each sample two windows of the
    clip, `randint(clip_frames - 1 - window, size=(n, 2))`.
    """
    samples, clip = _checked(samples, clip, window, frames=(window + 1, window + 2))
    random = np.random.RandomState(seed)
    of_samples = _two_windows_distance(samples, samples.shape[1] - window, window, random)
    of_clip = _two_windows_distance(clip.expand(len(samples), -1, -1), len(clip) - 1 - window, window, random)
    return (of_samples - of_clip).abs()


def nearest_window_distance(source: Tensor, target: Tensor, *, window: int = 30) -> Tensor:
    """Mean frame distance of each window of `source` to its nearest window of `target`.

    source (frames, features) and target (target_frames, features) are single motions; the result is
    (frames - window + 1,), every window of the source counted. From the clip to a sample it tells what the sample
    leaves out, from a sample to the clip what the sample invents.
    """
    _check_motion("source", source, rank=2)
    _check_motion("target", target, rank=2)
    _check_features(source=source, target=target)
    _check_window(window, source=(source, window), target=(target, window))
    dtype = torch.promote_types(source.dtype, target.dtype)
    return _nearest(source.detach().to(dtype), target.detach().to(dtype), window)


def energy(motion: Tensor) -> Tensor:
    """Mean over frames of the norm of the second difference over frames, x[t+1] - 2 x[t] + x[t-1].

    motion is (frames, features) or (n, frames, features), of 3 frames or more; the result is () or (n,). A frozen pose
    has 0; noise and jumps raise it.
    """
    _check_motion("motion", motion, rank=3 if motion.ndim == 3 else 2)
    if motion.shape[-2] < 3:
        raise ValueError(f"motion must have at least 3 frames, not {motion.shape[-2]}")
    return motion.diff(n=2, dim=-2).norm(dim=-1).mean(dim=-1)


def _nearest(source: Tensor, target: Tensor, window: int) -> Tensor:
    """nearest_window_distance of checked motions."""
    return torch.cat([sums.amin(dim=1) for sums, _ in _window_sums(source, target, window)]) / window


def _rebuilding_cost(sample: Tensor, clip: Tensor, min_window: int) -> Tensor:
    """G(frames) of global_diversity, for one sample (frames, features)."""
    infinite = sample.new_tensor(torch.inf)
    best = [torch.zeros_like(infinite)] + [infinite] * (min_window - 1)  # G(0), G(1), ...
    cost = infinite.expand(len(clip) - min_window + 1)  # H(i, k) for k = min_window, ..., clip frames
    for sums, distances in _window_sums(sample, clip, min_window):
        for window_sum, last_frame in zip(sums, distances[min_window - 1 :, min_window:], strict=True):
            longer = cost[:-1] + last_frame
            cost = best[-min_window] + window_sum
            torch.minimum(cost[1:], longer, out=cost[1:])
            best.append(cost.amin())
    return best[-1]


def _window_sums(source: Tensor, target: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the source's windows, in order, against all of the target's.

    Yields (sums, distances). sums (block, target_frames - window + 1) is the frame distance summed over a pair of
    windows, distances (block + window - 1, target_frames) that of the source frames they span.
    """
    windows, width = len(source) - window + 1, len(target)
    block = max(window, _BLOCK_ELEMENTS // width)
    for start in range(0, windows, block):
        rows = min(block, windows - start)
        # By differences: the product form |a|^2 - 2ab + |b|^2 in float32 has no digit left at distances of 1e-3.
        frames = source[start : start + rows + window - 1]
        distances = torch.cdist(frames, target, compute_mode="donot_use_mm_for_euclid_dist").contiguous()
        diagonals = distances.as_strided((rows, width - window + 1, window), (width, 1, width + 1))
        yield diagonals.sum(dim=2), distances


def _two_windows_distance(motions: Tensor, starts: int, window: int, random: np.random.RandomState) -> Tensor:
    """Distance of two windows in each of motions (n, frames, features), first frames drawn from [0, starts)."""
    first = torch.from_numpy(random.randint(starts, size=(len(motions), 2)))
    frames = (first[:, :, None, None] + torch.arange(window)[:, None]).to(motions.device)  # (n, 2, window, 1)
    return _motion_distance(*(motions.take_along_dim(frames[:, side], dim=1) for side in (0, 1)))


def _motion_distance(one: Tensor, other: Tensor) -> Tensor:
    """The published distance of motions (n, frames, features): Frobenius norm of the difference over frames."""
    return (one - other).flatten(1).norm(dim=1) / one.shape[1]


def _checked(
    samples: Tensor, clip: Tensor, window: int, frames: tuple[int, int], name: str = "window"
) -> tuple[Tensor, Tensor]:
    """Samples and clip in one type, after all checks; frames is how many each must have."""
    _check_motion("samples", samples, rank=3)
    _check_motion("clip", clip, rank=2)
    _check_features(samples=samples, clip=clip)
    _check_window(window, name, samples=(samples, frames[0]), clip=(clip, frames[1]))
    dtype = torch.promote_types(samples.dtype, clip.dtype)
    return samples.detach().to(dtype), clip.detach().to(dtype)


def _check_motion(name: str, motion: Tensor, rank: int) -> None:
    layout = "(frames, features)" if rank == 2 else "(n, frames, features)"
    if motion.ndim != rank or 0 in motion.shape:
        raise ValueError(f"{name} must be {layout}, none of them 0, not of shape {tuple(motion.shape)}")
    if motion.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, not {motion.dtype}")


def _check_features(**motions: Tensor) -> None:
    counts = {name: motion.shape[-1] for name, motion in motions.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(" and ".join(motions) + f" must have the same number of features, not {counts}")


def _check_window(window: int, name: str = "window", /, **motions: tuple[Tensor, int]) -> None:
    """motions: each with how many frames its windows need."""
    if window < 1:
        raise ValueError(f"{name} must be at least 1 frame, not {window}")
    for motion_name, (motion, needed) in motions.items():
        if motion.shape[-2] < needed:
            raise ValueError(
                f"{motion_name} must have at least {needed} frames with {name}={window}, not {motion.shape[-2]}"
            )
