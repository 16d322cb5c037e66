"""The native extension: which built library is taken, and the CPU half under sanitizers."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_parity import PARITY_BOUND, parity
from sanitizer_runtimes import preload

from sinmdm.kernels import _native

ROOT = Path(__file__).resolve().parents[1]


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
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(library, environment) of the CPU half under the sanitizers, its scratch filled with NaN before use.

    The tiles of the AVX-512 file are compiled for AVX2, so that their code is run on processors without AVX-512, too.
    """
    libraries = preload()
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
    return library, {"LD_PRELOAD": libraries, "ASAN_OPTIONS": "detect_leaks=0"}


INSTRUCTION_SETS = ["baseline", "avx2", "avx512"]
SANITIZED_TESTS = {
    "attention": [f"window_attention/{name}.py" for name in ("test_parity", "test_non_finite", "test_poisoned_memory")],
    "qna": ["qna_attention/test_qna_attention.py", "qna_attention/test_non_finite.py", "norm_affine"],
    "windows": ["window_match"],
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
