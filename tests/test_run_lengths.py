"""`Run.features` of motions of several lengths: each is the motion that it is by itself."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crowd_runs import STEPS, NotLocal, exact_run, trained_run
from local_model import InFloat64, LocalModel, random_transformer
from tolerance import assert_within_budget
from torch import Tensor, nn

from sinmdm.diffusion import sample
from sinmdm.motion import Clip, Results
from sinmdm.nn import QnANet, QnAUNet
from sinmdm.run import Run

LENGTHS = [9, 4, 9, 12, 4, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return exact_run(folder)


def _compare(run: Run, network: nn.Module, exact: Callable[..., Tensor], options: dict[str, Any]) -> None:
    """Motions of several lengths together are as near to those in float64 as each is that is sampled by itself."""
    together = torch.cat(list(dataclasses.replace(run, network=network).features(LENGTHS, len(LENGTHS), **options)))
    one_by_one, in_float64 = (
        torch.cat(
            [
                sample(model, (1, run.layout.size, length), run.schedule, first_sample=number, **options)[0].mT
                for number, length in enumerate(LENGTHS)
            ]
        )
        for model in (network, exact)
    )
    assert_within_budget("all frames", together, in_float64, one_by_one)


class TestLengths:
    @pytest.mark.parametrize("network", [LocalModel, NotLocal])
    @pytest.mark.parametrize("batch_size", [None, 1, 2, 4])
    def test_each_is_the_motion_it_is_by_itself(
        self, run: Run, network: Callable[[], nn.Module], batch_size: int | None
    ) -> None:
        run = dataclasses.replace(run, network=network())
        found = list(run.features(LENGTHS, len(LENGTHS), seed=5, batch_size=batch_size, **STEPS))
        assert [len(x) for x in found] == LENGTHS
        for number, (x, length) in enumerate(zip(found, LENGTHS, strict=True)):
            alone = list(run.features(length, number + 1, seed=5, batch_size=1, **STEPS))[number]
            assert torch.equal(x, alone)

    @pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
    def test_of_a_transformer_up_to_its_rounding(self, run: Run, sampler: str) -> None:
        network = random_transformer(run.layout.size)
        _compare(run, network, InFloat64(network), {"seed": 2, "sampler": sampler, "steps": 4})

    @pytest.mark.parametrize("kind", ["qna", "unet"])
    def test_of_the_published_networks_too(self, run: Run, kind: str) -> None:
        size = run.layout.size
        network: nn.Module = QnANet(size, latent_dim=32, num_layers=2)
        if kind == "unet":
            network = QnAUNet(size, size, num_channels=32, num_heads=1, attention_resolutions="1")
        network.eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
        double = copy.deepcopy(network).double()
        _compare(run, network, lambda x, timesteps: double(x.double(), timesteps).float(), {"seed": 1, **STEPS})

    def test_a_network_that_is_not_local_gets_those_of_one_length_together(self, run: Run) -> None:
        network = NotLocal()
        list(dataclasses.replace(run, network=network).features([9, 4, 9, 4, 9], 5, batch_size=2, steps=1))
        assert network.batches == [(2, 9), (1, 9), (2, 4)]

    def test_a_local_network_gets_them_in_order(self, run: Run) -> None:
        network = LocalModel(3)
        seen: list[tuple[int, int]] = []
        network.register_forward_pre_hook(lambda _, given: seen.append((given[0].shape[0], given[0].shape[2])))
        list(dataclasses.replace(run, network=network).features(LENGTHS, 6, batch_size=4, steps=1))
        assert seen == [(4, 12), (2, 4)]

    def test_steps_are_counted_over_all_batches(self, run: Run) -> None:
        seen: list[tuple[int, int]] = []
        run = dataclasses.replace(run, network=NotLocal())
        list(run.features([9, 4, 9], 3, on_step=lambda *done: seen.append(done), **STEPS))
        assert seen == [(done, 6) for done in range(1, 7)]

    def test_files_have_their_lengths(self, run: Run, tmp_path: Path) -> None:
        files = run.write_samples(tmp_path, [5, 3], 2, **STEPS)
        assert [len(Clip.read(path)) for path in files] == [5, 3]
        assert Results.read(tmp_path / "results.npz").lengths.tolist() == [5, 3]

    @pytest.mark.parametrize(
        ("frames", "n", "said"),
        [
            ([5, 0], 2, r"^frames\[1\] must be an int >= 1, got 0$"),
            ([5, 2.5], 2, r"^frames\[1\] must be an int >= 1, got 2\.5$"),
            ([5, 4], 3, r"^frames must be one length, or n = 3 of them, got 2$"),
            ([], 1, r"^frames must be one length, or n = 1 of them, got 0$"),
        ],
    )
    def test_refused(self, run: Run, frames: Any, n: int, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            run.features(frames, n)
