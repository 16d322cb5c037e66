"""The CPU's noise loops, compiled for each set of instructions: each is the reference, and in none does a result depend
on where in a vector, a block or a thread an element falls."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sinmdm.kernels import Schedule, _dispatch, denoise_step, philox_normal, q_sample

SCHEDULE = Schedule.cosine(50)
EPS = torch.finfo(torch.float32).eps
NORMAL_BOUND = 2e-6  # two backends' normals, by the definition of the stream; one wrong word would move them by about 1
# Vectors hold 4, 8 or 16 elements, a call to the noise 16 counters of 4, a block 1024 elements.
SIZES = [*range(1, 18), 31, 33, 63, 64, 65, 127, 129, 1019, 1023, 1024, 1025, 1027, 1088, 2047, 4095, 4101]


@pytest.fixture(params=["baseline", "avx2", "avx512"], autouse=True)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The set in use, which the extension asks for at every call."""
    lacks = _dispatch.machine_lacks("cpu")
    if lacks is not None:
        pytest.skip(f"no cpu backend: {lacks}")
    monkeypatch.setenv("SINMDM_CPU_ISA", request.param)
    try:
        philox_normal((1, 1), seed=0, backend="cpu")
    except RuntimeError as error:
        if "SINMDM_CPU_ISA must be one of" not in str(error):
            raise
        pytest.skip(f"this processor has no {request.param}")
    return request.param


