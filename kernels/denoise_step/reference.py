"""One reverse step of a Gaussian diffusion in plain PyTorch: the definition.

Whatever the sampler, a step is one affine combination around one clamp; `sinmdm.kernels.schedule.STEP_COLUMNS` names
its coefficients and `coefficients_between` computes them.
"""

import torch
from torch import Tensor

from ..philox.reference import philox_normal


def raw_x0(x_t: Tensor, model_output: Tensor, coefficients: Tensor, unconditional: Tensor | None) -> Tensor:
    """x0 as the network gives it, before it is clipped or blended."""
    x_to_x0, model_to_x0, unconditional_to_x0 = coefficients[:, :3, None, None].unbind(1)
    raw = x_to_x0 * x_t + model_to_x0 * model_output.to(x_t.dtype)
    if unconditional is not None:
        raw = raw + unconditional_to_x0 * unconditional.to(x_t.dtype)
    return raw


def denoise_step(
    x_t: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    unconditional: Tensor | None,
    known: Tensor | None,
    mask: Tensor | None,
    previous_x0: Tensor | None,
    noise: Tensor | None,
    clips: bool,
    draw: bool,
    seed: int,
    step: Tensor,
    sample: Tensor,
    frame: Tensor,
) -> tuple[Tensor, Tensor]:
    """The state one step earlier, and the x0 that it was made from. coefficients (B, 10), as in STEP_COLUMNS."""
    limit, scale, of_x0, of_raw, of_x, of_previous, of_noise = coefficients[:, 3:, None, None].unbind(1)
    raw = x0 = raw_x0(x_t, model_output, coefficients, unconditional)
    if clips:
        x0 = torch.clamp(raw, -limit, limit) * scale
    if known is not None and mask is not None:
        x0 = known * mask + x0 * (1 - mask)
    result = of_x0 * x0 + of_x * x_t
    if clips:
        result = result + torch.where(of_raw == 0, 0, of_raw * raw)  # raw may be infinite where x0 is not
    if previous_x0 is not None:
        result = result + of_previous * previous_x0
    if draw:
        noise = philox_normal(x_t.shape, seed, step, sample, frame, x_t.device).to(x_t.dtype)
    if noise is not None:
        result = result + of_noise * noise
    return result, x0
