"""A scene as one HTML page that needs nothing else: no network, no library, only a browser.

It is drawn with WebGL 2 where there is a graphics processor for it, and in software (page_software.js) where not.

The page's content security policy allows the script and style that are in it, by their hashes, and nothing more: not
even its own files may load anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ..motion.atomic import replacing
from . import colours
from .scene import Character, Scene

_SCRIPTS = (
    "page_camera.js",
    "page_draw.js",
    "page_webgl.js",
    "page_software.js",
    "page.js",
    "page_controls.js",
)
_COLOURS = ("PAGE", "INK", "MUTED", "GIVEN", "GENERATED", "GRID", "SHADE")  # of the light theme
_STEPS = 32767  # of an int16, from the root to the farthest joint
_MOST = 384 << 20  # characters of a page; browsers refuse texts of 512 Mi and more


def write_page(path: str | os.PathLike[str], scene: Scene, *, title: str | None = None) -> None:
    """Write the page, whole or not at all; `title` is the labels' unless it is given.

    Positions are stored as float32 for each first joint, and int16 for the others as seen from it: in each axis none is
    off by more than 1/65534 of the farthest joint's distance in that axis, over the character's whole motion.
    Raises: ValueError where the page would be larger than browsers open; OSError where it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(page(scene, title=title).encode("utf-8", "replace"))


def page(scene: Scene, *, title: str | None = None) -> str:
    """The page as text. Raises: ValueError where it would be larger than browsers open."""
    raw = sum(one.positions.size * 2 + len(one.positions) * 12 for one in scene.characters)
    if raw * 4 // 3 > _MOST:
        raise ValueError(
            f"the motions would make a page of {raw * 4 / 3e6:.0f} MB, must be at most {_MOST / 1e6:.0f} MB: "
            "show fewer or shorter ones"
        )
    script = "(() => {\n" + "\n".join(_source(name) for name in _SCRIPTS) + "})();\n"
    style = _filled(_source("page.css"), {name.lower(): str(getattr(colours, name)) for name in _COLOURS})
    policy = f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'"
    parts = {
        "policy": f"{policy}; form-action 'none'",
        "title": html.escape(_title(scene.characters) if title is None else title),
        "style": style,
        "script": script,
        "scene": _embedded(_data(scene)),
    }
    return _filled(_source("page.html"), parts)


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _filled(template: str, parts: dict[str, str]) -> str:
    """The template with each @@name@@ replaced, once: what is put in is not looked at again."""
    return re.sub(r"@@(\w+)@@", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(characters: Sequence[Character]) -> str:
    shown = [character.label for character in characters[:3]]
    return ", ".join(shown) + (f" and {len(characters) - 3} more" if len(characters) > 3 else "")


def _embedded(data: dict[str, Any]) -> str:
    """JSON that no HTML parser can see the end of a script, a comment or an entity in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _data(scene: Scene) -> dict[str, Any]:
    skeletons: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}
    for character in scene.characters:
        skeletons.setdefault((character.names, character.parents), len(skeletons))
    low, high = scene.extents
    return {
        "together": scene.together,
        "scaled": scene.scaled,
        "ground": scene.ground,
        "size": scene.size,
        "low": low.tolist(),
        "high": high.tolist(),
        "skeletons": [{"names": list(names), "parents": list(parents)} for names, parents in skeletons],
        "characters": [
            {"skeleton": skeletons[one.names, one.parents], **_character_data(one)} for one in scene.characters
        ],
    }


def _character_data(character: Character) -> dict[str, Any]:
    roots = character.positions[:, :1]
    offsets = character.positions - roots
    scale = float(np.abs(offsets).max()) / _STEPS or 1.0
    low, high = character.extents
    return {
        "label": character.label,
        "frames": character.frames,
        "frameTime": character.frame_time,
        "size": character.size,
        "low": low.tolist(),
        "high": high.tolist(),
        "lengths": character.bone_lengths.tolist(),
        "above": float(np.median(offsets[..., 1].max(axis=1))),
        "scale": scale,
        "roots": _base64(roots.astype("<f4")),
        "offsets": _base64(np.rint(offsets / scale).astype("<i2")),
        "given": _given(character.given),
    }


def _given(given: np.ndarray | None) -> bool | str | None:
    """True where all was, None where nothing was, else a bit for each frame and joint, the lowest of a byte first."""
    if given is None or not given.any():
        return None
    return True if given.all() else _base64(np.packbits(given.reshape(-1), bitorder="little"))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
