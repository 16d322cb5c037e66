"""Every op as a call that the tests of graphs, streams, devices, schemas and memory make alike, on any device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from tolerance import assert_same_formula, relative_error
from torch import Tensor

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

KERNELS = ("triton", "cuda")  # the backends that a GPU alone has
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
STEPS = 50
SEED = 2**63 + 5
Inputs = dict[str, Tensor]


@cache
def schedule(device: str) -> Schedule:
    """With its tables on the device, so that timesteps which lie there need no copy from the host."""
    return Schedule(Schedule.cosine(STEPS).betas.to(device))


def takes(op: str, backend: str, dtype: torch.dtype = torch.float32, device: str = "cuda") -> None:
    """Skip, saying why, where `backend` does not take `op` on this machine."""
    reason = _dispatch._declines(op, backend, device, str(dtype).removeprefix("torch."))
    if reason is not None:
        pytest.skip(f"{backend} does not take {op}: {reason}")


@dataclass(frozen=True)
class Call:
    """make: new random inputs on the CPU, floats in the given dtype where the op has a choice; "grad_out" is the
    gradient of the result. run: (inputs, backend) -> the results. gradients: the inputs that have one."""

    name: str
    op: str
    make: Callable[[torch.dtype], Inputs]
    run: Callable[[Inputs, str], tuple[Tensor, ...]]
    gradients: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)

    def __str__(self) -> str:
        return self.name

    def on(self, device: str, dtype: torch.dtype) -> Inputs:
        return {name: x.to(device) for name, x in self.make(dtype).items()}

    def results(self, inputs: Inputs, backend: str) -> dict[str, Tensor]:
        """The results, and the gradients of the first. Reads the memory of `inputs` itself, and changes none of it."""
        leaves = {name: inputs[name].detach().requires_grad_() for name in self.gradients}
        with torch.set_grad_enabled(bool(leaves)):
            out, *others = self.run(inputs | leaves, backend)
        found = {"out": out.detach()} | {f"result {i}": x.detach() for i, x in enumerate(others)}
        if leaves:
            gradients = torch.autograd.grad(out, list(leaves.values()), inputs["grad_out"])
            found |= {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}
        return found


def window_call(
    name: str, frames: int, window: tuple[int, int], *, heads: int = 4, kv_heads: int = 2, dim: int = 32,
    boundary: str = "clip", lengths: bool = False, dropout_p: float = 0.0,
) -> Call:  # fmt: skip
    size = sum(window) + 1
    least = size if boundary == "shift" else 0

    def make(dtype: torch.dtype) -> Inputs:
        inputs = {
            which: torch.randn(2, frames, number, dim).to(dtype)
            for which, number in {"q": heads, "k": kv_heads, "v": kv_heads, "grad_out": heads}.items()
        }
        inputs["bias"] = torch.randn(heads, 2 * size - 1 if boundary == "shift" else size)
        return inputs | ({"lengths": torch.randint(least, frames + 1, (2,))} if lengths else {})

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        return window_attention(
            *(inputs[which] for which in ("q", "k", "v", "bias")), window=window, boundary=boundary,
            lengths=inputs.get("lengths"), dropout_p=dropout_p, seed=SEED, return_lse=True, backend=backend,
        )  # fmt: skip

    return Call(f"window_attention {name}", "window_attention", make, run, ("q", "k", "v", "bias"), FLOATS)


def qna_call(
    name: str, frames: int, window: tuple[int, int], *, heads: int = 4, dim: int = 32, stride: int = 1,
    boundary: str = "clip", lengths: bool = False,
) -> Call:  # fmt: skip
    def make(dtype: torch.dtype) -> Inputs:
        inputs = {
            "scores": torch.randn(2, frames, heads).to(dtype),
            "values": torch.randn(2, frames, heads, dim).to(dtype),
            "bias": torch.randn(heads, sum(window) + 1),
            "grad_out": torch.randn(2, -(-frames // stride), heads, dim).to(dtype),
        }
        return inputs | ({"lengths": torch.randint(0, frames + 1, (2,))} if lengths else {})

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        out = qna_attention(
            inputs["scores"], inputs["values"], inputs["bias"], window=window, stride=stride, boundary=boundary,
            lengths=inputs.get("lengths"), backend=backend,
        )  # fmt: skip
        return (out,)

    return Call(f"qna_attention {name}", "qna_attention", make, run, ("scores", "values", "bias"), FLOATS)


def norm_call(name: str, frames: int, channels: int, groups: int | None = None, rows: int = 2) -> Call:
    def make(dtype: torch.dtype) -> Inputs:
        inputs = {which: torch.randn(2, frames, channels).to(dtype) for which in ("x", "grad_out")}
        wide = torch.promote_types(dtype, torch.float32)
        return inputs | {which: torch.randn(rows, channels, dtype=wide) for which in ("gain", "offset")}

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        activation = "silu" if groups else None
        tensors = (inputs[which] for which in ("x", "gain", "offset"))
        return (norm_affine(*tensors, groups=groups, activation=activation, backend=backend),)

    return Call(f"norm_affine {name}", "norm_affine", make, run, ("x", "gain", "offset"), FLOATS)


def match_call(name: str, frames: int, target_frames: int, window: int) -> Call:
    """Of no kernel of a GPU's: the reference serves."""

    def make(dtype: torch.dtype) -> Inputs:
        return {"source": torch.randn(2, frames, 9), "target": torch.randn(target_frames, 9)}

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        return window_match(inputs["source"], inputs["target"], window=window, rebuild=True, backend=backend)

    return Call(f"window_match {name}", "window_match", make, run)


