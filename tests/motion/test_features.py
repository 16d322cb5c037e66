from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from sinmdm.motion import (
    ArrayLayout,
    Clip,
    Normalizer,
    SkeletonLayout,
    layout_for,
    layout_from_dict,
    read_motion,
    walker,
    write_motion,
)
from sinmdm.motion.rotations import orthonormal_6d

FEET = {
    "Crab-dance-long.bvh": {
        f"DEF_BN_{leg}_end" for leg in ("leg_L_05", "leg_R_05", "Leg_L_10", "Leg_R_10", "Leg_L_15", "Leg_R_15")
    },
    "Salsa-Dancing-6.bvh": {
        f"mixamorig7:{side}{part}" for side in ("Left", "Right") for part in ("ToeBase", "Toe_End")
    },
    "Walk-In-Circle.bvh": {f"mixamorig7:{side}{part}" for side in ("Left", "Right") for part in ("ToeBase", "Toe_End")},
    "elephant-idle2.bvh": {f"Bip01_{side}_{part}" for side in "LR" for part in ("Toe0", "Foot", "Hand")}
    | {"BN_Nose_05", "BN_Nose_06"},
    "xia-normal.bvh": {f"{side}{part}" for side in ("Left", "Right") for part in ("Foot", "ToeBase")},
    "xia-proud.bvh": {f"{side}{part}" for side in ("Left", "Right") for part in ("Foot", "ToeBase")},
}


def _windows(layout: SkeletonLayout, features: torch.Tensor, rates: list[float], frames: int) -> torch.Tensor:
    rate = torch.tensor(rates)
    return layout.resample(features, 5 + rate[:, None] * torch.arange(frames), rate)


def _assert_survives(clip: Clip) -> None:
    layout = layout_for(clip)
    features = layout.encode(clip)
    assert features.dtype == torch.float32
    assert features.shape == (len(clip), layout.size)
    again = layout.decode(features)
    assert again.skeleton == clip.skeleton
    assert again.frame_time == clip.frame_time
    error = (again.positions() - clip.positions()).norm(dim=-1).max()
    assert error < 1e-5 * clip.skeleton.reach(clip.translations().mean(0).numpy())


@pytest.mark.parametrize("name", FEET)
def test_real_clips_survive(real, name):
    clip = read_motion(real(name)).thin()
    _assert_survives(clip)
    layout = layout_for(clip)
    assert {clip.names[joint] for joint in layout.contacts} == FEET[name]
    assert layout_from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_random_clips_survive(clip):
    _assert_survives(clip)
    layout = layout_for(clip)
    assert layout_from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_elephant_bones_that_move(real):
    clip = read_motion(real("elephant-idle2.bvh"))
    layout = layout_for(clip)
    spread = np.ptp(clip.translations().numpy(), axis=0).max(axis=-1)
    assert set(layout.translated) == {joint for joint in range(1, len(clip.names)) if spread[joint] > 1e-3}
    assert 0 < len(layout.translated) < len(clip.names) - 1


def test_channels_mean_what_they_say(rig, move):
    turns = ("Zrotation", "Xrotation", "Yrotation")
    clip = move(rig([-1, 0, 0], [("Xposition", "Yposition", "Zposition", *turns), turns, ("Xposition", *turns)]))
    layout = layout_for(clip)
    features = layout.encode(clip).double()
    root = clip.translations()[:, 0]
    torch.testing.assert_close(features[1:, :2], (root[1:] - root[:-1])[:, [0, 2]], rtol=0, atol=1e-6)
    torch.testing.assert_close(features[0, :2], features[1, :2])
    torch.testing.assert_close(features[:, 2], root[:, 1], rtol=0, atol=1e-6)
    assert layout.rotation_channels.shape == (3, 6)
    six = features[:, layout.rotation_channels]
    matrices = clip.rotations()
    torch.testing.assert_close(torch.cat([matrices[..., 0], matrices[..., 1]], dim=-1), six, rtol=0, atol=1e-6)
    assert layout.translated == (2,)
    torch.testing.assert_close(features[:, layout.groups[3]], clip.translations()[:, 2], rtol=0, atol=1e-6)
    assert [group.stop for group in layout.groups] == [2, 3, 21, 24, layout.size]
    assert layout.groups[0].start == 0


