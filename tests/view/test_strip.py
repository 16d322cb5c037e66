"""The strip: rows, poses and colours as they are in the picture."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED_DATA

from sinmdm.motion import Clip, walker
from sinmdm.view import Character, Scene, load_characters, set_out, strip
from sinmdm.view.colours import GENERATED, GIVEN
from sinmdm.view.strip import write_strip

image = pytest.importorskip("matplotlib.image", reason="the strip is drawn by matplotlib")
colors = pytest.importorskip("matplotlib.colors", reason="the strip is drawn by matplotlib")


def _character(clip: Clip, label: str = "walk", given: bool = False) -> Character:
    positions = clip.positions().numpy().astype(np.float32)
    which = np.full(positions.shape[:2], given)
    return Character(label, clip.names, clip.parents, positions, clip.frame_time, which)


def _scene(*characters: Character) -> Scene:
    return set_out([[character] for character in characters])


def _share(picture: np.ndarray, colour: str) -> float:
    """Of a picture's pixels, how many lie on the way from the colour to white, the colour itself apart from white."""
    base = np.array(colors.to_rgb(colour))
    ink = 1 - picture[..., :3]
    amount = ink @ (1 - base) / ((1 - base) @ (1 - base))
    off = np.abs(ink - amount[..., None] * (1 - base)).max(axis=-1)
    return float(((amount > 0.4) & (off < 0.02)).mean())


def _drawn(tmp_path: Path, scene: Scene, **options: int) -> np.ndarray:
    write_strip(tmp_path / "strip.png", scene, **options)
    return image.imread(tmp_path / "strip.png")


def test_rows_and_colours(tmp_path: Path) -> None:
    walk = walker(seconds=2)
    given = _character(walk, "given", given=True)
    one = _drawn(tmp_path, _scene(given))
    three = _drawn(tmp_path, _scene(given, _character(walker(seconds=3, seed=1), "first"), _character(walk, "second")))
    assert one.shape[1] == three.shape[1]
    assert 2.5 < three.shape[0] / one.shape[0] < 3.5
    assert _share(one, GIVEN) > 0.005
    assert _share(one, GENERATED) == 0
    third = len(three) // 3
    assert _share(three[:third], GIVEN) > 0.005
    assert _share(three[third + 20 :], GENERATED) > 0.005
    assert _share(three[: third - 20], GENERATED) == 0
    assert _share(three[third + 20 :], GIVEN) == 0


