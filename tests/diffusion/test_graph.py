"""The loop as a CUDA graph: its step on the CPU, what is kept and used again, and the way around where it fails.

A graph on the CPU is here one that runs the step which was captured, with the tensors and the model of that time, as
a CUDA graph does.
"""

import contextlib
import gc
import importlib
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from local_model import InFloat64, LocalModel, random_transformer
from tolerance import assert_within_budget
from torch import Tensor, nn

from sinmdm.diffusion import GraphCache, Schedule, sample
from sinmdm.diffusion import graph as graphs

SAMPLING = importlib.import_module("sinmdm.diffusion.sampling")
SHAPE = (2, 3, 17)
TWENTY = Schedule.cosine(20)
EVERY_SAMPLER = pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm", "prediction": "v", "clip": 0.8},
        {"sampler": "ddpm", "variance": "fixed_large", "steps": [19, 12, 3]},
        {"sampler": "ddim", "steps": 6},
        {"sampler": "ddim", "eta": 0.7, "steps": 6, "prediction": "epsilon", "clip": 1.0},
        {"sampler": "dpmpp_2m", "steps": 6},
        {"sampler": "dpmpp_2m", "steps": 6, "prediction": "v", "clip": 0.8},
    ],
    ids=["ddpm", "ddpm_large", "ddim", "ddim_noisy", "dpmpp", "dpmpp_clipped"],
)
EVERY_EXTRA = pytest.mark.parametrize(
    "extra",
    [{}, {"known": torch.ones(SHAPE), "mask": (torch.arange(17) < 5).float()}, {"lengths": torch.tensor([17, 9])}],
    ids=["", "known", "lengths"],
)


def _reference(model: Callable[..., Tensor], **options: Any) -> Tensor:
    return sample(model, SHAPE, TWENTY, **{"seed": 5, **options})


