"""A run: the folder that training leaves, with everything that sampling needs. Nothing in it is a pickle.

config.json             preset, seed, layout of the features, and what they were made from
clip.bvh / clip.npy     the motion as it was trained on
model.safetensors       the weights that sampling uses, and the mean and std of the features
checkpoint.safetensors  what resuming needs: weights, averaged weights, optimiser, and the step
log.csv                 step, loss, learning rate and time
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .checks import check_at_least
from .diffusion import GraphCache, Schedule, plan_steps, sample, stream
from .diffusion.sampling import usable_device
from .kernels import philox_normal
from .kernels.philox import check_seed
from .motion import (
    RESULTS,
    Layout,
    Motion,
    Normalizer,
    layout_from_dict,
    read_motion,
    writing_motion,
    writing_results,
)
from .motion.atomic import replacing
from .motion.features import ClipLayout
from .presets import Preset

FORMAT = 1
CONFIG, MODEL, CHECKPOINT, LOG = "config.json", "model.safetensors", "checkpoint.safetensors", "log.csv"
MOTION_FILES = ("clip.bvh", "clip.npy")
DEFAULT_BATCH, DEFAULT_FRAMES = 16, 2**16  # motions that are computed at once, and frames of them in all
WRITTEN_AT_ONCE = 1024  # frames that are decoded at once: what is made of them stays in the caches


class RunError(ValueError):
    """A folder that is not a run, or one whose files do not belong together; the message names the file."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors to a safetensors file that appears whole or not at all."""
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises RunError where it is none (a pickle, say) or is missing."""
    if not path.is_file():
        raise RunError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        with path.open("rb") as raw:
            pickled = raw.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        what = "a pickle, which could run code and is not opened" if pickled else f"damaged: {error}"
        raise RunError(f"{path}: must be a safetensors file, but it is {what}") from error


def write_text(path: Path, text: str) -> None:
    """Text to a file that appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """config.json, whole or not at all."""
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run. Raises RunError where the folder is no run of a format this version reads."""
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"{folder}: not a run (it has no {CONFIG})")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise RunError(f"{path}: format is {found!r}, this version reads {FORMAT}")
    missing = {"preset", "layout", "motion", "seed"} - config.keys()
    if missing:
        raise RunError(f"{path}: has no {', '.join(sorted(missing))}")
    motion = config["motion"]
    if not isinstance(motion, dict) or motion.get("file") not in MOTION_FILES:
        raise RunError(f"{path}: motion.file must be one of {', '.join(MOTION_FILES)}")
    return config


def device_named(device: torch.device | str | None) -> torch.device:
    """A device that can be used here; None is CUDA where torch sees it, else the CPU. Raises ValueError otherwise."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(device)


