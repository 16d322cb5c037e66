"""A made motion in HumanML3D features, and the joints that it was made of."""

import torch
from torch import Tensor

FRAMES = 60


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Vectors (..., 3) about +y by angles (...), as a product with matrices."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [angle.cos(), zero, angle.sin(), zero, one, zero, -angle.sin(), zero, angle.cos()]
    return (torch.stack(rows, dim=-1).unflatten(-1, (3, 3)) @ vectors[..., None])[..., 0]


def made_motion(frames: int = FRAMES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (frames, 263) float32, and joints (frames, 22, 3) float64 they hold: someone who walks about.

    Written from what each feature means (Guo et al. 2022), forwards; the layout reads them backwards. The features of
    a frame need the next one's joints, so that one more is made.
    """
    generator = torch.Generator().manual_seed(seed)

    def waves(*shape: int) -> Tensor:
        time = torch.arange(frames + 1, dtype=torch.float64).view(-1, *[1] * len(shape)) / 20
        rate, phase = (torch.rand(2, *shape, generator=generator, dtype=torch.float64) * 6).unbind()
        return (rate * time + phase).sin()

    facing = waves() + torch.arange(frames + 1) * 0.05  # the heading about +y, from 0 on
    facing = facing - facing[0]
    seen = 0.4 * waves(22, 3)  # the joints, seen from there
    seen[:, 0] = torch.stack([torch.zeros(frames + 1), 0.9 + 0.1 * waves(), torch.zeros(frames + 1)], dim=-1)
    root = torch.stack([waves(), torch.zeros(frames + 1), waves()], dim=-1)
    root = root - root[:1]
    joints = turned(seen, facing[:, None].expand(-1, 22)) + root[:, None]
    turns = torch.linalg.qr(torch.eye(3).double() + 0.3 * waves(21, 3, 3)).Q
    contacts = (waves(4) > 0).double()
    steps = joints.diff(dim=0)
    features = torch.cat(
        [
            -facing.diff()[:, None] / 2,
            turned(steps[:, 0], -facing[1:])[:, [0, 2]],
            joints[:-1, 0, 1:2],
            seen[:-1, 1:].flatten(1),
            torch.cat([turns[:-1, ..., 0], turns[:-1, ..., 1]], dim=-1).flatten(1),
            turned(steps, -facing[:-1, None].expand(-1, 22)).flatten(1),
            contacts[:-1],
        ],
        dim=1,
    )
    return features.float(), joints[:-1]


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """A mean and std (263,) such as a data set has: not quite those of the motion."""
    mean, std = features.mean(0), features.std(0)
    return mean + 0.1 * std, 1.2 * std + 0.01
