"""`sinmdm view` with a video or a strip; what it refuses, it refuses before it writes anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sinmdm.cli import main
from sinmdm.motion import walker
from sinmdm.view import strip, video

pytest.importorskip("imageio_ffmpeg", reason="videos are encoded by the ffmpeg of imageio-ffmpeg")
pytest.importorskip("matplotlib", reason="the strip is drawn by matplotlib")
pytest.importorskip("PIL", reason="frames are drawn by Pillow")

OUTPUTS = ["-o", "page.html", "--video", "walk.gif", "--strip", "strip.png"]


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A clip of a second; the current folder is an empty one."""
    walker(seconds=1).write(tmp_path / "clip.bvh")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return str(tmp_path / "clip.bvh")


def _written() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_all_it_writes(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", clip, *OUTPUTS, "--fps", "4", "--size", "64x80"]) == 0
    said = capsys.readouterr()
    assert said.out == "1 character, 1.0 s:\n  page.html\n  walk.gif\n  strip.png\n"
    assert "4/4" in said.err
    assert _written() == ["page.html", "strip.png", "walk.gif"]
    head = Path("walk.gif").read_bytes()[:10]
    assert (int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:], "little")) == (64, 80)
    assert main(["view", clip, "--video", "walk.gif", "--fps", "2", "--size", "64x64", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_strip_of_many_says_that_it_is_of_the_first(
    clip: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(Path("../other.bvh"))
    walker(seconds=1, seed=1).write(other)
    assert main(["view", clip, other, "--strip", "strip.png"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(strip, "ROWS", 1)
    assert main(["view", clip, other, "--strip", "strip.png"]) == 0
    assert capsys.readouterr().err == "sinmdm: strip.png shows the first 1 of 2 characters\n"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("imageio_ffmpeg", "videos need ffmpeg: pip install 'sinmdm[view]'"),
        ("PIL", "drawing needs Pillow and matplotlib: pip install 'sinmdm[view]'"),
        ("matplotlib.backends.backend_agg", "drawing needs matplotlib: pip install 'sinmdm[plot]'"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(
    missing: str, said: str, clip: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["view", clip, *OUTPUTS]) == 2
    assert said in capsys.readouterr().err
    assert _written() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--video", "none/walk.mp4"], "none/walk.mp4: there is no folder none"),
        (["--strip", "none/strip.png"], "none/strip.png: there is no folder none"),
        (["--video", "walk.mp4", "--size", "64x65"], "size is (64, 65), must be even numbers for .mp4"),
        (["--video", "walk.gif", "--fps", "51"], "fps is 51.0, must be above 0 and at most 50 for .gif"),
        (["--video", "walk.mp4", "--size", "9999x64"], "size is (9999, 64), must be width and height, each a whole"),
        (["--fps", "30"], "--fps is the video's: it needs --video FILE"),
        (["--size", "64x64"], "--size is the video's: it needs --video FILE"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    arguments: list[str], said: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", clip, "-o", "page.html", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"sinmdm: error: {said}")
    assert _written() == []


@pytest.mark.parametrize("size", ["64", "64x", "x64", "64x-1", "64 x 64", "64.0x64"])
def test_a_size_that_is_none(size: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["view", clip, "--video", "walk.mp4", "--size", size])
    assert f"--size: must be width and height in pixels, as 640x360, got {size!r}" in capsys.readouterr().err


def test_the_video_comes_last(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(video, "write_video", failing)
    assert main(["view", clip, *OUTPUTS]) == 2
    assert _written() == ["page.html", "strip.png"]
