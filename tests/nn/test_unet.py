"""The published U-Net: numbers, weights, lengths, checkpointing, arguments; its layers on channels that come last."""

from typing import Any

import pytest
import torch
from conformance import assert_vector, filled, motion
from torch import Tensor, nn
from torch.nn import functional as F

from sinmdm.diffusion import Schedule, sample, stream
from sinmdm.nn import QnAUNet
from sinmdm.nn.products import conv3
from sinmdm.nn.unet import FullAttentionBlock, Layers, ResBlock, doubled, halved

README = {"use_scale_shift_norm": True}


def _network(**options: Any) -> QnAUNet:
    # Of 32 channels, each would be a group of its own, whose norm takes away what the timestep adds.
    network = QnAUNet(5, 5, **{"num_channels": 64, "dropout": 0.0} | options).double().eval()
    for parameter in network.parameters():  # some convolutions start at zero, which would hide what is before them
        nn.init.normal_(parameter, std=0.1)
    return network


class TestPublishedNumbers:
    @pytest.mark.parametrize(
        ("options", "vector"),
        [
            (
                README,
                (-294.4783, 1.388522, [-1.53233, -4.11095, -5.35696, -1.96156], [2.36138, 0.92646, -1.98385, 0.82774]),
            ),
            (
                {},
                (209.0622, 1.364076, [1.44659, -2.32031, -0.64986, -0.87806], [1.27415, -0.53079, 2.19515, 1.26623]),
            ),
            (
                {**README, "use_qna": False},
                (-265.4459, 1.361478, [-0.87716, -3.86023, -4.53588, -1.75019], [3.03406, 1.20034, -1.12234, 1.54873]),
            ),
            (
                {**README, "channel_mult": "1,2"},
                (249.4917, 1.361866, [-0.60783, -0.98487, 0.23272, 1.08135], [1.34314, 0.32994, -1.00127, -1.27869]),
            ),
        ],
        ids=["readme", "no scale and shift", "full attention", "two levels"],
    )
    def test_outputs(self, options: dict, vector: tuple) -> None:
        network = filled(QnAUNet(174, 174, **options))
        x, t = motion(11)
        with torch.no_grad():
            assert_vector(network(x, t), *vector)

    @pytest.mark.parametrize(
        ("features", "options", "count", "tensors"),
        [
            (174, README, 5_262_546, 72),
            (174, {}, 4_475_346, 72),
            (174, {**README, "use_attention": False}, 4_668_078, 42),
            (174, {**README, "use_qna": False}, 5_459_118, 60),
            (174, {**README, "channel_mult": "1,2"}, 17_607_926, 142),
            (263, README, 5_399_339, 72),
            (174, {**README, "conv_1d": False}, 8_549_586, 72),
        ],
    )
    def test_number_of_parameters(self, features: int, options: dict, count: int, tensors: int) -> None:
        with torch.device("meta"):
            state = QnAUNet(features, features, **options).state_dict()
        assert sum(x.numel() for x in state.values()) == count
        assert len(state) == tensors

    @pytest.mark.parametrize("conv_1d", [True, False])
    def test_names_and_shapes_in_order(self, conv_1d: bool) -> None:
        with torch.device("meta"):
            network = QnAUNet(174, 174, kernel_size=7, conv_1d=conv_1d, **README)
        three = (3,) if conv_1d else (3, 3)
        expected: list[tuple[str, tuple[int, ...]]] = [
            ("time_embed.0.weight", (1024, 256)), ("time_embed.0.bias", (1024,)),
            ("time_embed.2.weight", (1024, 1024)), ("time_embed.2.bias", (1024,)),
            ("input_blocks.0.0.weight", (256, 174, *three)), ("input_blocks.0.0.bias", (256,)),
        ]  # fmt: skip
        # On the way up, QnA sees 3 frames whatever kernel_size is, as published.
        for prefix, inputs, kernel in (
            ("input_blocks.1", 256, 7),
            ("output_blocks.0", 256, 3),
            ("output_blocks.1", 512, 3),
        ):
            expected += [(f"{prefix}.{name}", shape) for name, shape in _level(inputs, 256, kernel, three)]
        expected += [
            ("out.0.weight", (256,)), ("out.0.bias", (256,)),
            ("out.2.weight", (174, 256, *three)), ("out.2.bias", (174,)),
        ]  # fmt: skip
        assert [(name, tuple(x.shape)) for name, x in network.state_dict().items()] == expected
        assert [name for name, _ in network.named_parameters()] == [name for name, _ in expected]

    @pytest.mark.parametrize(
        ("options", "down", "up"),
        [
            ({}, "input_blocks.2.0.op.weight", "output_blocks.1.2.conv.weight"),
            ({"use_attention": False}, "input_blocks.2.0.op.weight", "output_blocks.1.1.conv.weight"),
            ({"resblock_updown": True}, "input_blocks.2.0.in_layers.2.weight", "output_blocks.1.2.in_layers.2.weight"),
        ],
    )
    def test_where_frames_are_halved_and_doubled(self, options: dict, down: str, up: str) -> None:
        with torch.device("meta"):
            state = QnAUNet(6, 6, num_channels=32, channel_mult="1,2", **options).state_dict()
        assert state[down].shape == (32, 32, 3)
        assert state[up].shape == (64, 64, 3)

    def test_attention_is_at_its_levels(self) -> None:
        def levels(**options: Any) -> list[str]:
            with torch.device("meta"):
                state = QnAUNet(6, 6, num_channels=32, channel_mult="1,1,1", **options).state_dict()
            return [name.removesuffix(".attention.query") for name in state if name.endswith("attention.query")]

        assert levels() == ["input_blocks.1.1", "input_blocks.3.1", *(f"output_blocks.{i}.1" for i in (2, 3, 4, 5))]
        assert levels(attention_resolutions="16") == ["input_blocks.5.1", "output_blocks.0.1", "output_blocks.1.1"]
        assert len(levels(num_res_blocks=2, attention_resolutions="64")) == 2 + 3

    def test_number_of_heads(self) -> None:
        def heads(**options: Any) -> list[int]:
            with torch.device("meta"):
                state = QnAUNet(6, 6, num_channels=64, **options).state_dict()
            return [len(x) for name, x in state.items() if name.endswith("rpe")]

        assert heads() == [4, 4, 4]
        assert heads(num_heads=2, num_heads_upsample=8) == [2, 8, 8]
        assert heads(num_head_channels=32) == [2, 2, 2]

    def test_widths_by_image_size(self) -> None:
        with torch.device("meta"):
            state = QnAUNet(6, 6, image_size=512, num_channels=64, channel_mult="", num_heads=1).state_dict()
        assert state["input_blocks.0.0.weight"].shape == (32, 6, 3)
        assert state["input_blocks.13.0.out_layers.3.weight"].shape == (256, 256, 3)

    def test_some_convolutions_start_at_zero(self) -> None:
        network = QnAUNet(6, 6, num_channels=32, use_qna=False)
        zero = {name for name, p in network.named_parameters() if p.dim() > 1 and not p.any()}
        assert {name.split(".", 2)[-1] for name in zero} == {"0.out_layers.3.weight", "1.proj_out.weight", "weight"}
        assert "out.2.weight" in zero


