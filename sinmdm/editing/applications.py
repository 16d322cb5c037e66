"""The edits of Raab et al. 2024 and some more: each makes an `Edit` of a run, for `apply`.

`reference` is the motion that is edited: a clip of the run's joints (bones of other lengths are made the run's), by
default the one that the run was trained on. It is taken at the run's frame rate. Frames are those of the run's rate,
from 0; a span is (first frame, frame after the last). `width` is how many frames of a given span, towards what is
generated, are a transition: default 10, less where the span is short.

Raises: every function raises ValueError naming the argument that is not as it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..checks import check_at_least
from ..motion import Clip, Layout, Motion
from ..motion.features import ClipLayout
from ..run import Run
from .edit import Edit, EditError
from .harmony import Harmony
from .joints import select_joints
from .meeting import Meets
from .spans import Span, check_pairs, check_spans, others, span_mask


def in_between(
    run: Run,
    *,
    given: Sequence[Span] | None = None,
    generate: Sequence[Span] | None = None,
    reference: Motion | None = None,
    width: int | None = None,
    joints: Sequence[str] | None = None,
) -> Edit:
    """Parts of the reference stay, what lies between them is made anew and leads from each to the next.

    given, generate: the spans that stay, or those that do not: one of the two.
    joints: generate these only (as `compose` takes them), and keep all others throughout; default all joints.
    """
    known, source = encoded(run, reference)
    if (given is None) == (generate is None):
        raise EditError("give either given or generate, the spans that stay or those that are made anew")
    name, spans = ("given", given) if generate is None else ("generate", generate)
    ordered = check_spans(name, spans or (), len(known))
    kept = others(ordered, len(known)) if generate is not None else ordered
    if others(kept, len(known)) == []:
        raise EditError(f"{name} must leave something to generate, but all {len(known)} frames are given")
    if not kept:
        raise EditError(f"{name} must leave something of the reference, but no frame is given: use sample instead")
    pieces = [_Piece(known[begin:end], begin, source, begin, True) for begin, end in kept]
    edit = _timeline(run, len(known), pieces, width)
    return edit if joints is None else _only(run, edit, known, joints)


def expand(
    run: Run,
    *,
    before: int = 0,
    after: int = 0,
    insert: Sequence[tuple[int, int]] = (),
    reference: Motion | None = None,
    width: int | None = None,
) -> Edit:
    """The reference, longer: so many generated frames before and after it, and (frame, frames) inserted in between.

    The first given part stays where it is on the ground; parts after an insertion go on from where that leads.
    """
    known, source = encoded(run, reference)
    for name, count in (("before", before), ("after", after)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise EditError(f"{name} must be a whole number of frames, 0 or more, got {count!r}")
    places = sorted(check_pairs("insert", insert))
    for at, count in places:
        if not 0 < at < len(known) or count < 1:
            raise EditError(f"insert must be at a frame from 1 to {len(known) - 1}, 1 frame or more, got {at}:{count}")
    if len({at for at, _ in places}) < len(places):
        raise EditError("insert must not name a frame twice")
    if not (before or after or places):
        raise EditError("before, after or insert must add a frame, but nothing is added")
    cuts = [0, *(at for at, _ in places), len(known)]
    pieces, at = [], before
    for index, (begin, end) in enumerate(pairwise(cuts)):
        # A motion that cannot be moved as a whole begins where its features do, and so with what comes before it.
        placed = index == 0 and (before == 0 or isinstance(run.layout, ClipLayout))
        pieces.append(_Piece(known[begin:end], at, source, begin, placed))
        at += end - begin + (places[index][1] if index < len(places) else 0)
    return _timeline(run, at + after, pieces, width)


def join(
    run: Run, first: Motion, second: Motion, *, gap: int = 30, keep_places: bool = False, width: int | None = None
) -> Edit:
    """`first`, `gap` generated frames, then `second`, which goes on from where these lead.

    keep_places: the second stays where it is on the ground, and the gap leads there.
    """
    check_at_least(1, gap=gap)
    one, source = encoded(run, first, "first")
    other, target = encoded(run, second, "second")
    pieces = [_Piece(one, 0, source, 0, True), _Piece(other, len(one) + gap, target, 0, keep_places)]
    return _timeline(run, len(one) + gap + len(other), pieces, width)


def keyframes(
    run: Run,
    frames: int,
    poses: Sequence[tuple[int, int]],
    *,
    reference: Motion | None = None,
    keep_places: bool = False,
) -> Edit:
    """A motion of `frames` frames through given poses: (frame of the result, frame of the reference) each.

    keep_places: the root is then also where it is in the reference.
    """
    known, source = encoded(run, reference)
    check_at_least(1, frames=frames)
    if not poses:
        raise EditError("poses must have at least one pose")
    poses = check_pairs("poses", poses)
    for at, frame in poses:
        if not 0 <= at < frames:
            raise EditError(f"poses must be at frames from 0 to {frames - 1} of the result, got {at}")
        if not 0 <= frame < len(known):
            raise EditError(f"poses must be of frames from 0 to {len(known) - 1} of the reference, got {frame}")
    if len({at for at, _ in poses}) < len(poses):
        raise EditError("poses must not name a frame of the result twice")
    pieces = [_Piece(known[frame : frame + 1], at, source, frame, keep_places) for at, frame in sorted(poses)]
    return _timeline(run, frames, pieces, 0)


def compose(
    run: Run,
    *,
    generate: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    reference: Motion | None = None,
) -> Edit:
    """Some joints of the reference stay as they are over all frames, the others are made anew.

    generate, keep: the joints that are made anew, or those that stay: one of the two. A name stands for the joint with
        all that hangs on it, with a '=' before it for the joint alone; "upper-body" and "lower-body" for the halves of
        a body. The root has its way over the ground, and a foot its contacts.
    """
    known, source = encoded(run, reference)
    if (generate is None) == (keep is None):
        raise EditError("give either generate or keep, the joints that are made anew or those that stay")
    free = _features_of(run.layout, generate or keep or ())
    mask = torch.zeros_like(known)
    mask[:, ~free if keep is None else free] = 1
    return Edit(run.layout.starting(source), known, mask)


def follow(run: Run, points: Sequence[tuple[int, float, float]] | Tensor, frames: int | None = None) -> Edit:
    """A motion whose root goes a given way: rows (frame, x, z) in the motion file's units, one a frame, or a few that a
    smooth curve is laid through.

    frames: length; default up to the last point. Before the first and after the last the way is the network's.
    """
    layout = run.layout
    if not layout.paths:
        raise EditError("points are of a root's way, and this run's features have no root")
    try:
        way = torch.as_tensor(points, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EditError(f"points must be rows (frame, x, z) of numbers, got {points!r}") from error
    if way.ndim != 2 or way.shape[1] != 3 or len(way) < 2 or not bool(way.isfinite().all()):
        raise EditError(f"points must be two or more finite rows (frame, x, z), got shape {tuple(way.shape)}")
    at, places = way[:, 0].long(), way[:, 1:]
    if bool((at.diff() <= 0).any()) or int(at[0]) < 0 or not torch.equal(at.double(), way[:, 0]):
        raise EditError(f"points must be at rising whole frames from 0 on, got {way[:, 0].tolist()}")
    frames = int(at[-1]) + 1 if frames is None else frames
    if not int(at[-1]) < frames:
        raise EditError(f"frames must be more than the last point's frame {int(at[-1])}, got {frames}")
    if not isinstance(layout, ClipLayout):  # cannot be moved as a whole
        if int(at[0]) == 0 and bool((places[0] != 0).any()):
            raise EditError(f"points of this layout must begin at x = 0, z = 0, where its motions do, got {places[0]}")
        if int(at[0]) > 0:
            at, places = torch.cat([at.new_zeros(1), at]), torch.cat([places.new_zeros(1, 2), places])
    known, mask = torch.zeros(frames, layout.size), torch.zeros(frames, layout.size)
    free = [Meets(at[:0], torch.zeros(0, len(path.begin))) for path in layout.paths[:-1]]
    every = torch.arange(int(at[0]), int(at[-1]) + 1)
    meets = (*free, Meets(every, _smooth(at, places) * layout.unit))
    return Edit(layout, known, mask, meets, place=(int(at[0]), (float(places[0, 0]), float(places[0, 1]))))


def _smooth(at: Tensor, places: Tensor) -> Tensor:
    """A curve through places (m, k) at rising frames (m,), a row a frame: cubic between points, and at each with the
    slope of the parabola through it and its neighbours. Along an evenly timed line the speed is even."""
    time = at.double()
    step, slope = time.diff()[:, None], places.diff(dim=0) / time.diff()[:, None]
    inner = (slope[:-1] * step[1:] + slope[1:] * step[:-1]) / (step[1:] + step[:-1])
    if len(at) > 2:
        ends = 2 * slope[[0, -1]] - inner[[0, -1]]
        tangents = torch.cat([ends[:1], inner, ends[1:]])
    else:
        tangents = slope.expand(2, -1)
    frame = torch.arange(int(at[0]), int(at[-1]) + 1)
    part = (torch.searchsorted(at, frame, right=True) - 1).clamp(0, len(at) - 2)
    h = step[part]
    u = (frame[:, None] - time[part, None]) / h
    one, other = places[part], places[part + 1]
    return (
        one * (1 + 2 * u) * (1 - u) ** 2 + other * u**2 * (3 - 2 * u)
        + h * u * (1 - u) * (tangents[part] * (1 - u) - tangents[part + 1] * u)
    )  # fmt: skip


def way_of(run: Run, motion: Motion) -> list[tuple[int, float, float]]:
    """The root's way in a motion of any skeleton, at the run's rate, as `follow` takes it: a point a frame."""
    if not isinstance(motion, Clip):
        raise EditError("a way is that of a clip with a root, not of an array")
    places = motion.translations()[:, 0].numpy()
    fps = motion.fps if run.fps is None else run.fps
    frames = np.arange(int((len(motion) - 1) * fps / motion.fps + 1e-6) + 1)
    x, z = (np.interp(frames * motion.fps / fps, np.arange(len(motion)), places[:, axis]) for axis in (0, 2))
    return list(zip(frames.tolist(), x.tolist(), z.tolist(), strict=True))


def harmonise(run: Run, reference: Motion, *, factor: int = 2, until: float = 0.02, compat: bool = False) -> Edit:
    """Style transfer: the reference's slow content in the way that the run's clip moves. Options: see `Harmony`."""
    known, source = encoded(run, reference)
    if compat and len(known) % 2:
        known = known[:-1]
    return Edit(
        run.layout.starting(source), known, torch.zeros_like(known), harmony=Harmony(known, factor, until, compat)
    )


def loop(run: Run, frames: int, *, travel: bool = False) -> Edit:
    """A motion whose last frame is followed by its first without a seam.

    travel: the root may end elsewhere than it began, each round a stretch further; otherwise its way is closed, too.
    """
    check_at_least(2, frames=frames)
    if travel and any(path.absolute for path in run.layout.paths):
        raise EditError(f"travel needs a way that is held by steps, and features of {run.layout.kind!r} hold places")
    empty = torch.zeros(frames, run.layout.size)
    meets: tuple[Meets, ...] = ()
    if not travel:
        meets = tuple(Meets(torch.tensor([0]), torch.zeros(1, len(path.begin))) for path in run.layout.paths)
    return Edit(run.layout, empty, empty.clone(), meets, circular=True)


@dataclass(frozen=True, eq=False)
class _Piece:
    """features (n, size) at frame `at` of the result, cut from frame `frame` on of `source`; `placed`: also where its
    root is there."""

    features: Tensor
    at: int
    source: Motion
    frame: int
    placed: bool


def encoded(run: Run, motion: Motion | None, name: str = "reference") -> tuple[Tensor, Motion]:
    """Features (frames, size) of a motion at the run's rate, and the motion. Raises EditError where it does not fit."""
    if motion is None:
        return run.layout.encode(run.motion), run.motion
    if isinstance(motion, Clip) and isinstance(run.motion, Clip):
        motion = _of_skeleton(run.motion, motion.thin(run.motion.fps))
    try:
        return run.layout.encode(motion), motion
    except ValueError as error:
        raise EditError(f"{name} does not fit the run: {error}") from error


