"""stream(): the beginning of what sample gives, at a fixed delay and in constant memory, and every refusal."""

import importlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from local_model import InFloat64, LocalModel, random_transformer
from tolerance import assert_within_budget
from torch import Tensor

from sinmdm.diffusion import Schedule, sample, stream
from sinmdm.kernels import philox_normal

STREAMING = importlib.import_module("sinmdm.diffusion.streaming")
FEATURES = 3
FIELD = 2
TWENTY = Schedule.cosine(20)
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddpm": {"sampler": "ddpm", "steps": None, "prediction": "v"},
    "ddpm_large": {"sampler": "ddpm", "steps": 7, "spacing": "leading", "variance": "fixed_large", "clip": 0.8},
    "ddim": {"sampler": "ddim", "steps": [19, 12, 11, 3]},
    "ddim_noisy": {"sampler": "ddim", "steps": [17, 9, 2], "eta": 0.7, "prediction": "epsilon", "clip": 1.0},
    "dpmpp": {"sampler": "dpmpp_2m", "steps": 6},
    "dpmpp_clipped": {"sampler": "dpmpp_2m", "steps": 5, "spacing": "uniform", "prediction": "v", "clip": 0.8},
    "one_step": {"sampler": "ddim", "steps": 1},
}
EVERY_SAMPLER = pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS)
EVERY_CHUNK = pytest.mark.parametrize("chunk", [1, 7, 64])


