"""One reverse step of a Gaussian diffusion in plain PyTorch: the definition.

Whatever the sampler, a step is one affine combination; `sinmdm.kernels.Schedule.step_coefficients` says which.
"""

from torch import Tensor

from ..philox.reference import philox_normal


def denoise_step(
    x_t: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    known: Tensor | None,
    mask: Tensor | None,
    previous_x0: Tensor | None,
    noise: Tensor | None,
    draw: bool,
    seed: int,
    step: Tensor,
    sample: Tensor,
) -> Tensor:
    """The state one step earlier. coefficients (B, 6), as Schedule.step_coefficients gives them."""
    x_to_x0, model_to_x0, of_x0, of_x, of_previous, of_noise = coefficients[:, :, None, None].unbind(1)
    x0 = x_to_x0 * x_t + model_to_x0 * model_output.to(x_t.dtype)
    if known is not None and mask is not None:
        x0 = known * mask + x0 * (1 - mask)
    result = of_x0 * x0 + of_x * x_t
    if previous_x0 is not None:
        result = result + of_previous * previous_x0
    if draw:
        noise = philox_normal(x_t.shape, seed, step, sample, x_t.device).to(x_t.dtype)
    if noise is not None:
        result = result + of_noise * noise
    return result
