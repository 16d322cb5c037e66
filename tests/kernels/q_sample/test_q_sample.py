"""q_sample against the forward process written out, native against reference, and its promises beside its values."""

import math

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor
from torch.autograd import forward_ad

from sinmdm.kernels import Schedule, philox_normal, q_sample

OP = "q_sample"
SCHEDULE = Schedule.cosine(50)
SHAPE = (3, 7, 5)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """x (B, frames, channels) as memory may lay it out; NaN in whatever lies between."""
    batch, frames, channels = x.shape
    wide = torch.full((batch, frames, 3 * channels), torch.nan, dtype=x.dtype)
    wide[..., channels : 2 * channels] = x
    long = torch.full((batch, 2 * frames + 1, channels), torch.nan, dtype=x.dtype)
    long[:, 1::2] = x
    return {
        "contiguous": x.clone(),
        "(B, features, frames) transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
        "a slice of a wider buffer": wide[..., channels : 2 * channels],
        "every second frame": long[:, 1::2],
        "batch innermost": x.movedim(0, -1).contiguous().movedim(-1, 0),
    }


def forward_process(x0: Tensor, t: list[int], noise: Tensor) -> Tensor:
    """Ho et al. 2020, eq. 4, from the betas alone, in float64 whatever the dtype."""
    rows = []
    for row, z, timestep in zip(x0.double(), noise.double(), t, strict=True):
        alpha_bar = math.prod(1 - float(beta) for beta in SCHEDULE.betas[: timestep + 1])
        rows.append(math.sqrt(alpha_bar) * row + math.sqrt(1 - alpha_bar) * z)
    return torch.stack(rows)


@pytest.mark.parametrize("t", [0, 1, 25, 49, [0, 49, 17]], ids=str)  # the ends, the middle, a timestep a row
@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1)))
def test_equals_the_forward_process(t, layout: str, backend: str) -> None:
    dtype = torch.float32 if backend == "cpu" else torch.float64
    x0, noise = torch.randn(2, *SHAPE, dtype=torch.float64).to(dtype)
    rows = t if isinstance(t, list) else [t] * 3
    exact = forward_process(x0, rows, noise)
    actual = q_sample(
        layouts(x0)[layout], torch.tensor(t) if isinstance(t, list) else t, SCHEDULE, noise=layouts(noise)[layout],
        backend=backend,
    )  # fmt: skip
    assert actual.dtype == dtype
    if dtype == torch.float64:
        assert_same_formula("x_t", actual, exact, len(SCHEDULE))
    else:
        table = SCHEDULE.alpha_bars[torch.tensor(rows)].to(dtype)[:, None, None]
        assert_within_budget("x_t", actual, exact, table.sqrt() * x0 + (1 - table).sqrt() * noise)


@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1)))
@pytest.mark.parametrize("given", [False, True])
def test_native_equals_reference(layout: str, given: bool) -> None:
    x0, noise = torch.randn(2, *SHAPE)
    t = torch.tensor([0, 49, 17])
    source = {"noise": layouts(noise)[layout]} if given else {"seed": 2**64 - 1, "step": 2**32 - 1, "sample": 2**32 - 3}
    native, reference = (
        q_sample(layouts(x0)[layout], t, SCHEDULE, **source, return_noise=True, backend=name)
        for name in ("cpu", "reference")
    )
    # Coefficients are at most 1; a normal is at most 2e-6 from the reference's, and a * x + b * z is rounded thrice.
    rounding = 4 * torch.finfo(torch.float32).eps * float(x0.abs().max() + 6)
    for x, y in zip(native, reference, strict=True):
        assert x.is_contiguous()
        assert float((x - y).abs().max()) <= (0 if given else 2e-6) + rounding


# Blocks hold 1024 elements and are handed out four at a time: one block, its edges, and more than one task.
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1023, 1), (2, 1024, 1), (2, 1025, 1), (3, 41, 173)], ids=str)
def test_blocks_of_the_native_walk(shape: tuple[int, ...]) -> None:
    x0 = torch.randn(shape)
    expected = q_sample(x0, 20, SCHEDULE, seed=3, backend="reference")
    # The normals' difference, and three roundings of terms of about 5 times factors below 1.
    bound = 2e-6 + 3 * torch.finfo(torch.float32).eps * 5
    for name, view in layouts(x0).items():
        actual = q_sample(view, 20, SCHEDULE, seed=3, backend="cpu")
        assert float((actual - expected).abs().max()) <= bound, name


