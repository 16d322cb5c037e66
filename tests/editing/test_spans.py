"""Which frames are given, and the transitions of their ends."""

from __future__ import annotations

import pytest
import torch

from sinmdm.editing.spans import check_spans, others, span_mask


def test_spans_come_in_order_and_leave_the_others() -> None:
    ordered = check_spans("given", [(7, 9), (0, 3)], 12)
    assert ordered == [(0, 3), (7, 9)]
    assert others(ordered, 12) == [(3, 7), (9, 12)]
    assert others([(0, 12)], 12) == []
    assert others([(2, 12)], 12) == [(0, 2)]


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([], "at least one span"),
        ([(3, 3)], "3:3"),
        ([(5, 3)], "5:3"),
        ([(-1, 3)], "-1:3"),
        ([(3, 13)], "within the 12 frames, begin:end, got 3:13"),
        ([(0, 5), (4, 8)], "overlap, but 0:5 and 4:8"),
    ],
)
def test_bad_spans_are_named(spans: list[tuple[int, int]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_spans("given", spans, 12)


def test_a_transition_falls_evenly_towards_what_is_generated() -> None:
    assert span_mask(8, True, False, 3).tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert span_mask(8, False, True, 3).tolist() == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert span_mask(7, True, True, 3).tolist() == [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert torch.equal(span_mask(5, False, False, 4), torch.ones(5))
    assert torch.equal(span_mask(5, True, True, 0), torch.ones(5))


def test_the_default_width_leaves_a_frame_as_it_is() -> None:
    assert (span_mask(100, True, True, None) < 1).sum() == 20
    for span in range(1, 25):
        for before, after in ((True, True), (True, False), (False, True)):
            assert (span_mask(span, before, after, None) == 1).any()


def test_a_width_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of each span as it is, at most 3 for 8 frames, got 4"):
        span_mask(8, True, True, 4)
    with pytest.raises(ValueError, match="width must be a whole number"):
        span_mask(8, True, True, -1)
