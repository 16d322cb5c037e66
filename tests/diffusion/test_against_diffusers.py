"""sample() against loops over diffusers' own schedulers, with the same noise and a nonlinear network.

What is exact is diffusers' step in float64, from the float64 table of alpha_bars that the schedule here has too:
diffusers keeps its table in float32, which is part of its own error. sample() holds its state in float32 and may be off
by 1.5 times what diffusers in float32 is, plus 1e-7 (the rounding of one float32 operation) for each step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tolerance import relative_error
from torch import Tensor

from sinmdm.diffusion import Schedule, sample, timesteps_visited

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm

SHAPE = (2, 3, 40)
INITIAL = 0xFFFFFFFF
LINEAR, COSINE = Schedule.linear(100), Schedule.cosine(100)
PREDICTIONS = {"x0": "sample", "epsilon": "epsilon", "v": "v_prediction"}
EVERY_PREDICTION = pytest.mark.parametrize("prediction", PREDICTIONS)
EVERY_CLIP = pytest.mark.parametrize("clip", [None, 0.8], ids=["unclipped", "clipped"])
OWN = [97, 80, 55, 54, 31, 12, 3, 0]


def _network(x: Tensor, timesteps: Tensor) -> Tensor:
    """Some smooth nonlinear function of x and t, of size about 1 and at times outside of what clips allow."""
    return 1.3 * torch.tanh(0.8 * x + 0.3 * x.roll(1, -1)) + 0.2 * torch.sin(x * (1 + float(timesteps[0]) / 100))


def _normals(step: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))


def _scheduler(kind: type, schedule: Schedule, steps: int | Sequence[int] | None, exact: bool, **config: Any) -> Any:
    scheduler: Any = kind(num_train_timesteps=len(schedule), trained_betas=schedule.betas.tolist(), **config)
    if isinstance(steps, Sequence):
        scheduler.set_timesteps(timesteps=list(steps))
    else:
        scheduler.set_timesteps(len(schedule) if steps is None else steps)
    if exact:
        scheduler.alphas_cumprod = schedule.alpha_bars
        for name in ("one", "final_alpha_cumprod"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, torch.tensor(1.0, dtype=torch.float64))
        if hasattr(scheduler, "sigmas"):
            alpha_bars = schedule.alpha_bars[scheduler.timesteps]
            scheduler.sigmas = torch.cat([((1 - alpha_bars) / alpha_bars).sqrt(), alpha_bars.new_zeros(1)])
    return scheduler


def _loop(scheduler: Any, dtype: torch.dtype, **options: Any) -> Tensor:
    """diffusers' loop in `dtype`, with the noise of each timestep given."""
    x = _normals(INITIAL).to(dtype)
    for t in scheduler.timesteps:
        if isinstance(scheduler, DDIMScheduler):
            options["variance_noise"] = _normals(int(t)).to(dtype)
        with pytest.MonkeyPatch.context() as patch:
            drawn = lambda *_, t=t, **__: _normals(int(t)).to(dtype)  # noqa: E731
            patch.setattr(scheduling_ddpm, "randn_tensor", drawn)
            predicted = _network(x, t[None])
            patch.setattr(torch, "float32", dtype)  # to which DPMSolverMultistepScheduler.step casts the sample
            x = scheduler.step(predicted, t, x, **options).prev_sample
        assert x.dtype == dtype
    return x


def _compare(
    kind: type, config: dict[str, Any], *, schedule: Schedule = LINEAR, steps: int | Sequence[int] | None = None,
    step_options: dict[str, Any] | None = None, network: Callable[..., Tensor] = _network, **ours: Any,
) -> None:  # fmt: skip
    theirs = []
    for exact in (True, False):
        scheduler = _scheduler(kind, schedule, steps, exact, prediction_type=PREDICTIONS[ours["prediction"]], **config)
        visited = scheduler.timesteps.tolist()
        assert visited == timesteps_visited(schedule, steps, ours.get("spacing", "trailing"))
        theirs.append(_loop(scheduler, torch.float64 if exact else torch.float32, **step_options or {}))
    result = sample(network, SHAPE, schedule, steps=steps, noise=_normals, **ours)
    assert result.dtype == torch.float32
    error, allowed = relative_error(result, theirs[0]), 1.5 * relative_error(theirs[1], theirs[0]) + 1e-7 * len(visited)
    assert error <= allowed, f"relative error {error:.3g}, allowed {allowed:.3g}"


