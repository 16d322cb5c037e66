"""`python -m bench.metrics`: what it takes to measure one sample against its clip, by three ways of computing the same.

A sample of twice the clip's frames; what comes out is the nearest-window distances both ways and the sample's best
rebuilding, from which coverage and the diversities are read. The ways:

table       the published one (Li et al. 2022, in C++ there): a table of the cost of every piece of the source at every
            place of the target, source^2 x target numbers, then minima over it. Here in numpy, a vector operation for
            each length of a piece, so that nothing waits for Python; each table is made once, where the published
            evaluation makes one for each metric.
reference   window_match in plain PyTorch.
kernel      window_match in C++.

All in float64, each in a process of its own, in turns. They have to agree to 1e-6 before anything is timed. Times are
medians with least and most, memory is the peak of a call beyond what was held before it. The results go to
bench/results as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sinmdm.kernels import window_match

from . import provenance
from .__main__ import ALLOCATOR, FAILED, RESULTS
from .report import write_json
from .timing import cpu_clock, extra_bytes, say

WINDOW = 30
AGREEMENT = 1e-6  # relative
SECONDS = 1.0  # of a way's calls in one turn, of which there is one at least
Found = dict[str, np.ndarray]


def motions(frames: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """(sample, clip), float64 (2 frames, features) and (frames, features): smooth, and the same on every run."""
    random = np.random.default_rng(0)
    steps = random.standard_normal((3 * frames, features)).cumsum(0) / 16
    return steps[frames:] + 0.1 * random.standard_normal((2 * frames, features)), steps[:frames]


def table_bytes(frames: int) -> int:
    """Of the larger table, in float64."""
    return 8 * 2 * frames * (2 * frames + 1) * frames


def group_costs(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(L, L + 1, N): the cost of matching source frames [i, j) to the target's from k on; infinite past its end."""
    length, width = len(source), len(target)
    distances = np.empty((length, width))
    for row, frame in zip(distances, source, strict=True):
        np.sqrt(np.square(frame - target).sum(1), out=row)
    table = np.full((length, length + 1, width), np.inf)
    by_begin, by_end, by_place = table.strides

    def of_length(m: int) -> np.ndarray:
        """A view (L + 1 - m or L, N) of the pieces of m frames, by where they begin."""
        return np.lib.stride_tricks.as_strided(
            table[0, m], (min(length, length + 1 - m), width), (by_begin + by_end, by_place)
        )

    of_length(0)[:] = 0
    for m in range(min(length, width)):
        np.add(of_length(m)[: length - m, : width - m], distances[m:, m:], out=of_length(m + 1)[:, : width - m])
    return table


def by_table(sample: np.ndarray, clip: np.ndarray) -> Found:
    """The published way."""

    def nearest(table: np.ndarray) -> np.ndarray:
        windows = len(table) - WINDOW + 1
        return np.array([table[i, i + WINDOW].min() for i in range(windows)]) / WINDOW

    found = {"clip_to_sample": nearest(group_costs(clip, sample))}
    table = group_costs(sample, clip)
    found["sample_to_clip"] = nearest(table)
    cheapest = table.min(axis=2)
    best = np.full(len(sample) + 1, np.inf)
    best[0] = 0
    for i in range(WINDOW, len(sample) + 1):
        cuts = i - WINDOW + 1
        best[i] = (best[:cuts] + cheapest[:cuts, i]).min()
    return found | {"rebuilding": best[-1:]}


def by_op(backend: str) -> Callable[[np.ndarray, np.ndarray], Found]:
    """window_match with one of its backends."""

    def measure(sample: np.ndarray, clip: np.ndarray) -> Found:
        of_sample, of_clip = torch.from_numpy(sample), torch.from_numpy(clip)
        sample_to_clip, cost = window_match(of_sample, of_clip, window=WINDOW, rebuild=True, backend=backend)
        clip_to_sample = window_match(of_clip, of_sample, window=WINDOW, backend=backend)
        found = {"clip_to_sample": clip_to_sample[0], "sample_to_clip": sample_to_clip[0], "rebuilding": cost}
        return {name: values.numpy() for name, values in found.items()}

    return measure