@pytest.mark.parametrize("shape", [(0, 7, 5), (3, 0, 5), (3, 7, 0), (0, 0, 0)], ids=str)
def test_nothing_in_nothing_out(shape: tuple[int, ...], backend: str) -> None:
    x_t, noise = q_sample(torch.empty(shape), 3, SCHEDULE, seed=1, return_noise=True, backend=backend)
    assert x_t.shape == noise.shape == shape


def test_drawn_noise_is_philox_normals(backend: str) -> None:
    x0 = torch.randn(SHAPE)
    x_t, noise = q_sample(x0, 20, SCHEDULE, seed=4, step=9, sample=11, return_noise=True, backend=backend)
    for b in range(3):
        assert torch.equal(noise[b], philox_normal(SHAPE[1:], seed=4, step=9, sample=11 + b, backend=backend))
    assert torch.equal(x_t, q_sample(x0, 20, SCHEDULE, noise=noise, backend=backend))


def test_float64_states_take_the_float32_draw() -> None:
    x0 = torch.randn(SHAPE, dtype=torch.float64)
    _, noise = q_sample(x0, 20, SCHEDULE, seed=4, return_noise=True)
    assert noise.dtype == torch.float64
    normals = philox_normal(SHAPE[1:], seed=4, sample=torch.arange(3), backend="reference")
    assert torch.equal(noise, normals.double())


def test_a_row_does_not_depend_on_its_batch(backend: str) -> None:
    x0 = torch.randn(SHAPE)
    t = torch.tensor([4, 40, 21])
    together = q_sample(x0, t, SCHEDULE, seed=8, step=torch.tensor([5, 6, 2**32 - 1]), sample=100, backend=backend)
    for b, step in enumerate((5, 6, 2**32 - 1)):
        alone = q_sample(x0[b : b + 1], int(t[b]), SCHEDULE, seed=8, step=step, sample=100 + b, backend=backend)
        assert torch.equal(together[b : b + 1], alone)
    shuffled = q_sample(
        x0[[2, 0]], t[[2, 0]], SCHEDULE, seed=8, step=torch.tensor([2**32 - 1, 5]), sample=torch.tensor([102, 100]),
        backend=backend,
    )  # fmt: skip
    assert torch.equal(shuffled, together[[2, 0]])


def test_words_of_int32_tensors_are_taken_modulo_2_to_the_32(backend: str) -> None:
    x0 = torch.randn(SHAPE)
    word = torch.full((3,), -(2**31) + 7, dtype=torch.int32)  # 0x80000007, harmonisation's own draw at t = 7
    expected = q_sample(x0, 7, SCHEDULE, seed=8, step=0x80000007, sample=0, backend=backend)
    actual = q_sample(x0, 7, SCHEDULE, seed=8, step=word, sample=torch.arange(3, dtype=torch.int32), backend=backend)
    assert torch.equal(actual, expected)


def test_a_longer_sequence_starts_like_a_shorter_one(backend: str) -> None:
    x0 = torch.randn(2, 400, 5)
    longer = q_sample(x0, 20, SCHEDULE, seed=8, backend=backend)
    assert torch.equal(q_sample(x0[:, :13], 20, SCHEDULE, seed=8, backend=backend), longer[:, :13])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 174])
def test_a_piece_is_a_slice_of_the_whole(channels: int, backend: str) -> None:
    x0 = torch.randn(3, 41, channels)
    options = {"seed": 2**63 + 7, "step": 9, "sample": 11, "return_noise": True, "backend": backend}
    whole = q_sample(x0, 20, SCHEDULE, **options)
    for a, b in ((0, 1), (1, 9), (7, 40), (13, 17), (40, 41)):
        for frame in (a, torch.full((3,), a, dtype=torch.int32)):
            piece = q_sample(x0[:, a:b], 20, SCHEDULE, frame=frame, **options)
            assert all(torch.equal(p, w[:, a:b]) for p, w in zip(piece, whole, strict=True)), (a, b)
    first = [0, 5, 22]  # a frame a row

    def pieces(y: Tensor) -> Tensor:
        return torch.stack([row[a : a + 18] for row, a in zip(y, first, strict=True)])

    actual = q_sample(pieces(x0), 20, SCHEDULE, frame=torch.tensor(first), **options)
    assert all(torch.equal(p, pieces(w)) for p, w in zip(actual, whole, strict=True))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 174])
