"""Named settings of a run: the network, the diffusion and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .diffusion import Schedule

SCHEDULES: Mapping[str, Callable[[int], Schedule]] = {"cosine": Schedule.cosine, "linear": Schedule.linear}


@dataclass(frozen=True)
class Preset:
    """Settings of a run.

    Network (`sinmdm.nn.WindowTransformer`): d_model, heads, layers, window (frames each side), mlp_ratio, dropout.
    Diffusion: schedule ("cosine" or "linear") over `timesteps`.
    Training: `batch_size` random crops of `crop` frames a step, each of the clip resized in time by a factor drawn from
    `resize`; AdamW at `learning_rate` after `warmup` steps, decaying exponentially to `final_learning_rate` times it;
    `ema` is the decay of the averaged weights that sampling uses (0: the weights themselves); `steps` where neither
    steps nor minutes are given.
    """

    d_model: int = 512
    heads: int = 8
    layers: int = 6
    window: int = 16
    mlp_ratio: int = 4
    dropout: float = 0.1
    schedule: str = "cosine"
    timesteps: int = 1000
    batch_size: int = 64
    crop: int = 128
    resize: tuple[float, float] = (0.75, 1.25)
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.1
    warmup: int = 500
    weight_decay: float = 0.01
    ema: float = 0.9999
    steps: int = 60_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            allowed = (int, float) if kind is float else kind
            if not isinstance(value, allowed) or isinstance(value, bool):
                raise ValueError(f"{field.name} must be of type {kind.__name__}, got {value!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if len(self.resize) != 2 or not 0.25 <= self.resize[0] <= self.resize[1] <= 4:
            raise ValueError(f"resize must be (low, high) within 0.25 and 4, got {self.resize}")
        if self.crop < 2 or self.batch_size < 1 or self.steps < 1:
            raise ValueError(
                f"crop must be >= 2, batch_size and steps >= 1, got {self.crop}, {self.batch_size}, {self.steps}"
            )
        if not 0 <= self.ema < 1 or not 0 < self.final_learning_rate <= 1:
            raise ValueError(
                f"ema must be in [0, 1) and final_learning_rate in (0, 1], got {self.ema}, {self.final_learning_rate}"
            )

    def network(self) -> dict[str, Any]:
        """The keyword arguments of the network."""
        return {name: getattr(self, name) for name in ("d_model", "heads", "layers", "window", "mlp_ratio", "dropout")}

    def noise_schedule(self) -> Schedule:
        """The schedule by its name and length."""
        return SCHEDULES[self.schedule](self.timesteps)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preset:
        """Inverse of `to_dict`. Raises ValueError for settings that do not exist or are not valid."""
        resize = data.get("resize")
        try:
            return cls(**{**data, "resize": tuple(resize) if isinstance(resize, list) else resize})
        except TypeError as error:
            raise ValueError(f"not the settings of a run: {error}") from error


PRESETS = {
    "paper": Preset(),
    "small": Preset(
        d_model=128,
        heads=4,
        layers=4,
        window=8,
        dropout=0.0,
        timesteps=100,
        batch_size=16,
        crop=64,
        resize=(1.0, 1.0),  # minutes are too few to learn the clip at every speed
        learning_rate=2e-3,
        final_learning_rate=0.02,
        warmup=100,
        ema=0.995,
        steps=4000,
    ),
}


def preset_named(name: str) -> Preset:
    """A preset by name. Raises ValueError naming those there are."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(sorted(PRESETS))}, got {name!r}")
    return PRESETS[name]
