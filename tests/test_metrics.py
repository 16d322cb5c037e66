"""The metrics against their definitions, written out as loops in float64, and in cases whose answer is known."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sinmdm import metrics
from sinmdm.kernels import window_match
from sinmdm.metrics import (
    coverage,
    coverage_area,
    coverage_curve,
    distribution_distance,
    energy,
    foot_sliding,
    global_diversity,
    harmonic_mean,
    inter_diversity,
    intra_diversity,
    intra_diversity_difference,
    local_diversity,
    nearest_window_distance,
    normalized,
    window_distances,
)

# Frames of sample and clip, window: several pieces, nothing to choose, one frame pieces, either motion the longer.
SIZES = [(23, 17, 4), (9, 31, 5), (6, 5, 4), (12, 8, 1), (40, 40, 7)]
DTYPES = [torch.float32, torch.float64]


def motions(frames: int, clip_frames: int, dtype: torch.dtype = torch.float64, n: int = 3) -> tuple[Tensor, Tensor]:
    """Random walks, so that neighbouring windows are alike and the minimum has near ties."""
    generator = torch.Generator().manual_seed(1000 * frames + clip_frames)
    samples = torch.randn(n, frames, 6, dtype=torch.float64, generator=generator).cumsum(1) / 2
    clip = torch.randn(clip_frames, 6, dtype=torch.float64, generator=generator).cumsum(0) / 2
    return samples.to(dtype), clip.to(dtype)


def group_costs(source: Tensor, target: Tensor) -> np.ndarray:
    """C[i, j, k]: cost of matching source frames [i, j) to the target's from k on; infinite past its end."""
    source, target = source.double().numpy(), target.double().numpy()
    distances = np.array([[math.dist(a, b) for b in target] for a in source])
    frames, width = distances.shape
    costs = np.full((frames, frames + 1, width), np.inf)
    for i in range(frames):
        for k in range(width):
            costs[i, i, k] = 0.0
            for m in range(min(frames - i, width - k)):
                costs[i, i + m + 1, k] = costs[i, i + m, k] + distances[i + m, k + m]
    return costs


def nearest_by_definition(source: Tensor, target: Tensor, window: int) -> list[float]:
    costs = group_costs(source, target)
    return [costs[i, i + window].min() / window for i in range(len(source) - window + 1)]


def rebuilding_by_definition(source: Tensor, target: Tensor, window: int) -> float:
    costs = group_costs(source, target)
    best = [0.0] + [math.inf] * len(source)
    for i in range(1, len(source) + 1):
        for cut in range(i - window + 1):
            best[i] = min(best[i], best[cut] + costs[cut, i].min())
    return best[-1] / len(source)


def assert_near(value: Tensor, expected: list[float], dtype: torch.dtype) -> None:
    assert value.dtype == dtype
    # Sums of at most 40 positive distances: no cancellation, so errors are a few units in the last place.
    relative = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(value.double(), torch.tensor(expected, dtype=torch.float64), rtol=relative, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("frames", "clip_frames", "window"), SIZES)