def _of_skeleton(own: Clip, other: Clip) -> Clip:
    """Another clip on `own`'s skeleton, where the two have the same joints: its rotations on own's bones, its root's
    way in proportion to the size. As it is where it is that skeleton already, or one of other joints."""
    skeleton = own.skeleton
    if other.skeleton == skeleton or (other.names, other.parents) != (own.names, own.parents):
        return other
    translations = torch.tensor(own.offsets).repeat(len(other), 1, 1)
    translations[:, 0] = other.translations()[:, 0] * (skeleton.reach() / other.skeleton.reach())
    return Clip.from_motion(skeleton, other.rotations(), translations, other.frame_time)


def _timeline(run: Run, frames: int, pieces: Sequence[_Piece], width: int | None) -> Edit:
    """Pieces of motions, in order and apart or touching, on `frames` frames."""
    layout = run.layout
    known, mask = torch.zeros(frames, layout.size), torch.zeros(frames, layout.size)
    ends = [0, *(piece.at + len(piece.features) for piece in pieces)]
    begins = [*(piece.at for piece in pieces), frames]
    seams, anchors = [], []
    for index, piece in enumerate(pieces):
        begin, end = piece.at, piece.at + len(piece.features)
        before, after = begin > ends[index], begins[index + 1] > end
        own = span_mask(end - begin, before, after, width)
        known[begin:end], mask[begin:end] = piece.features, own[:, None]
        for path in layout.paths:  # a pose has no speed, and a piece that may lie anywhere no places
            if end - begin == 1 or (path.absolute and not piece.placed):
                mask[begin:end, path.features] = 0
        seams += [begin] * before + [end] * after
        kept = (own == 1).nonzero().flatten().tolist()
        anchors.append((piece, [kept[0], kept[-1]]))
    place = None
    for piece, (first, _) in anchors:
        if piece.placed and isinstance(source := piece.source, Clip):
            x, _, z = source.slice(piece.frame + first, piece.frame + first + 1).translations()[0, 0].tolist()
            place = (piece.at + first, (x, z))
            break
    begun = layout.starting(pieces[0].source)
    return Edit(begun, known, mask, _meets(layout, anchors), place, seams=tuple(sorted(set(seams))), settles=True)