def _level(inputs: int, width: int, kernel: int, three: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a ResBlock and its QnA, 4 heads wide, as specs §3.2."""
    one = (1,) * len(three)
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("0.in_layers.0.weight", (inputs,)), ("0.in_layers.0.bias", (inputs,)),
        ("0.in_layers.2.weight", (width, inputs, *three)), ("0.in_layers.2.bias", (width,)),
        ("0.emb_layers.1.weight", (2 * width, 1024)), ("0.emb_layers.1.bias", (2 * width,)),
        ("0.out_layers.0.weight", (width,)), ("0.out_layers.0.bias", (width,)),
        ("0.out_layers.3.weight", (width, width, *three)), ("0.out_layers.3.bias", (width,)),
    ]  # fmt: skip
    if inputs != width:
        shapes += [("0.skip_connection.weight", (width, inputs, *one)), ("0.skip_connection.bias", (width,))]
    return [
        *shapes,
        ("1.norm.weight", (width,)), ("1.norm.bias", (width,)),
        ("1.attention.query", (width,)), ("1.attention.Wk", (width, width)), ("1.attention.Wk_bias", (width,)),
        ("1.attention.rpe", (4, 1, 1, kernel)),
        ("1.attention.to_v.weight", (width, width, 1, 1)), ("1.attention.to_v.bias", (width,)),
        ("1.attention.to_out.weight", (width, width, 1, 1)), ("1.attention.to_out.bias", (width,)),
    ]  # fmt: skip


class TestParts:
    @pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("dims", [1, 2])
    def test_conv3_is_torchs_convolution(self, dims: int, stride: int, mode: str) -> None:
        make = nn.Conv1d if dims == 1 else nn.Conv2d
        layer = make(5, 7, 3, stride=stride, padding=1, padding_mode=mode).double()
        x = torch.randn(2, *(4, 9)[-dims:], 5, dtype=torch.float64, requires_grad=True)
        found = conv3(x, layer.weight, layer.bias, stride=stride, padding_mode=mode)
        expected = layer(x.movedim(-1, 1)).movedim(1, -1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert found.is_contiguous()
        wanted, weight = (x, layer.weight, layer.bias), torch.randn_like(found)
        ours, theirs = (torch.autograd.grad((y * weight).sum(), wanted) for y in (found, expected))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("dims", [1, 2])
    @pytest.mark.parametrize("resample", [None, doubled, halved])
    @pytest.mark.parametrize("scale_shift", [False, True])
    @pytest.mark.parametrize("outputs", [32, 64])
    def test_a_res_block_is_the_plain_formula(self, dims: int, resample: Any, scale_shift: bool, outputs: int) -> None:
        block = ResBlock(
            32, outputs, 8, Layers(dims, "zeros"), dropout=0.0, scale_shift=scale_shift, resample=resample
        ).double()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, *(4, 6)[-dims:], 32, dtype=torch.float64)
        embedded = torch.randn(2, 8, dtype=torch.float64)
        conv = F.conv1d if dims == 1 else F.conv2d
        pool = F.avg_pool1d if dims == 1 else F.avg_pool2d

        def resampled(y: Tensor) -> Tensor:
            if resample is None:
                return y
            return pool(y, 2) if resample is halved else F.interpolate(y, scale_factor=2, mode="nearest")

        def normalised(y: Tensor, norm: nn.Module) -> Tensor:
            return F.group_norm(y, 32, norm.weight, norm.bias, 1e-5)

        first, last = block.in_layers[2], block.out_layers[3]
        y = x.movedim(-1, 1)
        h = conv(resampled(F.silu(normalised(y, block.in_layers[0]))), first.weight, first.bias, padding=1)
        e = block.projection(embedded).reshape(2, -1, *[1] * dims)
        if scale_shift:
            h = normalised(h, block.out_layers[0]) * (1 + e[:, :outputs]) + e[:, outputs:]
        else:
            h = normalised(h + e, block.out_layers[0])
        h = conv(F.silu(h), last.weight, last.bias, padding=1)
        y = resampled(y)
        if outputs != 32:
            y = conv(y, block.skip_connection.weight, block.skip_connection.bias)
        found = block(x, block.projection(embedded))
        torch.testing.assert_close(found, (y + h).movedim(1, -1), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("split_first", [False, True])
    def test_the_two_orders_of_full_attention(self, split_first: bool) -> None:
        block = FullAttentionBlock(32, 4, split_first).double()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, 9, 32, dtype=torch.float64)
        qkv = block.qkv(block.norm(x))
        heads = []
        for h in range(4):
            at = [h * 8, 32 + h * 8, 64 + h * 8] if split_first else [h * 24, h * 24 + 8, h * 24 + 16]
            q, k, v = (qkv[..., i : i + 8] for i in at)
            heads.append(((q @ k.transpose(1, 2)) / 8**0.5).softmax(-1) @ v)
        expected = x + block.proj_out(torch.cat(heads, -1))
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)


OPTIONS = [
    {},
    {"use_scale_shift_norm": True, "channel_mult": "1,2", "num_res_blocks": 2},
    {"channel_mult": "1,1", "resblock_updown": True, "padding_mode": "replicate"},
    {"channel_mult": "1,1", "conv_1d": False},
    {"channel_mult": "1,1", "conv_1d": False, "use_qna": False, "resblock_updown": True},
    {"padding_mode": "circular", "use_qna": False, "use_new_attention_order": True},
    {"use_attention": False},
]


class TestNetwork:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("frames", [1, 2, 7])
    def test_maps_a_motion_to_its_own_shape_with_its_end_padded(self, options: dict, frames: int) -> None:
        network = _network(**options)
        x, t = torch.randn(2, 5, frames, dtype=torch.float64), torch.tensor([3, 400])
        out = network(x, t)
        assert out.shape == x.shape
        padded = F.pad(x, (0, -frames % 2**network.levels))
        torch.testing.assert_close(out, network(padded, t)[..., :frames], rtol=1e-12, atol=1e-12)
        four = network(x[:, None], t)
        assert four.shape == (2, 1, 5, frames)
        assert torch.equal(four[:, 0], out)

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_conditions_are_all_that_it_makes_of_a_timestep_and_every_weight_learns(self, options: dict) -> None:
        network = _network(**options)
        x, t = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([3, 400])
        out, conditions = network(x, t), network.conditions(t)
        assert torch.equal(out, network(x, conditions=conditions))
        assert not torch.allclose(out, network(x, conditions=conditions.flip(0)))
        row = network.conditions(t[:1])
        torch.testing.assert_close(network(x, conditions=row), network(x, t[:1].expand(2)), rtol=1e-12, atol=1e-12)
        out.square().sum().backward()
        silent = {
            name.rsplit(".", 1)[-1] for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
        }
        assert silent <= {"Wk_bias"}

    def test_dropout_acts_in_training_only(self) -> None:
        network = _network(dropout=0.5)
        x, t = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([3, 400])
        assert torch.equal(network(x, t), network(x, t))
        network.train()
        assert not torch.equal(network(x, t), network(x, t))

    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_checkpointing_changes_nothing(self, dropout: float) -> None:
        """The published checkpoints draw another dropout when they compute again: gradients of another function."""
        network = _network(dropout=dropout, channel_mult="1,1").train()
        x, t = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True), torch.tensor([3, 400])
        results = []
        for use in (False, True):
            network.use_checkpoint = use
            torch.manual_seed(3)
            out = network(x, t)
            used = [p for name, p in network.named_parameters() if "Wk_bias" not in name]
            results.append((out, *torch.autograd.grad(out.square().sum(), [x, *used])))
        for plain, checkpointed in zip(*results, strict=True):
            torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-12)

    def test_it_says_why_it_cannot_be_in_pieces(self) -> None:
        network = _network().float()
        for make in (
            lambda: stream(network, 5, Schedule.cosine(10), seed=0),
            lambda: sample(network, (1, 5, 40), Schedule.cosine(10), seed=0, piece=7),
        ):
            with pytest.raises(ValueError, match="model must be local") as refused:
                make()
            assert str(refused.value).endswith("got QnAUNet: its group norms take their statistics over all frames")
        assert sample(network, (1, 5, 41), Schedule.cosine(10), seed=0, steps=2).shape == (1, 5, 41)

    def test_lengths_are_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"^lengths must be None: its group norms take their statistics over all frames$"
        ):
            _network()(torch.zeros(1, 5, 8, dtype=torch.float64), torch.tensor([1]), torch.tensor([4]))

    def test_bfloat16_by_autocast(self) -> None:
        network = QnAUNet(5, 5, num_channels=32, **README).train()
        with torch.autocast("cpu", torch.bfloat16):
            out = network(torch.randn(2, 5, 9), torch.tensor([3, 400]))
            out.float().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())

    @pytest.mark.parametrize("options", [README, {"conv_1d": False, "channel_mult": "1,1"}], ids=str)
    def test_compiles_in_one_graph(self, options: dict) -> None:
        network = _network(**options).float()
        x, t = torch.randn(2, 5, 9), torch.tensor([3, 400])
        with torch.no_grad():
            compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x, t), network(x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 6}, "out_channels must be in_channels = 5, got 6"),
        (
            {"num_channels": 100},
            "num_channels times each of channel_mult must be a multiple of 32, got 100 and '1'",
        ),
        (
            {"channel_mult": "1,0.5", "num_channels": 32},
            "num_channels times each of channel_mult must be a multiple of 32, got 32 and '1,0.5'",
        ),
        (
            {"channel_mult": "1;2"},
            "channel_mult must be numbers above 0 with commas between, such as \"1,2\", got '1;2'",
        ),
        (
            {"channel_mult": "", "image_size": 32},
            'image_size must be one of 64, 128, 256, 512 with channel_mult "", got 32',
        ),
        (
            {"attention_resolutions": "0"},
            "attention_resolutions must be numbers above 0 with commas between, such as \"1,2\", got '0'",
        ),
        ({"num_heads": 3}, "num_heads must divide 256 channels, got 3"),
        ({"num_heads_upsample": 3}, "num_heads_upsample must divide 256 channels, got 3"),
        ({"num_heads": 0}, "num_heads must be an int >= 1, got 0"),
        ({"num_head_channels": 24}, "num_head_channels must divide 256 channels, got 24"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"padding": 0}, "padding must be 1, got 0"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of zeros, reflect, replicate, circular, got 'mirror'"),
        ({"dropout": 1.5}, "dropout must be in [0, 1], got 1.5"),
        ({"num_res_blocks": 0}, "num_res_blocks must be an int >= 1, got 0"),
    ],
)
def test_arguments_are_refused_by_name(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        QnAUNet(**{"in_channels": 5, "out_channels": 5} | options)
    assert str(refused.value) == message


def test_published_arguments_without_effect_are_ignored_and_others_are_not() -> None:
    with torch.device("meta"):
        QnAUNet(5, 5, class_cond=False, learn_sigma=False, drop_path=0.5)
    with pytest.raises(TypeError, match=r"^unexpected argument 'channels'$"):
        QnAUNet(5, 5, channels=3)
