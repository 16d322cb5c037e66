"""denoise_step against the samplers' own papers, native against reference, and its promises beside its values."""

import math

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor

from sinmdm.kernels import Schedule, denoise_step, philox_normal

OP = "denoise_step"
SCHEDULE = Schedule.cosine(50)
SHAPE = (3, 7, 5)
# Its last alpha_bar, 2^-1113, is 0 in float64: nothing of the signal is left there.
NO_SIGNAL = Schedule([1 - 2.0**-53] * 21)
LAYOUTS = (
    "contiguous",
    "(B, features, frames) transposed",
    "a slice of a wider buffer",
    "every second frame",
    "batch innermost",
)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x (B, frames, channels) as memory may lay it out; NaN in whatever lies between."""
    batch, frames, channels = x.shape
    if layout == "(B, features, frames) transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "a slice of a wider buffer":
        wide = torch.full((batch, frames, 3 * channels), torch.nan, dtype=x.dtype)
        wide[..., channels : 2 * channels] = x
        return wide[..., channels : 2 * channels]
    if layout == "every second frame":
        long = torch.full((batch, 2 * frames + 1, channels), torch.nan, dtype=x.dtype)
        long[:, 1::2] = x
        return long[:, 1::2]
    if layout == "batch innermost":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x.clone()


def alpha_bar(t: int) -> float:
    """The product of 1 - beta up to t; 1 for the clean state."""
    return math.prod(1 - float(beta) for beta in SCHEDULE.betas[: t + 1])


def clean(prediction: str, x: Tensor, output: Tensor, t: int) -> Tensor:
    """x_0 of what the network gives: inverting x_t = a x_0 + s e, with v = a e - s x_0 (Salimans and Ho 2022)."""
    a, s = math.sqrt(alpha_bar(t)), math.sqrt(1 - alpha_bar(t))
    return {"x0": output, "epsilon": (x - s * output) / a, "v": a * x - s * output}[prediction]


def ancestral(x: Tensor, x0: Tensor, t: int, t_prev: int, variance: str, z: Tensor) -> Tensor:
    """x_{t_prev} ~ q(x_{t_prev} | x_t, x_0) by Bayes' rule: the product of the Gaussians q(x_prev | x_0) and
    q(x_t | x_prev), each a mean and a precision."""
    now, before = alpha_bar(t), alpha_bar(t_prev)
    if t_prev == -1:
        return x0
    alpha = now / before  # of the stride
    prior, likelihood = 1 / (1 - before), alpha / (1 - alpha)
    mean = (prior * math.sqrt(before) * x0 + likelihood * x / math.sqrt(alpha)) / (prior + likelihood)
    spread = 1 / (prior + likelihood) if variance == "fixed_small" else 1 - alpha
    return mean + math.sqrt(spread) * z


def ddim(x: Tensor, x0: Tensor, t: int, t_prev: int, eta: float, z: Tensor) -> Tensor:
    """Song et al. 2021, eq. 12 and 16."""
    now, before = alpha_bar(t), alpha_bar(t_prev)
    epsilon = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
    sigma = eta * math.sqrt((1 - before) / (1 - now)) * math.sqrt(1 - now / before)
    return math.sqrt(before) * x0 + math.sqrt(max(1 - before - sigma**2, 0)) * epsilon + sigma * z


def dpm_solver(x: Tensor, x0: Tensor, t: int, t_prev: int, previous_x0: Tensor, t_last: int) -> Tensor:
    """Lu et al. 2022, algorithm 2; its last step, to the clean state, has h = infinity and gives x0."""
    if t_prev == -1:
        return x0
    lambdas = [0.5 * math.log(alpha_bar(i) / (1 - alpha_bar(i))) for i in (t_last, t, t_prev)]
    h, r = lambdas[2] - lambdas[1], (lambdas[1] - lambdas[0]) / (lambdas[2] - lambdas[1])
    d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous_x0
    ratio = math.sqrt((1 - alpha_bar(t_prev)) / (1 - alpha_bar(t)))
    return ratio * x - math.sqrt(alpha_bar(t_prev)) * (math.exp(-h) - 1) * d


# (t, t_prev): neighbours, the last step, the first, a stride, a stride to the clean state, t = 0's own.
STEPS = [(20, 19), (1, 0), (49, 48), (40, 25), (30, -1), (0, -1)]


def expected_step(x: Tensor, output: Tensor, z: Tensor, t: int, t_prev: int, options: dict) -> Tensor:
    x0 = clean(options.get("prediction", "x0"), x, output, t)
    if "previous_x0" in options:
        return dpm_solver(x, x0, t, t_prev, options["previous_x0"].double(), options.get("t_last", 2 * t - t_prev))
    if options.get("eta") is not None:
        return ddim(x, x0, t, t_prev, options["eta"], z)
    return ancestral(x, x0, t, t_prev, options.get("variance", "fixed_small"), z)


def assert_step(actual: Tensor, exact: Tensor, t_prev: int) -> None:
    """The same formula in float64. The tables are products of up to 50 factors, and 1 - alpha_bar and exp(-h) - 1 lose
    as many digits as alpha_bar is near to 1."""
    assert_same_formula("step", actual, exact, int(50 / (1 - alpha_bar(max(t_prev, 0)))))


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"variance": "fixed_large"}, {"eta": 0.0}, {"eta": 0.3}, {"eta": 1.0}],
    ids=["ddpm", "ddpm large", "ddim", "ddim 0.3", "ddim 1"],
)
def test_equals_the_papers(prediction: str, steps: tuple[int, int], options: dict) -> None:
    t, t_prev = steps
    x, output, z = torch.randn(3, *SHAPE, dtype=torch.float64)
    noise = None if options.get("eta") == 0 else z
    actual = denoise_step(x, output, t, SCHEDULE, t_prev=t_prev, prediction=prediction, noise=noise, **options)
    exact = expected_step(x, output, z, t, t_prev, options | {"prediction": prediction})
    assert_step(actual, exact, t_prev)


@pytest.mark.parametrize(
    ("t", "t_prev", "t_last"), [(20, 19, None), (20, 10, None), (20, 10, 45), (30, -1, 40), (0, -1, 3)]
)
@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_second_order_equals_dpm_solver(prediction: str, t: int, t_prev: int, t_last: int | None) -> None:
    x, output, previous_x0 = torch.randn(3, *SHAPE, dtype=torch.float64)
    options = {"prediction": prediction, "previous_x0": previous_x0} | ({} if t_last is None else {"t_last": t_last})
    actual = denoise_step(x, output, t, SCHEDULE, t_prev=t_prev, **options)
    exact = expected_step(x, output, x, t, t_prev, options)
    assert_step(actual, exact, t_prev)


def test_relations_between_the_samplers() -> None:
    x, output, z = torch.randn(3, *SHAPE, dtype=torch.float64)
    for t, t_prev in STEPS[:4]:
        ddpm = denoise_step(x, output, t, SCHEDULE, t_prev=t_prev, noise=z)
        assert_same_formula("DDIM with eta 1 is DDPM", denoise_step(
            x, output, t, SCHEDULE, t_prev=t_prev, noise=z, eta=1.0), ddpm, 5000)  # fmt: skip
        first = denoise_step(x, output, t, SCHEDULE, t_prev=t_prev, eta=0.0)
        # With the same x0 as before, the second order has nothing to extrapolate.
        if 2 * t - t_prev < 50:
            second = denoise_step(x, output, t, SCHEDULE, t_prev=t_prev, previous_x0=output)
            assert_same_formula("no change of x0: first order", second, first, 5000)


def test_the_ancestral_step_has_the_schedules_tables() -> None:
    schedule = Schedule.cosine(1000)
    x, output, z = torch.randn(3, *SHAPE, dtype=torch.float64)
    for t in (1, 500, 999):
        mean = schedule.posterior_mean_coef1[t] * output + schedule.posterior_mean_coef2[t] * x
        expected = mean + (0.5 * schedule.posterior_log_variance[t]).exp() * z
        actual = denoise_step(x, output, t, schedule, noise=z)
        # At t = 1 both 1 - alpha_bar lose four digits to the same subtraction, each in its own way.
        assert_same_formula(f"t = {t}", actual, expected, 1000)


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_a_network_that_knows_is_followed_to_the_clean_state(prediction: str) -> None:
    # x_t made from x0 and the noise e; a network that gives exactly what it is asked for. DDIM then stays on the path
    # a x0 + s e for every t, and ends at x0.
    x0, e = torch.randn(2, *SHAPE, dtype=torch.float64)
    a, s = ([f(alpha_bar(t)) for t in range(50)] for f in (math.sqrt, lambda y: math.sqrt(1 - y)))
    truth = {"x0": lambda t: x0, "epsilon": lambda t: e, "v": lambda t: a[t] * e - s[t] * x0}[prediction]
    state = a[45] * x0 + s[45] * e
    for t, t_prev in ((45, 30), (30, 12), (12, 11), (11, -1)):
        state = denoise_step(state, truth(t), t, SCHEDULE, t_prev=t_prev, prediction=prediction, eta=0.0)
        path = x0 if t_prev == -1 else a[t_prev] * x0 + s[t_prev] * e
        assert_same_formula(f"t = {t_prev}", state, path, 500)


@pytest.mark.parametrize("options", [{}, {"eta": 0.5}], ids=["ddpm", "ddim"])
def test_the_clean_state_needs_no_noise(options: dict, backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    expected = denoise_step(x, output, 0, SCHEDULE, backend=backend, **options)
    if not options:
        assert_within_budget("x0", expected, output.double(), output)
    assert torch.equal(denoise_step(x, output, 0, SCHEDULE, t_prev=-1, seed=5, backend=backend, **options), expected)
    assert torch.equal(denoise_step(x, output, 0, SCHEDULE, noise=x, backend=backend, **options), expected)
    # A tensor of timesteps draws for every row, and the row at t = 0 gets none of it.
    rows = denoise_step(x, output, torch.tensor([0, 3, 0]), SCHEDULE, seed=5, backend=backend, **options)
    assert torch.equal(rows[::2], expected[::2])
    assert not torch.equal(rows[1], expected[1])


def test_known_parts_are_blended_into_x0(backend: str) -> None:
    x, output, known = torch.randn(3, *SHAPE)
    mask = torch.linspace(0, 1, 7)[None, :, None].expand(SHAPE)
    for options in ({"seed": 3}, {"seed": 3, "prediction": "v"}, {"eta": 0.0}, {"previous_x0": torch.randn(SHAPE)}):
        prediction = options.get("prediction", "x0")
        actual = denoise_step(x, output, 20, SCHEDULE, known=known, mask=mask, backend=backend, **options)
        blended = known.double() * mask + clean(prediction, x.double(), output.double(), 20) * (1 - mask.double())
        plain = {**options, "prediction": "x0"}
        exact = denoise_step(x.double(), blended, 20, SCHEDULE, **{
            n: v.double() if isinstance(v, Tensor) else v for n, v in plain.items()})  # fmt: skip
        # The same in float32 and plain PyTorch. The draw is within 2e-6 of the reference's, its coefficient below 1.
        eager = denoise_step(x, blended.float(), 20, SCHEDULE, backend="reference", **plain)
        drawn = 2e-6 * math.sqrt(exact.numel()) if "seed" in options else 0.0
        error, allowed = ((y.double() - exact).norm() for y in (actual, eager))
        assert error <= 1.5 * allowed + 1e-7 * exact.norm() + drawn
    # At t = 0 the kept part is the known motion, exactly.
    last = denoise_step(x, output, 0, SCHEDULE, known=known, mask=mask.round(), backend=backend)
    assert torch.equal(last, torch.where(mask.round() == 1, known, output))


@pytest.mark.parametrize("shape", [(1,), (5,), (7, 1), (1, 7, 5), (3, 1, 1), (3, 7, 5)], ids=str)
def test_masks_broadcast(shape: tuple[int, ...], backend: str) -> None:
    x, output, known = torch.randn(3, *SHAPE)
    mask = torch.rand(shape)
    expected = denoise_step(
        x, output, 20, SCHEDULE, seed=1, known=known, mask=mask.expand(SHAPE).contiguous(), backend=backend
    )
    actual = denoise_step(x, output, 20, SCHEDULE, seed=1, known=known, mask=mask, backend=backend)
    assert torch.equal(actual, expected)


def everything(layout: str, dtype: torch.dtype = torch.float32) -> tuple[tuple, dict]:
    """Every operand at once, each in this layout."""
    x, output, known, previous = (laid_out(torch.randn(SHAPE), layout) for _ in range(4))
    output = laid_out(output.to(dtype), layout)
    options = {"t_prev": 10, "prediction": "v", "known": known, "mask": torch.rand(SHAPE[1:2])[:, None]}
    return (x, output, 20, SCHEDULE), options | {"previous_x0": previous}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["second order", "drawn", "noise"])
def test_native_equals_reference(kind: str, dtype: torch.dtype, layout: str) -> None:
    (x, output, t, schedule), options = everything(layout, dtype)
    if kind != "second order":
        del options["previous_x0"]
        options |= {"seed": 2**63 + 1} if kind == "drawn" else {"noise": laid_out(torch.randn(SHAPE), layout)}
        t, options["t_prev"] = torch.tensor([20, 49, 11]), torch.tensor([10, -1, 3])
    native, reference = (denoise_step(x, output, t, schedule, **options, backend=b) for b in ("cpu", "reference"))
    # Up to eleven float32 roundings, of terms no larger than the operands times factors of about 2 (second order).
    rounding = 11 * torch.finfo(torch.float32).eps * 2 * 5
    assert float((native - reference).abs().max()) <= rounding + (2e-6 if kind == "drawn" else 0)


# Blocks hold 1024 elements and are handed out four at a time: one block, its edges, and more than one task.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1023, 1), (2, 1024, 1), (2, 1025, 1), (3, 41, 173)], ids=str)
def test_blocks_of_the_native_walk(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, output, known = torch.randn(3, *shape)
    output = output.to(dtype)
    mask = (torch.arange(shape[1]) % 3 / 2)[:, None]
    expected = denoise_step(x, output, 20, SCHEDULE, seed=3, known=known, mask=mask, backend="reference")
    # The normals' difference, and up to nine roundings of terms of about 5 times factors below 1.
    bound = 2e-6 + 9 * torch.finfo(torch.float32).eps * 5
    for layout in LAYOUTS:
        views = [laid_out(y, layout) for y in (x, output)]
        actual = denoise_step(*views, 20, SCHEDULE, seed=3, known=laid_out(known, layout), mask=mask, backend="cpu")
        assert float((actual - expected).abs().max()) <= bound, layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_into_out(layout: str, backend: str) -> None:
    arguments, options = everything(layout)
    expected = denoise_step(*arguments, **options, backend=backend)
    out = laid_out(torch.full(SHAPE, torch.nan), layout)
    assert denoise_step(*arguments, **options, out=out, backend=backend) is out
    assert torch.equal(out, expected)
    other = torch.full((3, 5, 7), torch.nan).transpose(1, 2)  # strides unlike x_t's
    assert torch.equal(denoise_step(*arguments, **options, out=other, backend=backend), expected)
    state = arguments[0]
    assert denoise_step(*arguments, **options, out=state, backend=backend) is state
    assert torch.equal(state, expected)


def test_out_leaves_the_memory_around_it_alone(backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    wide = torch.full((3, 7, 15), 7.0)
    denoise_step(x, output, 20, SCHEDULE, seed=1, out=wide[..., 5:10], backend=backend)
    assert bool((wide[..., :5] == 7).all())
    assert bool((wide[..., 10:] == 7).all())
    assert torch.equal(wide[..., 5:10], denoise_step(x, output, 20, SCHEDULE, seed=1, backend=backend))


@pytest.mark.parametrize("shape", [(0, 7, 5), (3, 0, 5), (3, 7, 0)], ids=str)
def test_nothing_in_nothing_out(shape: tuple[int, ...], backend: str) -> None:
    x = torch.empty(shape)
    result = denoise_step(x, x, 20, SCHEDULE, seed=1, known=x, mask=x, backend=backend)
    assert result.shape == shape
    out = torch.empty(shape)
    assert denoise_step(x, x, 20, SCHEDULE, seed=1, out=out, backend=backend) is out


def test_drawn_noise_is_philox_normals_of_step_t(backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    t = torch.tensor([20, 49, 11])
    drawn = denoise_step(x, output, t, SCHEDULE, seed=2**64 - 1, sample=40, backend=backend)
    noise = torch.stack([
        philox_normal(SHAPE[1:], seed=2**64 - 1, step=int(step), sample=40 + b, backend=backend)
        for b, step in enumerate(t)
    ])  # fmt: skip
    assert torch.equal(drawn, denoise_step(x, output, t, SCHEDULE, noise=noise, backend=backend))


def test_a_row_does_not_depend_on_its_batch(backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    t, t_prev = torch.tensor([20, 49, 11]), torch.tensor([19, 30, -1])
    options = {"seed": 8, "eta": 0.7, "prediction": "v", "backend": backend}
    together = denoise_step(x, output, t, SCHEDULE, t_prev=t_prev, sample=7, **options)
    for b in range(3):
        alone = denoise_step(
            x[b : b + 1], output[b : b + 1], int(t[b]), SCHEDULE, t_prev=int(t_prev[b]), sample=7 + b, **options
        )
        assert torch.equal(together[b : b + 1], alone)
    order = [2, 0]
    shuffled = denoise_step(
        x[order], output[order], t[order], SCHEDULE, t_prev=t_prev[order], sample=torch.tensor([9, 7]), **options
    )
    assert torch.equal(shuffled, together[order])


def test_a_longer_sequence_starts_like_a_shorter_one(backend: str) -> None:
    x, output = torch.randn(2, 2, 400, 5)
    longer = denoise_step(x, output, 20, SCHEDULE, seed=8, backend=backend)
    shorter = denoise_step(x[:, :13], output[:, :13], 20, SCHEDULE, seed=8, backend=backend)
    assert torch.equal(shorter, longer[:, :13])


def test_int_and_tensor_timesteps_agree(backend: str) -> None:
    x, output = torch.randn(2, *SHAPE)
    expected = denoise_step(x, output, 20, SCHEDULE, seed=8, backend=backend)
    for dtype in (torch.int32, torch.int64):
        t = torch.full((3,), 20, dtype=dtype)
        assert torch.equal(denoise_step(x, output, t, SCHEDULE, seed=8, backend=backend), expected)
        assert torch.equal(denoise_step(x, output, t, SCHEDULE, t_prev=19, seed=8, backend=backend), expected)


def test_threads_do_not_matter(backend: str) -> None:
    x, output = torch.randn(2, 3, 500, 33)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(denoise_step(x, output, 20, SCHEDULE, seed=8, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "second order"])
def test_gradcheck(kind: str, prediction: str) -> None:
    x, output, known, other = (torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(4))
    mask = torch.rand(2, 3, 1, dtype=torch.float64)
    t = torch.tensor([30, 12])

    def step(x: Tensor, output: Tensor, known: Tensor, other: Tensor) -> Tensor:
        options = {
            "ddpm": {"noise": other},
            "ddim": {"noise": other, "eta": 0.5},
            "second order": {"previous_x0": other},
        }
        return denoise_step(
            x, output, t, SCHEDULE, t_prev=t - 5, prediction=prediction, known=known, mask=mask, **options[kind]
        )

    assert torch.autograd.gradcheck(step, (x, output, known, other))
    assert torch.autograd.gradcheck(
        lambda x, output: denoise_step(x, output, t, SCHEDULE, prediction=prediction, seed=1), (x, output)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_native_gradient_is_the_references(dtype: torch.dtype) -> None:
    values = torch.randn(4, *SHAPE)
    gradients = []
    for backend in ("cpu", "reference"):
        x, known, noise = (y.clone().requires_grad_() for y in values[:3])
        output = values[3].to(dtype).requires_grad_()
        mask = torch.full((1,), 0.25)
        result = denoise_step(
            x, output, 20, SCHEDULE, prediction="v", known=known, mask=mask, noise=noise, backend=backend
        )
        gradients.append(torch.autograd.grad((result * values[0]).sum(), (x, output, known, noise)))
    assert gradients[0][1].dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_out_is_fine_under_no_grad(backend: str) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    out = torch.empty(SHAPE)
    with torch.no_grad():
        denoise_step(x, x, 5, SCHEDULE, seed=1, out=out, backend=backend)
    assert torch.equal(out, denoise_step(x, x, 5, SCHEDULE, seed=1, backend=backend))


def test_x0_of_a_state_without_signal_is_allowed(backend: str) -> None:
    # Epsilon is refused there (above), x0 and v are not.
    x, output = torch.randn(2, *SHAPE)
    for prediction in ("x0", "v"):
        result = denoise_step(x, output, 20, NO_SIGNAL, prediction=prediction, seed=1, backend=backend)
        assert bool(result.isfinite().all())


def test_out_that_overlaps_an_input_is_refused() -> None:
    memory = torch.randn(2 * 6 * 3 + 3)
    x_t, shifted = memory[:36].view(2, 6, 3), memory[3:].view(2, 6, 3)
    for inputs in ((x_t, torch.randn(2, 6, 3)), (torch.randn(2, 6, 3), x_t)):
        with pytest.raises(ValueError, match="out must be one of the inputs itself or share no memory"):
            denoise_step(*inputs, 3, SCHEDULE, seed=0, out=shifted)


def test_writing_into_out_is_seen_by_a_graph_that_needs_the_old_values(backend: str) -> None:
    x_t, weight = torch.randn(2, 6, 3), torch.ones(2, 6, 3, requires_grad=True)
    loss = (weight * x_t).sum()
    with torch.no_grad():
        denoise_step(x_t, torch.randn(2, 6, 3), 3, SCHEDULE, seed=0, out=x_t, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_out_whose_elements_share_memory_is_refused() -> None:
    x_t = torch.randn(1, 6, 3)
    with pytest.raises(ValueError, match="an element of its own"):
        denoise_step(x_t, x_t, 3, SCHEDULE, seed=0, out=torch.zeros(1, 1, 3).expand(1, 6, 3))
