"""evaluation.csv of a run: the main measures while it trains, one row every so many steps and at the end."""

from __future__ import annotations

import csv
import math
import time
from typing import Any

import numpy as np
import torch

from .evaluation import MAIN, check_measurable, main_measures, motion_features, scale_of
from .run import Run

EVALUATION = "evaluation.csv"
SAMPLES, SAMPLING_STEPS = 2, 20
_STREAM = 1  # of the run's seed: the training has its own


class EvaluationLog:
    """Samples a training's averaged weights and writes what they are worth: step, seconds, and the measures of MAIN.

    Two samples of the clip's length, of the same noise each time so that rows can be compared, by 20 steps of DDIM (or
    as many as the schedule has). The noise has a seed of its own, made from the run's.

    run: the network to sample, as the training leaves it at each call.
    every: steps between two rows.
    events: a TensorBoard writer, or None.
    Raises: ValueError where the run's motion is too short to be measured.
    """

    def __init__(self, run: Run, every: int, seed: int, device: torch.device, events: Any = None) -> None:
        check_measurable(run.motion)
        self.run, self.every, self.device, self.events = run, every, device, events
        self.path = run.folder / EVALUATION
        self.seed = int(np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64)[0])
        self.clip, self.scale = motion_features(run.motion), scale_of(run.motion)
        self.written = self._last_step()

    def write(self, step: int, seconds: float) -> float:
        """Append a row, unless there is one of this step; gives the seconds that it took."""
        if step == self.written:
            return 0.0
        began = time.perf_counter()
        values = self.measures()
        row = [step, f"{seconds:.3f}", *(f"{values[key]:.6g}" for key in MAIN)]
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(["step", "seconds", *MAIN])
            writer.writerow(row)
        self.written = step
        if self.events is not None:
            for key in MAIN:
                self.events.add_scalar(f"evaluation/{key}", values[key], step)
        return time.perf_counter() - began

    def measures(self) -> dict[str, float]:
        """The measures of MAIN of the weights as they are; all NaN where a sample is not finite."""
        run, steps = self.run, min(SAMPLING_STEPS, self.run.preset.timesteps)
        features = run.features(
            len(run.motion), SAMPLES, seed=self.seed, sampler="ddim", steps=steps, device=self.device
        )
        motions = [run.normalizer.invert(x) for x in features]
        if not all(bool(x.isfinite().all()) for x in motions):
            return dict.fromkeys(MAIN, math.nan)
        return main_measures([motion_features(run.layout.decode(x)) for x in motions], self.clip, self.scale)

    def _last_step(self) -> int | None:
        """Of the file's last row, None where it has none."""
        if not self.path.is_file():
            return None
        with self.path.open() as file:
            steps = [row[0] for row in csv.reader(file) if row]
        return int(steps[-1]) if steps and steps[-1].isdigit() else None
