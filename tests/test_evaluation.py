"""The judging table: values against the metrics, published baselines of a real clip, and its two printed forms."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared_data import SHARED_DATA
from torch import Tensor

from sinmdm import metrics
from sinmdm.evaluation import (
    DEFINITIONS,
    MAIN,
    MIXAMO_JOINTS,
    baseline_rows,
    evaluate_features,
    evaluate_rotations,
    evaluate_run,
    format_definitions,
    format_table,
    main_measures,
    rotation_features,
    select_joints,
    to_json,
    untrained,
)
from sinmdm.motion import Clip, Normalizer, Skeleton, layout_for
from sinmdm.presets import Preset
from sinmdm.run import Run

SALSA = SHARED_DATA / "Salsa-Dancing-6.bvh"


def motions(n: int, frames: int, joints: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, frames, 6 * joints, dtype=torch.float64, generator=generator).cumsum(1) / 8


@dataclass(frozen=True)
class FakeClip:
    """As much of a clip as rotation_features asks for."""

    names: tuple[str, ...]
    matrices: Tensor
    fps: float = 60

    def thin(self, max_fps: float = 30) -> "FakeClip":
        step = math.ceil(self.fps / max_fps)
        return FakeClip(self.names, self.matrices[::step], self.fps / step)

    def rotations(self) -> Tensor:
        return self.matrices


class TestSelectJoints:
    def test_a_mixamo_rig_gives_its_24_in_their_order(self) -> None:
        fingers = [f"LeftHandIndex{i}" for i in (1, 2, 3, 4)]
        names = [f"mixamorig7:{name}" for name in [*reversed(MIXAMO_JOINTS), *fingers, "HeadTop_End", "LeftFoot"]]
        selected = select_joints(names)
        assert selected == list(range(23, -1, -1))
        assert select_joints(MIXAMO_JOINTS) == list(range(24))

    def test_strips_up_to_the_first_colon_only(self) -> None:
        names = ["a:b:Hips", *MIXAMO_JOINTS[1:]]
        assert select_joints(names) == list(range(24))  # all of another skeleton: "b:Hips" is no Mixamo joint
        assert select_joints([*names, "x:Hips"])[0] == 24

    @pytest.mark.parametrize("missing", ["LeftToe_End", "Hips", "RightHand"])
    def test_any_other_skeleton_gives_all(self, missing: str) -> None:
        names = ["Tail", *(name for name in MIXAMO_JOINTS if name != missing), f"{missing}2", missing.lower()]
        assert select_joints(names) == list(range(len(names)))


class TestRotationFeatures:
    def test_first_two_rows_of_the_selected_joints_at_30_fps(self) -> None:
        names = ("Tail", *reversed(MIXAMO_JOINTS))
        matrices = torch.arange(10 * 25 * 9, dtype=torch.float64).view(10, 25, 3, 3)
        features = rotation_features(FakeClip(names, matrices))
        assert features.shape == (5, 144)
        assert features.dtype == torch.float64
        hips = matrices[::2, 24]
        expected = torch.stack([hips[:, row, column] for row in (0, 1) for column in (0, 1, 2)], dim=1)
        assert torch.equal(features[:, :6], expected)
        assert torch.equal(features[:, 138:141], matrices[::2, 1, 0])

    def test_of_a_clip_that_was_read(self, tmp_path: Path) -> None:
        path = tmp_path / "two.bvh"
        path.write_text(
            "HIERARCHY\nROOT A\n{\nOFFSET 0 0 0\nCHANNELS 3 Xrotation Yrotation Zrotation\nJOINT B\n{\nOFFSET 0 1 0\n"
            "CHANNELS 3 Zrotation Xrotation Yrotation\nEnd Site\n{\nOFFSET 0 1 0\n}\n}\n}\n"
            "MOTION\nFrames: 3\nFrame Time: 0.0166667\n0 0 0 0 0 0\n1 2 3 4 5 6\n90 0 0 90 0 0\n"
        )
        features = rotation_features(Clip.read(path))
        expected = [[1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1, 0, -1, 0, 1, 0, 0]]
        torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


class TestBaselines:
    def test_are_what_they_say(self) -> None:
        clip = motions(1, 41, 2)[0]
        rows = baseline_rows(clip, frames=100, n=3)
        assert list(rows) == ["frozen mean pose", "clip reversed", "first half twice", "clip + noise 0.05"]
        frozen, backwards, twice, noisy = rows.values()
        assert frozen.shape == (1, 100, 12)
        assert torch.equal(frozen[0, 99], clip.mean(0))
        assert torch.equal(backwards[0, 5], clip[35])
        assert torch.equal(twice, torch.cat([clip[:20], clip[:20]])[None])
        assert noisy.shape == (3, 100, 12)
        noise = noisy - torch.cat([clip, clip, clip[:18]])
        # 3600 normals: their deviation is within 5 of its own standard errors, 1 / sqrt(7200), of 1.
        assert abs(noise.std().item() / 0.05 - 1) < 5 / math.sqrt(7200)
        assert not torch.equal(noisy[0], noisy[1])

    def test_noise_is_seeded(self) -> None:
        clip = motions(1, 40, 2)[0]
        first, again, other = (list(baseline_rows(clip, 40, 2, seed=seed).values())[3] for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert list(baseline_rows(clip, 40, 2, noise=0.5))[3] == "clip + noise 0.5"
        assert list(baseline_rows(clip, 40, 2, noise=0.0576818))[3] == "clip + noise 0.058"

    @pytest.mark.parametrize(
        ("shape", "frames", "n", "message"),
        [
            ((1, 12), 5, 1, r"clip must be \(frames, features\) of at least 2 frames, not of shape \(1, 12\)"),
            ((1, 9, 12), 5, 1, "clip must be"),
            ((9, 12), 0, 1, "frames must be at least 1, not 0"),
            ((9, 12), 5, 0, "n must be at least 1, not 0"),
        ],
    )
    def test_errors(self, shape: tuple[int, ...], frames: int, n: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            baseline_rows(torch.zeros(shape), frames, n)


class TestEvaluate:
    def test_values_are_the_metrics(self) -> None:
        clip, samples = motions(1, 60, 6)[0], motions(3, 70, 6, seed=1)
        samples[0] = 1.01 * torch.cat([clip, clip[:10]])
        samples[1, :35] = clip[20:55] + 0.3
        (row,) = evaluate_rotations({"samples": samples}, clip, joints=6)
        assert row["name"] == "samples"
        assert row["frames"] == [70, 70, 70]
        assert row["thresholds"] == {"coverage_strict": 0.5, "coverage_published": 1.0}  # sqrt(6 / 24) is 1/2
        nearest = metrics.nearest_window_distance
        expected = {
            "coverage_strict": metrics.coverage(samples, clip, threshold=0.5),
            "coverage_published": metrics.coverage(samples, clip, threshold=1.0),
            "coverage_area": metrics.coverage_area(samples, clip, limit=1.0),
            "clip_to_sample": torch.stack([nearest(clip, sample).mean() for sample in samples]),
            "sample_to_clip": torch.stack([nearest(sample, clip).mean() for sample in samples]),
            "global_diversity": metrics.global_diversity(samples, clip),
            "local_diversity": metrics.local_diversity(samples, clip),
            "inter_diversity": metrics.inter_diversity(samples),
            "intra_diversity": metrics.intra_diversity(samples),
            "intra_diversity_difference": metrics.intra_diversity_difference(samples, clip),
            "energy": metrics.energy(samples) / metrics.energy(clip),
            "distribution": metrics.distribution_distance(samples, clip).mean(dim=1),
        }
        shares = expected["coverage_strict"], (expected["global_diversity"] / 0.5).clamp(max=1), expected["energy"]
        shares = (*shares[:2], torch.minimum(shares[2], 1 / shares[2]))
        expected["harmonic_mean"] = 3 / sum(1 / share for share in shares)  # coverage 0 gives infinity, and so 0
        assert len(set(expected["coverage_strict"].tolist())) > 1
        assert row["values"].keys() == expected.keys()
        assert row["values"].keys() < DEFINITIONS.keys()
        assert list(row["values"]) == [key for key in DEFINITIONS if key in expected]
        for key, values in expected.items():
            assert row["values"][key]["mean"] == pytest.approx(values.mean().item(), rel=1e-12), key
            assert row["values"][key]["std"] == pytest.approx(values.std(correction=0).item(), rel=1e-9), key

    def test_the_curve_of_coverage(self) -> None:
        clip, samples = motions(1, 60, 6)[0], motions(2, 70, 6, seed=1)
        samples[1, :35] = clip[20:55] + 0.03
        (row,) = evaluate_rotations({"samples": samples}, clip, joints=6)
        curve = row["coverage_curve"]
        assert curve["thresholds"] == pytest.approx([0.05 * step for step in range(21)])  # the scale is 1/2
        expected = metrics.coverage_curve(samples, clip, thresholds=curve["thresholds"]).mean(dim=0)
        assert curve["values"] == pytest.approx(expected.tolist())
        assert curve["values"][0] == 0 < curve["values"][10] == row["values"]["coverage_strict"]["mean"]
        assert curve["values"][20] == row["values"]["coverage_published"]["mean"]

    def test_distributions_by_joint(self) -> None:
        clip = motions(1, 60, 2)[0]
        moved = clip.clone()
        moved[:, 8] += 0.6  # of the second joint's six features one is off by as much
        (row,) = evaluate_rotations({"": [clip, moved]}, clip, joints=2)
        assert row["distribution_parts"] == [
            {"name": "joint 0", "mean": 0.0, "std": 0.0},
            {"name": "joint 1", "mean": pytest.approx(0.05), "std": pytest.approx(0.05)},
        ]
        assert row["values"]["distribution"]["mean"] == pytest.approx(0.025)

    def test_the_harmonic_mean_is_0_for_what_lacks_one_thing(self) -> None:
        clip = motions(1, 60, 24)[0]
        rows = evaluate_rotations({"": [clip], **baseline_rows(clip, 120, 1)}, clip)
        values = {row["name"]: row["values"]["harmonic_mean"]["mean"] for row in rows}
        assert (values[""], values["frozen mean pose"], values["first half twice"]) == (0, 0, 0)
        assert 0 < values["clip + noise 0.05"] < 1

    def test_diversity_counts_in_scales(self) -> None:
        clip = motions(1, 60, 6)[0]
        noisy = clip + 0.01 * motions(1, 60, 6, seed=1)
        (row,) = evaluate_rotations({"": noisy}, clip, joints=6)  # of a scale of 1/2
        coverage, diversity, energy = (
            row["values"][key]["mean"] for key in ("coverage_strict", "global_diversity", "energy")
        )
        assert 0 < diversity < 0.5
        shares = coverage, diversity / 0.5, min(energy, 1 / energy)
        assert row["values"]["harmonic_mean"]["mean"] == pytest.approx(3 / sum(1 / share for share in shares))

    def test_a_sample_that_cannot_be_rebuilt_has_no_harmonic_mean(self) -> None:
        clip = motions(1, 40, 2)[0]  # pieces have 30 to 40 frames: none make 45
        (row,) = evaluate_rotations({"": motions(1, 45, 2)}, clip, joints=2)
        assert row["values"]["global_diversity"]["mean"] == math.inf
        assert math.isnan(row["values"]["harmonic_mean"]["mean"])

    def test_inter_diversity_is_of_samples_of_one_length(self) -> None:
        clip, pair, single = motions(1, 60, 2)[0], motions(2, 50, 2, seed=1), motions(1, 55, 2, seed=2)
        alone, mixed = evaluate_rotations({"one": single, "three": [pair[0], single[0], pair[1]]}, clip, joints=2)
        assert "inter_diversity" not in alone["values"]
        expected = metrics.inter_diversity(pair)
        assert mixed["values"]["inter_diversity"]["mean"] == pytest.approx(expected.mean().item())

    def test_each_search_is_made_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        window_match, searches = metrics.window_match, []

        def counted(source: Tensor, target: Tensor, *, window: int, rebuild: bool = False) -> Any:
            searches.append((source.shape[-2], target.shape[-2], window, rebuild))
            return window_match(source, target, window=window, rebuild=rebuild)

        monkeypatch.setattr(metrics, "window_match", counted)
        clip, done = motions(1, 60, 2)[0], []
        samples = [motions(1, frames, 2, seed)[0] for seed, frames in enumerate((50, 45, 50))]
        evaluate_features({"a": samples}, clip, 1.0, ["all"], lambda: done.append(1))
        assert searches == [  # of those of one length at once
            search for n in (45, 50) for search in ((n, 60, 30, True), (60, n, 30, False), (n, 60, 15, False))
        ]
        assert len(done) == 3

    def test_main_measures_are_the_means(self) -> None:
        clip, samples = motions(1, 60, 6)[0], motions(2, 70, 6, seed=1)
        (row,) = evaluate_rotations({"": samples}, clip, joints=6)
        assert main_measures(samples, clip, 0.5) == {key: row["values"][key]["mean"] for key in MAIN}

    def test_published_thresholds_for_24_joints(self) -> None:
        clip = motions(1, 40, 24)[0]
        (row,) = evaluate_rotations({"clip": clip[None]}, clip)
        assert row["thresholds"] == {"coverage_strict": 1.0, "coverage_published": 2.0}

    def test_rows_keep_their_order_and_may_be_ragged(self) -> None:
        clip = motions(1, 80, 2)[0]
        ragged = [motions(1, 33, 2, seed=1)[0], motions(1, 50, 2, seed=2)[0].float()]
        rows = evaluate_rotations({"z": ragged, "a": clip[None], "m": ragged[:1]}, clip, joints=2)
        assert [row["name"] for row in rows] == ["z", "a", "m"]
        assert rows[0]["frames"] == [33, 50]
        assert rows[1]["values"]["coverage_strict"] == {"mean": 1.0, "std": None}
        assert rows[1]["values"]["energy"] == {"mean": 1.0, "std": None}
        halves = [evaluate_rotations({"": [sample]}, clip, joints=2)[0]["values"] for sample in ragged]
        for key, value in rows[0]["values"].items():
            one, other = (half[key]["mean"] for half in halves)
            assert value["mean"] == pytest.approx((one + other) / 2)
            assert value["std"] == pytest.approx(abs(one - other) / 2)

    @pytest.mark.parametrize(
        ("samples", "clip", "joints", "message"),
        [
            (torch.zeros(1, 40, 12), torch.zeros(40, 12), 3, r"clip must be \(frames, 18\) for 3 joints.*\(40, 12\)"),
            (torch.zeros(1, 40, 12), torch.zeros(1, 40, 12), 2, "clip must be"),
            (torch.zeros(1, 40, 12), torch.zeros(40), 2, "clip must be"),
            (torch.zeros(0, 40, 12), torch.zeros(40, 12), 2, "row 'mine' must have at least one sample, not 0"),
            (torch.zeros(1, 40, 6), torch.zeros(40, 12), 2, "row 'mine': .*same number of features"),
            (torch.zeros(1, 29, 12), torch.zeros(40, 12), 2, "row 'mine': samples must have at least 30 frames"),
            (torch.zeros(40, 12), torch.zeros(40, 12), 2, "row 'mine': samples must be"),
            (torch.zeros(1, 40, 12), torch.zeros(30, 12), 2, "clip must have at least 31 frames"),
        ],
    )
    def test_errors(self, samples: Tensor, clip: Tensor, joints: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate_rotations({"mine": samples}, clip, joints)


class TestRun:
    """Runs of one clip in every layout: what is judged is the decoded clips, so that the layout does not matter."""

    PRESET = Preset(network={"d_model": 16, "heads": 2, "layers": 1}, timesteps=2)
    LAYOUTS = (("sinmdm", None), *((kind, rep) for kind in ("mixamo", "bvh_general") for rep in ("6d", "quat")))

    @pytest.fixture
    def clip(self) -> Clip:
        turns = ("Zrotation", "Xrotation", "Yrotation")
        joints = len(MIXAMO_JOINTS)
        rig = Skeleton(
            names=MIXAMO_JOINTS,
            parents=(-1, *range(joints - 1)),
            offsets=np.ones((joints, 3)),
            channels=(("Xposition", "Yposition", "Zposition", *turns), *[turns] * (joints - 1)),
            end_sites=((),) * joints,
        )
        return Clip(rig, 10 * motions(1, 40, joints)[0, :, : rig.channel_count].numpy(), 1 / 30)

    def run(self, clip: Clip, kind: str, representation: str | None) -> Run:
        layout = layout_for(clip, kind, representation)
        normalizer = Normalizer.fit(layout.encode(clip), layout)
        return Run(Path(), self.PRESET, layout, clip, normalizer, self.PRESET.build(layout.size))

    def test_the_table_does_not_depend_on_the_layout(self, clip: Clip) -> None:
        tables = []
        for kind, representation in self.LAYOUTS:
            rows, judged = evaluate_run(self.run(clip, kind, representation), [clip.slice(3)])
            assert torch.equal(judged, rotation_features(clip))
            tables.append([row for row in rows if row["name"] != "untrained model"])  # of another size in each
        assert all(table == tables[0] for table in tables)

    def test_a_motion_is_judged_alike_in_every_layout(self, clip: Clip) -> None:
        # Numbers of a rotation are rounded to float32 once; a matrix moves by at most four times as much.
        expected = rotation_features(clip)
        for kind, representation in self.LAYOUTS:
            layout = layout_for(clip, kind, representation)
            decoded = rotation_features(layout.decode(layout.encode(clip)))
            bound = 4 * (1 + 2 * 6**0.5) * torch.finfo(torch.float32).eps / 2
            torch.testing.assert_close(decoded, expected, rtol=0, atol=bound)

    def test_samples_of_a_run(self, clip: Clip) -> None:
        run = self.run(clip, "mixamo", "quat")
        rows, _ = evaluate_run(run, frames=35, n=2)
        assert rows[0]["frames"] == [35, 35]
        assert rows[1]["frames"] == [35]
        rows, _ = evaluate_run(run, n=1)
        assert rows[0]["frames"] == rows[1]["frames"] == [2 * len(clip)]

    def test_the_untrained_model_is_the_same_each_time(self, clip: Clip) -> None:
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            run, state = self.run(clip, "sinmdm", None), torch.random.get_rng_state()
            found.append(untrained(run).network.state_dict())
            assert torch.equal(torch.random.get_rng_state(), state)
            assert any(not torch.equal(weights, found[0][name]) for name, weights in run.network.state_dict().items())
        assert all(torch.equal(found[1][name], weights) for name, weights in found[0].items())

    def test_progress_goes_from_sampling_to_measuring(self, clip: Clip) -> None:
        calls: list[tuple[str, int, int]] = []
        evaluate_run(self.run(clip, "sinmdm", None), n=2, on_progress=lambda *call: calls.append(call))
        sampling = [call for call in calls if call[0] == "sampling"]
        assert calls == sampling + [("measuring", done, 7) for done in range(1, 8)]
        assert sampling == [("sampling", done, 4) for done in range(1, 5)]

    def test_samples_that_are_none_of_the_run_s(self, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Run, "sample", lambda *_, **__: pytest.fail("sampled before the samples were checked"))
        rig = clip.skeleton
        moved = Skeleton(rig.names, (-1, 0, 0, *rig.parents[3:]), rig.offsets, rig.channels, rig.end_sites)
        fast = Clip(rig, clip.values.repeat(2, axis=0), 1 / 60)
        for sample, message in (
            (Clip(moved, clip.values, clip.frame_time), "sample 1 has another skeleton than the run's clip"),
            (torch.zeros(40, 144), "sample 1 is an array, must be a clip of the skeleton"),
            (clip.slice(0, 29), "sample 1 must have at least 30 frames at 30 a second or less to be measured, got 29"),
            (fast.slice(0, 58), "sample 1 must have at least 30 frames at 30 a second or less to be measured, got 29"),
        ):
            with pytest.raises(ValueError, match=message):
                evaluate_run(self.run(clip, "sinmdm", None), [clip, sample])

    def test_a_sample_at_another_rate(self, clip: Clip) -> None:
        slow = Clip(clip.skeleton, clip.values, 1 / 25)
        with pytest.raises(ValueError, match="sample 1 has 25 frames a second where the run's clip has 30"):
            evaluate_run(self.run(clip, "sinmdm", None), [clip, slow])
        fast = Clip(clip.skeleton, clip.values.repeat(2, axis=0), 1 / 60)
        rows, _ = evaluate_run(self.run(clip, "sinmdm", None), [fast])
        assert rows[0]["values"]["coverage_area"] == {"mean": 1.0, "std": None}


class TestPrintedForms:
    def test_tables_are_aligned(self) -> None:
        clip = motions(1, 40, 6)[0]
        rows = evaluate_rotations({"my samples": motions(2, 40, 6, seed=1), "clip": clip[None]}, clip, joints=6)
        rows[0]["values"]["coverage_published"] = {"mean": 0.9768, "std": 0.0123}
        first, second = (block.splitlines() for block in format_table(rows).split("\n\n"))
        assert first[0].split() == ["coverage"] * 3 + ["clip", "to", "sample", "global", "local", "harmonic"]
        assert " ".join(first[1].split()) == "< 0.5 < 1 area sample to clip diversity diversity mean"
        assert first[2].startswith("my samples  ")
        assert "97.7% ± 1.2%" in first[2]
        assert first[3].split() == ["clip", *["100.0%"] * 3, *["0.00"] * 4, "0.000"]
        assert second[0].split() == ["inter", "intra", "intra", "distri-"]
        assert second[1].split() == ["diversity", "diversity", "difference", "energy", "bution"]
        assert second[3].split()[:2] == ["clip", "-"]  # a single sample has no inter diversity
        assert second[3].split()[4:] == ["1.00", "0.000"]
        for block in (first, second):
            assert len({len(line) for line in block}) == 1
        end = first[1].index("< 1") + 3
        assert [line[end - 1 : end + 2].strip()[:1] for line in first[2:]] == ["%", "%"]

    @pytest.mark.parametrize("width", [60, 90, 120])
    def test_lines_are_no_wider_than_asked_for(self, width: int) -> None:
        clip = motions(1, 70, 56)[0]
        rows = evaluate_rotations({"samples": motions(3, 90, 56, seed=1), "x" * 30: clip[None]}, clip, joints=56)
        for row in rows:
            row["values"]["foot_sliding"] = {"mean": math.nan, "std": None}
        blocks = [block.splitlines() for block in format_table(rows, width).split("\n\n")]
        assert all(len(line) <= width for block in blocks for line in block)
        assert all([line[: len("samples")] for line in block[2:]] == ["samples", "x" * 7] for block in blocks)
        assert sum(len(block[3].split()) - 1 for block in blocks) == len(rows[0]["values"])

    def test_json_holds_the_definitions_and_no_nan(self) -> None:
        clip = torch.ones(40, 12, dtype=torch.float64)  # a statue: the energy of any sample is infinite beside it
        rows = evaluate_rotations({"samples": motions(2, 40, 2), "clip": clip[None]}, clip, joints=2)
        document = json.loads(json.dumps(to_json(rows, clip), allow_nan=False))
        assert document["clip"] == {"frames": 40, "energy": 0.0}
        assert document["definitions"] == DEFINITIONS
        assert document["window"] == 30
        assert [row["name"] for row in document["rows"]] == ["samples", "clip"]
        assert [row["values"]["energy"] for row in document["rows"]] == [{"mean": None, "std": None}] * 2
        values = rows[0]["values"]
        assert document["rows"][0]["values"]["clip_to_sample"] == values["clip_to_sample"]
        assert document["rows"][0]["thresholds"]["coverage_published"] == 2 * math.sqrt(2 / 24)
        assert document["rows"][0]["coverage_curve"] == rows[0]["coverage_curve"]
        assert document["rows"][0]["distribution_parts"] == rows[0]["distribution_parts"]
        headings, lines = format_table(rows).split("\n\n")[1].splitlines()[1:3]
        assert lines[headings.index("energy") :][: len("energy")].strip() == "-"

    def test_definitions_name_every_measure(self) -> None:
        lines = format_definitions().splitlines()
        assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(DEFINITIONS)
        assert all(len(line) <= 120 for line in lines)

    def test_no_rows(self) -> None:
        with pytest.raises(ValueError, match="rows must hold at least one row"):
            format_table([])


@pytest.fixture(scope="module")
def salsa() -> Tensor:
    if not SALSA.exists():
        pytest.skip("Salsa-Dancing-6.bvh is not beside this checkout")
    return rotation_features(Clip.read(SALSA))


class TestSalsa:
    """A real dance of 648 frames and its baselines, to the digits at which another implementation measured them.

    That one printed 0.05 for the distance of "first half twice" to the clip. It is 0.0437; distances in float32 product
    form, which are not zero between equal frames, give 0.0451 over all windows but the last.
    """

    def test_features(self, salsa: Tensor) -> None:
        assert salsa.shape == (648, 144)
        expected = torch.tensor([0.974589, 0.134, 0.179501, -0.09182, 0.969903, -0.225516], dtype=torch.float64)
        torch.testing.assert_close(salsa[0, :6], expected, rtol=0, atol=1e-6)
        assert f"{metrics.energy(salsa).item():.3f}" == "0.316"

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("frozen mean pose", "0 97.7 1.49 1.12 0.00"),
            ("clip reversed", "0 91.7 1.51 1.51 1.00"),
            ("first half twice", "54 100.0 0.63 0.04 1.06"),
        ],
    )
    def test_baselines(self, salsa: Tensor, name: str, expected: str) -> None:
        values = self.means(salsa, name)
        printed = (
            f"{100 * values['coverage_strict']:.0f} {100 * values['coverage_published']:.1f} "
            f"{values['clip_to_sample']:.2f} {values['sample_to_clip']:.2f} {values['energy']:.2f}"
        )
        assert printed == expected
        assert (values["global_diversity"] == 0) == (name == "first half twice")

    def test_noise_passes_all_but_energy(self, salsa: Tensor) -> None:
        values = self.means(salsa, "clip + noise 0.05")
        assert values["coverage_strict"] == 1
        assert f"{values['clip_to_sample']:.2f} {values['sample_to_clip']:.2f}" == "0.59 0.61"
        assert f"{values['energy']:.1f}" == "4.8"

    @pytest.mark.parametrize(
        ("name", "expected"), [("frozen mean pose", "86.25 97.73"), ("clip reversed", "84.47 91.75")]
    )
    def test_coverage_of_the_published_features(self, salsa: Tensor, name: str, expected: str) -> None:
        """168, of which the 24 of foot contacts are not in ours: what docs/evaluation.md says of the threshold."""
        clip = Clip.read(SALSA).thin()
        published = layout_for(clip, "mixamo", "6d").encode(clip)[:, :-6].double()
        assert published.shape == (648, 168)
        shares = [metrics.coverage(baseline_rows(x, 1296, 1)[name], x).item() for x in (published, salsa)]
        assert " ".join(f"{100 * share:.2f}" for share in shares) == expected

    @staticmethod
    def means(salsa: Tensor, name: str) -> dict[str, float]:
        rows = baseline_rows(salsa, frames=1296, n=1)
        (row,) = evaluate_rotations({name: rows[name]}, salsa)
        return {key: value["mean"] for key, value in row["values"].items()}
