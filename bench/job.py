"""The main job: a training step of the model, exactly as `sinmdm train` does it, with each backend of its attention."""

import importlib.util
import os

import torch
from torch import Tensor, nn

from sinmdm.nn import WindowTransformer
from sinmdm.presets import PRESETS

from . import peers
from .case import Build, Case, Function, Inputs, Op, Variant

FEATURES = 174
CLIP_FRAMES = 648
FORCED = "SINMDM_BACKEND"  # the layers of the model leave the choice to the op, which looks here
TRAINING_NEEDS = (
    "roma",
    "safetensors",
    "tqdm",
)  # beside torch: the ops' own cases are also run where these are missing


def _clip(case: Case, generator: torch.Generator) -> Inputs:
    """A motion to learn, (frames, features): a smooth curve."""
    steps = torch.randn(CLIP_FRAMES, case.shape["C"], generator=generator)
    return {"clip": steps.cumsum(0) / CLIP_FRAMES**0.5}


def network_of(preset: str, features: int) -> WindowTransformer:
    """A preset's network, the same every time. What starts at zero is drawn too: else most gradients would be 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PRESETS[preset].build(features)
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
    return network


class _DenseAttention(nn.Module):
    """SDPA with a dense mask between the projections of one of the model's layers."""

    def __init__(self, layer: nn.Module, case: Case) -> None:
        super().__init__()
        self.layer, self.case = layer, case

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        layer = self.layer
        q, k, v = layer.qkv(x).unflatten(-1, (3, layer.heads, -1)).unbind(2)
        return layer.out(peers.sdpa_of_bias(self.case, q, k, v, layer.rel_bias).flatten(2))


class _InFloat64(nn.Module):
    """A network in float64 for a trainer that works in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.network(x.double(), timesteps)


def _force(network: nn.Module, backend: str) -> None:
    """Have the attention of a network use `backend`, in the backward too; the rest of the step chooses its own."""
    before: list[str | None] = []

    def enter(*_: object) -> None:
        before.append(os.environ.get(FORCED))
        os.environ[FORCED] = backend

    def leave(*_: object) -> None:
        was = before.pop()
        os.environ.pop(FORCED)
        if was is not None:
            os.environ[FORCED] = was

    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave, always_call=True)


def _declines(case: Case, device: str) -> str | None:
    missing = [name for name in TRAINING_NEEDS if importlib.util.find_spec(name) is None]
    return f"training needs {', '.join(missing)}" if missing else None


def _step(preset: str, *, backend: str | None = None, exact: bool = False) -> Build:
    """The step with one backend of the attention, or (None) with SDPA. Its result are the gradients of what lies first
    and of every attention bias, which all else comes between. The weights go on changing from call to call."""

    def build(case: Case, inputs: Inputs) -> Function:
        from sinmdm.batches import Crops
        from sinmdm.motion import Normalizer, layout_for
        from sinmdm.training import Trainer

        clip = inputs["clip"].float().cpu()
        device, settings = inputs["clip"].device, PRESETS[preset]
        network = network_of(preset, case.shape["C"])
        if backend is not None:
            _force(network, backend)
        else:
            for block in network.blocks:
                block.attention = _DenseAttention(block.attention, case)
        layout = layout_for(clip)
        normalizer = Normalizer.fit(clip, layout)
        trainer = Trainer(
            network=(_InFloat64(network) if exact else network).to(device),
            batches=Crops(clip, layout, normalizer, settings, seed=0),
            schedule=settings.noise_schedule(),
            preset=settings,
            precision="float32",
            limit=settings.steps,
            by_time=False,
            device=device,
        )
        shown = [p for name, p in network.named_parameters() if name.endswith("rel_bias") or name == "input.weight"]

        def run(inputs: Inputs) -> Tensor:
            with torch.enable_grad():
                trainer.advance()
            return torch.cat([parameter.grad.flatten() for parameter in shown])

        return run

    return build


def training_case(preset: str) -> Case:
    """A training step of a preset's network on the preset's batch: sampling crops, noising, the loss and its gradients,
    AdamW, the averaged weights.

    Operations: two a weight and row forward, twice as many backward; the attention's fourteen D a visible pair. Bytes:
    weights, gradients, both moments and the averages read and written once.
    """
    settings = PRESETS[preset]
    arguments = settings.arguments()
    frames, width, batch = settings.crop, arguments["d_model"], settings.batch_size
    with torch.device("meta"):
        network = settings.build(FEATURES)
    weights = sum(parameter.numel() for parameter in network.parameters())
    # Those that see the timestep alone multiply once a sequence.
    of_time = sum(
        p.numel() for name, p in network.named_parameters() if "modulation" in name or name.startswith("time")
    )
    w = min(arguments["window"], frames - 1)
    pairs = frames * (2 * w + 1) - w * (w + 1)
    rows = batch * (frames * (weights - of_time) + of_time)
    op = Op(
        "training_step",
        inputs=_clip,
        exact=_step(preset, backend="reference", exact=True),
        ours=lambda backend: Variant(
            f"sinmdm {backend}", _step(preset, backend=backend), declines=_declines, ours=True
        ),
        backends_of="window_attention",
    )
    return Case(
        f"training_step-{preset}-B{batch}-T{frames}-w{arguments['window']}-f32",
        op,
        {
            "B": batch,
            "T": frames,
            "C": FEATURES,
            "H": arguments["heads"],
            "D": width // arguments["heads"],
            "w": arguments["window"],
            "layers": arguments["layers"],
        },
        "float32",
        (Variant("SDPA, dense mask", _step(preset), declines=_declines),),
        bytes_moved=4 * 10 * weights,
        operations=6 * rows + 14 * arguments["layers"] * width * batch * pairs,
    )
