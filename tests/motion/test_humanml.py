"""HumanML3D: what its features mean, files that are raw or normalised, and a run on it."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from humanml_motion import FRAMES, made_motion, statistics

from sinmdm.cli import main
from sinmdm.motion import (
    Clip,
    HumanMLLayout,
    Normalizer,
    Results,
    layout_for,
    layout_from_dict,
    read_humanml,
    read_motion,
    read_statistics,
    walker,
    write_humanml,
)
from sinmdm.presets import Preset
from sinmdm.run import load
from sinmdm.training import train

EPS = torch.finfo(torch.float32).eps
EXACT = 16 * FRAMES * torch.finfo(torch.float64).eps  # a few roundings in each frame, added up
LAYOUT = HumanMLLayout()
TINY = Preset(network={"d_model": 8, "heads": 2, "layers": 1, "window": 1}, timesteps=5, batch_size=2, crop=8, steps=2)


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return made_motion()[0]


def looping(period: int = 40) -> torch.Tensor:
    """Someone on a circle, who turns by the same angle and goes as far in each frame."""
    features = torch.zeros(period, 263)
    features[:, 0], features[:, 2], features[:, 3] = -math.pi / period, 0.05, 0.9
    return features


def positions(features: torch.Tensor) -> torch.Tensor:
    return LAYOUT.placer()(LAYOUT.decode(features))


# --- what the features mean


def test_joints_come_back() -> None:
    features, joints = made_motion()
    # Every feature is rounded once. A turn of the heading by d moves what is at distance r of the root by r d, a step's
    # rounding all that follows; the turns add up, and a turned step is off by its length times that.
    turn = 2 * features[:, :1].abs().double().sum(0) * EPS / 2
    steps = features[:, 1:3].double().norm(dim=1).sum() * (EPS / 2 + turn)
    bound = 2 * steps + (joints - joints[:, :1]).norm(dim=-1).amax() * (EPS / 2 + turn) + joints[..., 1].amax() * EPS
    placed = positions(features)
    assert placed.dtype == torch.float64
    assert placed.shape == (FRAMES, 22, 3)
    assert ((placed - joints).norm(dim=-1) <= bound).all()
    assert (joints[:, 0, [0, 2]].norm(dim=-1).amax(), features[:, 0].abs().amax()) > (1, 0.01)  # there is something


def test_what_leads_to_a_frame_is_in_the_frame_before(features: torch.Tensor) -> None:
    still = torch.zeros(5, 263)
    still[:, 4:7] = torch.tensor([0.0, 0.0, 1.0])  # a joint in front
    still[1, 0] = -math.pi / 4  # half of a quarter to the left
    still[2, 2] = 3.0
    placed = positions(still)
    ahead, left = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    expected = torch.stack([ahead, ahead, left, left * 4, left * 4]).double()
    torch.testing.assert_close(placed[:, 1], expected, rtol=0, atol=8 * EPS)
    torch.testing.assert_close(
        placed[:, 0], torch.stack([0 * left] * 3 + [left * 3] * 2).double(), rtol=0, atol=8 * EPS
    )


@pytest.mark.parametrize("chunk", [1, 7, 16, 40])
def test_chunk_by_chunk_to_the_bit(features: torch.Tensor, chunk: int) -> None:
    noisy = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    for motion in (features, noisy):
        decode, place = LAYOUT.decoder(), LAYOUT.placer()
        assert torch.equal(torch.cat([place(decode(part)) for part in motion.split(chunk)]), positions(motion))


def test_joints_and_groups(features: torch.Tensor) -> None:
    names, parents = LAYOUT.hierarchy
    assert len(names) == len(set(names)) == len(parents) == 22
    chains = ((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21), (9, 13, 16, 18, 20))
    assert {(a, b) for chain in chains for a, b in pairwise(chain)} == {
        (parent, joint) for joint, parent in enumerate(parents) if joint
    }
    for joint, name in enumerate(names):  # left limbs hang on left limbs
        side = name.split("_")[0]
        if side in ("left", "right") and parents[joint] not in (0, 9):
            assert names[parents[joint]].startswith(side)
    for groups in (LAYOUT.groups, LAYOUT.joint_features):
        seen = torch.zeros(263, dtype=torch.int64)
        for group in groups:
            seen[group] += 1
        assert (seen == 1).all()
    assert torch.equal(LAYOUT.rotation_channels.flatten(), torch.arange(67, 193))
    columns = features[:, LAYOUT.rotation_channels].unflatten(-1, (2, 3))
    assert (columns @ columns.mT - torch.eye(2)).abs().max() <= 4 * EPS


def test_halves_of_the_body_are_the_published_ones() -> None:
    """The known runs of the published masks (Raab et al. 2024, its code), first and last feature."""
    runs = (
        *((0, 9), (13, 18), (22, 27), (31, 36), (67, 78), (85, 96), (103, 114), (121, 132), (193, 201), (205, 210)),
        *((214, 219), (223, 228), (259, 262)),
    )
    legs = (0, 1, 2, 4, 5, 7, 8, 10, 11)
    own = sorted(feature for joint in legs for feature in LAYOUT.joint_features[joint].tolist())
    assert own == [feature for first, last in runs for feature in range(first, last + 1)]
    assert len(own) == 107


def test_contacts_are_of_their_joints() -> None:
    names = LAYOUT.hierarchy[0]
    own = [joint for feature in range(259, 263) for joint in range(22) if feature in LAYOUT.joint_features[joint]]
    assert [names[joint] for joint in own] == ["left_ankle", "left_foot", "right_ankle", "right_foot"]


def test_through_json() -> None:
    assert layout_from_dict(json.loads(json.dumps(LAYOUT.to_dict()))) == LAYOUT
    assert layout_for(torch.zeros(2, 263), "humanml") == LAYOUT
    assert layout_for(torch.zeros(2, 263)).kind == "array"


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        (torch.zeros(5, 262), r"\(5, 262\), must be \(1 frame or more, 263\)"),
        (torch.zeros(1, 263), "1 frame, at least 2"),
        (torch.full((3, 263), torch.nan), "finite"),
    ],
)
def test_other_motions_are_refused(motion: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_for(motion, "humanml")


def test_clips_are_refused() -> None:
    clip = walker(seconds=1.0)
    with pytest.raises(ValueError, match="layout is 'humanml', must be"):
        layout_for(clip, "humanml")
    with pytest.raises(ValueError, match="array, not a clip"):
        LAYOUT.encode(clip)
    with pytest.raises(ValueError, match="not of a clip"):
        LAYOUT.placer()(clip)


# --- paths


def test_paths_are_where_the_joints_are(features: torch.Tensor) -> None:
    heading, way = LAYOUT.paths
    placed = positions(features)
    torch.testing.assert_close(way.values(features), placed[:, 0, [0, 2]], rtol=0, atol=EXACT)
    seen = features[:, 4:7].double()
    angle = heading.values(features)[:, 0]
    x = seen[:, 0] * angle.cos() + seen[:, 2] * angle.sin() + placed[:, 0, 0]
    torch.testing.assert_close(x, placed[:, 1, 0], rtol=0, atol=EXACT)
    both = torch.stack([features, features.flip(0)])
    for path in LAYOUT.paths:
        assert torch.equal(path.values(both)[1], path.values(features.flip(0)))


@pytest.mark.parametrize("number", [0, 1])
def test_changes_add_steps(features: torch.Tensor, number: int) -> None:
    path = LAYOUT.paths[number]
    generator = torch.Generator().manual_seed(2)
    x = features.double()[None].repeat(2, 1, 1)
    extra = torch.randn(2, FRAMES, len(path.begin), generator=generator, dtype=torch.float64)
    change = path.change(x, extra)
    torch.testing.assert_close(path.steps(x + change), path.steps(x) + extra, rtol=0, atol=EXACT)
    torch.testing.assert_close(path.change(x, 3 * extra), 3 * change, rtol=0, atol=EXACT)
    others = [feature for feature in range(263) if feature not in path.features]
    assert not change[..., others].any()
    if number == 1:
        moved = LAYOUT.placer()((x + change)[0]) - LAYOUT.placer()(x[0])
        way = extra[0].clone()
        way[0] = 0
        torch.testing.assert_close(moved[..., [0, 2]], way.cumsum(0)[:, None].expand(-1, 22, -1), rtol=0, atol=EXACT)


def test_a_change_of_the_way_moves_all_joints_alike() -> None:
    """The speeds of the joints that a moved motion has are those of its joints."""
    features, _ = made_motion()
    extra = torch.randn(FRAMES, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = features.double()
    moved = x + LAYOUT.paths[1].change(x, extra)
    heading = LAYOUT.paths[0].values(x)[:-1, 0, None]
    steps = LAYOUT.placer()(moved).diff(dim=0)
    seen_x = steps[..., 0] * heading.cos() - steps[..., 2] * heading.sin()
    seen_z = steps[..., 0] * heading.sin() + steps[..., 2] * heading.cos()
    velocities = moved[:-1, 193:259].unflatten(1, (22, 3))
    for seen, axis in ((seen_x, 0), (steps[..., 1], 1), (seen_z, 2)):
        torch.testing.assert_close(seen, velocities[..., axis], rtol=0, atol=8 * EPS)


def test_a_loop_closes() -> None:
    features = looping()
    heading, way = (path.steps(features.double()).sum(0) for path in LAYOUT.paths)
    assert float(heading) == pytest.approx(2 * math.pi, rel=EPS)
    assert way.norm() <= 2 * math.pi * EPS * 40 * 0.05  # the turns' rounding, over the whole way


# --- resampling


def test_resampled_at_whole_frames(features: torch.Tensor) -> None:
    out = LAYOUT.resample(features, torch.tensor([[0.0], [17.0]]) + torch.arange(20), torch.ones(2))
    assert out.dtype == torch.float32
    for window, start in zip(out, (0, 17), strict=True):
        expected = features[start : start + 20]
        torch.testing.assert_close(window[:, 67:193], expected[:, 67:193], rtol=0, atol=(2 * 6**0.5 + 1) * EPS / 2)
        window[:, 67:193] = expected[:, 67:193]
        assert torch.equal(window, expected)


@pytest.mark.parametrize("rate", [0.5, 1.25])
def test_resampled_motions_go_the_same_way(rate: float) -> None:
    """On a circle the step from s to s + rate is as long and turns as much as the motion in that time."""
    features = looping(80)
    out = LAYOUT.resample(features, 10 + rate * torch.arange(24.0)[None], torch.tensor([rate]))[0]
    torch.testing.assert_close(out[:, :3], features[:24, :3] * rate, rtol=4 * EPS, atol=0)
    torch.testing.assert_close(out[:, 3:67], features[:24, 3:67], rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("rate", [0.5, 1.25])
def test_resampled_steps_lead_where_the_motion_is(rate: float) -> None:
    """Speed that grows evenly, straight on: from s to s + rate the root goes exactly the stretch that it goes there."""
    features = torch.zeros(60, 263)
    features[:, 2] = torch.arange(60.0)  # z(t) = t (t - 1) / 2 in whole frames
    features[:, 195] = features[:, 2]
    at = 10 + rate * torch.arange(24.0)
    out = LAYOUT.resample(features, at[None], torch.tensor([rate]))[0]
    expected = ((at + rate) * (at + rate - 1) - at * (at - 1)) / 2
    torch.testing.assert_close(out[:, 2], expected, rtol=16 * EPS, atol=0)
    assert torch.equal(out[:, 195], out[:, 2])


def test_resampled_rotations_and_contacts(features: torch.Tensor) -> None:
    out = LAYOUT.resample(features, 3 + 0.6 * torch.arange(40.0)[None], torch.tensor([0.6]))[0]
    columns = out[:, LAYOUT.rotation_channels].unflatten(-1, (2, 3))
    torch.testing.assert_close(columns @ columns.mT, torch.eye(2).expand(40, 21, 2, 2), rtol=0, atol=8 * EPS)
    assert out[:, 259:].amin() == 0
    assert out[:, 259:].amax() == 1


# --- files


def forms(features: torch.Tensor) -> dict[str, np.ndarray]:
    array = features.numpy()
    return {
        "frames first": array,
        "as the published code reads it": array.T[:, None],
        "as it trains on it": array.T[None],
        "float64": array.astype(np.float64),
    }


@pytest.mark.parametrize("form", forms(torch.zeros(2, 263)))
def test_every_form_of_file(features: torch.Tensor, form: str, tmp_path: Path) -> None:
    mean, std = statistics(features)
    np.save(tmp_path / "raw.npy", forms(features)[form])
    assert torch.equal(read_humanml(tmp_path / "raw.npy", False), features)
    np.save(tmp_path / "normal.npy", forms((features - mean) / std)[form])
    again = read_humanml(tmp_path / "normal.npy", True, mean, std)
    assert ((again - features).abs() <= 2 * EPS * (features.abs() + mean.abs())).all()


def test_written_and_read_again(features: torch.Tensor, tmp_path: Path) -> None:
    mean, std = statistics(features)
    write_humanml(tmp_path / "raw.npy", features, normalised=False)
    assert torch.equal(read_humanml(tmp_path / "raw.npy", False), features)
    assert torch.equal(read_motion(tmp_path / "raw.npy"), features)
    write_humanml(tmp_path / "normal.npy", features, normalised=True, mean=mean, std=std)
    assert torch.equal(read_motion(tmp_path / "normal.npy"), Normalizer(mean, std).apply(features))
    with pytest.raises(ValueError, match="shape"):
        write_humanml(tmp_path / "no.npy", features[:, 1:], normalised=False)
    with pytest.raises(ValueError, match=r"must be \.npy"):
        write_humanml(tmp_path / "no.pt", features, normalised=False)
    with pytest.raises(ValueError, match="needs mean and std"):
        write_humanml(tmp_path / "no.npy", features, normalised=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["normal.npy", "raw.npy"]


def test_what_is_said_is_held_against_the_data(features: torch.Tensor, tmp_path: Path) -> None:
    mean, std = statistics(features)
    raw, normal = tmp_path / "raw.npy", tmp_path / "normal.npy"
    write_humanml(raw, features, normalised=False)
    write_humanml(normal, features, normalised=True, mean=mean, std=std)
    with pytest.raises(ValueError, match=r"normal\.npy: said to be raw, but it has a foot contact of"):
        read_humanml(normal, False)
    with pytest.raises(ValueError, match=r"raw\.npy: said to be normalised, but looks raw"):
        read_humanml(raw, True, mean, std)
    with pytest.raises(ValueError, match="a normalised file needs mean and std"):
        read_humanml(normal, True, mean)
    with pytest.raises(ValueError, match="go with a normalised file only"):
        read_humanml(raw, False, mean, std)
    with pytest.raises(ValueError, match="must be those it was normalised with; by these it has a foot contact"):
        read_humanml(normal, True, mean, 2 * std)
    with pytest.raises(ValueError, match=r"mean has shape \(3,\), must be \(263,\)"):
        read_humanml(normal, True, mean[:3], std)
    below = features.clone()
    below[7, 3] = -0.25
    np.save(raw, below.numpy())
    with pytest.raises(ValueError, match=r"a root at height -0\.25"):
        read_humanml(raw, False)


@pytest.mark.parametrize("contact", [0.0, 1.0])
def test_how_near_to_0_or_1_a_contact_is(features: torch.Tensor, contact: float, tmp_path: Path) -> None:
    inwards = 1 - 2 * contact
    for off in (0.005, -0.005, 0.05, -0.05):
        changed = features.clone()
        changed[7, 260] = contact + off * inwards
        np.save(tmp_path / "a.npy", changed.numpy())
        if abs(off) < 0.01:
            assert torch.equal(read_humanml(tmp_path / "a.npy", False), changed)
        else:
            with pytest.raises(ValueError, match=r"said to be raw, but it has a foot contact of"):
                read_humanml(tmp_path / "a.npy", False)


def test_what_a_model_made_is_as_it_is_said_to_be(features: torch.Tensor, tmp_path: Path) -> None:
    mean, std = statistics(features)
    made = features.clone()
    made[:, 259:] = 0.4
    np.save(tmp_path / "raw.npy", made.numpy())
    np.save(tmp_path / "normal.npy", Normalizer(mean, std).apply(made).numpy())
    assert torch.equal(read_humanml(tmp_path / "raw.npy", False, generated=True), made)
    again = read_humanml(tmp_path / "normal.npy", True, mean, std, generated=True)
    assert ((again - made).abs() <= 2 * EPS * (made.abs() + mean.abs())).all()
    with pytest.raises(ValueError, match="needs mean and std"):
        read_humanml(tmp_path / "normal.npy", True, generated=True)


def test_half_precision_is_still_raw(features: torch.Tensor, tmp_path: Path) -> None:
    """Contacts through bfloat16, normalised and back, are taken; so is a file of float16."""
    mean, std = statistics(features)
    normal = Normalizer(mean, std).apply(features).bfloat16().float()
    np.save(tmp_path / "a.npy", normal.numpy())
    read_humanml(tmp_path / "a.npy", True, mean, std)
    np.save(tmp_path / "b.npy", features.half().numpy())
    assert torch.equal(read_humanml(tmp_path / "b.npy", False), features.half().float())


def test_pickles_are_not_opened(features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "0000.npy"
    np.save(path, np.array({"motion_raw": [features.T[:, None].numpy()]}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"0000\.npy: holds Python objects.*convert it") as caught:
        read_humanml(path, False)
    recipe = str(caught.value).split("convert it: ")[1].replace("'motion.npy'", repr(str(tmp_path / "motion.npy")))
    exec(recipe.replace("'0000.npy'", repr(str(path))), {"numpy": np})  # what it says does it
    assert torch.equal(read_humanml(tmp_path / "motion.npy", False), features)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 251), np.float32), r"shape is \(5, 251\), must be \(frames, 263\)"),
        (np.zeros((263, 9), np.float32), r"shape is \(263, 9\)"),
        (np.zeros((2, 263, 9), np.float32), r"shape is \(2, 263, 9\)"),
        (np.zeros((263, 1, 1), np.float32), r"shape is \(263, 1, 1\).*two frames"),
        (np.zeros((5, 263), np.int64), "dtype int64"),
        (np.full((5, 263), np.inf, np.float32), "not finite"),
    ],
)
def test_files_that_are_none(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        read_humanml(tmp_path / "a.npy", False)
    with pytest.raises(ValueError, match=r"must be 263 finite numbers|dtype"):
        read_statistics(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00\x09\x00nonsense!"])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy: not a \.npy array"):
        read_humanml(tmp_path / "a.npy", False)
    with pytest.raises(FileNotFoundError):
        read_humanml(tmp_path / "none.npy", False)


# --- runs


def test_a_run(features: torch.Tensor, tmp_path: Path) -> None:
    run = train(features, tmp_path / "run", preset=TINY, layout="humanml", progress=False)
    assert run.layout == LAYOUT
    assert run.fps == 20
    assert torch.equal(read_motion(tmp_path / "run" / "clip.npy"), features)
    assert torch.equal(load(tmp_path / "run").normalizer.mean, Normalizer.fit(features, LAYOUT).mean)
    (tmp_path / "out").mkdir()
    files = run.write_samples(tmp_path / "out", 30, 2)
    assert [file.name for file in files] == ["sample00.npy", "sample01.npy"]
    results = Results.read(tmp_path / "out" / "results.npz")
    assert (results.names, results.parents, results.frame_time) == (*LAYOUT.hierarchy, 0.05)
    for file, placed in zip(files, results.positions, strict=True):
        sample = read_motion(file)
        assert isinstance(sample, torch.Tensor)
        assert sample.shape == (30, 263)
        np.testing.assert_array_equal(placed, positions(sample).float().numpy())
    streamed = next(iter(run.stream(chunk=8, steps=2)))
    assert not isinstance(streamed, Clip)
    assert streamed.shape == (8, 263)


def test_the_command(features: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean, std = statistics(features)
    raw, normal = str(tmp_path / "raw.npy"), str(tmp_path / "normal.npy")
    write_humanml(raw, features, normalised=False)
    write_humanml(normal, features, normalised=True, mean=mean, std=std)
    np.save(tmp_path / "Mean.npy", mean.numpy())
    np.save(tmp_path / "Std.npy", std.numpy().astype(np.float64))
    known = ["--mean", str(tmp_path / "Mean.npy"), "--std", str(tmp_path / "Std.npy")]
    humanml = ["--layout", "humanml", "--steps", "2", "--quiet"]

    def command(motion: str, out: str, *options: str) -> tuple[int, str]:
        status = main(["train", motion, "--out", str(tmp_path / out), *options])
        return status, capsys.readouterr().err

    assert command(raw, "a", *humanml, "--features", "raw")[0] == 0
    assert command(normal, "b", *humanml, "--features", "normalised", *known)[0] == 0
    one, other = (load(tmp_path / name) for name in "ab")
    bound = 2 * EPS * (features.abs() + mean.abs())
    assert torch.equal(one.motion, features)
    assert ((other.motion - features).abs() <= bound).all()
    assert one.layout == other.layout == LAYOUT
    assert command(normal, "b", "--resume", "--features", "normalised", *known, "--quiet")[0] == 0
    assert command(raw, "a", "--resume", "--quiet")[0] == 0
    for options, message in {
        (raw, "--layout", "humanml"): "--features raw, or --features normalised",
        (raw, "--layout", "humanml", "--features", "normalised"): "--mean and --std",
        (normal, "--layout", "humanml", "--features", "raw"): "said to be raw, but it has a foot contact",
        (raw, "--layout", "humanml", "--features", "raw", *known): "--mean and --std are of --features normalised",
        (raw, "--features", "raw"): "--features is of --layout humanml",
        (raw, "--layout", "humanml", "--features", "raw", "--fps", "20"): "--fps does not go with --layout humanml",
        (normal, "--layout", "humanml", "--features", "normalised", "--mean", raw, "--std", raw): "263 finite numbers",
    }.items():
        status, error = command(options[0], "c", *options[1:])
        assert status == 2
        assert message in error
        assert not (tmp_path / "c").exists()
    status = main(["sample", str(tmp_path / "b"), "--seconds", "1", "--out", str(tmp_path / "out"), "--quiet"])
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.npz", "sample00.npy"]
    assert read_motion(tmp_path / "out" / "sample00.npy").shape == (20, 263)
