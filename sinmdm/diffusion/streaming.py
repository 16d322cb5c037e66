"""Motion without an end: a sampler whose every step runs at the same time, each a little behind the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..kernels import Schedule, affine_step, philox_normal
from ..remembering import remembering
from .plan import plan_steps
from .sampling import INITIAL_STEP, call_model, check_model, check_sizes, conditions_of, usable_device


class _Frames:
    """A queue of frames in one piece of memory, which is made once: (batch, capacity, features).

    begin: the number of its first frame in the motion; count: frames that it holds.
    """

    def __init__(self, batch: int, capacity: int, features: int, device: torch.device) -> None:
        self._memory = torch.empty(batch, capacity, features, device=device)
        self._aside = torch.empty_like(self._memory)
        self.begin = self.count = 0

    @property
    def held(self) -> Tensor:
        """(batch, count, features), a view."""
        return self._memory[:, : self.count]

    def push(self, frames: Tensor) -> None:
        """Append frames, which are copied."""
        self._memory[:, self.count : self.count + frames.shape[1]] = frames
        self.count += frames.shape[1]

    def drop(self, number: int) -> None:
        """Forget the first so many."""
        kept = self.count - number
        self._aside[:, :kept] = self._memory[:, number : self.count]  # source and target may overlap
        self._memory, self._aside = self._aside, self._memory
        self.begin, self.count = self.begin + number, kept


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

    # Everything that outlives a network call is allocated here, once.
    def queue() -> _Frames:
        return _Frames(batch, 2 * field + chunk, features, device)

    def drawn(begin: int, out: Tensor) -> Tensor:
        return philox_normal((chunk, features), seed=seed, step=INITIAL_STEP, sample=samples, frame=begin, out=out)

    new, new_x0 = (torch.empty(batch, chunk, features, device=device) for _ in range(2))
    drawn(0, new)  # what is wrong with the seed is said here

    @torch.no_grad()
    def frames() -> Iterator[Tensor]:
        coefficients, told = plan.coefficients.to(device), conditions_of(model, plan, device)
        # The state before each step, from `field` frames before the first that the step is still to be applied to; and
        # beside it the x0 of the step before.
        states = [queue() for _ in plan.timesteps]
        before = [queue() if plan.second_order else None for _ in plan.timesteps]
        done = [0] * len(plan)  # frames that the step has been applied to
        finished = _Frames(batch, 2 * chunk, features, device)
        begin = 0
        while True:
            with remembering():  # for this chunk: between two of them a network may change
                x, x0 = drawn(begin, new), new_x0.zero_()
                begin += chunk
                for i, (state, previous) in enumerate(zip(states, before, strict=True)):
                    state.push(x)
                    if previous is not None:
                        previous.push(x0)
                    ready = state.begin + state.count - field
                    if ready <= done[i]:
                        break
                    here = slice(done[i] - state.begin, ready - state.begin)
                    x, x0 = new[:, : ready - done[i]], new_x0[:, : ready - done[i]]
                    affine_step(
                        state.held[:, here], call_model(model, state.held, told[i : i + 1], None)[:, here],
                        coefficients[i : i + 1], clips=plan.clips, step=plan.timesteps[i], frame=done[i], out=x,
                        previous_x0=None if previous is None else previous.held[:, here],
                        x0_out=None if previous is None else x0, seed=seed if plan.draws else None, sample=samples,
                    )  # fmt: skip
                    done[i] = ready
                    over = max(ready - field - state.begin, 0)
                    for frames_held in (state, previous):
                        if frames_held is not None:
                            frames_held.drop(over)
                else:
                    finished.push(x)
            while finished.count >= chunk:
                yield finished.held[:, :chunk].transpose(1, 2).clone()
                finished.drop(chunk)

    return frames()
