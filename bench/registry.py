"""What is measured. A new row is a `Case` in `CASES`; a new backend of an op appears in its rows by itself.

Floors are counted by hand. Bytes: each input read once, each output written once. Operations: additions and
multiplications of the formula itself (a multiply-add is two), so that a floor is what no implementation can beat.
"""

import torch
from torch import Tensor

import sinmdm.kernels as ops
from sinmdm.presets import PRESETS

from . import job, peers
from .case import Build, Case, Function, Inputs, Op, Variant

# Ten Philox rounds of 2 wide products and 4 xors for four normals, and for each normal half a Box-Muller pair
# (logarithm of degree 8, square root, sine and cosine of degrees 4 and 5): 15 + 25.
OPERATIONS_PER_NORMAL = 40
SHORT = {"float32": "f32", "bfloat16": "bf16"}


def _ours(name: str, build: Build) -> Variant:
    return Variant(f"sinmdm {name}", build, ours=True)


# window_attention


def _attention_inputs(case: Case, generator: torch.Generator) -> Inputs:
    sizes = [case.shape[name] for name in "BTHD"]
    tensors = {name: torch.randn(sizes, generator=generator).to(case.torch_dtype) for name in ("q", "k", "v")}
    tensors["rel_bias"] = 0.5 * torch.randn(case.shape["H"], 2 * case.shape["w"] + 1, generator=generator)
    return tensors | {"grad_out": torch.randn(sizes, generator=generator).to(case.torch_dtype)}


def _attention(backend: str | None) -> Build:
    def build(case: Case, inputs: Inputs) -> Function:
        def run(inputs: Inputs) -> Tensor:
            q, k, v, rel_bias = (inputs[name] for name in ("q", "k", "v", "rel_bias"))
            return ops.window_attention(q, k, v, rel_bias, window=case.shape["w"], backend=backend)

        return run

    return build


WINDOW_ATTENTION = Op(
    "window_attention",
    inputs=_attention_inputs,
    exact=_attention("reference"),
    ours=lambda backend: _ours(backend, _attention(backend)),
    differentiable=("q", "k", "v", "rel_bias"),
)


# In the rows of a half type: the same numbers as float32, in the same turns, so that both meet the same minute.
IN_FLOAT32 = Variant(
    "sinmdm, float32 inputs",
    _attention(None),
    ours=True,
    into=lambda case, name, tensor: tensor.float() if tensor.is_floating_point() else tensor,
)


def _visible_pairs(frames: int, window: int) -> int:
    """Pairs (query, key) no more than `window` apart: the ends see less than 2 window + 1 keys."""
    w = min(window, frames - 1)
    return frames * (2 * w + 1) - w * (w + 1)


def attention_case(
    T: int,
    w: int = 16,
    *,
    B: int = 1,
    H: int = 8,
    D: int = 64,
    dtype: str = "float32",
    backward: bool = False,
    others: tuple[Variant, ...] = peers.WINDOW_ATTENTION,
    devices: tuple[str, ...] = ("cpu",),
    quick: bool = False,
) -> Case:
    """A case of window_attention with a learned bias, `w` frames each side. H and D are in its name where they are not
    the usual 8 and 64.

    Forward: q, k, v read, out and lse written; two products of 2 D operations a visible pair.
    Backward: q, k, v, out, grad_out and lse read, dq, dk, dv written; five products.
    """
    passes = "fwdbwd" if backward else "fwd"
    tensor = B * T * H * D * (2 if dtype == "bfloat16" else 4)
    lse = 4 * B * T * H
    unusual = (f"-H{H}" if H != 8 else "") + (f"-D{D}" if D != 64 else "")
    return Case(
        f"window_attention-{passes}-B{B}-T{T}-w{w}{unusual}-{SHORT[dtype]}",
        WINDOW_ATTENTION,
        {"B": B, "T": T, "H": H, "D": D, "w": w},
        dtype,
        others,
        bytes_moved=4 * tensor + lse + backward * (8 * tensor + lse),
        operations=(14 if backward else 4) * D * B * H * _visible_pairs(T, w),
        backward=backward,
        devices=devices,
        quick=quick,
    )


# qna_attention


