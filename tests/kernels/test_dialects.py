"""The dialects against the libraries they are named after, where those are here, and against dense formulas always."""

import itertools
import math
import warnings

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sinmdm import kernels
from sinmdm.kernels import dialects, window_attention
from sinmdm.kernels.dialects import (
    _call,
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flex_mods,
    na1d,
    scaled_dot_product_window_attention,
)

DIM = 4


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def operands(batch: int = 2, frames: int = 9, heads: int = 4, kv_heads: int = 4, dtype=torch.float64) -> list[Tensor]:
    """q, k, v in (B, T, H, D)."""
    return [randn(batch, frames, h, DIM, dtype=dtype) for h in (heads, kv_heads, kv_heads)]


def terms(frames: int, batch: int = 2) -> int:
    """The longest sum: a bias column adds up every query of the batch, each a sum over a window and over head_dim."""
    return batch * frames + frames + DIM


def toeplitz(rel_bias: Tensor | None, window: tuple[int, int], frames: int) -> Tensor:
    """(H or 1, T, T) dense mask of a bias: rel_bias[h, j - i + left] inside the window, -inf outside."""
    left, right = window
    column = torch.arange(frames) - torch.arange(frames)[:, None] + left
    inside = (column >= 0) & (column <= left + right)
    if rel_bias is None:
        return torch.zeros(1, frames, frames, dtype=torch.float64).masked_fill(~inside, -torch.inf)
    return rel_bias[:, column.clamp(0, left + right)].masked_fill(~inside, -torch.inf)


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """(out (B, T, H, D), lse (B, T, H)) of all T x T scores under an additive mask (H, T, T)."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (1 / math.sqrt(q.shape[3]) if scale is None else scale) + mask
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v), scores.logsumexp(-1).transpose(1, 2)


def assert_same(actual: tuple, expected: tuple, inputs: list[Tensor], n: int) -> None:
    """Both outputs, and their gradients in the inputs, are those of one formula."""
    weights = [torch.randn_like(x) for x in expected]
    for i, (x, y) in enumerate(zip(actual, expected, strict=True)):
        assert_same_formula(f"output {i}", x, y, n)
    first, second = (
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)), inputs)
        for outputs in (actual, expected)
    )
    for i, (x, y) in enumerate(zip(first, second, strict=True)):
        assert_same_formula(f"gradient {i}", x, y, n)


# ---- scaled_dot_product_attention


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("window", "options"),
    [
        ((2, 2), {}),  # the ordinary window
        ((3, 1), {"scale": 0.3}),
        ((3, 2), {"is_causal": True}),
        ((20, 20), {}),  # wider than the sequence: full attention
        ((2, 2), {"enable_gqa": True}),
    ],
)
def test_sdpa_with_the_dense_mask(window: tuple[int, int], options: dict, bias: bool) -> None:
    frames, kv_heads = 9, 2 if options.get("enable_gqa") else 4
    query, key, value = (randn(2, h, frames, DIM) for h in (4, kv_heads, kv_heads))
    seen = (window[0], 0) if options.get("is_causal") else window
    rel_bias = randn(4, sum(seen) + 1) if bias else None
    inputs = [query, key, value, *([rel_bias] if bias else [])]
    actual = scaled_dot_product_window_attention(query, key, value, rel_bias, window=window, **options)
    given = {name: x for name, x in options.items() if name != "is_causal"}  # the mask says it
    expected = F.scaled_dot_product_attention(query, key, value, toeplitz(rel_bias, seen, frames), **given)
    assert_same((actual,), (expected,), inputs, terms(frames))


def test_sdpa_is_causal_as_the_original_is() -> None:
    query, key, value = (randn(2, 4, 9, DIM) for _ in range(3))
    actual = scaled_dot_product_window_attention(query, key, value, window=20, is_causal=True)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert_same((actual,), (expected,), [query, key, value], terms(9))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 2), (0,)], ids=str)
def test_sdpa_leading_dimensions(leading: tuple[int, ...]) -> None:
    query, key, value = (randn(*leading, 4, 9, DIM) for _ in range(3))
    rel_bias = randn(4, 5)
    actual = scaled_dot_product_window_attention(query, key, value, rel_bias, window=2)
    expected = F.scaled_dot_product_attention(query, key, value, toeplitz(rel_bias, (2, 2), 9))
    assert actual.shape == query.shape
    if actual.numel():
        assert_same((actual,), (expected,), [query, key, value, rel_bias], terms(9, 6))


def test_sdpa_in_half_precision_is_as_near_as_the_original() -> None:
    query, key, value = (randn(2, 4, 40, DIM, dtype=torch.bfloat16) for _ in range(3))
    rel_bias = randn(4, 7, dtype=torch.bfloat16)
    mask = toeplitz(rel_bias, (3, 3), 40)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), mask.double())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        eager = F.scaled_dot_product_attention(query, key, value, mask)
    actual = scaled_dot_product_window_attention(query, key, value, rel_bias, window=3)
    assert actual.dtype == torch.bfloat16
    assert_within_budget("out", actual, exact, eager)


def test_sdpa_lengths_are_each_sequences_own() -> None:
    query, key, value = (randn(2, 2, 4, 9, DIM) for _ in range(3))
    lengths = torch.tensor([[9, 4], [1, 0]])
    out = scaled_dot_product_window_attention(query, key, value, window=2, boundary="circular", lengths=lengths)
    assert not out[1, 1].any()
    for index in ((0, 0), (0, 1), (1, 0)):
        n = int(lengths[index])
        q, k, v = (x[index][:, :n] for x in (query, key, value))
        alone = scaled_dot_product_window_attention(q, k, v, window=2, boundary="circular")
        assert_same_formula(str(index), out[index][:, :n], alone, terms(9))
    one = scaled_dot_product_window_attention(
        query[0, 1], key[0, 1], value[0, 1], window=2, boundary="circular", lengths=lengths[0, 1]
    )
    assert_same_formula("unbatched", one, out[0, 1], terms(9))


def test_sdpa_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *rest, **options):
        seen.extend((q, k, v))
        out, lse = window_attention(q, k, v, *rest, **options)
        seen.append(out)
        return out, lse

    monkeypatch.setattr(_call, "window_attention", spy)
    tensors = [x.detach() for x in operands()]
    for made in (tensors, [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]):
        seen.clear()
        out = scaled_dot_product_window_attention(*(x.transpose(1, 2) for x in made), window=2)
        assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in (*made, out)]
        assert [x.stride() for x in seen[:3]] == [x.stride() for x in made]


def test_sdpa_dropout_is_the_ops_own() -> None:
    q, k, v = operands()
    expected = window_attention(q, k, v, window=2, dropout_p=0.5, seed=7)
    by_heads = [x.transpose(1, 2) for x in (q, k, v)]
    actual = scaled_dot_product_window_attention(*by_heads, window=2, dropout_p=0.5, seed=7)
    assert torch.equal(actual.transpose(1, 2), expected)


# ---- dropout without a seed


def drawing_calls() -> dict:
    q, k, v = (x.detach() for x in operands())
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    return {
        "sdpa": lambda: scaled_dot_product_window_attention(q, k, v, window=3, dropout_p=0.5),
        "flash": lambda: flash_attn_func(q, k, v, 0.5, window_size=(3, 3)),
        "packed": lambda: flash_attn_qkvpacked_func(torch.stack([q, k, v], 2), 0.5, window_size=(3, 3)),
        "varlen": lambda: flash_attn_varlen_func(q[0], k[0], v[0], cu, cu, 5, 5, 0.5, window_size=(3, 3)),
    }


@pytest.mark.parametrize("name", drawing_calls())
def test_dropout_follows_torchs_generator(name: str) -> None:
    call = drawing_calls()[name]
    torch.manual_seed(3)
    first, second = call(), call()
    torch.manual_seed(3)
    assert torch.equal(call(), first)
    assert torch.equal(call(), second)
    assert not torch.equal(first, second)


def test_no_seed_is_drawn_without_dropout() -> None:
    q, k, v = operands()
    before = torch.get_rng_state()
    flash_attn_func(q, k, v, window_size=(3, 3))
    flash_attn_func(q, k, v, 0.5, window_size=(3, 3), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


# ---- flash-attn


def flash_mask(
    frames: int, window_size: tuple[int, int], causal: bool, alibi_slopes: Tensor | None, rel_bias: Tensor | None
) -> Tensor:
    """(H or 1, T, T): flash-attn's documented visibility and ALiBi, pair by pair; rel_bias by its offset."""
    left, right = window_size
    mask = torch.full((frames, frames), -torch.inf, dtype=torch.float64)
    for i, j in itertools.product(range(frames), repeat=2):
        if (left == -1 or j >= i - left) and j <= (i if causal else frames if right == -1 else i + right):
            mask[i, j] = 0
    offset = torch.arange(frames) - torch.arange(frames)[:, None]
    mask = mask[None]
    if alibi_slopes is not None:
        mask = mask - alibi_slopes[:, None, None] * offset.abs()
    if rel_bias is not None:
        column = offset + (frames - 1 if left == -1 else left)
        mask = mask + rel_bias[:, column.clamp(0, rel_bias.shape[1] - 1)]
    return mask


