"""Named settings of a run: the network, the diffusion and how it is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import nn

from .diffusion import Schedule
from .nn import QnANet, QnAUNet, WindowTransformer

SCHEDULES: Mapping[str, Callable[[int], Schedule]] = {"cosine": Schedule.cosine, "linear": Schedule.linear}
# By architecture: the network, and how many of its first arguments are the number of features.
NETWORKS: Mapping[str, tuple[type[nn.Module], int]] = {
    "window": (WindowTransformer, 1),
    "qna": (QnANet, 1),
    "unet": (QnAUNet, 2),
}
# What the published code trains with (Raab et al. 2024): the whole clip, as it is, resized in time; a constant rate;
# and what its networks leave out at random by default, which our presets of them set otherwise.
PUBLISHED: Mapping[str, Any] = {
    "batch_size": 64,
    "crop": 0,
    "resize": (0.75, 1.25),
    "normalise": False,
    "learning_rate": 1e-4,
    "final_learning_rate": 1.0,
    "warmup": 0,
    "weight_decay": 0.0,
    "ema": 0.0,
    "timesteps": 1000,
    "schedule": "cosine",
    "steps": 60_000,
}
REGULARISATION = ("drop_path", "dropout")
RECIPES = ("ours", "published")


def _arguments(architecture: str) -> dict[str, Any]:
    """The arguments of a network that a preset may set, with their defaults."""
    network, given = NETWORKS[architecture]
    parameters = list(inspect.signature(network.__init__).parameters.values())[1 + given :]
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


@dataclass(frozen=True)
class Preset:
    """Settings of a run.

    Network: `architecture` ("window": `sinmdm.nn.WindowTransformer`, "qna": `QnANet`, "unet": `QnAUNet`), and in
    `network` its arguments beside the number of features.
    Diffusion: schedule ("cosine" or "linear") over `timesteps`; `variance` of the "ddpm" sampler's steps
    ("fixed_small" or "fixed_large").
    Training: `batch_size` random crops of `crop` frames a step, each of the clip resized in time by a factor drawn
    from `resize`; where `crop` is 0, the whole clip, all of a step resized alike and as plain numbers, as published.
    Features are brought to zero mean and unit spread where `normalise`. AdamW at `learning_rate` after `warmup` steps,
    decaying exponentially to `final_learning_rate` times it; `ema` is the decay of the averaged weights that sampling
    uses (0: the weights themselves); `steps` where neither steps nor minutes are given.
    """

    architecture: str = "window"
    network: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "cosine"
    timesteps: int = 1000
    variance: str = "fixed_small"
    batch_size: int = 64
    crop: int = 128
    resize: tuple[float, float] = (0.75, 1.25)
    normalise: bool = True
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.1
    warmup: int = 500
    weight_decay: float = 0.01
    ema: float = 0.9999
    steps: int = 60_000

    def __post_init__(self) -> None:
        if self.architecture not in NETWORKS:
            raise ValueError(f"architecture must be one of {', '.join(NETWORKS)}, got {self.architecture!r}")
        for setting in fields(self)[2:]:
            _check_type(setting.name, getattr(self, setting.name), setting.default)
        if not isinstance(self.network, Mapping):
            raise ValueError(f"network must be a mapping of arguments, got {self.network!r}")
        known = _arguments(self.architecture)
        for name, value in self.network.items():
            if name not in known:
                raise ValueError(f"network of {self.architecture!r} takes {', '.join(known)}, got {name!r}")
            _check_type(f"network.{name}", value, known[name])
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.variance not in ("fixed_small", "fixed_large"):
            raise ValueError(f"variance must be fixed_small or fixed_large, got {self.variance!r}")
        if len(self.resize) != 2 or not 0.25 <= self.resize[0] <= self.resize[1] <= 4:
            raise ValueError(f"resize must be (low, high) within 0.25 and 4, got {self.resize}")
        if (self.crop < 2 and self.crop != 0) or self.batch_size < 1 or self.steps < 1:
            raise ValueError(
                "crop must be 0 (the whole clip) or >= 2, batch_size and steps >= 1, "
                f"got {self.crop}, {self.batch_size}, {self.steps}"
            )
        if not 0 < self.learning_rate < math.inf or self.warmup < 0 or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                "learning_rate must be above 0, warmup and weight_decay at least 0, "
                f"got {self.learning_rate}, {self.warmup}, {self.weight_decay}"
            )
        if not 0 <= self.ema < 1 or not 0 < self.final_learning_rate <= 1:
            raise ValueError(
                f"ema must be in [0, 1) and final_learning_rate in (0, 1], got {self.ema}, {self.final_learning_rate}"
            )

    def build(self, features: int) -> nn.Module:
        """The network, for so many features. Raises ValueError for arguments that it cannot have."""
        network, given = NETWORKS[self.architecture]
        return network(*[features] * given, **self.network)

    def arguments(self) -> dict[str, Any]:
        """All arguments of the network beside the number of features, also those at their defaults."""
        return {**_arguments(self.architecture), **self.network}

    def noise_schedule(self) -> Schedule:
        """The schedule by its name and length."""
        return SCHEDULES[self.schedule](self.timesteps)

    def with_recipe(self, recipe: str) -> Preset:
        """The same network trained in another way: "ours" is the preset itself, "published" has the settings of
        `PUBLISHED` and the network's own drop_path and dropout.

        Raises ValueError naming those there are.
        """
        if recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
        if recipe == "ours":
            return self
        network = {name: value for name, value in self.network.items() if name not in REGULARISATION}
        return replace(self, network=network, **PUBLISHED)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preset:
        """Inverse of `to_dict`. Raises ValueError for settings that do not exist or are not valid."""
        data = dict(data)
        if "architecture" not in data:  # runs of before there were others: the transformer's arguments lie flat
            data["network"] = {name: data.pop(name) for name in _arguments("window") if name in data}
        if isinstance(data.get("resize"), list):
            data["resize"] = tuple(data["resize"])
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"not the settings of a run: {error}") from error


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raise ValueError where a setting is of another type than its default."""
    kind = type(default)
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")


# What minutes on one clip are spent on well, whatever the network.
_MINUTES: Mapping[str, Any] = {
    "timesteps": 100,
    "batch_size": 16,
    "crop": 64,
    "resize": (1.0, 1.0),  # minutes are too few to learn the clip at every speed
    "learning_rate": 2e-3,
    "final_learning_rate": 0.02,
    "warmup": 100,
    "ema": 0.995,
    "steps": 4000,
}

PRESETS = {
    "paper": Preset(),
    # Crops of 32 frames: half the time of a step with 64, and on the frontier of coverage against diversity
    # (docs/quality.md).
    "small": Preset(
        network={"d_model": 128, "heads": 4, "layers": 4, "window": 8, "dropout": 0.0},
        **{**_MINUTES, "crop": 32, "steps": 8000},
    ),
    # The published networks, trained as the small preset is; `with_recipe("published")` trains them as published.
    "paper-qna": Preset("qna", {"drop_path": 0.0}, **_MINUTES),
    "paper-unet": Preset("unet", {"use_scale_shift_norm": True, "dropout": 0.0}, **_MINUTES),
}


def preset_named(name: str) -> Preset:
    """A preset by name. Raises ValueError naming those there are."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(sorted(PRESETS))}, got {name!r}")
    return PRESETS[name]
