"""The published networks in plain PyTorch, bench.published, against figures that the published code gave."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance import filled
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # bench is not installed: it is run from the checkout

from bench.published import PublishedQnANet, PublishedUNet, give_rows  # noqa: E402
from bench.published_diffusion import (  # noqa: E402
    Draws,
    PublishedDiffusion,
    PublishedTraining,
    cosine_betas,
    in_betweening_mask,
    linear_betas,
)
from sinmdm.nn import QnANet, QnAUNet  # noqa: E402

FEATURES = 174
# Two implementations differ by this much an element; the figures are rounded to as many digits as they have.
APART = 6e-6


def motion(seed: int, frames: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(2, FEATURES, 1, frames)).float()


def assert_is(out: Tensor, total: float, magnitude: float, *parts: tuple[Tensor, str]) -> None:
    count = out.numel()
    assert abs(float(out.double().sum()) - total) < count * APART
    assert abs(float(out.double().abs().mean()) - magnitude) < APART + 5e-7
    for part, numbers in parts:
        np.testing.assert_allclose(part.numpy(), [float(x) for x in numbers.split()], rtol=0, atol=APART + 5e-6)


def qna(**options: object) -> nn.Module:
    return PublishedQnANet(FEATURES, **options)


def unet(**options: object) -> nn.Module:
    return PublishedUNet(FEATURES, **{"use_scale_shift_norm": True, **options})


# name: network, its parameters and tensors, frames; sum, mean magnitude, o[0, 0, 0, :4] and o[1, 100, 0, 4:8]
VECTORS = {
    "qna": (
        lambda: qna(), 5_112_206, 188, 10, -511.3296, 2.059837,
        "-3.31022 -4.08114 -2.85165 -3.42995", "-1.20323 -1.03002 -0.95703 -0.58416",
    ),
    "qna, kernel 7": (
        lambda: qna(kernel_size=7), 5_112_334, 188, 10, -530.9686, 2.063810,
        "-3.64106 -3.87642 -2.95487 -3.69335", "-0.99234 -1.08852 -0.68162 -0.69862",
    ),
    "qna, down-sampled": (
        lambda: qna(num_layers=2, num_downsample=1, drop_path=0.0), None, None, 11, -330.7932, 2.142273,
        "1.07585 0.07766 -0.88477 -1.60266", "-2.78560 -3.44591 -3.02371 -2.11636",
    ),
    "qna, query of the timestep, positions": (
        lambda: qna(num_layers=2, diffusion_query=True, use_global_pe=True), None, None, 10, -560.2324, 2.200266,
        "-3.20549 -2.62685 -2.40616 -2.28818", "-1.27792 -1.62672 -0.50840 -0.80709",
    ),
    "unet": (
        lambda: unet(), 5_262_546, 72, 11, -294.4783, 1.388522,
        "-1.53233 -4.11095 -5.35696 -1.96156", "2.36138 0.92646 -1.98385 0.82774",
    ),
    "unet, no scale and shift": (
        lambda: unet(use_scale_shift_norm=False), 4_475_346, 72, 11, 209.0622, 1.364076,
        "1.44659 -2.32031 -0.64986 -0.87806", "1.27415 -0.53079 2.19515 1.26623",
    ),
    "unet, full attention": (
        lambda: unet(use_qna=False), 5_459_118, 60, 11, -265.4459, 1.361478,
        "-0.87716 -3.86023 -4.53588 -1.75019", "3.03406 1.20034 -1.12234 1.54873",
    ),
    "unet, two levels": (
        lambda: unet(channel_mult="1,2"), 17_607_926, 142, 11, 249.4917, 1.361866,
        "-0.60783 -0.98487 0.23272 1.08135", "1.34314 0.32994 -1.00127 -1.27869",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_network_gives_the_published_figures(name: str) -> None:
    make, parameters, tensors, frames, total, magnitude, first, second = VECTORS[name]
    network = make()
    if parameters is not None:
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        assert len(network.state_dict()) == tensors
    with torch.no_grad():
        out = filled(network)(motion(0, frames), torch.tensor([3, 700]))
    assert out.shape == (2, FEATURES, 1, frames)
    assert_is(out, total, magnitude, (out[0, 0, 0, :4], first), (out[1, 100, 0, 4:8], second))


def test_parameter_counts_of_other_networks() -> None:
    def count(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    assert [count(PublishedQnANet(n)) for n in (263, 432, 116)] == [5_135_079, 5_178_512, 5_097_300]
    assert count(PublishedUNet(263, use_scale_shift_norm=True)) == 5_399_339
    assert count(unet(use_attention=False)) == 4_668_078


def test_motions_may_come_in_either_layout() -> None:
    network, x, t = filled(qna(num_layers=1)), motion(0, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(network(x.transpose(1, 2), t), network(x, t).transpose(1, 2))


# The sampler


@pytest.fixture(scope="module")
def sampled() -> nn.Module:
    return filled(qna(num_layers=2))


@pytest.mark.parametrize(
    ("mode", "total", "magnitude", "first"),
    [
        ("plain", -859.3716, 2.171134, "-2.22362 -2.30144 -2.02276 -2.19994"),
        ("in_betweening", -733.1176, 1.853838, "0.49603 -1.63949 -0.92162 -1.61847"),
        ("harmonization", -1025.0975, 2.160527, "-2.07121 -1.97288 -2.20080 -2.15828"),
    ],
)
def test_sampler_gives_the_published_figures(
    sampled: nn.Module, mode: str, total: float, magnitude: float, first: str
) -> None:
    shape, reference = (2, FEATURES, 1, 24), motion(1, 24)
    options = {
        "plain": {},
        "in_betweening": {"known": reference, "mask": in_betweening_mask(shape)},
        "harmonization": {"harmonized": reference, "range_t": 5},
    }[mode]
    torch.manual_seed(7)
    out = PublishedDiffusion(cosine_betas(20)).sample(sampled, shape, **options)
    assert_is(out, total, magnitude, (out[0, 0, 0, :4], first))


def test_mask_of_an_edit() -> None:
    expected = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, *[0] * 13, 0.1, 0.2, 0.3, 0.4, 0.5]
    np.testing.assert_allclose(in_betweening_mask((1, 2, 1, 24))[0, 1, 0], expected, atol=1e-7)


def test_schedule() -> None:
    diffusion = PublishedDiffusion(cosine_betas(1000))
    figures = {
        0: (1, 0, -10.734082532465),
        1: (0.52778140933449, 0.47221859042676, -10.734082532465),
        500: (0.004367866899527, 0.995356279455225, -5.761621845147),
        999: (0.001556891715470, 0.031622699874135, -0.001002926674673),
    }
    for t, expected in figures.items():
        found = [table[t] for table in (diffusion.of_x0, diffusion.of_x, diffusion.log_variance)]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(cosine_betas(1000)[[0, 500, 999]], [4.128422482196914e-05, 0.003155691441585, 0.999])
    np.testing.assert_allclose(linear_betas(1000)[[0, -1]], [1e-4, 0.02])


# Training


def trained(network: nn.Module, draws: list[Draws]) -> tuple[dict[str, Tensor], list[float]]:
    """A copy of the state after steps of these draws, and the losses."""
    clip = torch.sin(torch.arange(16 * 6.0).view(6, 16) / 7)
    training = PublishedTraining(network, clip, PublishedDiffusion(cosine_betas(10)), batch_size=2)
    losses = [float(training.step(each)) for each in draws]
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, losses


def small() -> PublishedQnANet:
    torch.manual_seed(0)
    return PublishedQnANet(6, latent_dim=8, head_dim=4, num_layers=2)


def test_training_step_with_given_draws() -> None:
    draws = [Draws(torch.tensor([3, 7]), frames, torch.randn(2, 1, 6, frames)) for frames in (12, 20)]
    rows = [torch.tensor(kept) for kept in ([1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0])]  # block 0 draws none
    runs = []
    for _ in range(2):
        network = small()
        give_rows(network, rows)
        runs.append((*trained(network, draws), network))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(tensor, runs[1][0][name]) for name, tensor in runs[0][0].items())
    before, after, network = small().state_dict(), runs[0][0], runs[0][2]
    untouched = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert {name.split(".", 3)[3] for name in untouched} == {"skip_gate.1.weight", "skip_gate.1.bias"}
    assert all(parameter.grad is None for name, parameter in network.named_parameters() if "skip_gate" in name)


@pytest.mark.parametrize("architecture", ["qna", "unet"])
def test_four_steps_of_ours_are_four_published_ones(architecture: str) -> None:
    torch.manual_seed(0)
    if architecture == "qna":
        theirs, ours = qna(num_layers=3, latent_dim=64), QnANet(FEATURES, num_layers=3, latent_dim=64)
    else:  # whose dropout is drawn in another order, as its channels lie elsewhere
        theirs = unet(num_channels=64, dropout=0.0)
        ours = QnAUNet(FEATURES, FEATURES, num_channels=64, dropout=0.0, use_scale_shift_norm=True)
    filled(theirs)
    ours.load_state_dict(theirs.state_dict())
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    lengths = (24, 32, 20, 28)
    draws = [Draws(torch.randint(1000, (4,)), frames, torch.randn(4, 1, FEATURES, frames)) for frames in lengths]
    losses: dict[str, list[float]] = {}
    for side, network in (("theirs", theirs), ("ours", ours)):
        clip = motion(1, 26)[0, :, 0]
        training = PublishedTraining(network, clip, PublishedDiffusion(cosine_betas(1000)), batch_size=4)
        losses[side] = []
        for number, each in enumerate(draws):
            torch.manual_seed(number)  # which branches are left out
            losses[side].append(float(training.step(each)))
    np.testing.assert_allclose(losses["ours"], losses["theirs"], rtol=1e-5)
    moved = {name: tensor - before[name] for name, tensor in theirs.state_dict().items() if "Wk_bias" not in name}
    moved_here = {name: ours.state_dict()[name] - before[name] for name in moved}
    whole, here = (torch.cat([x.flatten() for x in each.values()]) for each in (moved, moved_here))
    # AdamW divides by the gradient's size: where that is rounding, so is the step.
    assert float((here - whole).norm() / whole.norm()) < 1e-3
    assert {name for name, x in moved.items() if not x.any()} == {name for name, x in moved_here.items() if not x.any()}


def test_rows_that_are_given_are_those_that_a_seed_draws() -> None:
    x, t = torch.randn(4, 6, 1, 12), torch.zeros(4, dtype=torch.int64)
    network = small().train()
    torch.manual_seed(3)
    drawn = network(x, t)
    torch.manual_seed(3)
    give_rows(network, [torch.empty(4).bernoulli_(0.5) for _ in range(2)])
    assert torch.equal(network(x, t), drawn)
    give_rows(network, None)
    assert not torch.equal(network(x, t), drawn)


def test_training_draws_as_published() -> None:
    clip = torch.zeros(6, 30)
    training = PublishedTraining(small(), clip, PublishedDiffusion(cosine_betas(10)), batch_size=64)
    draws = [training.draw() for _ in range(40)]
    assert {each.frames for each in draws} <= {20, 24, 28, 32, 36}
    assert {int(t) for each in draws for t in each.timesteps} == set(range(10))
    assert all(each.noise.shape == (64, 1, 6, each.frames) for each in draws)
    assert np.isfinite(float(training.step()))


def test_checkpointing_of_the_unet_changes_no_gradient_without_dropout() -> None:
    x, t = torch.randn(2, 6, 1, 9), torch.tensor([1, 5])
    gradients = []
    for again in (False, True):
        network = filled(PublishedUNet(6, num_channels=32, dropout=0.0, use_checkpoint=again)).train()
        network(x, t).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(network.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
