"""How others compute what our ops compute. Written here from the formulas; each takes our inputs."""

import importlib.util
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sinmdm.kernels import Schedule
from sinmdm.kernels.philox.reference import philox4x32, uniform
from sinmdm.kernels.qna_attention import reference as qna_reference
from sinmdm.kernels.schedule import STEP_COLUMNS
from sinmdm.kernels.window_attention import reference as window_reference

from .case import Case, Function, Inputs, Variant

STEPS = 100  # of the diffusion schedule
STEP = 50  # the timestep of a denoising step
SEED = 7
STREAM_STEP = 3  # the `step` word of our draws
DENSE_BYTES = 10e9  # a dense mask is left out where its passes would need more than this
NO_BIAS = "no bias"
FLEX_BLOCK = 128  # FlexAttention's default


@cache
def schedule() -> Schedule:
    return Schedule.cosine(STEPS)


# window_attention: q, k, v (B, T, H, D), rel_bias (H, K)


def _window(case: Case) -> tuple[int, int]:
    return case.shape["w"], case.shape["w"]


def _dense_bias(case: Case, rel_bias: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, H, T, T) bias of the distance, -inf outside the window: row i of a Toeplitz matrix is a shifted view."""
    frames, (left, right) = case.shape["T"], _window(case)
    padded = F.pad(rel_bias.to(dtype), (frames - 1 - left, frames - 1 - right), value=-torch.inf)
    return padded.unfold(-1, frames, 1).flip(1)[None]


def sdpa_of_bias(case: Case, q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor) -> Tensor:
    """SDPA with the mask of a bias that is being learned, and so changes every step."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = _dense_bias(case, rel_bias, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _sdpa(case: Case, inputs: Inputs) -> Function:
    if case.backward:
        return lambda inputs: sdpa_of_bias(case, *(inputs[name] for name in ("q", "k", "v", "rel_bias")))
    # A bias that is not being learned is laid out once, before the clock starts.
    mask = _dense_bias(case, inputs["rel_bias"], case.torch_dtype).contiguous()

    def run(inputs: Inputs) -> Tensor:
        q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return run


def _sdpa_declines(case: Case, device: str) -> str | None:
    matrix = case.shape["H"] * case.shape["T"] ** 2 * case.torch_dtype.itemsize
    # The bias and its gradient have no batch; the backward holds scores, weights and a gradient of each.
    size = (2 + 4 * case.shape["B"] if case.backward else 2) * matrix
    return f"needs {size / 1e9:.0f} GB of dense masks" if size > DENSE_BYTES else None


def _heads_first(case: Case, name: str, tensor: Tensor) -> Tensor:
    """(B, T, H, D) to (B, H, T, D) in memory, and back."""
    return tensor if tensor.dim() != 4 else tensor.transpose(1, 2).contiguous()


def _sdpa_no_mask(case: Case, inputs: Inputs) -> Function:
    return lambda inputs: F.scaled_dot_product_attention(inputs["q"], inputs["k"], inputs["v"])


