"""window_attention's promises beside its values: the same bits every time, dropout, one derivative, clear errors."""

import math

import pytest
import torch
from torch import Tensor

from sinmdm.kernels import window_attention
from sinmdm.kernels.philox.reference import philox4x32

OP = "window_attention"


def tensors(batch: int = 2, frames: int = 9, heads: int = 4, kv_heads: int = 2, dim: int = 3, columns: int = 5) -> list:
    q = torch.randn(batch, frames, heads, dim)
    k, v = torch.randn(2, batch, frames, kv_heads, dim)
    return [x.requires_grad_() for x in (q, k, v, torch.randn(heads, columns))]


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
def test_twenty_runs_give_the_same_bits(boundary: str, backend: str) -> None:
    # More than one tile, several heads a key head and a bias that sums over all of it: where an order could vary.
    inputs = tensors(frames=140, columns=9 if boundary == "shift" else 5, dim=16)
    options = {"window": 2, "boundary": boundary, "lengths": torch.tensor([140, 77]), "backend": backend}

    def once() -> tuple[Tensor, ...]:
        out, lse = window_attention(*inputs, **options, return_lse=True, dropout_p=0.1, seed=5)
        return out, lse, *torch.autograd.grad(out.square().sum() + lse[1, :77].sum() + lse[0].sum(), inputs)

    first = once()
    for _ in range(19):
        assert all(torch.equal(x, y) for x, y in zip(first, once(), strict=True))


def test_lse_comes_only_where_asked(backend: str) -> None:
    inputs = tensors()
    out, lse = window_attention(*inputs, window=2, return_lse=True, backend=backend)
    alone = window_attention(*inputs, window=2, backend=backend)
    assert isinstance(alone, Tensor)
    assert torch.equal(alone, out)
    assert lse.shape == (2, 9, 4)


def test_defaults_and_spellings(backend: str) -> None:
    q, k, v, bias = tensors()
    expected = window_attention(
        q, k, v, bias, window=(2, 2), scale=1 / math.sqrt(3), boundary="clip", lengths=torch.tensor([9, 9]),
        backend=backend,
    )  # fmt: skip
    for same in (
        window_attention(q, k, v, bias, window=2, backend=backend),
        window_attention(q, k, v, bias, window=[2, 2], backend=backend),
        window_attention(q, k, v, rel_bias=bias, window=2, seed=3, backend=backend),  # no dropout: no draw
    ):
        assert torch.equal(same, expected)


@pytest.mark.parametrize("frozen", range(4))
def test_gradients_only_for_those_that_want_one(frozen: int, backend: str) -> None:
    inputs = tensors()
    window_attention(*inputs, window=2, backend=backend).sum().backward()
    some = [x.detach().clone().requires_grad_(i != frozen) for i, x in enumerate(inputs)]
    window_attention(*some, window=2, backend=backend).sum().backward()
    for i, (x, y) in enumerate(zip(inputs, some, strict=True)):
        assert y.grad is None if i == frozen else torch.equal(x.grad, y.grad)


def test_gradient_through_lse_alone(backend: str) -> None:
    inputs = [x.detach().double().requires_grad_() for x in tensors()]
    _, lse = window_attention(*inputs, window=2, return_lse=True, backend=backend)
    gradients = torch.autograd.grad(lse.sum(), inputs, allow_unused=True, materialize_grads=True)
    # d lse / d bias is the softmax weight: over all offsets they add up to 1 a query and head. Positive terms: n eps.
    assert float(gradients[3].sum()) == pytest.approx(2 * 9 * 4, rel=2 * 9 * 4 * 5 * torch.finfo(torch.float64).eps)
    assert not gradients[2].any()


def test_a_second_derivative_is_a_clear_error(backend: str) -> None:
    inputs = tensors()
    out = window_attention(*inputs, window=2, backend=backend)
    (gradient,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="window_attention has no second derivative"):
        gradient.sum().backward()


