"""Sampling: from noise to a motion, one fused kernel a step beside the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import Schedule, denoise_step, philox_normal

SAMPLERS = ("ddpm",)
INITIAL_STEP = 0xFFFFFFFF  # the counter word of x_T's own draw


def _timesteps(schedule: Schedule, steps: int | None) -> list[int]:
    """The timesteps to visit, falling: all of them, or `steps` at even distances from the last one."""
    total = len(schedule)
    if steps is None:
        return list(range(total - 1, -1, -1))
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be from 1 to {total}, got {steps}")
    return [round((i + 1) * total / steps) - 1 for i in reversed(range(steps))]


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    shape: tuple[int, int, int],
    schedule: Schedule,
    *,
    sampler: str = "ddpm",
    steps: int | None = None,
    seed: int | None = None,
    noise: Callable[[int], Tensor] | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    device: torch.device | str | None = None,
    first_sample: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw motions from a network that predicts x_0.

    Sample b of seed s is the same whatever else is in the batch (up to the rounding of the network's matrix products,
    which may group rows differently): its noise is `philox_normal`'s of (s, timestep, first_sample + b).

    Args:
        model: maps (B, features, frames) and timesteps (B,) to the predicted x_0; takes `lengths=` where given.
        shape: (B, features, frames) of the result.
        schedule: the one the model was trained with.
        sampler: "ddpm" (Ho et al. 2020, algorithm 2, with the posterior's variance).
        steps: visit so many timesteps at even distances; default all.
        seed: 0 .. 2^64 - 1; this or `noise` must be given.
        noise: callable of the step (a timestep, or 0xFFFFFFFF for x_T) that gives (B, features, frames) normals.
        known, mask: at every step x0 <- known * mask + x0 * (1 - mask); known of `shape`, mask in [0, 1] broadcasting.
        lengths: (B,) int, real frames, handed to the model.
        device: where to compute; default the CPU.
        first_sample: number of the batch's first sample.
        on_step: called after each step with the number of steps done.

    Returns:
        (B, features, frames) float32.

    Raises:
        ValueError, TypeError: an argument that is not as above, by name.
    """
    if len(shape) != 3 or any(n < 0 for n in shape):
        raise ValueError(f"shape must be (batch, features, frames), got {tuple(shape)}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if (seed is None) == (noise is None):
        raise ValueError("give either seed or noise")
    batch, features, frames = shape
    device = torch.device(device or "cpu")
    visited = _timesteps(schedule, steps)

    # Inside, states are (B, frames, features): the order in which the noise is numbered, and the network's own.
    def given(step: int) -> Tensor | None:
        if noise is None:
            return None
        drawn = noise(step)
        if tuple(drawn.shape) != tuple(shape):
            raise ValueError(f"noise must give {tuple(shape)}, got {tuple(drawn.shape)}")
        return drawn.to(device, torch.float32).transpose(1, 2)

    samples = torch.arange(first_sample, first_sample + batch, device=device)
    x = given(INITIAL_STEP)
    if x is None:
        assert seed is not None
        x = philox_normal((frames, features), seed=seed, step=INITIAL_STEP, sample=samples, device=device)
    x = x.clone(memory_format=torch.contiguous_format)  # the state, which the steps overwrite
    options = {} if lengths is None else {"lengths": lengths.to(device)}
    if (known is None) != (mask is None):
        raise ValueError("known and mask must be given together")
    if known is not None and mask is not None:
        if tuple(known.shape) != tuple(shape):
            raise ValueError(f"known must have shape {tuple(shape)}, got {tuple(known.shape)}")
        try:
            mask = mask.to(device, torch.float32).expand(shape).transpose(1, 2)
        except RuntimeError as error:
            raise ValueError(f"mask must broadcast to {tuple(shape)}, got {tuple(mask.shape)}") from error
        known = known.to(device, torch.float32).transpose(1, 2)
    for done, (t, t_prev) in enumerate(zip(visited, [*visited[1:], -1], strict=True), 1):
        predicted = model(x.transpose(1, 2), torch.full((batch,), t, device=device), **options)
        fresh = given(t) if t_prev >= 0 else None
        x = denoise_step(
            x, predicted.transpose(1, 2), t, schedule, t_prev=t_prev, known=known, mask=mask, noise=fresh,
            seed=seed if t_prev >= 0 else None, sample=samples, out=x,
        )  # fmt: skip
        if on_step is not None:
            on_step(done)
    return x.transpose(1, 2)
