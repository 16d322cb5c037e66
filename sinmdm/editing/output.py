"""The files of an edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..motion import RESULTS, Results, write_motion
from ..run import Run, sample_files, write_text
from .edit import Edit, decoded, features
from .report import report

REPORT = "edit.json"


def write_edit(
    folder: Path,
    run: Run,
    edit: Edit,
    n: int = 1,
    *,
    said: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Make `n` motions of an edit and write them to an existing folder.

    Leaves sample00.bvh (.npy for a run on an array), ..., results.npz with their joint positions and which of them were
    given, and edit.json: how well the given parts and places were kept, and how smooth the seams are.

    Args:
        said: what was asked for, as JSON takes it, for edit.json.
        seed, options: as `apply`.

    Returns:
        What edit.json says of each motion.

    Raises:
        ValueError: an argument that is not as above. OSError: a file cannot be written.
    """
    reports, places = [], []
    for file, x in zip(sample_files(folder, n, edit.layout), features(run, edit, n, seed=seed, **options), strict=True):
        motion = decoded(edit, x)
        write_motion(file, motion)
        reports.append({"file": file.name, **report(edit, x, motion, run.motion)})
        if edit.layout.hierarchy is not None:
            places.append(edit.layout.placer()(motion).numpy().astype(np.float32))
    if edit.layout.hierarchy is not None and edit.layout.frame_time is not None:
        given = np.broadcast_to(edit.given, (n, *edit.given.shape))
        Results(
            np.stack(places), np.full(n, len(edit)), *edit.layout.hierarchy, edit.layout.frame_time,
            tuple(Path(each["file"]).stem for each in reports), given,
        ).write(folder / RESULTS)  # fmt: skip
    written = {**(said or {}), "seed": seed, "frames": len(edit), "motions": reports}
    write_text(folder / REPORT, json.dumps(written, indent=2, allow_nan=False) + "\n")
    return reports
