"""What the Triton kernels of philox_normal, q_sample and denoise_step take of a device, by the compiler's count. Needs
no GPU: each is compiled ahead of time for each target, as a launch with the arguments of a main configuration would
be. test_triton_diffusion.py compares this with the committed table, which is written anew by

    python tests/kernels/triton_diffusion_resources.py --write
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from sinmdm.kernels.denoise_step import triton as denoise_step
from sinmdm.kernels.philox import triton as philox_normal
from sinmdm.kernels.q_sample import triton as q_sample

TABLE = Path(__file__).with_name("triton_diffusion_resources.json")


def _attention() -> ModuleType:
    """The script that does this for window_attention, by its path: no name leads to it."""
    path = Path(__file__).parent / "window_attention/triton_resources.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


attention = _attention()
KERNELS = ((philox_normal, "_philox_normal"), (q_sample, "_q_sample"), (denoise_step, "_denoise_step"))
ROWS, FRAMES = 4, 300
WORDS = torch.empty(ROWS, dtype=torch.int64, device="meta")
DRAW = (1, WORDS, WORDS, WORDS)  # a seed of which Triton would make a constant if it could


def state(channels: int, dtype: torch.dtype = torch.float32, transposed: bool = False) -> Tensor:
    x = torch.empty(ROWS, *((channels, FRAMES) if transposed else (FRAMES, channels)), dtype=dtype, device="meta")
    return x.transpose(1, 2) if transposed else x


def coefficients(columns: int) -> Tensor:
    return torch.empty(ROWS, columns, device="meta")


def normals(channels: int) -> None:
    philox_normal.philox_normal(*DRAW, state(channels))


def noised(channels: int) -> None:
    x = state(channels)
    q_sample.q_sample(x, coefficients(2), None, *DRAW, state(channels), x)


def ancestral(channels: int) -> None:
    """Clipped, in place, of a half-precision network."""
    x, output = state(channels), state(channels, torch.bfloat16)
    denoise_step.denoise_step(x, output, coefficients(10), *[None] * 5, True, True, *DRAW, x, None)


def second_order(channels: int) -> None:
    x, previous = state(channels), state(channels)
    denoise_step.denoise_step(
        x, state(channels), coefficients(10), None, None, None, previous, None, False, False, *DRAW, x, previous
    )


def everything(channels: int) -> None:
    """Guided by predictions that lie frames last, clipped, held where a mask of one number a frame says; x0 too."""
    x, output = state(channels), state(channels, torch.bfloat16, transposed=True)
    mask = state(1).expand(ROWS, FRAMES, channels)
    denoise_step.denoise_step(
        x, output, coefficients(10), output, state(channels), mask, None, None, True, True, *DRAW, x, state(channels)
    )


def strided(channels: int) -> None:
    """As `everything`, and all of it lies frames last."""
    x, output = state(channels, transposed=True), state(channels, torch.bfloat16, transposed=True)
    denoise_step.denoise_step(x, output, coefficients(10), output, x, x, None, None, True, True, *DRAW, x, x)


def smallest(channels: int) -> None:
    """Sizes and strides of 1, which are constants to Triton."""
    x = torch.empty(1, ROWS, device="meta").T[..., None].expand(ROWS, 1, channels)
    q_sample.q_sample(x, coefficients(2), None, *DRAW, x, x)


# Rows that begin within a counter, and rows that do not; the last has sizes of more than 31 bits.
MAIN: tuple[tuple[Callable[[int], None], int], ...] = (
    *((function, channels) for function in (normals, noised, ancestral, second_order) for channels in (173, 256)),
    (smallest, 1),
    (everything, 173),
    (strided, 173),
    (strided, 2**31 + 7),
)


def launched(function: Callable[[int], None], channels: int) -> tuple[Any, tuple, dict]:
    """(kernel, arguments, options) of the one kernel that `function` launches."""
    made: list[tuple[Any, tuple, dict]] = []
    with ExitStack() as stack:
        for module, name in KERNELS:
            stack.enter_context(patch.object(module, name, attention._Recorder(getattr(module, name), made)))
        function(channels)
    (launch,) = made
    return launch


def measure(function: Callable[[int], None], channels: int, target: str) -> dict[str, int]:
    kernel, arguments, options = launched(function, channels)
    backend = make_backend(attention.TARGETS[target])
    # As JITFunction.run goes about it.
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, given = binder(*arguments, **options)
    parsed, signature, constants, marks = kernel._pack_args(backend, options, bound, specialization, given)
    source = ASTSource(kernel, signature, constants, marks)
    compiled = triton.compile(source, target=attention.TARGETS[target], options=parsed.__dict__)
    return attention._amd(compiled) if target.startswith("gfx") else attention._nvidia(compiled)


def table() -> dict[str, dict[str, dict[str, int]]]:
    """configuration -> target -> resources."""
    return {
        f"{function.__name__} {channels}": {target: measure(function, channels, target) for target in attention.TARGETS}
        for function, channels in MAIN
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--output", type=Path, default=TABLE, help="where to")
    arguments = parser.parse_args()
    measured = table()
    for configuration, targets in measured.items():
        cells = (f"{target} {'/'.join(map(str, taken.values()))}" for target, taken in targets.items())
        print(f"{configuration:20}", *cells, sep="  ")
    if arguments.write:
        arguments.output.write_text(json.dumps({"triton": triton.__version__, "kernels": measured}, indent=1) + "\n")
