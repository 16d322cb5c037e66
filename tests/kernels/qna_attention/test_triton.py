"""The Triton kernels of qna_attention: interpreted, and compiled ahead of time.

Each in a process of its own, for Triton decides at its import whether it interprets kernels.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent
SCRIPT = FOLDER / "triton_resources.py"
TABLE = SCRIPT.with_suffix(".json")


def _module(path: str) -> ModuleType:
    """A test module of another op, by its path: no name leads to it."""
    spec = importlib.util.spec_from_file_location(f"for_qna_{Path(path).stem}", FOLDER.parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _module("test_triton_diffusion.py").run
rows = _module("window_attention/test_triton_compile.py").rows


@pytest.mark.slow
def test_interpreted() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    cases = str(FOLDER / "triton_cases.py")
    said = run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases], TRITON_INTERPRET="1")
    assert " passed" in said
    assert "skipped" not in said, said[-2000:]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """triton_resources.json as the Triton of this machine makes it."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists():
        pytest.skip("this Triton brings no cuobjdump")
    output = tmp_path_factory.mktemp("resources") / "table.json"
    run([str(SCRIPT), "--write", "--output", str(output)])
    return json.loads(output.read_text())


@pytest.mark.slow
def test_no_main_configuration_spills(measured: dict) -> None:
    found = rows(measured)
    assert len(found) >= len(rows(json.loads(TABLE.read_text())))
    assert {row: taken for row, taken in found.items() if taken["stack"] or taken.get("spilled")} == {}


@pytest.mark.slow
def test_the_table_is_todays(measured: dict) -> None:
    table = json.loads(TABLE.read_text())
    if measured["triton"] != table["triton"]:
        pytest.skip(f"the table is of Triton {table['triton']}, this is {measured['triton']}: registers may differ")
    hint = "python tests/kernels/qna_attention/triton_resources.py --write"
    assert rows(measured) == rows(table), f"if that is meant: {hint}"
