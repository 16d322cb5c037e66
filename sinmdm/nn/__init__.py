"""Networks that denoise a motion: (B, features, frames) and timesteps (B,) to the same shape."""

from .transformer import WindowTransformer

__all__ = ["WindowTransformer"]
