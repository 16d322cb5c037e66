"""The command line: `sinmdm demo | train | sample | crowd | evaluate | view | import | export | info`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from . import checkpoints, crowd, edit, evaluation, sampling, tools, training, view

GROUPS = (training, sampling, crowd, edit, evaluation, view, checkpoints, tools)


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="sinmdm", description="Train on one motion clip, and make new motions from it."
    )
    parser.add_argument("--version", action="version", version=f"sinmdm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(run=run)
        return sub

    for group in GROUPS:
        group.add(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Errors that a user can mend are one line on standard error, status 2."""
    arguments = _parser().parse_args(argv)
    from ..kernels import BackendError

    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("sinmdm: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, BackendError) as error:
        print(f"sinmdm: error: {error}", file=sys.stderr)
        return 2
    return 0
