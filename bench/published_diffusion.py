"""How the published SinMDM code trains and samples, in plain PyTorch: float64 tables that are looked up every step.

Every random draw can be given from outside. Left out of the published step, as they change no number: its reading
back the norm of every weight and gradient (`.item()`, some 370 synchronisations a step), its log of each sample's loss
and the posterior's mean, which nothing uses. So the peer is faster than it was published.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = Callable[[Tensor, Tensor], Tensor]


def cosine_betas(steps: int) -> np.ndarray:
    """(steps,) float64."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)])


def linear_betas(steps: int) -> np.ndarray:
    """(steps,) float64."""
    return np.linspace(0.1 / steps, 20 / steps, steps)


class PublishedDiffusion:
    """The tables of a process whose network predicts x_0, and whose variance is the "fixed small" one."""

    def __init__(self, betas: np.ndarray) -> None:
        self.steps = len(betas)
        alpha_bar = np.cumprod(1 - betas)
        before = np.append(1.0, alpha_bar[:-1])
        variance = betas * (1 - before) / (1 - alpha_bar)
        self.sqrt_alpha_bar, self.sqrt_one_minus = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        self.of_x0 = betas * np.sqrt(before) / (1 - alpha_bar)
        self.of_x = (1 - before) * np.sqrt(1 - betas) / (1 - alpha_bar)
        self.log_variance = np.log(np.append(variance[1], variance[1:]))

    @staticmethod
    def at(table: np.ndarray, timesteps: Tensor, x: Tensor) -> Tensor:
        """The table's entries for timesteps (B,), to be multiplied with x (B, ...)."""
        entries = torch.from_numpy(table).to(timesteps.device)[timesteps].float()
        return entries.view(-1, *[1] * (x.dim() - 1)).expand(x.shape)

    def q_sample(self, x0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """x_0 with the noise of its timestep."""
        return self.at(self.sqrt_alpha_bar, timesteps, x0) * x0 + self.at(self.sqrt_one_minus, timesteps, x0) * noise

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        shape: tuple[int, ...],
        *,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        harmonized: Tensor | None = None,
        range_t: int = 20,
        noise: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Ancestral sampling of a state of `shape`.

        Args:
            known, mask: of an edit; where the mask is 1 the prediction of x_0 is replaced by what is known.
            harmonized: a motion whose slow part the states take over, until timestep `range_t`.
            noise: makes normals of that shape, for x_T and then once a step, in harmonization twice. By default
                torch's, and those of a step in the order in which the state lies in memory (randn_like), in which
                PublishedQnANet has its channels last.
        """
        x = noise() if noise else torch.randn(shape)
        for i in reversed(range(self.steps)):
            t = torch.tensor([i] * shape[0])
            predicted = network(x, t)
            if known is not None and mask is not None:
                predicted = predicted * (1 - mask) + known * mask
            mean = self.at(self.of_x0, t, x) * predicted + self.at(self.of_x, t, x) * x
            z = noise() if noise else torch.randn_like(x)
            unless_last = (t != 0).float().view(-1, *[1] * (len(shape) - 1))
            x = mean + unless_last * torch.exp(0.5 * self.at(self.log_variance, t, x)) * z
            if harmonized is not None and i > range_t:
                z = noise() if noise else torch.randn(shape)
                x = x - slow(x) + slow(self.q_sample(harmonized, t, z))
        return x


def slow(x: Tensor) -> Tensor:
    """(B, N, 1, F), F even, at half the frames and back, linearly."""
    frames = x.shape[-1]
    half = F.interpolate(x, size=(1, frames // 2), mode="bilinear", align_corners=False)
    return F.interpolate(half, size=(1, frames), mode="bilinear", align_corners=False)


def in_betweening_mask(shape: tuple[int, ...], prefix_end: float = 0.25, suffix_start: float = 0.75) -> Tensor:
    """1 where frames are given, 0 between; ramps of ten frames eat into what is given."""
    frames = shape[-1]
    start, end = int(prefix_end * frames), int(suffix_start * frames)
    mask = torch.ones(shape)
    mask[..., start:end] = 0
    for f in range(10):
        if start - f >= 0:
            mask[..., start - f] = f / 10
            if end + f < frames:
                mask[..., end + f] = f / 10
    return mask


# Training


@dataclass(frozen=True)
class Draws:
    """What a training step leaves to chance, but for the network: timesteps (B,), the number of frames that the clip is
    resized to, and the noise (B, 1, features, frames)."""

    timesteps: Tensor
    frames: int
    noise: Tensor


class PublishedTraining:
    """Training on a clip (features, frames): every sample of a batch is the whole of it.

    The network draws its own from torch's generator: dropout, and StochasticDepth unless `published.give_rows` is used.
    `autocast` runs the network under bfloat16 autocast, which the published code does not.
    """

    def __init__(
        self,
        network: nn.Module,
        clip: Tensor,
        diffusion: PublishedDiffusion,
        *,
        batch_size: int = 64,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        stretch: tuple[float, float] = (0.75, 1.25),
        autocast: bool = False,
    ) -> None:
        self.network, self.diffusion, self.stretch, self.autocast = network.train(), diffusion, stretch, autocast
        self.batch = clip[None, None].repeat(batch_size, 1, 1, 1)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.999), eps=1e-8
        )

    def draw(self) -> Draws:
        """A step's draws, from NumPy's, Python's and torch's global generators, as published."""
        count, steps = len(self.batch), self.diffusion.steps
        timesteps = torch.from_numpy(np.random.choice(steps, size=count, p=np.full(steps, 1 / steps)))  # noqa: NPY002
        frames = 4 * (round(self.batch.shape[-1] * random.uniform(*self.stretch)) // 4)
        return Draws(timesteps, frames, torch.randn(*self.batch.shape[:-1], frames))

    def step(self, draws: Draws | None = None) -> Tensor:
        """One step; gives its loss."""
        draws = draws or self.draw()
        size = (self.batch.shape[2], draws.frames)
        x0 = F.interpolate(self.batch, size=size, mode="bicubic", align_corners=False)
        x_t = self.diffusion.q_sample(x0, draws.timesteps, draws.noise)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=self.autocast):
            predicted = self.network(x_t, draws.timesteps)
        loss = (x0 - predicted).square().flatten(1).mean(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
