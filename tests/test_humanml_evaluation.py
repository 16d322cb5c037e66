"""The HumanML3D evaluator and its measures, on made weights of the published shapes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from humanml_motion import made_motion, statistics
from torch import Tensor

from sinmdm.cli import main
from sinmdm.humanml_evaluation import (
    DEFINITIONS,
    Evaluator,
    check_humanml,
    format_humanml,
    frechet_distance,
    humanml_measures,
    humanml_rows,
    load_evaluator,
    sifid,
)
from sinmdm.motion import Normalizer
from sinmdm.presets import Preset
from sinmdm.run import Run, load
from sinmdm.training import train

# Keys and shapes of text-to-motion's finest.tar (Guo et al. 2022, its networks/modules.py).
MOVEMENT = {
    "main.0.weight": (512, 259, 4), "main.0.bias": (512,), "main.3.weight": (512, 512, 4), "main.3.bias": (512,),
    "out_net.weight": (512, 512), "out_net.bias": (512,),
}  # fmt: skip
MOTION = {
    "hidden": (2, 1, 1024), "input_emb.weight": (1024, 512), "input_emb.bias": (1024,),
    **{
        f"gru.{kind}_l0{way}": shape
        for way in ("", "_reverse")
        for kind, shape in {
            "weight_ih": (3072, 1024), "weight_hh": (3072, 1024), "bias_ih": (3072,), "bias_hh": (3072,),
        }.items()
    },
    "output_net.0.weight": (1024, 2048), "output_net.0.bias": (1024,), "output_net.1.weight": (1024,),
    "output_net.1.bias": (1024,), "output_net.3.weight": (512, 1024), "output_net.3.bias": (512,),
}  # fmt: skip
# Sums of up to 2048 terms, one behind another ten times, in float64.
ROUNDING = 10 * 2048 * torch.finfo(torch.float64).eps
CLIP = made_motion(90)[0]
TINY = Preset(network={"d_model": 8, "heads": 2, "layers": 1, "window": 1}, timesteps=5, batch_size=2, crop=8, steps=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def checkpoint() -> dict:
    generator = torch.Generator().manual_seed(0)

    def made(shapes: dict) -> dict:
        return {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}

    movement, motion = made(MOVEMENT), made(MOTION)
    return {"movement_encoder": movement, "motion_encoder": motion, "text_encoder": {"w": torch.ones(1)}, "epoch": 3}


@pytest.fixture(scope="module")
def finest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluator") / "finest.tar"
    torch.save(checkpoint(), path)
    return path


@pytest.fixture(scope="module")
def evaluator(finest: Path) -> Evaluator:
    return load_evaluator(finest, *statistics(CLIP)).double()


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def movements(x: Tensor) -> Tensor:
    """Normalised features (frames, 263) to movements (frames // 4, 512), frame by frame."""
    weights = {name: tensor.double() for name, tensor in checkpoint()["movement_encoder"].items()}
    x = x.double()[:, :259]
    for layer in ("main.0", "main.3"):
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        padded = torch.cat([0 * x[:1], x, 0 * x[:1]])
        steps = range((len(padded) - 2) // 2)
        x = leaky(torch.stack([sum((weight[:, :, k] @ padded[2 * t + k] for k in range(4)), bias) for t in steps]))
    return x @ weights["out_net.weight"].T + weights["out_net.bias"]


def embedding(x: Tensor) -> Tensor:
    """Movements (steps, 512) to an embedding (512,), step by step by the equations of the GRU."""
    weights = {name: tensor.double() for name, tensor in checkpoint()["motion_encoder"].items()}
    x = x @ weights["input_emb.weight"].T + weights["input_emb.bias"]
    last = []
    for way, steps in (("", x), ("_reverse", x.flip(0))):
        w, u, b, c = (weights[f"gru.{name}_l0{way}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = weights["hidden"][len(last), 0]
        for step in steps:
            (r, z, n), (own_r, own_z, own_n) = (w @ step + b).view(3, -1), (u @ h + c).view(3, -1)
            z = torch.sigmoid(z + own_z)
            h = (1 - z) * torch.tanh(n + torch.sigmoid(r + own_r) * own_n) + z * h
        last.append(h)
    x = weights["output_net.0.weight"] @ torch.cat(last) + weights["output_net.0.bias"]
    x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    x = leaky(x * weights["output_net.1.weight"] + weights["output_net.1.bias"])
    return weights["output_net.3.weight"] @ x + weights["output_net.3.bias"]


def normal(features: Tensor) -> Tensor:
    return Normalizer(*(x.double() for x in statistics(CLIP))).apply(features.double())


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).norm() / expected.norm()) <= ROUNDING


# --- the networks


def test_the_published_names_and_shapes(evaluator: Evaluator) -> None:
    for network, shapes in ((evaluator.movement_encoder, MOVEMENT), (evaluator.motion_encoder, MOTION)):
        assert {name: tuple(x.shape) for name, x in network.state_dict().items()} == shapes
    assert not evaluator.training
    assert {name.split(".")[0] for name in evaluator.state_dict()} == {"movement_encoder", "motion_encoder"}


@pytest.mark.parametrize("frames", [4, 20, 23])
def test_embeddings_are_those_of_a_plain_loop(evaluator: Evaluator, frames: int) -> None:
    (actual,) = evaluator.embed(CLIP[None, :frames])
    assert_close(actual, embedding(movements(normal(CLIP[:frames]))))


def test_lengths(evaluator: Evaluator) -> None:
    """A motion among longer ones: zeros behind it, whatever lies there, and no more steps than its own."""
    motions, lengths = torch.stack([CLIP[:24], CLIP[30:54], CLIP[50:74]]), [24, 8, 17]
    embedded = evaluator.embed(motions, lengths)
    motions[1, 8:] += 5
    assert torch.equal(evaluator.embed(motions, torch.tensor(lengths)), embedded)
    for motion, length, actual in zip(motions, lengths, embedded, strict=True):
        x = normal(motion)
        x[length:] = 0
        assert_close(actual, embedding(movements(x)[: length // 4]))


def test_in_parts(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = CLIP.unfold(0, 20, 10).mT
    whole = evaluator.embed(windows)
    monkeypatch.setattr("sinmdm.humanml_evaluation._AT_ONCE", 3)
    assert_close(evaluator.embed(windows), whole)


@pytest.mark.parametrize(
    ("motions", "lengths", "message"),
    [
        (torch.zeros(4, 263), None, r"motions have shape \(4, 263\), must be \(1 or more, frames, 263\)"),
        (torch.zeros(2, 8, 259), None, "must be"),
        (torch.zeros(2, 3, 263), None, "lengths must be 2 numbers from 4 to the motions' 3 frames"),
        (torch.zeros(2, 8, 263), [8, 3], r"got \[8, 3\]"),
        (torch.zeros(2, 8, 263), [8, 9], r"got \[8, 9\]"),
        (torch.zeros(2, 8, 263), [8], "lengths must be 2 numbers"),
    ],
)
def test_motions_that_are_none(evaluator: Evaluator, motions: Tensor, lengths: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluator.embed(motions, lengths)


# --- the file


def test_loaded_as_it_is(finest: Path) -> None:
    evaluator = load_evaluator(finest, torch.zeros(263), torch.ones(263))
    for name in ("movement_encoder", "motion_encoder"):
        state = evaluator.get_submodule(name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in checkpoint()[name].items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("motion_encoder"), "has no 'motion_encoder'"),
        (
            lambda file: file["motion_encoder"].pop("hidden"),
            "does not fit the published motion_encoder: hidden is miss",
        ),
        (lambda file: file["motion_encoder"].update(more=torch.ones(2)), "more is not of this network"),
        (
            lambda file: file["movement_encoder"].update({"out_net.bias": torch.ones(9)}),
            r"shape \(9,\), must have \(512",
        ),
        (lambda file: file["movement_encoder"].update({"out_net.bias": torch.full((512,), math.nan)}), "finite"),
        (lambda file: file.update(motion_encoder=[1]), "must be a state dict of tensors"),
        (lambda file: file.update(epoch=print), "not a checkpoint of plain tensors"),
    ],
)
def test_files_that_are_none(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    file = {name: dict(part) if isinstance(part, dict) else part for name, part in checkpoint().items()}
    change(file)
    torch.save(file, tmp_path / "finest.tar")
    with pytest.raises(ValueError, match=message) as caught:
        load_evaluator(tmp_path / "finest.tar", torch.zeros(263), torch.ones(263))
    assert str(tmp_path / "finest.tar") in str(caught.value)


def test_what_is_no_file_of_torch(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"nonsense")
    for path, message in ((tmp_path / "a.tar", "not a checkpoint"), (tmp_path / "no.tar", "there is no such file")):
        with pytest.raises(ValueError, match=message):
            load_evaluator(path, torch.zeros(263), torch.ones(263))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(3), torch.ones(3), "have 3 numbers, must have 263"),
        (torch.zeros(263), torch.zeros(263), "std finite and positive"),
        (torch.zeros(263), torch.ones(9), "must be alike"),
    ],
)
def test_statistics_that_are_none(mean: Tensor, std: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluator(mean, std)


# --- Fréchet distance


def by_definition(one: np.ndarray, other: np.ndarray) -> float:
    """With the root of C1 C2 from its eigenvalues, which are not negative."""
    root = np.sqrt(np.linalg.eigvals(np.cov(one.T) @ np.cov(other.T)).astype(complex)).real.sum()
    difference = one.mean(0) - other.mean(0)
    return float(difference @ difference + np.trace(np.cov(one.T)) + np.trace(np.cov(other.T)) - 2 * root)


def rows(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + mix[0]


@pytest.mark.parametrize(("n", "m", "width"), [(200, 300, 8), (40, 25, 5), (3, 4, 2), (2, 9, 1)])
def test_frechet_distance_is_the_definition(n: int, m: int, width: int) -> None:
    one, other = rows(n, width, 0), rows(m, width, 1)
    expected = np.atleast_1d(by_definition(one.numpy(), other.numpy()))[0] if width > 1 else (
        float((one.mean() - other.mean()) ** 2 + (one.std() - other.std()) ** 2)
    )  # fmt: skip
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), rel=ROUNDING)


def test_frechet_distance_of_few_rows() -> None:
    """In 512 dimensions, rows that span a few: as in these few, by any basis of them."""
    generator = torch.Generator().manual_seed(2)
    one, other = rows(18, 6, 3), rows(12, 6, 4)
    basis = torch.linalg.qr(torch.randn(512, 512, generator=generator, dtype=torch.float64)).Q[:6]
    expected = by_definition(one.numpy(), other.numpy())
    assert frechet_distance(one @ basis, other @ basis) == pytest.approx(expected, rel=1e-6)
    # Fewer rows than dimensions of their own: no definition by eigenvalues is exact, but these are.
    few = torch.randn(18, 512, generator=generator, dtype=torch.float64)
    assert frechet_distance(few, few) <= 512 * 18 * torch.finfo(torch.float64).eps * float(few.square().sum())
    assert frechet_distance(few, few + 0.5) == pytest.approx(512 * 0.25, rel=ROUNDING)
    assert frechet_distance(few, 3 * (few - few.mean(0)) + few.mean(0)) == pytest.approx(
        4 * float(few.var(0).sum()), rel=ROUNDING
    )
    apart = torch.zeros(18, 1024, dtype=torch.float64)
    apart[:, 512:] = few  # in dimensions that the others are not in: nothing in common
    there = torch.cat([few, 0 * few], dim=1)
    expected = float(2 * few.mean(0).square().sum() + 2 * few.var(0).sum())
    assert frechet_distance(there, apart) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((4,), (5, 4))])
def test_rows_that_are_none(shapes: tuple) -> None:
    with pytest.raises(ValueError, match=r"must be \(2 or more, d\), of one d"):
        frechet_distance(*(torch.zeros(shape) for shape in shapes))


# --- the measures


def published(samples: Tensor, clip: Tensor, evaluator: Evaluator, window: int) -> dict[str, float]:
    """The measures as they are described (Raab et al. 2024, its code), one window at a time."""
    random = np.random.RandomState(10)

    def one(window_of: Tensor) -> np.ndarray:
        return evaluator.embed(window_of[None])[0].numpy()

    def intra(motion: Tensor) -> float:
        a, b = random.randint(len(motion) - window, size=2)
        return float(np.linalg.norm(one(motion[a : a + window]) - one(motion[b : b + window])))

    def windows(motion: Tensor) -> np.ndarray:
        return np.stack([one(motion[at : at + window]) for at in range(0, len(motion) - window + 1, 10)])

    spread = np.mean([intra(sample) for sample in samples])
    of_clip = np.mean([intra(clip) for _ in samples])
    half = len(samples) // 2
    pairs = [np.linalg.norm(one(samples[i]) - one(samples[i + half])) for i in range(half)]
    distances = [frechet_distance(*(torch.from_numpy(windows(motion)) for motion in (x, clip))) for x in samples]
    return {
        "intra_diversity": float(spread), "gt_intra_diversity": float(of_clip),
        "intra_diversity_gt_diff": float(abs(spread - of_clip)), "inter_diversity": float(np.mean(pairs)),
        "sifid": float(np.mean(distances)),
    }  # fmt: skip


@pytest.mark.parametrize(("window", "count"), [(20, 4), (9, 3)])
def test_measures_are_the_published_ones(evaluator: Evaluator, window: int, count: int) -> None:
    samples = torch.stack([made_motion(50, seed)[0] for seed in range(1, count + 1)])
    measures = humanml_measures(samples, CLIP, evaluator, window=window)
    assert measures.keys() == DEFINITIONS.keys()
    assert measures == pytest.approx(published(samples, CLIP, evaluator, window), rel=ROUNDING)
    assert humanml_measures(samples, CLIP, evaluator, window=window, seed=11) != measures
    assert all(value > 0 for value in measures.values())


def test_a_copy_and_a_statue(evaluator: Evaluator) -> None:
    copies, statue = CLIP.expand(2, -1, -1), CLIP[:1].expand(1, 90, -1)
    own = evaluator.embed(CLIP.unfold(0, 20, 10).mT)
    spread = float(own.var(0).sum())  # a covariance's trace, which the distances are differences of
    measures = humanml_measures(copies, CLIP, evaluator)
    assert measures["inter_diversity"] <= ROUNDING * spread
    assert measures["sifid"] <= ROUNDING * spread
    still = humanml_measures(statue, CLIP, evaluator)
    assert still["intra_diversity"] <= ROUNDING * spread
    pose = evaluator.embed(statue[:, :20])[0]
    assert still["sifid"] == pytest.approx(float((pose - own.mean(0)).square().sum()) + spread, rel=ROUNDING)
    assert math.isnan(still["inter_diversity"])  # there is no other sample


def test_sifid_of_any_features() -> None:
    generator = torch.Generator().manual_seed(5)
    samples, clip = torch.randn(2, 60, 2, generator=generator), torch.randn(300, 2, generator=generator)
    own = clip.unfold(0, 3, 2).mT.flatten(1).double()
    for sample, value in zip(samples, sifid(samples, clip, window=3, stride=2), strict=True):
        cut = np.stack([sample[at : at + 3].flatten().numpy() for at in range(0, 58, 2)])
        assert float(value) == pytest.approx(by_definition(cut.astype(np.float64), own.numpy()), rel=1e-6)


@pytest.mark.parametrize(
    ("samples", "clip", "options", "message"),
    [
        (torch.zeros(2, 29, 263), CLIP, {}, "samples must have at least 30 frames, for two windows 10 apart, not 29"),
        (torch.zeros(2, 30, 263), CLIP[:29], {}, "the clip must have at least 30 frames"),
        (torch.zeros(2, 30, 9), CLIP, {}, r"samples have shape \(2, 30, 9\) and the clip \(90, 263\)"),
        (torch.zeros(0, 30, 263), CLIP, {}, "1 or more"),
        (torch.zeros(30, 263), CLIP, {}, "samples have shape"),
        (torch.zeros(2, 30, 263), CLIP, {"window": 0}, "window and stride must be at least 1 frame, got 0"),
        (torch.zeros(2, 30, 263), CLIP, {"window": 3}, "lengths must be"),
    ],
)
def test_what_cannot_be_measured(
    evaluator: Evaluator, samples: Tensor, clip: Tensor, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        humanml_measures(samples, clip, evaluator, **options)


def test_rows_of_a_run(evaluator: Evaluator, tmp_path: Path) -> None:
    run = train(CLIP, tmp_path / "run", preset=TINY, layout="humanml", progress=False)
    samples = [motion for motion in run.sample(40, 2) if isinstance(motion, Tensor)]
    measured = humanml_rows(run, {"samples": samples, "clip": CLIP[None]}, evaluator)
    assert measured["samples"] == humanml_measures(torch.stack(samples), CLIP, evaluator)
    assert measured["clip"]["sifid"] < measured["samples"]["sifid"]
    for bad in ([samples[0], samples[1][:30]], []):
        with pytest.raises(ValueError, match="row 'bad': samples must be one or more, all of one length"):
            humanml_rows(run, {"bad": bad}, evaluator)
    with pytest.raises(ValueError, match="row 'short': samples must have at least 30"):
        humanml_rows(run, {"short": [samples[0][:20]]}, evaluator)
    array = train(CLIP, tmp_path / "array", preset=TINY, progress=False)
    with pytest.raises(ValueError, match="measures are of HumanML3D features, and the run's are 'array'"):
        humanml_rows(array, {"samples": samples}, evaluator)


def test_what_is_checked_before_anything_is_sampled(tmp_path: Path) -> None:
    run = train(CLIP, tmp_path / "run", preset=TINY, layout="humanml", progress=False)
    check_humanml(run, [30, 30])
    for lengths, message in (([], "one or more"), ([30, 31], r"got lengths \[30, 31\]"), ([29], "at least 30 frames")):
        with pytest.raises(ValueError, match=message):
            check_humanml(run, lengths)
    short = train(CLIP[:29], tmp_path / "short", preset=TINY, layout="humanml", progress=False)
    with pytest.raises(ValueError, match="the clip must have at least 30 frames"):
        check_humanml(short, [40])


def test_rows_as_text() -> None:
    row = dict.fromkeys(DEFINITIONS, 0.25)
    lines = format_humanml({"samples": row | {"sifid": 1.23456}, "one": row | {"inter_diversity": math.nan}}).split(
        "\n"
    )
    assert lines[0].split() == ["intra", "the", "clip's", "inter"]
    assert lines[1].split() == ["diversity", "own", "difference", "diversity", "SiFID"]
    assert lines[2].split() == ["samples", "0.250", "0.250", "0.250", "0.250", "1.235"]
    assert lines[3].split() == ["one", "0.250", "0.250", "0.250", "-", "0.250"]
    with pytest.raises(ValueError, match="rows must hold at least one"):
        format_humanml({})


class TestCommand:
    """The command on a run of a made motion, in a folder with Mean.npy and Std.npy."""

    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("humanml")
        for name, array in zip(("Mean", "Std"), statistics(CLIP), strict=True):
            np.save(folder / f"{name}.npy", array.float().numpy())
        train(CLIP, folder / "run", preset=TINY, layout="humanml", progress=False)
        return folder

    @staticmethod
    def evaluate(folder: Path, *arguments: object) -> int:
        return main(["evaluate", str(folder / "run"), *map(str, arguments), "--quiet"])

    @staticmethod
    def known(folder: Path) -> list[object]:
        return ["--mean", folder / "Mean.npy", "--std", folder / "Std.npy"]

    def test_prints_them_beside_the_table(
        self, folder: Path, finest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "table.json"
        options = ["--evaluator", finest, *self.known(folder), "-n", 2, "--frames", 40, "--json", out]
        assert self.evaluate(folder, *options) == 0
        printed, document = capsys.readouterr().out, json.loads(out.read_text())
        assert "left out" not in printed  # feet are measured
        measured = document["humanml"]["rows"]
        assert list(measured) == ["samples", "frozen mean pose", "clip reversed"]
        assert all(set(row) == set(document["humanml"]["definitions"]) for row in measured.values())
        assert [row["inter_diversity"] is None for row in measured.values()] == [False, True, True]
        readable = {
            name: {key: math.nan if value is None else value for key, value in row.items()}
            for name, row in measured.items()
        }
        assert printed.rstrip("\n").endswith(format_humanml(readable))
        samples = torch.stack(list(load(folder / "run").sample(40, 2, seed=0)))
        evaluator = load_evaluator(finest, *statistics(CLIP))
        for name, motions in (
            ("samples", samples),
            ("frozen mean pose", CLIP.mean(0).expand(1, 40, -1)),
            ("clip reversed", CLIP.flip(0)[None]),
        ):
            expected = humanml_measures(motions, CLIP, evaluator)
            del expected["inter_diversity"]
            spread = measured["samples"]["sifid"]  # a difference of sums, which can be as small as their rounding
            assert {key: measured[name][key] for key in expected} == pytest.approx(
                expected, rel=1e-4, abs=1e-4 * spread
            )

    def test_files_are_what_they_are_said_to_be(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = CLIP.clone()
        made[:, 259:] = 0.6  # as a network's contacts are, neither 0 nor 1
        np.save(tmp_path / "raw.npy", made.numpy())
        np.save(tmp_path / "normal.npy", Normalizer(*(x.float() for x in statistics(CLIP))).apply(made).numpy())
        tables = []
        for options in (
            [tmp_path / "raw.npy", "--features", "raw"],
            [tmp_path / "normal.npy", "--features", "normalised", *self.known(folder)],
        ):
            assert self.evaluate(folder, *options, "--json", tmp_path / "t.json") == 0
            tables.append(json.loads((tmp_path / "t.json").read_text())["rows"][0]["values"]["clip_to_sample"]["mean"])
        assert tables[0] == pytest.approx(tables[1], rel=1e-5)
        capsys.readouterr()
        for options, message in (
            ([tmp_path / "raw.npy"], "need --features raw, or --features normalised with --mean and --std"),
            ([tmp_path / "normal.npy", "--features", "normalised"], "--features normalised needs --mean and --std"),
            (
                [tmp_path / "raw.npy", "--features", "raw", *self.known(folder)],
                "--mean and --std are of --evaluator and",
            ),
            (["--features", "raw"], "leave it out where none are given"),
        ):
            assert self.evaluate(folder, *options) == 2
            assert message in capsys.readouterr().err

    def test_what_the_evaluator_cannot_measure_is_not_sampled(
        self,
        folder: Path,
        finest: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        train(CLIP, tmp_path / "run", preset=TINY, progress=False)  # as an array
        for name, frames in (("a", 90), ("b", 80)):
            np.save(tmp_path / f"{name}.npy", CLIP[:frames].numpy())
        monkeypatch.setattr(Run, "sample", lambda *_, **__: pytest.fail("sampled before all was checked"))
        weights, unlike = ["--evaluator", finest], [tmp_path / "a.npy", tmp_path / "b.npy", "--features", "raw"]
        for place, options, message in (
            (folder, [*weights, "--mean", folder / "Mean.npy"], "all three, or none"),
            (tmp_path, [*weights, *self.known(folder)], "--evaluator: these measures are of HumanML3D features"),
            (folder, [*unlike, *weights, *self.known(folder)], "all of one length, got lengths [90, 80]"),
            (folder, [*weights, *self.known(folder), "--frames", 30], "frames must be more than 30"),
            (tmp_path, [tmp_path / "a.npy", "--features", "raw"], "--features is of runs of the layout humanml"),
        ):
            assert self.evaluate(place, *options) == 2
            assert message in capsys.readouterr().err
