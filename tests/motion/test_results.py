"""results.npz: what is written is what is read, chunk by chunk too; what is wrong is refused and leaves nothing."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinmdm.motion import Results, writing_results

FRAMES = 11
NAMES, PARENTS = ("Hips", "Spine: näck", "left foot"), (-1, 0, 0)


def _results(given: bool = True, lengths: tuple[int, ...] = (FRAMES, 7, 1)) -> Results:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(len(lengths), FRAMES, len(NAMES), 3)).astype(np.float32)
    for motion, length in zip(positions, lengths, strict=True):
        motion[length:] = 0
    return Results(
        positions, np.array(lengths), NAMES, PARENTS, 1 / 30, tuple(f"sample {k}" for k in range(len(lengths))),
        rng.random(positions.shape[:3]) < 0.5 if given else None,
    )  # fmt: skip


def _announce(path: Path, results: Results, **change: Any) -> Any:
    """`writing_results` of these, with something else in one place."""
    of = {
        "names": results.names, "parents": results.parents, "frame_time": results.frame_time,
        "frames": results.positions.shape[1], "labels": results.labels, "lengths": results.lengths.tolist(),
        "given": results.given,
    }  # fmt: skip
    return writing_results(path, **{**of, **change})


def _write(path: Path, chunks: list[np.ndarray], error: type[BaseException] | None = None) -> None:
    """The chunks where those of three motions were announced."""
    with _announce(path, _results()) as writer:
        for chunk in chunks:
            writer.write(chunk)
        if error is not None:
            raise error


def _same(one: Results, other: Results) -> None:
    np.testing.assert_array_equal(one.positions, other.positions, strict=True)
    np.testing.assert_array_equal(one.lengths, other.lengths, strict=True)
    for field in ("names", "parents", "frame_time", "labels"):
        assert getattr(one, field) == getattr(other, field)
    assert (one.given is None) == (other.given is None)
    if one.given is not None:
        np.testing.assert_array_equal(one.given, other.given, strict=True)


@pytest.mark.parametrize("given", [False, True])
def test_round_trip(given, tmp_path):
    results = _results(given)
    results.write(tmp_path / "results.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["results.npz"]
    _same(Results.read(tmp_path / "results.npz"), results)
    assert len(results) == 3


def test_numpy_alone_reads_it(tmp_path):
    results = _results()
    results.write(tmp_path / "results.npz")
    with np.load(tmp_path / "results.npz", allow_pickle=False) as file:
        assert set(file) == {"positions", "lengths", "names", "parents", "frame_time", "labels", "given"}
        np.testing.assert_array_equal(file["positions"], results.positions, strict=True)
        assert file["names"].tolist() == list(NAMES)
        assert file["frame_time"] == results.frame_time


@pytest.mark.parametrize("chunk", [1, 4, FRAMES])
def test_chunk_by_chunk_to_the_byte(chunk, tmp_path):
    results = _results()
    results.write(tmp_path / "whole.npz")
    with _announce(tmp_path / "chunks.npz", results) as writer:
        for index, (motion, length) in enumerate(zip(results.positions, results.lengths, strict=True)):
            assert writer.motions == index
            for part in torch.from_numpy(motion[:length]).double().split(chunk):
                writer.write(part)
    assert (tmp_path / "chunks.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_lengths_are_all_frames_unless_said_otherwise(tmp_path):
    results = _results(given=False, lengths=(FRAMES, FRAMES))
    with _announce(tmp_path / "results.npz", results, lengths=None) as writer:
        writer.write(results.positions[0])
        writer.write(results.positions[1])
    _same(Results.read(tmp_path / "results.npz"), results)


def test_what_is_beyond_a_motions_length_is_zero(tmp_path):
    results = _results()
    results.positions[1:, 8:] = 5
    results.write(tmp_path / "results.npz")
    assert not Results.read(tmp_path / "results.npz").positions[1:, 8:].any()


def test_memory_is_a_chunks(tmp_path):
    # 40 MB in chunks of 0.2 MB; the second motion is one frame, and the rest of its 20 MB is filled up.
    frames, joints, chunk = 100_000, 17, 1000
    names, parents = [f"joint {j}" for j in range(joints)], range(-1, joints - 1)
    part = np.ones((chunk, joints, 3), dtype=np.float32)
    tracemalloc.start()
    try:
        with writing_results(
            tmp_path / "results.npz", names, parents, 0.03, frames, ["a", "b"], lengths=[frames, 1]
        ) as writer:
            for _ in range(frames // chunk):
                writer.write(part)
            writer.write(part[:1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "results.npz").stat().st_size > 2 * frames * joints * 12
    assert peak < 4 * part.nbytes


def _fields(**change: Any) -> Any:
    return replace(_results(), **change)


SHAPE = (3, FRAMES, 3, 3)
WRONG = [
    ({"lengths": [FRAMES, 7]}, rf"^lengths must be 3 numbers from 1 to {FRAMES}, got \[{FRAMES}, 7\]$"),
    ({"lengths": [FRAMES, 7, 0]}, rf"^lengths must be 3 numbers from 1 to {FRAMES}, got \[{FRAMES}, 7, 0\]$"),
    ({"lengths": [FRAMES, 7, FRAMES + 1]}, rf"^lengths must be 3 numbers from 1 to {FRAMES}, got"),
    ({"parents": (-1, 0)}, r"^parents must be 3 numbers, each that of an earlier joint or -1, got \[-1, 0\]$"),
    ({"parents": (-1, 1, 0)}, r"^parents must be 3 numbers, each .*, got \[-1, 1, 0\]$"),
    ({"parents": (-1, 0, -2)}, r"^parents must be 3 numbers, each .*, got \[-1, 0, -2\]$"),
    ({"frame_time": 0.0}, r"^frame_time is 0.0, must be positive seconds$"),
    ({"frame_time": float("nan")}, r"^frame_time is nan, must be positive seconds$"),
    (
        {"given": np.ones((3, FRAMES, 2), dtype=bool)},
        rf"^given has shape \(3, {FRAMES}, 2\), must be \(3, {FRAMES}, 3\)$",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_written(change, message, tmp_path):
    with pytest.raises(ValueError, match=message), _announce(tmp_path / "results.npz", _results(), **change):
        pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []
    if "lengths" in change:
        change = {"lengths": np.array(change["lengths"])}
    with pytest.raises(ValueError, match=message):
        replace(_results(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((3, FRAMES, 3), dtype=np.float32)}, r"^positions have shape \(3, 11, 3\), must be"),
        ({"positions": np.zeros((3, FRAMES, 3, 2), dtype=np.float32)}, r"^positions have shape \(3, 11, 3, 2\)"),
        ({"positions": np.zeros((3, 0, 3, 3), dtype=np.float32)}, r"^positions have shape \(3, 0, 3, 3\), .* 0$"),
        ({"positions": np.full(SHAPE, np.nan, dtype=np.float32)}, r"^positions must be finite and within 1e\+09$"),
        ({"positions": np.full(SHAPE, -1.1e9, dtype=np.float32)}, r"^positions must be finite and within 1e\+09$"),
        ({"names": NAMES[:2]}, r"^2 names and 3 labels for 3 joints, 3 motions$"),
        ({"labels": ("a",)}, r"^3 names and 1 labels for 3 joints, 3 motions$"),
    ],
)
def test_what_is_no_set_of_motions(change, message):
    with pytest.raises(ValueError, match=message):
        replace(_results(), **change)


@pytest.mark.parametrize("change", [{"labels": []}, {"names": [], "parents": []}, {"frames": 0}])
def test_nothing_to_write(change, tmp_path):
    change = {"given": None, "lengths": None} | change
    with (
        pytest.raises(ValueError, match="none of them 0"),
        _announce(tmp_path / "results.npz", _results(), **change),
    ):
        pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_chunks_that_are_refused_count_as_not_given(tmp_path):
    results = _results(given=False, lengths=(FRAMES,))
    (motion,) = results.positions
    broken = motion.astype(np.float64)
    broken[-1, -1, -1] = 1e300  # finite, but not in float32: that is said, and no warning of numpy's
    with _announce(tmp_path / "results.npz", results) as writer:
        for left in (FRAMES, 4):
            for bad, message in (
                (motion[:, :2], r"^positions have shape \(11, 2, 3\), must be \(frames, 3, 3\)$"),
                (motion[0], r"^positions have shape \(3, 3\), must be"),
                (broken, r"^positions must be finite and within 1e\+09$"),
                (np.full_like(motion, np.nan), r"^positions must be finite and within 1e\+09$"),
                (motion.repeat(2, axis=0), rf"^positions have 22 frames, but only {left} are left of the motion$"),
            ):
                with pytest.raises(ValueError, match=message):
                    writer.write(bad)
            writer.write(motion[FRAMES - left : 7 if left == FRAMES else None])
        with pytest.raises(ValueError, match=r"^positions have 1 frames, but only 0 are left"):
            writer.write(motion[:1])
    _same(Results.read(tmp_path / "results.npz"), results)


def test_less_than_was_announced(tmp_path):
    with pytest.raises(ValueError, match=r"results\.npz: 1 motions were written whole, must be 3$"):
        _write(tmp_path / "results.npz", [np.zeros((FRAMES, 3, 3)), np.zeros((6, 3, 3))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_what_was_interrupted(error, tmp_path):
    (tmp_path / "results.npz").write_text("before")
    with pytest.raises(error):
        _write(tmp_path / "results.npz", [np.zeros((3, 3, 3))], error)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="missing"):
        _results().write(tmp_path / "missing" / "results.npz")
    with pytest.raises(OSError, match=r"results\.npz"):
        Results.read(tmp_path / "results.npz")


def _rewritten(path: Path, name: str, content: bytes | None) -> None:
    """The file again, with other bytes in one of its arrays, or without it."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    entries.pop(f"{name}.npy")
    with zipfile.ZipFile(path, "w") as archive:
        for entry, old in (entries | ({} if content is None else {f"{name}.npy": content})).items():
            archive.writestr(entry, old)


