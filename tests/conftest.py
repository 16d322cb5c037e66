"""Fixtures and command-line switches of the whole suite."""

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none here"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
