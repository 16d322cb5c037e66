from __future__ import annotations

import numpy as np
import pytest
import torch

from sinmdm.motion import Clip, layout_for, walker


def _feet(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the feet and which of them stand, before and after each step of time."""
    feet = clip.positions()[:, [joint for joint, name in enumerate(clip.names) if name.endswith("_Foot")]]
    low = feet[..., 1] < 1e-6
    return feet, low[1:] & low[:-1]


def test_same_arguments_same_clip():
    first, second, other = walker(), walker(), walker(seed=1)
    np.testing.assert_array_equal(first.values, second.values)
    assert first.skeleton == second.skeleton == other.skeleton
    assert np.abs(first.values - other.values).max() > 0.1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("legs", [2, 4, 6, 8, 12])
def test_feet_stay_where_they_stand(legs, seed):
    clip = walker(legs=legs, seconds=6, seed=seed)
    feet, standing = _feet(clip)
    assert feet.shape[1] == legs
    assert feet[..., 1].min() > -1e-9
    slip = (feet[1:] - feet[:-1]).norm(dim=-1)[standing]
    assert slip.max() < 0.01
    assert slip.median() < 1e-9
    assert 0.5 < standing.double().mean() < 0.7
    assert 0.1 < feet[..., 1].max() < 0.2


def test_legs_take_turns_and_body_keeps_upright():
    clip = walker(seconds=20)
    _, standing = _feet(clip)
    assert standing.sum(1).min() >= 3
    left, right = standing[:, 0].double(), standing[:, 1].double()
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] < -0.3
    body = clip.positions()[:, 0]
    assert (body[:, 1] - 0.34).abs().max() < 0.1
    assert (clip.rotations()[:, 0, 1, 1] > 0.95).all()


def test_it_turns_and_changes_speed():
    clip = walker(seconds=20)
    root = clip.positions()[:, 0, [0, 2]]
    speed = (root[1:] - root[:-1]).norm(dim=-1) * clip.fps
    assert speed.min() > 0.1
    assert speed.max() > 1.5 * speed.min()
    ahead = clip.rotations()[:, 0, :, 2]
    heading = np.unwrap(torch.atan2(ahead[:, 0], ahead[:, 2]).numpy())
    assert np.ptp(heading) > 0.5
    along = ((root[1:] - root[:-1]) * ahead[1:, [0, 2]]).sum(-1) * clip.fps
    assert along.min() > 0


def test_it_moves_smoothly():
    clip = walker(seconds=20, fps=60)
    positions = clip.positions()
    acceleration = (positions[2:] - 2 * positions[1:-1] + positions[:-2]).norm(dim=-1) * clip.fps**2
    assert acceleration.max() < 130
    assert np.abs(np.diff(clip.values[:, 3:], axis=0)).max() < 25


def test_it_is_the_same_walk_at_any_rate():
    np.testing.assert_allclose(walker(seconds=3, fps=120).values[::4], walker(seconds=3, fps=30).values, atol=1e-9)


def test_it_can_be_learned_from_and_written(tmp_path):
    clip = walker()
    assert len(clip) == 240
    assert clip.frame_time == pytest.approx(1 / 30)
    assert [clip.names[joint] for joint in layout_for(clip).contacts] == [n for n in clip.names if n.endswith("_Foot")]
    clip.write(tmp_path / "walker.bvh")
    torch.testing.assert_close(Clip.read(tmp_path / "walker.bvh").positions(), clip.positions(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"legs": 7}, "legs is 7"), ({"legs": 0}, "legs"), ({"seconds": 0}, "no frame")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        walker(**arguments)
