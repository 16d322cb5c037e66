"""WindowTransformer: shapes, locality, padding, gradients, and its arguments."""

import pytest
import torch
from torch import nn

from sinmdm.nn import WindowTransformer


def _network(**options) -> WindowTransformer:
    settings = {"d_model": 16, "heads": 2, "layers": 2, "window": 3, "mlp_ratio": 2, "dropout": 0.0} | options
    network = WindowTransformer(5, **settings).double().eval()
    for parameter in network.parameters():  # the gates start at zero, which would hide everything behind them
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("frames", [1, 2, 7, 130])
def test_maps_a_motion_to_its_own_shape(frames: int) -> None:
    x = torch.randn(3, 5, frames, dtype=torch.float64)
    assert _network()(x, torch.tensor([0, 10, 99])).shape == x.shape


def test_starts_at_zero_so_that_the_first_prediction_is_the_mean() -> None:
    network = WindowTransformer(5, d_model=16, heads=2, layers=1, window=2)
    assert torch.equal(network(torch.randn(2, 5, 9), torch.tensor([1, 2])), torch.zeros(2, 5, 9))


def test_a_frame_reaches_exactly_the_receptive_field() -> None:
    network = _network()
    x = torch.randn(1, 5, 40, dtype=torch.float64)
    other = x.clone()
    other[0, :, 20] += 1
    t = torch.tensor([5])
    changed = (network(x, t) - network(other, t)).abs().amax(1)[0] > 0
    assert network.receptive_field == 6
    assert changed.nonzero().flatten().tolist() == list(range(14, 27))


def test_what_it_does_is_the_same_everywhere() -> None:
    network = _network()
    x = torch.randn(1, 5, 60, dtype=torch.float64)
    t = torch.tensor([5])
    shifted = network(x[:, :, 10:], t)
    torch.testing.assert_close(network(x, t)[:, :, 16:], shifted[:, :, 6:], rtol=1e-12, atol=1e-12)


def test_padding_has_no_effect_on_the_frames_before_it() -> None:
    network = _network()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    padded = torch.cat([x, torch.randn(2, 5, 6, dtype=torch.float64)], -1)
    t, lengths = torch.tensor([5, 6]), torch.tensor([12, 12])
    torch.testing.assert_close(network(padded, t, lengths)[..., :12], network(x, t), rtol=1e-12, atol=1e-12)


def test_the_timestep_matters_and_every_parameter_learns() -> None:
    network = _network()
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    first, second = network(x, torch.tensor([1])), network(x, torch.tensor([2]))
    assert not torch.allclose(first, second)
    first.square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_dropout_acts_in_training_only() -> None:
    network = _network(dropout=0.5)
    x, t = torch.randn(1, 5, 12, dtype=torch.float64), torch.tensor([3])
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"d_model": 15}, "d_model"),
        ({"d_model": 18, "heads": 4}, "multiple of heads"),
        ({"layers": 0}, "layers"),
        ({"window": -1}, "window"),
    ],
)
def test_bad_arguments_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WindowTransformer(5, **({"d_model": 16, "heads": 2} | options))
