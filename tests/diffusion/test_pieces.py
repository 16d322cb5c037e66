"""Long motions in pieces: the same result as in one, whatever the piece, and memory of the state alone."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from local_model import InFloat64, LocalModel, random_transformer
from tolerance import assert_within_budget, relative_error
from torch import Tensor

from sinmdm.diffusion import Schedule, sample
from sinmdm.diffusion.sampling import PIECE, pieces
from sinmdm.kernels import philox_normal

BATCH, FEATURES, FRAMES = SHAPE = (2, 3, 23)
FIELD = 4
TWENTY = Schedule.cosine(20)
EVERY_PIECE = pytest.mark.parametrize("piece", [1, FIELD - 1, FIELD, FIELD + 1, FRAMES - 1])
EVERY_SAMPLER = pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm", "prediction": "v", "clip": 0.8},
        {"sampler": "ddpm", "variance": "fixed_large", "steps": [19, 12, 11, 3]},
        {"sampler": "ddim", "steps": 6},
        {"sampler": "ddim", "eta": 0.7, "steps": 6, "spacing": "uniform", "prediction": "epsilon", "clip": 1.0},
        {"sampler": "dpmpp_2m", "steps": 6, "clip": 1.0},
        {"sampler": "dpmpp_2m", "steps": 6, "prediction": "v"},
    ],
    ids=["ddpm", "ddpm_large", "ddim", "ddim_noisy", "dpmpp_clipped", "dpmpp"],
)
MASKS = {
    "one number": torch.tensor(0.5),
    "frames": (torch.arange(FRAMES) < 9).float(),
    "features": torch.tensor([[1.0], [0.0], [0.25]]),
    "samples": torch.tensor([[[1.0]], [[0.0]]]),
    "frames of each sample": (torch.arange(FRAMES) % torch.tensor([[[2]], [[3]]]) == 0).float(),
    "all": torch.linspace(0, 1, BATCH * FEATURES * FRAMES).reshape(SHAPE),
}


def _normals(step: int) -> Tensor:
    return philox_normal((FRAMES, FEATURES), seed=5, step=step, sample=torch.arange(BATCH)).mT


@EVERY_PIECE
@EVERY_SAMPLER
def test_every_sampler_to_the_bit(options: dict[str, Any], piece: int) -> None:
    model = LocalModel(FIELD)
    whole = sample(model, SHAPE, TWENTY, seed=5, piece=FRAMES, **options)
    assert set(model.seen) == {FRAMES}
    assert torch.equal(sample(model, SHAPE, TWENTY, seed=5, piece=piece, **options), whole)
    assert max(model.seen[-3:]) <= piece + 2 * FIELD
    assert whole.std() > 0.05  # there is something to get wrong


@EVERY_PIECE
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("mask", MASKS)
def test_with_a_known_part(mask: str, sampler: str, piece: int) -> None:
    options: dict[str, Any] = {"seed": 5, "sampler": sampler, "known": torch.randn(SHAPE), "mask": MASKS[mask]}
    model = LocalModel(FIELD)
    whole = sample(model, SHAPE, TWENTY, **options)
    assert torch.equal(sample(model, SHAPE, TWENTY, piece=piece, **options), whole)
    full = MASKS[mask].expand(SHAPE) == 1
    assert torch.equal(whole[full], options["known"][full])


@EVERY_PIECE
@EVERY_SAMPLER
def test_with_given_noise_and_lengths(options: dict[str, Any], piece: int) -> None:
    model, lengths = LocalModel(FIELD), torch.tensor([23, 11])
    whole = sample(model, SHAPE, TWENTY, noise=_normals, lengths=lengths, **options)
    assert torch.equal(whole, sample(model, SHAPE, TWENTY, seed=5, lengths=lengths, **options))
    assert torch.equal(whole, sample(model, SHAPE, TWENTY, noise=_normals, lengths=lengths, piece=piece, **options))
    free = sample(model, SHAPE, TWENTY, seed=5, **options)
    assert torch.equal(whole[0], free[0])
    assert not torch.equal(whole[1], free[1])


@pytest.mark.parametrize("field", [0, 1, 30])
def test_fields_of_nothing_and_of_more_than_the_motion(field: int) -> None:
    model = LocalModel(field)
    whole = sample(model, SHAPE, TWENTY, seed=5)
    for piece in (1, 7, FRAMES, FRAMES + 5):
        assert torch.equal(sample(model, SHAPE, TWENTY, seed=5, piece=piece), whole)


@EVERY_SAMPLER
@pytest.mark.parametrize("lengths", [None, torch.tensor([23, 11])], ids=["", "lengths"])
def test_the_transformer_within_its_own_rounding(options: dict[str, Any], lengths: Tensor | None) -> None:
    """What is exact is the network in float64. In pieces the float32 network may be 1.5 times as far from it as in one;
    its matrix products group rows in other ways, which rounds otherwise but not worse."""
    network = random_transformer(window=2, layers=2)
    assert network.receptive_field == FIELD
    options = {"seed": 5, "lengths": lengths, **options}
    exact = sample(InFloat64(network), SHAPE, TWENTY, piece=FRAMES, **options)
    whole = sample(network, SHAPE, TWENTY, piece=FRAMES, **options)
    for piece in (1, FIELD - 1, FIELD, FIELD + 1, FRAMES - 1):
        in_pieces = sample(network, SHAPE, TWENTY, piece=piece, **options)
        assert_within_budget(f"pieces of {piece}", in_pieces, exact, whole)


@pytest.mark.parametrize("piece", [1, FIELD, 10])
def test_a_field_that_is_said_too_small_is_noticed(piece: int) -> None:
    model = LocalModel(FIELD)
    whole = sample(model, SHAPE, TWENTY, seed=5)

    def short(x: Tensor, timesteps: Tensor) -> Tensor:
        return model(x, timesteps)

    short.receptive_field = FIELD - 1  # type: ignore[attr-defined]
    assert not torch.equal(sample(short, SHAPE, TWENTY, seed=5, piece=piece), whole)
    network = random_transformer(window=2, layers=2)
    exact, result = (sample(n, SHAPE, TWENTY, seed=5) for n in (InFloat64(network), network))
    network.receptive_field = 1
    wrong = sample(network, SHAPE, TWENTY, seed=5, piece=piece)
    assert relative_error(wrong, exact) > 100 * relative_error(result, exact)


def test_a_piece_comes_with_its_surroundings_as_they_were() -> None:
    """Also where its predecessor has been overwritten, as sample does with its state."""
    x = torch.arange(11.0).reshape(1, 11, 1)
    found = []
    for begin, end, before, window in pieces(x, 3, 2):
        found.append((begin, end, before, window.flatten().int().tolist()))
        x[:, begin:end] = -1
    assert found == [
        (0, 3, 0, [0, 1, 2, 3, 4]),
        (3, 6, 2, [1, 2, 3, 4, 5, 6, 7]),
        (6, 9, 2, [4, 5, 6, 7, 8, 9, 10]),
        (9, 11, 2, [7, 8, 9, 10]),
    ]


def test_by_default_only_long_motions_of_a_local_network_are_in_pieces() -> None:
    model, step = LocalModel(FIELD), {"steps": 1, "seed": 0}
    sample(model, (1, 2, 2 * PIECE), TWENTY, **step)
    assert model.seen == [2 * PIECE]
    sample(model, (1, 2, 2 * PIECE + 1), TWENTY, **step)
    assert model.seen[1:] == [PIECE + FIELD, PIECE + FIELD + 1, 1 + FIELD]
    seen = []
    sample(lambda x, t: seen.append(x.shape[-1]) or torch.tanh(x), (1, 2, 2 * PIECE + 1), TWENTY, **step)
    assert seen == [2 * PIECE + 1]


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (0, "piece must be an int >= 1, got 0"),
        (-3, "piece must be an int >= 1, got -3"),
        (2.0, "piece must be an int >= 1, got 2.0"),
        (True, "piece must be an int >= 1, got True"),
        (22, "model must be local (have a receptive_field) for pieces of 22 frames, got function"),
    ],
)
def test_what_is_refused_and_how(piece: Any, message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        sample(lambda x, t: torch.tanh(x), SHAPE, TWENTY, seed=0, piece=piece)
    assert str(refused.value) == message


def test_a_model_that_is_not_local_takes_a_motion_in_one_piece() -> None:
    whole = sample(lambda x, t: torch.tanh(x), SHAPE, TWENTY, seed=0)
    assert torch.equal(sample(lambda x, t: torch.tanh(x), SHAPE, TWENTY, seed=0, piece=FRAMES), whole)


MEASURED = """
import sys
sys.path.insert(0, {tests!r})
import torch
from local_model import LocalModel
from sinmdm.diffusion import Schedule, sample