class TestDefinitions:
    def test_nearest_window_distance(self, frames: int, clip_frames: int, window: int, dtype: torch.dtype) -> None:
        samples, clip = motions(frames, clip_frames, dtype)
        expected = nearest_by_definition(samples[0], clip, window)
        assert_near(nearest_window_distance(samples[0], clip, window=window), expected, dtype)

    def test_coverage(self, frames: int, clip_frames: int, window: int, dtype: torch.dtype) -> None:
        samples, clip = motions(frames, clip_frames, dtype)
        nearest = [nearest_by_definition(clip, sample, window) for sample in samples]
        threshold = float(np.median(nearest)) * 1.001  # beside, not on, one of the values
        expected = [float(np.mean([value < threshold for value in values[:-1]])) for values in nearest]
        assert_near(coverage(samples, clip, window=window, threshold=threshold), expected, dtype)

    def test_local_diversity(self, frames: int, clip_frames: int, window: int, dtype: torch.dtype) -> None:
        samples, clip = motions(frames, clip_frames, dtype)
        expected = [float(np.mean(nearest_by_definition(sample, clip, window)[:-1])) for sample in samples]
        assert_near(local_diversity(samples, clip, window=window), expected, dtype)

    def test_global_diversity(self, frames: int, clip_frames: int, window: int, dtype: torch.dtype) -> None:
        samples, clip = motions(frames, clip_frames, dtype)
        expected = [rebuilding_by_definition(sample, clip, window) for sample in samples]
        assert_near(global_diversity(samples, clip, min_window=window), expected, dtype)

    def test_coverage_curve_and_area(self, frames: int, clip_frames: int, window: int, dtype: torch.dtype) -> None:
        samples, clip = motions(frames, clip_frames, dtype)
        nearest = [nearest_by_definition(clip, sample, window)[:-1] for sample in samples]
        limit = float(np.median(nearest)) * 1.001  # beside, not on, one of the values
        thresholds = [2 * limit, 0.0, limit]
        curve = coverage_curve(samples, clip, window=window, thresholds=thresholds)
        assert curve.shape == (3, 3)
        for column, threshold in zip(curve.T, thresholds, strict=True):
            assert_near(column, [float(np.mean([x < threshold for x in values])) for values in nearest], dtype)
        # Below the curve, between one of its steps and the next.
        areas = []
        for values in nearest:
            steps = [0.0, *sorted(x for x in values if x < limit), limit]
            shares = [i / len(values) for i in range(len(steps) - 1)]
            areas.append(sum(share * (b - a) for share, a, b in zip(shares, steps, steps[1:], strict=False)) / limit)
        area = coverage_area(samples, clip, window=window, limit=limit)
        assert area.dtype == dtype
        # 1 - d / limit cancels: its error is in units of 1, not of itself.
        band = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(area.double(), torch.tensor(areas, dtype=torch.float64), rtol=0, atol=band)

    def test_window_distances(self, frames: int, clip_frames: int, window: int, dtype: torch.dtype) -> None:
        """Each method is the function of its name, to the bit, for one search each way."""
        samples, clip = motions(frames, clip_frames, dtype)
        found = window_distances(samples, clip, window=window)
        for i, sample in enumerate(samples):
            assert torch.equal(found.clip_to_samples[i], nearest_window_distance(clip, sample, window=window))
            assert torch.equal(found.samples_to_clip[i], nearest_window_distance(sample, clip, window=window))
        same = found.global_diversity.nan_to_num(posinf=-1)
        assert torch.equal(same, global_diversity(samples, clip, min_window=window).nan_to_num(posinf=-1))
        limit = float(found.clip_to_samples.median())
        assert torch.equal(found.coverage(limit), coverage(samples, clip, window=window, threshold=limit))
        curve = coverage_curve(samples, clip, window=window, thresholds=[limit, 2 * limit])
        assert torch.equal(found.coverage_curve([limit, 2 * limit]), curve)
        assert torch.equal(found.coverage_area(limit), coverage_area(samples, clip, window=window, limit=limit))


