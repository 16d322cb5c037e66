"""`sinmdm import` and `sinmdm export`: checkpoints of the published code."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Command
from .humanml import add_features, said


def add(command: Command) -> None:
    """The commands, with their arguments."""
    importing = command("import", _import, "make a run of a checkpoint of the published code")
    importing.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="modelNNNNNNNNN.pt")
    importing.add_argument("--out", type=Path, required=True, metavar="RUN", help="new folder of the run")
    importing.add_argument("--motion", type=Path, help="the clip it was trained on (default: as args.json says)")
    importing.add_argument("--args", type=Path, metavar="FILE", help="its args.json (default: beside the checkpoint)")
    add_features(importing)

    exporting = command("export", _export, "write a run as a checkpoint of the published code")
    exporting.add_argument("run_folder", type=Path, metavar="RUN")
    exporting.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for it and its args.json")


def _import(arguments: argparse.Namespace) -> None:
    from ..published import import_checkpoint

    features = said(arguments)
    import_checkpoint(
        arguments.checkpoint,
        arguments.out,
        motion=arguments.motion,
        arguments=arguments.args,
        features=arguments.features,
        mean=None if features is None else features["mean"],
        std=None if features is None else features["std"],
    )
    print(f"the run is in {arguments.out}; make motions: sinmdm sample {arguments.out} --frames 300 --out motions")


def _export(arguments: argparse.Namespace) -> None:
    from ..published import export_checkpoint
    from ..run import load

    print(f"the checkpoint is {export_checkpoint(load(arguments.run_folder), arguments.out)}")