def test_a_forward_mode_derivative_is_a_clear_error(backend: str) -> None:
    # torch takes the lack of a formula for a derivative of zero.
    q, k, v, bias = (x.detach() for x in tensors())

    def attend(x: Tensor) -> Tensor:
        return window_attention(x, k, v, bias, window=2, backend=backend)

    with pytest.raises(RuntimeError, match="window_attention has no forward-mode derivative"):
        torch.func.jvp(attend, (q,), (torch.ones_like(q),))
    with torch.autograd.forward_ad.dual_level():
        assert attend(q).shape == q.shape  # no tangent: nothing is asked for
        with pytest.raises(RuntimeError, match="window_attention has no forward-mode derivative"):
            attend(torch.autograd.forward_ad.make_dual(q, torch.ones_like(q)))


def test_compiled_graphs_check_lengths(backend: str) -> None:
    # Python does not see values while it traces. Too short a sequence under "shift" must not read beyond the tensor.
    if backend == "reference":
        pytest.skip("the reference looks at no values, and reads erased padding there")
    q, k, v, _ = (x.detach() for x in tensors())

    @torch.compile(backend="eager")
    def attend(lengths: Tensor) -> Tensor:
        return window_attention(q, k, v, window=2, boundary="shift", lengths=lengths, backend=backend)

    attend(torch.tensor([9, 5]))
    for bad in ([9, 4], [10, 9], [-1, 9]):
        with pytest.raises(RuntimeError, match="lengths must be from 5 to 9"):
            attend(torch.tensor(bad))


def test_inputs_are_left_alone(backend: str) -> None:
    inputs = tensors()
    before = [x.detach().clone() for x in inputs]
    window_attention(*inputs, window=2, lengths=torch.tensor([9, 3]), backend=backend).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def one_hot_weights(batch: int, frames: int, heads: int, window: int, **options) -> Tensor:
    """(B, T, H, T) the weights themselves: v is the identity, and all scores are 0."""
    zeros = torch.zeros(batch, frames, heads, frames)
    identity = torch.eye(frames)[None, :, None].expand(batch, frames, 1, frames)
    return window_attention(zeros, zeros[:, :, :1], identity, window=window, **options)