def layout_stamp(layout: Layout) -> str:
    """Short hash of a layout: weights carry it, because another skeleton may have as many features."""
    return hashlib.sha256(json.dumps(layout.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def check_stamp(path: Path, metadata: Mapping[str, str], layout: Layout) -> None:
    """Raise RunError where a file's weights belong to another skeleton or motion than `layout`'s."""
    if metadata.get("layout") != layout_stamp(layout):
        raise RunError(f"{path}: belongs to another skeleton or motion than this run's {CONFIG}")


def load_weights(network: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Weights into a network, every one and no other. Raises RunError naming the first that does not fit."""
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise RunError(f"{path}: has no weight {name!r}")
        if tensors[name].shape != tensor.shape:
            raise RunError(
                f"{path}: weight {name!r} has shape {tuple(tensors[name].shape)}, this run's network (its preset and "
                f"skeleton) needs {tuple(tensor.shape)}: a checkpoint of another skeleton or preset"
            )
    unknown = tensors.keys() - wanted.keys()
    if unknown:
        raise RunError(f"{path}: has weights that the network does not: {', '.join(sorted(unknown)[:3])}")
    network.load_state_dict(dict(tensors), strict=True)


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model and what belongs to it; `sinmdm.load` makes one of a folder."""

    folder: Path
    preset: Preset
    layout: Layout
    motion: Motion
    normalizer: Normalizer
    network: nn.Module
    graphs: GraphCache = field(default_factory=GraphCache, repr=False)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule it was trained with."""
        return self.preset.noise_schedule()

    @property
    def fps(self) -> float | None:
        """Frames a second of what it generates; None for arrays, whose rate is not known."""
        return None if self.layout.frame_time is None else 1 / self.layout.frame_time

    def sample(self, frames: int | Sequence[int], n: int = 1, **options: Any) -> list[Motion]:
        """New motions.

        Args:
            frames, n, options: as `features`.

        Returns:
            n clips, or arrays (frames, features) for a run on an array.

        Raises:
            ValueError: an argument that is not as above.
        """
        return [self.layout.decode(self.normalizer.invert(x)) for x in self.features(frames, n, **options)]

    def write_samples(
        self, folder: str | os.PathLike[str], frames: int | Sequence[int], n: int = 1, **options: Any
    ) -> list[Path]:
        """New motions, into sample00.bvh (.npy for a run on an array), sample01.bvh, ... of a folder; where there are
        joints, their positions, too, into results.npz (see `sinmdm.motion.results`).

        Decodes and writes a thousand frames at a time, so that the memory of a long motion is that of its features
        alone. Each file appears whole or not at all.

        Args:
            folder: an existing one.
            frames, n, options: as `features`.

        Returns:
            The files.

        Raises:
            ValueError: an argument that is not as above. OSError: a file cannot be written.
        """
        lengths = _lengths(frames, n)
        files = sample_files(folder, n, self.layout)
        motions = self.features(frames, n, **options)
        with contextlib.ExitStack() as stack:
            results = None
            if self.layout.hierarchy is not None and self.layout.frame_time is not None:
                results = stack.enter_context(
                    writing_results(
                        Path(folder) / RESULTS, *self.layout.hierarchy, self.layout.frame_time, max(lengths),
                        [file.stem for file in files], lengths=lengths,
                    )
                )  # fmt: skip
            for file, x in zip(files, motions, strict=True):
                place = self.layout.placer() if results is not None else None
                with writing_motion(file, self.layout, len(x)) as writer:
                    for part in x.split(WRITTEN_AT_ONCE):
                        motion = writer.write(self.normalizer.invert(part))
                        if results is not None and place is not None:
                            results.write(place(motion))
        return files

    def features(
        self,
        frames: int | Sequence[int],
        n: int = 1,
        *,
        seed: int = 0,
        sampler: str = "ddpm",
        steps: int | Sequence[int] | None = None,
        spacing: str = "trailing",
        eta: float | None = None,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Iterator[Tensor]:
        """The features of new motions, one after another, as the network knows them: not yet scaled back or decoded.

        Args:
            frames: length of each, or the n lengths, one a motion; a shorter one is what it would be by itself.
            n: how many; sample k of a seed does not depend on n or batch_size.
            seed: 0 .. 2^64 - 1.
            sampler, steps, spacing, eta: as `sinmdm.diffusion.sample`.
            batch_size: how many are computed at once; default 16, or less where that would be more than 65 536 frames.
                A network that is not local takes one length at a time: motions of many lengths are then held until it
                is their turn.
            device: where; default CUDA where torch sees it, else the CPU. The noise is the same everywhere.
            on_step: called with (steps done, steps in all) over all batches.

        Yields:
            (frames, features) float32 on the CPU, in order.

        Raises:
            ValueError: an argument that is not as above, at the call and not only at the first motion.
        """
        lengths = _lengths(frames, n)
        if batch_size is None:
            batch_size = default_batch(max(lengths))
        check_at_least(1, batch_size=batch_size)
        where = device_named(device)
        options: dict[str, Any] = {
            "sampler": sampler,
            "steps": steps,
            "spacing": spacing,
            "eta": eta,
            "variance": self.preset.variance,
        }
        each = len(plan_steps(self.schedule, **options))
        check_seed(seed)
        local = getattr(self.network, "receptive_field", None) is not None
        batches = _batches(lengths, batch_size, one_length=not local)

        def motions() -> Iterator[Tensor]:
            network = self.network.to(where).eval()
            held: dict[int, Tensor] = {}
            following = 0
            for number, batch in enumerate(batches):

                def report(done: int, number: int = number) -> None:
                    if on_step is not None:
                        on_step(number * each + done, len(batches) * each)

                own = [lengths[k] for k in batch]
                shape = (len(batch), self.layout.size, max(own))
                drawn: dict[str, Any] = {"seed": seed, "first_sample": batch[0]}
                if not isinstance(batch, range):
                    drawn = {"noise": _noise_of(batch, shape, seed, where)}
                if len(set(own)) > 1:
                    drawn["lengths"] = torch.tensor(own)
                with named_out_of_memory(shape):
                    x = sample(
                        network, shape, self.schedule, device=where, graphs=self.graphs, on_step=report, **drawn,
                        **options,
                    ).mT.cpu()  # fmt: skip
                held |= {k: motion[:length] for k, motion, length in zip(batch, x, own, strict=True)}
                while following in held:
                    yield held.pop(following)
                    following += 1

        return motions()

    def stream(
        self,
        *,
        chunk: int = 64,
        seed: int = 0,
        sampler: str = "ddim",
        steps: int | Sequence[int] | None = 20,
        spacing: str = "trailing",
        eta: float | None = None,
        device: torch.device | str | None = None,
        first_sample: int = 0,
    ) -> Iterator[Motion]:
        """A motion that never ends, `chunk` frames at a time, in constant memory: for live use.

        The frames are those of `sample` with the same arguments and any number of frames beyond them.

        Args:
            chunk, sampler, steps, spacing, eta, first_sample: as `sinmdm.diffusion.stream`.
            seed, device: as `features`.

        Yields:
            Clips of `chunk` frames, or arrays (chunk, features) for a run on an array.

        Raises:
            ValueError: an argument that is not as above, at the call.
        """
        where = device_named(device)
        pieces = stream(
            self.network.to(where).eval(), self.layout.size, self.schedule, seed=seed, chunk=chunk, sampler=sampler,
            steps=steps, spacing=spacing, eta=eta, variance=self.preset.variance, device=where,
            first_sample=first_sample,
        )  # fmt: skip
        decode = self.layout.decoder()
        return (decode(self.normalizer.invert(x[0].mT.cpu())) for x in pieces)


def _lengths(frames: int | Sequence[int], n: int) -> list[int]:
    """The length of each of n motions. Raises ValueError where `frames` is neither one length nor n of them."""
    if not isinstance(frames, Sequence):
        check_at_least(1, frames=frames, n=n)
        return [frames] * n
    check_at_least(1, n=n, **{f"frames[{k}]": length for k, length in enumerate(frames)})
    if len(frames) != n:
        raise ValueError(f"frames must be one length, or n = {n} of them, got {len(frames)}")
    return list(frames)


def _batches(lengths: Sequence[int], size: int, *, one_length: bool) -> Sequence[Sequence[int]]:
    """Numbers of samples in batches of at most `size`: ranges in order, or, where a batch must have one length and
    there are several, lists."""
    if not one_length or len(set(lengths)) == 1:
        return [range(begin, min(begin + size, len(lengths))) for begin in range(0, len(lengths), size)]
    alike: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        alike.setdefault(length, []).append(number)
    return [same[begin : begin + size] for same in alike.values() for begin in range(0, len(same), size)]


def _noise_of(
    samples: Sequence[int], shape: tuple[int, int, int], seed: int, device: torch.device
) -> Callable[[int], Tensor]:
    """Of a step, the noise (B, features, frames) of samples of a seed that do not follow one another."""
    numbers = torch.tensor(samples, device=device)
    _, features, frames = shape
    return lambda step: philox_normal((frames, features), seed=seed, step=step, sample=numbers, device=device).mT


def default_batch(frames: int) -> int:
    """How many motions of so many frames are computed at once."""
    return max(1, min(DEFAULT_BATCH, DEFAULT_FRAMES // frames))


def sample_files(folder: str | os.PathLike[str], n: int, layout: Layout) -> list[Path]:
    """sample00.bvh (.npy where motions are arrays), sample01.bvh, ...: where n motions of a layout go."""
    suffix = ".bvh" if isinstance(layout, ClipLayout) else ".npy"
    digits = max(2, len(str(n - 1)))
    return [Path(folder) / f"sample{index:0{digits}d}{suffix}" for index in range(n)]


@contextlib.contextmanager
def named_out_of_memory(shape: tuple[int, int, int]) -> Iterator[None]:
    """Raise ValueError naming frames and batch_size where motions of `shape` (B, features, frames) do not fit."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        size = 4 * math.prod(shape) / 1e9
        raise ValueError(
            f"frames and batch_size must fit in memory, got {shape[2]} and {shape[0]}: {size:.1f} GB of features alone"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed: on the CPU torch says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error)
        for words in ("not enough memory", "can't allocate memory", "Storage size calculation overflow")
    )


def load(run: str | os.PathLike[str]) -> Run:
    """The model in a run folder, ready to sample.

    Raises: RunError (a ValueError) where the folder is no run, or a file in it is damaged, a pickle, or of another
    skeleton.
    """
    folder = Path(run)
    config = read_config(folder)
    path = folder / MODEL
    tensors, metadata = read_tensors(path)
    try:
        preset, layout = Preset.from_dict(config["preset"]), layout_from_dict(config["layout"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are all replaced
            network = preset.build(layout.size)
    except ValueError as error:
        raise RunError(f"{folder / CONFIG}: {error}") from error
    check_stamp(path, metadata, layout)
    statistics = {name: tensors.pop(f"normalizer.{name}", torch.empty(0)) for name in ("mean", "std")}
    for name, tensor in statistics.items():
        if tuple(tensor.shape) != (layout.size,):
            raise RunError(
                f"{path}: normalizer.{name} has {tensor.numel()} features, the run's skeleton has {layout.size}"
            )
    load_weights(network, tensors, path)
    motion = read_motion(folder / config["motion"]["file"])
    return Run(folder, preset, layout, motion, Normalizer(**statistics), network.eval())
