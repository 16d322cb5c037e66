"""`sinmdm evaluate`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .common import Command, add_common, add_device, count
from .humanml import add_statistics

if TYPE_CHECKING:
    from ..humanml_evaluation import Evaluator


def add(command: Command) -> None:
    """The commands, with their arguments."""
    evaluate = command("evaluate", _evaluate, "measure a run's samples, beside baselines that learnt nothing")
    evaluate.add_argument("run_folder", type=Path, metavar="RUN")
    evaluate.add_argument(
        "samples", type=Path, nargs="*", metavar="SAMPLES",
        help="motion files, or folders with sample*.bvh (or .npy) in them (default: new samples)",
    )  # fmt: skip
    evaluate.add_argument("--frames", type=count, help="length of new samples (default: twice the clip's)")
    evaluate.add_argument("-n", type=count, help="how many new samples (default 4)")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the table and its definitions here")
    evaluate.add_argument(
        "--evaluator", type=Path, metavar="FILE",
        help="HumanML3D measures, too, by text-to-motion's weights finest.tar; with --mean and --std",
    )  # fmt: skip
    add_statistics(evaluate)
    evaluate.add_argument("--definitions", action=_Definitions, nargs=0, help="say what each measure is, and exit")
    add_device(evaluate)
    add_common(evaluate)


class _Definitions(argparse.Action):
    """Prints and exits, as --help does, so that no run is needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ..evaluation import format_definitions

        print(format_definitions())
        parser.exit()


def _evaluate(arguments: argparse.Namespace) -> None:
    from ..evaluation import evaluate_run, format_table, to_json
    from ..evaluation_table import finite
    from ..motion import Clip, read_motion
    from ..motion.atomic import replacing
    from ..run import load

    if arguments.samples and (arguments.frames or arguments.n):
        raise ValueError("--frames and -n are of new samples: leave them out where files are given")
    evaluator = _evaluator(arguments)
    run = load(arguments.run_folder)
    suffix = ".bvh" if isinstance(run.motion, Clip) else ".npy"
    samples = [read_motion(path) for path in _files(arguments.samples, suffix)] or None
    bars: dict[str, tqdm] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            for bar in bars.values():
                bar.close()
            unit = "step" if stage == "sampling" else "sample"
            bars[stage] = tqdm(desc=stage, unit=unit, total=total, disable=arguments.quiet)
        bars[stage].update(done - bars[stage].n)

    try:
        if evaluator is not None and samples is None:  # the same samples for both blocks
            frames = arguments.frames or 2 * len(run.motion)
            samples = run.sample(
                frames, arguments.n or 4, seed=arguments.seed or 0, device=arguments.device,
                on_step=lambda done, total: on_progress("sampling", done, total),
            )  # fmt: skip
        rows, clip = evaluate_run(
            run, samples, frames=arguments.frames, n=arguments.n or 4, seed=arguments.seed or 0,
            device=arguments.device, on_progress=on_progress,
        )  # fmt: skip
    finally:
        for bar in bars.values():
            bar.close()
    blocks, document = [format_table(rows)], to_json(rows, clip)
    if not any("foot_sliding" in row["values"] for row in rows):
        posed = isinstance(run.motion, Clip)
        why = "no feet that touch the ground were found in the clip" if posed else "the run was trained on an array"
        blocks.append(f"Foot sliding is left out: {why}.")
    if evaluator is not None:
        from ..humanml_evaluation import DEFINITIONS, humanml_rows

        arrays = [sample for sample in samples or () if not isinstance(sample, Clip)]
        measured = humanml_rows(run, {"samples": arrays}, evaluator)
        document["humanml"] = {"definitions": dict(DEFINITIONS), "rows": finite(measured)}
        blocks.append("\n".join(f"{key}: {value:.4g}" for key, value in measured["samples"].items()))
    print("\n\n".join(blocks))
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _evaluator(arguments: argparse.Namespace) -> Evaluator | None:
    """The evaluator that was asked for. Raises: ValueError where --mean and --std do not go with it."""
    from ..humanml_evaluation import load_evaluator
    from ..motion import read_statistics

    given = (arguments.mean is not None) + (arguments.std is not None)
    if given != (0 if arguments.evaluator is None else 2):
        raise ValueError("--evaluator goes with --mean and --std: all three, or none")
    if arguments.evaluator is None:
        return None
    return load_evaluator(arguments.evaluator, read_statistics(arguments.mean), read_statistics(arguments.std))


def _files(paths: Sequence[Path], suffix: str) -> list[Path]:
    """The files among the paths, and in place of each folder its sample files.

    Raises: ValueError naming a folder that has none.
    """
    files = []
    for path in paths:
        found = sorted(path.glob(f"sample*{suffix}")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path}: the folder has no sample*{suffix}")
        files += found
    return files