def test_dropout_drops_what_philox_says(backend: str) -> None:
    batch, frames, heads, window, p, seed = 3, 11, 2, 3, 0.3, 2**64 - 5
    weights = one_hot_weights(batch, frames, heads, window, dropout_p=p, seed=seed, backend=backend)
    checked, rounding = 0, 8 * torch.finfo(torch.float32).eps  # exp, log, their difference and a division
    for b in range(batch):
        for i in range(frames):
            for h in range(heads):
                seen = [o for o in range(7) if 0 <= i + o - window < frames]
                for o in seen:
                    counter = tuple(torch.tensor(word) for word in (o // 4, i, h, b))
                    word = int(philox4x32(counter, seed)[o % 4])
                    expected = 1 / len(seen) / (1 - p) if word >= round(p * 2**32) else 0.0
                    assert float(weights[b, i, h, i + o - window]) == pytest.approx(expected, rel=rounding), (
                        b,
                        i,
                        h,
                        o,
                    )
                    checked += 1
    assert checked == batch * heads * (frames * 7 - 2 * (3 + 2 + 1))


def test_dropout_keeps_the_mean(backend: str) -> None:
    # Each query's weights add up to 1 on average. K equal weights, kept with probability 1 - p and scaled by its
    # inverse: the sum has variance p / (1 - p) / K; five standard deviations of the mean over all queries.
    p, frames, heads, window = 0.4, 64, 16, 4
    sums = one_hot_weights(4, frames, heads, window, dropout_p=p, seed=9, backend=backend).sum(-1)
    interior = sums[:, window : frames - window]
    sigma = math.sqrt(p / (1 - p) / (2 * window + 1) / interior.numel())
    assert abs(float(interior.mean()) - 1) < 5 * sigma
    # Of that variance the estimate is off by sqrt(2 / n) of itself (less than normal tails: a binomial's are shorter).
    off = 5 * math.sqrt(2 / interior.numel())
    assert float(interior.var()) * (2 * window + 1) == pytest.approx(p / (1 - p), rel=off)


def test_dropout_masks_differ_by_seed_head_batch_and_query(backend: str) -> None:
    weights = one_hot_weights(2, 40, 2, 3, dropout_p=0.5, seed=1, backend=backend)
    again = one_hot_weights(2, 40, 2, 3, dropout_p=0.5, seed=1, backend=backend)
    other = one_hot_weights(2, 40, 2, 3, dropout_p=0.5, seed=2, backend=backend)
    high = one_hot_weights(2, 40, 2, 3, dropout_p=0.5, seed=1 + 2**32, backend=backend)
    assert torch.equal(weights, again)
    assert not torch.equal(weights, other)
    assert not torch.equal(weights, high), "the high word of the seed is ignored"
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[:, :, 0], weights[:, :, 1])
    assert not torch.equal(weights[0, 10, 0, 7:14], weights[0, 11, 0, 8:15])


def test_dropout_does_not_depend_on_the_rest_of_the_batch_or_on_the_length(backend: str) -> None:
    together = one_hot_weights(3, 20, 2, 2, dropout_p=0.5, seed=1, backend=backend)
    first = one_hot_weights(1, 20, 2, 2, dropout_p=0.5, seed=1, backend=backend)
    assert torch.equal(together[:1], first)
    longer = one_hot_weights(1, 90, 2, 2, dropout_p=0.5, seed=1, backend=backend)
    assert torch.equal(longer[:, :18, :, :20], first[:, :18])


def good() -> dict:
    q, k, v, bias = (x.detach() for x in tensors())
    return {"q": q, "k": k, "v": v, "rel_bias": bias, "window": 2}


def bad_values() -> dict[str, tuple[dict, type[Exception], str]]:
    """What is wrong -> (changed arguments, error, what its message must say)."""
    g = good()
    return {
        "q of three dimensions": ({"q": g["q"][0]}, ValueError, r"q must have shape.*got \(9, 4, 3\)"),
        "q of integers": ({"q": g["q"].long()}, TypeError, "q must be float16.*got int64"),
        "no frames": ({n: g[n][:, :0] for n in "qkv"}, ValueError, "q must have at least one frame"),
        "no heads": ({n: g[n][:, :, :0] for n in "qkv"}, ValueError, "q must have at least one frame and one head"),
        "head_dim 0": ({n: g[n][..., :0] for n in "qkv"}, ValueError, "head_dim.*from 1 to 256, got 0"),
        "head_dim 257": ({n: torch.zeros(1, 2, 1, 257) for n in "qkv"}, ValueError, "from 1 to 256, got 257"),
        "k in another dtype": ({"k": g["k"].double()}, TypeError, "k must be float32, got float64"),
        "v in another dtype": ({"v": g["v"].half()}, TypeError, "v must be float32, got float16"),
        "k of three dimensions": ({"k": g["k"][0]}, ValueError, "k must have shape"),
        "k of other frames": ({"k": g["k"][:, 1:]}, ValueError, r"k must have shape.*got \(2, 8, 2, 3\)"),
        "v with other heads than k": ({"v": g["v"][:, :, :1]}, ValueError, "v must have shape"),
        "v with another head_dim": ({"v": g["v"][..., :2]}, ValueError, "v must have shape"),
        "batch of v": ({"v": g["v"][:1]}, ValueError, "v must have shape"),
        "heads no multiple": ({n: torch.randn(2, 9, 3, 3) for n in "kv"}, ValueError, "q's heads.*4 and 3"),
        "more key heads than queries": ({n: torch.randn(2, 9, 8, 3) for n in "kv"}, ValueError, "q's heads.*4 and 8"),
        "k without heads": ({n: g[n][:, :, :0] for n in "kv"}, ValueError, "q's heads.*4 and 0"),
        "k on another device": ({"k": g["k"].to("meta")}, ValueError, "k must be on q's device cpu, got meta"),
        "v on another device": ({"v": g["v"].to("meta")}, ValueError, "v must be on q's device cpu, got meta"),
        "negative window": ({"window": -1}, ValueError, "window must be.*got -1"),
        "window of one side": ({"window": (2, -1)}, ValueError, r"window must be.*got \(2, -1\)"),
        "window of three": ({"window": (2, 2, 2)}, ValueError, "window must be"),
        "fractional window": ({"window": 2.0}, ValueError, "window must be.*got 2.0"),
        "window None": ({"window": None}, ValueError, "window must be.*got None"),
        "window True": ({"window": True}, ValueError, "window must be.*got True"),
        "unknown boundary": ({"boundary": "wrap"}, ValueError, "boundary must be one of clip, circular, shift.*'wrap'"),
        "bias columns": ({"rel_bias": torch.zeros(4, 6)}, ValueError, r"rel_bias.*\(4, 5\), got \(4, 6\)"),
        "bias heads": ({"rel_bias": torch.zeros(2, 5)}, ValueError, "rel_bias must have shape"),
        "bias columns under shift": ({"boundary": "shift"}, ValueError, r"rel_bias.*\(4, 9\), got \(4, 5\)"),
        "bias dtype": ({"rel_bias": torch.zeros(4, 5).half()}, TypeError, "rel_bias must be float32, got float16"),
        "bias device": ({"rel_bias": g["rel_bias"].to("meta")}, ValueError, "rel_bias must be on q's device"),
        "shift, too few frames": (
            {"boundary": "shift", "window": (5, 4)}, ValueError, "boundary 'shift' needs.*10 frames, got 9",
        ),
        "shift, too short a length": (
            {"boundary": "shift", "lengths": torch.tensor([9, 4]), "rel_bias": torch.zeros(4, 9)},
            ValueError, "lengths must be from 5 to 9, got values from 4 to 9",
        ),
        "lengths' shape": ({"lengths": torch.tensor([9, 9, 9])}, ValueError, r"lengths.*\(2,\), got \(3,\)"),
        "lengths' dtype": ({"lengths": torch.tensor([9.0, 3.0])}, TypeError, "lengths must be int32 or int64"),
        "lengths' device": ({"lengths": torch.ones(2).long().to("meta")}, ValueError, "lengths must be on.*device"),
        "negative length": ({"lengths": torch.tensor([9, -1])}, ValueError, "lengths must be from 0 to 9.*-1"),
        "too long": ({"lengths": torch.tensor([10, 9])}, ValueError, "lengths must be from 0 to 9.*10"),
        "dropout of everything": ({"dropout_p": 1.0, "seed": 1}, ValueError, r"dropout_p must be in \[0, 1\), got 1.0"),
        "negative dropout": ({"dropout_p": -0.1, "seed": 1}, ValueError, "dropout_p"),
        "dropout nan": ({"dropout_p": math.nan, "seed": 1}, ValueError, "dropout_p.*nan"),
        "dropout without a seed": ({"dropout_p": 0.5}, ValueError, "seed must be given where dropout_p > 0"),
        "seed too large": ({"seed": 2**64}, ValueError, "seed must be an int from 0"),
        "negative seed": ({"seed": -1}, ValueError, "seed must be.*got -1"),
        "seed no int": ({"seed": 1.5}, ValueError, "seed must be.*got 1.5"),
        "scale nan": ({"scale": math.nan}, ValueError, "scale must be finite, got nan"),
        "unknown backend": ({"backend": "numpy"}, ValueError, "backend must be one of cpu, cuda, reference, triton"),
    }  # fmt: skip


@pytest.mark.parametrize("what", bad_values())
def test_errors_name_the_argument(what: str) -> None:
    window_attention(**good())  # what the case is changed from is fine
    changed, error, message = bad_values()[what]
    with pytest.raises(error, match=message):
        window_attention(**good() | changed)
