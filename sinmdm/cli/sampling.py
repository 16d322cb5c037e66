"""`sinmdm sample`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Command, add_common, add_device, add_sampler, count, positive, steps_bar


def add(command: Command) -> None:
    """The commands, with their arguments."""
    sample = command("sample", _sample, "make new motions with a trained run")
    sample.add_argument("run_folder", type=Path, metavar="RUN")
    frames = sample.add_mutually_exclusive_group(required=True)
    frames.add_argument("--frames", type=count, help="length of each motion")
    frames.add_argument("--seconds", type=positive, help="length of each motion")
    sample.add_argument("-n", type=count, default=1, help="how many (default 1)")
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for sample00.bvh, ...")
    add_sampler(sample)
    sample.add_argument("--batch-size", type=count, help="motions computed at once (default up to 16)")
    add_device(sample)
    add_common(sample)


def _sample(arguments: argparse.Namespace) -> None:
    from ..motion.atomic import filling
    from ..run import load

    run = load(arguments.run_folder)
    frames = arguments.frames
    if frames is None:
        if run.fps is None:
            raise ValueError("--seconds needs a frame rate, which a run on an array does not have: give --frames")
        frames = max(1, round(min(arguments.seconds * run.fps, 2**31)))
        if frames >= 2**31:
            raise ValueError(f"--seconds must be less than {2**31 / run.fps:.0f}, got {arguments.seconds:g}")
    bar, on_step = steps_bar(arguments.quiet, "sampling")
    with filling(arguments.out) as folder, bar:
        run.write_samples(
            folder, frames, arguments.n, seed=arguments.seed or 0, sampler=arguments.sampler, steps=arguments.steps,
            spacing=arguments.spacing, eta=arguments.eta, batch_size=arguments.batch_size, device=arguments.device,
            on_step=on_step,
        )  # fmt: skip
    print(f"{arguments.n} motions of {frames} frames are in {arguments.out}")
