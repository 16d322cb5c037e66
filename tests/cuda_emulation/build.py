"""Builds csrc/cuda for the CPU, emulated, as a library of the ops that torch loads.

    python tests/cuda_emulation/build.py LIBRARY [--sanitize] [--only WORD ...]

window_attention in float64, which the GPU build leaves out, is part of it.
"""

import argparse
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from sinmdm.kernels import _native

HERE = Path(__file__).resolve().parent
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]


ALWAYS = ("glue.cpp", "runtime.cu")


def build(
    library: Path, sanitize: bool, source_folder: Path | None = None, only: tuple[str, ...] = (), jobs: int = 2
) -> None:
    """Compile the sources under `source_folder`/cuda (csrc by default) into `library`. Raises where g++ does.

    only: of the ops, those whose files have one of these words in their names.
    """
    folder = source_folder or _native.source_folder()
    torch_folder = Path(torch.__file__).parent
    flags = [
        "-O1", "-std=c++17", "-fPIC", "-Wall", "-Wno-unknown-pragmas", f"-I{HERE}", f"-I{folder}",
        f"-I{torch_folder / 'include'}", *(SANITIZERS if sanitize else []),
        *(f"-D{name}={value}" for name, value in _native.defines(folder).items()),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:

        def compile_one(source: Path) -> Path:
            target = Path(scratch) / f"{source.name}.o"
            command = ["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
            said = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if said.returncode != 0:
                raise RuntimeError(f"{source.name}: {said.stderr[-6000:]}")
            return target

        sources = sorted(p for p in (folder / "cuda").rglob("*") if p.suffix in (".cu", ".cpp"))
        sources += [HERE / "window_attention_float64.cu"]
        if only:
            sources = [p for p in sources if p.name in ALWAYS or any(word in p.name for word in only)]
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compile_one, sources))
        subprocess.run(
            ["g++", "-shared", *(SANITIZERS if sanitize else []), *map(str, objects), "-o", str(library),
             f"-L{torch_folder / 'lib'}", *_native.LINK_FLAGS, "-ltorch_cpu"],
            check=True, timeout=300,
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("--sanitize", action="store_true", help="under AddressSanitizer and UBSan")
    parser.add_argument("--only", nargs="+", default=[], help="words in the names of the files to compile")
    arguments = parser.parse_args()
    build(arguments.library, arguments.sanitize, only=tuple(arguments.only))