FLASH = [
    ((2, 2), False),
    ((3, 0), False),
    ((0, 3), False),
    ((-1, -1), False),  # no limit at all
    ((-1, 2), False),  # on one side
    ((2, -1), False),
    ((-1, -1), True),  # causal, everything before
    ((2, 5), True),  # causal wins over the right side
    ((30, 30), False),  # wider than the sequence
]


@pytest.mark.parametrize("extras", ["plain", "alibi", "rel_bias", "both"])
@pytest.mark.parametrize(("window_size", "causal"), FLASH)
def test_flash_attn_by_its_documentation(window_size: tuple[int, int], causal: bool, extras: str) -> None:
    frames, heads = 9, 4
    q, k, v = operands(frames=frames, heads=heads, kv_heads=2)
    inputs = [q, k, v]
    slopes = torch.rand(heads, dtype=torch.float64) if extras in ("alibi", "both") else None
    rel_bias = None
    if extras in ("rel_bias", "both"):
        left, right = (frames - 1 if side == -1 else side for side in window_size)
        rel_bias = randn(heads, left + (0 if causal else right) + 1)
        inputs.append(rel_bias)
    actual = flash_attn_func(
        q, k, v, 0.0, 0.4, causal, window_size, alibi_slopes=slopes, rel_bias=rel_bias, return_lse=True
    )
    out, lse = dense(q, k, v, flash_mask(frames, window_size, causal, slopes, rel_bias), scale=0.4)
    assert_same(actual, (out, lse.transpose(1, 2)), inputs, terms(frames))


