"""Which implementation takes a call, and what is said where none can: in this process and in fresh ones."""

import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sinmdm.kernels import Schedule, _dispatch, _native, backends, philox_normal, q_sample
from sinmdm.kernels._dispatch import BackendError

SCHEDULE = Schedule.cosine(20)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends whose body of q_sample was called, in order; the cpu body is the reference's, so that it runs."""
    monkeypatch.delenv(_dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(_native, "load", lambda: True)
    made: list[str] = []
    table = _dispatch._IMPLEMENTATIONS["q_sample"]
    reference = table["reference"]

    def spy(name: str):
        def body(*arguments):
            made.append(name)
            return reference.body(*arguments)

        return body

    for name, implementation in list(table.items()):
        monkeypatch.setitem(table, name, _dispatch.Implementation(spy(name), implementation.dtypes))
    return made


def call(dtype: torch.dtype = torch.float32, **options) -> None:
    q_sample(torch.zeros(1, 2, 3, dtype=dtype), 3, SCHEDULE, seed=1, **options)


def test_the_default_is_the_fastest_that_can(calls: list[str]) -> None:
    call()
    call(torch.float64)  # the cpu body has none
    assert calls == ["cpu", "reference"]


def test_the_default_without_the_extension(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "load", lambda: False)
    call()
    assert calls == ["reference"]


def test_the_argument_forces(calls: list[str]) -> None:
    call(backend="reference")
    call(backend="cpu")
    assert calls == ["reference", "cpu"]


def test_the_environment_forces_and_the_argument_is_stronger(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINMDM_BACKEND", "reference")
    call()
    call(backend="cpu")
    monkeypatch.setenv("SINMDM_BACKEND", "")  # empty: as if it were not there
    call()
    assert calls == ["reference", "cpu", "cpu"]


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "backend must be one of cpu, cuda, reference, triton, got 'mps'"
    with pytest.raises(ValueError, match=message):
        call(backend="mps")
    monkeypatch.setenv("SINMDM_BACKEND", "mps")
    with pytest.raises(ValueError, match=message):
        call()


def test_a_forced_backend_never_falls_back(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINMDM_BACKEND", "cpu")
    with pytest.raises(BackendError, match="'cpu' cannot take this call of q_sample: it takes float32, not float64"):
        call(torch.float64)
    assert calls == []


def test_errors_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'cuda'.*philox_normal: the tensors are on cpu, it takes cuda"):
        philox_normal((2, 3), seed=1, backend="cuda")
    monkeypatch.setitem(_dispatch._IMPLEMENTATIONS, "an_op", {"reference": None, "cpu": None})
    with pytest.raises(BackendError, match=r"'triton'.*an_op has no such implementation \(it has: cpu, reference\)"):
        _dispatch.choose("an_op", "triton", torch.zeros(1))
    monkeypatch.setattr(_native, "load", lambda: False)
    monkeypatch.setitem(_native._state, "why", "RuntimeError: no compiler")
    with pytest.raises(BackendError, match=r"native extension is not available \(RuntimeError: no compiler\)"):
        call(backend="cpu")


def test_a_backend_error_is_a_runtime_error() -> None:
    assert issubclass(BackendError, RuntimeError)


def test_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _dispatch.machine_lacks("reference") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _dispatch.machine_lacks("cuda") == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "load", lambda: True)
    monkeypatch.setattr(_native, "has_cuda", lambda: False)
    assert "has no CUDA half" in _dispatch.machine_lacks("cuda")
    monkeypatch.setattr(_native, "has_cuda", lambda: True)
    assert _dispatch.machine_lacks("cuda") is None


def test_what_triton_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: True)
    assert _dispatch.machine_lacks("triton") == "torch sees no CUDA device"
    with pytest.raises(BackendError, match=r"'triton'.*window_attention: the tensors are on cpu, it takes cuda$"):
        _dispatch.choose("window_attention", "triton", torch.zeros(1))
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: False)
    assert _dispatch.machine_lacks("triton") == "Triton is not installed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _dispatch.machine_lacks("triton") == "Triton is not installed"
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: True)
    assert _dispatch.machine_lacks("triton") is None


