"""`python -m bench.networks`: the published networks against ours, with the same weights, on the CPU.

A denoising step of 1 and 10 samples of 200 frames, a training step of 64 copies of a clip of 648 frames (seconds, and
peak memory in a process of its own), and where the time of both goes. Variants take turns. Before that their results
and gradients are compared. Results go to bench/results as JSON.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinmdm.batches import WholeClip
from sinmdm.motion import ArrayLayout, Normalizer
from sinmdm.presets import PRESETS, Preset
from sinmdm.remembering import remembering
from sinmdm.training import Trainer

from . import profiles, provenance, timing
from .__main__ import ALLOCATOR, RESULTS
from .job import CLIP_FRAMES, FEATURES
from .published import PublishedQnANet, PublishedUNet
from .published_diffusion import PublishedDiffusion, PublishedTraining, cosine_betas
from .report import write_json
from .timing import Call, say

PUBLISHED: dict[str, Callable[[int], nn.Module]] = {
    "paper-qna": PublishedQnANet,
    "paper-unet": lambda features: PublishedUNet(features, use_scale_shift_norm=True),
}
PRECISIONS = ("float32", "bfloat16")
THEIRS, OURS, TOLD = "published", "sinmdm", "sinmdm, timesteps beforehand"
STEPS_FOR_MEMORY = 2


@dataclass(frozen=True)
class Sizes:
    """frames and batch: of a training step. sampled: frames of a motion that is sampled; samples: how many of them."""

    frames: int = CLIP_FRAMES
    batch: int = 64
    sampled: int = 200
    samples: tuple[int, ...] = (1, 10)


FULL, QUICK = Sizes(), Sizes(frames=24, batch=2, sampled=16, samples=(1,))


def networks(preset: str) -> tuple[nn.Module, nn.Module]:
    """(published, ours) with the same weights, the same every time. What starts at zero is drawn too: else most
    gradients would be 0."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        theirs = PUBLISHED[preset](FEATURES)
        for parameter in theirs.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
        ours = _settings(preset).build(FEATURES)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _settings(preset: str) -> Preset:
    """The published training, but for one thing: every step has the clip's own length, so that all do the same work."""
    return replace(PRESETS[preset].with_recipe("published"), resize=(1.0, 1.0))


# Denoising


def denoising_calls(preset: str, samples: int, frames: int) -> dict[str, Call]:
    """The network on the state of a sampler, by variant; each gives (prediction (B, features, frames),)."""
    theirs, ours = (network.eval() for network in networks(preset))
    x = torch.randn(samples, FEATURES, frames, generator=torch.Generator().manual_seed(1))
    t = torch.full((samples,), 500)
    calls: dict[str, Call] = {}
    for precision in PRECISIONS:
        with torch.no_grad(), _autocast(precision):
            told = ours.conditions(t[:1])  # one row for all samples, as the sampler has it
        calls |= {
            f"{THEIRS}, {precision}": _denoising(lambda: theirs(x[:, :, None], t)[:, :, 0], precision),
            f"{OURS}, {precision}": _denoising(lambda: ours(x, t), precision),
            f"{TOLD}, {precision}": _in_a_sampling(_denoising(lambda told=told: ours(x, conditions=told), precision)),
        }
    return calls


def _in_a_sampling(call: Call) -> Call:
    """The call as one of the many of a sampling, in which a network's parameters do not change."""
    memory: dict = {}

    def run() -> tuple[Tensor, ...]:
        with remembering(memory):
            return call()

    return run


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def _denoising(network: Callable[[], Tensor], precision: str) -> Call:
    def run() -> tuple[Tensor]:
        with torch.no_grad(), _autocast(precision):
            return (network(),)

    return run


def _denoising_errors(calls: dict[str, Call]) -> dict[str, float]:
    """Relative errors against the published network in float32. Raises RuntimeError where one is too large."""
    (exact,) = calls[f"{THEIRS}, float32"]()
    errors = {name: timing.relative_error(call()[0], exact) for name, call in calls.items()}
    _check(errors)
    return errors


def _check(errors: dict[str, float]) -> None:
    for name, error in errors.items():
        allowed = timing.half_the_digits(getattr(torch, name.rsplit(", ", 1)[-1]))
        if not error <= allowed:
            raise RuntimeError(f"{name} is off by {error:.2g}, {allowed:.2g} is allowed: nothing is timed")


# Training


