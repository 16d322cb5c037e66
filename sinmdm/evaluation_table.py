"""What the measures of an evaluation are, the rows that hold them, and their two forms: a table and JSON."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from .metrics import energy
from .motion.rigs import MIXAMO_JOINTS

MAX_FPS = 30
WINDOW = 30
SHORT_WINDOW = 15
STRICT_THRESHOLD = 1.0
PUBLISHED_THRESHOLD = 2.0  # also where the curve of coverage ends
CURVE_STEPS = 10  # of the curve in a scale
TABLE_WIDTH = 120


class Measure(NamedTuple):
    """A column: its heading in two lines, the format of its numbers, and what they are."""

    heading: tuple[str, str]
    digits: str
    definition: str


_SCALE = f"sqrt(joints / {len(MIXAMO_JOINTS)}), of an array half the root of its features' summed variances"
MEASURES = {
    "coverage_strict": Measure(
        ("coverage", "< {:.3g}"), ".1%",
        f"share of the clip's {WINDOW}-frame windows whose nearest sample window lies at a mean frame distance below "
        f"{STRICT_THRESHOLD} times the scale; the last window is left out. The scale is {_SCALE}",
    ),
    "coverage_published": Measure(
        ("coverage", "< {:.3g}"), ".1%",
        f"the same, below {PUBLISHED_THRESHOLD} scales: the published threshold, which was set for 168 features; the "
        "24 of them that are of foot contacts are left out here, so that more is covered than by the published "
        "measure (a real dance by its own mean pose: 97.7 % in place of 86.3 %)",
    ),
    "coverage_area": Measure(
        ("coverage", "area"), ".1%",
        f"mean of coverage over all thresholds from 0 to {PUBLISHED_THRESHOLD} scales: 1 is a copy",
    ),
    "clip_to_sample": Measure(
        ("clip to", "sample"), ".2f",
        f"mean over the clip's {WINDOW}-frame windows of the mean frame distance to the nearest sample window: what "
        "the sample leaves out",
    ),
    "sample_to_clip": Measure(
        ("sample", "to clip"), ".2f",
        "the same from the sample's windows to the clip's: what the sample invents",
    ),
    "global_diversity": Measure(
        ("global", "diversity"), ".2f",
        f"mean frame distance of the sample to its best rebuilding from pieces of the clip of {WINDOW} frames or more: "
        "0 is a copy",
    ),
    "local_diversity": Measure(
        ("local", "diversity"), ".2f",
        f"mean over the sample's {SHORT_WINDOW}-frame windows of the mean frame distance to the nearest window of the "
        "clip; the last window is left out: 0 is a copy",
    ),
    "harmonic_mean": Measure(
        ("harmonic", "mean"), ".3f",
        "of three shares: coverage below the scale, global diversity in scales (at most 1), and the smaller of energy "
        "and its inverse; 0 where one of them is. Ours: the published one is of three measures of HumanML3D",
    ),
    "inter_diversity": Measure(
        ("inter", "diversity"), ".3f",
        "Frobenius norm of the difference to the row's sample before it of the same length (of the first to the last), "
        "divided by the frames; of no use between lengths. Only where there are two of one length",
    ),
    "intra_diversity": Measure(
        ("intra", "diversity"), ".3f",
        f"the same between two random {SHORT_WINDOW}-frame windows of one sample, drawn from the published seed",
    ),
    "intra_diversity_difference": Measure(
        ("intra", "difference"), ".3f",
        "how far intra diversity is from that of two random windows of the clip, absolute",
    ),
    "energy": Measure(
        ("", "energy"), ".2f",
        "mean norm of the second difference over frames, divided by the clip's: 0 is frozen, 1 moves as the clip",
    ),
    "foot_sliding": Measure(
        ("foot", "sliding"), ".3f",
        "mean horizontal speed of the clip's feet while they touch the ground (are low and slow; HumanML3D features "
        "say when), in reaches a second; the reach is the length of the longest way from the root to a joint",
    ),
    "distribution": Measure(
        ("distri-", "bution"), ".3f",
        "Wasserstein-1 distance of a feature's values in the sample to those in the clip, their order aside, mean over "
        "the features",
    ),
}  # fmt: skip
DEFINITIONS = {key: measure.definition for key, measure in MEASURES.items()} | {
    "coverage_curve": f"(JSON) coverage below thresholds of 0, {1 / CURVE_STEPS}, ... {PUBLISHED_THRESHOLD} scales, "
    "mean over the samples",
    "distribution_parts": "(JSON) distribution by joint, the mean over its six features (of an array by feature), and "
    "the same distance of the root's speed over the ground, in reaches a second, and of its height, in reaches",
}
# What a training is watched by.
MAIN = ("coverage_strict", "coverage_area", "clip_to_sample", "sample_to_clip", "global_diversity", "energy")
COVERAGES = {"coverage_strict": STRICT_THRESHOLD, "coverage_published": PUBLISHED_THRESHOLD}


class Spread(TypedDict):
    """Mean over a row's samples and population standard deviation, None where there is but one sample."""

    mean: float
    std: float | None