def test_flash_attn_qkvpacked_is_flash_attn() -> None:
    qkv = randn(2, 9, 3, 4, DIM)
    slopes = torch.rand(4)
    options = {"causal": True, "window_size": (3, 0), "alibi_slopes": slopes, "rel_bias": randn(4, 4)}
    actual = flash_attn_qkvpacked_func(qkv, return_lse=True, **options)
    expected = flash_attn_func(*qkv.unbind(2), return_lse=True, **options)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))
    assert torch.equal(flash_attn_qkvpacked_func(qkv, **options), actual[0])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("lengths", "longest"),
    [
        ((9, 4, 1), 9),
        ((0, 5, 0, 0, 3, 0), 5),  # empty sequences first, between and last
        ((4, 4), 11),  # max_seqlen is a bound, it need not be met
        ((7,), 7),
    ],
)
def test_flash_attn_varlen_is_each_sequence_alone(lengths: tuple[int, ...], longest: int, causal: bool) -> None:
    total = sum(lengths)
    q, k, v = (randn(total, h, DIM) for h in (4, 2, 2))
    rel_bias = randn(4, 4 if causal else 6)
    cu = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    options = {"causal": causal, "window_size": (3, 2), "rel_bias": rel_bias, "return_lse": True}
    actual = flash_attn_varlen_func(q, k, v, cu, cu.clone(), longest, longest, **options)
    alone = [
        flash_attn_func(*(x[None, a:b] for x in (q, k, v)), **options)
        for a, b in itertools.pairwise(cu.tolist())
        if b > a
    ]
    expected = torch.cat([out[0] for out, _ in alone]), torch.cat([lse[0] for _, lse in alone], 1)
    assert_same(actual, expected, [q, k, v, rel_bias], terms(longest, len(lengths)))


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]], ids=["no sequence", "two empty ones"])
def test_flash_attn_varlen_of_nothing(offsets: list[int]) -> None:
    q, cu = torch.zeros(0, 4, DIM, requires_grad=True), torch.tensor(offsets)
    out, lse = flash_attn_varlen_func(q, q, q, cu, cu, 0, 0, window_size=(2, 2), return_lse=True)
    assert (out.shape, lse.shape) == ((0, 4, DIM), (4, 0))
    out.sum().backward()


