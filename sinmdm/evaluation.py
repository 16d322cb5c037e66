"""The table that judges a run: samples beside baselines that learnt nothing, all measured in the same way.

No single number tells a good model. A frozen mean pose passes coverage at the published threshold, in gentle clips even
at half of it, noise passes all but energy, and a copy of the clip all but diversity. So each row has many measures, to
be read beside the baselines'; :data:`DEFINITIONS` says what each is.

Nearly all look at joint rotations: of each joint the first two rows of its local rotation matrix, 6 numbers a joint
(frames, 6 joints), joint-major, at no more than 30 frames a second. A run on an array is measured on its features as
they are. Where there is a body, its root and its feet are measured, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import metrics
from .evaluation_body import body_of
from .evaluation_table import (
    COVERAGES,
    CURVE_STEPS,
    DEFINITIONS,
    MAIN,
    MAX_FPS,
    MEASURES,
    PUBLISHED_THRESHOLD,
    SHORT_WINDOW,
    STRICT_THRESHOLD,
    WINDOW,
    Part,
    Row,
    Spread,
    format_definitions,
    format_table,
    spread_of,
    to_json,
)
from .metrics import WindowDistances
from .motion import Clip, Motion
from .motion.rigs import MIXAMO_JOINTS
from .motion.rotations import from_6d
from .run import Run

__all__ = [
    "DEFINITIONS",
    "MAIN",
    "MIXAMO_JOINTS",
    "Part",
    "Row",
    "Spread",
    "baseline_rows",
    "check_measurable",
    "check_sample",
    "evaluate_features",
    "evaluate_rotations",
    "evaluate_run",
    "format_definitions",
    "format_table",
    "main_measures",
    "motion_features",
    "rotation_features",
    "scale_of",
    "select_joints",
    "to_json",
]

NOISE = 0.05  # of the noisy baseline, in a rotation's numbers


def select_joints(names: Sequence[str]) -> list[int]:
    """Indices into `names` of the joints to judge.

    For a Mixamo rig the 24 of :data:`MIXAMO_JOINTS`, in that order; for any other skeleton all joints, in theirs.
    A skeleton is a Mixamo rig when all 24 are among its names, each name stripped up to and including its first ':'.
    """
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        indices.setdefault(name.split(":", 1)[-1], index)
    if all(name in indices for name in MIXAMO_JOINTS):
        return [indices[name] for name in MIXAMO_JOINTS]
    return list(range(len(names)))


def rotation_features(clip: Clip) -> Tensor:
    """Rotation features of a clip: float64 (frames, 6 joints), no more than 30 frames a second.

    Joints are those of :func:`select_joints`; each gives R00, R01, R02, R10, R11, R12 of its local rotation matrix.
    """
    rotations = clip.thin(max_fps=MAX_FPS).rotations()
    return rotations[:, select_joints(clip.names), :2].flatten(1)


def motion_features(motion: Motion) -> Tensor:
    """What is measured of a motion: a clip's `rotation_features`, an array's own features in float64."""
    return rotation_features(motion) if isinstance(motion, Clip) else motion.detach().to("cpu", torch.float64)


def scale_of(motion: Motion) -> float:
    """The scale of the thresholds of coverage for a clip or an array (frames, features) that samples are held against.

    For a clip the square root of joints / 24: distances grow so with the number of joints, and at 24 the thresholds are
    1 and the published 2. That was set for 168 features, 24 of them of foot contacts, which are left out here, so that
    distances are smaller than the published ones and more is covered. For an array, whose units are not known, half the
    root of its features' summed variances: at twice the scale a motion passes that stands at the mean; 1 where they
    never change.
    """
    if isinstance(motion, Clip):
        return math.sqrt(len(select_joints(motion.names)) / len(MIXAMO_JOINTS))
    return motion_features(motion).var(dim=0, correction=0).sum().sqrt().item() / 2 or 1.0


def check_measurable(motion: Motion, frames: int | None = None) -> None:
    """Raise ValueError where a motion, or samples of so many of its frames, are too short to be measured."""
    step = round(motion.fps / motion.thin(MAX_FPS).fps) if isinstance(motion, Clip) else 1
    rate = f" at {MAX_FPS} a second" if isinstance(motion, Clip) else ""
    for name, count in (("frames", frames), ("the clip's length", len(motion))):
        if count is not None and math.ceil(count / step) <= WINDOW:
            raise ValueError(f"{name} must be more than {WINDOW} frames{rate} to be measured, got {count / step:g}")


def check_sample(motion: Motion, own: Motion, name: str) -> None:
    """Raise ValueError, which begins with `name`, where a motion cannot be held against a run's own motion.

    It must be a clip of the same skeleton and, thinned to 30, of the same frames a second; or an array of as many
    features; of 30 frames or more.
    """
    if isinstance(own, Clip):
        if not isinstance(motion, Clip):
            raise ValueError(f"{name} is an array, must be a clip of the skeleton that the run was trained on")
        if (motion.names, motion.parents) != (own.names, own.parents):
            raise ValueError(f"{name} has another skeleton than the run's clip")
        fps, own_fps = motion.thin(MAX_FPS).fps, own.thin(MAX_FPS).fps
        if abs(fps / own_fps - 1) > 0.01:
            raise ValueError(f"{name} has {fps:g} frames a second where the run's clip has {own_fps:g}")
    elif isinstance(motion, Clip) or motion.shape[1:] != own.shape[1:]:
        raise ValueError(f"{name} must be an array of the run's {own.shape[1]} features")
    frames = len(motion.thin(MAX_FPS) if isinstance(motion, Clip) else motion)
    if frames < WINDOW:
        rate = f" at {MAX_FPS} a second or less" if isinstance(motion, Clip) else ""
        raise ValueError(f"{name} must have at least {WINDOW} frames{rate} to be measured, got {frames}")


def baseline_rows(clip: Tensor, frames: int, n: int, *, noise: float = NOISE, seed: int = 0) -> dict[str, Tensor]:
    """Rows that any model has to beat, or that show what a metric misses.

    Args:
        clip: rotation features (clip_frames, features).
        frames: frames of a sample, at least 1.
        n: number of noisy copies, at least 1; the other rows are one sample each.
        noise: standard deviation of the noise, in the features' units.
        seed: of the noise.

    Returns:
        By name: the clip's mean features held for `frames`, (1, frames, features); the clip backwards,
        (1, clip_frames, features); its first half twice; and the clip, looped to `frames`, with noise,
        (n, frames, features). All in the clip's dtype.

    Raises:
        ValueError: clip is not (frames, features) of 2 frames or more, or frames or n is below 1.
    """
    if clip.ndim != 2 or clip.shape[0] < 2:
        raise ValueError(f"clip must be (frames, features) of at least 2 frames, not of shape {tuple(clip.shape)}")
    for name, count in (("frames", frames), ("n", n)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    looped = clip[torch.arange(frames, device=clip.device) % len(clip)]
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn((n, *looped.shape), generator=generator, dtype=clip.dtype)
    return {
        "frozen mean pose": clip.mean(dim=0).repeat(1, frames, 1),
        "clip reversed": clip.flip(0)[None],
        "first half twice": clip[: len(clip) // 2].repeat(1, 2, 1),
        f"clip + noise {noise:.2g}": looped + noise * normals.to(clip.device),
    }


def evaluate_rotations(
    rows: Mapping[str, Tensor | Sequence[Tensor]], clip: Tensor, joints: int = len(MIXAMO_JOINTS)
) -> list[Row]:
    """Measure each row's samples against the clip, in the order of `rows`; :data:`DEFINITIONS` says what is measured.

    Args:
        rows: by name, samples (n, frames, 6 joints), or a sequence of (frames, 6 joints) of any lengths.
        clip: rotation features (clip_frames, 6 joints), more than 30 frames.
        joints: number of joints; thresholds grow with its square root, as distances do (see `scale_of`).

    Raises:
        ValueError: the clip has not 6 features a joint, a row has no samples, or one is too short or of another
            feature count; the message names the row.
    """
    if clip.ndim != 2 or joints < 1 or clip.shape[1] != 6 * joints:
        raise ValueError(f"clip must be (frames, {6 * joints}) for {joints} joints, not of shape {tuple(clip.shape)}")
    scale = math.sqrt(joints / len(MIXAMO_JOINTS))
    return evaluate_features(rows, clip, scale, [f"joint {joint}" for joint in range(joints)])


def evaluate_features(
    rows: Mapping[str, Tensor | Sequence[Tensor]],
    clip: Tensor,
    scale: float,
    parts: Sequence[str],
    on_sample: Callable[[], None] | None = None,
) -> list[Row]:
    """As `evaluate_rotations`, of any features: all measures but those of a body.

    Args:
        rows, clip: as there, with any number of features.
        scale: as `scale_of` gives it.
        parts: names of as many equal parts of the features, one after the other: joints, or single features.
        on_sample: called for each sample once it is measured; those of one length are measured together.

    Raises:
        ValueError: as there.
    """
    if clip.ndim != 2 or not parts or clip.shape[1] % len(parts):
        raise ValueError(f"clip must be (frames, features in {len(parts)} parts), not of shape {tuple(clip.shape)}")
    table: list[Row] = []
    for name, samples in rows.items():
        if len(samples) == 0:
            raise ValueError(f"row {name!r} must have at least one sample, not 0")
        try:
            table.append(_row(name, samples, clip, scale, parts, on_sample))
        except ValueError as error:
            raise ValueError(f"row {name!r}: {error}") from error
    return table


def main_measures(samples: Sequence[Tensor], clip: Tensor, scale: float) -> dict[str, float]:
    """The measures of :data:`MAIN`, each the mean over samples (frames, features): what a training is watched by."""
    measured = [_main(group, clip, scale)[0] for group in _alike(samples)]
    return {key: torch.cat([values[key] for values in measured]).mean().item() for key in MAIN}


def _alike(samples: Iterable[Tensor]) -> list[Tensor]:
    """The samples (frames, features), those of one length together: (n, frames, features) each, shorter ones first."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for sample in samples:
        groups.setdefault(sample.shape, []).append(sample)
    return [torch.stack(groups[shape]) for shape in sorted(groups)]


