"""An honest clock. A case is gated before it is timed: where a variant's numbers are wrong, nobody is timed.

The clock: variants take turns, round after round, so that a slow minute of the machine hits all of them; every call is
timed by itself and the median is reported with the 20th and 80th percentile. On the CPU the caches stay as the turn
before left them; on a GPU the second-level cache is swept before each call, and the time is the device's own.
"""

import ctypes
import gc
import math
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sinmdm.kernels import BackendError

from .case import Case, Inputs, Variant

OURS_FACTOR, OURS_SLACK = 1.5, 1e-7  # times the error of plain PyTorch in the same dtype, plus this
SIGMAS = 6.0  # by how many standard errors a moment of somebody else's noise may be off
MOST_ROUNDS = 10
LEAST_SAMPLES = 3
LEAST_OF_FAST = 9  # samples of a call faster than SLOW
SLOW = 0.1  # seconds
MOST_REPEATS = 100  # of one variant in one round
SWEPT_BYTES = 256 * 2**20  # more than any second-level cache

Call = Callable[[], tuple[Tensor | None, ...]]


@dataclass
class Row:
    """What came out for one variant. status: "ok", "unavailable" (see reason) or "FAILED"; times in seconds."""

    variant: str
    ours: bool = False
    computes: str = ""
    status: str = "ok"
    reason: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    samples: int = 0
    extra_bytes: int | None = None


@dataclass
class Result:
    """What came out for one case; `ok` is False where the gate failed, and then no row has a time."""

    case: Case
    rows: list[Row]

    @property
    def ok(self) -> bool:
        return all(row.status != "FAILED" for row in self.rows)


def make_inputs(case: Case, device: str) -> Inputs:
    """The case's tensors, the same on every run and device."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    return {name: tensor.to(device) for name, tensor in case.op.inputs(case, generator).items()}


def prepare(case: Case, variant: Variant, inputs: Inputs) -> Call:
    """The variant's set-up, done; the returned function is what the clock sees: (out, *gradients).

    A forward case's inputs need no gradient, so that no graph is made; `run` also has the clock under no_grad.
    """
    own = {name: variant.into(case, name, tensor) for name, tensor in inputs.items()}
    if not case.backward:
        function = variant.build(case, own)

        return lambda: (function(own),)

    leaves = [own[name].detach().requires_grad_() for name in case.op.differentiable]
    own |= dict(zip(case.op.differentiable, leaves, strict=True))
    function = variant.build(case, own)

    def forward_backward() -> tuple[Tensor, ...]:
        out = function(own)
        # What computes something else may do without an input (a bias), and then has no gradient for it.
        gradients = torch.autograd.grad(out, leaves, own["grad_out"], allow_unused=bool(variant.computes))
        return (out.detach(), *gradients)

    return forward_backward


def exact_outputs(case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """(out, *gradients) in float64."""
    doubled = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    return tuple(x for x in prepare(case, Variant("exact", case.op.exact), doubled)() if x is not None)


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Relative Frobenius error; infinite where the shape is another or a number is not finite."""
    if result.shape != exact.shape:
        return math.inf
    norm = float(exact.norm())
    error = float((result.double() - exact).norm()) / (norm or 1.0)
    return error if math.isfinite(error) else math.inf


def implausible(results: dict[str, Tensor | None], exact: dict[str, Tensor]) -> str | None:
    """What is wrong on the face of the results of something that computes another function; None where nothing is."""
    for name, x in results.items():
        if x is None and name != "out":
            continue
        if x is None or x.shape != exact[name].shape:
            return f"{name} has another shape"
        if not bool(x.isfinite().all()):
            return f"{name} is not finite"
    return None


def half_the_digits(dtype: torch.dtype) -> float:
    """The square root of a dtype's rounding: two right ways of computing in it agree better than this."""
    return math.sqrt(torch.finfo(dtype).eps)


def law_error(normals: Tensor) -> str | None:
    """What is not standard normal about `normals`, by their mean, variance and fourth moment; None where all is."""
    z = normals.flatten().double()
    standard_error = SIGMAS / math.sqrt(z.numel())
    for name, moment, expected, spread in (
        ("mean", z.mean(), 0, 1),
        ("variance", z.square().mean(), 1, math.sqrt(2)),
        ("fourth moment", z.pow(4).mean(), 3, math.sqrt(96)),
    ):
        if not abs(float(moment) - expected) <= spread * standard_error:
            return f"its noise has {name} {float(moment):.4g}, not {expected}"
    return None


def _complaint(case: Case, variant: Variant, errors: dict[str, float], yardstick: dict[str, float]) -> str | None:
    """Why the errors are too large, or None."""
    for name, error in errors.items():
        allowed = half_the_digits(case.torch_dtype)
        if variant.ours:
            allowed = min(allowed, OURS_FACTOR * yardstick.get(name, allowed) + OURS_SLACK)
        if not error <= allowed:
            return f"{name} is off by {error:.2g}, {allowed:.2g} is allowed"
    return None


