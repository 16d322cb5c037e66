"""`sinmdm crowd`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from .common import Command, add_common, add_device, add_sampler, count, positive, steps_bar

# Arguments of `make_crowd` that are options here: its errors begin with their names.
_OPTIONS = ("layout", "facing", "distance", "apart", "steps", "eta", "batch_size", "device")


def add(command: Command) -> None:
    """The command, with its arguments."""
    from ..crowd import FACINGS

    crowd = command("crowd", _crowd, "make many motions with a trained run, in one world and kept apart")
    crowd.add_argument("run_folder", type=Path, metavar="RUN")
    crowd.add_argument("-n", type=count, help="how many characters (a layout's file may say it)")
    crowd.add_argument(
        "--frames", type=_frames, required=True, metavar="N|LOW:HIGH", help="length of each motion, or drawn for each"
    )
    crowd.add_argument(
        "--layout", default="grid", metavar="grid|circle|FILE",
        help="where they begin: in rows (default), on a circle, or as a .csv or .json file says: x, z, heading a row",
    )  # fmt: skip
    crowd.add_argument("--facing", choices=tuple(FACINGS), help="of circle: where they look at the start (default in)")
    crowd.add_argument(
        "--distance", type=positive, metavar="D",
        help="between neighbours at the start, in the clip's units (default 1.5 times --apart); widened where needed",
    )  # fmt: skip
    crowd.add_argument(
        "--apart", type=_length, metavar="D",
        help="what roots keep between them at all times; 0: nothing (default: twice what the clip's body reaches)",
    )  # fmt: skip
    crowd.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for scene.json and motions")
    add_sampler(crowd)
    crowd.add_argument("--batch-size", type=count, help="motions computed at once (default up to 65536 frames)")
    add_device(crowd)
    add_common(crowd)


def _frames(text: str) -> int | tuple[int, int]:
    low, colon, high = text.partition(":")
    if not colon:
        return count(text)
    if count(low) > count(high):
        raise argparse.ArgumentTypeError(f"must be the shortest and the longest, got {text!r}")
    return count(low), count(high)


def _length(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more, got {text!r}")
    return value


@contextlib.contextmanager
def _named_as_options() -> Iterator[None]:
    """Errors that begin with the name of an argument begin with that of its option."""
    names = {"n": "-n"} | {name: "--" + name.replace("_", "-") for name in _OPTIONS}
    try:
        yield
    except ValueError as error:
        name, space, words = str(error).partition(" ")
        if name not in names:
            raise
        raise ValueError(names[name] + space + words) from error


def _crowd(arguments: argparse.Namespace) -> None:
    from ..crowd import make_crowd
    from ..motion.atomic import filling
    from ..run import load

    run = load(arguments.run_folder)
    with filling(arguments.out) as folder:
        bar, on_step = steps_bar(arguments.quiet, "sampling")
        with _named_as_options(), bar:
            crowd = make_crowd(
                run, arguments.n, arguments.frames, layout=arguments.layout, facing=arguments.facing,
                distance=arguments.distance, apart=arguments.apart, seed=arguments.seed or 0,
                sampler=arguments.sampler, steps=arguments.steps, spacing=arguments.spacing, eta=arguments.eta,
                batch_size=arguments.batch_size, device=arguments.device, on_step=on_step,
            )  # fmt: skip
        bar, on_step = steps_bar(arguments.quiet, "writing")
        with bar:
            crowd.write(folder, on_step=on_step)
    lengths = [len(clip) for clip in crowd.clips]
    frames = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
    start = "" if crowd.distance is None else f", neighbours {crowd.distance:.4g} apart at the start"
    print(f"{len(crowd)} characters of {frames} frames are in {arguments.out}: {crowd.layout}{start}")
    if crowd.closest is not None:
        first, second = crowd.closest.characters
        print(
            f"the closest roots are those of {first} and {second}, {crowd.closest.distance:.4g} apart at "
            f"{crowd.closest.frame / crowd.clips[0].fps:.2f} s; at least {crowd.apart:.4g} was to be kept"
        )
