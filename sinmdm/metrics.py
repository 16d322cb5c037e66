"""How well samples of a single-motion model cover the clip they learnt, and how much they differ from it.

Metrics take samples (n, frames, features) and a clip (frames, features) in the same features and at the same frame
rate, float32 or float64, and return one value a sample, (n,), in the wider of the two types, unless they say otherwise.
A frame distance is Euclidean over the features of a frame, in their own units. Definitions and defaults are those
published where there are any: coverage, global and local diversity by Li et al. 2022, GANimator; inter and intra
diversity by Raab et al. 2024, Single Motion Diffusion. The defaults were set for 30 frames a second and 168 features, 6
of each of 24 joints and 6 of each of 4 foot contacts; what :mod:`sinmdm.evaluation` measures has the joints' 144 only.
The features that were published are `encode(clip)[:, :-6]` of the layout "mixamo" with representation "6d". Several
metrics read the same searches for nearest windows: :func:`window_distances` makes each once.

A NaN in a sample makes its distances NaN and its coverage 0. Nothing that searches windows carries a gradient.

Raises: every function raises ValueError when a tensor has the wrong rank or type, feature counts differ, a window is
below one frame, or a motion is too short for its windows (the published code returns NaN or infinity there).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .kernels import window_match

__all__ = [
    "WindowDistances",
    "coverage",
    "coverage_area",
    "coverage_curve",
    "distribution_distance",
    "energy",
    "foot_sliding",
    "global_diversity",
    "harmonic_mean",
    "inter_diversity",
    "intra_diversity",
    "intra_diversity_difference",
    "local_diversity",
    "nearest_window_distance",
    "normalized",
    "window_distances",
]


def coverage(samples: Tensor, clip: Tensor, *, window: int = 30, threshold: float = 2.0) -> Tensor:
    """Share of the clip's windows that a sample comes near: (n,), in [0, 1].

    A window of `window` frames counts when its nearest window in the sample lies at a mean frame distance below
    `threshold`. As published the clip's last window is left out, so the clip needs more than `window` frames.
    At the published threshold a frozen mean pose covers nearly all of a dance: compare with baselines.
    """
    return coverage_curve(samples, clip, window=window, thresholds=(threshold,))[:, 0]


def coverage_curve(samples: Tensor, clip: Tensor, *, window: int = 30, thresholds: Sequence[float] | Tensor) -> Tensor:
    """:func:`coverage` at each of the thresholds, in their order, of one search: (n, thresholds).

    Source: ours; the published coverage is one point of the curve.
    """
    return _covered(_clip_to_samples(samples, clip, window), thresholds)


def coverage_area(samples: Tensor, clip: Tensor, *, window: int = 30, limit: float = 2.0) -> Tensor:
    """Area under the curve of coverage over thresholds from 0 to `limit`, divided by `limit`: (n,), in [0, 1].

    With d the nearest-window distance of a window of the clip that is the mean of max(0, 1 - d / limit) over the
    windows that coverage counts: exact, no thresholds are picked. Source: ours; it tells apart what covers all at the
    published threshold, which is the default limit.
    """
    return _area(_clip_to_samples(samples, clip, window), limit)


@dataclass(frozen=True, eq=False)
class WindowDistances:
    """What two searches for nearest windows found, from which several metrics are read without another.

    clip_to_samples: (n, clip_frames - window + 1), :func:`nearest_window_distance` from the clip to each sample.
    samples_to_clip: (n, frames - window + 1), the same from each sample to the clip.
    global_diversity: (n,), as the function of that name.
    """

    clip_to_samples: Tensor
    samples_to_clip: Tensor
    global_diversity: Tensor

    def coverage(self, threshold: float = 2.0) -> Tensor:
        """As the function of that name: (n,)."""
        return self.coverage_curve((threshold,))[:, 0]

    def coverage_curve(self, thresholds: Sequence[float] | Tensor) -> Tensor:
        """As the function of that name: (n, thresholds)."""
        return _covered(self.clip_to_samples, thresholds)

    def coverage_area(self, limit: float = 2.0) -> Tensor:
        """As the function of that name: (n,)."""
        return _area(self.clip_to_samples, limit)


def window_distances(samples: Tensor, clip: Tensor, *, window: int = 30) -> WindowDistances:
    """Search the samples for the clip's windows once, and the clip for the samples'."""
    samples, clip = _checked(samples, clip, window, frames=(window, window + 1))
    nearest, cost = window_match(samples, clip, window=window, rebuild=True)
    return WindowDistances(window_match(clip, samples, window=window), nearest, cost / samples.shape[1])


def global_diversity(samples: Tensor, clip: Tensor, *, min_window: int = 30) -> Tensor:
    """Mean frame distance of a sample to its best rebuilding from pieces of the clip: (n,), 0 for a plain copy.

    The sample is cut into pieces of at least t = `min_window` frames and each is laid on a stretch of the clip of its
    length, so that the total distance is least (patched nearest neighbour). With D[i, k] the distance of sample frame
    i to clip frame k, W(i, k) the sum of the t entries of D on the diagonal that ends at [i-1, k-1], G(i) the least
    cost of the first i frames and H(i, k) that of those whose last piece ends before clip frame k:

        H(i, k) = min(H(i-1, k-1) + D[i-1, k-1],  G(i-t) + W(i, k)),   G(i) = min_k H(i, k),   G(0) = 0

    and the value is G(frames) / frames. One pass over D; memory is a block of its rows and t + 1 rows more. A sample
    whose length is no sum of lengths from t to the clip's cannot be rebuilt and has infinity: the clip is then shorter
    than 2t - 1 frames.
    """
    samples, clip = _checked(samples, clip, min_window, frames=(min_window, min_window), name="min_window")
    _, cost = window_match(samples, clip, window=min_window, rebuild=True)
    return cost / samples.shape[1]


def local_diversity(samples: Tensor, clip: Tensor, *, window: int = 15) -> Tensor:
    """Mean frame distance of a sample's windows to their nearest windows in the clip: (n,), 0 for a plain copy.

    As published the sample's last window is left out, so samples need more than `window` frames.
    """
    samples, clip = _checked(samples, clip, window, frames=(window + 1, window))
    return window_match(samples, clip, window=window)[:, :-1].mean(dim=1)


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
    return window_match(source.to(dtype), target.to(dtype), window=window)[0]


def distribution_distance(samples: Tensor, clip: Tensor) -> Tensor:
    """Distance of each feature's values in a sample to its values in the clip, their order aside: (n, features).

    One-dimensional Wasserstein-1 distance, the area between the two quantile functions, in the feature's own units;
    exact for any two lengths. 0 where the sample's values are the clip's, each as often in proportion, in any order.
    Source: the closed form in one dimension, e.g. Peyré and Cuturi 2019, Computational Optimal Transport, section 2.6.
    """
    samples, clip = _checked(samples, clip)
    frames, clip_frames = samples.shape[1], len(clip)
    # Quantile functions are steps; in units of 1 / (frames clip_frames) all their steps lie at integers.
    of_samples = torch.arange(1, frames + 1, device=clip.device) * clip_frames
    of_clip = torch.arange(1, clip_frames + 1, device=clip.device) * frames
    ends = torch.cat([of_samples, of_clip]).unique()
    widths = ends.diff(prepend=ends.new_zeros(1))
    begins = ends - widths
    values = samples.sort(dim=1).values[:, begins // clip_frames]
    clip_values = clip.sort(dim=0).values[begins // frames]
    shares = widths.to(clip.dtype) / (frames * clip_frames)
    return torch.einsum("nsf,s->nf", (values - clip_values).abs(), shares)


def harmonic_mean(*scores: Tensor) -> Tensor:
    """Harmonic mean of scores of which more is better, element by element: k / (1/s_1 + ... + 1/s_k).

    Scores broadcast; 0 wherever one of them is 0 or less, NaN where one is NaN. The harmonic mean column of Raab et
    al. 2024 is this of three scores of its HumanML3D benchmark (SiFID, inter diversity, intra diversity difference),
    each after :func:`normalized` by the 90th percentile of that score over the authors' architectures, as its author
    says in issue 26 of the published repository. Percentiles for the scores of this module were not published. Ours,
    for a clip: coverage at a threshold (a share already) and global diversity :func:`normalized` by that threshold.
    """
    if not scores:
        raise ValueError("scores must be at least one tensor, got none")
    every = torch.stack(torch.broadcast_tensors(*scores))
    mean = len(scores) / every.reciprocal().sum(dim=0)
    return torch.where((every <= 0).any(dim=0) & ~every.isnan().any(dim=0), 0, mean)


def normalized(score: Tensor, norm: float, *, lower_is_better: bool = False) -> Tensor:
    """score / norm, or (norm - score) / norm where less is better: what Raab et al. 2024 take the harmonic mean of."""
    if not 0 < norm < np.inf:
        raise ValueError(f"norm must be above 0 and finite, got {norm}")
    return (norm - score) / norm if lower_is_better else score / norm


def foot_sliding(positions: Tensor, contacts: Tensor, frame_time: float) -> Tensor:
    """Mean horizontal speed, in units a second, of joints while they are in contact with the ground: ().

    A joint's velocity at a frame is that from the frame before; it counts where the joint is in contact at both. NaN
    where none is at any. Source: the measure is common, this form ours.

    Args:
        positions: (frames, joints, 3) of the joints that touch the ground, float32 or float64, y up.
        contacts: (frames, joints) labels: more than 0.5 is contact.
        frame_time: seconds.
    """
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise ValueError(f"positions must be (frames, joints, 3), not of shape {tuple(positions.shape)}")
    if positions.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"positions must be float32 or float64, not {positions.dtype}")
    if contacts.shape != positions.shape[:2]:
        raise ValueError(f"contacts must be {tuple(positions.shape[:2])} as positions, not {tuple(contacts.shape)}")
    if contacts.isnan().any():
        raise ValueError("contacts must be labels from 0 to 1, got a NaN")
    if not 0 < frame_time < np.inf:
        raise ValueError(f"frame_time must be above 0 and finite, got {frame_time}")
    touching = contacts > 0.5
    speeds = positions[..., [0, 2]].diff(dim=0).norm(dim=-1) / frame_time
    return speeds[touching[1:] & touching[:-1]].mean()


def energy(motion: Tensor) -> Tensor:
    """Mean over frames of the norm of the second difference over frames, x[t+1] - 2 x[t] + x[t-1].

    motion is (frames, features) or (n, frames, features), of 3 frames or more; the result is () or (n,). A frozen pose
    has 0; noise and jumps raise it.
    """
    _check_motion("motion", motion, rank=3 if motion.ndim == 3 else 2)
    if motion.shape[-2] < 3:
        raise ValueError(f"motion must have at least 3 frames, not {motion.shape[-2]}")
    return motion.diff(n=2, dim=-2).norm(dim=-1).mean(dim=-1)


def _clip_to_samples(samples: Tensor, clip: Tensor, window: int) -> Tensor:
    """(n, clip_frames - window + 1): nearest_window_distance from the clip to each sample, after all checks."""
    samples, clip = _checked(samples, clip, window, frames=(window, window + 1))
    return window_match(clip, samples, window=window)


def _covered(nearest: Tensor, thresholds: Sequence[float] | Tensor) -> Tensor:
    """Shares of the clip's windows but the last that are nearer than each threshold."""
    limits = torch.as_tensor(thresholds, dtype=nearest.dtype, device=nearest.device)
    if limits.ndim != 1 or len(limits) == 0 or limits.isnan().any():
        raise ValueError(f"thresholds must be a sequence of numbers, one or more, got {thresholds}")
    return torch.stack([(nearest[:, :-1] < limit).to(nearest.dtype).mean(dim=1) for limit in limits], dim=1)


