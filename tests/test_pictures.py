"""The pictures of a run: that they are there, change nothing else, and lose nothing where they fail."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sinmdm
from sinmdm import pictures, training
from sinmdm.cli import main
from sinmdm.motion import Clip, layout_for, walker
from sinmdm.pictures import _outline, _smooth, draw_run, write_loss_plot, write_motions_strip
from sinmdm.presets import Preset
from sinmdm.training import train

image = pytest.importorskip("matplotlib.image", reason="pictures are drawn by matplotlib")

NETWORK = {"d_model": 16, "heads": 2, "layers": 2, "window": 3, "mlp_ratio": 2, "dropout": 0.1}
TINY = Preset(
    network=NETWORK, timesteps=7, batch_size=4, crop=16, resize=(0.75, 1.25), learning_rate=1e-3, warmup=3, ema=0.9,
    steps=6,
)  # fmt: skip
DRAWN = {"loss.png", "strip.png"}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return walker(legs=2, seconds=1.5)


@pytest.fixture(scope="module")
def drawn(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(clip, folder, preset=TINY, seed=5, progress=False, pictures=True)
    return folder


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_they_are_drawn_where_asked_for_and_change_nothing_else(drawn: Path, clip: Clip, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    train(clip, tmp_path / "run", preset=TINY, seed=5, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert _names(drawn) - _names(tmp_path / "run") == DRAWN
    for name in ("model.safetensors", "clip.bvh", "config.json"):
        assert (drawn / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    ours, other = ((folder / "log.csv").read_text().splitlines() for folder in (drawn, tmp_path / "run"))
    assert [line.split(",")[:3] for line in ours] == [line.split(",")[:3] for line in other]


def test_they_draw_nothing_from_torchs_generator(drawn: Path) -> None:
    run, state = sinmdm.load(drawn), torch.get_rng_state()
    assert draw_run(run) == [drawn / "loss.png", drawn / "strip.png"]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_strip_is_of_the_clip_and_three_samples_of_the_runs_seed(drawn: Path, clip: Clip, tmp_path: Path) -> None:
    run = sinmdm.load(drawn)
    samples = run.sample(len(clip), 3, seed=5, sampler="ddim", steps=7)  # all of this schedule's timesteps
    labelled = {f"generated {index}": sample for index, sample in enumerate(samples)}
    write_motions_strip(tmp_path / "strip.png", run.layout, {"the clip": run.motion}, labelled)
    assert np.array_equal(image.imread(tmp_path / "strip.png"), image.imread(drawn / "strip.png"))


def test_an_array_has_losses_only(tmp_path: Path) -> None:
    train(torch.randn(40, 3), tmp_path / "run", preset=TINY, progress=False, pictures=True)
    assert _names(tmp_path / "run") & DRAWN == {"loss.png"}
    with pytest.raises(ValueError, match=r"^motions of the layout 'array' cannot be drawn: "):
        write_motions_strip(tmp_path / "strip.png", layout_for(torch.randn(40, 3)), {"a": torch.randn(4, 3)}, {})
    assert _names(tmp_path) == {"run"}


def _interrupted(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    advance = training.Trainer.advance

    def interrupting(trainer: training.Trainer) -> torch.Tensor:
        if trainer.step == step:
            signal.raise_signal(signal.SIGINT)
        return advance(trainer)

    monkeypatch.setattr(training.Trainer, "advance", interrupting)


def test_an_interrupted_training_has_them_too(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _interrupted(patch, step=2)
        with pytest.raises(KeyboardInterrupt):
            train(clip, tmp_path / "run", preset=TINY, progress=False, pictures=True)
    assert _names(tmp_path / "run") > DRAWN
    before = (tmp_path / "run" / "loss.png").read_bytes()
    train(clip, tmp_path / "run", resume=True, progress=False, pictures=True)
    assert (tmp_path / "run" / "loss.png").read_bytes() != before


def test_without_matplotlib_one_line_says_so_and_the_run_is_whole(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    run = train(clip, tmp_path / "run", preset=TINY, progress=False, pictures=True)
    said = "sinmdm: no pictures of the run: drawing needs matplotlib: pip install 'sinmdm[plot]'\n"
    assert capsys.readouterr() == ("", said)
    assert not DRAWN & _names(tmp_path / "run")
    assert len(run.sample(5, steps=2)[0]) == 5


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("a bug"), MemoryError("none left")])
def test_a_picture_that_fails_loses_nothing(
    error: Exception, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(pictures, "write_strip", failing)
    train(clip, tmp_path / "run", preset=TINY, progress=False, pictures=True)
    assert capsys.readouterr().err == f"sinmdm: no pictures of the run: {error}\n"
    assert _names(tmp_path / "run") & DRAWN == {"loss.png"}
    assert sinmdm.load(tmp_path / "run").motion is not None


@pytest.mark.parametrize(("options", "expected"), [([], True), (["--no-pictures"], False)])
def test_the_command_draws_them_unless_told_not_to(
    options: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(training, "train", lambda *_, pictures, **__: asked.append(pictures))
    assert main(["train", str(tmp_path / "walk.bvh"), "--out", str(tmp_path / "run"), *options]) == 0
    assert asked == [expected]


def _log(path: Path, losses: np.ndarray) -> Path:
    rows = [f"{step},{loss:.6g},{1e-3 * 0.99**step:.6g},{step / 10:.3f}" for step, loss in enumerate(losses, start=1)]
    path.write_text("\n".join(["step,loss,learning_rate,seconds", *rows]) + "\n")
    return path


@pytest.mark.parametrize("steps", [1, 2, 60, 30_000])
def test_losses_of_any_number_of_steps(steps: int, tmp_path: Path) -> None:
    losses = np.exp(np.random.default_rng(0).normal(size=steps)) / np.arange(1, steps + 1)
    losses[steps // 2] = 0  # which a logarithm has no place for
    write_loss_plot(tmp_path / "loss.png", _log(tmp_path / "log.csv", losses))
    picture = image.imread(tmp_path / "loss.png")
    assert picture.shape[:2] == (600, 960)
    assert (picture[..., :3] < 0.7).any(axis=-1).mean() > 0.005


def test_smoothing_is_the_mean_of_a_window() -> None:
    losses = np.random.default_rng(0).random(200)
    smooth = _smooth(losses)  # 200 steps: 5 on each side
    for step in (0, 3, 100, 199):
        assert smooth[step] == pytest.approx(losses[max(0, step - 5) : step + 6].mean(), rel=1e-12)
    assert np.array_equal(_smooth(losses[:3]), losses[:3])


def test_of_many_steps_none_that_stands_out_is_left_out() -> None:
    losses = np.random.default_rng(0).random(54_321)
    losses[[7, 40_000]] = 9, -9
    rows = _outline(losses)
    assert {7, 40_000} <= set(rows.tolist())
    assert (np.diff(rows) > 0).all()
    assert 1000 <= len(rows) <= 2000
    assert np.array_equal(_outline(losses[:2000]), np.arange(2000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss,learning_rate,seconds\n", r"log\.csv: holds no losses$"),
        ("", r"log\.csv: holds no losses$"),
        ("step,loss,learning_rate,seconds\n1,nothing,2,3\n", r"log\.csv: not a log of a training: "),
        ("step,loss,learning_rate,seconds\n1,2\n1,2,3,4\n", r"log\.csv: not a log of a training: "),
    ],
)
def test_logs_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_loss_plot(tmp_path / "loss.png", tmp_path / "log.csv")
    with pytest.raises(OSError, match=r"none\.csv"):
        write_loss_plot(tmp_path / "loss.png", tmp_path / "none.csv")
    assert _names(tmp_path) == {"log.csv"}
