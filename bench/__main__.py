"""`python -m bench`: gate, time, and write down. Run it from the root of the checkout, on a machine that is idle."""

import argparse
import dataclasses
import os
import re
import sys
import time
from pathlib import Path

import torch

from sinmdm.kernels import _choice

from . import floor, provenance, registry, report, timing
from .case import Variant
from .timing import say

BUDGET = {"cpu": 2.0, "cuda": 1.0}  # seconds of timing for a case, beside its gate
QUICK_BUDGET = 0.5
# So that a run on a GPU ends within ten minutes however long the peers compile: what is left after seven takes two
# seconds a case.
MINUTES = {"cpu": float("inf"), "cuda": 7.0}
RESULTS = provenance.ROOT / "bench" / "results"
# glibc gives a large block back to the system as soon as it is freed, and its pages fault in again on every call. With
# these it keeps them, for everybody alike, which is what a process that reuses its buffers sees.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}

FAILED, USAGE = 1, 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure every op against its peers and the machine's floor. Exits with 1 where a gate fails.",
    )
    parser.add_argument("--filter", metavar="SUBSTR", help="only cases whose name contains this")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--quick", action="store_true", help="few cases, short, nothing that compiles for seconds")
    parser.add_argument(
        "--minutes", metavar="M", type=float,
        help="after so many, leave out peers that compile for seconds and time the rest briefly "
        "(default: 7 on cuda, no limit on cpu)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="DIR", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument(
        "--update-readme", action="store_true", help="rewrite README.md's table from the results; measures nothing"
    )
    parser.add_argument(
        "--update-choice",
        action="store_true",
        help="rewrite kernels/choice.json, by which calls on a GPU choose their backend, from the results of GPUs; "
        "measures nothing",
    )
    parser.add_argument("--list", action="store_true", help="list the cases, and what is stale or not measured")
    return parser


def _stored(folder: Path, device: str) -> dict[str, str]:
    """Case name -> "fresh" or "stale", of the full results for a kind of device."""
    states: dict[str, str] = {}
    for content in report.load_results(folder):
        if content["provenance"]["device"] == device:
            state = "stale" if provenance.is_stale(content["provenance"]) else "fresh"
            states |= {case["name"]: state if case["status"] == "ok" else "FAILED" for case in content["cases"]}
    return states


def _list(cases: tuple[registry.Case, ...], folder: Path, device: str) -> None:
    states = _stored(folder, device)
    for case in cases:
        others = "; ".join(peer.name for peer in case.peers)
        print(f"{case.name:48}{states.get(case.name, 'not measured'):14}against {others}")
    if device == "cuda":
        for name, backend in _choice.report().items():
            print(f"chosen for {name}: {backend}")


def file_stem(device: str, quick: bool, filter_: str | None) -> str:
    """`<device>-<case set>`, the name of a results file without its ending."""
    parts = [provenance.device_slug(device), "quick" if quick else "full"]
    if filter_ is not None:
        parts.insert(1, re.sub(r"[^A-Za-z0-9_]+", "-", filter_).strip("-"))
        parts[2:] = ["quick"] if quick else ["part"]  # only a whole set may end in "full"
    return "-".join(parts)


def _left_out(variant: Variant, minutes: float) -> Variant:
    reason = f"left out: compiles for seconds, and the run had taken {minutes:g} minutes"
    return dataclasses.replace(variant, declines=lambda case, device: reason)


def _measure(cases: tuple[registry.Case, ...], arguments: argparse.Namespace) -> int:
    device, begin = arguments.device, time.perf_counter()
    where = provenance.collect(device)
    busy = where["load_average"]
    if busy is not None and busy > 0.5 * where["cpu"]["usable_cpus"]:
        say(f"note: the machine has been busy (load average {busy}); the figures will be noisy")
    say("measuring the floor")
    ground = floor.measure(device, repeats=4 if arguments.quick else 10)
    measured = []
    settings = {"case_set": "quick" if arguments.quick else "full", "filter": arguments.filter, "device": device}
    budget = settings["budget_s"] = QUICK_BUDGET if arguments.quick else BUDGET[device]
    minutes = MINUTES[device] if arguments.minutes is None else arguments.minutes
    print(report.head_text(report.document([], ground, where, settings)))
    for number, case in enumerate(cases, 1):
        say(f"[{number}/{len(cases)}, {time.perf_counter() - begin:.0f} s] {case.name}")
        variants = tuple(v for v in registry.variants(case, device) if not (arguments.quick and v.slow_start))
        if time.perf_counter() - begin > 60 * minutes:
            variants = tuple(_left_out(v, minutes) if v.slow_start else v for v in variants)
            budget = QUICK_BUDGET
        result = timing.run(case, variants, device, budget)
        measured.append(report.to_json(result, ground))
        print("\n" + report.case_text(measured[-1]), flush=True)
    settings["seconds"] = round(time.perf_counter() - begin)
    content = report.document(measured, ground, where, settings)
    print("\n" + "\n".join(content["summary"]), flush=True)
    stem = file_stem(device, arguments.quick, arguments.filter)
    path = arguments.output / f"{stem}.json"
    report.write_json(path, content)
    say(f"wrote {path.name}")
    without = report.plot(measured, arguments.output / f"{stem}.png")
    say(f"no plot: {without}" if without else f"wrote {stem}.png")
    failed = [case["name"] for case in measured if case["status"] == "FAILED"]
    if failed:
        say(f"FAILED: {', '.join(failed)}")
    return FAILED if failed else 0


def main(arguments_given: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(arguments_given)
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output: {arguments.output} is not a folder")
    if arguments.update_readme or arguments.update_choice:
        option = "--update-readme" if arguments.update_readme else "--update-choice"
        if arguments.filter or arguments.quick or arguments.list:
            parser.error(f"{option} measures nothing: give it alone, or with --output")
        try:
            contents = report.load_results(arguments.output)
            # The table of the README names the backend that is chosen.
            written = {}
            if arguments.update_choice:
                written["choice.json"] = report.update_choice(_choice.FILE, contents)
            if arguments.update_readme:
                written["README.md"] = report.update_readme(provenance.ROOT / "README.md", report.markdown(contents))
        except (OSError, ValueError) as error:
            parser.error(f"{option}: {error}")
        for name, changed in written.items():
            say(f"{name} is " + ("updated" if changed else "as it should be"))
        return 0
    cases = registry.select(arguments.filter, arguments.device, arguments.quick)
    if not cases:
        among = ", ".join(case.name for case in registry.select(None, arguments.device, arguments.quick))
        parser.error(f"--filter: no case contains {arguments.filter!r}; there are {among}")
    if arguments.list:
        _list(cases, arguments.output, arguments.device)
        return 0
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    return _measure(cases, arguments)


if __name__ == "__main__":
    if any(name not in os.environ for name in ALLOCATOR) and sys.platform == "linux":
        # The variables are read when the process starts; a user's own setting wins.
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], {**ALLOCATOR, **os.environ})
    sys.exit(main())
