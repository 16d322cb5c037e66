"""WindowTransformer: shapes, locality, padding, gradients, and its arguments."""

import pytest
import torch
from tolerance import assert_same_formula
from torch import nn

from sinmdm.diffusion import Schedule, sample
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


class TestConditions:
    @pytest.mark.parametrize("lengths", [None, torch.tensor([12, 7, 1])], ids=["", "lengths"])
    def test_are_all_that_the_network_makes_of_a_timestep(self, lengths: torch.Tensor | None) -> None:
        for network in (_network(), _network().float()):
            x = torch.randn(3, 5, 12, dtype=network.input.weight.dtype)
            t = torch.tensor([0, 7, 7])
            conditions = network.conditions(t)
            assert conditions.shape == (3, 2, 6 * 16)
            assert conditions.dtype == x.dtype
            assert torch.equal(network(x, t, lengths), network(x, lengths=lengths, conditions=conditions))
            assert not torch.equal(network(x, t), network(x, conditions=conditions[[1, 0, 0]]))

    def test_one_row_is_every_motions(self) -> None:
        network = _network()
        x, t = torch.randn(3, 5, 12, dtype=torch.float64), torch.tensor([7])
        row = network.conditions(t)
        assert torch.equal(network(x, conditions=row), network(x, conditions=row.expand(3, -1, -1)))
        # One row of a matrix product and three of them may be summed in another order, in float64.
        torch.testing.assert_close(network(x, conditions=row), network(x, t.expand(3)), rtol=1e-12, atol=1e-12)

    def test_of_many_timesteps_at_once_are_those_of_each(self) -> None:
        network = _network()
        together = network.conditions(torch.arange(9))
        alone = torch.cat([network.conditions(torch.tensor([t])) for t in range(9)])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)

    def test_learn_too(self) -> None:
        network = _network()
        network(
            torch.randn(1, 5, 12, dtype=torch.float64), conditions=network.conditions(torch.tensor([1]))
        ).sum().backward()
        assert network.time[0].weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("options", [{}, {"timesteps": torch.tensor([1]), "conditions": torch.zeros(1, 2, 96)}])
    def test_either_these_or_timesteps(self, options: dict) -> None:
        with pytest.raises(ValueError, match=r"^give either timesteps or conditions$"):
            _network()(torch.zeros(1, 5, 12, dtype=torch.float64), **options)

    def test_a_compiled_network_samples_as_the_network_itself(self) -> None:
        """`backend="eager"` runs the same operations, products by another library. Its attributes are the network's:
        it is asked for its conditions and may be given pieces."""
        network = _network().float()
        compiled = torch.compile(network, backend="eager")
        asked = []
        network.conditions = lambda t, make=network.conditions: asked.append(len(t)) or make(t)  # type: ignore[method-assign]
        schedule, options = Schedule.cosine(10), {"seed": 3, "steps": 4, "sampler": "ddim"}
        expected = sample(network, (2, 5, 20), schedule, **options)
        longest = 64  # a sum of the MLP's second product
        assert_same_formula("samples", sample(compiled, (2, 5, 20), schedule, **options), expected, longest)
        assert asked == [4, 4]
        in_pieces = sample(network, (2, 5, 20), schedule, piece=15, **options)
        pieces = sample(compiled, (2, 5, 20), schedule, piece=15, **options)
        assert_same_formula("pieces", pieces, in_pieces, longest)
