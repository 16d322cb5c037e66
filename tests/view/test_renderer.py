"""Frames as pictures: what is where, in which colour."""

from __future__ import annotations

import math
import sys
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sinmdm.motion import walker
from sinmdm.view import Character, Scene, set_out
from sinmdm.view import renderer as renderer_module
from sinmdm.view.colours import GENERATED, GIVEN, GRID, INK, MUTED, PAGE, SHADE, rgb
from sinmdm.view.page import page
from sinmdm.view.renderer import Renderer, sticks

pytest.importorskip("PIL", reason="frames are drawn by Pillow")
pytest.importorskip("matplotlib", reason="labels are written with matplotlib's font")

FPS = 10.0


def _walk(label: str = " ", given: bool | None = None, seconds: float = 1.0) -> Character:
    clip = walker(legs=4, seconds=seconds)
    positions = clip.positions().numpy().astype(np.float32)
    which = None if given is None else np.full(positions.shape[:2], given)
    return Character(label, clip.names, clip.parents, positions, clip.frame_time, which)


def _renderer(scene: Scene, frames: int = 4, **options: Any) -> Renderer:
    return Renderer(scene, [index / FPS for index in range(frames)], **{"fps": FPS, "size": (320, 180), **options})


def _pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture).astype(int)


def _orange(pixels: np.ndarray) -> int:
    """Pixels of GENERATED in whatever light, or mixed with something else: nothing else is red."""
    return int((pixels[..., 0] > pixels[..., 2] + 60).sum())


def _count(picture: Any, colour: str) -> int:
    """Pixels of exactly this colour: inside of what is drawn in it there is no other."""
    return int((_pixels(picture) == rgb(colour)).all(axis=-1).sum())


def test_colours_are_those_of_what_was_given() -> None:
    for given, there, missing in ((None, GENERATED, GIVEN), (False, GENERATED, GIVEN), (True, GIVEN, GENERATED)):
        picture = _renderer(set_out([[_walk(given=given)]])).frame(0)
        assert picture.size == (320, 180)
        assert picture.mode == "RGB"
        assert _count(picture, there) > 100
        assert _count(picture, missing) == 0
        assert _count(picture, PAGE) > 10_000


