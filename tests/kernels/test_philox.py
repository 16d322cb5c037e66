"""The noise stream: the generator's published vectors, our polynomials, header against reference, statistics."""

import ctypes
import math
import re
import shutil
import subprocess

import pytest
import torch
from torch import Tensor

from sinmdm.kernels import _native, philox_normal
from sinmdm.kernels.philox import reference

OP = "philox_normal"
HEADER = _native.source_folder() / "philox.h"
EPS = torch.finfo(torch.float32).eps
SIGMA5 = 5.0  # bounds below are five standard deviations of the estimate: one failure in 1.7 million correct streams
NORMAL_BOUND = 2e-6  # how far two backends' normals may lie apart, by the definition of the stream

# Random123's kat_vectors, philox4x32 10: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
# Where an implementation goes wrong: the ends, the two sides of each quadrant of the circle and of the logarithm's
# range reduction, and all words that differ only in the nine bits that are dropped.
EDGE_WORDS = sorted(
    {
        (word + step) % 2**32
        for word in (0, *(i << 29 for i in range(8)), int(math.sqrt(0.5) * 2**32), 0x3504F3 << 9)
        for step in (-1025, -513, -512, -511, -1, 0, 1, 511, 512, 513, 1025)
    }
)


def words_of(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def key_of(text: str) -> int:
    low, high = words_of(text)
    return high << 32 | low


def dense_words() -> Tensor:
    """2^17 words over the whole range, and the edges."""
    return torch.cat([torch.arange(0, 2**32, 2**15 + 1, dtype=torch.int64), torch.tensor(EDGE_WORDS)])


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/philox.h alone, compiled for the host."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on PATH to compile csrc/philox.h with")
    folder = tmp_path_factory.mktemp("philox")
    (folder / "philox.cpp").write_text(
        """
        #include "philox.h"
        using namespace sinmdm;
        extern "C" void words(int64_t n, const uint64_t* group, const uint32_t* step, const uint32_t* sample,
                              uint64_t seed, uint32_t* out) {
          for (int64_t i = 0; i < n; ++i) {
            const Words w = philox4x32_10(counter_of(group[i], step[i], sample[i]), seed);
            out[4 * i] = w.x0, out[4 * i + 1] = w.x1, out[4 * i + 2] = w.x2, out[4 * i + 3] = w.x3;
          }
        }
        extern "C" void functions(int64_t n, const uint32_t* word, float* u, float* log, float* cosine, float* sine) {
          for (int64_t i = 0; i < n; ++i) {
            u[i] = uniform(word[i]);
            log[i] = log_unit(u[i]);
            cos_sin_turns(u[i], cosine[i], sine[i]);
          }
        }
        """
    )
    library = folder / "philox.so"
    subprocess.run(
        ["g++", *_native.CXX_FLAGS, "-fPIC", "-shared", "-I", HEADER.parent, folder / "philox.cpp", "-o", library],
        check=True,
        timeout=120,
    )
    return ctypes.CDLL(str(library))


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, output: str) -> None:
    words = reference.philox4x32(tuple(torch.tensor(word) for word in words_of(counter)), key_of(key))
    assert [int(word) for word in words] == words_of(output)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers_of_the_header(header: ctypes.CDLL, counter: str, key: str, output: str) -> None:
    c0, c1, c2, c3 = words_of(counter)
    out = (ctypes.c_uint32 * 4)()
    header.words(
        ctypes.c_int64(1), (ctypes.c_uint64 * 1)(c1 << 32 | c0), (ctypes.c_uint32 * 1)(c2), (ctypes.c_uint32 * 1)(c3),
        ctypes.c_uint64(key_of(key)), out,
    )  # fmt: skip
    assert list(out) == words_of(output)


