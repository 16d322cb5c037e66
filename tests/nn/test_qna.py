"""The learned-query layer and the published network on it: numbers, weights, locality, gradients, arguments."""

from typing import Any

import numpy as np
import pytest
import torch
from conformance import assert_vector, filled, motion, naive_qna
from torch import Tensor, nn
from torch.nn import functional as F

from sinmdm.diffusion import Schedule, sample, stream
from sinmdm.nn import QnAAttention1d, QnANet
from sinmdm.nn.qnanet import QnABlock, kept_rows

SHAPES = "x must have shape (batch, 5, frames), or (batch, a, b, frames) with a * b = 5"


def _randomised(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def _network(**options: Any) -> QnANet:
    settings = {"latent_dim": 16, "num_layers": 2, "head_dim": 4, "drop_path": 0.0} | options
    return _randomised(QnANet(5, **settings)).double().eval()  # type: ignore[return-value]


class TestPublishedNumbers:
    @pytest.mark.parametrize(
        ("options", "frames", "vector"),
        [
            (
                {},
                10,
                (
                    -511.3296,
                    2.059837,
                    [-3.31022, -4.08114, -2.85165, -3.42995],
                    [-1.20323, -1.03002, -0.95703, -0.58416],
                ),
            ),
            (
                {"kernel_size": 7},
                10,
                (
                    -530.9686,
                    2.063810,
                    [-3.64106, -3.87642, -2.95487, -3.69335],
                    [-0.99234, -1.08852, -0.68162, -0.69862],
                ),
            ),
            (
                {"num_layers": 2, "num_downsample": 1, "drop_path": 0},
                11,
                (-330.7932, 2.142273, [1.07585, 0.07766, -0.88477, -1.60266], [-2.78560, -3.44591, -3.02371, -2.11636]),
            ),
            (
                {"num_layers": 2, "diffusion_query": True, "use_global_pe": True},
                10,
                (
                    -560.2324,
                    2.200266,
                    [-3.20549, -2.62685, -2.40616, -2.28818],
                    [-1.27792, -1.62672, -0.50840, -0.80709],
                ),
            ),
        ],
        ids=["default", "kernel 7", "down-sampled", "diffusion query and positions"],
    )
    def test_outputs(self, options: dict, frames: int, vector: tuple) -> None:
        network = filled(QnANet(174, **options))
        x, t = motion(frames)
        with torch.no_grad():
            assert_vector(network(x, t), *vector)

    @pytest.mark.parametrize(
        ("features", "options", "count"),
        [
            (174, {}, 5_112_206),
            (174, {"kernel_size": 7}, 5_112_334),
            (263, {}, 5_135_079),
            (432, {}, 5_178_512),
            (116, {}, 5_097_300),
        ],
    )
    def test_number_of_parameters(self, features: int, options: dict, count: int) -> None:
        with torch.device("meta"):
            assert sum(p.numel() for p in QnANet(features, **options).parameters()) == count

    def test_names_and_shapes_in_order(self) -> None:
        with torch.device("meta"):
            network = QnANet(58, 3)
        expected: list[tuple[str, tuple[int, ...]]] = [
            ("time_embed.0.weight", (512, 128)), ("time_embed.0.bias", (512,)),
            ("time_embed.2.weight", (512, 512)), ("time_embed.2.bias", (512,)),
            ("input_proj.weight", (128, 174, 1, 1)), ("input_proj.bias", (128,)),
            ("output_proj.weight", (174, 128, 1, 1)), ("output_proj.bias", (174,)),
            ("output_norm.weight", (128,)), ("output_norm.bias", (128,)),
            ("output_shift_and_scale.cond_map.1.weight", (256, 512)),
            ("output_shift_and_scale.cond_map.1.bias", (256,)),
        ]  # fmt: skip
        for j in range(8):
            expected += [(f"hierarchy_blocks.h0.{j}.{name}", shape) for name, shape in _block(128, 128)]
        _assert_state(network, expected)
        assert len(expected) == 188

    def test_names_and_shapes_of_levels_and_options(self) -> None:
        with torch.device("meta"):
            network = QnANet(6, latent_dim=16, num_layers=2, num_downsample=1, drop_path=0, head_dim=8, kernel_size=5)
        names = dict(network.named_parameters())
        for prefix, inputs, width in (("h0.0", 16, 16), ("h0.1", 48, 16), ("h1.0", 32, 32), ("h1.1", 32, 32)):
            prefix = f"hierarchy_blocks.{prefix}."
            expected = _block(inputs, width, embedding=64, head_dim=8, kernel_size=5)
            found = [
                (name.removeprefix(prefix), tuple(p.shape)) for name, p in names.items() if name.startswith(prefix)
            ]
            assert found == expected
        assert list(names)[-2:] == ["hierarchy_downsample.h0.op.weight", "hierarchy_downsample.h0.op.bias"]
        assert names["hierarchy_downsample.h0.op.weight"].shape == (32, 16, 1, 2)
        with torch.device("meta"):
            network = QnANet(6, use_global_pe=True, diffusion_query=True)
        names = dict(network.named_parameters())
        assert next(iter(names)) == "global_pe"
        assert names["global_pe"].shape == (1, 128, 1, 392)
        inside = [name for name in names if name.startswith("hierarchy_blocks.h0.3.qna_layer.")]
        assert [name.split("qna_layer.")[1] for name in inside][-2:] == [
            "timesteps_embed.1.weight",
            "timesteps_embed.1.bias",
        ]
        assert names[inside[-2]].shape == (128, 512)

    def test_how_weights_start(self) -> None:
        layer = QnAAttention1d(64, 256, 16, 3)
        assert layer.query.std().item() == pytest.approx(0.25, rel=0.2)
        assert layer.Wk.std().item() == pytest.approx(0.25, rel=0.05)
        assert not layer.Wk_bias.any()
        assert not layer.rpe.any()
        assert not QnANet(5, use_global_pe=True).global_pe.any()


def _block(
    inputs: int, width: int, *, embedding: int = 512, head_dim: int = 32, kernel_size: int = 3
) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a block's weights, as specs §3.1."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("norm1.weight", (inputs,)), ("norm1.bias", (inputs,)),
        ("shiftscale1.cond_map.1.weight", (2 * inputs, embedding)), ("shiftscale1.cond_map.1.bias", (2 * inputs,)),
        ("qna_layer.query", (width,)), ("qna_layer.Wk", (inputs, width)), ("qna_layer.Wk_bias", (width,)),
        ("qna_layer.rpe", (width // head_dim, 1, 1, kernel_size)),
        ("qna_layer.to_v.weight", (width, inputs, 1, 1)), ("qna_layer.to_v.bias", (width,)),
        ("qna_layer.to_out.weight", (width, width, 1, 1)), ("qna_layer.to_out.bias", (width,)),
    ]  # fmt: skip
    if inputs != width:
        shapes += [("skip_process.weight", (width, inputs, 1, 1)), ("skip_process.bias", (width,))]
    return [
        *shapes,
        ("norm2.weight", (width,)), ("norm2.bias", (width,)),
        ("shiftscale2.cond_map.1.weight", (2 * width, embedding)), ("shiftscale2.cond_map.1.bias", (2 * width,)),
        ("mlp_layer.conv1.weight", (4 * width, width, 1, 1)), ("mlp_layer.conv1.bias", (4 * width,)),
        ("mlp_layer.conv2.weight", (width, 4 * width, 1, 1)), ("mlp_layer.conv2.bias", (width,)),
        ("skip_gate.1.weight", (2 * width, embedding)), ("skip_gate.1.bias", (2 * width,)),
    ]  # fmt: skip


def _assert_state(network: nn.Module, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    """Names and shapes in order, of the state dict and of the parameters, which an optimiser's state goes by."""
    assert [(name, tuple(x.shape)) for name, x in network.state_dict().items()] == expected
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in expected]


LAYERS = [
    {},
    {"kernel_size": 7},
    {"kernel_size": 4},
    {"kernel_size": 5, "padding": 0},
    {"kernel_size": 5, "padding": 3},
    {"kernel_size": 3, "padding": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 1},
    {"output_features": 6},
    {"normalize_q": False},
    {"use_relative_pos": False},
    {"use_bias": False},
    {"timesteps_features": 9},
]


def _naive(layer: QnAAttention1d, x: Tensor, tau: Tensor | None, positions: Tensor | None) -> Tensor:
    query = layer.query
    if layer.timesteps_embed is not None and tau is not None:
        query = F.linear(F.silu(tau), layer.timesteps_embed[1].weight, layer.timesteps_embed[1].bias)
    rpe = layer.rpe if layer.rpe is not None else x.new_zeros(layer.heads, 1, 1, layer.kernel_size)
    values = torch.conv1d(x, layer.to_v.weight[..., 0], layer.to_v.bias)
    attended = naive_qna(
        x, query, layer.Wk, layer.Wk_bias, rpe, values, positions, stride=layer.stride, padding=layer.padding,
        normalize=layer.normalize_q,
    )  # fmt: skip
    return torch.conv1d(attended, layer.to_out.weight[..., 0], layer.to_out.bias)


class TestLayer:
    @pytest.mark.parametrize("options", LAYERS, ids=str)
    @pytest.mark.parametrize("given", ["", "timesteps", "global_pe"])
    def test_is_the_published_formula_with_its_gradients(self, options: dict, given: str) -> None:
        layer = _randomised(QnAAttention1d(6, 8, 2, **{"kernel_size": 3} | options)).double()
        x = torch.randn(3, 6, 10, dtype=torch.float64, requires_grad=True)
        tau = torch.randn(3, 9, dtype=torch.float64, requires_grad=True) if given == "timesteps" else None
        positions = torch.randn(1, 6, 10, dtype=torch.float64, requires_grad=True) if given == "global_pe" else None
        found, expected = layer(x, tau, positions), _naive(layer, x, tau, positions)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        weight = torch.randn_like(found)
        inputs = [y for y in (x, tau, positions) if y is not None]
        named = [(name, p) for name, p in layer.named_parameters() if name != "Wk_bias"]
        wanted = [*inputs, *(p for _, p in named)]
        ours = torch.autograd.grad((found * weight).sum(), wanted, allow_unused=True)
        theirs = torch.autograd.grad((expected * weight).sum(), wanted, allow_unused=True)
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    def test_four_dimensions_are_three(self) -> None:
        layer = QnAAttention1d(6, 8, 2, 3, timesteps_features=4)
        x, tau, g = torch.randn(2, 6, 9), torch.randn(2, 4), torch.randn(2, 6, 9)
        four = layer(x.unsqueeze(2), tau, g.unsqueeze(2))
        assert four.shape == (2, 8, 1, 9)
        assert torch.equal(four.squeeze(2), layer(x, tau, g))

    def test_a_layer_without_timesteps_ignores_them_and_one_with_does_without(self) -> None:
        x, tau = torch.randn(2, 6, 9), torch.randn(2, 4)
        plain = QnAAttention1d(6, 8, 2, 3)
        assert torch.equal(plain(x, tau), plain(x))
        timed = QnAAttention1d(6, 8, 2, 3, timesteps_features=4)
        timed.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(timed(x), plain(x))
        assert not torch.allclose(timed(x, tau), plain(x))

    def test_large_scores_stay_finite(self) -> None:
        """Where the published exponentials overflow."""
        layer = QnAAttention1d(64, 64, 2, 3)
        with torch.no_grad():
            layer.Wk.mul_(300)
        x = torch.randn(2, 64, 40, requires_grad=True)
        assert not _naive(layer, x, None, None).isfinite().all()
        out = layer(x)
        out.sum().backward()
        assert out.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        torch.testing.assert_close(out, _naive(layer.double(), x.double(), None, None).float(), rtol=1e-3, atol=1e-3)

    def test_the_biases_of_keys_has_no_gradient(self) -> None:
        layer = QnAAttention1d(6, 8, 2, 3)
        layer(torch.randn(1, 6, 5)).sum().backward()
        assert [name for name, p in layer.named_parameters() if p.grad is None] == ["Wk_bias"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": 3}, "hidden_features must be a multiple of heads, at most 256 times it, got 8 and 3"),
            ({"heads": 0}, "heads must be an int >= 1, got 0"),
            (
                {"hidden_features": 514},
                "hidden_features must be a multiple of heads, at most 256 times it, got 514 and 2",
            ),
            ({"kernel_size": 0}, "kernel_size must be an int >= 1, got 0"),
            ({"stride": 0}, "stride must be an int >= 1, got 0"),
            ({"padding": 3}, "padding must be less than kernel_size = 3, got 3"),
            ({"padding": -1}, "padding must be an int >= 0, got -1"),
            ({"axial_dim": 0}, "axial_dim must be 1 (frames are the last axis), got 0"),
        ],
    )
    def test_arguments_are_refused_by_name(self, options: dict, message: str) -> None:
        given = {"in_features": 6, "hidden_features": 8, "heads": 2, "kernel_size": 3} | options
        with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
            QnAAttention1d(**given)
        assert str(refused.value) == message

    @pytest.mark.parametrize("shape", [(2, 6), (2, 5, 9), (2, 6, 2, 9), (2, 6, 1, 1, 9)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"^x must have shape \(batch, 6, frames\)"):
            QnAAttention1d(6, 8, 2, 3)(torch.zeros(shape))

    def test_too_few_frames_are_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"^x must have 5 frames or more for kernel_size = 5 and padding = 0, got 4$"
        ):
            QnAAttention1d(6, 8, 2, 5, padding=0)(torch.zeros(2, 6, 4))


class TestLocality:
    @pytest.mark.parametrize(
        ("options", "field"), [({}, 2), ({"kernel_size": 5, "num_layers": 3}, 6), ({"kernel_size": 1}, 0)]
    )
    def test_a_frame_reaches_exactly_the_receptive_field(self, options: dict, field: int) -> None:
        network = _network(**options)
        assert network.receptive_field == field
        x, t = torch.randn(1, 5, 40, dtype=torch.float64), torch.tensor([5])
        other = x.clone()
        other[0, :, 20] += 1
        changed = (network(x, t) != network(other, t)).any(1)[0]
        assert changed.nonzero().flatten().tolist() == list(range(20 - field, 20 + field + 1))

    def test_a_motion_in_pieces_and_as_a_stream(self) -> None:
        network = _network().float()
        options: dict[str, Any] = {"seed": 3, "sampler": "ddim", "steps": 4}
        whole = sample(network, (2, 5, 40), Schedule.cosine(10), **options)
        in_pieces = sample(network, (2, 5, 40), Schedule.cosine(10), piece=7, **options)
        torch.testing.assert_close(in_pieces, whole, rtol=1e-4, atol=1e-4)
        first = next(stream(network, 5, Schedule.cosine(10), batch=2, chunk=16, **options))
        torch.testing.assert_close(first, whole[..., :16], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"num_downsample": 1}, "its 1 levels of down-sampling depend on where a motion begins and ends"),
            ({"use_global_pe": True}, "its keys have absolute positions (use_global_pe)"),
        ],
    )
    def test_networks_that_are_not_local_say_why(self, options: dict, reason: str) -> None:
        network = _network(**options).float()
        assert network.receptive_field is None
        for make in (
            lambda: stream(network, 5, Schedule.cosine(10), seed=0),
            lambda: sample(network, (1, 5, 40), Schedule.cosine(10), seed=0, piece=7),
        ):
            with pytest.raises(ValueError, match="model must be local") as refused:
                make()
            assert str(refused.value).endswith(f"got QnANet: {reason}")
        assert sample(network, (1, 5, 12), Schedule.cosine(10), seed=0, steps=2).isfinite().all()


