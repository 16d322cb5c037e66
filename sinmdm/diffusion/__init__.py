"""Gaussian diffusion: noise schedules and samplers."""

from ..kernels import Schedule
from .sampling import SAMPLERS, sample

__all__ = ["SAMPLERS", "Schedule", "sample"]
