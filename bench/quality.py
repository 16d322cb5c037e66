"""`python -m bench.quality CLIP`: what training on one clip gives by wall time, under our recipe and the published one.

Each recipe trains for the same minutes, one after the other, by the command `sinmdm train`. Every minute it saves; what
it saved is kept, and when the training is over each is sampled and measured as `sinmdm evaluate` does. Loss, coverage
and energy over time go to bench/results as JSON and as a picture.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sinmdm.evaluation import evaluate_rotations, rotation_features
from sinmdm.motion import Clip
from sinmdm.presets import RECIPES
from sinmdm.run import CHECKPOINT, CONFIG, LOG, MODEL, MOTION_FILES, load, read_tensors

from . import provenance
from .__main__ import ALLOCATOR, RESULTS
from .report import write_json
from .timing import say

GOAL = 0.85  # of coverage at the strict threshold
SAMPLES = 4


def train_and_keep(clip: Path, recipe: str, arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Run `sinmdm train`, unless it was already; the folders of what it saved on the way, in order."""
    run = folder / recipe
    if run.exists():
        return sorted(folder.glob(f"{recipe}-[0-9]*"))
    command = [
        sys.executable, "-m", "sinmdm", "train", str(clip), "--out", str(run), "--preset", arguments.preset,
        "--recipe", recipe, "--layout", "mixamo", "--repr", "6d", "--minutes", str(arguments.minutes),
        "--precision", arguments.precision, "--quiet",
    ]  # fmt: skip
    kept: list[Path] = []
    process = subprocess.Popen(command, env=os.environ | ALLOCATOR)
    while True:
        over = process.poll() is not None
        model = run / MODEL
        if model.is_file() and (not kept or model.stat().st_mtime_ns != (kept[-1] / MODEL).stat().st_mtime_ns):
            kept.append(folder / f"{recipe}-{len(kept):03d}")
            kept[-1].mkdir()
            for name in (MODEL, CHECKPOINT, CONFIG, *MOTION_FILES):
                if (run / name).is_file():
                    shutil.copy2(run / name, kept[-1])
        if over:
            break
        time.sleep(0.5)
    if process.returncode != 0:
        raise RuntimeError(f"sinmdm train failed with {process.returncode}")
    return kept


def measured(saved: Path, steps: int | None) -> dict[str, Any]:
    """Step, seconds of training and the measures of what was saved there."""
    run = load(saved)
    assert isinstance(run.motion, Clip)
    _, metadata = read_tensors(saved / CHECKPOINT)
    clip = rotation_features(run.motion)
    sampler = {} if steps is None or steps >= run.preset.timesteps else {"sampler": "ddim", "steps": steps}
    samples = run.sample(2 * len(run.motion), SAMPLES, seed=0, **sampler)
    rotations = [rotation_features(sample) for sample in samples if isinstance(sample, Clip)]
    (row,) = evaluate_rotations({"samples": rotations}, clip, joints=clip.shape[1] // 6)
    return {"step": int(metadata["step"]), "seconds": float(metadata["seconds"]), "values": row["values"]}


def losses(log: Path) -> list[tuple[float, float]]:
    """(seconds, mean loss) of about a hundred parts of the training."""
    with log.open() as file:
        rows = [(float(row["seconds"]), float(row["loss"])) for row in csv.DictReader(file)]
    size = max(1, len(rows) // 100)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def reached(points: list[dict[str, Any]]) -> float | None:
    """Seconds after which coverage at the strict threshold was first at the goal; None where it never was."""
    return next((p["seconds"] for p in points if p["values"]["coverage_strict"]["mean"] >= GOAL), None)


def draw(results: dict[str, Any], path: Path) -> None:
    """Loss, coverage and energy over the minutes of training, a line a recipe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for recipe, result in results.items():
        axes[0].plot([s / 60 for s, _ in result["losses"]], [loss for _, loss in result["losses"]], label=recipe)
        minutes = [point["seconds"] / 60 for point in result["points"]]
        for axis, key in ((axes[1], "coverage_strict"), (axes[2], "energy")):
            axis.plot(minutes, [point["values"][key]["mean"] for point in result["points"]], "o-", label=recipe)
    axes[0].set(title="loss (each recipe's own scale)", yscale="log", xlabel="minutes")
    axes[1].set(title="coverage at the strict threshold", ylim=(-0.02, 1.02), xlabel="minutes")
    axes[1].axhline(GOAL, color="gray", linewidth=0.8, linestyle=":")
    axes[2].set(title="energy, of the clip's", xlabel="minutes")
    axes[2].axhline(1.0, color="gray", linewidth=0.8, linestyle=":")
    axes[0].legend()
    figure.savefig(path)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Train, measure, write and draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.split("\n")[0])
    parser.add_argument("clip", type=Path, metavar="CLIP", help="a clip of a skeleton that the mixamo layout knows")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training (default 10)")
    parser.add_argument("--preset", default="paper-qna")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, help="sample with so many steps of DDIM where the preset has more")
    parser.add_argument("--every", type=int, default=1, help="measure every so manieth save (default all)")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in; those that are there are measured again")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.runs or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        saved = {recipe: train_and_keep(arguments.clip, recipe, arguments, scratch) for recipe in arguments.recipes}
        for recipe, folders in saved.items():
            chosen = folders[:: -arguments.every][::-1]  # the last in any case
            points = []
            for folder in chosen:
                points.append(measured(folder, arguments.steps))
                values = points[-1]["values"]
                say(f"{recipe}, {points[-1]['seconds']:.0f} s, step {points[-1]['step']}: coverage "
                    f"{values['coverage_strict']['mean']:.1%}, energy {values['energy']['mean']:.2f}")  # fmt: skip
            settings = json.loads((folders[-1] / CONFIG).read_text())["preset"]
            results[recipe] = {
                "settings": settings,
                "losses": losses(scratch / recipe / LOG),
                "points": points,
                "seconds_to_goal": reached(points),
            }
    name = f"quality-{arguments.preset}-{arguments.clip.stem}"
    options = {key: getattr(arguments, key) for key in ("minutes", "preset", "precision", "steps")}
    write_json(
        arguments.output / f"{name}.json",
        {"provenance": provenance.collect("cpu"), "clip": arguments.clip.name, "options": options,
         "goal": GOAL, "samples": SAMPLES, "recipes": results},
    )  # fmt: skip
    draw(results, arguments.output / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
