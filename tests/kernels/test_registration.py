"""What torch asks of an op beside its values: schema, fakes, autograd, compilation, export, autocast."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sinmdm import kernels
from sinmdm.kernels import (
    Schedule,
    _dispatch,
    affine_step,
    denoise_step,
    norm_affine,
    philox_normal,
    q_sample,
    qna_attention,
    window_attention,
    window_match,
)

SCHEDULE = Schedule.cosine(20)
LENGTHS = torch.tensor([9, 4])


def randn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def words(value: int) -> Tensor:
    return torch.full((2,), value)


def native() -> str:
    return "cpu" if _dispatch.machine_lacks("cpu") is None else "reference"


def attention_inputs(grad: bool = True, boundary: str = "clip", dtype: torch.dtype = torch.float32) -> tuple:
    columns = 9 if boundary == "shift" else 5
    q, k, v = (randn(2, 9, heads, 3, dtype=dtype, grad=grad) for heads in (4, 2, 2))
    return q, k, v, randn(4, columns, grad=grad)


def attention_sample(grad: bool, boundary: str = "clip", lengths: Tensor | None = None, **changed) -> tuple:
    *tensors, bias = attention_inputs(grad, boundary, changed.get("dtype", torch.float32))
    bias = None if changed.get("no_bias") else bias
    backend = changed.get("backend", "reference")
    return (*tensors, bias, lengths, 2, 2, 0.5, boundary, changed.get("dropout_p", 0.0), -7, backend)


def attention_backward_sample() -> tuple:
    q, k, v, bias = attention_inputs(grad=False)
    out, lse = window_attention(q, k, v, bias, window=2, lengths=LENGTHS, return_lse=True, backend="reference")
    return torch.randn_like(out), torch.randn_like(lse), q, k, v, bias, LENGTHS, out, lse


OPTIONS = (2, 2, 0.5, "clip", 0.0, 0)
# Op -> sample inputs: with gradients and without, every optional tensor given and left out, non-contiguous ones.
SAMPLES = {
    "window_attention": [
        lambda: attention_sample(False),
        lambda: attention_sample(True, lengths=LENGTHS),
        lambda: attention_sample(True, "circular", LENGTHS, no_bias=True),
        lambda: attention_sample(True, "shift", dropout_p=0.25),
        lambda: attention_sample(True, dtype=torch.bfloat16),
        lambda: attention_sample(True, lengths=LENGTHS, backend=native()),
        lambda: attention_sample(True, "circular", no_bias=True, dtype=torch.bfloat16, backend=native()),
        lambda: attention_sample(False, "shift", dropout_p=0.25, backend=native()),
        lambda: (
            *(randn(2, 2, 9, 3).transpose(1, 2).requires_grad_() for _ in range(3)), None, None, *OPTIONS, "reference",
        ),
    ],
    "window_attention_backward": [
        lambda: (*attention_backward_sample(), *OPTIONS, True, "reference"),
        lambda: (*attention_backward_sample(), *OPTIONS, False, "reference"),
        lambda: (*attention_backward_sample(), *OPTIONS, True, native()),
        lambda: (*attention_backward_sample(), *OPTIONS, False, native()),
        lambda: (attention_backward_sample()[0], None, *attention_backward_sample()[2:], *OPTIONS, True, "reference"),
    ],
    "qna_attention": [
        lambda: (randn(2, 9, 4), randn(2, 9, 4, 3), randn(4, 5), None, 2, 2, 1, "clip", "reference"),
        lambda: (
            randn(2, 9, 4, grad=True), randn(2, 9, 4, 3, grad=True), randn(4, 5, grad=True), LENGTHS, 2, 2, 2, "clip",
            "reference",
        ),
        lambda: (
            randn(2, 4, 9).transpose(1, 2).requires_grad_(), randn(2, 9, 4, 3), randn(4, 5, grad=True), None, 3, 1, 3,
            "circular", "reference",
        ),
        lambda: (
            randn(2, 9, 4, grad=True), randn(2, 9, 4, 3, grad=True), randn(4, 5, grad=True), LENGTHS, 2, 2, 2,
            "circular", native(),
        ),
        lambda: (
            randn(2, 9, 4, dtype=torch.bfloat16, grad=True), randn(2, 9, 4, 3, dtype=torch.bfloat16), randn(4, 5),
            None, 2, 2, 1, "clip", native(),
        ),
    ],
    "qna_attention_backward": [
        lambda: (
            randn(2, 4, 9, 3).transpose(1, 2), randn(2, 4, 9).transpose(1, 2), randn(2, 4, 9, 3).transpose(1, 2),
            randn(4, 5), None, 2, 2, 1, "clip", "reference",
        ),
        lambda: (
            randn(2, 5, 4, 3), randn(2, 9, 4), randn(2, 9, 4, 3), randn(4, 5), LENGTHS, 2, 2, 2, "clip", "reference",
        ),
        lambda: (
            randn(2, 5, 4, 3), randn(2, 9, 4), randn(2, 9, 4, 3), randn(4, 5), LENGTHS, 2, 2, 2, "clip", native(),
        ),
    ],
    "norm_affine": [
        lambda: (randn(2, 9, 6), randn(2, 6), randn(2, 6), 0, 1e-5, False, "reference"),
        lambda: (
            randn(2, 9, 6, grad=True), randn(1, 6, grad=True), randn(1, 6, grad=True), 3, 1e-5, True, "reference",
        ),
        lambda: (
            randn(2, 6, 9).transpose(1, 2).requires_grad_(), randn(2, 6, grad=True), randn(2, 6), 2, 1e-5, True,
            native(),
        ),
        lambda: (randn(2, 9, 6, dtype=torch.bfloat16, grad=True), randn(1, 6), randn(1, 6), 0, 1e-5, False, native()),
    ],
    "window_match": [
        lambda: (randn(2, 9, 4), randn(1, 8, 4), 3, False, "reference"),
        lambda: (randn(1, 9, 4, dtype=torch.float64), randn(2, 8, 4, dtype=torch.float64), 3, True, native()),
        lambda: (randn(2, 4, 9).transpose(1, 2), randn(2, 8, 4), 3, True, native()),
    ],
    "norm_affine_backward": [
        lambda: (randn(2, 9, 6), randn(2, 9, 6), randn(2, 6), randn(2, 6), 0, 1e-5, True, "reference"),
        lambda: (randn(2, 9, 6), randn(2, 9, 6), randn(1, 6), randn(1, 6), 3, 1e-5, True, native()),
    ],
    "q_sample": [
        lambda: (randn(2, 9, 3), randn(2, 2), None, -7, words(3), words(4), words(5), False, native()),
        lambda: (randn(2, 9, 3, grad=True), randn(2, 2), None, 1, words(3), words(4), words(2**39), True, native()),
        lambda: (
            randn(2, 3, 9).transpose(1, 2).requires_grad_(), randn(2, 2), randn(2, 9, 3, grad=True), 0, words(0),
            words(0), words(0), True, native(),
        ),
        lambda: (
            randn(2, 9, 3, grad=True), randn(2, 2), randn(2, 9, 3), 0, words(0), words(0), words(0), False, "reference",
        ),
    ],
    "q_sample_out": [
        lambda: (
            randn(2, 9, 3), randn(2, 2), None, -7, words(3), words(4), words(5), False, native(),
            torch.empty(2, 3, 9).transpose(1, 2),
        ),
        lambda: (
            randn(2, 9, 3), randn(2, 2), randn(2, 9, 3), 0, words(0), words(0), words(0), True, "reference",
            torch.empty(2, 9, 3),
        ),
    ],
    "denoise_step": [
        lambda: denoise_sample(grad=False),
        lambda: denoise_sample(grad=True),
        lambda: denoise_sample(grad=True, blend=True, given=True),
        lambda: denoise_sample(grad=True, blend=True, second=True, backend="reference"),
        lambda: denoise_sample(grad=True, clips=True),
        lambda: denoise_sample(grad=True, guided=True, blend=True, clips=True, return_x0=True),
        lambda: denoise_sample(grad=True, guided=True, second=True, clips=True, return_x0=True, backend="reference"),
        lambda: denoise_sample(grad=False, guided=True, given=True, return_x0=True),
    ],
    "denoise_step_out": [
        lambda: denoise_out_sample(torch.empty(2, 9, 3), None),
        lambda: denoise_out_sample(torch.empty(2, 3, 9).transpose(1, 2), None, blend=True, second=True),
        lambda: denoise_out_sample(torch.empty(2, 9, 3), None, backend="reference"),
        lambda: denoise_out_sample(torch.empty(2, 9, 3), torch.empty(2, 3, 9).transpose(1, 2), clips=True, guided=True),
        lambda: denoise_out_sample(torch.empty(2, 9, 3), torch.empty(2, 9, 3), clips=True, backend="reference"),
    ],
    "philox_normal": [
        lambda: ([2, 9, 3], -7, words(3), words(4), words(5), torch.device("cpu"), native()),
        lambda: ([2, 0, 3], 0, words(3), words(4), words(0), torch.device("cpu"), "reference"),
    ],
    "philox_normal_out": [
        lambda: (-7, words(3), words(4), words(2**39), native(), torch.empty(2, 9, 3)),
        lambda: (0, words(3), words(4), words(0), "reference", torch.empty(2, 9, 3)),
    ],
}  # fmt: skip


def denoise_inputs(
    grad: bool = False, blend: bool = False, given: bool = False, second: bool = False, clips: bool = False,
    guided: bool = False,
) -> tuple:  # fmt: skip
    def state(wanted: bool = True, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return randn(2, 9, 3, dtype=dtype, grad=grad) if wanted else None

    mask = torch.rand(1, 9, 1).expand(2, 9, 3) if blend else None
    coefficients = randn(2, 10)
    coefficients[:, 3] = 0.5  # the limit: some elements are clipped, others not
    return (
        state(), state(dtype=torch.bfloat16), coefficients, state(guided, torch.float16), state(blend), mask,
        state(second), state(given), clips, not given and not second, 5, words(3), words(4), words(2**33),
    )  # fmt: skip


def denoise_sample(grad: bool, return_x0: bool = False, backend: str | None = None, **which: bool) -> tuple:
    return (*denoise_inputs(grad, **which), return_x0, backend or native())


def denoise_out_sample(out: Tensor, x0_out: Tensor | None, backend: str | None = None, **which: bool) -> tuple:
    return (*denoise_inputs(**which), backend or native(), out, x0_out)


def public_ops() -> list[str]:
    """Every op defined under torch.ops.sinmdm that Python defines a body for."""
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "sinmdm::" in name}
    return sorted(n for n in names if not n.endswith("_native") and n != "cuda_build")


def test_every_public_op_has_samples() -> None:
    assert public_ops() == sorted(SAMPLES)


@pytest.mark.parametrize(("op", "sample"), [(op, i) for op in SAMPLES for i in range(len(SAMPLES[op]))])
def test_opcheck(op: str, sample: int) -> None:
    torch.library.opcheck(getattr(torch.ops.sinmdm, op).default, SAMPLES[op][sample]())


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, lengths: Tensor) -> Tensor:
    out, lse = window_attention(q, k, v, bias, window=2, lengths=lengths, return_lse=True)
    return out + lse.masked_fill(lse == -torch.inf, 0)[..., None]


def attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return window_attention(q, k, v, bias, window=2, boundary="shift", dropout_p=0.3, seed=2**63 + 1)


def learned_query(scores: Tensor, values: Tensor, bias: Tensor, lengths: Tensor) -> Tensor:
    return qna_attention(scores, values, bias, window=2, stride=2, lengths=lengths)


def normed(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return norm_affine(x, gain, offset, groups=3, activation="silu")


def noised(x0: Tensor, t: Tensor) -> Tensor:
    x_t, noise = q_sample(x0, t, SCHEDULE, seed=3, return_noise=True)
    return x_t + noise


def noised_with(x0: Tensor, noise: Tensor) -> Tensor:
    return q_sample(x0, 7, SCHEDULE, noise=noise)


def noised_into_out(x0: Tensor) -> Tensor:
    out = torch.empty_like(x0)
    _, noise = q_sample(x0, 7, SCHEDULE, seed=3, out=out, return_noise=True)
    return out + noise


def step_at_an_int(x: Tensor, output: Tensor) -> Tensor:
    return denoise_step(x, output, 7, SCHEDULE, seed=3, prediction="epsilon")


def step_at_a_tensor(x: Tensor, output: Tensor, t: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    return denoise_step(x, output, t, SCHEDULE, seed=3, eta=0.5, known=known, mask=mask)


def second_order_step(x: Tensor, output: Tensor, previous_x0: Tensor) -> Tensor:
    return denoise_step(x, output, 7, SCHEDULE, previous_x0=previous_x0)


def step_into_out(x: Tensor, output: Tensor) -> Tensor:
    out = torch.empty_like(x)
    denoise_step(x, output, 7, SCHEDULE, seed=3, out=out)
    return out * 2


def clipped_step(x: Tensor, output: Tensor) -> Tensor:
    return denoise_step(x, output, 7, SCHEDULE, seed=3, prediction="v", clip=0.5, frame=2**35)


def guided_step(x: Tensor, output: Tensor, unconditional: Tensor, t: Tensor) -> Tensor:
    state, x0 = denoise_step(
        x, output, t, SCHEDULE, eta=0.0, unconditional=unconditional, guidance=2.0, clip=0.5, clipped_direction=False,
        return_x0=True,
    )  # fmt: skip
    return state + x0


def thresholded_step(x: Tensor, output: Tensor) -> Tensor:
    return denoise_step(x, output, 7, SCHEDULE, seed=3, dynamic_threshold=0.75, clip=1.5)


def clipped_step_in_place(x: Tensor, output: Tensor, previous_x0: Tensor) -> Tensor:
    state, x0 = x.clone(), previous_x0.clone()
    denoise_step(state, output, 7, SCHEDULE, previous_x0=x0, clip=0.5, out=state, x0_out=x0)
    return state + x0


def affine(x: Tensor, output: Tensor, coefficients: Tensor, frame: Tensor) -> Tensor:
    return affine_step(x, output, coefficients, seed=3, step=7, frame=frame)


def noised_piece(x0: Tensor, t: Tensor, frame: Tensor) -> Tensor:
    return q_sample(x0, t, SCHEDULE, seed=3, frame=frame)


def with_noise(x: Tensor) -> Tensor:
    return x + philox_normal((9, 3), seed=3, sample=torch.arange(2), device=x.device)


def with_noise_into_out(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    return x + philox_normal((9, 3), seed=3, sample=torch.arange(2), out=out)


def matched(source: Tensor, target: Tensor) -> Tensor:
    nearest, cost = window_match(source, target, window=3, rebuild=True)
    return nearest + cost[:, None]


STATE = (2, 9, 3)
PUBLIC = {
    "window_match": (matched, lambda: (randn(2, 9, 4), randn(8, 4))),
    "window_attention": (attend, lambda: (*attention_inputs(), LENGTHS)),
    "window_attention with dropout": (attend_with_dropout, lambda: attention_inputs(boundary="shift")),
    "qna_attention": (
        learned_query,
        lambda: (randn(2, 9, 4, grad=True), randn(2, 9, 4, 3, grad=True), randn(4, 5, grad=True), LENGTHS),
    ),
    "norm_affine": (normed, lambda: (randn(2, 9, 6, grad=True), randn(2, 6, grad=True), randn(2, 6, grad=True))),
    "q_sample": (noised, lambda: (randn(*STATE, grad=True), torch.tensor([3, 19]))),
    "q_sample with noise": (noised_with, lambda: (randn(*STATE, grad=True), randn(*STATE, grad=True))),
    "q_sample into out": (noised_into_out, lambda: (randn(*STATE),)),
    "denoise_step": (step_at_an_int, lambda: (randn(*STATE, grad=True), randn(*STATE, grad=True))),
    "denoise_step at tensors": (
        step_at_a_tensor,
        lambda: (
            randn(*STATE, grad=True), randn(*STATE, grad=True), torch.tensor([3, 19]), randn(*STATE, grad=True),
            torch.rand(1, 9, 1),
        ),
    ),
    "denoise_step of second order": (second_order_step, lambda: tuple(randn(*STATE, grad=True) for _ in range(3))),
    "denoise_step with clip": (clipped_step, lambda: (randn(*STATE, grad=True), randn(*STATE, grad=True))),
    "denoise_step with guidance": (
        guided_step, lambda: (*(randn(*STATE, grad=True) for _ in range(3)), torch.tensor([3, 18])),
    ),
    "denoise_step with threshold": (thresholded_step, lambda: (randn(*STATE, grad=True), randn(*STATE, grad=True))),
    "denoise_step in place": (clipped_step_in_place, lambda: tuple(randn(*STATE) for _ in range(3))),
    "affine_step": (
        affine,
        lambda: (randn(*STATE, grad=True), randn(*STATE, grad=True), randn(2, 10).abs(), torch.tensor([3, 2**35])),
    ),
    "q_sample of a piece": (
        noised_piece, lambda: (randn(*STATE, grad=True), torch.tensor([3, 18]), torch.tensor([3, 2**35])),
    ),
    "denoise_step into out": (step_into_out, lambda: (randn(*STATE), randn(*STATE))),
    "philox_normal": (with_noise, lambda: (randn(*STATE, grad=True),)),
    "philox_normal into out": (with_noise_into_out, lambda: (randn(*STATE, grad=True),)),
}  # fmt: skip


def outcome(function, inputs: tuple) -> list[Tensor]:
    """The result, and the gradient of each input that wants one."""
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    result = function(*inputs)
    wanted = [x for x in inputs if x.requires_grad]
    weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *(torch.autograd.grad((result * weight).sum(), wanted) if wanted else ())]


def assert_compiles(name: str, backend: str) -> None:
    function, make = PUBLIC[name]
    inputs = make()
    torch._dynamo.reset()
    expected = outcome(function, inputs)
    actual = outcome(torch.compile(function, fullgraph=True, backend=backend), inputs)
    for x, y in zip(actual, expected, strict=True):
        # The op is the same code. Around it inductor may fuse the few element-wise operations into fewer roundings.
        rounding = 0.0 if backend == "aot_eager" else 4 * torch.finfo(y.dtype).eps * float(y.abs().max())
        assert float((x - y).abs().max()) <= rounding


@pytest.mark.parametrize("name", PUBLIC)
def test_compiles_as_one_graph(name: str) -> None:
    assert_compiles(name, "aot_eager")


@pytest.mark.parametrize(
    "name",
    ["window_attention", "qna_attention", "norm_affine", "q_sample", "denoise_step", "denoise_step with clip",
     "denoise_step with threshold", "philox_normal"],
)  # fmt: skip
def test_compiles_with_inductor(name: str) -> None:
    assert_compiles(name, "inductor")


def test_one_compilation_serves_every_length() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for frames in (9, 13, 70):
            q, k, v = (randn(2, frames, heads, 3) for heads in (4, 2, 2))
            bias, lengths = randn(4, 5), torch.tensor([frames, 4])
            assert torch.equal(compiled(q, k, v, bias, lengths), attend(q, k, v, bias, lengths))


@pytest.mark.parametrize("name", PUBLIC)
def test_fake_tensors(name: str) -> None:
    function, make = PUBLIC[name]
    inputs = make()
    expected = function(*inputs)
    # The schedule's tables and the ints' tensors are real ones.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = function(*(mode.from_tensor(x) for x in inputs))
    assert (fake.shape, fake.dtype, fake.device) == (expected.shape, expected.dtype, expected.device)
    assert fake.stride() == expected.stride()


@pytest.mark.parametrize("name", PUBLIC)
def test_meta_tensors(name: str) -> None:
    function, make = PUBLIC[name]
    inputs = make()
    result = function(*(x.detach().to("meta") for x in inputs))
    assert result.device.type == "meta"
    assert result.shape == function(*inputs).shape


class Attention(torch.nn.Module):
    """The smallest module around the op."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(6, 18)
        self.bias = torch.nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).unbind(2)
        out = window_attention(q, k, v, self.bias, window=2, lengths=lengths)
        assert isinstance(out, Tensor)
        return out.flatten(2)


