"""The Triton kernels of window_attention in Triton's interpreter."""

from pathlib import Path

import pytest
from triton_processes import assert_cases_pass


@pytest.mark.slow
def test_triton_cases() -> None:
    assert_cases_pass(Path(__file__).with_name("triton_cases.py"))