def _main(samples: Tensor, clip: Tensor, scale: float) -> tuple[dict[str, Tensor], WindowDistances]:
    """The measures of MAIN for samples (n, frames, features), (n,) float64 each, and the searches behind them."""
    found = metrics.window_distances(samples, clip, window=WINDOW)
    values = {
        "coverage_strict": found.coverage(STRICT_THRESHOLD * scale),
        "coverage_area": found.coverage_area(PUBLISHED_THRESHOLD * scale),
        "clip_to_sample": found.clip_to_samples.mean(dim=1),
        "sample_to_clip": found.samples_to_clip.mean(dim=1),
        "global_diversity": found.global_diversity,
        "energy": metrics.energy(samples) / metrics.energy(clip),
    }
    return {key: value.double() for key, value in values.items()}, found


def _overall(values: Mapping[str, Tensor], scale: float) -> Tensor:
    """The harmonic mean of each sample's three scores; NaN where it could not be rebuilt from the clip."""
    diversity, energy = values["global_diversity"] / scale, values["energy"]
    mean = metrics.harmonic_mean(
        values["coverage_strict"], diversity.clamp(max=1), torch.minimum(energy, energy.reciprocal())
    )
    return mean.where(diversity.isfinite(), math.nan)


def _row(
    name: str,
    samples: Tensor | Sequence[Tensor],
    clip: Tensor,
    scale: float,
    parts: Sequence[str],
    on_sample: Callable[[], None] | None,
) -> Row:
    steps = torch.arange(round(PUBLISHED_THRESHOLD * CURVE_STEPS) + 1, dtype=torch.float64) / CURVE_STEPS * scale
    every: dict[str, list[float]] = {}
    curves, distributions = [], []
    for group in _alike(samples):
        values, found = _main(group, clip, scale)
        # One by one, as each takes the memory of its sorted values and of the clip's.
        distribution = torch.cat([metrics.distribution_distance(sample[None], clip) for sample in group])
        values |= {
            "coverage_published": found.coverage(PUBLISHED_THRESHOLD * scale),
            "local_diversity": metrics.local_diversity(group, clip, window=SHORT_WINDOW),
            "harmonic_mean": _overall(values, scale),
            "distribution": distribution.mean(dim=1),
            **_of_pairs(group.double(), clip),
        }
        for key, numbers in values.items():
            every.setdefault(key, []).extend(numbers.tolist())
        curves.append(found.coverage_curve(steps))
        distributions.append(distribution.unflatten(1, (len(parts), -1)).mean(dim=2))
        for _ in group:
            if on_sample is not None:
                on_sample()
    return {
        "name": name,
        "frames": [len(sample) for sample in samples],
        "thresholds": {key: threshold * scale for key, threshold in COVERAGES.items()},
        "values": {key: spread_of(every[key]) for key in MEASURES if key in every},
        "coverage_curve": {"thresholds": steps.tolist(), "values": torch.cat(curves).mean(dim=0).tolist()},
        "distribution_parts": [
            {"name": part, **spread_of(numbers)}
            for part, numbers in zip(parts, torch.cat(distributions).T.tolist(), strict=True)
        ],
    }


