"""The published mixamo layout, against figures that the published code gave and rule by rule."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch

from sinmdm.motion import Clip, MixamoLayout, Normalizer, Skeleton, layout_for, read_motion, thinned_for
from sinmdm.motion.rigs import RIGS, find_rig

EPS = torch.finfo(torch.float32).eps
FEW = 8 * EPS  # features and the four products of an interpolation, rounded one after another
XYZ = ("Xrotation", "Yrotation", "Zrotation")
POSITIONS = ("Xposition", "Yposition", "Zposition")
ROOT = 168  # of 24 joints in 6D: x velocity, height, z velocity

# features, sum, sum of squares where there is one, by clip and representation
SUMS = [
    ("Salsa-Dancing-6.bvh", "6d", (648, 174), "29202.6080", "33257.4864"),
    ("Salsa-Dancing-6.bvh", "quat", (648, 116), "17018.0329", None),
    ("Gangnam-Style.bvh", "6d", (371, 174), "16365.0445", "19723.6439"),
    ("Gangnam-Style.bvh", "quat", (371, 116), "9669.0321", None),
]
CONTACTS = {"Salsa-Dancing-6.bvh": [414, 375, 420, 389], "Gangnam-Style.bvh": [119, 123, 139, 159]}


def _published(path, representation="6d"):
    clip = thinned_for(read_motion(path), "mixamo")
    layout = MixamoLayout.fit(clip, representation)
    return layout, layout.encode(clip).double()


def _assert_prints(numbers, text):
    """Equal to the digits printed, each number rounded to float32 first."""
    for number, printed in zip(numbers.tolist(), text.split(), strict=True):
        half = 0.5 * 10.0 ** -len(printed.partition(".")[2].ljust(6, "0"))
        assert abs(number - float(printed)) <= half + EPS * abs(number)


@pytest.fixture
def still(person):
    """Makes a person who stands, of `frames` frames: 0 but for what is set."""

    def make(frames=6, **options) -> Clip:
        rig = person(orders=[XYZ], **options)
        return Clip(rig, np.zeros((frames, rig.channel_count)), 1 / 30)

    return make


def _raised(skeleton: Skeleton, height: float) -> Skeleton:
    offsets = skeleton.offsets.copy()
    offsets[0, 1] = height
    return Skeleton(skeleton.names, skeleton.parents, offsets, skeleton.channels, skeleton.end_sites)


def _star(names) -> Skeleton:
    """Every joint on the first."""
    joints = len(names)
    return Skeleton(
        tuple(names),
        (-1,) + (0,) * (joints - 1),
        np.ones((joints, 3)),
        ((*POSITIONS, *XYZ),) + (XYZ,) * (joints - 1),
        ((),) * joints,
    )


# --- figures of the published code


@pytest.mark.parametrize(("name", "representation", "shape", "total", "squares"), SUMS)
def test_sums(real, name, representation, shape, total, squares):
    layout, features = _published(real(name), representation)
    assert features.shape == shape
    assert f"{features.sum():.4f}" == total
    if squares is not None:
        assert f"{features.square().sum():.4f}" == squares
    each = 6 if representation == "6d" else 4
    labels = features[:, 24 * each : 28 * each].unflatten(1, (4, each))
    assert labels[..., 0].sum(0).tolist() == CONTACTS[name]
    assert not labels[..., 1:].any()
    assert not features[:, 28 * each + 3 :].any()
    assert [layout.skeleton.names[joint].split(":")[1] for joint in layout.contacts] == [
        *("LeftToe_End", "RightToe_End", "LeftToeBase", "RightToeBase")
    ]


def test_salsa(real):
    layout, features = _published(real("Salsa-Dancing-6.bvh"))
    _assert_prints(features[0, :6], "0.974589 0.134 0.179501 -0.09182 0.969903 -0.225516")
    _assert_prints(features[0, ROOT : ROOT + 3], "-0.001742 0.871324 -0.016319")
    _assert_prints(features[100, ROOT : ROOT + 3], "0.007393 0.978068 0.012509")
    _assert_prints(np.array(layout.begin), "0.00860471 -0.01545967")
    assert np.float32(layout.scale * layout.skeleton.offsets[0, 1]) == np.float32(0.99793893)
    assert (layout.rig.name, layout.scale) == ("Mixamo", 0.01)


@pytest.mark.parametrize(
    ("name", "rig", "sizes", "scale"),
    [
        ("Crab-dance-long.bvh", "Crab_dance", (378, 252), 1.0),
        ("elephant-idle2.bvh", "Elephant", (282, 188), 1.0),
        ("xia-normal.bvh", "Xia", (204, 136), 0.14),
        ("xia-proud.bvh", "Xia", (204, 136), 0.14),
        ("Walk-In-Circle.bvh", "Mixamo", (174, 116), 0.01),
    ],
)
def test_real_skeletons(real, name, rig, sizes, scale):
    layout, features = _published(real(name))
    assert (layout.rig.name, layout.scale) == (rig, scale)
    assert (layout.size, _published(real(name), "quat")[0].size) == sizes
    assert [layout.skeleton.names[joint].split(":")[-1] for joint in layout.joints] == list(layout.rig.joints)
    labels = features[:, layout.groups[1]]
    assert not labels[0].any()
    assert labels.any(dim=0).all()


# --- which skeletons


@pytest.mark.parametrize(
    ("rig", "joints", "contacts"),
    [
        ("Mixamo", 24, "LeftToe_End RightToe_End LeftToeBase RightToeBase"),
        ("Elephant", 40, "Bip01_R_Foot Bip01_R_Toe0 Bip01_L_Foot Bip01_L_Toe0 Bip01_R_Hand Bip01_L_Hand"),
        (
            *("Crab_dance", 56),
            "DEF_BN_Leg_L_15_end DEF_BN_Leg_R_15_end DEF_BN_leg_L_05_end DEF_BN_Leg_L_10_end DEF_BN_leg_R_05_end "
            "DEF_BN_Leg_R_10_end",
        ),
        ("Xia", 31, "LeftToeBase RightToeBase"),
    ],
)
def test_classes(rig, joints, contacts):
    (found,) = (known for known in RIGS if known.name == rig)
    assert len(set(found.joints)) == len(found.joints) == joints
    assert list(found.contacts) == contacts.split()
    assert find_rig([f"a:{name}" for name in found.joints]) == (found, tuple(range(joints)))
    size = {"6d": 6 * (joints + len(found.contacts)) + 6, "quat": 4 * (joints + len(found.contacts)) + 4}
    clip = Clip(_star(found.joints), np.zeros((2, 3 + 3 * joints)), 1 / 30)
    assert {rep: layout_for(clip, "mixamo", rep).size for rep in size} == size


def test_joints_are_found_by_part_of_their_name(person):
    # No exact name at all: none of the classes has any, and the first is taken.
    names = [name.replace(":", "_") for name in person().names]
    rig, joints = find_rig(names)
    assert rig.name == "Mixamo"
    assert [names[joint] for joint in joints] == [f"mixamorig7_{name}" for name in rig.joints]
    assert find_rig(person("a:").names)[1] == joints
    assert find_rig(person("").names)[1] == joints


def test_of_one_name_the_first_is_taken(person):
    names = [*person().names, "mixamorig7:Head", "mixamorig7:LeftHand"]
    assert find_rig(names) == find_rig(person().names)


def test_only_the_first_colon_ends_a_prefix(person):
    names = [f"a:{name}" for name in person().names]
    assert find_rig(names)[0].name == "Mixamo"
    assert find_rig(names)[1] == find_rig(person().names)[1]


def test_skeletons_of_no_class(person, rig, move):
    names = [name.replace("LeftToe_End", "LeftToeTip").replace("RightHand", "RightPaw") for name in person().names]
    with pytest.raises(
        ValueError,
        match=r"^the skeleton must be of the class Mixamo, Elephant, Crab_dance or Xia; the nearest is Mixamo, of "
        r"whose 24 joints it lacks LeftToe_End, RightHand$",
    ):
        find_rig(names)
    with pytest.raises(ValueError, match=r"nearest is Xia, of whose 31 joints it lacks LHipJoint$"):
        find_rig([name for name in RIGS[3].joints if name != "LHipJoint"])
    with pytest.raises(ValueError, match="it lacks Hips, LeftUpLeg"):
        layout_for(move(rig([-1], [XYZ])), "mixamo")
    with pytest.raises(ValueError, match="root is 'Armature'; in the class Mixamo it must be 'Hips'"):
        find_rig(["Armature", *person().names])


# --- rates and units


@pytest.mark.parametrize(
    ("rate", "thinned"), [(240, 60), (120, 30), (100, 50), (60, 30), (50, 50), (30, 30), (25, 25), (24, 24)]
)
def test_thinning(still, rate, thinned):
    clip = still(frames=17)
    clip.values[:, 0] = np.arange(17)
    given = Clip(clip.skeleton, clip.values, round(1 / rate, 6))
    step = rate // thinned
    for out in (MixamoLayout.thin(given), thinned_for(given, "mixamo", 12)):
        assert out.values[:, 0].tolist() == list(range(0, 17, step))
        assert out.frame_time == given.frame_time * step
    assert thinned_for(given, "mixamo", None) is given


@pytest.mark.parametrize(
    ("seconds", "step"), [(0.0083999, 4), (0.0084, 2), (0.0169999, 2), (0.017, 1), (0.0085, 2), (0.00424, 4)]
)
def test_limits_of_thinning(still, seconds, step):
    clip = still(frames=9)
    assert MixamoLayout.thin(Clip(clip.skeleton, clip.values, seconds)).frame_time == step * seconds


@pytest.mark.parametrize(("height", "scale"), [(9.9, 1.0), (10.0, 1.0), (10.1, 0.01), (100.0, 0.01)])
def test_scale(still, height, scale):
    clip = still()
    clip.values[:, :3] = [[8.0 * frame, 5.0, -3.0 * frame**2] for frame in range(1, 7)]
    clip = Clip(_raised(clip.skeleton, height), clip.values, 1 / 30)
    layout = MixamoLayout.fit(clip)
    assert layout.scale == scale
    assert layout.begin == (8.0 * scale, -3.0 * scale)
    expected = scale * np.array([[8, 5, -9], [8, 5, -9], [8, 5, -15], [8, 5, -21], [8, 5, -27], [8, 5, -33]])
    assert layout.encode(clip)[:, ROOT : ROOT + 3].tolist() == expected.astype(np.float32).tolist()
    back = layout.decode(layout.encode(clip))
    np.testing.assert_allclose(back.values, clip.values, rtol=len(clip) * EPS, atol=0)
    assert back.skeleton == clip.skeleton


def test_scale_of_xia():
    clip = Clip(_raised(_star(RIGS[3].joints), 11), np.zeros((2, 96)), 1 / 30)
    assert MixamoLayout.fit(clip).scale == 0.14 * 0.01


# --- what the features mean


def test_features(person, move):
    clip = move(person(), seed=5)
    layout = MixamoLayout.fit(clip)
    features = layout.encode(clip)
    assert features.shape[1] == 174
    names = [name.split(":")[1] for name in clip.names]
    matrices = clip.rotations()
    for index, name in enumerate(layout.rig.joints):
        joint = matrices[:, names.index(name)]
        rows = [joint[:, row, column] for row in (0, 1) for column in (0, 1, 2)]
        assert torch.equal(features[:, 6 * index : 6 * index + 6], torch.stack(rows, dim=1).float())
    root = clip.translations()[:, 0]
    torch.testing.assert_close(features[1:, 168].double(), (root[1:] - root[:-1])[:, 0], rtol=EPS, atol=0)
    torch.testing.assert_close(features[1:, 170].double(), (root[1:] - root[:-1])[:, 2], rtol=EPS, atol=0)
    assert torch.equal(features[0, [168, 170]], features[1, [168, 170]])
    assert torch.equal(features[:, 169], root[:, 1].float())
    assert not features[:, 171:].any()
    assert torch.equal(layout.rotation_channels, torch.arange(144).view(24, 6))


@pytest.mark.parametrize(("rig", "slow"), [(RIGS[0], 0.018), (RIGS[1], 0.018), (RIGS[2], 0.006), (RIGS[3], 0.018)])
def test_contacts_are_slow_joints(rig, slow):
    clip = Clip(_star(rig.joints), np.zeros((8, 3 + 3 * len(rig.joints))), 1 / 30)
    steps = np.array([0, 0.99, 1.01, 0.5, 0.5, 1.5, 0.0, 0.999]) * slow / rig.scale
    clip.values[:, 1] = steps.cumsum()  # up counts as well
    layout = MixamoLayout.fit(clip)
    labels = layout.encode(clip)[:, layout.groups[1]]
    assert labels.shape == (8, len(rig.contacts))
    expected = torch.tensor([0.0, 1, 0, 1, 1, 0, 1, 1])
    assert torch.equal(labels, expected[:, None].expand_as(labels))


def test_contacts_are_of_the_feet(still):
    clip = still(frames=4)
    leg = clip.skeleton.channel_slices[clip.names.index("mixamorig7:LeftUpLeg")]
    clip.values[2, leg] = [20, 0, 0]
    layout = MixamoLayout.fit(clip)
    labels = layout.encode(clip)[:, layout.groups[1]]  # left toe end, right toe end, left toe base, right toe base
    assert labels.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1]]


def test_contacts_do_not_see_bones_that_move(rig):
    # Six channels on every joint: only the root's positions count.
    joints = RIGS[0].joints
    skeleton = rig([-1] + [0] * 23, [(*POSITIONS, *XYZ)] * 24, names=list(joints))
    clip = Clip(skeleton, np.zeros((3, 144)), 1 / 30)
    clip.values[1:, 6 * 5] = 5
    layout = MixamoLayout.fit(clip)
    assert layout.encode(clip)[1:, layout.groups[1]].all()
    clip.values[:, 6 * 5 : 6 * 5 + 3] = [[7, 8, 9]] * 3
    again = MixamoLayout.fit(clip).decode(layout.encode(clip))
    assert again.values[:, 6 * 5 : 6 * 5 + 3].tolist() == [[7, 8, 9]] * 3


def test_quaternions_have_the_signs_of_printed_angles(still):
    clip = still()
    clip.values[:3, 3:6] = [[50, 20, -30], [50 + 360, 20, -30], [50, 20 - 360, -30]]
    clip.values[3:, 3:6] = [[50, 160, 10], [0, 0, 180], [0, 0, 540]]
    layout = MixamoLayout.fit(clip, "quat")
    root = layout.encode(clip)[:, :4]
    assert torch.equal(root[0], -root[1])
    assert torch.equal(root[0], -root[2])
    half = np.radians(clip.values[:, 3:6]) / 2
    for frame, (x, y, z) in enumerate(half):
        # (cos x, i sin x)(cos y, j sin y)(cos z, k sin z)
        (a, b, c), (s, t, u) = np.cos([x, y, z]), np.sin([x, y, z])
        expected = [a * b * c - s * t * u, s * b * c + a * t * u, a * t * c - s * b * u, a * b * u + s * t * c]
        np.testing.assert_allclose(root[frame].numpy(), expected, rtol=0, atol=EPS)


@pytest.mark.parametrize("order", ["ZXY", "ZYX", "YZX"])
def test_quaternions_of_other_orders_go_by_xyz(person, move, order):
    rig = person(orders=[tuple(f"{axis}rotation" for axis in order)])
    clip = move(rig, seed=2)
    clip.values[:, 3:] *= 3
    layout = MixamoLayout.fit(clip, "quat")
    quaternions = layout.encode(clip)[:, :96].view(-1, 24, 4).double()
    matrices = clip.rotations()[:, list(layout.joints)]
    # The angles about x, y and z with that about y in [-90, 90], and half of them.
    x = torch.atan2(-matrices[..., 1, 2], matrices[..., 2, 2])
    y = torch.asin(matrices[..., 0, 2])
    z = torch.atan2(-matrices[..., 0, 1], matrices[..., 0, 0])
    expected = roma.euler_to_unitquat("XYZ", torch.stack([x, y, z], dim=-1))[..., [3, 0, 1, 2]]
    torch.testing.assert_close(quaternions, expected, rtol=0, atol=EPS)
    assert torch.equal(MixamoLayout.fit(clip).encode(clip)[:, -6:-3], layout.encode(clip)[:, -4:-1])


# --- decoding


def test_decoded_clips_have_their_own_rig(person, move):
    clip = move(person(), seed=1, frame_time=1 / 24)
    clip.values[:, :3] += 50
    layout = MixamoLayout.fit(clip)
    back = layout.decode(layout.encode(clip)[5:])
    assert back.skeleton == clip.skeleton
    assert back.frame_time == 1 / 24
    others = sorted(set(range(len(clip.names))) - set(layout.joints))
    assert {clip.names[joint].split(":")[1] for joint in others} == {
        *("HeadTop_End", "LeftHandThumb1", "LeftHandIndex1", "LeftHandIndex2", "RightHandThumb1")
    }
    held = back.rotations()[:, others]
    expected = clip.rotations()[:1, others].expand_as(held)
    torch.testing.assert_close(held, expected, rtol=0, atol=64 * torch.finfo(torch.float64).eps)


def test_decoded_clips_begin_where_the_clip_does(person, move):
    clip = move(person())
    clip.values[:, [0, 2]] += [[7, -3]]
    layout = MixamoLayout.fit(clip)
    features = layout.encode(clip)
    features[0, [168, 170]] = 1e3
    back = layout.decode(features)
    assert back.values[0, [0, 2]].tolist() == clip.values[0, [0, 2]].tolist()
    np.testing.assert_allclose(back.values[:, :3], clip.values[:, :3], rtol=0, atol=len(clip) * EPS * 10)
    assert layout.decode(features[9:]).values[0, [0, 2]].tolist() == clip.values[0, [0, 2]].tolist()


def test_a_joint_may_stand_for_two(person, move):
    rig = person()
    names = tuple(name for name in rig.names)
    spine = names.index("mixamorig7:Spine")
    names = tuple("mixamorig7:Back" if index == spine else name for index, name in enumerate(names))
    clip = move(Skeleton(names, rig.parents, rig.offsets, rig.channels, rig.end_sites))
    layout = MixamoLayout.fit(clip)
    features = layout.encode(clip)
    assert torch.equal(features[:, 66:72], features[:, 72:78])  # Spine and Spine1: both are the file's Spine1
    assert layout.joints[11] == layout.joints[12]
    again = layout.encode(layout.decode(features))
    assert (again - features).abs().max() <= FEW * features.abs().max()


# --- training


def test_groups(person, move):
    clip = move(person())
    for representation, each in (("6d", 6), ("quat", 4)):
        layout = MixamoLayout.fit(clip, representation)
        rotations, labels, velocity, height, zeros = layout.groups
        every = torch.arange(layout.size)
        assert every[rotations].tolist() == list(range(24 * each))
        assert every[labels].tolist() == [24 * each, 25 * each, 26 * each, 27 * each]
        assert every[velocity].tolist() == [28 * each, 28 * each + 2]
        assert every[height].tolist() == [28 * each + 1]
        features = layout.encode(clip)
        assert not features[:, zeros].any()
        assert (Normalizer.fit(features, layout).std[zeros] == 1).all()


@pytest.mark.parametrize("representation", ["6d", "quat"])
@pytest.mark.parametrize("rate", [0.5, 0.8, 1.6])
def test_resampled(still, representation, rate):
    clip = still(frames=60)
    time = np.arange(60)
    clip.values[:, 0], clip.values[:, 1], clip.values[:, 2] = 0.03 * time, 1 + 0.01 * time, -0.02 * time
    clip.values[20:40, 0] = clip.values[20, 0]  # stands a while: contacts come and go
    clip.values[20:40, 1:3] = clip.values[20, 1:3]
    clip.values[40:, :3] += clip.values[20, :3] - clip.values[40, :3]
    layout = MixamoLayout.fit(clip, representation)
    features = layout.encode(clip)
    frames = int(50 / rate)
    positions = 5 + rate * torch.arange(frames, dtype=torch.float64)[None]
    (out,) = layout.resample(features, positions, torch.tensor([rate]))
    _, labels, velocity, height, zeros = layout.groups
    assert (out[:, labels].min(), out[:, labels].max()) == (0, 1)
    assert not out[:, zeros].any()
    inside = slice(0, int(12 / rate))  # where it walks at one speed
    expected = rate * features[6, velocity].expand(inside.stop, 2)
    torch.testing.assert_close(out[inside, velocity], expected, rtol=FEW, atol=0)
    torch.testing.assert_close(
        out[inside, height].squeeze(1), 1 + 0.01 * positions[0, inside].float(), rtol=FEW, atol=0
    )
