"""What bounds and combines the network's predictions: guidance, clip, dynamic thresholding, and where a NaN goes."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor

from sinmdm.kernels import denoise_step

OP = "denoise_step"
_spec = importlib.util.spec_from_file_location("denoise_papers", Path(__file__).with_name("test_denoise_step.py"))
papers: Any = importlib.util.module_from_spec(_spec)  # the steps as the papers have them
_spec.loader.exec_module(papers)
SCHEDULE, SHAPE, LAYOUTS, laid_out = papers.SCHEDULE, papers.SHAPE, papers.LAYOUTS, papers.laid_out
PREDICTIONS = ["x0", "epsilon", "v"]
T, T_PREV = 20, 12
STEPS = {
    "ddpm": {},
    "ddpm large": {"variance": "fixed_large"},
    "ddim": {"eta": 0.0},
    "ddim 0.3": {"eta": 0.3},
    "ddim 1": {"eta": 1.0},
    "ddim 0.3 of the raw direction": {"eta": 0.3, "clipped_direction": False},
    "second order": {},
}
CLIPPED = {"clip": 0.8}
GUIDED = {"guidance": 2.5}
THRESHOLDED = {"dynamic_threshold": 0.8}


def operands(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    names = ("x", "output", "unconditional", "known", "previous_x0", "noise")
    return dict(zip(names, torch.randn(6, *SHAPE, dtype=torch.float64).to(dtype), strict=True))


def call(o: dict[str, Tensor], step: str, **options: Any) -> tuple[Tensor, Tensor]:
    """(state, x0) of the step on these operands; the second prediction is given where there is a guidance."""
    options = {"t_prev": T_PREV, **STEPS[step], **options}
    if step == "second order":
        options["previous_x0"] = o["previous_x0"]
    elif options.get("eta") != 0:
        options["noise"] = o["noise"]
    if "guidance" in options:
        options["unconditional"] = o["unconditional"]
    return denoise_step(o["x"], o["output"], T, SCHEDULE, return_x0=True, **options)


def bounded(raw: Tensor, clip: float | None, dynamic_threshold: float | None) -> Tensor:
    """Imagen (Saharia et al. 2022, section 2.3): each sample's own s = max(1, quantile), here at most `clip`."""
    if dynamic_threshold is None:
        return raw if clip is None else raw.clamp(-clip, clip)
    s = torch.quantile(raw.abs().flatten(1), dynamic_threshold, dim=1).clamp(1, clip)[:, None, None]
    return torch.minimum(torch.maximum(raw, -s), s) / s


