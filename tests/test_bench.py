"""The benchmark itself: its rows, its gate, and what it writes."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # bench is not installed: it is run from the checkout

from bench import __main__ as command  # noqa: E402
from bench import choice, floor, job, peers, provenance, registry, report, timing  # noqa: E402
from bench.case import Case, Variant  # noqa: E402
from sinmdm.kernels import _choice  # noqa: E402
from sinmdm.kernels._dispatch import implementations  # noqa: E402
from sinmdm.presets import PRESETS  # noqa: E402

FLOOR = floor.Floor(copy=1e10, products={"x @ y, float32": 1e11, "linear, bfloat16": 2e11})


def small_cases() -> list[Case]:
    return [
        *(
            registry.attention_case(T, w, backward=b)
            for T, w in ((20, 4), (70, 3), (5, 9), (1, 0))
            # With one key a query, dq and dk are 0 and plain PyTorch finds exactly that: no relative error to compare.
            for b in ((False,) if T == 1 else (False, True))
        ),
        registry.attention_case(40, 5, B=2, dtype="bfloat16", backward=True),
        *(registry.qna_case(2, 21, w=w, backward=b) for w in (1, 3) for b in (False, True)),
        registry.qna_case(2, 21, dtype="bfloat16", backward=True),
        *(registry.state_case(op, 3, 31, C=7) for op in ("q_sample", "denoise_step", "philox_normal")),
    ]


def variants_without_compiler(case: Case) -> tuple[Variant, ...]:
    return tuple(variant for variant in registry.variants(case, "cpu") if not variant.slow_start)


# The registry


def test_every_op_has_a_row() -> None:
    ops = implementations()
    forward = {name for name in ops if not name.endswith("_backward")}
    assert forward <= {case.op.name for case in registry.CASES}
    backward = {name.removesuffix("_backward") for name in ops if name.endswith("_backward")}
    assert backward <= {case.op.name for case in registry.CASES if case.backward}


def test_rows_are_well_formed() -> None:
    names = [case.name for case in registry.CASES]
    assert len(set(names)) == len(names)
    for case in registry.CASES:
        assert case.bytes_moved > 0
        assert case.operations > 0
        for device in case.devices:
            variants = registry.variants(case, device)
            assert any(variant.ours for variant in variants), case.name
            assert len({variant.name for variant in variants}) == len(variants)
        assert not case.peers[0].slow_start, "--quick would lack the baseline"


def test_a_gpu_has_a_row_for_every_backend_and_class() -> None:
    cases = registry.select(None, "cuda", quick=False)
    ops = implementations()
    for case in cases:
        ours = [variant.name.removeprefix("sinmdm ") for variant in registry.variants(case, "cuda") if variant.ours]
        op = case.op.backends_of or case.op.name
        # Every backend that takes CUDA tensors, the fastest first, and the definition.
        assert [name for name in ours if name in ops[op]] == [name for name in ops[op] if name != "cpu"], case.name
    classes = {choice.class_of(report.to_json(timing.Result(c, []), FLOOR)) for c in cases if c.op.name in ops}
    for op in ("window_attention", "qna_attention"):
        for kind in ("half", "float32"):
            wanted = {
                f"{op} {kind} {way} {size} narrow" for way in ("forward", "backward") for size in ("small", "large")
            }
            assert wanted <= classes
    assert {f"window_attention half {way} large wide" for way in ("forward", "backward")} <= classes
    assert {"denoise_step float32 forward small", "denoise_step float32 forward large"} <= classes


def test_without_the_model_layers_libraries_the_ops_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({("matplotlib", "bvhio", *job.TRAINING_NEEDS)!r}))
from bench import __main__ as command, job, registry, timing
assert command.main(["--list", "--device", "cuda"]) == 0
for preset in ("small", "paper"):
    case = job.training_case(preset)
    rows, calls = timing.gate(case, registry.variants(case, "cpu"), timing.make_inputs(case, "cpu"), "cpu")
    print({{row.reason for row in rows}}, calls)
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith(2 * "{'training needs roma, safetensors, tqdm'} {}\n")


@pytest.mark.parametrize(("frames", "window"), [(1, 0), (5, 2), (5, 4), (5, 9), (33, 16)])
def test_visible_pairs_are_counted(frames: int, window: int) -> None:
    counted = sum(abs(i - j) <= window for i in range(frames) for j in range(frames))
    assert registry._visible_pairs(frames, window) == counted


@pytest.mark.parametrize(("frames", "window"), [(64, 16), (700, 16), (1024, 300), (640, 127), (640, 128), (129, 0)])
def test_blocks_of_a_band_are_those_of_the_mask(frames: int, window: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    whole = create_block_mask(
        lambda batch, head, query, key: (key - query).abs() <= window, None, None, frames, frames, device="cpu"
    )
    ours = peers.band_blocks(frames, window, window, peers.FLEX_BLOCK, torch.device("cpu"))
    theirs = (whole.kv_num_blocks, whole.kv_indices, whole.full_kv_num_blocks, whole.full_kv_indices)
    for numbers, indices in ((0, 1), (2, 3)):
        assert torch.equal(ours[numbers], theirs[numbers])
        for mine, other, count in zip(
            ours[indices].flatten(0, 2), theirs[indices].flatten(0, 2), ours[numbers].flatten(), strict=True
        ):
            assert set(mine[:count].tolist()) == set(other[:count].tolist())


def test_local_attention_is_ours_without_a_bias() -> None:
    # With blocks that divide T, its exact window is our window: what is quoted is the time of the same work.
    pytest.importorskip("local_attention")
    case = registry.attention_case(48, 4)
    inputs = timing.make_inputs(case, "cpu")
    local = next(variant for variant in case.peers if variant.name == "local-attention")
    (theirs,) = timing.prepare(case, local, inputs)()
    (ours,) = timing.exact_outputs(case, inputs | {"rel_bias": torch.zeros(8, 9)})
    assert timing.relative_error(local.back(case, "out", theirs), ours) < timing.half_the_digits(torch.float32)


def test_selection() -> None:
    assert {case.op.name for case in registry.select("philox", "cpu", quick=False)} == {"philox_normal"}
    quick = registry.select(None, "cpu", quick=True)
    assert {case.op.name for case in quick} >= {"window_attention", "denoise_step", "philox_normal"}
    assert len(quick) < len(registry.select(None, "cpu", quick=False))


def test_floor_is_the_larger_of_its_two_parts() -> None:
    case = registry.attention_case(256)
    assert FLOOR.seconds(case) == max(case.bytes_moved / 1e10, case.operations / 1e11)
    assert FLOOR.rate("bfloat16") == 2e11
    slow_half = floor.Floor(1e10, {"x @ y, float32": 1e11, "linear, bfloat16": 5e10})
    assert slow_half.rate("bfloat16") == 1e11


# The gate


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.name)
def test_every_peer_computes_the_same(case: Case) -> None:
    rows, calls = timing.gate(case, variants_without_compiler(case), timing.make_inputs(case, "cpu"), "cpu")
    assert {row.variant: row.reason for row in rows if row.status == "FAILED"} == {}
    assert case.baseline in calls
    assert "sinmdm reference" in calls


def sabotaged(variant: Variant, factor: float, **changes: object) -> Variant:
    def build(case, inputs):  # type: ignore[no-untyped-def]
        function = variant.build(case, inputs)
        return lambda inputs: function(inputs) * factor

    return dataclasses.replace(variant, name="sabotaged", build=build, **changes)


def test_a_wrong_peer_stops_the_clock() -> None:
    case = registry.attention_case(20, 4)
    result = timing.run(case, (case.op.ours("reference"), case.peers[0], sabotaged(case.peers[0], 1.01)), "cpu", 0.01)
    assert not result.ok
    assert [row.status for row in result.rows] == ["ok", "ok", "FAILED"]
    assert all(row.median is None for row in result.rows)
    text = report.case_text(report.to_json(result, FLOOR))
    assert "FAILED: no timing" in text
    assert "sabotaged: out is off by 0.01" in text


def test_ours_is_held_to_the_error_of_plain_pytorch() -> None:
    case = registry.attention_case(20, 4)
    reference = case.op.ours("reference")
    slightly_wrong = sabotaged(reference, 1 + 1e-5)  # right to half of the digits
    inputs = timing.make_inputs(case, "cpu")
    for ours, status in ((True, "FAILED"), (False, "ok")):
        variant = dataclasses.replace(slightly_wrong, ours=ours)
        rows, _ = timing.gate(case, (reference, case.peers[0], variant), inputs, "cpu")
        assert rows[2].status == status


@pytest.mark.parametrize("backward", [False, True])
def test_another_function_is_timed_but_not_compared(backward: bool) -> None:
    case = registry.attention_case(20, 4, backward=backward)
    # Leaves the bias out, as local-attention does, and so has no gradient for it.
    other = Variant("mean of v", lambda case, inputs: lambda inputs: inputs["v"] + inputs["q"] * 0 + inputs["k"] * 0)
    result = timing.run(case, (case.peers[0], dataclasses.replace(other, computes="a sum")), "cpu", 0.01)
    assert [row.status for row in result.rows] == ["ok", "ok"]
    assert result.rows[1].median is not None
    assert result.rows[1].errors == {}
    assert "computes another function: a sum" in report.case_text(report.to_json(result, FLOOR))
    if not backward:
        assert not timing.run(case, (case.peers[0], other), "cpu", 0.01).ok, "the same without the flag"


@pytest.mark.parametrize(
    ("result", "complaint"), [(lambda q: q * torch.nan, "out is not finite"), (lambda q: q[:, 1:], "another shape")]
)
def test_another_function_must_be_plausible(result, complaint: str) -> None:  # type: ignore[no-untyped-def]
    case = registry.attention_case(20, 4)
    wrong = Variant("wrong", lambda case, inputs: lambda inputs: result(inputs["q"]), computes="nonsense")
    rows, calls = timing.gate(case, (case.peers[0], wrong), timing.make_inputs(case, "cpu"), "cpu")
    assert [row.status for row in rows] == ["ok", "FAILED"]
    assert complaint in rows[1].reason
    assert "wrong" not in calls


def test_wrong_gradients_stop_the_clock() -> None:
    case = registry.attention_case(20, 4, backward=True)

    def build(case, inputs):  # type: ignore[no-untyped-def]
        function = case.peers[0].build(case, inputs)
        return lambda inputs: (
            function(inputs | {"rel_bias": inputs["rel_bias"].detach() * 0 + inputs["rel_bias"]})
            + (inputs["rel_bias"].sum() - inputs["rel_bias"].sum().detach())
        )

    rows, _ = timing.gate(
        case, (case.peers[0], Variant("same result, other gradient", build)), timing.make_inputs(case, "cpu"), "cpu"
    )
    assert [row.status for row in rows] == ["ok", "FAILED"]
    assert rows[1].reason.startswith("d_rel_bias")


@pytest.mark.parametrize("op", ["q_sample", "denoise_step", "philox_normal"])
def test_noise_of_another_law_stops_the_clock(op: str) -> None:
    case = registry.state_case(op, 4, 500, C=20)
    rows, _ = timing.gate(case, (case.peers[0], sabotaged(case.peers[0], 1.2)), timing.make_inputs(case, "cpu"), "cpu")
    assert [row.status for row in rows] == ["ok", "FAILED"]
    assert "variance" in rows[1].reason


def test_law_of_uniform_numbers_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    assert timing.law_error(torch.randn(10000, generator=generator)) is None
    uniform = (torch.rand(10000, generator=generator) - 0.5) * 12**0.5  # mean 0, variance 1
    assert "fourth moment" in (timing.law_error(uniform) or "")
    assert timing.law_error(torch.full((10,), torch.nan)) is not None


def test_what_cannot_run_is_not_a_failure() -> None:
    case = registry.attention_case(20, 4)

    def broken(case, inputs):  # type: ignore[no-untyped-def]
        raise RuntimeError("no compiler\nand more")

    declining = Variant("declining", broken, declines=lambda case, device: f"not on the {device}")
    result = timing.run(case, (case.op.ours("reference"), declining, Variant("broken", broken)), "cpu", 0.01)
    assert result.ok
    assert [row.reason for row in result.rows] == ["", "not on the cpu", "RuntimeError: no compiler and more"]
    assert result.rows[0].median is not None
    rows, _ = timing.gate(case, (Variant("broken", broken, ours=True),), timing.make_inputs(case, "cpu"), "cpu")
    assert rows[0].status == "FAILED"


def test_a_forced_backend_that_is_missing_is_unavailable() -> None:
    case = registry.attention_case(20, 4)
    rows, calls = timing.gate(case, (case.op.ours("cuda"),), timing.make_inputs(case, "cpu"), "cpu")
    assert rows[0].status == "unavailable"
    assert not calls


def test_every_variant_gets_its_turns() -> None:
    turns = []
    calls = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    samples = timing.interleave(calls, "cpu", budget=0.01)
    assert all(len(times) >= timing.LEAST_OF_FAST for times in samples.values())
    assert set(turns) == set("abc")


def test_a_slow_variant_does_not_starve_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SLOW", 0.005)
    samples = timing.interleave({"slow": lambda: (time.sleep(0.02),), "fast": lambda: ()}, "cpu", budget=0.01)
    assert len(samples["slow"]) == timing.LEAST_SAMPLES
    assert len(samples["fast"]) >= timing.LEAST_OF_FAST


def test_extra_memory_is_the_peak_of_a_call() -> None:
    call_bytes = 64 * 2**20

    def call() -> tuple[torch.Tensor, ...]:
        torch.ones(call_bytes // 4)
        return (torch.ones(1),)

    measured = timing.extra_bytes(call, "cpu")
    if measured is None:
        pytest.skip("this system does not count a process's peak")
    assert 0.9 * call_bytes < measured < 1.2 * call_bytes


# Provenance


def test_kernel_hash_follows_the_sources(tmp_path: Path) -> None:
    (tmp_path / "kernels" / "op").mkdir(parents=True)
    (tmp_path / "csrc").mkdir()
    source = tmp_path / "kernels" / "op" / "reference.py"
    source.write_text("x = 1\n")
    before = provenance.kernel_hash(tmp_path)
    (tmp_path / "kernels" / "op" / "notes.txt").write_text("no source")
    assert provenance.kernel_hash(tmp_path) == before
    source.write_text("x = 2\n")
    changed = provenance.kernel_hash(tmp_path)
    assert changed != before
    (tmp_path / "csrc" / "op.cpp").write_text("")
    assert provenance.kernel_hash(tmp_path) != changed
    assert provenance.is_stale({"kernel_hash": before}, changed)
    assert not provenance.is_stale({"kernel_hash": changed}, changed)
    assert provenance.is_stale({}, changed)


def test_provenance_is_json_and_names_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/some/where/allocator.so")
    collected = provenance.collect("cpu")
    text = json.dumps(collected)
    assert collected["allocator"]["LD_PRELOAD"] == "allocator.so"
    assert str(ROOT) not in text
    assert str(Path.home()) + os.sep not in text
    assert collected["kernel_hash"] == provenance.kernel_hash()
    assert {"commit", "torch", "triton", "native_cuda", "gpu"} <= set(collected)


def test_provenance_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count, total_memory = "NVIDIA of a test", 9, 0, 132, 141 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(
        provenance.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0, stdout="580.1\n580.1\n")
    )
    assert provenance._gpu() == {
        "name": "NVIDIA of a test", "capability": "9.0", "multiprocessors": 132, "memory_gib": 141.0,
        "driver": "580.1", "cuda": "13.0",
    }  # fmt: skip


# The main job


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> str:
    tiny = dataclasses.replace(
        PRESETS["paper"],
        network={"d_model": 16, "heads": 2, "layers": 2, "window": 3},
        batch_size=3,
        crop=21,
        timesteps=10,
    )
    monkeypatch.setitem(job.PRESETS, "tiny", tiny)
    return "tiny"


def test_training_step_is_gated_with_every_attention(tiny_preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(job.FORCED, raising=False)
    case = job.training_case(tiny_preset)
    rows, calls = timing.gate(case, registry.variants(case, "cpu"), timing.make_inputs(case, "cpu"), "cpu")
    assert {row.variant: row.reason for row in rows if row.status == "FAILED"} == {}
    assert {"sinmdm reference", "SDPA, dense mask"} <= set(calls)
    assert job.FORCED not in os.environ
    weights = [
        parameter for parameter in job.network_of(tiny_preset, job.FEATURES).parameters() if parameter.dim() == 2
    ]
    least = 6 * case.shape["B"] * sum(parameter.numel() for parameter in weights)
    assert case.operations > least


def test_training_step_forces_the_attention_alone(tiny_preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(job.FORCED, "nonsense")  # the user's own, which the noise of the step still obeys
    case = job.training_case(tiny_preset)
    call = timing.prepare(case, case.op.ours("reference"), timing.make_inputs(case, "cpu"))
    with pytest.raises(ValueError, match="nonsense"):
        call()
    assert os.environ[job.FORCED] == "nonsense"


# What is written


@pytest.fixture(scope="module")
def content() -> dict:
    case = registry.select("philox_normal-B1", "cpu", quick=True)[0]
    result = timing.run(case, registry.variants(case, "cpu"), "cpu", 0.02)
    return report.document([report.to_json(result, FLOOR)], FLOOR, provenance.collect("cpu"), {"case_set": "full"})


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, content: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "cpu-full.json"
    report.write_json(path, content)
    assert report.read_json(path) == content

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            report.write_json(path, {"format": 0})
    assert report.read_json(path) == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cpu-full.json"
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="measure again"):
        report.read_json(path)


def test_readme_table(tmp_path: Path, content: dict) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    table = report.markdown([content])
    assert report.update_readme(readme, table)
    assert not report.update_readme(readme, table), "the second time changes nothing"
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "Stale" not in text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `")}
    assert "torch.randn" in lines["`philox_normal-B1-T648-f32`"]
    assert "not measured" in lines["`philox_normal-B64-T1024-f32`"]
    cpu_cases = registry.select(None, "cpu", quick=False)
    assert len(lines) == len(cpu_cases)
    assert "NVIDIA GPU: not measured; " in text


def test_readme_says_what_is_stale(content: dict) -> None:
    table = report.markdown([content], today="another")
    assert "**Stale" in table
    assert "`philox_normal-B1-T648-f32` (stale)" in table


def test_readme_without_results() -> None:
    cpu, gpu = report.markdown([]).split("\n\nNVIDIA GPU: ")
    assert cpu.count("not measured") == len(registry.select(None, "cpu", quick=False))
    waiting = len(registry.select(None, "cuda", quick=False))
    assert gpu == f"not measured; {waiting} cases wait for `python -m bench --device cuda`."


@pytest.mark.parametrize("text", ["", report.BEGIN, report.END + report.BEGIN, 2 * (report.BEGIN + report.END)])
def test_readme_needs_its_markers(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="needs one line"):
        report.update_readme(readme, "table")
    assert readme.read_text() == text


def measured(case: Case, milliseconds: dict[str, float], extra_mb: float = 1.0) -> dict:
    """A case as if it had been measured."""
    known = {variant.name: variant for variant in (*registry.variants(case, "cpu"), *case.peers)}
    rows = [
        timing.Row(
            name, known[name].ours, known[name].computes, median=1e-3 * time, extra_bytes=int(1e6 * extra_mb), samples=3
        )
        for name, time in milliseconds.items()
    ]
    return report.to_json(timing.Result(case, rows), FLOOR)


def find(name: str) -> Case:
    return next(case for case in registry.CASES if case.name == name)


def test_summary_relates_rows_to_one_another() -> None:
    ours = "sinmdm reference"
    layer = registry.attention_of("small")
    step = next(case for case in registry.MAIN_JOB if "small" in case.name)
    cases = [
        measured(find("window_attention-fwd-B1-T64-w16-f32"), {ours: 0.03, "SDPA, no mask": 0.02}),
        measured(
            find("window_attention-fwd-B1-T4096-w16-f32"),
            {ours: 2.0, "SDPA, dense mask": 200.0, "FlexAttention, compiled": 20.0, "local-attention": 10.0},
        ),
        measured(find("window_attention-fwd-B1-T65536-w16-f32"), {ours: 35.2}, 16.8),
        measured(find("window_attention-fwd-B1-T4096-w16-bf16"), {ours: 1.8, "sinmdm, float32 inputs": 2.0}),
        measured(layer, {ours: 5.0}),
        measured(step, {ours: 80.0, "SDPA, dense mask": 100.0}),
    ]
    lines = "\n".join(report.summary(cases))
    assert (
        "2 ms: times faster than SDPA, dense mask 100; FlexAttention, compiled 10; local-attention (no bias) 5;"
        in lines
    )
    assert "T 65536 against T 4096: 0.537 ms (1.10 times as much), 0.256 MB extra (1.05 times as much)" in lines
    assert "`window_attention-fwd-B1-T4096-w16-bf16`: 0.9 times float32's time" in lines
    assert "sinmdm reference 30 µs, 1.5 times SDPA without a mask" in lines
    assert f"with {ours}: 80 ms, of it attention 20 ms (25.0 %)" in lines
    assert "with SDPA, dense mask: 100 ms" in lines
    assert report.summary([]) == []
    assert report.summary(cases[:1])


def test_readme_keeps_another_function_apart() -> None:
    name = "window_attention-fwd-B1-T4096-w16-f32"
    case = measured(
        find(name),
        {"sinmdm reference": 2.0, "SDPA, dense mask": 200.0, "PyTorch, blocked": 20.0, "local-attention": 1.0},
    )
    content = report.document([case], FLOOR, provenance.collect("cpu"), {"case_set": "full"})
    table = report.markdown([content])
    (line,) = (line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:6] == [
        "2 (reference)", "200 (SDPA, dense mask)", "20 (PyTorch, blocked)", "1 (local-attention)", "100 / 10 / 0.5",
    ]  # fmt: skip
    assert f"- `{name}`, sinmdm reference, 2 ms: times faster than" in table


GPU = {"name": "NVIDIA of a test", "driver": "580.1", "cuda": "13.0"}


def gpu_document(times: dict[str, dict[str, float]], **where: object) -> dict:
    """A results file as if a GPU had been measured: case name -> variant -> milliseconds."""
    cases = []
    for name, of_case in times.items():
        case = find(name)
        rows = [
            timing.Row(variant, variant.startswith("sinmdm"), median=1e-3 * time, samples=3)
            for variant, time in of_case.items()
        ]
        cases.append(report.to_json(timing.Result(case, rows), FLOOR))
    collected = provenance.collect("cpu") | {"device": "cuda", "gpu": GPU, "triton": "3.6.0"} | where
    return report.document(cases, FLOOR, collected, {"case_set": "full"})


FORWARD = "window_attention-fwd-B8-T4096-w16-bf16"
BACKWARD = "window_attention-fwdbwd-B8-T4096-w16-bf16"
OTHER_FORWARD = "window_attention-fwd-B8-T1024-w16-bf16"
SMALL = "denoise_step-B1-T200-f32"
MEASURED = {
    OTHER_FORWARD: {"sinmdm cuda": 0.1, "sinmdm triton": 0.2, "sinmdm reference": 9.0, "SDPA, dense mask": 3.0},
    FORWARD: {"sinmdm cuda": 0.25, "sinmdm triton": 0.2, "sinmdm reference": 9.0, "FlexAttention, compiled": 1.0},
    BACKWARD: {"sinmdm cuda": 1.0, "sinmdm triton": 0.5, "sinmdm reference": 20.0},
    SMALL: {"sinmdm cuda": 0.01, "sinmdm reference": 0.1, "eager, randn_like": 0.05},
}


@pytest.fixture
def choice_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty table in place of the package's own."""
    monkeypatch.setattr(_choice, "FILE", tmp_path / "table" / "choice.json")
    _choice._table.cache_clear()
    report.write_json(_choice.FILE, {"format": 1, "choices": {}})
    yield _choice.FILE
    _choice._table.cache_clear()


