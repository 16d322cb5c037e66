"""Measures while a training goes on: they do not change it, their time does not count, and every row is there once."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sinmdm
from sinmdm import evaluation_log, training
from sinmdm.cli import main
from sinmdm.evaluation import MAIN, evaluate_rotations, rotation_features
from sinmdm.evaluation_log import EVALUATION, EvaluationLog
from sinmdm.motion import Clip, walker
from sinmdm.presets import Preset
from sinmdm.run import CHECKPOINT, LOG, Run
from sinmdm.training import train

NETWORK = {"d_model": 16, "heads": 2, "layers": 2, "window": 3, "mlp_ratio": 2, "dropout": 0.1}
TINY = Preset(
    network=NETWORK, timesteps=10, batch_size=4, crop=16, resize=(0.75, 1.25), learning_rate=1e-3, warmup=3, ema=0.9,
    steps=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> Clip:
    return walker(legs=2, seconds=1.4)


@pytest.fixture(scope="module")
def watched(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 tiny steps, measured after 3, 6 and 8."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(clip, folder, preset=TINY, seed=5, progress=False, evaluate_every=3)
    return folder


def _rows(folder: Path, name: str = EVALUATION) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def _without_time(folder: Path, name: str = EVALUATION) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in _rows(folder, name)]


class _Killed(BaseException):
    """Stands for a kill signal: no handler of the training sees it."""


def _killed_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Make a training save after every step, and die at the start of `step`."""
    advance = training.Trainer.advance

    def mortal(self: training.Trainer) -> torch.Tensor:
        if self.step == step:
            raise _Killed
        return advance(self)

    patch.setattr(training, "SAVE_SECONDS", -1.0)
    patch.setattr(training.Trainer, "advance", mortal)


