"""Which of a GPU's two backends a default call takes: the one that was measured to be faster on calls of its class.

choice.json is written by `python -m bench --update-choice` alone, from the results of GPU runs. A class that it does
not have takes the order of _dispatch.DEFAULTS.
"""

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from . import _native

HERE = Path(__file__).resolve().parent
FILE = HERE / "choice.json"
FORMAT = 1
RIVALS = ("cuda", "triton")
LARGE = 2**20  # elements of the main input, from which on memory and arithmetic cost more than a launch does
NARROW = 33  # keys that a query sees, up to which the attentions cut their tiles another way: 16 each side
DTYPES = {"half": ("float16", "bfloat16"), "float32": ("float32",), "float64": ("float64",)}
SHAPES = tuple(
    f"{direction} {size}{width}"
    for direction in ("forward", "backward")
    for size in ("small", "large")
    for width in ("", " narrow", " wide")
)
SUFFIXES = (".py", ".cpp", ".cu", ".h")

Class = tuple[str, str, str]  # op, dtype, one of SHAPES


def shape_class(elements: int, columns: int, differentiated: bool) -> str:
    """The one of SHAPES that a call belongs to.

    elements: of the main input. columns: keys that a query sees, 0 for an op without a window. differentiated: whether
    there will be a backward, which runs on the backend of its forward.
    """
    direction = "backward" if differentiated else "forward"
    size = "large" if elements >= LARGE else "small"
    width = "" if columns == 0 else " narrow" if columns <= NARROW else " wide"
    return f"{direction} {size}{width}"


def key_of(op: str, dtype: str, shape: str) -> str:
    """The name of a class in choice.json, such as "window_attention half forward large narrow"."""
    kind = next(kind for kind, dtypes in DTYPES.items() if dtype in dtypes)
    return f"{op} {kind} {shape}"


def faster(rows: list[dict[str, Any]]) -> str:
    """The backend of the smaller geometric mean of milliseconds; the first of RIVALS where they are equal."""
    return min(RIVALS, key=lambda name: math.fsum(math.log(row["ms"][name]) for row in rows))


def entries() -> dict[str, dict[str, Any]]:
    """Class name -> {"backend", "rows": [{"case", "ms": {backend: milliseconds}, "device", "kernels"}]} of choice.json.

    Raises ValueError where the file is not what the benchmark writes.
    """
    try:
        content = json.loads(FILE.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        choices: dict[str, dict[str, Any]] = content["choices"]
        for name, entry in choices.items():
            _check(name, entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{FILE.name} is no table of measured choices ({type(error).__name__}: {error}); "
            "restore it, or write it anew with `python -m bench --update-choice`"
        ) from error
    return choices


def _check(name: str, entry: dict[str, Any]) -> None:
    _, kind, shape = name.split(" ", 2)
    if kind not in DTYPES or shape not in SHAPES:
        raise ValueError(f"there is no class {name!r}")
    for row in entry["rows"]:
        if not all(isinstance(row[word], str) for word in ("case", "device", "kernels")):
            raise ValueError(f"{name}: case, device and kernels must be strings")
        if not all(0 < row["ms"][rival] < math.inf for rival in RIVALS):
            raise ValueError(f"{name}: {row['ms']!r} are no milliseconds of {' and '.join(RIVALS)}")
    if not entry["rows"] or entry["backend"] != faster(entry["rows"]):
        raise ValueError(f"{name}: {entry['backend']!r} is not what its rows say")


@cache
def _table() -> dict[Class, tuple[str]]:
    table: dict[Class, tuple[str]] = {}
    for name, entry in entries().items():
        op, kind, shape = name.split(" ", 2)
        table |= {(op, dtype, shape): (entry["backend"],) for dtype in DTYPES[kind]}
    return table


def measured(op: str, dtype: str, shape: str) -> tuple[str, ...]:
    """The faster backend of a class, or nothing where it was not measured."""
    return _table().get((op, dtype, shape), ())


def report() -> dict[str, str]:
    """Class name -> the backend that is taken, on what it was measured, and whether that was with other kernels."""
    today = kernel_hash(HERE, _native.source_folder())
    said = {}
    for name, entry in sorted(entries().items()):
        devices = ", ".join(sorted({row["device"] for row in entry["rows"]}))
        stale = any(row["kernels"] != today for row in entry["rows"])
        said[name] = f"{entry['backend']}, measured on {devices}" + (" (stale)" if stale else "")
    return said


def kernel_hash(kernels: Path, csrc: Path) -> str:
    """Hash of all that decides how fast an op is: the sources under these two folders, wherever they are installed."""
    digest = hashlib.sha256()
    for name, folder in (("kernels", kernels), ("csrc", csrc)):
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES and (name == "csrc" or csrc not in path.parents):
                digest.update(f"{name}/{path.relative_to(folder).as_posix()}".encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