def test_interpreted_triton_takes_cpu_tensors_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: True)
    assert _dispatch.choose("window_attention", "triton", torch.zeros(1)) == "triton"
    assert _dispatch.choose("window_attention", None, torch.zeros(1)) != "triton"
    with pytest.raises(BackendError, match="it takes float16, bfloat16, float32, not float64"):
        _dispatch.choose("window_attention", "triton", torch.zeros(1, dtype=torch.float64))
    with pytest.raises(BackendError, match="norm_affine has no such implementation"):
        _dispatch.choose("norm_affine", "triton", torch.zeros(1))


def test_triton_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not _dispatch._has_triton()
    monkeypatch.delitem(sys.modules, "triton")
    _dispatch._has_triton()
    assert "triton" not in sys.modules


def test_backends_are_listed_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = backends()
    assert list(listed) == ["cpu", "cuda", "reference", "triton"]
    assert listed["reference"] == "available"
    assert all(isinstance(reason, str) and reason for reason in listed.values())
    monkeypatch.setattr(_native, "load", lambda: False)
    monkeypatch.setitem(_native._state, "why", "SINMDM_NATIVE=0")
    assert backends()["cpu"] == "the native extension is not available (SINMDM_NATIVE=0)"


def test_every_op_has_a_reference() -> None:
    table = _dispatch.implementations()
    assert set(table) >= {
        "window_attention",
        "qna_attention",
        "norm_affine",
        "q_sample",
        "denoise_step",
        "philox_normal",
        "window_match",
    }
    for op, names in table.items():
        assert names[-1] == "reference", op
        assert set(names) <= set(_dispatch.BACKENDS)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """_native as before its first load, on a machine without a prebuilt library or a compiler; what it then tried."""
    tried: list[str] = []

    def jit() -> None:
        tried.append("jit")
        raise RuntimeError("Error building extension\nnoise.cpp:3: error: no such header\nninja stopped")

    monkeypatch.setattr(_native, "_state", {})
    monkeypatch.setattr(_native, "_load_prebuilt", lambda: bool(tried.append("prebuilt")))
    monkeypatch.setattr(_native, "_load_jit", jit)
    return tried


