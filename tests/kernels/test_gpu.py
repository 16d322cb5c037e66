"""Every op on CUDA tensors, at full sizes, on every backend that takes them. Skipped where torch sees no GPU.

The attentions' and norms' comparisons are functions of the device, and tried on the CPU with some of the cases.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gpu_calls import takes
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor

from sinmdm.kernels import (
    Schedule,
    _dispatch,
    denoise_step,
    norm_affine,
    philox_normal,
    q_sample,
    qna_attention,
    window_attention,
)

gpu = pytest.mark.gpu

SCHEDULE = Schedule.cosine(50)
NORMAL_BOUND = 2e-6  # how far two backends' normals may lie apart, by the definition of the stream
GPU_BACKENDS = ("reference", "triton", "cuda")


def on(device: str, tensors: list, dtype: torch.dtype | None = None) -> list:
    """The tensors as leaves on `device`, floats in `dtype`."""
    return [
        x if x is None else x.detach().to(device, dtype if x.is_floating_point() else None).requires_grad_(
            x.is_floating_point()
        )
        for x in tensors
    ]  # fmt: skip


def with_gradients(function: Callable, inputs: list, weight: Tensor) -> dict[str, Tensor]:
    out = function(*inputs)
    leaves = {f"gradient {i}": x for i, x in enumerate(inputs) if x is not None and x.requires_grad}
    gradients = torch.autograd.grad(out, list(leaves.values()), weight.to(out))
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


Case = tuple[Callable, Callable, list]  # backend -> the op, the plain composition, inputs
_exact: dict[tuple, tuple] = {}


def exactly(build: Callable[..., Case], case: tuple, dtype: torch.dtype) -> tuple[list, Tensor, dict[str, Tensor]]:
    """(inputs, gradient of the result, the CPU's float64 results) of a case, computed once for its backends."""
    key = (build, repr(case), dtype)
    if key not in _exact:
        _exact.clear()
        function, _, inputs = build(*case)
        inputs = on("cpu", inputs, dtype)
        weight = torch.randn(function("reference")(*inputs).shape).to(dtype)
        _exact[key] = inputs, weight, with_gradients(function("reference"), on("cpu", inputs, torch.float64), weight)
    return _exact[key]


def assert_near_float64(
    op: str, build: Callable[..., Case], case: tuple, dtype: torch.dtype, backend: str, device: str = "cuda"
) -> None:
    """As near to the CPU's float64 reference as 1.5 times the plain composition on the GPU in the same dtype; float64
    itself to its own digits."""
    takes(op, backend, dtype, device)
    inputs, weight, exact = exactly(build, case, dtype)
    function, plain, _ = build(*case)
    actual = with_gradients(function(backend), on(device, inputs, dtype), weight)
    eager = with_gradients(plain, on(device, inputs, dtype), weight) if dtype != torch.float64 else {}
    batch, frames, *_ = inputs[0].shape
    for name in exact:
        assert actual[name].device.type == device
        if dtype == torch.float64:
            terms = max(batch * frames, *inputs[0].shape)  # of the longest sum: a gradient over all frames, or channels
            assert_same_formula(name, actual[name].cpu(), exact[name], terms)
        else:
            assert_within_budget(name, actual[name], exact[name], eager[name])


def seen(
    frames: int,
    window: int | tuple[int, int],
    boundary: str,
    lengths: list[int],
    device: torch.device,
    stride: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """(key frames, bias columns, visible), each (B, outputs, K): the contract."""
    left, right = window if isinstance(window, tuple) else (window, window)
    size = left + right + 1
    n = torch.tensor(lengths, device=device)[:, None, None]
    i = torch.arange(0, frames, stride, device=device)[:, None]
    column = torch.arange(size, device=device).expand(len(lengths), len(i), size)
    visible = (i < n).expand_as(column)
    if boundary == "shift":
        key = torch.minimum(i - left, n - size).clamp(min=0) + column
        return key.clamp(max=frames - 1), (key - i + left + right).clamp(0, 2 * size - 2), visible
    key = i - left + column
    if boundary == "circular":
        return key % n.clamp(min=1), column, visible
    return key.clamp(0, frames - 1), column, visible & (key >= 0) & (key < n)


def composed(scores: Tensor, visible: Tensor, values: Tensor) -> Tensor:
    """Masked softmax of (B, T, K, H) scores over K, times (B, T, K, H, D) values."""
    weights = scores.masked_fill(~visible[..., None], -1e4).softmax(2).masked_fill(~visible[..., None], 0)
    return torch.einsum("btkh,btkhd->bthd", weights.to(values.dtype), values)


# One tile, many tiles, padded, wrapping, sliding, wider than a tile, grouped, the head_dims the networks use.
ATTENTION = [
    ((2, 9, 4, 2, 8), {"window": 2, "lengths": [9, 4]}),
    ((2, 400, 4, 4, 64), {"window": 16}),
    ((2, 300, 8, 2, 32), {"window": (31, 0), "lengths": [300, 0]}),
    ((1, 300, 2, 2, 64), {"window": (100, 150)}),
    ((2, 200, 4, 4, 64), {"window": 8, "boundary": "circular", "lengths": [200, 7]}),
    ((2, 200, 4, 1, 64), {"window": 8, "boundary": "shift", "lengths": [200, 17]}),
    ((2, 100, 2, 2, 128), {"window": 4, "dropout_p": 0.2, "seed": 2**63 + 5}),
    ((1, 4096, 8, 8, 64), {"window": 16}),  # programs that walk over many tiles
    ((1, 2000, 4, 2, 64), {"window": 128}),
    ((2, 150, 2, 1, 256), {"window": (20, 3)}),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EVERY_DTYPE = [*DTYPES, torch.float64]
HEAD_DIMS = [1, 3, 5, 20, 33, 65, 100, 127, 255]  # that no vector divides, beside a power of two, no multiple of 8


def attention(sizes: tuple[int, ...], options: dict) -> Case:
    batch, frames, heads, kv_heads, dim = sizes
    left, right = options["window"] if isinstance(options["window"], tuple) else (options["window"],) * 2
    size, boundary = left + right + 1, options.get("boundary", "clip")
    columns = 2 * size - 1 if boundary == "shift" else size
    inputs = [torch.randn(batch, frames, h, dim) for h in (heads, kv_heads, kv_heads)] + [torch.randn(heads, columns)]
    lengths = options.get("lengths")

    def function(backend: str) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            given = {} if lengths is None else {"lengths": torch.tensor(lengths, device=q.device)}
            return window_attention(q, k, v, bias, **options | given, backend=backend)

        return call

    def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if "dropout_p" in options:  # which weights are dropped is the reference's to say
            return function("reference")(q, k, v, bias)
        key, column, visible = seen(frames, options["window"], boundary, lengths or [frames] * batch, q.device)
        row = torch.arange(batch, device=q.device)[:, None, None]
        k, v = (x.repeat_interleave(heads // kv_heads, 2)[row, key] for x in (k, v))
        return composed(torch.einsum("bthd,btkhd->btkh", q, k) / dim**0.5 + bias.T[column], visible, v)

    return function, plain, inputs


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize(("sizes", "options"), ATTENTION, ids=str)
def test_window_attention(sizes: tuple[int, ...], options: dict, dtype: torch.dtype, backend: str) -> None:
    if "dropout_p" in options and dtype.itemsize == 2:
        pytest.skip("with dropout there is no plain composition in half types to compare with")
    assert_near_float64("window_attention", attention, (sizes, options), dtype, backend)


# One frame, windows that the networks have, strides, wrapping, a window that sees all, heads and channels that are no
# power of two.
QNA = [
    ((150, 4, 32), {"window": 1}),
    ((648, 4, 32), {"window": 7}),
    ((150, 4, 32), {"window": (1, 2), "stride": 2, "lengths": [150, 31]}),
    ((300, 4, 32), {"window": 3, "boundary": "circular", "lengths": [300, 5]}),
    ((100, 3, 20), {"window": (130, 40), "stride": 3}),
    ((100, 20, 5), {"window": (4, 3), "boundary": "circular", "stride": 2, "lengths": [100, 0]}),
    ((600, 1, 1), {"window": 2}),
    ((70, 2, 256), {"window": (0, 3)}),
]


def learned_query(sizes: tuple[int, int, int], options: dict) -> Case:
    frames, heads, dim = sizes
    left, right = options["window"] if isinstance(options["window"], tuple) else (options["window"],) * 2
    inputs = [torch.randn(2, frames, heads), torch.randn(2, frames, heads, dim), torch.randn(heads, left + right + 1)]
    lengths = options.get("lengths")

    def function(name: str) -> Callable:
        def call(scores: Tensor, values: Tensor, bias: Tensor) -> Tensor:
            given = {} if lengths is None else {"lengths": torch.tensor(lengths, device=scores.device)}
            return qna_attention(scores, values, bias, **options | given, backend=name)

        return call

    def plain(scores: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        boundary, stride = options.get("boundary", "clip"), options.get("stride", 1)
        key, column, visible = seen(frames, options["window"], boundary, lengths or [frames] * 2, scores.device, stride)
        row = torch.arange(2, device=scores.device)[:, None, None]
        return composed(scores[row, key] + bias.T[column], visible, values[row, key])

    return function, plain, inputs


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize(("sizes", "options"), QNA, ids=str)
def test_qna_attention(sizes: tuple[int, int, int], options: dict, dtype: torch.dtype, backend: str) -> None:
    assert_near_float64("qna_attention", learned_query, (sizes, options), dtype, backend)


def any_head_dim(op: str, head_dim: int) -> Case:
    """A case of either attention. In float32 it is held to the reference in the same dtype: the roundings of so small a
    case, down to one channel, are too few for the luck of the plain composition to even out."""
    lengths = [83, 40]
    if op == "window_attention":
        function, plain, inputs = attention((2, 83, 4, 2, head_dim), {"window": (9, 5), "lengths": lengths})
    else:
        function, plain, inputs = learned_query((83, 3, head_dim), {"window": (2, 1), "lengths": lengths})

    def yardstick(*x: Tensor) -> Tensor:
        return plain(*x) if x[0].dtype.itemsize == 2 else function("reference")(*x)

    return function, yardstick, inputs


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("op", ["window_attention", "qna_attention"])
def test_any_head_dim(op: str, head_dim: int, dtype: torch.dtype) -> None:
    assert_near_float64(op, any_head_dim, (op, head_dim), dtype, "cuda")


# (B, T, C), groups, rows of gain and offset: the networks' own, and what no vector or warp divides.
NORMS = [
    ((64, 150, 128), None, 64),
    ((2, 648, 256), 32, 2),
    ((3, 37, 20), None, 1),
    ((3, 37, 21), 7, 3),
    ((2, 50, 1), None, 2),
    ((1, 1, 6), 2, 1),
    ((2, 5, 2000), None, 2),
    ((2, 300, 512), 1, 1),
]


def norm(sizes: tuple[int, int, int], groups: int | None, rows: int) -> Case:
    inputs = [torch.randn(sizes) + 0.5, torch.randn(rows, sizes[2]), torch.randn(rows, sizes[2])]

    def function(name: str) -> Callable:
        activation = "silu" if groups else None
        return lambda *x: norm_affine(*x, groups=groups, activation=activation, backend=name)

    def plain(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        normed = F.group_norm(x.mT, groups).mT if groups else F.layer_norm(x, x.shape[-1:])
        z = normed * gain[:, None] + offset[:, None]
        return F.silu(z) if groups else z

    return function, plain, inputs


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize(("sizes", "groups", "rows"), NORMS, ids=str)
def test_norm_affine(
    sizes: tuple[int, int, int], groups: int | None, rows: int, dtype: torch.dtype, backend: str
) -> None:
    assert_near_float64("norm_affine", norm, (sizes, groups, rows), dtype, backend)


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize(
    ("op", "build", "case"),
    [
        *(("window_attention", attention, case) for case in (ATTENTION[0], *ATTENTION[3:6])),
        *(("qna_attention", learned_query, case) for case in QNA[2:6]),
        *(("norm_affine", norm, case) for case in NORMS[1:4]),
        *((op, any_head_dim, (op, dim)) for op in ("window_attention", "qna_attention") for dim in HEAD_DIMS[:5]),
    ],
)
def test_the_comparisons_on_the_cpu(op: str, build: Callable, case: tuple, dtype: torch.dtype) -> None:
    assert_near_float64(op, build, case, dtype, "cpu", device="cpu")


def states(count: int, layout: str) -> list[Tensor]:
    x = torch.randn(count, 3, 41, 173)
    return list(x.transpose(2, 3).contiguous().transpose(2, 3) if layout == "transposed" else x)


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("given", [True, False])
def test_q_sample(given: bool, layout: str, backend: str) -> None:
    takes("q_sample", backend)
    x0, noise = states(2, layout)
    t = torch.tensor([0, 49, 17])
    expected = q_sample(x0, t, SCHEDULE, **{"noise": noise} if given else {"seed": 2**64 - 1}, backend="reference")
    source = {"noise": noise.cuda()} if given else {"seed": 2**64 - 1}
    actual = q_sample(x0.cuda(), t.cuda(), SCHEDULE, **source, backend=backend)
    # Two products and a sum of terms no larger than the operands, and the normals' own difference.
    rounding = 4 * torch.finfo(torch.float32).eps * 6
    assert float((actual.cpu() - expected).abs().max()) <= rounding + (0 if given else NORMAL_BOUND)


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "second order"])
def test_denoise_step(kind: str, dtype: torch.dtype, layout: str, backend: str) -> None:
    takes("denoise_step", backend)
    x, output, known, previous = states(4, layout)
    output, mask = output.to(dtype), torch.rand(41, 1)
    options = {"ddpm": {"seed": 5}, "ddim": {"seed": 5, "eta": 0.5}, "second order": {"previous_x0": previous}}[kind]
    expected = denoise_step(
        x, output, 20, SCHEDULE, prediction="v", known=known, mask=mask, **options, backend="reference"
    )
    moved = {n: v.cuda() if isinstance(v, Tensor) else v for n, v in options.items()}
    for out in (None, x.cuda()):  # a new state, and in place
        actual = denoise_step(
            x.cuda() if out is None else out, output.cuda(), 20, SCHEDULE, prediction="v", known=known.cuda(),
            mask=mask.cuda(), **moved, out=out, backend=backend,
        )  # fmt: skip
        # Up to eleven roundings of terms no larger than the operands times factors of about 2.
        rounding = 11 * torch.finfo(torch.float32).eps * 2 * 6
        assert float((actual.cpu() - expected).abs().max()) <= rounding + NORMAL_BOUND


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_denoise_step_with_everything(layout: str, backend: str) -> None:
    # Guided, clipped, held by a mask, rows at timesteps and frames of their own, in place, with its x0.
    takes("denoise_step", backend)
    x, output, unconditional, known = states(4, layout)
    output, unconditional = output.bfloat16(), unconditional.half()
    mask, t, frame = torch.rand(3, 1, 173), torch.tensor([1, 20, 40]), torch.tensor([0, 3, 2**40 - 1])

    def call(where: str, backend: str) -> list[Tensor]:
        state, *others = (y.to(where, copy=True) for y in (x, output, t))
        named = {"unconditional": unconditional, "known": known, "mask": mask, "frame": frame}
        return denoise_step(
            state, *others, SCHEDULE, prediction="v", guidance=2.5, clip=1.0, seed=2**64 - 1, return_x0=True,
            **{name: y.to(where) for name, y in named.items()}, out=state if where == "cuda" else None, backend=backend,
        )  # fmt: skip

    for actual, expected in zip(call("cuda", backend), call("cpu", "reference"), strict=True):
        # Up to seventeen roundings of terms no larger than the operands times factors of up to 2.5.
        rounding = 17 * torch.finfo(torch.float32).eps * 2.5 * 6
        assert float((actual.cpu() - expected).abs().max()) <= rounding + NORMAL_BOUND


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 1, 2**64 - 1])
@pytest.mark.parametrize("shape", [(1, 1), (37, 29), (64, 64), (10_000, 125), (0, 4)], ids=str)
def test_philox_normal(shape: tuple[int, int], seed: int, backend: str) -> None:
    takes("philox_normal", backend)
    sample, frame = torch.tensor([0, 2**31, 2**32 - 1]), torch.tensor([0, 3, 2**40 - 1])
    options = {"seed": seed, "step": 2**32 - 1}
    expected = philox_normal(shape, **options, sample=sample, frame=frame, backend="reference")
    actual = philox_normal(shape, **options, sample=sample.cuda(), frame=frame.cuda(), device="cuda", backend=backend)
    assert actual.device.type == "cuda"
    difference = (actual.cpu() - expected).abs()
    assert (float(difference.max()) if difference.numel() else 0.0) <= NORMAL_BOUND


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_philox_normal_into_any_alignment(offset: int, backend: str) -> None:
    # Four elements a thread: as one write where the rows lie on 16 bytes, one by one elsewhere.
    takes("philox_normal", backend)
    buffer = torch.full((37 * 28 + 4,), torch.nan, device="cuda")
    out = buffer[offset : offset + 37 * 28].view(37, 28)
    philox_normal((37, 28), seed=3, out=out, backend=backend)
    expected = philox_normal((37, 28), seed=3, backend="reference")
    assert float((out.cpu() - expected).abs().max()) <= NORMAL_BOUND
    assert int(buffer.isnan().sum()) == 4


@gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_philox_normal_of_more_rows_than_a_grid_has(backend: str) -> None:
    takes("philox_normal", backend)
    sample = torch.arange(70_000, device="cuda")
    normals = philox_normal((1, 5), seed=1, sample=sample, device="cuda", backend=backend)
    expected = philox_normal((1, 5), seed=1, sample=sample[-3:].cpu(), backend="reference")
    assert float((normals[-3:].cpu() - expected).abs().max()) <= NORMAL_BOUND


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_kernels_run_on_the_current_stream(backend: str) -> None:
    takes("philox_normal", backend)
    expected = philox_normal((1000, 1000), seed=1, device="cuda", backend=backend)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        normals = philox_normal((1000, 1000), seed=1, device="cuda", backend=backend) * 1
    stream.synchronize()
    assert torch.equal(normals, expected)


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_window_attention_gives_the_same_bits(backend: str) -> None:
    takes("window_attention", backend, torch.bfloat16)
    function, _, inputs = attention((2, 400, 4, 2, 64), {"window": 16, "lengths": [400, 300]})
    inputs = on("cuda", inputs, torch.bfloat16)
    weight = torch.randn(2, 400, 4, 64, device="cuda")
    first = with_gradients(function(backend), inputs, weight)
    for _ in range(19):
        again = with_gradients(function(backend), inputs, weight)
        assert all(torch.equal(again[name], value) for name, value in first.items())


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [3, 16, 60])
def test_window_attention_leaves_rows_alone_that_see_no_infinity(window: int, dtype: torch.dtype, backend: str) -> None:
    takes("window_attention", backend, dtype)
    function, _, inputs = attention((1, 300, 2, 2, 64), {"window": window})
    weight = torch.randn(1, 300, 2, 64, device="cuda")
    clean = with_gradients(function(backend), on("cuda", inputs, dtype), weight)
    for place, x in enumerate(inputs[:3]):  # q, k, v
        poisoned = [y.clone() for y in inputs]
        poisoned[place][0, 100 + place, :, 7] = (torch.nan, torch.inf, -torch.inf)[place]
        actual = with_gradients(function(backend), on("cuda", poisoned, dtype), weight)
        far = [i for i in range(300) if abs(i - 100) > 2 * window + 2]
        assert torch.equal(actual["out"][:, far], clean["out"][:, far]), x.shape
        assert all(actual[name][:, far].isfinite().all() for name in ("gradient 0", "gradient 1", "gradient 2"))
        assert not actual["out"].isfinite().all()


@gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", ["clip", "circular"])
def test_qna_attention_leaves_frames_alone_that_see_no_infinity(
    boundary: str, dtype: torch.dtype, backend: str
) -> None:
    takes("qna_attention", backend, dtype)
    inputs, weight = [torch.randn(1, 300, 4), torch.randn(1, 300, 4, 32), torch.randn(4, 8)], torch.randn(1, 300, 4, 32)

    def results(scores: Tensor, values: Tensor) -> dict[str, Tensor]:
        return with_gradients(
            lambda *x: qna_attention(*x, window=(3, 4), boundary=boundary, backend=backend),
            on("cuda", [scores, values], dtype) + on("cuda", inputs[2:]), weight,
        )  # fmt: skip

    clean = results(*inputs[:2])
    for place in range(2):  # scores, values
        poisoned = [x.clone() for x in inputs[:2]]
        poisoned[place][0, 100, 1] = (torch.nan, torch.inf)[place]
        actual = results(*poisoned)
        far = [i for i in range(300) if abs(i - 100) > 14]
        assert all(
            torch.equal(actual[name][:, far], clean[name][:, far]) for name in ("out", "gradient 0", "gradient 1")
        )
        assert not actual["out"].isfinite().all()


@gpu
def test_devices_must_agree() -> None:
    q = torch.randn(1, 5, 2, 4, device="cuda")
    cpu = q.cpu()
    x = torch.randn(1, 5, 3, device="cuda")
    for message, call in {
        "k must be on q's device cuda": lambda: window_attention(q, cpu, cpu, window=1),
        "v must be on q's device cuda": lambda: window_attention(q, q, cpu, window=1),
        "rel_bias must be on q's device cuda": lambda: window_attention(q, q, q, torch.zeros(2, 3), window=1),
        "lengths must be on the input's device cuda": lambda: window_attention(
            q, q, q, window=1, lengths=torch.tensor([5])
        ),
        "scores must be on values's device cuda": lambda: qna_attention(cpu[..., 0], q, torch.zeros(2, 3), window=1),
        "model_output must be on x_t's device cuda": lambda: denoise_step(x, x.cpu(), 3, SCHEDULE, seed=1),
        "noise must be on the state's device cuda": lambda: q_sample(x, 3, SCHEDULE, noise=x.cpu()),
        "out must be on the state's device cuda": lambda: q_sample(x, 3, SCHEDULE, seed=1, out=x.cpu()),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(_dispatch.BackendError, match="the tensors are on cuda, it takes cpu"):
        q_sample(x, 3, SCHEDULE, seed=1, backend="cpu")


@gpu
def test_timesteps_may_stay_on_the_cpu_or_lie_on_the_gpu() -> None:
    x = torch.randn(2, 5, 3, device="cuda")
    t = torch.tensor([3, 20])
    expected = denoise_step(x, x, t.cuda(), SCHEDULE, seed=1)
    assert torch.equal(denoise_step(x, x, t, SCHEDULE, seed=1), expected)
    assert torch.equal(
        torch.cat([denoise_step(x[b : b + 1], x[b : b + 1], int(t[b]), SCHEDULE, seed=1, sample=b) for b in range(2)]),
        expected,
    )
