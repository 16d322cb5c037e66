"""`python -m bench.frontier CLIP ... --runs DIR`: what each choice of a preset does to coverage and to diversity.

Every variant is the `small` preset with crops of 64 frames, trained for 4000 steps, with one choice changed (window,
layers, crops, ...): steps and not minutes, so that other work on the machine does not matter. Its samples are measured
as `sinmdm evaluate` does. The results go to bench/results as JSON and as a picture: coverage at the strict threshold
against global diversity, with the frontier drawn in, the variants that no other beats at both.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sinmdm
from sinmdm.evaluation import evaluate_rotations, rotation_features
from sinmdm.motion import Clip
from sinmdm.presets import PRESETS, Preset
from sinmdm.run import MODEL, load
from sinmdm.training import train

from . import provenance
from .__main__ import RESULTS
from .report import write_json

BASE = replace(PRESETS["small"], crop=64, steps=4000)
CHOSEN = "crop 32, 8000 steps"  # the preset
SAMPLES = 4
MEASURED = "measured.json"
COLUMNS = {
    "coverage_strict": "coverage at 1.0",
    "coverage_area": "coverage area",
    "clip_to_sample": "clip to sample",
    "sample_to_clip": "sample to clip",
    "global_diversity": "global diversity",
    "local_diversity": "local diversity",
    "inter_diversity": "inter",
    "intra_diversity_difference": "intra difference",
    "energy": "energy",
}


def variants() -> dict[str, Preset]:
    """By name, the presets to train; those first that say most."""

    def network(**changes: Any) -> Preset:
        return replace(BASE, network={**BASE.network, **changes})

    return {
        "window 8": network(window=8),
        "window 2": network(window=2),
        "window 4": network(window=4),
        "window 3": network(window=3),
        "window 1": network(window=1),
        "window 6": network(window=6),
        "window 12": network(window=12),
        "2 layers": network(layers=2, window=8),
        "8 layers of window 4": network(layers=8, window=4),
        "crop 32": replace(network(window=8), crop=32),
        "crop 32, 8000 steps": replace(network(window=8), crop=32, steps=8000),
        "crop 32, 16000 steps": replace(network(window=8), crop=32, steps=16000),
        "crop 128": replace(network(window=8), crop=128),
        "rate 5e-4": replace(network(window=8), learning_rate=5e-4),
        "rate 4e-3": replace(network(window=8), learning_rate=4e-3),
        "1000 steps": replace(network(window=8), steps=1000),
        "2000 steps": replace(network(window=8), steps=2000),
        "8000 steps": replace(network(window=8), steps=8000),
        "no averaging": replace(network(window=8), ema=0.0),
        "averaging 0.999": replace(network(window=8), ema=0.999),
        "resized": replace(network(window=8), resize=(0.75, 1.25)),
        "width 64": network(window=8, d_model=64, heads=2),
        "width 256": network(window=8, d_model=256, heads=8),
        "window 4, 8000 steps": replace(network(window=4), steps=8000),
        "window 2, 8000 steps": replace(network(window=2), steps=8000),
    }


def folder_of(runs: Path, clip: Path, name: str) -> Path:
    """Where a variant's run on a clip is kept."""
    return runs / clip.stem / name.replace(" ", "-").replace(",", "")


def train_all(clips: list[Path], chosen: Mapping[str, Preset], runs: Path) -> None:
    """Train each variant on each clip, unless it was already."""
    for name, preset in chosen.items():
        for clip in clips:
            folder = folder_of(runs, clip, name)
            if folder.exists():
                continue
            began = time.perf_counter()
            partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
            train(clip, partial, preset=preset, progress=False)
            partial.rename(folder)
            print(f"{clip.stem}, {name}: trained in {time.perf_counter() - began:.0f} s", flush=True)


