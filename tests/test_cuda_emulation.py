"""The CUDA kernels on the CPU: what the emulation of tests/cuda_emulation sees, and every kernel of csrc/cuda in it.

The sources are compiled for the host, under AddressSanitizer and UBSan, into a library whose native ops on CPU tensors
are the CUDA kernels; the tests of tests/kernels then run against it as they do against the CPU half.
"""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cuda_emulation.build import HERE, SANITIZERS, build
from cuda_resources import readable
from sanitizer_runtimes import preload

from sinmdm.kernels import _native

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2  # at once

# Snippets of tests/cuda_emulation/snippets.cu that end as they should.
RIGHT = [
    "barriers", "indices", "barriers_and_shuffles", "shuffles", "votes", "half_product", "bfloat16_product",
    "matrix_loads", "copies", "missing_barrier_before_a_read", "missing_barrier_before_a_write",
    "shared_memory_is_nan_at_the_start",
]  # fmt: skip
# And those that end the process, with what they say.
WRONG = {
    "skip_barrier": "a barrier was not reached by all threads",
    "two_barriers": "a barrier was not reached by all threads",
    "barrier_instead_of_shuffle": "a barrier was not reached by all threads",
    "half_a_warp": "a barrier was not reached by all threads",
    "different_instructions": "the threads of a warp do not act together",
    "different_places": "the threads of a warp do not act together",
    "partial_mask": "only whole warps are emulated",
    "copy_to_unaligned": "an asynchronous copy is not aligned",
    "copy_from_unaligned": "an asynchronous copy is not aligned",
    "copy_outside": "an asynchronous copy goes to where the block's shared memory is not",
    "copy_not_waited_for": "a thread ended before it waited for its asynchronous copies",
    "copy_from_outside": "AddressSanitizer: heap-buffer-overflow",
    "row_unaligned": "a matrix's row is not aligned",
    "row_outside": "AddressSanitizer: heap-buffer-overflow",
    "read_outside": "AddressSanitizer: heap-buffer-overflow",
    "write_outside": "AddressSanitizer: heap-buffer-overflow",
    "read_unaligned": "runtime error: member access within misaligned address",
    "deep_stack": "AddressSanitizer: stack-overflow",
    "threads_of_no_warp": "a block must be of 1 to 32 whole warps",
    "no_blocks": "no such grid",
    "shared_memory_without_leave": "a launch asks for more shared memory than its kernel was given leave for",
    "shared_memory_beyond_any": "more than 99 KiB of shared memory",
}

# Which tests of tests/kernels show what of an op, each in a process of its own; the longest first.
PARITY = {
    "window_attention": [
        ["window_attention/test_non_finite.py"],
        ["window_attention/test_parity.py", "window_attention/test_head_dims.py"],
        ["window_attention/test_poisoned_memory.py"],
    ],
    "qna_attention": [["qna_attention/test_qna_attention.py"], ["qna_attention/test_non_finite.py"]],
    "denoise_step": [["denoise_step"]],
    "q_sample": [["q_sample"]],
    "philox": [["test_philox.py"]],
}


def runtimes() -> str:
    """The sanitizers' libraries, for LD_PRELOAD; skips the test where the emulation cannot be built."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the emulation switches stacks with instructions of x86-64, on Linux")
    return preload()


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of tests/cuda_emulation/snippets.cu."""
    runtimes()
    program = tmp_path_factory.mktemp("snippets") / "snippets"
    subprocess.run(
        ["g++", "-O1", "-std=c++17", "-Wall", "-Wno-unknown-pragmas", *SANITIZERS, f"-I{HERE}",
         f"-I{_native.source_folder()}", "-x", "c++", str(HERE / "snippets.cu"), "-o", str(program)],
        check=True, timeout=300,
    )  # fmt: skip
    return program


