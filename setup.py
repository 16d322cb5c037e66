"""The native extension; everything else about the package is in pyproject.toml.

SINMDM_NATIVE: "auto" (default: build it where torch is importable, go on without where that fails), "0" (never),
"1" (a failure is an error), "jit" (leave it to the first use). SINMDM_FORCE_CUDA: "1" builds the CUDA half also where
torch has no CUDA, "0" never. TORCH_CUDA_ARCH_LIST, NVCC: as usual.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0a;10.0;12.0+PTX"


def build_facts():
    """kernels/_native.py, loaded as a file: the sources, flags and hash that the loader at run time uses too."""
    spec = importlib.util.spec_from_file_location("_sinmdm_native_build", HERE / "kernels" / "_native.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_cuda_home():
    """The toolkit, by nvcc's own word: where the nvcc on PATH is a wrapper script, it lies in another folder."""
    nvcc = shutil.which(os.environ.get("NVCC") or "nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else None


def native():
    mode = os.environ.get("SINMDM_NATIVE", "auto")
    force_cuda = os.environ.get("SINMDM_FORCE_CUDA")
    if mode not in ("auto", "jit", "0", "1"):
        raise SystemExit(f"SINMDM_NATIVE must be one of auto, jit, 0, 1, got {mode!r}")
    if mode in ("0", "jit"):
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        if mode == "1" or force_cuda == "1":
            raise SystemExit(
                "SINMDM_NATIVE=1 and SINMDM_FORCE_CUDA=1 build ahead of time, which needs torch where the build runs: "
                "install torch first, then use pip's --no-build-isolation"
            ) from None
        return {}
    facts = build_facts()
    sources = [path.relative_to(HERE).as_posix() for path in facts.cpu_sources(HERE / "csrc")]
    cuda_home = find_cuda_home() if force_cuda == "1" or (torch.version.cuda and force_cuda != "0") else None
    libraries, library_dirs, include_dirs = [], [], [str(HERE / "csrc")]
    if cuda_home is not None:
        cpp_extension.CUDA_HOME = str(cuda_home)  # a torch without CUDA leaves it None
        sources += sorted(path.relative_to(HERE).as_posix() for path in (HERE / "csrc/cuda").glob("*.c*"))
        # Statically: the library then runs beside whichever CUDA runtime torch brings.
        libraries = ["cudart_static", "dl", "rt", "pthread"]
        lib = next(
            d for d in (cuda_home / "lib64", cuda_home / "targets/x86_64-linux/lib", cuda_home / "lib") if d.is_dir()
        )
        library_dirs, include_dirs = [str(lib)], [*include_dirs, str(cuda_home / "include")]
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    elif force_cuda == "1":
        raise SystemExit("SINMDM_FORCE_CUDA=1, but there is no nvcc on PATH (or NVCC)")

    class Build(cpp_extension.BuildExtension):
        built = True

        def run(self):
            try:
                super().run()
            except Exception as error:  # ninja's failures are plain RuntimeErrors
                if mode == "1":
                    raise
                self.built = False
                print(f"sinmdm: installing without native kernels: {error}", file=sys.stderr)

        def copy_extensions_to_source(self):
            if self.built:
                super().copy_extensions_to_source()

        def get_outputs(self):
            return super().get_outputs() if self.built else []

        def get_output_mapping(self):
            return super().get_output_mapping() if self.built else {}

    extension = cpp_extension.CppExtension(
        "sinmdm.kernels._C",
        sources,
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        libraries=libraries,
        define_macros=list(facts.defines(HERE / "csrc").items()),
        extra_compile_args={"cxx": facts.CXX_FLAGS, "nvcc": ["-O3", "-std=c++17", "--threads", "2"]},
        extra_link_args=facts.LINK_FLAGS,
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**native())