def state_call(
    name: str, op: str, run: Callable[[Inputs, str], tuple[Tensor, ...]], *states: str,
    sizes: tuple[int, int, int] = (3, 37, 29),
) -> Call:  # fmt: skip
    """Of an op on states (B, frames, channels), with words of noise and timesteps that lie on the device."""

    def make(dtype: torch.dtype) -> Inputs:
        rows = sizes[0]
        inputs = {which: torch.randn(sizes) for which in states}
        if "mask" in inputs:
            inputs["mask"] = inputs["mask"].sigmoid()
        if "model_output" in inputs:
            inputs["model_output"] = inputs["model_output"].to(dtype)
        return inputs | {
            "t": torch.randint(1, STEPS - 1, (rows,)),
            "step": torch.randint(0, 2**32, (rows,)),
            "sample": torch.randint(0, 2**32, (rows,)),
            "frame": torch.randint(0, 2**40, (rows,)),
        }

    dtypes = FLOATS if "model_output" in states else (torch.float32,)
    return Call(f"{op} {name}".strip(), op, make, run, dtypes=dtypes)


def _words(inputs: Inputs, *names: str) -> dict[str, Tensor]:
    return {name: inputs[name] for name in names}


def _on(inputs: Inputs) -> Schedule:
    return schedule(str(inputs["t"].device))


def _noised(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
    words = _words(inputs, "step", "sample", "frame")
    return q_sample(inputs["x0"], inputs["t"], _on(inputs), seed=SEED, **words, return_noise=True, backend=backend)


def _noised_with(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
    return (q_sample(inputs["x0"], inputs["t"], _on(inputs), noise=inputs["noise"], backend=backend),)


def _ancestral(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
    state = inputs["x_t"].clone()
    words = _words(inputs, "sample", "frame")
    step = denoise_step(
        state, inputs["model_output"], inputs["t"], _on(inputs), seed=SEED, **words, out=state, backend=backend
    )
    assert step is state
    return (state,)


def _guided(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
    return denoise_step(
        inputs["x_t"], inputs["model_output"], inputs["t"], _on(inputs), prediction="v", eta=0.5, clip=1.0, seed=SEED,
        guidance=2.5, return_x0=True, backend=backend,
        **_words(inputs, "unconditional", "known", "mask", "sample", "frame"),
    )  # fmt: skip


def _second_order(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
    previous = inputs["previous_x0"]
    return (
        denoise_step(
            inputs["x_t"], inputs["model_output"], inputs["t"], _on(inputs), previous_x0=previous, backend=backend
        ),
    )


def _affine(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
    rows = _on(inputs).step_coefficients(inputs["t"], inputs["t"] - 1, prediction="epsilon")
    words = _words(inputs, "step", "sample", "frame")
    return (affine_step(inputs["x_t"], inputs["model_output"], rows, seed=SEED, **words, backend=backend),)


def _normals(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
    words, device = _words(inputs, "sample", "frame"), inputs["t"].device
    return (philox_normal((37, 29), seed=SEED, step=2**32 - 1, **words, device=device, backend=backend),)


CALLS = (
    window_call("clip", 70, (5, 3), lengths=True),
    window_call("circular", 70, (4, 4), boundary="circular", lengths=True),
    window_call("shift, dropout", 70, (6, 2), boundary="shift", lengths=True, dropout_p=0.2),
    window_call("wide", 150, (100, 40), kv_heads=4, dim=64),
    qna_call("clip", 70, (2, 1), stride=2, lengths=True),
    qna_call("circular", 70, (3, 3), boundary="circular", lengths=True),
    norm_call("layer", 70, 48),
    norm_call("groups", 70, 48, groups=8, rows=1),
    match_call("rebuilding", 40, 30, 6),
    state_call("drawn", "q_sample", _noised, "x0"),
    state_call("given", "q_sample", _noised_with, "x0", "noise"),
    state_call("ancestral, in place", "denoise_step", _ancestral, "x_t", "model_output"),
    state_call("guided", "denoise_step", _guided, "x_t", "model_output", "unconditional", "known", "mask"),
    state_call("second order", "denoise_step", _second_order, "x_t", "model_output", "previous_x0"),
    state_call("of coefficients", "denoise_step", _affine, "x_t", "model_output"),
    state_call("", "philox_normal", _normals),
)


def assert_alike(name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype, terms: int = 300) -> None:
    """Two evaluations of a call on inputs of `dtype`, cut into other tiles or laid out otherwise.

    float32 and float64: tolerance.assert_same_formula. Half types are summed in float32; what is rounded to them, up to
    four times between the inputs and a result, may be rounded otherwise in each evaluation: 8 times half their eps, and
    twice that for the gradients that a difference of such numbers magnifies.
    """
    if dtype.itemsize > 2:
        assert_same_formula(name, actual, expected, terms)
        return
    error, allowed = relative_error(actual, expected), 8 * torch.finfo(dtype).eps
    assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same bits, on whatever device."""
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(actual[name].cpu(), x.cpu()), name
