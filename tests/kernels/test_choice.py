"""The choice between the backends of a GPU: by measured rows where there are any, by the default order elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from sinmdm.kernels import _choice, _dispatch, _native
from sinmdm.kernels._dispatch import BackendError

OP = "window_attention_of_a_test"
LARGE = (1, 2**10, 8, 128)
Write = Callable[..., None]


def row(cuda: float, triton: float, case: str = "a case", kernels: str = "another") -> dict[str, Any]:
    return {"case": case, "ms": {"cuda": cuda, "triton": triton}, "device": "a GPU", "kernels": kernels}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and every backend, on which an op has them all."""
    monkeypatch.delenv(_dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(_dispatch, "machine_lacks", lambda backend: None)
    implementations = {name: _dispatch.Implementation(print, ("float32", "bfloat16")) for name in _dispatch.BACKENDS}
    monkeypatch.setitem(_dispatch._IMPLEMENTATIONS, OP, implementations)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a table in the place of the package's own."""

    def put(content: object = None, **choices: list[dict[str, Any]]) -> None:
        entries = {
            f"{OP} {name.replace('_', ' ')}": {"backend": _choice.faster(rows), "rows": rows}
            for name, rows in choices.items()
        }
        whole = {"format": _choice.FORMAT, "choices": entries} if content is None else content
        _choice.FILE.write_text(whole if isinstance(whole, str) else json.dumps(whole))
        _choice._table.cache_clear()

    monkeypatch.setattr(_choice, "FILE", tmp_path / "choice.json")
    put()
    yield put
    _choice._table.cache_clear()


def on_cuda(*sizes: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    with FakeTensorMode():  # which needs no such device
        return torch.empty(sizes, dtype=dtype, device="cuda", requires_grad=grad)


def choose(tensor: torch.Tensor | None = None, requested: str | None = None, **of_call: int) -> str:
    return _dispatch.choose(OP, requested, on_cuda(*LARGE) if tensor is None else tensor, **of_call)


def test_the_tables_own_file_is_one() -> None:
    for name, entry in _choice.entries().items():
        assert entry["rows"], name
    assert set(_dispatch.choices()) == set(_choice.entries())


def test_the_table_is_installed() -> None:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    settings = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    assert "choice.json" in settings["tool"]["setuptools"]["package-data"]["sinmdm.kernels"]


def test_without_measurements_the_default_order_decides(machine: None, write: Write) -> None:
    assert choose() == choose(columns=33) == choose(on_cuda(3, grad=True), columns=500) == "cuda"
    assert _dispatch.choices() == {}


def test_without_cuda_kernels_it_is_triton(machine: None, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "machine_lacks", lambda backend: "not here" if backend == "cuda" else None)
    assert choose() == "triton"
    write(float32_forward_large=[row(1, 2)])
    assert choose() == "triton"


def test_measurements_decide_for_their_class_alone(machine: None, write: Write) -> None:
    write(float32_forward_large_narrow=[row(2, 1)], half_backward_small=[row(2, 1)])
    assert choose(columns=33) == "triton"
    assert choose(columns=34) == choose() == "cuda"
    assert choose(on_cuda(*LARGE, grad=True), columns=33) == "cuda"
    assert choose(on_cuda(5), columns=33) == "cuda"
    assert choose(on_cuda(5), columns=33, elements=_choice.LARGE) == "triton"
    assert choose(on_cuda(5, dtype=torch.bfloat16, grad=True)) == "triton"
    with torch.no_grad():
        assert choose(on_cuda(5, dtype=torch.bfloat16, grad=True)) == "cuda"


def test_the_cases_of_a_class_decide_together(machine: None, write: Write) -> None:
    write(float32_forward_large=[row(1, 3), row(2, 1)])
    assert choose() == "cuda"
    write(float32_forward_large=[row(1, 3), row(4, 1)])
    assert choose() == "triton"


def test_a_forced_backend_wins(machine: None, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(float32_forward_large=[row(2, 1)])
    assert choose() == "triton"
    assert choose(requested="cuda") == "cuda"
    monkeypatch.setenv(_dispatch.ENVIRONMENT_VARIABLE, "reference")
    assert choose() == "reference"
    write("no table at all")
    assert choose() == "reference"
    monkeypatch.setattr(_dispatch, "machine_lacks", lambda backend: "not here")
    with pytest.raises(BackendError, match="not here"):
        choose(requested="triton")


def test_what_a_measured_backend_cannot_take_goes_to_the_next(machine: None, write: Write) -> None:
    write(float64_forward_large=[row(2, 1)])
    implementations = _dispatch._IMPLEMENTATIONS[OP]
    implementations["reference"] = _dispatch.Implementation(print, ("float64",))
    assert choose(on_cuda(*LARGE, dtype=torch.float64)) == "reference"
    write(float32_forward_large=[row(2, 1)])
    del implementations["triton"]
    assert choose() == "cuda"


def test_the_cpu_never_asks_the_table(machine: None, write: Write) -> None:
    write("no table at all")
    assert choose(torch.zeros(LARGE)) == "cpu"


GOOD = {"backend": "cuda", "rows": [row(1, 2)]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ({"choices": {}}, "KeyError: 'format'"),
        ({"format": 0, "choices": {}}, "its format is 0, not 1"),
        ({"format": 1, "choices": {"nonsense": GOOD}}, "not enough values"),
        ({"format": 1, "choices": {"op float8 forward large": GOOD}}, "there is no class 'op float8 forward large'"),
        ({"format": 1, "choices": {"op half forward huge": GOOD}}, "there is no class"),
        ({"format": 1, "choices": {"op half forward large": {"backend": "cuda", "rows": []}}}, "not what its rows say"),
        ({"format": 1, "choices": {"op half forward large": GOOD | {"backend": "triton"}}}, "'triton' is not what"),
        ({"format": 1, "choices": {"op half forward large": GOOD | {"rows": [row(0, 2)]}}}, "no milliseconds"),
        ({"format": 1, "choices": {"op half forward large": GOOD | {"rows": [row("1", 2)]}}}, "TypeError"),  # type: ignore[arg-type]
        ({"format": 1, "choices": {"op half forward large": GOOD | {"rows": [{"case": "x"}]}}}, "KeyError"),
    ],
)
def test_a_bad_table_is_an_error(machine: None, write: Write, content: object, complaint: str) -> None:
    write(content)
    for ask in (choose, choose, _dispatch.choices):  # every time, not only the first
        with pytest.raises(ValueError, match=r"choice\.json is no table of measured choices") as error:
            ask()
        assert complaint in str(error.value)
        assert "--update-choice" in str(error.value)


def test_a_missing_table_is_an_error(machine: None, write: Write) -> None:
    _choice.FILE.unlink()
    with pytest.raises(ValueError, match="FileNotFoundError"):
        choose()


def test_stale_choices_are_taken_and_said(machine: None, write: Write) -> None:
    today = _choice.kernel_hash(_choice.HERE, _native.source_folder())
    write(float32_forward_large=[row(2, 1)], half_forward_large=[row(1, 2, kernels=today)])
    assert choose() == "triton"
    assert _dispatch.choices() == {
        f"{OP} float32 forward large": "triton, measured on a GPU (stale)",
        f"{OP} half forward large": "cuda, measured on a GPU",
    }


def test_the_hash_is_that_of_the_installed_package_too(tmp_path: Path) -> None:
    # In a checkout csrc/ lies beside kernels/, in an installed package inside it.
    for folder in ("checkout/kernels/op", "checkout/csrc/cpu", "package/op", "package/csrc/cpu"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ("op.cpp" if "csrc" in folder else "op.py")).write_text("source")
    checkout = _choice.kernel_hash(tmp_path / "checkout/kernels", tmp_path / "checkout/csrc")
    assert _choice.kernel_hash(tmp_path / "package", tmp_path / "package/csrc") == checkout


def test_a_graph_of_any_size_has_its_class(machine: None, write: Write) -> None:
    write(float32_forward_large_narrow=[row(2, 1)])

    def chosen(x: torch.Tensor) -> torch.Tensor:
        # As `choose` does for a tensor on CUDA, which this machine may not have.
        shape = _choice.shape_class(x.numel(), 33, torch.is_grad_enabled() and x.requires_grad)
        return x[:1] * 0 + {"cuda": 1.0, "triton": 2.0}[_dispatch._choose(OP, None, "cuda", "float32", shape)]

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(chosen, fullgraph=True, backend="eager", dynamic=True)
    for elements, name in ((5, 1.0), (2**20 - 1, 1.0), (2**20, 2.0), (2**20 + 5, 2.0), (7, 1.0)):
        assert compiled(torch.zeros(elements)).tolist() == [name]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_an_exported_program_has_no_size_built_in(machine: None, write: Write) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _dispatch.choose(OP, None, x)
            return x * 2

    rows = torch.export.Dim("rows", min=2, max=2**24)
    exported = torch.export.export(Doubled(), (on_cuda(50, 4),), dynamic_shapes={"x": {0: rows}})
    assert "mul" in exported.graph_module.code
