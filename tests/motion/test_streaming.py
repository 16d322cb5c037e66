"""Motions decoded and written chunk by chunk are the ones decoded and written whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinmdm.motion import ArrayLayout, Clip, Layout, layout_for, walker, write_motion, writing_motion

FRAMES = 40
CHUNKS = (1, 7, FRAMES)


def _wild(clip: Clip) -> torch.Tensor:
    """Features near the clip's whose joints turn over and go past the poles."""
    features = layout_for(clip).encode(clip)
    return features + torch.randn(features.shape) * features.abs().amax(0)


def _write(path: Path, layout: Layout, frames: int, chunks: Iterable[torch.Tensor], error: Any = None) -> None:
    with writing_motion(path, layout, frames) as writer:
        for chunk in chunks:
            writer.write(chunk)
        if error is not None:
            raise error


@pytest.mark.parametrize("chunk", CHUNKS)
def test_clips_chunk_by_chunk_to_the_bit(clip, chunk):
    layout = layout_for(clip)
    for features in (layout.encode(clip), _wild(clip)):
        whole, decode = layout.decode(features), layout.decoder()
        chunks = [decode(part) for part in features.split(chunk)]
        assert {(part.skeleton, part.frame_time) for part in chunks} == {(whole.skeleton, whole.frame_time)}
        np.testing.assert_array_equal(np.concatenate([part.values for part in chunks]), whole.values, strict=True)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_arrays_chunk_by_chunk_to_the_bit(chunk):
    array = torch.randn(FRAMES, 5)
    decode = ArrayLayout(5).decoder()
    assert torch.equal(torch.cat([decode(part) for part in array.split(chunk)]), array)


def test_decoders_of_a_layout_are_apart():
    clip = walker(seconds=1)
    layout = layout_for(clip)
    features = layout.encode(clip)
    one, two = layout.decoder(), layout.decoder()
    np.testing.assert_array_equal(one(features).values, two(features).values)


def test_root_does_not_drift(rig, move):
    frames = 100_000
    layout = layout_for(move(rig([-1], [("Xposition", "Yposition", "Zposition")])))
    features = torch.randn(frames, layout.size) + 0.3
    decode = layout.decoder()
    way = np.concatenate([decode(part).values[:, 0] for part in features.split(997)])
    steps = [layout.begin[0], *features[1:, 0].tolist()]
    for frame in (1, 10, 1000, frames - 1):  # each of the additions rounds once
        bound = frame * np.finfo(np.float64).eps / 2 * np.abs(way[: frame + 1]).max()
        assert abs(way[frame] - math.fsum(steps[: frame + 1])) <= bound


def test_angles_run_on_through_whole_turns(rig):
    skeleton = rig([-1, 0], [("Yrotation", "Xrotation", "Zrotation"), ("Zrotation",)])
    time = np.arange(2000.0)[:, None]
    clip = Clip(skeleton, time * np.array([170.0, 0.0, 0.0, -170.0]), 1 / 30)
    layout = layout_for(clip)
    decode = layout.decoder()
    angles = np.concatenate([decode(part).values for part in layout.encode(clip).split(7)])
    np.testing.assert_allclose(angles, clip.values, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_clip_files_byte_for_byte(clip, chunk, tmp_path):
    layout, features = layout_for(clip), _wild(clip)
    write_motion(tmp_path / "whole.bvh", layout.decode(features))
    _write(tmp_path / "chunks.bvh", layout, FRAMES, features.split(chunk))
    assert (tmp_path / "chunks.bvh").read_bytes() == (tmp_path / "whole.bvh").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("transposed", [False, True])
def test_array_files_byte_for_byte(chunk, size, transposed, tmp_path):
    array = torch.randn(size, FRAMES).mT if transposed else torch.randn(FRAMES, size)
    layout = ArrayLayout(size)
    np.save(tmp_path / "numpy.npy", np.ascontiguousarray(array.numpy()))
    write_motion(tmp_path / "whole.npy", layout.decode(array))
    _write(tmp_path / "chunks.npy", layout, FRAMES, array.split(chunk))
    expected = (tmp_path / "numpy.npy").read_bytes()
    assert (tmp_path / "whole.npy").read_bytes() == expected
    assert (tmp_path / "chunks.npy").read_bytes() == expected


@pytest.fixture(params=[".bvh", ".npy"])
def target(request, tmp_path):
    """A path, a layout that goes with it and features of ten frames."""
    clip = walker(seconds=1)
    layout = layout_for(clip) if request.param == ".bvh" else ArrayLayout(5)
    return tmp_path / f"long{request.param}", layout, torch.randn(10, layout.size)


@pytest.mark.parametrize(
    ("frames", "message"), [(21, "20 frames were written, must be 21"), (19, "to 20 frames, must be 19 in all")]
)
def test_another_number_of_frames(target, frames, message):
    path, layout, features = target
    with pytest.raises(ValueError, match=message):
        _write(path, layout, frames, [features, features])
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_what_was_interrupted(target, error):
    path, layout, features = target
    with pytest.raises(error):
        _write(path, layout, 20, [features], error)
    assert not list(path.parent.iterdir())
    path.write_text("before")
    with pytest.raises(error):
        _write(path, layout, 10, [features], error)
    assert [path.read_text() for path in path.parent.iterdir()] == ["before"]


def test_refused_chunks_count_as_not_given(target):
    path, layout, features = target
    poisoned = features.clone()
    poisoned[-1, 0] = torch.inf
    refused = {
        rf"^features have shape \(10, {layout.size - 1}\), must be \(1 frame or more, {layout.size}\)$": features[
            :, 1:
        ],
        rf"^features have shape \(0, {layout.size}\)": features[:0],
        "^features must be finite$": poisoned,
        "^features bring the motion to 30 frames": features.repeat(3, 1),
    }
    with writing_motion(path, layout, 20) as writer:
        for _ in range(2):
            for message, chunk in refused.items():
                with pytest.raises(ValueError, match=message):
                    writer.write(chunk[: 30 - writer.written])
            writer.write(features)
    again = path.with_stem("again")
    write_motion(again, layout.decode(features.repeat(2, 1)))
    assert path.read_bytes() == again.read_bytes()


def test_bad_arguments(target):
    path, layout, features = target
    with pytest.raises(ValueError, match="frames is 0, must be at least 1"):
        _write(path, layout, 0, [])
    with pytest.raises(ValueError, match=r"suffix is '\.txt', must be"):
        _write(path.with_suffix(".txt"), layout, 10, [features])
    with pytest.raises(OSError, match="missing"):
        _write(path.parent / "missing" / path.name, layout, 10, [features])
    assert not list(path.parent.iterdir())
