"""Where the characters of a crowd stand and look, and that nobody comes too near."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crowd_runs import PLACES, STEPS, alone, brute_force, csv_text, exact_run, trained_run

from sinmdm.crowd import (
    LAYOUTS,
    circle,
    extent,
    front,
    grid,
    make_crowd,
    meeting,
    read_places,
    widened,
)
from sinmdm.motion import Clip, Skeleton
from sinmdm.run import Run

NUMBERS = r"must be x, z and heading, each a number within 1e\+09"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return exact_run(folder)


class TestLayouts:
    @pytest.mark.parametrize("n", [*range(1, 27), 200])
    def test_neighbours_are_1_apart_and_the_middle_is_the_origin(self, n: int) -> None:
        for layout in LAYOUTS.values():
            points = layout(n, None).points
            assert points.shape == (n, 2)
            if n > 1:
                away = np.linalg.norm(points - points[:, None], axis=2) + np.diag([np.inf] * n)
                assert np.allclose(away.min(axis=1), 1, rtol=1e-9)
            assert np.allclose((points.max(axis=0) + points.min(axis=0))[0], 0, atol=1e-9)

    @pytest.mark.parametrize(
        ("n", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (10, 3, 4), (50, 7, 8), (200, 14, 15)]
    )
    def test_a_grid_is_near_square_and_turns_nobody(self, n: int, rows: int, columns: int) -> None:
        places = grid(n)
        x, z = places.points.T
        assert (len(set(x)), len(set(z))) == (columns, rows)
        assert (x[0], z[0]) == (x.min(), z.max())
        assert not places.headings.any()
        assert not places.looking

    @pytest.mark.parametrize("n", [1, 2, 3, 12])
    def test_on_a_circle_they_look_in_out_or_to_the_next(self, n: int) -> None:
        points = circle(n).points
        assert np.allclose(np.linalg.norm(points, axis=1), np.linalg.norm(points[0]))
        for facing, wanted in (("in", -points), ("out", points), (None, -points)):
            looks = _direction(circle(n, facing).headings)
            assert np.allclose((looks * wanted).sum(axis=1), np.linalg.norm(wanted, axis=1))
        along = _direction(circle(n, "along").headings)
        assert np.allclose((along * points).sum(axis=1), 0)
        if n > 2:
            assert ((np.roll(points, -1, axis=0) - points) * along).sum(axis=1).min() > 0

    @pytest.mark.parametrize("facing", ["in", "out", "along"])
    def test_characters_look_there_in_their_first_frame(self, run: Run, facing: str) -> None:
        crowd = make_crowd(run, 5, 6, layout="circle", facing=facing, **STEPS)
        wanted = circle(5, facing).headings
        before = [front(alone(run, number, 6)) for number in range(5)]
        assert np.ptp(before) > 10  # by themselves they look all ways
        for clip, heading in zip(crowd.clips, wanted, strict=True):
            assert np.allclose(_direction(front(clip)), _direction(heading), atol=1e-9)

    def test_a_front_is_where_the_rig_looks(self) -> None:
        skeleton = Skeleton(
            ("a",), (-1,), np.zeros((1, 3)),
            (("Xposition", "Yposition", "Zposition", "Zrotation", "Xrotation", "Yrotation"),), ((),),
        )  # fmt: skip
        for degrees in (-170.0, -20.0, 0.0, 90.0):
            assert front(Clip(skeleton, np.array([[1.0, 2, 3, 0, 0, degrees]]), 1 / 30)) == pytest.approx(degrees)

    def test_a_crowd_of_one(self, run: Run, tmp_path: Path) -> None:
        for layout in LAYOUTS:
            crowd = make_crowd(run, 1, 5, layout=layout, **STEPS)
            assert crowd.closest is None
            assert crowd.points.tolist() == [[0.0, 0.0]]
            crowd.write(tmp_path / layout)
            assert json.loads((tmp_path / layout / "scene.json").read_text())["closest"] is None


def _direction(degrees: Any) -> np.ndarray:
    """(..., 2): x and z of headings."""
    return np.stack([np.sin(np.radians(degrees)), np.cos(np.radians(degrees))], axis=-1)


def _wandering(n: int, frames: int, seed: int) -> np.ndarray:
    ways = np.random.default_rng(seed).normal(size=(n, frames, 2)).cumsum(axis=1)
    return ways - ways[:, :1]


class TestSpacing:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_closest_meeting_is_that_of_all_pairs_and_frames(self, seed: int) -> None:
        ways, points = _wandering(9, 30, seed), np.random.default_rng(seed).normal(size=(9, 2)) * 20
        at = points[:, None] + ways
        distances = np.linalg.norm(at[:, None] - at, axis=-1)
        distances[np.tril_indices(9)] = np.inf
        one, other, frame = np.unravel_index(distances.argmin(), distances.shape)
        found = meeting(points, ways)
        assert found is not None
        assert (found.characters, found.frame) == ((one, other), frame)
        assert found.distance == pytest.approx(distances.min(), rel=1e-12)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("seed", range(4))
    def test_widened_is_enough_and_no_more(self, layout: str, seed: int) -> None:
        ways, points = _wandering(11, 30, seed), LAYOUTS[layout](11, None).points
        factor = widened(points, ways, 2.0, 2.5)
        assert factor > 2.5

        def closest(factor: float) -> float:
            found = meeting(factor * points, ways)
            assert found is not None
            return found.distance

        assert closest(factor) == pytest.approx(2.0, rel=1e-9)
        assert closest(factor * (1 - 1e-6)) < 2.0  # the least from which on all are enough
        assert all(closest(factor * more) >= 2.0 * (1 - 1e-12) for more in np.geomspace(1, 20, 200))

    def test_a_layout_that_is_wide_enough_stays(self) -> None:
        # From 3 on it is enough, and at 1.5, too, though not at 2: they pass each other.
        points, ways = np.array([[0.0, 0], [1, 0]]), np.array([[[0.0, 0], [0, 0]], [[0, 0], [-2.0, 0]]])
        assert widened(points, ways, 1.0, 3.5) == 3.5
        assert widened(points, ways, 1.0, 2.0) == pytest.approx(3.0)
        assert widened(points, ways, 0.5, 1.5) == 1.5
        assert widened(points, ways, 0.0, 2.0) == 2.0

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_is_kept_in_what_is_written(self, run: Run, layout: str, tmp_path: Path) -> None:
        files = make_crowd(run, 12, (5, 40), layout=layout, distance=0.1, seed=3, **STEPS).write(tmp_path / "out")
        scene = json.loads((tmp_path / "out" / "scene.json").read_text())
        found = brute_force(files)
        assert found.distance >= scene["spacing"]
        assert found.distance == pytest.approx(scene["closest"], abs=1e-8)  # files have nine decimals
        assert scene["distance"] > 0.1
        # The test can fail: a little less wide, and two come nearer.
        shrink = 0.999
        here = np.array([[character["x"], character["z"]] for character in scene["characters"]])
        for path, (x, z) in zip(files, shrink * here, strict=True):
            Clip.read(path).placed(x, z).write(path)
        assert brute_force(files).distance < scene["spacing"]

    def test_is_kept_although_files_round(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def left_over(name: str) -> list[float]:
            """By how much the closest roots in the files are more than `apart` from each other, of crowds by seeds."""
            crowds = [make_crowd(run, 4, 20, distance=0.1, apart=0.7, seed=seed, **STEPS) for seed in range(6)]
            files = [crowd.write(tmp_path / f"{name}{seed}") for seed, crowd in enumerate(crowds)]
            return [brute_force(written).distance - 0.7 for written in files]

        assert min(left_over("kept")) >= 0
        monkeypatch.setattr("sinmdm.crowd._with_room", lambda apart: apart)
        assert min(left_over("without")) < 0

    def test_by_default_is_twice_what_the_clip_reaches(self, run: Run) -> None:
        positions = run.motion.positions() if isinstance(run.motion, Clip) else torch.empty(0)
        away = (positions - positions[:, :1])[..., [0, 2]].norm(dim=-1).amax(dim=1)
        crowd = make_crowd(run, 2, 5, **STEPS)
        assert crowd.apart == pytest.approx(2 * float(away.median()))
        assert make_crowd(run, 1, 5, apart=4.0, **STEPS).distance == 6.0
        assert make_crowd(run, 1, 5, apart=0.0, **STEPS).distance == pytest.approx(1.5 * crowd.apart)

    def test_of_a_skeleton_that_is_a_line_or_a_point(self) -> None:
        channels = (("Xposition", "Yposition", "Zposition"), ("Xrotation",))
        pole = Skeleton(("a", "b"), (-1, 0), np.array([[0.0, 0, 0], [0, 3, 0]]), channels, ((), ()))
        assert extent(Clip(pole, np.zeros((4, 4)), 1 / 30)) == 3.0
        point = Skeleton(("a",), (-1,), np.zeros((1, 3)), channels[:1], ((),))
        assert extent(Clip(point, np.zeros((4, 3)), 1 / 30)) == 1.0

    def test_nothing_is_kept_where_none_is_asked_for(self, run: Run) -> None:
        crowd = make_crowd(run, 6, 30, distance=0.01, apart=0.0, **STEPS)
        assert crowd.distance == 0.01
        assert crowd.closest is not None


class TestFileLayouts:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.csv", csv_text(PLACES)),
            ("a.csv", "x, z, Heading\r\n\r\n" + csv_text(PLACES).replace(",", " , ")),
            ("a.CSV", "\ufeffx,z,heading\n" + csv_text(PLACES)),
            ("a.json", json.dumps(PLACES)),
            ("a.json", json.dumps([dict(zip(("heading", "z", "x"), row[::-1], strict=True)) for row in PLACES])),
        ],
        ids=["plain", "header, blanks and spaces", "byte order mark", "lists", "objects"],
    )
    def test_positions_and_headings_are_as_given(self, name: str, text: str, run: Run, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", newline="")
        places = read_places(path)
        assert np.column_stack([places.points, places.headings]).tolist() == PLACES
        for n in (None, 3):
            crowd = make_crowd(run, n, 6, layout=path, seed=6, **STEPS)
            assert (len(crowd), crowd.layout, crowd.distance) == (3, name, None)
            for number, (clip, row) in enumerate(zip(crowd.clips, PLACES, strict=True)):
                assert np.array_equal(clip.values, alone(run, number, 6, seed=6).placed(*row).values)

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("a.csv", "", "must have a row of x, z and heading for each character, has none"),
            ("a.csv", "x,z,heading\n", "must have a row of x, z and heading for each character, has none"),
            ("a.csv", "1,2\n", rf"line 1: {NUMBERS}, or the header x,z,heading, got \['1', '2'\]"),
            ("a.csv", "\nz,x,heading\n1,2,3\n", rf"line 2: {NUMBERS}, or the header x,z,heading, got \['z', 'x', "),
            ("a.csv", "x;z;heading\n1;2;3\n", rf"line 1: {NUMBERS}, or the header x,z,heading, got \['x;z;heading'\]"),
            ("a.csv", "x,z,heading\n\n1,2,3\n\n1,nan,3\n", rf"line 5: {NUMBERS}.*got \['1', 'nan', '3'\]"),
            ("a.csv", "1,2,3\nx,z,heading\n", rf"line 2: {NUMBERS}, got \['x', 'z', 'heading'\]"),
            ("a.csv", "1,2,inf\n", "line 1: must be x, z and heading"),
            ("a.csv", "1,2,2e9\n", "line 1: must be x, z and heading"),
            ("a.csv", "1_0,2,3\n", "line 1: must be x, z and heading"),
            ("a.json", '[[1, 2, 3], [1, 2, "3"]]', r"row 2: must be x, z and heading.*got \[1, 2, '3'\]"),
            ("a.json", 100_000 * "[", "not a .json file of places: .*recursion"),
            ("a.csv", '1,"2,3\n', "not a .csv file of places"),
            ("a.csv", b"\xff\xfe1", "not a .csv file of places"),
            ("a.json", "", "not a .json file of places"),
            ("a.json", "[[1, 2, 3]", "not a .json file of places"),
            ("a.json", "{}", "must have a row of x, z and heading for each character, has none"),
            ("a.json", "[[1, 2, true]]", r"row 1: must be x, z and heading.*got \[1, 2, True\]"),
            ("a.json", "[[1, 2, null]]", "row 1: must be x, z and heading"),
            ("a.json", "[[1, 2, 1" + 400 * "0" + "]]", "row 1: must be x, z and heading"),
            ("a.json", '[{"x": 1, "z": 2}]', "row 1: must be x, z and heading"),
            ("a.json", "[7]", "row 1: must be x, z and heading"),
        ],
    )
    def test_what_is_no_file_of_places(self, name: str, text: str | bytes, said: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=rf"^{path}[:,] {said}"):
            read_places(path)

    @pytest.mark.parametrize("n", [2, 4])
    def test_another_number_of_rows(self, run: Run, n: int, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text(csv_text(PLACES))
        with pytest.raises(ValueError, match=rf"a\.csv: must have a row for each of n = {n} characters, has 3$"):
            make_crowd(run, n, 5, layout=path)

    def test_starts_that_are_too_near_are_refused_before_anything_is_computed(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "near.csv"
        path.write_text(csv_text([*PLACES, [20.5, -2.75, 0.0]]))
        seen: list[int] = []
        said = (
            r"^near\.csv: characters 1 and 3 come within 0\.25 of each other, 0\.00 s after the start, "
            r"but must stay 1\.5 apart: "
        )
        with pytest.raises(ValueError, match=said):
            make_crowd(run, None, 5, layout=path, apart=1.5, on_step=lambda done, _: seen.append(done), **STEPS)
        assert seen == []
        assert len(make_crowd(run, None, 5, layout=path, apart=0.1, **STEPS)) == 4

    def test_those_that_meet_later_are_named_with_time_and_distance(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "meet.csv"
        # The second stands away from the first where the first goes, so that they come nearer.
        way = alone(run, 0, 30).placed(0.0, 0.0).values[-1, [0, 2]]
        x, z = (way / np.linalg.norm(way)).tolist()
        path.write_text(csv_text([[0.0, 0.0, 0.0], [500.0, 0.0, 0.0], [x, z, 180.0]]))
        free = make_crowd(run, None, 30, layout=path, apart=0.0, **STEPS)
        assert free.closest is not None
        nearest = brute_force(free.write(tmp_path / "out"))
        assert (nearest.characters, nearest.frame) == (free.closest.characters, free.closest.frame)
        assert nearest.frame > 0
        assert nearest.distance < 0.99
        said = (
            rf"^meet\.csv: characters 0 and 2 come within {nearest.distance:.4g} of each other, "
            rf"{nearest.frame / 30:.2f} s after the start, but must stay 0\.99 apart: "
        )
        with pytest.raises(ValueError, match=said):
            make_crowd(run, None, 30, layout=path, apart=0.99, **STEPS)
