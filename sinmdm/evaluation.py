"""The table that judges a run: samples beside baselines that learnt nothing, all measured in the same way.

No single number tells a good model. A frozen mean pose passes coverage at the published threshold, in gentle clips even
at half of it, noise passes all but energy, and a copy of the clip all but diversity. So each row has coverage at both
thresholds, the mean nearest-window distance both ways, global diversity and energy, to be read beside the baselines'.

Only joint rotations are judged: of each joint the first two rows of its local rotation matrix, 6 numbers a joint
(frames, 6 joints), joint-major, at no more than 30 frames a second.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from .metrics import coverage, energy, global_diversity, nearest_window_distance
from .motion import Clip, Motion
from .motion.rigs import MIXAMO_JOINTS
from .run import Run

__all__ = [
    "DEFINITIONS",
    "MIXAMO_JOINTS",
    "Row",
    "Spread",
    "baseline_rows",
    "evaluate_rotations",
    "evaluate_run",
    "format_table",
    "rotation_features",
    "select_joints",
    "to_json",
]

MAX_FPS = 30
WINDOW = 30
PUBLISHED_THRESHOLD = 2.0
STRICT_THRESHOLD = 1.0

DEFINITIONS = {
    "coverage_strict": f"share of the clip's {WINDOW}-frame windows whose nearest sample window lies at a mean frame "
    f"distance below {STRICT_THRESHOLD} sqrt(joints / {len(MIXAMO_JOINTS)}); the last window is left out",
    "coverage_published": f"the same, below {PUBLISHED_THRESHOLD} sqrt(joints / {len(MIXAMO_JOINTS)})",
    "clip_to_sample": f"mean over the clip's {WINDOW}-frame windows of the mean frame distance to the nearest sample "
    "window: what the sample leaves out",
    "sample_to_clip": "the same from the sample's windows to the clip's: what the sample invents",
    "global_diversity": f"mean frame distance of the sample to its best rebuilding from pieces of the clip of {WINDOW} "
    "frames or more: 0 is a copy",
    "energy": "mean norm of the second difference over frames, divided by the clip's: 0 is frozen, 1 moves as the clip",
}


class Spread(TypedDict):
    """Mean over a row's samples and population standard deviation, None where there is but one sample."""

    mean: float
    std: float | None


class Row(TypedDict):
    """One row of the table: frames of each sample, thresholds of both coverages, a spread for each definition."""

    name: str
    frames: list[int]
    thresholds: dict[str, float]
    values: dict[str, Spread]


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


def baseline_rows(clip: Tensor, frames: int, n: int, *, noise: float = 0.05, seed: int = 0) -> dict[str, Tensor]:
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
        f"clip + noise {noise:g}": looped + noise * normals.to(clip.device),
    }


def evaluate_rotations(
    rows: Mapping[str, Tensor | Sequence[Tensor]], clip: Tensor, joints: int = len(MIXAMO_JOINTS)
) -> list[Row]:
    """Measure each row's samples against the clip, in the order of `rows`; :data:`DEFINITIONS` says what is measured.

    Args:
        rows: by name, samples (n, frames, 6 joints), or a sequence of (frames, 6 joints) of any lengths.
        clip: rotation features (clip_frames, 6 joints), more than 30 frames.
        joints: number of joints; thresholds grow with its square root, as distances do, and are the published ones
            at 24.

    Raises:
        ValueError: the clip has not 6 features a joint, a row has no samples, or one is too short or of another
            feature count; the message names the row.
    """
    if clip.ndim != 2 or joints < 1 or clip.shape[1] != 6 * joints:
        raise ValueError(f"clip must be (frames, {6 * joints}) for {joints} joints, not of shape {tuple(clip.shape)}")
    scale = math.sqrt(joints / len(MIXAMO_JOINTS))
    thresholds = {"coverage_strict": STRICT_THRESHOLD * scale, "coverage_published": PUBLISHED_THRESHOLD * scale}
    table: list[Row] = []
    for name, samples in rows.items():
        if len(samples) == 0:
            raise ValueError(f"row {name!r} must have at least one sample, not 0")
        try:
            measured = [_measure(sample, clip, thresholds) for sample in samples]
        except ValueError as error:
            raise ValueError(f"row {name!r}: {error}") from error
        values = {key: _spread(sample[key] for sample in measured) for key in DEFINITIONS}
        frames = [len(sample) for sample in samples]
        table.append({"name": name, "frames": frames, "thresholds": dict(thresholds), "values": values})
    return table