def band_blocks(frames: int, left: int, right: int, block: int, device: torch.device) -> tuple[Tensor, ...]:
    """Which blocks of keys the blocks of queries see, for BlockMask.from_kv_blocks: the number and the indices of those
    seen in part, then of those seen whole. What create_block_mask finds, without its T x T of pairs."""
    count = -(-frames // block)
    apart = torch.arange(count, device=device) - torch.arange(count, device=device)[:, None]
    lowest, highest = apart * block - (block - 1), apart * block + (block - 1)  # of key - query
    some = (highest >= -left) & (lowest <= right)
    whole = (lowest >= -left) & (highest <= right)
    if frames % block:
        whole[-1] = whole[:, -1] = False
    tensors: list[Tensor] = []
    for chosen in (some & ~whole, whole):
        order = chosen.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
        tensors += [chosen.sum(-1)[None, None].to(torch.int32), order[None, None].to(torch.int32)]
    return tuple(tensors)


def _flex(case: Case, inputs: Inputs) -> Function:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    frames, (left, right) = case.shape["T"], _window(case)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key - query >= -left) & (key - query <= right)

    blocks = BlockMask.from_kv_blocks(
        *band_blocks(frames, left, right, FLEX_BLOCK, inputs["q"].device),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(frames, frames),
    )
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(inputs: Inputs) -> Tensor:
        rel_bias = inputs["rel_bias"]

        def biased(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + rel_bias[head, (key - query + left).clamp(0, left + right)]

        q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
        return compiled(q, k, v, score_mod=biased, block_mask=blocks).transpose(1, 2)

    return run


def _flex_declines(case: Case, device: str) -> str | None:
    return "no backward on the CPU" if case.backward and device == "cpu" else None


def _blocked(case: Case, inputs: Inputs, *, compiled: bool = False) -> Function:
    """Queries in blocks as long as a window, each against two blocks of keys, as batched products.

    The pairs of key blocks are put together by `cat`: Inductor's gradient of `unfold` is wrong in torch 2.13
    (pytorch/pytorch issue 172064).
    """
    (frames, width), (left, right) = (case.shape["T"], case.shape["D"]), _window(case)
    block = max(16, left + right)
    count = -(-frames // block)
    device = inputs["q"].device
    span = torch.arange(2 * block, device=device)
    columns = span - torch.arange(block, device=device)[:, None]
    key = torch.arange(count, device=device)[:, None] * block + span - left
    hidden = ((columns < 0) | (columns > left + right)) | ((key < 0) | (key >= frames))[:, None]  # (blocks, M, 2 M)
    columns = columns.clamp(0, left + right)
    lowest = torch.finfo(case.torch_dtype).min  # not -inf: a padded query of the last block may see nothing at all

    def run(inputs: Inputs) -> Tensor:
        q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
        q = F.pad(q, (0, 0, 0, count * block - frames)).unflatten(2, (count, block))
        padding = (0, 0, left, (count + 1) * block - left - frames)
        blocks = [F.pad(x, padding).unflatten(2, (count + 1, block)) for x in (k, v)]
        k, v = (torch.cat([x[:, :, :-1], x[:, :, 1:]], 3) for x in blocks)
        bias = inputs["rel_bias"].to(q.dtype)[:, columns][:, None]
        scores = (q * (1 / math.sqrt(width))) @ k.transpose(-1, -2) + bias
        weights = scores.masked_fill(hidden, lowest).softmax(-1)
        return (weights @ v).flatten(2, 3)[:, :, :frames].transpose(1, 2)

    return torch.compile(run, dynamic=False) if compiled else run


def _compiled_reference(case: Case, inputs: Inputs) -> Function:
    scale = 1 / math.sqrt(case.shape["D"])

    def run(inputs: Inputs) -> Tensor:
        q, k, v, rel_bias = (inputs[name] for name in ("q", "k", "v", "rel_bias"))
        return window_reference.window_attention(q, k, v, rel_bias, None, *_window(case), scale, "clip", 0.0, 0)[0]

    return torch.compile(run, dynamic=False)


def _compiled_reference_declines(case: Case, device: str) -> str | None:
    if device == "cuda":
        return "tiles of a CPU's size, unrolled: no way to use a GPU"
    # The compiler unrolls the loop over tiles: 30 s at T 1024, 80 s with the backward (two busy cores).
    return "compiles for half a minute and more" if case.shape["T"] > 256 else None


def _lacks(module: str, *, gpu: bool = False, half: bool = False) -> Callable[[Case, str], str | None]:
    """Declines where `module` is not installed and, if it wants them, without a GPU or a half type."""

    def declines(case: Case, device: str) -> str | None:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
        if gpu and device != "cuda":
            return "needs a GPU"
        return "takes half types only" if half and case.dtype == "float32" else None

    return declines


def _local_attention(case: Case, inputs: Inputs) -> Function:
    """The package's blocks of `w` frames that look one block back and one ahead, masked to w frames each side."""
    from local_attention import LocalAttention

    frames, window = case.shape["T"], max(case.shape["w"], 1)
    attend = LocalAttention(
        window,
        causal=False,
        look_backward=1,
        look_forward=1,
        autopad=frames % window != 0,
        exact_windowsize=True,
        use_rotary_pos_emb=False,
    )
    return lambda inputs: attend(inputs["q"], inputs["k"], inputs["v"])


def _natten(case: Case, inputs: Inputs) -> Function:
    from natten import na1d

    size = 2 * case.shape["w"] + 1
    return lambda inputs: na1d(inputs["q"], inputs["k"], inputs["v"], kernel_size=size)


def _natten_declines(case: Case, device: str) -> str | None:
    if 2 * case.shape["w"] + 1 > case.shape["T"]:
        return "its window must not be wider than T"
    return _lacks("natten", gpu=True)(case, device)


def _flash_attention(case: Case, inputs: Inputs) -> Function:
    from flash_attn import flash_attn_func

    return lambda inputs: flash_attn_func(inputs["q"], inputs["k"], inputs["v"], window_size=_window(case))


_SDPA = Variant("SDPA, dense mask", _sdpa, declines=_sdpa_declines)
_WITHOUT_BIAS = (
    Variant(
        "local-attention",
        _local_attention,
        declines=_lacks("local_attention"),
        computes=NO_BIAS,
        into=_heads_first,
        back=_heads_first,
    ),
    Variant("NATTEN", _natten, declines=_natten_declines, computes=f"{NO_BIAS}, windows slide inward at the ends"),
    Variant("flash-attn", _flash_attention, declines=_lacks("flash_attn", gpu=True, half=True), computes=NO_BIAS),
)
# Without copies that compile for half a minute: for the cases that only vary another size.
WINDOW_ATTENTION_SHORT = (
    _SDPA,
    Variant("FlexAttention, compiled", _flex, declines=_flex_declines, slow_start=True),
    Variant("PyTorch, blocked", _blocked),
    *_WITHOUT_BIAS,
)
WINDOW_ATTENTION = (
    *WINDOW_ATTENTION_SHORT[: -len(_WITHOUT_BIAS)],
    Variant("PyTorch, blocked, compiled", lambda case, inputs: _blocked(case, inputs, compiled=True), slow_start=True),
    Variant("reference, compiled", _compiled_reference, declines=_compiled_reference_declines, slow_start=True),
    *_WITHOUT_BIAS,
)
# What a call costs at least: torch's own attention, on tensors laid out as it likes them, with nothing to mask.
SDPA_NO_MASK = Variant(
    "SDPA, no mask", _sdpa_no_mask, computes="full attention, no bias", into=_heads_first, back=_heads_first
)


# qna_attention: scores (B, T, H), values (B, T, H, D), rel_bias (H, K)


def _convolutions(case: Case, inputs: Inputs, *, compiled: bool = False) -> Function:
    """exp(u) v and exp(u) convolved with exp(bias), one over the other, as published: scores must not overflow."""
    width = case.shape["D"]

    def run(inputs: Inputs) -> Tensor:
        weights, kernel = inputs["scores"].exp(), inputs["rel_bias"].exp().to(case.torch_dtype)
        wide = weights.repeat_interleave(width, 1) * inputs["values"]
        heads, channels = weights.shape[1], wide.shape[1]
        above = F.conv1d(wide, kernel.repeat_interleave(width, 0)[:, None], padding=case.shape["w"], groups=channels)
        below = F.conv1d(weights, kernel[:, None], padding=case.shape["w"], groups=heads)
        return above / below.repeat_interleave(width, 1)

    return torch.compile(run, dynamic=False) if compiled else run


def _channels_first(case: Case, name: str, tensor: Tensor) -> Tensor:
    if name == "rel_bias":
        return tensor
    return tensor.flatten(2).transpose(1, 2).contiguous()  # (B, H, T) and (B, H D, T)


def _channels_last(case: Case, name: str, tensor: Tensor) -> Tensor:
    if name == "d_rel_bias":
        return tensor
    tensor = tensor.transpose(1, 2)
    return tensor if name == "d_scores" else tensor.unflatten(2, (case.shape["H"], case.shape["D"]))


def _qna_compiled_reference(case: Case, inputs: Inputs) -> Function:
    def run(inputs: Inputs) -> Tensor:
        scores, values, rel_bias = (inputs[name] for name in ("scores", "values", "rel_bias"))
        return qna_reference.qna_attention(scores, values, rel_bias, None, *_window(case), 1, "clip")

    return torch.compile(run, dynamic=False)


QNA_ATTENTION = (
    Variant("convolutions, published", _convolutions, into=_channels_first, back=_channels_last),
    Variant(
        "convolutions, compiled",
        lambda case, inputs: _convolutions(case, inputs, compiled=True),
        into=_channels_first,
        back=_channels_last,
        slow_start=True,
    ),
    Variant("reference, compiled", _qna_compiled_reference, declines=_compiled_reference_declines, slow_start=True),
)


# norm_affine: x (B, T, C), gain and offset (B, C)


def _norm(case: Case, inputs: Inputs, *, compiled: bool = False) -> Function:
    """torch's norm, then scale, shift and SiLU."""
    groups = case.shape["groups"]

    def run(inputs: Inputs) -> Tensor:
        x = inputs["x"]
        normed = F.group_norm(x.mT, groups).mT if groups else F.layer_norm(x, x.shape[-1:])
        z = torch.addcmul(inputs["offset"][:, None].to(x.dtype), normed, inputs["gain"][:, None].to(x.dtype))
        return F.silu(z) if groups else z

    return torch.compile(run, dynamic=False) if compiled else run


NORM_AFFINE = (
    Variant("eager", _norm),
    Variant("eager, compiled", lambda case, inputs: _norm(case, inputs, compiled=True), slow_start=True),
)


# q_sample: x0 (B, T, C), t (B,); denoise_step: x_t and model_output (B, T, C) at timestep STEP


def forward_factors(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(B, 1, 1) factors of x0 and of the noise."""
    factors = schedule().forward_coefficients(inputs["t"]).to(inputs["x0"].device, dtype)
    return factors[:, 0, None, None], factors[:, 1, None, None]


def step_factors(eta: float | None = None) -> tuple[float, float, float]:
    """Factors of the predicted x0, of x_t and of the noise in an ancestral step, or in DDIM's with `eta`."""
    now, before = torch.tensor([STEP]), torch.tensor([STEP - 1])
    row = dict(zip(STEP_COLUMNS, schedule().step_coefficients(now, before, eta=eta)[0].tolist(), strict=True))
    return row["of_x0"], row["of_x"], row["of_noise"]


def _q_sample_eager(case: Case, inputs: Inputs, *, compiled: bool = False) -> Function:
    signal, sigma = forward_factors(inputs, case.torch_dtype)

    def run(inputs: Inputs) -> Tensor:
        x0 = inputs["x0"]
        return signal * x0 + sigma * torch.randn_like(x0)

    return torch.compile(run, dynamic=False) if compiled else run


def _q_sample_in_place(case: Case, inputs: Inputs) -> Function:
    signal, sigma = forward_factors(inputs, case.torch_dtype)
    noise, out = torch.empty_like(inputs["x0"]), torch.empty_like(inputs["x0"])

    def run(inputs: Inputs) -> Tensor:
        return torch.mul(inputs["x0"], signal, out=out).addcmul_(noise.normal_(), sigma)

    return run


def _denoise_eager(case: Case, inputs: Inputs, *, compiled: bool = False) -> Function:
    of_x0, of_x, of_noise = step_factors()

    def run(inputs: Inputs) -> Tensor:
        x_t = inputs["x_t"]
        return of_x0 * inputs["model_output"] + of_x * x_t + of_noise * torch.randn_like(x_t)

    return torch.compile(run, dynamic=False) if compiled else run


def _denoise_in_place(case: Case, inputs: Inputs) -> Function:
    of_x0, of_x, of_noise = step_factors()
    noise, out = torch.empty_like(inputs["x_t"]), torch.empty_like(inputs["x_t"])

    def run(inputs: Inputs) -> Tensor:
        torch.mul(inputs["model_output"], of_x0, out=out).add_(inputs["x_t"], alpha=of_x)
        return out.add_(noise.normal_(), alpha=of_noise)

    return run


def _ddim_eager(case: Case, inputs: Inputs, *, compiled: bool = False) -> Function:
    of_x0, of_x, _ = step_factors(eta=0.0)

    def run(inputs: Inputs) -> Tensor:
        return of_x0 * inputs["model_output"] + of_x * inputs["x_t"]

    return torch.compile(run, dynamic=False) if compiled else run


Q_SAMPLE = (
    Variant("eager, randn_like", _q_sample_eager, draws_own_noise=True),
    Variant("eager, in place", _q_sample_in_place, draws_own_noise=True),
    Variant(
        "eager, compiled",
        lambda case, inputs: _q_sample_eager(case, inputs, compiled=True),
        draws_own_noise=True,
        slow_start=True,
    ),
)
DENOISE_STEP = (
    Variant("eager, randn_like", _denoise_eager, draws_own_noise=True),
    Variant("eager, in place", _denoise_in_place, draws_own_noise=True),
    Variant(
        "eager, compiled",
        lambda case, inputs: _denoise_eager(case, inputs, compiled=True),
        draws_own_noise=True,
        slow_start=True,
    ),
)
DDIM_STEP = (
    Variant("eager", _ddim_eager),
    Variant("eager, compiled", lambda case, inputs: _ddim_eager(case, inputs, compiled=True), slow_start=True),
)


# philox_normal: sample (B,) -> (B, T, C)


def _randn(case: Case, inputs: Inputs) -> Function:
    out = torch.empty([case.shape[name] for name in "BTC"], device=inputs["sample"].device)
    return lambda inputs: out.normal_()


def _numpy(case: Case, inputs: Inputs) -> Function:
    """The Ziggurat of NumPy's Generator, on the one thread that it uses."""
    out = torch.empty([case.shape[name] for name in "BTC"])
    generator = np.random.default_rng(SEED)

    def run(inputs: Inputs) -> Tensor:
        generator.standard_normal(dtype=np.float32, out=out.numpy())
        return out

    return run


PHILOX_NORMAL = (
    Variant("torch.randn", _randn, draws_own_noise=True),
    Variant(
        "NumPy Generator",
        _numpy,
        declines=lambda case, device: None if device == "cpu" else "it has no GPU",
        draws_own_noise=True,
    ),
)


def exact_normals(case: Case, sample: Tensor, step: Tensor) -> Tensor:
    """(B, T, C) float64 normals of our stream: the integers of the reference, then Box-Muller from the library."""
    elements = case.shape["T"] * case.shape["C"]
    group = torch.arange(-(-elements // 4), device=sample.device)
    words = philox4x32((group, torch.zeros_like(group), step[:, None], sample[:, None]), SEED)
    u0, u1, u2, u3 = (uniform(word).double() for word in torch.broadcast_tensors(*words))
    pairs = []
    for radial, turn in ((u0, u1), (u2, u3)):
        radius = (-2 * radial.log()).sqrt()
        pairs += [radius * (2 * math.pi * turn).cos(), radius * (2 * math.pi * turn).sin()]
    return torch.stack(pairs, -1).flatten(1)[:, :elements].unflatten(1, (case.shape["T"], case.shape["C"]))
