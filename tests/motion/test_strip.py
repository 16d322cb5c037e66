from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sinmdm.motion import draw_strip, walker
from sinmdm.motion.strip import _GENERATED, _GIVEN

image = pytest.importorskip("matplotlib.image")
colors = pytest.importorskip("matplotlib.colors")


def _share(picture: np.ndarray, colour: str) -> float:
    """Of a picture's pixels, how many lie on the way from the colour to white, the colour itself apart from white."""
    base = np.array(colors.to_rgb(colour))
    ink = 1 - picture[..., :3]
    amount = ink @ (1 - base) / ((1 - base) @ (1 - base))
    off = np.abs(ink - amount[..., None] * (1 - base)).max(axis=-1)
    return float(((amount > 0.4) & (off < 0.02)).mean())


def test_rows_and_colours(tmp_path):
    clip = walker(seconds=2)
    draw_strip(tmp_path / "one.png", {"given": clip})
    draw_strip(tmp_path / "three.png", {"given": clip, "first": walker(seconds=3, seed=1), "second": clip})
    one, three = (image.imread(tmp_path / name) for name in ("one.png", "three.png"))
    assert one.shape[1] == three.shape[1]
    assert 2.5 < three.shape[0] / one.shape[0] < 3.5
    assert _share(one, _GIVEN) > 0.005
    assert _share(one, _GENERATED) == 0
    third = len(three) // 3
    assert _share(three[:third], _GIVEN) > 0.005
    assert _share(three[third + 20 :], _GENERATED) > 0.005
    assert _share(three[: third - 20], _GENERATED) == 0
    assert _share(three[third + 20 :], _GIVEN) == 0


def test_poses_fill_the_width(tmp_path):
    for poses in (1, 4):
        draw_strip(tmp_path / "strip.png", {"given": walker(seconds=2)}, poses=poses)
        drawn = (image.imread(tmp_path / "strip.png")[..., :3] < 0.7).any(axis=-1)
        columns = np.flatnonzero(drawn[drawn.shape[0] // 3 : -40].any(axis=0))
        assert columns[0] < 0.15 * drawn.shape[1]
        assert columns[-1] > 0.85 * drawn.shape[1]


def test_any_rig(clip, tmp_path):
    draw_strip(tmp_path / "strip.png", {"given": clip, "cut": clip.slice(0, 1)}, poses=3)
    picture = image.imread(tmp_path / "strip.png")
    assert _share(picture, _GIVEN) > 0
    assert _share(picture, _GENERATED) > 0


def test_real_clip(real, tmp_path):
    from sinmdm.motion import read_motion

    draw_strip(tmp_path / "strip.png", {"Salsa-Dancing-6": read_motion(real("Salsa-Dancing-6.bvh"))})
    assert _share(image.imread(tmp_path / "strip.png"), _GIVEN) > 0.005


def test_bad_calls_leave_nothing(tmp_path):
    clip = walker(seconds=1)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_strip(tmp_path / "strip.png", {})
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_strip(tmp_path / "strip.png", {"given": clip}, poses=0)
    with pytest.raises(OSError, match="missing"):
        draw_strip(tmp_path / "missing" / "strip.png", {"given": clip})
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"sinmdm\[plot\]"):
        draw_strip(tmp_path / "strip.png", {"given": walker(seconds=1)})


def test_import_loads_no_matplotlib():
    code = "import sys, sinmdm.motion; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