def _array(array: Any, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


class _Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((name, None, f"it has no {name}") for name in ("positions", "lengths", "names", "parents", "labels")),
        ("names", _array(np.array([_Trap()] * 3), allow_pickle=True), "allow_pickle=False"),
        ("positions", pickle.dumps(_Trap()), "magic string"),
        ("names", _array(np.arange(3)), r"names has dtype int64 and shape \(3,\)"),
        ("labels", _array(np.array([["a", "b", "c"]])), r"labels has dtype <U1 and shape \(1, 3\)"),
        ("lengths", _array(np.array([11.0, 7.0, 1.0])), "lengths has dtype float64"),
        ("lengths", _array(np.array([11, 7, 12])), "lengths must be 3 numbers from 1 to 11"),
        ("parents", _array(np.array([0, 0, 0])), "parents must be 3 numbers"),
        ("frame_time", _array(np.array(-1.0)), "frame_time is -1.0"),
        ("given", _array(np.ones((3, FRAMES, 3))), "given has dtype float64"),
        ("positions", _array(np.full(SHAPE, np.inf, dtype=np.float32)), "positions must be finite"),
        ("positions", _array(np.full(SHAPE, 1e30, dtype=np.float32)), r"positions must be finite and within 1e\+09"),
        ("positions", _array(np.full(SHAPE, 1e300)), r"positions must be finite and within 1e\+09"),
        ("positions", _array(np.zeros(SHAPE, dtype=np.int64)), "positions has dtype int64"),
        ("positions", _array(np.zeros(SHAPE, dtype=np.float32)) + b"x", "positions has more bytes than its shape"),
        ("positions", _array(np.zeros(SHAPE, dtype=np.float32))[:-1], "."),
        ("positions", b"", "."),
    ],
)
def test_damaged_arrays(name, content, message, tmp_path):
    path = tmp_path / "results.npz"
    _results().write(path)
    _rewritten(path, name, content)
    with pytest.raises(ValueError, match=rf"(?s)results\.npz: not a file of results: .*{message}"):
        Results.read(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "results.npz"
    _results().write(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1  # among the positions, which are last: two numbers of them differ in one bit
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped), pickle.dumps(_Trap()), _array(np.ones(3))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"results\.npz: not a file of results: ."):
            Results.read(path)