@EVERY_EXTRA
@EVERY_SAMPLER
@pytest.mark.parametrize("model", [LocalModel(2), random_transformer()], ids=["timesteps", "conditions"])
def test_a_step_by_the_cursor_is_the_step_by_its_number(
    model: nn.Module, options: dict[str, Any], extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _reference(model, **options, **extra)

    def by_cursor(loop: Any, i: int, fresh: Tensor | None) -> None:
        assert fresh is None
        loop.captured_step(loop.tensors, torch.tensor([i]))

    monkeypatch.setattr(SAMPLING._Loop, "step", by_cursor)
    assert torch.equal(_reference(model, **options, **extra), expected)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes `sample` replay graphs on the CPU; a list of those that were captured."""
    found: list[Any] = []
    cache = GraphCache()

    def capture(step: Callable[..., None], tensors: dict[str, Tensor]) -> graphs.Captured:
        tensors, cursor = {name: x.clone() for name, x in tensors.items()}, torch.zeros(1, dtype=torch.int64)

        def run() -> None:
            step(tensors, cursor)
            cursor.add_(1)

        found.append(SimpleNamespace(replay=run))
        return graphs.Captured(found[-1], cursor, tensors)

    def replayed(loop: Any, i: int, fresh: Tensor | None) -> None:
        if i == 0:
            count = len(loop.plan)
            result = graphs.replay(
                loop.captured_step, loop.model, loop.tensors, count, loop.constants, cache, None
            )  # fmt: skip
            assert result is not None
            loop.tensors["x"].copy_(result)

    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(SAMPLING._Loop, "step", replayed)
    return found


@pytest.fixture
def eager() -> Iterator[Callable[..., Tensor]]:
    """`sample` as it is without the fixture above, however it is patched."""
    step = SAMPLING._Loop.step

    def run(model: Callable[..., Tensor], **options: Any) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SAMPLING._Loop, "step", step)
            return _reference(model, **options)

    return run


class TestReuse:
    @EVERY_EXTRA
    @EVERY_SAMPLER
    def test_a_second_call_replays_the_first_ones_graph(
        self, eager: Callable, captures: list, options: dict[str, Any], extra: dict[str, Any]
    ) -> None:
        model = LocalModel(2)
        for number in range(3):
            assert torch.equal(
                _reference(model, **options, **extra, first_sample=number),
                eager(model, **options, **extra, first_sample=number),
            )
        assert len(captures) == 1

    def test_what_a_graph_has_as_tensors_may_change(self, eager: Callable, captures: list) -> None:
        model, mask = LocalModel(2), torch.ones(1, 1, 17)
        for known in (torch.zeros(SHAPE), torch.ones(SHAPE)):
            for lengths in (torch.tensor([17, 9]), torch.tensor([3, 1])):
                options = {"known": known, "mask": mask / 2, "lengths": lengths}
                assert torch.equal(_reference(model, **options), eager(model, **options))
        assert len(captures) == 1
        # and so may the weights in place, the timesteps and what the network predicts
        changes: list[dict[str, Any]] = [{"steps": [19, 5]}, {"steps": [9, 2]}, {"steps": 2, "prediction": "v"}]
        for gain, options in zip((1.0, 1.1, 1.2), changes, strict=True):
            with torch.no_grad():
                model.gain.fill_(gain)
            assert torch.equal(_reference(model, **options), eager(model, **options))
        assert len(captures) == 2

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({}, {"seed": 6}),
            ({}, {"steps": 5}),
            ({}, {"clip": 0.5}),
            ({}, {"sampler": "ddim"}),
            ({"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.5}),
            ({"sampler": "ddim"}, {"sampler": "dpmpp_2m"}),
            ({}, {"lengths": torch.tensor([17, 9])}),
            ({"lengths": torch.tensor([17, 9])}, {"lengths": torch.tensor([17, 9], dtype=torch.int32)}),
            ({}, {"known": torch.ones(SHAPE), "mask": torch.ones(1)}),
            ({"known": torch.ones(SHAPE), "mask": torch.ones(1)}, {"known": torch.ones(SHAPE), "mask": torch.ones(17)}),
        ],
    )
    def test_what_a_graph_has_built_in_makes_another(
        self, eager: Callable, captures: list, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        model = LocalModel(2)
        for options in (first, second, first):
            assert torch.equal(_reference(model, **options), eager(model, **options))
        assert len(captures) == 2

    def test_other_weights_make_another(self, eager: Callable, captures: list) -> None:
        for model in (models := (LocalModel(2, gain=1.0), LocalModel(2, gain=1.2))):
            assert torch.equal(_reference(model), eager(model))
        model = models[0]
        model.gain = nn.Parameter(torch.tensor(0.7))
        assert torch.equal(_reference(model), eager(model))
        assert len(captures) == 3

    def test_dropout_in_training_makes_another(self, captures: list) -> None:
        model = random_transformer()
        _reference(model)
        _reference(model.train())
        assert len(captures) == 2

    def test_another_network_around_the_same_weights_makes_another(self, eager: Callable, captures: list) -> None:
        class Scaled(nn.Module):
            def __init__(self, network: nn.Module, factor: float) -> None:
                super().__init__()
                self.network, self.factor = network, factor

            def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
                return self.factor * self.network(x, timesteps)

        network = LocalModel(2)
        for model in (Scaled(network, 1.0), Scaled(network, 0.5)):
            assert torch.equal(_reference(model), eager(model))
        assert len(captures) == 2

    def test_networks_without_weights_are_told_apart(self, eager: Callable, captures: list) -> None:
        class Power(nn.Module):
            def __init__(self, power: int) -> None:
                super().__init__()
                self.power = power

            def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
                return torch.tanh(x) ** self.power

        for model in (Power(1), Power(2)):
            assert torch.equal(_reference(model), eager(model))
        assert len(captures) == 2


class TestCache:
    def test_keeps_the_last_used(self) -> None:
        cache, made = GraphCache(), []

        def get(key: int) -> Any:
            return cache.get(len, (key,), lambda: made.append(key) or SimpleNamespace(key=key))

        loops = [get(key) for key in range(graphs.KEPT)]
        assert made == list(range(graphs.KEPT))
        assert len(cache) == graphs.KEPT
        assert get(0) is loops[0]  # now the last used
        get(100)  # in place of 1
        assert len(cache) == graphs.KEPT
        assert get(0) is loops[0]
        assert made == [*range(graphs.KEPT), 100]
        assert get(1) is not loops[1]
        assert made == [*range(graphs.KEPT), 100, 1]

    def test_a_capture_that_fails_leaves_nothing(self) -> None:
        cache = GraphCache()

        def fails() -> Any:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            cache.get(len, (1,), fails)
        assert len(cache) == 0
        assert cache.get(len, (1,), lambda: SimpleNamespace(key=1)).key == 1

    def test_without_a_cache_every_call_captures(self, captures: list) -> None:
        tensors = {"x": torch.zeros(1, 2, 3)}

        def step(tensors: dict[str, Tensor], cursor: Tensor) -> None:
            tensors["x"].add_(1 + cursor)

        done: list[int] = []
        for number in (1, 2):
            result = graphs.replay(step, LocalModel(), tensors, 3, (), None, done.append)
            assert torch.equal(result, torch.full((1, 2, 3), 6.0))
            assert len(captures) == number
        assert done == [1, 2, 3] * 2
        assert torch.equal(tensors["x"], torch.zeros(1, 2, 3))

    def test_keeps_a_model_as_long_as_its_graph(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A graph is found by its model's id or addresses, which another may get once the model is gone."""
        tensors, cache = {"x": torch.zeros(1)}, GraphCache()
        loop = graphs.Captured(SimpleNamespace(replay=lambda: None), torch.zeros(1), dict(tensors))  # type: ignore[arg-type]
        monkeypatch.setattr(graphs, "_capture", lambda *_: loop)
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        model = lambda x, t: x  # noqa: E731
        seen = weakref.ref(model)
        graphs.replay(lambda *_: None, model, tensors, 1, (), cache, None)
        del model
        gc.collect()
        assert len(cache) == 1
        assert seen() is not None

    def test_results_are_the_callers(self, captures: list) -> None:
        cache, model, tensors = GraphCache(), LocalModel(), {"x": torch.zeros(1, 2, 3)}
        first, second = (
            graphs.replay(lambda given, cursor: given["x"].add_(1), model, tensors, count, (), cache, None)
            for count in (2, 5)
        )
        assert torch.equal(first, torch.full((1, 2, 3), 2.0))
        assert torch.equal(second, torch.full((1, 2, 3), 5.0))
        assert len(captures) == 1


class TestCapture:
    @pytest.fixture
    def cuda(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """torch.cuda's pieces, of which each says that it was used."""
        said: list[str] = []
        quiet = SimpleNamespace(wait_stream=lambda other: said.append("wait"))

        @contextlib.contextmanager
        def within(name: str) -> Iterator[None]:
            said.append(name)
            yield
            said.append(f"end of {name}")

        monkeypatch.setattr(torch.cuda, "Stream", lambda device: quiet)
        main = SimpleNamespace(wait_stream=quiet.wait_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("aside" if stream is quiet else "main"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "the graph")
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: within(graph if stream is quiet else "nowhere"))
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        return said

    def test_warms_up_aside_and_leaves_the_callers_tensors_alone(self, cuda: list[str]) -> None:
        tensors = {"x": torch.zeros(2), "told": torch.arange(3)}

        def step(given: dict[str, Tensor], cursor: Tensor) -> None:
            assert int(cursor) == 0
            assert {name: x.data_ptr() for name, x in given.items()}.items().isdisjoint(
                {name: x.data_ptr() for name, x in tensors.items()}.items()
            )
            given["x"].add_(1)
            cuda.append("step")

        loop = graphs._capture(step, tensors)
        warm = ["step"] * graphs.WARM_UP
        captured = ["main", "the graph", "step", "end of the graph", "end of main"]
        assert cuda == ["wait", "aside", *warm, "end of aside", "wait", *captured]
        assert torch.equal(tensors["x"], torch.zeros(2))
        assert loop.graph == "the graph"
        assert int(loop.cursor) == 1

    @pytest.mark.parametrize("where", ["aside", "the graph"])
    def test_where_it_fails_a_warning_says_why_and_nothing_is_kept(self, cuda: list[str], where: str) -> None:
        cache, tensors = GraphCache(), {"x": torch.zeros(2)}

        def step(given: dict[str, Tensor], cursor: Tensor) -> None:
            given["x"].add_(1)
            if cuda[-1] == where:
                raise RuntimeError("operation not permitted when stream is capturing\nand so on\n")

        said = r"^sinmdm: sampling without a CUDA graph, which is slower: operation not .* is capturing$"
        with pytest.warns(RuntimeWarning, match=said):
            assert graphs.replay(step, LocalModel(), tensors, 3, (), cache, None) is None
        assert len(cache) == 0
        assert torch.equal(tensors["x"], torch.zeros(2))

    def test_an_error_without_a_word_is_named_by_its_kind(self, cuda: list[str]) -> None:
        def step(given: dict[str, Tensor], cursor: Tensor) -> None:
            raise NotImplementedError

        with pytest.warns(RuntimeWarning, match=r"slower: NotImplementedError$"):
            assert graphs.replay(step, LocalModel(), {"x": torch.zeros(2)}, 3, (), None, None) is None


def test_on_the_cpu_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAMPLING, "replay", lambda *_: pytest.fail("a graph on the CPU"))
    for graph in (None, True, False):
        assert torch.equal(_reference(LocalModel(2), graph=graph), _reference(LocalModel(2)))


@pytest.mark.gpu
class TestOnCuda:
    @EVERY_EXTRA
    @EVERY_SAMPLER
    def test_a_graph_gives_what_the_kernels_give_one_by_one(
        self, options: dict[str, Any], extra: dict[str, Any]
    ) -> None:
        model, cache = LocalModel(2).cuda(), GraphCache()
        on_device = {name: x.cuda() for name, x in extra.items()}
        common: dict[str, Any] = {"device": "cuda", **options, **on_device}
        one_by_one = _reference(model, graph=False, **common)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # so that what is compared is a graph
            first, second = (_reference(model, graphs=cache, **common) for _ in range(2))
        assert torch.equal(first, one_by_one)
        assert torch.equal(second, one_by_one)
        assert len(cache) == 1

    @EVERY_SAMPLER
    def test_the_transformer_within_its_own_rounding(self, options: dict[str, Any]) -> None:
        """What is exact is the network in float64 on the CPU."""
        exact = _reference(InFloat64(random_transformer()), **options)
        network = random_transformer().cuda()
        one_by_one = _reference(network, graph=False, device="cuda", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = _reference(network, device="cuda", **options)
        assert_within_budget("a graph", result, exact, one_by_one)

    def test_a_second_call_captures_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, cache, count = random_transformer().cuda(), GraphCache(), itertools.count()
        capture = graphs._capture
        monkeypatch.setattr(
            graphs, "_capture", lambda *given: (next(count) and pytest.fail("again")) or capture(*given)
        )
        first = _reference(network, device="cuda", graphs=cache)
        assert torch.equal(_reference(network, device="cuda", graphs=cache), first)
        other = _reference(network, device="cuda", graphs=cache, first_sample=2)
        assert not torch.equal(other, first)
        assert len(cache) == 1
        assert next(count) == 1

    def test_what_cannot_be_captured_is_run_one_by_one_with_a_warning(self) -> None:
        def waits(x: Tensor, timesteps: Tensor) -> Tensor:
            return torch.tanh(x) * (1 + float(timesteps[0]))  # the host asks for a number, which a graph cannot

        with pytest.warns(RuntimeWarning, match="sampling without a CUDA graph, which is slower"):
            result = _reference(waits, device="cuda")
        assert torch.equal(result, _reference(waits, device="cuda", graph=False))
