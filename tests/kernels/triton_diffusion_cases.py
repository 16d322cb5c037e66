"""The cases of test_triton_diffusion.py, which runs them with TRITON_INTERPRET=1: the kernels on the CPU.

A tile holds 1024 elements, so that (9, 173) is two of them, and begins with a counter of four: rows that begin within
one, as they do from most frames of an odd number of channels on, have the tiles of other rows shifted.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from tolerance import assert_within_budget
from torch import Tensor

from sinmdm.kernels import Schedule, _dispatch, denoise_step, philox_normal, q_sample
from sinmdm.kernels.philox import reference
from sinmdm.kernels.philox.triton_tiles import TILE, box_muller, keys_of, uniform, words_of


def _module(path: str):  # type: ignore[no-untyped-def]
    """A test module beside this: pytest imports them by path, and so no name leads to them."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


philox, step_tests = _module("test_philox.py"), _module("denoise_step/test_denoise_step.py")
laid_out, LAYOUTS = step_tests.laid_out, step_tests.LAYOUTS
NORMAL_BOUND = philox.NORMAL_BOUND
SCHEDULE = Schedule.cosine(50)
SHAPE = (2, 9, 173)
SEEDS = [0, 1, 16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63 + 5, 2**64 - 1]
FAR = 2**40 - 1  # the last first frame


def test_the_interpreter_is_there_and_no_default() -> None:
    for op in ("philox_normal", "q_sample", "denoise_step"):
        assert _dispatch.choose(op, None, torch.zeros(1)) == "reference"
        assert _dispatch.choose(op, "triton", torch.zeros(1)) == "triton"
        with pytest.raises(_dispatch.BackendError, match="it takes float32, not float64"):
            _dispatch.choose(op, "triton", torch.zeros(1, dtype=torch.float64))


# The stream.


@triton.jit(do_not_specialize=["key0", "key1"])
def _words(group, step, sample, key0, key1, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.arange(0, N)
    words = words_of(tl.load(group + n), tl.load(step), tl.load(sample), key0, key1)
    for i in tl.static_range(4):
        tl.store(out + 4 * n + i, words[i].to(tl.int64))


def words(group: Tensor, step: int, sample: int, seed: int) -> Tensor:
    out = group.new_empty(len(group), 4)
    _words[(1,)](group, torch.tensor([step]), torch.tensor([sample]), *keys_of(seed), out, N=len(group))
    return out


@pytest.mark.parametrize(("counter", "key", "output"), philox.KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, output: str) -> None:
    c0, c1, step, sample = philox.words_of(counter)
    group = torch.tensor([(c1 << 32 | c0) - (c1 >> 31 << 64)])
    assert words(group, step, sample, philox.key_of(key))[0].tolist() == philox.words_of(output)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_equal_the_reference_bit_for_bit(seed: int) -> None:
    group = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 5 * 2**32 + 7, 2**62 + 2**31 + 3])
    for step, sample in ((0, 2**32 - 1), (2**31, 1), (2**32 - 1, 2**31 - 1)):
        counter = reference.counter_of(group, torch.tensor(step), torch.tensor(sample))
        assert torch.equal(words(group, step, sample, seed), torch.stack(reference.philox4x32(counter, seed), -1))