def _qna_inputs(case: Case, generator: torch.Generator) -> Inputs:
    sizes = [case.shape[name] for name in "BTHD"]
    return {
        "scores": torch.randn(sizes[:3], generator=generator).to(case.torch_dtype),
        "values": torch.randn(sizes, generator=generator).to(case.torch_dtype),
        "rel_bias": 0.5 * torch.randn(case.shape["H"], 2 * case.shape["w"] + 1, generator=generator),
        "grad_out": torch.randn(sizes, generator=generator).to(case.torch_dtype),
    }


def _qna(backend: str) -> Build:
    def build(case: Case, inputs: Inputs) -> Function:
        def run(inputs: Inputs) -> Tensor:
            scores, values, rel_bias = (inputs[name] for name in ("scores", "values", "rel_bias"))
            return ops.qna_attention(scores, values, rel_bias, window=case.shape["w"], backend=backend)

        return run

    return build


QNA_ATTENTION = Op(
    "qna_attention",
    inputs=_qna_inputs,
    exact=_qna("reference"),
    ours=lambda backend: _ours(backend, _qna(backend)),
    differentiable=("scores", "values", "rel_bias"),
)


def qna_case(
    B: int,
    T: int,
    *,
    w: int = 1,
    H: int = 4,
    D: int = 32,
    dtype: str = "float32",
    backward: bool = False,
    quick: bool = False,
) -> Case:
    """A case of qna_attention with the head sizes of the published network (width 128, heads of 32, kernel 3).

    Forward: scores and values read, out written; a multiply-add for each channel of a visible pair.
    Backward: scores, values and grad_out read, dscores and dvalues written; two multiply-adds.
    """
    passes = "fwdbwd" if backward else "fwd"
    scores = B * T * H * (2 if dtype == "bfloat16" else 4)
    values = D * scores
    return Case(
        f"qna_attention-{passes}-B{B}-T{T}-w{w}-{SHORT[dtype]}",
        QNA_ATTENTION,
        {"B": B, "T": T, "H": H, "D": D, "w": w},
        dtype,
        peers.QNA_ATTENTION,
        bytes_moved=2 * values + scores + backward * (3 * values + 2 * scores),
        operations=(6 if backward else 2) * D * B * H * _visible_pairs(T, w),
        backward=backward,
        quick=quick,
    )


# norm_affine


def _norm_inputs(case: Case, generator: torch.Generator) -> Inputs:
    B, T, C = (case.shape[name] for name in "BTC")
    return {
        "x": (torch.randn(B, T, C, generator=generator) + 0.5).to(case.torch_dtype),
        "gain": torch.randn(B, C, generator=generator),
        "offset": torch.randn(B, C, generator=generator),
        "grad_out": torch.randn(B, T, C, generator=generator).to(case.torch_dtype),
    }


def _norm(backend: str) -> Build:
    def build(case: Case, inputs: Inputs) -> Function:
        groups = case.shape["groups"] or None
        activation = "silu" if groups else None
        return lambda inputs: ops.norm_affine(
            inputs["x"], inputs["gain"], inputs["offset"], groups=groups, activation=activation, backend=backend
        )

    return build


NORM_AFFINE = Op(
    "norm_affine",
    inputs=_norm_inputs,
    exact=_norm("reference"),
    ours=lambda backend: _ours(backend, _norm(backend)),
    differentiable=("x", "gain", "offset"),
)


def norm_case(
    C: int,
    groups: int = 0,
    *,
    B: int = 64,
    T: int = 648,
    dtype: str = "float32",
    backward: bool = False,
    quick: bool = False,
) -> Case:
    """A case of norm_affine: layer norm before the published network's products (C 128), or its U-Net's group norm with
    SiLU (C 256, 32 groups). Forward: x read, out written. Backward: x and grad_out read, dx written. Operations: about
    8 a number for the statistics and the rest, twice as many backward."""
    kind = f"groups{groups}" if groups else "layer"
    tensor = B * T * C * (2 if dtype == "bfloat16" else 4)
    return Case(
        f"norm_affine-{'fwdbwd' if backward else 'fwd'}-{kind}-B{B}-T{T}-C{C}-{SHORT[dtype]}",
        NORM_AFFINE,
        {"B": B, "T": T, "C": C, "groups": groups},
        dtype,
        peers.NORM_AFFINE,
        bytes_moved=2 * tensor + backward * 3 * tensor,
        operations=(24 if backward else 8) * B * T * C,
        backward=backward,
        quick=quick,
    )


# window_match


