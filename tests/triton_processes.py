"""Triton kernels in processes of their own, for Triton decides at its import whether it interprets kernels or compiles
them: the cases that run in its interpreter, and the tables of what compiled kernels take of a device."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(arguments: list[str], **environment: str) -> str:
    """What Python says, run with these arguments and nothing of this process's settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SINMDM_", "TRITON_", "PYTEST_"))}
    said = subprocess.run(
        [sys.executable, *arguments],
        env=own | {"SINMDM_NATIVE": "0", "OMP_NUM_THREADS": "1"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr[-4000:]
    return said.stdout


def assert_cases_pass(cases: Path) -> None:
    """The tests of the file `cases` pass in Triton's interpreter, and none is skipped."""
    pytest.importorskip("triton", reason="Triton is not installed")
    said = run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)], TRITON_INTERPRET="1")
    assert " passed" in said
    assert "skipped" not in said, said[-2000:]


def todays_table(script: Path, folder: Path) -> dict:
    """The table that `script` writes, as the Triton of this machine makes it."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists():
        pytest.skip("this Triton brings no cuobjdump")
    output = folder / "table.json"
    run([str(script), "--write", "--output", str(output)])
    return json.loads(output.read_text())


def _rows(kernels: dict, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, int]]]:
    if "stack" in kernels:
        yield name, kernels
        return
    for part, inner in kernels.items():
        yield from _rows(inner, (*name, part))


def rows(table: dict) -> dict[tuple[str, ...], dict[str, int]]:
    """(configuration, kernel if it is one of several, target) -> what it takes."""
    return dict(_rows(table["kernels"]))


def assert_nothing_spills(measured: dict, script: Path) -> None:
    """No kernel of `measured` uses stack, and none of those in the committed table is missing."""
    found = rows(measured)
    assert len(found) >= len(rows(json.loads(script.with_suffix(".json").read_text())))
    assert {row: taken for row, taken in found.items() if taken["stack"] or taken.get("spilled")} == {}


def assert_is_committed(measured: dict, script: Path) -> None:
    """The committed table is `measured`; skips where it is another Triton's."""
    table = json.loads(script.with_suffix(".json").read_text())
    if measured["triton"] != table["triton"]:
        pytest.skip(f"the table is of Triton {table['triton']}, this is {measured['triton']}: registers may differ")
    hint = f"python {script.relative_to(ROOT)} --write"
    assert rows(measured) == rows(table), f"if that is meant: {hint}"
