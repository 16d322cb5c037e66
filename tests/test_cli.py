"""The command line as a user meets it: what it writes, and how it refuses."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinmdm
from sinmdm.cli import main, sampling
from sinmdm.motion import Clip, walker


@pytest.fixture(scope="module")
def bvh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "walk.bvh"
    walker(legs=2, seconds=1.5, fps=60).write(path)
    return path


@pytest.fixture(scope="module")
def run(bvh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(bvh), "--out", str(folder), "--steps", "2", "--quiet"]) == 0
    return folder


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command prints on standard error, having failed with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("sinmdm: error: ")
    return lines[0]


class TestTrainAndSample:
    def test_a_run_has_its_files(self, run: Path) -> None:
        names = {path.name for path in run.iterdir()}
        pictures = {"loss.png", "strip.png"}
        assert names == {"config.json", "clip.bvh", "model.safetensors", "checkpoint.safetensors", "log.csv"} | pictures
        assert len(Clip.read(run / "clip.bvh")) == 45  # 60 frames a second were thinned to 30

    def test_samples_are_bvh_files_of_the_rig(self, bvh: Path, run: Path, tmp_path: Path) -> None:
        out = tmp_path / "motions"
        assert main(["sample", str(run), "--frames", "33", "-n", "3", "--out", str(out), "--quiet"]) == 0
        files = sorted(out.iterdir())
        assert [path.name for path in files] == ["results.npz", "sample00.bvh", "sample01.bvh", "sample02.bvh"]
        original = Clip.read(bvh)
        for path in files[1:]:
            motion = Clip.read(path)
            assert motion.skeleton == original.skeleton
            assert len(motion) == 33
            assert motion.frame_time == pytest.approx(2 * original.frame_time)

    def test_a_single_frame(self, run: Path, tmp_path: Path) -> None:
        assert main(["sample", str(run), "--frames", "1", "--out", str(tmp_path / "one"), "--quiet"]) == 0
        assert len(Clip.read(tmp_path / "one" / "sample00.bvh")) == 1

    def test_an_empty_folder_is_used_even_where_it_is_the_current_one_or_a_link(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("here", "behind"):
            (tmp_path / name).mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "behind")
        monkeypatch.chdir(tmp_path / "here")
        assert main(["sample", str(run), "--frames", "4", "--out", ".", "--quiet", "--steps", "2"]) == 0
        assert main(["sample", str(run), "--frames", "4", "--out", "../link", "--quiet", "--steps", "2"]) == 0
        assert [path.name for path in sorted((tmp_path / "here").iterdir())] == ["results.npz", "sample00.bvh"]
        assert [path.name for path in sorted((tmp_path / "behind").iterdir())] == ["results.npz", "sample00.bvh"]

    def test_seconds_are_frames_at_the_runs_rate(self, run: Path, tmp_path: Path) -> None:
        out = tmp_path / "motions"
        assert main(["sample", str(run), "--seconds", "0.5", "--out", str(out), "--quiet", "--steps", "2"]) == 0
        assert len(Clip.read(out / "sample00.bvh")) == 15

    def test_a_seed_names_a_motion(self, run: Path, tmp_path: Path) -> None:
        for name, seed, n in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
            arguments = ["--frames", "10", "--seed", str(seed), "-n", str(n), "--quiet"]
            assert main(["sample", str(run), *arguments, "--out", str(tmp_path / name)]) == 0
        a, b, c = (Clip.read(tmp_path / name / "sample00.bvh").values for name in "abc")
        # Two steps of training leave the network near the mean: little is left of the noise, but more than rounding.
        assert np.abs(a - b).max() < 0.1 * np.abs(a - c).max()

    def test_arrays_in_arrays_out(self, tmp_path: Path) -> None:
        np.save(tmp_path / "motion.npy", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
        run, out = tmp_path / "run", tmp_path / "out"
        assert main(["train", str(tmp_path / "motion.npy"), "--out", str(run), "--steps", "1", "--quiet"]) == 0
        assert main(["sample", str(run), "--frames", "9", "--out", str(out), "--quiet"]) == 0
        assert np.load(out / "sample00.npy").shape == (9, 4)

    def test_resume_finishes_a_run(self, bvh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from sinmdm import training

        arguments = ["train", str(bvh), "--out", str(tmp_path / "run"), "--quiet"]
        advance = training.Trainer.advance

        def interrupted(self: training.Trainer) -> torch.Tensor:
            if self.step == 1:
                signal.raise_signal(signal.SIGINT)
            return advance(self)

        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, "advance", interrupted)
            assert main([*arguments, "--steps", "4"]) == 130
        assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 1 + 2
        assert main([*arguments, "--resume"]) == 0
        steps = [line.split(",")[0] for line in (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]]
        assert steps == ["1", "2", "3", "4"]

    def test_the_python_of_the_readme(self, bvh: Path, tmp_path: Path) -> None:
        sinmdm.train(bvh, tmp_path / "run", steps=1, progress=False)
        motion = sinmdm.load(tmp_path / "run").sample(frames=12, n=1, seed=0)[0]
        motion.write(tmp_path / "new.bvh")
        assert len(Clip.read(tmp_path / "new.bvh")) == 12


class TestSamplers:
    @pytest.mark.parametrize(
        ("arguments", "options"),
        [
            ([], {}),
            (["--sampler", "ddim", "--steps", "5"], {"sampler": "ddim", "steps": 5}),
            (
                ["--sampler", "ddim", "--steps", "90,60,30,0", "--eta", "0.5", "--seed", "3"],
                {"sampler": "ddim", "steps": [90, 60, 30, 0], "eta": 0.5, "seed": 3},
            ),
            (
                ["--sampler", "dpmpp_2m", "--steps", "4", "--spacing", "uniform", "--batch-size", "1"],
                {"sampler": "dpmpp_2m", "steps": 4, "spacing": "uniform"},
            ),
            (["--steps", "3", "--spacing", "leading"], {"steps": 3, "spacing": "leading"}),
        ],
        ids=["default", "ddim", "timesteps", "dpmpp", "leading"],
    )
    def test_files_are_those_of_a_runs_samples(
        self, run: Path, tmp_path: Path, arguments: list[str], options: dict[str, Any]
    ) -> None:
        out, batch_size = tmp_path / "out", 1 if "--batch-size" in arguments else None
        assert main(["sample", str(run), "--frames", "9", "-n", "2", "--out", str(out), "--quiet", *arguments]) == 0
        (tmp_path / "expected").mkdir()
        sinmdm.load(run).write_samples(tmp_path / "expected", 9, 2, batch_size=batch_size, **options)
        for name in ("sample00.bvh", "sample01.bvh"):
            assert (out / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--steps", "101"], "steps must be from 1 to 100, got 101"),
            (["--steps", "100,3"], "steps must be timesteps from 0 to 99, at least one, got [100, 3]"),
            (["--steps", "3,30"], "steps must be timesteps that fall from one to the next, got [3, 30]"),
            (["--steps", "30,30"], "steps must be timesteps that fall from one to the next, got [30, 30]"),
            (["--eta", "0.5"], "eta is an option of the sampler ddim, got eta = 0.5 for ddpm"),
            (
                ["--eta", "0", "--sampler", "dpmpp_2m"],
                "eta is an option of the sampler ddim, got eta = 0.0 for dpmpp_2m",
            ),
        ],
    )
    def test_options_that_do_not_go_together(
        self, arguments: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = _refused(capsys, "sample", run, "--frames", 5, "--out", tmp_path / "out", "--quiet", *arguments)
        assert message == f"sinmdm: error: {said}"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--sampler", "magic"], "argument --sampler: invalid choice: 'magic'"),
            (["--spacing", "even"], "argument --spacing: invalid choice: 'even'"),
            (["--steps", "0"], "argument --steps: must be a whole number from 1 to"),
            (["--steps", "-5"], "argument --steps: must be a whole number from 1 to"),
            (["--steps", "all"], "argument --steps: must be a whole number from 1 to"),
            (["--steps", "90,,30"], "argument --steps: must be a whole number from 0 to 2147483647, got ''"),
            (["--steps", "90,-1"], "argument --steps: must be a whole number from 0 to 2147483647, got '-1'"),
            (["--steps", "90, 60"], "argument --steps: must be a whole number from 0 to 2147483647, got ' 60'"),
            (["--eta", "1.1"], "argument --eta: must be a number from 0 to 1, got '1.1'"),
            (["--eta=-1"], "argument --eta: must be a number from 0 to 1, got '-1'"),
            (["--eta", "nan"], "argument --eta: must be a number from 0 to 1, got 'nan'"),
            (["--eta", "half"], "argument --eta: must be a number from 0 to 1, got 'half'"),
            (["--batch-size", "0"], "argument --batch-size: must be a whole number from 1 to"),
            (["--seed", str(2**64)], "argument --seed: must be a whole number from 0 to"),
        ],
    )
    def test_options_that_are_none_end_with_usage_and_one_line(
        self, arguments: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(["sample", str(run), "--frames", "5", "--out", str(tmp_path / "out"), *arguments])
        assert stopped.value.code == 2
        usage, _, message = capsys.readouterr().err.rpartition("sinmdm sample: error: ")
        assert usage.startswith("usage: sinmdm sample")
        assert message.startswith(said)
        assert message.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("empty_folder", [False, True], ids=["new", "empty"])
    @pytest.mark.parametrize("calls", [1, 4], ids=["first file", "second file"])
    @pytest.mark.parametrize(
        ("error", "status", "said"),
        [(KeyboardInterrupt(), 130, "sinmdm: interrupted\n"), (OSError("disk full"), 2, "sinmdm: error: disk full\n")],
        ids=["interrupted", "failed"],
    )
    def test_what_is_interrupted_leaves_nothing(
        self, error: BaseException, status: int, said: str, calls: int, empty_folder: bool, run: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        out = tmp_path / "out"
        if empty_folder:
            out.mkdir()
        done = []

        def on_step(count: int, total: int) -> None:
            done.append(count)
            if count == calls:
                raise error

        steps_bar = sampling.steps_bar
        monkeypatch.setattr(sampling, "steps_bar", lambda *given: (steps_bar(*given)[0], on_step))
        options = ["--steps", "3", "-n", "2", "--batch-size", "1", "--quiet"]
        assert main(["sample", str(run), "--frames", "5", "--out", str(out), *options]) == status
        assert capsys.readouterr().err == said
        assert done == list(range(1, calls + 1))
        assert [path.name for path in tmp_path.rglob("*")] == (["out"] if empty_folder else [])


class TestEvaluateInfoDemo:
    def test_evaluate_prints_the_table_and_writes_json(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["evaluate", str(run), "-n", "2", "--json", str(tmp_path / "table.json"), "--quiet"]) == 0
        printed = capsys.readouterr().out
        rows = json.loads((tmp_path / "table.json").read_text())["rows"]
        names = [row["name"] for row in rows]
        assert names[:5] == ["samples", "untrained model", "frozen mean pose", "clip reversed", "first half twice"]
        assert all(name in printed for name in names)
        assert rows[0]["frames"] == [90, 90]
        energy = {row["name"]: row["values"]["energy"]["mean"] for row in rows}
        assert energy["frozen mean pose"] == pytest.approx(0, abs=1e-9)
        assert energy["clip reversed"] == pytest.approx(1, rel=1e-6)

    def test_evaluate_takes_files(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["evaluate", str(run), str(run / "clip.bvh"), "--quiet"]) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("samples"))
        assert row.split()[1] == "100.0%"  # the clip covers itself

    def test_info_names_every_backend_and_op(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info", "--json"]) == 0
        info = json.loads(capsys.readouterr().out)
        assert set(info["backends"]) == {"cpu", "cuda", "reference", "triton"}
        assert info["backends"]["reference"] == "available"
        assert {"window_attention", "qna_attention", "q_sample", "denoise_step"} <= set(info["ops"])
        assert main(["info"]) == 0
        assert "native extension" in capsys.readouterr().out

    def test_demo_leaves_motions_and_a_picture(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
        out = tmp_path / "demo"
        assert main(["demo", "--minutes", "0.02", "--quiet", "--out", str(out)]) == 0
        names = {path.name for path in out.iterdir()}
        assert names == {"walker.bvh", "run", "sample00.bvh", "sample01.bvh", "sample02.bvh", "strip.png", "page.html"}
        assert (out / "strip.png").read_bytes()[:4] == b"\x89PNG"

    def test_demo_finds_a_free_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from sinmdm.demo import free_folder

        monkeypatch.chdir(tmp_path)
        assert free_folder() == Path("demo")
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo-2").mkdir()
        assert free_folder() == Path("demo-3")


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda text: text[: len(text) // 2], r"walk\.bvh"),  # truncated somewhere in the numbers
            (lambda text: text.replace("Frames: 90", "Frames: 91"), "Frames"),
            (lambda text: text[: text.index("MOTION")], "MOTION"),
            (lambda text: "", "empty"),
        ],
        ids=["truncated", "lying header", "no motion", "empty"],
    )
    def test_broken_bvh(
        self, change: object, said: str, bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken = tmp_path / "walk.bvh"
        broken.write_text(change(bvh.read_text()))  # type: ignore[operator]
        message = _refused(capsys, "train", broken, "--out", tmp_path / "run", "--steps", 1)
        assert str(broken) in message
        assert re.search(said, message, re.IGNORECASE)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("number", ["nan", "inf", "-1e999"])
    def test_numbers_that_are_not_finite(
        self, number: str, bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = bvh.read_text().splitlines()
        lines[-3] = " ".join([number, *lines[-3].split()[1:]])
        (tmp_path / "walk.bvh").write_text("\n".join(lines) + "\n")
        message = _refused(capsys, "train", tmp_path / "walk.bvh", "--out", tmp_path / "run", "--steps", 1)
        assert "walk.bvh" in message
        assert not (tmp_path / "run").exists()

    def test_a_missing_motion(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = _refused(capsys, "train", tmp_path / "none.bvh", "--out", tmp_path / "run")
        assert "none.bvh" in message
        assert not (tmp_path / "run").exists()

    def test_a_clip_of_one_frame(self, bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Clip.read(bvh).slice(0, 1).write(tmp_path / "one.bvh")
        message = _refused(capsys, "train", tmp_path / "one.bvh", "--out", tmp_path / "run")
        assert "one.bvh" in message
        assert "at least 2" in message
        assert not (tmp_path / "run").exists()

    def test_a_pickle_for_a_motion(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "motion.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        assert "motion.npy" in _refused(capsys, "train", tmp_path / "motion.npy", "--out", tmp_path / "run")

    def test_an_output_folder_that_is_in_use(
        self, run: Path, bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "keep.txt").write_text("keep")
        assert "not empty" in _refused(capsys, "train", bvh, "--out", tmp_path)
        assert "not empty" in _refused(capsys, "sample", run, "--frames", 5, "--out", tmp_path, "--quiet")
        assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc is the folder that nobody, root included, may add to")
    def test_an_output_that_cannot_be_written(self, run: Path, bvh: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for out in (Path("/proc/new"), Path("/proc/1/new")):
            assert str(out.parent) in _refused(capsys, "sample", run, "--frames", 5, "--out", out, "--quiet")
            assert str(out.parent) in _refused(capsys, "train", bvh, "--steps", 1, "--out", out, "--quiet")

    def test_an_output_below_a_file(
        self, run: Path, bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        assert "file" in _refused(capsys, "sample", run, "--frames", 5, "--out", tmp_path / "file" / "out", "--quiet")
        assert "file" in _refused(capsys, "train", bvh, "--out", tmp_path / "file" / "run", "--steps", 1)

    def test_what_is_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "not a run" in _refused(capsys, "sample", tmp_path, "--frames", 5, "--out", tmp_path / "out")
        assert "not a run" in _refused(capsys, "evaluate", tmp_path / "nothing")
        assert not (tmp_path / "out").exists()

    def test_samples_of_another_skeleton(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        walker(legs=4, seconds=2.0).write(tmp_path / "other.bvh")
        assert "another skeleton" in _refused(capsys, "evaluate", run, tmp_path / "other.bvh", "--quiet")

    def test_too_short_to_measure(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "more than 30" in _refused(capsys, "evaluate", run, "--frames", 10, "--quiet")

    def test_files_and_a_number_of_samples(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "leave them out" in _refused(capsys, "evaluate", run, run / "clip.bvh", "-n", 3)

    def test_a_device_that_is_not_there(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--frames", 5, "--out", tmp_path / "out", "--quiet"]
        message = _refused(capsys, "sample", run, *arguments, "--device", "cuda:77")
        assert "'cuda:77' cannot be used" in message
        assert not (tmp_path / "out").exists()

    def test_a_backend_that_is_not_there(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SINMDM_BACKEND", "triton")
        message = _refused(capsys, "sample", run, "--frames", 5, "--out", tmp_path / "out", "--quiet")
        assert "'triton' cannot take this call" in message
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "arguments",
        [
            ["sample", "RUN", "--frames", "0", "--out", "OUT"],
            ["sample", "RUN", "--frames", "abc", "--out", "OUT"],
            ["sample", "RUN", "--frames", "-3", "--out", "OUT"],
            ["sample", "RUN", "--frames", "5", "-n", "0", "--out", "OUT"],
            ["sample", "RUN", "--seconds", "0", "--out", "OUT"],
            ["sample", "RUN", "--seconds", "nan", "--out", "OUT"],
            ["sample", "RUN", "--out", "OUT"],
            ["train", "CLIP", "--out", "OUT", "--steps", "3", "--minutes", "1"],
            ["train", "CLIP", "--out", "OUT", "--preset", "huge"],
            ["train", "CLIP", "--out", "OUT", "--seed", "-1"],
            ["nonsense"],
        ],
    )
    def test_bad_arguments_end_with_usage(
        self, arguments: list[str], run: Path, bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = {"RUN": str(run), "CLIP": str(bvh), "OUT": str(tmp_path / "out")}
        with pytest.raises(SystemExit) as stopped:
            main([places.get(argument, argument) for argument in arguments])
        assert stopped.value.code == 2
        assert "usage: sinmdm" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
