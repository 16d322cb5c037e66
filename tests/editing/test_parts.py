"""The parts under the edits: meeting, settling, slow content, published masks, reports."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sinmdm import editing
from sinmdm.editing import EditError, compat
from sinmdm.editing.edit import decoded, features
from sinmdm.editing.harmony import HARMONY_STEP, Harmony, low_pass
from sinmdm.editing.meeting import Meeting, Meets
from sinmdm.editing.report import arrival_error, kept_error, report, roughness
from sinmdm.editing.settling import SETTLING, Settling
from sinmdm.kernels import Schedule, philox_normal
from sinmdm.motion import Clip, Normalizer
from sinmdm.motion.paths import Path, path_of
from sinmdm.run import Run

IDENTITY = Normalizer.identity(3)


def _turning() -> Path:
    """A heading held by its steps in feature 0, which whole turns do not change."""

    def change(x: Tensor, extra: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[..., :1] = extra
        return out

    return Path(lambda x: x[..., :1], change, torch.zeros(1), torch.tensor([0]), period=2 * math.pi)


class TestMeeting:
    def _met(self, meets: Meets, mask: Tensor, known: Tensor, predicted: Tensor, **options: Any) -> Tensor:
        path = path_of(slice(0, 2), (0.0, 0.0))
        meeting = Meeting([path], [meets], known, mask, IDENTITY, **options)
        corrected = meeting(predicted)
        assert torch.equal(corrected[..., 2], predicted[..., 2])
        return known * mask + corrected * (1 - mask)

    def test_steps_add_up_to_the_way_between_places(self) -> None:
        generator = torch.Generator().manual_seed(0)
        known, predicted = (torch.randn(*shape, 3, generator=generator) for shape in ((20,), (2, 20)))
        mask = torch.rand(20, 3, generator=generator) * 0.9
        meets = Meets(torch.tensor([2, 9, 10, 17]), torch.randn(4, 2, generator=generator))
        way = self._met(meets, mask, known, predicted)[..., :2].cumsum(1)
        gone = way[:, meets.frames] - way[:, meets.frames[:1]]
        assert torch.allclose(gone, (meets.values - meets.values[:1]).expand_as(gone), rtol=0, atol=1e-5)

    def test_frames_outside_are_left_alone(self) -> None:
        predicted = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0))
        zero = torch.zeros(20, 3)
        met = self._met(Meets(torch.tensor([5, 9]), torch.ones(2, 2)), zero, zero, predicted)
        assert torch.equal(met[:, :6], predicted[:, :6])
        assert torch.equal(met[:, 10:], predicted[:, 10:])

    def test_a_circle_closes(self) -> None:
        predicted = torch.randn(3, 20, 3, generator=torch.Generator().manual_seed(0))
        zero = torch.zeros(20, 3)
        met = self._met(Meets(torch.tensor([0]), torch.zeros(1, 2)), zero, zero, predicted, circular=True)
        assert float(met[..., :2].sum(1).abs().max()) < 1e-5

    def test_the_shorter_way_round_is_taken(self) -> None:
        zero = torch.zeros(10, 3)
        meets = Meets(torch.tensor([0, 9]), torch.tensor([[0.0], [2 * math.pi + 0.5]]))
        met = Meeting([_turning()], [meets], zero, zero, IDENTITY)(torch.zeros(1, 10, 3))
        assert float(met[0, 1:, 0].sum()) == pytest.approx(0.5, abs=1e-5)

    def test_what_is_given_and_leads_elsewhere_is_refused(self) -> None:
        path = path_of(slice(0, 2), (0.0, 0.0))
        known, mask = torch.ones(10, 3), torch.zeros(10, 3)
        mask[2:7] = 1
        Meeting([path], [Meets(torch.tensor([2, 6]), torch.tensor([[0.0, 0.0], [4.0, 4.0]]))], known, mask, IDENTITY)
        with pytest.raises(ValueError, match="frames 3 to 6 are given and lead elsewhere"):
            Meeting([path], [Meets(torch.tensor([2, 6]), torch.zeros(2, 2))], known, mask, IDENTITY)

    def test_frames_must_rise(self) -> None:
        with pytest.raises(ValueError, match="rise"):
            Meets(torch.tensor([3, 3]), torch.zeros(2, 2))
        with pytest.raises(ValueError, match="values"):
            Meets(torch.tensor([3, 4]), torch.zeros(3, 2))


class TestSettling:
    def test_generated_frames_go_on_from_the_given_ones(self) -> None:
        frames = 3 * SETTLING
        known, mask = torch.zeros(frames, 3), torch.zeros(frames, 3)
        given = torch.zeros(frames, dtype=torch.bool)
        given[:5] = True
        mask[given] = 1
        settled = Settling(known, mask, given)(torch.ones(1, frames, 3))[0, :, 0]
        assert float(settled[5]) == pytest.approx(0, abs=0.02)  # beside a given 0
        assert torch.equal(settled[5 + SETTLING :], torch.ones(frames - 5 - SETTLING))
        assert bool((settled[5:].diff() >= 0).all())
        assert torch.equal(settled[:5], torch.ones(5))

    def test_a_short_gap_fits_both_sides(self) -> None:
        known, mask = torch.zeros(13, 3), torch.ones(13, 3)
        known[8:] = 1
        mask[5:8] = 0
        given = mask.all(1)
        predicted = torch.full((1, 13, 3), 0.5)
        gap = Settling(known, mask, given)(predicted)[0, 4:9, 0]
        # The weights of one side 0, a share of the way over: 1 - 3 s^2 + 2 s^3 at s = 1/4, 1/2, 3/4.
        away = torch.tensor([(1 - s) ** 2 * (1 + 2 * s) for s in (0.25, 0.5, 0.75)])
        assert torch.allclose(gap[1:4], 0.5 - 0.5 * away + 0.5 * away.flip(0))

    def test_what_is_not_given_of_a_frame_is_left_alone(self) -> None:
        mask = torch.zeros(6, 3)
        mask[2, 1:] = 1
        given = torch.tensor([False, False, True, False, False, False])
        settled = Settling(torch.zeros(6, 3), mask, given)(torch.ones(1, 6, 3))
        assert torch.equal(settled[..., 0], torch.ones(1, 6))
        assert float(settled[0, 3, 1]) < 1

    def test_edits_have_smaller_jumps_with_it(self, people: dict[str, Run]) -> None:
        from dataclasses import replace

        run = people["sinmdm"]
        edit = editing.keyframes(run, 60, [(20, 5), (40, 30)])

        def jumps(each: editing.Edit) -> Tensor:
            """The largest over the samples, from each frame to the next."""
            x = run.normalizer.apply(torch.stack(features(run, each, 4)))
            return x[..., 2:].diff(dim=1).norm(dim=-1).amax(0)

        settled, hard = jumps(edit), jumps(replace(edit, settles=False))
        usual = settled[:18].max()  # between frames that are all generated
        assert float(settled[[19, 20, 39, 40]].max()) <= float(usual)
        assert float(settled[[19, 20, 39, 40]].max()) < float(hard[[19, 20, 39, 40]].max())


class TestHarmony:
    def test_low_pass_is_the_published_one_at_two(self) -> None:
        x = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
        down = (x[:, 0::2] + x[:, 1::2]) / 2
        held = torch.cat([down[:, :1], down, down[:, -1:]], 1)
        expected = torch.empty_like(x)
        expected[:, 0::2] = held[:, :-2] / 4 + held[:, 1:-1] * 3 / 4
        expected[:, 1::2] = held[:, 1:-1] * 3 / 4 + held[:, 2:] / 4
        assert torch.allclose(low_pass(x, 2), expected, atol=1e-6)

    @pytest.mark.parametrize("factor", [1, 2, 3, 5, 7])
    def test_low_pass_keeps_what_does_not_change(self, factor: int) -> None:
        assert torch.allclose(low_pass(torch.full((1, 7, 2), 3.0), factor), torch.tensor(3.0))
        assert low_pass(torch.randn(1, 7, 2), factor).shape == (1, 7, 2)

    def test_low_pass_at_one_is_nothing(self) -> None:
        x = torch.randn(1, 7, 2)
        assert torch.allclose(low_pass(x, 1), x)

    @pytest.mark.parametrize("as_published", [False, True])
    def test_the_reference_is_noised_as_the_state_is(self, as_published: bool) -> None:
        schedule, reference = Schedule.cosine(50), torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        harmony = Harmony(reference, factor=3, until=0.1, compat=as_published)
        guide = harmony.guide(schedule, IDENTITY, seed=7, first_sample=4, count=2)
        state = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(1))
        for timestep, began in ((48, 49), (30, 40)):
            before = state.clone()
            guide(state, timestep, began)
            level = began if as_published else timestep
            alpha_bar = float(schedule.alpha_bars[level])
            samples = torch.tensor([4, 5])
            drawn = philox_normal((12, 3), seed=7, step=HARMONY_STEP | level, sample=samples)
            noised = math.sqrt(alpha_bar) * reference + math.sqrt(1 - alpha_bar) * drawn
            expected = before - low_pass(before, 3) + low_pass(noised, 3)
            assert torch.allclose(state, expected, atol=1e-5)
        before = state.clone()
        if as_published:  # from 20 on, by where the step began
            guide(state, 18, 20)
            assert torch.equal(state, before)
            guide(state, 18, 21)
        else:  # from 0.1 of 50 on
            guide(state, 5, 8)
            guide(state, -1, 0)
            assert torch.equal(state, before)
            guide(state, 6, 8)
        assert not torch.equal(state, before)

    def test_with_all_content_the_result_is_the_reference(self, people: dict[str, Run]) -> None:
        # Whatever the network: the state at timestep 0 is then the reference with next to no noise.
        run = people["sinmdm"]
        reference = run.layout.encode(run.motion)
        noisy = []
        harmony = Harmony(reference, factor=1, until=0.0)
        guide = harmony.guide(run.schedule, run.normalizer, seed=0, first_sample=0, count=1)
        from sinmdm.diffusion import sample

        def watched(x: Tensor, timestep: int, began: int) -> None:
            guide(x, timestep, began)
            if timestep == 1:
                noisy.append(x.clone())

        sample(run.network, (1, run.layout.size, 60), run.schedule, seed=0, guide=watched)
        level = float(run.schedule.alpha_bars[1])
        left = noisy[0][0] - math.sqrt(level) * run.normalizer.apply(reference)
        assert float(left.std()) == pytest.approx(math.sqrt(1 - level), rel=0.05)


class TestPublishedMasks:
    def test_in_betweening(self) -> None:
        mask = compat.in_betweening_mask(100)
        assert mask[:16].eq(1).all()
        assert torch.allclose(mask[16:25], torch.arange(9, 0, -1) / 10)
        assert mask[25:76].eq(0).all()  # frame 75 is the first given one, and generated
        assert torch.allclose(mask[76:85], torch.arange(1, 10) / 10)
        assert mask[85:].eq(1).all()

    def test_a_left_ramp_that_is_cut_short_cuts_the_right_one(self) -> None:
        mask = compat.in_betweening_mask(40, 0.1, 0.75)
        assert torch.allclose(mask[:5], torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0]))
        assert torch.allclose(mask[30:35], torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]))
        assert mask[35:].eq(1).all()

    def test_expansion(self) -> None:
        mask = compat.expansion_mask(20, 3, 4)
        assert mask[:3].eq(0).all()
        assert torch.allclose(mask[3:9], torch.arange(6) / 6)
        assert mask[9:18].eq(1).all()
        assert torch.allclose(mask[18:23], torch.arange(5, 0, -1) / 6)
        assert mask[23:].eq(0).all()
        assert len(compat.expansion_mask(20, 3, 0)) == 23  # on which the published code stops

    def test_edits(self, people: dict[str, Run]) -> None:
        run = people["mixamo"]
        edit = compat.in_between(run)
        assert torch.equal(edit.mask[:, 5], compat.in_betweening_mask(60))
        assert edit.meets == ()
        longer = compat.expand(run)
        assert len(longer) == 60 + 9 + 9
        assert torch.equal(longer.known[9:69], edit.known)
        assert torch.equal(features(run, longer)[0][15:64], edit.known[6:55])

    @pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1)])
    def test_bad_shares(self, shares: tuple[float, float]) -> None:
        with pytest.raises(EditError, match="prefix_end and suffix_start"):
            compat.in_betweening_mask(100, *shares)

    def test_nothing_to_add(self, people: dict[str, Run]) -> None:
        with pytest.raises(EditError, match="must add a frame"):
            compat.expand(people["mixamo"], prefix_length=0, suffix_length=0)
        with pytest.raises(EditError, match="prefix_length"):
            compat.expand(people["mixamo"], prefix_length=-1)


class TestReport:
    def test_errors_are_seen(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        edit = editing.in_between(run, generate=[(20, 30)], width=0)
        x = features(run, edit)[0]
        assert kept_error(edit, x) == 0
        assert arrival_error(edit, x) < 1e-5
        x[3, 4] += 0.25
        x[25, 0] += 0.5
        assert kept_error(edit, x) == 0.25
        assert arrival_error(edit, x) == pytest.approx(0.5, abs=1e-4)

    def test_a_loop_that_does_not_close_is_seen(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        edit = editing.loop(run, 30)
        x = features(run, edit)[0]
        assert arrival_error(edit, x) < 1e-5
        x[:, 0] += 1
        assert arrival_error(edit, x) == pytest.approx(30, abs=1e-3)

    def test_what_is_not_there_is_none(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        edit = editing.harmonise(run, run.motion)
        x = features(run, edit)[0]
        assert (kept_error(edit, x), arrival_error(edit, x)) == (None, None)
        assert set(report(edit, x, decoded(edit, x), run.motion)) == {"kept_error", "arrival_error"}

    @pytest.mark.parametrize("away", [-4, 0, 4])
    def test_a_jump_is_rough_and_the_clip_is_not(self, people: dict[str, Run], away: int) -> None:
        clip = people["sinmdm"].motion
        assert isinstance(clip, Clip)
        values = clip.values.copy()
        values[30 + away :, 1] += 1
        smooth, rough = roughness(clip, clip), roughness(Clip(clip.skeleton, values, clip.frame_time), clip)
        assert smooth is not None
        assert rough is not None
        assert len(rough) == len(clip)
        assert float(smooth[30]) < 1.5
        assert float(rough[30]) > 10 * float(smooth[30])
        assert torch.allclose(rough[:20], smooth[:20])

    def test_a_clip_that_stands_still_has_no_measure(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        assert isinstance(run.motion, Clip)
        still = Clip(run.motion.skeleton, 0 * run.motion.values, run.motion.frame_time)
        assert roughness(run.motion, still) is None
        edit = editing.in_between(run, generate=[(20, 30)])
        x = features(run, edit)[0]
        seams = report(edit, x, decoded(edit, x), still)["seams"]
        assert seams == [{"frame": 20, "roughness": None}, {"frame": 30, "roughness": None}]

    def test_a_loop_is_judged_where_it_comes_round(self, people: dict[str, Run]) -> None:
        run = people["sinmdm"]
        edit = editing.loop(run, 30)
        x = features(run, edit)[0]
        (seam,) = report(edit, x, decoded(edit, x), run.motion)["seams"]
        assert seam["frame"] == 30
        (other,) = report(edit, x.roll(11, 0), decoded(edit, x.roll(11, 0)), run.motion)["seams"]
        once = decoded(edit, x)
        assert isinstance(once, Clip)
        assert isinstance(run.motion, Clip)
        inside = roughness(once, run.motion)
        assert inside is not None
        assert other["roughness"] == pytest.approx(float(inside[19]), rel=1e-3)
