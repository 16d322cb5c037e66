"""What an edit is: the features that are given, where they are, and what the motion has to meet; and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_at_least
from ..diffusion import plan_steps, sample
from ..diffusion.circular import Circular
from ..kernels.philox import check_seed
from ..motion import Clip, Layout, Motion
from ..run import Run, default_batch, device_named, named_out_of_memory
from .harmony import Harmony
from .meeting import Meeting, Meets
from .settling import Settling


class EditError(ValueError):
    """An edit that cannot be made; the message names what was asked and what is possible."""


@dataclass(frozen=True, eq=False)
class Edit:
    """What is given of a motion; `apply` makes the rest.

    layout: decodes the result, from where it begins.
    known: (frames, size) float32, the given features, in the motion's own units; what is not given may be anything.
    mask: (frames, size) float32 in [0, 1]: 1 where the given value stays as it is, 0 where all is generated, between
        them a transition (Raab et al. 2024, applications; the blend is of the predicted x0 at every step).
    meets: the places (and headings) to arrive at, one for each of `layout.paths`.
    place: a frame of the result and the x and z, in the motion file's units, that its root has there; None: the motion
        begins where `layout` says.
    circular: whether the first frame follows the last.
    harmony: the motion whose slow content the result takes over, if any.
    seams: frames before which generated and given frames meet.
    settles: whether generated frames go on from the given ones without a jump (`Settling`).
    """

    layout: Layout
    known: Tensor
    mask: Tensor
    meets: tuple[Meets, ...] = ()
    place: tuple[int, tuple[float, float]] | None = None
    circular: bool = False
    harmony: Harmony | None = None
    seams: tuple[int, ...] = ()
    settles: bool = False

    def __post_init__(self) -> None:
        if self.known.shape != self.mask.shape or self.known.shape[1:] != (self.layout.size,):
            raise EditError(
                f"known {tuple(self.known.shape)} and mask {tuple(self.mask.shape)} must be alike, "
                f"(frames, {self.layout.size})"
            )
        if bool((self.mask == 1).all()):
            raise EditError("mask must leave something to generate, but everything is given")

    def __len__(self) -> int:
        return len(self.known)

    @property
    def given(self) -> np.ndarray:
        """(frames, J) bool: joints whose pose is all as given. One without features goes with its parent."""
        if self.layout.hierarchy is None:
            raise EditError("given joints are those of a motion with joints, and this one is an array")
        _, parents = self.layout.hierarchy
        kept = (self.mask == 1) | ~self._posing
        columns: list[Tensor] = []
        for own, parent in zip(self.layout.joint_features, parents, strict=True):
            columns.append(kept[:, own].all(1) if bool(self._posing[own].any()) else columns[parent])
        return torch.stack(columns, 1).numpy()

    @property
    def given_frames(self) -> Tensor:
        """(frames,) bool: the frames whose pose is all as given."""
        return ((self.mask == 1) | ~self._posing).all(1)

    @property
    def _posing(self) -> Tensor:
        """(size,) bool: the features that make the pose, and not the way."""
        out = torch.ones(self.layout.size, dtype=torch.bool)
        for path in self.layout.paths:
            out[path.features] = False
        return out


def apply(
    run: Run,
    edit: Edit,
    n: int = 1,
    *,
    seed: int = 0,
    sampler: str = "ddpm",
    steps: int | Sequence[int] | None = None,
    spacing: str = "trailing",
    eta: float | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Motion]:
    """Motions made of an edit, each its own way of filling what is not given.

    Args:
        run: the model.
        edit: what is given, made for this run.
        n, seed, sampler, steps, spacing, eta, batch_size, device, on_step: as `Run.features`. An edit with places to
            meet, seams or a circle is made in one piece: its memory grows with its length.

    Returns:
        n motions.

    Raises:
        ValueError: an argument that is not as above.
    """
    options = {"sampler": sampler, "steps": steps, "spacing": spacing, "eta": eta}
    made = features(run, edit, n, seed=seed, batch_size=batch_size, device=device, on_step=on_step, **options)
    return [decoded(edit, x) for x in made]


def features(
    run: Run,
    edit: Edit,
    n: int = 1,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    on_step: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Tensor]:
    """As `apply`, but features (frames, size) float32, in the motion's own units; where `mask` is 1, `known`."""
    batch_size = default_batch(len(edit)) if batch_size is None else batch_size
    check_at_least(1, n=n, batch_size=batch_size)
    check_seed(seed)
    if (edit.layout.kind, edit.layout.size) != (run.layout.kind, run.layout.size):
        raise EditError(
            f"edit must be one of this run: it has {edit.layout.size} features of {edit.layout.kind!r}, the run "
            f"{run.layout.size} of {run.layout.kind!r}"
        )
    where = device_named(device)
    normalizer = run.normalizer.to(where)
    known, mask = normalizer.apply(edit.known.to(where)), edit.mask.to(where)
    plan = plan_steps(run.schedule, variance=run.preset.variance, **options)
    network: Any = run.network.to(where).eval()
    network = Circular(network) if edit.circular else network
    settling = Settling(known, mask, edit.given_frames) if edit.settles else None
    meeting = Meeting(edit.layout.paths, edit.meets, known, mask, normalizer, edit.circular) if edit.meets else None

    def correct(predicted: Tensor) -> Tensor:
        predicted = predicted if settling is None else settling(predicted)
        return predicted if meeting is None else meeting(predicted)

    begins = range(0, n, batch_size)
    out: list[Tensor] = []
    for number, begin in enumerate(begins):
        count = min(batch_size, n - begin)
        shape = (count, edit.layout.size, len(edit))

        def report(done: int, number: int = number) -> None:
            if on_step is not None:
                on_step(number * len(plan) + done, len(begins) * len(plan))

        blend: dict[str, Any] = {"known": known.T.expand(shape), "mask": mask.T} if bool(mask.any()) else {}
        guide = None
        if edit.harmony is not None:
            guide = edit.harmony.guide(run.schedule, normalizer, seed=seed, first_sample=begin, count=count)
        with named_out_of_memory(shape):
            x = sample(
                network, shape, run.schedule, seed=seed, device=where, first_sample=begin,
                graphs=None if edit.circular else run.graphs,  # a circle's network is made for one call
                on_step=report, variance=run.preset.variance, correct=correct if settling or meeting else None,
                guide=guide, **blend, **options,
            )  # fmt: skip
        raw = normalizer.invert(x.mT).cpu()
        # The normaliser's rounding would show in what was given: that is put back as it was.
        out += torch.where(edit.mask == 1, edit.known, raw)
    return out


def decoded(edit: Edit, x: Tensor) -> Motion:
    """The motion of an edit's features (frames, size), at its place."""
    motion = edit.layout.decode(x)
    if edit.place is None or not isinstance(motion, Clip):
        return motion
    frame, place = edit.place
    begin, now = motion.slice(0, 1).translations()[0, 0], motion.slice(frame, frame + 1).translations()[0, 0]
    if not {"Xposition", "Zposition"} <= set(motion.skeleton.channels[0]):
        return motion
    return motion.placed(float(begin[0] - now[0]) + place[0], float(begin[2] - now[2]) + place[1])
