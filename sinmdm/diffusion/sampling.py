"""Sampling: from noise to a motion, one fused kernel a step beside the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_at_least
from ..kernels import Schedule, affine_step, philox_normal
from ..kernels.denoise_step import check_mask
from ..remembering import remembering
from .graph import GraphCache, replay
from .plan import Plan, plan_steps

INITIAL_STEP = 0xFFFFFFFF  # the counter word of x_T's own draw
# A local network is given longer motions in pieces of so many frames: their activations stay in the caches, and memory
# is the state's alone.
PIECE = 2048


def check_model(model: Callable[..., Tensor], what: str) -> int:
    """Frames on each side that an output frame of `model` depends on. Raises ValueError where that is all of them, with
    the model's own reason where it has one, in the attribute `not_local`."""
    field = getattr(model, "receptive_field", None)
    if field is None:
        reason = getattr(model, "not_local", None)
        raise ValueError(
            f"model must be local (have a receptive_field) for {what}, got {type(model).__name__}"
            + (f": {reason}" if reason else "")
        )
    return int(field)


def usable_device(device: torch.device | str | None) -> torch.device:
    """A device that can be computed on here; None is the CPU. Raises ValueError otherwise."""
    try:
        named = torch.device("cpu" if device is None else device)
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if named.type == "meta":
        raise ValueError("device 'meta' cannot be used here: it holds no numbers")
    return named


def check_sizes(model: Callable[..., Tensor], features: int, first_sample: int, *, batch: int, **counts: int) -> None:
    """Raise ValueError unless the sizes of what is asked of `model` are possible, by name."""
    check_at_least(1, features=features, **counts)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 0:
        raise ValueError(f"batch must be an int >= 0, got {batch!r}")
    if getattr(model, "features", features) != features:
        raise ValueError(f"features must be the model's {model.features}, got {features}")  # type: ignore[attr-defined]
    if isinstance(first_sample, bool) or not isinstance(first_sample, int) or not 0 <= first_sample <= 2**32 - batch:
        raise ValueError(f"first_sample must be from 0 to 2**32 - batch = {2**32 - batch}, got {first_sample!r}")


def conditions_of(model: Callable[..., Tensor], plan: Plan, device: torch.device) -> Tensor:
    """What the model is told of each step, made once: a row of its `conditions` where it has a method of that name (as
    WindowTransformer), which is all that it makes of a timestep; the timestep itself elsewhere."""
    timesteps = torch.tensor(plan.timesteps, device=device)
    return model.conditions(timesteps) if hasattr(model, "conditions") else timesteps


def call_model(model: Callable[..., Tensor], x: Tensor, told: Tensor, lengths: Tensor | None) -> Tensor:
    """The network's prediction for the state x (B, frames, features), in that shape; told: a row of `conditions_of`."""
    options = {} if lengths is None else {"lengths": lengths}
    if hasattr(model, "conditions"):
        return model(x.transpose(1, 2), conditions=told, **options).transpose(1, 2)
    return model(x.transpose(1, 2), told.expand(len(x)), **options).transpose(1, 2)


def pieces(x: Tensor, piece: int, field: int) -> Iterator[tuple[int, int, int, Tensor]]:
    """A state (B, frames, features) in pieces of `piece` frames, each with up to `field` frames beside it.

    Yields (begin, end, before, window): the piece is frames begin .. end of x, and frames `before` .. of the window,
    which holds the values of before any of them was overwritten: the caller may write a piece's frames of x when it
    has used the window. All windows are one piece of memory, made once: a window is gone with the next.
    """
    batch, frames, features = x.shape
    memory = x.new_empty(batch, min(piece + 2 * field, frames), features)
    left = x.new_empty(batch, field, features)
    before = 0
    for begin in range(0, frames, piece):
        end = min(begin + piece, frames)
        after = min(end + field, frames)
        window = memory[:, : before + after - begin]
        window[:, :before] = left[:, :before]
        window[:, before:] = x[:, begin:after]
        yield begin, end, before, window
        done = before + end - begin  # frames of the window up to the piece's end
        kept = min(field, done)
        left[:, :kept] = window[:, done - kept : done]
        before = kept


