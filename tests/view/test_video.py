"""Videos: what is in the files, and that they are whole or not there."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinmdm.motion import walker
from sinmdm.view import Character, Scene, set_out
from sinmdm.view import video as module
from sinmdm.view.colours import GENERATED, GIVEN, PAGE, rgb
from sinmdm.view.renderer import Renderer
from sinmdm.view.video import check_video, write_video

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="videos are encoded by the ffmpeg of imageio-ffmpeg")
pytest.importorskip("PIL", reason="frames are drawn by Pillow")

SIZE = (192, 108)
FPS = 10


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A given and a generated walk beside each other, of 12 and 7 frames at 10 a second."""
    clip = walker(legs=4, seconds=1.2, fps=10)
    positions = clip.positions().numpy().astype(np.float32)
    one = Character("given", clip.names, clip.parents, positions, clip.frame_time, np.ones(positions.shape[:2], bool))
    return set_out([[one], [replace(one, label="made", positions=positions[:7], given=None)]])


def _ffmpeg(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)


def _decoded(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    """All frames of a file, (frames, height, width, 3)."""
    said = _ffmpeg(
        "-loglevel",
        "error",
        "-i",
        f"file:{path}",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-fps_mode",
        "passthrough",
        "-",
    )
    assert said.returncode == 0, said.stderr
    return np.frombuffer(said.stdout, np.uint8).reshape(-1, size[1], size[0], 3).astype(int)


def _described(path: Path) -> str:
    """What ffmpeg says of a file's stream."""
    text = _ffmpeg("-i", f"file:{path}").stderr.decode()
    match = re.search(r"Stream #.*", text)
    assert match is not None, text
    return match[0]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".MP4"])
