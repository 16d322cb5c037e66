"""sample(): against a loop written out from the paper, independence of the batch, editing, bad arguments."""

import math

import pytest
import torch
from torch import Tensor

from sinmdm.diffusion import SAMPLERS, Schedule, sample
from sinmdm.kernels import philox_normal
from sinmdm.nn import WindowTransformer

SHAPE = (2, 3, 11)
INITIAL = 0xFFFFFFFF


def _model(x: Tensor, timesteps: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Some smooth function of x and t that mixes frames."""
    return torch.tanh(x + 0.3 * x.roll(1, -1)) * (1 - timesteps[:, None, None] / 50)


def _normals(seed: int, step: int, first: int = 0) -> Tensor:
    samples = torch.arange(first, first + SHAPE[0])
    return philox_normal((SHAPE[2], SHAPE[1]), seed=seed, step=step, sample=samples).mT


def _plain(schedule: Schedule, seed: int, dtype: torch.dtype) -> Tensor:
    """Algorithm 2 with the posterior's variance, written out from the betas."""
    alphas = 1 - schedule.betas
    alpha_bars = alphas.cumprod(0)
    x = _normals(seed, INITIAL).to(dtype)
    for t in reversed(range(len(schedule))):
        x0 = _model(x, torch.full((2,), t))
        before = alpha_bars[t - 1] if t else torch.tensor(1.0, dtype=torch.float64)
        c1 = schedule.betas[t] * before.sqrt() / (1 - alpha_bars[t])
        c2 = (1 - before) * alphas[t].sqrt() / (1 - alpha_bars[t])
        x = c1.to(dtype) * x0 + c2.to(dtype) * x
        if t:
            variance = schedule.betas[t] * (1 - before) / (1 - alpha_bars[t])
            x = x + variance.sqrt().to(dtype) * _normals(seed, t).to(dtype)
    return x


def _rounding(schedule: Schedule, seed: int) -> float:
    """Relative error of the plain loop in float32."""
    exact = _plain(schedule, seed, torch.float64)
    return float((_plain(schedule, seed, torch.float32) - exact).norm() / exact.norm())


def test_ddpm_is_algorithm_2_of_ho_et_al() -> None:
    """Against float64, with half as much again as the error of plain PyTorch in float32."""
    schedule = Schedule.cosine(20)
    x = _plain(schedule, 7, torch.float64)
    result = sample(_model, SHAPE, schedule, seed=7)
    assert result.dtype == torch.float32
    assert float((result - x).norm() / x.norm()) <= 1.5 * _rounding(schedule, 7) + 1e-7


def test_given_noise_is_used_in_place_of_the_seeds() -> None:
    schedule = Schedule.cosine(8)
    asked = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return _normals(3, step)

    assert torch.equal(sample(_model, SHAPE, schedule, noise=noise), sample(_model, SHAPE, schedule, seed=3))
    assert asked == [INITIAL, *range(7, 0, -1)]


def test_a_sample_is_the_same_in_any_batch_and_a_longer_one_starts_alike() -> None:
    """The network's matrix products may group rows differently, which is rounding and no more: 2e-5 is a hundred times
    what float32 keeps of numbers of about 1, for ten steps of a dozen products each."""
    schedule = Schedule.cosine(10)
    torch.manual_seed(1)
    network = WindowTransformer(3, d_model=16, heads=2, layers=1, window=2, dropout=0.0).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    together = sample(network, (5, 3, 40), schedule, seed=11)
    for index in range(5):
        alone = sample(network, (1, 3, 40), schedule, seed=11, first_sample=index)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=2e-5)
    assert not torch.allclose(together[0], together[1])
    # Frames further from the end than the receptive field times the steps do not know how long the motion is.
    longer = sample(network, (1, 3, 60), schedule, seed=11)
    torch.testing.assert_close(longer[0, :, :20], together[0, :, :20], rtol=0, atol=2e-5)


def test_fewer_steps_visit_evenly_from_the_last_timestep() -> None:
    visited = []

    def model(x: Tensor, timesteps: Tensor, lengths: Tensor | None = None) -> Tensor:
        visited.append(int(timesteps[0]))
        return torch.zeros_like(x)

    result = sample(model, SHAPE, Schedule.cosine(100), seed=0, steps=4)
    assert visited == [99, 74, 49, 24]
    assert torch.equal(result, torch.zeros(SHAPE))  # the last step gives the predicted x_0 itself


def test_the_known_part_is_met_exactly() -> None:
    known, mask = torch.randn(SHAPE), torch.zeros(1, 1, SHAPE[2])
    mask[..., :4] = 1
    result = sample(_model, SHAPE, Schedule.cosine(10), seed=0, known=known, mask=mask)
    assert torch.equal(result[..., :4], known[..., :4])
    assert not torch.allclose(result[..., 4:], known[..., 4:])


def test_the_callers_tensors_stay_as_they_are() -> None:
    cached = {step: _normals(3, step).mT.contiguous().mT for step in (INITIAL, *range(8))}
    kept = {step: drawn.clone() for step, drawn in cached.items()}
    first = sample(_model, SHAPE, Schedule.cosine(8), noise=cached.__getitem__)
    assert all(torch.equal(cached[step], kept[step]) for step in cached)
    assert torch.equal(sample(_model, SHAPE, Schedule.cosine(8), noise=cached.__getitem__), first)