def _match_inputs(case: Case, generator: torch.Generator) -> Inputs:
    L, N, F = (case.shape[name] for name in "LNF")
    walks = {name: torch.randn(frames, F, generator=generator) for name, frames in (("source", L), ("target", N))}
    return {name: (walk.cumsum(0) / 4).to(case.torch_dtype) for name, walk in walks.items()}


def _match(backend: str) -> Build:
    def build(case: Case, inputs: Inputs) -> Function:
        def run(inputs: Inputs) -> Tensor:
            return ops.window_match(inputs["source"], inputs["target"], window=case.shape["w"], backend=backend)

        return run

    return build


def _match_at_once(case: Case, inputs: Inputs) -> Function:
    """All distances by torch.cdist as it comes, all windows summed along their diagonals."""
    windows, starts = (case.shape[name] - case.shape["w"] + 1 for name in "LN")

    def run(inputs: Inputs) -> Tensor:
        distances, width = torch.cdist(inputs["source"], inputs["target"]), case.shape["N"]
        diagonals = distances.as_strided((windows, starts, case.shape["w"]), (width, 1, width + 1))
        return diagonals.mean(dim=2).amin(dim=1)[None]

    return run


WINDOW_MATCH = Op(
    "window_match",
    inputs=_match_inputs,
    exact=_match("reference"),
    ours=lambda backend: _ours(backend, _match(backend)),
)


def match_case(L: int, N: int, w: int = 30, *, F: int = 144, quick: bool = False) -> Case:
    """A case of window_match: the windows of a clip of 24 joints in a sample. Source and target read; a subtraction and
    a multiply-add for each feature of a pair of frames, and three operations for its root, window sum and minimum."""
    return Case(
        f"window_match-L{L}-N{N}-w{w}-f32",
        WINDOW_MATCH,
        {"L": L, "N": N, "F": F, "w": w},
        "float32",
        (Variant("cdist, all at once", _match_at_once),),
        bytes_moved=4 * ((L + N) * F + L - w + 1),
        operations=3 * L * N * (F + 1),
        devices=("cpu",),
        quick=quick,
    )


# q_sample, denoise_step, philox_normal: states (B, T, C)


def _sizes(case: Case) -> list[int]:
    return [case.shape[name] for name in "BTC"]


def _q_sample_inputs(case: Case, generator: torch.Generator) -> Inputs:
    t = torch.randint(peers.STEPS, (case.shape["B"],), generator=generator)
    return {"x0": torch.randn(_sizes(case), generator=generator), "t": t}


def _q_sample(backend: str, in_place: bool) -> Build:
    def build(case: Case, inputs: Inputs) -> Function:
        table = peers.schedule()
        x0 = inputs["x0"].clone() if in_place else inputs["x0"]
        out = x0 if in_place else torch.empty_like(x0)
        return lambda inputs: ops.q_sample(
            x0, inputs["t"], table, seed=peers.SEED, step=peers.STREAM_STEP, out=out, backend=backend
        )

    return build


def _exact_q_sample(case: Case, inputs: Inputs) -> Function:
    def run(inputs: Inputs) -> Tensor:
        signal, sigma = peers.forward_factors(inputs, torch.float64)
        rows = torch.arange(case.shape["B"], device=inputs["x0"].device)
        normals = peers.exact_normals(case, rows, torch.full_like(rows, peers.STREAM_STEP))
        return signal * inputs["x0"] + sigma * normals

    return run


def _q_sample_normals(case: Case, inputs: Inputs, out: Tensor) -> Tensor:
    signal, sigma = peers.forward_factors(inputs, torch.float64)
    return (out.double() - signal * inputs["x0"]) / sigma


def _q_sample_op(in_place: bool) -> Op:
    return Op(
        "q_sample",
        inputs=_q_sample_inputs,
        exact=_exact_q_sample,
        ours=lambda backend: _ours(backend, _q_sample(backend, in_place)),
        normals_of=_q_sample_normals,
    )


def _denoise_inputs(case: Case, generator: torch.Generator) -> Inputs:
    return {name: torch.randn(_sizes(case), generator=generator) for name in ("x_t", "model_output")}


