"""`sinmdm info` and `sinmdm demo`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .common import Command, add_common, positive


def add(command: Command) -> None:
    """The commands, with their arguments."""
    info = command("info", _info, "say what this machine has: versions, backends, and why others are missing")
    info.add_argument("--json", action="store_true")

    demo = command("demo", _demo, "train on the built-in clip, sample, and draw the result")
    demo.add_argument("--out", type=Path, help="new folder (default: demo, or the next free demo-2, ...)")
    demo.add_argument("--minutes", type=positive, default=1.5, help="of training (default 1.5)")
    add_common(demo)


def _info(arguments: argparse.Namespace) -> None:
    from ..info import format_info, machine_info

    info = machine_info()
    print(json.dumps(info, indent=2) if arguments.json else format_info(info))


def _demo(arguments: argparse.Namespace) -> None:
    from ..demo import demo, free_folder

    files = demo(
        arguments.out or free_folder(),
        minutes=arguments.minutes,
        seed=arguments.seed or 0,
        progress=not arguments.quiet,
    )
    print("look at:", *files, sep="\n  ")
