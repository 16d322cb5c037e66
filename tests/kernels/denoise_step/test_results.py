"""The second result, x0, and the step as coefficients: affine_step."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerance import assert_within_budget
from torch import Tensor

from sinmdm.kernels import Schedule, affine_step, denoise_step
from sinmdm.kernels.schedule import STEP_COLUMNS

OP = "denoise_step"
_spec = importlib.util.spec_from_file_location("denoise_papers", Path(__file__).with_name("test_denoise_step.py"))
papers: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(papers)
SCHEDULE, SHAPE, LAYOUTS, laid_out = papers.SCHEDULE, papers.SHAPE, papers.LAYOUTS, papers.laid_out
STEPS = {
    "drawn": {"seed": 3},
    "clipped": {"seed": 3, "clip": 0.5, "prediction": "v"},
    "ddim": {"eta": 0.0, "prediction": "epsilon", "clip": 1.5, "clipped_direction": False},
    "dynamic": {"seed": 3, "dynamic_threshold": 0.9, "clip": 1.5},
    "to the clean state": {"t_prev": -1},
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("blend", [False, True])
def test_x0_is_asked_for_without_changing_the_state(step: str, blend: bool, backend: str) -> None:
    x, output, known = torch.randn(3, *SHAPE)
    options = STEPS[step] | ({"known": known, "mask": torch.rand(7, 1)} if blend else {}) | {"backend": backend}
    expected = denoise_step(x, output, 20, SCHEDULE, **options)
    assert isinstance(expected, Tensor)
    state, x0 = denoise_step(x, output, 20, SCHEDULE, return_x0=True, **options)
    assert torch.equal(state, expected)
    assert x0.shape == x.shape
    assert x0.dtype == x.dtype
    assert x0.data_ptr() != state.data_ptr()
    if step == "to the clean state":
        assert torch.equal(x0, state)


def test_x0_is_clipped_then_blended(backend: str) -> None:
    x, output, known = torch.randn(3, *SHAPE)
    known = 3 * known  # beyond the limit, which is the network's alone
    mask = torch.linspace(0, 1, 7)[:, None]
    options = {"prediction": "epsilon", "clip": 0.5, "seed": 3, "known": known, "mask": mask, "backend": backend}
    _, x0 = denoise_step(x, output, 20, SCHEDULE, return_x0=True, **options)

    def by_hand(*tensors: Tensor) -> Tensor:
        x, output, known, mask = tensors
        return known * mask + papers.clean("epsilon", x, output, 20).clamp(-0.5, 0.5) * (1 - mask)

    tensors = (x, output, known, mask)
    assert_within_budget("x0", x0, by_hand(*(y.double() for y in tensors)), by_hand(*tensors))
    assert torch.equal(x0[:, 6], known[:, 6])


def second_order(layout: str) -> tuple[tuple, dict]:
    """Every operand at once, each in this layout."""
    arguments, options = papers.everything(layout)
    other = laid_out(torch.randn(SHAPE), layout)
    return arguments, options | {"clip": 1.0, "unconditional": other, "guidance": 1.5}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_x0_out_may_be_previous_x0_itself(layout: str, backend: str) -> None:
    arguments, options = second_order(layout)
    state, x0 = denoise_step(*arguments, **options, return_x0=True, backend=backend)
    previous = options["previous_x0"]
    result = denoise_step(*arguments, **options, x0_out=previous, backend=backend)
    assert torch.equal(result[0], state)
    assert result[1] is previous
    assert torch.equal(previous, x0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_x0_and_the_state_in_place_at_once(layout: str, backend: str) -> None:
    arguments, options = second_order(layout)
    expected = denoise_step(*arguments, **options, return_x0=True, backend=backend)
    state, previous = arguments[0], options["previous_x0"]
    result = denoise_step(*arguments, **options, out=state, x0_out=previous, backend=backend)
    assert result[0] is state
    assert result[1] is previous
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("name", ["x_t", "model_output", "unconditional", "known", "previous_x0"])
def test_x0_out_may_be_any_operand_itself(name: str, backend: str) -> None:
    (x, output, t, schedule), options = second_order("contiguous")
    expected = denoise_step(x, output, t, schedule, **options, return_x0=True, backend=backend)
    target = {"x_t": x, "model_output": output, **options}[name]
    result = denoise_step(x, output, t, schedule, **options, x0_out=target, backend=backend)
    assert result[1] is target
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_x0_out_of_any_layout(layout: str, backend: str) -> None:
    arguments, options = second_order("contiguous")
    expected = denoise_step(*arguments, **options, return_x0=True, backend=backend)
    x0_out = laid_out(torch.full(SHAPE, torch.nan), layout)
    for more in ({}, {"return_x0": True}, {"out": laid_out(torch.full(SHAPE, torch.nan), layout)}):
        state, x0 = denoise_step(*arguments, **options, x0_out=x0_out.fill_(torch.nan), **more, backend=backend)
        assert x0 is x0_out
        assert torch.equal(x0, expected[1])
        assert torch.equal(state, expected[0])
        assert state is more.get("out", state)


def test_x0_out_leaves_the_memory_around_it_alone(backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    wide = torch.full((3, 7, 15), 7.0)
    _, x0 = denoise_step(x, output, 20, SCHEDULE, seed=1, clip=0.5, x0_out=wide[..., 5:10], backend=backend)
    assert torch.equal(x0, output.clamp(-0.5, 0.5))
    assert bool((wide[..., :5] == 7).all())
    assert bool((wide[..., 10:] == 7).all())


def test_x0_out_that_overlaps_an_operand_is_refused() -> None:
    memory = torch.randn(2 * 6 * 3 + 3)
    operand, shifted = memory[:36].view(2, 6, 3), memory[3:].view(2, 6, 3)
    x = torch.randn(2, 6, 3)
    message = "x0_out must be one of the inputs itself or share no memory"
    for arguments, options in (
        ((operand, x), {"seed": 0}),
        ((x, operand), {"seed": 0}),
        ((x, x), {"previous_x0": operand}),
        ((x, x), {"noise": operand}),
        ((x, x), {"seed": 0, "unconditional": operand, "guidance": 2.0}),
        ((x, x), {"seed": 0, "known": operand, "mask": torch.ones(1)}),
    ):
        with pytest.raises(ValueError, match=message):
            denoise_step(*arguments, 3, SCHEDULE, x0_out=shifted, **options)


def test_writing_x0_is_seen_by_a_graph_that_needs_the_old_values(backend: str) -> None:
    previous, weight = torch.randn(SHAPE), torch.ones(SHAPE, requires_grad=True)
    loss = (weight * previous).sum()
    with torch.no_grad():
        denoise_step(previous, previous, 3, SCHEDULE, seed=0, x0_out=previous, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("shape", [(0, 7, 5), (3, 0, 5), (3, 7, 0)], ids=str)
def test_no_x0_of_nothing(shape: tuple[int, ...], backend: str) -> None:
    x = torch.empty(shape)
    state, x0 = denoise_step(x, x, 20, SCHEDULE, seed=1, clip=1.0, return_x0=True, backend=backend)
    assert state.shape == x0.shape == shape


# ----------------------------------------------------------------------------------------------------- affine_step

T, T_PREV = torch.tensor([20, 49, 11]), torch.tensor([12, 30, -1])
WHOLE = {
    "ddpm": {"prediction": "v", "variance": "fixed_large"},
    "ddim of the raw direction": {"eta": 0.5, "clip": 0.7, "clipped_direction": False},
    "clipped": {"prediction": "epsilon", "clip": 0.7},
    "guided": {"prediction": "v", "guidance": 2.5, "clip": 1.5},
}


@pytest.mark.parametrize("rows", ["one", "a row a sample"])
@pytest.mark.parametrize("step", WHOLE)
def test_affine_step_is_denoise_step(step: str, rows: str, backend: str) -> None:
    dtype = torch.float32 if backend == "cpu" else torch.float64
    x, output, other, known = torch.randn(4, *SHAPE, dtype=dtype)
    options, blend = WHOLE[step], {"known": known, "mask": torch.rand(7, 1, dtype=dtype)}
    t, t_prev = (T, T_PREV) if rows != "one" else (torch.tensor([20]), torch.tensor([12]))
    coefficients = SCHEDULE.step_coefficients(t, t_prev, **options)
    assert coefficients.shape == (len(t), 10)
    more = {"unconditional": other} if "guidance" in options else {}
    common = {"sample": 7, "frame": 5, "return_x0": True, "backend": backend, **more, **blend}
    if rows == "one":
        t, t_prev = 20, 12
    expected = denoise_step(x, output, t, SCHEDULE, t_prev=t_prev, seed=2**64 - 1, **options, **common)
    given = coefficients.clone()
    actual = affine_step(x, output, given, clips="clip" in options, seed=2**64 - 1, step=t, **common)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert torch.equal(given, coefficients)
    if "clip" not in options:  # a limit of infinity and a scale of 1
        looked_at = affine_step(x, output, coefficients, clips=True, seed=2**64 - 1, step=t, **common)
        assert all(torch.equal(a, b) for a, b in zip(looked_at, expected, strict=True))


def test_second_order_affine_step_is_denoise_step(backend: str) -> None:
    arguments, options = second_order("every second frame")
    expected = denoise_step(*arguments, **options, backend=backend)
    named = {name: options.pop(name) for name in ("prediction", "clip", "guidance")}
    row = SCHEDULE.step_coefficients(
        torch.tensor([20]), torch.tensor([options.pop("t_prev")]), t_last=torch.tensor([30]), **named
    )
    assert torch.equal(affine_step(*arguments[:2], row, **options, backend=backend), expected)


@pytest.mark.parametrize("clips", [True, False])
def test_affine_step_is_what_the_columns_say(clips: bool, backend: str) -> None:
    x, model_output, unconditional, known, previous_x0, noise = torch.randn(6, *SHAPE)
    mask = torch.rand(SHAPE)
    coefficients = torch.randn(3, 10)
    coefficients[:, 3].abs_()
    tensors = (x, model_output, unconditional, known, mask, previous_x0, noise)

    def by_hand(rows: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        x, model_output, unconditional, known, mask, previous_x0, noise = tensors
        c = dict(zip(STEP_COLUMNS, rows[:, :, None, None].unbind(1), strict=True))
        raw = c["x_to_x0"] * x + c["model_to_x0"] * model_output + c["unconditional_to_x0"] * unconditional
        x0 = torch.minimum(torch.maximum(raw, -c["limit"]), c["limit"]) * c["scale"] if clips else raw
        x0 = known * mask + x0 * (1 - mask)
        state = c["of_x0"] * x0 + c["of_x"] * x + c["of_previous"] * previous_x0 + c["of_noise"] * noise
        return state + c["of_raw"] * raw if clips else state, x0

    actual = affine_step(
        x, model_output, coefficients, unconditional=unconditional, known=known, mask=mask, previous_x0=previous_x0,
        noise=noise, clips=clips, return_x0=True, backend=backend,
    )  # fmt: skip
    exact = by_hand(coefficients.double(), *(y.double() for y in tensors))
    plain = by_hand(coefficients, *tensors)
    for name, a, e, p in zip(("state", "x0"), actual, exact, plain, strict=True):
        assert_within_budget(name, a, e, p)


def test_affine_step_without_a_source_of_noise_has_none(backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    row = SCHEDULE.step_coefficients(torch.tensor([20]), torch.tensor([12]))
    without = row.clone()
    without[:, STEP_COLUMNS.index("of_noise")] = 0
    assert float(row[0, -1]) > 0
    bare = affine_step(x, output, row, backend=backend)
    assert torch.equal(bare, affine_step(x, output, without, seed=1, step=20, backend=backend))
    assert not torch.equal(bare, affine_step(x, output, row, seed=1, step=20, backend=backend))


def test_remembered_coefficients_are_those_of_the_options(backend: str) -> None:
    # An int's row is looked up, a tensor's computed.
    x, output, other = torch.randn(3, *SHAPE)
    calls: list[dict] = [
        *({"prediction": name} for name in ("x0", "epsilon", "v")),
        *({"eta": eta, "clip": 0.5, "clipped_direction": raw} for eta in (None, 0.0, 1.0) for raw in (True, False)),
        *({"clip": limit} for limit in (0.5, 0.25)),
        *({"guidance": weight, "unconditional": other} for weight in (0.0, 1.0, 2.0)),
        {"variance": "fixed_large"}, {"t_prev": 3}, {"t_prev": 11}, {"previous_x0": x},
        {"previous_x0": x, "t_last": 40},
    ]  # fmt: skip
    for _ in range(2):
        for options in calls:
            source = {} if options.get("eta") == 0 or "previous_x0" in options else {"seed": 5}
            by_int = denoise_step(x, output, 20, SCHEDULE, **options, **source, backend=backend)
            by_tensor = denoise_step(x, output, torch.full((3,), 20), SCHEDULE, **options, **source, backend=backend)
            assert torch.equal(by_int, by_tensor), options


@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"eta": 0.5, "clipped_direction": False, "clip": 1.0}], ids=str)
def test_ints_and_tensors_of_timesteps_mix(options: dict, backend: str) -> None:
    x, output, z = torch.randn(3, 3, 7, 5)
    noise = {} if options.get("eta") == 0 else {"noise": z}
    both = denoise_step(
        x, output, torch.full((3,), 20), SCHEDULE, t_prev=torch.tensor([3, 4, 5]), backend=backend, **options, **noise
    )
    for row, t_prev in enumerate((3, 4, 5)):
        given = dict.fromkeys(noise, z[row : row + 1])
        alone = denoise_step(
            x[row : row + 1], output[row : row + 1], 20, SCHEDULE, t_prev=t_prev, backend=backend, **options, **given
        )
        assert torch.equal(both[row], alone[0])
    mixed = denoise_step(
        x, output, 20, SCHEDULE, t_prev=torch.tensor([3, 4, 5]), backend=backend, **options, **noise
    )  # fmt: skip
    assert torch.equal(mixed, both)


def test_a_row_made_in_inference_mode_serves_a_call_with_a_gradient() -> None:
    schedule = Schedule.cosine(30)
    x, output = torch.randn(2, 1, 4, 3)
    with torch.inference_mode():
        expected = denoise_step(x, output, 5, schedule, seed=1, clip=1.0)
    x.requires_grad_()
    result = denoise_step(x, output, 5, schedule, seed=1, clip=1.0)
    result.sum().backward()
    assert torch.equal(result, expected)
    assert x.grad is not None


def test_the_same_memory_in_another_dtype_is_not_the_same_tensor() -> None:
    memory = torch.randn(5000)
    halves = memory.view(torch.bfloat16)[:5000].view(1, 1, 5000)
    state = memory.view(1, 1, 5000)
    with pytest.raises(ValueError, match="out must be one of the inputs itself or share no memory"):
        denoise_step(torch.randn(1, 1, 5000), halves, 5, SCHEDULE, eta=0.0, out=state)
    row = memory[:21].view(1, 3, 7)
    also = memory.as_strided((1, 3, 7), (70, 7, 1))  # its first stride is never used
    assert denoise_step(row, torch.zeros(1, 3, 7), 5, SCHEDULE, eta=0.0, out=also) is also
