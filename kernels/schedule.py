"""The noise schedule of a Gaussian diffusion and the coefficients of one reverse step.

Ho et al. 2020 (DDPM, eq. 4, 7 and 15), Nichol and Dhariwal 2021 (cosine schedule, eq. 17), Song et al. 2021 (DDIM,
eq. 12 and 16), Lu et al. 2022 (DPM-Solver++, algorithm 2).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PREDICTIONS = ("x0", "epsilon", "v")
VARIANCES = ("fixed_small", "fixed_large")
# One row of coefficients, the whole of a reverse step as the kernels know it:
#   raw = x_to_x0 x_t + model_to_x0 model_output + unconditional_to_x0 unconditional
#   x0  = clamp(raw, -limit, limit) scale, then blended with what is known
#   new = of_x0 x0 + of_raw raw + of_x x_t + of_previous previous_x0 + of_noise z
STEP_COLUMNS = (
    "x_to_x0", "model_to_x0", "unconditional_to_x0", "limit", "scale",
    "of_x0", "of_raw", "of_x", "of_previous", "of_noise",
)  # fmt: skip
LIMIT, SCALE = STEP_COLUMNS.index("limit"), STEP_COLUMNS.index("scale")
_CACHED_ROWS = 4096  # rows of coefficients that a schedule remembers


@dataclass(frozen=True, eq=False)
class Schedule:
    """Float64 tables over the timesteps 0..T-1, made from `betas` (T,), each in (0, 1).

    Attributes:
        betas, alpha_bars: (T,); alpha_bars[t] = prod over s <= t of 1 - betas[s].
        posterior_mean_coef1, posterior_mean_coef2: (T,) factors of x_0 and x_t in the mean of q(x_{t-1} | x_t, x_0).
        posterior_log_variance: (T,) log variance of the same; entry 0, whose variance is 0, repeats entry 1.
    """

    betas: Tensor
    alpha_bars: Tensor = field(init=False)
    posterior_mean_coef1: Tensor = field(init=False)
    posterior_mean_coef2: Tensor = field(init=False)
    posterior_log_variance: Tensor = field(init=False)
    _from_clean: Tensor = field(init=False, repr=False)  # alpha_bar of the timesteps -1 .. T-1
    _rows: dict[tuple, Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.dim() != 1 or len(betas) == 0:
            raise ValueError(f"betas must have shape (T,) with T >= 1, got {tuple(betas.shape)}")
        outside = betas[~((betas > 0) & (betas < 1))]
        if len(outside):
            raise ValueError(f"betas must lie in (0, 1), got {float(outside[0])}")
        tiny = betas[1 - betas == 1]
        if len(tiny):
            raise ValueError(f"betas must be large enough for 1 - beta to differ from 1, got {float(tiny[0])}")
        alpha_bars = torch.cumprod(1 - betas, 0)
        previous = torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])
        variance = betas * (1 - previous) / (1 - alpha_bars)
        if len(variance) > 1:
            variance[0] = variance[1]
        else:
            variance[0] = betas[0]
        tables = {
            "betas": betas,
            "alpha_bars": alpha_bars,
            "posterior_mean_coef1": betas * previous.sqrt() / (1 - alpha_bars),
            "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - alpha_bars),
            "posterior_log_variance": variance.log(),
            "_from_clean": torch.cat([alpha_bars.new_ones(1), alpha_bars]),
        }
        for name, table in tables.items():
            object.__setattr__(self, name, table)

    def __len__(self) -> int:
        return len(self.betas)

    @classmethod
    def linear(cls, timesteps: int) -> "Schedule":
        """Betas from 1e-4 to 0.02, scaled by 1000 / timesteps; needs timesteps >= 21, so that every beta is below 1."""
        if timesteps < 21:
            raise ValueError(f"timesteps must be at least 21 for the linear schedule, got {timesteps}")
        scale = 1000 / timesteps
        return cls(torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64))

    @classmethod
    def cosine(cls, timesteps: int) -> "Schedule":
        """alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), with betas no larger than 0.999."""
        if timesteps < 1:
            raise ValueError(f"timesteps must be at least 1, got {timesteps}")

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        ratios = (alpha_bar((i + 1) / timesteps) / alpha_bar(i / timesteps) for i in range(timesteps))
        return cls(torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64))

    def alpha_bar_at(self, t: Tensor) -> Tensor:
        """Float64 alpha_bar of each timestep in `t`; timestep -1, the clean state, has 1."""
        return self._from_clean.to(t.device)[t + 1]

    def forward_coefficients(self, t: Tensor) -> Tensor:
        """(B, 2) float64 factors of x_0 and of the noise in q(x_t | x_0), t (B,)."""
        alpha_bar = self.alpha_bar_at(t)
        return torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()], -1)

    def step_coefficients(self, t: Tensor, t_prev: Tensor, *, t_last: Tensor | None = None, **options: Any) -> Tensor:
        """(B, 10) float64 rows of STEP_COLUMNS of the reverse step t -> t_prev, each (B,).

        With `t_last`, the timestep of previous_x0, it is the second-order one. The options are those of
        `coefficients_between`.
        """
        last = None if t_last is None else self.alpha_bar_at(t_last)
        return coefficients_between(self.alpha_bar_at(t), self.alpha_bar_at(t_prev), last=last, **options)

    def _step_row(self, t: int, t_prev: int, t_last: int | None, dtype: torch.dtype, **options: Any) -> Tensor:
        """The (1, 10) row of one step, in `dtype` on the CPU; remembered, because a sampler asks again and again.

        It is not to be written into.
        """
        key = (t, t_prev, t_last, dtype, *sorted(options.items()))
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= _CACHED_ROWS:
                self._rows.clear()
            with torch.inference_mode(False):  # a later call may need a gradient
                steps = (torch.tensor([t]), torch.tensor([t_prev]))
                last = None if t_last is None else torch.tensor([t_last])
                row = self.step_coefficients(*steps, t_last=last, **options).to(dtype)
            check_signal(row, t, options.get("prediction", "x0"))
            self._rows[key] = row
        return row


def check_signal(coefficients: Tensor, t: int | Tensor, prediction: str) -> None:
    """Raise where the coefficients of a step from `t` are not finite."""
    if not bool(coefficients[:, [name != "limit" for name in STEP_COLUMNS]].isfinite().all()):
        raise ValueError(
            f"the schedule leaves no signal at t = {t} (alpha_bar 0) to step from with prediction {prediction!r}"
        )


def coefficients_between(
    now: Tensor,
    next_: Tensor,
    *,
    prediction: str = "x0",
    variance: str = "fixed_small",
    eta: float | None = None,
    last: Tensor | None = None,
    guidance: float | None = None,
    clip: float | None = None,
    clipped_direction: bool = True,
) -> Tensor:
    """(B, 10) rows of STEP_COLUMNS of the step from alpha_bar `now` to the larger alpha_bar `next_`, each (B,) float64.

    Args:
        prediction: what the network gives: "x0", "epsilon" or "v".
        variance: of the ancestral step of DDPM (over a possibly longer stride), where eta and last are None.
        eta: DDIM's share of fresh noise.
        last: (B,) alpha_bar of previous_x0; the step is then the second-order one of DPM-Solver++(2M), and of first
            order in the rows where `next_` is 1 or where `last` equals `now`.
        guidance: weight w of classifier-free guidance (Ho and Salimans 2022): w conditional + (1 - w) unconditional.
        clip: bound of |x0|.
        clipped_direction: whether DDIM takes the noise that is in x_t from the clipped x0 or from the raw one.
    """
    now, next_, last_ = torch.broadcast_tensors(now, next_, now if last is None else last)
    signal, sigma = now.sqrt(), (1 - now).sqrt()
    zero, one = torch.zeros_like(now), torch.ones_like(now)
    x_to_x0, model_to_x0 = {
        "x0": (zero, one),
        "epsilon": (1 / signal, -sigma / signal),
        "v": (signal, -sigma),
    }[prediction]
    of_raw, of_previous, of_noise = zero, zero, zero
    stride_beta = 1 - now / next_
    if eta is not None or last is not None:
        spread = (eta or 0.0) * ((1 - next_) / (1 - now) * stride_beta).sqrt()
        of_x = ((1 - next_ - spread**2).clamp(min=0)).sqrt() / sigma
        # With last: alpha_next (1 - exp(-h)), without its difference of exponentials.
        of_x0, of_noise = next_.sqrt() - of_x * signal, spread
        if last is not None:
            log_snr = [0.5 * (a.log() - (1 - a).log()) for a in (last_, now, next_)]
            # With h infinite (to the clean state), or no distance to extrapolate over, it is of first order.
            half_ratio = (log_snr[2] - log_snr[1]) / (2 * (log_snr[1] - log_snr[0]))
            extrapolation = torch.where((next_ < 1) & (last_ < now), half_ratio, zero)
            of_x0, of_previous = of_x0 * (1 + extrapolation), -of_x0 * extrapolation
        elif not clipped_direction:
            of_x0, of_raw = next_.sqrt(), -of_x * signal
    else:
        of_x0 = stride_beta * next_.sqrt() / (1 - now)
        of_x = (1 - next_) * (1 - stride_beta).sqrt() / (1 - now)
        small = stride_beta * (1 - next_) / (1 - now)
        spread = (small if variance == "fixed_small" else stride_beta).sqrt()
        of_noise = torch.where(next_ < 1, spread, zero)
    unconditional_to_x0 = zero
    if guidance is not None:
        model_to_x0, unconditional_to_x0 = guidance * model_to_x0, (1 - guidance) * model_to_x0
    limit = torch.full_like(now, torch.inf if clip is None else clip)
    return torch.stack(
        [x_to_x0, model_to_x0, unconditional_to_x0, limit, one, of_x0, of_raw, of_x, of_previous, of_noise], -1
    )