def test_contacts_do_not_depend_on_rate_or_unit():
    fast = walker(fps=120)
    layouts, labels = [], []
    for clip in (fast.thin(), fast):
        layouts.append(layout_for(clip))
        labels.append(layouts[-1].encode(clip)[:, layouts[-1].groups[4]])
    assert layouts[0].contacts == layouts[1].contacts
    assert (labels[0] != labels[1][::4]).float().mean() < 0.05
    assert set(labels[0].unique().tolist()) == {0.0, 1.0}

    scaled = fast.thin()
    scaled.skeleton.offsets.setflags(write=True)
    scaled.skeleton.offsets[:] *= 100
    scaled.values[:, :3] *= 100
    layout = layout_for(scaled)
    assert layout.contacts == layouts[0].contacts
    assert torch.equal(layout.encode(scaled)[:, layout.groups[4]], labels[0])


def test_no_contacts_in_the_air():
    clip = walker(seconds=3)
    clip.values[:, 0] += 50 * np.arange(len(clip))
    assert layout_for(clip).contacts == ()


def test_decode_begins_at_begin():
    clip = walker(seconds=2)
    clip.values[:, [0, 2]] += [[7, -3]]
    layout = layout_for(clip)
    features = layout.encode(clip)
    features[0, :2] = 1e3
    np.testing.assert_allclose(layout.decode(features).values[0, [0, 2]], clip.values[0, [0, 2]], atol=1e-12)
    assert layout.begin == tuple(clip.values[0, [0, 2]])


@pytest.mark.parametrize(
    "kind", ["zeros", "noise", "huge", "tiny", "parallel", "opposite", "first only", "second only"]
)
def test_decode_takes_anything_finite(clip, kind):
    layout = layout_for(clip)
    features = torch.randn(20, layout.size, generator=torch.Generator().manual_seed(0))
    six = layout.rotation_channels
    if kind == "zeros":
        features.zero_()
    elif kind in ("huge", "tiny"):
        features *= 1e18 if kind == "huge" else 1e-30
    elif kind in ("parallel", "opposite"):
        features[:, six[:, 3:]] = features[:, six[:, :3]] * (2.0 if kind == "parallel" else -0.5)
    elif kind in ("first only", "second only"):
        features[:, six[:, 3:] if kind == "first only" else six[:, :3]] = 0
    decoded = layout.decode(features)
    assert decoded.positions().isfinite().all()
    full = [j for j, own in enumerate(clip.skeleton.channels) if sum(c.endswith("rotation") for c in own) == 3]
    matrices = decoded.rotations()[:, full]
    eye = torch.eye(3, dtype=torch.float64).expand_as(matrices)
    torch.testing.assert_close(matrices.mT @ matrices, eye, rtol=0, atol=1e-6)
    assert (torch.linalg.det(matrices) > 0).all()
    if kind == "noise":
        first = torch.nn.functional.normalize(features[:, six[full, :3]].double(), dim=-1)
        torch.testing.assert_close(matrices[..., 0], first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-18, 1e-9, 1.0, 1e9, 1e17])