def gate(case: Case, variants: tuple[Variant, ...], inputs: Inputs, device: str) -> tuple[list[Row], dict[str, Call]]:
    """A row for each variant, errors filled in, and the prepared calls of those that are right.

    Errors are relative Frobenius ones against float64. Everybody must be right to half of the dtype's digits; ours
    must moreover be within 1.5 times the error of plain PyTorch in that dtype (our reference or the baseline, whichever
    is worse) plus 1e-7. Noise that is not ours is held to the moments of a standard normal instead, and what computes
    another function to its shape and to being finite.
    """
    reasons = [variant.declines(case, device) for variant in variants]
    # Where nobody takes the case, what it needs may be missing for the exact result, too.
    exact = dict(zip(case.outputs, exact_outputs(case, inputs), strict=True)) if None in reasons else {}
    rows, calls = [], {}
    for variant, reason in zip(variants, reasons, strict=True):
        row = Row(variant.name, variant.ours, variant.computes)
        rows.append(row)
        if reason is not None:
            row.status, row.reason = "unavailable", reason
            continue
        try:
            call = prepare(case, variant, inputs)
            results = call()
        except BackendError as error:
            row.status, row.reason = "unavailable", str(error)
            continue
        except Exception as error:
            # A compiler that a peer needs may be missing here; a failure of ours is a failure.
            row.status = "FAILED" if variant.ours else "unavailable"
            row.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        named = {
            name: None if x is None else variant.back(case, name, x)
            for name, x in zip(case.outputs, results, strict=True)
        }
        if variant.computes:
            complaint = implausible(named, exact)
            if complaint:
                row.status, row.reason = "FAILED", complaint
        elif variant.draws_own_noise:
            if case.op.normals_of is None:
                raise ValueError(f"{variant.name} draws its own noise, but {case.op.name} has no normals_of")
            right_shape = named["out"].shape == exact["out"].shape
            complaint = (
                law_error(case.op.normals_of(case, inputs, named["out"])) if right_shape else "its shape is wrong"
            )
            if complaint:
                row.status, row.reason = "FAILED", complaint
        else:
            row.errors = {name: relative_error(x, exact[name]) for name, x in named.items()}
        calls[variant.name] = call
        del results, named
    plain = [row.errors for row in rows if row.variant in ("sinmdm reference", case.baseline) and row.errors]
    yardstick = {name: max(errors[name] for errors in plain) for name in case.outputs} if plain else {}
    for row, variant in zip(rows, variants, strict=True):
        complaint = _complaint(case, variant, row.errors, yardstick)
        if complaint and row.status == "ok":
            row.status, row.reason = "FAILED", complaint
    return rows, {row.variant: calls[row.variant] for row in rows if row.status == "ok"}


def cpu_clock(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def cuda_clock(call: Callable[[], object]) -> float:
    """Seconds of a call by the device's own clock, from the moment that it comes to the call's first kernel."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _sweeping_clock() -> Callable[[Call], float]:
    swept = torch.empty(SWEPT_BYTES // 4, device="cuda")

    def clock(call: Call) -> float:
        swept.zero_()  # also gives the host a head start, so that its launches are hidden where they can be
        return cuda_clock(call)

    return clock


def interleave(calls: dict[str, Call], device: str, budget: float) -> dict[str, list[float]]:
    """Seconds of every call of every variant, in turns, for about `budget` seconds and at least three samples each."""
    if not calls:
        return {}
    clock = _sweeping_clock() if device == "cuda" else cpu_clock
    estimates: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for name, call in calls.items():
        first = clock(call)
        # A call of a tenth of a second cannot be told from a warm one, and counts.
        samples[name] = [first] if first > SLOW else []
        estimates[name] = first if samples[name] else min(first, clock(call), clock(call))
    rounds = max(LEAST_SAMPLES, min(MOST_ROUNDS, int(budget / max(sum(estimates.values()), 1e-7))))
    share = budget / rounds / len(calls)
    repeats = {}
    for name, estimate in estimates.items():
        least = 1 if samples[name] else -(-LEAST_OF_FAST // rounds)
        repeats[name] = max(least, min(MOST_REPEATS, int(share / max(estimate, 1e-7))))
    names = list(calls)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for turn in range(rounds):
            late = time.perf_counter() - begin > budget
            if late and all(len(times) >= LEAST_SAMPLES for times in samples.values()):
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if not (late and len(samples[name]) >= LEAST_SAMPLES):
                    samples[name] += [clock(calls[name]) for _ in range(repeats[name])]
    finally:
        if collecting:
            gc.enable()
    return samples


def resident_bytes(field_name: str) -> int:
    """Of this process, on Linux: "VmRSS", those it has, or "VmHWM", the most that it had. OSError elsewhere."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field_name} in /proc/self/status")


def extra_bytes(call: Call, device: str) -> int | None:
    """Peak memory of one warm call beyond what was held before it, its results included; None where nobody counts it.

    On a GPU the allocator counts. On Linux the kernel does: free pages are given back, the high-water mark of the
    resident pages is reset, and read after the call. Exact to some hundred kilobytes; buffers given as `out` and
    workspaces that a library keeps from call to call are not extra.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        call()
        return max(0, resident_bytes("VmHWM") - before)
    except (OSError, AttributeError):  # not Linux, not glibc, or not permitted
        return None


def run(case: Case, variants: tuple[Variant, ...], device: str, budget: float) -> Result:
    """Gate a case and, where everybody is right, time it."""
    torch._dynamo.reset()  # each case compiles for its own sizes
    inputs = make_inputs(case, device)
    with torch.set_grad_enabled(case.backward):
        rows, calls = gate(case, variants, inputs, device)
        result = Result(case, rows)
        if not result.ok:
            return result
        memory = {name: extra_bytes(call, device) for name, call in calls.items()}
        samples = interleave(calls, device, budget)
    for row in rows:
        if row.variant in samples:
            p20, median, p80 = np.percentile(samples[row.variant], [20, 50, 80]).tolist()
            row.p20, row.median, row.p80 = p20, median, p80
            row.samples, row.extra_bytes = len(samples[row.variant]), memory[row.variant]
    return result


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
