"""`sinmdm view`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Command


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
    view.add_argument("--strip", type=Path, metavar="FILE", help="a picture of evenly spaced poses, .png")
    view.add_argument("--title", help="of the page (default: what the motions are called)")
    view.add_argument("--together", action="store_true", help="all in one world as they are, not beside each other")


def _view(arguments: argparse.Namespace) -> None:
    outputs = [path for path in (arguments.out, arguments.video, arguments.strip) if path is not None]
    if not outputs:
        raise ValueError("nothing to write: give -o PAGE.html, --video FILE or --strip FILE")
    if arguments.title is not None and arguments.out is None:
        raise ValueError("--title is the page's: it needs -o PAGE.html")
    for name, path, suffixes in (
        ("-o", arguments.out, (".html", ".htm")),
        ("--video", arguments.video, (".mp4", ".gif")),
        ("--strip", arguments.strip, (".png",)),
    ):
        if path is not None and path.suffix.lower() not in suffixes:
            raise ValueError(f"{name} is {path}, must end in {' or '.join(suffixes)}")
    from ..view import load_characters

    scene = load_characters(arguments.files, given=arguments.given, together=arguments.together or None)
    if arguments.out is not None:
        from ..view.page import write_page

        write_page(arguments.out, scene, title=arguments.title)
    if arguments.video is not None:
        from ..view.video import write_video

        write_video(arguments.video, scene)
    if arguments.strip is not None:
        from ..view.strip import write_strip

        write_strip(arguments.strip, scene)
    count = len(scene.characters)
    print(f"{count} character{'s' * (count != 1)}, {scene.seconds:.1f} s:", *outputs, sep="\n  ")
