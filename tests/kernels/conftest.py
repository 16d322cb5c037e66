"""Every test that takes `backend` runs on each host backend that its module's OP has an implementation for."""

import os

import pytest
import torch

from sinmdm.kernels import _dispatch, _native

HOST_BACKENDS = ("reference", "cpu")  # the GPU's are in test_gpu.py

# A build of the extension to test in place of the package's own: tests/test_native_build.py makes one with sanitizers.
if "SINMDM_TEST_LIBRARY" in os.environ:
    _native._state.update(how="for a test", why=None)
    torch.ops.load_library(os.environ["SINMDM_TEST_LIBRARY"])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    op = getattr(metafunc.module, "OP", None)
    if op is not None and "backend" in metafunc.fixturenames:
        have = _dispatch.implementations()[op]
        metafunc.parametrize("backend", [name for name in HOST_BACKENDS if name in have])


@pytest.fixture(autouse=True)
def _machine_has_backend(request: pytest.FixtureRequest) -> None:
    backend = request.node.callspec.params.get("backend") if hasattr(request.node, "callspec") else None
    if backend in HOST_BACKENDS:
        lacks = _dispatch.machine_lacks(backend)
        if lacks is not None:
            pytest.skip(f"no {backend} backend: {lacks}")
