"""The published measures of single motions in HumanML3D features (Raab et al. 2024), by embeddings of Guo et al. 2022.

They need the weights of that evaluator (text-to-motion, `text_mot_match/model/finest.tar`) and a mean and std of the
features. It was trained with a std of its own: HumanML3D's, with that of some features divided by a factor. The
published single-motion code gives it motions by Mean.npy and Std.npy all the same, which give the published numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .evaluation_table import format_columns
from .motion import HumanMLLayout, Normalizer
from .published import check_state, checked_state, read_plain
from .run import Run

__all__ = [
    "DEFINITIONS",
    "Evaluator",
    "MotionEncoder",
    "MovementEncoder",
    "check_humanml",
    "format_humanml",
    "frechet_distance",
    "humanml_measures",
    "humanml_rows",
    "load_evaluator",
    "sifid",
]

WINDOW, STRIDE, SEED = 20, 10, 10
FRAMES = 4  # of a movement, which is what the motion encoder takes as one step
_CONTACTS = 4  # the last features, which it does not look at
_AT_ONCE = 256  # motions that are embedded at once

DEFINITIONS = {
    "intra_diversity": f"mean distance of the embeddings of two random windows ({WINDOW} frames) of a sample",
    "gt_intra_diversity": "the same of the clip, with as many pairs",
    "intra_diversity_gt_diff": "absolute difference of these two: 0 where samples vary as much as the clip",
    "inter_diversity": "mean distance of the embeddings of sample i and sample i + n // 2, for i below n // 2",
    "sifid": f"Fréchet distance of the embeddings of a sample's windows, one every {STRIDE} frames, to those of the "
    "clip's; mean over samples: 0 for a copy",
}


_HEADINGS = {
    "intra_diversity": ("intra", "diversity"), "gt_intra_diversity": ("the clip's", "own"),
    "intra_diversity_gt_diff": ("", "difference"), "inter_diversity": ("inter", "diversity"), "sifid": ("", "SiFID"),
}  # fmt: skip


class MovementEncoder(nn.Module):
    """Features (B, frames, 259), normalised, to movements (B, frames // 4, 512)."""

    def __init__(self, features: int = HumanMLLayout().size - _CONTACTS, width: int = 512) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for given in (features, width):
            layers += [nn.Conv1d(given, width, kernel_size=4, stride=2, padding=1), nn.Dropout(0.2), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers)
        self.out_net = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.out_net(self.main(features.mT).mT)


class MotionEncoder(nn.Module):
    """Movements (B, steps, 512) of which `lengths` (B,) count, 1 or more each, to embeddings (B, 512)."""

    def __init__(self, movement: int = 512, width: int = 1024, embedding: int = 512) -> None:
        super().__init__()
        self.input_emb = nn.Linear(movement, width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(
            nn.Linear(2 * width, width), nn.LayerNorm(width), nn.LeakyReLU(0.2), nn.Linear(width, embedding)
        )
        self.hidden = nn.Parameter(torch.randn(2, 1, width))

    def forward(self, movements: Tensor, lengths: Tensor) -> Tensor:
        steps = pack_padded_sequence(self.input_emb(movements), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(steps, self.hidden.expand(-1, len(movements), -1).contiguous())
        return self.output_net(torch.cat(last.unbind(0), dim=-1))


class Evaluator(nn.Module):
    """Motions in raw HumanML3D features to embeddings of 512 numbers, by the published networks.

    mean, std: (263,) each, by which features are normalised for the networks; zeros and ones where motions are given
    already normalised. Dropout is off as long as nobody calls `train`.
    Raises: ValueError where mean and std are not so.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        size = HumanMLLayout().size
        normalizer = Normalizer(mean.float(), std.float())
        if len(normalizer.mean) != size:
            raise ValueError(f"mean and std have {len(normalizer.mean)} numbers, must have {size}")
        self.movement_encoder, self.motion_encoder = MovementEncoder(size - _CONTACTS), MotionEncoder()
        self.register_buffer("mean", normalizer.mean, persistent=False)
        self.register_buffer("std", normalizer.std, persistent=False)
        self.eval()

    @torch.no_grad()
    def embed(self, motions: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Motions (n, frames, 263) to embeddings (n, 512) on the evaluator's device.

        lengths: (n,) frames of each, 4 .. frames; default all. What lies beyond is zero to the networks, as in the
            published batches, which the last movement of a motion sees. Frames beyond a multiple of 4 make no movement
            of their own; the last movement sees them where it would see zeros.
        Raises: ValueError where shapes or lengths are others.
        """
        size = len(self.mean)
        if motions.ndim != 3 or motions.shape[2] != size or not len(motions):
            raise ValueError(f"motions have shape {tuple(motions.shape)}, must be (1 or more, frames, {size})")
        frames = motions.shape[1]
        counts = torch.as_tensor([frames] * len(motions) if lengths is None else lengths, dtype=torch.int64).cpu()
        if counts.shape != (len(motions),) or not bool(((counts >= FRAMES) & (counts <= frames)).all()):
            raise ValueError(
                f"lengths must be {len(motions)} numbers from {FRAMES} to the motions' {frames} frames, got "
                f"{counts.tolist()}"
            )
        out = []
        for part, own in zip(motions.split(_AT_ONCE), counts.split(_AT_ONCE), strict=True):
            x = (part.to(self.mean) - self.mean) / self.std
            x = x * (torch.arange(frames) < own[:, None]).to(x)[..., None]
            out.append(self.motion_encoder(self.movement_encoder(x[..., :-_CONTACTS]), own // FRAMES))
        return torch.cat(out)


def load_evaluator(path: str | os.PathLike[str], mean: Tensor, std: Tensor) -> Evaluator:
    """The evaluator of a file like finest.tar: its movement and motion encoders; nothing that could run code is opened.

    mean, std: as `Evaluator`.
    Raises: ValueError naming the file where it is damaged or a weight is missing, too many, or of another shape (all
    listed); where mean and std are no (263,).
    """
    path = Path(path)
    evaluator = Evaluator(mean, std)
    checkpoint = read_plain(path, "a checkpoint of plain tensors")
    for name in ("movement_encoder", "motion_encoder"):
        if not isinstance(checkpoint, dict) or name not in checkpoint:
            raise ValueError(f"{path}: has no {name!r}: not the evaluator of text-to-motion (finest.tar)")
        state, network = checked_state(checkpoint[name], path), evaluator.get_submodule(name)
        check_state(network, state, path, f"the published {name}")
        network.load_state_dict(state)
    return evaluator


def humanml_measures(
    samples: Tensor, clip: Tensor, evaluator: Evaluator, *, window: int = WINDOW, seed: int = SEED
) -> dict[str, float]:
    """The published measures of samples against the clip that they were learnt from; `DEFINITIONS` says what they are.

    Windows begin at `numpy.random.RandomState(seed).randint(frames - window, size=2)`, for each sample and then, as
    often, for the clip; as published the last one is never drawn. The published code takes 50 samples of 196 frames.

    Args:
        samples: (n, frames, 263) raw features; with one of them inter_diversity is NaN.
        clip: (clip_frames, 263), likewise.
        window: frames.

    Raises:
        ValueError: a shape that is not as above, a window of less than 4 frames, or a motion with less than
        window + 10 frames: SiFID needs two windows of it.
    """
    _check(samples, clip, window, STRIDE)
    random = np.random.RandomState(seed)

    def spread(motions: Tensor) -> float:
        first = [(motion, at) for motion in motions for at in random.randint(len(motion) - window, size=2)]
        windows = torch.stack([motion[at : at + window] for motion, at in first])
        one, other = evaluator.embed(windows).double().unflatten(0, (-1, 2)).unbind(1)
        return float((one - other).norm(dim=1).mean())

    intra, of_clip = spread(samples), spread(clip.expand(len(samples), -1, -1))
    half = len(samples) // 2
    whole = evaluator.embed(samples).double()
    return {
        "intra_diversity": intra,
        "gt_intra_diversity": of_clip,
        "intra_diversity_gt_diff": abs(intra - of_clip),
        "inter_diversity": float((whole[:half] - whole[half : 2 * half]).norm(dim=1).mean()),
        "sifid": float(sifid(samples, clip, window=window, embed=evaluator.embed).mean()),
    }


def sifid(
    samples: Tensor,
    clip: Tensor,
    *,
    window: int = WINDOW,
    stride: int = STRIDE,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Fréchet distance of each sample's windows to the clip's: (n,) float64.

    samples: (n, frames, features). clip: (clip_frames, features). Windows of `window` frames begin every `stride`.
    embed: windows (m, window, features) to embeddings (m, d); default all their features, for motions of any kind.
    Raises: ValueError where shapes are others, or a motion is too short for two windows.
    """
    _check(samples, clip, window, stride)

    def windows(motion: Tensor) -> Tensor:
        cut = motion.unfold(0, window, stride).mT
        return cut.flatten(1) if embed is None else embed(cut)

    own = windows(clip)
    return torch.tensor([frechet_distance(windows(sample), own) for sample in samples], dtype=torch.float64)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of normal distributions with the means and covariances of rows (n, d) and (m, d), 2 or more.

    |mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), unbiased covariances (Dowson and Landau 1982). With C1 = A^T A and
    C2 = B^T B, of the centred rows, the eigenvalues of C1 C2 other than 0 are those of (A B^T) (A B^T)^T, so that the
    trace of its root is the sum of the singular values of A B^T: exact and symmetric also where d is more than the
    rows, and no matrix of d x d is made.

    Raises: ValueError where there are not two rows, or not as many columns.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(
            f"one and other have shapes {tuple(one.shape)} and {tuple(other.shape)}, must be (2 or more, d), of one d"
        )
    (mean, root), (other_mean, other_root) = (
        (rows.mean(0), (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5) for rows in (one.double(), other.double())
    )
    common = torch.linalg.svdvals(root @ other_root.mT).sum()
    distance = (mean - other_mean).square().sum() + root.square().sum() + other_root.square().sum() - 2 * common
    return max(0.0, float(distance))


def humanml_rows(
    run: Run,
    rows: Mapping[str, Tensor | Sequence[Tensor]],
    evaluator: Evaluator,
    *,
    window: int = WINDOW,
    seed: int = SEED,
) -> dict[str, dict[str, float]]:
    """`humanml_measures` of each row's samples against the run's clip.

    rows: by name, samples (n, frames, 263) in raw features, or a sequence of (frames, 263) of one length.
    Raises: ValueError naming the row that cannot be measured (`check_humanml`).
    """
    clip = run.layout.encode(run.motion)
    measured = {}
    for name, samples in rows.items():
        try:
            check_humanml(run, [len(sample) for sample in samples], window=window)
            stacked = torch.stack([run.layout.encode(sample) for sample in samples])
            measured[name] = humanml_measures(stacked, clip, evaluator, window=window, seed=seed)
        except ValueError as error:
            raise ValueError(f"row {name!r}: {error}") from error
    return measured


def check_humanml(run: Run, lengths: Sequence[int], *, window: int = WINDOW) -> None:
    """Raise ValueError where samples of so many frames of a run cannot be measured.

    The run must be on HumanML3D features, its clip and the samples have window + 10 frames or more, and the samples be
    one or more, of one length.
    """
    if run.layout.kind != HumanMLLayout.kind:
        raise ValueError(f"these measures are of HumanML3D features, and the run's are {run.layout.kind!r}")
    if len(set(lengths)) != 1:
        raise ValueError(f"samples must be one or more, all of one length, got lengths {list(lengths)}")
    _check_frames(lengths[0], len(run.motion), window, STRIDE)


def format_humanml(rows: Mapping[str, Mapping[str, float]]) -> str:
    """What `humanml_rows` gives as aligned plain text; '-' for what is not finite. Raises: ValueError for no rows."""
    if not rows:
        raise ValueError("rows must hold at least one row, not 0")
    columns = [
        (heading, [f"{row[key]:.3f}" if np.isfinite(row[key]) else "-" for row in rows.values()])
        for key, heading in _HEADINGS.items()
    ]
    return format_columns(list(rows), columns)


def _check(samples: Tensor, clip: Tensor, window: int, stride: int) -> None:
    if samples.ndim != 3 or clip.ndim != 2 or not len(samples) or samples.shape[2] != clip.shape[1]:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)} and the clip {tuple(clip.shape)}, must be (1 or more, frames, "
            "features) and (frames, features)"
        )
    if window < 1 or stride < 1:
        raise ValueError(f"window and stride must be at least 1 frame, got {window} and {stride}")
    _check_frames(samples.shape[1], len(clip), window, stride)


def _check_frames(samples: int, clip: int, window: int, stride: int) -> None:
    for name, frames in (("samples", samples), ("the clip", clip)):
        if frames < window + stride:
            raise ValueError(
                f"{name} must have at least {window + stride} frames, for two windows {stride} apart, not {frames}"
            )
