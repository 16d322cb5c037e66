"""Gaussian diffusion: noise schedules, samplers, and streams without an end."""

from ..kernels import Schedule
from .graph import GraphCache
from .plan import SAMPLERS, SPACINGS, Plan, plan_steps, timesteps_visited
from .sampling import sample
from .streaming import stream

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "GraphCache",
    "Plan",
    "Schedule",
    "plan_steps",
    "sample",
    "stream",
    "timesteps_visited",
]