def peak():  # of this program alone: getrusage's is at least that of the process which started it
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

schedule, model = Schedule.cosine(3), LocalModel(8)
state = 4 * 16 * 200_000
for sampler in ("ddpm", "ddim", "dpmpp_2m"):
    sample(model, (1, 16, 5000), schedule, seed=0, sampler=sampler)
# More than the imports took for a moment, so that from here on every byte more is seen.
ballast = torch.ones(8 * state, dtype=torch.uint8)
before = peak()
for sampler, piece in (("ddpm", None), ("dpmpp_2m", None), ("ddpm", 200_000)):
    sample(model, (1, 16, 200_000), schedule, seed=0, sampler=sampler, piece=piece)
    print((peak() - before) / state)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc/self/status")
def test_the_memory_of_a_long_motion_is_that_of_its_state() -> None:
    """The peak of the process in states, 12.8 MB each; what is measured in one piece shows that it would be seen.

    One state (two with the second-order sampler), and a quarter of one for what is made of a piece and its
    surroundings: 2064 of 200 000 frames, a dozen tensors at once, and as much again for the allocator.
    """
    code = MEASURED.format(tests=str(Path(__file__).resolve().parents[1]))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert said.returncode == 0, said.stderr
    first, second, in_one_piece = map(float, said.stdout.split())
    assert 0.9 <= first <= 1.25
    assert 1.9 <= second <= 2.25
    assert in_one_piece > 4
