"""The words of the benchmark: a case (what is computed, on which sizes), its variants, and the op they belong to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
Function = Callable[[Inputs], Tensor]
Build = Callable[["Case", Inputs], Function]


def _never(case: "Case", device: str) -> str | None:
    return None


def _same_layout(case: "Case", name: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, eq=False)
class Variant:
    """One way of computing an op.

    build: set-up outside the clock (masks of a fixed bias, buffers); returns the function that is timed.
    declines: (case, "cpu" or "cuda") -> why the variant cannot take it, or None.
    draws_own_noise: its random numbers are not ours, so that only their law can be checked.
    computes: what it computes where that is not the op itself ("no bias"). Its time stands beside the others', marked
        so; its numbers are looked at for shape and finiteness only. It may ignore inputs.
    slow_start: compiles for seconds; left out of --quick.
    into, back: an input from our layout into its own, and a result or gradient back, both outside the clock.
    """

    name: str
    build: Build
    declines: Callable[["Case", str], str | None] = _never
    draws_own_noise: bool = False
    computes: str = ""
    slow_start: bool = False
    into: Callable[["Case", str, Tensor], Tensor] = _same_layout
    back: Callable[["Case", str, Tensor], Tensor] = _same_layout
    ours: bool = False


@dataclass(frozen=True, eq=False)
class Op:
    """What the cases of an op share.

    inputs: (case, generator) -> named tensors on the CPU; with a backward "grad_out" is the gradient of the result.
    exact: the result, computed in float64 from float64 inputs.
    ours: one backend of ours as a variant.
    differentiable: the inputs whose gradients a backward case takes.
    normals_of: the standard normals that a result must have been made with; for variants that draw their own.
    backends_of: the op of the library whose backends are our variants; "": the one of this name.
    """

    name: str
    inputs: Callable[["Case", torch.Generator], Inputs]
    exact: Build
    ours: Callable[[str], Variant]
    differentiable: tuple[str, ...] = ()
    normals_of: Callable[["Case", Inputs, Tensor], Tensor] | None = None
    backends_of: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """One row group of the report.

    peers: other people's ways of computing the same; the first is the baseline, which speed-ups are quoted against.
    bytes_moved: each input read once, each output written once. operations: see registry.py, where it is counted.
    devices: where the case is run. quick: also under --quick.
    """

    name: str
    op: Op
    shape: Mapping[str, int]
    dtype: str
    peers: tuple[Variant, ...]
    bytes_moved: int
    operations: int
    backward: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    quick: bool = False
    outputs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        gradients = tuple(f"d_{name}" for name in self.op.differentiable) if self.backward else ()
        object.__setattr__(self, "outputs", ("out", *gradients))

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def baseline(self) -> str:
        return self.peers[0].name