def test_a_negative_key_is_the_same_64_bits() -> None:
    counter = tuple(torch.tensor(word) for word in (1, 2, 3, 4))
    assert reference.philox4x32(counter, -1) == reference.philox4x32(counter, 2**64 - 1)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_header_and_reference_give_the_same_words(header: ctypes.CDLL, seed: int) -> None:
    # Groups on both sides of 2^32, where the counter's second word begins, and beyond 2^62; both other words' ends.
    groups = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 5 * 2**32 + 7, 2**62 + 2**31 + 3])
    ends = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    group, step, sample = (x.flatten() for x in torch.meshgrid(groups, ends, ends, indexing="ij"))
    step32, sample32 = (torch.where(x >= 2**31, x - 2**32, x).to(torch.int32) for x in (step, sample))
    out = torch.empty(len(group), 4, dtype=torch.int32)
    header.words(
        ctypes.c_int64(len(group)), pointer(group.contiguous()), pointer(step32), pointer(sample32),
        ctypes.c_uint64(seed), pointer(out),
    )  # fmt: skip
    expected = torch.stack(reference.philox4x32(reference.counter_of(group, step, sample), seed), -1)
    assert torch.equal(out.to(torch.int64) & 0xFFFFFFFF, expected)


def test_header_and_reference_have_the_same_functions(header: ctypes.CDLL) -> None:
    words = dense_words()
    out = torch.empty(4, len(words), dtype=torch.float32)
    word32 = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    header.functions(ctypes.c_int64(len(words)), pointer(word32), *(pointer(row) for row in out))
    u = reference.uniform(words)
    assert torch.equal(out[0], u)
    # A compiler may fuse a multiplication with an addition: the results may differ by a rounding of a term or two.
    logarithm = reference.log(u)
    assert bool(((out[1] - logarithm).abs() <= 4 * EPS * logarithm.abs()).all())
    for actual, expected in zip(out[2:], reference.cos_sin_turns(u), strict=True):
        assert float((actual - expected).abs().max()) <= 4 * EPS


def test_header_has_the_references_constants() -> None:
    text = re.sub(r"//.*", "", HEADER.read_text())
    philox = re.search(r"philox4x32_10\(.*?\n}\n", text, re.DOTALL).group()
    integers = [int(x, 16) for x in re.findall(r"0x([0-9A-F]{8})u", philox)]
    assert integers == [*reference.MULTIPLIERS, *reference.KEY_INCREMENTS]
    assert f"round < {reference.ROUNDS}" in philox

    def coefficients(function: str, variable: str) -> tuple[float, ...]:
        """Of a Horner scheme in `variable`, lowest power first."""
        body = re.search(rf" {function}\(.*?\n}}\n", text, re.DOTALL).group()
        number = r"(-?[0-9.]+(?:e[-+]?\d+)?)f"
        first = re.search(rf"float {variable} = {number};", body).group(1)
        rest = re.findall(rf"\b{variable} = {variable} \* \w+ \+ {number};", body)
        return tuple(float(x) for x in reversed([first, *rest]))

    assert coefficients("log_unit", "p") == reference.LOG_POLYNOMIAL
    assert coefficients("cos_sin_turns", "s") == reference.SIN_POLYNOMIAL
    assert coefficients("cos_sin_turns", "c") == reference.COS_POLYNOMIAL
    assert f"{reference.LN2}f" in text


def test_polynomials_are_float32_numbers() -> None:
    # Otherwise a backend that rounds its constants would have other ones.
    for table in (reference.LOG_POLYNOMIAL, reference.SIN_POLYNOMIAL, reference.COS_POLYNOMIAL):
        assert [float(torch.tensor(c, dtype=torch.float32)) for c in table] == list(table)


def test_uniform_is_never_an_end() -> None:
    u = reference.uniform(torch.tensor([0, 511, 512, 2**32 - 512, 2**32 - 1]))
    assert u.tolist() == [2.0**-24, 2.0**-24, 3 * 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-24]
    every = reference.uniform(dense_words())
    assert bool(((every > 0) & (every < 1)).all())


def test_logarithm() -> None:
    u = reference.uniform(dense_words())
    exact = u.double().log()
    # The fit is good to 6e-9; what is left are the roundings of f, square, the two products and three sums, and of
    # exponent * ln 2, each of a term at most about the result's size (near 1 the first term is the result itself).
    error = ((reference.log(u).double() - exact) / exact).abs()
    assert float(error.max()) <= 3 * EPS


