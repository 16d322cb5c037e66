"""What the commands have in common: types of arguments, and the bar of sampling."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from tqdm import tqdm


class Command(Protocol):
    """Adds a command: its parser, whose arguments the caller adds."""

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace], None], description: str
    ) -> argparse.ArgumentParser: ...


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) < high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high - 1}, got {text!r}")
        return int(text)

    return parse


count, seed = whole(1, 2**31), whole(0, 2**64)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def steps(text: str) -> int | list[int]:
    return [whole(0, 2**31)(t) for t in text.removesuffix(",").split(",")] if "," in text else count(text)


def add_common(sub: argparse.ArgumentParser) -> None:
    """The options that every command which computes has."""
    sub.add_argument("--seed", type=seed, help="default 0")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def add_device(sub: argparse.ArgumentParser) -> None:
    """Where to compute."""
    sub.add_argument("--device", help="default: cuda where torch sees it, else cpu")


def add_sampler(sub: argparse.ArgumentParser) -> None:
    """How to sample."""
    from ..diffusion import SAMPLERS, SPACINGS

    sub.add_argument("--sampler", choices=SAMPLERS, default="ddpm")
    sub.add_argument("--steps", type=steps, help="timesteps to visit (default all): how many, or a list: 90,60,30,0")
    sub.add_argument("--spacing", choices=SPACINGS, default="trailing", help="of --steps timesteps")
    sub.add_argument("--eta", type=share, help="of ddim: 0 (default) to 1, the share of fresh noise")


def steps_bar(quiet: bool, description: str) -> tuple[AbstractContextManager[object], Callable[[int, int], None]]:
    """A bar that appears with its first step, so that errors before it stand alone; and its `on_step`."""
    shown = ExitStack()
    bar: tqdm | None = None

    def on_step(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = shown.enter_context(tqdm(desc=description, unit="step", total=total, disable=quiet))
        bar.update(done - bar.n)

    return shown, on_step
