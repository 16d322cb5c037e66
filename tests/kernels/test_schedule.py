"""The noise schedules: published values, identities, errors."""

import math

import pytest
import torch

from sinmdm.kernels import Schedule
from sinmdm.kernels.schedule import STEP_COLUMNS

TABLES = ("betas", "alpha_bars", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_log_variance")
# The published implementation's tables for cosine, T = 1000, to the digits it was printed with.
PUBLISHED = {
    0: ("4.128422482196914e-05", "0.999958715775178", "1", "0", "-10.734082532465"),
    1: ("4.614175273665e-05", "0.99991257592737", "0.52778140933449", "0.47221859042676", "-10.734082532465"),
    500: ("0.003155691441585", "0.49228517244880", "0.004367866899527", "0.995356279455225", "-5.761621845147"),
    999: ("0.999", "2.42876690703e-09", "0.00155689171549", "0.031622699874135", "-0.001002926674673"),
}


def one_in_the_last_digit(printed: str) -> float:
    digits, _, exponent = printed.partition("e")
    decimals = len(digits.partition(".")[2])
    # Short values are exact ones; printed fully, they would have sixteen significant digits.
    return 10.0 ** (int(exponent or 0) - (decimals if decimals > 3 else 15))


@pytest.mark.parametrize("t", PUBLISHED)
def test_cosine_has_the_published_values(t: int) -> None:
    schedule = Schedule.cosine(1000)
    for name, printed in zip(TABLES, PUBLISHED[t], strict=True):
        table = getattr(schedule, name)
        assert table.dtype == torch.float64
        assert table.shape == (1000,)
        assert abs(float(table[t]) - float(printed)) <= one_in_the_last_digit(printed), (name, float(table[t]))


@pytest.mark.parametrize("schedule", [Schedule.cosine(1000), Schedule.linear(100)], ids=["cosine", "linear"])
def test_tables_are_what_their_names_say(schedule: Schedule) -> None:
    betas = [float(b) for b in schedule.betas]
    alpha_bar = 1.0
    for t, beta in enumerate(betas):
        before, alpha_bar = alpha_bar, alpha_bar * (1 - beta)
        # t products, each rounded once; 1 - alpha_bar loses as many digits as alpha_bar is near to 1.
        eps = (t + 4) * torch.finfo(torch.float64).eps
        near = 8 * eps / (1 - alpha_bar)
        assert float(schedule.alpha_bars[t]) == pytest.approx(alpha_bar, rel=eps)
        coef1 = beta * math.sqrt(before) / (1 - alpha_bar)
        coef2 = (1 - before) * math.sqrt(1 - beta) / (1 - alpha_bar)
        assert float(schedule.posterior_mean_coef1[t]) == pytest.approx(coef1, rel=near)
        assert float(schedule.posterior_mean_coef2[t]) == pytest.approx(coef2, rel=near, abs=near)
        if t:
            variance = beta * (1 - before) / (1 - alpha_bar)
            near_before = near + 8 * eps / (1 - before)
            assert float(schedule.posterior_log_variance[t]) == pytest.approx(math.log(variance), abs=near_before)
    assert float(schedule.posterior_log_variance[0]) == float(schedule.posterior_log_variance[1])
    assert len(schedule) == len(betas)


def test_linear_spans_the_published_betas() -> None:
    thousand = Schedule.linear(1000).betas
    assert float(thousand[0]) == pytest.approx(1e-4, rel=1e-15)
    assert float(thousand[-1]) == pytest.approx(0.02, rel=1e-15)
    assert torch.allclose(thousand.diff(), thousand.diff()[:1].expand(999), rtol=1e-10, atol=0)
    assert float(Schedule.linear(100).betas[-1]) == pytest.approx(0.2, rel=1e-15)  # scaled by 1000 / T


def test_the_shortest_schedules() -> None:
    assert float(Schedule.linear(21).betas[-1]) == pytest.approx(20 / 21)
    one = Schedule.cosine(1)
    assert one.betas.tolist() == [0.999]
    assert all(bool(getattr(one, name).isfinite().all()) for name in TABLES)


def test_only_the_last_cosine_beta_is_clipped() -> None:
    betas = Schedule.cosine(1000).betas
    assert int((betas == 0.999).sum()) == 1
    assert float(betas[-1]) == 0.999


def test_alpha_bar_of_the_clean_state_is_one() -> None:
    schedule = Schedule.cosine(10)
    values = schedule.alpha_bar_at(torch.tensor([-1, 0, 9]))
    assert values.tolist() == [1.0, float(schedule.alpha_bars[0]), float(schedule.alpha_bars[9])]


def test_a_schedule_of_ones_own_betas() -> None:
    schedule = Schedule([0.1, 0.2, 0.3])
    assert schedule.alpha_bars.tolist() == pytest.approx([0.9, 0.72, 0.504])


def test_betas_may_come_as_near_to_the_ends_as_float64_does() -> None:
    schedule = Schedule([2.0**-53, 1 - 2.0**-53])
    assert schedule.betas.tolist() == [2.0**-53, 1 - 2.0**-53]
    assert schedule.alpha_bars.tolist() == [1 - 2.0**-53, (1 - 2.0**-53) * 2.0**-53]
    assert all(bool(getattr(schedule, name).isfinite().all()) for name in TABLES)


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_options_have_columns_of_their_own(prediction: str) -> None:
    schedule, t = Schedule.cosine(50), torch.tensor([20, 49])

    def columns(**options) -> dict:
        rows = schedule.step_coefficients(t, t - 5, prediction=prediction, **options)
        assert rows.dtype == torch.float64
        return dict(zip(STEP_COLUMNS, rows.unbind(1), strict=True))

    def changed(other: dict) -> set[str]:
        return {name for name in plain if not torch.equal(plain[name], other[name])}

    plain = columns(eta=0.5)
    assert plain["limit"].tolist() == [math.inf] * 2
    assert plain["scale"].tolist() == [1.0] * 2
    assert not plain["unconditional_to_x0"].any()
    assert not plain["of_raw"].any()
    assert changed(clipped := columns(eta=0.5, clip=0.75)) == {"limit"}
    assert clipped["limit"].tolist() == [0.75] * 2
    # A weight of 4 and another of -3: exact multiples.
    assert changed(guided := columns(eta=0.5, guidance=4.0)) == {"model_to_x0", "unconditional_to_x0"}
    assert torch.equal(guided["model_to_x0"], 4 * plain["model_to_x0"])
    assert torch.equal(guided["unconditional_to_x0"], -3 * plain["model_to_x0"])
    # The direction's share of x0 moves from one column to another.
    assert changed(raw := columns(eta=0.5, clipped_direction=False)) == {"of_x0", "of_raw"}
    assert raw["of_x0"].tolist() == schedule.alpha_bar_at(t - 5).sqrt().tolist()
    assert torch.allclose(raw["of_x0"] + raw["of_raw"], plain["of_x0"], rtol=0, atol=2 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.linear(20), "timesteps must be at least 21.*got 20"),
        (lambda: Schedule.cosine(0), "timesteps must be at least 1, got 0"),
        (lambda: Schedule([]), r"betas must have shape \(T,\) with T >= 1, got \(0,\)"),
        (lambda: Schedule([[0.1]]), r"betas must have shape.*got \(1, 1\)"),
        (lambda: Schedule([0.1, 0.0]), r"betas must lie in \(0, 1\), got 0.0"),
        (lambda: Schedule([0.1, 1.0]), r"betas must lie in \(0, 1\), got 1.0"),
        (lambda: Schedule([0.1, 1.5]), r"betas must lie in \(0, 1\)"),
        (lambda: Schedule([0.1, math.nan]), r"betas must lie in \(0, 1\)"),
    ],
)
def test_errors_name_the_argument(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
