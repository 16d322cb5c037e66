"""accelerate: the attention of a live model, anybody's, on the fused ops."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attention import WindowMultiheadAttention, window_sides
from .products import linear
from .qna import QnAAttention1d, channels_last, folded_keys, learned_query_attention, scores_of

Window = int | tuple[int, int]
_NAMES = ("query", "Wk", "Wk_bias", "rpe", "to_v", "to_out")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What is not the same function differs by more than this of the largest output; roundings, also those of 16 bits and of
# tf32, by less.
_TOLERANCE = 0.02


@dataclass
class Report:
    """What `accelerate` did, by module name.

    Attributes:
        replaced: the modules that compute by our ops now, and how.
        already: those that did before.
        left: those that looked alike but were left as they are, and why.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    already: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: {how}" for name, how in self.replaced.items()]
        lines += [f"{name or '(the model)'}: accelerated before" for name in self.already]
        lines += [f"{name or '(the model)'}: left as it is: {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "no attention that is known here"


def accelerate(model: nn.Module, *, window: Window | Mapping[str, Window] | None = None) -> Report:
    """Have the attention of a model computed by sinmdm.kernels, in place.

    - Learned-query attention layers, which are known by the weights of the published SinMDM layer (query, Wk, ...), are
      given another `forward`. It is compared with their own first, on a few random frames.
    - nn.MultiheadAttention layers for which a window is given are replaced by `sinmdm.nn.WindowMultiheadAttention`,
      which takes self-attention, without attn_mask or need_weights.

    Parameters stay the same objects under the same names, so that optimisers, checkpoints, devices and modes go on;
    hooks are kept too. A second call finds nothing left to do.

    Args:
        model: any module.
        window: (left, right) frames, or one int for both, that a frame sees in nn.MultiheadAttention: one for all such
            layers, or by module name for those named. Default: these layers are left alone.

    Returns:
        What was done, and what was not and why; `str` of it is for reading.

    Raises:
        ValueError: a window that is not as above, or the name of no such layer.
    """
    report = Report()
    windows = {} if window is None else _windows_of(model, window)
    for name, module in model.named_modules():
        if isinstance(module, QnAAttention1d) or _is_ours(module):
            report.already.append(name)
        elif all(hasattr(module, attribute) for attribute in _NAMES):
            why, how = _unlike(module), "qna_attention"
            if why is None:
                compared, why = _compare(module)
                how += "" if compared else " (not compared: its own forward fails or overflows)"
            if why is not None:
                report.left[name] = why
                continue
            # On the instance, so that whoever holds the layer or has hooks on it sees no change; a partial of a plain
            # function can be copied and pickled with it.
            module.forward = partial(_forward, module, _names(module))  # type: ignore[method-assign]
            report.replaced[name] = how
    _replace_multihead(model, windows, report)
    return report


def _is_ours(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _forward


def _last(value: Any) -> Any:
    """The size along frames of what convolutions take as an int or as (rows, frames)."""
    return value[-1] if isinstance(value, tuple | list) and value else value


def _unlike(layer: Any) -> str | None:
    """Why the layer is none that `_forward` computes; None where it is one."""
    shapes = {name: tuple(getattr(getattr(layer, name), "shape", ())) for name in ("query", "Wk", "Wk_bias", "rpe")}
    if len(shapes["rpe"]) != 4 or shapes["rpe"][1:3] != (1, 1):
        return f"rpe has shape {shapes['rpe']}, not (heads, 1, 1, k)"
    heads, kernel_size = shapes["rpe"][0], shapes["rpe"][3]
    if kernel_size % 2 == 0:
        return f"it sees an even number of frames: {kernel_size}"
    wanted = {"heads": heads, "kernel_size": kernel_size, "stride": 1, "padding": (kernel_size - 1) // 2, "dilation": 1}
    for name, number in wanted.items():
        found = _last(getattr(layer, name, number))
        if found != number:
            return f"{name} is {found!r}, not {number}"
    width = shapes["query"][0] if len(shapes["query"]) == 1 else 0
    if not width or width % heads or width // heads > 256:
        return f"query has shape {shapes['query']}, which {heads} heads of a width up to 256 do not divide"
    inputs = shapes["Wk"][0] if len(shapes["Wk"]) == 2 else "in"
    for name, shape in (("Wk", (inputs, width)), ("Wk_bias", (width,))):
        if shapes[name] != shape:
            return f"{name} has shape {shapes[name]}, not {shape}"
    for name, shape in (("to_v", (width, inputs)), ("to_out", (None, width))):
        size = tuple(getattr(getattr(getattr(layer, name), "weight", None), "shape", ()))
        if size[2:] != (1, 1) or any(expected not in (None, got) for expected, got in zip(shape, size, strict=False)):
            return f"{name}.weight has shape {size}, not {(shape[0] or 'out', shape[1], 1, 1)}"
        if any(getattr(getattr(layer, name), hooks, None) for hooks in _HOOKS):
            return f"{name} has hooks, which would not be called"
    return "its weights are on the meta device" if layer.Wk.is_meta else None


def _compare(layer: Any) -> tuple[bool, str | None]:
    """(whether `_forward` could be compared with the layer's own forward, how the two differ or None)."""
    weight = layer.Wk
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(2, len(weight), 1, 2 * layer.rpe.shape[-1] + 5)]
    embed = getattr(layer, "timesteps_embed", None)
    if isinstance(embed, nn.Module):
        shapes += [(2, module.in_features) for module in embed.modules() if isinstance(module, nn.Linear)][:1]
    inputs = [torch.randn(shape, generator=generator).to(weight.device, weight.dtype) for shape in shapes]
    named: dict[str, Tensor] = {}
    if positions := _roles(_names(layer))[2]:
        named[positions] = torch.randn(shapes[0], generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        found = _forward(layer, _names(layer), *inputs, **named)
        try:
            expected = layer.forward(*inputs, **named)
        except Exception:  # as the published layer's does in today's torch; anything may come out of a stranger's
            return False, None
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        return True, f"its forward gives {tuple(getattr(expected, 'shape', ()))}, not {tuple(found.shape)}"
    if not expected.isfinite().all():  # the published formula overflows where scores are large
        return False, None
    error = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30))
    return True, None if error <= _TOLERANCE else f"its forward is another function: it differs by {error:.1e}"


def _names(layer: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(layer.forward).parameters)


def _roles(names: Sequence[str]) -> tuple[str, str, str]:
    """Which of a forward's parameters are x, the timestep embedding and the positions; "" for what it does not take."""
    x, *others = names
    if len(others) == 1 and ("pe" in others[0] or "pos" in others[0]):
        return x, "", others[0]
    timesteps, positions = [*others, "", ""][:2]
    return x, timesteps, positions


def _forward(layer: Any, names: tuple[str, ...], *arguments: Any, **named: Any) -> Tensor:
    """The published layer's forward, of x (B, in, 1, frames) and, where given, the timestep embedding (B, E) and what
    is added to x for the keys. names: what the layer's own forward calls these three."""
    given = {**dict(zip(names, arguments, strict=False)), **named}
    x, timesteps, positions = (given.get(name) for name in _roles(names))
    assert isinstance(x, Tensor)
    if x.shape[2] != 1:
        raise ValueError(f"x must have one row, (batch, channels, 1, frames), got shape {tuple(x.shape)}")
    embed = getattr(layer, "timesteps_embed", None)
    query = layer.query if embed is None or timesteps is None else embed(timesteps)
    keys = folded_keys(layer.Wk, query, len(layer.rpe), getattr(layer, "normalize_q", True))
    frames = channels_last(x)
    scores, values = scores_of(frames, keys), linear(frames, layer.to_v.weight, layer.to_v.bias)
    if positions is not None:
        scores = scores + scores_of(channels_last(positions), keys)
    padding = (layer.rpe.shape[-1] - 1) // 2
    attended = learned_query_attention(scores, values, layer.rpe.flatten(1), stride=1, padding=padding)
    out = linear(attended, layer.to_out.weight, layer.to_out.bias).transpose(1, 2).unsqueeze(2)
    # In the layout of what came in: the layers after it may take a view of it.
    return out.contiguous() if x.is_contiguous() else out


def _multihead(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: m for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention | WindowMultiheadAttention)
    }


