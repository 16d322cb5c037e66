"""Scenes as videos, .mp4 and .gif, encoded by the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..motion.atomic import check_target, replacing
from .renderer import Renderer, check_drawing
from .scene import Scene

_FASTEST = {".mp4": 240.0, ".gif": 50.0}  # frames a second: players show a .gif's frames for 0.02 s at least
_LARGEST = 8192
_LONGEST = 100_000  # frames
# The colours are those of HD television, and the file says so: players would guess from the size of the picture.
_HD = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_SAMPLED = 24  # frames that a .gif's colours are chosen from


def write_video(
    path: str | os.PathLike[str],
    scene: Scene,
    *,
    fps: float = 30,
    size: tuple[int, int] = (1280, 720),
    follow: bool | None = None,
    progress: bool = False,
) -> None:
    """Write a scene as a video: .mp4 (H.264 in 4:2:0, which players and browsers play) or .gif (which repeats).

    It lasts as long as the longest character; one that is over stays in its last frame. All characters are in
    sight all the time. In memory are a frame, and what `Renderer` says.

    Args:
        path: file to write, whole or not at all.
        scene: what to show, as `sinmdm.view.load_characters` or `set_out` made it.
        fps: frames a second, at most 240 (.mp4) or 50 (.gif).
        size: width and height in pixels, from 64 to 8192; even for .mp4.
        follow: whether the camera goes along with the characters; None: where it is much nearer for it.
        progress: show a bar.

    Raises:
        ValueError: an argument that is not as above, or a video of more than 100 000 frames.
        ImportError: a library of the extra `view` is missing.
        OSError: the file cannot be written, or ffmpeg failed; the message says how.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    ffmpeg = check_video(path, scene, fps=fps, size=size)
    times = [index / fps for index in range(max(1, math.floor(scene.seconds * fps + 0.5)))]
    renderer = Renderer(scene, times, fps=fps, size=size, follow=follow)

    def frames() -> Iterator[bytes]:
        for index in tqdm(range(len(times)), desc="drawing", unit="frame", disable=not progress):
            yield renderer.frame(index).tobytes()

    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:.6f}", "-i", "pipe:0"]
    with replacing(path.absolute()) as temporary, tempfile.TemporaryDirectory() as scratch:
        if suffix == ".gif":
            palette = Path(scratch) / "palette.png"
            _palette(renderer, len(times)).save(palette)
            options = [*source, "-i", f"file:{palette}", "-lavfi", "paletteuse=dither=none:diff_mode=rectangle"]
            options += ["-loop", "0", "-f", "gif"]
        else:
            options = [*source, "-vf", f"scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,{_HD}"]
            options += ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-movflags", "+faststart", "-f", "mp4"]
        _encode([ffmpeg, "-y", "-loglevel", "error", *options, "-bitexact", f"file:{temporary}"], frames(), path)


def check_video(
    path: str | os.PathLike[str], scene: Scene, *, fps: float = 30, size: tuple[int, int] = (1280, 720)
) -> str:
    """What `write_video` needs, so that it does not fail after others have written: the path of ffmpeg.

    Raises: as `write_video`, apart from what goes wrong in writing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FASTEST:
        raise ValueError(f"{path}: suffix is {path.suffix!r}, must be .mp4 or .gif")
    if not (isinstance(fps, (int, float)) and 0 < fps <= _FASTEST[suffix]):
        raise ValueError(f"fps is {fps!r}, must be above 0 and at most {_FASTEST[suffix]:g} for {suffix}")
    if len(size) != 2 or not all(isinstance(side, int) and 64 <= side <= _LARGEST for side in size):
        raise ValueError(f"size is {size!r}, must be width and height, each a whole number from 64 to {_LARGEST}")
    if suffix == ".mp4" and (size[0] % 2 or size[1] % 2):
        raise ValueError(f"size is {size!r}, must be even numbers for .mp4")
    if scene.seconds * fps > _LONGEST:
        raise ValueError(
            f"{path}: {scene.seconds:.6g} s at {fps:g} frames a second are more than {_LONGEST} frames: lower fps, "
            "show shorter motions, or mend a frame time that is not in seconds"
        )
    check_drawing()
    check_target(path.absolute())
    return _ffmpeg()


def _ffmpeg() -> str:
    """The program. Raises: ImportError where imageio-ffmpeg, or the ffmpeg that it looks for, is missing."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there, and has no program
        raise ImportError(f"videos need ffmpeg: pip install 'sinmdm[view]' ({error})") from error


def _encode(command: Sequence[str], frames: Iterator[bytes], path: Path) -> None:
    """Pipe the frames to a program. Raises: OSError with what it said where it failed."""
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said) as process:
            assert process.stdin is not None
            try:
                for frame in frames:
                    process.stdin.write(frame)
                process.stdin.close()
            except BrokenPipeError:  # it is over before the frames are: its status says why
                pass
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            said.seek(0)
            words = said.read().decode("utf-8", "replace").strip().splitlines()
            raise OSError(f"{path}: ffmpeg failed: {words[-1] if words else f'status {process.returncode}'}")


def _palette(renderer: Renderer, frames: int) -> Any:
    """256 colours for all frames, 16 x 16 pixels: chosen from some of the frames, the rare colours too."""
    from PIL import Image

    count = min(frames, _SAMPLED)
    chosen = [renderer.frame(round(index * (frames - 1) / max(count - 1, 1))) for index in range(count)]
    width, height = chosen[0].size
    sheet = Image.new("RGB", (width, height * count))
    for row, picture in enumerate(chosen):
        sheet.paste(picture, (0, row * height))
    colours = bytes(sheet.quantize(256, Image.Quantize.MEDIANCUT).getpalette() or ())
    return Image.frombytes("RGB", (16, 16), (colours * 256)[: 3 * 256])  # there may be fewer: some then come twice