def test_cosine_and_sine() -> None:
    v = reference.uniform(dense_words())
    cosine, sine = reference.cos_sin_turns(v)
    for actual, exact in ((cosine, (2 * math.pi * v.double()).cos()), (sine, (2 * math.pi * v.double()).sin())):
        # The reduction is exact, and near a zero of either function the error goes with the value: r * S(r^2).
        assert float((actual.double() - exact).abs().max()) <= EPS
        small = exact.abs() < 1e-3
        relative = ((actual.double() - exact) / exact).abs()[small]
        assert int(small.sum()) > 100
        assert float(relative.max()) <= 3 * EPS


def test_first_normals_of_the_definition(backend: str) -> None:
    normals = philox_normal((1, 4), seed=0, backend=backend)
    published = torch.tensor([[0.991137, -0.924663, -0.617609, -0.482068]])
    assert float((normals - published).abs().max()) <= 0.5e-6 + NORMAL_BOUND


def test_layout_of_the_stream(backend: str) -> None:
    # Element frame * channels + channel takes normal (element mod 4) of counter (element div 4, step, sample), from
    # two uniforms each, whose logarithm and sines are taken here in float64.
    frames, channels, seed, step, sample = 5, 7, 2**63 + 2**33 + 5, 2**32 - 2, 2**31 + 1
    normals = philox_normal((frames, channels), seed=seed, step=step, sample=sample, backend=backend)
    for element, actual in enumerate(normals.flatten().tolist()):
        counter = tuple(torch.tensor(word) for word in (element // 4, 0, step, sample))
        u = [((int(w) >> 9) + 0.5) * 2.0**-23 for w in reference.philox4x32(counter, seed)]
        pair = 2 * (element % 4 // 2)
        radius = math.sqrt(-2 * math.log(u[pair]))
        turn = math.sin if element % 2 else math.cos
        assert abs(actual - radius * turn(2 * math.pi * u[pair + 1])) <= NORMAL_BOUND


@pytest.mark.parametrize("frame", [0, 3, 2**34 // 7 - 1, 2**37 + 2, 2**40 - 1])
def test_layout_of_later_frames(frame: int, backend: str) -> None:
    # As above, with the counter's second word: element 2^34 is the first of counter 2^32.
    channels, seed, step, sample = 7, 2**63 + 5, 3, 4
    normals = philox_normal((3, channels), seed=seed, step=step, sample=sample, frame=frame, backend=backend)
    for place, actual in enumerate(normals.flatten().tolist()):
        element = frame * channels + place
        words = (element // 4 % 2**32, element // 4 // 2**32, step, sample)
        u = [((int(w) >> 9) + 0.5) * 2.0**-23 for w in reference.philox4x32(tuple(map(torch.tensor, words)), seed)]
        pair = 2 * (element % 4 // 2)
        turn = math.sin if element % 2 else math.cos
        exact = math.sqrt(-2 * math.log(u[pair])) * turn(2 * math.pi * u[pair + 1])
        assert abs(actual - exact) <= NORMAL_BOUND


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 174])
@pytest.mark.parametrize("begin", [0, 2**34, 2**40 - 70], ids=["the start", "the second word", "the end"])
def test_later_frames_are_a_slice_of_the_whole(begin: int, channels: int, backend: str) -> None:
    begin = begin // channels - 20 if begin == 2**34 else begin
    names = {"seed": 3, "step": 5, "backend": backend}
    sample = torch.tensor([7, 2**32 - 1, 0])
    whole = philox_normal((70, channels), sample=sample, frame=begin, **names)
    for a, b in ((0, 1), (1, 9), (19, 21), (20, 70), (33, 34), (7, 68)):
        piece = philox_normal((b - a, channels), sample=sample, frame=begin + a, **names)
        assert torch.equal(piece, whole[:, a:b]), (a, b)
        one = philox_normal((b - a, channels), sample=7, frame=begin + a, **names)
        assert torch.equal(one, whole[0, a:b])
    first = torch.tensor([0, 5, 22])  # a frame a sample
    pieces = philox_normal((18, channels), sample=sample, frame=begin + first, **names)
    assert torch.equal(pieces, torch.stack([row[a : a + 18] for row, a in zip(whole, first.tolist(), strict=True)]))
    out = torch.full((3, 18, channels), torch.nan)
    assert torch.equal(philox_normal((18, channels), sample=sample, frame=begin + first, out=out, **names), pieces)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 12345, 2**64 - 1])
def test_native_equals_reference(seed: int) -> None:
    # 173 channels: rows end inside a counter, a vector of 16 counters and a block of 1024 elements.
    sample = torch.tensor([0, 2**31, 2**32 - 1])
    for step in (0, 999, 2**31, 2**32 - 1):
        native, plain = (
            philox_normal((31, 173), seed=seed, step=step, sample=sample, backend=name) for name in ("cpu", "reference")
        )
        assert float((native - plain).abs().max()) <= NORMAL_BOUND


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 5, 63, 64, 65, 1023, 1024, 1025, 4096, 4097])
def test_every_size_of_the_native_walk(elements: int) -> None:
    native, plain = (philox_normal((elements, 1), seed=1, backend=name) for name in ("cpu", "reference"))
    assert float((native - plain).abs().max()) <= NORMAL_BOUND


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing(shape: tuple[int, int], backend: str) -> None:
    assert philox_normal(shape, seed=1, backend=backend).shape == shape
    none = torch.zeros(0, dtype=torch.int64)
    assert philox_normal((3, 4), seed=1, sample=none, backend=backend).shape == (0, 3, 4)


def test_a_longer_sequence_starts_with_the_same_noise(backend: str) -> None:
    longest = philox_normal((700, 6), seed=3, step=5, sample=7, backend=backend)
    for frames in (1, 2, 3, 171, 699):
        assert torch.equal(philox_normal((frames, 6), seed=3, step=5, sample=7, backend=backend), longest[:frames])


def test_noise_is_a_stream_of_elements(backend: str) -> None:
    # However the elements are cut into frames: 4 x 6 and 8 x 3 hold the same 24 numbers.
    normals = philox_normal((4, 6), seed=3, backend=backend)
    assert torch.equal(philox_normal((8, 3), seed=3, backend=backend).flatten(), normals.flatten())


def test_a_sample_does_not_depend_on_its_batch(backend: str) -> None:
    sample = torch.tensor([4, 0, 2**32 - 1, 4])
    together = philox_normal((37, 29), seed=3, step=5, sample=sample, backend=backend)
    for row, one in zip(together, sample.tolist(), strict=True):
        assert torch.equal(row, philox_normal((37, 29), seed=3, step=5, sample=one, backend=backend))
    assert torch.equal(together[0], together[3])
    int32 = torch.tensor([4, 0, -1, 4], dtype=torch.int32)  # the same words
    assert torch.equal(together, philox_normal((37, 29), seed=3, step=5, sample=int32, backend=backend))


def test_every_name_of_a_draw_matters(backend: str) -> None:
    base = {"seed": 3, "step": 5, "sample": 7}
    normals = philox_normal((10, 10), **base, backend=backend)
    for change in (
        {"seed": 4},
        {"seed": 3 + 2**32},
        {"seed": 3 + 2**63},
        {"step": 6},
        {"sample": 8},
        {"step": 7, "sample": 5},
    ):
        other = philox_normal((10, 10), **base | change, backend=backend)
        assert not bool((other == normals).any()), change


def test_threads_do_not_matter(backend: str) -> None:
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(philox_normal((500, 33), seed=3, sample=torch.arange(3), backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_into_out(backend: str) -> None:
    expected = philox_normal((37, 29), seed=3, sample=torch.arange(2), backend=backend)
    out = torch.full((2, 37, 29), torch.nan)
    assert philox_normal((37, 29), seed=3, sample=torch.arange(2), out=out, backend=backend) is out
    assert torch.equal(out, expected)
    # A contiguous part of something larger, that does not start where a vector would.
    buffer = torch.full((37 * 28 + 2,), torch.nan)
    alone = philox_normal((37, 28), seed=3, out=buffer[1:-1].view(37, 28), backend=backend)
    assert torch.equal(alone, philox_normal((37, 28), seed=3, backend=backend))
    assert buffer.isnan().tolist() == [True, *[False] * (37 * 28), True]


STREAM = {"seed": 20_240_607, "step": 999, "sample": torch.arange(8)}


@pytest.fixture(scope="module")
def ten_million() -> Tensor:
    """(samples, frames, channels): 8 x 10000 x 125 draws of the native path (the reference's where there is none)."""
    return philox_normal((10_000, 125), **STREAM)


def test_moments(ten_million: Tensor) -> None:
    # The k-th moment's estimate varies with (E z^2k - (E z^k)^2) / n; E z^2m = 1 * 3 * ... * (2m - 1).
    z, n = ten_million.double(), ten_million.numel()
    even = [1, 1, 3, 15, 105, 945, 10395]
    power = torch.ones_like(z)
    for k in range(1, 7):
        power *= z
        exact = even[k // 2] if k % 2 == 0 else 0
        sigma = math.sqrt((even[k] - exact**2) / n)
        assert abs(float(power.mean()) - exact) <= SIGMA5 * sigma, f"moment {k}"
    # The largest radius there is belongs to the smallest uniform.
    assert float(z.abs().max()) <= math.sqrt(-2 * math.log(2.0**-24)) + NORMAL_BOUND


def test_distribution(ten_million: Tensor) -> None:
    z = ten_million.flatten().double().sort().values
    n = len(z)
    cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    rank = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum((rank[1:] - cdf).max(), (cdf - rank[:-1]).max()))
    # Kolmogorov's limit: P(sqrt(n) D > x) = 2 exp(-2 x^2), for the probability of five sigma.
    assert distance <= math.sqrt(-math.log(math.erfc(SIGMA5 / math.sqrt(2)) / 2) / 2 / n)


@pytest.mark.parametrize(
    ("dim", "lag"),
    [
        (2, 1),  # the two normals of a pair, and across pairs and counters
        (2, 2),
        (2, 4),  # the same normal of the next counter
        (2, 64),  # of the next vector of counters
        (1, 1),  # the next frame
        (0, 1),  # the next sample
    ],
)
def test_neighbours_are_independent(ten_million: Tensor, dim: int, lag: int) -> None:
    first = ten_million.narrow(dim, 0, ten_million.shape[dim] - lag).double()
    second = ten_million.narrow(dim, lag, ten_million.shape[dim] - lag).double()
    # Correlations of independent numbers vary with 1 / n; those of their squares (variance 2) and signs show a radius
    # or an angle that is shared.
    sigma = 1 / math.sqrt(first.numel())
    assert abs(float((first * second).mean())) <= SIGMA5 * sigma
    assert abs(float(((first**2 - 1) * (second**2 - 1)).mean() / 2)) <= SIGMA5 * sigma
    assert abs(float((first * (second**2 - 1)).mean() / math.sqrt(2))) <= SIGMA5 * sigma


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"step": 998}, id="the step before"),
        pytest.param({"step": 1000}, id="the next step"),
        pytest.param({"step": 999 + 2**31}, id="a step of the top bit"),
        pytest.param({"sample": torch.arange(8) + 8}, id="the next eight samples"),
        pytest.param({"sample": torch.arange(8) + 2**31}, id="samples of the top bit"),
        pytest.param({"sample": torch.arange(8).flip(0)}, id="each other's samples"),
        pytest.param({"seed": 20_240_608}, id="the next seed"),
        pytest.param({"seed": 20_240_607 + 2**32}, id="a seed of the higher word"),
        pytest.param({"frame": 10_000}, id="the following frames"),
        pytest.param({"frame": 2**34}, id="the same first word of the counter"),
    ],
)
def test_steps_samples_seeds_and_frames_are_independent(ten_million: Tensor, changed: dict) -> None:
    # As for neighbours: of the numbers, of their squares, and of one with the other.
    first, second = ten_million.double(), philox_normal((10_000, 125), **STREAM | changed).double()
    sigma = 1 / math.sqrt(first.numel())
    spread, other = first.square() - 1, second.square() - 1
    assert abs(float((first * second).mean())) <= SIGMA5 * sigma
    assert abs(float((spread * other).mean() / 2)) <= SIGMA5 * sigma
    assert abs(float((first * other).mean() / math.sqrt(2))) <= SIGMA5 * sigma
    assert abs(float((spread * second).mean() / math.sqrt(2))) <= SIGMA5 * sigma


