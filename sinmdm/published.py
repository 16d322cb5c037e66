"""Checkpoints of the published code (Raab et al. 2024), to a run and back: a state dict and its args.json."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
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
    write_humanml,
    write_motion,
)
from .motion.atomic import filling
from .presets import PUBLISHED, Preset
from .run import (
    CHECKPOINT,
    FORMAT,
    MODEL,
    Run,
    RunError,
    layout_stamp,
    load,
    read_config,
    read_tensors,
    write_config,
    write_tensors,
)

ARGUMENTS = "args.json"
HUMANML = HumanMLLayout.kind  # what the published code calls it, too
FEATURES = ("raw", "normalised")
# Names of the network's arguments there -> here, with the published defaults of those that are not the network's own.
_QNA = {
    "latent_dim": "latent_dim",
    "layers": "num_layers",
    "num_downsample": "num_downsample",
    "use_diffusion_query": "diffusion_query",
    "head_dim": "head_dim",
    "kernel_size": "kernel_size",
    "use_global_pe": "use_global_pe",
    "drop_path": "drop_path",
}
_UNET = {
    name: name
    for name in (
        *("image_size", "num_channels", "num_res_blocks", "num_heads", "num_heads_upsample", "num_head_channels"),
        *("attention_resolutions", "channel_mult", "dropout", "use_checkpoint", "use_scale_shift_norm"),
        *("resblock_updown", "use_new_attention_order", "padding_mode", "padding", "kernel_size"),
        *("conv_1d", "use_attention", "use_qna"),
    )
}
_NETWORK = {"qna": _QNA, "unet": _UNET}
_FIRST_WEIGHT = {"qna": "input_proj.weight", "unet": "input_blocks.0.0.weight"}  # (channels, features, ...)
_TRAINING = {
    "batch_size": "batch_size",
    "lr": "learning_rate",
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
    "num_steps": "steps",
    "diffusion_steps": "timesteps",
    "noise_schedule": "schedule",
}
# Options that say nothing about the network or its training here, as the published parser leaves them.
_REST: Mapping[str, Any] = {
    "cuda": True, "device": 0, "num_joints": "", "data_dir": "", "unconstrained": True, "cond_mask_prob": 0.0,
    "emb_trans_dec": False, "learn_sigma": False, "class_cond": False, "use_fp16": False, "lr_method": None,
    "lr_step": None, "lr_gamma": None, "lr_anneal_steps": 0, "log_interval": 1000, "save_interval": 10000,
    "overwrite": False, "train_platform_type": "NoPlatform", "resume_checkpoint": "", "eval_during_training": False,
    "gen_during_training": False, "gen_num_samples": 4, "eval_batch_size": 32, "eval_split": "test",
    "eval_rep_times": 3, "eval_num_samples": 500, "num_frames": 60, "crop_ratio": 3.6,
}  # fmt: skip


def _read_arguments(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"{path}: there is no such file; the published code writes it beside its checkpoints")
    try:
        arguments = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not JSON: {error}") from error
    if not isinstance(arguments, dict) or arguments.get("arch") not in _NETWORK:
        found = arguments.get("arch") if isinstance(arguments, dict) else None
        raise RunError(f"{path}: arch must be one of {', '.join(_NETWORK)}, got {found!r}")
    return arguments


def read_plain(path: Path, what: str) -> Any:
    """What torch.save wrote, without unpickling anything that could run code. Raises RunError where it is no `what`."""
    if not path.is_file():
        raise RunError(f"{path}: there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"{path}: not {what}: {reason}") from error


def checked_state(state: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of tensors that `state` is. Raises RunError where it is none, or a weight is not finite."""
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise RunError(f"{path}: must be a state dict of tensors")
    wrong = [name for name, x in state.items() if not x.is_floating_point() or not bool(x.isfinite().all())]
    if wrong:
        raise RunError(f"{path}: weights must be finite real numbers, which {', '.join(wrong[:3])} is not")
    return {str(name): x.detach().clone() for name, x in state.items()}


