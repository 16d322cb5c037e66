from __future__ import annotations

import json
import os
import pickle
from itertools import permutations
from pathlib import Path

import bvhio
import numpy as np
import pytest
import roma
import torch

from sinmdm.motion import BVHError, Clip, Skeleton

REAL = (
    "Crab-dance-long.bvh",
    "Salsa-Dancing-6.bvh",
    "Walk-In-Circle.bvh",
    "elephant-idle2.bvh",
    "xia-normal.bvh",
    "xia-proud.bvh",
)
TEXT = """HIERARCHY
ROOT Hips
{
  OFFSET 0 1 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Leg
  {
    OFFSET 1 0 0
    CHANNELS 3 Xrotation Yrotation Zrotation
    End Site
    {
      OFFSET 0 -1 0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.05
0 1 0 10 20 30 40 50 60
0 1 1 11 21 31 41 51 61
"""


def _turn(axis: str, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array(
        {
            "X": [[1, 0, 0], [0, cos, -sin], [0, sin, cos]],
            "Y": [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]],
            "Z": [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]],
        }[axis]
    )


def _read(text: str, folder: Path) -> Clip:
    path = folder / "clip.bvh"
    path.write_bytes(text.encode())
    return Clip.read(path)


def _assert_same(first: Clip, second: Clip) -> None:
    assert second.skeleton == first.skeleton
    assert second.frame_time == first.frame_time
    np.testing.assert_allclose(second.values, first.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", REAL)
def test_real_files_survive_writing(real, tmp_path, name):
    clip = Clip.read(real(name))
    clip.write(tmp_path / "again.bvh")
    _assert_same(clip, Clip.read(tmp_path / "again.bvh"))


@pytest.mark.parametrize("name", REAL)
def test_real_files_as_bvhio_reads_them(real, name):
    clip, other = Clip.read(real(name)), bvhio.readAsBvh(str(real(name)))
    joints = [joint for joint, _, _ in other.Root.layout()]
    assert clip.names == tuple(joint.Name for joint in joints)
    assert clip.skeleton.channels == tuple(tuple(joint.Channels) for joint in joints)
    assert (len(clip), clip.frame_time) == (other.FrameCount, other.FrameTime)
    positions = clip.positions().numpy()
    for frame in np.linspace(0, len(clip) - 1, 6).astype(int):
        above = {id(joints[0]): (None, None)}
        for index, joint in enumerate(joints):
            pose, (turn, place) = joint.Keyframes[frame], above[id(joint)]
            place = pose.Position if turn is None else place + turn * pose.Position
            turn = pose.Rotation if turn is None else turn * pose.Rotation
            above |= {id(child): (turn, place) for child in joint.Children}
            assert np.abs(positions[frame, index] - np.array(place)).max() < 1e-5 * clip.skeleton.reach()


def test_position_channels_replace_the_offset(real):
    clip = Clip.read(real("elephant-idle2.bvh"))
    np.testing.assert_allclose(clip.translations()[0].numpy(), clip.offsets, atol=1e-2)
    assert np.abs(clip.translations().numpy() - clip.offsets)[:, 1:].max() > 0.1
    np.testing.assert_array_equal(clip.translations()[:, 1].numpy(), clip.values[:, 6:9])


@pytest.mark.parametrize("order", [*permutations("XYZ")])
def test_rotations_multiply_in_printed_order(rig, order):
    angles = [20.0, -130.0, 75.0]
    clip = Clip(rig([-1], [tuple(f"{axis}rotation" for axis in order)]), np.array([angles]), 0.1)
    expected = np.linalg.multi_dot([_turn(axis, angle) for axis, angle in zip(order, angles, strict=True)])
    np.testing.assert_allclose(clip.rotations()[0, 0].numpy(), expected, atol=1e-14)


def test_positions_by_hand(tmp_path):
    clip = _read(TEXT, tmp_path)
    turn = _turn("Z", 11) @ _turn("X", 21) @ _turn("Y", 31)
    np.testing.assert_allclose(clip.positions()[1].numpy(), [[0, 1, 1], [0, 1, 1] + turn @ [1, 0, 0]], atol=1e-14)
    np.testing.assert_allclose(clip.positions(global_=False)[1].numpy(), [[0, 0, 0], turn @ [1, 0, 0]], atol=1e-14)
    assert (len(clip), clip.fps, clip.names, clip.parents) == (2, pytest.approx(20), ("Hips", "Leg"), (-1, 0))


def test_random_clips_survive_writing(clip, tmp_path):
    clip.write(tmp_path / "clip.bvh")
    _assert_same(clip, Clip.read(tmp_path / "clip.bvh"))


def test_random_clips_survive_rotation_matrices(clip):
    again = Clip.from_motion(clip.skeleton, clip.rotations(), clip.translations(), clip.frame_time)
    torch.testing.assert_close(again.rotations(), clip.rotations(), rtol=0, atol=1e-7)
    torch.testing.assert_close(again.translations(), clip.translations(), rtol=0, atol=0)
    torch.testing.assert_close(again.positions(), clip.positions(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", [*permutations("XYZ")])
def test_angles_run_on_through_whole_turns_and_past_the_poles(rig, order):
    time = np.linspace(0, 1, 200)[:, None]
    angles = np.concatenate([900 * time, 10 + 300 * np.sin(5 * time), -500 * time], axis=1)
    skeleton = rig([-1], [tuple(f"{axis}rotation" for axis in order)])
    clip = Clip(skeleton, angles, 0.1)
    again = Clip.from_motion(skeleton, clip.rotations(), clip.translations(), 0.1)
    np.testing.assert_allclose(np.abs(np.diff(again.values, axis=0)), np.abs(np.diff(angles, axis=0)), atol=1e-6)


@pytest.mark.parametrize("middle", [90.0, -90.0])
@pytest.mark.parametrize("order", [*permutations("XYZ")])
def test_angles_at_the_poles(rig, order, middle):
    skeleton = rig([-1], [tuple(f"{axis}rotation" for axis in order)])
    clip = Clip(skeleton, np.array([[30.0, middle, 50.0], [-170.0, middle, 100.0]]), 0.1)
    again = Clip.from_motion(skeleton, clip.rotations(), clip.translations(), 0.1)
    torch.testing.assert_close(again.rotations(), clip.rotations(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("order", [*permutations("XYZ")])
def test_angles_are_those_of_roma(rig, order):
    """But for whole turns: 180 degrees are also -180. At the poles the third angle is 0."""
    degrees = torch.cat([torch.rand(500, 3) * 360, torch.tensor([[30.0, 90.0, 50.0], [-170.0, -90.0, 100.0]])]).double()
    rotations = roma.euler_to_rotmat("".join(order), degrees, degrees=True)
    skeleton = rig([-1, *range(len(degrees) - 1)], [tuple(f"{axis}rotation" for axis in order)] * len(degrees))
    angles = Clip.from_motion(skeleton, rotations[None], torch.zeros(1, len(degrees), 3), 0.1).values.reshape(-1, 3)
    difference = angles - roma.rotmat_to_euler("".join(order), rotations, degrees=True).numpy()
    np.testing.assert_allclose(difference, 360 * np.rint(difference / 360), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(angles[-2:, 2], 0)


@pytest.mark.parametrize("own", [("Yrotation",), ("Zrotation", "Xrotation"), ("Xrotation", "Zrotation"), ()])
def test_joints_with_few_rotation_channels(rig, own):
    skeleton = rig([-1, 0], [("Xrotation", "Yrotation", "Zrotation"), own])
    values = np.random.default_rng(0).uniform(-179, 179, (50, skeleton.channel_count))
    clip = Clip(skeleton, values, 0.1)
    again = Clip.from_motion(skeleton, clip.rotations(), clip.translations(), 0.1)
    torch.testing.assert_close(again.rotations(), clip.rotations(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("fps", "kept"), [(120, 30), (100, 25), (60, 30), (59.94, 29.97), (50, 25), (30.3, 30.3), (30, 30), (24, 24)]
)
def test_thin(rig, move, fps, kept):
    clip = move(rig([-1], [("Xrotation",)]), frames=121, frame_time=1 / fps)
    thin = clip.thin()
    assert thin.fps == pytest.approx(kept)
    np.testing.assert_array_equal(thin.values, clip.values[:: round(fps / kept)])


def test_slice(clip):
    part = clip.slice(5, 9)
    np.testing.assert_array_equal(part.values, clip.values[5:9])
    with pytest.raises(ValueError, match="1 frame or more"):
        clip.slice(9, 9)


def test_skeleton_through_json(clip):
    again = Skeleton.from_dict(json.loads(json.dumps(clip.skeleton.to_dict())))
    assert again == clip.skeleton
    assert hash(again) == hash(clip.skeleton)
    with pytest.raises(ValueError, match="offsets"):
        Skeleton.from_dict({"names": ["a"], "parents": [-1]})


@pytest.mark.parametrize("parents", [[0], [-1, -1], [-1, 1], [-1, 0, 0, 1], [-1, 2, 0]])
def test_skeleton_must_be_a_tree_depth_first(rig, parents):
    with pytest.raises(ValueError, match="depth first"):
        rig(parents, [()] * len(parents))


def test_untidy_text(tmp_path):
    text = (
        "\ufeffhierarchy\r\n\r\nROOT mixamorig7:Left arm-1 {\r\n\tOFFSET\t1e-3 -2E+1 .5  \r\n"
        "\tCHANNELS 4 zrotation Yposition XROTATION Yrotation \r\n"
        "\tJOINT MOTION\r\n\t{\r\n\t\tOFFSET 0 0 0 \r\n\t\tCHANNELS 0\r\n"
        "\t\tEnd Site #name: mixamorig7:X_end_site\r\n\t\t{\r\n\t\t\tOFFSET 1 2 3\r\n\t\t}\r\n\t}\r\n"
        "\tJOINT JOINT\r\n\t{\r\n\t\tOFFSET 4 5 6\r\n\t}\r\n}\r\n"
        "MOTION\r\nFrames:\t1\r\nFrame Time: 5e-02\r\n\r\n 1\t2.5e1  3 +4 \r\n\r\n"
    )
    clip = _read(text, tmp_path)
    assert clip.names == ("mixamorig7:Left arm-1", "MOTION", "JOINT")
    assert clip.parents == (-1, 0, 0)
    assert clip.skeleton.channels == (("Zrotation", "Yposition", "Xrotation", "Yrotation"), (), ())
    assert clip.skeleton.end_sites == ((), ((1.0, 2.0, 3.0),), ())
    assert clip.frame_time == 0.05
    np.testing.assert_array_equal(clip.offsets, [[1e-3, -20, 0.5], [0, 0, 0], [4, 5, 6]])
    np.testing.assert_array_equal(clip.values, [[1, 25, 3, 4]])
    np.testing.assert_array_equal(clip.translations()[0, 0].numpy(), [1e-3, 25, 0.5])
    clip.write(tmp_path / "again.bvh")
    _assert_same(clip, Clip.read(tmp_path / "again.bvh"))


@pytest.mark.parametrize(
    ("name", "encoding"), [("Hüfte", "latin-1"), ("Hüfte", "utf-8"), ("腰", "utf-8"), ("a\u2028b", "utf-8")]
)
def test_names_beyond_ascii(tmp_path, name, encoding):
    (tmp_path / "clip.bvh").write_bytes(TEXT.replace("Hips", name).encode(encoding))
    clip = Clip.read(tmp_path / "clip.bvh")
    assert clip.names == (name, "Leg")
    clip.write(tmp_path / "again.bvh")
    assert Clip.read(tmp_path / "again.bvh").names == clip.names


BAD = {
    "empty": ("", "", "HIERARCHY"),
    "no hierarchy": ("HIERARCHY\n", "", "HIERARCHY"),
    "cut in the hierarchy": (TEXT[TEXT.index("    End") :], "", "ends inside the hierarchy"),
    "cut before the header": (TEXT[TEXT.index("Frames") :], "", "Frames"),
    "two roots": ("MOTION\n", "ROOT b\n{\nOFFSET 0 0 0\n}\nMOTION\n", "line 16: one ROOT"),
    "joint without a root": ("ROOT", "JOINT", "ROOT must come first"),
    "no name": ("JOINT Leg", "JOINT", "line 6: JOINT without a name"),
    "no brace": ("{\n    OFFSET 1", "\n    OFFSET 1", "expected '{'"),
    "brace too many": ("  OFFSET 0 1 0", "  { OFFSET 0 1 0", "line 4: a '{' that opens nothing"),
    "offset of two": ("OFFSET 1 0 0", "OFFSET 1 0", "line 8: OFFSET needs 3 numbers"),
    "offset not a number": ("OFFSET 1 0 0", "OFFSET 1 0 x", "line 8"),
    "offset infinite": ("OFFSET 1 0 0", "OFFSET 1 0 inf", "finite"),
    "no offset": ("    OFFSET 1 0 0\n", "", "'Leg' has no OFFSET"),
    "channels miscounted": ("CHANNELS 3", "CHANNELS 2", "line 9: CHANNELS says '2' and lists 3"),
    "channel unknown": ("3 Xrotation", "3 Wrotation", "unknown channel 'Wrotation'"),
    "channel twice": ("3 Xrotation Yrotation", "3 Yrotation Yrotation", "once"),
    "channel count missing": ("CHANNELS 3 Xrotation Yrotation Zrotation", "CHANNELS", "CHANNELS says ''"),
    "unknown keyword": ("    End Site", "    Endless", "found 'Endless'"),
    "fewer frames than said": ("Frames: 2", "Frames: 3", "says 3 frames, the file has 2"),
    "more frames than said": ("Frames: 2", "Frames: 1", "says 1 frames, the file has 2"),
    "no frames": ("Frames: 2", "Frames: 0", "Frames is 0"),
    "frames not a number": ("Frames: 2", "Frames: two", "line 17: after MOTION"),
    "zero frame time": ("0.05", "0", "line 18: Frame Time is 0"),
    "negative frame time": ("0.05", "-0.05", "must be positive"),
    "frame time not a number": ("0.05", "fast", "line 18"),
    "frame time infinite": ("0.05", "inf", "must be positive"),
    "row cut": ("51 61", "51", "line 20: 8 numbers where the hierarchy has 9"),
    "row too long": ("51 61", "51 61 71", "line 20: 10 numbers"),
    "row not numbers": ("51 61", "51 x", "line 20: could not convert"),
    "row nan": ("51 61", "nan 61", "line 20: a number that is not finite"),
    "row with an underscore": ("51 61", "5_1 61", "line 20: could not convert"),
    "frame time with an underscore": ("0.05", "0.0_5", "could not convert"),
    "end site without an offset": ("      OFFSET 0 -1 0\n", "", "End Site of joint 'Leg' has no OFFSET"),
    "end site with two offsets": (
        "      OFFSET 0 -1 0\n",
        "      OFFSET 0 1 0\n      OFFSET 0 2 0\n",
        "a second OFFSET",
    ),
    "joint with two offsets": ("    OFFSET 1 0 0\n", "    OFFSET 1 0 0\n    OFFSET 2 0 0\n", "a second OFFSET"),
    "row infinite": ("51 61", "51 -inf", "line 20: a number that is not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text(tmp_path, case):
    old, new, message = BAD[case]
    text = "" if case == "empty" else TEXT.replace(old, new, 1)
    assert text != TEXT
    with pytest.raises(BVHError) as caught:
        _read(text, tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "clip.bvh") in str(caught.value)


@pytest.mark.parametrize("data", [os.urandom(5000), b"\x00" * 100, pickle.dumps({"motion": [1.0] * 100})])
def test_files_that_are_no_bvh(tmp_path, data):
    (tmp_path / "clip.bvh").write_bytes(data)
    with pytest.raises(BVHError, match="must begin with HIERARCHY"):
        Clip.read(tmp_path / "clip.bvh")


def test_every_cut_is_an_error_that_says_so(tmp_path):
    for end in range(len(TEXT) - 3):
        with pytest.raises(BVHError, match=r"clip\.bvh, line \d+"):
            _read(TEXT[:end], tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Clip.read(tmp_path / "nowhere.bvh")


def test_one_frame(tmp_path):
    clip = _read(TEXT.replace("Frames: 2", "Frames: 1")[: TEXT.index("0 1 1 11")], tmp_path)
    assert clip.positions().shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("values", "frame_time", "message"),
    [
        (np.zeros((2, 8)), 0.1, "values have shape"),
        (np.zeros((0, 9)), 0.1, "values have shape"),
        (np.full((2, 9), np.nan), 0.1, "finite"),
        (np.zeros((2, 9)), 0.0, "frame_time"),
        (np.zeros((2, 9)), float("nan"), "frame_time"),
    ],
)
def test_bad_clips(tmp_path, values, frame_time, message):
    with pytest.raises(ValueError, match=message):
        Clip(_read(TEXT, tmp_path).skeleton, values, frame_time)


def test_bad_motions(clip):
    with pytest.raises(ValueError, match="shape"):
        Clip.from_motion(clip.skeleton, clip.rotations()[:, :, :2], clip.translations(), 0.1)
    with pytest.raises(ValueError, match="finite"):
        Clip.from_motion(clip.skeleton, clip.rotations() * float("nan"), clip.translations(), 0.1)


def test_writing_fails_whole(clip, tmp_path, monkeypatch):
    with pytest.raises(OSError, match="missing"):
        clip.write(tmp_path / "missing" / "clip.bvh")
    (tmp_path / "folder.bvh").mkdir()
    with pytest.raises(OSError, match=r"folder\.bvh"):
        clip.write(tmp_path / "folder.bvh")
    (tmp_path / "old.bvh").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        clip.write(tmp_path / "old.bvh")
    assert (tmp_path / "old.bvh").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.bvh", "old.bvh"]