def training_calls(preset: str, sizes: Sizes) -> dict[str, Callable[[], tuple[nn.Module, Call]]]:
    """By variant, what makes its network and its step. A step of a number has the same seed everywhere, and so leaves
    out the same branches."""
    makers = {THEIRS: _published_training, OURS: _our_training}
    return {
        f"{name}, {precision}": lambda make=make, precision=precision: make(preset, sizes, precision)
        for precision in PRECISIONS
        for name, make in makers.items()
    }


def _clip(frames: int) -> Tensor:
    """A motion to learn, (frames, features): a smooth curve."""
    return torch.randn(frames, FEATURES, generator=torch.Generator().manual_seed(2)).cumsum(0) / frames**0.5


def _published_training(preset: str, sizes: Sizes, precision: str) -> tuple[nn.Module, Call]:
    network, settings = networks(preset)[0], _settings(preset)
    training = PublishedTraining(
        network,
        _clip(sizes.frames).t().contiguous(),
        PublishedDiffusion(cosine_betas(settings.timesteps)),
        batch_size=sizes.batch,
        stretch=settings.resize,
        autocast=precision == "bfloat16",
    )
    done = 0

    def run() -> tuple[Tensor]:
        nonlocal done
        draws = training.draw()
        torch.manual_seed(int(np.random.SeedSequence([0, done]).generate_state(1)[0]))  # as Trainer seeds it
        done += 1
        return (training.step(draws),)

    return network, run


def _our_training(preset: str, sizes: Sizes, precision: str) -> tuple[nn.Module, Call]:
    network, settings, clip = (
        networks(preset)[1],
        replace(_settings(preset), batch_size=sizes.batch),
        _clip(sizes.frames),
    )
    trainer = Trainer(
        network=network,
        batches=WholeClip(clip, ArrayLayout.fit(clip), Normalizer.identity(FEATURES), settings, seed=0),
        schedule=settings.noise_schedule(),
        preset=settings,
        precision=precision,
        limit=settings.steps,
        by_time=False,
        device=torch.device("cpu"),
    )
    return network, lambda: (trainer.advance(),)


def _gradients(network: nn.Module, x: Tensor, t: Tensor, precision: str) -> dict[str, Tensor]:
    """Gradients of the mean square of the prediction, in eval mode; without those that are none, or but rounding."""
    named = {name: p for name, p in network.eval().named_parameters() if not name.endswith("Wk_bias")}
    with _autocast(precision):
        predicted = network(x, t)
    gradients = torch.autograd.grad(predicted.float().square().mean(), list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, gradients, strict=True) if grad is not None}


def gradient_errors(preset: str, frames: int = 40) -> dict[str, float]:
    """Relative errors of all gradients together, against the published network in float32. Raises RuntimeError where
    one is too large, or a weight has a gradient on one side only."""
    theirs, ours = networks(preset)
    x, t = torch.randn(2, FEATURES, 1, frames, generator=torch.Generator().manual_seed(3)), torch.tensor([3, 700])
    exact = _gradients(theirs, x, t, "float32")
    errors = {}
    for precision in PRECISIONS:
        for name, network in ((THEIRS, theirs), (OURS, ours)):
            found = _gradients(network, x, t, precision)
            if found.keys() != exact.keys():
                raise RuntimeError(f"{name} has gradients for other weights: {sorted(found.keys() ^ exact.keys())}")
            whole, part = (torch.cat([g[key].flatten() for key in exact]) for g in (exact, found))
            errors[f"{name}, {precision}"] = timing.relative_error(part, whole)
    _check(errors)
    return errors


def peak_bytes(preset: str, variant: str, quick: bool) -> int:
    """Memory that a process of two training steps had at most, with the allocator as users have it."""
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    command = [sys.executable, "-m", "bench.networks", "--only", preset, "--memory-of", variant]
    done = subprocess.run(
        [*command, *["--quick"] * quick], env=environment, capture_output=True, text=True, cwd=provenance.ROOT
    )
    if done.returncode:
        raise RuntimeError(f"{variant}: {done.stderr.strip()[-300:]}")
    return int(done.stdout)


def _run_for_memory(preset: str, variant: str, sizes: Sizes) -> int:
    _, step = training_calls(preset, sizes)[variant]()
    for _ in range(STEPS_FOR_MEMORY):
        step()
    return timing.resident_bytes("VmHWM")


# Measuring


def _seconds(calls: dict[str, Call], budget: float) -> dict[str, dict[str, float]]:
    for call in calls.values():
        call()
    timed = {}
    for name, seconds in timing.interleave(calls, "cpu", budget).items():
        p20, median, p80 = np.percentile(seconds, [20, 50, 80]).tolist()
        timed[name] = {"median_s": median, "p20_s": p20, "p80_s": p80, "samples": len(seconds)}
    return timed