def stamp(run_folder: Path) -> str:
    """Of the weights, and of the code that samples and measures: what is kept of another one is measured again."""
    code = Path(sinmdm.__file__).parent
    sources = [*code.glob("evaluation*.py"), code / "metrics.py", *(code / "diffusion").glob("*.py")]
    digest = hashlib.sha256()
    for path in (run_folder / MODEL, *sorted(sources)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def measured(run_folder: Path, preset: Preset) -> dict[str, Any]:
    """What a run's samples are like: four of twice the clip's length, as `sinmdm evaluate` makes and measures them.

    Raises: ValueError where the run is of another preset than the variant is now.
    """
    kept = run_folder / MEASURED
    if kept.is_file() and (known := json.loads(kept.read_text()))["stamp"] == stamp(run_folder):
        return known
    run = load(run_folder)
    if run.preset != preset:
        raise ValueError(f"{run_folder}: was trained with other settings than the variant has: remove it")
    assert isinstance(run.motion, Clip)
    clip = rotation_features(run.motion)
    samples = run.sample(2 * len(run.motion), SAMPLES, seed=0)
    rotations = [rotation_features(sample) for sample in samples if isinstance(sample, Clip)]
    (row,) = evaluate_rotations({"samples": rotations}, clip, joints=clip.shape[1] // 6)
    settings, field = run.preset.to_dict(), run.network.receptive_field
    found = {
        "stamp": stamp(run_folder), "receptive_field": 2 * int(field) + 1, "settings": settings,
        "values": row["values"],
    }  # fmt: skip
    write_json(kept, found)
    return found


def frontier_of(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of those that no other beats at both numbers, by the first, falling."""
    ordered = sorted(points, key=lambda name: points[name], reverse=True)
    best, kept = float("-inf"), []
    for name in ordered:
        if points[name][1] > best:
            best = points[name][1]
            kept.append(name)
    return kept


def pair(result: dict[str, Any]) -> tuple[float, float]:
    """Coverage at the strict threshold, and global diversity."""
    return result["values"]["coverage_strict"]["mean"], result["values"]["global_diversity"]["mean"]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as Markdown, a line a variant; in bold those on the frontier."""
    lines = []
    for clip, found in results.items():
        on = frontier_of({name: pair(result) for name, result in found.items()})
        lines += [f"**{clip}**", "", "| variant | sees frames | " + " | ".join(COLUMNS.values()) + " |"]
        lines.append("|---" * (2 + len(COLUMNS)) + "|")
        for name, result in found.items():
            cells = []
            for key in COLUMNS:
                value = result["values"].get(key)
                spread = "" if value is None or value["std"] is None else f" ± {value['std']:.2f}"
                cells.append("-" if value is None else f"{value['mean']:.2f}{spread}")
            shown = f"**{name}**" if name in on else name
            lines.append(f"| {shown} | {result['receptive_field']} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Coverage against global diversity, a panel a clip; the frontier is a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(results), figsize=(6.2 * len(results), 5.4), layout="constrained", squeeze=False
    )
    for axis, (clip, found) in zip(axes[0], results.items(), strict=True):
        points = {name: pair(result) for name, result in found.items()}
        on = frontier_of(points)
        axis.plot([points[name][1] for name in on], [points[name][0] for name in on], color="#c4512d", zorder=1)
        for name, (coverage, diversity) in points.items():
            chosen = name == CHOSEN
            colour = "#c4512d" if name in on else "#24476b"
            axis.scatter(
                diversity, coverage, color=colour, s=70 if chosen else 22, marker="*" if chosen else "o", zorder=2
            )
            axis.annotate(name, (diversity, coverage), (4, 3), textcoords="offset points", fontsize=7, color=colour)
        axis.set(title=clip, xlabel="global diversity (0: a copy)", ylabel="coverage at the strict threshold")
        axis.margins(x=0.2)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Train, measure, write and draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.frontier", description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP")
    parser.add_argument(
        "--runs", type=Path, required=True, help="folder of the runs; those there are not trained again"
    )
    parser.add_argument("--only", nargs="+", choices=variants(), metavar="NAME", help="these variants")
    parser.add_argument("--present", action="store_true", help="train nothing: measure the runs that are there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    chosen = {name: preset for name, preset in variants().items() if not arguments.only or name in arguments.only}
    if not arguments.present:
        train_all(arguments.clips, chosen, arguments.runs)
    results: dict[str, dict[str, Any]] = {}
    for clip in arguments.clips:
        for name in chosen:
            folder = folder_of(arguments.runs, clip, name)
            if not folder.is_dir():
                continue
            results.setdefault(clip.stem, {})[name] = measured(folder, chosen[name])
            coverage, diversity = pair(results[clip.stem][name])
            print(f"{clip.stem}, {name}: coverage {coverage:.1%}, global diversity {diversity:.2f}", flush=True)
    if not results:
        parser.error("there is no run to measure")
    write_json(
        arguments.output / "frontier.json",
        {"provenance": provenance.collect("cpu"), "samples": SAMPLES, "clips": results},
    )
    draw(results, arguments.output / "frontier.png")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