def _denoise(backend: str, in_place: bool, eta: float | None) -> Build:
    """In place the state goes on changing from call to call, as in a sampler; what is checked is the first."""

    def build(case: Case, inputs: Inputs) -> Function:
        table = peers.schedule()
        x_t = inputs["x_t"].clone() if in_place else inputs["x_t"]
        out = x_t if in_place else torch.empty_like(x_t)
        seed = peers.SEED if eta is None else None
        return lambda inputs: ops.denoise_step(
            x_t, inputs["model_output"], peers.STEP, table, eta=eta, seed=seed, out=out, backend=backend
        )

    return build


def _denoised_mean(inputs: Inputs, eta: float | None) -> Tensor:
    of_x0, of_x, _ = peers.step_factors(eta)
    return of_x0 * inputs["model_output"].double() + of_x * inputs["x_t"].double()


def _exact_denoise(eta: float | None) -> Build:
    def build(case: Case, inputs: Inputs) -> Function:
        def run(inputs: Inputs) -> Tensor:
            if eta is not None:
                return _denoised_mean(inputs, eta)
            rows = torch.arange(case.shape["B"], device=inputs["x_t"].device)
            normals = peers.exact_normals(case, rows, torch.full_like(rows, peers.STEP))
            return _denoised_mean(inputs, eta) + peers.step_factors()[2] * normals

        return run

    return build


def _denoise_op(in_place: bool = False, eta: float | None = None) -> Op:
    return Op(
        "denoise_step",
        inputs=_denoise_inputs,
        exact=_exact_denoise(eta),
        ours=lambda backend: _ours(backend, _denoise(backend, in_place, eta)),
        normals_of=lambda case, inputs, out: (out.double() - _denoised_mean(inputs, None)) / peers.step_factors()[2],
    )


def _philox_inputs(case: Case, generator: torch.Generator) -> Inputs:
    return {"sample": torch.arange(case.shape["B"])}


def _philox(backend: str) -> Build:
    def build(case: Case, inputs: Inputs) -> Function:
        out = torch.empty(_sizes(case), device=inputs["sample"].device)
        frames_channels = (case.shape["T"], case.shape["C"])
        return lambda inputs: ops.philox_normal(
            frames_channels,
            seed=peers.SEED,
            step=peers.STREAM_STEP,
            sample=inputs["sample"],
            out=out,
            backend=backend,
        )

    return build


def _exact_philox(case: Case, inputs: Inputs) -> Function:
    return lambda inputs: peers.exact_normals(
        case, inputs["sample"], torch.full_like(inputs["sample"], peers.STREAM_STEP)
    )


PHILOX_NORMAL = Op(
    "philox_normal",
    inputs=_philox_inputs,
    exact=_exact_philox,
    ours=lambda backend: _ours(backend, _philox(backend)),
    normals_of=lambda case, inputs, out: out.double(),
)

# What a state is read and written (tensors), and the operations on it beside its noise; and whether it has noise.
_STATE_OPS = {
    "q_sample": (_q_sample_op(False), peers.Q_SAMPLE, 2, 3, True),  # x0 read, x_t written; a product, a multiply-add
    "q_sample-in_place": (_q_sample_op(True), peers.Q_SAMPLE, 2, 3, True),
    "denoise_step": (_denoise_op(), peers.DENOISE_STEP, 3, 5, True),  # x_t and the output read, the new state written
    "denoise_step-in_place": (_denoise_op(in_place=True), peers.DENOISE_STEP, 3, 5, True),
    "denoise_step-in_place-ddim": (_denoise_op(in_place=True, eta=0.0), peers.DDIM_STEP, 3, 3, False),
    "philox_normal": (PHILOX_NORMAL, peers.PHILOX_NORMAL, 1, 0, True),  # written
}


def state_case(op: str, B: int, T: int, *, C: int = 174, quick: bool = False) -> Case:
    """A case of an op on a state of `C` channels, with the noise drawn inside, but for DDIM's step, which has none."""
    declared, others, tensors, operations, noisy = _STATE_OPS[op]
    elements = B * T * C
    return Case(
        f"{op}-B{B}-T{T}-f32",
        declared,
        {"B": B, "T": T, "C": C},
        "float32",
        others,
        bytes_moved=4 * tensors * elements,
        operations=(operations + noisy * OPERATIONS_PER_NORMAL) * elements,
        quick=quick,
    )


def attention_of(preset: str) -> Case:
    """The attention of one layer in a preset's training step, forward and backward; report.py takes its share of it."""
    settings = PRESETS[preset]
    network = settings.arguments()
    return attention_case(
        settings.crop,
        network["window"],
        B=settings.batch_size,
        H=network["heads"],
        D=network["d_model"] // network["heads"],
        backward=True,
        others=SHORT_LIST,
        devices=BOTH,
    )


