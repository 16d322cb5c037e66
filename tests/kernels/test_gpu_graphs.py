"""Every op in a CUDA graph, on a stream of its own, on a second device, again and again, and as torch's schema checks
and its compiler see it.

What a test does is a function of the device, so that all of it but CUDA's own calls is tried on the CPU, too.
"""

import dataclasses
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_calls import CALLS, KERNELS, Call, assert_alike, assert_same, takes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinmdm.kernels import _dispatch

EVERY_CALL = pytest.mark.parametrize("call", CALLS, ids=str)
ON_A_GPU = pytest.mark.parametrize("backend", KERNELS)
TRIED_ON_THE_CPU = pytest.mark.parametrize("backend", ["cpu"])
ASLEEP = 20_000_000  # cycles of a GPU's clock: some ten milliseconds


def half_or_float(call: Call) -> torch.dtype:
    return torch.bfloat16 if call.gradients else torch.float32


class Captured:
    """The launches of `function` as a CUDA graph, and its results, which a replay writes anew; on the CPU, calls."""

    def __init__(self, function: Callable[[], dict[str, Tensor]], device: str) -> None:
        self.function = function
        self.graph = None
        if device == "cpu":
            self.results = function()
            return
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # what is compiled, loaded or allocated at first use is not captured
            for _ in range(3):
                function()
        torch.cuda.current_stream(device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = function()

    def replay(self) -> None:
        for x in self.results.values():
            x.fill_(torch.nan)  # so that a result is what this replay wrote
        if self.graph is not None:
            self.graph.replay()
            return
        for name, x in self.function().items():
            self.results[name].copy_(x)


def replays(call: Call, backend: str, device: str) -> None:
    """A graph gives the bits of eager calls, also with other inputs, lengths, timesteps and words of noise."""
    inputs = call.on(device, half_or_float(call))
    expected = call.results(inputs, backend)
    captured = Captured(lambda: call.results(inputs, backend), device)
    captured.replay()
    assert_same(captured.results, expected)
    for _ in range(2):
        fresh = call.on(device, half_or_float(call))
        for name, x in inputs.items():
            x.copy_(fresh[name])
        captured.replay()
        assert_same(captured.results, call.results(fresh, backend))


def waits_for_its_stream(call: Call, backend: str, device: str) -> None:
    """What a stream's earlier work writes, late, is what the op reads; and its results are there for later work."""
    inputs = call.on(device, half_or_float(call))
    expected = call.results(inputs, backend)
    late = {name: torch.zeros_like(x) for name, x in inputs.items()}
    with other_stream(device) as stream:
        if stream is not None:
            torch.cuda._sleep(ASLEEP)
        for name, x in inputs.items():
            late[name].copy_(x)
        actual = {name: x.clone() for name, x in call.results(late, backend).items()}
    if stream is not None:
        torch.cuda.current_stream().wait_stream(stream)
    assert_same(actual, expected)


def other_stream(device: str) -> Any:
    if device == "cpu":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return _Entered(stream)


class _Entered:
    """`with torch.cuda.stream(...)`, which says which."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream, self.context = stream, torch.cuda.stream(stream)

    def __enter__(self) -> torch.cuda.Stream:
        self.context.__enter__()
        return self.stream

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


def stays_on(call: Call, backend: str, device: str, other: str) -> None:
    """On a device that is not the current one, the same bits as on that."""
    inputs = call.make(half_or_float(call))
    here, there = (
        call.results({name: x.to(where) for name, x in inputs.items()}, backend) for where in (device, other)
    )
    for name, x in there.items():
        assert x.device == torch.device(other), name
    assert_same(there, here)


def gives_the_same_bits(call: Call, backend: str, device: str) -> None:
    inputs = call.on(device, half_or_float(call))
    first = call.results(inputs, backend)
    for _ in range(19):
        assert_same(call.results(inputs, backend), first)


class Recorder(TorchDispatchMode):
    """The calls of our ops, as the dispatcher has them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        if function.namespace == "sinmdm" and "_native" not in function.name():
            self.calls.append((function, arguments, options or {}))
        return function(*arguments, **options or {})


def passes_opcheck(call: Call, backend: str, device: str) -> None:
    inputs = call.on(device, torch.float32)
    leaves = {name: x.requires_grad_(name in call.gradients) for name, x in inputs.items()}
    with Recorder() as recorder:
        out, *_ = call.run(leaves, backend)
        if call.gradients:
            torch.autograd.grad(out, [leaves[name] for name in call.gradients], leaves["grad_out"])
    names = {function.name().removeprefix("sinmdm::").removesuffix("_out") for function, _, _ in recorder.calls}
    assert names == ({call.op, f"{call.op}_backward"} if call.gradients else {call.op})
    for function, arguments, options in recorder.calls:
        if "_backward" in function.name():  # which has no derivative of its own
            arguments = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
        torch.library.opcheck(function, arguments, options)


def compiles(call: Call, backend: str | None, device: str) -> None:
    """As one graph, to the bits of an eager call."""
    inputs = call.on(device, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda inputs: call.run(inputs, backend), fullgraph=True, backend="aot_eager")
    in_one_graph = dataclasses.replace(call, run=lambda inputs, name: compiled(inputs))
    assert_same(in_one_graph.results(inputs, ""), call.results(inputs, backend))


OF_TENSORS_ALONE = pytest.mark.parametrize("call", [call for call in CALLS if call.gradients], ids=str)


@pytest.mark.gpu
class TestOnCuda:
    @pytest.fixture(autouse=True)
    def _taken(self, request: pytest.FixtureRequest) -> None:
        of_test = request.node.callspec.params
        if of_test.get("backend") is not None:
            takes(of_test["call"].op, of_test["backend"], half_or_float(of_test["call"]))

    @EVERY_CALL
    @ON_A_GPU
    def test_a_graph_replays(self, call: Call, backend: str) -> None:
        replays(call, backend, "cuda")

    @EVERY_CALL
    @ON_A_GPU
    def test_the_same_bits_every_time(self, call: Call, backend: str) -> None:
        gives_the_same_bits(call, backend, "cuda")

    @EVERY_CALL
    @ON_A_GPU
    def test_a_stream_of_its_own(self, call: Call, backend: str) -> None:
        waits_for_its_stream(call, backend, "cuda")

    @EVERY_CALL
    @ON_A_GPU
    def test_a_device_that_is_not_the_current_one(self, call: Call, backend: str) -> None:
        if torch.cuda.device_count() < 2:
            pytest.skip("needs two NVIDIA GPUs")
        if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
            pytest.skip("the two GPUs are of different kinds, and so may be their bits")
        stays_on(call, backend, "cuda:0", "cuda:1")
        assert torch.cuda.current_device() == 0

    @EVERY_CALL
    @ON_A_GPU
    def test_opcheck(self, call: Call, backend: str) -> None:
        passes_opcheck(call, backend, "cuda")

    @OF_TENSORS_ALONE
    @pytest.mark.parametrize("backend", [*KERNELS, None])
    def test_compiles_as_one_graph(self, call: Call, backend: str | None) -> None:
        compiles(call, backend, "cuda")

    @EVERY_CALL
    def test_the_default_is_one_of_the_kernels(self, call: Call) -> None:
        inputs = call.on("cuda", torch.float32)
        name = _dispatch.choose(call.op, None, next(iter(inputs.values())))
        have = [name for name in KERNELS if _dispatch._declines(call.op, name, "cuda", "float32") is None]
        assert name in (have or ["reference"])
        default = call.results(inputs, None)
        assert any(
            all(torch.equal(x, default[of]) for of, x in call.results(inputs, of_backend).items())
            for of_backend in have or ["reference"]
        )


@pytest.mark.gpu
def test_a_library_that_is_required_has_its_cuda_half() -> None:
    # `make test-gpu` requires it: otherwise all of its tests would be skipped, and nobody would know.
    if os.environ.get("SINMDM_NATIVE") != "1":
        pytest.skip("SINMDM_NATIVE=1 requires the extension, which is then not to lack its CUDA half")
    assert _dispatch.machine_lacks("cuda") is None


# The same without a GPU: what the calls are, and all that the tests above do but for CUDA's own part.


@EVERY_CALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_calls_are_right(call: Call, dtype: torch.dtype) -> None:
    takes(call.op, "cpu", dtype if dtype in call.dtypes and call.gradients else torch.float32, "cpu")
    inputs = call.on("cpu", dtype)
    before = {name: x.clone() for name, x in inputs.items()}
    actual, expected = call.results(inputs, "cpu"), call.results(inputs, "reference")
    assert all(torch.equal(inputs[name], x) for name, x in before.items())
    for name, x in expected.items():
        assert_alike(name, actual[name], x, dtype if call.gradients else torch.float32)
        assert x.any()


@EVERY_CALL
@TRIED_ON_THE_CPU
@pytest.mark.parametrize(
    "what", [replays, waits_for_its_stream, gives_the_same_bits, passes_opcheck], ids=lambda what: what.__name__
)
def test_on_the_cpu(what: Callable[..., None], call: Call, backend: str) -> None:
    what(call, backend, "cpu")


@EVERY_CALL
@TRIED_ON_THE_CPU
def test_devices_on_the_cpu(call: Call, backend: str) -> None:
    stays_on(call, backend, "cpu", "cpu")


@OF_TENSORS_ALONE
@TRIED_ON_THE_CPU
def test_compiles_on_the_cpu(call: Call, backend: str) -> None:
    compiles(call, backend, "cpu")


def test_every_op_is_called() -> None:
    ops = {op for op in _dispatch.implementations() if not op.endswith("_backward")}
    assert {call.op for call in CALLS} == ops
    assert len({call.name for call in CALLS}) == len(CALLS)


def test_make_test_gpu_looks_where_such_tests_are() -> None:
    # It names folders, because on a machine with the kernels' needs alone the others cannot be imported.
    root = Path(__file__).resolve().parents[2]
    command = next(line for line in (root / "Makefile").read_text().splitlines() if "-m pytest -m gpu" in line)
    folders = [root / folder for folder in command.split("-m gpu")[1].split()]
    mark = "mark." + "gpu"
    marked = [path for path in (root / "tests").rglob("*.py") if mark in path.read_text()]
    assert len(marked) >= 5
    assert [path.name for path in marked if not any(folder in path.parents for folder in folders)] == []
