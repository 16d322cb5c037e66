"""What a training step learns from: parts of one motion, and the timesteps to noise them to."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .motion import Layout, Normalizer
from .presets import Preset


class Batches(Protocol):
    """Batch `step` of a seed is always the same, so that a resumed run sees what an uninterrupted one would."""

    layout: Layout
    normalizer: Normalizer
    seed: int

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Clean features (B, frames, features) as the network knows them, and their timesteps (B,)."""
        ...


class Crops:
    """Random crops of one motion, each resized in time, as normalised batches (B, frames, features)."""

    def __init__(self, features: Tensor, layout: Layout, normalizer: Normalizer, preset: Preset, seed: int) -> None:
        self.features, self.layout, self.normalizer, self.preset, self.seed = features, layout, normalizer, preset, seed
        self.frames = min(preset.crop, len(features))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Clean crops and their timesteps (B,)."""
        preset, random = self.preset, np.random.default_rng([self.seed, step])
        stretch = random.uniform(*preset.resize, preset.batch_size)
        # A stretched clip has stretch * F frames; where that is less than a crop, the clip's last pose is held.
        span = (self.frames - 1) / stretch
        begin = random.uniform(0, 1, preset.batch_size) * np.maximum(len(self.features) - 1 - span, 0)
        if preset.resize == (1.0, 1.0):
            begin = np.rint(begin)
        positions = torch.from_numpy(begin[:, None] + np.arange(self.frames) / stretch[:, None])
        crops = self.layout.resample(self.features, positions, torch.from_numpy(1 / stretch))
        # One timestep from each of B equal parts of the schedule: unbiased, with less variance than B free draws.
        strata = (np.arange(preset.batch_size) + random.uniform(0, 1, preset.batch_size)) / preset.batch_size
        timesteps = torch.from_numpy((strata * preset.timesteps).astype(np.int64))
        return self.normalizer.apply(crops), timesteps


class WholeClip:
    """The whole motion in every row, at one length a step: the published augmentation (Raab et al. 2024).

    The length is a multiple of 4, that of the clip times a factor of `preset.resize`. Features are resized as plain
    numbers, by bicubic interpolation with half-pixel centres (Keys, a = -0.75). The rows are one piece of memory.

    Raises: ValueError where the clip is too short to be resized so.
    """

    def __init__(self, features: Tensor, layout: Layout, normalizer: Normalizer, preset: Preset, seed: int) -> None:
        self.layout, self.normalizer, self.preset, self.seed = layout, normalizer, preset, seed
        if length_of(len(features), preset.resize[0]) < 4:
            raise ValueError(
                f"the motion has {len(features)} frames, too few to be resized by {preset.resize[0]:g} to at least 4"
            )
        self.frames = len(features)
        self.image = normalizer.apply(features).t()[None, :, None].contiguous()  # (1, features, 1, frames)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """As `Batches.batch`; every row of the features is the same memory."""
        preset, random = self.preset, np.random.default_rng([self.seed, step])
        timesteps = random.integers(0, preset.timesteps, preset.batch_size)
        length = length_of(self.frames, random.uniform(*preset.resize))
        x0 = F.interpolate(self.image, size=(1, length), mode="bicubic", align_corners=False)[0, :, 0].t().contiguous()
        return x0.expand(preset.batch_size, -1, -1), torch.from_numpy(timesteps)


def length_of(frames: int, factor: float) -> int:
    """Frames of a clip resized by a factor: a multiple of 4."""
    return round(frames * factor) // 4 * 4