SHORT_LIST = peers.WINDOW_ATTENTION_SHORT
BOTH = ("cpu", "cuda")
MAIN_JOB: tuple[Case, ...] = tuple(job.training_case(preset) for preset in ("small", "paper"))

CASES: tuple[Case, ...] = (
    # What a call costs where there is next to nothing to compute.
    attention_case(64, others=(*SHORT_LIST, peers.SDPA_NO_MASK), devices=BOTH, quick=True),
    # T grows at a fixed window: everything but the dense mask should grow linearly.
    *(attention_case(T, quick=T == 256) for T in (256, 1024, 4096, 16384, 65536)),
    *(attention_case(T, backward=True, quick=T == 256) for T in (256, 1024, 4096, 16384, 65536)),
    # The window grows.
    *(attention_case(4096, w, others=SHORT_LIST) for w in (4, 64, 256)),
    *(attention_case(8192, w, others=SHORT_LIST) for w in (512, 1024)),
    *(attention_case(T, w, backward=True, others=SHORT_LIST) for T, w in ((4096, 64), (4096, 256), (8192, 512))),
    # Other head sizes, a batch, a half type.
    *(attention_case(4096, D=D, backward=b, others=SHORT_LIST) for D in (32, 128) for b in (False, True)),
    *(attention_case(1024, B=8, backward=b, others=SHORT_LIST, devices=BOTH) for b in (False, True)),
    *(attention_case(4096, dtype="bfloat16", backward=b, others=(*SHORT_LIST, IN_FLOAT32)) for b in (False, True)),
    *(attention_of(preset) for preset in ("small", "paper")),
    # A GPU: a batch that is a launch and little else, and batches that fill it.
    *(
        attention_case(T, w, B=B, D=D, dtype="bfloat16", backward=b, others=others, devices=("cuda",), quick=T == 256)
        for b in (False, True)
        for B, T, w, D, others in (
            (1, 256, 16, 64, SHORT_LIST),
            (8, 1024, 16, 64, peers.WINDOW_ATTENTION),
            (8, 4096, 16, 64, peers.WINDOW_ATTENTION),
            (8, 4096, 16, 128, SHORT_LIST),
            (4, 16384, 16, 64, SHORT_LIST),
            (4, 16384, 128, 64, SHORT_LIST),
        )
    ),
    # Ten samples of 200 frames, and a published training batch; windows of 3 keys, the published default, and of 15.
    *(
        qna_case(B, T, w=w, dtype=dtype, backward=backward, quick=(B, w, dtype, backward) == (10, 1, "float32", False))
        for B, T in ((10, 200), (64, 648))
        for w in (1, 7)
        for dtype in ("float32", "bfloat16")
        for backward in (False, True)
    ),
    norm_case(128, B=1, T=200, quick=True),  # what a call costs
    *(
        norm_case(C, groups, dtype=dtype, backward=backward)
        for C, groups in ((128, 0), (256, 32))
        for dtype in ("float32", "bfloat16")
        for backward in (False, True)
    ),
    match_case(648, 1296),
    *(state_case(op, 64, 1024) for op in _STATE_OPS if op != "philox_normal"),
    state_case("denoise_step", 1, 200, quick=True),  # one sample: a matter of microseconds
    state_case("philox_normal", 64, 1024),
    state_case("philox_normal", 1, 648, quick=True),
    *MAIN_JOB,
)


def variants(case: Case, device: str) -> tuple[Variant, ...]:
    """The case's peers and every backend of ours for this kind of device, ours first, fastest first."""
    elsewhere = {"cpu": ("cuda", "triton"), "cuda": ("cpu",)}[device]
    table = ops.implementations()
    op = case.op.backends_of or case.op.name
    have = table.get(op, ())
    if case.backward or case.op.backends_of:
        have = tuple(name for name in have if name in table.get(f"{op}_backward", have))
    return (*(case.op.ours(name) for name in have if name not in elsewhere), *case.peers)


def select(filter_: str | None, device: str, quick: bool) -> tuple[Case, ...]:
    """The cases for a device whose name contains `filter_`."""
    return tuple(
        case
        for case in CASES
        if device in case.devices and (case.quick or not quick) and (filter_ is None or filter_ in case.name)
    )
