"""Where the time of a network goes, by what its modules are for; the same kinds for the published networks and ours.

The ranges of modules and of some functions of ours are marked for torch's profiler; time belongs to the innermost one.
A node of the backward belongs where the operation that made it was called, which the profiler knows by its number.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "kind: "
BACKWARD = "autograd::engine::evaluate_function: "
OPTIMIZER = "Optimizer.step"
# The first that fits a module's name; the networks have the same names. "other" is what is in none of them: input and
# output projections, residual sums, branches left out, the loss, noise, Python.
KINDS = (
    ("MLP", r"mlp_layer"),
    ("attention core", r"\.core$"),
    ("QnA projections", r"(qna_layer|attention)(\.to_v|\.to_out)?$"),
    ("timestep", r"^time_embed$|cond_map$|skip_gate$|emb_layers$|timesteps_embed$"),
    ("shift and scale", r"(shiftscale\d|output_shift_and_scale)$"),
    ("norm", r"norm\d?$|(^out|in_layers|out_layers)\.0$"),
    ("convolutions", r"in_layers\.2$|out_layers\.3$|^input_blocks\.0\.0$|skip_connection$|^out\.2$|\.(op|conv)$"),
)
# Functions of ours that do what the published networks have a module for: (module, name in it, kind). `modulated` is
# the norm with the shift and scale in it.
FUNCTIONS = (
    ("sinmdm.nn.qna", "qna_attention", "attention core"),
    ("sinmdm.nn.qna", "QnAAttention1d.attend", "QnA projections"),
    ("sinmdm.nn.qnanet", "modulated", "norm"),
    ("sinmdm.nn.denoiser", "Denoiser.conditions", "timestep"),
)


def kind_of(name: str) -> str | None:
    """What the module of this name is for; None where that is up to the modules in it, or around it."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), None)


@contextmanager
def marked(network: nn.Module) -> Iterator[None]:
    """While this lasts, the network's modules and our functions show in a profile."""
    open_ranges: list[Any] = []

    def enter(kind: str) -> None:
        open_ranges.append(record_function(MARK + kind))
        open_ranges[-1].__enter__()

    def leave(*_: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    def wrapped(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with record_function(MARK + kind):
                return function(*arguments, **options)

        return run

    with ExitStack() as stack:
        for module_name, path, kind in FUNCTIONS:
            *owner, attribute = path.split(".")
            target = import_module(module_name)
            for part in owner:
                target = getattr(target, part)
            stack.enter_context(patch.object(target, attribute, wrapped(getattr(target, attribute), kind)))
        for name, module in network.named_modules():
            kind = kind_of(name)
            if kind is not None:
                stack.enter_context(_removed(module.register_forward_pre_hook(lambda *_, kind=kind: enter(kind))))
                stack.enter_context(_removed(module.register_forward_hook(leave)))
        yield


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def shares(network: nn.Module, call: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """The share of each kind in the time of `call`, which uses the network; they add up to 1, and none is 0."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler reports its every start and stop
    totals: dict[str, float] = defaultdict(float)
    with marked(network):
        call()
        for _ in range(repeats):
            with profile(activities=[ProfilerActivity.CPU]) as measured, record_function(MARK + "other"):
                call()
            for kind, seconds in _by_kind(measured.events()).items():
                totals[kind] += seconds
    whole = sum(totals.values())
    return {kind: seconds / whole for kind, seconds in sorted(totals.items(), key=lambda item: -item[1])}


def _by_kind(events: Iterable[Any]) -> dict[str, float]:
    """Microseconds of each kind, of a profile all of which lies in one marked range."""
    times: dict[str, float] = defaultdict(float)
    kinds: dict[int, str] = {}  # of an operation's number: the last operation of a number makes the node
    around: list[tuple[float, str]] = []  # the ranges that are open: end, kind
    for event in sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end)):
        start, end = event.time_range.start, event.time_range.end
        while around and around[-1][0] <= start:
            around.pop()
        if event.name.startswith(MARK):
            kind = event.name.removeprefix(MARK)
        elif event.name.startswith(OPTIMIZER):
            kind = "optimizer"
        elif event.name.startswith(BACKWARD):
            kind = kinds.get(event.sequence_nr, "other")
        else:
            if around and event.sequence_nr >= 0 and event.scope == 0:
                kinds[event.sequence_nr] = around[-1][1]
            continue
        times[kind] += end - start
        if around:
            times[around[-1][1]] -= end - start
        around.append((end, kind))
    return {kind: time for kind, time in times.items() if time > 0}
