"""Training: crops, resuming to the same losses, what a run holds, and what it refuses."""

import csv
import json
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sinmdm
from sinmdm.batches import Crops
from sinmdm.kernels import BackendError
from sinmdm.motion import Clip, Normalizer, Skeleton, layout_for, walker
from sinmdm.presets import PRESETS, Preset
from sinmdm.run import CHECKPOINT, MODEL, RunError, read_tensors
from sinmdm.training import train

NETWORK = {"d_model": 16, "heads": 2, "layers": 2, "window": 3, "mlp_ratio": 2, "dropout": 0.1}
TINY = Preset(
    network=NETWORK, timesteps=10, batch_size=4, crop=16, resize=(0.75, 1.25), learning_rate=1e-3, warmup=3, ema=0.9,
    steps=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> Clip:
    return walker(legs=4, seconds=2.0)


@pytest.fixture(scope="module")
def finished(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 tiny steps; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(clip, folder, preset=TINY, seed=5, progress=False)
    return folder


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _losses(folder: Path) -> list[str]:
    with (folder / "log.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


class _Killed(BaseException):
    """Stands for a kill signal: no handler of the training sees it."""


def _train_killed_at(step: int, clip: Clip, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with a save after every step, and die at the start of `step`."""
    from sinmdm import training

    advance = training.Trainer.advance

    def mortal(self: training.Trainer) -> torch.Tensor:
        if self.step == step:
            raise _Killed
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_SECONDS", -1.0)
        patch.setattr(training.Trainer, "advance", mortal)
        with pytest.raises(_Killed):
            train(clip, folder, preset=TINY, seed=5, progress=False)


class TestReproducible:
    def test_same_seed_same_losses_and_weights(self, clip: Clip, finished: Path, tmp_path: Path) -> None:
        train(clip, tmp_path / "again", preset=TINY, seed=5, progress=False)
        assert _losses(tmp_path / "again") == _losses(finished)
        first, second = load_file(finished / MODEL), load_file(tmp_path / "again" / MODEL)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_another_seed_other_losses(self, clip: Clip, finished: Path, tmp_path: Path) -> None:
        train(clip, tmp_path / "other", preset=TINY, seed=6, progress=False)
        assert _losses(tmp_path / "other") != _losses(finished)

    @pytest.mark.parametrize("step", [1, 5])
    def test_a_killed_run_resumes_to_the_same_losses_and_weights(
        self, step: int, clip: Clip, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "killed"
        _train_killed_at(step, clip, folder, monkeypatch)
        assert len(_losses(folder)) == step
        train(clip, folder, resume=True, progress=False)
        assert _losses(folder) == _losses(finished)
        whole, resumed = load_file(finished / CHECKPOINT), load_file(folder / CHECKPOINT)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_steps_after_the_last_save_are_done_again(
        self, clip: Clip, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "killed"
        _train_killed_at(4, clip, folder, monkeypatch)
        with (folder / "log.csv").open("a") as file:
            file.write("5,123,0,0\n6,123,0,0\n")  # logged, but lost with the process
        train(clip, folder, resume=True, progress=False)
        assert _losses(folder) == _losses(finished)

    @pytest.mark.parametrize("part", ["step", "_foreach_lerp_"])
    def test_an_interrupt_lets_the_step_finish(
        self, part: str, clip: Clip, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in the middle of the third step, after the optimiser's or the average's part of it."""
        owner = torch.optim.AdamW if part == "step" else torch
        original, calls = getattr(owner, part), []

        def interrupting(*arguments: object, **options: object) -> object:
            result = original(*arguments, **options)
            calls.append(part)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, part, interrupting)
            with pytest.raises(KeyboardInterrupt):
                train(clip, tmp_path / "run", preset=TINY, seed=5, progress=False)
        assert len(_losses(tmp_path / "run")) == 3
        train(clip, tmp_path / "run", resume=True, progress=False)
        assert _losses(tmp_path / "run") == _losses(finished)
        whole, resumed = load_file(finished / CHECKPOINT), load_file(tmp_path / "run" / CHECKPOINT)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_torchs_own_generator_is_left_alone(self, clip: Clip, tmp_path: Path) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        train(clip, tmp_path / "run", preset=TINY, steps=2, progress=False)
        assert torch.equal(torch.rand(2), expected)


class TestLearning:
    def test_the_loss_falls(self, clip: Clip, tmp_path: Path) -> None:
        preset = replace(TINY, network={**NETWORK, "dropout": 0.0}, resize=(1.0, 1.0), learning_rate=5e-3)
        train(clip, tmp_path / "run", preset=preset, steps=150, progress=False)
        losses = np.array(_losses(tmp_path / "run"), dtype=float)
        assert losses[-20:].mean() < 0.6 * losses[:20].mean()

    def test_learning_rate_warms_up_and_decays(self, finished: Path) -> None:
        with (finished / "log.csv").open() as file:
            rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
        expected = [1e-3 * min(1, (s + 1) / 3) * 0.1 ** (s / 8) for s in range(8)]
        np.testing.assert_allclose(rates, expected, rtol=1e-5)

    def test_minutes_end_it(self, clip: Clip, tmp_path: Path) -> None:
        train(clip, tmp_path / "run", preset=TINY, minutes=0.02, progress=False)
        with (tmp_path / "run" / "log.csv").open() as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        assert seconds[-1] >= 1.2
        assert seconds[-2] <= 1.2  # the log rounds

    def test_bfloat16_trains_too_and_differs(self, clip: Clip, finished: Path, tmp_path: Path) -> None:
        train(clip, tmp_path / "run", preset=TINY, seed=5, precision="bfloat16", progress=False)
        losses, exact = (np.array(_losses(folder), dtype=float) for folder in (tmp_path / "run", finished))
        assert 0 < np.abs(losses - exact).max() < 0.05

    def test_auto_remembers_which_precision_it_took(self, clip: Clip, tmp_path: Path) -> None:
        train(clip, tmp_path / "run", preset=TINY, steps=1, precision="auto", progress=False)
        assert json.loads((tmp_path / "run" / "config.json").read_text())["precision"] in ("float32", "bfloat16")

    def test_tensorboard_gets_the_losses(self, clip: Clip, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard", reason="the extra sinmdm[tensorboard] is not installed")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        train(clip, tmp_path / "run", preset=TINY, steps=4, progress=False, tensorboard=True)
        events = EventAccumulator(str(tmp_path / "run"))
        events.Reload()
        found = [(event.step, event.value) for event in events.Scalars("loss")]
        assert [step for step, _ in found] == [1, 2, 3, 4]
        np.testing.assert_allclose([v for _, v in found], np.array(_losses(tmp_path / "run"), float), rtol=1e-5)


class TestCrops:
    def _crops(self, clip: Clip, **changes: object) -> Crops:
        layout = layout_for(clip)
        features = layout.encode(clip)
        preset = replace(TINY, **changes)  # type: ignore[arg-type]
        return Crops(features, layout, Normalizer.fit(features, layout), preset, seed=1)

    def test_without_resizing_they_are_runs_of_the_clip(self, clip: Clip) -> None:
        crops = self._crops(clip, resize=(1.0, 1.0))
        batch, _ = crops.batch(0)
        windows = crops.features.unfold(0, 16, 1).mT
        for crop in crops.normalizer.invert(batch):  # numbers of at most 1, rounded a few times in float32
            assert float((windows - crop).abs().amax((1, 2)).min()) < 1e-6

    def test_every_batch_differs_and_is_repeatable(self, clip: Clip) -> None:
        crops = self._crops(clip)
        assert torch.equal(crops.batch(3)[0], crops.batch(3)[0])
        assert not torch.equal(crops.batch(3)[0], crops.batch(4)[0])

    def test_timesteps_cover_the_schedule_evenly(self, clip: Clip) -> None:
        crops = self._crops(clip, batch_size=5)
        for step in range(20):
            timesteps = crops.batch(step)[1].tolist()
            assert [t // 2 for t in timesteps] == [0, 1, 2, 3, 4]

    def test_resized_crops_keep_rotations_and_move_the_root_as_far(self, clip: Clip) -> None:
        crops = self._crops(clip, batch_size=64)
        batch, _ = crops.batch(0)
        features = crops.normalizer.invert(batch).double()
        rows = features[..., crops.layout.rotation_channels].unflatten(-1, (2, 3))
        gram = rows @ rows.mT
        torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64).expand_as(gram), rtol=0, atol=1e-5)

    def test_a_clip_shorter_than_a_crop_is_one_crop(self) -> None:
        short = walker(legs=2, seconds=0.3)
        batch, _ = self._crops(short).batch(0)
        assert batch.shape[1] == len(short)
        assert bool(batch.isfinite().all())


class TestRun:
    def test_samples_are_clips_of_the_skeleton(self, clip: Clip, finished: Path) -> None:
        motions = sinmdm.load(finished).sample(30, 3, seed=2)
        assert [len(motion) for motion in motions] == [30, 30, 30]
        assert all(isinstance(motion, Clip) and motion.skeleton == clip.skeleton for motion in motions)
        assert motions[0].frame_time == clip.frame_time

    def test_a_sample_does_not_depend_on_the_batch(self, finished: Path) -> None:
        run = sinmdm.load(finished)
        together, apart = run.sample(30, 3, seed=2), run.sample(30, 3, seed=2, batch_size=1)
        for one, other in zip(together, apart, strict=True):
            np.testing.assert_allclose(one.positions(), other.positions(), atol=1e-4)

    def test_the_averaged_weights_are_the_ones_that_sample(self, finished: Path) -> None:
        weights = load_file(finished / CHECKPOINT)
        model = load_file(finished / MODEL)
        name = "blocks.0.mlp.0.weight"
        assert torch.equal(model[name], weights[f"averaged.{name}"])
        assert not torch.equal(model[name], weights[f"network.{name}"])

    def test_arrays_train_and_sample_too(self, tmp_path: Path) -> None:
        time = torch.arange(60)[:, None] / 5
        array = torch.cat([time.sin(), time.cos(), torch.ones(60, 1)], 1)
        run = train(array, tmp_path / "run", preset=TINY, progress=False)
        (motion,) = run.sample(25, 1, seed=0)
        assert isinstance(motion, torch.Tensor)
        assert motion.shape == (25, 3)
        assert run.fps is None

    @pytest.mark.parametrize("name", ["frames", "n"])
    def test_counts_below_one_are_refused(self, name: str, finished: Path) -> None:
        with pytest.raises(ValueError, match=name):
            sinmdm.load(finished).sample(**({"frames": 10, "n": 1} | {name: 0}))


class TestRefusals:
    def test_a_folder_with_something_in_it_is_left_as_it_is(self, clip: Clip, tmp_path: Path) -> None:
        (tmp_path / "precious.txt").write_text("keep")
        with pytest.raises(FileExistsError, match="not empty"):
            train(clip, tmp_path, preset=TINY, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]

    def test_resuming_with_another_motion(self, run_copy: Path) -> None:
        with pytest.raises(RunError, match="another motion or skeleton"):
            train(walker(legs=6, seconds=2.0), run_copy, resume=True, progress=False)

    def test_resuming_with_another_motion_of_the_same_skeleton(self, clip: Clip, run_copy: Path) -> None:
        other = Clip(clip.skeleton, clip.values[::-1].copy(), clip.frame_time)
        with pytest.raises(RunError, match="another motion"):
            train(other, run_copy, resume=True, progress=False)

    def test_resuming_what_is_no_run(self, clip: Clip, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"config\.json"):
            train(clip, tmp_path / "nothing", resume=True, progress=False)

    @pytest.mark.parametrize(
        "setting", [{"steps": 3}, {"minutes": 1.0}, {"preset": "paper"}, {"seed": 7}, {"precision": "bfloat16"}]
    )
    def test_resuming_with_other_settings(self, setting: dict, clip: Clip, run_copy: Path) -> None:
        with pytest.raises(ValueError, match=f"leave out {next(iter(setting))}"):
            train(clip, run_copy, resume=True, progress=False, **setting)

    def test_resuming_an_array_with_another(self, tmp_path: Path) -> None:
        array = torch.randn(40, 3)
        train(array, tmp_path / "run", preset=TINY, steps=1, progress=False)
        with pytest.raises(RunError, match="another motion"):
            train(7 * array + 3, tmp_path / "run", resume=True, progress=False)
        train(array, tmp_path / "run", resume=True, progress=False)

    def test_weights_of_another_skeleton(self, run_copy: Path, tmp_path: Path) -> None:
        train(walker(legs=6, seconds=1.0), tmp_path / "other", preset=TINY, steps=1, progress=False)
        shutil.copy(tmp_path / "other" / MODEL, run_copy / MODEL)
        with pytest.raises(RunError, match="skeleton"):
            sinmdm.load(run_copy)

    def test_weights_of_another_skeleton_with_as_many_features(
        self, clip: Clip, run_copy: Path, tmp_path: Path
    ) -> None:
        skeleton = clip.skeleton
        renamed = Skeleton(
            tuple(f"other{name}" for name in skeleton.names), skeleton.parents, skeleton.offsets, skeleton.channels,
            skeleton.end_sites,
        )  # fmt: skip
        other = Clip(renamed, clip.values, clip.frame_time)
        train(other, tmp_path / "other", preset=TINY, seed=5, progress=False)
        shutil.copy(tmp_path / "other" / CHECKPOINT, run_copy / CHECKPOINT)
        with pytest.raises(RunError, match="another skeleton"):
            train(clip, run_copy, resume=True, progress=False)
        shutil.copy(tmp_path / "other" / MODEL, run_copy / MODEL)
        with pytest.raises(RunError, match="another skeleton"):
            sinmdm.load(run_copy)

    def test_missing_and_unknown_weights(self, run_copy: Path) -> None:
        tensors, metadata = read_tensors(run_copy / MODEL)
        bias = tensors.pop("output.bias")
        save_file(tensors, run_copy / MODEL, metadata)
        with pytest.raises(RunError, match=r"output\.bias"):
            sinmdm.load(run_copy)
        save_file(tensors | {"output.bias": bias, "stranger": bias.clone()}, run_copy / MODEL, metadata)
        with pytest.raises(RunError, match="stranger"):
            sinmdm.load(run_copy)

    @pytest.mark.parametrize("kind", ["torch", "pickle", "truncated", "empty"])
    def test_what_is_no_safetensors_file(self, kind: str, run_copy: Path, tmp_path: Path) -> None:
        path = run_copy / MODEL
        whole = path.read_bytes()
        if kind == "torch":
            torch.save({"weights": torch.zeros(2)}, path)
        else:
            data = {"pickle": pickle.dumps({"a": 1}), "truncated": whole[: len(whole) // 2], "empty": b""}
            path.write_bytes(data[kind])
        expected = "pickle" if kind in ("torch", "pickle") else "damaged"
        with pytest.raises(RunError, match=rf"model\.safetensors.*{expected}"):
            sinmdm.load(run_copy)

    def test_a_damaged_config(self, run_copy: Path) -> None:
        path = run_copy / "config.json"
        config = json.loads(path.read_text())
        path.write_text("{")
        with pytest.raises(RunError, match="not JSON"):
            sinmdm.load(run_copy)
        path.write_text(json.dumps({**config, "format": 99}))
        with pytest.raises(RunError, match="format"):
            sinmdm.load(run_copy)
        path.write_text(json.dumps({**config, "preset": {**config["preset"], "nonsense": 1}}))
        with pytest.raises(RunError, match="nonsense"):
            sinmdm.load(run_copy)
        for change in ({"schedule": "zzz"}, {"architecture": "gru"}, {"resize": 1}, {"network": 3}):
            path.write_text(json.dumps({**config, "preset": {**config["preset"], **change}}))
            with pytest.raises(RunError, match=next(iter(change))):
                sinmdm.load(run_copy)
        for change in ({"d_model": "32"}, {"heads": 3}, {"depth": 3}):
            network = {**config["preset"]["network"], **change}
            path.write_text(json.dumps({**config, "preset": {**config["preset"], "network": network}}))
            with pytest.raises(RunError, match=next(iter(change))):
                sinmdm.load(run_copy)
        for motion in ({}, "clip.bvh", {"file": "../../secret.npy"}):
            path.write_text(json.dumps({**config, "motion": motion}))
            with pytest.raises(RunError, match=r"motion\.file"):
                sinmdm.load(run_copy)

    def test_a_loss_that_is_not_finite_stops_the_run(
        self, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sinmdm import training

        monkeypatch.setattr(training.Trainer, "advance", _diverging)
        with pytest.raises(RunError, match="not finite"):
            train(clip, tmp_path / "run", preset=TINY, progress=False)
        assert not (tmp_path / "run" / MODEL).exists()

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"steps": 0}, "steps"),
            ({"minutes": -1.0}, "minutes"),
            ({"steps": 1, "minutes": 1.0}, "steps or minutes"),
            ({"preset": "huge"}, "preset"),
            ({"seed": -1}, "seed"),
            ({"fps": 0.0}, "fps"),
            ({"precision": "float8"}, "precision"),
            ({"device": "foo"}, "device"),
            ({"device": "cuda:77"}, "device"),
            ({"preset": replace(TINY, network={**NETWORK, "heads": 3})}, "heads"),
            ({"preset": replace(TINY, schedule="linear", timesteps=5)}, "timesteps"),
            ({"clip": torch.full((9, 2), float("nan"))}, "finite"),
            ({"clip": torch.full((9, 2), 1e300, dtype=torch.float64)}, "finite"),
            ({"clip": torch.zeros(9)}, "shape"),
        ],
    )
    def test_bad_arguments_are_named_and_leave_no_folder(
        self, options: dict, named: str, clip: Clip, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=named):
            train(out=tmp_path / "run", **({"clip": clip, "preset": TINY, "progress": False} | options))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("clip", [np.zeros((9, 2)), torch.zeros(9, 2, dtype=torch.int64), 3])
    def test_what_is_no_motion(self, clip: object, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="clip must be a file, a Clip or a tensor"):
            train(clip, tmp_path / "run", progress=False)  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()

    def test_a_backend_that_is_not_there_leaves_no_folder(
        self, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SINMDM_BACKEND", "triton")
        with pytest.raises(BackendError, match="triton"):
            train(clip, tmp_path / "run", preset=TINY, progress=False)
        assert not (tmp_path / "run").exists()

    def test_one_frame_is_no_motion(self, clip: Clip, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least 2"):
            train(clip.slice(0, 1), tmp_path / "run", preset=TINY, progress=False)
        assert not (tmp_path / "run").exists()


def _diverging(self: object) -> torch.Tensor:
    self.step += 1  # type: ignore[attr-defined]
    return torch.tensor(float("nan"))


def test_presets_say_what_they_are() -> None:
    paper = PRESETS["paper"]
    network = paper.arguments()
    assert [network[name] for name in ("d_model", "heads", "layers", "window", "dropout")] == [512, 8, 6, 16, 0.1]
    assert Preset.from_dict(json.loads(json.dumps(paper.to_dict()))) == paper