def lines_of(table: str) -> dict[str, list[str]]:
    rows = (line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `"))
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_readme_of_a_gpu(choice_file: Path, content: dict) -> None:
    table = report.markdown([content, gpu_document(MEASURED)])
    assert "NVIDIA of a test, driver 580.1, CUDA 13.0, Triton 3.6.0; " in table
    assert "wait for" not in table
    cpu, gpu = (lines_of(part) for part in table.split("NVIDIA of a test"))
    assert set(cpu) == {f"`{case.name}`" for case in registry.select(None, "cpu", quick=False)}
    assert set(gpu) == {f"`{case.name}`" for case in registry.select(None, "cuda", quick=False)}
    assert gpu[f"`{FORWARD}`"][:5] == [
        "0.25 (cuda), 0.2 (triton)", "", "1 (FlexAttention, compiled)", "", "4",
    ]  # fmt: skip
    assert gpu[f"`{SMALL}`"][0] == "0.01 (cuda)"
    assert gpu["`qna_attention-fwd-B64-T648-w1-bf16`"][0] == "not measured"
    assert "- window_attention: sinmdm cuda takes 1.08 times sinmdm triton's time, from 0.5 to 2 over 3 cases" in table
    assert f"- `{FORWARD}`, sinmdm triton, 0.2 ms: times faster than FlexAttention, compiled 5; " in table


def test_readme_of_a_gpu_names_the_backend_that_is_chosen_first(choice_file: Path) -> None:
    document = gpu_document(MEASURED)
    assert report.update_choice(choice_file, [document])
    _choice._table.cache_clear()
    gpu = lines_of(report.markdown([document]))
    assert gpu[f"`{BACKWARD}`"][0] == "0.5 (triton), 1 (cuda)"
    # Its class has another case in which cuda gains more than it loses here.
    assert gpu[f"`{FORWARD}`"][0] == "0.25 (cuda), 0.2 (triton)"


def test_readme_of_a_stale_gpu() -> None:
    table = report.markdown([gpu_document(MEASURED)], today="another")
    assert "**Stale: the kernels have changed since; run `python -m bench --device cuda`.**" in table
    assert f"`{FORWARD}` (stale)" in table


def test_choices_come_from_measured_rows(choice_file: Path) -> None:
    old = gpu_document({FORWARD: {"sinmdm cuda": 9.0, "sinmdm triton": 0.1}}, date="2020-01-01", kernel_hash="old")
    new = gpu_document(MEASURED, date="2021-01-01", kernel_hash="new")
    assert report.update_choice(choice_file, [new, old, gpu_document({}, device="cpu")])
    assert not report.update_choice(choice_file, [old, new]), "the second time changes nothing"
    entries = _choice.entries()
    assert list(entries) == [
        "window_attention half backward large narrow", "window_attention half forward large narrow",
    ]  # fmt: skip
    assert [entry["backend"] for entry in entries.values()] == ["triton", "cuda"]
    assert entries["window_attention half backward large narrow"]["rows"] == [
        {"case": BACKWARD, "ms": {"cuda": 1.0, "triton": 0.5}, "device": GPU["name"], "kernels": "new"}
    ]
    rows = {row["case"]: row for row in entries["window_attention half forward large narrow"]["rows"]}
    assert rows[FORWARD]["kernels"] == "new", "the latest of a case"
    assert _choice.report()["window_attention half forward large narrow"] == f"cuda, measured on {GPU['name']} (stale)"


def test_a_measured_case_is_in_the_class_of_its_calls() -> None:
    for case in registry.select("attention", "cuda", quick=False):
        if case.op.name not in ("window_attention", "qna_attention"):
            continue
        main = timing.make_inputs(case, "cpu")["q" if case.op.name == "window_attention" else "values"]
        columns = 2 * case.shape["w"] + 1
        shape = _choice.shape_class(main.numel(), columns, case.backward)
        expected = _choice.key_of(case.op.name, str(main.dtype).removeprefix("torch."), shape)
        assert choice.class_of(report.to_json(timing.Result(case, []), FLOOR)) == expected


def test_update_choice(tmp_path: Path, choice_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = choice_file.read_text()
    arguments = ["--update-choice", "--output", str(tmp_path / "results")]
    (tmp_path / "results").mkdir()
    for results in ({}, {"cpu-full.json": gpu_document(MEASURED, device="cpu", gpu=None)}):
        for name, document in results.items():
            report.write_json(tmp_path / "results" / name, document)
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert "no GPU results with both cuda and triton" in capsys.readouterr().err
        assert choice_file.read_text() == before
    report.write_json(tmp_path / "results" / "nvidia-part.json", gpu_document(MEASURED))  # no whole set
    with pytest.raises(SystemExit):
        command.main(arguments)
    report.write_json(tmp_path / "results" / "nvidia-full.json", gpu_document(MEASURED))
    choice_file.write_text("broken by hand")
    assert command.main(arguments) == 0
    assert "choice.json is updated" in capsys.readouterr().err
    assert command.main(arguments) == 0
    assert "choice.json is as it should be" in capsys.readouterr().err
    assert [path.name for path in choice_file.parent.iterdir()] == [choice_file.name]
    _choice._table.cache_clear()
    assert _choice.measured("window_attention", "float16", "backward large narrow") == ("triton",)
    assert command.main(["--list", "--device", "cuda", "--filter", "philox"]) == 0
    listed = capsys.readouterr().out
    assert f"chosen for window_attention half forward large narrow: cuda, measured on {GPU['name']}\n" in listed


def test_past_its_minutes_a_run_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = registry.attention_case(20, 4)
    slow = dataclasses.replace(sabotaged(case.peers[0], 1.0), slow_start=True)
    monkeypatch.setattr(registry, "CASES", (dataclasses.replace(case, peers=(case.peers[0], slow)),))
    monkeypatch.setattr(floor, "measure", lambda *_, **__: FLOOR)
    for minutes, status in (("60", "ok"), ("0", "unavailable")):
        assert command.main(["--output", str(tmp_path), "--minutes", minutes]) == 0
        rows = {row["variant"]: row for row in report.read_json(tmp_path / "cpu-full.json")["cases"][0]["rows"]}
        assert rows["sabotaged"]["status"] == status
        assert rows["SDPA, dense mask"]["status"] == "ok"
    assert "the run had taken 0 minutes" in rows["sabotaged"]["reason"]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cases = []
    for frames in (8, 24):
        case = registry.attention_case(frames)
        rows = [timing.Row("sinmdm reference", ours=True, median=1e-3 * frames), timing.Row(case.baseline, median=1e-3)]
        cases.append(report.to_json(timing.Result(case, rows), FLOOR))
    assert report.plot(cases[:1], tmp_path / "plot.png") is not None
    assert report.plot(cases, tmp_path / "plot.png") is None
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


# The command


def test_a_failed_gate_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = registry.attention_case(20, 4)
    monkeypatch.setattr(registry, "CASES", (dataclasses.replace(case, peers=(sabotaged(case.peers[0], 2.0),)),))
    monkeypatch.setattr(floor, "measure", lambda *_, **__: FLOOR)
    assert command.main(["--output", str(tmp_path)]) == command.FAILED
    (written,) = tmp_path.glob("*.json")
    assert written.name == "cpu-full.json"
    assert report.read_json(written)["cases"][0]["status"] == "FAILED"
    assert "FAILED" in report.markdown(report.load_results(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--filter", "nothing"], "no case contains 'nothing'"),
        (["--device", "abacus"], "invalid choice"),
        (["--update-readme", "--quick"], "--update-readme measures nothing"),
        (["--update-choice", "--filter", "philox"], "--update-choice measures nothing"),
        (["--output", __file__], "is not a folder"),
        pytest.param(
            ["--device", "cuda"],
            "sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == command.USAGE
    assert said in capsys.readouterr().err


def test_file_names() -> None:
    assert command.file_stem("cpu", False, None) == "cpu-full"
    assert command.file_stem("cpu", True, None) == "cpu-quick"
    assert command.file_stem("cpu", False, "qna_attention-fwd") == "cpu-qna_attention-fwd-part"
    assert command.file_stem("cpu", True, "a/b") == "cpu-a-b-quick"


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--filter", "philox", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    written = report.read_json(tmp_path / "cpu-philox-quick.json")
    assert [case["name"] for case in written["cases"]] == ["philox_normal-B1-T648-f32"]
    rows = {row["variant"]: row for row in written["cases"][0]["rows"]}
    assert {"sinmdm reference", "torch.randn"} <= set(rows)
    assert rows["torch.randn"]["p20_ms"] <= rows["torch.randn"]["median_ms"] <= rows["torch.randn"]["p80_ms"]
    assert written["floor"]["copy_gb_per_s"] > 0
    assert not provenance.is_stale(written["provenance"])
    if sys.platform == "linux":
        assert set(command.ALLOCATOR) <= set(written["provenance"]["allocator"])
    assert "philox_normal-B1-T648-f32" in done.stdout
    assert "[1/1" in done.stderr
    assert command.main(["--list", "--filter", "philox", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("not measured") == 2, "a filtered run is no full result"
    assert peers.PHILOX_NORMAL[0].name in rows