def test_flash_attn_varlen_without_limit_counts_the_longest() -> None:
    q, k, v = (randn(9, 4, DIM) for _ in range(3))
    rel_bias = randn(4, 2 * 5 - 1)
    cu = torch.tensor([0, 4, 9])
    actual = flash_attn_varlen_func(q, k, v, cu, cu, 5, 5, rel_bias=rel_bias)
    expected = torch.cat(
        [
            dense(*(x[None, a:b] for x in (q, k, v)), toeplitz(rel_bias, (4, 4), b - a))[0][0]
            for a, b in ((0, 4), (4, 9))
        ]
    )
    assert_same((actual,), (expected,), [q, k, v, rel_bias], terms(9))


@pytest.mark.gpu
@pytest.mark.parametrize(("window_size", "causal"), FLASH)
def test_flash_attn_against_the_original(window_size: tuple[int, int], causal: bool) -> None:
    flash_attn = pytest.importorskip("flash_attn", reason="needs flash-attn")
    q, k, v = (torch.randn(2, 70, h, 64, dtype=torch.float16, device="cuda", requires_grad=True) for h in (4, 2, 2))
    slopes = torch.rand(4, device="cuda")
    options = {"causal": causal, "window_size": window_size, "alibi_slopes": slopes}
    weight = torch.randn_like(q)

    def outcome(function, *tensors: Tensor) -> list[Tensor]:
        out = function(*tensors, **options)
        return [out, *torch.autograd.grad((out * weight.to(out.dtype)).sum(), tensors)]

    exact = outcome(flash_attn_func, *(x.detach().double().requires_grad_() for x in (q, k, v)))
    original = outcome(flash_attn.flash_attn_func, q, k, v)
    mask = flash_mask(70, window_size, causal, slopes.cpu(), None).to(q)
    assert_within_budget("the original's out", original[0], exact[0], dense(q, k, v, mask)[0])
    for name, x, y, z in zip(
        ("out", "dq", "dk", "dv"), outcome(flash_attn_func, q, k, v), exact, original, strict=True
    ):
        assert_within_budget(name, x, y, z)


# ---- NATTEN