def test_six_numbers_of_any_size_become_a_rotation(dtype, scale):
    numbers = torch.randn(1000, 6, dtype=dtype, generator=torch.Generator().manual_seed(0)) * scale
    first, second = orthonormal_6d(numbers).unflatten(-1, (2, 3)).unbind(-2)
    for one, other, expected in ((first, first, 1.0), (second, second, 1.0), (first, second, 0.0)):
        product = (one * other).sum(-1)
        torch.testing.assert_close(product, torch.full_like(product, expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_decode_refuses_what_is_not_finite(clip, poison):
    layout = layout_for(clip)
    features = layout.encode(clip)
    features[3, 2] = poison
    with pytest.raises(ValueError, match="finite"):
        layout.decode(features)
    with pytest.raises(ValueError, match="shape"):
        layout.decode(features[:, :-1])


def test_encode_refuses_other_motions(rig, move):
    clip = walker(seconds=1)
    layout = layout_for(clip)
    with pytest.raises(ValueError, match="at least 2"):
        layout_for(clip.slice(0, 1))
    with pytest.raises(ValueError, match="at least 2"):
        layout.encode(clip.slice(0, 1))
    with pytest.raises(ValueError, match="another skeleton"):
        layout.encode(walker(legs=6, seconds=1))
    with pytest.raises(ValueError, match="60 frames a second, the layout 30"):
        layout.encode(walker(seconds=1, fps=60))
    with pytest.raises(ValueError, match="not an array"):
        layout.encode(torch.zeros(5, layout.size))


def test_resample_at_whole_frames_is_identity(clip):
    layout = layout_for(clip)
    features = layout.encode(clip)
    starts = torch.tensor([0.0, 3.0, 17.0])
    out = layout.resample(features, starts[:, None] + torch.arange(20), torch.ones(3))
    for window, start in zip(out, (0, 3, 17), strict=True):
        torch.testing.assert_close(window, features[start : start + 20], rtol=0, atol=1e-6)


def test_resample_of_an_array_is_exactly_identity_and_cubic():
    time = torch.arange(30, dtype=torch.float64)
    array = torch.stack([time**2 - 3 * time, 5 - time], dim=1)
    layout = ArrayLayout(2)
    assert torch.equal(layout.resample(array, time[None], torch.ones(1))[0], array)
    at = torch.tensor([[1.25, 7.9, 20.5, 28.0]], dtype=torch.float64)
    expected = torch.stack([at**2 - 3 * at, 5 - at], dim=-1)
    torch.testing.assert_close(layout.resample(array, at, torch.ones(1)), expected)
    ends = layout.resample(array, torch.tensor([[-5.0, 99.0]], dtype=torch.float64), torch.ones(1))
    assert torch.equal(ends[0], array[[0, -1]])


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.25, 2.0])
def test_stretched_root_goes_the_same_way(rate):
    clip = walker(seconds=6)
    layout = layout_for(clip)
    frames = round(120 / rate) + 1
    out = _windows(layout, layout.encode(clip), [rate], frames)[0]
    way = out[:, :2].double().cumsum(0)
    at = 5 + rate * np.arange(frames)
    true = np.stack([np.interp(at, np.arange(len(clip)), clip.values[:, axis]) for axis in (0, 2)], axis=1)
    np.testing.assert_allclose((way - way[0]).numpy(), true - true[0], atol=0.005)
    length = out[1:, :2].norm(dim=-1).sum()
    original = layout.encode(clip)[6:126, :2].norm(dim=-1).sum()
    assert length == pytest.approx(original.item(), rel=0.01)


def test_resampled_windows_are_motions():
    clip = walker(seconds=6)
    layout = layout_for(clip)
    features = layout.encode(clip)
    rates = [0.6, 0.83, 1.0, 1.31]
    batch = _windows(layout, features, rates, 90)
    assert batch.shape == (4, 90, layout.size)
    assert batch.dtype == torch.float32
    first, second = batch[..., layout.rotation_channels].unflatten(-1, (2, 3)).unbind(-2)
    for product, value in (((first * first), 1.0), ((second * second), 1.0), ((first * second), 0.0)):
        torch.testing.assert_close(product.sum(-1), torch.full_like(product[..., 0], value), rtol=0, atol=1e-5)
    contacts = batch[..., layout.groups[4]]
    assert contacts.min() == 0
    assert contacts.max() == 1
    for index, rate in enumerate(rates):
        torch.testing.assert_close(_windows(layout, features, [rate], 90)[0], batch[index], rtol=0, atol=1e-6)
    slow = layout.decode(batch[0])
    chosen = np.round(5 + 0.6 * np.arange(90), 6)
    whole = np.flatnonzero(chosen % 1 == 0)
    expected = clip.positions(global_=False)[chosen[whole].astype(int)]
    torch.testing.assert_close(slow.positions(global_=False)[whole], expected, rtol=0, atol=1e-4)


