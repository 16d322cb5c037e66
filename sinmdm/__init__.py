"""Single-motion diffusion on fast local attention with a learnable relative position bias.

    import sinmdm
    sinmdm.train("dance.bvh", "runs/dance", minutes=5)
    sinmdm.load("runs/dance").sample(frames=600, n=1, seed=0)[0].write("new.bvh")

Importing this package loads torch at most; motion, training and command-line libraries load with the attribute that
needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "accelerate": "nn.accelerate",
    "train": "training",
    "load": "run",
    "Run": "run",
    "PRESETS": "presets",
    "Preset": "presets",
}

if TYPE_CHECKING:
    from .nn.accelerate import accelerate
    from .presets import PRESETS, Preset
    from .run import Run, load
    from .training import train

__all__ = ["PRESETS", "Preset", "Run", "__version__", "accelerate", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in ("crowd", "diffusion", "editing", "kernels", "metrics", "motion", "nn"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'sinmdm' has no attribute {name!r}")
