"""accelerate: other people's attention on our ops, with the same parameters, hooks and names."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import naive_qna
from torch import Tensor, nn

import sinmdm
from sinmdm.nn import QnAAttention1d, QnANet, WindowMultiheadAttention, WindowTransformer


class PublishedLayer(nn.Module):
    """A layer with the attributes of the published one and its formula: exponentials, convolutions and a quotient."""

    def __init__(self, inputs: int = 6, width: int = 8, heads: int = 2, kernel_size: int = 3, timed: int = 0) -> None:
        super().__init__()
        self.heads, self.kernel_size, self.stride, self.normalize_q = heads, kernel_size, 1, True
        self.query = nn.Parameter(torch.randn(width))
        self.Wk = nn.Parameter(torch.randn(inputs, width))
        self.Wk_bias = nn.Parameter(torch.zeros(width))
        self.rpe = nn.Parameter(torch.randn(heads, 1, 1, kernel_size))
        self.to_v = nn.Conv2d(inputs, width, 1)
        self.to_out = nn.Conv2d(width, width, 1)
        self.timesteps_embed = nn.Sequential(nn.SiLU(), nn.Linear(timed, width)) if timed else None

    def forward(self, x: Tensor, timesteps: Tensor | None = None, global_pe: Tensor | None = None) -> Tensor:
        query = self.query if self.timesteps_embed is None or timesteps is None else self.timesteps_embed(timesteps)
        positions = None if global_pe is None else global_pe.squeeze(2)
        y = naive_qna(
            x.squeeze(2), query, self.Wk, self.Wk_bias, self.rpe, self.to_v(x).squeeze(2), positions,
            normalize=self.normalize_q,
        )  # fmt: skip
        return self.to_out(y.unsqueeze(2))


class BrokenLayer(PublishedLayer):
    """As the published one is in today's torch."""

    def forward(self, x: Tensor, timesteps: Tensor | None = None, global_pe: Tensor | None = None) -> Tensor:
        return super().forward(x, timesteps, global_pe).permute(0, 3, 2, 1).view(x.shape)


class Model(nn.Module):
    def __init__(self, make: Callable[[], nn.Module] = PublishedLayer) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 1), make()

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        return self.second(self.first(x), *others, **named).view(len(x), -1)


