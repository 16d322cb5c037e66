"""A run's new motions: their features, the files they are written to, and the motion that never ends."""

import dataclasses
import importlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_model import LocalModel
from torch import Tensor

import sinmdm
from sinmdm.diffusion import sample
from sinmdm.motion import RESULTS, Clip, Motion, Results, read_motion, walker, write_motion
from sinmdm.motion.files import MotionWriter
from sinmdm.motion.results import ResultsWriter
from sinmdm.run import Run

RUN = importlib.import_module("sinmdm.run")
FIELD = 3
KINDS = ["clip", "array"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run on a clip and one on an array, of one step of training."""
    folder = tmp_path_factory.mktemp("runs")
    write_motion(folder / "walk.bvh", walker(legs=2, seconds=1.5))
    write_motion(folder / "walk.npy", torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    for kind, name in zip(KINDS, ("walk.bvh", "walk.npy"), strict=True):
        sinmdm.train(folder / name, folder / kind, steps=1, progress=False)
    return {kind: sinmdm.load(folder / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, trained: dict[str, Run]) -> Run:
    """Either, with a network whose results do not depend on what they are computed beside, to the bit."""
    return dataclasses.replace(trained[request.param], network=LocalModel(FIELD))


def _numbers(motion: Motion) -> np.ndarray:
    return motion.values if isinstance(motion, Clip) else motion.numpy()


def _same(motion: Motion, other: Motion) -> bool:
    assert type(motion) is type(other)
    return np.array_equal(_numbers(motion), _numbers(other))


def _suffix(run: Run) -> str:
    return ".npy" if run.fps is None else ".bvh"


def _files(run: Run, folder: Path, files: list[Path]) -> list[Path]:
    """All that a folder of samples holds: a clip's joints have positions, an array has no joints."""
    return files if run.fps is None else sorted([folder / RESULTS, *files])


class TestFeatures:
    @pytest.mark.parametrize(
        "options",
        [
            {"seed": 2**64 - 1, "steps": 4},
            {"sampler": "ddim", "steps": [90, 60, 30], "eta": 0.5},
            {"sampler": "dpmpp_2m", "steps": 5, "spacing": "uniform"},
        ],
    )
    def test_are_those_of_sample(self, run: Run, options: dict[str, Any]) -> None:
        found = list(run.features(20, 3, device="cpu", **options))
        shape = (3, run.layout.size, 20)
        expected = sample(run.network, shape, run.schedule, **{"seed": 0, **options})
        assert len(found) == 3
        for features, x in zip(found, expected, strict=True):
            assert features.dtype == torch.float32
            assert features.device.type == "cpu"
            assert torch.equal(features, x.mT)

    def test_decoded_they_are_the_motions(self, run: Run) -> None:
        options: dict[str, Any] = {"seed": 4, "steps": 3}
        motions = run.sample(20, 2, **options)
        features = run.features(20, 2, **options)
        for motion, x in zip(motions, features, strict=True):
            assert _same(motion, run.layout.decode(run.normalizer.invert(x)))
            assert len(motion) == 20
        assert not _same(*motions)

    def test_a_motion_depends_neither_on_how_many_nor_on_how_many_at_once(self, run: Run) -> None:
        options: dict[str, Any] = {"seed": 4, "steps": 3}
        five = torch.stack(list(run.features(9, 5, **options)))
        assert torch.equal(torch.stack(list(run.features(9, 2, **options))), five[:2])
        for batch_size in (1, 2, 5, 100):
            assert torch.equal(torch.stack(list(run.features(9, 5, batch_size=batch_size, **options))), five)

    def test_steps_are_counted_over_all_batches(self, run: Run) -> None:
        seen: list[tuple[int, int]] = []
        list(run.features(4, 5, steps=[80, 40, 3], batch_size=2, on_step=lambda *done: seen.append(done)))
        assert seen == [(done, 9) for done in range(1, 10)]

    def test_nothing_is_computed_before_it_is_asked_for(self, run: Run) -> None:
        seen: list[int] = []
        motions = run.features(4, 4, steps=3, batch_size=1, on_step=lambda done, total: seen.append(done))
        assert seen == []
        next(motions)
        assert seen == [1, 2, 3]

    @pytest.mark.parametrize(
        ("frames", "n", "batches"),
        [
            (100, 40, [16, 16, 8]),
            (2**16 // 16, 17, [16, 1]),
            (2**16 // 16 + 1, 17, [15, 2]),
            (30_000, 5, [2, 2, 1]),
            (2**16 + 1, 3, [1, 1, 1]),
        ],
    )
    def test_long_motions_are_fewer_at_once(
        self, run: Run, frames: int, n: int, batches: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes, caches = [], []

        def spy(
            network: Any, shape: tuple[int, int, int], *_: Any, first_sample: int, graphs: Any, **__: Any
        ) -> Tensor:
            assert first_sample == sum(size for size, *_ in shapes)
            shapes.append(shape)
            caches.append(graphs)
            return torch.zeros(1, 1, 1).expand(shape)

        monkeypatch.setattr(RUN, "sample", spy)
        assert sum(1 for _ in run.features(frames, n)) == n
        assert shapes == [(size, run.layout.size, frames) for size in batches]
        assert all(cache is run.graphs for cache in caches)


REFUSED = [
    ({"seed": -1}, "seed must be an int from 0 to 2**64 - 1, got -1"),
    ({"seed": 2**64}, "seed must be an int from 0 to 2**64 - 1, got 18446744073709551616"),
    ({"sampler": "magic"}, "sampler must be one of ddpm, ddim, dpmpp_2m, got 'magic'"),
    ({"sampler": "ddpm", "eta": 0.5}, "eta is an option of the sampler ddim, got eta = 0.5 for ddpm"),
    ({"sampler": "ddim", "eta": 1.5}, "eta must be from 0 to 1, got 1.5"),
    ({"steps": 101}, "steps must be from 1 to 100, got 101"),
    ({"steps": [100, 3]}, "steps must be timesteps from 0 to 99, at least one, got [100, 3]"),
    ({"spacing": "even"}, "spacing must be one of trailing, leading, uniform, got 'even'"),
]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            *REFUSED,
            ({"frames": 0}, "frames must be an int >= 1, got 0"),
            ({"frames": 2.0}, "frames must be an int >= 1, got 2.0"),
            ({"n": 0}, "n must be an int >= 1, got 0"),
            ({"n": True}, "n must be an int >= 1, got True"),
            ({"batch_size": 0}, "batch_size must be an int >= 1, got 0"),
        ],
    )
    def test_at_the_call_whichever_it_is(
        self, run: Run, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:  # fmt: skip
        calls: list[Callable] = [run.features, run.sample, lambda **given: run.write_samples(tmp_path, **given)]
        for call in calls:
            with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
                call(**{"frames": 5, **options})
            assert str(refused.value) == message
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("options", "message"), [*REFUSED, ({"chunk": 0}, "chunk must be an int >= 1, got 0")])
    def test_of_a_stream_at_the_call(self, run: Run, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
            run.stream(**options)
        assert str(refused.value) == message

    def test_a_device_that_is_not_there(self, run: Run) -> None:
        for call in (lambda: run.features(5, device="cuda:77"), lambda: run.stream(device="cuda:77")):
            with pytest.raises(ValueError, match=r"^device 'cuda:77' cannot be used here: [^\n]*$"):
                call()


class TestFiles:
    @pytest.mark.parametrize("frames", [1, 7, 8, 20])
    def test_are_to_the_byte_those_of_the_motions(
        self, run: Run, frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(RUN, "WRITTEN_AT_ONCE", 7)
        options: dict[str, Any] = {"seed": 3, "sampler": "ddim", "steps": 4}
        files = run.write_samples(tmp_path, frames, 3, batch_size=2, **options)
        assert files == [tmp_path / f"sample0{k}{_suffix(run)}" for k in range(3)]
        assert sorted(tmp_path.iterdir()) == _files(run, tmp_path, files)
        for path, motion in zip(files, run.sample(frames, 3, **options), strict=True):
            write_motion(tmp_path / f"whole{_suffix(run)}", motion)
            assert path.read_bytes() == (tmp_path / f"whole{_suffix(run)}").read_bytes()

    def test_of_more_frames_than_are_written_at_once(self, run: Run, tmp_path: Path) -> None:
        frames = RUN.WRITTEN_AT_ONCE + 5
        (path,) = run.write_samples(tmp_path, frames, steps=1)
        write_motion(tmp_path / f"whole{_suffix(run)}", run.sample(frames, steps=1)[0])
        assert path.read_bytes() == (tmp_path / f"whole{_suffix(run)}").read_bytes()
        assert len(read_motion(path)) == frames

    def test_of_the_trained_network_too(self, trained: dict[str, Run], tmp_path: Path) -> None:
        for run in trained.values():
            (path,) = run.write_samples(tmp_path, 12, steps=2, seed=8)
            write_motion(tmp_path / f"whole{_suffix(run)}", run.sample(12, steps=2, seed=8)[0])
            assert path.read_bytes() == (tmp_path / f"whole{_suffix(run)}").read_bytes()

    def test_are_numbered_with_as_many_digits_as_the_last_needs(self, run: Run, tmp_path: Path) -> None:
        for n, first, last in ((100, "sample00", "sample99"), (101, "sample000", "sample100")):
            folder = tmp_path / str(n)
            folder.mkdir()
            files = run.write_samples(folder, 1, n, steps=1, batch_size=101)
            assert [files[0].stem, files[-1].stem] == [first, last]
            assert sorted(folder.iterdir()) == _files(run, folder, files)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_where_sampling_is_interrupted_only_whole_ones_stay(
        self, run: Run, error: type[BaseException], tmp_path: Path
    ) -> None:
        def interrupt(done: int, total: int) -> None:
            if done == at:
                raise error

        whole = run.write_samples(tmp_path, 6, 1, steps=2)[0].read_bytes()
        for at, left in ((1, []), (2, []), (3, [f"sample00{_suffix(run)}"])):
            folder = tmp_path / str(at)
            folder.mkdir()
            with pytest.raises(error):
                run.write_samples(folder, 6, 2, steps=2, batch_size=1, on_step=interrupt)
            assert [path.name for path in folder.iterdir()] == left
            assert all(path.read_bytes() == whole for path in folder.iterdir())

    def test_where_writing_is_interrupted_nothing_of_the_file_stays(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = MotionWriter.write

        def interrupted(writer: MotionWriter, features: Tensor) -> Motion:
            if writer.written:
                raise KeyboardInterrupt
            return write(writer, features)

        monkeypatch.setattr(MotionWriter, "write", interrupted)
        monkeypatch.setattr(RUN, "WRITTEN_AT_ONCE", 4)
        with pytest.raises(KeyboardInterrupt):
            run.write_samples(tmp_path, 6, steps=1)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("frames", [1, 7, 20])
    def test_hold_the_joints_of_the_motions(
        self, trained: dict[str, Run], frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(RUN, "WRITTEN_AT_ONCE", 7)
        run = dataclasses.replace(trained["clip"], network=LocalModel(FIELD))
        options: dict[str, Any] = {"seed": 3, "sampler": "ddim", "steps": 4}
        run.write_samples(tmp_path, frames, 3, batch_size=2, **options)
        results = Results.read(tmp_path / RESULTS)
        assert results.labels == ("sample00", "sample01", "sample02")
        assert results.lengths.tolist() == [frames] * 3
        assert results.given is None
        for positions, motion in zip(results.positions, run.sample(frames, 3, **options), strict=True):
            assert isinstance(motion, Clip)
            assert (results.names, results.parents) == (motion.names, motion.parents)
            assert results.frame_time == motion.frame_time
            assert np.array_equal(positions, motion.positions().numpy().astype(np.float32))

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    def test_where_the_joints_cannot_be_written_whole_files_alone_stay(
        self, trained: dict[str, Run], error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = dataclasses.replace(trained["clip"], network=LocalModel(FIELD))
        write = ResultsWriter.write

        def interrupted(writer: ResultsWriter, positions: Tensor) -> None:
            if len(list(tmp_path.glob("sample*"))) == at:
                raise error
            write(writer, positions)

        monkeypatch.setattr(ResultsWriter, "write", interrupted)
        for at in (0, 1):
            with pytest.raises(error):
                run.write_samples(tmp_path, 6, 2, steps=1)
            assert [path.name for path in tmp_path.iterdir()] == ["sample00.bvh"][:at]

    def test_numbers_that_are_not_finite_are_refused_and_leave_nothing(self, run: Run, tmp_path: Path) -> None:
        broken = dataclasses.replace(run, network=LocalModel(FIELD, gain=float("nan")))
        with pytest.raises(ValueError, match=r"^features must be finite$"):
            broken.write_samples(tmp_path, 6, 2, steps=1)
        assert list(tmp_path.iterdir()) == []


class TestStream:
    @pytest.mark.parametrize("chunk", [1, 7, 64])
    @pytest.mark.parametrize(
        "options",
        [
            {"sampler": "ddim", "steps": [90, 60, 30], "eta": 0.5},
            {"sampler": "ddpm", "steps": 5},
            {"sampler": "dpmpp_2m", "steps": 4, "spacing": "leading"},
        ],
        ids=["ddim", "ddpm", "dpmpp"],
    )
    def test_is_the_beginning_of_a_longer_motion(self, run: Run, options: dict[str, Any], chunk: int) -> None:
        chunks = list(islice(run.stream(chunk=chunk, seed=6, **options), 70 // chunk or 1))
        found = np.concatenate([_numbers(motion) for motion in chunks])
        whole = run.sample(len(found) + 5 * FIELD, seed=6, **options)[0]
        assert {len(motion) for motion in chunks} == {chunk}
        assert {type(motion) for motion in chunks} == {type(whole)}
        assert np.array_equal(found, _numbers(whole)[: len(found)])

    def test_by_default_is_ddim_in_20_steps_and_64_frames(self, run: Run) -> None:
        motion = next(run.stream())
        whole = run.sample(64 + 20 * FIELD, sampler="ddim", steps=20)[0]
        assert np.array_equal(_numbers(motion), _numbers(whole)[:64])

    def test_takes_any_of_a_seeds_samples(self, run: Run) -> None:
        motion = next(run.stream(chunk=9, steps=2, seed=6, first_sample=2))
        whole = run.sample(9 + 2 * FIELD, 3, sampler="ddim", steps=2, seed=6)[2]
        assert np.array_equal(_numbers(motion), _numbers(whole)[:9])
