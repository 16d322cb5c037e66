"""window_match against the published table of group costs, and its promises beside its values."""

import math
import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sinmdm.kernels import BackendError, _dispatch, window_match
from sinmdm.kernels.window_match import reference

OP = "window_match"
DTYPES = [torch.float32, torch.float64]


@dataclass(frozen=True)
class Case:
    """One call: its sizes. A batch of 0 is no batch axis."""

    frames: int
    target_frames: int
    features: int
    window: int
    source_batch: int = 0
    target_batch: int = 0

    @property
    def terms(self) -> int:
        return self.features + self.frames

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Random walks, so that neighbouring windows are alike and the minimum has near ties."""
        walks = []
        for batch, frames in ((self.source_batch, self.frames), (self.target_batch, self.target_frames)):
            steps = torch.randn(max(batch, 1), frames, self.features, dtype=torch.float64)
            walks.append((steps.cumsum(1) / 2)[... if batch else 0].to(dtype))
        return walks[0], walks[1]


CASES = [
    Case(23, 17, 6, 4, 3),  # several pieces, several runs of rows
    Case(9, 31, 5, 5, 0, 2),  # nothing to choose; a batch of targets
    Case(6, 5, 6, 4, 2, 2),
    Case(12, 8, 1, 1, 2),  # windows of one frame, one feature
    Case(40, 40, 7, 7, 3, 3),
    Case(7, 7, 3, 7),  # a window that is all there is
    Case(7, 20, 3, 7, 2, 1),  # all of the source
    Case(20, 7, 3, 7, 1, 2),  # all of the target: one place for each piece
    Case(1, 1, 2, 1),
    Case(33, 65, 129, 3),  # one more than a panel, a register, a run of features
    Case(70, 64, 64, 9),  # whole panels
    Case(61, 90, 20, 2),
]
# Longer, for the rounding: windows of the published sizes, more features than a run.
LONG = [Case(130, 95, 144, 30), Case(95, 130, 168, 15, 2), Case(80, 50, 300, 1)]


def group_costs(source: Tensor, target: Tensor) -> list[list[list[float]]]:
    """C[i][j][k], the published table: cost of matching source frames [i, j) to the target's from k on; infinite past
    its end."""
    distances = [[math.dist(a, b) for b in target.tolist()] for a in source.tolist()]
    frames, width = len(source), len(target)
    costs = [[[math.inf] * width for _ in range(frames + 1)] for _ in range(frames)]
    for i in range(frames):
        for k in range(width):
            costs[i][i][k] = 0.0
            for m in range(min(frames - i, width - k)):
                costs[i][i + m + 1][k] = costs[i][i + m][k] + distances[i + m][k + m]
    return costs


def by_table(source: Tensor, target: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Nearest distances and cost by the published definitions: every cut, every piece, every place."""
    n = max(len(x) if x.ndim == 3 else 1 for x in (source, target))
    rows, totals = [], []
    for one, other in zip(source.expand(n, -1, -1), target.expand(n, -1, -1), strict=True):
        costs = group_costs(one, other)
        rows.append([min(costs[i][i + window]) / window for i in range(len(one) - window + 1)])
        best = [0.0] + [math.inf] * len(one)
        for i in range(1, len(one) + 1):
            for cut in range(i - window + 1):
                best[i] = min(best[i], best[cut] + min(costs[cut][i]))
        totals.append(best[-1])
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(totals, dtype=torch.float64)


def on_this_processor(source: Tensor, target: Tensor, window: int, backend: str) -> tuple[Tensor, Tensor]:
    """With the instructions that SINMDM_CPU_ISA names; skips the test where the processor has none such."""
    try:
        return window_match(source, target, window=window, rebuild=True, backend=backend)
    except RuntimeError as error:
        if "SINMDM_CPU_ISA must be one of" not in str(error):
            raise
        pytest.skip(f"this processor has no {os.environ['SINMDM_CPU_ISA']}")


def assert_equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """The same bits, NaNs equal to each other."""
    for x, y in zip(actual, expected, strict=True):
        assert torch.equal(x.nan_to_num(nan=-1.0), y.nan_to_num(nan=-1.0))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_published_table_in_float64(case: Case, backend: str) -> None:
    source, target = case.inputs()
    nearest, cost = window_match(source, target, window=case.window, rebuild=True, backend=backend)
    expected_nearest, expected_cost = by_table(source, target, case.window)
    assert_same_formula("nearest", nearest, expected_nearest, case.terms)
    assert_same_formula("cost", cost, expected_cost, case.terms)
    assert torch.equal(window_match(source, target, window=case.window, backend=backend), nearest)


