"""Which implementation takes a call: the registry of backends and the one place that chooses between them."""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import _choice, _native
from ._native import BackendError

BACKENDS = ("cuda", "triton", "cpu", "reference")  # fastest first
# Where a default is looked for, by the tensors' device, if no measurement says otherwise (_choice.py). Interpreted
# Triton would take CPU tensors, too: nobody wants that unless asked for.
DEFAULTS = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
ENVIRONMENT_VARIABLE = "SINMDM_BACKEND"


@dataclass(frozen=True)
class Implementation:
    """One backend's body of one op. `dtypes` are the names of the dtypes it takes, for the op's main input."""

    body: Callable[..., Any]
    dtypes: tuple[str, ...]


_IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {}


def register(op: str, backend: str, body: Callable[..., Any], dtypes: tuple[str, ...]) -> None:
    """Make `body` the implementation of `op` on `backend`."""
    _IMPLEMENTATIONS.setdefault(op, {})[backend] = Implementation(body, dtypes)


def body(op: str, backend: str) -> Callable[..., Any]:
    """The function that computes `op` on `backend`."""
    return _IMPLEMENTATIONS[op][backend].body


def _interpreting() -> bool:
    """Whether Triton interprets its kernels, and so takes CPU tensors: slowly, for the tests. Its own variable."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _has_triton() -> bool:
    """Whether Triton can be imported, found without importing it."""
    if "triton" in sys.modules:
        return sys.modules["triton"] is not None
    return importlib.util.find_spec("triton") is not None


def machine_lacks(backend: str) -> str | None:
    """Why this machine cannot run `backend`, or None where it can."""
    if backend == "cpu":
        return None if _native.load() else f"the native extension is not available ({_native.why_not()})"
    if backend == "triton" and not any("triton" in table for table in _IMPLEMENTATIONS.values()):
        return "no op of this version has a Triton kernel"
    if backend == "triton" and not _has_triton():
        return "Triton is not installed"
    if backend == "triton" and _interpreting():
        return None
    if backend in ("cuda", "triton") and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if backend == "cuda" and not (_native.load() and _native.has_cuda()):
        return "the native extension has no CUDA half; CONTRIBUTING.md says how to build it"
    return None


def _declines(op: str, backend: str, device_type: str, dtype: str) -> str | None:
    """Why `backend` cannot take this call of `op`, or None where it can."""
    implementation = _IMPLEMENTATIONS[op].get(backend)
    if implementation is None:
        have = ", ".join(name for name in BACKENDS if name in _IMPLEMENTATIONS[op])
        return f"{op} has no such implementation (it has: {have})"
    if dtype not in implementation.dtypes:
        return f"it takes {', '.join(implementation.dtypes)}, not {dtype}"
    devices: tuple[str, ...] = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}.get(backend, (device_type,))
    if backend == "triton" and _interpreting():
        devices = ("cuda", "cpu")
    if device_type not in devices:
        return f"the tensors are on {device_type}, it takes {' or '.join(devices)}"
    return machine_lacks(backend)


def _choose(op: str, requested: str | None, device_type: str, dtype: str, shape: str | None = None) -> str:
    requested = requested or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if requested is None:
        table = _IMPLEMENTATIONS[op]
        order = DEFAULTS.get(device_type, ("reference",))
        if shape is not None:
            order = (*_choice.measured(op, dtype, shape), *order)
        usable = (name for name in order if name in table)
        return next(name for name in usable if _declines(op, name, device_type, dtype) is None)
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(sorted(BACKENDS))}, got {requested!r}")
    reason = _declines(op, requested, device_type, dtype)
    if reason is not None:
        raise BackendError(f"backend {requested!r} cannot take this call of {op}: {reason}")
    return requested


# What torch.compiler.assume_constant_result sets: a compiled graph holds the choice. Calling that would import the
# compiler, and Triton with it, in every program that imports this package.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(
    op: str, requested: str | None, tensor: torch.Tensor, *, columns: int = 0, elements: int | None = None
) -> str:
    """Name of the backend that takes a call of `op` on `tensor`.

    `requested`, or else the environment variable SINMDM_BACKEND, forces one. Raises ValueError for a name that is no
    backend and BackendError for one that cannot take the call: there is no silent fallback. Otherwise it is the first
    of DEFAULTS that can, on CUDA after the one that was measured to be faster on such calls: `columns` is the number
    of keys that a query sees, `elements` the size of the result where `tensor` does not tell.
    """
    device_type = tensor.device.type
    shape = None
    # An exported program takes every size: it must not have one class built in as a condition.
    if device_type == "cuda" and not torch.compiler.is_exporting():
        differentiated = torch.is_grad_enabled() and tensor.requires_grad
        shape = _choice.shape_class(tensor.numel() if elements is None else elements, columns, differentiated)
    return _choose(op, requested, device_type, str(tensor.dtype).removeprefix("torch."), shape)


def backends() -> dict[str, str]:
    """Backend name -> "available", or why this machine does not have it."""
    return {name: machine_lacks(name) or "available" for name in sorted(BACKENDS)}


def implementations() -> dict[str, tuple[str, ...]]:
    """Op name -> the backends it has an implementation for, fastest first."""
    return {op: tuple(name for name in BACKENDS if name in table) for op, table in sorted(_IMPLEMENTATIONS.items())}


def choices() -> dict[str, str]:
    """Class of calls on CUDA -> the backend that its measurements say, on which device, and whether they are stale."""
    return _choice.report()


def extension() -> dict[str, str | None]:
    """The native extension: "built" (how, or None), "missing" (why, or None), "cuda" (its CUDA runtime, or None)."""
    there = _native.load()
    return {
        "built": _native.how() if there else None,
        "missing": _native.why_not(),
        "cuda": torch.ops.sinmdm.cuda_build() if there and _native.has_cuda() else None,
    }
