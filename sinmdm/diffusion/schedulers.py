"""diffusers' DDPM, DDIM and DPM-Solver++ schedulers, each step of which is one fused kernel.

    pipeline.scheduler = FusedDDIMScheduler.from_config(pipeline.scheduler.config)

Each class is a subclass of diffusers' own that replaces `step` (and `add_noise`) and keeps everything else: options,
timesteps, saving and loading. The coefficients of a step are computed in float64 from diffusers' own table of
alpha_bars, once, and stay on the sample's device; the state is float32 inside the kernel also where samples are of a
half type. The noise is diffusers', in its order, from the generator given, unless `use_kernel_noise` is called.

Sources: Ho et al. 2020 (DDPM, eq. 6 and 7), Song et al. 2021 (DDIM, eq. 12 and 16), Lu et al. 2022 (DPM-Solver++,
algorithm 2), Salimans and Ho 2022 (v prediction), Saharia et al. 2022 (section 2.3, dynamic thresholding).
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels import affine_step
from ..kernels.denoise_step import thresholded
from ..kernels.philox import check_seed
from ..kernels.schedule import STEP_COLUMNS, coefficients_between

try:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
    from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
    from diffusers.schedulers.scheduling_utils import SchedulerMixin as SchedulerMixin  # looked for by from_pretrained
    from diffusers.schedulers.scheduling_utils import SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError("sinmdm.diffusion.schedulers needs diffusers: pip install diffusers") from error

__all__ = ["FusedDDIMScheduler", "FusedDDPMScheduler", "FusedDPMSolverMultistepScheduler"]

_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}  # diffusers' names and the kernels'
_FIXED_SMALL, _FIXED_LARGE = ("fixed_small", "fixed_small_log", None), ("fixed_large", "fixed_large_log")
_NEARLY_CLEAN = math.nextafter(1.0, 0.0)


@functools.lru_cache(maxsize=4096)
def _row(
    now: float, next_: float, last: float | None, device: torch.device, dtype: torch.dtype, **options: Any
) -> Tensor:
    """(1, 10) coefficients of the step from alpha_bar `now` to `next_`; kept, for the next sample goes the same way."""
    with torch.inference_mode(False):  # a kept row must serve a later step that has a gradient
        ends = torch.tensor([[now], [next_]], dtype=torch.float64)
        last_ = None if last is None else torch.tensor([last], dtype=torch.float64)
        return coefficients_between(*ends, last=last_, **options).to(device, dtype)


def _check_shape(name: str, x: Tensor, sample: Tensor) -> None:
    if x.shape != sample.shape:
        raise ValueError(f"{name} must have shape that of sample = {tuple(sample.shape)}, got {tuple(x.shape)}")


def _as_state(x: Tensor) -> Tensor:
    """(B, ...) as the (B, 1, N) that the kernels take."""
    return x.reshape(len(x), 1, math.prod(x.shape[1:]))


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _FusedStep(ConfigMixin):
    """What all of them share. Goes before diffusers' class among the bases."""

    timesteps: Tensor
    _allowed: ClassVar[dict[str, tuple[Any, ...]]]  # values of those options of which not every value is supported

    def register_to_config(self, **kwargs: Any) -> None:
        """diffusers' hook through which every option passes: check them.

        Raises:
            ValueError: an option's value is not supported, by name.
        """
        super().register_to_config(**kwargs)
        for name, allowed in {"prediction_type": tuple(_PREDICTIONS), **self._allowed}.items():
            if self.config[name] not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))} for {type(self).__name__},"
                    f" got {self.config[name]!r}"
                )
        if self.config["thresholding"] and self.config["sample_max_value"] < 1:
            raise ValueError(
                f"sample_max_value must be at least 1 where thresholding is on, got {self.config['sample_max_value']}"
            )

    @functools.cached_property
    def _copies(self) -> dict[str, tuple[Tensor, list]]:
        return {}

    def _on_host(self, name: str) -> list:
        """The tensor self.<name> as a list, read from its device once, until another tensor takes its place."""
        tensor = getattr(self, name)
        if name not in self._copies or self._copies[name][0] is not tensor:
            self._copies[name] = tensor, tensor.tolist()
        return self._copies[name][1]

    @property
    def _clip(self) -> float | None:
        """The largest |x0| there may be."""
        return self.config["sample_max_value"] if self.config["thresholding"] else None

    def _fused_step(
        self,
        model_output: Tensor,
        sample: Tensor,
        now: float,
        next_: float,
        *,
        last: float | None = None,
        previous_x0: Tensor | None = None,
        noise: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """The state at alpha_bar `next_` from that at `now` and the x0 it was made from, both in the state's dtype.

        previous_x0 is one that an earlier step returned and `last` its alpha_bar, `noise` the arguments of affine_step
        that say where noise comes from, the options those of coefficients_between.
        """
        _check_shape("model_output", model_output, sample)
        if now == 0 and self.config["prediction_type"] == "epsilon":
            raise ValueError(
                "prediction_type must be 'v_prediction' or 'sample' where a timestep has no signal"
                " (rescale_betas_zero_snr), got 'epsilon'"
            )
        options |= {"prediction": _PREDICTIONS[self.config["prediction_type"]], "clip": self._clip}
        coefficients = _row(now, next_, last, sample.device, _state_dtype(sample), **options)
        x_t, prediction = _as_state(sample).to(coefficients.dtype), _as_state(model_output)
        if self.config["thresholding"] and self.config["sample_max_value"] > 1:  # at 1 no quantile can raise the bound
            coefficients = thresholded(coefficients, self.config["dynamic_thresholding_ratio"], x_t, prediction, None)
        new, x0 = affine_step(
            x_t, prediction, coefficients, previous_x0=None if previous_x0 is None else _as_state(previous_x0),
            clips=self._clip is not None, return_x0=True, **(noise or {}),
        )  # fmt: skip
        return new.view(sample.shape), x0.view(sample.shape)

    def _dtypes(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        """Of the new sample and of x0, as type promotion in diffusers' formulas gives them."""
        promoted = torch.promote_types(model_output.dtype, sample.dtype)
        return promoted, model_output.dtype if self.config["prediction_type"] == "sample" else promoted


class _FusedNoisyStep(_FusedStep):
    """What those have in common that find a step's alpha_bars by its timestep, and add noise."""

    alphas_cumprod: Tensor
    _kernel_noise: tuple[int, int | Tensor] | None = None

    def use_kernel_noise(self, seed: int | None, sample: int | Tensor = 0) -> None:
        """From now on draw the noise of `step` inside the kernel, or with None from the generator again.

        It is `sinmdm.kernels.philox_normal`'s of (seed, timestep, sample + b), for row b (1, N) frames and channels:
        the same on every device, whatever else is in the batch and wherever the loop begins. The `generator` given to
        `step` is then not used. Not one of the options that are saved.

        Args:
            seed: 0 .. 2^64 - 1.
            sample: 32-bit word of the first row, later rows counting up, or (B,) words.

        Raises:
            ValueError: seed is not as above.
        """
        if seed is not None:
            check_seed(seed)
        self._kernel_noise = None if seed is None else (seed, sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(alpha_bar) original_samples + sqrt(1 - alpha_bar) noise, in one pass (Ho et al. 2020, eq. 4).

        Args:
            original_samples: (B, ...) of any float dtype.
            noise: the same shape, or one that broadcasts with it.
            timesteps: (B,) or (1,) integers, each from 0 to num_train_timesteps - 1.

        Returns:
            The noisy samples, in the dtype that the two promote to.
        """
        dtype = torch.promote_types(original_samples.dtype, noise.dtype)
        self.alphas_cumprod = self.alphas_cumprod.to(original_samples.device)
        alpha_bar = self.alphas_cumprod[timesteps.to(original_samples.device)].double().flatten()
        columns = {"model_to_x0": torch.ones_like(alpha_bar), "of_x0": (1 - alpha_bar).sqrt(), "of_x": alpha_bar.sqrt()}
        rows = torch.stack([columns.get(name, torch.zeros_like(alpha_bar)) for name in STEP_COLUMNS], -1)
        per_sample = alpha_bar.view(-1, *[1] * (original_samples.dim() - 1))
        clean, noise, _ = torch.broadcast_tensors(original_samples, noise, per_sample)
        state = _as_state(clean.to(_state_dtype(clean)))
        noisy = affine_step(state, _as_state(noise), rows, clips=False)
        assert isinstance(noisy, Tensor)
        return noisy.view(clean.shape).to(dtype)

    @property
    def _clip(self) -> float | None:
        if self.config["clip_sample"] and not self.config["thresholding"]:
            return self.config["clip_sample_range"]
        return super()._clip

    def _timestep(self, timestep: int | Tensor) -> int:
        """`timestep` as an int; an element of self.timesteps is known by its place, so that no device is waited for."""
        t = None
        if isinstance(timestep, Tensor) and timestep.numel() == 1 and self.timesteps.is_contiguous():
            place = timestep.storage_offset() - self.timesteps.storage_offset()
            same = timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr()
            if same and 0 <= place < len(self.timesteps):
                t = self._on_host("timesteps")[place]
        t = int(timestep) if t is None else t
        total = self.config["num_train_timesteps"]
        if not 0 <= t < total:
            raise ValueError(f"timestep must be from 0 to {total - 1}, got {t}")
        return t

    def _noise(
        self, model_output: Tensor, sample: Tensor, t: int, generator: Any, given: Tensor | None = None
    ) -> dict[str, Any]:
        """The noise of the step from t, `given` or drawn, as arguments of affine_step."""
        if given is not None:
            _check_shape("variance_noise", given, sample)
        elif self._kernel_noise is not None:
            seed, first = self._kernel_noise
            return {"seed": seed, "step": t, "sample": first}
        else:
            shape, device = model_output.shape, model_output.device
            given = randn_tensor(shape, generator=generator, device=device, dtype=model_output.dtype)
        return {"noise": _as_state(given).to(_state_dtype(sample))}


class FusedDDPMScheduler(_FusedNoisyStep, DDPMScheduler):
    """diffusers' DDPMScheduler, one fused kernel a step.

    All its options but variance_type "learned" and "learned_range". "fixed_large_log", of which diffusers' own step
    takes the root of a negative logarithm, is here what the name says: the same as "fixed_large".

    Raises:
        ValueError: an option's value is not supported, by name.
    """

    _allowed: ClassVar = {"variance_type": (*_FIXED_SMALL, *_FIXED_LARGE)}

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """The sample at the timestep that comes next (Ho et al. 2020, eq. 6 and 7, over a stride of any length).

        Args:
            model_output: the network's, of sample's shape and any float dtype.
            timestep: that of `sample`, one of self.timesteps.
            sample: (B, ...) of any float dtype.
            generator: of the noise, which is drawn where timestep > 0.
            return_dict: whether to return diffusers' output class rather than a tuple.

        Returns:
            prev_sample and pred_original_sample, like sample.

        Raises:
            ValueError: timestep or a shape is not as above, by name.
        """
        t = self._timestep(timestep)
        alpha_bars = self._on_host("alphas_cumprod")
        before = self._timestep_before(t)
        next_ = alpha_bars[before] if before >= 0 else 1.0
        large = self.config["variance_type"] in _FIXED_LARGE
        if large and t > 0:  # adds its noise also in a step to the clean state
            next_ = min(next_, _NEARLY_CLEAN)
        new, x0 = self._fused_step(
            model_output, sample, alpha_bars[t], next_, variance="fixed_large" if large else "fixed_small",
            noise=self._noise(model_output, sample, t, generator) if t > 0 else None,
        )  # fmt: skip
        dtype, x0_dtype = self._dtypes(model_output, sample)
        new, x0 = new.to(dtype), x0.to(x0_dtype)
        return DDPMSchedulerOutput(prev_sample=new, pred_original_sample=x0) if return_dict else (new, x0)

    def _timestep_before(self, t: int) -> int:
        """The timestep that the step from t leads to, -1 for the clean state."""
        if not (self.custom_timesteps or self.num_inference_steps):
            return t - 1
        visited = self._on_host("timesteps")
        if t not in visited:
            raise ValueError(f"timestep must be one of self.timesteps ({visited}), got {t}")
        return [*visited, -1][visited.index(t) + 1]


class FusedDDIMScheduler(_FusedNoisyStep, DDIMScheduler):
    """diffusers' DDIMScheduler, one fused kernel a step, with all its options.

    Raises:
        ValueError: an option's value is not supported, by name.
    """

    _allowed: ClassVar = {}

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """The sample num_train_timesteps // num_inference_steps timesteps earlier (Song et al. 2021, eq. 12 and 16).

        Args:
            model_output: the network's, of sample's shape and any float dtype.
            timestep: that of `sample`.
            sample: (B, ...) of any float dtype.
            eta: 0 .. 1, the share of fresh noise.
            use_clipped_model_output: take the noise that is in `sample` from the clipped x0 rather than the raw one.
            generator: of the noise, which is drawn where eta > 0.
            variance_noise: noise to use instead, of sample's shape.
            return_dict: whether to return diffusers' output class rather than a tuple.

        Returns:
            prev_sample and pred_original_sample, like sample.

        Raises:
            ValueError: an argument is not as above, by name, or set_timesteps was not called.
        """
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, got {eta}")
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ValueError("give generator or variance_noise, not both")
        t = self._timestep(timestep)
        alpha_bars = self._on_host("alphas_cumprod")
        before = t - self.config["num_train_timesteps"] // self.num_inference_steps
        new, x0 = self._fused_step(
            model_output, sample, alpha_bars[t], alpha_bars[before] if before >= 0 else float(self.final_alpha_cumprod),
            eta=float(eta), clipped_direction=use_clipped_model_output or self._clip is None,
            noise=self._noise(model_output, sample, t, generator, variance_noise) if eta > 0 else None,
        )  # fmt: skip
        dtype, x0_dtype = self._dtypes(model_output, sample)
        new, x0 = new.to(dtype), x0.to(x0_dtype)
        return DDIMSchedulerOutput(prev_sample=new, pred_original_sample=x0) if return_dict else (new, x0)


class FusedDPMSolverMultistepScheduler(_FusedStep, DPMSolverMultistepScheduler):
    """diffusers' DPMSolverMultistepScheduler, one fused kernel a step: DPM-Solver++ of order 1 or 2, midpoint.

    All options of these two, the other spacings of sigmas (Karras, Lu, exponential, beta) included. diffusers takes
    algorithm_type "deis" for "dpmsolver++" and solver_type "logrho", "bh1" and "bh2" for "midpoint", and so does this.

    Raises:
        ValueError: an option's value is not supported, by name.
    """

    _step_index: int
    model_outputs: list[Any]
    lower_order_nums: int
    _allowed: ClassVar = {
        "solver_order": (1, 2),
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "use_flow_sigmas": (False,),
        "variance_type": (*_FIXED_SMALL, *_FIXED_LARGE),
    }

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at the next of self.sigmas (Lu et al. 2022, algorithm 2).

        Args:
            model_output: the network's, of sample's shape and any float dtype.
            timestep: that of `sample`; looked at in the first step only, later ones count.
            sample: (B, ...) of any float dtype.
            generator, variance_noise: not used, there is no noise.
            return_dict: whether to return diffusers' output class rather than a tuple.

        Returns:
            prev_sample, like sample.

        Raises:
            ValueError: a shape is not as above, by name, or set_timesteps was not called.
        """
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step")
        if self.step_index is None:
            self._init_step_index(timestep)
        place, count, config = self._step_index, len(self.timesteps), self.config
        # To the clean state (final_sigmas_type "zero") coefficients_between's step is of first order by itself.
        ends_low = config["euler_at_final"] or (config["lower_order_final"] and count < 15)
        second_order = config["solver_order"] == 2 and self.lower_order_nums > 0
        second_order = second_order and not (ends_low and place == count - 1)
        sigmas = self._on_host("sigmas")
        now, next_, last = (1 / (1 + sigmas[i] ** 2) for i in (place, place + 1, place - 1))
        new, x0 = self._fused_step(
            model_output, sample, now, next_, eta=0.0, last=last if second_order else None,
            previous_x0=self.model_outputs[-1] if second_order else None,
        )  # fmt: skip
        self.model_outputs = [*self.model_outputs[1:], x0]
        self.lower_order_nums = min(self.lower_order_nums + 1, config["solver_order"])
        self._step_index += 1
        new = new.to(self._dtypes(model_output, sample)[1])
        return SchedulerOutput(prev_sample=new) if return_dict else (new,)
