"""The native extension: found where it was built ahead of time, otherwise compiled at first use, otherwise absent.

SINMDM_NATIVE: "auto" (default), "jit" (ignore a prebuilt library), "0" (do without), "1" (an absence is an error).
"""

import hashlib
import importlib.util
import mmap
import os
import threading
import warnings
from pathlib import Path

import torch

MINIMUM_TORCH = "0x020a000000000000"  # the stable ABI of torch 2.10: one library runs on every later version
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", "-fno-math-errno", "-fno-trapping-math"]
LINK_FLAGS = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]  # libtorch must stay a direct dependency
MODES = ("auto", "jit", "0", "1")
HASH_MARK = "sinmdm-source-hash:"

_HERE = Path(__file__).resolve().parent
_state: dict[str, str | None] = {}  # "how" and "why", filled by the first load()
_lock = threading.Lock()


class BackendError(RuntimeError):
    """The backend that was asked for cannot take this call; the message says what is missing."""


def source_folder() -> Path:
    """Where csrc/ lies: inside the package when installed, beside kernels/ in a checkout."""
    installed = _HERE / "csrc"
    return installed if installed.is_dir() else _HERE.parent / "csrc"


def cpu_sources(folder: Path) -> list[Path]:
    """The C++ files of the extension without its CUDA half."""
    return sorted((folder / "cpu").glob("*.cpp"))


def source_hash(folder: Path | None = None) -> str:
    """Hash of everything under csrc/, which a built library carries so that a stale one is noticed."""
    folder = folder or source_folder()
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".cpp", ".cu", ".h")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def defines(folder: Path) -> dict[str, str]:
    """Preprocessor definitions that every C++ file is compiled with."""
    return {"TORCH_TARGET_VERSION": MINIMUM_TORCH, "SINMDM_SOURCE_HASH": source_hash(folder)}


def _is_current(library: Path) -> bool:
    mark = (HASH_MARK + source_hash()).encode()
    if library.stat().st_size == 0:  # which mmap refuses
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(mark) >= 0


def _load_prebuilt() -> bool:
    for library in sorted(_HERE.glob("_C*.so")):
        if _is_current(library):
            torch.ops.load_library(str(library))
            return True
    return False


def _load_jit() -> None:
    from torch.utils import cpp_extension

    if importlib.util.find_spec("ninja") is not None:  # found also where the virtual environment is not activated
        import ninja

        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ.get("PATH", "")
    folder = source_folder()
    stamp = source_hash(folder)
    cpp_extension.load(
        f"sinmdm_native_{stamp}",
        [str(path) for path in cpu_sources(folder)],
        extra_cflags=[*CXX_FLAGS, *(f"-D{name}={value}" for name, value in defines(folder).items())],
        extra_ldflags=LINK_FLAGS,
        extra_include_paths=[str(folder)],
        is_python_module=False,
    )


def _find(mode: str) -> tuple[str | None, str | None]:
    """(how the extension was had, why it was not), one of them None."""
    if mode == "0":
        return None, "SINMDM_NATIVE=0"
    try:
        if mode != "jit" and _load_prebuilt():
            return "ahead of time", None
        _load_jit()
        return "at first use", None
    except Exception as error:
        # Whatever the compiler or loader trips over, plain PyTorch still computes the same thing.
        lines = str(error).strip().splitlines() or [""]
        telling = next((line for line in lines if "error:" in line), lines[0])
        return None, f"{type(error).__name__}: {telling[:200]}"


def load() -> bool:
    """Load the extension once; True where its ops can be called. Warns once where it cannot be had.

    Raises: ValueError where SINMDM_NATIVE is none of its values; BackendError where it is 1 and there is no extension.
    """
    if _state.get("how") is not None:
        return True
    mode = os.environ.get("SINMDM_NATIVE", "auto")
    if mode not in MODES:
        raise ValueError(f"SINMDM_NATIVE must be one of {', '.join(MODES)}, got {mode!r}")
    with _lock:
        if "how" not in _state:
            how, why = _find(mode)
            _state.update(how=how, why=why)
            if why is not None and mode in ("auto", "jit"):
                warnings.warn(
                    f"sinmdm: native kernels are unavailable ({why}); using plain PyTorch, which is slower. "
                    "They need a C++17 compiler.",
                    RuntimeWarning,
                    stacklevel=3,
                )
    if _state["how"] is None and mode == "1":
        raise BackendError(f"SINMDM_NATIVE=1, but the native extension is not available: {_state['why']}")
    return _state["how"] is not None


def how() -> str | None:
    """How the loaded extension was built: "ahead of time", "at first use", or None where there is none."""
    load()
    return _state["how"]


def why_not() -> str | None:
    """Why the extension could not be loaded."""
    return _state.get("why")


def has_cuda() -> bool:
    """Whether the loaded extension holds the CUDA half."""
    return hasattr(torch.ops.sinmdm, "cuda_build")
