"""`python -m bench.frontier CLIP ... --runs DIR`: what each choice of a preset does to coverage and to diversity.

Every variant is the `small` preset with one choice changed (the window, the layers, the crops, ...), trained for a
number of steps and not of minutes, so that other work on the machine does not matter; its samples are measured as
`sinmdm evaluate` does. The results go to bench/results as JSON and as a picture: coverage at the strict threshold
against global diversity, with the frontier drawn in, the variants that no other beats at both.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sinmdm.presets import PRESETS, Preset
from sinmdm.training import train

STEPS = 4000
BASE = PRESETS["small"]


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


def main(argv: list[str] | None = None) -> int:
    """Train, measure, write and draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.frontier", description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP")
    parser.add_argument(
        "--runs", type=Path, required=True, help="folder to keep the runs in; those there are not trained again"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants")
    arguments = parser.parse_args(argv)
    chosen = {name: preset for name, preset in variants().items() if not arguments.only or name in arguments.only}
    train_all(arguments.clips, chosen, arguments.runs)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    sys.exit(main())
