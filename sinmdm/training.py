"""Training on one motion."""

from __future__ import annotations

import copy
import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import __version__
from .kernels import Schedule, q_sample
from .motion import Clip, Layout, Motion, Normalizer, layout_for, read_motion, write_motion
from .nn import WindowTransformer
from .presets import Preset, preset_named
from .run import (
    CHECKPOINT,
    FORMAT,
    LOG,
    MODEL,
    SCHEDULES,
    Run,
    RunError,
    load,
    load_weights,
    read_config,
    read_tensors,
    write_config,
    write_tensors,
)

PRECISIONS = ("float32", "bfloat16", "auto")
SAVE_SECONDS = 60.0
LOG_STEPS = 20


class Crops:
    """Random crops of one motion, each resized in time, as normalised batches (B, frames, features).

    Batch `step` of a seed is always the same, so that a resumed run sees what an uninterrupted one would.
    """

    def __init__(self, features: Tensor, layout: Layout, normalizer: Normalizer, preset: Preset, seed: int) -> None:
        self.features, self.layout, self.normalizer, self.preset, self.seed = features, layout, normalizer, preset, seed
        self.frames = min(preset.crop, len(features))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Clean crops and their timesteps (B,)."""
        preset, random = self.preset, np.random.default_rng([self.seed, step])
        stretch = random.uniform(*preset.resize, preset.batch_size)
        # A stretched clip has stretch * F frames; where that is less than a crop, the clip's last pose is held.
        span = (self.frames - 1) / stretch
        begin = random.uniform(0, 1, preset.batch_size) * np.maximum(len(self.features) - 1 - span, 0)
        if preset.resize == (1.0, 1.0):
            begin = np.rint(begin)
        positions = torch.from_numpy(begin[:, None] + np.arange(self.frames) / stretch[:, None])
        crops = self.layout.resample(self.features, positions, torch.from_numpy(1 / stretch))
        # One timestep from each of B equal parts of the schedule: unbiased, with less variance than B free draws.
        strata = (np.arange(preset.batch_size) + random.uniform(0, 1, preset.batch_size)) / preset.batch_size
        timesteps = torch.from_numpy((strata * preset.timesteps).astype(np.int64))
        return self.normalizer.apply(crops), timesteps


def fastest_precision(device: torch.device) -> str:
    """Which: bfloat16 where a matrix product under autocast takes at most 0.8 of its time in float32, else float32."""
    x, weight = torch.ones(2048, 256, device=device), torch.ones(256, 256, device=device)

    def seconds(enabled: bool) -> float:
        times = []
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            for _ in range(9):
                begin = time.perf_counter()
                for _ in range(4):
                    F.linear(x, weight)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begin)
        return sorted(times)[len(times) // 2]

    return "bfloat16" if seconds(True) * 1.25 < seconds(False) else "float32"


@dataclass(eq=False)
class Trainer:
    """The state of a training and its step. `limit` is a number of steps, or of seconds where `by_time`."""

    network: WindowTransformer
    crops: Crops
    schedule: Schedule
    preset: Preset
    precision: str
    limit: float
    by_time: bool
    device: torch.device
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.averaged = copy.deepcopy(self.network).eval()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.preset.learning_rate, weight_decay=self.preset.weight_decay, fused=True
        )

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return min(1.0, (self.seconds if self.by_time else self.step) / self.limit)

    def learning_rate(self) -> float:
        """After a linear warm-up, an exponential decay over the training."""
        warmup = min(1.0, (self.step + 1) / self.preset.warmup) if self.preset.warmup else 1.0
        return self.preset.learning_rate * warmup * self.preset.final_learning_rate**self.progress

    def advance(self) -> Tensor:
        """One step: the loss, mean squared error of the predicted x_0."""
        x0, timesteps = (x.to(self.device) for x in self.crops.batch(self.step))
        x_t = q_sample(x0, timesteps, self.schedule, seed=self.crops.seed, step=self.step)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Dropout draws from torch's generator, which so depends on the step alone.
        torch.manual_seed(int(np.random.SeedSequence([self.crops.seed, self.step]).generate_state(1)[0]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            predicted = self.network(x_t.mT, timesteps).mT
        loss = F.mse_loss(predicted.float(), x0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        decay = min(self.preset.ema, self.step / (self.step + 9))  # short memory while there is little to remember
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)
        return loss.detach()

    def checkpoint(self) -> dict[str, Tensor]:
        """Everything a resumed training needs, as named tensors."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
        """Continue from a checkpoint. Raises RunError where it does not fit."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        load_weights(self.network, part("network."), path)
        load_weights(self.averaged, part("averaged."), path)
        state = self.optimizer.state_dict()
        try:
            for index in state["param_groups"][0]["params"]:
                state["state"][index] = {
                    name: tensors[f"optimizer.{index}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")
                }
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        except (KeyError, ValueError) as error:
            raise RunError(f"{path}: not a checkpoint of a training: {error!r}") from error
        self.optimizer.load_state_dict(state)


def _new_folder(out: Path) -> None:
    """Make the folder. Raises FileExistsError where it holds anything: nothing is ever deleted or mixed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: exists and is not empty; choose another folder, or resume the run in it")
    out.mkdir(parents=True, exist_ok=True)


