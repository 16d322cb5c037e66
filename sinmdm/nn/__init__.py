"""Networks that denoise a motion, (B, features, frames) and timesteps (B,) to the same shape; and their attention."""

from .attention import WindowAttention, WindowMultiheadAttention
from .qna import QnAAttention1d
from .qnanet import QnANet
from .transformer import WindowTransformer
from .unet import QnAUNet

__all__ = ["QnAAttention1d", "QnANet", "QnAUNet", "WindowAttention", "WindowMultiheadAttention", "WindowTransformer"]