@pytest.mark.parametrize("case", [*CASES, *LONG], ids=str)
def test_float32_is_as_near_to_float64_as_the_plain_composition(case: Case, backend: str) -> None:
    inputs = case.inputs(torch.float32)
    options: dict[str, Any] = {"window": case.window, "rebuild": True}
    exact = window_match(*(x.double() for x in inputs), **options, backend="reference")
    plain = window_match(*inputs, **options, backend="reference")
    for name, x, y, z in zip(
        ("nearest", "cost"), window_match(*inputs, **options, backend=backend), exact, plain, strict=True
    ):
        assert x.dtype == torch.float32
        assert_within_budget(name, x, y, z)


@pytest.mark.parametrize("case", LONG, ids=str)
def test_backends_agree_in_float64(case: Case, backend: str) -> None:
    inputs = case.inputs()
    expected = window_match(*inputs, window=case.window, rebuild=True, backend="reference")
    actual = window_match(*inputs, window=case.window, rebuild=True, backend=backend)
    for name, x, y in zip(("nearest", "cost"), actual, expected, strict=True):
        assert_same_formula(name, x, y, case.terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_copy_has_exactly_0(dtype: torch.dtype, backend: str) -> None:
    """Of large numbers: the product form of the distance would leave about 0.1 here in float32."""
    _, target = Case(1, 80, 66, 30).inputs(dtype)
    target = 40 * target
    source = torch.stack([target, target.roll(-30, dims=0)])  # the second is frames 30 to 79, then 0 to 29: two pieces
    nearest, cost = window_match(source, target, window=30, rebuild=True, backend=backend)
    assert cost.tolist() == [0.0, 0.0]
    assert not nearest[0].any()
    assert [int(i) for i in nearest[1].nonzero()[:, 0]] == list(range(21, 50))  # the windows that span the cut
    assert window_match(source, target, window=31, rebuild=True, backend=backend)[1][1] > 0


def test_what_cannot_be_rebuilt_is_infinite(backend: str) -> None:
    """Pieces of 5 to 8 frames make 5 to 8, 10 to 16 and 15 upward, but not 9."""
    source, target = Case(16, 8, 3, 5).inputs()
    costs = [window_match(source[:n], target, window=5, rebuild=True, backend=backend)[1] for n in range(5, 17)]
    assert [bool(cost.isfinite()) for cost in costs] == [True] * 4 + [False] + [True] * 7
    assert costs[4].item() == math.inf


def test_samples_are_alone_in_a_batch(backend: str) -> None:
    source, target = Case(50, 40, 5, 6, 5, 5).inputs()
    both = window_match(source, target, window=6, rebuild=True, backend=backend)
    for i in range(5):
        for one, other in ((source[i], target[i]), (source[i : i + 1], target[i]), (source[i], target[i : i + 1])):
            assert_equal(
                window_match(one, other, window=6, rebuild=True, backend=backend), tuple(x[i, None] for x in both)
            )
    shared = window_match(source, target[2], window=6, rebuild=True, backend=backend)
    assert_equal(window_match(source, target[2].expand(5, -1, -1), window=6, rebuild=True, backend=backend), shared)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_shows_in_every_window_that_spans_it(dtype: torch.dtype, backend: str) -> None:
    source, target = Case(50, 40, 5, 6, 3).inputs(dtype)
    sound = window_match(source, target, window=6, rebuild=True, backend=backend)
    for frame in (0, 17, 49):
        ill = source.clone()
        ill[1, frame, 3] = math.nan
        nearest, cost = window_match(ill, target, window=6, rebuild=True, backend=backend)
        spans = torch.zeros(3, 45, dtype=torch.bool)
        spans[1, max(0, frame - 5) : frame + 1] = True
        assert nearest[spans].isnan().all()
        assert torch.equal(nearest[~spans], sound[0][~spans])
        assert cost.isnan().tolist() == [False, True, False]
        assert torch.equal(cost[::2], sound[1][::2])
    for frame in (0, 17, 39):
        ill = target.clone()
        ill[frame, 3] = math.nan  # every window of the source is compared with one that spans it
        nearest, cost = window_match(source, ill, window=6, rebuild=True, backend=backend)
        assert nearest.isnan().all()
        assert cost.isnan().all()


@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(("feature", "infinite"), [(2, math.inf), (3, -math.inf), (3, math.inf)])
def test_infinities_are_as_in_the_reference(
    feature: int, infinite: float, instructions: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite distance where one frame has infinity, and NaN where both have it in one feature: at one place of the
    table alone, beyond whose last columns a register's other lanes lie."""
    monkeypatch.setenv("SINMDM_CPU_ISA", instructions)
    case = Case(26, 40, 5, 6)
    for row in (0, 7, 8, 10, 25):
        for column in (0, 20, 35, 36, 37, 39):
            source, target = case.inputs()
            source[row, 3], target[column, feature] = math.inf, infinite
            actual = on_this_processor(source, target, 6, backend)
            expected = window_match(source, target, window=6, rebuild=True, backend="reference")
            for x, y in zip(actual, expected, strict=True):
                assert torch.equal(x.isnan(), y.isnan())
                assert torch.equal(x.isinf(), y.isinf())


def test_any_strides_in_memory(backend: str) -> None:
    source, target = Case(20, 15, 6, 4, 3).inputs()
    expected = window_match(source, target, window=4, rebuild=True, backend=backend)
    wide = torch.full((3, 40, 13), math.nan, dtype=torch.float64)
    wide[:, ::2, 3:9] = source
    views = wide[:, ::2, 3:9], target.T.contiguous().T
    assert not any(view.is_contiguous() for view in views)
    assert_equal(window_match(*views, window=4, rebuild=True, backend=backend), expected)


@pytest.mark.parametrize(("source_batch", "target_batch"), [(0, None), (0, 0), (0, 1), (1, 0)])
def test_an_empty_batch(source_batch: int, target_batch: int | None, backend: str) -> None:
    source = torch.zeros(source_batch, 9, 4)
    target = torch.zeros(8, 4) if target_batch is None else torch.zeros(target_batch, 8, 4)
    nearest, cost = window_match(source, target, window=3, rebuild=True, backend=backend)
    assert nearest.shape == (0, 7)
    assert cost.shape == (0,)


@pytest.mark.parametrize("elements", [1, 1 << 10])
def test_the_reference_is_the_same_in_blocks(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Case(123, 40, 7, 7, 2).inputs()
    whole = window_match(source, target, window=7, rebuild=True, backend="reference")
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", elements)
    for x, y in zip(window_match(source, target, window=7, rebuild=True, backend="reference"), whole, strict=True):
        torch.testing.assert_close(x, y)


def test_many_blocks_of_rows(backend: str) -> None:
    """More rows than the kernel holds at once, where a block is 2^18 distances, and more samples: one for a thread."""
    case = Case(1500, 450, 2, 50, 3)
    inputs = case.inputs()
    expected = window_match(*inputs, window=case.window, rebuild=True, backend="reference")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        actual = window_match(*inputs, window=case.window, rebuild=True, backend=backend)
    finally:
        torch.set_num_threads(threads)
    for name, x, y in zip(("nearest", "cost"), actual, expected, strict=True):
        assert_same_formula(name, x, y, case.terms)


def test_twenty_runs_and_any_threads_give_the_same_bits(backend: str) -> None:
    inputs = Case(300, 200, 70, 30, 3).inputs(torch.float32)
    first = window_match(*inputs, window=30, rebuild=True, backend=backend)
    threads = torch.get_num_threads()
    try:
        for repeat in range(20):
            torch.set_num_threads(threads if backend == "reference" else 1 + repeat % 3)
            assert_equal(window_match(*inputs, window=30, rebuild=True, backend=backend), first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("case", [CASES[0], CASES[9], LONG[0]], ids=str)
def test_every_instruction_set(case: Case, instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if _dispatch.machine_lacks("cpu") is not None:
        pytest.skip(f"no cpu backend: {_dispatch.machine_lacks('cpu')}")
    monkeypatch.setenv("SINMDM_CPU_ISA", instructions)
    for dtype in DTYPES:
        inputs = case.inputs(dtype)
        actual = on_this_processor(*inputs, case.window, "cpu")
        plain = window_match(*inputs, window=case.window, rebuild=True, backend="reference")
        exact = window_match(*(x.double() for x in inputs), window=case.window, rebuild=True, backend="reference")
        for name, x, y, z in zip(("nearest", "cost"), actual, exact, plain, strict=True):
            if dtype == torch.float64:
                assert_same_formula(name, x, y, case.terms)
            else:
                assert_within_budget(name, x, y, z)


def test_inputs_that_want_a_gradient_are_measured(backend: str) -> None:
    source, target = Case(20, 15, 6, 4).inputs()
    expected = window_match(source, target, window=4, rebuild=True, backend=backend)
    actual = window_match(source.requires_grad_(), target.requires_grad_(), window=4, rebuild=True, backend=backend)
    assert_equal(actual, expected)
    assert not any(x.requires_grad for x in actual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rebuild", [False, True])
def test_opcheck(rebuild: bool, dtype: torch.dtype, backend: str) -> None:
    source, target = Case(9, 8, 4, 3, 2, 1).inputs(dtype)
    for inputs in ((source, target), (target, source), (source.mT.contiguous().mT, target)):
        torch.library.opcheck(torch.ops.sinmdm.window_match, (*inputs, 3, rebuild, backend))


def test_compiles_as_one_graph(backend: str) -> None:
    source, target = Case(9, 8, 4, 3, 2).inputs()

    def measure(source: Tensor, target: Tensor) -> Tensor:
        nearest, cost = window_match(2 * source, target, window=3, rebuild=True, backend=backend)
        return nearest.sum(dim=1) + cost

    torch._dynamo.reset()
    compiled = torch.compile(measure, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(source, target), measure(source, target))


def test_fake_and_meta_tensors() -> None:
    source, target = Case(9, 8, 4, 3, 2).inputs()
    expected = window_match(source, target, window=3, rebuild=True)
    with FakeTensorMode() as mode:
        fake = window_match(mode.from_tensor(source), mode.from_tensor(target), window=3, rebuild=True)
    meta = window_match(source.to("meta"), target.to("meta"), window=3, rebuild=True)
    for x, y, z in zip(expected, fake, meta, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype) == (z.shape, z.dtype)


def test_under_autocast_nothing_changes(backend: str) -> None:
    inputs = Case(20, 15, 6, 4).inputs(torch.float32)
    expected = window_match(*inputs, window=4, rebuild=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(window_match(*inputs, window=4, rebuild=True, backend=backend), expected)


MOTION = torch.zeros(2, 9, 4)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "source of one dimension": ({"source": MOTION[0, 0]}, ValueError, r"source must have shape.*got \(4,\)"),
    "target of four": ({"target": MOTION[None]}, ValueError, r"target must have shape.*got \(1, 2, 9, 4\)"),
    "no features": ({"source": MOTION[..., :0]}, ValueError, "source must have shape.*a feature or more"),
    "source of integers": ({"source": MOTION.int()}, TypeError, "source must be float32 or float64, got int32"),
    "source of a half type": ({"source": MOTION.half()}, TypeError, "source must be float32 or float64, got float16"),
    "another dtype": ({"target": MOTION.double()}, TypeError, "target must be float32, got float64"),
    "target's device": ({"target": MOTION.to("meta")}, ValueError, "target must be on source's device cpu"),
    "features": ({"target": MOTION[..., 1:]}, ValueError, "target must have source's 4 features, got 3"),
    "batches": ({"target": torch.zeros(3, 9, 4)}, ValueError, "target must have a batch of 2, .* got 3"),
    "window 0": ({"window": 0}, ValueError, "window must be an int of at least 1, got 0"),
    "window 2.0": ({"window": 2.0}, ValueError, r"window must be an int of at least 1, got 2\.0"),
    "window True": ({"window": True}, ValueError, "window must be an int of at least 1, got True"),
    "a short source": ({"source": MOTION[:, :4]}, ValueError, "source must have at least the window's 5 frames, got 4"),
    "a short target": ({"target": MOTION[:, :4]}, ValueError, "target must have at least the window's 5 frames, got 4"),
    "unknown backend": ({"backend": "gpu"}, ValueError, "backend must be one of"),
    "a backend without it": ({"backend": "triton"}, BackendError, "window_match has no such implementation"),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_name_the_argument(what: str) -> None:
    good: dict[str, Any] = {"source": MOTION, "target": MOTION, "window": 5}
    window_match(**good)  # what the case is changed from is fine
    changed, error, message = BAD[what]
    with pytest.raises(error, match=message):
        window_match(**{**good, **changed})
