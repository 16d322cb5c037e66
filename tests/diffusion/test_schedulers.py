"""The fused schedulers against diffusers' own: whole loops, every option, a real pipeline, saving, bad arguments."""

import builtins
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerance import relative_error
from torch import Tensor

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler  # noqa: E402
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm  # noqa: E402

from sinmdm.diffusion.schedulers import (  # noqa: E402
    FusedDDIMScheduler,
    FusedDDPMScheduler,
    FusedDPMSolverMultistepScheduler,
)
from sinmdm.kernels import philox_normal  # noqa: E402

PARENTS: dict[type, Any] = {
    FusedDDPMScheduler: DDPMScheduler,
    FusedDDIMScheduler: DDIMScheduler,
    FusedDPMSolverMultistepScheduler: DPMSolverMultistepScheduler,
}
NOISY = [FusedDDPMScheduler, FusedDDIMScheduler]
ALL = pytest.mark.parametrize("fused", PARENTS, ids=lambda c: c.__name__)
SHAPE = (2, 3, 5, 4)
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def _network(x: Tensor, t: int | Tensor) -> Tensor:
    """Some smooth nonlinear function of x and t, at times outside [-1, 1]."""
    return 1.3 * torch.tanh(0.8 * x + 0.3 * x.roll(1, -1)) + 0.2 * torch.sin(x * (1 + float(t) / 1000))


