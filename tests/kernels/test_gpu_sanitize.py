"""tests/gpu_sanitize.py, as far as it goes without a GPU: what it runs, what it makes of it, and what its calls are."""

import os
import subprocess
import sys
from pathlib import Path

import gpu_sanitize
import pytest
import torch

from sinmdm.kernels import _dispatch

SCRIPT = Path(gpu_sanitize.__file__)


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compute-sanitizer that finds a race and nothing else, on a machine that has all else; its log."""
    log = tmp_path / "log"
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\n"
        f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $*" >> {log}\n'
        'case "$*" in *racecheck*) exit 1;; esac\n'
    )  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(_dispatch, "machine_lacks", lambda backend: None)
    return log


def test_every_tool_is_run_on_the_calls(sanitizer: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu_sanitize.main([]) == gpu_sanitize.FOUND
    runs = sanitizer.read_text().splitlines()
    assert [run.split()[:3] for run in runs] == [["1", "--tool", tool] for tool in gpu_sanitize.TOOLS]
    assert set(gpu_sanitize.TOOLS) >= {"memcheck", "racecheck"}
    for run in runs:
        assert "--error-exitcode 1 " in run
        assert run.endswith(f" {sys.executable} {SCRIPT} --calls")
    said = capfd.readouterr().out
    assert "memcheck: nothing found" in said
    assert "racecheck: FAILED with exit status 1" in said
    assert said.endswith("FAILED: racecheck\n")


def test_nothing_found_is_success(sanitizer: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu_sanitize.main(["--tools", "memcheck", "initcheck"]) == 0
    assert len(sanitizer.read_text().splitlines()) == 2
    assert capfd.readouterr().out.endswith("nothing found by memcheck, initcheck\n")


def test_the_toolkits_own_is_found(sanitizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = sanitizer.with_name("compute-sanitizer")
    assert gpu_sanitize.find_sanitizer() == str(tool)
    (tool.parent / "bin").mkdir()
    there = tool.rename(tool.parent / "bin" / tool.name)
    assert gpu_sanitize.find_sanitizer() != str(there)
    monkeypatch.setenv("CUDA_HOME", str(tool.parent))
    monkeypatch.setenv("PATH", "")
    assert gpu_sanitize.find_sanitizer() == str(there)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, str(SCRIPT)], env=os.environ | {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert said.returncode == gpu_sanitize.MISSING, said.stderr
    assert "no compute-sanitizer on PATH or beside nvcc" in said.stderr
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device" in said.stderr


def test_every_op_is_called_with_its_edges() -> None:
    named = " ".join(call.name for call in gpu_sanitize.SMALL)
    for word in ("circular", "shift", "odd head_dim", "wide", "lengths", "one frame"):
        assert word in named or any(word in call.make(torch.float32) for call in gpu_sanitize.SMALL), word
    assert {call.op for call in gpu_sanitize.SMALL} == {
        op for op in _dispatch.implementations() if not op.endswith("_backward")
    }
    for op in ("window_attention", "qna_attention", "norm_affine"):
        dtypes = {dtype for call, dtype in gpu_sanitize.of_backend("reference", "cpu") if call.op == op}
        assert dtypes == {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def test_the_calls_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_sanitize.make_calls("reference", "cpu") > 2 * len(gpu_sanitize.SMALL)
    assert f"calls of {len({call.op for call in gpu_sanitize.SMALL})} ops" in capsys.readouterr().out
    assert gpu_sanitize.make_calls("cuda", "cpu") == 0