@pytest.mark.parametrize("search", [1, 3])
def test_one_search_each_way_serves_all(search: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(source: Tensor, target: Tensor, **options: Any) -> Any:
        calls.append((len(source), len(target)))
        return window_match(source, target, **options)

    monkeypatch.setattr(metrics, "window_match", counted)
    samples, clip = motions(20, 15, n=search)
    found = window_distances(samples, clip, window=4)
    found.coverage(), found.coverage_curve([1.0, 2.0]), found.coverage_area()
    assert sorted(calls) == sorted([(search, 15), (15, search)])


def wasserstein_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets of numbers: each repeated until both are as many, matched in order."""
    count = math.lcm(len(a), len(b))
    repeated = (np.repeat(np.sort(x), count // len(x)) for x in (a, b))
    return float(np.mean(np.abs(np.subtract(*repeated))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("frames", "clip_frames"), [(23, 17), (12, 8), (8, 12), (7, 7), (1, 9), (1, 1)])
def test_distribution_distance(frames: int, clip_frames: int, dtype: torch.dtype) -> None:
    samples, clip = motions(frames, clip_frames, dtype)
    distance = distribution_distance(samples, clip)
    assert distance.shape == (3, 6)
    for i, sample in enumerate(samples.double().numpy()):
        expected = [wasserstein_by_definition(a, b) for a, b in zip(sample.T, clip.double().numpy().T, strict=True)]
        # Differences of numbers up to about 10 may cancel: the error is in units of those.
        band = 8 * torch.finfo(dtype).eps * float(max(samples.abs().max(), clip.abs().max()))
        torch.testing.assert_close(
            distance[i].double(),
            torch.tensor(expected, dtype=torch.float64),
            rtol=64 * torch.finfo(dtype).eps,
            atol=band,
        )


def test_distribution_distance_sees_values_and_not_their_order() -> None:
    samples, clip = motions(8, 12)
    shuffled = clip[torch.randperm(12)]
    assert not distribution_distance(torch.stack([clip, shuffled]), clip).any()
    assert not distribution_distance(clip.repeat(1, 3, 1), clip).any()
    shifted = distribution_distance(shuffled[None] + torch.arange(6.0), clip)
    torch.testing.assert_close(shifted[0], torch.arange(6, dtype=torch.float64))
    samples[1, 3, 2] = math.nan
    isnan = distribution_distance(samples, clip).isnan()
    assert isnan.nonzero().tolist() == [[1, 2]]


def test_harmonic_mean() -> None:
    one, other = torch.tensor([0.5, 1.0, 0.0, -1.0, math.nan]), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(
        harmonic_mean(one, other), torch.tensor([2 / 3, 1.0, 0.0, 0.0, math.nan]), equal_nan=True
    )
    third = harmonic_mean(torch.tensor(0.2), torch.tensor([0.4, 0.8]), torch.tensor(0.8))
    torch.testing.assert_close(third, torch.tensor([3 / (5 + 2.5 + 1.25), 3 / (5 + 1.25 + 1.25)]))
    assert (
        harmonic_mean(other, torch.tensor([0.3] * 5)).tolist() == harmonic_mean(torch.tensor([0.3] * 5), other).tolist()
    )


def test_scores_are_normalized_as_published() -> None:
    """The harmonic mean of the published benchmark: 3 / (1/sifid + 1/inter + 1/intra), each by its norm."""
    sifid, inter, intra = torch.tensor([2.0]), torch.tensor([1.5]), torch.tensor([0.25])
    norms = {"sifid": 8.0, "inter": 2.0, "intra": 1.0}
    mean = harmonic_mean(
        normalized(sifid, norms["sifid"], lower_is_better=True),
        normalized(inter, norms["inter"]),
        normalized(intra, norms["intra"], lower_is_better=True),
    )
    assert mean.item() == pytest.approx(3 / (8 / (8 - 2) + 2 / 1.5 + 1 / (1 - 0.25)))
    assert normalized(torch.tensor(9.0), 8.0, lower_is_better=True).item() < 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_foot_sliding(dtype: torch.dtype) -> None:
    positions = 3 * motions(12, 1, dtype)[0].unflatten(2, (2, 3))[0]
    contacts = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0.6, 0.5], [1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]]).T
    speeds = []
    p = positions.double().tolist()
    for t in range(1, 12):
        for joint in range(2):
            if min(contacts[t, joint], contacts[t - 1, joint]) > 0.5:
                before, now = p[t - 1][joint], p[t][joint]
                speeds.append(math.hypot(now[0] - before[0], now[2] - before[2]) / 0.04)
    assert len(speeds) == 2 + 2 + 4  # joint 0: frames 2, 3, 9, 10; joint 1: 1, 6, 7, 8
    value = foot_sliding(positions, contacts, 0.04)
    assert value.dtype == dtype
    assert value.item() == pytest.approx(np.mean(speeds), rel=64 * torch.finfo(dtype).eps * 20)


def test_foot_sliding_where_there_is_none() -> None:
    positions = torch.zeros(5, 2, 3)
    positions[:, 0, 1] = torch.arange(5.0)  # up, which is not sliding
    positions[:, 1, 0] = torch.arange(5.0)  # sliding, but never in contact at two frames
    contacts = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert foot_sliding(positions, contacts, 0.1).item() == 0
    assert foot_sliding(positions, contacts[:, :1].expand(-1, 2), 0.1).item() == pytest.approx(5)
    assert foot_sliding(positions, torch.zeros(5, 2), 0.1).isnan()
    assert foot_sliding(positions[:1], contacts[:1], 0.1).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_inter_diversity(dtype: torch.dtype) -> None:
    samples, clip = motions(11, 5, dtype)
    x = samples.double().numpy()
    expected = [math.sqrt(((x[i] - x[i - 1]) ** 2).sum()) / 11 for i in range(3)]
    assert_near(inter_diversity(samples, clip), expected, dtype)
    assert inter_diversity(samples[:1]).tolist() == [0.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_intra_diversity_draws_as_published(dtype: torch.dtype) -> None:
    window, frames, clip_frames = 4, 22, 11
    samples, clip = motions(frames, clip_frames, dtype)
    np.random.seed(10)  # noqa: NPY002 -- the published code draws from the global generator
    sample_starts = np.random.randint(2 * clip_frames - window, size=(3, 2))  # noqa: NPY002
    clip_starts = np.random.randint(2 * clip_frames // 2 - 1 - window, size=(3, 2))  # noqa: NPY002

    def distance(motion: np.ndarray, start: np.ndarray) -> float:
        a, b = (motion[first : first + window] for first in start)
        return float(np.linalg.norm(a - b)) / window

    x, y = samples.double().numpy(), clip.double().numpy()
    of_samples = [distance(motion, start) for motion, start in zip(x, sample_starts, strict=True)]
    of_clip = [distance(y, start) for start in clip_starts]
    assert min(of_samples) > 0
    assert_near(intra_diversity(samples, clip, window=window), of_samples, dtype)
    difference = [abs(a - b) for a, b in zip(of_samples, of_clip, strict=True)]
    computed = intra_diversity_difference(samples, clip, window=window)
    band = 64 * torch.finfo(dtype).eps * max(of_samples + of_clip)  # of the two distances, which may cancel
    torch.testing.assert_close(computed.double(), torch.tensor(difference, dtype=torch.float64), rtol=0, atol=band)
    again, other = (intra_diversity(samples, window=window, seed=seed) for seed in (10, 11))
    assert torch.equal(again, intra_diversity(samples, clip, window=window))
    assert not torch.equal(again, other)


def test_random_windows_start_anywhere_but_at_the_published_ends() -> None:
    """Frame t is t: the distance of two one-frame windows is the distance of their starts."""
    moving, still = torch.arange(5.0)[:, None], torch.zeros(200, 5, 1)
    assert set(intra_diversity(moving.expand(200, -1, -1), window=1).tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert set(intra_diversity_difference(still, moving, window=1).tolist()) == {0.0, 1.0, 2.0}


def test_defaults_are_the_published_ones() -> None:
    for metric, published in (
        (coverage, {"window": 30, "threshold": 2.0}),
        (coverage_curve, {"window": 30, "thresholds": inspect.Parameter.empty}),
        (coverage_area, {"window": 30, "limit": 2.0}),
        (global_diversity, {"min_window": 30}),
        (local_diversity, {"window": 15}),
        (intra_diversity, {"window": 15, "seed": 10}),
        (intra_diversity_difference, {"window": 15, "seed": 10}),
    ):
        parameters = inspect.signature(metric).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert keywords == published


@pytest.mark.parametrize("dtype", DTYPES)
def test_energy(dtype: torch.dtype) -> None:
    x = motions(13, 5, dtype)[0]
    y = x.double().numpy()
    expected = [
        float(np.mean([math.hypot(*(m[t + 1] - 2 * m[t] + m[t - 1])) for t in range(1, len(m) - 1)])) for m in y
    ]
    assert_near(energy(x), expected, dtype)
    torch.testing.assert_close(energy(x[1]), energy(x)[1])
    line = torch.arange(9.0, dtype=dtype)[:, None] * torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    assert energy(line).item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_clip_itself_is_covered_and_not_diverse(dtype: torch.dtype) -> None:
    _, clip = motions(5, 80, dtype)
    clip = 40 * clip  # a product form of the distance would leave about 0.1 here in float32
    samples = torch.stack([clip, clip.roll(-30, dims=0)])
    assert coverage(samples[:1], clip, threshold=1e-6).tolist() == [1.0]
    assert local_diversity(samples[:1], clip).tolist() == [0.0]
    assert nearest_window_distance(clip, clip).tolist() == [0.0] * 51
    # The second is the clip's frames 30 to 79, then 0 to 29: two pieces of the clip, but its windows are cut once.
    assert global_diversity(samples, clip).tolist() == [0.0, 0.0]
    assert (nearest_window_distance(samples[1], clip) > 0).sum() == 29
    assert global_diversity(samples, clip, min_window=31)[1] > 0


def test_no_rebuilding_is_infinite() -> None:
    """Pieces of 5 to 8 frames make 5 to 8, 10 to 16 and 15 upward, but not 9."""
    samples, clip = motions(16, 8)
    finite = [global_diversity(samples[:, :frames], clip, min_window=5).isfinite().all() for frames in range(5, 17)]
    assert finite == [True] * 4 + [False] + [True] * 7


def test_the_last_window_is_left_out_as_published() -> None:
    clip = torch.zeros(12, 2)
    clip[-1] = 100
    still = torch.zeros(1, 12, 2)
    assert coverage(still, clip, window=4, threshold=1.0).tolist() == [1.0]
    assert local_diversity(clip[None], still[0], window=4).tolist() == [0.0]
    assert nearest_window_distance(clip, still[0], window=4)[-1] > 1


def test_coverage_threshold_is_exclusive() -> None:
    clip, samples = torch.zeros(9, 1), torch.ones(1, 9, 1)
    assert coverage(samples, clip, window=4, threshold=1.0).tolist() == [0.0]
    assert coverage(samples, clip, window=4, threshold=1.0001).tolist() == [1.0]


def test_mixed_types_take_the_wider() -> None:
    samples, clip = motions(20, 20)
    mixed = global_diversity(samples.float(), clip, min_window=4)
    assert mixed.dtype == torch.float64
    assert torch.equal(mixed, global_diversity(samples.float().double(), clip, min_window=4))


def test_nan_is_never_covered_and_shows() -> None:
    samples, clip = motions(20, 20)
    samples[1, 7, 2] = math.nan
    covered = coverage(samples, clip, window=4, threshold=1e9)
    assert covered.tolist() == [1.0, 0.0, 1.0]
    assert coverage_area(samples, clip, window=4)[1] == 0
    for metric in (local_diversity(samples, clip, window=4), global_diversity(samples, clip, min_window=4)):
        assert metric.isnan().tolist() == [False, True, False]


def test_samples_that_want_a_gradient_are_measured() -> None:
    samples, clip = motions(20, 20)
    expected = global_diversity(samples, clip, min_window=4)
    computed = global_diversity(samples.requires_grad_(), clip, min_window=4)
    assert torch.equal(computed, expected)
    assert not computed.requires_grad


def test_views_measure_as_their_copies() -> None:
    samples, clip = motions(20, 15)
    wide = torch.full((3, 40, 13), math.nan, dtype=torch.float64)
    wide[:, ::2, 3:9] = samples
    view, clip_view = wide[:, ::2, 3:9], clip.T.contiguous().T
    assert not view.is_contiguous()
    for metric in (coverage, local_diversity):
        assert torch.equal(metric(view, clip_view, window=4), metric(samples, clip, window=4))
    assert torch.equal(global_diversity(view, clip_view, min_window=4), global_diversity(samples, clip, min_window=4))
    assert torch.equal(intra_diversity(view, window=4), intra_diversity(samples, window=4))


GOOD: dict[str, Any] = {"samples": torch.zeros(2, 40, 3), "clip": torch.zeros(40, 3)}


@pytest.mark.parametrize(
    "metric", [coverage, coverage_area, global_diversity, local_diversity, intra_diversity_difference, window_distances]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.zeros(40, 3)}, r"samples must be \(n, frames, features\).*\(40, 3\)"),
        ({"samples": torch.zeros(0, 40, 3)}, r"samples must be .*\(0, 40, 3\)"),
        ({"clip": torch.zeros(1, 40, 3)}, r"clip must be \(frames, features\).*\(1, 40, 3\)"),
        ({"clip": torch.zeros(40, 4)}, r"same number of features.*'samples': 3, 'clip': 4"),
        ({"clip": torch.zeros(40, 3, dtype=torch.int64)}, "clip must be float32 or float64, not torch.int64"),
        ({"samples": torch.zeros(2, 40, 3).half()}, "samples must be float32 or float64, not torch.float16"),
        ({"samples": torch.zeros(2, 9, 3)}, r"samples must have at least \d+ frames with .*window=\d+, not 9"),
        ({"clip": torch.zeros(9, 3)}, r"clip must have at least \d+ frames with .*window=\d+, not 9"),
    ],
)
def test_errors(metric: Callable[..., Tensor], change: dict[str, Tensor], message: str) -> None:
    metric(**GOOD)
    with pytest.raises(ValueError, match=message):
        metric(**(GOOD | change))


@pytest.mark.parametrize(
    ("metric", "window", "sample_frames", "clip_frames"),
    [
        (coverage, "window", 7, 8),
        (coverage_area, "window", 7, 8),
        (global_diversity, "min_window", 7, 7),
        (local_diversity, "window", 8, 7),
        (intra_diversity_difference, "window", 8, 9),
    ],
)
def test_fewest_frames(metric: Callable[..., Tensor], window: str, sample_frames: int, clip_frames: int) -> None:
    samples, clip = torch.zeros(2, sample_frames, 3), torch.zeros(clip_frames, 3)
    assert metric(samples, clip, **{window: 7}).isfinite().all()
    with pytest.raises(ValueError, match=f"samples must have at least {sample_frames} frames"):
        metric(samples[:, 1:], clip, **{window: 7})
    with pytest.raises(ValueError, match=f"clip must have at least {clip_frames} frames"):
        metric(samples, clip[1:], **{window: 7})
    with pytest.raises(ValueError, match=rf"^{window} must be at least 1 frame, not 0"):
        metric(samples, clip, **{window: 0})


def test_errors_of_single_motions() -> None:
    with pytest.raises(ValueError, match=r"source must be \(frames, features\)"):
        nearest_window_distance(GOOD["samples"], GOOD["clip"])
    with pytest.raises(ValueError, match="target must have at least 30 frames with window=30, not 9"):
        nearest_window_distance(GOOD["clip"], GOOD["clip"][:9])
    with pytest.raises(ValueError, match="'source': 3, 'target': 2"):
        nearest_window_distance(GOOD["clip"], GOOD["clip"][:, :2])
    with pytest.raises(ValueError, match="motion must have at least 3 frames, not 2"):
        energy(GOOD["clip"][:2])
    with pytest.raises(ValueError, match=r"motion must be \(frames, features\)"):
        energy(torch.zeros(3))
    with pytest.raises(ValueError, match="samples must have at least 16 frames with window=15, not 15"):
        intra_diversity(torch.zeros(2, 15, 3))
    with pytest.raises(ValueError, match="samples must be"):
        inter_diversity(GOOD["clip"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coverage_curve(**GOOD, thresholds=[1.0, math.nan]), "thresholds must be a sequence of numbers"),
        (lambda: coverage_curve(**GOOD, thresholds=torch.ones(1, 2)), "thresholds must be a sequence of numbers"),
        (lambda: coverage_curve(**GOOD, thresholds=[]), "thresholds must be a sequence of numbers, one or more"),
        (lambda: coverage_area(**GOOD, limit=0.0), r"limit must be above 0 and finite, got 0\.0"),
        (lambda: coverage_area(**GOOD, limit=math.inf), "limit must be above 0 and finite, got inf"),
        (lambda: distribution_distance(GOOD["clip"], GOOD["clip"]), r"samples must be \(n, frames, features\)"),
        (lambda: distribution_distance(GOOD["samples"], GOOD["clip"][:, :2]), "same number of features"),
        (harmonic_mean, "scores must be at least one tensor"),
        (lambda: normalized(torch.ones(1), 0.0), r"norm must be above 0 and finite, got 0\.0"),
        (lambda: foot_sliding(torch.zeros(5, 3), torch.zeros(5), 0.1), r"positions must be \(frames, joints, 3\)"),
        (lambda: foot_sliding(torch.zeros(5, 2, 3).int(), torch.zeros(5, 2), 0.1), "positions must be float32 or"),
        (lambda: foot_sliding(torch.zeros(5, 2, 3), torch.zeros(5), 0.1), r"contacts must be \(5, 2\)"),
        (lambda: foot_sliding(torch.zeros(5, 2, 3), torch.full((5, 2), math.nan), 0.1), "contacts must be.*NaN"),
        (lambda: foot_sliding(torch.zeros(5, 2, 3), torch.zeros(5, 2), 0.0), "frame_time must be above 0"),
    ],
)
def test_errors_of_the_newer_metrics(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