class TestLengths:
    @pytest.mark.parametrize("options", [{}, {"diffusion_query": True}, {"use_global_pe": True}], ids=str)
    def test_padding_has_no_effect_on_the_frames_before_it(self, options: dict) -> None:
        network = _network(**options)
        x = torch.randn(3, 5, 12, dtype=torch.float64)
        padded = F.pad(x, (0, 6), value=torch.nan)
        padded[1, :, 7:] = torch.nan
        t, lengths = torch.tensor([5, 6, 7]), torch.tensor([12, 7, 12])
        found = network(padded, t, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = network(x[i : i + 1, :, :length], t[i : i + 1])
            torch.testing.assert_close(found[i : i + 1, :, :length], alone, rtol=1e-12, atol=1e-12)

    def test_are_refused_by_name_where_there_is_no_meaning(self) -> None:
        x, t, lengths = torch.zeros(2, 5, 400, dtype=torch.float64), torch.tensor([1, 2]), torch.tensor([3, 4])
        with pytest.raises(ValueError, match=r"^lengths must be None with num_downsample = 1$"):
            _network(num_downsample=1)(x, t, lengths)
        with pytest.raises(ValueError, match=r"^lengths must be None beyond 392 frames with use_global_pe"):
            _network(use_global_pe=True)(x, t, lengths)


def test_positions_are_the_first_ones_or_all_of_them_stretched() -> None:
    network = _network(use_global_pe=True)
    pe = network.global_pe
    assert torch.equal(network._positions(30, None), pe[0, :, 0, :30].T[None])
    stretched = network._positions(500, None)
    assert stretched.shape == (1, 500, 16)
    expected = F.interpolate(pe[:, :, 0], size=500, mode="linear").transpose(1, 2)
    torch.testing.assert_close(stretched, expected)


@pytest.mark.parametrize("frames", [2, 3, 4, 7, 8])
def test_levels_take_every_number_of_frames(frames: int) -> None:
    x = torch.randn(2, 5, frames, dtype=torch.float64)
    assert _network(num_downsample=1)(x, torch.tensor([3, 4])).shape == x.shape


class TestInput:
    def test_the_published_layout_is_the_same_numbers(self) -> None:
        network = _network()
        x, t = torch.randn(2, 5, 9, dtype=torch.float64), torch.tensor([3, 4])
        expected = network(x, t)
        for layout in ((2, 1, 5, 9), (2, 5, 1, 9)):
            found = network(x.reshape(layout), t)
            assert found.shape == layout
            assert torch.equal(found.reshape(x.shape), expected)

    def test_views_are_taken(self) -> None:
        network = _network()
        x, t = torch.randn(2, 9, 5, dtype=torch.float64), torch.tensor([3, 4])
        assert torch.equal(network(x.transpose(1, 2), t), network(x.transpose(1, 2).contiguous(), t))

    def test_an_empty_batch(self) -> None:
        network = _network()
        for mode in (True, False):
            out = network.train(mode)(torch.zeros(0, 5, 9, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
            assert out.shape == (0, 5, 9)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ({"x": torch.zeros(2, 4, 9)}, f"{SHAPES}, got (2, 4, 9)"),
            ({"x": torch.zeros(2, 5)}, f"{SHAPES}, got (2, 5)"),
            ({"timesteps": torch.tensor([1])}, "timesteps must have shape (batch,) = (2,), got (1,)"),
            ({"timesteps": None}, "give either timesteps or conditions"),
            ({"conditions": torch.zeros(1, 3)}, "give either timesteps or conditions"),
            (
                {"timesteps": None, "conditions": torch.zeros(3, 3)},
                "conditions must have 2 rows or 1, got shape (3, 3)",
            ),
        ],
    )
    def test_others_are_refused(self, call: dict, message: str) -> None:
        with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
            _network().float()(**{"x": torch.zeros(2, 5, 9), "timesteps": torch.tensor([1, 2])} | call)
        assert str(refused.value) == message

    def test_too_few_frames_for_the_levels(self) -> None:
        with pytest.raises(ValueError, match=r"^x must have 4 frames or more with num_downsample = 2, got 3$"):
            _network(num_downsample=2)(torch.zeros(1, 5, 3, dtype=torch.float64), torch.tensor([1]))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"head_dim": 24}, "head_dim must divide latent_dim = 128 and be at most 256, got 24"),
            ({"latent_dim": 512, "head_dim": 512}, "head_dim must divide latent_dim = 512 and be at most 256, got 512"),
            ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
            ({"num_layers": 0}, "num_layers must be an int >= 1, got 0"),
            ({"num_downsample": -1}, "num_downsample must be an int >= 0, got -1"),
            ({"num_downsample": 1}, "drop_path must be 0 with num_downsample = 1, got 0.5"),
            (
                {"num_downsample": 1, "drop_path": 0.0, "num_layers": 3},
                "num_layers must be even with num_downsample = 1, got 3",
            ),
            (
                {"num_downsample": 1, "drop_path": 0.0, "use_global_pe": True},
                "use_global_pe must be False with num_downsample = 1, got True",
            ),
            ({"drop_path": 1.0}, "drop_path must be in [0, 1), got 1.0"),
            ({"nfeats": 0}, "nfeats must be an int >= 1, got 0"),
        ],
    )
    def test_arguments_are_refused_by_name(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
            QnANet(5, **options)
        assert str(refused.value) == message

    def test_published_arguments_without_effect_are_ignored_and_others_are_not(self) -> None:
        with torch.device("meta"):
            QnANet(5, dropout=0.1, num_heads=4, cond_mask_prob=0.0)
        with pytest.raises(TypeError, match=r"^unexpected argument 'kernel'$"):
            QnANet(5, kernel=3)


class TestConditions:
    @pytest.mark.parametrize(
        "options", [{}, {"diffusion_query": True}, {"num_downsample": 1, "diffusion_query": True}], ids=str
    )
    def test_are_all_that_the_network_makes_of_a_timestep(self, options: dict) -> None:
        network = _network(**options)
        x, t = torch.randn(3, 5, 12, dtype=torch.float64), torch.tensor([0, 7, 7])
        conditions = network.conditions(t)
        assert torch.equal(network(x, t), network(x, conditions=conditions))
        assert not torch.equal(network(x, t), network(x, conditions=conditions[[1, 0, 0]]))
        row = network.conditions(torch.tensor([7]))
        torch.testing.assert_close(
            network(x, conditions=row), network(x, torch.tensor([7] * 3)), rtol=1e-12, atol=1e-12
        )

    def test_queries_of_the_timestep_are_each_motions_own(self) -> None:
        network = _network(diffusion_query=True)
        x, t = torch.randn(3, 5, 12, dtype=torch.float64), torch.tensor([0, 7, 90])
        together = network(x, t)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], network(x[i : i + 1], t[i : i + 1]), rtol=1e-12, atol=1e-12)
        network(x, t).square().sum().backward()
        silent = {name.split(".", 3)[-1] for name, p in network.named_parameters() if p.grad is None}
        assert silent == {"qna_layer.query", "qna_layer.Wk_bias", "skip_gate.1.weight", "skip_gate.1.bias"}

    def test_a_sampler_makes_them_once(self) -> None:
        network, asked = _network().float(), []
        network.conditions = lambda t, make=network.conditions: asked.append(len(t)) or make(t)  # type: ignore[method-assign]
        sample(network, (2, 5, 20), Schedule.cosine(10), seed=0, steps=4)
        assert asked == [4]

    @pytest.mark.parametrize(
        ("edited", "total", "mean", "first"),
        [
            (False, -859.3716, 2.171134, [-2.22362, -2.30144, -2.02276, -2.19994]),
            (True, -733.1176, 1.853838, [0.49603, -1.63949, -0.92162, -1.61847]),
        ],
        ids=["plain", "in-betweening"],
    )
    def test_the_published_sampler_draws_its_motions(
        self, edited: bool, total: float, mean: float, first: list[float]
    ) -> None:
        """specs §8.2. What randn_like draws depends on the order of memory, which in the published code is that of its
        network's results after the first step."""
        network, shape = filled(QnANet(174, num_layers=2)), (2, 174, 24)
        ramps = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5]
        known = torch.from_numpy(np.random.RandomState(1).randn(*shape)).float()
        edit = {"known": known, "mask": torch.tensor([*ramps[0], *[0.0] * 13, *ramps[1]])} if edited else {}

        def noise(step: int) -> Tensor:
            return torch.randn(shape) if step >= 19 else torch.randn_like(torch.empty(2, 24, 174).transpose(1, 2))

        torch.manual_seed(7)
        out = sample(network, shape, Schedule.cosine(20), noise=noise, **edit)
        assert out.sum().item() == pytest.approx(total, abs=5e-3)
        assert out.abs().mean().item() == pytest.approx(mean, rel=2e-5)
        torch.testing.assert_close(out[0, 0, :4], torch.tensor(first), rtol=2e-5, atol=2e-5)

    def test_an_odd_width_has_a_zero_in_its_embedding(self) -> None:
        network = _network(latent_dim=9, head_dim=3)
        assert network(torch.randn(1, 5, 4, dtype=torch.float64), torch.tensor([3])).isfinite().all()


