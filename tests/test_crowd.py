"""Crowds: each character's motion is its own, files say what is there, and errors leave nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crowd_runs import PLACES, STEPS, NotLocal, alone, brute_force, csv_text, exact_run, trained_run
from local_model import LocalModel
from shared_data import SHARED_DATA
from torch import Tensor

import sinmdm
from sinmdm.cli import crowd as crowd_command
from sinmdm.cli import main
from sinmdm.crowd import (
    lengths_of,
    make_crowd,
)
from sinmdm.motion import Clip, Results, Skeleton, write_motion
from sinmdm.nn import WindowTransformer
from sinmdm.run import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return exact_run(folder)


class TestMotions:
    @pytest.mark.parametrize(("layout", "frames"), [("grid", 10), ("grid", (3, 12)), ("circle", (3, 12))])
    def test_character_k_is_sample_k_turned_and_moved(self, run: Run, layout: str, frames: Any) -> None:
        crowd = make_crowd(run, 5, frames, layout=layout, seed=4, **STEPS)
        assert [len(clip) for clip in crowd.clips] == lengths_of(frames, 5, 4)
        for number, (clip, (x, z), heading) in enumerate(zip(crowd.clips, crowd.points, crowd.headings, strict=True)):
            by_itself = alone(run, number, len(clip), seed=4)
            assert clip.skeleton == by_itself.skeleton
            assert np.array_equal(clip.values, by_itself.placed(x, z, heading).values)
            assert clip.values[0, [0, 2]].tolist() == [x, z]

    def test_in_rows_only_x_and_z_are_others(self, run: Run) -> None:
        crowd = make_crowd(run, 4, 8, seed=4, **STEPS)
        kept = [column for column in range(crowd.clips[0].values.shape[1]) if column not in (0, 2)]
        for number, clip in enumerate(crowd.clips):
            assert np.array_equal(clip.values[:, kept], alone(run, number, 8, seed=4).values[:, kept])

    def test_they_depend_neither_on_the_crowds_size_nor_on_its_batches(self, run: Run) -> None:
        few, many = (make_crowd(run, n, (3, 12), seed=9, batch_size=batch, **STEPS) for n, batch in ((3, None), (8, 2)))
        for one, other in zip(few.clips, many.clips, strict=False):
            assert np.array_equal(one.placed(0.0, 0.0).values, other.placed(0.0, 0.0).values)

    def test_of_a_network_that_is_not_local(self, run: Run) -> None:
        run = dataclasses.replace(run, network=NotLocal())
        crowd = make_crowd(run, 4, (3, 5), seed=2, **STEPS)
        for number, (clip, (x, z)) in enumerate(zip(crowd.clips, crowd.points, strict=True)):
            assert np.array_equal(clip.values, alone(run, number, len(clip), seed=2).placed(x, z).values)

    def test_longer_than_is_decoded_at_once(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = make_crowd(run, 2, 20, **STEPS)
        monkeypatch.setattr("sinmdm.crowd.WRITTEN_AT_ONCE", 7)
        parts = make_crowd(run, 2, 20, apart=whole.apart, **STEPS)
        for one, other in zip(whole.clips, parts.clips, strict=True):
            assert np.array_equal(one.values, other.values)

    def test_one_batch_where_it_fits(self, run: Run) -> None:
        seen: list[tuple[int, int]] = []
        make_crowd(run, 40, 5, on_step=lambda *done: seen.append(done), **STEPS)
        assert seen == [(1, 3), (2, 3), (3, 3)]

    def test_of_the_published_layouts(self, folder: Path, tmp_path: Path) -> None:
        sinmdm.train(folder / "clip.bvh", tmp_path / "run", layout="bvh_general", steps=1, progress=False)
        run = dataclasses.replace(sinmdm.load(tmp_path / "run"), network=LocalModel(3))
        crowd = make_crowd(run, 3, 6, layout="circle", **STEPS)
        for number, (clip, (x, z), heading) in enumerate(zip(crowd.clips, crowd.points, crowd.headings, strict=True)):
            assert np.array_equal(clip.values, alone(run, number, 6).placed(x, z, heading).values)

    def test_of_a_person_in_the_mixamo_layout(self, tmp_path: Path) -> None:
        path = SHARED_DATA / "Salsa-Dancing-6.bvh"
        if not path.is_file():
            pytest.skip("needs the clip Salsa-Dancing-6.bvh of the GANimator data")
        Clip.read(path).slice(0, 60).write(tmp_path / "salsa.bvh")
        sinmdm.train(tmp_path / "salsa.bvh", tmp_path / "run", layout="mixamo", steps=1, progress=False)
        run = dataclasses.replace(sinmdm.load(tmp_path / "run"), network=LocalModel(3))
        files = make_crowd(run, 6, (20, 30), layout="circle", **STEPS).write(tmp_path / "out")
        spacing = json.loads((tmp_path / "out" / "scene.json").read_text())["spacing"]
        assert spacing > 50  # centimetres
        assert brute_force(files).distance >= spacing


class TestLengthsOf:
    def test_are_of_the_seed_and_the_number_alone(self) -> None:
        many = lengths_of((150, 300), 2000, 7)
        assert lengths_of((150, 300), 12, 7) == many[:12]
        assert lengths_of((150, 300), 12, 8) != many[:12]
        assert set(many) == set(range(150, 301))
        assert lengths_of((150, 300), 4, 2**64 - 1) != lengths_of((150, 300), 4, 0)

    def test_are_these(self) -> None:
        # The lengths belong to the motions that a seed names, so that they may not change with a version.
        assert lengths_of((150, 300), 4, 0) == PINNED
        assert lengths_of((4, 4), 3, 0) == lengths_of(4, 3, 0) == [4, 4, 4]


PINNED = [151, 272, 272, 221]


class TestFiles:
    def test_a_scene_says_what_is_there(self, run: Run, tmp_path: Path) -> None:
        crowd = make_crowd(run, 4, (5, 9), layout="circle", seed=11, **STEPS)
        files = crowd.write(tmp_path / "out")
        assert files == [tmp_path / "out" / f"character00{k}.bvh" for k in range(4)]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            *(path.name for path in files), "results.npz", "scene.json",
        ]  # fmt: skip
        scene = json.loads((tmp_path / "out" / "scene.json").read_text())
        characters = scene.pop("characters")
        assert crowd.closest is not None
        assert scene == {
            "format": 1, "results": "results.npz", "together": True, "fps": run.fps, "seed": 11, "layout": "circle",
            "distance": crowd.distance, "spacing": crowd.apart, "closest": crowd.closest.distance,
        }  # fmt: skip
        for number, (character, path) in enumerate(zip(characters, files, strict=True)):
            clip, heading = Clip.read(path), character.pop("heading")
            assert character == {
                "file": path.name, "sample": number, "frames": len(clip),
                "x": crowd.points[number, 0], "z": crowd.points[number, 1],
            }  # fmt: skip
            assert np.allclose(clip.values[0, [0, 2]], crowd.points[number], rtol=0, atol=1e-9)
            by_itself = alone(run, number, len(clip), seed=11).placed(character["x"], character["z"], heading)
            assert np.allclose(clip.values, by_itself.values, rtol=0, atol=1e-9)

    def test_results_are_the_positions_of_the_files(self, run: Run, tmp_path: Path) -> None:
        files = make_crowd(run, 3, (5, 9), layout="circle", **STEPS).write(tmp_path)
        results = Results.read(tmp_path / "results.npz")
        assert results.labels == tuple(path.stem for path in files)
        assert results.frame_time == run.layout.frame_time
        for path, length, positions in zip(files, results.lengths, results.positions, strict=True):
            clip = Clip.read(path)
            assert (len(clip), clip.names, clip.parents) == (length, results.names, results.parents)
            away = np.abs(positions[:length] - clip.positions().numpy())
            # Angles in files have nine decimals of a degree, positions in results float32's 24 bits.
            assert away.max() < 1e-8 + np.finfo(np.float32).eps * np.abs(positions).max()
            assert not positions[length:].any()

    def test_are_the_same_bytes_every_time(self, run: Run, tmp_path: Path) -> None:
        for name in "ab":
            make_crowd(run, 5, (5, 20), layout="circle", seed=1, **STEPS).write(tmp_path / name)
        files = sorted((tmp_path / "a").iterdir())
        assert len(files) == 7
        for path in files:
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()

    def test_are_numbered_with_as_many_digits_as_the_last_needs(self, run: Run, tmp_path: Path) -> None:
        files = make_crowd(run, 1001, 1, steps=1).write(tmp_path / "out")
        assert [files[0].name, files[-1].name] == ["character0000.bvh", "character1000.bvh"]

    def test_progress_is_told(self, run: Run, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        make_crowd(run, 3, 5, **STEPS).write(tmp_path / "out", on_step=lambda *done: seen.append(done))
        assert seen == [(1, 3), (2, 3), (3, 3)]

    def test_where_writing_is_interrupted_nothing_stays(self, run: Run, tmp_path: Path) -> None:
        def interrupt(done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_crowd(run, 3, 5, **STEPS).write(tmp_path / "out", on_step=interrupt)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_in_use_is_refused(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "keep.txt").write_text("keep")
        with pytest.raises(FileExistsError, match="not empty"):
            make_crowd(run, 2, 5, **STEPS).write(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"n": 0}, r"n must be an int >= 1, got 0$"),
            ({"n": -2}, r"n must be an int >= 1, got -2$"),
            ({"n": 2.0}, r"n must be an int >= 1, got 2\.0$"),
            ({"n": None}, r"n must be given with the layout 'grid': only a file says how many there are$"),
            ({"frames": 0}, r"frames must be an int >= 1, got 0$"),
            ({"frames": 2.5}, r"frames must be an int >= 1, or two: the shortest and the longest, got 2\.5$"),
            ({"frames": "12"}, r"frames must be an int >= 1, or two: the shortest and the longest, got '12'$"),
            ({"frames": (0, 5)}, r"frames must be an int >= 1, got 0$"),
            ({"frames": (6, 5)}, r"frames, the longest, must be an int >= 6, got 5$"),
            ({"frames": (5, 6.5)}, r"frames, the longest, must be an int >= 5, got 6\.5$"),
            ({"frames": (1, 2, 3)}, r"frames must be an int >= 1, or two: the shortest and the longest"),
            (
                {"layout": "gird"},
                r"layout must be grid, circle, or a \.csv or \.json file, got 'gird': did you",
            ),
            ({"layout": "Circle"}, r"layout must be grid, .*, got 'Circle': did you mean 'circle'\?$"),
            ({"layout": "spiral"}, r"layout must be grid, circle, or a \.csv or \.json file, got 'spiral'$"),
            ({"layout": "places.txt"}, r"layout must be grid, circle, or a \.csv or \.json file, got 'places\.txt'$"),
            ({"facing": "in"}, r"facing is of the layout circle, got 'in' for grid, where motions are not turned$"),
            (
                {"layout": "circle", "facing": "inn"},
                r"facing must be one of in, out, along, got 'inn': did you",
            ),
            ({"layout": "FILE", "facing": "in"}, r"facing is of the layout circle, got 'in' for a file of headings$"),
            ({"layout": "FILE", "distance": 2.0}, r"distance is of the layouts grid and circle, got 2\.0 for a file"),
            ({"distance": -1.0}, r"distance must be a number above 0, at most 1e\+09, got -1\.0$"),
            ({"distance": 0.0}, r"distance must be a number above 0, at most 1e\+09, got 0\.0$"),
            ({"distance": float("nan")}, r"distance must be a number above 0, at most 1e\+09, got nan$"),
            ({"distance": "2"}, r"distance must be a number above 0, at most 1e\+09, got '2'$"),
            ({"apart": -0.5}, r"apart must be a number of 0 or more, at most 1e\+09, got -0\.5$"),
            ({"apart": float("inf")}, r"apart must be a number of 0 or more, at most 1e\+09, got inf$"),
            ({"seed": -1}, r"seed must be an int from 0 to 2\*\*64 - 1, got -1$"),
            ({"batch_size": 0}, r"batch_size must be an int >= 1, got 0$"),
            ({"sampler": "magic"}, r"sampler must be one of "),
            ({"device": "cuda:77"}, r"device 'cuda:77' cannot be used here"),
        ],
    )
    def test_arguments(self, run: Run, options: dict[str, Any], said: str, tmp_path: Path) -> None:
        seen: list[int] = []
        if options.get("layout") == "FILE":
            (tmp_path / "a.csv").write_text(csv_text(PLACES))
            options = {**options, "layout": tmp_path / "a.csv", "n": 3}
        with pytest.raises(ValueError, match=rf"^{said}"):
            make_crowd(run, **{"n": 3, "frames": 5, "on_step": lambda done, _: seen.append(done), **options})
        assert seen == []

    def test_a_file_that_is_not_there(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.csv"):
            make_crowd(run, 3, 5, layout=tmp_path / "none.csv")

    def test_runs_without_a_skeleton(self, tmp_path: Path) -> None:
        write_motion(tmp_path / "a.npy", torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
        sinmdm.train(tmp_path / "a.npy", tmp_path / "run", steps=1, progress=False)
        with pytest.raises(ValueError, match=r"^run must be of a clip of a skeleton, got one whose features"):
            make_crowd(sinmdm.load(tmp_path / "run"), 2, 5)

    @pytest.mark.parametrize(
        ("channels", "layout", "said"),
        [
            (("Zrotation", "Xrotation", "Yrotation"), "grid", "has no X and Z position channels"),
            (("Xposition", "Zposition", "Xrotation"), "circle", "has the rotation channels 'X', which cannot hold"),
        ],
    )
    def test_roots_that_cannot_be_placed_before_anything_is_computed(
        self, channels: tuple[str, ...], layout: str, said: str, tmp_path: Path
    ) -> None:
        turns = ("Zrotation", "Xrotation", "Yrotation")
        skeleton = Skeleton(("a", "b"), (-1, 0), np.ones((2, 3)), (channels, turns), ((), ()))
        values = np.random.default_rng(0).normal(size=(70, skeleton.channel_count))
        write_motion(tmp_path / "a.bvh", Clip(skeleton, values, 1 / 30))
        sinmdm.train(tmp_path / "a.bvh", tmp_path / "run", steps=1, progress=False)
        seen: list[int] = []
        with pytest.raises(ValueError, match=rf"^the root 'a' {said}"):
            make_crowd(
                sinmdm.load(tmp_path / "run"), 2, 5, layout=layout, on_step=lambda done, _: seen.append(done), **STEPS
            )
        assert seen == []


class TestCommand:
    def _main(self, *arguments: object) -> int:
        return main(["crowd", *map(str, arguments), "--quiet"])

    def test_makes_the_crowd_of_the_call(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--layout", "circle", "--facing", "along", "--distance", "5", "--apart", "0.25", "--seed", "3"]
        sampler = ["--sampler", "ddim", "--steps", "4", "--spacing", "uniform", "--eta", "0.5", "--batch-size", "2"]
        out = tmp_path / "out"
        assert self._main(folder, "-n", 5, "--frames", "5:9", "--out", out, *options, *sampler) == 0
        crowd = make_crowd(
            sinmdm.load(folder), 5, (5, 9), layout="circle", facing="along", distance=5.0, apart=0.25, seed=3,
            sampler="ddim", steps=4, spacing="uniform", eta=0.5, batch_size=2,
        )  # fmt: skip
        crowd.write(tmp_path / "expected")
        names = {path.name for path in out.iterdir()}
        assert names == {path.name for path in (tmp_path / "expected").iterdir()}
        assert all((out / name).read_bytes() == (tmp_path / "expected" / name).read_bytes() for name in names)
        printed = capsys.readouterr().out
        lengths = [len(clip) for clip in crowd.clips]
        assert crowd.closest is not None
        assert printed.startswith(f"5 characters of {min(lengths)} to {max(lengths)} frames are in {out}: circle, ")
        assert f"{crowd.closest.distance:.4g} apart" in printed
        assert "at least 0.25 was to be kept" in printed

    def test_takes_their_number_from_a_file(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(json.dumps(PLACES))
        arguments = ["--frames", 4, "--layout", tmp_path / "a.json", "--steps", 2, "--apart", "0.0"]
        assert self._main(folder, *arguments, "--out", tmp_path / "out") == 0
        scene = json.loads((tmp_path / "out" / "scene.json").read_text())
        assert (scene["layout"], scene["distance"], scene["spacing"]) == ("a.json", None, 0.0)
        assert [[c["x"], c["z"], c["heading"]] for c in scene["characters"]] == PLACES

    def test_progress_is_shown(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["-n", "2", "--frames", "5", "--steps", "3", "--out", str(tmp_path / "out")]
        assert main(["crowd", str(folder), *options]) == 0
        said = capsys.readouterr().err
        assert said.index("3/3") < said.index("2/2")
        assert said.count("sampling") > 0 < said.count("writing")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                ["-n", "3", "--layout", "gird"],
                "--layout must be grid, circle, or a .csv or .json file, got 'gird': did",
            ),
            (["--layout", "grid"], "-n must be given with the layout 'grid'"),
            (["-n", "3", "--layout", "none.csv"], "[Errno 2] No such file or directory: 'none.csv'"),
            (["-n", "3", "--facing", "out"], "--facing is of the layout circle"),
            (["-n", "3", "--apart", "2e9"], "--apart must be a number of 0 or more, at most 1e+09, got 2000000000.0"),
            (["-n", "3", "--steps", "101"], "--steps must be from 1 to 100, got 101"),
            (["-n", "3", "--device", "cuda:77"], "--device 'cuda:77' cannot be used here"),
        ],
    )
    def test_errors_are_one_line_and_leave_nothing(
        self, arguments: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        # Not quiet: there is no bar before the first step.
        assert main(["crowd", str(folder), "--frames", "5", "--out", str(tmp_path / "new" / "out"), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"sinmdm: error: {said}")
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["-n", "0"], "argument -n: must be a whole number from 1 to"),
            (["--frames", "0"], "argument --frames: must be a whole number from 1 to"),
            (["--frames", "5:"], "argument --frames: must be a whole number from 1 to 2147483647, got ''"),
            (["--frames", "5:6:7"], "argument --frames: must be a whole number from 1 to 2147483647, got '6:7'"),
            (["--frames", "9:5"], "argument --frames: must be the shortest and the longest, got '9:5'"),
            (["--distance", "-1"], "argument --distance: must be a number above 0, got '-1'"),
            (["--apart", "-1"], "argument --apart: must be a number of 0 or more, got '-1'"),
            (["--apart", "inf"], "argument --apart: must be a number of 0 or more, got 'inf'"),
            (["--apart", "near"], "argument --apart: must be a number of 0 or more, got 'near'"),
            (["--facing", "up"], "argument --facing: invalid choice: 'up'"),
        ],
    )
    def test_arguments_that_are_none_end_with_usage(
        self, arguments: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stopped:
            self._main(folder, "-n", 3, "--frames", 5, "--out", tmp_path / "out", *arguments)
        assert stopped.value.code == 2
        assert f"sinmdm crowd: error: {said}" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("phase", ["sampling", "writing"])
    def test_what_is_interrupted_leaves_nothing(
        self, phase: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def on_step(done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        steps_bar = crowd_command.steps_bar
        monkeypatch.setattr(
            crowd_command,
            "steps_bar",
            lambda quiet, name: (steps_bar(quiet, name)[0], on_step) if name == phase else steps_bar(quiet, name),
        )
        assert self._main(folder, "-n", 3, "--frames", 5, "--steps", 3, "--out", tmp_path / "out") == 130
        assert capsys.readouterr().err == "sinmdm: interrupted\n"
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_in_use_is_refused_before_anything_is_computed(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def computed(*_: object, **__: object) -> Tensor:
            raise AssertionError

        (tmp_path / "keep.txt").write_text("keep")
        monkeypatch.setattr(WindowTransformer, "forward", computed)
        assert self._main(folder, "-n", 3, "--frames", 5, "--out", tmp_path) == 2
        assert "not empty" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