def test_exports() -> None:
    module = Attention()
    frames = torch.export.Dim("frames", min=2, max=1000)
    exported = torch.export.export(
        module, (randn(2, 9, 6), LENGTHS), dynamic_shapes={"x": {1: frames}, "lengths": None}
    ).module()
    for count in (9, 31):
        x = randn(2, count, 6)
        assert torch.equal(exported(x, LENGTHS), module(x, LENGTHS))


class Sampling(torch.nn.Module):
    """A network and the step that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        noised = q_sample(x, t, SCHEDULE, seed=4, frame=9)
        assert isinstance(noised, Tensor)
        return denoise_step(noised, self.network(noised), t, SCHEDULE, seed=3, clip=0.5, frame=2**35)


def test_a_sampling_step_exports() -> None:
    module, t = Sampling(), torch.tensor([3, 18])
    frames = torch.export.Dim("frames", min=2, max=1000)
    exported = torch.export.export(module, (randn(2, 9, 3), t), dynamic_shapes={"x": {1: frames}, "t": None}).module()
    for count in (9, 31):
        x = randn(2, count, 3)
        assert torch.equal(exported(x, t), module(x, t))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_brings_mixed_inputs_together(dtype: torch.dtype) -> None:
    q, k, v, bias = attention_inputs()
    scores = randn(2, 9, 4, grad=True)
    with torch.autocast("cpu", dtype=dtype):
        out = window_attention(q, k.to(dtype), v, bias, window=2)
        local = qna_attention(scores, q.to(dtype), bias, window=2)
    assert out.dtype == local.dtype == dtype
    assert torch.equal(out, window_attention(q.to(dtype), k.to(dtype), v.to(dtype), bias, window=2))
    assert torch.equal(local, qna_attention(scores.to(dtype), q.to(dtype), bias, window=2))

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            out.float().square().sum() + local.float().sum(), (q, k, v, bias, scores), retain_graph=True
        )

    outside = gradients()
    assert all(g.dtype == torch.float32 for g in outside)  # in the dtype of what the caller holds
    with torch.autocast("cpu", dtype=dtype):  # which a training loop's backward may also run under
        inside = gradients()
    assert all(torch.equal(x, y) for x, y in zip(inside, outside, strict=True))


def test_autocast_leaves_float64_and_states_alone() -> None:
    q, k, v, bias = (x.detach().double() for x in attention_inputs())
    x = randn(*STATE)
    expected = window_attention(q, k, v, bias, window=2), q_sample(x, 7, SCHEDULE, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = window_attention(q, k, v, bias, window=2), q_sample(x, 7, SCHEDULE, seed=3)
        step = denoise_step(x, x.bfloat16(), 7, SCHEDULE, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert step.dtype == torch.float32


def test_a_module_trains_under_autocast() -> None:
    module = Attention()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(randn(2, 9, 6), LENGTHS).float().square().mean()
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in module.parameters())


def test_public_names() -> None:
    assert set(kernels.__all__) >= {
        "window_attention", "qna_attention", "norm_affine", "q_sample", "denoise_step", "affine_step", "philox_normal",
        "window_match", "backends",
    }  # fmt: skip
    assert all(callable(getattr(kernels, name)) for name in kernels.__all__)