def test_frames_are_the_pictures_in_order(suffix: str, scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / f"walk{suffix}"
    write_video(path, scene, fps=FPS, size=SIZE)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode == _plain_mode(tmp_path)
    renderer = Renderer(scene, [index / FPS for index in range(12)], fps=FPS, size=SIZE)
    drawn = np.stack([np.asarray(renderer.frame(index)).astype(int) for index in range(12)])
    decoded = _decoded(path)
    assert decoded.shape == drawn.shape
    apart = np.array([[np.abs(one - other).mean() for other in drawn] for one in decoded])
    assert apart.argmin(axis=1).tolist() == list(range(12))


def _plain_mode(folder: Path) -> int:
    (folder / "plain").touch()
    mode = (folder / "plain").stat().st_mode
    (folder / "plain").unlink()
    return stat.S_IFMT(mode) | stat.S_IMODE(mode)


def test_an_mp4_plays_everywhere(scene: Scene, tmp_path: Path) -> None:
    write_video(tmp_path / "walk.mp4", scene, fps=24, size=SIZE)
    stream = _described(tmp_path / "walk.mp4")
    for words in ("h264 (High)", "yuv420p(tv, bt709, progressive)", "192x108", "24 fps"):
        assert words in stream, stream
    content = (tmp_path / "walk.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # a browser shows it before it has all of it
    assert len(_decoded(tmp_path / "walk.mp4")) == round(1.2 * 24)


def test_a_gif_repeats_and_has_good_colours(scene: Scene, tmp_path: Path) -> None:
    write_video(tmp_path / "walk.gif", scene, fps=FPS, size=SIZE)
    content = (tmp_path / "walk.gif").read_bytes()
    assert content[:6] == b"GIF89a"
    assert b"NETSCAPE2.0\x03\x01\x00\x00\x00" in content  # again and again
    assert "10 fps" in _described(tmp_path / "walk.gif")
    renderer = Renderer(scene, [index / FPS for index in range(12)], fps=FPS, size=SIZE)
    drawn = np.stack([np.asarray(renderer.frame(index)) for index in range(12)])
    raw = tmp_path / "drawn.rgb"
    raw.write_bytes(drawn.tobytes())
    source = ["-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "192x108", "-r", FPS, "-i", raw]
    assert _ffmpeg(*source, tmp_path / "fixed.gif").returncode == 0
    ours, fixed = (np.abs(_decoded(tmp_path / name) - drawn).mean() for name in ("walk.gif", "fixed.gif"))
    assert ours < fixed / 4  # than with the colours that ffmpeg takes for any picture


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_colours_come_through(suffix: str, scene: Scene, tmp_path: Path) -> None:
    write_video(tmp_path / f"walk{suffix}", scene, fps=FPS, size=(640, 360))
    first = _decoded(tmp_path / f"walk{suffix}", (640, 360))[0]
    renderer = Renderer(scene, [index / FPS for index in range(12)], fps=FPS, size=(640, 360))
    drawn = np.asarray(renderer.frame(0)).astype(int)
    for colour in (GIVEN, GENERATED, PAGE):
        there = (drawn == rgb(colour)).all(axis=-1)
        inside = (
            there.copy()
        )  # where the pixels around are of that colour, too: video has fewer of colour than of light
        for shift in (-2, -1, 1, 2):
            inside &= np.roll(there, shift, axis=0) & np.roll(there, shift, axis=1)
        assert inside.any()
        # Limited range has 219 levels of 255, and three of their roundings come together in a channel.
        assert np.abs(np.median(first[inside], axis=0) - rgb(colour)).max() <= 4


def test_as_long_as_the_longest(scene: Scene, tmp_path: Path) -> None:
    for fps, frames in ((5, 6), (30, 36), (0.1, 1)):
        write_video(tmp_path / "walk.gif", scene, fps=fps, size=(64, 64))
        assert len(_decoded(tmp_path / "walk.gif", (64, 64))) == frames


def test_the_same_scene_gives_the_same_bytes(scene: Scene, tmp_path: Path) -> None:
    for suffix in (".mp4", ".gif"):
        for name in ("one", "two"):
            write_video(tmp_path / f"{name}{suffix}", scene, fps=FPS, size=SIZE)
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_names_are_no_words_for_a_shell_or_ffmpeg(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "-i %03d"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("-y.mp4", "pipe:1 $(touch x); 'é\".gif"):
        write_video(name, scene, fps=FPS, size=SIZE)
    assert {path.name for path in folder.iterdir()} == {"-y.mp4", "pipe:1 $(touch x); 'é\".gif"}


def test_progress_is_shown_where_asked_for(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "walk.gif", scene, fps=FPS, size=(64, 64))
    assert capsys.readouterr() == ("", "")
    write_video(tmp_path / "walk.gif", scene, fps=FPS, size=(64, 64), progress=True)
    assert "12/12" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("walk.avi", {}, r"walk\.avi: suffix is '\.avi', must be \.mp4 or \.gif$"),
        ("walk.mp4", {"fps": 0}, r"^fps is 0, must be above 0 and at most 240 for \.mp4$"),
        ("walk.mp4", {"fps": float("nan")}, r"^fps is nan, must be"),
        ("walk.mp4", {"fps": "30"}, r"^fps is '30', must be"),
        ("walk.gif", {"fps": 51}, r"^fps is 51, must be above 0 and at most 50 for \.gif$"),
        ("walk.mp4", {"size": (640, 361)}, r"^size is \(640, 361\), must be even numbers for \.mp4$"),
        (
            "walk.gif",
            {"size": (63, 640)},
            r"^size is \(63, 640\), must be width and height, each a whole number from 64",
        ),
        ("walk.gif", {"size": (640.0, 640)}, r"^size is \(640\.0, 640\), must be"),
        ("walk.gif", {"size": (640,)}, r"^size is \(640,\), must be"),
        ("walk.gif", {"size": (640, 8193)}, r"^size is \(640, 8193\), must be"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], message: str, scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, scene, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame_time", [33.0 * 1000, 1e300, 1e308])
def test_more_frames_than_anyone_waits_for(frame_time: float, scene: Scene, tmp_path: Path) -> None:
    slow = replace(scene, characters=tuple(replace(one, frame_time=frame_time) for one in scene.characters))
    said = r"walk\.mp4: .* s at 10 frames a second are more than 100000 frames: .*mend a frame time"
    for call in (write_video, check_video):
        with pytest.raises(ValueError, match=said):
            call(tmp_path / "walk.mp4", slow, fps=FPS, size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing"):
        write_video(tmp_path / "missing" / "walk.mp4", scene, fps=FPS, size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes ffmpeg a shell script that does this."""

    def make(text: str) -> None:
        script = tmp_path / "bin" / "ffmpeg"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(module, "_ffmpeg", lambda: str(script))

    return make


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo first >&2; echo Unknown encoder >&2; exit 3", "ffmpeg failed: Unknown encoder$"),
        ("cat > /dev/null; exit 4", "ffmpeg failed: status 4$"),
        ("kill -9 $$", "ffmpeg failed: status -9$"),
    ],
)
def test_where_ffmpeg_fails_nothing_is_left(
    text: str, said: str, program: Callable[[str], None], scene: Scene, tmp_path: Path
) -> None:
    program(text)
    out = tmp_path / "out"
    out.mkdir()
    (out / "walk.mp4").write_text("before")
    with pytest.raises(OSError, match=r"walk\.mp4: " + said):
        write_video(out / "walk.mp4", scene, fps=FPS, size=SIZE)
    assert [path.read_text() for path in out.iterdir()] == ["before"]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_where_drawing_is_interrupted_nothing_is_left_and_nothing_runs_on(
    suffix: str, error: type[BaseException], scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, popen = Renderer.frame, subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(renderer: Renderer, index: int) -> Any:
        if started and index == 5:
            raise error
        return frame(renderer, index)

    def watched(*given: Any, **options: Any) -> Any:
        started.append(popen(*given, **options))
        return started[-1]

    monkeypatch.setattr(Renderer, "frame", interrupted)
    monkeypatch.setattr(subprocess, "Popen", watched)
    threads = threading.active_count()
    with pytest.raises(error):
        write_video(tmp_path / f"walk{suffix}", scene, fps=FPS, size=SIZE)
    assert list(tmp_path.iterdir()) == []
    assert [process.returncode is not None for process in started] == [True]
    assert threading.active_count() == threads


def test_without_imageio_ffmpeg(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"^videos need ffmpeg: pip install 'sinmdm\[view\]' \("):
        write_video(tmp_path / "walk.mp4", scene)
    assert list(tmp_path.iterdir()) == []


def test_without_a_program(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    with pytest.raises(ImportError, match=r"\(No ffmpeg exe could be found\)$"):
        write_video(tmp_path / "walk.mp4", scene)
    assert list(tmp_path.iterdir()) == []
