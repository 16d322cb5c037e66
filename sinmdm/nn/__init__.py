"""Networks that denoise a motion, (B, features, frames) and timesteps (B,) to the same shape; and their attention."""

from .attention import WindowAttention, WindowMultiheadAttention
from .transformer import WindowTransformer

__all__ = ["WindowAttention", "WindowMultiheadAttention", "WindowTransformer"]
