"""`sinmdm evaluate`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .common import Command, add_common, add_device, count
from .humanml import add_features

if TYPE_CHECKING:
    from ..humanml_evaluation import Evaluator
    from ..motion import Motion
    from ..run import Run


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
    add_features(evaluate)
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
    from ..evaluation import check_measurable, evaluate_run, format_table, to_json
    from ..evaluation_table import finite
    from ..motion import Clip
    from ..motion.atomic import replacing
    from ..run import load

    _check_arguments(arguments)
    run = load(arguments.run_folder)
    samples: list[Motion] | None = _given(arguments, run) or None
    frames = arguments.frames or 2 * len(run.motion)
    check_measurable(run.motion, frames)
    evaluator = _evaluator(arguments, run, [frames] if samples is None else [len(sample) for sample in samples])
    bars: dict[str, tqdm] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            for bar in bars.values():
                bar.close()
            unit = "step" if stage == "sampling" else "sample"
            bars[stage] = tqdm(desc=stage, unit=unit, total=total, disable=arguments.quiet)
        bars[stage].update(done - bars[stage].n)

    try:
        if evaluator is not None and samples is None:  # the same samples for both tables
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
        from ..evaluation import baseline_rows
        from ..humanml_evaluation import DEFINITIONS, format_humanml, humanml_rows

        arrays = [sample for sample in samples or () if not isinstance(sample, Clip)]
        baselines = baseline_rows(run.layout.encode(run.motion), frames, 1)
        beside = {name: baselines[name] for name in ("frozen mean pose", "clip reversed")}
        measured = humanml_rows(run, {"samples": arrays, **beside}, evaluator)
        document["humanml"] = {"definitions": dict(DEFINITIONS), "rows": finite(measured)}
        blocks.append(format_humanml(measured))
    print("\n\n".join(blocks))
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Raises: ValueError where they do not go together, or --json cannot be written."""
    if arguments.samples and (arguments.frames or arguments.n):
        raise ValueError("--frames and -n are of new samples: leave them out where files are given")
    if arguments.features and not arguments.samples:
        raise ValueError("--features says what the files of SAMPLES hold: leave it out where none are given")
    statistics = (arguments.mean is not None) + (arguments.std is not None)
    if arguments.evaluator is not None and statistics < 2:
        raise ValueError("--evaluator goes with --mean and --std: all three, or none")
    if arguments.features == "normalised" and statistics < 2:
        raise ValueError("--features normalised needs --mean and --std: those that the files were normalised with")
    if statistics and arguments.evaluator is None and arguments.features != "normalised":
        raise ValueError("--mean and --std are of --evaluator and of --features normalised")
    if arguments.json is not None:
        if arguments.json.is_dir():
            raise ValueError(f"--json {arguments.json}: is a folder, must be a file")
        if not arguments.json.parent.is_dir():
            raise ValueError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")


def _given(arguments: argparse.Namespace, run: Run) -> list[Motion]:
    """The samples that are given, in the run's units. Raises: ValueError naming the file that cannot be measured."""
    from ..evaluation import check_sample
    from ..motion import Clip, read_humanml, read_motion, read_statistics

    humanml = run.layout.kind == "humanml"
    if arguments.features and not humanml:
        raise ValueError(f"--features is of runs of the layout humanml, and this one's is {run.layout.kind!r}")
    if arguments.samples and humanml and not arguments.features:
        raise ValueError(
            "SAMPLES for a run of the layout humanml need --features raw, or --features normalised with --mean and "
            "--std: nothing in the files says which they are; `sinmdm sample` writes raw ones"
        )
    normalised = arguments.features == "normalised"
    statistics = [read_statistics(path) if normalised else None for path in (arguments.mean, arguments.std)]
    samples: list[Motion] = []
    for path in _files(arguments.samples, ".bvh" if isinstance(run.motion, Clip) else ".npy"):
        motion = read_humanml(path, normalised, *statistics, generated=True) if humanml else read_motion(path)
        check_sample(motion, run.motion, str(path))
        samples.append(motion)
    return samples


def _evaluator(arguments: argparse.Namespace, run: Run, lengths: Sequence[int]) -> Evaluator | None:
    """The evaluator that was asked for. Raises: ValueError where it cannot measure samples of these lengths."""
    if arguments.evaluator is None:
        return None
    from ..humanml_evaluation import check_humanml, load_evaluator
    from ..motion import read_statistics

    try:
        check_humanml(run, lengths)
    except ValueError as error:
        raise ValueError(f"--evaluator: {error}") from error
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