def both(function: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """(native, reference) results."""
    native, reference = (function(*arguments, **options, backend=name) for name in ("cpu", "reference"))
    return native, reference


def everything(frames: int, channels: int, dtype: torch.dtype = torch.float32) -> tuple[tuple, dict]:
    """A step with every operand, two predictions of `dtype`, noise drawn, some of x0 beyond the limit."""
    x, output, other, known = torch.randn(4, 2, frames, channels)
    options = {
        "prediction": "v", "unconditional": other.to(dtype), "guidance": 1.5, "clip": 0.8, "known": known,
        "mask": torch.rand(frames, 1), "eta": 0.5, "clipped_direction": False, "seed": 3, "sample": 5,
        "return_x0": True,
    }  # fmt: skip
    return (x, output.to(dtype), 20, SCHEDULE), options


# Up to sixteen roundings, of terms no larger than the guided prediction: 1.5 + 0.5 times values below 5.
STEP_BOUND = 16 * EPS * 2 * 5 + NORMAL_BOUND


@pytest.mark.parametrize("seed", [0, 2**63 + 2**33 + 5, 2**64 - 1])
def test_normals_equal_the_reference_of_every_size(seed: int) -> None:
    for elements in SIZES:
        for frame in (0, 1, 2, 3, 2**34 - elements // 2, 2**40 - elements):
            native, reference = both(philox_normal, (elements, 1), seed=seed, step=2**32 - 1, sample=7, frame=frame)
            assert float((native - reference).abs().max()) <= NORMAL_BOUND, (elements, frame)


def test_two_million_normals_equal_the_reference() -> None:
    # Every interval of the logarithm and the sines, and the rare words at their ends.
    native, reference = both(philox_normal, (125_000, 4), seed=11, sample=torch.arange(4))
    assert float((native - reference).abs().max()) <= NORMAL_BOUND


def test_the_counters_second_word_begins_anywhere_in_a_vector() -> None:
    # Element 2^34 is the first of counter 2^32.
    for before in range(0, 80, 3):
        frame = 2**34 - before
        native, reference = both(philox_normal, (83, 1), seed=5, frame=frame)
        assert float((native - reference).abs().max()) <= NORMAL_BOUND
        after = philox_normal((83 - before, 1), seed=5, frame=2**34, backend="cpu")
        assert torch.equal(native[before:], after)


@pytest.mark.parametrize("given", [False, True])
def test_q_sample_equals_the_reference_of_every_size(given: bool) -> None:
    for elements in SIZES:
        x0, noise = torch.randn(2, 2, elements, 1)
        source = {"noise": noise} if given else {"seed": 3, "frame": 2}
        native, reference = both(q_sample, x0, 20, SCHEDULE, **source, return_noise=True)
        # Three roundings of terms of about 5 times factors below 1.
        bound = 3 * EPS * 5 + (0 if given else NORMAL_BOUND)
        assert all(float((x - y).abs().max()) <= bound for x, y in zip(native, reference, strict=True)), elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_denoise_step_equals_the_reference_of_every_size(dtype: torch.dtype) -> None:
    for elements in SIZES:
        arguments, options = everything(elements, 1, dtype)
        native, reference = both(denoise_step, *arguments, **options)
        assert all(float((x - y).abs().max()) <= STEP_BOUND for x, y in zip(native, reference, strict=True)), elements


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_widened_exactly(dtype: torch.dtype) -> None:
    # With x0 predicted and no noise at the clean state, x0 is the prediction itself: all 2^16 of them, NaN included.
    output = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, -1, 4)
    _, x0 = denoise_step(torch.zeros(output.shape), output, 0, SCHEDULE, return_x0=True, backend="cpu")
    assert torch.equal(x0.isnan(), output.isnan())
    assert torch.equal(x0.nan_to_num(0, torch.inf, -torch.inf), output.float().nan_to_num(0, torch.inf, -torch.inf))


@pytest.mark.parametrize("channels", [1, 3, 5, 174])
def test_a_result_does_not_depend_on_its_place(channels: int) -> None:
    # What is a whole vector of a block here is the rest of one there.
    frames = 2100 // channels + 30
    (x, output, t, schedule), options = everything(frames, channels)
    tensors = {name: value for name, value in options.items() if isinstance(value, Tensor) and name != "mask"}
    mask = options["mask"]
    steps = denoise_step(x, output, t, schedule, **options, backend="cpu")
    noised = q_sample(x, t, schedule, seed=3, sample=5, backend="cpu")
    normals = philox_normal((frames, channels), seed=3, sample=torch.tensor([5, 6]), backend="cpu")
    for a, b in ((0, 1), (1, 8), (3, frames), (0, frames - 5), (7, 24), (frames - 2, frames)):
        here = slice(a, b)
        part = options | {name: value[:, here] for name, value in tensors.items()} | {"mask": mask[here]}
        new = denoise_step(x[:, here], output[:, here], t, schedule, **part, frame=a, backend="cpu")
        assert all(torch.equal(p, w[:, here]) for p, w in zip(new, steps, strict=True)), (a, b)
        piece = q_sample(x[:, here], t, schedule, seed=3, sample=5, frame=a, backend="cpu")
        assert torch.equal(piece, noised[:, here]), (a, b)
        piece = philox_normal((b - a, channels), seed=3, sample=torch.tensor([5, 6]), frame=a, backend="cpu")
        assert torch.equal(piece, normals[:, here]), (a, b)


@pytest.mark.parametrize("frames", [700, 1403])
def test_threads_do_not_matter(frames: int) -> None:
    arguments, options = everything(frames, 13)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append([
                *denoise_step(*arguments, **options, backend="cpu"),
                q_sample(arguments[0], 20, SCHEDULE, seed=8, backend="cpu"),
                philox_normal((frames, 13), seed=8, sample=torch.arange(3), backend="cpu"),
            ])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts_and_places_of_results_do_not_matter(dtype: torch.dtype) -> None:
    (x, output, t, schedule), options = everything(37, 29, dtype)
    expected = denoise_step(x, output, t, schedule, **options, backend="cpu")

    def turned(y: Any) -> Any:
        whole = isinstance(y, Tensor) and y.dim() == 3
        return y.transpose(1, 2).contiguous().transpose(1, 2) if whole else y

    turned_options = {name: turned(value) for name, value in options.items()}
    actual = denoise_step(turned(x), turned(output), t, schedule, **turned_options, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    known = options["known"]  # both results where operands lie
    state = x.clone()
    placed = denoise_step(state, output, t, schedule, **options, out=state, x0_out=known, backend="cpu")
    assert placed[0] is state
    assert placed[1] is known
    assert all(torch.equal(a, b) for a, b in zip(placed, expected, strict=True))


@pytest.mark.parametrize("elements", [3, 15, 17, 64, 1027])
def test_a_clip_keeps_nan_and_bounds_infinity(elements: int) -> None:
    output = torch.randn(1, elements, 1)
    sound = denoise_step(output, output, 20, SCHEDULE, eta=0.0, clip=0.8, return_x0=True, backend="cpu")
    for value, clipped in ((torch.nan, torch.nan), (torch.inf, 0.8), (-torch.inf, -0.8)):
        for place in (0, elements // 2, elements - 1):
            ill = output.clone()
            ill[0, place, 0] = value
            results = denoise_step(output, ill, 20, SCHEDULE, eta=0.0, clip=0.8, return_x0=True, backend="cpu")
            assert results[1][0, place, 0].allclose(torch.tensor(clipped), rtol=EPS, atol=0, equal_nan=True)
            for x, y in zip(results, sound, strict=True):
                assert torch.equal(x[0, :place], y[0, :place])
                assert torch.equal(x[0, place + 1 :], y[0, place + 1 :])


def test_a_set_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINMDM_CPU_ISA", "avx1024")
    x = torch.randn(1, 3, 2)
    for call in (
        lambda: philox_normal((3, 4), seed=1, backend="cpu"),
        lambda: q_sample(x, 3, SCHEDULE, seed=1, backend="cpu"),
        lambda: denoise_step(x, x, 3, SCHEDULE, seed=1, backend="cpu"),
    ):
        with pytest.raises(RuntimeError, match=r"SINMDM_CPU_ISA must be one of baseline.* got avx1024"):
            call()
