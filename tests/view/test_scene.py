"""Files to characters, and characters to places."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sinmdm.motion import Results, walker
from sinmdm.view import Character, load_characters, set_out


def test_a_clip(tmp_path):
    clip = walker(seconds=1)
    clip.write(tmp_path / "animal.bvh")
    scene = load_characters([tmp_path / "animal.bvh"])
    (one,) = scene.characters
    assert (one.label, one.names, one.parents) == ("animal", clip.names, clip.parents)
    assert one.frame_time == pytest.approx(clip.frame_time, rel=1e-6)  # BVH prints it so exactly
    assert one.given is None
    assert not scene.together
    assert not scene.scaled
    # Set down, not changed: one shift for all frames and joints.
    shifts = one.positions - clip.positions().numpy()
    assert np.ptp(shifts, axis=(0, 1)).max() < 1e-4
    low, high = scene.extents
    assert low[1] == scene.ground == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose((low + high)[[0, 2]], 0, atol=1e-5)


def test_results_have_a_character_a_motion(results):
    given = np.zeros((2, 5, 3), dtype=bool)
    given[0, 1:3, 2] = True
    given[1, 4] = True  # beyond the second motion's length
    path = results(given=given)
    first, second = load_characters([path]).characters
    assert (first.label, second.label) == ("first", "second")
    assert (first.frames, second.frames) == (5, 3)
    assert second.seconds == pytest.approx(0.3)
    np.testing.assert_array_equal(first.given, given[0])
    assert second.given is None
    stored = Results.read(path).positions
    np.testing.assert_allclose(np.diff(first.positions, axis=0), np.diff(stored[0], axis=0), atol=1e-6)


def test_a_folder_is_its_scene_else_its_results_else_its_clips(results, tmp_path):
    folder = results().parent
    walker(seconds=0.5).write(folder / "b.bvh")
    walker(seconds=0.5, seed=1).write(folder / "a.BVH")
    (folder / "scene.json").write_text(json.dumps({"results": "results.npz", "together": True, "characters": [{}]}))
    scene = load_characters([folder])
    assert scene.together
    assert len(scene.characters) == 2
    (folder / "scene.json").unlink()
    scene = load_characters([folder])
    assert not scene.together
    assert [one.label for one in scene.characters] == ["first", "second"]
    (folder / "results.npz").unlink()
    assert [one.label for one in load_characters([folder]).characters] == ["a", "b"]


def test_characters_together_stand_as_they_are(results):
    path = results()
    stored = Results.read(path).positions
    scene_file = path.parent / "scene.json"
    scene_file.write_text(json.dumps({"results": "results.npz", "together": True}))
    for scene in (load_characters([scene_file]), load_characters([path], together=True)):
        assert scene.together
        np.testing.assert_array_equal(scene.characters[0].positions, stored[0])
        np.testing.assert_array_equal(scene.characters[1].positions, stored[1, :3])
        assert scene.ground == min(stored[0, ..., 1].min(), stored[1, :3, :, 1].min())


def test_a_file_given(results, tmp_path):
    walker(seconds=0.5).write(tmp_path / "clip.bvh")
    path = results()
    for files in ([path], [path, tmp_path / "clip.bvh"]):
        scene = load_characters(files, given=[tmp_path / "clip.bvh"])
        whole = {one.label: one.given is not None and one.given.all() for one in scene.characters}
        assert whole == {"clip": True, "first": False, "second": False}
    assert load_characters([path], given=[tmp_path / "clip.bvh"]).characters[0].label == "clip"


def test_labels_that_are_alike_are_told_apart(results):
    one, two = results("one"), results("two")
    labels = [character.label for character in load_characters([one, two, two.parent]).characters]
    assert labels == ["one/first", "one/second", "two/first (1)", "two/second (1)", "two/first (2)", "two/second (2)"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", "", r"x\.txt: suffix is '\.txt', must be \.bvh, \.npz or \.json"),
        ("x.bvh", "HIERARCHY\n", r"x\.bvh"),
        ("x.npz", "PK", r"x\.npz: not a file of results"),
        ("x.json", "{", r"x\.json: not JSON"),
        ("x.json", 100_000 * "[", r"x\.json: not JSON: .*recursion"),
        ("x.json", "[]", r'x\.json: no scene: it must be an object whose "results" names a file'),
        ("x.json", '{"results": "none.npz", "together": 1}', r'x\.json: "together" is 1, must be true or false'),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        load_characters([tmp_path / name])


@pytest.mark.parametrize("place", ["../made/{}", "./{}", "{folder}/{}", "..\\{}", "C:{}", "..", "."])
def test_a_scene_opens_no_file_that_is_elsewhere(results, place):
    path = results()
    place = place.format(path.name, folder=path.parent)
    (path.parent / "scene.json").write_text(json.dumps({"results": place}))
    with pytest.raises(ValueError, match=r'scene\.json: "results" is .*, must be the plain name of a file beside it$'):
        load_characters([path.parent])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", ["1e300", "1e30", "-2e9", "inf", "nan"])
def test_clips_out_of_all_bounds_are_named(tmp_path, number):
    path = tmp_path / "far.bvh"
    walker(seconds=0.2).write(path)
    lines = path.read_text().splitlines()
    lines[-1] = " ".join([number, *lines[-1].split()[1:]])
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"far\.bvh"):
        load_characters([path])


def test_missing_and_empty(tmp_path):
    with pytest.raises(OSError, match=r"none\.bvh"):
        load_characters([tmp_path / "none.bvh"])
    (tmp_path / "x.json").write_text('{"results": "none.npz"}')
    with pytest.raises(OSError, match=r"none\.npz"):
        load_characters([tmp_path / "x.json"])
    (tmp_path / "x.json").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: the folder has no scene\.json, no results\.npz and no"):
        load_characters([tmp_path])
    with pytest.raises(ValueError, match="no file to show"):
        load_characters([])
    with pytest.raises(ValueError, match="no character to show"):
        set_out([[]])


@pytest.mark.parametrize("count", [1, 2, 5, 6, 11, 40])
def test_characters_beside_each_other_never_touch(person, count):
    people = [person(str(k), size=1 + k % 3, place=(7 * k, -k, 3 * k)) for k in range(count)]
    scene = set_out([[one] for one in people])
    assert scene.scales == (1.0,) * count  # 1 to 3: alike
    boxes = [one.extents for one in scene.characters]
    for k, (low, high) in enumerate(boxes):
        assert low[1] == pytest.approx(0, abs=1e-5)
        for other_low, other_high in boxes[:k]:
            apart = np.maximum(low - other_high, other_low - high)
            assert max(apart[0], apart[2]) > 0.2 * scene.size
    low, high = scene.extents
    if count > 5:  # rows of about as many as there are columns
        assert 0.3 < (high - low)[2] / (high - low)[0] < 3


def test_a_group_keeps_its_places(person):
    pair = [person("a"), person("b", place=(3, 0, 1))]
    scene = set_out([pair, [person("c", place=(0, 9, 0))]])
    assert not scene.together
    a, b, _ = scene.characters
    np.testing.assert_allclose(b.positions - a.positions, np.broadcast_to((3, 0, 1), (7, 4, 3)), atol=1e-6)


def test_units_that_differ_are_made_equal_unless_together(person):
    small, large = person("small", size=0.02, place=(1, 1, 1)), person("large", size=150)
    assert small.size == pytest.approx(0.02 * (np.sqrt(0.5625) + np.sqrt(0.5)), rel=1e-5)
    scene = set_out([[small], [large]])
    assert scene.scaled
    assert scene.scales == pytest.approx((1, 0.02 / 150))
    assert scene.characters[1].size == pytest.approx(small.size, rel=1e-5)
    together = set_out([[small], [large]], together=True)
    assert together.scales == (1, 1)
    assert together.characters == (small, large)


def test_poses_between_frames(person):
    given = np.zeros((7, 4), dtype=bool)
    given[3] = True
    one = person(fps=10, given=given)
    pose, was = one.at(0.32)
    np.testing.assert_allclose(pose, 0.8 * one.positions[3] + 0.2 * one.positions[4], atol=1e-6)
    assert was.all()
    assert not one.at(0.36)[1].any()
    np.testing.assert_array_equal(one.at(0.65)[0], one.positions[6])  # the last frame's own time
    np.testing.assert_allclose(one.at(0.7 + 0.1)[0], one.positions[1], atol=1e-6)
    np.testing.assert_array_equal(one.at(0.8, loop=False)[0], one.positions[6])
    assert not person().at(0.1)[1].any()


def test_boxes_are_those_of_the_poses(person, monkeypatch):
    one = person(fps=10)
    times = [-1.0, 0.0, 0.1, 0.25, 0.32, 0.65, 0.7, 9.0]
    poses = [one.at(time, loop=False)[0] for time in times]
    expected = np.array([(pose.min(axis=0), pose.max(axis=0)) for pose in poses])
    np.testing.assert_array_equal(one.boxes(times), expected, strict=True)
    monkeypatch.setattr("sinmdm.view.scene._AT_ONCE", 3)
    np.testing.assert_array_equal(one.boxes(times), expected, strict=True)


def test_a_lone_joint_has_a_size():
    one = Character("dot", ("Hips",), (-1,), np.zeros((1, 1, 3), dtype=np.float32), 0.1)
    assert one.size == 1
    assert set_out([[one], [one]]).characters[0].extents[1][0] < 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": np.zeros((0, 4, 3), dtype=np.float32)}, "positions have shape"),
        ({"positions": np.full((2, 4, 3), np.nan, dtype=np.float32)}, "must be finite"),
        ({"names": ("Hips",)}, "1 names and 4 parents for 4 joints"),
        ({"parents": (-1, 0, 2, 0)}, "that of an earlier joint"),
        ({"frame_time": 0.0}, "frame_time is 0.0"),
        ({"given": np.zeros((7, 3), dtype=bool)}, "given has shape"),
    ],
)
def test_what_is_no_character(person, change, said):
    with pytest.raises(ValueError, match=said):
        replace(person(), **change)
