"""The Triton kernels of window_attention in Triton's interpreter: triton_cases.py in a process of its own.

One process cannot both interpret kernels and compile them (test_triton_compile.py), for Triton decides at its import.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.slow
def test_triton_cases() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SINMDM_", "TRITON_", "PYTEST_"))}
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)],
        env=own | {"TRITON_INTERPRET": "1", "SINMDM_NATIVE": "0", "OMP_NUM_THREADS": "1"},
        cwd=CASES.parents[3],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr[-2000:]
    assert " passed" in said.stdout
    assert "skipped" not in said.stdout, said.stdout[-2000:]