def test_the_means_of_samples_and_steps_vary_as_independent_ones_do() -> None:
    # 400 streams of 25000 draws: their means have the variance 1 / 25000, whose own estimate varies with 2 / 400.
    each, count = 25_000, 400
    sample, step = torch.arange(count), 5
    by_sample = philox_normal((each, 1), seed=1, step=step, sample=sample).double().mean((1, 2))
    by_step = torch.stack([philox_normal((each, 1), seed=1, step=s).double().mean() for s in range(count)])
    for means in (by_sample, by_step):
        scaled = means * math.sqrt(each)
        assert abs(float(scaled.mean())) <= SIGMA5 / math.sqrt(count)
        assert abs(float(scaled.square().mean()) - 1) <= SIGMA5 * math.sqrt(2 / count)
        assert abs(float((scaled[1:] * scaled[:-1]).mean())) <= SIGMA5 / math.sqrt(count - 1)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"shape": (3,)}, ValueError, r"shape must be \(frames, channels\).*\(3,\)"),
        ({"shape": (3, -1)}, ValueError, "shape must be"),
        ({"shape": (3, 2.0)}, ValueError, "shape must be"),
        ({"shape": (True, 2)}, ValueError, "shape must be"),
        ({"seed": -1}, ValueError, "seed must be an int from 0"),
        ({"seed": 2**64}, ValueError, "seed must be an int from 0"),
        ({"seed": True}, ValueError, "seed must be.*True"),
        ({"step": 2**32}, ValueError, "step must stay within"),
        ({"step": -1}, ValueError, "step must stay within"),
        ({"sample": 2**32}, ValueError, "sample must stay within"),
        ({"sample": torch.tensor(3)}, ValueError, "sample must have shape"),
        ({"sample": torch.ones(2)}, TypeError, "sample must be int32 or int64"),
        ({"frame": -1}, ValueError, r"frame must be from 0 to 2\*\*40 - 1, got -1"),
        ({"frame": 2**40}, ValueError, r"frame must be from 0 to 2\*\*40 - 1, got 1099511627776"),
        ({"frame": True}, ValueError, "frame must be.*got True"),
        ({"frame": torch.tensor([1, 2])}, ValueError, r"frame must have shape.*\(1,\), got \(2,\)"),
        ({"frame": torch.ones(1)}, TypeError, "frame must be int32 or int64, got float32"),
        ({"frame": torch.tensor([-1])}, ValueError, "frame must be.*got values from -1 to -1"),
        ({"frame": torch.tensor([2**40])}, ValueError, "frame must be.*got values from 1099511627776"),
        ({"out": torch.empty(3, 5)}, ValueError, r"out must be float32 \(3, 4\)"),
        ({"out": torch.empty(3, 4).double()}, ValueError, "out must be float32.*float64"),
        ({"out": torch.empty(3, 4), "device": "meta"}, ValueError, "out must be float32.*on meta"),
        ({"out": torch.empty(4, 3).T}, ValueError, r"out must be float32.*strides \(1, 3\)"),
        ({"out": torch.empty(3, 4, requires_grad=True)}, ValueError, "out cannot be given where a gradient"),
        ({"backend": "c"}, ValueError, "backend must be one of cpu, cuda, reference, triton"),
    ],
)
def test_errors_name_the_argument(changed: dict, error: type[Exception], message: str) -> None:
    good = {"shape": (3, 4), "seed": 1}
    philox_normal(**good)  # what the case is changed from is fine
    with pytest.raises(error, match=message):
        philox_normal(**good | changed)


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("elements", [1021, 1022, 1023, 1024])
def test_a_row_that_begins_within_a_counter_may_take_a_tile_more(elements: int, first: int, backend: str) -> None:
    whole = philox_normal((elements + first, 1), seed=3, backend="reference")
    out = torch.full((elements, 1), torch.nan)
    philox_normal((elements, 1), seed=3, frame=first, out=out, backend=backend)
    assert float((out - whole[first:]).abs().max()) <= 2e-6