def _beginning(pieces: Iterator[Tensor], frames: int, chunk: int) -> Tensor:
    """The first frames of a stream, at least so many."""
    found = list(islice(pieces, -(-frames // chunk)))
    assert all(piece.shape == (*found[0].shape[:2], chunk) for piece in found)
    return torch.cat(found, -1)


def _steps(options: dict[str, Any]) -> int:
    steps = options["steps"]
    return len(TWENTY) if steps is None else steps if isinstance(steps, int) else len(steps)


@EVERY_CHUNK
@EVERY_SAMPLER
def test_is_the_beginning_of_a_longer_sample_to_the_bit(options: dict[str, Any], chunk: int) -> None:
    """The sample's last frames, a field for each step, see its end, which a stream does not have."""
    model = LocalModel(FIELD)
    found = _beginning(stream(model, FEATURES, TWENTY, seed=5, chunk=chunk, batch=2, **options), 50, chunk)
    frames = found.shape[-1]
    longer = sample(model, (2, FEATURES, frames + FIELD * _steps(options)), TWENTY, seed=5, **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, longer[..., :frames])
    assert found.std() > 0.05  # there is something to get wrong


def test_is_not_the_beginning_of_a_sample_that_ends_sooner() -> None:
    """So much must lie beyond, and not a frame less: the test above asks for no more than there is."""
    model, options = LocalModel(FIELD), SAMPLERS["ddim"]
    found = _beginning(stream(model, FEATURES, TWENTY, seed=5, chunk=1, **options), 50, 1)
    shorter = sample(model, (1, FEATURES, 50 + FIELD * 4 - 1), TWENTY, seed=5, **options)
    assert not torch.equal(found[..., 49], shorter[..., 49])
    assert torch.equal(found[..., :49], shorter[..., :49])


@EVERY_SAMPLER
def test_the_transformer_within_its_own_rounding(options: dict[str, Any]) -> None:
    """What is exact is the network in float64; a stream may be 1.5 times as far from it as sample is, in float32."""
    network = random_transformer(FEATURES, window=1, layers=2)
    assert network.receptive_field == FIELD
    shape = (2, FEATURES, 70 + FIELD * _steps(options))
    exact = sample(InFloat64(network), shape, TWENTY, seed=5, **options)[..., :70]
    eager = sample(network, shape, TWENTY, seed=5, **options)[..., :70]
    for chunk in (1, 7, 64):
        found = _beginning(stream(network, FEATURES, TWENTY, seed=5, chunk=chunk, batch=2, **options), 70, chunk)
        assert_within_budget(f"chunks of {chunk}", found[..., :70], exact, eager)


@EVERY_SAMPLER
def test_the_first_samples_number(options: dict[str, Any]) -> None:
    model = LocalModel(FIELD)
    together = next(stream(model, FEATURES, TWENTY, seed=5, chunk=9, batch=3, first_sample=4, **options))
    for index in range(3):
        alone = next(stream(model, FEATURES, TWENTY, seed=5, chunk=9, first_sample=4 + index, **options))
        assert torch.equal(alone[0], together[index])
    assert not torch.equal(together[0], together[1])


def test_a_stream_without_surroundings_has_no_delay() -> None:
    model = LocalModel(0)
    found = _beginning(stream(model, FEATURES, TWENTY, seed=5, chunk=8), 24, 8)
    assert model.seen == [8] * 3 * 20
    assert torch.equal(found, sample(model, (1, FEATURES, 24), TWENTY, seed=5, sampler="ddim"))


@pytest.mark.parametrize("field", [1, 2, 16])
@pytest.mark.parametrize("steps", [1, 4])
@EVERY_CHUNK
def test_the_delay_is_a_field_for_each_step(
    chunk: int, steps: int, field: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise is drawn a chunk at a time, and frames are given as soon as they are finished."""
    drawn: list[int] = []

    def spy(shape: tuple[int, int], **options: Any) -> Tensor:
        drawn.append(options["frame"] + shape[0])
        return philox_normal(shape, **options)

    monkeypatch.setattr(STREAMING, "philox_normal", spy)
    pieces = stream(LocalModel(field), FEATURES, TWENTY, seed=5, chunk=chunk, steps=steps)
    for given in range(1, 6):
        next(pieces)
        needed = given * chunk + field * steps
        assert needed <= drawn[-1] < needed + chunk


@EVERY_CHUNK
@pytest.mark.parametrize("options", [SAMPLERS["ddim"], SAMPLERS["dpmpp"]], ids=["ddim", "dpmpp"])
def test_memory_does_not_grow(options: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has lasted, a call sees a chunk and two fields, and a stage holds no more than that."""
    queues = []

    class Queue(STREAMING._Frames):
        def __init__(self, *sizes: Any) -> None:
            super().__init__(*sizes)
            queues.append(self)

    monkeypatch.setattr(STREAMING, "_Frames", Queue)
    model = LocalModel(FIELD)
    pieces = stream(model, FEATURES, TWENTY, seed=5, chunk=chunk, **options)
    held = []
    for _ in range(2):
        for _ in range(100):
            piece = next(pieces)
            assert piece.untyped_storage().nbytes() == 4 * FEATURES * chunk
        held.append([queue.held.untyped_storage().nbytes() for queue in queues])
    states = _steps(options) * (2 if options["sampler"] == "dpmpp_2m" else 1)
    assert len(queues) == states + 1  # and the finished frames
    assert max(model.seen) == chunk + 2 * FIELD
    assert set(model.seen[len(model.seen) // 2 :]) == {chunk + 2 * FIELD}
    assert held[0] == held[1]
    assert max(held[0]) == 4 * FEATURES * max(chunk + 2 * FIELD, 2 * chunk)


def test_what_was_given_stays_as_it_is() -> None:
    pieces = stream(LocalModel(FIELD), FEATURES, TWENTY, seed=5, chunk=4)
    given = [next(pieces) for _ in range(5)]
    kept = [piece.clone() for piece in given]
    list(islice(pieces, 20))
    assert all(torch.equal(*pair) for pair in zip(given, kept, strict=True))
    for piece in given:
        piece.fill_(torch.nan)  # nor does what a caller makes of it come back
    assert next(pieces).isfinite().all()


def test_nothing_is_differentiated_and_the_callers_mode_stays() -> None:
    pieces = stream(random_transformer(FEATURES), FEATURES, TWENTY, seed=5, chunk=4, steps=3)
    assert not next(pieces).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be an int >= 1, got 0"),
        ({"chunk": 0}, "chunk must be an int >= 1, got 0"),
        ({"chunk": 2.0}, "chunk must be an int >= 1, got 2.0"),
        ({"chunk": True}, "chunk must be an int >= 1, got True"),
        ({"batch": -1}, "batch must be an int >= 0, got -1"),
        ({"seed": -1}, "seed must be an int from 0 to 2**64 - 1, got -1"),
        ({"seed": 2**64}, "seed must be an int from 0 to 2**64 - 1, got 18446744073709551616"),
        ({"seed": None}, "seed must be an int from 0 to 2**64 - 1, got None"),
        ({"steps": 21}, "steps must be from 1 to 20, got 21"),
        ({"steps": [3, 9]}, "steps must be timesteps that fall from one to the next, got [3, 9]"),
        ({"spacing": "even"}, "spacing must be one of trailing, leading, uniform, got 'even'"),
        ({"sampler": "magic"}, "sampler must be one of ddpm, ddim, dpmpp_2m, got 'magic'"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta is an option of the sampler ddim, got eta = 0.5 for ddpm"),
        ({"eta": 2.0}, "eta must be from 0 to 1, got 2.0"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"prediction": "x1"}, "prediction must be one of x0, epsilon, v, got 'x1'"),
        ({"variance": "learned"}, "variance must be one of fixed_small, fixed_large, got 'learned'"),
    ],
)
def test_what_is_refused_at_the_call_and_how(options: dict[str, Any], message: str) -> None:
    arguments = {"features": FEATURES, "seed": 5, **options}
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        stream(LocalModel(FIELD), schedule=TWENTY, **arguments)
    assert str(refused.value) == message


def test_a_model_that_is_not_local_is_refused_at_the_call() -> None:
    with pytest.raises(
        ValueError, match=r"^model must be local \(have a receptive_field\) for a stream, got function$"
    ):
        stream(lambda x, t: x, FEATURES, TWENTY, seed=5)
