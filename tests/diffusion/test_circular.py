"""Networks on a circle of frames: to be shown the other end is the same as attention that goes round."""

from __future__ import annotations

import pytest
import torch
from local_model import LocalModel, random_transformer

from sinmdm.diffusion.circular import Circular
from sinmdm.nn import QnAUNet, WindowTransformer


@pytest.mark.parametrize("frames", [2, 5, 21, 40])  # fewer than a window, than the field, than twice it, more
def test_attention_that_goes_round_is_the_other_end_shown(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_transformer(window=4, layers=3)
    x = torch.randn(2, 3, frames, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([3, 8])
    own = Circular(network)(x, timesteps)
    monkeypatch.setattr(WindowTransformer, "circular", False)
    shown = Circular(network)(x, timesteps)
    assert torch.allclose(own, shown, rtol=0, atol=1e-5)
    assert float((own - network(x, timesteps)).abs().max()) > 1e-3


@pytest.mark.parametrize("frames", [1, 4, 30])
def test_a_circle_has_no_first_frame(frames: int) -> None:
    circle = Circular(LocalModel(field=3))
    x = torch.randn(2, 3, frames, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([3, 8])
    assert torch.equal(circle(x, timesteps).roll(2, -1), circle(x.roll(2, -1), timesteps))


def test_a_network_that_sees_everything_is_refused() -> None:
    unet = QnAUNet(3, 3, num_channels=32, channel_mult="1", attention_resolutions="64,32")
    with pytest.raises(ValueError, match="local"):
        Circular(unet)


def test_a_layer_made_for_shifts_cannot_go_round() -> None:
    from sinmdm.nn import WindowAttention

    layer = WindowAttention(8, 2, 2, boundary="shift")
    with pytest.raises(ValueError, match="clip or circular"):
        layer(torch.randn(1, 9, 8), boundary="circular")
