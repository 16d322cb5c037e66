"""What this machine has: versions, backends, and which ops run on which."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from . import __version__
from .kernels import backends, choices, extension, implementations

LIBRARIES = ("numpy", "triton", "roma", "safetensors", "tqdm", "matplotlib", "tensorboard")


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine_info() -> dict[str, Any]:
    """Versions, devices, the native extension, backends (available, or why not), ops, and what was measured of them."""
    have = backends()
    native = extension()
    return {
        "sinmdm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "libraries": {library: _version(library) for library in LIBRARIES},
        "native": f"built {native['built']}" if native["built"] else f"absent: {native['missing']}",
        "native_cuda": native["cuda"],
        "backends": have,
        "ops": {
            op: [name for name in names if have[name] == "available"]
            for op, names in implementations().items()
            if not op.endswith("_backward")
        },
        "choices": choices(),
    }


def format_info(info: dict[str, Any]) -> str:
    """The same for people to read."""
    cuda = f"built with CUDA {info['native_cuda']}" if info["native_cuda"] else "not built in"
    lines = [
        f"sinmdm {info['sinmdm']}, torch {info['torch']}, Python {info['python']}",
        f"{info['platform']}, {info['threads']} threads, CUDA devices: {', '.join(info['devices']) or 'none'}",
        ", ".join(f"{name} {version}" for name, version in info["libraries"].items()),
        "",
        f"native extension  {info['native']}; its CUDA half {cuda}",
        "",
        *(f"backend {name:<10} {state}" for name, state in info["backends"].items()),
        "",
        "op                 backends here, fastest first",
        *(f"{op:<18} {', '.join(names)}" for op, names in info["ops"].items()),
        "",
        "calls on CUDA that were measured; every other takes the first backend above",
        *([f"{calls}: {backend}" for calls, backend in info["choices"].items()] or ["none"]),
    ]
    return "\n".join(lines)
