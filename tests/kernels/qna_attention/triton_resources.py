"""What the Triton kernels of qna_attention take of a device, by the compiler's count. Needs no GPU: each is compiled
ahead of time for each target, as the launches of a main configuration would be. test_triton.py compares this with the
committed table, which is written anew by

    python tests/kernels/qna_attention/triton_resources.py --write
"""

import argparse
import importlib.util
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from sinmdm.kernels.qna_attention import triton as launchers

TABLE = Path(__file__).with_name("triton_resources.json")


def _attention() -> ModuleType:
    """The script that does this for window_attention, by its path: no name leads to it."""
    path = Path(__file__).parents[1] / "window_attention/triton_resources.py"
    spec = importlib.util.spec_from_file_location(f"attention_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


attention = _attention()
KERNELS = ("_forward", "_backward", "_add_partial")
BATCH, FRAMES, HEADS = 64, 648, 4


@dataclass(frozen=True)
class Main:
    """A call and its gradients, whose kernels are to run without spills."""

    dtype: torch.dtype
    dim: int
    keys: int
    stride: int = 1
    boundary: str = "clip"
    targets: tuple[str, ...] = tuple(attention.TARGETS)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} D{self.dim} keys {self.keys} {self.boundary} /{self.stride}"


# The networks' heads, under their windows (whose number is an argument: nothing of a window is compiled in); a layer
# that halves the frames; frames that wrap; the widest heads, in the largest tiles.
MAIN = (
    *(Main(dtype, 32, keys) for dtype in (torch.bfloat16, torch.float32) for keys in (3, 15)),
    Main(torch.bfloat16, 32, 4, stride=2),
    Main(torch.bfloat16, 32, 7, boundary="circular"),
    *(Main(dtype, 256, 3, targets=("sm_80", "sm_90", "gfx942")) for dtype in (torch.bfloat16, torch.float32)),
)


def launches(main: Main) -> list[tuple[Any, tuple, dict]]:
    """(kernel, arguments, options) of everything that forward and backward launch."""
    outputs = -(-FRAMES // main.stride)
    shapes = ((BATCH, outputs, HEADS, main.dim), (BATCH, FRAMES, HEADS), (BATCH, FRAMES, HEADS, main.dim))
    grad, scores, values = (torch.empty(shape, dtype=main.dtype, device="meta") for shape in shapes)
    inputs = (scores, values, torch.empty(HEADS, main.keys, device="meta"), None)
    options = ((main.keys - 1) // 2, main.keys // 2, main.stride, main.boundary)
    made: list[tuple[Any, tuple, dict]] = []
    with ExitStack() as stack:
        for name in KERNELS:
            stack.enter_context(patch.object(launchers, name, attention._Recorder(getattr(launchers, name), made)))
        launchers.qna_attention(*inputs, *options)
        launchers.qna_attention_backward(grad, *inputs, *options)
    return made


def compile_for(target: str, kernel: Any, arguments: tuple, options: dict) -> Any:
    """The kernel as such a launch would compile it."""
    backend = make_backend(attention.TARGETS[target])
    # As JITFunction.run goes about it.
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, given = binder(*arguments, **options)
    parsed, signature, constants, marks = kernel._pack_args(backend, options, bound, specialization, given)
    source = ASTSource(kernel, signature, constants, marks)
    return triton.compile(source, target=attention.TARGETS[target], options=parsed.__dict__)


def measure(main: Main, target: str) -> Iterator[tuple[str, dict[str, int]]]:
    """(kernel, its resources) of one configuration on one target; kernels launched twice are numbered."""
    seen: dict[str, int] = {}
    for kernel, arguments, options in launches(main):
        name = kernel.fn.__name__.strip("_")
        seen[name] = seen.get(name, 0) + 1
        compiled = compile_for(target, kernel, arguments, options)
        resources = attention._amd(compiled) if target.startswith("gfx") else attention._nvidia(compiled)
        yield name if seen[name] == 1 else f"{name} {seen[name]}", resources


def table() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """configuration -> kernel -> target -> resources."""
    result: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for main in MAIN:
        for target in main.targets:
            for name, resources in measure(main, target):
                result.setdefault(str(main), {}).setdefault(name, {})[target] = resources
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--output", type=Path, default=TABLE, help="where to")
    arguments = parser.parse_args()
    measured = table()
    for configuration, kernels in measured.items():
        for kernel, targets in kernels.items():
            cells = (f"{target} {'/'.join(map(str, taken.values()))}" for target, taken in targets.items())
            print(f"{configuration:30} {kernel:12}", *cells, sep="  ")
    if arguments.write:
        arguments.output.write_text(json.dumps({"triton": triton.__version__, "kernels": measured}, indent=1) + "\n")
