"""The published layout of any BVH file, rule by rule."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch

from sinmdm.motion import Clip, GeneralLayout, Normalizer, Skeleton, layout_for, read_motion, thinned_for

EPS = torch.finfo(torch.float32).eps
FEW = 8 * EPS  # features and the four products of an interpolation, rounded one after another
POSITIONS = ("Xposition", "Yposition", "Zposition")
ZYX = ("Zrotation", "Yrotation", "Xrotation")


@pytest.fixture
def clip(move) -> Clip:
    """Four joints: a root, a hand with a zero and a real End Site, a bone that moves, a leaf without an End Site."""
    return move(
        Skeleton(
            names=("root", "hand", "bone", "leaf"),
            parents=(-1, 0, 0, 2),
            offsets=np.arange(12.0).reshape(4, 3),
            channels=((*POSITIONS, *ZYX), ZYX, (*POSITIONS, *ZYX), ("Yrotation", "Xrotation", "Zrotation")),
            end_sites=((), ((0.0, 0.0, 0.0), (0.5, 0.0, -1.0)), (), ()),
        )
    )


@pytest.mark.parametrize(("representation", "each"), [("6d", 9), ("quat", 7)])
def test_features(clip, representation, each):
    layout = GeneralLayout.fit(clip, representation)
    assert layout.size == 5 * each
    rows = layout.encode(clip).unflatten(1, (5, each))
    joints, site = rows[:, [0, 1, 3, 4]], rows[:, 2]
    identity = [1.0, 0, 0, 0, 1, 0] if representation == "6d" else [1.0, 0, 0, 0]
    assert site.tolist() == [[0.5, 0.0, -1.0, *identity]] * len(clip)
    assert torch.equal(joints[..., :3], clip.translations().float())
    assert joints[:, 0, :3].tolist() == clip.values[:, :3].astype(np.float32).tolist()
    assert joints[:, 1, :3].tolist() == [[3, 4, 5]] * len(clip)
    assert joints[:, 2, :3].tolist() == clip.values[:, 9:12].astype(np.float32).tolist()
    if representation == "6d":
        assert torch.equal(joints[..., 3:], clip.rotations()[:, :, :2].flatten(2).float())
        assert layout.rotation_channels.tolist() == [[9 * row + k for k in range(3, 9)] for row in (0, 1, 3, 4)]
    else:
        matrices = roma.unitquat_to_rotmat(joints[..., [4, 5, 6, 3]].double())
        torch.testing.assert_close(matrices, clip.rotations(), rtol=0, atol=4 * EPS)


def test_quaternions_have_the_signs_of_printed_angles(clip):
    layout = GeneralLayout.fit(clip, "quat")
    turned = Clip(clip.skeleton, clip.values + 360.0 * np.eye(18)[5], clip.frame_time)  # the root's x
    one, other = layout.encode(clip), layout.encode(turned)
    torch.testing.assert_close(other[:, 3:7], -one[:, 3:7], rtol=0, atol=EPS)
    assert torch.equal(other[:, 7:], one[:, 7:])


def test_nothing_is_thinned_or_scaled(clip):
    skeleton = clip.skeleton
    tall = Skeleton(
        skeleton.names, skeleton.parents, 100 * (1 + skeleton.offsets), skeleton.channels, skeleton.end_sites
    )
    fast = Clip(tall, clip.values * 100, 1 / 120)
    assert thinned_for(fast, "bvh_general") is fast
    layout = GeneralLayout.fit(fast)
    assert layout.frame_time == 1 / 120
    features = layout.encode(fast)
    assert len(features) == len(fast)
    assert features[:, :3].tolist() == fast.values[:, :3].astype(np.float32).tolist()


def test_decoded_clips_have_their_own_rig(clip):
    layout = GeneralLayout.fit(clip)
    features = layout.encode(clip)
    features[:, 9:12] += 5  # the hand has no position channels, and an End Site none at all
    features[:, 18:27] -= 5
    back = layout.decode(features)
    assert back.skeleton == clip.skeleton
    assert back.frame_time == clip.frame_time
    torch.testing.assert_close(back.rotations(), clip.rotations(), rtol=0, atol=FEW)
    torch.testing.assert_close(back.translations(), clip.translations(), rtol=EPS, atol=0)


def test_first_frames_are_what_they_say(clip):
    layout = GeneralLayout.fit(clip)
    features = layout.encode(clip)
    np.testing.assert_array_equal(layout.decode(features[7:]).values[:, :3], layout.decode(features).values[7:, :3])


@pytest.mark.parametrize(
    ("name", "joints"),
    [("xia-normal.bvh", 31), ("Salsa-Dancing-6.bvh", 78), ("elephant-idle2.bvh", 51), ("Crab-dance-long.bvh", 67)],
)
def test_real_skeletons(real, name, joints):
    clip = read_motion(real(name))
    sizes = {rep: layout_for(clip, "bvh_general", rep).size for rep in ("6d", "quat")}
    assert sizes == {"6d": 9 * joints, "quat": 7 * joints}


def test_groups(clip):
    layout = GeneralLayout.fit(clip, "quat")
    every = torch.arange(layout.size)
    root, translations, rotations = (every[group].tolist() for group in layout.groups)
    assert root == [0, 1, 2]
    assert translations == [7 * row + k for row in range(1, 5) for k in range(3)]
    assert rotations == [7 * row + k for row in range(5) for k in range(3, 7)]


def test_normalizer_of_bones_that_do_not_move(rig, move):
    clip = move(rig([-1, 0, 1], [(*POSITIONS, *ZYX), ZYX, ZYX]))
    layout = GeneralLayout.fit(clip)
    assert (Normalizer.fit(layout.encode(clip), layout).std[layout.groups[1]] == 1).all()


@pytest.mark.parametrize("representation", ["6d", "quat"])
def test_resampled(clip, representation):
    values = clip.values.copy()
    values[:, :3] = np.arange(len(clip))[:, None] * [[2.0, -1.0, 0.5]]
    clip = Clip(clip.skeleton, values, clip.frame_time)
    layout = GeneralLayout.fit(clip, representation)
    positions = 2 + 1.5 * torch.arange(20, dtype=torch.float64)[None]
    (out,) = layout.resample(layout.encode(clip), positions, torch.tensor([1.5]))
    expected = positions[0, :, None] * torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(out[:, :3].double(), expected, rtol=FEW, atol=0)
    whole = layout.decode(layout.encode(clip)).rotations()[2:32:3]
    torch.testing.assert_close(layout.decode(out).rotations()[::2], whole, rtol=0, atol=2 * FEW)
