"""What the CUDA kernels take of a device: registers, stack and shared memory, read from the built extension.

Needs nvcc and no GPU. test_cuda_build.py compares this with the committed table, which is written anew by

    python tests/cuda_resources.py --write
"""

import argparse
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".json")
ARCHITECTURES = {"8.0": "sm_80", "9.0a": "sm_90a", "10.0": "sm_100", "12.0+PTX": "sm_120"}
# The largest head_dim of window_attention's main configurations: larger rows do not fit into the registers.
WITHOUT_STACK_UP_TO = {"__half": 128, "__nv_bfloat16": 128, "float": 64}

Resources = dict[str, dict[str, dict[str, int]]]  # kernel -> architecture -> what it takes


def cuobjdump() -> str | None:
    """The tool that reads a library's kernels: on PATH, or Triton's own."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        path = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(path) if path.is_file() else None
    return found


def nvcc_version() -> str:
    """ "13.0.88": other versions give other registers."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release [\d.]+, V([\d.]+)", said).group(1)


@dataclass(frozen=True)
class Build:
    """The extension with its CUDA half for every architecture, and what it took: in all, while nvcc was at work, and of
    the processors, which is the same however many of them there are and whatever else they do."""

    library: Path
    seconds: float
    nvcc_seconds: float
    processor_seconds: float


def build(folder: Path) -> Build:
    """Build the extension under `folder` as an installation does, with setup.py. Raises where a compiler does."""
    environment = os.environ | {
        "SINMDM_NATIVE": "1",
        "SINMDM_FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": ";".join(ARCHITECTURES),
        # ninja, also where the virtual environment is not activated
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    begin, used = time.perf_counter(), _children()
    said = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib"),
         "--build-temp", str(folder / "temp")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    if said.returncode != 0:
        raise RuntimeError((said.stdout + said.stderr)[-4000:])
    (library,) = (folder / "lib").rglob("_C*.so")
    return Build(library, time.perf_counter() - begin, _nvcc_seconds(folder / "temp"), _children() - used)


def _children() -> float:
    """Processor seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _nvcc_seconds(folder: Path) -> float:
    """How long any file of csrc/cuda that is nvcc's was being compiled, by ninja's log."""
    (log,) = folder.rglob(".ninja_log")
    # begin, end (milliseconds), time of the file, output, hash of the command
    lines = [line.split("\t") for line in log.read_text().splitlines() if not line.startswith("#")]
    sources = {path.stem for path in (ROOT / "csrc/cuda").rglob("*.cu")}
    total = last = 0
    for begin, end in sorted((int(x[0]), int(x[1])) for x in lines if Path(x[3]).stem in sources):
        total += max(0, end - max(begin, last))
        last = max(last, end)
    return total / 1000


def readable(symbols: str) -> list[str]:
    """Mangled names, one a line, as `kernel<types, numbers>`: no namespaces, no parameters.

    A name inside a function, such as a lambda's, is left as it is: it is no kernel's.
    """
    said = subprocess.run(["c++filt"], input=symbols, capture_output=True, text=True, check=True).stdout
    return [_without_parameters(line) for line in said.splitlines()]


def _without_parameters(name: str) -> str:
    plain = name.replace("(anonymous namespace)::", "")
    depth = 0
    for at, letter in enumerate(plain):
        if letter == "(" and depth == 0:
            if not plain.endswith(")") or ")::" in plain[at:]:
                return name
            plain = plain[:at]
            break
        depth += (letter == "<") - (letter == ">")
    head, bracket, arguments = plain.partition("<")
    head = head.split(" ")[-1].split("::")[-1]  # a template's name has the type of its result before it
    return head + bracket + re.sub(r"\b(?:\w+::)+", "", arguments)


def measure(library: Path) -> Resources:
    """What every kernel of the library takes, by architecture. The PTX for later ones is no kernel yet."""
    said = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", str(library)], capture_output=True, text=True, check=True
    ).stdout
    found = []
    for block in re.split(r"\narch = ", said)[1:]:
        architecture = block.split()[0]
        for mangled, usage in re.findall(r"Function (\w+):\n(.*)", block):
            numbers = dict(re.findall(r"(\w+):(\d+)", usage))
            taken = {"registers": "REG", "stack": "STACK", "shared": "SHARED"}  # spilled registers are on the stack
            found.append((mangled, architecture, {name: int(numbers[key]) for name, key in taken.items()}))
    names = readable("\n".join(mangled for mangled, _, _ in found))
    result: Resources = {}
    for name, (_, architecture, taken) in sorted(zip(names, found, strict=True), key=lambda pair: pair[0]):
        # A template that several files use is in the library several times.
        same = result.setdefault(name, {}).setdefault(architecture, taken)
        result[name][architecture] = {key: max(same[key], taken[key]) for key in taken}
    order = list(ARCHITECTURES.values())
    return {name: dict(sorted(of.items(), key=lambda item: order.index(item[0]))) for name, of in result.items()}


def may_use_stack(kernel: str) -> bool:
    """Whether `kernel` is in no main configuration: float64, and rows of window_attention that registers cannot hold.

    Any other's stack would cost more than anything else in it.
    """
    name, _, rest = kernel.partition("<")
    arguments = rest.removesuffix(">").split(", ")
    if "double" in arguments:
        return True
    if name in ("window_forward", "window_backward"):
        element, head_dim = arguments[:2]
        return int(head_dim) > WITHOUT_STACK_UP_TO[element]
    return False


def text_of(table: dict) -> str:
    """The table as JSON, one line a kernel and architecture."""
    innermost = re.compile(r"{[^{}]+}")
    return innermost.sub(lambda row: re.sub(r"\s*\n\s*", " ", row.group()), json.dumps(table, indent=1)) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--library", type=Path, help="one that is built already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        library = arguments.library
        if library is None:
            built = build(Path(scratch))
            library = built.library
            print(f"built in {built.seconds:.0f} s, of which nvcc was at work {built.nvcc_seconds:.0f} s")
        measured = {"nvcc": nvcc_version(), "kernels": measure(library)}
    for kernel, architectures in measured["kernels"].items():
        cells = (f"{name} {taken['registers']}/{taken['stack']}" for name, taken in architectures.items())
        print(f"{kernel:60}", *cells, sep="  ")
    if arguments.write:
        TABLE.write_text(text_of(measured))