def _gradients(model: nn.Module, out: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


class TestLearnedQueries:
    @pytest.mark.parametrize("kernel_size", [1, 3, 7])
    @pytest.mark.parametrize("given", ["", "timesteps", "global_pe", "by name"])
    def test_compute_the_same_with_the_same_gradients(self, kernel_size: int, given: str) -> None:
        model = Model(lambda: PublishedLayer(kernel_size=kernel_size, timed=5)).train()
        x, tau, positions = torch.randn(2, 4, 1, 9), torch.randn(2, 5), torch.randn(1, 6, 1, 9)
        arguments = {"": (), "timesteps": (tau,), "global_pe": (None, positions)}.get(given, ())
        named = {"global_pe": positions, "timesteps": tau} if given == "by name" else {}
        expected = model(x, *arguments, **named)
        wanted = _gradients(model, expected)
        report = sinmdm.accelerate(model)
        assert report.replaced == {"second": "qna_attention"}
        assert report.left == {}
        found = model(x, *arguments, **named)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in _gradients(model, found).items():
            if gradient is None:  # the published bias of keys has one of rounding
                assert name in (
                    "second.Wk_bias",
                    "second.query",
                    "second.timesteps_embed.1.weight",
                    "second.timesteps_embed.1.bias",
                )
                assert wanted[name] is None or wanted[name].abs().max() < 1e-4
            else:
                torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-4, msg=name)

    def test_nothing_else_of_the_model_changes(self) -> None:
        model = Model().eval()
        layer, parameters, state = model.second, list(model.named_parameters()), list(model.state_dict())
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
        called = []
        handle = layer.register_forward_hook(lambda *_: called.append(1))
        generator = torch.get_rng_state()
        sinmdm.accelerate(model)
        assert torch.equal(torch.get_rng_state(), generator)
        assert called == []  # nor are hooks called for the comparison
        assert model.second is layer
        assert all(a is b for (_, a), (_, b) in zip(parameters, model.named_parameters(), strict=True))
        assert list(model.state_dict()) == state
        assert not layer.training
        before = layer.to_v.weight.detach().clone()
        model(torch.randn(2, 4, 1, 9)).sum().backward()
        optimiser.step()
        assert called == [1]
        assert not torch.equal(layer.to_v.weight, before)
        handle.remove()
        assert layer.Wk.grad is not None

    def test_twice_is_once(self) -> None:
        model = Model()
        sinmdm.accelerate(model)
        forward = model.second.forward
        report = sinmdm.accelerate(model)
        assert model.second.forward is forward
        assert (report.replaced, report.already, report.left) == ({}, ["second"], {})

    def test_copies_and_pickles_compute_with_their_own_weights(self) -> None:
        model = Model()
        sinmdm.accelerate(model)
        x = torch.randn(2, 4, 1, 9)
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)
            with torch.no_grad():
                other.second.to_out.weight.zero_()
                other.second.to_out.bias.zero_()
            assert not other(x).any()
            assert torch.equal(model(x), expected)

    def test_weights_may_be_replaced_later(self) -> None:
        model, other = Model(), Model()
        sinmdm.accelerate(model)
        x = torch.randn(2, 4, 1, 9)
        model.load_state_dict(other.state_dict(), assign=True)
        torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.double()(x.double()), other.double()(x.double()), rtol=1e-10, atol=1e-10)

    def test_a_layer_that_fails_today_works(self) -> None:
        model, working = Model(BrokenLayer), Model()
        working.load_state_dict(model.state_dict())
        x = torch.randn(2, 4, 1, 9)
        with pytest.raises(RuntimeError):
            model(x)
        report = sinmdm.accelerate(model)
        assert report.replaced == {"second": "qna_attention (not compared: its own forward fails or overflows)"}
        torch.testing.assert_close(model(x), working(x), rtol=1e-5, atol=1e-5)

    def test_scores_that_overflow_do_not(self) -> None:
        model = Model()
        with torch.no_grad():
            model.second.Wk.mul_(300)
        x = torch.randn(2, 4, 1, 9) * 5
        assert not model(x).isfinite().all()
        sinmdm.accelerate(model)
        assert model(x).isfinite().all()

    def test_the_layout_of_memory_is_that_of_the_input(self) -> None:
        layer = PublishedLayer()
        sinmdm.accelerate(layer)
        x = torch.randn(2, 6, 1, 9)
        assert layer(x).is_contiguous()
        assert layer(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)

    def test_compiles_in_one_graph(self) -> None:
        model = Model().eval()
        sinmdm.accelerate(model)
        x = torch.randn(2, 4, 1, 9)
        with torch.no_grad():
            compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda m: setattr(m, "stride", 2), "stride is 2, not 1"),
            (lambda m: setattr(m, "padding", (0, 2)), "padding is 2, not 1"),
            (lambda m: setattr(m, "kernel_size", 4), "kernel_size is 4, not 3"),
            (lambda m: setattr(m, "heads", 3), "heads is 3, not 2"),
            (
                lambda m: setattr(m, "query", nn.Parameter(torch.zeros(9))),
                "query has shape (9,), which 2 heads of a width up to 256 do not divide",
            ),
            (
                lambda m: setattr(m, "rpe", nn.Parameter(torch.zeros(2, 3))),
                "rpe has shape (2, 3), not (heads, 1, 1, k)",
            ),
            (
                lambda m: setattr(m, "rpe", nn.Parameter(torch.zeros(2, 1, 1, 4))),
                "it sees an even number of frames: 4",
            ),
            (lambda m: setattr(m, "Wk", nn.Parameter(torch.zeros(6, 4))), "Wk has shape (6, 4), not (6, 8)"),
            (lambda m: setattr(m, "Wk", nn.Parameter(torch.zeros(8))), "Wk has shape (8,), not ('in', 8)"),
            (lambda m: setattr(m, "to_v", nn.Conv2d(5, 8, 1)), "to_v.weight has shape (8, 5, 1, 1), not (8, 6, 1, 1)"),
            (
                lambda m: setattr(m, "to_out", nn.Conv2d(8, 8, (1, 3))),
                "to_out.weight has shape (8, 8, 1, 3), not ('out', 8, 1, 1)",
            ),
            (lambda m: m.to_v.register_forward_hook(print), "to_v has hooks, which would not be called"),
            (lambda m: m.to("meta"), "its weights are on the meta device"),
        ],
    )
    def test_what_looks_alike_but_is_not_is_left_and_said(self, change: Callable[[Any], Any], why: str) -> None:
        model = Model()
        change(model.second)
        report = sinmdm.accelerate(model)
        assert report.left == {"second": why}
        assert report.replaced == {}
        assert "forward" not in vars(model.second)
        assert str(report) == f"second: left as it is: {why}"

    def test_another_function_of_the_same_names_is_left(self) -> None:
        class Other(PublishedLayer):
            def forward(self, x: Tensor, *others: Any) -> Tensor:
                return 2 * super().forward(x)

        class Wider(PublishedLayer):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).repeat(1, 2, 1, 1)

        report = sinmdm.accelerate(nn.ModuleList([Other(), Wider()]))
        assert report.replaced == {}
        assert report.left["0"].startswith("its forward is another function: it differs by ")
        assert report.left["1"] == "its forward gives (2, 16, 1, 11), not (2, 8, 1, 11)"

    def test_our_own_layers_are_left_alone(self) -> None:
        with torch.device("meta"):
            network = QnANet(5, latent_dim=32, num_layers=2)
        report = sinmdm.accelerate(network)
        assert report.replaced == {}
        assert report.already == [n for n, m in network.named_modules() if isinstance(m, QnAAttention1d)]


