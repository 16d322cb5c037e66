"""Joints by name: single ones, with all that hangs on them, and the halves of a body."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

HALVES = ("upper-body", "lower-body")
# Names, lower case and without what stands before a ':', that the upper half of a body begins with, the best first.
_SPINES = ("spine", "lowerback", "spine1", "spine_01", "abdomen", "chest", "torso", "bip01_spine")
_HIPS = ("hips", "hip", "pelvis", "bip01_pelvis", "root", "bip01")


def short_name(name: str) -> str:
    """A joint's name without what stands before its first ':' (mixamorig:Hips is Hips)."""
    return name.split(":", 1)[-1]


def joint_named(names: Sequence[str], name: str) -> int:
    """The joint of that name, whole or as `short_name`, in any case.

    Raises: ValueError naming the nearest matches, where none or several have it.
    """
    for key in (str, short_name, lambda text: short_name(text).lower()):
        found = [joint for joint, own in enumerate(names) if key(own) == key(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"joint {name!r} stands for {len(found)}: {', '.join(names[joint] for joint in found)}")
    wanted = short_name(name).lower()
    close = [own for own in names if wanted and wanted in own.lower()][:8]
    if not close:
        near = difflib.get_close_matches(wanted, [short_name(own).lower() for own in names], 3, 0.4)
        close = [own for own in names if short_name(own).lower() in near]
    raise ValueError(
        f"there is no joint {name!r}; "
        + (f"did you mean {', '.join(close)}?" if close else f"there are {_list(names)}")
    )


def subtree(parents: Sequence[int], joint: int) -> set[int]:
    """A joint and all that hangs on it."""
    found = {joint}
    for other in range(joint + 1, len(parents)):
        if parents[other] in found:
            found.add(other)
    return found


def select_joints(names: Sequence[str], parents: Sequence[int], wanted: Sequence[str]) -> set[int]:
    """The joints that a list of names stands for.

    wanted: names of joints, each with all that hangs on it, or alone with a '=' before it ("=Spine"); "upper-body" and
        "lower-body" of a skeleton with a spine on its hips.

    Raises: ValueError where there is no such joint (naming the nearest), or nothing was named.
    """
    if not wanted:
        raise ValueError("joints must name at least one joint")
    chosen: set[int] = set()
    for name in wanted:
        if name in HALVES:
            upper = _upper_body(names, parents)
            chosen |= upper if name == "upper-body" else set(range(len(names))) - upper
        elif name.startswith("="):
            chosen.add(joint_named(names, name[1:]))
        else:
            chosen |= subtree(parents, joint_named(names, name))
    return chosen


def _upper_body(names: Sequence[str], parents: Sequence[int]) -> set[int]:
    """The spine that hangs on the hips, with all that hangs on it."""
    short = [short_name(name).lower() for name in names]
    hips = {joint for joint, name in enumerate(short) if name in _HIPS} | {0}
    for spine in _SPINES:
        for joint, name in enumerate(short):
            if name == spine and parents[joint] in hips:
                return subtree(parents, joint)
    raise ValueError(
        "upper-body and lower-body need a spine that hangs on the hips, and this skeleton has no joint of such a name: "
        f"name the joints instead; there are {_list(names)}"
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:40]) + (f", and {len(names) - 40} more" if len(names) > 40 else "")
