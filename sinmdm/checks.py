"""Checks of arguments, each by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options of the published command line's model group that do nothing in either network. A network ignores these, and
# those of the other network.
_WITHOUT_EFFECT = ("cond_mask_prob", "unconstrained", "emb_trans_dec", "learn_sigma", "class_cond", "use_fp16", "arch")


def check_ignored(given: Mapping[str, Any], *others: str) -> None:
    """Raise TypeError for an argument that the published network does not know either."""
    for name in given:
        if name not in (*_WITHOUT_EFFECT, *others):
            raise TypeError(f"unexpected argument {name!r}")


def check_at_least(least: int, **sizes: int) -> None:
    """Raise ValueError, by name, unless each is an int of `least` or more."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int >= {least}, got {value!r}")


def check_probability(**probabilities: float) -> None:
    """Raise ValueError, by name, unless each is in [0, 1)."""
    for name, value in probabilities.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")