def _area(nearest: Tensor, limit: float) -> Tensor:
    """Mean share of [0, limit] that lies above the distance of a window, over the clip's windows but the last."""
    if not 0 < limit < np.inf:
        raise ValueError(f"limit must be above 0 and finite, got {limit}")
    windows = nearest[:, :-1]
    return torch.where(windows < limit, 1 - windows / limit, 0).mean(dim=1)


def _two_windows_distance(motions: Tensor, starts: int, window: int, random: np.random.RandomState) -> Tensor:
    """Distance of two windows in each of motions (n, frames, features), first frames drawn from [0, starts)."""
    first = torch.from_numpy(random.randint(starts, size=(len(motions), 2)))
    frames = (first[:, :, None, None] + torch.arange(window)[:, None]).to(motions.device)  # (n, 2, window, 1)
    return _motion_distance(*(motions.take_along_dim(frames[:, side], dim=1) for side in (0, 1)))


def _motion_distance(one: Tensor, other: Tensor) -> Tensor:
    """The published distance of motions (n, frames, features): Frobenius norm of the difference over frames."""
    return (one - other).flatten(1).norm(dim=1) / one.shape[1]


def _checked(
    samples: Tensor, clip: Tensor, window: int = 1, frames: tuple[int, int] = (1, 1), name: str = "window"
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