@contextmanager
def _in_float64(noise_dtype: torch.dtype) -> Iterator[None]:
    """Within, diffusers' step computes in float64, from the very noise that it would draw in `noise_dtype`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (scheduling_ddpm, scheduling_ddim):
            original = module.randn_tensor

            def draw(shape: Any, dtype: Any = None, original: Any = original, **options: Any) -> Tensor:
                return original(shape, dtype=noise_dtype, **options).double()

            patch.setattr(module, "randn_tensor", draw)
        patch.setattr(torch, "float32", torch.float64)  # to which DPMSolverMultistepScheduler.step casts the sample
        yield


def _loop(
    scheduler: Any, dtype: torch.dtype, steps: int | list[int], exact: bool = False, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """The sample at the end and pred_original_sample of each step, of which DPMSolverMultistepScheduler has none."""
    timesteps = {"num_inference_steps": steps} if isinstance(steps, int) else {"timesteps": steps}
    scheduler.set_timesteps(**timesteps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    noisy = {"generator": torch.Generator().manual_seed(1), **options}
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    if exact:
        x = x.double()
        for name in ("alphas_cumprod", "one", "final_alpha_cumprod", "sigmas"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name).double())
    x0s = []
    for t in scheduler.timesteps:
        predicted = _network(x, t)
        if exact:
            with _in_float64(dtype):
                result = scheduler.step(predicted, t, x, **noisy)
        else:
            result = scheduler.step(predicted, t, x, **noisy)
        x = result.prev_sample
        assert x.dtype == (torch.float64 if exact else dtype)
        if hasattr(result, "pred_original_sample"):
            x0s.append(result.pred_original_sample)
    return x, x0s


def _compare(
    fused: type, config: dict[str, Any], dtype: torch.dtype = torch.float32, steps: int | list[int] = 7, **options: Any
) -> None:
    """The fused loop's last sample and every x0 are as near to float64 as 1.5 times diffusers', plus 1e-7 a step."""
    parent = PARENTS[fused]
    exact, exact_x0s = _loop(parent(**config), dtype, steps, exact=True, **options)
    eager, eager_x0s = _loop(parent(**config), dtype, steps, **options)
    actual, actual_x0s = _loop(fused(**config), dtype, steps, **options)
    assert len(actual_x0s) == len(eager_x0s)
    triples = [("prev_sample", actual, eager, exact)]
    triples += [(f"x0 of step {i}", *x) for i, x in enumerate(zip(actual_x0s, eager_x0s, exact_x0s, strict=True))]
    count = steps if isinstance(steps, int) else len(steps)
    for name, ours, theirs, truth in triples:
        assert ours.dtype == theirs.dtype
        error, allowed = relative_error(ours, truth), 1.5 * relative_error(theirs, truth) + 1e-7 * count
        assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


# Not "fixed_large_log": diffusers' own gives NaN.
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", None])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "limits",
    [
        {"clip_sample": False},
        {"clip_sample_range": 0.8},
        {"thresholding": True},
        {"thresholding": True, "sample_max_value": 1.6, "dynamic_thresholding_ratio": 0.9},
    ],
    ids=["unclipped", "clipped", "thresholded_at_1", "thresholded"],
)
def test_ddpm(variance: str | None, prediction: str, limits: dict[str, Any]) -> None:
    _compare(FusedDDPMScheduler, {"variance_type": variance, "prediction_type": prediction, **limits})


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [5, 13])
def test_ddpm_timesteps(spacing: str, offset: int, variance: str, steps: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": offset, "variance_type": variance}
    _compare(FusedDDPMScheduler, config, steps=steps)


def test_ddpm_custom_timesteps() -> None:
    # The last is not 0, and the large variance is then added also to the clean state.
    _compare(FusedDDPMScheduler, {"variance_type": "fixed_large"}, steps=[980, 700, 333, 120, 7])


def test_ddpm_without_set_timesteps() -> None:
    ours, theirs = FusedDDPMScheduler(), DDPMScheduler()
    x = torch.randn(SHAPE)
    for t in (999, 500, 1, 0):
        a, b = (s.step(_network(x, t), t, x, generator=torch.Generator().manual_seed(t)) for s in (ours, theirs))
        # diffusers' 1 - alpha_bar_t / alpha_bar_(t - 1) in float32 keeps three digits, ours is in float64.
        torch.testing.assert_close(a.prev_sample, b.prev_sample, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(a.pred_original_sample, b.pred_original_sample, rtol=1e-5, atol=1e-5)


def test_ddpm_fixed_large_log_is_fixed_large() -> None:
    log, plain = (
        _loop(FusedDDPMScheduler(variance_type=v), torch.float32, 5)[0] for v in ("fixed_large_log", "fixed_large")
    )
    assert torch.equal(log, plain)
    assert _loop(DDPMScheduler(variance_type="fixed_large_log"), torch.float32, 5)[0].isnan().any()


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("use_clipped", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "limits",
    [{"clip_sample": False}, {"clip_sample_range": 0.8}, {"thresholding": True, "sample_max_value": 1.6}],
    ids=["unclipped", "clipped", "thresholded"],
)
def test_ddim(eta: float, use_clipped: bool, prediction: str, limits: dict[str, Any]) -> None:
    config = {"prediction_type": prediction, **limits}
    _compare(FusedDDIMScheduler, config, eta=eta, use_clipped_model_output=use_clipped)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("steps", [5, 13])
def test_ddim_timesteps(spacing: str, offset: int, to_one: bool, steps: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
    _compare(FusedDDIMScheduler, config, steps=steps, eta=0.5)


def test_ddim_given_noise() -> None:
    noise = torch.randn(SHAPE)
    _compare(FusedDDIMScheduler, {}, eta=0.7, generator=None, variance_noise=noise)


@pytest.mark.parametrize("fused", NOISY)
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_zero_terminal_signal(fused: type, prediction: str) -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": prediction}
    _compare(fused, config)


@pytest.mark.parametrize("fused", NOISY)
def test_epsilon_without_signal(fused: type) -> None:
    scheduler: Any = fused(rescale_betas_zero_snr=True)
    scheduler.set_timesteps(1000)
    with pytest.raises(ValueError, match=r"prediction_type must be 'v_prediction' or 'sample' where .* got 'epsilon'"):
        scheduler.step(torch.zeros(SHAPE), 999, torch.zeros(SHAPE))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "limits", [{}, {"thresholding": True, "sample_max_value": 1.6}], ids=["unclipped", "thresholded"]
)
@pytest.mark.parametrize("steps", [5, 20])
def test_dpm(order: int, prediction: str, limits: dict[str, Any], steps: int) -> None:
    config = {"solver_order": order, "prediction_type": prediction, **limits}
    _compare(FusedDPMSolverMultistepScheduler, config, steps=steps)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("euler", [False, True])
@pytest.mark.parametrize("steps", [6, 16])
def test_dpm_ends(spacing: str, final: str, lower_order_final: bool, euler: bool, steps: int) -> None:
    config = {
        "timestep_spacing": spacing,
        "final_sigmas_type": final,
        "lower_order_final": lower_order_final,
        "euler_at_final": euler,
        "steps_offset": 1,
    }
    _compare(FusedDPMSolverMultistepScheduler, config, steps=steps)


@pytest.mark.parametrize("sigmas", ["use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_dpm_sigmas(sigmas: str, schedule: str) -> None:
    config = {sigmas: True, "beta_schedule": schedule, "lambda_min_clipped": -5.1}
    _compare(FusedDPMSolverMultistepScheduler, config, steps=8)


def test_dpm_custom_timesteps() -> None:
    _compare(FusedDPMSolverMultistepScheduler, {}, steps=[990, 700, 333, 120, 7])


@pytest.mark.parametrize("begin", [None, 3])
def test_dpm_counts_its_steps(begin: int | None) -> None:
    ours, theirs = FusedDPMSolverMultistepScheduler(), DPMSolverMultistepScheduler()
    x = torch.randn(SHAPE)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
        if begin is not None:
            scheduler.set_begin_index(begin)
    for t in theirs.timesteps[3:]:
        new, expected = (s.step(_network(x, t), t, x, return_dict=False)[0] for s in (ours, theirs))
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-5)
        counts = [(s.step_index, s.begin_index, s.lower_order_nums, len(s.model_outputs)) for s in (ours, theirs)]
        assert counts[0] == counts[1]
        x = expected


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_half_types(fused: type, dtype: torch.dtype, prediction: str) -> None:
    _compare(fused, {"prediction_type": prediction}, dtype=dtype, steps=5)


@ALL
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_result_dtypes(fused: type, prediction: str, model_dtype: torch.dtype, dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE, dtype=dtype)
    results = []
    for cls in (fused, PARENTS[fused]):
        scheduler = cls(prediction_type=prediction)
        scheduler.set_timesteps(4)
        results.append(scheduler.step(torch.ones(SHAPE, dtype=model_dtype), scheduler.timesteps[0], x))
    ours, theirs = results
    assert type(ours) is type(theirs)
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}


@ALL
@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 11), (1, 2, 3, 4, 5), (0, 3, 4)])
def test_any_shape_and_tuples(fused: type, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    results = []
    for cls in (fused, PARENTS[fused]):
        scheduler: Any = cls()
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[1]
        results.append(
            scheduler.step(torch.sin(x), t, x, generator=torch.Generator().manual_seed(0), return_dict=False)
        )
    ours, theirs = results
    assert type(ours) is tuple
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", NOISY)
def test_one_generator_per_sample(fused: type) -> None:
    generators_of_each = [[torch.Generator().manual_seed(i) for i in range(2)] for _ in range(2)]
    options = {"eta": 1.0} if fused is FusedDDIMScheduler else {}
    x = torch.randn(SHAPE)
    results = []
    for cls, generators in zip((fused, PARENTS[fused]), generators_of_each, strict=True):
        scheduler: Any = cls()
        scheduler.set_timesteps(10)
        results.append(scheduler.step(_network(x, 500), 500, x, generator=generators, **options).prev_sample)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@ALL
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_generator_is_left_as_diffusers_leaves_it(fused: Any, spacing: str) -> None:
    options = {"eta": 1.0} if fused is FusedDDIMScheduler else {}
    generators = []
    for cls in (fused, PARENTS[fused]):
        generators.append(torch.Generator().manual_seed(1))
        _loop(cls(timestep_spacing=spacing), torch.float32, 4, generator=generators[-1], **options)
    assert torch.equal(*(generator.get_state() for generator in generators))


@pytest.mark.parametrize("fused", NOISY)
def test_the_timestep_may_be_an_int_a_tensor_or_an_element_of_timesteps(fused: type) -> None:
    scheduler: Any = fused()
    scheduler.set_timesteps(10)
    scheduler.timesteps = scheduler.timesteps[2:]  # as image-to-image loops begin
    x = torch.randn(SHAPE)
    element = scheduler.timesteps[3]
    given = (int(element), torch.tensor(int(element)), element, scheduler.timesteps[3:4])
    results = [scheduler.step(x.sin(), t, x, generator=torch.Generator().manual_seed(0)).prev_sample for t in given]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("fused", NOISY)
def test_gradients(fused: type) -> None:
    grads = []
    for cls in (fused, PARENTS[fused]):
        scheduler: Any = cls(clip_sample_range=0.8, beta_end=0.0123)
        scheduler.set_timesteps(10)
        x = torch.linspace(-2, 2, 120).view(1, 3, 10, 4).requires_grad_()
        with torch.inference_mode():  # this step's coefficients are kept, and must not be inference tensors
            scheduler.step(x.detach(), 300, x.detach())
        result = scheduler.step(_network(x, 300), 300, x, generator=torch.Generator().manual_seed(0))
        (result.prev_sample.square().sum() + result.pred_original_sample.sum()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_options_are_read_at_each_step() -> None:
    # Pipelines replace the config of a scheduler that they are given.
    scheduler: Any = FusedDDIMScheduler(clip_sample_range=0.1)
    scheduler.set_timesteps(10)
    x = torch.randn(SHAPE)
    assert scheduler.step(x.sin(), 300, x).pred_original_sample.abs().max() <= 0.1
    scheduler._internal_dict = diffusers.configuration_utils.FrozenDict({**scheduler.config, "clip_sample": False})
    assert scheduler.step(x.sin(), 300, x).pred_original_sample.abs().max() > 0.1
    # And a table that was replaced is read again.
    before = scheduler.step(x.sin(), 300, x).prev_sample
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    assert not torch.equal(scheduler.step(x.sin(), 300, x).prev_sample, before)


# -------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("fused", NOISY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("timesteps", [(0, 999), (500,)])
def test_add_noise(fused: type, dtype: torch.dtype, timesteps: tuple[int, ...]) -> None:
    clean, noise, t = torch.randn(SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype), torch.tensor(timesteps)
    ours, theirs, exact = (cls() for cls in (fused, PARENTS[fused], PARENTS[fused]))
    exact.alphas_cumprod = exact.alphas_cumprod.double()
    truth = exact.add_noise(clean.double(), noise.double(), t)
    actual, eager = ours.add_noise(clean, noise, t), theirs.add_noise(clean, noise, t)
    assert actual.dtype == eager.dtype
    assert relative_error(actual, truth) <= 1.5 * relative_error(eager, truth) + 1e-7


def test_add_noise_broadcasts() -> None:
    clean, noise, t = torch.randn(1, 3, 4), torch.randn(3, 4), torch.tensor([1, 400, 999])
    ours, theirs = (cls().add_noise(clean, noise, t) for cls in (FusedDDPMScheduler, DDPMScheduler))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fused", NOISY)
def test_kernel_noise(fused: type) -> None:
    options = {"eta": 1.0} if fused is FusedDDIMScheduler else {}
    x, seed, t = torch.randn(4, 3, 5), 2**63 + 5, 300
    scheduler: Any = fused()
    scheduler.set_timesteps(10)

    def step(rows: Any = slice(None), **more: Any) -> Tensor:
        return scheduler.step(x[rows].sin(), t, x[rows], **options, **more).prev_sample

    scheduler.use_kernel_noise(seed)
    state = torch.get_rng_state()
    whole = step(generator=torch.Generator().manual_seed(3))
    assert torch.equal(whole, step())
    assert torch.equal(state, torch.get_rng_state())
    # The very noise of philox_normal.
    noise = philox_normal((15, 1), seed=seed, step=t, sample=torch.arange(4)).view(x.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[fused.__module__], "randn_tensor", lambda *_, **__: noise)
        scheduler.use_kernel_noise(None)
        torch.testing.assert_close(step(), whole)
    # Each sample's own, whatever else is in the batch.
    scheduler.use_kernel_noise(seed, sample=2)
    assert torch.equal(step(slice(2, 4)), whole[2:])
    scheduler.use_kernel_noise(seed, sample=torch.tensor([3, 1]))
    assert torch.equal(step([3, 1]), whole[[3, 1]])
    scheduler.use_kernel_noise(seed + 1)
    assert not torch.equal(step(), whole)
    scheduler.use_kernel_noise(None)
    assert not torch.equal(step(), step())


# ------------------------------------------------------------------------------------------ diffusers' interface


def _pipeline(kind: Any, scheduler: Any) -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = kind(unet=unet.eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _images(pipeline: Any, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = pipeline(batch_size=2, generator=generator, num_inference_steps=4, output_type="np", **options).images
    return torch.from_numpy(images)


@pytest.mark.parametrize(
    ("kind", "scheduler", "fused", "options"),
    [
        ("DDPMPipeline", DDPMScheduler, FusedDDPMScheduler, {}),
        ("DDIMPipeline", DDIMScheduler, FusedDDIMScheduler, {"eta": 0.5}),
        ("DDIMPipeline", DDIMScheduler, FusedDDIMScheduler, {"use_clipped_model_output": True}),
        ("DDPMPipeline", DPMSolverMultistepScheduler, FusedDPMSolverMultistepScheduler, {}),
    ],
)
def test_in_a_pipeline(kind: str, scheduler: Any, fused: Any, options: dict[str, Any]) -> None:
    pipeline = _pipeline(getattr(diffusers, kind), scheduler())
    expected = _images(pipeline, **options)
    pipeline.scheduler = fused.from_config(pipeline.scheduler.config)
    torch.testing.assert_close(_images(pipeline, **options), expected, rtol=1e-4, atol=1e-4)


@ALL
def test_a_pipeline_that_is_saved_and_loaded(fused: Any, tmp_path: Path) -> None:
    pipeline = _pipeline(diffusers.DDPMPipeline, fused(clip_sample_range=0.9) if fused in NOISY else fused())
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is fused
    assert torch.equal(_images(loaded), _images(pipeline))


@ALL
def test_saving_and_loading(fused: Any, tmp_path: Path) -> None:
    config = {"num_train_timesteps": 300, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    fused(**config).save_pretrained(tmp_path)
    loaded = fused.from_pretrained(tmp_path)
    assert isinstance(loaded, PARENTS[fused])
    assert {k: loaded.config[k] for k in config} == config
    ours = _loop(loaded, torch.float32, 5)[0]
    assert torch.equal(ours, _loop(fused(**config), torch.float32, 5)[0])
    # And diffusers' own class reads what was saved, and the other way round.
    theirs = PARENTS[fused].from_pretrained(tmp_path)
    assert type(theirs) is PARENTS[fused]
    back = fused.from_config(theirs.config)
    assert torch.equal(ours, _loop(back, torch.float32, 5)[0])


@ALL
@pytest.mark.parametrize("source", PARENTS.values(), ids=lambda c: c.__name__)
def test_from_the_config_of_another_scheduler(fused: Any, source: Any) -> None:
    config = source(beta_end=0.015, prediction_type="sample").config
    ours, theirs = (cls.from_config(config) for cls in (fused, PARENTS[fused]))
    assert {k: v for k, v in ours.config.items() if k != "_class_name"} == dict(theirs.config)
    results = [_loop(scheduler, torch.float32, 5)[0] for scheduler in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fused", "option", "value", "allowed"),
    [
        (FusedDDPMScheduler, "variance_type", "learned", "'fixed_small', 'fixed_small_log'"),
        (FusedDDPMScheduler, "variance_type", "learned_range", "'fixed_small', 'fixed_small_log'"),
        (FusedDDPMScheduler, "prediction_type", "flow_prediction", "'epsilon', 'sample', 'v_prediction'"),
        (FusedDDIMScheduler, "prediction_type", "x0", "'epsilon', 'sample', 'v_prediction'"),
        (FusedDPMSolverMultistepScheduler, "solver_order", 3, "1, 2"),
        (FusedDPMSolverMultistepScheduler, "solver_type", "heun", "'midpoint'"),
        (FusedDPMSolverMultistepScheduler, "algorithm_type", "dpmsolver", "'dpmsolver++'"),
        (FusedDPMSolverMultistepScheduler, "algorithm_type", "sde-dpmsolver++", "'dpmsolver++'"),
        (FusedDPMSolverMultistepScheduler, "use_flow_sigmas", True, "False"),
        (FusedDPMSolverMultistepScheduler, "variance_type", "learned", "'fixed_small'"),
        (FusedDPMSolverMultistepScheduler, "prediction_type", "flow_prediction", "'epsilon'"),
    ],
)
def test_unsupported_options(fused: Any, option: str, value: Any, allowed: str) -> None:
    message = f"^{option} must be one of {re.escape(allowed)}.* for {fused.__name__}, got {re.escape(repr(value))}$"
    with pytest.raises(ValueError, match=message):
        fused(**{option: value})
    config = {**PARENTS[fused]().config, option: value, "_use_default_values": []}
    with pytest.raises(ValueError, match=message):
        fused.from_config(config)


@ALL
def test_a_bound_below_1(fused: Any) -> None:
    with pytest.raises(ValueError, match=r"sample_max_value must be at least 1 where thresholding is on, got 0\.5"):
        fused(thresholding=True, sample_max_value=0.5)


@ALL
def test_the_shape_of_the_model_output(fused: Any) -> None:
    scheduler = fused()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"model_output must have shape that of sample = \(2, 3, 4\), got \(2, 4, 3\)"):
        scheduler.step(torch.zeros(2, 4, 3), scheduler.timesteps[0], torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("fused", "timestep", "options", "message"),
    [
        (FusedDDPMScheduler, 1000, {}, "timestep must be from 0 to 999, got 1000"),
        (FusedDDPMScheduler, -1, {}, "timestep must be from 0 to 999, got -1"),
        (FusedDDPMScheduler, 3, {}, r"timestep must be one of self.timesteps \(\[750, 500, 250, 0\]\), got 3"),
        (FusedDDIMScheduler, 0, {"eta": 1.5}, r"eta must be from 0 to 1, got 1\.5"),
        (FusedDDIMScheduler, 0, {"eta": -0.5}, r"eta must be from 0 to 1, got -0\.5"),
        (
            FusedDDIMScheduler, 0, {"eta": 0.5, "variance_noise": torch.zeros(2, 3), "generator": torch.Generator()},
            "give generator or variance_noise, not both",
        ),
        (
            FusedDDIMScheduler, 0, {"eta": 0.5, "variance_noise": torch.zeros(3)},
            r"variance_noise must have shape that of sample = \(2, 3\), got \(3,\)",
        ),
    ],
)  # fmt: skip
def test_bad_arguments(fused: Any, timestep: int, options: dict[str, Any], message: str) -> None:
    scheduler = fused()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=message):
        scheduler.step(torch.zeros(2, 3), timestep, torch.zeros(2, 3), **options)


@pytest.mark.parametrize("fused", [FusedDDIMScheduler, FusedDPMSolverMultistepScheduler])
def test_a_step_before_set_timesteps(fused: Any) -> None:
    with pytest.raises(ValueError, match="set_timesteps must be called before step"):
        fused().step(torch.zeros(2, 3), 0, torch.zeros(2, 3))


def test_a_bad_seed() -> None:
    with pytest.raises(ValueError, match="seed must be an int from 0 to"):
        FusedDDPMScheduler().use_kernel_noise(-1)


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "diffusers":
            raise ImportError("no module named diffusers")
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, "sinmdm.diffusion.schedulers")
    with pytest.raises(ImportError, match=r"^sinmdm.diffusion.schedulers needs diffusers: pip install diffusers$"):
        importlib.import_module("sinmdm.diffusion.schedulers")