WAYS = {"table": by_table, "reference": by_op("reference"), "kernel": by_op("cpu")}


def worker(way: str, frames: int, features: int, timed: bool) -> dict[str, Any]:
    """What a process of its own finds: values, or seconds of each call and extra bytes of one."""
    inputs = motions(frames, features)
    if not timed:
        return {name: values.tolist() for name, values in WAYS[way](*inputs).items()}

    def call() -> tuple[()]:
        WAYS[way](*inputs)
        return ()

    extra = extra_bytes(call, "cpu")  # of the first call, which warms up for the others
    seconds = [cpu_clock(call)]
    while sum(seconds) < SECONDS:
        seconds.append(cpu_clock(call))
    return {"seconds": seconds, "extra_bytes": extra}


def in_a_process(way: str, arguments: argparse.Namespace, timed: bool) -> dict[str, Any]:
    """`worker`'s findings. Raises RuntimeError where the process fails."""
    command = [sys.executable, "-m", "bench.metrics", "--worker", way, "--frames", str(arguments.frames),
               "--features", str(arguments.features)]  # fmt: skip
    said = subprocess.run(
        [*command, *(["--timed"] if timed else [])], cwd=provenance.ROOT, capture_output=True, text=True,
        env=os.environ | ALLOCATOR,
    )  # fmt: skip
    if said.returncode != 0:
        lines = said.stderr.strip().splitlines() or [f"the process ended with {said.returncode}"]
        raise RuntimeError(f"{way}: {lines[-1]}")
    return json.loads(said.stdout)


def largest_difference(found: dict[str, Any], other: dict[str, Any]) -> float:
    """Relative, of any of the values; infinite where one is not finite."""
    differences = [0.0]
    for name, values in other.items():
        x, y = np.array(found[name]), np.array(values)
        difference = np.abs(x - y).max() / np.abs(y).max() if x.shape == y.shape else np.inf
        differences.append(float(difference) if np.isfinite(difference) else np.inf)
    return max(differences)


def main(argv: list[str] | None = None) -> int:
    """Agree, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.metrics", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--frames", type=int, default=600, help="of the clip; the sample has twice as many (default 600)"
    )
    parser.add_argument("--features", type=int, default=144, help="of a frame (default 144)")
    parser.add_argument("--turns", type=int, default=5, help="of the ways, a process each (default 5)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.frames < 2 * WINDOW or arguments.features < 1 or arguments.turns < 1:
        parser.error(f"--frames must be at least {2 * WINDOW}, --features and --turns at least 1")
    if arguments.worker:
        print(json.dumps(worker(arguments.worker, arguments.frames, arguments.features, arguments.timed)))
        return 0
    say(f"the larger table holds {table_bytes(arguments.frames) / 1e9:.2f} GB")
    found = {way: in_a_process(way, arguments, timed=False) for way in WAYS}
    differences = {way: largest_difference(values, found["table"]) for way, values in found.items() if way != "table"}
    if not max(differences.values()) <= AGREEMENT:
        say(f"relative differences from the table are {differences}, {AGREEMENT} is allowed: nothing is timed")
        return FAILED
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    memory: dict[str, list[int]] = {way: [] for way in WAYS}
    for turn in range(arguments.turns):
        for way in WAYS:
            say(f"turn {turn + 1} of {arguments.turns}: {way}")
            measured = in_a_process(way, arguments, timed=True)
            seconds[way] += measured["seconds"]
            memory[way] += [] if measured["extra_bytes"] is None else [measured["extra_bytes"]]
    rows = {
        way: {
            "seconds": {"median": float(np.median(s)), "least": min(s), "most": max(s), "calls": len(s)},
            "extra_bytes": int(np.median(memory[way])) if memory[way] else None,
        }
        for way, s in seconds.items()
    }
    results = {
        "case": f"clip of {arguments.frames} frames, sample of {2 * arguments.frames}, {arguments.features} features, "
        f"window {WINDOW}, float64",
        "table_bytes": table_bytes(arguments.frames),
        "differences": differences,
        "ways": rows,
    }
    print(json.dumps(results, indent=2))
    where = provenance.collect("cpu")
    write_json(arguments.output / f"metrics-{arguments.frames}.json", {"provenance": where, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
