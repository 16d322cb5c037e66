"""The Triton kernels of window_attention compiled ahead of time: no spills, and what they take is as listed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("triton_resources.py")
TABLE = SCRIPT.with_suffix(".json")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """triton_resources.json as the Triton of this machine makes it, in a process that does not interpret kernels."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists():
        pytest.skip("this Triton brings no cuobjdump")
    output = tmp_path_factory.mktemp("resources") / "table.json"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SINMDM_", "TRITON_INTERPRET"))}
    said = subprocess.run(
        [sys.executable, str(SCRIPT), "--write", "--output", str(output)],
        env=own | {"SINMDM_NATIVE": "0"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert said.returncode == 0, said.stderr[-4000:]
    return json.loads(output.read_text())


def rows(table: dict) -> dict[tuple[str, str, str], dict[str, int]]:
    return {
        (configuration, kernel, target): taken
        for configuration, kernels in table["kernels"].items()
        for kernel, targets in kernels.items()
        for target, taken in targets.items()
    }


@pytest.mark.slow
def test_no_main_configuration_spills(measured: dict) -> None:
    found = rows(measured)
    assert len(found) >= len(rows(json.loads(TABLE.read_text())))
    spilling = {row: taken for row, taken in found.items() if taken["stack"] or taken.get("spilled")}
    assert spilling == {}


@pytest.mark.slow
def test_the_table_is_todays(measured: dict) -> None:
    table = json.loads(TABLE.read_text())
    if measured["triton"] != table["triton"]:
        pytest.skip(f"the table is of Triton {table['triton']}, this is {measured['triton']}: registers may differ")
    hint = "python tests/kernels/window_attention/triton_resources.py --write"
    assert rows(measured) == rows(table), f"if that is meant: {hint}"