class Part(Spread):
    """A spread of one part of the motion: a joint, the root's speed or height, or a feature of an array."""

    name: str


class Curve(TypedDict):
    """Coverage (fractions) over its thresholds."""

    thresholds: list[float]
    values: list[float]


class Row(TypedDict):
    """One row of the table.

    frames: of each sample. thresholds: of both coverages. values: a spread for each measure that the row has, by its
    key in MEASURES.
    """

    name: str
    frames: list[int]
    thresholds: dict[str, float]
    values: dict[str, Spread]
    coverage_curve: Curve
    distribution_parts: list[Part]


def format_table(rows: Sequence[Row], width: int = TABLE_WIDTH) -> str:
    """The table as aligned plain text: a line a row, mean ± deviation where a row has more than one sample.

    As many columns as fit in `width` stand side by side, the others below, each time with the rows' names. Coverage is
    in percent, with its threshold in the heading; '-' stands for what a row does not have and for a number that is not
    finite. A measure that no row has gets no column.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one row, not 0")
    columns = [([heading.format(rows[0]["thresholds"].get(key)) for heading in measure.heading],
                [_cell(row["values"].get(key), measure.digits) for row in rows])
               for key, measure in MEASURES.items() if any(key in row["values"] for row in rows)]  # fmt: skip
    return format_columns([row["name"] for row in rows], columns, width)


def format_columns(
    rows: Sequence[str], columns: Sequence[tuple[Sequence[str], Sequence[str]]], width: int = TABLE_WIDTH
) -> str:
    """Rows' names and columns, each a heading of two lines and a cell a row, as aligned plain text like the table."""
    names = _aligned(["", ""], rows, str.ljust)
    blocks = [[names]]
    for column in (_aligned(heading, cells, str.rjust) for heading, cells in columns):
        if len(blocks[-1]) > 1 and sum(len(other[0]) + 2 for other in blocks[-1]) + len(column[0]) > width:
            blocks.append([names])
        blocks[-1].append(column)
    return "\n\n".join("\n".join("  ".join(line) for line in zip(*block, strict=True)) for block in blocks)


def format_definitions() -> str:
    """DEFINITIONS as plain text, a line or more each, in 120 columns."""
    indent = " " * (max(map(len, DEFINITIONS)) + 2)
    return "\n".join(
        textwrap.fill(f"{key:<{len(indent)}}{definition}", TABLE_WIDTH, subsequent_indent=indent)
        for key, definition in DEFINITIONS.items()
    )


def to_json(rows: Sequence[Row], clip: Tensor) -> dict[str, Any]:
    """What `json.dumps` takes: the rows, the definitions, and of the clip (frames, features) its frames and energy.

    Coverage is a fraction. A number that is not finite is None, as JSON has none.
    """
    document = {
        "definitions": dict(DEFINITIONS),
        "window": WINDOW,
        "clip": {"frames": len(clip), "energy": energy(clip).item()},
        "rows": list(rows),
    }
    return finite(document)


def spread_of(values: Iterable[float]) -> Spread:
    """Of a row's samples, one or more."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return {"mean": tensor.mean().item(), "std": tensor.std(correction=0).item() if len(tensor) > 1 else None}


def _aligned(heading: Sequence[str], cells: Sequence[str], align: Any) -> list[str]:
    width = max(map(len, [*heading, *cells]))
    return [align(cell, width) for cell in [*heading, *cells]]


def _cell(value: Spread | None, digits: str) -> str:
    if value is None or not math.isfinite(value["mean"]):
        return "-"
    mean, std = f"{value['mean']:{digits}}", value["std"]
    if std is None:
        return mean
    return f"{mean} ± {std:{digits}}" if math.isfinite(std) else f"{mean} ± -"


def finite(document: Any) -> Any:
    """The document with None for every number that is not finite."""
    if isinstance(document, dict):
        return {key: finite(value) for key, value in document.items()}
    if isinstance(document, list):
        return [finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
