"""Local attention with a learnable relative position bias, and the fused steps of Gaussian diffusion.

Needs torch alone (Triton and the native extension are optional). Every op is a plain function with a PyTorch
reference; `backends()` says which faster implementations this machine has.
"""

if __name__ == "kernels":
    raise ImportError("import this package as 'sinmdm.kernels' (the checkout's folder is on sys.path)")

from . import dialects as dialects  # a namespace of its own: its functions have other libraries' names
from ._dispatch import BackendError, backends, choices, extension, implementations
from .denoise_step import affine_step, denoise_step
from .norm_affine import norm_affine
from .philox import philox_normal
from .q_sample import q_sample
from .qna_attention import qna_attention
from .schedule import Schedule
from .window_attention import window_attention
from .window_match import window_match

__all__ = [
    "BackendError",
    "Schedule",
    "affine_step",
    "backends",
    "choices",
    "denoise_step",
    "extension",
    "implementations",
    "norm_affine",
    "philox_normal",
    "q_sample",
    "qna_attention",
    "window_attention",
    "window_match",
]