@torch.no_grad()
@remembering()
def sample(
    model: Callable[..., Tensor],
    shape: tuple[int, int, int],
    schedule: Schedule,
    *,
    sampler: str = "ddpm",
    steps: int | Sequence[int] | None = None,
    spacing: str = "trailing",
    prediction: str = "x0",
    variance: str = "fixed_small",
    eta: float | None = None,
    clip: float | None = None,
    seed: int | None = None,
    noise: Callable[[int], Tensor] | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    correct: Callable[[Tensor], Tensor] | None = None,
    guide: Callable[[Tensor, int, int], None] | None = None,
    lengths: Tensor | None = None,
    piece: int | None = None,
    graph: bool | None = None,
    graphs: GraphCache | None = None,
    device: torch.device | str | None = None,
    first_sample: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw motions from a network.

    Sample b of seed s is the same whatever else is in the batch (up to the rounding of the network's matrix products,
    which may group rows differently): its noise is `philox_normal`'s of (s, timestep, first_sample + b).

    A network that is local, which it says by an attribute `receptive_field` (the frames on each side that an output
    frame depends on), is given a long motion in pieces with their surroundings: memory is then that of one float32
    state, updated in place (two with "dpmpp_2m"), and the result is the same up to float rounding.

    Args:
        model: maps (B, features, frames) float32 and timesteps (B,) to its prediction, in eval mode; takes `lengths=`
            where given, and `conditions=` where it has a method of that name (`sinmdm.nn.WindowTransformer`).
        shape: (B, features, frames) of the result.
        schedule: the one the model was trained with.
        sampler: "ddpm" (Ho et al. 2020, algorithm 2), "ddim" (Song et al. 2021, eq. 12) or "dpmpp_2m" (Lu et al. 2022,
            algorithm 2).
        steps, spacing: the timesteps to visit, as `timesteps_visited`; default all.
        prediction: what the network gives: "x0", "epsilon" or "v".
        variance: of "ddpm": "fixed_small" or "fixed_large".
        eta: of "ddim": 0 (default) to 1, the share of fresh noise.
        clip: bound of |x0|.
        seed: 0 .. 2^64 - 1; this or `noise` must be given.
        noise: callable of the step (a timestep, or 0xFFFFFFFF for x_T) that gives (B, features, frames) normals.
        known, mask: at every step x0 <- known * mask + x0 * (1 - mask); known of `shape`, mask in [0, 1] broadcasting.
        correct: makes of the network's prediction (B, frames, features) of a step, which it may overwrite, the one that
            the step goes on with, before known and mask. It sees all frames: the motion is then in one piece.
        guide: called after each step with the new state (B, frames, features), which it may change in place, the
            timestep that the state is at, -1 for the clean one at the end, and the one that the step began at.
        lengths: (B,) int, real frames, handed to the model.
        piece: frames of a piece; default 2048 where the network is local and the motion longer than twice that,
            otherwise all. Needs a local network where it is less than the motion.
        graph: on CUDA, False to launch every kernel by itself; otherwise network and step are one CUDA graph where
            the noise is drawn from a seed, the motion is in one piece, and nothing corrects or guides.
        graphs: where captured graphs are kept for the next call of the same shape and seed.
        device: where to compute; default the CPU.
        first_sample: number of the batch's first sample.
        on_step: called after each step with the number of steps done.

    Returns:
        (B, features, frames) float32.

    Raises:
        ValueError, TypeError: an argument that is not as above, by name.
    """
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"shape must be (batch, features, frames), got {shape!r}")
    batch, features, frames = shape
    check_sizes(model, features, first_sample, batch=batch, frames=frames)
    if (seed is None) == (noise is None):
        raise ValueError("give either seed or noise, " + ("got neither" if seed is None else "not both"))
    if noise is not None and not callable(noise):
        raise ValueError(f"noise must be callable with a step, got {type(noise).__name__}")
    device = usable_device(device)
    plan = plan_steps(
        schedule, sampler=sampler, steps=steps, spacing=spacing, prediction=prediction, variance=variance, eta=eta,
        clip=clip,
    )  # fmt: skip
    if piece is None:
        local = getattr(model, "receptive_field", None) is not None and correct is None
        piece = PIECE if local and frames > 2 * PIECE else max(frames, 1)
    if isinstance(piece, bool) or not isinstance(piece, int) or piece < 1:
        raise ValueError(f"piece must be an int >= 1, got {piece!r}")
    if piece < frames:
        check_model(model, f"pieces of {piece} frames")
        if correct is not None:
            raise ValueError(f"piece must be all of the {frames} frames with correct, got {piece}")
    if lengths is not None:
        _check_lengths(lengths, batch, frames)
    known, mask = _blend(known, mask, shape, device)

    # Inside, states are (B, frames, features): the order in which the noise is numbered, and the network's own.
    def given(step: int) -> Tensor | None:
        if noise is None:
            return None
        drawn = noise(step)
        if tuple(drawn.shape) != tuple(shape):
            raise ValueError(f"noise must give {tuple(shape)}, got {tuple(drawn.shape)}")
        return drawn.to(device, torch.float32).transpose(1, 2)

    tensors = {"samples": torch.arange(first_sample, first_sample + batch, device=device)}
    start = given(INITIAL_STEP)
    if start is None:
        assert seed is not None
        x = philox_normal(
            (frames, features), seed=seed, step=INITIAL_STEP, sample=tensors["samples"], device=device
        )  # fmt: skip
    else:
        x = start.clone(memory_format=torch.contiguous_format)  # the state, which the steps overwrite
    tensors |= {"x": x, "coefficients": plan.coefficients.to(device), "told": conditions_of(model, plan, device)}
    tensors["words"] = torch.tensor(plan.timesteps, device=device)
    if plan.second_order:
        tensors["previous"] = torch.zeros_like(x)
    if known is not None and mask is not None:
        tensors |= {"known": known, "mask": mask}
    if lengths is not None:
        tensors["lengths"] = lengths.to(device)
    loop = _Loop(model, plan, tensors, seed, piece, correct)
    plain = correct is None and guide is None
    if graph is not False and device.type == "cuda" and noise is None and piece >= frames and plain:
        result = replay(loop.captured_step, model, tensors, len(plan), loop.constants, graphs, on_step)
        if result is not None:
            return result.transpose(1, 2)
    for i in range(len(plan)):
        loop.step(i, given(plan.timesteps[i]) if plan.draws and i + 1 < len(plan) else None)
        if guide is not None:
            guide(x, plan.timesteps[i + 1] if i + 1 < len(plan) else -1, plan.timesteps[i])
        if on_step is not None:
            on_step(i + 1)
    return x.transpose(1, 2)


class _Loop:
    """One run: what its steps work on (see `sample`), and the steps."""

    def __init__(
        self, model: Callable[..., Tensor], plan: Plan, tensors: dict[str, Tensor], seed: int | None, piece: int,
        correct: Callable[[Tensor], Tensor] | None,
    ) -> None:  # fmt: skip
        self.model, self.plan, self.tensors, self.seed, self.piece = model, plan, tensors, seed, piece
        self.correct = correct

    @property
    def constants(self) -> tuple[Any, ...]:
        """What a captured step has built in, beside its tensors."""
        training = getattr(self.model, "training", None)
        cast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        return self.seed if self.plan.draws else None, self.plan.draws, self.plan.clips, training, cast

    def step(self, i: int, fresh: Tensor | None) -> None:
        """Step number i of the plan."""
        rows = {name: self.tensors[name][i : i + 1] for name in ("coefficients", "told", "words")}
        x, lengths = self.tensors["x"], self.tensors.get("lengths")
        frames = x.shape[1]
        if self.piece >= frames:
            predicted = call_model(self.model, x, rows["told"], lengths)
            if self.correct is not None:
                predicted = self.correct(predicted)
            self._write(self.tensors, rows, 0, frames, predicted, fresh)
            return
        field = check_model(self.model, f"pieces of {self.piece} frames")
        for begin, end, before, window in pieces(x, self.piece, field):
            here = None if lengths is None else (lengths - (begin - before)).clamp(0, window.shape[1])
            predicted = call_model(self.model, window, rows["told"], here)[:, before : before + end - begin]
            self._write(self.tensors, rows, begin, end, predicted, fresh)
            del predicted  # before the next call allocates its own

    def captured_step(self, tensors: dict[str, Tensor], cursor: Tensor) -> None:
        """The step whose number is in `cursor` (1,), with nothing that the host would have to know."""
        rows = {name: tensors[name].index_select(0, cursor) for name in ("coefficients", "told", "words")}
        x = tensors["x"]
        # Autocast's cache would have the graph read casts of the weights that are gone when it is replayed.
        cast = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=cast, cache_enabled=False):
            predicted = call_model(self.model, x, rows["told"], tensors.get("lengths"))
        self._write(tensors, rows, 0, x.shape[1], predicted, None)

    def _write(
        self, tensors: dict[str, Tensor], rows: dict[str, Tensor], begin: int, end: int, predicted: Tensor,
        fresh: Tensor | None,
    ) -> None:  # fmt: skip
        """The step of frames begin .. end, in place."""

        def part(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[1] == 1 else x[:, begin:end]

        x, previous = tensors["x"][:, begin:end], part(tensors.get("previous"))
        affine_step(
            x, predicted, rows["coefficients"], previous_x0=previous, known=part(tensors.get("known")),
            mask=part(tensors.get("mask")), noise=part(fresh), clips=self.plan.clips,
            seed=self.seed if self.plan.draws else None, step=rows["words"].expand(len(x)), sample=tensors["samples"],
            frame=begin, out=x, x0_out=previous,
        )  # fmt: skip


def _check_lengths(lengths: Tensor, batch: int, frames: int) -> None:
    if not isinstance(lengths, Tensor) or lengths.shape != (batch,) or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths must be an int32 or int64 tensor (batch,) = ({batch},), got {lengths!r}")
    if lengths.device.type == "cpu" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= frames:
        raise ValueError(f"lengths must be from 0 to {frames}, got values from {lengths.min()} to {lengths.max()}")


def _blend(
    known: Tensor | None, mask: Tensor | None, shape: tuple[int, int, int], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """known (B, frames, features), and mask in three dimensions that broadcast to that, on the device."""
    if (known is None) != (mask is None):
        raise ValueError("known and mask must be given together")
    if known is None or mask is None:
        return None, None
    if tuple(known.shape) != tuple(shape):
        raise ValueError(f"known must have shape {tuple(shape)}, got {tuple(known.shape)}")
    try:
        mask.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"mask must broadcast to {tuple(shape)}, got {tuple(mask.shape)}") from error
    check_mask(mask)
    mask = mask.to(device, torch.float32).reshape((1,) * (3 - mask.dim()) + tuple(mask.shape))
    return known.to(device, torch.float32).transpose(1, 2), mask.transpose(1, 2)