def _clipping(clip: float | None) -> dict[str, Any]:
    return {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}


@EVERY_PREDICTION
@EVERY_CLIP
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [None, 7, OWN], ids=["all", "7", "own"])
def test_ddpm(prediction: str, clip: float | None, variance: str, steps: Any) -> None:
    config = {"variance_type": variance, "timestep_spacing": "leading", **_clipping(clip)}
    _compare(DDPMScheduler, config, steps=steps, spacing="leading", prediction=prediction, variance=variance, clip=clip)


@pytest.mark.parametrize("steps", [6, 33])
@pytest.mark.parametrize(
    ("spacing", "theirs", "variance"),
    [
        ("trailing", "trailing", "fixed_small"),  # "fixed_large" adds noise to the clean state in diffusers
        ("uniform", "linspace", "fixed_small"),
        ("uniform", "linspace", "fixed_large"),
    ],
)
def test_ddpm_spacings(spacing: str, theirs: str, variance: str, steps: int) -> None:
    config = {"variance_type": variance, "timestep_spacing": theirs, "clip_sample": False}
    _compare(
        DDPMScheduler, config, schedule=COSINE, steps=steps, spacing=spacing, prediction="x0", variance=variance
    )  # fmt: skip


@EVERY_PREDICTION
@EVERY_CLIP
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("spacing", "steps"), [("leading", None), ("leading", 7), ("trailing", 10)], ids=["all", "leading", "trailing"]
)
def test_ddim(prediction: str, clip: float | None, eta: float, spacing: str, steps: int | None) -> None:
    """diffusers' goes T // steps timesteps back, whatever is visited next: only such spacings can be compared."""
    config = {"timestep_spacing": spacing, "set_alpha_to_one": True, **_clipping(clip)}
    _compare(
        DDIMScheduler, config, steps=steps, spacing=spacing, prediction=prediction, clip=clip, sampler="ddim", eta=eta,
        step_options={"eta": eta, "use_clipped_model_output": True},
    )  # fmt: skip


@EVERY_PREDICTION
@pytest.mark.parametrize("clip", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(
    ("spacing", "steps"),
    [("trailing", 5), ("trailing", 20), ("uniform", [99, 62, 31, 4]), ("trailing", OWN)],
    ids=["5", "20", "4 of ones own", "8 of ones own"],
)
def test_dpmpp_2m(prediction: str, clip: float | None, spacing: str, steps: Any) -> None:
    """Of order 1 in the first step and in the last, which goes to the clean state. A dynamic threshold that is to lie
    between 1 and 1 is how diffusers says clip = 1 here."""
    config = {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "final_sigmas_type": "zero",
        "timestep_spacing": "trailing",
        "thresholding": clip is not None,
        "sample_max_value": 1.0,
    }
    _compare(
        DPMSolverMultistepScheduler, config, steps=steps, spacing=spacing, prediction=prediction, clip=clip,
        sampler="dpmpp_2m",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        (DDPMScheduler, {"timestep_spacing": "leading", "clip_sample": False}, {}),
        (DDIMScheduler, {"timestep_spacing": "leading", "clip_sample": False}, {"sampler": "ddim"}),
        (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}, {"sampler": "dpmpp_2m"}),
    ],
)
def test_a_network_that_is_off_by_a_hundred_thousandth_is_noticed(kind: type, config: dict, options: dict) -> None:
    spacing = config["timestep_spacing"]
    with pytest.raises(AssertionError, match="relative error"):
        _compare(
            kind, config, steps=10, spacing=spacing, prediction="x0", **options,
            network=lambda x, t: _network(x, t) * (1 + 1e-5),
        )  # fmt: skip