def test_native_equals_reference_far_away(channels: int) -> None:
    x0 = torch.randn(3, 41, channels)
    # Element 2^34 is the first of the counter at which the second word begins; and the last frames there are.
    for frame in (2**34 // channels - 20, 2**40 - 41):
        native, reference = (
            q_sample(x0, 20, SCHEDULE, seed=3, frame=frame, backend=name) for name in ("cpu", "reference")
        )
        bound = 2e-6 + 3 * torch.finfo(torch.float32).eps * 5  # as in the blocks above
        assert float((native - reference).abs().max()) <= bound


def test_given_noise_does_not_mind_the_frame(backend: str) -> None:
    x0, noise = torch.randn(2, *SHAPE)
    expected = q_sample(x0, 20, SCHEDULE, noise=noise, backend=backend)
    assert torch.equal(q_sample(x0, 20, SCHEDULE, noise=noise, frame=77, backend=backend), expected)


@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1)))
def test_into_out(layout: str, backend: str) -> None:
    x0 = torch.randn(SHAPE)
    expected = q_sample(x0, 20, SCHEDULE, seed=8, backend=backend)
    out = layouts(torch.full(SHAPE, torch.nan))[layout]
    assert q_sample(x0, 20, SCHEDULE, seed=8, out=out, backend=backend) is out
    assert torch.equal(out, expected)
    state = layouts(x0)[layout]
    assert q_sample(state, 20, SCHEDULE, seed=8, out=state, backend=backend) is state
    assert torch.equal(state, expected)


def test_out_leaves_the_memory_around_it_alone_and_noise_still_comes(backend: str) -> None:
    x0 = torch.randn(SHAPE)
    expected, noise = q_sample(x0, 20, SCHEDULE, seed=8, return_noise=True, backend=backend)
    wide = torch.full((3, 7, 15), 7.0)
    out, same = q_sample(x0, 20, SCHEDULE, seed=8, out=wide[..., 5:10], return_noise=True, backend=backend)
    assert torch.equal(out, expected)
    assert torch.equal(wide[..., 5:10], expected)
    assert torch.equal(same, noise)
    assert bool((wide[..., :5] == 7).all())
    assert bool((wide[..., 10:] == 7).all())


def test_out_is_fine_under_no_grad(backend: str) -> None:
    x0 = torch.randn(SHAPE, requires_grad=True)
    out = torch.empty(SHAPE)
    with torch.no_grad():
        q_sample(x0, 20, SCHEDULE, seed=8, out=out, backend=backend)
    assert torch.equal(out, q_sample(x0, 20, SCHEDULE, seed=8, backend=backend))


