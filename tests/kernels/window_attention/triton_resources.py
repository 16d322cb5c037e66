"""What the Triton kernels of window_attention take of a device: registers, stack and shared memory, by the compiler's
count. Needs no GPU: the kernels are compiled ahead of time for each target, with just the arguments that the launchers
pass for a main configuration. test_triton_compile.py compares this with the committed table, which is written anew by

    python tests/kernels/window_attention/triton_resources.py --write
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sinmdm.kernels.window_attention import triton as launchers

TABLE = Path(__file__).with_name("triton_resources.json")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}


@dataclass(frozen=True)
class Main:
    """A main configuration: a call of the op with a bias and its gradient, whose kernels are to run without spills."""

    dtype: torch.dtype
    dim: int
    window: int
    targets: tuple[str, ...] = tuple(TARGETS)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} D{self.dim} window {self.window}"


# The training case in both dtypes; a window of many tiles (float32 has the same tiles for every window); and half and
# twice the head_dim, on two targets only, so that all of it stays within two minutes.
MAIN = (
    Main(torch.bfloat16, 64, 16),
    Main(torch.float32, 64, 16),
    Main(torch.bfloat16, 64, 128),
    Main(torch.bfloat16, 32, 16, ("sm_80", "sm_90")),
    Main(torch.bfloat16, 128, 16, ("sm_80", "sm_90")),
)


class _Recorder:
    """Stands for a kernel, and keeps what it is launched with."""

    def __init__(self, kernel: Any, launches: list) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple) -> Any:
        return lambda *arguments, **options: self.launches.append((self.kernel, arguments, options))


def launches(main: Main, amd: bool) -> list[tuple[Any, tuple, dict]]:
    """(kernel, arguments, options) of everything that forward and backward launch."""
    q, k, v, grad = (torch.empty(4, 4096, 8, main.dim, dtype=main.dtype, device="meta") for _ in range(4))
    bias = torch.empty(8, 2 * main.window + 1, device="meta")
    options = (main.window, main.window, main.dim**-0.5, "clip", 0.0, 0)
    made: list[tuple[Any, tuple, dict]] = []
    names = ("_forward", "_backward", "_add_partial")
    replaced = {name: getattr(launchers, name) for name in (*names, "AMD")}
    try:
        launchers.AMD = amd
        for name in names:
            setattr(launchers, name, _Recorder(replaced[name], made))
        out, lse = launchers.window_attention(q, k, v, bias, None, *options)
        launchers.window_attention_backward(grad, None, q, k, v, bias, None, out, lse, *options, True)
    finally:
        for name, value in replaced.items():
            setattr(launchers, name, value)
    return made


def source(kernel: Any, arguments: tuple, options: dict) -> tuple[ASTSource, dict]:
    """What Triton compiles at such a launch: integers 1 are constants, multiples of 16 and pointers are marked."""
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    launch = {name: value for name, value in given.items() if name not in kernel.arg_names}
    signature, constants, marks = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            marks[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or (value == 1 and type(value) is int and not parameter.do_not_specialize):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                marks[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    return ASTSource(kernel, signature, constants, marks), launch


def _nvidia(compiled: Any) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": compiled.metadata.shared}


def _amd(compiled: Any) -> dict[str, int]:
    def count(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", compiled.asm["amdgcn"]).group(1))

    return {
        "registers": count("vgpr_count"),
        "stack": count("private_segment_fixed_size"),
        "spilled": count("vgpr_spill_count"),
        "shared": compiled.metadata.shared,
    }


def measure(main: Main, target: str) -> Iterator[tuple[str, dict[str, int]]]:
    """(kernel, its resources) of one configuration on one target; kernels launched twice are numbered."""
    seen: dict[str, int] = {}
    for kernel, arguments, options in launches(main, target.startswith("gfx")):
        name = kernel.fn.__name__.strip("_")
        seen[name] = seen.get(name, 0) + 1
        what, launch = source(kernel, arguments, options)
        compiled = triton.compile(what, target=TARGETS[target], options=launch)
        resources = _amd(compiled) if target.startswith("gfx") else _nvidia(compiled)
        yield name if seen[name] == 1 else f"{name} {seen[name]}", resources


def table(only: str = "") -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """configuration -> kernel -> target -> resources."""
    result: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for main in MAIN:
        for target in main.targets:
            if only not in f"{main} {target}":
                continue
            begin = time.perf_counter()
            for name, resources in measure(main, target):
                result.setdefault(str(main), {}).setdefault(name, {})[target] = resources
            print(f"{main}, {target}: {time.perf_counter() - begin:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--output", type=Path, default=TABLE, help="where to")
    parser.add_argument("--only", default="", help="a part of the names such as 'float32 D64 window 16 sm_90'")
    arguments = parser.parse_args()
    measured = table(arguments.only)
    for configuration, kernels in measured.items():
        for kernel, targets in kernels.items():
            cells = (f"{target} {'/'.join(map(str, taken.values()))}" for target, taken in targets.items())
            print(f"{configuration:26} {kernel:12}", *cells, sep="  ")
    if arguments.write:
        arguments.output.write_text(json.dumps({"triton": triton.__version__, "kernels": measured}, indent=1) + "\n")
