"""The native extension: which built library is taken, the CUDA half's build, and the CPU half under sanitizers."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sinmdm.kernels import _native

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100", "sm_120")
# No kernel of these may use stack: a spill there would cost more than anything else in them.
WITHOUT_STACK = ("philox_normal_kernel",)

# Loads a built library in place of the one found at import, and compares every native CPU op with its reference.
PARITY = """
import sys, torch
from sinmdm import kernels
from sinmdm.kernels import _native
_native._state.update(how="ahead of time", why=None)
torch.ops.load_library(sys.argv[1])
schedule = kernels.Schedule.cosine(50)
worst = 0.0
for shape in ((1, 1, 1), (2, 9, 5), (3, 41, 173), (2, 1025, 1), (0, 4, 4), (2, 0, 3)):
    for layout in range(3):
        def state():
            x = torch.randn(shape)
            if layout == 1:
                x = x.transpose(1, 2).contiguous().transpose(1, 2)
            if layout == 2:
                x = torch.cat([x, x, x], 2)[..., shape[2]:2 * shape[2]]
            return x
        rows = shape[0]
        x, known, noise, previous = state(), state(), state(), state()
        t = torch.arange(rows) + 7
        mask = torch.rand(shape[1], 1)
        outputs = [state().to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)]
        calls = [
            lambda b: kernels.philox_normal(shape[1:], seed=2**63 + 5, sample=torch.arange(rows), backend=b),
            lambda b: kernels.q_sample(x, t, schedule, seed=3, backend=b),
            lambda b: kernels.q_sample(x, t, schedule, noise=noise, return_noise=True, backend=b)[1],
            lambda b: kernels.denoise_step(x, x, t, schedule, noise=noise, backend=b),
            lambda b: kernels.denoise_step(x, x, t, schedule, previous_x0=previous, known=known, mask=mask, backend=b),
            lambda b: kernels.denoise_step(x, x, t, schedule, seed=3, out=state(), backend=b),
            lambda b: kernels.philox_normal(shape[1:], seed=3, frame=2**34 // max(shape[2], 1) - 1, backend=b),
            lambda b: kernels.q_sample(x, t, schedule, seed=3, frame=2**40 - 1, backend=b),
            lambda b: kernels.denoise_step(x, x, t, schedule, eta=0.0, clip=0.5, clipped_direction=False,
                                           x0_out=state(), backend=b)[1],
            lambda b: kernels.denoise_step(x, x, t, schedule, previous_x0=previous, clip=0.5, x0_out=previous.clone(),
                                           out=state(), frame=t, backend=b)[0],
            *[lambda b, o=o: kernels.denoise_step(x, o, t, schedule, seed=3, unconditional=o.flip(1), guidance=1.5,
                                                  clip=1.0, known=known, mask=mask, frame=7, backend=b)
              for o in outputs],
            *[lambda b, o=o: kernels.denoise_step(x, o, t, schedule, seed=3, prediction="v", known=known, mask=mask,
                                                  backend=b) for o in outputs],
        ]
        for call in calls:
            difference = (call("cpu") - call("reference")).abs()
            worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
print("worst", worst)
print("cuda", torch.ops.sinmdm.cuda_build() if _native.has_cuda() else None)
print("backend", kernels.backends()["cuda"])
"""
# Normals within 2e-6, and at most fourteen float32 roundings of terms of about 10.
PARITY_BOUND = 2e-6 + 14 * 10 * torch.finfo(torch.float32).eps


def parity(library: Path, **environment: str) -> dict[str, str]:
    """What PARITY printed, as name -> rest of the line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SINMDM_")} | environment
    said = subprocess.run(
        [sys.executable, "-c", PARITY, str(library)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, (said.stdout + said.stderr)[-4000:]
    return dict(line.split(" ", 1) for line in said.stdout.splitlines())


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return tmp_path / "_C.abi3.so"


def test_a_library_built_from_these_sources_is_current(library: Path) -> None:
    library.write_bytes(b"\x7fELF..." + (_native.HASH_MARK + _native.source_hash()).encode() + b"\0...")
    assert _native._is_current(library)


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", (_native.HASH_MARK + 16 * "0").encode(), _native.HASH_MARK.encode()]
)
def test_any_other_library_is_not(library: Path, content: bytes) -> None:
    library.write_bytes(content)
    assert not _native._is_current(library)


def test_a_stale_prebuilt_library_is_not_loaded(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    (library.parent / "csrc").symlink_to(_native.source_folder())
    monkeypatch.setattr(_native, "_HERE", library.parent)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert not _native._load_prebuilt()  # none there
    library.write_bytes((_native.HASH_MARK + 16 * "0").encode())
    assert not _native._load_prebuilt()
    assert loaded == []
    library.write_bytes((_native.HASH_MARK + _native.source_hash()).encode())
    assert _native._load_prebuilt()
    assert loaded == [str(library)]


def test_the_hash_covers_every_source_and_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "csrc"
    shutil.copytree(_native.source_folder(), folder)
    hashes = {_native.source_hash(folder)}
    assert hashes == {_native.source_hash()}
    for name in ("philox.h", "cpu/noise.cpp", "cuda/glue.cpp", "cuda/philox_normal.cu"):
        with (folder / name).open("a") as file:
            file.write("\n")
        hashes.add(_native.source_hash(folder))
    (folder / "cpu/q_sample.cpp").rename(folder / "cpu/moved.cpp")
    hashes.add(_native.source_hash(folder))
    assert len(hashes) == 6
    (folder / "notes.txt").write_text("not a source")
    assert _native.source_hash(folder) in hashes


@pytest.fixture(scope="module")
def cuda_build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """(library, what the compilers said) of the extension with its CUDA half, ptxas reporting every kernel."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH to compile the CUDA half with")
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    lib, temp = tmp_path_factory.mktemp("lib"), tmp_path_factory.mktemp("temp")
    environment = os.environ | {
        "SINMDM_NATIVE": "1",
        "SINMDM_FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": "8.0;9.0a;10.0;12.0+PTX",
        "NVCC_APPEND_FLAGS": "-Xptxas=-v",
        # ninja, also where the virtual environment is not activated
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    said = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(lib), "--build-temp", str(temp)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert said.returncode == 0, (said.stdout + said.stderr)[-4000:]
    (library,) = lib.rglob("_C*.so")
    return library, said.stdout + said.stderr


@pytest.mark.slow
def test_the_cuda_half_compiles_links_and_loads_beside_any_torch(cuda_build: tuple[Path, str]) -> None:
    library, _ = cuda_build
    assert library.name == "_C.abi3.so"
    assert library.parent.parts[-2:] == ("sinmdm", "kernels")
    assert _native._is_current(library)
    said = parity(library)
    assert float(said["worst"]) <= PARITY_BOUND
    toolkit = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert said["cuda"] == re.search(r"release (\d+\.\d+)", toolkit).group(1)
    assert said["backend"] == ("available" if torch.cuda.is_available() else "torch sees no CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_use_no_stack(cuda_build: tuple[Path, str], architecture: str) -> None:
    # ptxas: "Compiling entry function 'mangled' for 'sm_80'", then "0 bytes stack frame, 0 bytes spill stores, ...".
    report = re.findall(
        rf"entry function '(\w+)' for '{architecture}'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        cuda_build[1],
        re.DOTALL,
    )
    for kernel in WITHOUT_STACK:
        numbers = {tuple(map(int, rest)) for name, *rest in report if kernel in name}
        assert len(numbers) == 1, f"{kernel} for {architecture}: {report}"
        stack, stores, loads, registers = numbers.pop()
        assert (stack, stores, loads) == (0, 0, 0), f"{kernel} for {architecture}"
        assert registers <= 255


@pytest.mark.slow
def test_cuobjdump_agrees(cuda_build: tuple[Path, str]) -> None:
    # The finished library, as it would be installed: one block an architecture, REG STACK SHARED LOCAL.
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump on PATH, and no triton, which brings one")
        tool = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    if not Path(tool).is_file():
        pytest.skip("no cuobjdump on PATH or in triton")
    said = subprocess.run(
        [tool, "--dump-resource-usage", str(cuda_build[0])], capture_output=True, text=True, check=True
    ).stdout
    for kernel in WITHOUT_STACK:
        # The PTX is a block of the last architecture, too, without resources.
        blocks = [(block.split()[0], block) for block in re.split(r"arch = ", said)[1:]]
        found = [(name, re.search(rf"{kernel}.*?\n.*?STACK:(\d+)", block)) for name, block in blocks]
        stacks = {name: int(match.group(1)) for name, match in found if match}
        assert stacks == dict.fromkeys(ARCHITECTURES, 0)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(library, environment) of the CPU half under the sanitizers, its scratch filled with NaN before use.

    The tiles of the AVX-512 file are compiled for AVX2, so that their code is run on processors without AVX-512, too.
    """
    if shutil.which("g++") is None:
        pytest.skip("no g++ on PATH")
    runtimes = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"this g++ has no {name}")
        runtimes.append(path)
    folder = _native.source_folder()
    torch_folder = Path(torch.__file__).parent
    build = tmp_path_factory.mktemp("sanitized")
    library = build / "sanitized.so"
    flags = [
        "-g", "-O1", "-std=c++17", "-fPIC", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined", f"-I{folder}", f"-I{torch_folder / 'include'}", "-DSINMDM_POISON_SCRATCH",
        '-DSINMDM_AVX512_TARGET="avx2,fma"',
        *(f"-D{name}={value}" for name, value in _native.defines(folder).items()),
    ]  # fmt: skip
    compilations = [
        subprocess.Popen(["g++", *flags, "-c", str(source), "-o", str(build / f"{source.stem}.o")])
        for source in _native.cpu_sources(folder)
    ]
    assert [process.wait(timeout=600) for process in compilations] == [0] * len(compilations)
    objects = sorted(str(path) for path in build.glob("*.o"))
    subprocess.run(
        ["g++", "-shared", "-fsanitize=address,undefined", *objects, "-o", str(library), f"-L{torch_folder / 'lib'}",
         *_native.LINK_FLAGS, "-ltorch_cpu"],
        check=True, timeout=300,
    )  # fmt: skip
    return library, {"LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}


INSTRUCTION_SETS = ["baseline", "avx2", "avx512"]
SANITIZED_TESTS = {
    "attention": [f"window_attention/{name}.py" for name in ("test_parity", "test_non_finite", "test_poisoned_memory")],
    "qna": ["qna_attention/test_qna_attention.py", "qna_attention/test_non_finite.py", "norm_affine"],
    "noise": ["denoise_step", "q_sample", "test_philox.py"],
}


@pytest.mark.slow
@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_cpu_half_under_address_and_undefined_behaviour_sanitizers(
    sanitized: tuple[Path, dict[str, str]], instructions: str
) -> None:
    library, environment = sanitized
    said = parity(library, **environment, SINMDM_CPU_ISA=instructions)
    assert float(said["worst"]) <= PARITY_BOUND


@pytest.mark.slow
@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
@pytest.mark.parametrize("tests", SANITIZED_TESTS)
def test_every_instruction_set_under_the_sanitizers(
    sanitized: tuple[Path, dict[str, str]], tests: str, instructions: str
) -> None:
    under_sanitizers(sanitized, SANITIZED_TESTS[tests], SINMDM_CPU_ISA=instructions)


@pytest.mark.slow
def test_the_noise_of_all_instruction_sets_under_the_sanitizers(sanitized: tuple[Path, dict[str, str]]) -> None:
    # These choose the sets by themselves.
    under_sanitizers(sanitized, ["test_instruction_sets.py"], selection="baseline or avx2 or avx512")


def under_sanitizers(
    sanitized: tuple[Path, dict[str, str]], tests: list[str], selection: str = "cpu or native", **variables: str
) -> None:
    """Run the selected of these tests of the kernels with the sanitized library; a failure there is one here."""
    library, environment = sanitized
    folder = ROOT / "tests" / "kernels"
    # -s: what a sanitizer says before it ends the process would be lost with pytest's captured output.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", selection]
    said = subprocess.run(
        [*command, *(str(folder / name) for name in tests)], cwd=ROOT, capture_output=True, text=True, timeout=900,
        env=os.environ | environment | {"SINMDM_TEST_LIBRARY": str(library)} | variables,
    )  # fmt: skip
    if "SINMDM_CPU_ISA must be one of" in said.stdout:
        pytest.skip(f"this processor has no {variables['SINMDM_CPU_ISA']}")
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
    assert re.search(r"(\d+) passed", said.stdout), said.stdout[-2000:]


def test_an_instruction_set_that_is_not_there_is_an_error() -> None:
    code = "import torch; from sinmdm.kernels import window_attention as w; x = torch.ones(1, 3, 1, 4); "
    said = subprocess.run(
        [sys.executable, "-c", code + "print(w(x, x, x, window=1, backend='cpu'))"],
        env=os.environ | {"SINMDM_CPU_ISA": "avx1024"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "BackendError" in said.stderr:
        pytest.skip("no native extension here")
    assert said.returncode != 0
    assert "SINMDM_CPU_ISA must be one of baseline" in said.stderr
    assert "got avx1024" in said.stderr
