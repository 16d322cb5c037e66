"""Files of HumanML3D features: whether they are raw or normalised, which nothing in them says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypedDict

from torch import Tensor


class Said(TypedDict):
    """What `sinmdm.motion.read_humanml` takes beside the file."""

    normalised: bool
    mean: Tensor | None
    std: Tensor | None


def add_features(sub: argparse.ArgumentParser) -> None:
    """--features, --mean and --std; `said` reads them."""
    sub.add_argument("--features", choices=("raw", "normalised"), help="of humanml: what the file holds")
    add_statistics(sub)


def add_statistics(sub: argparse.ArgumentParser) -> None:
    """--mean and --std."""
    sub.add_argument("--mean", type=Path, metavar="FILE", help="Mean.npy, by which HumanML3D features are normalised")
    sub.add_argument("--std", type=Path, metavar="FILE", help="Std.npy, likewise")


def said(arguments: argparse.Namespace) -> Said | None:
    """What is said of the file, None where nothing is. Raises: ValueError where it does not go together."""
    from ..motion import read_statistics

    given = arguments.mean is not None, arguments.std is not None
    if arguments.features == "normalised":
        if not all(given):
            raise ValueError("--features normalised needs --mean and --std: those that the file was normalised with")
        return {"normalised": True, "mean": read_statistics(arguments.mean), "std": read_statistics(arguments.std)}
    if any(given):
        raise ValueError("--mean and --std are of --features normalised")
    return {"normalised": False, "mean": None, "std": None} if arguments.features == "raw" else None
