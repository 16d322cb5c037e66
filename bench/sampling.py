"""`python -m bench.sampling`: whole samplings of the model, where their time goes, and a motion of a million frames.

Without arguments the loop: preset small, 4 samples of 256 frames, DDPM over 1000 timesteps, against the plain loop and
against ours with a compiled network, in turns. With --frames the command `sinmdm sample` on a run of the built-in clip,
in a process of its own: seconds and peak memory. Results go to bench/results as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sinmdm.diffusion import Schedule, sample, sampling, stream
from sinmdm.diffusion.plan import timesteps_visited
from sinmdm.kernels.schedule import STEP_COLUMNS
from sinmdm.motion import walker
from sinmdm.presets import PRESETS
from sinmdm.training import train

from . import provenance
from .__main__ import ALLOCATOR, RESULTS
from .job import FEATURES, network_of
from .report import write_json
from .timing import say

BATCH, FRAMES, TIMESTEPS = 4, 256, 1000


class Shares:
    """Seconds inside the network, the fused step and the progress bar of a sampling."""

    def __init__(self) -> None:
        self.network = self.step = self.progress_bar = 0.0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added to the part `name`."""

        def run(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments, **options)
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)
            return result

        return run


class _Timed(nn.Module):
    """A network whose calls are timed."""

    def __init__(self, network: nn.Module, shares: Shares) -> None:
        super().__init__()
        self.conditions, self.call = network.conditions, shares.timed("network", network)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.call(x, **options)


@torch.no_grad()
def plain_loop(network: nn.Module, schedule: Schedule) -> Tensor:
    """What one would write: eager network, eager step with its coefficients beforehand, torch.randn."""
    visited = timesteps_visited(schedule, None)
    columns = dict(zip(STEP_COLUMNS, schedule.step_coefficients(
        torch.tensor(visited), torch.tensor([*visited[1:], -1])).float().unbind(-1), strict=True))  # fmt: skip
    of_x0, of_x, of_noise = (columns[name].tolist() for name in ("of_x0", "of_x", "of_noise"))
    x = torch.randn(BATCH, FEATURES, FRAMES)
    for i, t in enumerate(visited):
        predicted = network(x, torch.full((BATCH,), t))
        x = of_x0[i] * predicted + of_x[i] * x + of_noise[i] * torch.randn_like(x)
    return x


def fused_loop(network: Callable[..., Tensor], schedule: Schedule, on_step: Callable[[int], None] | None) -> Tensor:
    """The same by `sinmdm.diffusion.sample`."""
    return sample(network, (BATCH, FEATURES, FRAMES), schedule, seed=0, on_step=on_step)


def _with_bar(network: nn.Module, schedule: Schedule) -> Tensor:
    with tqdm(total=len(schedule), desc="with a progress bar", leave=False) as bar:
        return fused_loop(network, schedule, lambda done: bar.update())


def measure_loop(repeats: int) -> dict[str, Any]:
    """Medians and ranges of the loop's variants, in turns, and the shares of ours."""
    schedule = Schedule.cosine(TIMESTEPS)
    network = network_of("small", FEATURES).eval()
    begin = time.perf_counter()
    compiled = torch.compile(network, dynamic=False)
    with torch.no_grad():
        compiled(torch.zeros(BATCH, FEATURES, FRAMES), conditions=network.conditions(torch.tensor([0])))
    compile_seconds = time.perf_counter() - begin
    variants: dict[str, Callable[[], Tensor]] = {
        "plain loop": lambda: plain_loop(network, schedule),
        "sinmdm": lambda: fused_loop(network, schedule, None),
        "sinmdm, progress bar": lambda: _with_bar(network, schedule),
        "sinmdm, compiled network": lambda: fused_loop(compiled, schedule, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats):
        for name, call in variants.items():
            say(f"turn {turn + 1} of {repeats}: {name}")
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    shares, step = Shares(), sampling.affine_step
    sampling.affine_step = shares.timed("step", step)
    try:
        begin = time.perf_counter()
        with tqdm(total=len(schedule), leave=False) as bar:
            on_step = shares.timed("progress_bar", lambda done: bar.update())
            fused_loop(_Timed(network, shares), schedule, on_step)
        total = time.perf_counter() - begin
    finally:
        sampling.affine_step = step
    parts = {name: seconds / total for name, seconds in vars(shares).items()}
    return {
        "case": f"small preset, B {BATCH}, T {FRAMES}, C {FEATURES}, DDPM, {TIMESTEPS} steps, float32",
        "seconds": {name: _spread(values) for name, values in seconds.items()},
        "compile_seconds": compile_seconds,
        "shares": parts | {"else": 1 - sum(parts.values())},
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def measure_stream(chunk: int, chunks: int) -> dict[str, Any]:
    """Frames a second of a live stream (DDIM, 20 steps, preset small), and the time between its chunks."""
    network = network_of("small", FEATURES).eval()
    schedule = PRESETS["small"].noise_schedule()
    pieces = stream(network, FEATURES, schedule, seed=0, chunk=chunk)
    next(pieces)
    seconds = []
    for _ in range(chunks):
        begin = time.perf_counter()
        next(pieces)
        seconds.append(time.perf_counter() - begin)
    return {
        "case": f"small preset, DDIM, 20 steps, chunks of {chunk} frames",
        "delay_frames": network.receptive_field * 20,
        "seconds_a_chunk": _spread(seconds),
        "frames_a_second": chunk / statistics.median(seconds),
    }


def _high_water_mark(process: int) -> int:
    """Bytes of resident memory that a running process had at most, on Linux; 0 where it has just ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def measure_long(frames: int, steps: int) -> dict[str, Any]:
    """`sinmdm sample --frames N --sampler ddim --steps S` on a run of the built-in clip: seconds and peak memory."""
    clip = walker()
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "out"
        train(clip, run, preset="small", steps=300, progress=False)
        command = [sys.executable, "-m", "sinmdm", "sample", str(run), "--frames", str(frames), "--sampler", "ddim"]
        environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}  # as users have it
        begin = time.perf_counter()
        child = subprocess.Popen([*command, "--steps", str(steps), "--out", str(out)], env=environment)
        peak = 0
        while child.poll() is None:  # the kernel's own account of the child begins with what its parent had
            peak = max(peak, _high_water_mark(child.pid))
            time.sleep(0.2)
        if child.returncode:
            raise SystemExit(child.returncode)
        seconds = time.perf_counter() - begin
        size = (out / "sample00.bvh").stat().st_size
    return {
        "case": f"sinmdm sample --frames {frames} --sampler ddim --steps {steps}, preset small, built-in clip",
        "joints": len(clip.skeleton.names),
        "seconds": seconds,
        "frames_a_second": frames / seconds,
        "peak_bytes": peak,
        "file_bytes": size,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sampling", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns of the loop (default 3)")
    parser.add_argument("--frames", type=int, help="sample a motion of so many frames instead")
    parser.add_argument("--steps", type=int, default=20, help="of that motion (default 20)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: bench/results")
    arguments = parser.parse_args()
    where = provenance.collect("cpu")
    if arguments.frames:
        name, results = "long", [measure_long(arguments.frames, arguments.steps)]
    else:
        name, results = "loop", [measure_loop(arguments.repeats), measure_stream(64, 50)]
    print(json.dumps(results, indent=2))
    write_json(arguments.output / f"sampling-{name}-cpu.json", {"provenance": where, "results": results})


if __name__ == "__main__":
    if any(name not in os.environ for name in ALLOCATOR) and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, "-m", "bench.sampling", *sys.argv[1:]], {**ALLOCATOR, **os.environ})
    main()