class TestTheTraining:
    def test_is_the_same_bit_for_bit(self, clip: Clip, watched: Path, tmp_path: Path) -> None:
        train(clip, tmp_path / "run", preset=TINY, seed=5, progress=False)
        assert not (tmp_path / "run" / EVALUATION).exists()
        assert _without_time(tmp_path / "run", LOG) == _without_time(watched, LOG)
        plain, measured = load_file(tmp_path / "run" / CHECKPOINT), load_file(watched / CHECKPOINT)
        assert plain.keys() == measured.keys()
        assert all(torch.equal(plain[name], measured[name]) for name in plain)

    def test_does_not_count_the_time(self, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A step takes a second of a clock of our own, measuring 100: after 6 seconds the training is over."""
        now = 0.0
        advance = training.Trainer.advance

        def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
            def slow(*arguments: Any) -> Any:
                nonlocal now
                now += seconds
                return function(*arguments)

            return slow

        clock = SimpleNamespace(perf_counter=lambda: now)
        monkeypatch.setattr(training, "time", clock)
        monkeypatch.setattr(evaluation_log, "time", clock)
        monkeypatch.setattr(training.Trainer, "advance", taking(1.0, advance))
        monkeypatch.setattr(EvaluationLog, "measures", taking(100.0, lambda self: dict.fromkeys(MAIN, 0.5)))
        train(clip, tmp_path / "run", preset=TINY, minutes=0.1, progress=False, evaluate_every=2)
        assert [float(row["seconds"]) for row in _rows(tmp_path / "run", LOG)] == [1, 2, 3, 4, 5, 6]
        rates = [float(row["learning_rate"]) for row in _rows(tmp_path / "run", LOG)]
        expected = [1e-3 * min(1, (s + 1) / 3) * 0.1 ** (s / 6) for s in range(6)]
        np.testing.assert_allclose(rates, expected, rtol=1e-5)
        assert [(row["step"], float(row["seconds"])) for row in _rows(tmp_path / "run")] == [
            ("2", 2),
            ("4", 4),
            ("6", 6),
        ]


class TestRows:
    def test_every_so_many_steps_and_at_the_end(self, watched: Path) -> None:
        rows = _rows(watched)
        assert list(rows[0]) == ["step", "seconds", *MAIN]
        assert [row["step"] for row in rows] == ["3", "6", "8"]
        seconds = {row["step"]: row["seconds"] for row in _rows(watched, LOG)}
        assert all(row["seconds"] == seconds[row["step"]] for row in rows)

    def test_the_end_is_there_once(self, clip: Clip, tmp_path: Path) -> None:
        train(clip, tmp_path / "run", preset=TINY, progress=False, evaluate_every=4)
        assert [row["step"] for row in _rows(tmp_path / "run")] == ["4", "8"]

    def test_the_last_is_what_the_finished_run_gives(self, clip: Clip, watched: Path) -> None:
        run = sinmdm.load(watched)
        seed = EvaluationLog(run, 1, 5, torch.device("cpu")).seed
        assert seed != 5
        samples = run.sample(len(clip), 2, seed=seed, sampler="ddim", steps=10)
        judged = rotation_features(clip)
        (row,) = evaluate_rotations({"": [rotation_features(s) for s in samples]}, judged, judged.shape[1] // 6)
        expected = [f"{row['values'][key]['mean']:.3g}" for key in MAIN]
        assert [f"{float(_rows(watched)[-1][key]):.3g}" for key in MAIN] == expected

    def test_a_killed_run_has_the_rows_of_one_that_was_not(
        self, clip: Clip, watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "run"
        with monkeypatch.context() as patch:
            _killed_at(4, patch)
            with pytest.raises(_Killed):
                train(clip, folder, preset=TINY, seed=5, progress=False, evaluate_every=3)
        assert [row["step"] for row in _rows(folder)] == ["3"]
        with (folder / EVALUATION).open("a") as file:
            file.write(f"6,0{',9' * len(MAIN)}\n")  # measured, but its step was lost with the process
        train(clip, folder, resume=True, progress=False, evaluate_every=3)
        assert _without_time(folder) == _without_time(watched)

    def test_killed_right_after_a_row(
        self, clip: Clip, watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "run"
        with monkeypatch.context() as patch:
            _killed_at(3, patch)
            with pytest.raises(_Killed):
                train(clip, folder, preset=TINY, seed=5, progress=False, evaluate_every=3)
        train(clip, folder, resume=True, progress=False, evaluate_every=3)
        assert _without_time(folder) == _without_time(watched)

    def test_resuming_without_measuring_drops_rows_of_lost_steps(
        self, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "run"
        with monkeypatch.context() as patch:
            _killed_at(4, patch)
            with pytest.raises(_Killed):
                train(clip, folder, preset=TINY, seed=5, progress=False, evaluate_every=1)
        with (folder / EVALUATION).open("a") as file:
            file.write(f"5,0{',9' * len(MAIN)}\n")
        train(clip, folder, resume=True, progress=False)
        assert [row["step"] for row in _rows(folder)] == ["1", "2", "3", "4"]

    def test_a_finished_run_gets_its_last_row_once(self, clip: Clip, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        train(clip, folder, preset=TINY, progress=False)
        for _ in range(2):
            train(clip, folder, resume=True, progress=False, evaluate_every=3)
            assert [row["step"] for row in _rows(folder)] == ["8"]

    def test_what_is_not_finite_is_said(self, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Run, "features", lambda self, frames, n, **_: iter(torch.full((n, frames, 1), torch.nan)))
        train(clip, tmp_path / "run", preset=TINY, steps=1, progress=False, evaluate_every=1)
        (row,) = _rows(tmp_path / "run")
        assert all(math.isnan(float(row[key])) for key in MAIN)

    def test_arrays_are_measured_too(self, tmp_path: Path) -> None:
        time = torch.arange(60)[:, None] / 5
        train(torch.cat([time.sin(), time.cos()], 1), tmp_path / "run", preset=TINY, progress=False, evaluate_every=8)
        (row,) = _rows(tmp_path / "run")
        assert all(math.isfinite(float(row[key])) for key in MAIN)

    def test_tensorboard_gets_them(self, clip: Clip, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard", reason="the extra sinmdm[tensorboard] is not installed")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = tmp_path / "run"
        train(clip, folder, preset=TINY, steps=4, progress=False, tensorboard=True, evaluate_every=2)
        events = EventAccumulator(str(folder))
        events.Reload()
        for key in MAIN:
            found = [(str(event.step), event.value) for event in events.Scalars(f"evaluation/{key}")]
            assert [step for step, _ in found] == ["2", "4"]
            np.testing.assert_allclose([v for _, v in found], [float(row[key]) for row in _rows(folder)], rtol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize("every", [0, -3, True, 2.0])
    def test_what_is_no_number_of_steps(self, every: Any, clip: Clip, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"evaluate_every must be an int >= 1, got {every}"):
            train(clip, tmp_path / "run", preset=TINY, progress=False, evaluate_every=every)
        assert not (tmp_path / "run").exists()

    def test_a_clip_too_short_to_be_measured(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"evaluate_every .* the clip's length must be more than 30 .* got 30"):
            train(walker(legs=2, seconds=1.0), tmp_path / "run", preset=TINY, progress=False, evaluate_every=3)
        assert not (tmp_path / "run").exists()


class TestCommand:
    def test_writes_the_file(self, clip: Clip, tmp_path: Path) -> None:
        clip.write(tmp_path / "walk.bvh")
        options = ["--steps", "2", "--evaluate-every", "1", "--quiet"]
        assert main(["train", str(tmp_path / "walk.bvh"), "--out", str(tmp_path / "run"), *options]) == 0
        assert [row["step"] for row in _rows(tmp_path / "run")] == ["1", "2"]

    @pytest.mark.parametrize("every", ["0", "-3", "x"])
    def test_refuses_what_is_no_number_of_steps(
        self, every: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["train", "walk.bvh", "--out", str(tmp_path / "run"), "--evaluate-every", every])
        assert "--evaluate-every" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