def test_an_unknown_mode_is_an_error(unloaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINMDM_NATIVE", "bogus")
    for _ in range(2):  # every time, not only the first
        with pytest.raises(ValueError, match="SINMDM_NATIVE must be one of auto, jit, 0, 1, got 'bogus'"):
            call()
    assert unloaded == []


@pytest.mark.parametrize(("mode", "tries"), [("auto", ["prebuilt", "jit"]), ("jit", ["jit"])])
def test_a_failed_build_warns_once(
    unloaded: list[str], monkeypatch: pytest.MonkeyPatch, mode: str, tries: list[str]
) -> None:
    monkeypatch.setenv("SINMDM_NATIVE", mode)
    with pytest.warns(
        RuntimeWarning, match="unavailable \\(RuntimeError: noise.cpp:3: error: no such header\\)"
    ) as caught:
        call()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert unloaded == tries
    assert _native.how() is None
    assert _native.why_not() == "RuntimeError: noise.cpp:3: error: no such header"


def test_an_extension_that_is_wanted_must_be_there(unloaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINMDM_NATIVE", "1")
    for _ in range(2):  # every time, though it is looked for once
        with pytest.raises(BackendError, match=r"SINMDM_NATIVE=1, but .*: noise\.cpp:3: error: no such header"):
            call()
    assert unloaded == ["prebuilt", "jit"]


# What a fresh process prints: warnings, backends, whether the default is right, and what a forced backend says.
PROBE = textwrap.dedent(
    """
    import json, sys, warnings
    sys.modules.update({name: None for name in %(blocked)r})
    said = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch
        from sinmdm import kernels
        from sinmdm.kernels import _native
        x = torch.linspace(-1, 1, 40).reshape(1, 8, 5)
        schedule = kernels.Schedule.cosine(20)
        try:
            for name, call in {
                "q_sample": lambda **o: kernels.q_sample(x, 3, schedule, seed=1, **o),
                "denoise_step": lambda **o: kernels.denoise_step(x, x, 3, schedule, seed=1, **o),
                "philox_normal": lambda **o: kernels.philox_normal((8, 5), seed=1, **o),
                "window_attention": lambda **o: kernels.window_attention(*[x[..., None, :]] * 3, window=2, **o),
                "qna_attention": lambda **o: kernels.qna_attention(
                    x[..., :1], x[..., None, :], torch.zeros(1, 3), window=1, **o),
                "norm_affine": lambda **o: kernels.norm_affine(x, x[:, 0] + 1, x[:, 1], **o),
            }.items():
                said[name] = float((call() - call(backend="reference")).abs().max())
            said["backends"] = kernels.backends()
            said["how"] = _native.how()
            try:
                kernels.q_sample(x, 3, schedule, seed=1, backend="cpu")
            except RuntimeError as error:
                said["forced"] = f"{type(error).__name__}: {error}"
        except Exception as error:
            said["error"] = f"{type(error).__name__}: {error}"
    said["warnings"] = [[w.category.__name__, str(w.message)] for w in caught if "sinmdm" in str(w.message)]
    said["warnings"] += [[w.category.__name__, str(w.message)] for w in caught
                         if w.category is RuntimeWarning and "sinmdm" not in str(w.message)]
    print("SAID" + json.dumps(said))
    """
)
OPS = ("q_sample", "denoise_step", "philox_normal", "window_attention", "qna_attention", "norm_affine")


def environment(**changes: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SINMDM_")}
    return own | changes


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict]]:
    """Situation -> what the probe said there. All processes run side by side."""
    empty, cache = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("extensions")
    # CXX too, for a machine whose ninja lies in one folder with a compiler.
    no_compiler = {"PATH": str(empty), "CXX": "there-is-no-compiler", "TORCH_EXTENSIONS_DIR": str(cache)}
    situations = {
        "no compiler": (no_compiler | {"SINMDM_NATIVE": "jit"}, ()),
        "SINMDM_NATIVE=0": ({"SINMDM_NATIVE": "0"}, ()),
        "no triton": ({}, ("triton",)),
    }
    running = {}
    for name, (changes, blocked) in situations.items():
        code = PROBE % {"blocked": blocked}
        running[name] = subprocess.Popen(
            [sys.executable, "-c", code], env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    said = {}
    for name, process in running.items():
        out, error = process.communicate(timeout=120)
        line = next((line for line in out.splitlines() if line.startswith("SAID")), None)
        said[name] = json.loads(line[4:]) if line else {"error": error}
    return said


def assert_right(said: dict, within: float = 0.0) -> None:
    assert "error" not in said, said["error"]
    for op in OPS:
        assert said[op] <= within, op


def test_without_a_compiler_one_warning_and_right_results(fresh: dict[str, dict]) -> None:
    said = fresh["no compiler"]
    assert_right(said)
    assert len(said["warnings"]) == 1, said["warnings"]
    category, text = said["warnings"][0]
    assert category == "RuntimeWarning"
    assert text.startswith("sinmdm: native kernels are unavailable (")
    assert "compiler" in text
    assert said["how"] is None
    assert said["backends"]["cpu"].startswith("the native extension is not available (")
    assert said["forced"].startswith("BackendError: backend 'cpu' cannot take this call of q_sample: the native")


def test_without_the_extension_by_choice_no_warning(fresh: dict[str, dict]) -> None:
    said = fresh["SINMDM_NATIVE=0"]
    assert_right(said)
    assert said["warnings"] == []
    assert said["how"] is None
    assert said["backends"]["cpu"] == "the native extension is not available (SINMDM_NATIVE=0)"


def test_without_triton_everything_runs(fresh: dict[str, dict]) -> None:
    # The cpu backend's normals are within 2e-6 of the reference's, which coefficients of at most 1 do not magnify.
    assert_right(fresh["no triton"], within=4e-6)
    assert fresh["no triton"]["backends"]["triton"] != "available"


def test_the_source_folder_is_there() -> None:
    folder = _native.source_folder()
    assert {path.name for path in _native.cpu_sources(folder)} >= {"noise.cpp", "q_sample.cpp", "denoise_step.cpp"}
    assert Path(folder, "philox.h").is_file()
