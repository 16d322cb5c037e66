"""`sinmdm edit` as a user meets it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sinmdm import editing
from sinmdm.cli import _parser, main
from sinmdm.cli.edit import _sentence
from sinmdm.editing import Edit
from sinmdm.motion import Clip, Results, walker
from sinmdm.run import load

FAST = ("--quiet", "--steps", "2")


@pytest.fixture(scope="module")
def bvh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "walk.bvh"
    walker(legs=2, seconds=2, fps=30).write(path)
    return path


@pytest.fixture(scope="module")
def run(bvh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(bvh), "--out", str(folder), "--steps", "2", "--quiet"]) == 0
    return folder


def _modes(bvh: Path, way: Path) -> dict[str, tuple[list[str], int]]:
    """By mode, its arguments and the frames of the result; the clip has 60 at 30 a second."""
    return {
        "in-between": (["--generate", "20:30", "--generate", "1.5s:", "--width", "2"], 60),
        "expand": (["--before", "5", "--after", "0.5s", "--insert", "20:4"], 84),
        "compose": (["--generate", "leg0"], 60),
        "keyframes": (["--length", "2s", "--pose", "0:3", "--pose", "1s:0.5s", "--keep-places"], 60),
        "follow": (["--way", str(way)], 31),
        "harmonise": ([str(bvh), "--factor", "4"], 60),
        "loop": (["--length", "40"], 40),
        "join": ([str(bvh), str(bvh), "--gap", "10"], 130),
    }


MODES = ("in-between", "expand", "compose", "keyframes", "follow", "harmonise", "loop", "join")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_leaves_motions_results_and_a_report(run: Path, bvh: Path, tmp_path: Path, mode: str) -> None:
    way = tmp_path / "way.csv"
    way.write_text("# time,x,z\n0,0,0\n0.5s, 1.0, 0.0\n30,1,1\n")
    arguments, frames = _modes(bvh, way)[mode]
    if mode == "compose":
        arguments = ["--generate", Clip.read(bvh).names[-1]]
    out = tmp_path / "out"
    assert main(["edit", str(run), mode, *arguments, "-n", "2", "--out", str(out), *FAST]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["edit.json", "results.npz", "sample00.bvh", "sample01.bvh"]
    report = json.loads((out / "edit.json").read_text())
    assert (report["mode"], report["frames"]) == (mode, frames)
    given = mode not in ("follow", "harmonise", "loop")
    assert [each["kept_error"] for each in report["motions"]] == [0 if given else None] * 2
    results = Results.read(out / "results.npz")
    clip = Clip.read(out / "sample00.bvh")
    assert len(clip) == frames
    assert np.allclose(results.positions[0], clip.positions().numpy(), atol=1e-4)
    assert results.given is not None
    assert results.given.any() == given
    assert not results.given.all()


def test_the_published_masks_from_the_command_line(run: Path, tmp_path: Path) -> None:
    for mode, options in (("in-between", ["--prefix-end", "0.3"]), ("expand", ["--prefix-length", "0"])):
        assert main(["edit", str(run), mode, "--compat", *options, "--out", str(tmp_path / mode), *FAST]) == 0
    assert json.loads((tmp_path / "expand" / "edit.json").read_text())["frames"] == 69
    said = json.loads((tmp_path / "in-between" / "edit.json").read_text())
    assert [seam["frame"] for seam in said["motions"][0]["seams"]] == [18, 45]
    assert (said["mode"], said["compat"], said["prefix_end"], said["steps"]) == ("in-between", True, 0.3, 2)


def _made(run: Path, *arguments: str) -> tuple[Edit, argparse.Namespace]:
    """The edit that a command line asks for, not carried out."""
    parsed = _parser().parse_args(["edit", str(run), *arguments, "--out", "nowhere"])
    return parsed.make(load(run), parsed), parsed


def test_arguments_reach_the_edit(run: Path, bvh: Path, tmp_path: Path) -> None:
    loaded, name = load(run), Clip.read(bvh).names[-1]

    def same(one: Edit, other: Edit) -> bool:
        meets = [(torch.equal(a.frames, b.frames), torch.equal(a.values, b.values), a.breaks == b.breaks)
                 for a, b in zip(one.meets, other.meets, strict=True)]  # fmt: skip
        alike = torch.equal(one.known, other.known), torch.equal(one.mask, other.mask), one.seams == other.seams
        return all(alike) and all(map(all, meets)) and one.harmony == other.harmony and one.circular == other.circular

    way = tmp_path / "way.csv"
    way.write_text("time,x,z\n0,0,0\n1s,1.0,0.5\n")
    clip = loaded.motion
    spans = [(20, 30), (45, 60)]
    for arguments, edit in (
        (["in-between", "--generate", "20:30", "--generate", "1.5s:"], editing.in_between(loaded, generate=spans)),
        (["in-between", "--given", ":20", "--width", "3"], editing.in_between(loaded, given=[(0, 20)], width=3)),
        (["in-between", "--generate", "20:30", "--joints", name],
         editing.in_between(loaded, generate=[(20, 30)], joints=[name])),
        (["expand", "--before", "5", "--after", "1s", "--insert", "20:4", "--width", "2"],
         editing.expand(loaded, before=5, after=30, insert=[(20, 4)], width=2)),
        (["compose", "--keep", name], editing.compose(loaded, keep=[name])),
        (["keyframes", "--length", "2s", "--pose", "0:3", "--pose", "1s:0.5s"],
         editing.keyframes(loaded, 60, [(0, 3), (30, 15)])),
        (["keyframes", "--length", "60", "--pose", "0:3", "--pose", "30:15", "--keep-places"],
         editing.keyframes(loaded, 60, [(0, 3), (30, 15)], keep_places=True)),
        (["follow", "--way", str(way), "--length", "50"],
         editing.follow(loaded, [(0, 0.0, 0.0), (30, 1.0, 0.5)], 50)),
        (["follow", "--way-of", str(bvh)], editing.follow(loaded, editing.way_of(loaded, clip))),
        (["loop", "--length", "40"], editing.loop(loaded, 40)),
        (["loop", "--length", "40", "--travel"], editing.loop(loaded, 40, travel=True)),
        (["join", str(bvh), str(bvh), "--gap", "9"], editing.join(loaded, clip, clip, gap=9)),
        (["join", str(bvh), str(bvh), "--keep-places", "--width", "4"],
         editing.join(loaded, clip, clip, keep_places=True, width=4)),
    ):  # fmt: skip
        assert same(_made(run, *arguments)[0], edit), arguments
    for arguments, harmony in (
        (["--factor", "5", "--until", "0.3"], (5, 0.3, False)), ([], (2, 0.02, False)), (["--compat"], (2, 0.02, True)),
    ):  # fmt: skip
        made = _made(run, "harmonise", str(bvh), *arguments)[0].harmony
        assert made is not None
        assert (made.factor, made.until, made.compat) == harmony


def test_a_published_harmonisation_has_an_even_length(run: Path, bvh: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.bvh"
    Clip.read(bvh).slice(0, 41).write(odd)
    assert len(_made(run, "harmonise", str(odd), "--compat")[0]) == 40
    assert len(_made(run, "harmonise", str(odd))[0]) == 41


def test_a_seed_is_another_motion(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert (
            main(["edit", str(run), "loop", "--length", "9", "--seed", seed, "--out", str(tmp_path / name), *FAST]) == 0
        )
    a, b, c = ((tmp_path / name / "sample00.bvh").read_text() for name in "abc")
    assert a == b != c


def test_an_array_is_edited_in_time(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    assert main(["train", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), "--steps", "2", "--quiet"]) == 0
    arguments = ["in-between", "--given", ":10", "--given", "30:", "--width", "0", "--out", str(tmp_path / "out")]
    assert main(["edit", str(tmp_path / "run"), *arguments, *FAST]) == 0
    made, given = np.load(tmp_path / "out" / "sample00.npy"), np.load(tmp_path / "x.npy")
    assert (made[:10] == given[:10]).all()
    assert (made[30:] == given[30:]).all()
    assert torch.from_numpy(made).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in-between"], "give --given or --generate"),
        (["in-between", "--given", "0:10", "--given", "5:20"], "given must not overlap, but 0:10 and 5:20 do"),
        (["in-between", "--given", "20:10"], "given must end after they begin, begin:end, got 20:10"),
        (["in-between", "--given", "0:61"], "given must lie within the 60 frames, begin:end, got 0:61"),
        (["in-between", "--given", "0:9s"], "given must lie within the 60 frames"),
        (["in-between", "--given", "0:60"], "given must leave something to generate"),
        (["in-between", "--generate", "0:60"], "no frame is given"),
        (["in-between", "--given", "0:x"], "a time must be frames (120) or seconds (4s), got 'x'"),
        (["in-between", "--compat", "--width", "3"], "--width does not go with --compat"),
        (["in-between", "--given", "0:9", "--prefix-end", "0.3"], "--prefix-end goes only with --compat"),
        (["expand"], "must add a frame"),
        (["expand", "--insert", "0:9"], "insert must be at a frame from 1 to 59"),
        (["compose", "--generate", "tail"], "there is no joint 'tail'; did you mean"),
        (["compose", "--generate", "upper-body"], "need a spine"),
        (["keyframes", "--length", "0", "--pose", "0:0"], "frames must be"),
        (["keyframes", "--length", "9", "--pose", "9:0"], "from 0 to 8 of the result, got 9"),
        (["follow", "--way", "{way}"], "line 2: must be time,x,z"),
        (["loop", "--length", "1"], "frames must be"),
        (["harmonise", "{other}"], "reference does not fit the run: the clip has another skeleton"),
        (["join", "{other}", "{bvh}"], "first does not fit the run"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    run: Path, bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    files = {"way": tmp_path / "way.csv", "other": tmp_path / "other.bvh", "bvh": bvh}
    files["way"].write_text("0,0,0\n1,2\n")
    walker(legs=4, seconds=1, fps=30).write(files["other"])
    filled = [argument.format(**files) for argument in arguments]
    assert main(["edit", str(run), *filled, "--out", str(tmp_path / "out"), *FAST]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.bvh", "way.csv"]


def test_a_folder_in_use_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keep.txt").write_text("x")
    assert main(["edit", str(run), "loop", "--length", "9", "--out", str(tmp_path), *FAST]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("sample", "--frames", "5"), ("edit", "loop", "--length", "9"), ("crowd", "-n", "2", "--frames", "5")]
)
def test_an_error_before_the_first_step_stands_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    command, *rest = arguments
    assert main([command, str(run), *rest, "--steps", "999999", "--out", str(tmp_path / "out")]) == 2  # not --quiet
    assert capsys.readouterr().err.startswith("sinmdm: error: ")
    assert not (tmp_path / "out").exists()


def test_a_seam_without_a_measure_has_no_number() -> None:
    report = {"file": "a.bvh", "kept_error": 0.0, "arrival_error": None, "seams": [{"frame": 7, "roughness": None}]}
    assert _sentence(report) == "a.bvh: given parts off by 0; roughness of seams - at 7"