def _of_pairs(samples: Tensor, clip: Tensor) -> dict[str, Tensor]:
    """Inter and intra diversity of samples (n, frames, features), as published; inter diversity of two or more only."""
    found = {
        "intra_diversity": metrics.intra_diversity(samples, window=SHORT_WINDOW),
        "intra_diversity_difference": metrics.intra_diversity_difference(samples, clip, window=SHORT_WINDOW),
    }
    return found if len(samples) == 1 else found | {"inter_diversity": metrics.inter_diversity(samples)}


def untrained(run: Run) -> Run:
    """The same run before its first step, with weights of a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = run.preset.build(run.layout.size)
    return replace(run, network=network.eval())


def evaluate_run(
    run: Run,
    samples: Sequence[Motion] | None = None,
    *,
    frames: int | None = None,
    n: int = 4,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Row], Tensor]:
    """Rows for samples of a run, an untrained model and the baselines.

    Args:
        run: a run; of one that was trained on an array the features are measured, and of a body nothing but, in
            HumanML3D features, the feet.
        samples: motions of the run's skeleton and rate, or arrays of its features; default `n` new ones.
        frames: length of new samples, default twice the clip's.
        n, seed, device: of new samples.
        on_progress: called with ("sampling", steps done, steps in all), then ("measuring", samples done, in all).

    Returns:
        The rows, and the clip's features, as `to_json` takes them. `foot_sliding` is among the values where the clip
        has feet, and where the features are HumanML3D's.

    Raises:
        ValueError: the clip or what is to be sampled is too short, or a sample is none of the run's (`check_sample`).
    """
    length = frames or 2 * len(run.motion)
    check_measurable(run.motion, length)
    calls = 1 if samples is not None else 2

    def report(call: int) -> Callable[[int, int], None] | None:
        if on_progress is None:
            return None
        return lambda done, total: on_progress("sampling", call * total + done, calls * total)

    for index, motion in enumerate(samples or ()):
        check_sample(motion, run.motion, f"sample {index}")
    if samples is None:
        samples = run.sample(length, n, seed=seed, device=device, on_step=report(0))
    blank = untrained(run).sample(length, 1, seed=seed, device=device, on_step=report(calls - 1))
    motions: dict[str, Sequence[Motion]] = {"samples": samples, "untrained model": blank}
    rows: dict[str, Sequence[Tensor]] = {name: [motion_features(m) for m in own] for name, own in motions.items()}
    for name, (features, baseline) in _baselines(run.motion).items():
        rows[name], motions[name] = [features], [baseline]
    total, done = sum(map(len, rows.values())), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress("measuring", done, total)

    clip, scale = motion_features(run.motion), scale_of(run.motion)
    if isinstance(run.motion, Clip):
        parts = [run.motion.names[joint] for joint in select_joints(run.motion.names)]
    else:
        parts = [f"feature {index}" for index in range(clip.shape[1])]
    table, body = evaluate_features(rows, clip, scale, parts, one_more), body_of(run.layout, run.motion)
    for row in table:
        if body is not None:
            body.add_to(row, motions[row["name"]])
    return table, clip


def _baselines(motion: Motion) -> dict[str, tuple[Tensor, Motion]]:
    """`baseline_rows` of a run's motion, twice its length: by name the features to measure, and the motion itself.

    A clip's rotations are changed, those of all its joints, and its translations with them, which get no noise.
    """
    if not isinstance(motion, Clip):
        array = motion_features(motion)
        # In the relation to the scale that it has for rotations.
        noise = NOISE * math.sqrt(6 * len(MIXAMO_JOINTS) / array.shape[1]) * scale_of(motion)
        return {name: (rows[0], rows[0]) for name, rows in baseline_rows(array, 2 * len(array), 1, noise=noise).items()}
    clip = motion.thin(MAX_FPS)
    turned = baseline_rows(clip.rotations()[:, :, :2].flatten(1), 2 * len(clip), 1)
    placed = baseline_rows(clip.translations().flatten(1), 2 * len(clip), 1, noise=0.0)
    found: dict[str, tuple[Tensor, Motion]] = {}
    for (name, rotations), translations in zip(turned.items(), placed.values(), strict=True):
        numbers = rotations[0].unflatten(1, (-1, 6))
        # Rows of a matrix are columns of its transpose.
        body = Clip.from_motion(
            clip.skeleton, from_6d(numbers).mT, translations[0].unflatten(1, (-1, 3)), clip.frame_time
        )
        found[name] = numbers[:, select_joints(clip.names)].flatten(1), body
    return found
