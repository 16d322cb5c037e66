"""bench.networks: the published networks against ours."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # bench is not installed: it is run from the checkout

from bench import networks, profiles  # noqa: E402

PRESETS = tuple(networks.PUBLISHED)
TINY = networks.Sizes(frames=12, batch=2, sampled=8, samples=(2,))


@pytest.mark.parametrize("preset", PRESETS)
def test_denoising_is_the_same_everywhere(preset: str) -> None:
    calls = networks.denoising_calls(preset, 2, 9)
    assert len(calls) == 6
    errors = networks._denoising_errors(calls)
    assert errors[f"{networks.THEIRS}, float32"] == 0
    assert errors[f"{networks.OURS}, float32"] < 1e-5
    assert all(call()[0].shape == (2, networks.FEATURES, 9) for call in calls.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_are_the_same_everywhere(preset: str) -> None:
    errors = networks.gradient_errors(preset, frames=9)
    assert errors.keys() == networks.training_calls(preset, TINY).keys()
    assert errors[f"{networks.OURS}, float32"] < 1e-5


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(preset: str) -> tuple[nn.Module, nn.Module]:
        theirs, ours = right(preset)
        with torch.no_grad():
            ours.output_proj.weight *= 1.01
        return theirs, ours

    right = networks.networks
    monkeypatch.setattr(networks, "networks", sabotaged)
    with pytest.raises(RuntimeError, match="sinmdm, float32 is off by"):
        networks._denoising_errors(networks.denoising_calls("paper-qna", 1, 8))
    with pytest.raises(RuntimeError, match="nothing is timed"):
        networks.gradient_errors("paper-qna", frames=8)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_steps(preset: str) -> None:
    start = None
    for name, make in networks.training_calls(preset, TINY).items():
        network, step = make()
        weight = network.time_embed[0].weight
        before = weight.detach().clone()
        start = before if start is None else start
        assert torch.equal(before, start), f"{name} starts elsewhere"
        assert network.training
        (loss,) = step()
        assert loss.isfinite()
        assert not torch.equal(weight, before)


@pytest.mark.parametrize("preset", PRESETS)
def test_shares_of_a_training_step(preset: str) -> None:
    own = {"paper-qna": {"MLP", "norm", "attention core", "QnA projections"}, "paper-unet": {"convolutions", "norm"}}
    calls = networks.training_calls(preset, TINY)
    for name in (networks.THEIRS, networks.OURS):
        network, step = calls[f"{name}, float32"]()
        shares = profiles.shares(network, step, repeats=1)
        assert sum(shares.values()) == pytest.approx(1)
        assert own[preset] | {"timestep", "optimizer", "other"} <= shares.keys()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    from sinmdm.nn import qna

    assert qna.qna_attention.__module__.startswith("sinmdm.kernels"), "the marks are taken off again"


def test_time_belongs_to_the_innermost_range_and_to_what_made_a_node() -> None:
    def event(name: str, start: float, end: float, number: int = -1, scope: int = 0) -> SimpleNamespace:
        times = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, time_range=times, sequence_nr=number, scope=scope)

    events = [
        event(f"{profiles.MARK}other", 0, 100),
        event(f"{profiles.MARK}MLP", 10, 40),
        event("aten::empty", 12, 13, 7),  # shows the number of the node that is made next
        event(f"{profiles.MARK}norm", 20, 30),
        event("aten::native_layer_norm", 21, 29, 7),
        event("aten::gelu", 31, 39, 8),
        event(f"{profiles.BACKWARD}GeluBackward0", 50, 55, 8),
        event("GeluBackward0", 51, 54, 8, scope=1),
        event(f"{profiles.BACKWARD}NativeLayerNormBackward0", 55, 75, 7),
        event(f"{profiles.BACKWARD}torch::autograd::AccumulateGrad", 75, 76),
        event(f"{profiles.OPTIMIZER}#AdamW.step", 80, 90),
    ]
    assert profiles._by_kind(events) == {"other": 35, "MLP": 25, "norm": 30, "optimizer": 10}


def test_every_part_of_a_block_has_a_kind() -> None:
    theirs, ours = networks.networks("paper-qna")
    for network in (theirs, ours):
        kinds = {name: profiles.kind_of(name) for name, _ in network.named_modules()}
        block = "hierarchy_blocks.h0.3"
        assert kinds[f"{block}.mlp_layer.conv1"] == kinds[f"{block}.mlp_layer"] == "MLP"
        assert kinds[f"{block}.norm2"] == kinds["output_norm"] == "norm"
        assert kinds[f"{block}.qna_layer"] == kinds[f"{block}.qna_layer.to_v"] == "QnA projections"
        assert kinds[f"{block}.shiftscale1.cond_map"] == kinds[f"{block}.skip_gate"] == "timestep"
        assert kinds[block] is None
    assert profiles.kind_of("hierarchy_blocks.h0.3.qna_layer.core") == "attention core"
    assert profiles.kind_of("input_blocks.1.1.attention.core") == "attention core"
    assert profiles.kind_of("output_blocks.1.0.out_layers.0") == profiles.kind_of("out.0") == "norm"
    assert profiles.kind_of("output_blocks.1.0.out_layers.3") == "convolutions"


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(networks, "QUICK", TINY)
    monkeypatch.setattr(networks, "peak_bytes", lambda *_: 2_500_000_000)
    monkeypatch.setattr(networks.profiles, "shares", lambda *_: {"MLP": 0.75, "other": 0.25})
    networks.main(["--quick", "--only", "paper-qna", "--output", str(tmp_path)])
    written = json.loads((tmp_path / "networks-paper-qna-quick-cpu.json").read_text())
    assert written["provenance"]["kernel_hash"]
    denoising, training = written["results"]
    assert denoising["case"] == "paper-qna: denoising step, 2 x 8 frames, 174 features"
    row = training["rows"]["sinmdm, bfloat16"]
    assert row["p20_s"] <= row["median_s"] <= row["p80_s"]
    printed = capsys.readouterr().out
    assert "published, float32, % of its time: MLP 75.0, other 25.0" in printed
    assert "sinmdm, timesteps beforehand, bfloat16" in printed
    assert " 2.50" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="nobody else counts a process's peak")
def test_memory_is_that_of_a_process_of_its_own() -> None:
    assert 1e8 < networks.peak_bytes("paper-unet", "sinmdm, float32", quick=True) < 2e9
    with pytest.raises(RuntimeError, match="nonsense"):
        networks.peak_bytes("paper-unet", "nonsense", quick=True)