def _motion_of(clip: Motion | str | os.PathLike[str], fps: float | None) -> tuple[Motion, str]:
    """The motion at the rate to train at, and where it came from."""
    source = type(clip).__name__
    if isinstance(clip, (str, os.PathLike)):
        source = Path(clip).name
        clip = read_motion(clip)
    return (clip.thin(fps) if isinstance(clip, Clip) and fps is not None else clip), source


def _append(path: Path, rows: list[list[Any]]) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _truncate_log(path: Path, step: int) -> None:
    """Drop the rows after `step`: steps that the checkpoint does not have are done again."""
    if path.is_file():
        lines = path.read_text().splitlines()
        kept = [line for line in lines if not line.split(",")[0].isdigit() or int(line.split(",")[0]) <= step]
        path.write_text("\n".join(kept) + "\n")


def train(
    clip: Motion | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str | Preset = "small",
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    resume: bool = False,
    fps: float | None = 30.0,
    precision: str = "float32",
    device: torch.device | str | None = None,
    progress: bool = True,
    tensorboard: bool = False,
) -> Run:
    """Train on one motion and leave a run in the folder `out`.

    With `steps`, the same call gives the same losses every time on one machine, and one that was stopped and resumed
    gives the same as one that was not. With `minutes`, the learning rate follows the clock.

    Args:
        clip: a file (.bvh, .npy, .pt), a Clip, or an array (frames, features).
        out: folder of the run; must not exist or be empty, unless `resume`.
        preset: a name in PRESETS, or a Preset.
        steps, minutes: how long; at most one of them, default the preset's steps.
        seed: 0 .. 2^63 - 1.
        resume: continue the run in `out` with the settings it was started with; the motion must be the same.
        fps: thin clips to at most this rate (120 and 60 become 30); None keeps the file's own.
        precision: "float32", "bfloat16" (autocast), or "auto": what multiplies faster on this machine, by a short
            measurement at the start that the run remembers.
        device: default CUDA where torch sees it, else the CPU.
        progress: show a bar with loss, steps a second and the time left.
        tensorboard: also write events into the folder (needs the extra sinmdm[tensorboard]).

    Returns:
        The run, as `sinmdm.load(out)`.

    Raises:
        FileExistsError: the folder is not empty. ValueError: an argument or a file that is not as above. OSError: a
        file that cannot be read or written.
    """
    if steps is not None and minutes is not None:
        raise ValueError("give steps or minutes, not both")
    for name, value in (("steps", steps), ("minutes", minutes)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an int from 0 to 2**63 - 1, got {seed!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    folder = Path(out)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    motion, source = _motion_of(clip, fps)
    layout = layout_for(motion)
    if resume:
        config = read_config(folder)
        if config["layout"] != layout.to_dict():
            raise RunError(f"{folder}: was trained on another motion or skeleton ({config['motion']['source']})")
        if steps is not None or minutes is not None:
            raise ValueError("a resumed run keeps the length it was started with: leave out steps and minutes")
    else:
        settings = preset_named(preset) if isinstance(preset, str) else preset
        _new_folder(folder)
        config = {
            "format": FORMAT,
            "sinmdm": __version__,
            "preset": settings.to_dict(),
            "seed": seed,
            "steps": None if minutes is not None else (steps or settings.steps),
            "minutes": minutes,
            "precision": fastest_precision(chosen) if precision == "auto" else precision,
            "motion": {"file": "clip.bvh" if isinstance(motion, Clip) else "clip.npy", "source": source},
            "layout": layout.to_dict(),
        }
        write_motion(folder / config["motion"]["file"], motion)
        write_config(folder, config)
    settings = Preset.from_dict(config["preset"])
    features = layout.encode(motion)
    normalizer = Normalizer.fit(features, layout)
    with torch.random.fork_rng(devices=[chosen] if chosen.type == "cuda" else []):
        torch.manual_seed(config["seed"])
        trainer = Trainer(
            network=WindowTransformer(layout.size, **settings.network()).to(chosen),
            crops=Crops(features, layout, normalizer, settings, config["seed"]),
            schedule=SCHEDULES[settings.schedule](settings.timesteps),
            preset=settings,
            precision=config["precision"],
            limit=config["steps"] or config["minutes"] * 60,
            by_time=config["steps"] is None,
            device=chosen,
        )
        if resume and (folder / CHECKPOINT).is_file():
            trainer.restore(*read_tensors(folder / CHECKPOINT), folder / CHECKPOINT)
        _truncate_log(folder / LOG, trainer.step)
        _loop(trainer, folder, normalizer, progress, tensorboard)
    return load(folder)


class _Log:
    """Losses to log.csv, the progress bar and, where asked for, TensorBoard; read from the device a few at a time."""

    def __init__(self, folder: Path, trainer: Trainer, progress: bool, tensorboard: bool) -> None:
        self.path, self.trainer = folder / LOG, trainer
        self.pending: list[tuple[int, Tensor, float, float]] = []
        self.events = _event_writer(folder) if tensorboard else None
        if not self.path.is_file():
            _append(self.path, [["step", "loss", "learning_rate", "seconds"]])
        done = trainer.seconds if trainer.by_time else trainer.step
        shape = "{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}" if trainer.by_time else None
        self.bar = tqdm(total=trainer.limit, initial=done, unit="step", disable=not progress, bar_format=shape)

    def add(self, loss: Tensor, learning_rate: float) -> None:
        """Note the step that was just done."""
        trainer = self.trainer
        self.pending.append((trainer.step, loss, learning_rate, trainer.seconds))
        if trainer.step % LOG_STEPS == 0:
            self.flush()

    def flush(self) -> None:
        """Write what is pending. Raises RunError where a loss is not finite."""
        if not self.pending:
            return
        losses = torch.stack([loss for _, loss, _, _ in self.pending]).tolist()  # one wait for the device
        rows: list[list[Any]] = [
            [step, f"{loss:.6g}", f"{rate:.6g}", f"{seconds:.3f}"]
            for (step, _, rate, seconds), loss in zip(self.pending, losses, strict=True)
        ]
        first, last = self.pending[0], self.pending[-1]
        self.pending.clear()
        _append(self.path, rows)
        if not np.isfinite(losses).all():
            raise RunError(f"{self.path}: the loss is not finite by step {last[0]}; the run's last save stands")
        speed = (last[0] - first[0]) / (last[3] - first[3]) if last[0] > first[0] else 0.0
        self.bar.set_postfix_str(f"step {last[0]}, loss {losses[-1]:.4f}, {speed:.1f} steps/s", refresh=False)
        trainer = self.trainer
        self.bar.n = min(trainer.seconds if trainer.by_time else trainer.step, trainer.limit)
        self.bar.refresh()
        if self.events is not None:
            for step, loss, rate, _ in rows:
                self.events.add_scalar("loss", float(loss), step)
                self.events.add_scalar("learning_rate", float(rate), step)

    def close(self) -> None:
        self.bar.close()
        if self.events is not None:
            self.events.close()


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs TensorBoard: pip install 'sinmdm[tensorboard]'") from error
    return SummaryWriter(str(folder))


def _save(trainer: Trainer, folder: Path, normalizer: Normalizer) -> None:
    metadata = {"step": str(trainer.step), "seconds": str(trainer.seconds)}
    write_tensors(folder / CHECKPOINT, trainer.checkpoint(), metadata)
    weights = (trainer.averaged if trainer.preset.ema else trainer.network).state_dict()
    statistics = {"normalizer.mean": normalizer.mean, "normalizer.std": normalizer.std}
    write_tensors(folder / MODEL, statistics | weights)


def _loop(trainer: Trainer, folder: Path, normalizer: Normalizer, progress: bool, tensorboard: bool) -> None:
    """Step until the limit, saving every minute, at the end and on an interrupt."""
    log = _Log(folder, trainer, progress, tensorboard)

    def save() -> None:
        log.flush()
        _save(trainer, folder, normalizer)

    trainer.network.train()
    began = saved = time.perf_counter()
    before = trainer.seconds
    try:
        while trainer.progress < 1:
            learning_rate = trainer.learning_rate()
            loss = trainer.advance()
            now = time.perf_counter()
            trainer.seconds = before + now - began
            log.add(loss, learning_rate)
            if now - saved > SAVE_SECONDS:
                save()
                saved = now
        save()
    except KeyboardInterrupt:
        save()
        raise
    finally:
        log.close()
