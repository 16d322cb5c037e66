"""A sampler's steps, all computed before the first: which timesteps are visited, and each step's coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..kernels import Schedule
from ..kernels.schedule import PREDICTIONS, VARIANCES, check_signal

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")
SPACINGS = ("trailing", "leading", "uniform")


def timesteps_visited(schedule: Schedule, steps: int | Sequence[int] | None, spacing: str = "trailing") -> list[int]:
    """The timesteps that a sampler visits, falling.

    Args:
        schedule: of T timesteps 0 .. T - 1.
        steps: how many; or the timesteps themselves, falling; default all T.
        spacing: of `steps` of them (Lin et al. 2024, table 2): "trailing", at even distances T / steps down from T - 1;
            "leading", multiples of floor(T / steps) up from 0; "uniform", at even distances from T - 1 to 0.

    Raises:
        ValueError: more steps than the schedule has, timesteps that do not fall or lie outside it, another spacing.
    """
    total = len(schedule)
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")
    if steps is None:
        return list(range(total - 1, -1, -1))
    if isinstance(steps, int) and not isinstance(steps, bool):
        if not 1 <= steps <= total:
            raise ValueError(f"steps must be from 1 to {total}, got {steps}")
        if spacing == "trailing":
            return [round((i + 1) * total / steps) - 1 for i in reversed(range(steps))]
        if spacing == "leading":
            return [i * (total // steps) for i in reversed(range(steps))]
        return (
            [round(i * (total - 1) / max(steps - 1, 1)) for i in reversed(range(steps))] if steps > 1 else [total - 1]
        )
    if not isinstance(steps, Sequence) or any(isinstance(t, bool) or not isinstance(t, int) for t in steps):
        raise ValueError(f"steps must be an int or timesteps in a list, got {steps!r}")
    visited = list(steps)
    if not visited or visited[0] >= total or visited[-1] < 0:
        raise ValueError(f"steps must be timesteps from 0 to {total - 1}, at least one, got {visited}")
    if any(later >= earlier for earlier, later in pairwise(visited)):
        raise ValueError(f"steps must be timesteps that fall from one to the next, got {visited}")
    return visited


@dataclass(frozen=True, eq=False)
class Plan:
    """Every step of a run of a sampler.

    timesteps: those visited, falling; the last step goes to the clean state.
    coefficients: (S, 10) float32, a row of `sinmdm.kernels.schedule.STEP_COLUMNS` for each.
    draws: whether steps have noise (the last may have a coefficient of 0 for it).
    second_order: whether steps after the first use the x0 of the step before.
    clips: whether x0 is clipped.
    """

    timesteps: tuple[int, ...]
    coefficients: Tensor
    draws: bool
    second_order: bool
    clips: bool

    def __len__(self) -> int:
        return len(self.timesteps)


def plan_steps(
    schedule: Schedule,
    *,
    sampler: str = "ddpm",
    steps: int | Sequence[int] | None = None,
    spacing: str = "trailing",
    prediction: str = "x0",
    variance: str = "fixed_small",
    eta: float | None = None,
    clip: float | None = None,
) -> Plan:
    """All steps of one run: `sampler`'s over the timesteps of `timesteps_visited`. Arguments are as `sample`'s.

    Raises: ValueError naming an argument that is not as it should be.
    """
    for name, value, allowed in (
        ("sampler", sampler, SAMPLERS), ("prediction", prediction, PREDICTIONS), ("variance", variance, VARIANCES),
    ):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if eta is not None and sampler != "ddim":
        raise ValueError(f"eta is an option of the sampler ddim, got eta = {eta} for {sampler}")
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"clip must be above 0, got {clip}")
    visited = timesteps_visited(schedule, steps, spacing)
    t, t_prev = torch.tensor(visited), torch.tensor([*visited[1:], -1])
    options: dict[str, Any] = {"prediction": prediction, "variance": variance, "clip": clip}
    if sampler == "ddim":
        options["eta"] = eta or 0.0
    if sampler == "dpmpp_2m":
        options["t_last"] = torch.tensor([visited[0], *visited[:-1]])  # none before the first: it is of first order
    coefficients = schedule.step_coefficients(t, t_prev, **options).to(torch.float32)
    for row, timestep in zip(coefficients, visited, strict=True):
        check_signal(row[None], timestep, prediction)
    return Plan(
        tuple(visited),
        coefficients,
        draws=sampler == "ddpm" or bool(eta),
        second_order=sampler == "dpmpp_2m",
        clips=clip is not None,
    )
