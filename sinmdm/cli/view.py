"""`sinmdm view`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .common import Command, positive


def add(command: Command) -> None:
    """The commands, with their arguments."""
    view = command("view", _view, "show motions as moving skeletons: a page, a video, or a strip of poses")
    view.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help=".bvh, results.npz, scene.json, or a folder of them"
    )
    view.add_argument(
        "--given", type=Path, action="append", default=[], metavar="FILE",
        help="a file of motions that were given, not generated: shown too, in the other colour",
    )  # fmt: skip
    view.add_argument("-o", "--out", type=Path, metavar="PAGE", help="one .html that needs nothing else")
    view.add_argument("--video", type=Path, metavar="FILE", help=".mp4 or .gif")
    view.add_argument("--fps", type=positive, metavar="F", help="frames a second of the video (default 30)")
    view.add_argument("--size", type=_size, metavar="WxH", help="pixels of the video, across and down (1280x720)")
    view.add_argument("--strip", type=Path, metavar="FILE", help="a picture of evenly spaced poses, .png")
    view.add_argument("--title", help="of the page (default: what the motions are called)")
    view.add_argument("--together", action="store_true", help="all in one world as they are, not beside each other")
    view.add_argument("--quiet", action="store_true", help="no progress bar")


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be width and height in pixels, as 640x360, got {text!r}")
    return int(width), int(height)


def _view(arguments: argparse.Namespace) -> None:
    outputs = [path for path in (arguments.out, arguments.video, arguments.strip) if path is not None]
    if not outputs:
        raise ValueError("nothing to write: give -o PAGE.html, --video FILE or --strip FILE")
    if arguments.title is not None and arguments.out is None:
        raise ValueError("--title is the page's: it needs -o PAGE.html")
    of_video: dict[str, Any] = {
        name: value for name in ("fps", "size") if (value := getattr(arguments, name)) is not None
    }
    if of_video and arguments.video is None:
        raise ValueError(f"--{next(iter(of_video))} is the video's: it needs --video FILE")
    for name, path, suffixes in (
        ("-o", arguments.out, (".html", ".htm")),
        ("--video", arguments.video, (".mp4", ".gif")),
        ("--strip", arguments.strip, (".png",)),
    ):
        if path is not None and path.suffix.lower() not in suffixes:
            raise ValueError(f"{name} is {path}, must end in {' or '.join(suffixes)}")
    from ..motion.atomic import check_target
    from ..view import load_characters
    from ..view.page import write_page
    from ..view.strip import ROWS, matplotlib_figure, write_strip
    from ..view.video import check_video, write_video

    for path in outputs:  # and what else each needs, before any is written: a video takes long
        check_target(path)
    scene = load_characters(arguments.files, given=arguments.given, together=arguments.together or None)
    count = len(scene.characters)
    if arguments.video is not None:
        check_video(arguments.video, scene, **of_video)
    if arguments.strip is not None:
        matplotlib_figure()
    if arguments.out is not None:
        write_page(arguments.out, scene, title=arguments.title)
    if arguments.strip is not None:
        write_strip(arguments.strip, scene)
        if count > ROWS:
            print(f"sinmdm: {arguments.strip} shows the first {ROWS} of {count} characters", file=sys.stderr)
    if arguments.video is not None:
        write_video(arguments.video, scene, progress=not arguments.quiet, **of_video)
    print(f"{count} character{'s' * (count != 1)}, {scene.seconds:.1f} s:", *outputs, sep="\n  ")
