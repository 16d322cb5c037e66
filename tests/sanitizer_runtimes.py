"""Where g++ keeps the libraries of its sanitizers, which a process has to load before anything else."""

import shutil
import subprocess
from pathlib import Path

import pytest


def preload() -> str:
    """Those of AddressSanitizer and UBSan, for LD_PRELOAD; skips the test where one is not there."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on PATH")
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"this g++ has no {name}")
        paths.append(path)
    return ":".join(paths)
