"""Where a figure comes from: machine, versions, commit, and the hash of the kernel sources that it timed."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from sinmdm.kernels import _choice, extension

ROOT = Path(__file__).resolve().parents[1]
TELLING_FLAGS = re.compile(
    r"avx2|fma|f16c|avx512f|avx512vl|avx512_(bf16|fp16|vnni)|avx_vnni|amx_\w+|asimd|sve\d?|i8mm|bf16"
)
ALLOCATOR_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "LD_PRELOAD")
PEERS = ("local-attention", "natten", "flash-attn")


def kernel_hash(root: Path = ROOT) -> str:
    """Hash of everything under kernels/ and csrc/ that decides how fast an op is."""
    return _choice.kernel_hash(root / "kernels", root / "csrc")


def is_stale(provenance: dict, today: str | None = None) -> bool:
    """Whether the kernels have changed since the figures with this provenance were measured."""
    return provenance.get("kernel_hash") != (today or kernel_hash())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str | None:
    """Hash of the commit, with "+dirty" where tracked files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def cpu() -> dict:
    """Model, cores, and the vector extensions that matter here."""
    found: dict = {"model": platform.processor() or platform.machine(), "flags": []}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    if model:
        found["model"] = model.group(1).strip()
    if flags:
        found["flags"] = sorted({flag for flag in flags.group(1).split() if TELLING_FLAGS.fullmatch(flag)})
    physical = set(re.findall(r"^physical id\s*:\s*(\d+).*?^core id\s*:\s*(\d+)", text, re.MULTILINE | re.DOTALL))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return found | {"cores": len(physical) or os.cpu_count(), "usable_cpus": usable}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> dict:
    properties = torch.cuda.get_device_properties(0)
    try:
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout.split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver or None,
        "cuda": torch.version.cuda,
    }


def device_slug(device: str) -> str:
    """The name of a device in a file name."""
    if device == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")


def collect(device: str) -> dict:
    """Everything that a figure needs to be judged by, as JSON types."""
    native = extension()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "kernel_hash": kernel_hash(),
        "native_extension": native["built"] or f"none: {native['missing']}",
        "native_cuda": native["cuda"],
        "device": device,
        "cpu": cpu(),
        "gpu": _gpu() if device == "cuda" else None,
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "peers": {name: version for name in PEERS if (version := _version(name))},
        "allocator": {name: Path(os.environ[name]).name for name in ALLOCATOR_VARIABLES if name in os.environ},
    }
