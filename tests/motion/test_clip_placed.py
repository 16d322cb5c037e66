"""A motion somewhere else on the ground: `Clip.placed`."""

from collections.abc import Callable

import numpy as np
import pytest
import roma
import torch

from sinmdm.motion import Clip, walker

POSITIONS = ("Xposition", "Yposition", "Zposition")
ORDERS = ["XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX"]
HEADINGS = [0.0, 30.0, 90.0, -135.0, 180.0, 725.0]


def _channels(order: str) -> tuple[str, ...]:
    return tuple(f"{axis}rotation" for axis in order)


def _turn(degrees: float) -> torch.Tensor:
    """About y, by the rotation vector: independent of angles and their orders."""
    return roma.rotvec_to_rotmat(torch.tensor([0.0, np.radians(degrees), 0.0], dtype=torch.float64))


def _bound(clip: Clip, *numbers: float) -> float:
    """What float64 leaves of coordinates of this size behind some hundred sums and products of a kinematic chain."""
    size = max(float(np.abs(clip.values).max()), clip.skeleton.reach(), *map(abs, numbers), 1.0)
    return 1000 * np.finfo(np.float64).eps * size


@pytest.mark.parametrize("heading", HEADINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_joint_turns_about_the_start_and_moves_with_it(
    order: str, heading: float, rig: Callable, move: Callable
) -> None:
    clip = move(rig([-1, 0, 1, 0], [(*POSITIONS, *_channels(order)), *[_channels("ZXY")] * 3]))
    placed = clip.placed(7.0, -3.0, heading)
    before = clip.positions()
    start = before[0, 0] * torch.tensor([1.0, 0.0, 1.0])
    expected = (before - start) @ _turn(heading).T + torch.tensor([7.0, 0.0, -3.0])
    assert (placed.positions() - expected).abs().max() < _bound(clip, 7.0)
    assert torch.allclose(placed.rotations()[:, 0], _turn(heading) @ clip.rotations()[:, 0], rtol=0, atol=1e-12)
    assert placed.skeleton == clip.skeleton
    assert placed.frame_time == clip.frame_time
    assert np.array_equal(placed.values[:, 6:], clip.values[:, 6:])


@pytest.mark.parametrize("order", ORDERS)
def test_angles_run_on_through_whole_turns(order: str, rig: Callable) -> None:
    # A root that spins three times about y: its turned angles may not jump where a principal angle would.
    frames = 120
    skeleton = rig([-1], [(*POSITIONS, *_channels(order))])
    spin = torch.stack([_turn(9.0 * frame) for frame in range(frames)])
    tilt = roma.rotvec_to_rotmat(torch.tensor([0.2, 0.0, 0.1], dtype=torch.float64))
    translations = torch.zeros(frames, 1, 3, dtype=torch.float64)
    clip = Clip.from_motion(skeleton, (spin @ tilt)[:, None], translations, 1 / 30)
    placed = clip.placed(0.0, 0.0, 100.0)
    steps = [float(np.abs(np.diff(motion.values[:, 3:], axis=0)).max()) for motion in (clip, placed)]
    assert steps[0] < 180
    assert steps[1] < 180


def test_headings_go_from_z_towards_x(rig: Callable) -> None:
    skeleton = rig([-1], [(*POSITIONS, *_channels("ZXY"))])
    clip = Clip(skeleton, np.array([[5.0, 1, 5, 0, 0, 0], [5, 2, 8, 0, 0, 0]]), 1 / 30)  # 3 along +z, and 1 up
    placed = clip.placed(0.0, 0.0, 90.0)
    assert np.allclose(placed.values[:, :3], [[0, 1, 0], [3, 2, 0]], rtol=0, atol=_bound(clip))


def test_without_a_heading_the_angles_stay_as_they_are() -> None:
    clip = walker(legs=2, seconds=1.0)
    placed = clip.placed(2.5, 4.0)
    assert np.array_equal(placed.values[:, 3:], clip.values[:, 3:])
    assert np.array_equal(placed.values[:, 1], clip.values[:, 1])
    assert placed.values[0, [0, 2]].tolist() == [2.5, 4.0]


def test_the_given_clip_is_not_changed() -> None:
    clip = walker(legs=2, seconds=0.5)
    values = clip.values.copy()
    clip.placed(1.0, 1.0, 45.0)
    assert np.array_equal(clip.values, values)


@pytest.mark.parametrize("order", ["Y", "YX", "YZ"])
def test_fewer_rotation_channels_do_where_the_first_is_y(order: str, rig: Callable, move: Callable) -> None:
    clip = move(rig([-1, 0], [(*_channels(order), *POSITIONS), _channels("XYZ")]))
    turned = clip.placed(0.0, 0.0, 33.0).rotations()[:, 0]
    assert torch.allclose(turned, _turn(33.0) @ clip.rotations()[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["", "X", "ZY"])
def test_other_roots_can_be_moved_but_not_turned(order: str, rig: Callable, move: Callable) -> None:
    clip = move(rig([-1, 0], [(*POSITIONS, *_channels(order)), _channels("XYZ")]))
    assert clip.placed(1.0, 2.0).values[0, [0, 2]].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=rf"rotation channels '{order or 'none'}', which cannot hold a turn by 5 deg"):
        clip.placed(1.0, 2.0, 5.0)


@pytest.mark.parametrize("positions", [(), ("Xposition",), ("Xposition", "Yposition")])
def test_a_root_without_positions_cannot_be_placed(
    positions: tuple[str, ...], rig: Callable, move: Callable
) -> None:  # fmt: skip
    clip = move(rig([-1, 0], [(*positions, *_channels("YXZ")), _channels("XYZ")]))
    with pytest.raises(ValueError, match=r"^the root 'rig:joint 0-a' has no X and Z position channels"):
        clip.placed(0.0, 0.0)


@pytest.mark.parametrize("numbers", [(np.nan, 0.0, 0.0), (0.0, np.inf, 0.0), (0.0, 0.0, -np.inf)])
def test_numbers_must_be_finite(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"^x, z and heading must be finite, got "):
        walker(legs=2, seconds=0.5).placed(*numbers)
