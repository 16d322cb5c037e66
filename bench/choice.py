"""kernels/choice.json from measured rows: which of a GPU's two backends is the faster one, for each class of calls."""

import math
from collections import defaultdict
from typing import Any

from sinmdm.kernels import _choice, implementations


def class_of(case: dict) -> str:
    """The class of the calls that a measured case makes."""
    shape = case["shape"]
    elements = math.prod(shape.get(name, 1) for name in "BTCHD")
    columns = 2 * shape["w"] + 1 if "w" in shape else 0
    return _choice.key_of(case["op"], case["dtype"], _choice.shape_class(elements, columns, case["backward"]))


def backends_for(case: dict) -> tuple[str, ...]:
    """The backend that choice.json has for the calls of a measured case, if any."""
    if case["op"] not in implementations():
        return ()
    op, kind, shape = class_of(case).split(" ", 2)
    return _choice.measured(op, _choice.DTYPES[kind][0], shape)


def _milliseconds(case: dict) -> dict[str, float]:
    """Of the two rivals, those that were timed."""
    times = {row["variant"].removeprefix("sinmdm "): row["median_ms"] for row in case["rows"] if row["ours"]}
    return {name: times[name] for name in _choice.RIVALS if times.get(name)}


def table(contents: list[dict]) -> dict[str, Any]:
    """What choice.json holds, from results files; where one case was measured on several GPUs, from the latest.

    Raises ValueError where no case of an op has both backends.
    """
    rows: dict[str, dict[str, dict]] = defaultdict(dict)
    for content in sorted(contents, key=lambda content: content["provenance"]["date"]):
        where = content["provenance"]
        for case in content["cases"] if where["device"] == "cuda" else ():
            times = _milliseconds(case)
            if case["op"] in implementations() and len(times) == len(_choice.RIVALS):
                rows[class_of(case)][case["name"]] = {
                    "case": case["name"],
                    "ms": times,
                    "device": where["gpu"]["name"],
                    "kernels": where["kernel_hash"],
                }
    if not rows:
        raise ValueError("no GPU results with both cuda and triton: run `python -m bench --device cuda` on one")
    choices = {
        name: {"backend": _choice.faster(measured := list(cases.values())), "rows": measured}
        for name, cases in sorted(rows.items())
    }
    return {"format": _choice.FORMAT, "choices": choices}
