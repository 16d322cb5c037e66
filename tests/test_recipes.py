"""The published recipe: its batches, and four of its steps against the published training written in plain PyTorch."""

import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.published import PublishedQnANet
from bench.published_diffusion import Draws, PublishedDiffusion, PublishedTraining, cosine_betas
from sinmdm.batches import WholeClip, length_of
from sinmdm.cli import main
from sinmdm.kernels import q_sample
from sinmdm.motion import ArrayLayout, Normalizer, walker
from sinmdm.presets import PRESETS, Preset
from sinmdm.training import Trainer, train

FEATURES, FRAMES = 6, 26
SMALL = Preset("qna", {"latent_dim": 8, "head_dim": 4, "num_layers": 3}, batch_size=4, ema=0.9).with_recipe("published")


def batches(preset: Preset = SMALL, frames: int = FRAMES) -> WholeClip:
    clip = torch.randn(frames, FEATURES)
    return WholeClip(clip, ArrayLayout(FEATURES), Normalizer.identity(FEATURES), preset, seed=3)


def test_the_recipe_is_the_published_one() -> None:
    assert (SMALL.batch_size, SMALL.crop, SMALL.normalise, SMALL.ema) == (64, 0, False, 0.0)
    assert (SMALL.learning_rate, SMALL.final_learning_rate, SMALL.warmup, SMALL.weight_decay) == (1e-4, 1.0, 0, 0.0)
    assert (SMALL.timesteps, SMALL.schedule, SMALL.steps, SMALL.resize) == (1000, "cosine", 60_000, (0.75, 1.25))
    for name, argument in (("paper-qna", "drop_path"), ("paper-unet", "dropout")):
        preset = PRESETS[name].with_recipe("published")
        assert preset.arguments()[argument] == 0.5  # the published default, which our own recipe has at 0
        assert PRESETS[name].arguments()[argument] == 0.0
    assert PRESETS["paper-qna"].with_recipe("ours") == PRESETS["paper-qna"]
    with pytest.raises(ValueError, match="recipe must be one of ours, published, got 'theirs'"):
        SMALL.with_recipe("theirs")


def test_every_row_is_the_whole_clip_at_one_length() -> None:
    source = batches()
    image = source.image[0, :, 0]
    seen = set()
    for step in range(40):
        x0, timesteps = source.batch(step)
        assert x0.shape[::2] == (64, FEATURES)
        assert x0.shape[1] % 4 == 0
        assert x0.stride(0) == 0  # one piece of memory
        assert len(timesteps) == 64
        assert 0 <= int(timesteps.min()) <= int(timesteps.max()) < 1000
        expected = F.interpolate(image[None, None], size=(FEATURES, x0.shape[1]), mode="bicubic", align_corners=False)
        assert torch.allclose(
            x0[0].T, expected[0, 0], atol=8 * torch.finfo(torch.float32).eps * float(image.abs().max())
        )
        seen.add(x0.shape[1])
    assert seen == {length_of(FRAMES, factor) for factor in (0.75, 0.9, 1.0, 1.1, 1.25)}
    assert torch.equal(source.batch(7)[0], batches_again(source).batch(7)[0])


def batches_again(source: WholeClip) -> WholeClip:
    clip = source.image[0, :, 0].T
    return WholeClip(clip, source.layout, source.normalizer, source.preset, source.seed)


def test_a_clip_too_short_to_be_resized_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the motion has 4 frames, too few to be resized by 0\.75"):
        batches(frames=4)


def interrupted_after(steps: int) -> Callable[[Trainer], torch.Tensor]:
    """`Trainer.advance`, with Ctrl-C in the step of that number."""
    advance = Trainer.advance

    def step(self: Trainer) -> torch.Tensor:
        if self.step + 1 == steps:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    return step


def test_a_run_of_the_recipe_resumes_to_the_same_losses(tmp_path: Path) -> None:
    clip = walker(legs=2, seconds=1.5)
    settings = {"preset": Preset("qna", {"latent_dim": 8, "head_dim": 4, "num_layers": 2}), "recipe": "published",
                "layout": "bvh_general", "representation": "quat", "progress": False}  # fmt: skip
    train(clip, tmp_path / "whole", steps=4, **settings)
    with pytest.raises(KeyboardInterrupt), patch.object(Trainer, "advance", interrupted_after(2)):
        train(clip, tmp_path / "parts", steps=4, **settings)
    train(clip, tmp_path / "parts", resume=True, progress=False)
    whole, parts = ((tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "parts"))
    assert [line.split(",")[:3] for line in whole] == [line.split(",")[:3] for line in parts]


def test_four_steps_are_the_published_ones_with_the_same_draws() -> None:
    torch.manual_seed(0)
    source = batches()
    theirs = PublishedQnANet(FEATURES, latent_dim=8, head_dim=4, num_layers=3)
    ours = SMALL.build(FEATURES).train()
    ours.load_state_dict(theirs.state_dict())
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    trainer = Trainer(
        network=ours, batches=source, schedule=SMALL.noise_schedule(), preset=SMALL, precision="float32", limit=60_000,
        by_time=False, device=torch.device("cpu"),
    )  # fmt: skip
    published = PublishedTraining(theirs, source.image[0, :, 0], PublishedDiffusion(cosine_betas(1000)))
    for step in range(4):
        x0, timesteps = source.batch(step)
        _, noise = q_sample(x0, timesteps, trainer.schedule, seed=source.seed, step=step, return_noise=True)
        torch.manual_seed(int(np.random.SeedSequence([source.seed, step]).generate_state(1)[0]))  # of drop_path
        expected = published.step(Draws(timesteps, x0.shape[1], noise.mT[:, None]))
        loss = trainer.advance()
        # Two sums of some ten thousand squares, behind a few layers.
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    # Wk_bias has no effect: its published gradient is rounding, ours None. skip_gate is never used.
    moved = {name: (theirs.state_dict()[name] - x, ours.state_dict()[name] - x) for name, x in before.items()}
    unused = {name for name, (there, here) in moved.items() if not here.any()}
    assert {name.split(".", 3)[-1] for name in unused} == {
        "qna_layer.Wk_bias", "skip_gate.1.weight", "skip_gate.1.bias",
    }  # fmt: skip
    there, here = (torch.cat([pair[i].flatten() for n, pair in moved.items() if n not in unused]) for i in (0, 1))
    # AdamW divides by the gradient's size: where that is rounding, so is the step.
    assert float((here - there).norm() / there.norm()) < 1e-3


def test_a_rate_does_not_go_with_a_layout_that_has_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walker(legs=2, seconds=1.5).write(tmp_path / "clip.bvh")
    command = ["train", str(tmp_path / "clip.bvh"), "--out", str(tmp_path / "run"), "--fps", "24", "--steps", "1"]
    assert main([*command, "--layout", "bvh_general"]) == 2
    assert "--fps does not go with --layout bvh_general" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*command, "--layout", "mixamo"]) == 2
