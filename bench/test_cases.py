"""The cases under pytest-benchmark: `pytest bench --benchmark-only`, with its saving and comparing of runs."""

from functools import lru_cache

import pytest
import torch

from bench import registry, timing
from bench.case import Case, Variant

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install -e '.[bench]'")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 5
PAIRS = [
    pytest.param(case, variant, id=f"{case.name}-{variant.name}".replace(" ", "_"))
    for case in registry.select(None, DEVICE, quick=False)
    for variant in registry.variants(case, DEVICE)
]


@lru_cache(maxsize=1)  # the variants of a case come one after the other
def _gated(case: Case) -> tuple[dict[str, timing.Row], dict[str, timing.Call]]:
    torch._dynamo.reset()
    rows, calls = timing.gate(case, registry.variants(case, DEVICE), timing.make_inputs(case, DEVICE), DEVICE)
    return {row.variant: row for row in rows}, calls


@pytest.mark.parametrize(("case", "variant"), PAIRS)
def test_case(benchmark, case: Case, variant: Variant) -> None:  # type: ignore[no-untyped-def]
    rows, calls = _gated(case)
    wrong = [f"{row.variant}: {row.reason}" for row in rows.values() if row.status == "FAILED"]
    assert not wrong, "; ".join(wrong)
    row = rows[variant.name]
    if row.status == "unavailable":
        pytest.skip(row.reason)
    call = calls[variant.name]

    def timed() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = case.name
    benchmark.extra_info.update(shape=dict(case.shape), dtype=case.dtype, backward=case.backward)
    benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=1)
