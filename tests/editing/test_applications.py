"""What each edit promises, whatever the network: given parts stay, places are met, seams have no jump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from humanml_motion import made_motion
from torch import Tensor

from sinmdm import editing
from sinmdm.editing import Edit, EditError
from sinmdm.editing.edit import decoded, features
from sinmdm.editing.report import kept_error
from sinmdm.motion import Clip, Skeleton
from sinmdm.run import Run

KINDS = ("sinmdm", "mixamo", "bvh_general")
EPS = torch.finfo(torch.float32).eps


def _root(clip: Clip) -> Tensor:
    return clip.translations()[:, 0]


def _arrives(clip: Clip, frames: list[int], places: Tensor) -> None:
    """The root's x and z are at `places` (n, 2), up to the rounding of the float32 steps between them."""
    error = (_root(clip)[frames][:, [0, 2]] - places).abs().max()
    assert error <= 4 * EPS * len(clip) * max(1.0, float(_root(clip).abs().max()))


@pytest.mark.parametrize("kind", KINDS)
class TestInBetween:
    def test_given_frames_are_as_they_were(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        known = run.layout.encode(run.motion)
        edit = editing.in_between(run, generate=[(20, 30), (45, 50)], width=3)
        kept = (edit.mask == 1).all(1)
        assert kept.nonzero().flatten().tolist() == [*range(17), *range(33, 42), *range(53, 60)]
        for x in features(run, edit, 2, seed=1):
            assert torch.equal(x[kept], known[kept])
            assert not torch.equal(x[20:30], known[20:30])

    def test_given_parts_are_where_they_were(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        assert isinstance(run.motion, Clip)
        edit = editing.in_between(run, generate=[(20, 30), (45, 50)], width=3)
        for motion in editing.apply(run, edit, 2, seed=1):
            assert isinstance(motion, Clip)
            frames = [0, 16, 33, 41, 53, 59]
            _arrives(motion, frames, _root(run.motion)[frames][:, [0, 2]])

    def test_given_and_generate_are_two_ways_to_say_it(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        one = editing.in_between(run, generate=[(20, 30)])
        other = editing.in_between(run, given=[(30, 60), (0, 20)])
        assert torch.equal(one.mask, other.mask)
        assert one.seams == other.seams == (20, 30)

    def test_an_open_end_may_lead_anywhere(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        edit = editing.in_between(run, given=[(20, 40)], width=0)
        assert edit.seams == (20, 40)
        motion = editing.apply(run, edit)[0]
        assert isinstance(motion, Clip)
        assert isinstance(run.motion, Clip)
        _arrives(motion, [20, 39], _root(run.motion)[[20, 39]][:, [0, 2]])


def test_without_meeting_the_way_would_lead_elsewhere(people: dict[str, Run]) -> None:
    # The promise above is worth something only where the network does not keep it by itself.
    run = people["sinmdm"]
    edit = replace(editing.in_between(run, generate=[(20, 30)]), meets=())
    motion = editing.apply(run, edit)[0]
    assert isinstance(motion, Clip)
    assert isinstance(run.motion, Clip)
    assert float((_root(motion)[59] - _root(run.motion)[59]).norm()) > 1e-3


def test_joints_of_an_in_betweening(people: dict[str, Run]) -> None:
    run = people["sinmdm"]
    known = run.layout.encode(run.motion)
    edit = editing.in_between(run, generate=[(20, 30)], joints=["LeftArm"], width=0)
    x = features(run, edit)[0]
    names = run.layout.hierarchy[0]
    changed = (x != known).any(0)
    arm = {names.index(f"mixamorig:{name}") for name in ("LeftArm", "LeftForeArm", "LeftHand")}
    own = [joint for joint, part in enumerate(run.layout.joint_features) if bool(changed[part].any())]
    assert set(own) == arm
    assert (edit.given.all(0) == np.array([joint not in arm for joint in range(len(names))])).all()


class TestExpand:
    def test_given_parts_are_further_apart(self, people: dict[str, Run]) -> None:
        for kind in KINDS:
            run = people[kind]
            known = run.layout.encode(run.motion)
            edit = editing.expand(run, before=5, after=7, insert=[(40, 6), (20, 3)], width=0)
            assert len(edit) == 60 + 5 + 7 + 6 + 3
            assert edit.seams == (5, 25, 28, 48, 54, 74)
            x = features(run, edit)[0]
            for begin, end, at in ((0, 20, 5), (20, 40, 28), (40, 60, 54)):
                made = x[at : at + end - begin]
                if kind == "bvh_general" and begin:  # places are features here: the part is where the motion leads
                    moved = made[:, [0, 2]] - known[begin:end, [0, 2]]
                    assert float((moved - moved[:1]).abs().max()) < 1e-5
                    assert float(moved[0].norm()) > 1e-3
                    made = torch.cat([known[begin:end, :1], made[:, 1:2], known[begin:end, 2:3], made[:, 3:]], 1)
                assert torch.equal(made, known[begin:end])

    def test_the_first_part_stays_in_its_place(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        assert isinstance(run.motion, Clip)
        motion = editing.apply(run, editing.expand(run, before=12, width=2))[0]
        assert isinstance(motion, Clip)
        frames = torch.arange(2, 60)
        _arrives(motion, (frames + 12).tolist(), _root(run.motion)[frames][:, [0, 2]])

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "must add a frame"),
            ({"before": -1}, "before must be"),
            ({"after": 1.5}, "after must be"),
            ({"insert": [(0, 5)]}, "from 1 to 59"),
            ({"insert": [(5, 0)]}, "1 frame or more"),
            ({"insert": [(5, 1), (5, 2)]}, "twice"),
        ],
    )
    def test_bad_lengths_are_named(self, people: dict[str, Run], options: dict[str, Any], said: str) -> None:
        with pytest.raises(EditError, match=said):
            editing.expand(people["sinmdm"], **options)


class TestJoin:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("keep_places", [False, True])
    def test_both_are_there(
        self, people: dict[str, Run], make_human: Callable[..., Clip], kind: str, keep_places: bool
    ) -> None:
        run = people[kind]
        assert isinstance(run.motion, Clip)
        second = make_human(40, seed=0).slice(10)
        edit = editing.join(run, run.motion, second, gap=8, keep_places=keep_places, width=0)
        motion = decoded(edit, features(run, edit)[0])
        assert isinstance(motion, Clip)
        for begin, clip in ((0, run.motion), (68, second)):
            expected = run.layout.decode(run.layout.encode(clip))
            assert isinstance(expected, Clip)
            turned = (motion.rotations()[begin : begin + len(clip)] - expected.rotations()).abs().max()
            assert float(turned) < 1e-6
        moved = _root(motion)[68:, [0, 2]] - _root(second)[:, [0, 2]]
        assert float((moved - moved[:1]).abs().max()) < 1e-4
        assert (float(moved[0].norm()) < 1e-4) == keep_places

    def test_a_gap_of_nothing_is_refused(self, people: dict[str, Run]) -> None:
        with pytest.raises(ValueError, match="gap"):
            editing.join(people["mixamo"], people["mixamo"].motion, people["mixamo"].motion, gap=0)


class TestKeyframes:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("keep_places", [False, True])
    def test_goes_through_the_poses(self, people: dict[str, Run], kind: str, keep_places: bool) -> None:
        run = people[kind]
        assert isinstance(run.motion, Clip)
        edit = editing.keyframes(run, 40, [(30, 12), (5, 50), (31, 13)], keep_places=keep_places)
        assert edit.given.all(1).nonzero()[0].tolist() == [5, 30, 31]
        motion = editing.apply(run, edit, seed=3)[0]
        assert isinstance(motion, Clip)
        turned = run.layout.decode(run.layout.encode(run.motion))
        assert isinstance(turned, Clip)
        for at, of in ((5, 50), (30, 12), (31, 13)):
            difference = motion.rotations()[at] - turned.rotations()[of]
            assert float(difference.abs().max()) < 1e-6
        if keep_places:
            _arrives(motion, [5, 30, 31], _root(run.motion)[[50, 12, 13]][:, [0, 2]])

    @pytest.mark.parametrize(
        ("frames", "poses", "said"),
        [
            (10, [], "at least one pose"),
            (10, [(10, 0)], "from 0 to 9 of the result, got 10"),
            (10, [(0, 60)], "from 0 to 59 of the reference, got 60"),
            (10, [(1, 2), (1, 3)], "twice"),
            (0, [(0, 0)], "frames"),
            (1, [(0, 0)], None),
        ],
    )
    def test_bad_poses_are_named(self, people: dict[str, Run], frames: int, poses: Any, said: str | None) -> None:
        if said is None:  # its speed is still to be made
            assert len(editing.keyframes(people["sinmdm"], frames, poses)) == 1
            return
        with pytest.raises(ValueError, match=said):
            editing.keyframes(people["sinmdm"], frames, poses)


class TestCompose:
    def test_is_the_published_mask_on_the_published_layout(self, people: dict[str, Run]) -> None:
        run = people["mixamo"]
        upper = editing.compose(run, generate=["upper-body"]).mask
        lower = editing.compose(run, generate=["lower-body"]).mask
        known = [*range(66), *range(144, 174)]
        assert upper[:, known].eq(1).all()
        assert upper[:, 66:144].eq(0).all()
        assert torch.equal(lower, 1 - upper)

    def test_is_so_with_quaternions_too(self, make_run: Callable[..., Run], make_human: Callable[..., Clip]) -> None:
        mask = editing.compose(make_run(make_human(), "mixamo", "quat"), generate=["upper-body"]).mask
        assert mask.eq(0).all(0).nonzero().flatten().tolist() == list(range(44, 96))

    @pytest.mark.parametrize("kind", KINDS)
    def test_kept_joints_stay_to_the_bit(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        known = run.layout.encode(run.motion)
        edit = editing.compose(run, keep=["=Hips", "LeftUpLeg", "RightUpLeg"])
        x = features(run, edit)[0]
        names = run.layout.hierarchy[0]
        for joint, own in enumerate(run.layout.joint_features):
            low = joint == 0 or "Leg" in names[joint] or "Foot" in names[joint] or "Toe" in names[joint]
            assert torch.equal(x[:, own], known[:, own]) == (low or len(own) == 0)
            assert edit.given[:, joint].all() == low

    @pytest.mark.parametrize("generate", [["Spne"], ["upper-bdy"]])
    def test_unknown_joints_are_named(self, people: dict[str, Run], generate: list[str]) -> None:
        with pytest.raises(ValueError, match=generate[0]):
            editing.compose(people["sinmdm"], generate=generate)

    def test_something_is_left_to_generate(self, people: dict[str, Run]) -> None:
        with pytest.raises(EditError, match="leave something to generate"):
            editing.compose(people["sinmdm"], keep=["Hips"])
        with pytest.raises(EditError, match="either generate or keep"):
            editing.compose(people["sinmdm"])

    def test_an_array_has_no_joints(self, array: Run) -> None:
        with pytest.raises(EditError, match="trained on an array"):
            editing.compose(array, generate=["Hips"])


class TestFollow:
    @pytest.mark.parametrize("kind", KINDS)
    def test_goes_through_the_points(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        points = [(3, 1.0, -2.0), (20, 3.0, 0.0), (49, 0.0, 0.5)]
        for motion in editing.apply(run, editing.follow(run, points, 60), 2):
            assert isinstance(motion, Clip)
            assert len(motion) == 60
            _arrives(motion, [3, 20, 49], torch.tensor([[1.0, -2.0], [3.0, 0.0], [0.0, 0.5]], dtype=torch.float64))

    @pytest.mark.parametrize("kind", KINDS)
    def test_goes_there_smoothly(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        points = [(0, 0.0, 0.0), (30, 3.0, 0.0), (60, 6.0, 0.0), (90, 6.0, 3.0)]
        motion = editing.apply(run, editing.follow(run, points))[0]
        assert isinstance(motion, Clip)
        steps = _root(motion)[:, [0, 2]].diff(dim=0)
        assert torch.allclose(steps[:28], torch.tensor([0.1, 0.0], dtype=torch.float64), atol=1e-4)
        assert float(steps.norm(dim=-1).max()) < 0.16
        assert float(steps.diff(dim=0).norm(dim=-1).max()) < 0.03

    @pytest.mark.parametrize(("fps", "points"), [(15, 60), (24, 75), (30, 60), (45, 40), (60, 30)])
    def test_a_way_is_taken_at_the_runs_rate(self, people: dict[str, Run], fps: float, points: int) -> None:
        run = people["sinmdm"]
        assert isinstance(run.motion, Clip)
        frames = round(points * fps / 30)
        values = np.zeros((frames, run.motion.skeleton.channel_count))
        values[:, 0] = np.arange(frames) / fps  # a unit a second
        way = np.array(editing.way_of(run, Clip(run.motion.skeleton, values, 1 / fps)))
        assert abs(len(way) - points) <= 1
        assert np.allclose(way[:, 1], way[:, 0] / 30)

    def test_goes_the_way_of_another_motion_in_its_units(self, make_run: Any, make_human: Any) -> None:
        run = make_run(make_human(centimetres=True), "mixamo")
        other = make_human(30, seed=5, centimetres=True)
        motion = editing.apply(run, editing.follow(run, editing.way_of(run, other)))[0]
        assert isinstance(motion, Clip)
        assert len(motion) == 30
        _arrives(motion, list(range(30)), _root(other)[:, [0, 2]])

    @pytest.mark.parametrize(
        ("points", "frames", "said"),
        [
            ([(0, 0.0, 0.0)], None, "two or more"),
            ([(0, 0.0, 0.0), (0, 1.0, 0.0)], None, "rising"),
            ([(-1, 0.0, 0.0), (5, 1.0, 0.0)], None, "from 0 on"),
            ([(0, 0.0, 0.0), (5, float("nan"), 0.0)], None, "finite"),
            ([(0, 0.0, 0.0), (5, 1.0, 0.0)], 5, "more than the last point's frame 5, got 5"),
            ([(0, 0.0, 0.0), (5.4, 1.0, 0.0)], None, "whole frames"),
            ("x", None, "rows"),
        ],
    )
    def test_bad_points_are_named(self, people: dict[str, Run], points: Any, frames: Any, said: str) -> None:
        with pytest.raises(EditError, match=said):
            editing.follow(people["sinmdm"], points, frames)

    def test_an_array_has_no_root(self, array: Run) -> None:
        with pytest.raises(EditError, match="root"):
            editing.follow(array, [(0, 0.0, 0.0), (5, 1.0, 0.0)])


class TestLoop:
    @pytest.mark.parametrize("kind", ["sinmdm", "mixamo"])
    def test_comes_back(self, people: dict[str, Run], kind: str) -> None:
        run = people[kind]
        edit = editing.loop(run, 25)
        x = features(run, edit)[0]
        (path,) = edit.layout.paths
        total = path.steps(x.double()).sum(0)
        assert float(total.abs().max()) <= 4 * EPS * 25
        free = path.steps(features(run, editing.loop(run, 25, travel=True))[0].double()).sum(0)
        assert float(free.abs().max()) > 1e-3

    def test_begins_anywhere(self, people: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
        # A loop has no first frame: noise that is turned round gives the same loop, turned round.
        from sinmdm.diffusion import sample
        from sinmdm.diffusion.circular import Circular

        run = people["sinmdm"]
        shape = (1, run.layout.size, 21)
        drawn = torch.randn(9, *shape, generator=torch.Generator().manual_seed(0))

        def noise(shift: int) -> Callable[[int], Tensor]:
            return lambda step: drawn[min(step, 8)].roll(shift, -1)

        one, other = (sample(Circular(run.network), shape, run.schedule, noise=noise(s)) for s in (0, 4))
        assert torch.equal(one.roll(4, -1), other)
        assert not torch.equal(one, sample(run.network, shape, run.schedule, noise=noise(0)))


class TestHarmonise:
    def test_the_reference_decides_how_long_and_where(self, people: dict[str, Run], make_human: Any) -> None:
        run = people["sinmdm"]
        reference = make_human(33, seed=2)
        reference = Clip(run.motion.skeleton, reference.values, reference.frame_time)
        motion = editing.apply(run, editing.harmonise(run, reference, factor=4))[0]
        assert isinstance(motion, Clip)
        assert len(motion) == 33
        assert torch.allclose(_root(motion)[0, [0, 2]], _root(reference)[0, [0, 2]])

    @pytest.mark.parametrize(
        ("options", "said"),
        [({"factor": 0}, "factor"), ({"factor": 61}, "at most the reference's 60 frames"), ({"until": 1.5}, "until")],
    )
    def test_bad_options_are_named(self, people: dict[str, Run], options: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            editing.harmonise(people["sinmdm"], people["sinmdm"].motion, **options)


class TestReference:
    def test_of_another_skeleton_is_refused(self, people: dict[str, Run], walking: Run) -> None:
        with pytest.raises(EditError, match=r"reference does not fit the run: .* another skeleton"):
            editing.in_between(people["sinmdm"], generate=[(5, 10)], reference=walking.motion)
        with pytest.raises(EditError, match="second does not fit the run"):
            editing.join(people["sinmdm"], people["sinmdm"].motion, walking.motion)

    def test_of_other_bones_is_made_the_runs(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        clip = run.motion
        assert isinstance(clip, Clip)
        rig = clip.skeleton
        longer = Skeleton(rig.names, rig.parents, 2 * rig.offsets, rig.channels, rig.end_sites)
        values = clip.values.copy()
        values[:, :3] *= 2
        edit = editing.in_between(run, generate=[(20, 30)], reference=Clip(longer, values, clip.frame_time))
        same = editing.in_between(run, generate=[(20, 30)])
        assert torch.allclose(edit.known, same.known, atol=1e-5)
        other = Skeleton((*rig.names[:-1], "Tail"), rig.parents, rig.offsets, rig.channels, rig.end_sites)
        with pytest.raises(EditError, match="another skeleton"):
            editing.in_between(run, generate=[(20, 30)], reference=Clip(other, clip.values, clip.frame_time))

    def test_is_taken_at_the_runs_rate(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        assert isinstance(run.motion, Clip)
        fast = Clip(run.motion.skeleton, np.repeat(run.motion.values, 2, 0), run.motion.frame_time / 2)
        edit = editing.in_between(run, generate=[(20, 30)], reference=fast)
        assert torch.equal(edit.known, editing.in_between(run, generate=[(20, 30)]).known)

    def test_an_array_is_edited_in_time(self, array: Run) -> None:
        edit = editing.in_between(array, generate=[(20, 30)], width=0)
        x = features(array, edit)[0]
        assert torch.equal(x[:20], array.motion[:20])
        assert torch.equal(x[30:], array.motion[30:])


class TestApply:
    @pytest.mark.parametrize("harmony", [False, True])
    def test_sample_k_does_not_depend_on_how_many(self, people: dict[str, Run], harmony: bool) -> None:
        run = people["sinmdm"]
        edit = editing.harmonise(run, run.motion, factor=8) if harmony else editing.in_between(run, generate=[(20, 30)])
        whole = features(run, edit, 5, seed=4)
        for one, other in zip(whole, features(run, edit, 5, seed=4, batch_size=2), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-5 * float(one.abs().max()))
        assert not torch.equal(whole[0], whole[1])

    def test_steps_are_counted_over_all_batches(self, people: dict[str, Run]) -> None:
        run, said = people["sinmdm"], []
        edit = editing.in_between(run, generate=[(20, 30)])
        features(run, edit, 17, steps=2, on_step=lambda done, total: said.append((done, total)))
        assert said == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_an_edit_of_another_run_is_refused(self, people: dict[str, Run]) -> None:
        with pytest.raises(EditError, match="must be one of this run"):
            editing.apply(people["mixamo"], editing.loop(people["sinmdm"], 9))

    @pytest.mark.parametrize("spans", [[(1.5, 9)], (10, 20), [(True, 9)], "1:9", [(1, 2, 3)]])
    def test_spans_are_pairs_of_whole_numbers(self, people: dict[str, Run], spans: Any) -> None:
        for name in ("given", "generate"):
            with pytest.raises(ValueError, match=f"{name} must be pairs of whole numbers"):
                editing.in_between(people["sinmdm"], **{name: spans})
        with pytest.raises(ValueError, match="insert must be pairs"):
            editing.expand(people["sinmdm"], insert=spans)
        with pytest.raises(ValueError, match="poses must be pairs"):
            editing.keyframes(people["sinmdm"], 30, spans)

    def test_one_name_is_no_list_of_names(self, people: dict[str, Run]) -> None:
        with pytest.raises(EditError, match="joints must be a list of names, got 'Hips'"):
            editing.compose(people["sinmdm"], generate="Hips")

    def test_too_much_for_the_memory_is_named(self, people: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
        from sinmdm.editing import edit as module

        def full(*_: object, **__: object) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate much")

        monkeypatch.setattr(module, "sample", full)
        with pytest.raises(ValueError, match="frames and batch_size must fit in memory, got 9 and 3"):
            editing.apply(people["sinmdm"], editing.loop(people["sinmdm"], 9), 3)

    def test_zero_motions_are_refused(self, people: dict[str, Run]) -> None:
        with pytest.raises(ValueError, match="n must be"):
            editing.apply(people["sinmdm"], editing.loop(people["sinmdm"], 9), 0)

    def test_an_edit_is_checked(self, people: dict[str, Run]) -> None:
        layout = people["sinmdm"].layout
        with pytest.raises(EditError, match="must be alike"):
            Edit(layout, torch.zeros(5, layout.size), torch.zeros(6, layout.size))
        with pytest.raises(EditError, match="everything is given"):
            Edit(layout, torch.zeros(5, layout.size), torch.ones(5, layout.size))


class TestHumanML:
    """Motions whose way is held in the frame of a heading that is itself held by steps."""

    @pytest.fixture
    def humanml(self, make_run: Callable[..., Run]) -> Run:
        return make_run(made_motion()[0], "humanml")

    def test_given_parts_are_where_they_were(self, humanml: Run) -> None:
        edit = editing.in_between(humanml, generate=[(20, 30), (45, 50)], width=2)
        placed = humanml.layout.placer()(humanml.motion)
        for x in features(humanml, edit, 2):
            assert kept_error(edit, x) == 0
            joints = humanml.layout.placer()(x)
            kept = edit.given_frames.nonzero().flatten()[:-1]
            size = float(placed.abs().max())
            assert float((joints - placed)[kept].abs().max()) <= 60 * 8 * EPS * size
            assert float((joints - placed)[20:30].abs().max()) > 0.01

    def test_a_motion_may_begin_with_what_is_generated(self, humanml: Run) -> None:
        placed = humanml.layout.placer()(humanml.motion)
        for edit in (
            editing.in_between(humanml, generate=[(0, 15)], width=0),
            editing.keyframes(humanml, 60, [(15, 15), (40, 40)], keep_places=True),
        ):
            joints = humanml.layout.placer()(features(humanml, edit)[0])
            at = edit.given_frames.nonzero().flatten()
            assert 0 < int(at[0]) <= 15
            assert float((joints - placed)[at, 0][:, [0, 2]].abs().max()) < 1e-4
        longer = editing.expand(humanml, before=10, width=0)
        joints = humanml.layout.placer()(features(humanml, longer)[0])[10:]
        span = joints[:, 0] - joints[:1, 0], placed[:, 0] - placed[:1, 0]
        assert torch.allclose(span[0].norm(dim=-1), span[1].norm(dim=-1), atol=1e-4)  # the same way, elsewhere

    def test_points_begin_where_motions_do(self, humanml: Run) -> None:
        with pytest.raises(EditError, match="must begin at x = 0, z = 0"):
            editing.follow(humanml, [(0, 5.0, 5.0), (20, 7.0, 6.0)])
        joints = humanml.layout.placer()(features(humanml, editing.follow(humanml, [(9, 1.0, 2.0), (20, 2.0, 3.0)]))[0])
        gone = joints[[9, 20]][:, 0, [0, 2]]
        assert float((gone - torch.tensor([[1.0, 2.0], [2.0, 3.0]])).abs().max()) < 1e-4

    def test_goes_through_points(self, humanml: Run) -> None:
        edit = editing.follow(humanml, [(0, 0.0, 0.0), (20, 2.0, 1.0), (39, 0.0, 3.0)])
        joints = humanml.layout.placer()(features(humanml, edit)[0])
        gone = joints[[0, 20, 39]][:, 0, [0, 2]]
        assert float((gone - torch.tensor([[0.0, 0.0], [2.0, 1.0], [0.0, 3.0]])).abs().max()) < 1e-4

    def test_a_loop_comes_back(self, humanml: Run) -> None:
        edit = editing.loop(humanml, 30)
        x = features(humanml, edit)[0]
        twice = humanml.layout.placer()(x.repeat(2, 1))
        assert float((twice[30:] - twice[:30]).abs().max()) < 1e-3

    def test_halves_are_the_published_masks(self, humanml: Run) -> None:
        known = editing.compose(humanml, generate=["upper-body"]).mask[0].nonzero().flatten().tolist()
        runs = [(0, 9), (13, 18), (22, 27), (31, 36), (67, 78), (85, 96), (103, 114), (121, 132), (193, 201)]
        runs += [(205, 210), (214, 219), (223, 228), (259, 262)]
        assert known == [feature for begin, end in runs for feature in range(begin, end + 1)]
