"""A run evaluated: its body's feet and root, runs on arrays, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from humanml_motion import made_motion
from torch import Tensor

from sinmdm.cli import main
from sinmdm.evaluation import Row, _baselines, evaluate_run, format_definitions, scale_of
from sinmdm.motion import Clip, Normalizer, Skeleton, layout_for, walker
from sinmdm.presets import Preset
from sinmdm.run import Run
from sinmdm.training import train

PRESET = Preset(network={"d_model": 16, "heads": 2, "layers": 1}, timesteps=2)


class TestBody:
    """Feet and root of the built-in animal, in lengths of its reach."""

    @pytest.fixture
    def clip(self) -> Clip:
        return walker(legs=4, seconds=2.0)

    @staticmethod
    def rows(clip: Clip, sample: Clip) -> list[Row]:
        """All but the untrained model's."""
        layout = layout_for(clip)
        run = Run(Path(), PRESET, layout, clip, Normalizer.fit(layout.encode(clip), layout), PRESET.build(layout.size))
        rows, _ = evaluate_run(run, [sample], frames=2 * len(clip.thin(30)) * round(clip.fps / clip.thin(30).fps))
        return [rows[0], *rows[2:]]

    @classmethod
    def row(cls, clip: Clip, sample: Clip) -> Row:
        return cls.rows(clip, sample)[0]

    @staticmethod
    def with_root(clip: Clip, root: np.ndarray) -> Clip:
        """The clip with its root at these places (frames, 3)."""
        values = clip.values.copy()
        values[:, [clip.skeleton.channels[0].index(f"{axis}position") for axis in "XYZ"]] = root
        return Clip(clip.skeleton, values, clip.frame_time)

    @staticmethod
    def reach(clip: Clip) -> float:
        return clip.skeleton.reach(clip.translations().mean(dim=0).numpy())

    def test_a_statue_that_is_pulled_along_slides_at_that_speed(self, clip: Clip) -> None:
        statue = Clip(clip.skeleton, clip.values[:1].repeat(40, axis=0), clip.frame_time)
        assert layout_for(clip).encode(statue)[:, -4:].sum() > 0  # some feet are on the ground in the first frame
        assert self.row(clip, statue)["values"]["foot_sliding"] == {"mean": 0.0, "std": None}
        seconds = np.arange(40)[:, None] * clip.frame_time
        way = seconds * self.reach(clip) * [0.12, 0.0, 0.16]  # 0.2 reaches a second
        pulled = self.with_root(statue, statue.translations()[:, 0].numpy() + way)
        assert self.row(clip, pulled)["values"]["foot_sliding"]["mean"] == pytest.approx(0.2)

    def test_the_clip_s_own_feet_hardly_slide_and_its_root_is_where_it_is(self, clip: Clip) -> None:
        row = self.row(clip, clip)
        assert row["values"]["foot_sliding"]["mean"] < 0.02
        assert [part["name"] for part in row["distribution_parts"]] == [*clip.names, "root speed", "root height"]
        assert all(part["mean"] == 0 for part in row["distribution_parts"])

    def test_units_do_not_matter(self, clip: Clip) -> None:
        sample, parts = clip.slice(5), []
        for unit in (1.0, 64.0):
            scaled = []
            for motion in (clip, sample):
                rig = Skeleton(
                    clip.names, clip.parents, unit * clip.offsets, clip.skeleton.channels,
                    clip.skeleton.end_sites,
                )  # fmt: skip
                resized = Clip(rig, motion.values, motion.frame_time)
                scaled.append(self.with_root(resized, unit * motion.translations()[:, 0].numpy()))
            row = self.row(*scaled)
            parts.append([row["values"]["foot_sliding"]["mean"], *(p["mean"] for p in row["distribution_parts"][-2:])])
        assert parts[0] == pytest.approx(parts[1], rel=1e-9)

    def test_root_speed_and_height(self, clip: Clip) -> None:
        root = clip.translations()[:, 0].numpy()
        reach = self.reach(clip)
        moved = self.with_root(clip, root * [2, 1, 2] + [0, 0.3 * reach, 0])  # twice as fast, and higher
        speed, height = self.row(clip, moved)["distribution_parts"][-2:]
        own = np.linalg.norm(np.diff(root[:, [0, 2]], axis=0), axis=1).mean() / clip.frame_time / reach
        assert own > 0
        assert speed == {"name": "root speed", "mean": pytest.approx(own), "std": None}
        assert height == {"name": "root height", "mean": pytest.approx(0.3), "std": None}

    def test_baselines_have_bodies(self, clip: Clip) -> None:
        rows = {name: body for name, (_, body) in _baselines(clip).items()}
        frozen, backwards, twice, noisy = rows.values()
        own = clip.positions()
        assert [len(body) for body in rows.values()] == [2 * len(clip), len(clip), len(clip), 2 * len(clip)]
        torch.testing.assert_close(backwards.positions(), own.flip(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(twice.positions(), own[: len(clip) // 2].repeat(2, 1, 1), rtol=0, atol=1e-9)
        torch.testing.assert_close(frozen.positions()[:, 0], own[:, 0].mean(0).expand(120, 3), rtol=0, atol=1e-9)
        torch.testing.assert_close(noisy.positions()[:, 0], own[:, 0].repeat(2, 1), rtol=0, atol=1e-9)
        assert 0 < (noisy.positions()[:, 1:] - own[:, 1:].repeat(2, 1, 1)).norm(dim=-1).mean() < 0.2 * self.reach(clip)

    def test_at_60_frames_a_second_all_is_as_at_30(self, clip: Clip) -> None:
        fast = walker(legs=4, seconds=2.0, fps=60)
        thinned = fast.thin(30)
        assert (len(fast), len(thinned)) == (120, 60)
        for sample, slow in ((fast, thinned), (fast.slice(20), thinned.slice(10))):
            one, other = self.rows(fast, sample), self.rows(thinned, slow)
            for x, y in zip(one, other, strict=True):  # noise has no contacts, and so no sliding: NaN
                assert repr(x["values"]["foot_sliding"]) == repr(y["values"]["foot_sliding"])
                assert x["distribution_parts"] == y["distribution_parts"]
            assert one[0]["values"]["foot_sliding"]["mean"] > 0
        assert [len(body) for _, body in _baselines(fast).values()] == [120, 60, 60, 120]

    def test_feet_are_where_the_sample_s_own_bones_put_them(self, clip: Clip) -> None:
        rig = clip.skeleton
        larger = Skeleton(rig.names, rig.parents, 1.5 * rig.offsets, rig.channels, rig.end_sites)
        sample = self.with_root(Clip(larger, clip.values, clip.frame_time), 1.5 * clip.translations()[:, 0].numpy())
        layout, reach = layout_for(clip), self.reach(clip)
        feet = sample.positions()[:, list(layout.contacts)].numpy()
        ways = np.diff(feet, axis=0) / clip.frame_time / reach
        slow = np.linalg.norm(ways, axis=-1) < 0.3  # as the clip's feet touch the ground
        touching = np.concatenate([slow[:1], slow]) & (feet[..., 1] < np.array(layout.ground))
        expected = np.linalg.norm(ways[..., [0, 2]], axis=-1)[touching[1:] & touching[:-1]].mean()
        own = self.row(clip, clip)["values"]["foot_sliding"]["mean"]
        assert self.row(clip, sample)["values"]["foot_sliding"]["mean"] == pytest.approx(expected)
        assert expected != pytest.approx(own, rel=0.1)

    def test_without_feet_there_is_no_sliding(self, clip: Clip) -> None:
        rising = clip.translations()[:, 0].numpy() + np.arange(len(clip))[:, None] * [0, self.reach(clip), 0]
        flying = self.with_root(clip, rising)
        row = self.row(flying, flying)
        assert "foot_sliding" not in row["values"]
        assert row["distribution_parts"][-1]["name"] == "root height"


class TestArrays:
    @pytest.fixture
    def array(self) -> Tensor:
        return 1000 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).cumsum(0)

    @pytest.fixture
    def run(self, array: Tensor) -> Run:
        layout = layout_for(array)
        normalizer = Normalizer.fit(layout.encode(array), layout)
        return Run(Path(), PRESET, layout, array, normalizer, PRESET.build(layout.size))

    def test_are_measured_on_their_features(self, run: Run, array: Tensor) -> None:
        rows, features = evaluate_run(run, [array])
        assert torch.equal(features, array.double())
        names = ["samples", "untrained model", "frozen mean pose", "clip reversed", "first half twice"]
        assert [row["name"] for row in rows[:5]] == names
        values = rows[0]["values"]
        assert values["coverage_strict"]["mean"] == 1
        assert values["global_diversity"]["mean"] == values["distribution"]["mean"] == 0
        assert not any("foot_sliding" in row["values"] for row in rows)
        assert [part["name"] for part in rows[0]["distribution_parts"]] == [f"feature {i}" for i in range(5)]

    def test_the_scale_does_not_depend_on_the_units(self, run: Run, array: Tensor) -> None:
        spread = (array.double() - array.double().mean(0)).square().sum(1).mean().sqrt().item()
        assert scale_of(array) == pytest.approx(spread / 2)
        rows, _ = evaluate_run(run, [array])
        # The mean distance to the mean is at most the root of the mean square.
        assert 0 < rows[2]["values"]["clip_to_sample"]["mean"] <= spread
        # As noise of 0.05 in 144 numbers at a scale of 1; 600 normals, within 5 standard errors.
        noise = list(_baselines(array).values())[3][0] - array.double().repeat(2, 1)
        assert noise.square().sum(1).mean().sqrt() / scale_of(array) == pytest.approx(0.6, rel=5 / math.sqrt(1200))
        assert scale_of(torch.ones(40, 3)) == 1

    def test_of_other_features(self, run: Run, array: Tensor) -> None:
        with pytest.raises(ValueError, match="sample 1 must be an array of the run's 5 features"):
            evaluate_run(run, [array, array[:, :3]])

    def test_too_short(self, run: Run) -> None:
        with pytest.raises(ValueError, match="frames must be more than 30 frames to be measured, got 12"):
            evaluate_run(run, frames=12)


class TestHumanML:
    """Feet of motions in HumanML3D features, where the features say that they touch the ground."""

    @staticmethod
    def sliding(clip: Tensor, sample: Tensor) -> list[float]:
        layout = layout_for(clip, "humanml")
        run = Run(Path(), PRESET, layout, clip, Normalizer.fit(layout.encode(clip), layout), PRESET.build(layout.size))
        rows, _ = evaluate_run(run, [sample])
        assert [row["name"] for row in rows][2:4] == ["frozen mean pose", "clip reversed"]
        return [row["values"]["foot_sliding"]["mean"] for row in rows]

    def test_is_the_speed_of_the_joints_of_the_contacts(self) -> None:
        features, joints = made_motion(60)
        frame, (name_of, parents) = 1 / 20, layout_for(features, "humanml").hierarchy
        feet = [name_of.index(name) for name in ("left_ankle", "left_foot", "right_ankle", "right_foot")]
        speeds = []
        for column, foot in enumerate(feet):
            for at in range(1, 60):
                if features[at - 1, 259 + column] == features[at, 259 + column] == 1:
                    way = joints[at, foot] - joints[at - 1, foot]
                    speeds.append(math.hypot(way[0], way[2]) / frame)
        ways = torch.zeros(22, dtype=torch.float64)
        for joint in range(1, 22):
            ways[joint] = ways[parents[joint]] + (joints[:, joint] - joints[:, parents[joint]]).norm(dim=1).mean()
        assert len(speeds) > 20
        # Features are float32, some 60 turns and steps of it added up.
        expected = pytest.approx(np.mean(speeds) / ways.max().item(), rel=1e-4)
        assert self.sliding(features, features)[0] == expected

    def test_of_feet_that_stand_or_never_touch(self) -> None:
        features, _ = made_motion(60)
        still, flying = features[:1].repeat(40, 1), features.clone()
        still[:, :3], still[:, 259:] = 0, 1
        flying[:, 259:] = 0
        assert self.sliding(features, still)[0] == 0
        assert math.isnan(self.sliding(features, flying)[0])


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        train(walker(legs=2, seconds=1.5), tmp_path / "run", preset=PRESET, steps=2, progress=False)
        return tmp_path / "run"

    def test_a_folder_of_samples(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        clip = Clip.read(folder / "clip.bvh")
        clip.write(tmp_path / "sample00.bvh")
        clip.slice(2).write(tmp_path / "sample01.bvh")
        clip.slice(0, 1).write(tmp_path / "other.bvh")  # of one frame: would be refused
        arguments = ["evaluate", str(folder), str(tmp_path), str(folder / "clip.bvh")]
        assert main([*arguments, "--json", str(tmp_path / "table.json"), "--quiet"]) == 0
        document = json.loads((tmp_path / "table.json").read_text(), parse_constant=pytest.fail)
        assert document["rows"][0]["frames"] == [45, 43, 45]
        assert document["rows"][0]["values"]["coverage_strict"]["mean"] > 0.9
        assert "left out" not in capsys.readouterr().out

    def test_a_folder_without_any(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["evaluate", str(folder), str(tmp_path), "--quiet"]) == 2
        assert f"{tmp_path}: the folder has no sample*.bvh" in capsys.readouterr().err

    def test_files_that_cannot_be_measured_are_named(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Clip.read(folder / "clip.bvh").slice(0, 20).write(tmp_path / "sample00.bvh")
        assert main(["evaluate", str(folder), str(tmp_path), "--quiet"]) == 2
        assert f"{tmp_path / 'sample00.bvh'} must have at least 30 frames" in capsys.readouterr().err

    def test_where_json_cannot_go_nothing_is_sampled(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Run, "sample", lambda *_, **__: pytest.fail("sampled before --json was checked"))
        for path, message in (
            (tmp_path, f"--json {tmp_path}: is a folder, must be a file"),
            (tmp_path / "no" / "t.json", f"--json {tmp_path / 'no' / 't.json'}: there is no folder {tmp_path / 'no'}"),
        ):
            assert main(["evaluate", str(folder), "--json", str(path), "--quiet"]) == 2
            assert message in capsys.readouterr().err

    def test_definitions_need_no_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["evaluate", "--definitions"])
        assert capsys.readouterr().out == format_definitions() + "\n"

    def test_of_an_array_it_says_what_is_left_out_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        time = torch.arange(60)[:, None] / 5
        train(torch.cat([time.sin(), time.cos()], 1), tmp_path / "run", preset=PRESET, steps=1, progress=False)
        assert main(["evaluate", str(tmp_path / "run"), "-n", "1", "--quiet"]) == 0
        assert capsys.readouterr().out.count("Foot sliding is left out") == 1
