"""`sinmdm evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .common import Command, add_common, add_device, count, steps_bar


def add(command: Command) -> None:
    """The commands, with their arguments."""
    evaluate = command("evaluate", _evaluate, "measure a run's samples, beside baselines that learnt nothing")
    evaluate.add_argument("run_folder", type=Path, metavar="RUN")
    evaluate.add_argument("samples", type=Path, nargs="*", metavar="SAMPLE", help="BVH files (default: new samples)")
    evaluate.add_argument("--frames", type=count, help="length of new samples (default: twice the clip's)")
    evaluate.add_argument("-n", type=count, help="how many new samples (default 4)")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the table and its definitions here")
    add_device(evaluate)
    add_common(evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from ..evaluation import evaluate_run, format_table, to_json
    from ..motion import read_motion
    from ..motion.atomic import replacing
    from ..run import load

    if arguments.samples and (arguments.frames or arguments.n):
        raise ValueError("--frames and -n are of new samples: leave them out where files are given")
    run = load(arguments.run_folder)
    samples = [read_motion(path) for path in arguments.samples] or None
    bar, on_step = steps_bar(arguments.quiet, "sampling")
    with bar:
        rows, clip = evaluate_run(
            run, samples, frames=arguments.frames, n=arguments.n or 4, seed=arguments.seed or 0,
            device=arguments.device, on_step=on_step,
        )  # fmt: skip
    print(format_table(rows))
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(to_json(rows, clip), indent=2) + "\n")
