"""The Triton kernels of philox_normal, q_sample and denoise_step: interpreted, and compiled ahead of time.

Each in a process of its own, for Triton decides at its import whether it interprets kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SCRIPT = FOLDER / "triton_diffusion_resources.py"
TABLE = SCRIPT.with_suffix(".json")


def run(arguments: list[str], **environment: str) -> str:
    """What Python says, run with these arguments and nothing of this process's settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SINMDM_", "TRITON_", "PYTEST_"))}
    said = subprocess.run(
        [sys.executable, *arguments],
        env=own | {"SINMDM_NATIVE": "0", "OMP_NUM_THREADS": "1"} | environment,
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr[-4000:]
    return said.stdout


@pytest.mark.slow
def test_interpreted() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    cases = str(FOLDER / "triton_diffusion_cases.py")
    said = run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases], TRITON_INTERPRET="1")
    assert " passed" in said
    assert "skipped" not in said, said[-2000:]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """triton_diffusion_resources.json as the Triton of this machine makes it."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists():
        pytest.skip("this Triton brings no cuobjdump")
    output = tmp_path_factory.mktemp("resources") / "table.json"
    run([str(SCRIPT), "--write", "--output", str(output)])
    return json.loads(output.read_text())


@pytest.mark.slow
def test_no_main_configuration_spills(measured: dict) -> None:
    spilling = {
        (configuration, target): taken
        for configuration, targets in measured["kernels"].items()
        for target, taken in targets.items()
        if taken["stack"] or taken.get("spilled")
    }
    assert spilling == {}


@pytest.mark.slow
def test_the_table_is_todays(measured: dict) -> None:
    table = json.loads(TABLE.read_text())
    if measured["triton"] != table["triton"]:
        pytest.skip(f"the table is of Triton {table['triton']}, this is {measured['triton']}: registers may differ")
    hint = "python tests/kernels/triton_diffusion_resources.py --write"
    assert measured["kernels"] == table["kernels"], f"if that is meant: {hint}"
