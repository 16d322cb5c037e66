"""The command line: `sinmdm demo | train | sample | evaluate | import | export | info`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) < high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high - 1}, got {text!r}")
        return int(text)

    return parse


_count, _seed = _whole(1, 2**31), _whole(0, 2**64)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def _steps(text: str) -> int | list[int]:
    return [_whole(0, 2**31)(t) for t in text.removesuffix(",").split(",")] if "," in text else _count(text)


def _parser() -> argparse.ArgumentParser:
    from . import __version__
    from .diffusion import SAMPLERS, SPACINGS
    from .motion import KINDS, REPRESENTATIONS
    from .presets import PRESETS, RECIPES
    from .training import PRECISIONS

    parser = argparse.ArgumentParser(
        prog="sinmdm", description="Train on one motion clip, and make new motions from it."
    )
    parser.add_argument("--version", action="version", version=f"sinmdm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(run=run)
        return sub

    def common(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seed", type=_seed, help="default 0")
        sub.add_argument("--quiet", action="store_true", help="no progress bar")

    train = command("train", _train, "train a model on one motion and leave a run in a folder")
    train.add_argument(
        "motion", type=Path, metavar="MOTION", help=".bvh, or an array (frames, features) in .npy or .pt"
    )
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder to leave the run in")
    train.add_argument("--preset", choices=sorted(PRESETS), help="default small")
    train.add_argument("--recipe", choices=RECIPES, help="how it is trained: ours (default), or as published")
    train.add_argument("--layout", choices=KINDS, help="features of a clip: sinmdm (default), or the published code's")
    train.add_argument(
        "--repr", choices=sorted(REPRESENTATIONS), help="rotations of mixamo and bvh_general (default 6d)"
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_count, help="default: the preset's")
    length.add_argument("--minutes", type=_positive, help="train for so long instead of so many steps")
    train.add_argument("--resume", action="store_true", help="continue the run in the folder")
    train.add_argument("--fps", type=_positive, help="thin the clip to at most this rate (default 30)")
    train.add_argument("--precision", choices=PRECISIONS, help="default float32")
    train.add_argument("--device", help="default: cuda where torch sees it, else cpu")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events into the folder")
    common(train)

    sample = command("sample", _sample, "make new motions with a trained run")
    sample.add_argument("run_folder", type=Path, metavar="RUN")
    frames = sample.add_mutually_exclusive_group(required=True)
    frames.add_argument("--frames", type=_count, help="length of each motion")
    frames.add_argument("--seconds", type=_positive, help="length of each motion")
    sample.add_argument("-n", type=_count, default=1, help="how many (default 1)")
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for sample00.bvh, ...")
    sample.add_argument("--sampler", choices=SAMPLERS, default="ddpm")
    sample.add_argument(
        "--steps", type=_steps, help="timesteps to visit (default all): how many, or a list: 90,60,30,0"
    )
    sample.add_argument("--spacing", choices=SPACINGS, default="trailing", help="of --steps timesteps")
    sample.add_argument("--eta", type=_share, help="of ddim: 0 (default) to 1, the share of fresh noise")
    sample.add_argument("--batch-size", type=_count, help="motions computed at once (default up to 16)")
    sample.add_argument("--device", help="default: cuda where torch sees it, else cpu")
    common(sample)

    evaluate = command("evaluate", _evaluate, "measure a run's samples, beside baselines that learnt nothing")
    evaluate.add_argument("run_folder", type=Path, metavar="RUN")
    evaluate.add_argument("samples", type=Path, nargs="*", metavar="SAMPLE", help="BVH files (default: new samples)")
    evaluate.add_argument("--frames", type=_count, help="length of new samples (default: twice the clip's)")
    evaluate.add_argument("-n", type=_count, help="how many new samples (default 4)")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the table and its definitions here")
    evaluate.add_argument("--device", help="default: cuda where torch sees it, else cpu")
    common(evaluate)

    importing = command("import", _import, "make a run of a checkpoint of the published code")
    importing.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="modelNNNNNNNNN.pt")
    importing.add_argument("--out", type=Path, required=True, metavar="RUN", help="new folder of the run")
    importing.add_argument("--motion", type=Path, help="the clip it was trained on (default: as args.json says)")
    importing.add_argument("--args", type=Path, metavar="FILE", help="its args.json (default: beside the checkpoint)")

    exporting = command("export", _export, "write a run as a checkpoint of the published code")
    exporting.add_argument("run_folder", type=Path, metavar="RUN")
    exporting.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for it and its args.json")

    info = command("info", _info, "say what this machine has: versions, backends, and why others are missing")
    info.add_argument("--json", action="store_true")

    demo = command("demo", _demo, "train on the built-in clip, sample, and draw the result")
    demo.add_argument("--out", type=Path, help="new folder (default: demo, or the next free demo-2, ...)")
    demo.add_argument("--minutes", type=_positive, default=1.5, help="of training (default 1.5)")
    common(demo)
    return parser


def _steps_bar(quiet: bool, description: str) -> tuple[tqdm, Callable[[int, int], None]]:
    bar = tqdm(desc=description, unit="step", disable=quiet)

    def on_step(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, on_step


def _train(arguments: argparse.Namespace) -> None:
    from .training import train

    if arguments.fps is not None and arguments.layout in ("mixamo", "bvh_general"):
        raise ValueError(f"--fps does not go with --layout {arguments.layout}, which has a rule of its own")
    train(
        arguments.motion,
        arguments.out,
        preset=arguments.preset,
        recipe=arguments.recipe,
        layout=arguments.layout,
        representation=arguments.repr,
        steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        resume=arguments.resume,
        fps=arguments.fps or 30.0,
        precision=arguments.precision,
        device=arguments.device,
        progress=not arguments.quiet,
        tensorboard=arguments.tensorboard,
    )
    print(f"the run is in {arguments.out}; make motions: sinmdm sample {arguments.out} --frames 300 --out motions")


def _sample(arguments: argparse.Namespace) -> None:
    from .motion.atomic import filling
    from .run import load

    run = load(arguments.run_folder)
    frames = arguments.frames
    if frames is None:
        if run.fps is None:
            raise ValueError("--seconds needs a frame rate, which a run on an array does not have: give --frames")
        frames = max(1, round(min(arguments.seconds * run.fps, 2**31)))
        if frames >= 2**31:
            raise ValueError(f"--seconds must be less than {2**31 / run.fps:.0f}, got {arguments.seconds:g}")
    bar, on_step = _steps_bar(arguments.quiet, "sampling")
    with filling(arguments.out) as folder, bar:
        run.write_samples(
            folder, frames, arguments.n, seed=arguments.seed or 0, sampler=arguments.sampler, steps=arguments.steps,
            spacing=arguments.spacing, eta=arguments.eta, batch_size=arguments.batch_size, device=arguments.device,
            on_step=on_step,
        )  # fmt: skip
    print(f"{arguments.n} motions of {frames} frames are in {arguments.out}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from .evaluation import evaluate_run, format_table, to_json
    from .motion import read_motion
    from .motion.atomic import replacing
    from .run import load

    if arguments.samples and (arguments.frames or arguments.n):
        raise ValueError("--frames and -n are of new samples: leave them out where files are given")
    run = load(arguments.run_folder)
    samples = [read_motion(path) for path in arguments.samples] or None
    bar, on_step = _steps_bar(arguments.quiet, "sampling")
    with bar:
        rows, clip = evaluate_run(
            run, samples, frames=arguments.frames, n=arguments.n or 4, seed=arguments.seed or 0,
            device=arguments.device, on_step=on_step,
        )  # fmt: skip
    print(format_table(rows))
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(to_json(rows, clip), indent=2) + "\n")


def _import(arguments: argparse.Namespace) -> None:
    from .published import import_checkpoint

    import_checkpoint(arguments.checkpoint, arguments.out, motion=arguments.motion, arguments=arguments.args)
    print(f"the run is in {arguments.out}; make motions: sinmdm sample {arguments.out} --frames 300 --out motions")


def _export(arguments: argparse.Namespace) -> None:
    from .published import export_checkpoint
    from .run import load

    print(f"the checkpoint is {export_checkpoint(load(arguments.run_folder), arguments.out)}")


def _info(arguments: argparse.Namespace) -> None:
    from .info import format_info, machine_info

    info = machine_info()
    print(json.dumps(info, indent=2) if arguments.json else format_info(info))


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import demo, free_folder

    files = demo(
        arguments.out or free_folder(),
        minutes=arguments.minutes,
        seed=arguments.seed or 0,
        progress=not arguments.quiet,
    )
    print("look at:", *files, sep="\n  ")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Errors that a user can mend are one line on standard error, status 2."""
    arguments = _parser().parse_args(argv)
    from .kernels import BackendError

    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("sinmdm: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, BackendError) as error:
        print(f"sinmdm: error: {error}", file=sys.stderr)
        return 2
    return 0