def run_snippet(program: Path, name: str) -> tuple[int, str]:
    said = subprocess.run(
        [str(program), name], env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    return said.returncode, said.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_the_emulation_does_as_a_gpu(snippets: Path, name: str) -> None:
    assert run_snippet(snippets, name) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_the_emulation_ends_what_a_gpu_would_not_bear(snippets: Path, name: str) -> None:
    code, said = run_snippet(snippets, name)
    assert code != 0
    assert WRONG[name] in said


@dataclass
class Outcome:
    """Of one process of tests."""

    code: int
    said: str
    seconds: float


@dataclass
class Suite:
    """The tests of tests/kernels that run in the emulation, PROCESSES at a time, each at most once."""

    library: Path
    environment: dict[str, str]
    launches: Path
    pool: ThreadPoolExecutor
    build_seconds: float
    running: dict[str, list[Future[Outcome]]] = field(default_factory=dict)

    def start(self, op: str) -> None:
        if op not in self.running:
            self.running[op] = [self.pool.submit(self._run, tests) for tests in PARITY[op]]

    def outcomes(self, op: str) -> list[Outcome]:
        self.start(op)
        return [future.result() for future in self.running[op]]

    def _run(self, tests: list[str]) -> Outcome:
        # -s: what the emulation or a sanitizer says before it ends the process would be lost with captured output.
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", "cpu or native"]
        begin = time.perf_counter()
        said = subprocess.run(
            [*command, *(str(ROOT / "tests/kernels" / name) for name in tests)], cwd=ROOT, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
        )  # fmt: skip
        return Outcome(said.returncode, said.stdout, time.perf_counter() - begin)


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """All that was asked for of PARITY, under way."""
    libraries = runtimes()
    folder = tmp_path_factory.mktemp("emulated")
    begin = time.perf_counter()
    build(folder / "emulated.so", sanitize=True)
    build_seconds = time.perf_counter() - begin
    launches = folder / "launches"
    launches.touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SINMDM_")} | {
        "SINMDM_TEST_LIBRARY": str(folder / "emulated.so"),
        "SINMDM_EMULATION_LAUNCHES": str(launches),
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",  # the processes share the cores
    }
    with ThreadPoolExecutor(PROCESSES) as pool:
        suite = Suite(folder / "emulated.so", environment, launches, pool, build_seconds)
        mine = (item for item in request.session.items if item.path == request.path and hasattr(item, "callspec"))
        asked = {item.callspec.params.get("op") for item in mine}
        for op in PARITY:
            if op in asked:
                suite.start(op)
        yield suite
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("op", PARITY)
def test_cuda_kernels_emulated_under_sanitizers(suite: Suite, op: str, capsys: pytest.CaptureFixture) -> None:
    outcomes = suite.outcomes(op)
    with capsys.disabled():
        print(f"\n{op}, emulated: {sum(outcome.seconds for outcome in outcomes):.0f} s of tests")
    for outcome in outcomes:
        assert outcome.code == 0, outcome.said[-6000:]
        assert re.search(r"\d+ passed", outcome.said), outcome.said[-2000:]
        assert not re.search(r"\d+ skipped", outcome.said), outcome.said[-2000:]


def launchers() -> set[str]:
    """Those of csrc/cuda/launch.h."""
    text = (_native.source_folder() / "cuda/launch.h").read_text()
    return set(re.findall(r"^int (launch_\w+)\(", text, re.MULTILINE))


def kernels_of(library: Path) -> dict[int, str]:
    """Where in the library its kernels lie, all their instances, by the names that are __global__ in the sources."""
    sources = [path.read_text() for path in (_native.source_folder() / "cuda").rglob("*") if path.is_file()]
    text = re.sub(r"//.*", "", "\n".join(sources))
    bounds = r"(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?"
    names = re.findall(rf"__global__\s+void\s+{bounds}(\w+)\(", text)
    assert text.count("__global__") == len(names), f"of some kernels the name was not found, only {sorted(names)}"
    symbols = [
        line.split() for line in subprocess.run(
            ["nm", "--defined-only", str(library)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    ]  # fmt: skip
    code = [(int(at, 16), mangled) for at, kind, mangled in symbols if kind in "tTwW"]
    demangled = readable("\n".join(mangled for _, mangled in code))
    return {at: name for (at, _), name in zip(code, demangled, strict=True) if name.partition("<")[0] in names}


@pytest.mark.slow
def test_the_emulation_runs_every_launcher_and_every_kernel(suite: Suite, capsys: pytest.CaptureFixture) -> None:
    for op in PARITY:
        suite.outcomes(op)
    with capsys.disabled():
        print(f"\ncsrc/cuda compiled for the host in {suite.build_seconds:.0f} s")
    lines = [line.split() for line in suite.launches.read_text().splitlines()]
    callers = set(readable("\n".join(sorted({caller for _, caller in lines}))))
    assert launchers() - callers == set()
    launched = {int(at, 16) for at, _ in lines}
    kernels = kernels_of(suite.library)
    assert kernels
    missing = sorted(name for at, name in kernels.items() if at not in launched)
    assert not missing, "no test launches " + ", ".join(missing)


def test_every_launcher_is_of_the_library() -> None:
    # What the test above compares with: a launcher that is declared in another way would be missed.
    text = (_native.source_folder() / "cuda/launch.h").read_text()
    assert set(re.findall(r"\blaunch_\w+", text)) == launchers()
