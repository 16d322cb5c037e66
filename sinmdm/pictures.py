"""Pictures of a run: its losses over the steps (loss.png), and poses of its clip over those of samples (strip.png)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .motion import Layout, Motion
from .motion.atomic import replacing
from .run import LOG, Run, read_config
from .view import Character, set_out
from .view.colours import GENERATED, GRID, INK, MUTED
from .view.strip import write_strip

LOSS, STRIP = "loss.png", "strip.png"
SAMPLES, STEPS = 3, 10  # of DDIM
_DRAWN = 2000  # rows of a log that are drawn one by one; of more, the least and the greatest of a few
_SMOOTHED = 20  # so many windows of the smoothed losses lie side by side in a plot


def draw_run(run: Run, *, device: torch.device | str | None = None) -> list[Path]:
    """Write loss.png and, where the run's motion has joints, strip.png into its folder; each whole or not at all.

    The samples are the first three of the run's own seed, as long as the clip, by 10 DDIM steps on `device`. Nothing is
    drawn from torch's generators.
    Returns: the files. Raises: ImportError where matplotlib is missing; ValueError where log.csv holds no losses;
    OSError where a file cannot be read or written.
    """
    files = [run.folder / LOSS]
    write_loss_plot(files[0], run.folder / LOG)
    if run.layout.hierarchy is not None and run.layout.frame_time is not None:
        samples = run.sample(
            len(run.motion), SAMPLES, seed=read_config(run.folder)["seed"], sampler="ddim",
            steps=min(STEPS, len(run.schedule.betas)), device=device,
        )  # fmt: skip
        files.append(run.folder / STRIP)
        generated = {f"generated {index}": sample for index, sample in enumerate(samples)}
        write_motions_strip(files[1], run.layout, {"the clip": run.motion}, generated)
    return files


def write_motions_strip(
    path: str | os.PathLike[str], layout: Layout, given: Mapping[str, Motion], generated: Mapping[str, Motion]
) -> None:
    """Motions of a layout by their labels as `sinmdm.view.strip.write_strip` draws them, those that were given first.

    Raises: as `write_strip`; ValueError where the layout knows of no joints or no frame time.
    """
    if layout.hierarchy is None or layout.frame_time is None:
        raise ValueError(
            f"motions of the layout {layout.kind!r} cannot be drawn: it knows of no joints or no frame time"
        )
    characters = []
    for motions, ours in ((given, True), (generated, False)):
        for label, motion in motions.items():
            positions = layout.placer()(motion).numpy().astype(np.float32)
            which = np.full(positions.shape[:2], ours)
            characters.append([Character(label, *layout.hierarchy, positions, layout.frame_time, which)])
    write_strip(path, set_out(characters))


def write_loss_plot(path: str | os.PathLike[str], log: str | os.PathLike[str]) -> None:
    """Draw the losses of a log.csv over its steps, as they are and smoothed, and the learning rate beneath. Writes a
    PNG, whole or not at all.

    Raises: ImportError where matplotlib is missing; ValueError naming the log where it holds no losses; OSError.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatterSciNotation
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'sinmdm[plot]'") from error
    steps, losses, rates = _read_log(Path(log))

    class Plain(LogFormatterSciNotation):
        """Labels the same ticks, as 0.03 instead of powers of ten."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    picture = Figure(figsize=(8, 5), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(picture)
    above, beneath = picture.subplots(2, sharex=True, height_ratios=(4, 1))
    thin: dict[str, Any] = {"marker": "." if len(steps) == 1 else "", "solid_joinstyle": "round"}
    drawn = _outline(losses)
    above.plot(steps[drawn], losses[drawn], color=GRID, linewidth=0.8, label="each step", **thin)
    above.plot(steps, _smooth(losses), color=GENERATED, linewidth=1.8, label="smoothed", **thin)
    above.legend(frameon=False, labelcolor=INK, fontsize=9)
    beneath.plot(steps, rates, color=MUTED, linewidth=1.2, **thin)
    beneath.set_xlabel("step", color=INK)
    beneath.xaxis.get_major_locator().set_params(integer=True)
    for axes, name, shown in ((above, "loss", losses), (beneath, "learning rate", rates)):
        if (shown > 0).any():  # a logarithm has no place for the others
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_formatter(Plain())
            axes.yaxis.set_minor_formatter(Plain(labelOnlyBase=False))
        axes.set_ylabel(name, color=INK)
        axes.grid(color=GRID, linewidth=0.5, alpha=0.6)
        axes.tick_params(which="both", color=MUTED, labelcolor=MUTED, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png")


def _read_log(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, losses and learning rates, each (rows,) float64."""
    try:
        rows = [line.split(",")[:3] for line in path.read_text().splitlines()[1:]]
        steps, losses, rates = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    except ValueError as error:
        raise ValueError(f"{path}: not a log of a training: {error}") from error
    if not len(steps):
        raise ValueError(f"{path}: holds no losses")
    return steps, losses, rates


def _outline(losses: np.ndarray) -> np.ndarray:
    """Rows to draw, in order: all, or of many, those with the least and the greatest loss among a few neighbours."""
    if len(losses) <= _DRAWN:
        return np.arange(len(losses))
    groups = np.array_split(np.arange(len(losses)), _DRAWN // 2)
    return np.array(sorted({group[place(losses[group])] for group in groups for place in (np.argmin, np.argmax)}))


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Mean of the losses in a window about each, which the ends cut."""
    half = len(losses) // _SMOOTHED // 2
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    place = np.arange(len(losses))
    begin, end = np.maximum(place - half, 0), np.minimum(place + half + 1, len(losses))
    return (sums[end] - sums[begin]) / (end - begin)
