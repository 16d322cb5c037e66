"""The noise schedule of a Gaussian diffusion and the coefficients of one reverse step.

Ho et al. 2020 (DDPM, eq. 4, 7 and 15), Nichol and Dhariwal 2021 (cosine schedule, eq. 17), Song et al. 2021 (DDIM,
eq. 12 and 16), Lu et al. 2022 (DPM-Solver++, algorithm 2).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

PREDICTIONS = ("x0", "epsilon", "v")
VARIANCES = ("fixed_small", "fixed_large")


@dataclass(frozen=True, eq=False)
class Schedule:
    """Float64 tables over the timesteps 0..T-1, made from `betas` (T,), each in (0, 1].

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

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.dim() != 1 or len(betas) == 0:
            raise ValueError(f"betas must have shape (T,) with T >= 1, got {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError("betas must lie in (0, 1]")
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
        }
        for name, table in tables.items():
            object.__setattr__(self, name, table)

    def __len__(self) -> int:
        return len(self.betas)

    @classmethod
    def linear(cls, timesteps: int) -> "Schedule":
        """Betas from 1e-4 to 0.02, scaled by 1000 / timesteps; needs timesteps >= 20, so that no beta exceeds 1."""
        if timesteps < 20:
            raise ValueError(f"timesteps must be at least 20 for the linear schedule, got {timesteps}")
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
        table = torch.cat([self.alpha_bars.new_ones(1), self.alpha_bars]).to(t.device)
        return table[t + 1]

    def forward_coefficients(self, t: Tensor) -> Tensor:
        """(B, 2) float64 factors of x_0 and of the noise in q(x_t | x_0), t (B,)."""
        alpha_bar = self.alpha_bar_at(t)
        return torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()], -1)

    def step_coefficients(
        self,
        t: Tensor,
        t_prev: Tensor,
        *,
        prediction: str,
        variance: str,
        eta: float | None,
        t_last: Tensor | None = None,
    ) -> Tensor:
        """(B, 6) float64 rows (x_to_x0, model_to_x0, x0, x_t, previous_x0, noise) of one reverse step t -> t_prev.

        x0 = x_to_x0 * x_t + model_to_x0 * model_output, and the next state is
        x0_factor * x0 + x_t_factor * x_t + previous_x0_factor * previous_x0 + noise_factor * z.
        With `t_last`, the timestep of previous_x0, the step is the second-order one of DPM-Solver++(2M);
        with `eta`, DDIM's; otherwise the ancestral step of DDPM over the (possibly longer) stride.
        """
        now, next_ = self.alpha_bar_at(t), self.alpha_bar_at(t_prev)
        signal, sigma = now.sqrt(), (1 - now).sqrt()
        zero, one = torch.zeros_like(now), torch.ones_like(now)
        x_to_x0, model_to_x0 = {
            "x0": (zero, one),
            "epsilon": (1 / signal, -sigma / signal),
            "v": (signal, -sigma),
        }[prediction]

        previous_factor, noise_factor = zero, zero
        stride_beta = 1 - now / next_
        if t_last is not None:
            x_factor = (1 - next_).sqrt() / sigma
            gain = next_.sqrt() - x_factor * signal  # alpha_next (1 - exp(-h)), without its difference of exponentials
            last = self.alpha_bar_at(t_last)
            log_snr = [0.5 * (a.log() - (1 - a).log()) for a in (last, now, next_)]
            # With h infinite (the last step, to the clean state) the extrapolation vanishes: first order.
            half_ratio = (log_snr[2] - log_snr[1]) / (2 * (log_snr[1] - log_snr[0]))
            extrapolation = torch.where(next_ < 1, half_ratio, zero)
            x0_factor, previous_factor = gain * (1 + extrapolation), -gain * extrapolation
        elif eta is not None:
            spread = eta * ((1 - next_) / (1 - now) * stride_beta).sqrt()
            x_factor = ((1 - next_ - spread**2).clamp(min=0)).sqrt() / sigma
            x0_factor, noise_factor = next_.sqrt() - x_factor * signal, spread
        else:
            x0_factor = stride_beta * next_.sqrt() / (1 - now)
            x_factor = (1 - next_) * (1 - stride_beta).sqrt() / (1 - now)
            small = stride_beta * (1 - next_) / (1 - now)
            spread = (small if variance == "fixed_small" else stride_beta).sqrt()
            noise_factor = torch.where(t_prev >= 0, spread, zero)
        return torch.stack([x_to_x0, model_to_x0, x0_factor, x_factor, previous_factor, noise_factor], -1)
