"""Training on one motion."""

from __future__ import annotations

import copy
import csv
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import __version__
from .batches import Batches, Crops, WholeClip
from .checks import check_at_least
from .evaluation import check_measurable
from .evaluation_log import EVALUATION, EvaluationLog
from .kernels import Schedule, q_sample
from .motion import (
    Clip,
    HumanMLLayout,
    Layout,
    Motion,
    Normalizer,
    layout_for,
    read_humanml,
    read_motion,
    thinned_for,
    write_motion,
)
from .pictures import draw_run
from .presets import Preset, preset_named
from .run import (
    CHECKPOINT,
    FORMAT,
    LOG,
    MODEL,
    Run,
    RunError,
    check_stamp,
    device_named,
    layout_stamp,
    load,
    load_weights,
    read_config,
    read_tensors,
    write_config,
    write_tensors,
    write_text,
)

PRECISIONS = ("float32", "bfloat16", "auto")
SAVE_SECONDS = 60.0
LOG_STEPS = 20


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

    network: nn.Module
    batches: Batches
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

    def loss(self) -> Tensor:
        """Mean squared error of the predicted x_0 on this step's batch."""
        x0, timesteps = (x.to(self.device) for x in self.batches.batch(self.step))
        x_t = q_sample(x0, timesteps, self.schedule, seed=self.batches.seed, step=self.step)
        # Dropout draws from torch's generator, which so depends on the step alone.
        torch.manual_seed(int(np.random.SeedSequence([self.batches.seed, self.step]).generate_state(1)[0]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            predicted = self.network(x_t.mT, timesteps).mT
        return F.mse_loss(predicted.float(), x0)

    def advance(self) -> Tensor:
        """One step; gives its loss."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss()
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

        check_stamp(path, metadata, self.batches.layout)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        load_weights(self.network, part("network."), path)
        load_weights(self.averaged, part("averaged."), path)
        state = self.optimizer.state_dict()
        try:
            # Parameters that never had a gradient have no state.
            for index in sorted({int(name.split(".")[1]) for name in tensors if name.startswith("optimizer.")}):
                if index not in state["param_groups"][0]["params"]:
                    raise KeyError(f"optimizer.{index}")
                state["state"][index] = {
                    name: tensors[f"optimizer.{index}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")
                }
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        except (KeyError, ValueError) as error:
            raise RunError(f"{path}: not a checkpoint of a training: {error!r}") from error
        self.optimizer.load_state_dict(state)


def _check_free(out: Path) -> None:
    """Raise FileExistsError where the folder holds anything: nothing is ever deleted or mixed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: exists and is not empty; choose another folder, or resume the run in it")


def _motion_of(
    clip: Motion | str | os.PathLike[str], fps: float | None, kind: str | None, representation: str | None
) -> tuple[Motion, Layout, str]:
    """The motion at the rate to train at, its layout, and where it came from. Raises where it cannot be learnt from."""
    source = type(clip).__name__
    if isinstance(clip, (str, os.PathLike)):
        source = str(clip)
        clip = read_humanml(clip, normalised=False) if kind == HumanMLLayout.kind else read_motion(clip)
    if isinstance(clip, Clip):
        motion: Motion = thinned_for(clip, kind, fps)
    elif isinstance(clip, Tensor) and clip.is_floating_point():
        motion = clip.detach().to("cpu", torch.float32)
        if not bool(motion.isfinite().all()):
            raise ValueError(f"{source}: has numbers that are not finite in float32")
    else:
        raise TypeError(
            f"clip must be a file, a Clip or a tensor of floats (frames, features), got {type(clip).__name__}"
        )
    try:
        return motion, layout_for(motion, kind, representation), source
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _same_motion(folder: Path, config: dict[str, Any], motion: Motion, layout: Layout) -> bool:
    """Whether a run was started on this motion; the copy it keeps is text, and so rounded."""
    if config["layout"] != layout.to_dict():
        return False
    own, given = (layout.encode(x) for x in (read_motion(folder / config["motion"]["file"]), motion))
    return own.shape == given.shape and torch.allclose(own, given, rtol=1e-5, atol=1e-5 * float(given.abs().max()))


def _append(path: Path, rows: list[list[Any]]) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _truncate_log(path: Path, step: int) -> None:
    """Drop the rows after `step`: steps that the checkpoint does not have are done again."""
    if path.is_file():
        lines = path.read_text().splitlines()
        kept = [line for line in lines if not line.split(",")[0].isdigit() or int(line.split(",")[0]) <= step]
        write_text(path, "\n".join(kept) + "\n")


def train(
    clip: Motion | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str | Preset | None = None,
    recipe: str | None = None,
    layout: str | None = None,
    representation: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    resume: bool = False,
    fps: float | None = 30.0,
    precision: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    evaluate_every: int | None = None,
    pictures: bool = False,
) -> Run:
    """Train on one motion and leave a run in the folder `out`.

    With `steps`, the same call gives the same losses every time on one machine, and one that was stopped and resumed
    gives the same as one that was not. With `minutes`, the learning rate follows the clock.

    Args:
        clip: a file (.bvh, .npy, .pt), a Clip, or an array (frames, features).
        out: folder of the run; must not exist or be empty, unless `resume`.
        preset: a name in PRESETS, or a Preset; default "small".
        recipe: "ours" (default), the preset's own training, or "published": see `Preset.with_recipe`.
        layout: features of a clip: "sinmdm" (default), or of the published code "mixamo" or "bvh_general"; of an array
            "array" (default), or "humanml" where it is HumanML3D's in raw units (see `sinmdm.motion.read_humanml`).
        representation: of the rotations of mixamo and bvh_general: "6d" (default) or "quat".
        steps, minutes: how long; at most one of them, default the preset's steps.
        seed: 0 .. 2^63 - 1, default 0.
        resume: continue the run in `out`. It keeps its settings: leave out preset, recipe, layout, representation,
            steps, minutes, seed and precision; the motion (and fps) must be the same.
        fps: thin clips to at most this rate (120 and 60 become 30); None keeps the file's own. The published layouts
            have a rule of their own instead.
        precision: "float32" (default), "bfloat16" (autocast), or "auto": what multiplies faster on this machine, by a
            short measurement at the start that the run remembers.
        device: default CUDA where torch sees it, else the CPU.
        progress: show a bar with loss, steps a second and the time left.
        tensorboard: also write events into the folder (needs the extra sinmdm[tensorboard]).
        evaluate_every: every so many steps and at the end, measure samples of the averaged weights and append a row to
            evaluation.csv (see `sinmdm.evaluation_log`). Does not change the training, and its time does not count.
        pictures: draw the losses and a few samples into the folder (see `sinmdm.pictures`) at the end, also of a
            training that is interrupted; needs the extra sinmdm[plot]. What cannot be drawn is said on standard error.

    Returns:
        The run, as `sinmdm.load(out)`.

    Raises:
        FileExistsError: the folder is not empty. ValueError: an argument or a file that is not as above, or a run (then
        RunError) that cannot be resumed. TypeError: clip is none of these. OSError: a file that cannot be read or
        written. BackendError: SINMDM_BACKEND asks for what is not there. Whatever is wrong with the arguments shows
        before the folder is made.
    """
    if steps is not None and minutes is not None:
        raise ValueError("give steps or minutes, not both")
    for name, value in (("steps", steps), ("minutes", minutes), ("fps", fps)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed must be an int from 0 to 2**63 - 1, got {seed!r}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    given = {
        "preset": preset, "recipe": recipe, "layout": layout, "representation": representation, "steps": steps,
        "minutes": minutes, "seed": seed, "precision": precision,
    }  # fmt: skip
    set_again = [name for name, value in given.items() if value is not None]
    if resume and set_again:
        raise ValueError(f"a resumed run keeps its settings: leave out {', '.join(set_again)}")
    if evaluate_every is not None:
        check_at_least(1, evaluate_every=evaluate_every)
    folder, where = Path(out), device_named(device)
    writer = _event_writer() if tensorboard else None
    if resume:
        config = read_config(folder)
        own = config["layout"] if isinstance(config["layout"], dict) else {}
        motion, features_as, source = _motion_of(clip, fps, own.get("kind"), own.get("representation"))
        if not _same_motion(folder, config, motion, features_as):
            raise RunError(f"{folder}: was trained on another motion or skeleton ({config['motion']['source']})")
    else:
        settings = preset if isinstance(preset, Preset) else preset_named(preset or "small")
        settings = settings.with_recipe(recipe or "ours")
        motion, features_as, source = _motion_of(clip, fps, layout, representation)
        _check_free(folder)
        config = {
            "format": FORMAT,
            "sinmdm": __version__,
            "preset": settings.to_dict(),
            "seed": seed or 0,
            "steps": None if minutes is not None else (steps or settings.steps),
            "minutes": minutes,
            "precision": fastest_precision(where) if precision == "auto" else precision or "float32",
            "motion": {"file": "clip.bvh" if isinstance(motion, Clip) else "clip.npy", "source": Path(source).name},
            "layout": features_as.to_dict(),
        }
    if evaluate_every is not None:
        try:
            check_measurable(motion)
        except ValueError as error:
            raise ValueError(f"evaluate_every cannot be had of this motion: {error}") from error
    settings = Preset.from_dict(config["preset"])
    features, size = features_as.encode(motion), features_as.size
    normalizer = Normalizer.fit(features, features_as) if settings.normalise else Normalizer.identity(size)
    batches = (Crops if settings.crop else WholeClip)(features, features_as, normalizer, settings, config["seed"])
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(config["seed"])
        trainer = Trainer(
            network=settings.build(size).to(where),
            batches=batches,
            schedule=settings.noise_schedule(),
            preset=settings,
            precision=config["precision"],
            limit=config["steps"] or config["minutes"] * 60,
            by_time=config["steps"] is None,
            device=where,
        )
        trainer.loss()  # whatever this machine cannot do shows before anything is written
        if not resume:
            folder.mkdir(parents=True, exist_ok=True)
            write_motion(folder / config["motion"]["file"], motion)
            write_config(folder, config)
        elif not (folder / CHECKPOINT).is_file() and (folder / MODEL).is_file():
            raise RunError(f"{folder}: was imported, and has no state of a training that could be resumed")
        elif (folder / CHECKPOINT).is_file():
            trainer.restore(*read_tensors(folder / CHECKPOINT), folder / CHECKPOINT)
        for name in (LOG, EVALUATION):
            _truncate_log(folder / name, trainer.step)
        log, evaluation = _Log(folder, trainer, progress, writer), None
        if evaluate_every is not None:
            run = Run(folder, settings, features_as, motion, normalizer, trainer.averaged)
            evaluation = EvaluationLog(run, evaluate_every, config["seed"], where, log.events)
        finished = _loop(trainer, log, evaluation)
    if pictures:
        _draw(folder, where)
    if not finished:
        raise KeyboardInterrupt
    return load(folder)


def _draw(folder: Path, device: torch.device) -> None:
    """The pictures of a run that is saved, which no failure to draw shall look like the loss of."""
    try:
        draw_run(load(folder), device=device)
    except Exception as error:  # whatever the drawing library may raise
        print(f"sinmdm: no pictures of the run: {error}", file=sys.stderr)


class _Log:
    """Losses to log.csv, the progress bar and, where asked for, TensorBoard; read from the device a few at a time."""

    def __init__(self, folder: Path, trainer: Trainer, progress: bool, writer: Any) -> None:
        self.path, self.trainer = folder / LOG, trainer
        self.pending: list[tuple[int, Tensor, float, float]] = []
        self.events = writer(str(folder)) if writer is not None else None
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


def _event_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs TensorBoard: pip install 'sinmdm[tensorboard]'") from error
    return SummaryWriter


class _Interrupt:
    """Turns Ctrl-C into a wish that is granted between steps; a second one interrupts at once."""

    def __enter__(self) -> _Interrupt:
        self.wished = False
        self.installed = threading.current_thread() is threading.main_thread()
        if self.installed:
            self.before = signal.signal(signal.SIGINT, self._wish)
        return self

    def _wish(self, *_: Any) -> None:
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True

    def __exit__(self, *_: Any) -> None:
        if self.installed:
            signal.signal(signal.SIGINT, self.before)


def _save(trainer: Trainer, folder: Path) -> None:
    stamp = {"layout": layout_stamp(trainer.batches.layout)}
    progress = {"step": str(trainer.step), "seconds": str(trainer.seconds)}
    write_tensors(folder / CHECKPOINT, trainer.checkpoint(), stamp | progress)
    weights = (trainer.averaged if trainer.preset.ema else trainer.network).state_dict()
    normalizer = trainer.batches.normalizer
    statistics = {"normalizer.mean": normalizer.mean, "normalizer.std": normalizer.std}
    write_tensors(folder / MODEL, statistics | weights, stamp)


def _loop(trainer: Trainer, log: _Log, evaluation: EvaluationLog | None) -> bool:
    """Step until the limit, saving every minute, at the end, and on an interrupt once the step is whole.

    The rows of every so many steps are written before the step is saved, so that a resumed run has them all; that of
    the last step comes after, and a run that is killed between the two gets it when it is resumed. Returns whether the
    limit was reached.
    """

    def save() -> None:
        log.flush()
        _save(trainer, log.path.parent)

    trainer.network.train()
    began = saved = time.perf_counter()
    before = trainer.seconds
    try:
        with _Interrupt() as interrupt:
            while trainer.progress < 1 and not interrupt.wished:
                learning_rate = trainer.learning_rate()
                loss = trainer.advance()
                now = time.perf_counter()
                trainer.seconds = before + now - began
                log.add(loss, learning_rate)
                if evaluation is not None and trainer.step % evaluation.every == 0:
                    log.flush()  # which stops a training whose loss is not finite
                    began += evaluation.write(trainer.step, trainer.seconds)
                if now - saved > SAVE_SECONDS:
                    save()
                    saved = now
            save()
            if evaluation is not None and trainer.progress >= 1:
                evaluation.write(trainer.step, trainer.seconds)
        return trainer.progress >= 1
    finally:
        log.close()