def by_hand(
    o: dict[str, Tensor], step: str, prediction: str = "x0", guidance: float | None = None, clip: float | None = None,
    dynamic_threshold: float | None = None, known: Tensor | None = None, mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`call` from the papers' formulas, in the operands' dtype."""
    output = o["output"] if guidance is None else guidance * o["output"] + (1 - guidance) * o["unconditional"]
    raw = papers.clean(prediction, o["x"], output, T)
    x0 = bounded(raw, clip, dynamic_threshold)
    if known is not None:
        x0 = known * mask + x0 * (1 - mask)
    options = STEPS[step]
    if step == "second order":
        state = papers.dpm_solver(o["x"], x0, T, T_PREV, o["previous_x0"], 2 * T - T_PREV)
    elif "eta" in options:
        # The direction is the noise in x_t of the raw x0: sqrt(1 - before - sigma^2) epsilon then has another epsilon.
        state = papers.ddim(o["x"], x0, T, T_PREV, options["eta"], o["noise"])
        if not options.get("clipped_direction", True):
            now, before = papers.alpha_bar(T), papers.alpha_bar(T_PREV)
            state = papers.ddim(o["x"], raw, T, T_PREV, options["eta"], o["noise"]) + math.sqrt(before) * (x0 - raw)
            assert now < before
    else:
        variance = options.get("variance", "fixed_small")
        state = papers.ancestral(o["x"], x0, T, T_PREV, variance, o["noise"])
    return state, x0


def assert_equals_the_papers(step: str, backend: str, **options: Any) -> None:
    """In float64 the same formula; in float32 as near to it as plain PyTorch."""
    exact_operands = operands(torch.float64 if backend == "reference" else torch.float32)
    exact = by_hand({k: v.double() for k, v in exact_operands.items()}, step, **options)
    actual = call(exact_operands, step, **options, backend=backend)
    for name, x, y, plain in zip(("state", "x0"), actual, exact, by_hand(exact_operands, step, **options), strict=True):
        if backend == "reference":
            # The tables, and as many digits lost to 1 - alpha_bar: as in test_denoise_step.py.
            assert_same_formula(name, x, y, int(50 / (1 - papers.alpha_bar(T_PREV))))
        else:
            assert_within_budget(name, x, y, plain)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "options",
    [GUIDED, {"guidance": 0.0}, {"guidance": -1.5}, CLIPPED, {"clip": 1e-3}, THRESHOLDED, GUIDED | CLIPPED,
     GUIDED | THRESHOLDED | {"clip": 1.5}],
    ids=str,
)  # fmt: skip
def test_equals_the_combination_by_hand(options: dict, step: str, prediction: str, backend: str) -> None:
    if "raw" in step and not {"clip", "dynamic_threshold"} & set(options):
        step = "ddim 0.3"  # for the raw direction without a bound see below
    assert_equals_the_papers(step, backend, prediction=prediction, **options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_one_is_the_conditional_prediction_alone(prediction: str, backend: str) -> None:
    o = operands()
    guided = call(o, "ddpm", prediction=prediction, guidance=1.0, backend=backend)
    plain = call(o, "ddpm", prediction=prediction, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(guided, plain, strict=True))


@pytest.mark.parametrize("blend", [False, True])
def test_the_raw_direction_needs_no_bound(blend: bool, backend: str) -> None:
    options = {"known": torch.randn(SHAPE), "mask": torch.rand(SHAPE)} if blend else {}
    o = operands()
    exact_options = {name: value.double() for name, value in options.items()}
    step = "ddim 0.3 of the raw direction"
    exact = by_hand({k: v.double() for k, v in o.items()}, step, **exact_options)[0]
    assert_within_budget(
        "state", call(o, step, **options, backend=backend)[0], exact, by_hand(o, step, **options)[0]
    )  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_clip_that_nothing_reaches_changes_nothing(step: str, backend: str) -> None:
    o = operands()
    for limit in (100.0, math.inf):
        state, x0 = call(o, step, prediction="v", clip=limit, backend=backend)
        plain_state, plain_x0 = call(o, step.removesuffix(" of the raw direction"), prediction="v", backend=backend)
        assert torch.equal(x0, plain_x0)
        if "raw" not in step:
            assert torch.equal(state, plain_state)
        else:  # which adds the raw x0 up by itself: eight roundings, of terms of two operands with factors below 1
            terms = float(plain_x0.abs().max() + o["x"].abs().max() + o["noise"].abs().max())
            assert float((state - plain_state).abs().max()) <= 8 * torch.finfo(torch.float32).eps * terms


def test_clipped_x0_is_exactly_at_the_limit(backend: str) -> None:
    o = operands()
    _, x0 = call(o, "ddpm", clip=0.5, backend=backend)
    assert torch.equal(x0, o["output"].clamp(-0.5, 0.5))
    assert bool((x0.abs() == 0.5).any())
    assert bool((x0.abs() < 0.5).any())


# ------------------------------------------------------------------------------------------- dynamic thresholding


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0, 1.3])
def test_the_bound_is_each_samples_own_quantile(ratio: float, clip: float | None, backend: str) -> None:
    o = operands()
    o["output"] = o["output"] * torch.tensor([0.1, 1.0, 5.0])[:, None, None]  # one sample below 1 everywhere
    _, x0 = call(o, "ddpm", dynamic_threshold=ratio, clip=clip, backend=backend)
    assert_within_budget("x0", x0, bounded(o["output"].double(), clip, ratio), bounded(o["output"], clip, ratio))
    assert torch.equal(x0[0], o["output"][0])
    assert float(x0.abs().max()) <= 1


def test_a_samples_bound_does_not_depend_on_its_batch(backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    output *= torch.tensor([1.0, 3.0, 9.0])[:, None, None]
    options = {**THRESHOLDED, "prediction": "v", "seed": 3, "backend": backend}
    together = denoise_step(x, output, T, SCHEDULE, **options)
    for b in range(3):
        alone = denoise_step(x[b : b + 1], output[b : b + 1], T, SCHEDULE, sample=b, **options)
        assert torch.equal(alone, together[b : b + 1])


@pytest.mark.parametrize("shape", [(0, 7, 5), (3, 0, 5), (3, 7, 0)], ids=str)
def test_the_quantile_of_nothing_is_no_error(shape: tuple[int, ...], backend: str) -> None:
    x = torch.empty(shape)
    assert denoise_step(x, x, T, SCHEDULE, seed=1, **THRESHOLDED, backend=backend).shape == shape


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_layouts_and_dtypes_of_the_predictions_do_not_matter(dtype: torch.dtype, layout: str, backend: str) -> None:
    x = torch.randn(SHAPE)
    output, unconditional = torch.randn(2, *SHAPE).to(dtype)
    for options in (CLIPPED, THRESHOLDED, THRESHOLDED | {"clip": 1.2}, {}):
        options = {**options, **GUIDED, "prediction": "v", "seed": 3, "return_x0": True, "backend": backend}
        # A prediction is read as the state's dtype.
        expected = denoise_step(x, output.float(), T, SCHEDULE, unconditional=unconditional.float(), **options)
        actual = denoise_step(
            laid_out(x, layout), laid_out(output, layout), T, SCHEDULE,
            unconditional=laid_out(unconditional, layout), **options,
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), options


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", ["ddpm", "ddim 0.3 of the raw direction", "second order"])
def test_native_equals_reference(step: str, dtype: torch.dtype, layout: str) -> None:
    o = {name: laid_out(value, layout) for name, value in operands().items()}
    for name in ("output", "unconditional"):
        o[name] = laid_out(o[name].to(dtype), layout)
    options = {"known": o["known"], "mask": torch.rand(7, 1), "prediction": "v", **GUIDED, "clip": 1.1}
    native, reference = (call(o, step, **options, backend=name) for name in ("cpu", "reference"))
    # Up to fourteen float32 roundings of terms no larger than the guided prediction, 2.5 + 1.5 times values below 5.
    bound = 14 * torch.finfo(torch.float32).eps * 4 * 5
    for x, y in zip(native, reference, strict=True):
        assert float((x - y).abs().max()) <= bound


# ------------------------------------------------------------------------------------------------ NaN and infinity


@pytest.mark.parametrize("where", ["output", "unconditional"])
@pytest.mark.parametrize("options", [{}, CLIPPED], ids=["plain", "clip"])
def test_a_nan_stays_in_its_element(options: dict, where: str, backend: str) -> None:
    o, blend = operands(), {"mask": torch.full((1,), 0.25)}
    for step in STEPS:
        for extra in ({}, {"known": o["known"], **blend}):
            sound = call(o, step, **GUIDED, **options, **extra, backend=backend)
            for element in ((1, 3, 2), (2, 6, 4)):  # within a vector, and in the rest that fills none
                ill = {**o, where: o[where].clone()}
                ill[where][element] = torch.nan
                others = torch.ones(SHAPE, dtype=torch.bool)
                others[element] = False
                for x, y in zip(call(ill, step, **GUIDED, **options, **extra, backend=backend), sound, strict=True):
                    assert bool(x[element].isnan())
                    assert torch.equal(x[others], y[others])


def test_a_nan_does_not_reach_the_bound_of_another_sample(backend: str) -> None:
    o = operands()
    sound = call(o, "ddpm", dynamic_threshold=1.0, backend=backend)
    o["output"][1, 3, 2] = torch.nan
    for x, y in zip(call(o, "ddpm", dynamic_threshold=1.0, backend=backend), sound, strict=True):
        assert bool(x[1, 3, 2].isnan())
        assert torch.equal(x[::2], y[::2])


INFINITE = {(1, 3, 2): math.inf, (2, 6, 4): -math.inf}


def infinite_operands() -> dict[str, Tensor]:
    o = operands()
    for element, value in INFINITE.items():
        o["output"][element] = value
    return o


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_infinite_predictions_clip_x0_to_the_limit(prediction: str, step: str, backend: str) -> None:
    _, x0 = call(infinite_operands(), step, prediction=prediction, clip=0.8, backend=backend)
    sign = 1 if prediction == "x0" else -1
    for element, value in INFINITE.items():
        assert float(x0[element]) == pytest.approx(math.copysign(0.8, sign * value), rel=1e-7)  # 0.8 as a float32
    assert bool(x0.isfinite().all())


@pytest.mark.parametrize("step", [name for name in STEPS if "raw" not in name])
def test_a_clipped_infinity_leaves_a_finite_state(step: str, backend: str) -> None:
    o = infinite_operands()
    state, x0 = call(o, step, clip=0.8, backend=backend)
    same = call({**o, "output": x0}, step, clip=0.8, backend=backend)[0]  # what it was clipped to
    assert torch.equal(state, same)


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("step", ["ddpm", "ddim 0.3", "ddim 0.3 of the raw direction", "second order"])
@pytest.mark.parametrize("options", [GUIDED, CLIPPED, GUIDED | CLIPPED], ids=str)
def test_gradcheck(options: dict, step: str, prediction: str) -> None:
    o = {name: value[:2, :4, :3].clone().requires_grad_() for name, value in operands(torch.float64).items()}
    mask = torch.rand(2, 4, 1, dtype=torch.float64)
    used = [n for n in o if n not in {"unconditional", "previous_x0", "noise"}]
    used += ["unconditional"] * ("guidance" in options) + ["previous_x0" if step == "second order" else "noise"]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(used, tensors, strict=True))
        return call(given, step, prediction=prediction, known=given["known"], mask=mask, **options, backend="reference")

    if "clip" in options:  # some elements are beyond the limit, some within, and none so near that a difference tells
        plain = {k: v.detach() for k, v in o.items()}
        raw = call(plain, step, prediction=prediction, **{k: v for k, v in options.items() if k != "clip"})[1]
        inside = raw.abs() < options["clip"]
        assert bool(inside.any())
        assert not bool(inside.all())
        assert float((raw.abs() - options["clip"]).abs().min()) > 1e-4
    assert torch.autograd.gradcheck(function, [o[name] for name in used])


def test_a_thresholds_gradient_takes_the_bound_as_given() -> None:
    o = operands(torch.float64)
    output = o["output"].requires_grad_()
    _, x0 = call(o, "ddpm", **THRESHOLDED)
    (actual,) = torch.autograd.grad(x0.sum(), output)
    s = torch.quantile(output.detach().abs().flatten(1), 0.8, dim=1).clamp(min=1)[:, None, None]
    assert torch.equal(actual, torch.where(output.abs() <= s, 1 / s, 0.0))
    assert bool((actual == 0).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [GUIDED, GUIDED | CLIPPED, GUIDED | THRESHOLDED], ids=str)
@pytest.mark.parametrize("step", ["ddpm", "ddim 0.3 of the raw direction", "second order"])
def test_native_gradient_is_the_references(step: str, options: dict, dtype: torch.dtype) -> None:
    values, mask = operands(), torch.rand(7, 1)
    weights = torch.randn(2, *SHAPE)
    gradients = []
    for backend in ("cpu", "reference"):
        o = {name: value.clone().requires_grad_() for name, value in values.items()}
        for name in ("output", "unconditional"):
            o[name] = values[name].to(dtype).requires_grad_()
        results = call(o, step, prediction="v", known=o["known"], mask=mask, **options, backend=backend)
        used = [o[name] for name in o if name != ("noise" if step == "second order" else "previous_x0")]
        gradients.append(torch.autograd.grad(sum((w * r).sum() for w, r in zip(weights, results, strict=True)), used))
    assert gradients[0][1].dtype == gradients[0][2].dtype == dtype
    assert all(bool(g.any()) for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
