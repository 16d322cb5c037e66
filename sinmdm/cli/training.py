"""`sinmdm train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Command, add_common, add_device, count, positive
from .humanml import add_features, said


def add(command: Command) -> None:
    """The commands, with their arguments."""
    from ..motion import KINDS, REPRESENTATIONS
    from ..presets import PRESETS, RECIPES
    from ..training import PRECISIONS

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
    add_features(train)
    length = train.add_mutually_exclusive_group()
    length.add_argument("--steps", type=count, help="default: the preset's")
    length.add_argument("--minutes", type=positive, help="train for so long instead of so many steps")
    train.add_argument("--resume", action="store_true", help="continue the run in the folder")
    train.add_argument("--fps", type=positive, help="thin the clip to at most this rate (default 30)")
    train.add_argument("--precision", choices=PRECISIONS, help="default float32")
    add_device(train)
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events into the folder")
    train.add_argument("--no-pictures", action="store_true", help="leave out RUN/loss.png and RUN/strip.png")
    train.add_argument(
        "--evaluate-every", type=count, metavar="N",
        help="every N steps and at the end, measure samples and append a row to RUN/evaluation.csv",
    )  # fmt: skip
    add_common(train)


def _train(arguments: argparse.Namespace) -> None:
    from ..motion import read_humanml
    from ..training import train

    if arguments.fps is not None and arguments.layout in ("mixamo", "bvh_general", "humanml"):
        raise ValueError(f"--fps does not go with --layout {arguments.layout}, which has a rule of its own")
    features, humanml = said(arguments), arguments.layout == "humanml"
    if features is None and humanml:
        raise ValueError(
            "--layout humanml needs --features raw, or --features normalised with --mean and --std: nothing in the "
            "file says which it is"
        )
    if features is not None and not (humanml or arguments.resume):
        raise ValueError("--features is of --layout humanml")
    motion = arguments.motion
    if features is not None and (features["normalised"] or arguments.resume):
        motion = read_humanml(motion, **features)
    train(
        motion,
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
        evaluate_every=arguments.evaluate_every,
        pictures=not arguments.no_pictures,
    )
    print(f"the run is in {arguments.out}; make motions: sinmdm sample {arguments.out} --frames 300 --out motions")
