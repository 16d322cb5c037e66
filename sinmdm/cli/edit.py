"""`sinmdm edit`: one command a way of editing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Command, add_common, add_device, add_sampler, count, share, steps_bar, whole

if TYPE_CHECKING:
    from ..editing import Edit
    from ..motion import Motion
    from ..run import Run


@dataclass(frozen=True)
class Time:
    """A number of frames, or of seconds where it was written with an s."""

    text: str

    def frames(self, run: Run) -> int:
        """Raises: ValueError where seconds are asked of a run without a frame rate, or it is no number."""
        seconds = self.text.endswith("s")
        try:
            value = float(self.text.removesuffix("s"))
        except ValueError:
            value = -1.0
        if not 0 <= value < 2**31 or (not seconds and value != int(value)):
            raise ValueError(f"a time must be frames (120) or seconds (4s), got {self.text!r}")
        if seconds and run.fps is None:
            raise ValueError(f"{self.text!r} needs a frame rate, which a run on an array does not have: give frames")
        return round(value * run.fps) if seconds and run.fps is not None else int(value)


def _span(text: str) -> tuple[Time | None, Time | None]:
    begin, colon, end = text.partition(":")
    if not colon or ":" in end:
        raise argparse.ArgumentTypeError(f"must be two times with a colon between them, got {text!r}")
    return Time(begin) if begin else None, Time(end) if end else None


def _pair(text: str) -> tuple[Time, Time]:
    begin, end = _span(text)
    if begin is None or end is None:
        raise argparse.ArgumentTypeError(f"must be two times with a colon between them, got {text!r}")
    return begin, end


def _pairs(run: Run, pairs: Sequence[tuple[Time | None, Time | None]] | None, last: int = 0) -> list[tuple[int, int]]:
    """Both times in frames; what is left out is the first or the last."""
    return [
        (0 if begin is None else begin.frames(run), last if end is None else end.frames(run))
        for begin, end in pairs or []
    ]


def _reference(arguments: argparse.Namespace, name: str = "reference") -> Motion | None:
    from ..motion import read_motion

    path = getattr(arguments, name)
    return None if path is None else read_motion(path)


def add(command: Command) -> None:
    """The command, with a mode for each way of editing."""
    edit = command("edit", _edit, "edit a motion with a trained run: fill in, lengthen, vary, restyle, join, loop")
    edit.add_argument("run_folder", type=Path, metavar="RUN")
    modes = edit.add_subparsers(dest="mode", required=True, metavar="MODE")

    def mode(name: str, make: Callable[[Run, argparse.Namespace], Edit], description: str) -> argparse.ArgumentParser:
        sub = modes.add_parser(name, help=description, description=description)
        sub.set_defaults(make=make)
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for sample00.bvh, ...")
        sub.add_argument("-n", type=count, default=1, help="how many different results (default 1)")
        add_sampler(sub)
        add_device(sub)
        add_common(sub)
        return sub

    def reference(sub: argparse.ArgumentParser, what: str = "motion to edit (default: the run's clip)") -> None:
        sub.add_argument("--reference", type=Path, metavar="MOTION", help=what)

    def width(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--width", type=whole(0, 2**31), help="frames of a transition (default 10, or what fits)")

    sub = mode("in-between", _in_between, "make parts anew between parts that stay, and arrive where these are")
    reference(sub)
    sub.add_argument("--given", type=_span, action="append", metavar="BEGIN:END", help="a span that stays")
    sub.add_argument("--generate", type=_span, action="append", metavar="BEGIN:END", help="a span to make anew")
    sub.add_argument("--joints", nargs="+", metavar="JOINT", help="make only these anew (as in compose)")
    width(sub)
    sub.add_argument("--compat", action="store_true", help="the published code's masks")
    sub.add_argument("--prefix-end", type=share, help="with --compat: share of the motion before the gap (0.25)")
    sub.add_argument("--suffix-start", type=share, help="with --compat: share of the motion up to its end (0.75)")

    sub = mode("expand", _expand, "lengthen a motion before, after and in between")
    reference(sub)
    sub.add_argument("--before", type=Time, metavar="TIME", help="as much before it")
    sub.add_argument("--after", type=Time, metavar="TIME", help="as much after it")
    sub.add_argument("--insert", type=_pair, action="append", metavar="AT:TIME", help="as much at a time in it")
    width(sub)
    sub.add_argument("--compat", action="store_true", help="the published code's masks")
    sub.add_argument("--prefix-length", type=share, help="with --compat: share of the motion before it (0.15)")
    sub.add_argument("--suffix-length", type=share, help="with --compat: share of the motion after it (0.15)")

    sub = mode("compose", _compose, "make some joints anew under the others' motion")
    reference(sub)
    joints = sub.add_mutually_exclusive_group(required=True)
    what = "joints with all below them, =NAME for one alone, upper-body, lower-body"
    joints.add_argument("--generate", nargs="+", metavar="JOINT", help=f"to make anew: {what}")
    joints.add_argument("--keep", nargs="+", metavar="JOINT", help="to keep, likewise")

    sub = mode("keyframes", _keyframes, "a motion through given poses")
    reference(sub, "motion that the poses are of (default: the run's clip)")
    sub.add_argument("--length", type=Time, required=True, metavar="TIME")
    sub.add_argument("--pose", type=_pair, action="append", required=True, metavar="AT:OF", help="pose, by its time")
    sub.add_argument("--keep-places", action="store_true", help="the root is also where it is in the reference")

    sub = mode("follow", _follow, "a motion along a given way over the ground")
    way = sub.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--way", type=Path, metavar="FILE", help=".csv with a line time,x,z for each point, in the file's units"
    )
    way.add_argument("--way-of", type=Path, metavar="MOTION", help="the root's way in a motion")
    sub.add_argument("--length", type=Time, metavar="TIME", help="default: up to the last point")

    sub = mode("harmonise", _harmonise, "another motion in the style of the run's clip")
    sub.add_argument("reference", type=Path, metavar="MOTION")
    sub.add_argument("--factor", type=count, help="take over what is slower than so many frames (default 2)")
    sub.add_argument("--until", type=share, help="share of the diffusion to leave to the model at its end (0.02)")
    sub.add_argument("--compat", action="store_true", help="the published code's levels of noise, factor 2")

    sub = mode("loop", _loop, "a motion that repeats without a seam")
    sub.add_argument("--length", type=Time, required=True, metavar="TIME")
    sub.add_argument("--travel", action="store_true", help="each round may lead further")

    sub = mode("join", _join, "one motion, then another, with a transition between them")
    sub.add_argument("first", type=Path, metavar="FIRST")
    sub.add_argument("second", type=Path, metavar="SECOND")
    sub.add_argument("--gap", type=Time, default=Time("30"), metavar="TIME", help="of the transition (default 30)")
    sub.add_argument("--keep-places", action="store_true", help="the second stays where it is on the ground")
    width(sub)


def _compat_only(arguments: argparse.Namespace, ours: tuple[str, ...], published: tuple[str, ...]) -> dict[str, Any]:
    """The published options that were given. Raises: ValueError where they are mixed with ours."""
    wrong = ours if arguments.compat else published
    given = [name for name in wrong if getattr(arguments, name) is not None]
    if given:
        does = "does not go" if arguments.compat else "goes only"
        raise ValueError(f"--{given[0].replace('_', '-')} {does} with --compat")
    return {name: getattr(arguments, name) for name in published if getattr(arguments, name) is not None}


def _in_between(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import compat, in_between
    from ..editing.applications import encoded

    reference = _reference(arguments)
    options = _compat_only(arguments, ("given", "generate", "joints", "width"), ("prefix_end", "suffix_start"))
    if arguments.compat:
        return compat.in_between(run, reference=reference, **options)
    last = len(encoded(run, reference)[0])
    spans = {
        name: _pairs(run, pairs, last)
        for name in ("given", "generate")
        if (pairs := getattr(arguments, name)) is not None
    }
    if not spans:
        raise ValueError("give --given or --generate, the spans that stay or those to make anew")
    return in_between(run, reference=reference, width=arguments.width, joints=arguments.joints, **spans)


def _expand(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import compat, expand

    reference = _reference(arguments)
    options = _compat_only(arguments, ("before", "after", "insert", "width"), ("prefix_length", "suffix_length"))
    if arguments.compat:
        return compat.expand(run, reference=reference, **options)
    return expand(
        run,
        before=arguments.before.frames(run) if arguments.before else 0,
        after=arguments.after.frames(run) if arguments.after else 0,
        insert=_pairs(run, arguments.insert),
        reference=reference,
        width=arguments.width,
    )


def _compose(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import compose

    return compose(run, generate=arguments.generate, keep=arguments.keep, reference=_reference(arguments))


def _keyframes(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import keyframes

    poses = _pairs(run, arguments.pose)
    frames = arguments.length.frames(run)
    return keyframes(run, frames, poses, reference=_reference(arguments), keep_places=arguments.keep_places)


def _follow(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import follow, way_of

    motion = _reference(arguments, "way_of")
    points = _read_way(run, arguments.way) if motion is None else way_of(run, motion)
    return follow(run, points, arguments.length.frames(run) if arguments.length else None)


def _read_way(run: Run, path: Path) -> Sequence[tuple[int, float, float]]:
    """Points of a .csv: a line time,x,z for each; a first line time,x,z, and those that begin with #, are left out."""
    points = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.replace(" ", "")
        if not text or text.startswith("#") or (number == 1 and text.lower() == "time,x,z"):
            continue
        try:
            time, x, z = line.split(",")
            points.append((Time(time.strip()).frames(run), float(x), float(z)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: must be time,x,z, got {line!r} ({error})") from error
    return points


def _harmonise(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import harmonise

    _compat_only(arguments, ("factor", "until"), ())
    reference = _reference(arguments)
    assert reference is not None
    if arguments.compat:
        return harmonise(run, reference, compat=True)
    until = 0.02 if arguments.until is None else arguments.until
    return harmonise(run, reference, factor=arguments.factor or 2, until=until)


def _loop(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import loop

    return loop(run, arguments.length.frames(run), travel=arguments.travel)


def _join(run: Run, arguments: argparse.Namespace) -> Edit:
    from ..editing import join

    first, second = _reference(arguments, "first"), _reference(arguments, "second")
    assert first is not None
    assert second is not None
    gap = arguments.gap.frames(run)
    return join(run, first, second, gap=gap, keep_places=arguments.keep_places, width=arguments.width)


def _said(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that were given, as JSON takes them."""
    left_out = {"command", "run", "make", "out", "quiet", "device", "seed", "n"}

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return ":".join(map(plain, value)) if isinstance(value, tuple) else [plain(each) for each in value]
        return value.text if isinstance(value, Time) else str(value) if isinstance(value, Path) else value or ""

    given = {name: value for name, value in vars(arguments).items() if value not in (None, False)}
    return {name: plain(value) for name, value in given.items() if name not in left_out}


def _sentence(report: dict[str, Any]) -> str:
    """What a motion's report says, in a line."""
    parts = []
    if report["kept_error"] is not None:
        parts.append(f"given parts off by {report['kept_error']:g}")
    if report["arrival_error"] is not None:
        parts.append(f"places by {report['arrival_error']:.1g}")
    if seams := report.get("seams"):
        rough = ", ".join(
            f"{'-' if seam['roughness'] is None else format(seam['roughness'], '.2f')} at {seam['frame']}"
            for seam in seams
        )
        usual = [f"{name} {value:.2f}" for name, value in report.get("usual", {}).items() if value is not None]
        parts.append(f"roughness of seams {rough}" + (f" (usually: {', '.join(usual)})" if usual else ""))
    return f"{report['file']}: " + ("; ".join(parts) or "nothing was given")


def _edit(arguments: argparse.Namespace) -> None:
    from ..editing.output import write_edit
    from ..motion.atomic import filling
    from ..run import load

    run = load(arguments.run_folder)
    edit = arguments.make(run, arguments)
    bar, on_step = steps_bar(arguments.quiet, arguments.mode)
    with filling(arguments.out) as folder, bar:
        reports = write_edit(
            folder, run, edit, arguments.n, said=_said(arguments), seed=arguments.seed or 0, sampler=arguments.sampler,
            steps=arguments.steps, spacing=arguments.spacing, eta=arguments.eta, device=arguments.device,
            on_step=on_step,
        )  # fmt: skip
    for report in reports:
        print(_sentence(report))
    print(f"{arguments.n} motions of {len(edit)} frames are in {arguments.out}")