class TestStochasticDepth:
    def test_draws_what_torchvision_draws(self) -> None:
        """StochasticDepth("row") of a batch of images: one bernoulli_ of shape (B, 1, 1, 1) in float32."""
        for p in (0.1, 0.5, 0.9):
            torch.manual_seed(11)
            mask = torch.empty(64, 1, 1, 1).bernoulli_(1 - p)
            after = torch.rand(3)
            torch.manual_seed(11)
            rows = kept_rows(64, p)
            assert torch.equal(rows, mask.flatten().nonzero().flatten())
            assert torch.equal(torch.rand(3), after)

    @pytest.mark.parametrize("options", [{}, {"diffusion_query": True, "use_global_pe": True}], ids=str)
    @pytest.mark.parametrize("seed", range(4))
    def test_is_every_row_times_the_mask(self, options: dict, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        network = _network(num_layers=3, drop_path=0.6, **options).train()
        x, t = torch.randn(4, 5, 9, dtype=torch.float64), torch.tensor([1, 2, 3, 4])

        def run() -> tuple[Tensor, dict[str, Tensor | None]]:
            network.zero_grad()
            torch.manual_seed(seed)
            out = network(x, t)
            (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
            return out, {name: p.grad for name, p in network.named_parameters()}

        def masked(self: QnABlock, onto: Tensor, branch: Any, x: Tensor, *others: Tensor | None) -> Tensor:
            out = branch(x, *others, residual=None)
            if self.drop_path == 0:
                return onto + out
            keep = 1 - self.drop_path
            noise = torch.empty(len(x), 1, 1, 1).bernoulli_(keep).div_(keep)
            return onto + out * noise[:, 0].to(out.dtype)

        found, gradients = run()
        monkeypatch.setattr(QnABlock, "_added", masked)
        expected, wanted = run()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # the published scale is float32's
        for name, gradient in wanted.items():
            ours = gradients[name]
            assert (ours is None) == (gradient is None), name
            if ours is not None and gradient is not None:
                torch.testing.assert_close(ours, gradient, rtol=1e-6, atol=1e-6, msg=name)

    def test_where_no_motion_keeps_a_branch_its_gradients_are_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network = _network(drop_path=0.5).train()
        monkeypatch.setattr("sinmdm.nn.qnanet.kept_rows", lambda batch, p: torch.empty(0, dtype=torch.int64))
        network(torch.randn(2, 5, 9, dtype=torch.float64), torch.tensor([1, 2])).sum().backward()
        last = network.hierarchy_blocks["h0"][1]
        for part in (last.qna_layer.to_v, last.qna_layer.to_out, last.mlp_layer, last.norm1, last.shiftscale1):
            for parameter in part.parameters():
                assert parameter.grad is not None
                assert not parameter.grad.any()

    def test_grows_over_the_blocks_and_is_of_training_only(self) -> None:
        network = _network(num_layers=5, drop_path=0.4)
        assert [block.drop_path for block in network._blocks()] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        x, t = torch.randn(8, 5, 9, dtype=torch.float64), torch.arange(8)
        assert torch.equal(network(x, t), network(x, t))
        network.train()
        assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize("options", [{}, {"diffusion_query": True}, {"num_downsample": 1}], ids=str)
def test_compiles_in_one_graph(options: dict) -> None:
    network = _network(**options).float()
    x, t = torch.randn(2, 5, 12), torch.tensor([1, 9])
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, t), network(x, t), rtol=1e-5, atol=1e-6)


def test_bfloat16_by_autocast() -> None:
    network = QnANet(5, latent_dim=32, num_layers=2, head_dim=8).train()
    x, t = torch.randn(4, 5, 12), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, t)
        out.float().square().mean().backward()
    used = [p.grad for name, p in network.named_parameters() if "skip_gate" not in name and "Wk_bias" not in name]
    assert all(
        gradient is not None and gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in used
    )
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = network(x, t)
    with torch.no_grad():
        torch.testing.assert_close(low.float(), network(x, t), rtol=0.1, atol=0.05)
