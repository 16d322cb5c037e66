"""Plans: which timesteps each spacing visits, what a plan says of its steps, and every refusal."""

import math
from typing import Any

import pytest
import torch

from sinmdm.diffusion import SAMPLERS, SPACINGS, Schedule, plan_steps, timesteps_visited

TEN = Schedule.cosine(10)


@pytest.mark.parametrize(
    ("spacing", "steps", "visited"),
    [
        ("trailing", 1, [9]),
        ("trailing", 2, [9, 4]),
        ("trailing", 3, [9, 6, 2]),  # 10, 6.67 and 3.33, rounded, less 1
        ("trailing", 4, [9, 7, 4, 1]),  # 10, 7.5, 5 and 2.5, rounded to even, less 1
        ("leading", 1, [0]),
        ("leading", 2, [5, 0]),
        ("leading", 3, [6, 3, 0]),
        ("leading", 4, [6, 4, 2, 0]),
        ("uniform", 1, [9]),
        ("uniform", 2, [9, 0]),
        ("uniform", 3, [9, 4, 0]),
        ("uniform", 4, [9, 6, 3, 0]),
    ],
)
def test_timesteps_of_each_spacing(spacing: str, steps: int, visited: list[int]) -> None:
    assert timesteps_visited(TEN, steps, spacing) == visited


@pytest.mark.parametrize("spacing", SPACINGS)
def test_all_timesteps_are_visited_by_default_and_where_as_many_are_asked_for(spacing: str) -> None:
    assert timesteps_visited(TEN, None, spacing) == list(range(9, -1, -1))
    assert timesteps_visited(TEN, 10, spacing) == list(range(9, -1, -1))


@pytest.mark.parametrize("total", [1, 2, 7, 50, 101])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_any_number_of_timesteps_falls_within_the_schedule(spacing: str, total: int) -> None:
    schedule = Schedule.cosine(total)
    for steps in range(1, total + 1):
        visited = timesteps_visited(schedule, steps, spacing)
        assert visited == sorted(set(visited), reverse=True)
        assert len(visited) == steps
        assert 0 <= visited[-1] <= visited[0] < total
        if spacing == "leading":
            assert visited[-1] == 0
        else:  # these begin where there is least signal, as the network was trained to
            assert visited[0] == total - 1


@pytest.mark.parametrize("total", [10, 100, 1000])
@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_spacings_are_those_of_diffusers(total: int, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
    for ours, theirs in (("leading", "leading"), ("trailing", "trailing"), ("uniform", "linspace")):
        if ours == "uniform" and steps == 1:
            continue  # diffusers begins where all the signal is
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=total, timestep_spacing=theirs)
        scheduler.set_timesteps(steps)
        assert timesteps_visited(Schedule.cosine(total), steps, ours) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [[9, 3, 0], (9, 3, 0)])
