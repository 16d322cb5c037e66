"""The layouts by name, and what the two published ones have in common."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sinmdm.motion import (
    ArrayLayout,
    Clip,
    GeneralLayout,
    MixamoLayout,
    Normalizer,
    SkeletonLayout,
    layout_for,
    layout_from_dict,
    read_motion,
    thinned_for,
    walker,
    write_motion,
    writing_motion,
)

EPS = torch.finfo(torch.float32).eps
# Numbers of a rotation, at most 1, are rounded by EPS / 2 each; making a rotation of six of them moves them by no more
# than twice the length of that; and they are rounded again.
AGAIN = (2 * 6**0.5 + 1) * EPS / 2
KINDS = ("mixamo", "bvh_general")
REPRESENTATIONS = ("6d", "quat")


@pytest.fixture
def person_clip(person, move) -> Clip:
    return move(person(), seed=3)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=REPRESENTATIONS)
def representation(request):
    return request.param


@pytest.fixture
def layout(person_clip, kind, representation):
    return layout_for(person_clip, kind, representation)


def _rotations(layout, features):
    """The numbers of the rotations: (..., joints, 6 or 4)."""
    return features[..., layout._rotations]


def _of_one_sign(one, other):
    """Quaternions with the signs of others."""
    return one * torch.where((one * other).sum(dim=-1, keepdim=True) < 0, -1, 1)


def _assert_again(layout, clip):
    """Features survive decoding; the signs of quaternions may not."""
    features = layout.encode(clip)
    again = layout.encode(layout.decode(features))
    if layout.representation == "quat":
        features[:, layout._rotations], again[:, layout._rotations] = (
            _rotations(layout, features),
            _of_one_sign(_rotations(layout, again), _rotations(layout, features)),
        )
    bound = torch.full_like(features, AGAIN)
    rest = torch.ones(layout.size, dtype=torch.bool)
    rest[layout._rotations.flatten()] = False
    bound[:, rest] = 2 * EPS * features[:, rest].abs()  # taken as they are: rounded, and rounded again
    assert ((again - features).abs() <= bound).all()


# --- by name


def test_names(person_clip):
    assert isinstance(layout_for(person_clip), SkeletonLayout)
    assert layout_for(person_clip, "sinmdm") == layout_for(person_clip)
    assert isinstance(layout_for(person_clip, "mixamo"), MixamoLayout)
    assert isinstance(layout_for(person_clip, "bvh_general", "quat"), GeneralLayout)
    assert layout_for(torch.zeros(3, 4), "array") == layout_for(torch.zeros(3, 4)) == ArrayLayout(4)


@pytest.mark.parametrize(
    ("array", "kind", "representation", "message"),
    [
        (False, "humanml", None, r"^layout is 'humanml', must be sinmdm or mixamo or bvh_general for a clip$"),
        (False, "array", None, "^layout is 'array', must be sinmdm"),
        (True, "mixamo", None, r"^layout is 'mixamo', must be array or humanml for an array$"),
        (False, "mixamo", "9d", r"^representation is '9d', must be 6d or quat$"),
        (False, "bvh_general", "", r"^representation is '', must be 6d or quat$"),
        (False, "sinmdm", "quat", r"^representation is 'quat', but the layout 'sinmdm' has no choice of it$"),
        (True, None, "6d", "^representation is '6d', but the layout 'array' has no choice of it$"),
    ],
)
def test_names_that_are_none(person_clip, array, kind, representation, message):
    with pytest.raises(ValueError, match=message):
        layout_for(torch.zeros(3, 4) if array else person_clip, kind, representation)


def test_two_frames_are_needed(person_clip, kind):
    with pytest.raises(ValueError, match="1 frame, at least 2"):
        layout_for(person_clip.slice(0, 1), kind)
    with pytest.raises(ValueError, match="1 frame, at least 2"):
        layout_for(person_clip, kind).encode(person_clip.slice(0, 1))


def test_thinning_by_name():
    clip, array = walker(seconds=1, fps=120), torch.zeros(4, 3)
    frames = {None: 30, "sinmdm": 30, "mixamo": 30, "bvh_general": 120}
    for kind, count in frames.items():
        assert len(thinned_for(clip, kind)) == count
        assert thinned_for(clip, kind, None) is clip
    assert len(thinned_for(clip, "sinmdm", 15)) == 15
    assert thinned_for(array) is array
    with pytest.raises(ValueError, match="must be array or humanml for an array"):
        thinned_for(array, "sinmdm")


def test_through_json(layout):
    assert layout_from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"representation": "euler"}, "'euler', must be 6d or quat"),
        ({"representation": None}, "'None', must be 6d or quat"),
        ({"skeleton": {}}, "not a skeleton"),
        ({"frame_time": None}, "not a '.*' layout"),
    ],
)
def test_layouts_that_are_none(layout, change, message):
    with pytest.raises(ValueError, match=message):
        layout_from_dict({**layout.to_dict(), **change})
    for key in layout.to_dict():
        with pytest.raises(ValueError, match=key):
            layout_from_dict({name: value for name, value in layout.to_dict().items() if name != key})


# --- there and back


@pytest.mark.parametrize(
    "name",
    [
        *("Crab-dance-long.bvh", "Salsa-Dancing-6.bvh", "Walk-In-Circle.bvh", "elephant-idle2.bvh"),
        *("xia-normal.bvh", "xia-proud.bvh"),
    ],
)
def test_real_clips_survive(real, name, kind, representation):
    clip = thinned_for(read_motion(real(name)), kind)
    layout = layout_for(clip, kind, representation)
    _assert_again(layout, clip)
    again = layout.decode(layout.encode(clip))
    assert (again.skeleton, again.frame_time, len(again)) == (clip.skeleton, clip.frame_time, len(clip))


def test_clips_survive(layout, person_clip):
    features = layout.encode(person_clip)
    assert features.dtype == torch.float32
    assert features.shape == (len(person_clip), layout.size)
    _assert_again(layout, person_clip)
    again = layout.decode(features)
    assert again.skeleton == person_clip.skeleton
    assert again.frame_time == layout.frame_time == person_clip.frame_time
    held = list(layout.joints) if layout.kind == "mixamo" else list(range(len(person_clip.skeleton)))
    # A matrix is quadratic in a quaternion: its numbers move by at most four times as much.
    difference = (again.rotations() - person_clip.rotations())[:, held].abs()
    assert difference.max() <= 4 * AGAIN


def test_random_clips_survive_in_general(clip, representation):
    layout = layout_for(clip, "bvh_general", representation)
    _assert_again(layout, clip)
    assert layout.decode(layout.encode(clip)).skeleton == clip.skeleton


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_chunk_by_chunk_to_the_bit(layout, person_clip, chunk):
    features = layout.encode(person_clip)
    for given in (features, features + torch.randn(features.shape) * features.abs().amax(0)):
        whole, decode = layout.decode(given), layout.decoder()
        parts = [decode(part).values for part in given.split(chunk)]
        np.testing.assert_array_equal(np.concatenate(parts), whole.values, strict=True)


def test_written_chunk_by_chunk(layout, person_clip, tmp_path):
    features = layout.encode(person_clip)
    write_motion(tmp_path / "whole.bvh", layout.decode(features))
    with writing_motion(tmp_path / "parts.bvh", layout, len(features)) as writer:
        for part in features.split(9):
            writer.write(part)
    assert (tmp_path / "parts.bvh").read_bytes() == (tmp_path / "whole.bvh").read_bytes()
    with pytest.raises(ValueError, match=r"must be \.bvh"), writing_motion(tmp_path / "a.npy", layout, 1):
        pass


@pytest.mark.parametrize("change", ["zeros", "noise", "huge", "tiny", "parallel"])
def test_anything_finite_is_a_motion(layout, change):
    features = torch.randn(20, layout.size, generator=torch.Generator().manual_seed(0))
    if change == "parallel":
        numbers = _rotations(layout, features)
        features[:, layout._rotations] = numbers[..., :1].expand(numbers.shape)
    else:
        features *= {"zeros": 0.0, "noise": 1.0, "huge": 1e18, "tiny": 1e-42}[change]
    matrices = layout.decode(features).rotations()
    eye = torch.eye(3, dtype=torch.float64).expand_as(matrices)
    bound = 64 * torch.finfo(torch.float64).eps  # some tens of roundings, from numbers to angles to matrices
    if change in ("noise", "huge", "parallel"):
        torch.testing.assert_close(matrices.mT @ matrices, eye, rtol=0, atol=bound)
    assert matrices.isfinite().all()
    assert (torch.linalg.det(matrices) > 0).all()


def test_numbers_that_are_none_are_refused(layout):
    features = torch.zeros(3, layout.size)
    features[1, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        layout.decode(features)
    with pytest.raises(ValueError, match="shape"):
        layout.decode(features[:, 1:])


def test_other_motions_are_refused(layout, person_clip, person, move):
    with pytest.raises(ValueError, match="another skeleton"):
        layout.encode(move(person("mixamorig:")))
    with pytest.raises(ValueError, match="60 frames a second, the layout 30"):
        layout.encode(Clip(person_clip.skeleton, person_clip.values, 1 / 60))
    with pytest.raises(ValueError, match="not an array"):
        layout.encode(torch.zeros(5, layout.size))


# --- quaternions and 6D


def test_quaternions_of_any_length_are_rotations(kind, person_clip):
    layout = layout_for(person_clip, kind, "quat")
    features = layout.encode(person_clip)
    longer = features.clone()
    longer[:, layout._rotations] = _rotations(layout, features) * -2
    np.testing.assert_array_equal(layout.decode(longer).values, layout.decode(features).values)
    features[:, layout._rotations] = 0
    turned = layout.decode(features).rotations()
    held = list(layout.joints) if kind == "mixamo" else slice(None)
    assert torch.equal(turned[:, held], torch.eye(3, dtype=torch.float64).expand_as(turned)[:, held])


def test_six_numbers_are_rows(kind, person_clip):
    layout = layout_for(person_clip, kind, "6d")
    features = layout.encode(person_clip)
    joints = list(layout.joints) if kind == "mixamo" else list(range(len(person_clip.skeleton)))
    channels = layout.rotation_channels
    assert channels.shape == (len(joints), 6)
    expected = person_clip.rotations()[:, joints, :2].flatten(2).float()
    assert torch.equal(features[:, channels], expected)
    assert layout_for(person_clip, kind, "quat").rotation_channels.shape == (0, 6)


# --- what training asks for


def test_groups_are_all_features_once(layout):
    seen = torch.zeros(layout.size, dtype=torch.int64)
    for group in layout.groups:
        seen[group] += 1
    assert (seen == 1).all()


def test_normalizer(layout, person_clip):
    features = layout.encode(person_clip)
    normalizer = Normalizer.fit(features, layout)
    assert normalizer.std[features.amax(0) == features.amin(0)].min() > 0
    normal = normalizer.apply(features)
    assert normal.isfinite().all()
    assert normal.std(0, correction=0).max() <= 1 + len(features) * EPS


def test_resampled_at_whole_frames(layout, person_clip):
    features = layout.encode(person_clip)
    out = layout.resample(features, torch.tensor([[0.0], [17.0]]) + torch.arange(20), torch.ones(2))
    assert out.dtype == torch.float32
    for window, start in zip(out, (0, 17), strict=True):
        expected = features[start : start + 20]
        numbers = _rotations(layout, window)
        if layout.representation == "quat":
            numbers = _of_one_sign(numbers, _rotations(layout, expected))
        torch.testing.assert_close(numbers, _rotations(layout, expected), rtol=0, atol=AGAIN)
        window[:, layout._rotations] = _rotations(layout, expected)
        assert torch.equal(window, expected)


@pytest.mark.parametrize("rate", [0.6, 1.3])
def test_resampled_rotations_are_rotations(layout, person_clip, rate):
    positions = 3 + rate * torch.arange(24.0, dtype=torch.float64)[None]
    out = layout.resample(layout.encode(person_clip), positions, torch.tensor([rate]))[0]
    numbers = _rotations(layout, out)
    if layout.representation == "quat":
        torch.testing.assert_close(numbers.norm(dim=-1), torch.ones(numbers.shape[:-1]), rtol=0, atol=2 * EPS)
        assert ((numbers[1:] * numbers[:-1]).sum(-1) > 0).all()
    else:
        rows = numbers.unflatten(-1, (2, 3))
        eye = torch.eye(2).expand(*numbers.shape[:-1], 2, 2)
        torch.testing.assert_close(rows @ rows.mT, eye, rtol=0, atol=8 * EPS)


def test_resampled_quaternions_run_on_where_signs_change(kind, person_clip):
    values = person_clip.values.copy()
    values[20:, 3:] += 360.0  # the same motion, and quaternions of the other sign from here on
    turned = Clip(person_clip.skeleton, values, person_clip.frame_time)
    layout = layout_for(turned, kind, "quat")
    positions = torch.arange(10, 30, 0.25)[None]
    numbers = _rotations(layout, layout.resample(layout.encode(turned), positions, torch.tensor([0.25])))[0]
    assert ((numbers[1:] * numbers[:-1]).sum(-1) > 0.9).all()