@triton.jit
def _normals(words, u, z, N: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.arange(0, N)
    word0, word1 = tl.load(words + n).to(tl.uint32), tl.load(words + N + n).to(tl.uint32)
    tl.store(u + n, uniform(word0))
    z0, z1 = box_muller(word0, word1)
    tl.store(z + n, z0)
    tl.store(z + N + n, z1)


def test_functions_equal_the_reference() -> None:
    dense = philox.dense_words()
    count = triton.next_power_of_2(len(dense))
    first = torch.cat([dense, dense.new_zeros(count - len(dense))])
    u, z = torch.empty(count), torch.empty(2, count)
    # Every word as angle beside itself as radius, and beside another: that of the largest radius.
    for pair in ((first, first), (torch.zeros_like(first), first)):
        both = torch.stack(pair)
        _normals[(1,)](both, u, z, N=count)
        assert torch.equal(u, reference.uniform(both[0]))
        assert float((z - torch.stack(reference.box_muller(*both))).abs().max()) <= NORMAL_BOUND


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("shape", "frames"),
    [
        ((1, 1), (3, FAR)),
        ((5, 7), (1, 2)),  # rows that begin within counters of their own
        ((9, 8), (0, 2**34 // 8 - 1)),  # always with one; the counter's second word
    ],
    ids=str,
)
def test_philox_normal(shape: tuple[int, int], frames: tuple[int, int], seed: int) -> None:
    options = {"seed": seed, "step": 2**32 - 1, "sample": torch.tensor([0, -1]), "frame": torch.tensor(frames)}
    expected = philox_normal(shape, **options, backend="reference")
    assert float((philox_normal(shape, **options, backend="triton") - expected).abs().max()) <= NORMAL_BOUND


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("shape", [(9, 173), (TILE, 1), (TILE // 128, 128), (TILE // 64 + 1, 64), (0, 4), (4, 0)])
def test_philox_normal_fills_its_rows_and_nothing_else(shape: tuple[int, int], offset: int) -> None:
    count = shape[0] * shape[1]
    buffer = torch.full((count + 8,), torch.nan)
    out = buffer[offset : offset + count].view(shape)
    before = out._version
    philox_normal(shape, seed=3, frame=offset, out=out, backend="triton")
    assert out._version > before
    expected = philox_normal(shape, seed=3, frame=offset, backend="reference")
    assert bool(((out - expected).abs() <= NORMAL_BOUND).all())
    assert int(buffer.isnan().sum()) == 8


# The steps. The noise that they draw is philox_normal's; what they make of it is held against float64.


def assert_equals(function, inputs: dict, options: dict) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """`function` of the Triton backend against float64, within what the plain composition in float32 gives."""
    states = {name: x.double() if x.dtype == torch.float32 else x for name, x in inputs.items()}
    exact = function(**states, **options, backend="reference")
    eager = function(**inputs, **options, backend="reference")
    actual = function(**inputs, **options, backend="triton")
    for number, result in enumerate(actual):
        assert result.dtype == torch.float32
        assert_within_budget(f"result {number}", result, exact[number], eager[number])
    return list(actual)


def states(count: int, layout: str = "contiguous", shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    return [laid_out(x, layout) for x in torch.randn(count, *shape)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_q_sample(layout: str) -> None:
    x0, noise = states(2, layout)
    t = torch.tensor([49, 3])

    def function(x0: Tensor, noise: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return q_sample(x0, t, SCHEDULE, noise=noise, return_noise=True, backend=backend)

    x_t, returned = assert_equals(function, {"x0": x0, "noise": noise}, {})
    assert torch.equal(returned, noise)
    version = x0._version
    assert q_sample(x0, t, SCHEDULE, noise=noise, out=x0, backend="triton") is x0
    assert x0._version > version
    assert torch.equal(x0, x_t)


DRAWS = [
    {"seed": 0},
    {"seed": 1, "sample": 16, "frame": 1},
    {"seed": 2**63 + 5, "sample": torch.tensor([-1, 7]), "frame": torch.tensor([2, FAR])},
    {"seed": 2**64 - 1, "frame": 3},
]


@pytest.mark.parametrize("shape", [SHAPE, (2, 9, 4), (2, 1, 1), (1, TILE // 64 + 1, 64)], ids=str)
@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_steps_draw_the_noise_of_philox_normal(draw: dict, shape: tuple[int, int, int]) -> None:
    draw = {name: x[: shape[0]] if isinstance(x, Tensor) else x for name, x in draw.items()}
    x, output = states(2, shape=shape)
    sample = draw.get("sample", 0)
    counted = sample if isinstance(sample, Tensor) else torch.arange(sample, sample + shape[0])
    z = philox_normal(shape[1:], **draw | {"sample": counted}, step=20, backend="triton")
    x_t, returned = q_sample(x, 30, SCHEDULE, **draw, step=20, return_noise=True, backend="triton")
    assert torch.equal(returned, z)
    assert torch.equal(x_t, q_sample(x, 30, SCHEDULE, noise=z, backend="triton"))
    drawn, given = (denoise_step(x, output, 20, SCHEDULE, **n, backend="triton") for n in (draw, {"noise": z}))
    assert torch.equal(drawn, given)


def step(x: Tensor, output: Tensor, backend: str, **options) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return denoise_step(x, output, schedule=SCHEDULE, return_x0=True, **options, backend=backend)


# What each kernel that is compiled of denoise_step does beside x_t and model_output; t, where not said, is 20.
STEPS = {
    "ancestral": (("noise",), {"prediction": "v"}),
    "DDIM": ((), {"prediction": "epsilon", "eta": 0.0}),
    "second order": (("previous_x0",), {"t_prev": 10, "prediction": "v"}),
    "guided": (("noise", "unconditional"), {"guidance": 2.5}),
    "clipped": (("noise",), {"prediction": "epsilon", "clip": 0.5}),
    "raw direction": ((), {"prediction": "v", "clip": 0.5, "clipped_direction": False, "eta": 0.0}),
    "thresholded": (("unconditional",), {"guidance": 2.0, "dynamic_threshold": 0.9, "eta": 0.0}),
    "held": (("known", "mask", "noise"), {"prediction": "v"}),
    "rows of their own": (("noise",), {"t": torch.tensor([1, 40]), "t_prev": torch.tensor([-1, 20]), "eta": 0.5}),
    "all": (
        ("known", "mask", "unconditional", "noise"),
        {"t": torch.tensor([30, 2]), "prediction": "epsilon", "guidance": 1.5, "clip": 1.0},
    ),
}


def step_inputs(names: tuple[str, ...], dtype: torch.dtype, layout: str) -> dict[str, Tensor]:
    """x_t, the predictions in `dtype`, and what else is named. A mask is one number a frame, whatever the layout."""
    names = ("x", "output", *names)
    inputs = dict(zip(names, states(len(names), layout), strict=True))
    inputs |= {name: laid_out(inputs[name].to(dtype), layout) for name in ("output", "unconditional") if name in inputs}
    return inputs | ({"mask": torch.rand(SHAPE[1], 1).round(decimals=1)} if "mask" in names else {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", STEPS)
def test_denoise_step(kind: str, dtype: torch.dtype) -> None:
    names, options = STEPS[kind]
    assert_equals(step, step_inputs(names, dtype, "contiguous"), {"t": 20} | options)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["second order", "all"])
def test_denoise_step_of_any_strides(kind: str, dtype: torch.dtype, layout: str) -> None:
    names, options = STEPS[kind]
    inputs = step_inputs(names, dtype, layout)
    # float64 predictions are rounded to the state's float32 before they are looked at.
    inputs = {name: x.float().double() if x.dtype == torch.float64 else x for name, x in inputs.items()}
    assert_equals(step, inputs, {"t": 20} | options)


@pytest.mark.parametrize("shape", [SHAPE[1:], (1, 173), (9, 1), (2, 9, 1), SHAPE], ids=str)
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    assert_equals(step, step_inputs(("known",), torch.float32, "contiguous") | {"mask": torch.rand(shape)}, {
        "t": 20, "eta": 0.0})  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_denoise_step_in_place(layout: str) -> None:
    inputs = step_inputs(("previous_x0",), torch.float16, layout)
    options = {"t": 20, "t_prev": 10, "backend": "triton"}
    expected = step(**inputs, **options)
    x, previous = inputs["x"], inputs["previous_x0"]
    versions = x._version, previous._version
    actual = step(**inputs, **options, out=x, x0_out=previous)
    assert actual[0] is x
    assert actual[1] is previous
    assert x._version > versions[0]
    assert previous._version > versions[1]
    assert torch.equal(x, expected[0])
    assert torch.equal(previous, expected[1])


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("held", [False, True])
def test_what_is_not_finite_stays_so(held: bool, clip: float | None) -> None:
    inputs = step_inputs(("known", "mask") if held else (), torch.float32, "contiguous")
    planted = torch.tensor([torch.nan, torch.inf, -torch.inf])
    inputs["x"][0, 2, :3] = planted
    inputs["output"][1, 8, -3:] = planted
    options = {"t": 20, "prediction": "v", "eta": 0.0, "clip": clip}
    for actual, expected in zip(*(step(**inputs, **options, backend=n) for n in ("triton", "reference")), strict=True):
        wild = ~expected.isfinite()
        assert 1 <= int(wild.sum()) <= 6
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual[wild & ~expected.isnan()], expected[wild & ~expected.isnan()])
        assert bool(((actual - expected)[~wild].abs() <= 1e-5).all())


def test_offsets_of_more_than_31_bits() -> None:
    # Untouched memory but for the elements that are there: 2^31 + 2^21 from the first to the last.
    x, output = states(2, shape=(2, 3, 5))
    output = output.half()
    expected = step(x, output, "triton", t=20, seed=1)
    for strides in ((2**31 + 2**20, 64, 1), (2**20, 2**30 + 2**10, 1), (2**10, 2**20, 2**29)):
        far = torch.empty(2**31 + 2**22, dtype=torch.float16).as_strided(output.shape, strides)
        far.copy_(output)
        actual = step(x, far, "triton", t=20, seed=1)
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("shape", [(0, 9, 5), (2, 0, 5), (2, 9, 0)], ids=str)
def test_empty_states(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    assert q_sample(x, 3, SCHEDULE, seed=1, backend="triton").shape == shape
    assert denoise_step(x, x, 3, SCHEDULE, seed=1, backend="triton").shape == shape


def test_gradients() -> None:
    x, output = (y.requires_grad_() for y in states(2, shape=(2, 3, 5)))
    gradients = []
    for name in ("triton", "reference"):
        noised = q_sample(x, 20, SCHEDULE, seed=1, backend=name)
        new = denoise_step(noised, output, 20, SCHEDULE, prediction="v", clip=1.0, seed=2, backend=name)
        gradients.append(torch.autograd.grad((new * output.detach()).sum(), (x, output)))
    for actual, expected in zip(*gradients, strict=True):
        assert bool(expected.any())
        assert bool(((actual - expected).abs() <= 1e-6).all())