def test_frames_and_joints_have_their_own_colours(tmp_path: Path) -> None:
    walk = _character(walker(seconds=2))
    assert walk.given is not None
    frames = walk.given.copy()
    frames[: walk.frames // 2] = True
    picture = _drawn(tmp_path, _scene(replace(walk, given=frames, label=" ")))
    middle = picture.shape[1] // 2
    assert _share(picture[:, :middle], GIVEN) > 0.005
    assert _share(picture[:, :middle], GENERATED) == 0
    assert _share(picture[:, middle:], GENERATED) > 0.005
    assert _share(picture[:, middle:], GIVEN) == 0
    joints = walk.given.copy()
    joints[:, ::2] = True
    for half in np.split(_drawn(tmp_path, _scene(replace(walk, given=joints)))[:, : 2 * middle], 2, axis=1):
        assert _share(half, GIVEN) > 0.002
        assert _share(half, GENERATED) > 0.002


def test_nothing_given_is_generated(tmp_path: Path) -> None:
    walk = _character(walker(seconds=2))
    assert np.array_equal(_drawn(tmp_path, _scene(walk)), _drawn(tmp_path, _scene(replace(walk, given=None))))


def test_poses_fill_the_width(tmp_path: Path) -> None:
    for poses in (1, 4):
        drawn = (_drawn(tmp_path, _scene(_character(walker(seconds=2))), poses=poses)[..., :3] < 0.7).any(axis=-1)
        columns = np.flatnonzero(drawn[drawn.shape[0] // 3 : -40].any(axis=0))
        assert columns[0] < 0.15 * drawn.shape[1]
        assert columns[-1] > 0.85 * drawn.shape[1]


def test_where_a_character_has_gone_does_not_matter(tmp_path: Path) -> None:
    walk = _character(walker(seconds=2))
    coarse = np.round(walk.positions * 4096) / 4096  # so that whole units can be added without rounding
    way = 16 * np.arange(walk.frames, dtype=np.float32)
    gone = coarse + np.stack([way, np.full_like(way, 8), -way], axis=-1)[:, None]
    here, there = (_drawn(tmp_path, Scene((replace(walk, positions=one),), False, (1.0,))) for one in (coarse, gone))
    assert np.array_equal(here, there)


@pytest.mark.parametrize(
    "parents",
    [(-1,), (-1, -1, -1), (-1, 0), (*range(-1, 59),), (-1, 0, -1, 2, 2)],
    ids=["one joint", "three alone", "a bone", "a chain", "two trees"],
)
@pytest.mark.parametrize("frames", [1, 5])
def test_any_skeleton(parents: tuple[int, ...], frames: int, tmp_path: Path) -> None:
    positions = np.random.default_rng(0).normal(size=(frames, len(parents), 3)).astype(np.float32)
    names = tuple(f"joint {joint}" for joint in range(len(parents)))
    given = Character(
        "a $label_ that is no formula^", names, parents, positions, 0.1, np.ones(positions.shape[:2], bool)
    )
    picture = _drawn(tmp_path, _scene(given, replace(given, label="b", given=None)), poses=3)
    assert _share(picture[: len(picture) // 2], GIVEN) > 0
    assert _share(picture[len(picture) // 2 :], GENERATED) > 0


@pytest.mark.parametrize("name", ["Salsa-Dancing-6.bvh", "Crab-dance-long.bvh"])
def test_real_clips(name: str, tmp_path: Path) -> None:
    if not (SHARED_DATA / name).exists():
        pytest.skip(f"{name} is not in {SHARED_DATA.name}/ beside the checkout")
    scene = load_characters([SHARED_DATA / name], given=[SHARED_DATA / name])
    assert _share(_drawn(tmp_path, scene), GIVEN) > 0.005


def test_of_many_the_first_are_drawn_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip, "ROWS", 2)
    people = [_character(walker(seconds=1, seed=seed), str(seed)) for seed in range(3)]
    two, three = (_drawn(tmp_path, Scene(tuple(some), True, (1.0,) * len(some))) for some in (people[:2], people))
    more = len(three) - len(two)
    assert more == pytest.approx(120 * strip._CAPTION, abs=1)
    assert (three[-more:] < 0.9).any()
    assert (three[-more:, : three.shape[1] // 6] < 0.9).any()
    assert not (three[-more:, three.shape[1] // 2 :] < 0.9).any()
    assert (two[:-20, :300] < 0.9).any()
    assert np.abs(three[: -more - 20] - two[:-20]).mean() < 0.01  # the rows are those of two


def test_a_picture_is_not_higher_than_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip, "_MOST", 3000)
    tall = np.array([[[0, 0, 0], [0, 9, 0]]], dtype=np.float32)
    one = Character("tall", ("a", "b"), (-1, 0), tall, 0.1)
    assert len(_drawn(tmp_path, _scene(one, one, one), poses=1)) == pytest.approx(3000, abs=1)


def test_bad_calls_leave_nothing(tmp_path: Path) -> None:
    scene = _scene(_character(walker(seconds=1)))
    with pytest.raises(ValueError, match=r"^poses is 0, must be at least 1$"):
        write_strip(tmp_path / "strip.png", scene, poses=0)
    with pytest.raises(ValueError, match=r"strip\.jpg: suffix is '\.jpg', must be \.png$"):
        write_strip(tmp_path / "strip.jpg", scene)
    with pytest.raises(OSError, match="missing"):
        write_strip(tmp_path / "missing" / "strip.png", scene)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"sinmdm\[plot\]"):
        write_strip(tmp_path / "strip.png", _scene(_character(walker(seconds=1))))


def test_importing_loads_no_drawing_library() -> None:
    code = (
        "import sys, sinmdm.view.strip, sinmdm.view.video, sinmdm.pictures, sinmdm.training\n"
        "sys.exit(bool({'matplotlib', 'PIL', 'imageio_ffmpeg'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
