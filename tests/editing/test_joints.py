"""Joints by name."""

from __future__ import annotations

import pytest

from sinmdm.editing import select_joints

NAMES = ("rig:Hips", "rig:Spine", "rig:Neck", "rig:LeftArm", "rig:LeftHand", "rig:LeftUpLeg", "rig:LeftFoot")
PARENTS = (-1, 0, 1, 1, 3, 0, 5)


def _selected(*names: str) -> list[int]:
    return sorted(select_joints(NAMES, PARENTS, names))


def test_a_name_has_with_it_what_hangs_on_the_joint() -> None:
    assert _selected("LeftArm") == [3, 4]
    assert _selected("rig:Spine") == [1, 2, 3, 4]
    assert _selected("hips") == list(range(7))
    assert _selected("=Spine", "LeftFoot") == [1, 6]


def test_the_halves_of_a_body_are_all_of_it() -> None:
    assert _selected("upper-body") == [1, 2, 3, 4]
    assert _selected("lower-body") == [0, 5, 6]
    assert _selected("upper-body", "lower-body") == list(range(7))


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no joint 'LeftHnd'; did you mean .*rig:LeftHand"):
        _selected("LeftHnd")
    with pytest.raises(ValueError, match="no joint 'xyz'; there are rig:Hips"):
        _selected("xyz")
    with pytest.raises(ValueError, match="at least one joint"):
        _selected()


def test_a_name_of_two_joints_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="'a' stands for 2: x:a, y:a"):
        select_joints(("r", "x:a", "y:a"), (-1, 0, 0), ["a"])
    assert select_joints(("r", "x:a", "y:a"), (-1, 0, 0), ["y:a"]) == {2}


def test_a_skeleton_without_a_spine_has_no_halves() -> None:
    with pytest.raises(ValueError, match="need a spine"):
        select_joints(("body", "leg0", "leg1"), (-1, 0, 0), ["upper-body"])