def test_a_model_of_two_arguments_will_do_and_the_result_can_be_learnt_from() -> None:
    result = sample(lambda x, t: torch.tanh(x), SHAPE, Schedule.cosine(5), seed=0)
    weight = torch.ones(SHAPE, requires_grad=True)
    (weight * result).sum().backward()
    assert torch.equal(weight.grad, result)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_may_return_the_state_that_it_was_given(sampler: str) -> None:
    """The steps overwrite it, so the prediction and the state are one piece of memory."""
    own = sample(lambda x, t: x, SHAPE, Schedule.cosine(5), seed=0, sampler=sampler)
    copied = sample(lambda x, t: x.clone(), SHAPE, Schedule.cosine(5), seed=0, sampler=sampler)
    assert torch.equal(own, copied)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_sampled_of_no_motions(sampler: str) -> None:
    assert sample(_model, (0, 3, 5), Schedule.cosine(5), seed=0, sampler=sampler).shape == (0, 3, 5)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"sampler": "ddim"}, []), ({"sampler": "dpmpp_2m"}, []), ({"sampler": "ddim", "eta": 0.5}, [7, 4])],
)
def test_a_sampler_without_noise_asks_for_none_but_the_first(options: dict, steps: list[int]) -> None:
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return _normals(3, step)

    sample(_model, SHAPE, Schedule.cosine(8), steps=[7, 4, 2], noise=noise, **options)
    assert asked == [INITIAL, *steps]


def test_calls_back_after_each_step() -> None:
    seen = []
    sample(_model, SHAPE, Schedule.cosine(5), seed=0, on_step=seen.append)
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": None}, "seed or noise"),
        ({"seed": 0, "noise": lambda step: torch.zeros(SHAPE)}, "seed or noise"),
        ({"seed": 0, "sampler": "magic"}, "sampler"),
        ({"seed": 0, "steps": 0}, "steps"),
        ({"seed": 0, "steps": 11}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 2**64, "sampler": "ddim"}, "seed"),
        ({"seed": 0, "sampler": "dpmpp_2m", "eta": 0.0}, "eta"),
        ({"noise": lambda step: torch.zeros(1, 3, 11)}, "noise"),
        ({"seed": 0, "known": torch.zeros(SHAPE)}, "known and mask"),
        ({"seed": 0, "known": torch.zeros(1, 3, 11), "mask": torch.ones(1)}, "known"),
        ({"seed": 0, "known": torch.zeros(SHAPE), "mask": torch.ones(1, 3, 10)}, "mask"),
        ({"seed": 0, "known": torch.zeros(SHAPE), "mask": torch.full((1,), 1.5)}, "mask"),
    ],
)
def test_bad_arguments_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sample(_model, SHAPE, Schedule.cosine(10), **options)


def test_a_shape_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        sample(_model, (3, 4), Schedule.cosine(10), seed=0)  # type: ignore[arg-type]


def test_published_tables() -> None:
    """Check values of the published cosine schedule at T = 1000 (first, middle and last timestep)."""
    schedule = Schedule.cosine(1000)
    for t, beta, alpha_bar, c1, c2, log_variance in (
        (0, 4.128422482196914e-05, 0.999958715775178, 1, 0, -10.734082532465),
        (500, 0.003155691441585, 0.49228517244880, 0.004367866899527, 0.995356279455225, -5.761621845147),
        (999, 0.999, 2.42876690703e-09, 0.001556891715470, 0.031622699874135, -0.001002926674673),
    ):
        found = [
            schedule.betas[t],
            schedule.alpha_bars[t],
            schedule.posterior_mean_coef1[t],
            schedule.posterior_mean_coef2[t],
            schedule.posterior_log_variance[t],
        ]
        for value, published in zip(found, (beta, alpha_bar, c1, c2, log_variance), strict=True):
            assert math.isclose(value, published, rel_tol=1e-10, abs_tol=1e-14)


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        (5, {"seed": 0}, r"^shape must be \(batch, features, frames\), got 5$"),
        ((1, 3, 10.5), {"seed": 0}, "^frames must be an int >= 1, got 10.5$"),
        ((1, 3, 0), {"seed": 0}, "^frames must be an int >= 1, got 0$"),
        ((-1, 3, 5), {"seed": 0}, "^batch must be an int >= 0, got -1$"),
        ((1, 3, 5), {}, "^give either seed or noise, got neither$"),
        ((1, 3, 5), {"noise": torch.zeros(1, 3, 5)}, "^noise must be callable with a step, got Tensor$"),
        ((1, 3, 5), {"seed": 0, "first_sample": 2**32}, "^first_sample must be from 0 to .*, got 4294967296$"),
        ((1, 3, 5), {"seed": 0, "lengths": [5]}, r"^lengths must be an int32 or int64 tensor .*, got \[5\]$"),
        ((1, 3, 5), {"seed": 0, "lengths": torch.tensor([6])}, "^lengths must be from 0 to 5, got values from 6 to 6$"),
        ((1, 3, 5), {"seed": 0, "device": "meta"}, "^device 'meta' cannot be used here: it holds no numbers$"),
        ((1, 3, 5), {"seed": 0, "device": "gpu"}, "^device 'gpu' cannot be used here: "),
    ],
)
def test_what_is_refused_and_how(shape: object, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sample(_model, shape, Schedule.cosine(5), **options)  # type: ignore[arg-type]


def test_features_are_the_models() -> None:
    network = WindowTransformer(4, d_model=8, heads=1, layers=1, window=1).eval()
    with pytest.raises(ValueError, match=r"^features must be the model's 4, got 3$"):
        sample(network, (1, 3, 5), Schedule.cosine(5), seed=0)


def test_a_default_of_float64_changes_nothing() -> None:
    expected = sample(lambda x, t: torch.tanh(x), (1, 3, 5), Schedule.cosine(5), seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        again = sample(lambda x, t: torch.tanh(x), (1, 3, 5), Schedule.cosine(5), seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, expected)