def _windows_of(model: nn.Module, window: Window | Mapping[str, Window]) -> dict[str, tuple[int, int]]:
    """(left, right) by the name of the layer. Raises ValueError for what is no window, or the name of no layer."""
    modules = _multihead(model)
    windows = window if isinstance(window, Mapping) else dict.fromkeys(modules, window)
    if not windows and not isinstance(window, Mapping):
        window_sides(window)
    for name in windows:
        if name not in modules:
            known = ", ".join(map(repr, modules)) or "there is none"
            raise ValueError(f"window is for the names of nn.MultiheadAttention layers ({known}), got {name!r}")
    return {name: window_sides(one) for name, one in windows.items()}


def _replace_multihead(model: nn.Module, windows: Mapping[str, tuple[int, int]], report: Report) -> None:
    """Replace the layers that a window is for, and say so in the report."""
    modules = _multihead(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, sides in windows.items():
        layer = modules[name]
        if isinstance(layer, WindowMultiheadAttention):
            report.already.append(name)
        elif layer is model:
            report.left[name] = "it is the model itself, which nothing holds that could hold another"
        else:
            try:
                made[layer] = _windowed(cast(nn.MultiheadAttention, layer), sides)
                report.replaced[name] = f"window_attention, window {sides}"
            except ValueError as error:
                report.left[name] = str(error)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # not named_children: a shared layer has several places
            if child in made:
                parent.add_module(name, made[child])


def _windowed(layer: nn.MultiheadAttention, window: tuple[int, int]) -> WindowMultiheadAttention:
    """The layer under a window, of the very same parameters. Raises ValueError where it cannot be."""
    made = WindowMultiheadAttention(
        layer.embed_dim, layer.num_heads, layer.dropout, layer.in_proj_bias is not None, layer.bias_k is not None,
        layer.add_zero_attn, layer.kdim, layer.vdim, layer.batch_first, device="meta", window=window, rel_bias=False,
    )  # fmt: skip
    made.register_parameter("in_proj_weight", layer.in_proj_weight)
    made.register_parameter("in_proj_bias", layer.in_proj_bias)
    made.out_proj = layer.out_proj
    for name, value in vars(layer).items():
        if "hook" in name:
            setattr(made, name, value)
    return made.train(layer.training)