def _unsaved(arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What old releases did not write into args.json, from the weights."""
    found: dict[str, Any] = {}
    if arguments["arch"] == "unet":
        first = state.get(_FIRST_WEIGHT["unet"])
        found["conv_1d"] = first is None or first.ndim == 3
        found["use_qna"] = not any(name.endswith(".qkv.weight") for name in state)
        found["use_attention"] = any(".attention." in name or name.endswith(".qkv.weight") for name in state)
    kernels = [x.shape[-1] for name, x in state.items() if name.endswith(".rpe")]
    return {**found, **({"kernel_size": kernels[0]} if kernels else {})}


def _preset_of(arguments: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> Preset:
    architecture = arguments["arch"]
    given = {**_unsaved(arguments, state), **arguments}
    network = {ours: given[name] for name, ours in _NETWORK[architecture].items() if name in given}
    training = {ours: given[name] for name, ours in _TRAINING.items() if name in given}
    small = given.get("sigma_small", True)
    if not isinstance(small, bool):
        raise RunError(f"{path}: sigma_small must be true or false, got {small!r}")
    variance = "fixed_small" if small else "fixed_large"
    try:
        return Preset(architecture, network, variance=variance, **{**PUBLISHED, **training})
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error


def check_state(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str = f"its {ARGUMENTS}") -> None:
    """Raise RunError listing every weight of `what` that the file lacks, has too many of, or has in another shape."""
    wanted = network.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in state]
    wrong += [f"{name} is not of this network" for name in state if name not in wanted]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, must have {tuple(x.shape)}"
        for name, x in wanted.items()
        if name in state and state[name].shape != x.shape
    ]
    if wrong:
        raise RunError(f"{path}: does not fit {what}: " + "; ".join(wrong))


def _motion_path(arguments: Mapping[str, Any], beside: Path, motion: str | os.PathLike[str] | None) -> Path:
    """The file of the clip that the checkpoint was trained on: it holds the skeleton and where motions begin."""
    named = Path(str(arguments.get("sin_path") or ""))
    candidates = [Path(motion)] if motion is not None else [named, beside / named.name] if named.name else []
    for path in candidates:
        if path.is_file():
            return path
    missing = f"{candidates[0]}: there is no such file" if candidates else "args.json names no motion (sin_path)"
    raise RunError(f"{missing}; give the one that the checkpoint was trained on (--motion)")


def import_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    motion: str | os.PathLike[str] | None = None,
    arguments: str | os.PathLike[str] | None = None,
    features: str | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Run:
    """A checkpoint of the published code as a run, which samples, streams and exports as any other.

    Every hyper-parameter comes from args.json, what old releases left out of it from the weights. All weights must be
    there, no other, in the right shapes.

    Args:
        checkpoint: model000019999.pt or the like; nothing in it is unpickled but tensors.
        out: folder of the run; must not exist or be empty.
        motion: the clip it was trained on; default args.json's sin_path, or a file of that name beside the checkpoint.
        arguments: its args.json; default the one beside it.
        features: of a checkpoint on HumanML3D, what it was trained on, which nothing in its files says: "normalised"
            (as the published code means it) or "raw". The run's motions are raw in either case.
        mean, std: (263,) each, those that the motion was normalised with; None where it is raw.

    Returns:
        The run.

    Raises:
        RunError (a ValueError): a file that is missing or damaged, args.json of another architecture, weights that are
        missing, too many or of another shape (all listed), a clip of another number of features, or one that is not
        what `features` says. FileExistsError: out is not empty.
    """
    checkpoint = Path(checkpoint)
    arguments_path = Path(arguments) if arguments is not None else checkpoint.parent / ARGUMENTS
    given = _read_arguments(arguments_path)
    state = checked_state(read_plain(checkpoint, "a state dict of plain tensors"), checkpoint)
    preset = _preset_of(given, state, arguments_path)
    first = state.get(_FIRST_WEIGHT[preset.architecture])
    if first is None or first.ndim < 2:
        raise RunError(f"{checkpoint}: has no weight {_FIRST_WEIGHT[preset.architecture]!r}: of another architecture?")
    size = first.shape[1]
    try:
        with torch.random.fork_rng(devices=[]):
            network = preset.build(size)
    except ValueError as error:
        raise RunError(f"{arguments_path}: {error}") from error
    check_state(network, state, checkpoint)
    path = _motion_path(given, checkpoint.parent, motion)
    layout, clip, normalizer = _learnt_from(given, path, size, features, mean, std)
    if layout.size != size:
        raise RunError(f"{path}: has {layout.size} features as {given.get('dataset')!r}, the checkpoint has {size}")
    number = re.search(r"model(\d+)$", checkpoint.stem)  # a file numbered s holds the weights after s + 1 steps
    step = int(number.group(1)) + 1 if number else preset.steps
    seed = given.get("seed", 10)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RunError(f"{arguments_path}: seed must be an int from 0 to 2**63 - 1, got {seed!r}")
    source = "clip.bvh" if isinstance(clip, Clip) else "clip.npy"
    config = {
        "format": FORMAT,
        "sinmdm": __version__,
        "preset": preset.to_dict(),
        "seed": seed,
        "steps": step,
        "minutes": None,
        "precision": "float32",
        "motion": {"file": source, "source": path.name},
        "layout": layout.to_dict(),
    }
    statistics = {"normalizer.mean": normalizer.mean, "normalizer.std": normalizer.std}
    with filling(out) as folder:
        write_motion(folder / source, clip)
        write_tensors(folder / MODEL, {**statistics, **state}, {"layout": layout_stamp(layout)})
        write_config(folder, config)
    return load(out)


def _learnt_from(
    arguments: Mapping[str, Any], path: Path, size: int, features: str | None, mean: Tensor | None, std: Tensor | None
) -> tuple[Layout, Motion, Normalizer]:
    """The published layout of the clip, the clip at the rate it was trained at, and how the network knows it."""
    dataset, identity = arguments.get("dataset", HUMANML), Normalizer.identity(size)
    if dataset == HUMANML and size == HumanMLLayout().size:
        if features not in FEATURES:
            raise RunError(
                f"{path}: features must say whether it is {' or '.join(FEATURES)}, got {features!r} (--features)"
            )
        motion = read_humanml(path, features == "normalised", mean, std)
        known = identity if mean is None or std is None else Normalizer(mean.float(), std.float())
        return HumanMLLayout(), motion, known
    if features is not None or mean is not None or std is not None:
        raise RunError(f"{path}: features, mean and std are of a humanml checkpoint (263 features), which this is not")
    clip = read_motion(path)
    try:
        if dataset == HUMANML:
            if isinstance(clip, Clip):
                raise ValueError("humanml is an array (frames, 263), not a clip of joints")
            return layout_for(clip), clip, identity
        if not isinstance(clip, Clip):
            raise ValueError(f"{dataset} is a clip of joints (.bvh), not an array")
        thinned = thinned_for(clip, dataset)
        return layout_for(thinned, dataset, arguments.get("repr", "6d")), thinned, identity
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error


def export_checkpoint(run: Run, out: str | os.PathLike[str]) -> Path:
    """A run as the published code reads it: a state dict and its args.json in a new folder.

    Beside those of a run on HumanML3D lies its motion as the network knows it, and Mean.npy and Std.npy where that is
    not raw; to the published code, they must be those of its data set.

    Returns:
        The checkpoint.

    Raises:
        ValueError: the run's network, features or normalisation are not what the published code knows. FileExistsError:
        out is not empty. OSError: it cannot be written.
    """
    preset = run.preset
    if preset.architecture not in _NETWORK:
        raise ValueError(f"architecture must be one of {', '.join(_NETWORK)} to export, got {preset.architecture!r}")
    raw = not bool(run.normalizer.mean.any()) and bool((run.normalizer.std == 1).all())
    if not raw and run.layout.kind != HUMANML:
        raise ValueError("the run was trained on normalised features, which the published code does not know: "
                         "train with the recipe \"published\" (or normalise=False) to export")  # fmt: skip
    dataset = HUMANML if run.layout.kind == "array" else run.layout.kind
    if dataset not in ("mixamo", "bvh_general", HUMANML):
        raise ValueError(f"layout must be mixamo, bvh_general or an array to export, got {run.layout.kind!r}")
    motion = run.folder / ("clip.npy" if dataset == HUMANML else "clip.bvh")
    if run.layout.kind == HUMANML:
        motion = Path(out) / "motion.npy"
    network = preset.arguments()
    arguments = {
        **_REST,
        **{name: network[ours] for name, ours in _NETWORK[preset.architecture].items()},
        **{name: getattr(preset, ours) for name, ours in _TRAINING.items()},
        "arch": preset.architecture,
        "dataset": dataset,
        "repr": getattr(run.layout, "representation", "6d"),
        "sigma_small": preset.variance == "fixed_small",
        "sin_path": str(motion),
        "save_dir": str(out),
        "seed": read_config(run.folder)["seed"],
    }
    name = f"model{max(_steps_of(run) - 1, 0):09d}.pt"
    with filling(out) as folder:
        torch.save(
            OrderedDict((key, x.detach().cpu().clone()) for key, x in run.network.state_dict().items()), folder / name
        )
        (folder / ARGUMENTS).write_text(json.dumps(arguments, indent=4, sort_keys=True) + "\n")
        if run.layout.kind == HUMANML:
            known = {} if raw else {"mean": run.normalizer.mean, "std": run.normalizer.std}
            write_humanml(folder / motion.name, run.layout.encode(run.motion), normalised=not raw, **known)
            for name_of, numbers in known.items():
                write_motion(folder / f"{name_of.capitalize()}.npy", numbers)
    return Path(out) / name


def _steps_of(run: Run) -> int:
    """Steps that the weights were trained for."""
    if (run.folder / CHECKPOINT).is_file():
        return int(read_tensors(run.folder / CHECKPOINT)[1].get("step", 0))
    return int(json.loads((run.folder / "config.json").read_text()).get("steps") or 0)