class TestMultihead:
    def _encoder(self) -> nn.TransformerEncoder:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def _masked(self, model: nn.TransformerEncoder, x: Tensor, left: int, right: int) -> Tensor:
        offsets = torch.arange(x.shape[1]) - torch.arange(x.shape[1])[:, None]
        return model(x, mask=(offsets < -left) | (offsets > right))

    def test_see_a_window_with_the_same_weights(self) -> None:
        model, x = self._encoder(), torch.randn(2, 20, 8)
        expected = self._masked(model, x, 3, 1)
        wanted = _gradients(model, expected)
        parameters = dict(model.named_parameters())
        state = list(model.state_dict())
        report = sinmdm.accelerate(model, window=(3, 1))
        assert report.replaced == {f"layers.{i}.self_attn": "window_attention, window (3, 1)" for i in (0, 1)}
        found = model(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for name, gradient in _gradients(model, found).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
        assert all(parameters[name] is p for name, p in model.named_parameters())
        assert list(model.state_dict()) == state
        assert torch.equal(model.eval()(x), model.train()(x))
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)

    def test_by_name_and_only_those(self) -> None:
        model = self._encoder()
        report = sinmdm.accelerate(model, window={"layers.1.self_attn": 2})
        assert report.replaced == {"layers.1.self_attn": "window_attention, window (2, 2)"}
        assert type(model.layers[0].self_attn) is nn.MultiheadAttention
        assert isinstance(model.layers[1].self_attn, WindowMultiheadAttention)

    def test_without_a_window_none(self) -> None:
        model = self._encoder()
        assert str(sinmdm.accelerate(model)) == "no attention that is known here"
        assert type(model.layers[0].self_attn) is nn.MultiheadAttention

    def test_twice_is_once(self) -> None:
        model = self._encoder()
        sinmdm.accelerate(model, window=2)
        layer = model.layers[0].self_attn
        for window in (2, {"layers.0.self_attn": 2}):
            report = sinmdm.accelerate(model, window=window)
            assert report.replaced == {}
            assert "layers.0.self_attn" in report.already
        assert model.layers[0].self_attn is layer

    def test_hooks_modes_and_the_generator_stay(self) -> None:
        model = nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True).eval()])
        called = []
        handle = model[0].register_forward_hook(lambda *_: called.append(1))
        generator = torch.get_rng_state()
        sinmdm.accelerate(model, window=2)
        assert torch.equal(torch.get_rng_state(), generator)
        assert not model[0].training
        x = torch.randn(1, 5, 8)
        model[0](x, x, x)
        assert called == [1]
        handle.remove()
        model[0](x, x, x)
        assert called == [1]

    def test_a_shared_layer_stays_shared(self) -> None:
        shared = nn.MultiheadAttention(8, 2)
        model = nn.ModuleDict({"a": shared, "b": shared})
        sinmdm.accelerate(model, window=2)
        assert isinstance(model["a"], WindowMultiheadAttention)
        assert model["b"] is model["a"]

    def test_what_cannot_be_is_left_and_said(self) -> None:
        model = nn.ModuleList(
            [nn.MultiheadAttention(8, 2, kdim=4), nn.MultiheadAttention(8, 2, add_zero_attn=True), nn.Linear(2, 2)]
        )
        report = sinmdm.accelerate(model, window=2)
        assert report.left == {
            "0": "kdim must be embed_dim = 8 (self-attention only), got 4",
            "1": "add_zero_attn must be False: a window has no key outside the sequence",
        }
        alone = sinmdm.accelerate(nn.MultiheadAttention(8, 2), window=2)
        assert (
            str(alone)
            == "(the model): left as it is: it is the model itself, which nothing holds that could hold another"
        )

    @pytest.mark.parametrize(
        ("window", "message"),
        [
            (-1, "window must be an int >= 0 or a pair"),
            ({"0": (1, 2, 3)}, "window must be an int >= 0 or a pair"),
            ({"1": 2}, r"window is for the names of nn.MultiheadAttention layers \('0'\), got '1'"),
        ],
    )
    def test_a_window_that_is_wrong(self, window: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}"):
            sinmdm.accelerate(nn.ModuleList([nn.MultiheadAttention(8, 2)]), window=window)

    def test_our_own_layers_are_left_alone(self) -> None:
        report = sinmdm.accelerate(WindowTransformer(5, d_model=16, heads=2, layers=1, window=2), window=3)
        assert (report.replaced, report.left) == ({}, {})