def _meets(layout: Layout, anchors: Sequence[tuple[_Piece, list[int]]]) -> tuple[Meets, ...]:
    """What each path has to meet: its values in placed pieces' sources at two frames of each, counted in the piece. Of
    a piece that may lie anywhere a path that is held by places has to keep the steps."""
    out = []
    ways: dict[tuple[int, int], Tensor] = {}
    for number, path in enumerate(layout.paths):
        at: list[int] = []
        values, breaks = [torch.zeros(0, len(path.begin), dtype=torch.float64)], set()
        tied = False  # whether what comes next is tied to what was last
        for piece, kept in anchors:
            if not piece.placed and not path.absolute:
                continue
            frames = sorted(set(kept)) if piece.placed else list(range(len(piece.features)))
            key = id(piece.source), number
            if key not in ways:
                own = layout.starting(piece.source)
                ways[key] = own.paths[number].values(own.encode(piece.source))
            if at and not (tied and piece.placed):
                breaks.add(len(at) - 1)
            elif not at and piece.placed and piece.at + frames[0] > 0 and not isinstance(layout, ClipLayout):
                at.append(0)  # cannot be moved as a whole: where it begins is given, too
                values.append(path.begin[None].double())
            at += [piece.at + frame for frame in frames]
            values.append(ways[key][[piece.frame + frame for frame in frames]])
            tied = piece.placed
        out.append(Meets(torch.tensor(at, dtype=torch.int64), torch.cat(values), frozenset(breaks)))
    return tuple(out)


def _features_of(layout: Layout, names: Sequence[str]) -> Tensor:
    """(size,) bool: the features of the joints that names stand for."""
    if layout.hierarchy is None:
        raise EditError("joints are those of a skeleton, and this run was trained on an array")
    if isinstance(names, str):
        raise EditError(f"joints must be a list of names, got {names!r}")
    chosen = select_joints(*layout.hierarchy, names)
    out = torch.zeros(layout.size, dtype=torch.bool)
    for joint in chosen:
        out[layout.joint_features[joint]] = True
    return out


def _only(run: Run, edit: Edit, known: Tensor, names: Sequence[str]) -> Edit:
    """The edit, with all joints but those named kept throughout."""
    others_ = ~_features_of(run.layout, names)
    mask = edit.mask.clone()
    mask[:, others_] = 1
    return replace(edit, known=known, mask=mask)
