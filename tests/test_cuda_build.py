"""The extension with its CUDA half: it compiles in bearable time, loads beside any torch, and its kernels fit."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import cuda_resources
import pytest
import torch
from cuda_resources import ARCHITECTURES, TABLE, Build, Resources
from native_parity import PARITY_BOUND, parity

from sinmdm.kernels import _native

BEARABLE = 180  # seconds that nvcc may take for all architectures, on two processors that do nothing else


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH to compile the CUDA half with")
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    return cuda_resources.build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def measured(built: Build) -> Resources:
    if cuda_resources.cuobjdump() is None:
        pytest.skip("no cuobjdump on PATH, and no Triton that brings one")
    if shutil.which("c++filt") is None:
        pytest.skip("no c++filt on PATH to read the kernels' names with")
    return cuda_resources.measure(built.library)


@pytest.mark.slow
def test_the_cuda_half_compiles_links_and_loads_beside_any_torch(built: Build) -> None:
    library = built.library
    assert library.name == "_C.abi3.so"
    assert library.parent.parts[-2:] == ("sinmdm", "kernels")
    assert _native._is_current(library)
    said = parity(library)
    assert float(said["worst"]) <= PARITY_BOUND
    toolkit = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert said["cuda"] == re.search(r"release (\d+\.\d+)", toolkit).group(1)
    assert said["backend"] == ("available" if torch.cuda.is_available() else "torch sees no CUDA device")


@pytest.mark.slow
def test_nvcc_takes_bearable_time(built: Build, capsys: pytest.CaptureFixture) -> None:
    with capsys.disabled():
        print(
            f"\nCUDA build: {built.seconds:.0f} s, of which nvcc was at work {built.nvcc_seconds:.0f} s; "
            f"{built.processor_seconds:.0f} s of processors"
        )
    assert built.nvcc_seconds > 0
    assert min(built.nvcc_seconds, built.processor_seconds / 2) < BEARABLE


@pytest.mark.slow
def test_every_kernel_is_there_for_every_architecture(measured: Resources) -> None:
    assert {"philox_normal_kernel", "q_sample_kernel", "denoise_step_kernel"} <= set(measured)
    incomplete = {name: sorted(of) for name, of in measured.items() if set(of) != set(ARCHITECTURES.values())}
    assert incomplete == {}


@pytest.mark.slow
def test_no_main_configuration_uses_stack(measured: Resources) -> None:
    using = {
        (kernel, architecture): taken
        for kernel, architectures in measured.items()
        for architecture, taken in architectures.items()
        if taken["stack"]
    }
    assert {row: taken for row, taken in using.items() if not cuda_resources.may_use_stack(row[0])} == {}


@pytest.mark.slow
def test_the_table_is_todays(measured: Resources) -> None:
    table = json.loads(TABLE.read_text())
    version = cuda_resources.nvcc_version()
    if version != table["nvcc"]:
        pytest.skip(f"the table is of nvcc {table['nvcc']}, this is {version}: registers may differ")
    assert measured == table["kernels"], "if that is meant: python tests/cuda_resources.py --write"


@pytest.mark.parametrize(
    ("kernel", "may"),
    [
        ("philox_normal_kernel", False),
        ("window_forward<__half, 128>", False),
        ("window_forward<__half, 256>", True),
        ("window_backward<__nv_bfloat16, 128>", False),
        ("window_backward<__nv_bfloat16, 256>", True),
        ("window_backward<float, 64>", False),
        ("window_backward<float, 128>", True),
        ("window_forward<double, 32>", True),
        ("window_add_partial<float>", False),
        ("window_add_partial<double>", True),
        ("attend<float, Forward>", False),
        ("attend<double, Forward>", True),
    ],
)
def test_which_kernels_may_use_stack(kernel: str, may: bool) -> None:
    assert cuda_resources.may_use_stack(kernel) == may


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN6sinmdm4cuda12_GLOBAL__N_120philox_normal_kernelEmPKlS3_S3_lllPf", "philox_normal_kernel"),
        (
            "_ZN6sinmdm4cuda6window14window_forwardI13__nv_bfloat16Li64EEEvNS1_7ForwardEili",
            "window_forward<__nv_bfloat16, 64>",
        ),
        ("_ZN6sinmdm4cuda3qna6attendIfNS1_8BackwardEEEvT0_NS1_4TileE", "attend<float, Backward>"),
    ],
)
def test_names_that_can_be_read(mangled: str, name: str) -> None:
    if shutil.which("c++filt") is None:
        pytest.skip("no c++filt on PATH")
    assert cuda_resources.readable(mangled) == [name]


def test_the_table_is_written_as_it_is_read(tmp_path: Path) -> None:
    table = json.loads(TABLE.read_text())
    assert cuda_resources.text_of(table) == TABLE.read_text()
    assert {architecture for of in table["kernels"].values() for architecture in of} == set(ARCHITECTURES.values())
