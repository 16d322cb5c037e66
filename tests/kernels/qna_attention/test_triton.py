"""The Triton kernels of qna_attention: interpreted, and compiled ahead of time."""

from pathlib import Path

import pytest
from triton_processes import assert_cases_pass, assert_is_committed, assert_nothing_spills, todays_table

SCRIPT = Path(__file__).with_name("triton_resources.py")


@pytest.mark.slow
def test_interpreted() -> None:
    assert_cases_pass(Path(__file__).with_name("triton_cases.py"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return todays_table(SCRIPT, tmp_path_factory.mktemp("resources"))


@pytest.mark.slow
def test_no_main_configuration_spills(measured: dict) -> None:
    assert_nothing_spills(measured, SCRIPT)


@pytest.mark.slow
def test_the_table_is_todays(measured: dict) -> None:
    assert_is_committed(measured, SCRIPT)