def test_array_layout():
    array = torch.randn(10, 4, dtype=torch.float64)
    layout = layout_for(array)
    assert layout == ArrayLayout(4)
    assert (layout.kind, layout.size, layout.frame_time) == ("array", 4, None)
    assert layout.rotation_channels.shape == (0, 6)
    assert torch.equal(layout.decode(layout.encode(array)), array.float())
    for same in (layout, ArrayLayout(4, 1 / 30)):
        assert layout_from_dict(json.loads(json.dumps(same.to_dict()))) == same
    with pytest.raises(ValueError, match="shape"):
        layout.encode(array[:, :3])
    with pytest.raises(ValueError, match="at least 2"):
        layout.encode(array[:1])
    with pytest.raises(ValueError, match="not a clip"):
        layout.encode(walker(seconds=1))
    with pytest.raises(ValueError, match="shape"):
        layout_for(array[0])
    with pytest.raises(ValueError, match="at least 1"):
        ArrayLayout(0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "quat"}, "'quat', must be one of sinmdm, mixamo, bvh_general, array"),
        ({}, "None"),
        (7, "7"),
        ({"kind": "array"}, "'features'"),
        ({"kind": "sinmdm", "begin": [0, 0], "skeleton": {}}, "not a skeleton"),
    ],
)
def test_bad_layouts(data, message):
    with pytest.raises(ValueError, match=message):
        layout_from_dict(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_through_files(tmp_path, dtype):
    array = torch.randn(6, 3).to(dtype)
    write_motion(tmp_path / "a.npy", array)
    torch.save(array, tmp_path / "a.pt")
    for name in ("a.npy", "a.pt"):
        assert torch.equal(read_motion(tmp_path / name), array)


def test_clips_through_files(clip, tmp_path):
    write_motion(tmp_path / "a.BVH", clip)
    np.testing.assert_allclose(read_motion(tmp_path / "a.BVH").values, clip.values, atol=1e-9)
    with pytest.raises(ValueError, match=r"must be \.bvh"):
        write_motion(tmp_path / "a.npy", clip)
    with pytest.raises(ValueError, match=r"must be \.npy"):
        write_motion(tmp_path / "a.bvh", torch.zeros(3, 3))
    with pytest.raises(OSError, match="missing"):
        write_motion(tmp_path / "missing" / "a.npy", torch.zeros(3, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.BVH"]


class _Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5)), r"\(3, 4, 5\), must be \(frames, features\)"),
        (np.zeros(3), "shape"),
        (np.zeros((1, 4)), "two frames"),
        (np.zeros((4, 0)), "shape"),
        (np.zeros((4, 4), dtype=np.int64), "int64, must be floating"),
        (np.zeros((4, 4), dtype=np.complex64), "complex64, must be floating"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.full((4, 4), np.inf), "not finite"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    torch.save(torch.from_numpy(array), tmp_path / "a.pt")
    for name in ("a.npy", "a.pt"):
        with pytest.raises(ValueError, match=message) as caught:
            read_motion(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_files_that_are_no_motion(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([_Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.zeros((3, 3)))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(_Trap()))
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(_Trap()))
    torch.save(_Trap(), tmp_path / "trap.pt")
    torch.save({"a": torch.zeros(3, 3)}, tmp_path / "dict.pt")
    np.save(tmp_path / "cut.npy", np.zeros((50, 50)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:999])
    np.save(tmp_path / "header.npy", np.zeros((3, 3)))
    (tmp_path / "header.npy").write_bytes((tmp_path / "header.npy").read_bytes().replace(b"}", b"("))
    for name in ("empty.npy", "empty.pt", "clip.fbx"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 9)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=path.name):
            read_motion(path)
    for name in ("nowhere.bvh", "nowhere.npy", "nowhere.pt"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read_motion(tmp_path / name)


def test_normalizer(clip):
    layout = layout_for(clip)
    features = layout.encode(clip)
    normalizer = Normalizer.fit(features, layout)
    normal = normalizer.apply(features)
    assert normal.isfinite().all()
    torch.testing.assert_close(normal.mean(0), torch.zeros(layout.size), rtol=0, atol=1e-4)
    assert normal.std(0, correction=0).max() < 1 + 1e-4
    torch.testing.assert_close(normalizer.invert(normal), features, rtol=1e-5, atol=1e-5)
    window = features.expand(3, -1, -1)
    assert torch.equal(normalizer.apply(window)[1], normal)


def test_normalizer_does_not_blow_up_what_hardly_moves():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 6, generator=generator) * torch.tensor([1.0, 4.0, 1e-6, 0.0, 0.0, 0.0]) + 5
    spread = features.double().var(0, correction=0).mean().sqrt().float()
    for floor in (0.1, 0.3):
        normalizer = Normalizer.fit(features, floor=floor)
        torch.testing.assert_close(normalizer.std[:2], features[:, :2].std(0, correction=0))
        torch.testing.assert_close(normalizer.std[2:], (floor * spread).expand(4))
    normalizer = Normalizer.fit(features)  # 1: nothing is brought to the size of what moves more than the average
    torch.testing.assert_close(normalizer.std[1:2], features[:, 1:2].std(0, correction=0))
    torch.testing.assert_close(normalizer.std[[0, 2, 3, 4, 5]], spread.expand(5))
    assert torch.equal(Normalizer.fit(torch.full((9, 3), 0.1)).std, torch.ones(3))
    for mean, std in (
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3), torch.ones(2)),
        (torch.zeros(1), torch.ones(1) / 0),
    ):
        with pytest.raises(ValueError, match="std"):
            Normalizer(mean, std)