def test_timesteps_of_ones_own(steps: Any) -> None:
    assert timesteps_visited(TEN, steps) == [9, 3, 0]
    assert plan_steps(TEN, steps=steps).timesteps == (9, 3, 0)
    assert timesteps_visited(TEN, [4], "leading") == [4]
    given = [9, 3, 0]
    timesteps_visited(TEN, given).append(7)
    assert given == [9, 3, 0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_row_leads_from_a_timestep_to_the_next_and_the_last_to_the_clean_state(sampler: str) -> None:
    plan = plan_steps(TEN, sampler=sampler, steps=[9, 5, 4, 1], prediction="v", clip=2.0)
    lasts = (None, 9, 5, 4) if sampler == "dpmpp_2m" else (None,) * 4
    for i, (t, t_prev, t_last) in enumerate(zip((9, 5, 4, 1), (5, 4, 1, -1), lasts, strict=True)):
        options: dict[str, Any] = {"prediction": "v", "clip": 2.0}
        if sampler == "ddim" or (sampler == "dpmpp_2m" and t_last is None):
            options["eta"] = 0.0  # also where there is nothing to extrapolate from yet
        row = TEN._step_row(t, t_prev, t_last, torch.float32, **options)
        assert torch.equal(plan.coefficients[i : i + 1], row)
    assert len(plan) == 4
    assert plan.coefficients.dtype == torch.float32


def test_what_a_plan_says_of_its_steps() -> None:
    ddpm, ddim, noisy, second = (
        plan_steps(TEN, **options)
        for options in ({}, {"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.1}, {"sampler": "dpmpp_2m"})
    )
    assert [plan.draws for plan in (ddpm, ddim, noisy, second)] == [True, False, True, False]
    assert [plan.second_order for plan in (ddpm, ddim, noisy, second)] == [False, False, False, True]
    assert not ddpm.clips
    assert plan_steps(TEN, clip=1.0).clips
    assert torch.equal(ddim.coefficients, plan_steps(TEN, sampler="ddim", eta=0.0).coefficients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "magic"}, "sampler must be one of ddpm, ddim, dpmpp_2m, got 'magic'"),
        ({"prediction": "x1"}, "prediction must be one of x0, epsilon, v, got 'x1'"),
        ({"variance": "learned"}, "variance must be one of fixed_small, fixed_large, got 'learned'"),
        ({"spacing": "even"}, "spacing must be one of trailing, leading, uniform, got 'even'"),
        ({"spacing": "even", "steps": [3]}, "spacing must be one of trailing, leading, uniform, got 'even'"),
        ({"steps": 11}, "steps must be from 1 to 10, got 11"),
        ({"steps": 0}, "steps must be from 1 to 10, got 0"),
        ({"steps": -1}, "steps must be from 1 to 10, got -1"),
        ({"steps": True}, "steps must be an int or timesteps in a list, got True"),
        ({"steps": 2.5}, "steps must be an int or timesteps in a list, got 2.5"),
        ({"steps": "90"}, "steps must be an int or timesteps in a list, got '90'"),
        ({"steps": [5, 2.0]}, "steps must be an int or timesteps in a list, got [5, 2.0]"),
        ({"steps": [5, True]}, "steps must be an int or timesteps in a list, got [5, True]"),
        ({"steps": []}, "steps must be timesteps from 0 to 9, at least one, got []"),
        ({"steps": [10, 3]}, "steps must be timesteps from 0 to 9, at least one, got [10, 3]"),
        ({"steps": [3, -1]}, "steps must be timesteps from 0 to 9, at least one, got [3, -1]"),
        ({"steps": [3, 12, 0]}, "steps must be timesteps that fall from one to the next, got [3, 12, 0]"),
        ({"steps": [3, 3]}, "steps must be timesteps that fall from one to the next, got [3, 3]"),
        ({"eta": 0.5}, "eta is an option of the sampler ddim, got eta = 0.5 for ddpm"),
        ({"eta": 0.0, "sampler": "dpmpp_2m"}, "eta is an option of the sampler ddim, got eta = 0.0 for dpmpp_2m"),
        ({"eta": 1.1, "sampler": "ddim"}, "eta must be from 0 to 1, got 1.1"),
        ({"eta": -0.1, "sampler": "ddim"}, "eta must be from 0 to 1, got -0.1"),
        ({"eta": math.nan, "sampler": "ddim"}, "eta must be from 0 to 1, got nan"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"clip": -1.0}, "clip must be above 0, got -1.0"),
        ({"clip": math.nan}, "clip must be above 0, got nan"),
    ],
)
def test_what_is_refused_and_how(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        plan_steps(TEN, **options)
    assert str(refused.value) == message


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_timestep_without_signal_cannot_be_divided_by(sampler: str) -> None:
    schedule = Schedule(torch.full((60,), 1 - 1e-8, dtype=torch.float64))  # alpha_bar is 0 from timestep 40 on
    with pytest.raises(ValueError, match=r"^the schedule leaves no signal at t = 59 .* with prediction 'epsilon'$"):
        plan_steps(schedule, sampler=sampler, steps=[59, 3], prediction="epsilon")
    assert plan_steps(schedule, sampler=sampler, steps=[59, 3], prediction="v").coefficients[:, 5:].isfinite().all()
