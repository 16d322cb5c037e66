"""The feature layouts by name."""

from __future__ import annotations

from typing import Any, TypeAlias

from .bvh_general import GeneralLayout
from .clip import Clip
from .features import ArrayLayout, Layout, Motion, SkeletonLayout
from .humanml import HumanMLLayout
from .mixamo import MixamoLayout

_Of: TypeAlias = (
    type[SkeletonLayout] | type[MixamoLayout] | type[GeneralLayout] | type[ArrayLayout] | type[HumanMLLayout]
)

_CLIP_LAYOUTS: dict[str, _Of] = {layout.kind: layout for layout in (SkeletonLayout, MixamoLayout, GeneralLayout)}
_ARRAY_LAYOUTS: dict[str, _Of] = {layout.kind: layout for layout in (ArrayLayout, HumanMLLayout)}
_LAYOUTS = _CLIP_LAYOUTS | _ARRAY_LAYOUTS
KINDS = tuple(_LAYOUTS)


def layout_for(motion: Motion, kind: str | None = None, representation: str | None = None) -> Layout:
    """The layout that holds `motion`.

    kind: for a clip "sinmdm" (default), "mixamo" or "bvh_general"; for a tensor (frames, features) "array"
        (default), or "humanml" where it is (frames, 263) in raw units.
    representation: of rotations, "6d" (default) or "quat", where the kind is "mixamo" or "bvh_general"; else None.
    Raises: ValueError where kind or representation is another, or the motion does not fit: it has less than two frames,
    is no matrix, or is a clip of another skeleton than the kind takes.
    """
    layout = _layout_named(motion, kind)
    if issubclass(layout, (MixamoLayout, GeneralLayout)) and isinstance(motion, Clip):
        return layout.fit(motion, "6d" if representation is None else representation)
    if representation is not None:
        raise ValueError(f"representation is {representation!r}, but the layout {layout.kind!r} has no choice of it")
    if isinstance(motion, Clip):
        return SkeletonLayout.fit(motion)
    return (HumanMLLayout if issubclass(layout, HumanMLLayout) else ArrayLayout).fit(motion)


def thinned_for(motion: Motion, kind: str | None = None, fps: float | None = 30.0) -> Motion:
    """The motion at the rate that a layout of this kind is learnt at.

    kind: as `layout_for`.
    fps: for "sinmdm" at most so many frames a second, as `Clip.thin`. "mixamo" has the published rule in its place
        (`MixamoLayout.thin`), the others take the motion as it is. None: as it is for all of them.
    Raises: ValueError where the kind is another.
    """
    return _layout_named(motion, kind).thin(motion, fps)


def layout_from_dict(data: dict[str, Any]) -> Layout:
    """Inverse of a layout's `to_dict`. Raises: ValueError naming what is missing or wrong."""
    try:
        layout = _LAYOUTS[data["kind"]]
    except (KeyError, TypeError):
        kind = data.get("kind") if isinstance(data, dict) else data
        raise ValueError(f"layout kind is {kind!r}, must be one of {', '.join(_LAYOUTS)}") from None
    try:
        return layout.from_dict(data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a {layout.kind!r} layout: {error!r}") from error


def _layout_named(motion: Motion, kind: str | None) -> _Of:
    layouts, what = (_CLIP_LAYOUTS, "a clip") if isinstance(motion, Clip) else (_ARRAY_LAYOUTS, "an array")
    kind = next(iter(layouts)) if kind is None else kind
    if kind not in layouts:
        raise ValueError(f"layout is {kind!r}, must be {' or '.join(layouts)} for {what}")
    return layouts[kind]