def test_gradients() -> None:
    x0, noise = (torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    t = torch.tensor([3, 40])
    assert torch.autograd.gradcheck(lambda x, z: q_sample(x, t, SCHEDULE, noise=z), (x0, noise))
    assert torch.autograd.gradcheck(lambda x, z: q_sample(x, t, SCHEDULE, noise=z, return_noise=True), (x0, noise))
    assert torch.autograd.gradcheck(lambda x: q_sample(x, t, SCHEDULE, seed=1, return_noise=True)[0], (x0,))
    assert torch.autograd.gradgradcheck(lambda x, z: q_sample(x, t, SCHEDULE, noise=z), (x0, noise))


def test_native_gradient_is_the_references() -> None:
    gradients = []
    for backend in ("cpu", "reference"):
        x0 = torch.ones(SHAPE, requires_grad=True)
        noise = torch.ones(SHAPE, requires_grad=True)
        x_t, back = q_sample(x0, 20, SCHEDULE, noise=noise, return_noise=True, backend=backend)
        gradients.append(torch.autograd.grad((x_t * 3 + back).sum(), (x0, noise)))
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_returned_noise_does_not_alias_the_given(backend: str) -> None:
    x0, noise = torch.randn(2, *SHAPE)
    _, back = q_sample(x0, 20, SCHEDULE, noise=noise, return_noise=True, backend=backend)
    assert torch.equal(back, noise)
    assert back.data_ptr() != noise.data_ptr()


def test_threads_do_not_matter(backend: str) -> None:
    x0 = torch.randn(3, 500, 33)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(q_sample(x0, 20, SCHEDULE, seed=8, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def good() -> dict:
    return {"x0": torch.randn(SHAPE), "t": 5, "schedule": SCHEDULE, "seed": 1}


def bad_values() -> dict[str, tuple[dict, type[Exception], str]]:
    """What is wrong -> (changed arguments, error, what its message must say)."""
    x0 = torch.randn(SHAPE)
    return {
        "two dimensions": ({"x0": x0[0]}, ValueError, r"x0 must have shape.*got \(7, 5\)"),
        "half": ({"x0": x0.half()}, TypeError, "x0 must be float32 or float64, got float16"),
        "t too large": ({"t": 50}, ValueError, "t must be from 0 to 49, got 50"),
        "t negative": ({"t": -1}, ValueError, "t must be from 0 to 49, got -1"),
        "t True": ({"t": True}, ValueError, "t must be.*got True"),
        "t fractional": ({"t": 1.0}, ValueError, "t must be.*got 1.0"),
        "t's shape": ({"t": torch.tensor([1, 2])}, ValueError, r"t must have shape.*\(3,\), got \(2,\)"),
        "t's dtype": ({"t": torch.tensor([1.0, 2, 3])}, TypeError, "t must be int32 or int64, got float32"),
        "t's values": ({"t": torch.tensor([1, 2, 50])}, ValueError, "t must be from 0 to 49, got values from 1 to 50"),
        "no noise": ({"seed": None}, ValueError, "give either seed or noise, got neither"),
        "both": ({"noise": x0}, ValueError, "give either seed or noise, not both"),
        "noise's shape": ({"seed": None, "noise": x0[:2]}, ValueError, "noise must have shape"),
        "noise's dtype": ({"seed": None, "noise": x0.double()}, TypeError, "noise must be float32, got float64"),
        "noise's device": ({"seed": None, "noise": x0.to("meta")}, ValueError, "noise must be on.*device cpu"),
        "seed": ({"seed": 2**64}, ValueError, "seed must be an int from 0"),
        "step": ({"step": 2**32}, ValueError, "step must stay within 0 and 2\\*\\*32 - 1"),
        "step's shape": ({"step": torch.tensor([1])}, ValueError, "step must have shape"),
        "step's dtype": ({"step": torch.ones(3)}, TypeError, "step must be int32 or int64"),
        "sample runs over": ({"sample": 2**32 - 2}, ValueError, "sample must stay within.*for 3 rows"),
        "sample negative": ({"sample": -1}, ValueError, "sample must stay within"),
        "frame negative": ({"frame": -1}, ValueError, r"frame must be from 0 to 2\*\*40 - 1, got -1"),
        "frame too large": ({"frame": 2**40}, ValueError, r"frame must be from 0 to 2\*\*40 - 1, got 1099511627776"),
        "frame True": ({"frame": True}, ValueError, "frame must be.*got True"),
        "frame's shape": ({"frame": torch.tensor([1])}, ValueError, r"frame must have shape.*\(3,\), got \(1,\)"),
        "frame's dtype": ({"frame": torch.ones(3)}, TypeError, "frame must be int32 or int64, got float32"),
        "frame's values": ({"frame": torch.tensor([0, -1, 2])}, ValueError, "frame must be.*got values from -1 to 2"),
        "out's shape": ({"out": x0[:, :3]}, ValueError, "out must have shape"),
        "out's dtype": ({"out": x0.double()}, TypeError, "out must be float32, got float64"),
        "out with a gradient": (
            {"x0": x0.clone().requires_grad_(), "out": torch.empty(SHAPE)}, ValueError, "out cannot be given where",
        ),
        "out, and the noise wants a gradient": (
            {"seed": None, "noise": x0.clone().requires_grad_(), "out": torch.empty(SHAPE)}, ValueError, "out cannot",
        ),
        "unknown backend": ({"backend": "c"}, ValueError, "backend must be one of cpu, cuda, reference, triton"),
    }  # fmt: skip


@pytest.mark.parametrize("what", bad_values())
def test_errors_name_the_argument(what: str) -> None:
    q_sample(**good())  # what the case is changed from is fine
    changed, error, message = bad_values()[what]
    with pytest.raises(error, match=message):
        q_sample(**good() | changed)


@pytest.mark.parametrize("which", ["x0", "noise"])
def test_forward_mode_is_an_error(which: str, backend: str) -> None:
    tensors = {"x0": torch.randn(SHAPE), "noise": torch.randn(SHAPE)}
    expected = q_sample(**tensors, t=5, schedule=SCHEDULE, backend=backend)
    with forward_ad.dual_level():
        assert torch.equal(q_sample(**tensors, t=5, schedule=SCHEDULE, backend=backend), expected)
        tensors[which] = forward_ad.make_dual(tensors[which], torch.ones(SHAPE))
        with pytest.raises(RuntimeError, match="q_sample has no forward-mode derivative"):
            q_sample(**tensors, t=5, schedule=SCHEDULE, backend=backend)
    with pytest.raises(RuntimeError, match="q_sample has no forward-mode derivative"):
        torch.func.jvp(
            lambda x: q_sample(x, 5, SCHEDULE, seed=1, backend=backend), (torch.ones(SHAPE),), (torch.ones(SHAPE),)
        )
