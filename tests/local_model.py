"""Stand-ins for a network, whose results a test can predict to the bit, and the real one with weights that matter."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sinmdm.nn import WindowTransformer


class LocalModel(nn.Module):
    """A nonlinear function of the frames within exactly `field` of each, of the other features and of the timestep.

    Only sums, products and quotients, one at a time: IEEE 754 rounds these in one way wherever an element lies in a
    tensor and however a processor groups them, so that a frame is the same to the bit in any piece of a motion.

    seen: the number of frames of each call.
    """

    def __init__(self, field: int = 3, gain: float = 1.5) -> None:
        super().__init__()
        self.receptive_field = field
        self.gain = nn.Parameter(torch.tensor(gain))
        self.seen: list[int] = []

    def forward(self, x: Tensor, timesteps: Tensor, lengths: Tensor | None = None) -> Tensor:
        frames, field = x.shape[-1], self.receptive_field
        self.seen.append(frames)
        if lengths is not None:
            x = x * (torch.arange(frames, device=x.device) < lengths[:, None, None])
        around = F.pad(x, (field, field))
        before, after = around[..., :frames], around[..., 2 * field :]
        h = x + before * 0.5
        h = h - after * 0.25
        h = h * x.roll(1, 1) + h
        h = h * ((timesteps[:, None, None] + 8) / 8)
        return self.gain * (h / (h.abs() + 1))


def random_transformer(features: int = 3, window: int = 2, layers: int = 2) -> WindowTransformer:
    """A small network none of whose gates is shut, as they all are at the start."""
    network = WindowTransformer(features, d_model=16, heads=2, layers=layers, window=window, dropout=0.0).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.25, generator=generator)
    return network


class InFloat64:
    """A network that computes in float64 what another does in float32."""

    def __init__(self, network: WindowTransformer) -> None:
        self.network, self.receptive_field = copy.deepcopy(network).double(), network.receptive_field

    def __call__(self, x: Tensor, timesteps: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.network(x.double(), timesteps, lengths).float()
