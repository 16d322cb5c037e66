"""The attention layers: against nn.MultiheadAttention and against their own definition, weights, padding, dropout."""

import copy
import math

import pytest
import torch
from tolerance import assert_same_formula
from torch import Tensor, nn

from sinmdm.kernels import window_attention
from sinmdm.nn import WindowAttention, WindowMultiheadAttention

WIDTH, HEADS, FRAMES, BATCH = 12, 3, 9, 2
TERMS = BATCH * FRAMES + FRAMES + 3 * WIDTH  # a bias column's sum over the batch, a window's, a projection's


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def randomised(module: nn.Module) -> nn.Module:
    """The module in float64 with every weight drawn anew, as some start at zero."""
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def right_padding(lengths: list[int]) -> Tensor:
    """(B, T) bool, True for padding."""
    return torch.arange(FRAMES) >= torch.tensor(lengths)[:, None]


def assert_same(first: Tensor, second: Tensor, inputs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Two outputs are equal, and so are their gradients in each pair of inputs."""
    weight = torch.randn_like(second)
    assert_same_formula("out", first, second, TERMS)
    ours = torch.autograd.grad((first * weight).sum(), [pair[0] for pair in inputs.values()])
    theirs = torch.autograd.grad((second * weight).sum(), [pair[1] for pair in inputs.values()])
    for name, x, y in zip(inputs, ours, theirs, strict=True):
        assert_same_formula(f"gradient of {name}", x, y, TERMS)


# ---- WindowAttention


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_window_attention_is_the_op_between_projections(boundary: str, kv_heads: int | None) -> None:
    layer = randomised(WindowAttention(WIDTH, HEADS, (2, 1), kv_heads=kv_heads, boundary=boundary))
    x, lengths = randn(BATCH, FRAMES, WIDTH), torch.tensor([9, 5])
    shared = kv_heads or HEADS
    width = WIDTH // HEADS
    parts = layer.qkv.weight.split([WIDTH, shared * width, shared * width])
    biases = layer.qkv.bias.split([WIDTH, shared * width, shared * width])
    q, k, v = ((x @ w.T + b).unflatten(-1, (-1, width)) for w, b in zip(parts, biases, strict=True))
    attended = window_attention(q, k, v, layer.rel_bias, window=(2, 1), boundary=boundary, lengths=lengths)
    expected = attended.flatten(2) @ layer.out.weight.T + layer.out.bias
    parameters = {name: (p, p) for name, p in layer.named_parameters()}
    assert_same(layer(x, lengths), expected, {"x": (x, x), **parameters})


def test_window_attention_options() -> None:
    layer = WindowAttention(WIDTH, HEADS, 2, bias=False, rel_bias=False, dtype=torch.float64)
    assert list(layer.state_dict()) == ["qkv.weight", "out.weight"]
    assert layer(randn(BATCH, FRAMES, WIDTH)).shape == (BATCH, FRAMES, WIDTH)
    layer = WindowAttention(WIDTH, HEADS, (3, 1), boundary="shift")
    assert sorted(layer.state_dict()) == ["out.bias", "out.weight", "qkv.bias", "qkv.weight", "rel_bias"]
    assert layer.rel_bias.shape == (HEADS, 9)
    assert not layer.rel_bias.any()
    assert "window=(3, 1)" in repr(layer)


def test_padding_gives_the_projections_bias_and_reaches_nothing() -> None:
    layer = randomised(WindowAttention(WIDTH, HEADS, 3))
    x = randn(BATCH, FRAMES, WIDTH).detach()
    lengths = torch.tensor([9, 4])
    poisoned = x.masked_fill(right_padding([9, 4])[..., None], torch.nan)
    out = layer(poisoned, lengths)
    assert_same_formula("real frames", out[1, :4], layer(x[1:, :4])[0], TERMS)
    assert torch.equal(out[1, 4:], layer.out.bias.expand(5, WIDTH))


LAYERS = {
    "WindowAttention": lambda p: WindowAttention(WIDTH, HEADS, 3, dropout=p),
    "WindowMultiheadAttention": lambda p: WindowMultiheadAttention(WIDTH, HEADS, p, batch_first=True, window=3),
}


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x)[0] if hasattr(layer, "in_proj_weight") else layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_is_drawn_in_training_only_and_follows_torchs_seed(name: str) -> None:
    layer, x = LAYERS[name](0.5), torch.randn(BATCH, FRAMES, WIDTH)
    torch.manual_seed(5)
    first, second = apply(layer, x), apply(layer, x)
    torch.manual_seed(5)
    assert torch.equal(apply(layer, x), first)
    assert torch.equal(apply(layer, x), second)
    assert not torch.equal(first, second)
    without = LAYERS[name](0.0)
    without.load_state_dict(layer.state_dict())
    before = torch.get_rng_state()
    assert torch.equal(apply(layer.eval(), x), apply(without, x))
    assert torch.equal(torch.get_rng_state(), before), "a seed was drawn without dropout"


def test_dropout_is_of_the_weights_and_keeps_their_mean() -> None:
    # Values of one and an identity behind: out is the sum of a query's weights, 1 on average. K equal weights, kept
    # with probability 1 - p and scaled by its inverse: variance p / (1 - p) / K; five standard deviations of the mean.
    p, frames, batch = 0.4, 64, 50
    layer = WindowAttention(HEADS, HEADS, 2, boundary="circular", dropout=p)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    layer.qkv.bias.data[2 * HEADS :] = 1
    nn.init.eye_(layer.out.weight)
    out = layer(torch.zeros(batch, frames, HEADS)).detach()
    assert bool((out != 1).any())
    sigma = math.sqrt(p / (1 - p) / 5 / out.numel())
    assert abs(float(out.mean()) - 1) < 5 * sigma


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_compiles_as_one_graph(name: str, dropout: float) -> None:
    torch._dynamo.reset()
    layer, x = LAYERS[name](dropout).double(), randn(BATCH, FRAMES, WIDTH)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    first, second = apply(compiled, x), apply(compiled, x)
    assert torch.equal(first, second) == (dropout == 0)
    if dropout == 0:
        assert_same(first, apply(layer, x), {n: (p, p) for n, p in layer.named_parameters()})
    else:
        first.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_trains_under_autocast(name: str) -> None:
    layer, x = LAYERS[name](0.1), torch.randn(BATCH, FRAMES, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = apply(layer, x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_is_copied_and_moved_as_any_module(name: str) -> None:
    layer, x = LAYERS[name](0.0), torch.randn(BATCH, FRAMES, WIDTH)
    assert torch.equal(apply(copy.deepcopy(layer), x), apply(layer, x))
    assert apply(layer.to(torch.bfloat16), x.bfloat16()).dtype == torch.bfloat16
    assert apply(layer.to("meta"), x.bfloat16().to("meta")).shape == x.shape


# ---- WindowMultiheadAttention


def multihead(**options) -> nn.MultiheadAttention:
    return randomised(nn.MultiheadAttention(WIDTH, HEADS, **options))


def pairs(ours: nn.Module, theirs: nn.Module, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return {"x": (x, y), **{n: (ours.get_parameter(n), p) for n, p in theirs.named_parameters()}}


@pytest.mark.parametrize("window", [FRAMES - 1, (40, 9)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_window_over_everything_is_multihead_attention(batch_first: bool, bias: bool, window) -> None:
    theirs = multihead(batch_first=batch_first, bias=bias)
    ours = WindowMultiheadAttention.from_multihead(theirs, window)
    x = randn(BATCH, FRAMES, WIDTH) if batch_first else randn(FRAMES, BATCH, WIDTH)
    y = x.detach().clone().requires_grad_()
    out, weights = ours(x, x, x)
    assert weights is None
    assert_same(out, theirs(y, y, y, need_weights=False)[0], pairs(ours, theirs, x, y))


def test_a_window_is_multihead_attention_under_a_band_mask() -> None:
    theirs = multihead(batch_first=True)
    ours = WindowMultiheadAttention.from_multihead(theirs, (3, 1))
    nn.init.normal_(ours.rel_bias)
    x = randn(BATCH, FRAMES, WIDTH)
    y = x.detach().clone().requires_grad_()
    column = torch.arange(FRAMES) - torch.arange(FRAMES)[:, None] + 3
    band = ours.rel_bias[:, column.clamp(0, 4)].masked_fill((column < 0) | (column > 4), -torch.inf)
    expected, _ = theirs(y, y, y, need_weights=False, attn_mask=band.repeat(BATCH, 1, 1))
    assert_same(ours(x, x, x)[0], expected, pairs(ours, theirs, x, y) | {"rel_bias": (ours.rel_bias,) * 2})


def test_is_causal_hides_the_frames_after_a_query() -> None:
    theirs = multihead(batch_first=True)
    x = randn(BATCH, FRAMES, WIDTH)
    y = x.detach().clone().requires_grad_()
    hidden = nn.Transformer.generate_square_subsequent_mask(FRAMES, dtype=torch.float64)
    expected, _ = theirs(y, y, y, need_weights=False, attn_mask=hidden)
    for rel_bias in (True, False):
        ours = WindowMultiheadAttention.from_multihead(theirs, FRAMES, rel_bias=rel_bias)
        assert_same_formula("out", ours(x, x, x, is_causal=True)[0], expected, TERMS)
    sided = WindowMultiheadAttention.from_multihead(theirs, (4, 2))
    nn.init.normal_(sided.rel_bias)
    backward = WindowMultiheadAttention.from_multihead(theirs, (4, 0))
    backward.rel_bias.data[:] = sided.rel_bias.data[:, :5]
    assert_same_formula("out", sided(x, x, x, is_causal=True)[0], backward(x, x, x)[0], TERMS)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_key_padding_mask(batch_first: bool, kind: str) -> None:
    theirs = multihead(batch_first=batch_first)
    ours = WindowMultiheadAttention.from_multihead(theirs, FRAMES)
    x = randn(BATCH, FRAMES, WIDTH) if batch_first else randn(FRAMES, BATCH, WIDTH)
    y = x.detach().clone().requires_grad_()
    padding = right_padding([9, 4])
    mask = torch.zeros(BATCH, FRAMES, dtype=torch.float64).masked_fill(padding, -torch.inf)
    mask = padding if kind == "bool" else mask
    out, _ = ours(x, x, x, key_padding_mask=mask)
    expected, _ = theirs(y, y, y, key_padding_mask=mask, need_weights=False)
    real = ~(padding if batch_first else padding.T)
    assert_same(out[real], expected[real], pairs(ours, theirs, x, y))
    assert torch.equal(out[~real], ours.out_proj.bias.expand(5, WIDTH))


def test_without_a_batch() -> None:
    theirs = multihead()
    ours = WindowMultiheadAttention.from_multihead(theirs, FRAMES)
    x = randn(FRAMES, WIDTH)
    assert_same_formula("out", ours(x, x, x)[0], theirs(x, x, x, need_weights=False)[0], TERMS)
    mask = right_padding([6])[0]
    out, expected = ours(x, x, x, mask)[0], theirs(x, x, x, mask, need_weights=False)[0]
    assert_same_formula("out", out[:6], expected[:6], TERMS)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_load_both_ways(bias: bool) -> None:
    theirs = multihead(bias=bias)
    ours = WindowMultiheadAttention(WIDTH, HEADS, bias=bias, window=2, rel_bias=False, dtype=torch.float64)
    assert {n: x.shape for n, x in ours.state_dict().items()} == {n: x.shape for n, x in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(randomised(ours).state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
    with_bias = WindowMultiheadAttention(WIDTH, HEADS, bias=bias, window=2)
    assert with_bias.rel_bias.shape == (HEADS, 5)
    assert with_bias.load_state_dict(theirs.state_dict(), strict=False).missing_keys == ["rel_bias"]
    assert theirs.load_state_dict(with_bias.state_dict(), strict=False).unexpected_keys == ["rel_bias"]


@pytest.mark.parametrize("bias", [True, False])
def test_starts_as_multihead_attention_does(bias: bool) -> None:
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, bias=bias).state_dict()
    torch.manual_seed(1)
    ours = WindowMultiheadAttention(WIDTH, HEADS, bias=bias, window=2).state_dict()
    assert not ours.pop("rel_bias").any()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_from_multihead_takes_over_everything() -> None:
    theirs = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.3, batch_first=True, dtype=torch.float64).eval()
    theirs.in_proj_weight.requires_grad_(False)
    ours = WindowMultiheadAttention.from_multihead(theirs, (2, 1), boundary="circular")
    assert (ours.dropout, ours.batch_first, ours.training, ours.window) == (0.3, True, False, (2, 1))
    assert ours.rel_bias.dtype == torch.float64
    assert [n for n, p in ours.named_parameters() if not p.requires_grad] == ["in_proj_weight"]
    before = theirs.in_proj_weight.clone()
    ours.in_proj_weight.data.zero_()
    assert torch.equal(theirs.in_proj_weight, before), "the weights are shared"


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_inside_torchs_encoder_layer(padded: bool, grad: bool) -> None:
    # In inference the encoder layer may compute full attention by itself, from its attention's weights: not with ours.
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    layer.self_attn = WindowMultiheadAttention.from_multihead(layer.self_attn, 1)
    x, mask = randn(BATCH, FRAMES, WIDTH), right_padding([9, 4]) if padded else None
    expected = layer(x, src_key_padding_mask=mask)
    layer.eval()
    with torch.set_grad_enabled(grad):
        actual = layer(x, src_key_padding_mask=mask)
    assert_same_formula("out", actual, expected, TERMS)
    changed = x.detach().clone()
    changed[:, 0] += 1
    assert torch.equal(layer(changed, src_key_padding_mask=mask)[:, 2:], layer(x, src_key_padding_mask=mask)[:, 2:])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_inside_torchs_encoder() -> None:
    # Which may pack padded sequences into nested tensors before its layers see them: not with ours.
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2)
    for each in encoder.layers:
        each.self_attn = WindowMultiheadAttention.from_multihead(each.self_attn, 1)
    x, padding = randn(BATCH, FRAMES, WIDTH).detach(), right_padding([9, 4])
    expected = encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():
        actual = encoder.eval()(x, src_key_padding_mask=padding)
    assert_same_formula("out", actual[~padding], expected[~padding], TERMS)


def test_shift_and_circular_go_through() -> None:
    x = randn(BATCH, FRAMES, WIDTH)
    for boundary in ("circular", "shift"):
        ours = randomised(WindowMultiheadAttention(WIDTH, HEADS, batch_first=True, window=2, boundary=boundary))
        same = WindowAttention(WIDTH, HEADS, 2, boundary=boundary).double()
        state = ours.state_dict()
        names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias", "rel_bias": "rel_bias"}
        names |= {f"out_proj.{x}": f"out.{x}" for x in ("weight", "bias")}
        same.load_state_dict({names[n]: value for n, value in state.items()})
        assert_same_formula(boundary, ours(x, x, x)[0], same(x), TERMS)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: WindowAttention(10, 3, 1), "d_model must be a multiple of heads"),
        (lambda: WindowAttention(514, 2, 1), "d_model .* 256 times"),
        (lambda: WindowAttention(12, 3, -1), "window"),
        (lambda: WindowAttention(12, 3, (1, 2, 3)), "window"),
        (lambda: WindowAttention(12, 3, 1, kv_heads=2), "kv_heads must be a divisor of heads = 3, got 2"),
        (lambda: WindowAttention(12, 3, 1, boundary="wrap"), "boundary must be one of clip, circular, shift"),
        (lambda: WindowAttention(12, 3, 1, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: WindowAttention(12, 3, 1)(torch.zeros(9, 12)), r"x must have shape.*got \(9, 12\)"),
        (lambda: WindowMultiheadAttention(10, 3, window=1), "embed_dim must be a multiple of num_heads"),
        (lambda: WindowMultiheadAttention(12, 3, window=True), "window"),
        (lambda: WindowMultiheadAttention(12, 3, add_bias_kv=True, window=1), "add_bias_kv must be False"),
        (lambda: WindowMultiheadAttention(12, 3, add_zero_attn=True, window=1), "add_zero_attn must be False"),
        (lambda: WindowMultiheadAttention(12, 3, kdim=6, window=1), "kdim must be embed_dim = 12"),
        (
            lambda: WindowMultiheadAttention.from_multihead(nn.MultiheadAttention(12, 3, vdim=6), 1),
            "mha must have kdim and vdim equal to embed_dim",
        ),
        (
            lambda: WindowMultiheadAttention.from_multihead(nn.MultiheadAttention(12, 3, add_bias_kv=True), 1),
            "add_bias_kv must be False",
        ),
    ],
)
def test_bad_arguments_are_named(make, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"need_weights": True}, ValueError, "need_weights must be False"),
        ({"attn_mask": torch.zeros(FRAMES, FRAMES)}, ValueError, "attn_mask must be None"),
        ({"key": torch.zeros(BATCH, FRAMES, WIDTH)}, ValueError, "key and value must be query itself"),
        ({"value": torch.zeros(BATCH, FRAMES, WIDTH)}, ValueError, "self-attention only"),
        ({"query": torch.zeros(BATCH, FRAMES, 5)}, ValueError, "query must have shape"),
        ({"query": torch.zeros(1, BATCH, FRAMES, WIDTH)}, ValueError, "query must have shape"),
        ({"key_padding_mask": ~right_padding([9, 4])}, ValueError, "key_padding_mask must mask the end"),
        ({"key_padding_mask": right_padding([9, 4]).T}, ValueError, r"key_padding_mask must have shape.*\(2, 9\)"),
        ({"key_padding_mask": torch.full((BATCH, FRAMES), -1.0)}, ValueError, "key_padding_mask must hold 0 and -inf"),
        ({"key_padding_mask": right_padding([9, 4]).long()}, TypeError, "key_padding_mask must be bool or float"),
    ],
)
def test_bad_calls_are_named(changed: dict, error: type[Exception], named: str) -> None:
    layer = WindowMultiheadAttention(WIDTH, HEADS, batch_first=True, window=2)
    query = changed.get("query", torch.zeros(BATCH, FRAMES, WIDTH))
    layer(**dict.fromkeys(("query", "key", "value"), torch.zeros(BATCH, FRAMES, WIDTH)))
    with pytest.raises(error, match=named):
        layer(**dict.fromkeys(("query", "key", "value"), query) | changed)