def neighbours(frames: int, size: int, dilation: int, causal: bool) -> list[list[int]]:
    """The keys of each query, from NATTEN's documentation: within a dilation group, slid inward at its ends."""
    found = []
    for t in range(frames):
        group = list(range(t % dilation, frames, dilation))
        i = t // dilation
        if causal:
            found.append(group[max(i - size + 1, 0) : i + 1])
        else:
            start = min(max(i - size // 2, 0), len(group) - size)
            found.append(group[start : start + size])
    return found


def natten_mask(frames: int, size: int, dilation: int, causal: bool, rpb: Tensor | None) -> Tensor:
    """(H or 1, T, T): 0, or the bias, at each neighbour."""
    pairs = [(i, j) for i, seen in enumerate(neighbours(frames, size, dilation, causal)) for j in seen]
    i, j = torch.tensor(pairs).T
    hidden = torch.full((frames, frames), -torch.inf, dtype=torch.float64)
    hidden[i, j] = 0
    if rpb is None:
        return hidden[None]
    return (
        hidden
        + rpb[:, ((torch.arange(frames) - torch.arange(frames)[:, None]) // dilation + size - 1).clamp(0, 2 * size - 2)]
    )


NATTEN = [
    (9, 3, 1),  # odd
    (9, 4, 1),  # even: one more before than after
    (9, 2, 1),  # the smallest
    (9, 9, 1),  # everything
    (8, 8, 1),  # everything, even
    (12, 3, 4),  # dilation divides the frames, the window is a whole group
    (13, 3, 2),  # it does not: groups of 7 and 6
    (14, 2, 5),  # groups of 3, 3, 3, 3, 2
    (23, 4, 3),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "size", "dilation"), NATTEN)
def test_na1d_by_its_documentation(frames: int, size: int, dilation: int, causal: bool, bias: bool) -> None:
    if causal and bias:
        pytest.skip("NATTEN has no rpb for causal attention")
    q, k, v = operands(frames=frames, kv_heads=2)
    rpb = randn(4, 2 * size - 1) if bias else None
    actual = na1d(q, k, v, size, dilation=dilation, is_causal=causal, scale=0.4, rpb=rpb, return_lse=True)
    expected = dense(q, k, v, natten_mask(frames, size, dilation, causal, rpb), scale=0.4)
    assert_same(actual, expected, [q, k, v, *([rpb] if bias else [])], terms(frames))


def test_na1d_takes_sizes_as_natten_does() -> None:
    q, k, v = operands()
    expected = na1d(q, k, v, 3, 1, 2, True)
    for options in (((3,), (1,), (2,), (True,)), ([3], 1, [2], [True])):
        assert torch.equal(na1d(q, k, v, *options), expected)
    assert torch.equal(na1d(q, k, v, 3, is_causal=None), na1d(q, k, v, 3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "size", "dilation"), NATTEN)
def test_na1d_against_the_original(frames: int, size: int, dilation: int, causal: bool) -> None:
    natten = pytest.importorskip("natten", reason="needs NATTEN 0.20 or later", exc_type=ImportError)
    if hasattr(natten.functional, "na1d_qk"):
        pytest.skip("this NATTEN is older than 0.20: the test with rpb compares with it")
    if causal and size == frames:
        pytest.skip("NATTEN makes it plain causal attention, which its CPU backend does not have")
    q, k, v = (torch.randn(2, frames, 4, 8) for _ in range(3))  # no gradients: FlexAttention has none on the CPU
    options = {"dilation": dilation, "is_causal": causal, "return_lse": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NATTEN runs FlexAttention uncompiled on the CPU, which says that it is slow
        original = natten.na1d(q, k, v, size, **options, backend="flex-fna", attention_kwargs={"backend": "flex-fmha"})
    for name, x, y in zip(("out", "lse"), na1d(q, k, v, size, **options), original, strict=True):
        assert_same_formula(name, x, y, terms(frames))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "size", "dilation"), [case for case in NATTEN if case[1] % 2])
def test_na1d_with_rpb_against_the_original(frames: int, size: int, dilation: int, causal: bool) -> None:
    natten = pytest.importorskip("natten", reason="needs NATTEN 0.17, the last with rpb", exc_type=ImportError)
    if not hasattr(natten.functional, "na1d_qk"):
        pytest.skip("this NATTEN is 0.20 or later: it has no rpb")
    q, k, v = operands(frames=frames)
    rpb = None if causal else randn(4, 2 * size - 1)
    first, second, third = (x.transpose(1, 2).contiguous() for x in (q * 0.4, k, v))  # (B, H, T, D), as it had then
    scores = natten.functional.na1d_qk(first, second, size, dilation, is_causal=causal, rpb=rpb)
    expected = natten.functional.na1d_av(scores.softmax(-1), third, size, dilation, is_causal=causal).transpose(1, 2)
    actual = na1d(q, k, v, size, dilation=dilation, is_causal=causal, scale=0.4, rpb=rpb)
    assert_same((actual,), (expected,), [q, k, v, *([] if causal else [rpb])], terms(frames))


# ---- FlexAttention


FLEX = [
    ("clip", (2, 3), None),
    ("clip", (20, 20), None),  # wider than the sequence
    ("clip", (2, 3), (9, 4, 0)),
    ("circular", (2, 3), None),
    ("circular", (4, 4), None),  # exactly everything, once
    ("circular", (2, 1), (9, 4, 5)),
    ("shift", (2, 3), None),
    ("shift", (0, 3), None),
    ("shift", (1, 1), (9, 3, 5)),
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("boundary", "window", "lengths"), FLEX)
def test_flex_attention_is_the_same_function(
    boundary: str, window: tuple[int, int], lengths: tuple[int, ...] | None, bias: bool
) -> None:
    frames, size = 9, sum(window) + 1
    q, k, v = (x.detach() for x in operands(3, frames, kv_heads=2))
    rel_bias = randn(4, 2 * size - 1 if boundary == "shift" else size).detach() if bias else None
    n = None if lengths is None else torch.tensor(lengths)
    score_mod, mask_mod = flex_mods(rel_bias, window=window, frames=frames, lengths=n, boundary=boundary)
    assert (score_mod is None) == (rel_bias is None)
    block_mask = create_block_mask(mask_mod, None if n is None else 3, None, frames, frames, device="cpu")
    by_heads = (x.transpose(1, 2) for x in (q, k, v))
    actual = flex_attention(*by_heads, score_mod=score_mod, block_mask=block_mask, enable_gqa=True).transpose(1, 2)
    expected = window_attention(q, k, v, rel_bias, window=window, lengths=n, boundary=boundary)
    assert_same_formula("out", actual, expected, terms(frames, 3))


# ---- all of them


def compiled_calls() -> dict:
    q, k, v = (x.detach().requires_grad_() for x in operands())
    bias, slopes = randn(4, 5), torch.rand(4)
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)

    def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return scaled_dot_product_window_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), bias, window=2, lengths=torch.tensor([9, 4])
        )

    def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return flash_attn_func(q, k, v, window_size=(2, 2), rel_bias=bias, alibi_slopes=slopes)

    def varlen(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return flash_attn_varlen_func(q[0], k[0], v[0], cu, cu, 5, 5, window_size=(2, 2), rel_bias=bias)

    def natten(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return na1d(q, k, v, 3, dilation=2, rpb=bias)

    return {f.__name__: (f, (q, k, v, bias)) for f in (sdpa, flash, varlen, natten)}


@pytest.mark.parametrize("name", compiled_calls())
def test_compiles_as_one_graph(name: str) -> None:
    function, inputs = compiled_calls()[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    first, second = (
        [out, *torch.autograd.grad(out.square().sum(), inputs)] for out in (f(*inputs) for f in (compiled, function))
    )
    for i, (x, y) in enumerate(zip(first, second, strict=True)):
        assert_same_formula(f"{i}", x, y, terms(9))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_dropout_draws_anew_and_keeps_its_mask_for_the_backward(backend: str) -> None:
    q, k, v = (x.detach().transpose(1, 2) for x in operands())
    v.requires_grad_()

    def dropped(v: Tensor) -> Tensor:
        return scaled_dot_product_window_attention(q, k, v, window=3, dropout_p=0.5)

    torch._dynamo.reset()
    compiled = torch.compile(dropped, fullgraph=True, backend=backend)
    torch.manual_seed(3)
    first, second = compiled(v), compiled(v)
    torch.manual_seed(3)
    assert torch.equal(compiled(v), first)
    assert not torch.equal(second, first)
    weight = torch.randn_like(first)
    (gradient,) = torch.autograd.grad((first * weight).sum(), v)
    # out is linear in v, under whatever mask the two share: sum(out * w) = sum(dv * v).
    assert_same_formula("sums", (gradient * v).sum(), (first * weight).sum().detach(), first.numel() * terms(9))


def test_autocast_brings_mixed_inputs_together() -> None:
    q, k, v = (x.detach().float() for x in operands())
    mixed = (q, k.bfloat16(), v)
    by_heads = [x.transpose(1, 2) for x in mixed]
    cu = torch.tensor([0, 9])
    expected = window_attention(*(x.bfloat16() for x in mixed), window=(1, 1))
    shifted = window_attention(*(x.bfloat16() for x in mixed), window=1, boundary="shift")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sdpa = scaled_dot_product_window_attention(*by_heads, window=1)
        flash = flash_attn_func(*mixed, window_size=(1, 1))
        varlen = flash_attn_varlen_func(*(x[0] for x in mixed), cu, cu, 9, 9, window_size=(1, 1))
        natten = na1d(*mixed, 3)
    assert torch.equal(sdpa.transpose(1, 2), expected)
    assert torch.equal(flash, expected)
    assert torch.equal(varlen, expected[0])
    assert torch.equal(natten, shifted)


def test_the_backend_is_passed_on() -> None:
    q, k, v = operands()
    cu = torch.tensor([0, 9])
    for call in (
        lambda: scaled_dot_product_window_attention(q, k, v, window=1, backend="numpy"),
        lambda: flash_attn_func(q, k, v, backend="numpy"),
        lambda: flash_attn_qkvpacked_func(torch.stack([q, k, v], 2), backend="numpy"),
        lambda: flash_attn_varlen_func(q[0], k[0], v[0], cu, cu, 9, 9, backend="numpy"),
        lambda: na1d(q, k, v, 3, backend="numpy"),
    ):
        with pytest.raises(ValueError, match="backend must be one of"):
            call()


def test_they_are_a_namespace_of_their_own() -> None:
    assert kernels.dialects is dialects
    assert not set(dialects.__all__) & set(kernels.__all__)
    assert all(callable(getattr(dialects, name)) for name in dialects.__all__)


ONLY = "self-attention only"


def bad_calls() -> dict[str, tuple]:
    """What is wrong -> (function, its arguments, error, what its message must say)."""
    q, k, v = (x.detach() for x in operands())
    few = k[:, :, :2]
    heads = {"query": q.transpose(1, 2), "key": k.transpose(1, 2), "value": v.transpose(1, 2), "window": 2}
    func, flash = flash_attn_func, {"q": q, "k": k, "v": v, "window_size": (2, 2)}
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = {"q": q[0], "k": k[0], "v": v[0], "cu_seqlens_q": cu, "cu_seqlens_k": cu} | dict.fromkeys(
        ("max_seqlen_q", "max_seqlen_k"), 5
    )
    natten = {"query": q, "key": k, "value": v, "kernel_size": 3}
    flex = {"rel_bias": torch.zeros(4, 5), "window": 2}
    sdpa, varlen, packed3 = scaled_dot_product_window_attention, flash_attn_varlen_func, flash_attn_qkvpacked_func
    return {
        "sdpa, two dimensions": (sdpa, heads | {"query": q[0, 0]}, ValueError, "query must have shape"),
        "sdpa, integers": (sdpa, heads | {"query": q.long()}, TypeError, "query must be float16"),
        "sdpa, key's frames": (sdpa, heads | {"key": heads["key"][:, :, 1:]}, ValueError, r"key must .*\(2, 4, 8"),
        "sdpa, value's head_dim": (sdpa, heads | {"value": heads["value"][..., 1:]}, ValueError, "value must have"),
        "sdpa, key's dtype": (sdpa, heads | {"key": heads["key"].half()}, TypeError, "key must be float64"),
        "sdpa, value's device": (sdpa, heads | {"value": heads["value"].to("meta")}, ValueError, "value must be on"),
        "sdpa, fewer key heads": (
            sdpa, heads | {n: heads[n][:, :2] for n in ("key", "value")}, ValueError, "key has 2 .*enable_gqa=True",
        ),
        "sdpa, heads no multiple": (
            sdpa, heads | {n: heads[n][:, :3] for n in ("key", "value")} | {"enable_gqa": True}, ValueError,
            "query's heads must be a multiple of key's, got 4 and 3",
        ),
        "sdpa, no frames": (
            sdpa, heads | {n: heads[n][:, :, :0] for n in ("query", "key", "value")}, ValueError,
            "query must have at least one frame",
        ),
        "sdpa, head_dim": (
            sdpa, heads | dict.fromkeys(("query", "key", "value"), torch.zeros(1, 1, 2, 257)), ValueError,
            "query's last size.*got 257",
        ),
        "sdpa, window": (sdpa, heads | {"window": -1}, ValueError, "window must be"),
        "sdpa, causal and circular": (
            sdpa, heads | {"is_causal": True, "boundary": "circular"}, ValueError, "is_causal needs boundary 'clip'",
        ),
        "sdpa, causal bias": (
            sdpa, heads | {"is_causal": True, "rel_bias": torch.zeros(4, 5)}, ValueError, r"rel_bias .*\(4, 3\)",
        ),
        "sdpa, lengths": (sdpa, heads | {"lengths": torch.tensor(3)}, ValueError, r"lengths must .*\(2,\), got \(\)"),
        "sdpa, dropout": (sdpa, heads | {"dropout_p": 1.0}, ValueError, "dropout_p must be in"),
        "flash, cross-attention": (
            func, flash | {"k": k[:, :5], "v": v[:, :5]}, ValueError, f"k must have.*{ONLY}.*got 5",
        ),
        "flash, value's frames": (func, flash | {"v": v[:, :5]}, ValueError, "v must have shape"),
        "flash, q packed": (func, flash | {"q": q[0]}, ValueError, "q must have shape"),
        "flash, softcap": (func, flash | {"softcap": 15.0}, ValueError, "softcap must be 0.*15.0"),
        "flash, probabilities": (
            func, flash | {"return_attn_probs": True}, ValueError, "return_attn_probs must be False",
        ),
        "flash, window": (func, flash | {"window_size": (2, -2)}, ValueError, r"window_size must.*\(2, -2\)"),
        "flash, one side": (func, flash | {"window_size": 2}, ValueError, "window_size must.*got 2"),
        "flash, slopes by batch": (
            func, flash | {"alibi_slopes": torch.rand(2, 4)}, ValueError, r"alibi_slopes must .*\(heads,\)",
        ),
        "flash, slopes' heads": (func, flash | {"alibi_slopes": torch.rand(3)}, ValueError, "alibi_slopes must"),
        "flash, slopes' dtype": (
            func, flash | {"alibi_slopes": torch.rand(4).half()}, TypeError, "alibi_slopes must be float32",
        ),
        "flash, bias columns": (func, flash | {"rel_bias": torch.zeros(4, 6)}, ValueError, "rel_bias must"),
        "flash, bias columns beside slopes": (
            func, flash | {"rel_bias": torch.zeros(4, 1), "alibi_slopes": torch.rand(4)}, ValueError,
            "rel_bias must",
        ),
        "flash, packed without three": (packed3, {"qkv": q}, ValueError, "qkv must have shape"),
        "varlen, batched": (varlen, packed | {"q": q}, ValueError, r"q must have shape \(total"),
        "varlen, cross-attention": (varlen, packed | {"k": k[0, 1:]}, ValueError, f"k must have.*{ONLY}"),
        "varlen, other keys": (
            varlen, packed | {"cu_seqlens_k": torch.tensor([0, 5, 9])}, ValueError, f"cu_seqlens_k must.*{ONLY}",
        ),
        "varlen, more keys": (
            varlen, packed | {"cu_seqlens_k": torch.tensor([0, 4, 8, 9])}, ValueError, "cu_seqlens_k must have shape",
        ),
        "varlen, falling": (
            varlen, packed | dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), torch.tensor([0, 10, 9])), ValueError,
            "cu_seqlens_q must rise",
        ),
        "varlen, not all": (
            varlen, packed | dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), torch.tensor([0, 4, 8])), ValueError,
            "cu_seqlens_q must rise from 0 to q's 9 frames, got 0 to 8",
        ),
        "varlen, offsets' dtype": (
            varlen, packed | {"cu_seqlens_q": cu.float()}, TypeError, "cu_seqlens_q must be int32 or int64",
        ),
        "varlen, offsets' shape": (varlen, packed | {"cu_seqlens_q": cu[None]}, ValueError, "cu_seqlens_q must have"),
        "varlen, too short": (
            varlen, packed | dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), 4), ValueError, "max_seqlen_q.*5.*got 4",
        ),
        "varlen, two longest": (varlen, packed | {"max_seqlen_k": 6}, ValueError, "max_seqlen_k must equal max"),
        "varlen, no int": (varlen, packed | {"max_seqlen_q": 5.0}, ValueError, "max_seqlen_q must be an int"),
        "varlen, pages": (varlen, packed | {"block_table": cu}, ValueError, "block_table must be None"),
        "varlen, softcap": (varlen, packed | {"softcap": 1.0}, ValueError, "softcap must be 0"),
        "natten, packed": (na1d, natten | {"query": q[0]}, ValueError, "query must have shape"),
        "natten, key's heads": (na1d, natten | {"key": few}, ValueError, "value must have shape"),
        "natten, kernel_size": (na1d, natten | {"kernel_size": 1}, ValueError, "kernel_size must be.*>= 2, got 1"),
        "natten, two sizes": (na1d, natten | {"kernel_size": (3, 3)}, ValueError, "kernel_size must be an int"),
        "natten, stride": (na1d, natten | {"stride": 2}, ValueError, "stride must be 1, got 2"),
        "natten, dilation": (na1d, natten | {"dilation": 0}, ValueError, "dilation must be an int >= 1, got 0"),
        "natten, too wide": (
            na1d, natten | {"dilation": 4}, ValueError, r"kernel_size \* dilation must.*9 frames, got 3 \* 4",
        ),
        "natten, causal": (na1d, natten | {"is_causal": "yes"}, ValueError, "is_causal must be a bool"),
        "natten, causal with rpb": (
            na1d, natten | {"is_causal": True, "rpb": torch.zeros(4, 5)}, ValueError, "rpb must be None with is_causal",
        ),
        "natten, rpb columns": (na1d, natten | {"rpb": torch.zeros(4, 3)}, ValueError, r"rpb must .*\(4, 5\), got"),
        "flex, bias": (flex_mods, flex | {"window": 3}, ValueError, r"rel_bias must have shape \(heads, 7\)"),
        "flex, boundary": (flex_mods, flex | {"boundary": "wrap"}, ValueError, "boundary must be one of"),
        "flex, no frames": (flex_mods, flex | {"boundary": "circular"}, ValueError, "frames must be given"),
        "flex, meets frames again": (
            flex_mods, flex | {"boundary": "circular", "frames": 4}, ValueError, "frames must be at least.*5.*circular",
        ),
        "flex, meets some again": (
            flex_mods, flex | {"boundary": "circular", "lengths": torch.tensor([9, 4])}, ValueError,
            "lengths must be at least.*got 4",
        ),
        "flex, lengths' dtype": (flex_mods, flex | {"lengths": torch.ones(2)}, TypeError, "lengths must be int32"),
        "flex, lengths' shape": (flex_mods, flex | {"lengths": torch.tensor(3)}, ValueError, "lengths must have shape"),
    }  # fmt: skip


@pytest.mark.parametrize("what", bad_calls())
def test_errors_name_the_argument(what: str) -> None:
    function, arguments, error, message = bad_calls()[what]
    with pytest.raises(error, match=message) as caught:
        function(**arguments)
    assert "\n" not in str(caught.value)
