"""window_attention under the names, layouts and conventions of other libraries: thin functions over the public op.

Each means what the function it is named after means, at its own defaults, and takes beside its arguments those that
only window_attention has (`rel_bias`, `backend`, ...). What the original can do and this op cannot is a ValueError that
names the argument; nothing is left out in silence.

    scaled_dot_product_window_attention   torch.nn.functional.scaled_dot_product_attention: (..., heads, frames, dim)
    flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func   flash-attn 2
    na1d                                  NATTEN 0.20 and later, with the `rpb` of the versions before
    flex_mods                             a score_mod and a mask_mod that make FlexAttention the same function
"""

from .flash_attention import flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func
from .flex_attention import flex_mods
from .natten import na1d
from .sdpa import scaled_dot_product_window_attention

__all__ = [
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flex_mods",
    "na1d",
    "scaled_dot_product_window_attention",
]
