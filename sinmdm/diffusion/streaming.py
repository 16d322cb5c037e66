"""Motion without an end: a sampler whose every step runs at the same time, each a little behind the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Schedule, affine_step, philox_normal
from .plan import plan_steps
from .sampling import INITIAL_STEP, call_model, check_model, check_sizes, conditions_of, usable_device


@dataclass
class _Stage:
    """The state before one step, from frame `begin` on: x and, for a second-order sampler, the x0 of the step before.

    done: frames that the step has been applied to; up to `field` of them are kept, for those that follow.
    """

    x: Tensor
    previous: Tensor
    begin: int = 0
    done: int = 0


def stream(
    model: Callable[..., Tensor],
    features: int,
    schedule: Schedule,
    *,
    seed: int,
    chunk: int = 64,
    batch: int = 1,
    sampler: str = "ddim",
    steps: int | Sequence[int] | None = 20,
    spacing: str = "trailing",
    prediction: str = "x0",
    variance: str = "fixed_small",
    eta: float | None = None,
    clip: float | None = None,
    device: torch.device | str | None = None,
    first_sample: int = 0,
) -> Iterator[Tensor]:
    """Finished frames of motions that never end, in constant memory.

    The frames are those of `sample` with the same arguments and any length beyond them (up to float rounding): a frame
    is finished as soon as the noise `receptive_field` times the number of steps after it has been drawn. That delay is
    fixed; before the first frames so much is computed without a result.

    Args:
        model: a local network, as `sample` takes it: it has a `receptive_field`.
        features: of a frame.
        schedule: the one the model was trained with.
        seed: 0 .. 2^64 - 1.
        chunk: frames that each result brings. A network call sees chunk + 2 receptive_field frames, so that short
            chunks cost more a frame.
        batch: how many motions, side by side.
        sampler, steps, spacing, prediction, variance, eta, clip, device, first_sample: as `sample`'s.

    Yields:
        (batch, features, chunk) float32.

    Raises:
        ValueError: an argument that is not as above, by name, at the call and not only at the first frames.
    """
    field = check_model(model, "a stream")
    check_sizes(model, features, first_sample, batch=batch, chunk=chunk)
    plan = plan_steps(
        schedule, sampler=sampler, steps=steps, spacing=spacing, prediction=prediction, variance=variance, eta=eta,
        clip=clip,
    )  # fmt: skip
    device = usable_device(device)
    samples = torch.arange(first_sample, first_sample + batch, device=device)

    def drawn(begin: int) -> Tensor:
        return philox_normal(
            (chunk, features), seed=seed, step=INITIAL_STEP, sample=samples, frame=begin, device=device
        )

    drawn(0)  # what is wrong with the seed is said here

    @torch.no_grad()
    def frames() -> Iterator[Tensor]:
        coefficients, told = plan.coefficients.to(device), conditions_of(model, plan, device)
        empty = torch.empty(batch, 0, features, device=device)
        stages = [_Stage(empty, empty) for _ in plan.timesteps]
        finished = empty
        begin = 0
        while True:
            x, previous = drawn(begin), empty
            if plan.second_order:
                previous = torch.zeros_like(x)
            begin += chunk
            for i, stage in enumerate(stages):
                stage.x = torch.cat([stage.x, x], 1)
                stage.previous = torch.cat([stage.previous, previous], 1)
                ready = stage.begin + stage.x.shape[1] - field
                if ready <= stage.done:
                    break
                here = slice(stage.done - stage.begin, ready - stage.begin)
                predicted = call_model(model, stage.x, told[i : i + 1], None)[:, here]
                x, x0 = affine_step(
                    stage.x[:, here], predicted, coefficients[i : i + 1], clips=plan.clips, step=plan.timesteps[i],
                    previous_x0=stage.previous[:, here] if plan.second_order else None,
                    seed=seed if plan.draws else None, sample=samples, frame=stage.done, return_x0=True,
                )  # fmt: skip
                previous = x0 if plan.second_order else empty
                kept = max(ready - field, stage.begin)
                stage.x = stage.x[:, kept - stage.begin :]
                stage.previous = stage.previous[:, kept - stage.begin :]
                stage.begin, stage.done = kept, ready
            else:
                finished = torch.cat([finished, x], 1)
            while finished.shape[1] >= chunk:
                yield finished[:, :chunk].transpose(1, 2)
                finished = finished[:, chunk:]

    return frames()