def test_joints_and_frames_have_their_own_colours() -> None:
    walk = _walk(given=False, seconds=1.0)
    assert walk.given is not None
    walk.given[:15] = True
    renderer = _renderer(set_out([[walk]]), frames=10, size=(640, 360))
    legend = _count(renderer.frame(9), GIVEN)
    assert _count(renderer.frame(0), GIVEN) > legend + 500
    assert _count(renderer.frame(0), GENERATED) < legend + 20
    assert _count(renderer.frame(9), GENERATED) > legend + 500
    walk.given[:] = False
    walk.given[:, : len(walk.names) // 2] = True
    picture = _renderer(set_out([[walk]]), size=(640, 360)).frame(0)
    assert _count(picture, GIVEN) > legend + 200
    assert _count(picture, GENERATED) > legend + 200


def test_characters_stand_where_they_are() -> None:
    scene = set_out([[_walk(given=True)], [_walk(given=False)]])
    pixels = _pixels(_renderer(scene, size=(640, 360)).frame(0))[60:]  # below the legend
    left, right = (np.flatnonzero((pixels == rgb(colour)).all(axis=-1).any(axis=0)) for colour in (GIVEN, GENERATED))
    assert left.max() < right.min()


def test_nothing_is_cut_off() -> None:
    far = _walk()
    way = np.linspace(0, 40, far.frames, dtype=np.float32)[:, None, None] * np.array([1, 0, 0.3], dtype=np.float32)
    scene = set_out([[replace(far, positions=far.positions + way)]])
    for follow in (None, True, False):
        renderer = _renderer(scene, frames=10, follow=follow)
        for index in range(10):
            pixels = _pixels(renderer.frame(index))
            edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert _orange(edge) == 0
            assert _orange(pixels) > (20 if follow is False else 200)  # from afar a figure is small


def test_memory_is_some_60_bytes_for_each_character_and_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinmdm.view.camera._AT_ONCE", 1 << 12)
    scene = set_out([[_walk(str(number), seconds=0.5)] for number in range(4)])
    _renderer(scene)  # which imports what draws
    peaks = []
    for frames in (2000, 4000):
        times = [index / FPS for index in range(frames)]
        tracemalloc.start()
        try:
            Renderer(scene, times, fps=FPS, size=(320, 180))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    each = (peaks[1] - peaks[0]) / (2000 * 4)
    assert 24 < each < 60


def test_a_shadow_lies_beneath(monkeypatch: pytest.MonkeyPatch) -> None:
    def grey() -> int:
        """Pixels of the page's hue, darker: lines and letters are bluer."""
        pixels = _pixels(_renderer(set_out([[_walk()]]), size=(640, 360)).frame(0))
        return int(((np.ptp(pixels, axis=-1) <= np.ptp(rgb(PAGE)) + 1) & (pixels[..., 0] < rgb(PAGE)[0] - 15)).sum())

    assert grey() > 500
    monkeypatch.setattr(renderer_module, "SHADE", 0.0)
    assert grey() == 0


def test_who_is_over_stays_in_the_last_frame() -> None:
    walk = _walk()
    short = replace(walk, positions=walk.positions[:5])
    stays = replace(walk, positions=np.concatenate([walk.positions[:5], walk.positions[4:5].repeat(25, axis=0)]))
    one, other = (_renderer(Scene((shown,), True, (1.0,)), frames=8, follow=False).frame(7) for shown in (short, stays))
    assert np.array_equal(_pixels(one), _pixels(other))


def test_labels_are_one_line_that_is_not_too_long() -> None:
    def ink(label: str) -> np.ndarray:
        picture = _renderer(set_out([[_walk(label)]]), frames=1, size=(640, 360)).frame(0)
        return (_pixels(picture) == rgb(INK)).all(axis=-1)

    nothing, short, two_lines, long = ink(""), ink("walk walk"), ink("walk\n\t walk\n"), ink(32 * "H")
    assert not nothing.any()
    assert short.any()
    assert np.array_equal(short, two_lines)
    assert np.array_equal(ink(33 * "H"), ink(31 * "H" + "…"))
    assert long.sum() > short.sum()


def test_sticks_are_bones_or_lone_joints() -> None:
    positions = np.array([[[0, 0, 0], [0, 1, 0], [0, 1.001, 0], [0, 9, 0]]], dtype=np.float32)
    tree = Character("", tuple("abcd"), (-1, 0, 1, 2), positions, 1.0)
    ends, radii = sticks(tree)
    assert ends.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert (radii[:, 0] > radii[:, 1]).all()
    assert radii[1, 0] < radii[0, 0] < radii[2, 0] <= 0.1 * tree.size
    ends, radii = sticks(replace(tree, parents=(-1, -1, -1, -1)))
    assert ends.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert (radii == radii[0]).all()
    assert sticks(replace(tree, parents=(-1, -1, 1, -1)))[0].tolist() == [[0, 0], [1, 2], [3, 3]]


@pytest.mark.parametrize("scale", [1e-3, 1e4])
@pytest.mark.parametrize("joints", [1, 2, 30])
def test_any_skeleton_of_any_size(joints: int, scale: float) -> None:
    positions = (np.random.default_rng(0).normal(size=(3, joints, 3)) * scale).astype(np.float32)
    one = Character("x", tuple(map(str, range(joints))), tuple(range(-1, joints - 1)), positions, 0.1)
    pictures = [_renderer(set_out([[one]]), frames=3).frame(index) for index in range(3)]
    for picture in pictures:
        assert _orange(_pixels(picture)) > 10
    assert not np.array_equal(_pixels(pictures[0]), _pixels(pictures[1]))


@pytest.mark.parametrize("size", [(64, 64), (65, 401), (1001, 77)])
def test_any_size(size: tuple[int, int]) -> None:
    picture = _renderer(set_out([[_walk("a label")], [_walk("b", given=True)]]), frames=1, size=size).frame(0)
    assert picture.size == size
    assert math.prod(size) / 3 < _count(picture, PAGE) < math.prod(size)


@pytest.mark.parametrize("missing", ["PIL", "matplotlib"])
def test_what_it_needs_is_said(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"^drawing needs Pillow and matplotlib: pip install 'sinmdm\[view\]'$"):
        _renderer(set_out([[_walk()]]))


def test_the_page_has_the_same_colours() -> None:
    style = page(set_out([[_walk()]])).partition("<style>")[2]
    light = style[: style.index("}")]
    colours = {"given": GIVEN, "generated": GENERATED, "page": PAGE, "ink": INK, "muted": MUTED, "grid": GRID}
    for name, value in {**colours, "shade": SHADE}.items():
        assert f"--{name}: {value};" in light