def measure_denoising(preset: str, samples: int, sizes: Sizes, budget: float) -> dict[str, Any]:
    """A denoising step: errors, seconds, and the shares of time in float32."""
    calls = denoising_calls(preset, samples, sizes.sampled)
    errors, seconds = _denoising_errors(calls), _seconds(calls, budget)
    theirs, ours = (network.eval() for network in networks(preset))
    shared = {}
    x, t = torch.randn(samples, FEATURES, 1, sizes.sampled), torch.full((samples,), 500)
    for name, network in ((THEIRS, theirs), (OURS, ours)):
        call = _denoising(lambda network=network: network(x, t), "float32")
        shared[f"{name}, float32"] = profiles.shares(network, call)
    return {
        "case": f"{preset}: denoising step, {samples} x {sizes.sampled} frames, {FEATURES} features",
        "rows": {name: seconds[name] | {"error": errors[name], "shares": shared.get(name, {})} for name in calls},
    }


def measure_training(preset: str, sizes: Sizes, budget: float) -> dict[str, Any]:
    """A training step: errors of gradients, seconds, peak memory and shares of time."""
    errors = gradient_errors(preset)
    variants = training_calls(preset, sizes)
    memory = {}
    for name in variants:
        say(f"  memory of {name}")
        memory[name] = peak_bytes(preset, name, sizes == QUICK) if sys.platform == "linux" else None
    made = {name: make() for name, make in variants.items()}
    say("  seconds")
    seconds = _seconds({name: step for name, (_, step) in made.items()}, budget)
    shared = {name: profiles.shares(network, step) for name, (network, step) in made.items()}
    return {
        "case": f"{preset}: training step, {sizes.batch} x {sizes.frames} frames, {FEATURES} features",
        "rows": {
            name: seconds[name] | {"error": errors[name], "peak_bytes": memory[name], "shares": shared[name]}
            for name in made
        },
    }


def table(result: dict[str, Any]) -> str:
    """A case as text: its variants, and below them where their time goes."""
    rows = result["rows"]
    baseline = rows[f"{THEIRS}, float32"]["median_s"]
    lines = [
        result["case"],
        f"  {'':40}{'median ms':>10}{'p20':>9}{'p80':>9}{'x published':>13}{'peak GB':>9}{'error':>9}",
    ]
    for name, row in rows.items():
        times = "".join(
            f"{1e3 * row[key]:>{width}.4g}" for key, width in (("median_s", 10), ("p20_s", 9), ("p80_s", 9))
        )
        peak = f"{row['peak_bytes'] / 1e9:.2f}" if row.get("peak_bytes") else ""
        lines.append(f"  {name:40}{times}{baseline / row['median_s']:>13.2f}{peak:>9}{row['error']:>9.1e}")
    for name, row in rows.items():
        if row["shares"]:
            parts = ", ".join(f"{kind} {100 * share:.1f}" for kind, share in row["shares"].items())
            lines.append(f"  {name}, % of its time: {parts}")
    return "\n".join(lines)


def main(arguments_given: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=tuple(PUBLISHED), help="one of the networks")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing for a case (default 60)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument("--memory-of", metavar="VARIANT", help=argparse.SUPPRESS)  # what peak_bytes calls
    arguments = parser.parse_args(arguments_given)
    sizes = QUICK if arguments.quick else FULL
    if arguments.memory_of:
        print(_run_for_memory(arguments.only, arguments.memory_of, sizes))
        return
    budget, where, results = 0.2 if arguments.quick else arguments.seconds, provenance.collect("cpu"), []
    for preset in [arguments.only] if arguments.only else PUBLISHED:
        for samples in sizes.samples:
            say(f"{preset}: denoising, {samples}")
            results.append(measure_denoising(preset, samples, sizes, budget))
            print(table(results[-1]) + "\n", flush=True)
        say(f"{preset}: training")
        results.append(measure_training(preset, sizes, budget))
        print(table(results[-1]) + "\n", flush=True)
    stem = "-".join(["networks", *filter(None, [arguments.only, arguments.quick and "quick"]), "cpu"])
    write_json(arguments.output / f"{stem}.json", {"provenance": where, "results": results})
    say(f"wrote {stem}.json")


if __name__ == "__main__":
    tuned = all(name in os.environ for name in ALLOCATOR)
    if not tuned and "--memory-of" not in sys.argv and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, "-m", "bench.networks", *sys.argv[1:]], {**ALLOCATOR, **os.environ})
    main()