def format_table(rows: Sequence[Row]) -> str:
    """The table as aligned plain text: a line a row, mean ± deviation where a row has more than one sample.

    Coverage is in percent, with its threshold in the heading; '-' stands for a number that is not finite.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one row, not 0")
    thresholds = rows[0]["thresholds"]
    columns = [[row["name"] for row in rows]]
    headings = [""]
    for key in DEFINITIONS:
        headings.append(f"coverage < {thresholds[key]:.3g}" if key in thresholds else key.replace("_", " "))
        columns.append([_cell(row["values"][key], percent=key in thresholds) for row in rows])
    aligned = []
    for heading, column in zip(headings, columns, strict=True):
        width = max(map(len, [heading, *column]))
        align = str.rjust if heading else str.ljust
        aligned.append([align(cell, width) for cell in [heading, *column]])
    return "\n".join("  ".join(line) for line in zip(*aligned, strict=True))


def to_json(rows: Sequence[Row], clip: Tensor) -> dict[str, Any]:
    """What `json.dumps` takes: the rows, the definitions, and of the clip (frames, features) its frames and energy.

    Coverage is a fraction. A number that is not finite is None, as JSON has none.
    """
    return {
        "definitions": dict(DEFINITIONS),
        "window": WINDOW,
        "clip": {"frames": len(clip), "energy": _finite(energy(clip).item())},
        "rows": [
            {
                **row,
                "values": {
                    key: {"mean": _finite(value["mean"]), "std": _finite(value["std"])}
                    for key, value in row["values"].items()
                },
            }
            for row in rows
        ],
    }


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
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], Tensor]:
    """Rows for samples of a run, an untrained model and the baselines.

    Args:
        run: a run trained on a clip with joints.
        samples: clips of the run's skeleton; default `n` new ones.
        frames: length of new samples, default twice the clip's.
        n, seed, device: of new samples.
        on_step: called with (steps done, steps in all) while sampling.

    Returns:
        The rows, and the clip's rotation features, as `to_json` takes them.

    Raises:
        ValueError: the run was trained on an array, which has no rotations to measure, or a sample has another
        skeleton.
    """
    if not isinstance(run.motion, Clip):
        raise ValueError("the measures are of joint rotations, and this run was trained on an array")
    clip = rotation_features(run.motion)
    length = frames or 2 * len(run.motion)
    thinned = length / round(run.motion.fps / run.motion.thin(MAX_FPS).fps)
    for name, count in (("frames", thinned), ("the clip's length", len(clip))):
        if count <= WINDOW:
            raise ValueError(f"{name} must be more than {WINDOW} frames at {MAX_FPS} a second, got {count:g}")
    calls = 1 if samples is not None else 2

    def report(call: int) -> Callable[[int, int], None] | None:
        return None if on_step is None else lambda done, total: on_step(call * total + done, calls * total)

    if samples is None:
        samples = run.sample(length, n, seed=seed, device=device, on_step=report(0))
    rotations = []
    for index, motion in enumerate(samples):
        if not isinstance(motion, Clip) or motion.names != run.motion.names or motion.parents != run.motion.parents:
            raise ValueError(f"sample {index} has another skeleton than the run's clip")
        rotations.append(rotation_features(motion))
    blank = untrained(run).sample(length, 1, seed=seed, device=device, on_step=report(calls - 1))
    rows: dict[str, Tensor | Sequence[Tensor]] = {
        "samples": rotations,
        "untrained model": [rotation_features(motion) for motion in blank if isinstance(motion, Clip)],
        **baseline_rows(clip, 2 * len(clip), 1),
    }
    return evaluate_rotations(rows, clip, joints=clip.shape[1] // 6), clip


def _measure(sample: Tensor, clip: Tensor, thresholds: Mapping[str, float]) -> dict[str, float]:
    """The values of one sample (frames, features), by the keys of DEFINITIONS."""
    samples = sample[None]
    values = {key: coverage(samples, clip, window=WINDOW, threshold=threshold) for key, threshold in thresholds.items()}
    values["clip_to_sample"] = nearest_window_distance(clip, sample, window=WINDOW).mean()
    values["sample_to_clip"] = nearest_window_distance(sample, clip, window=WINDOW).mean()
    values["global_diversity"] = global_diversity(samples, clip, min_window=WINDOW)
    values["energy"] = energy(sample) / energy(clip)
    return {key: value.item() for key, value in values.items()}


def _spread(values: Iterable[float]) -> Spread:
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return {"mean": tensor.mean().item(), "std": tensor.std(correction=0).item() if len(tensor) > 1 else None}


def _cell(value: Spread, percent: bool) -> str:
    def text(number: float) -> str:
        if not math.isfinite(number):
            return "-"
        return f"{100 * number:.1f}%" if percent else f"{number:.2f}"

    return text(value["mean"]) if value["std"] is None else f"{text(value['mean'])} ± {text(value['std'])}"


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
