"""`python -m bench.megakernel_floor`: the figures of docs/megakernel.md, computed on a CPU in a few seconds.

Nothing is measured here. Sizes and operations are counted from the preset's network, launches from the code of a
captured step (run on the meta device). What a GPU can do comes from LEADS and the constants beside them: datasheets,
figures that others published, assumptions; each says which. Times are arithmetic on those: bounds and predictions.
"""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sinmdm.diffusion import sampling
from sinmdm.kernels import _dispatch
from sinmdm.kernels.norm_affine import reference as norm_affine
from sinmdm.kernels.schedule import STEP_COLUMNS
from sinmdm.presets import PRESETS

from .job import FEATURES

KB, MB, MICRO = 1024, 1e6, 1e-6
CASES = ("low", "mid", "high")
PRESET = "paper"


@dataclass(frozen=True)
class Lead:
    """A number that no run of this project gave: likely values, from the best to the worst, and where they are from."""

    low: float
    mid: float
    high: float
    unit: str
    source: str

    def at(self, case: str) -> float:
        """In seconds, or the bare factor."""
        return getattr(self, case) * (MICRO if self.unit == "us" else 1)


LEADS = {
    "barrier": Lead(0.7, 1.0, 2.0, "us", "0.73: grid.sync of 82 blocks, RTX 3090 (MegaQwen, experiments/RESULTS.md); "
        "1 to 2: the task"),
    "node": Lead(0.8, 1.3, 2.5, "us", "empty kernels in a graph: 0.83 RTX 3090 (MegaQwen), 0.8 B200 (Mirage Persistent "
        "Kernel), 1.3 H100 (Hazy Research, No Bubbles); 2 to 3: the task"),
    "dependent": Lead(0.75, 1.15, 2.25, "us", "assumption, half way between the two: a node launched programmatically"),
    "ramp": Lead(0.3, 0.5, 0.8, "us", "assumption: from a boundary to the first operand (0.13 of it the second cache "
        "of an H100, CUDA Performance Study), and from the last product to its store"),
    "slowness": Lead(1.0, 1.3, 1.6, "times", "assumption: achieved time of a tile loop over its bound"),
    "cluster": Lead(0.1, 0.2, 0.4, "us", "assumption: barrier of a cluster"),
    "softmax": Lead(0.2, 0.3, 0.5, "us", "assumption: scores, softmax and weighted sum of 16 queries"),
    "rest": Lead(0.3, 0.5, 1.0, "us", "assumption: what a small kernel takes beside its node"),
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """bandwidth: a copy's, bytes read and written a second; product: dense bf16. Those of the H100 and H200 were seen
    by others on one of each (the product is the lower of the two)."""

    name: str
    bandwidth: float
    product: float
    cache: float


CARDS = (
    Card("H100", 3.0e12, 788e12, 50 * KB**2),
    Card("H200", 4.3e12, 788e12, 60 * KB**2),
    Card("A100 80 GB (datasheet)", 2.039e12, 312e12, 40 * KB**2),
)
MULTIPROCESSORS = 132
PRODUCT = CARDS[0].product
L2_READ = 5.5e12  # bytes a second: a lead for an H100
L2_COPY = 3.6e12  # read and written, 16 MB to 16 MB, H100 (CUDA Performance Study)
CLOCK = 1.755e9  # boost of an H100 PCIe; an SXM part was seen at 1.98
PORT = 64 * CLOCK  # bytes a second into one multiprocessor, also of what clusters share: assumption, 64 a cycle
SHARED_PORT = 128  # bytes a cycle out of shared memory
PEAK_A_CYCLE = 4096  # bf16 operations of a multiprocessor a cycle: the datasheet's 989 TFLOP/s at 1.83 GHz
FLOAT32 = 67e12  # operations a second without matrix units, datasheet
SHARED, HALF = 227 * KB, 113 * KB  # of a block; of two blocks that are there together, as dependent launches want
RING, DEEP = 4, 64  # what a block draws while it multiplies is held in so many stages of so much depth
HIDDEN = LEADS["barrier"].at("low") + LEADS["ramp"].at("low")  # the least boundary: weights are fetched ahead in it
WARP_SHARE = 0.629  # of the peak: mma.sync on an H100 on average (Luo et al. 2024, by another's account)
INSTRUCTIONS = (2.0e-6, 2.5e-6)  # a dependent step of Hazy Research's kernel on a B200: by their model; 250 us over 100
# Multiprocessors of each group of an H100 of 132: one layout that agrees with 120 of them in use by clusters of 8 (seen
# on one card, accel-sim/gpu-app-collection pull request 87). Others are possible: ask cudaOccupancyMaxActiveClusters.
GROUPS = (16, 16, 16, 16, 18, 18, 18, 14)


def usable(cluster: int) -> int:
    """Multiprocessors that clusters of so many blocks reach, one block each."""
    return sum(n // cluster * cluster for n in GROUPS)


@dataclass(frozen=True)
class Product:
    """A product (rows, depth) x (depth, columns) of a step, as often as it is there."""

    name: str
    columns: int
    depth: int
    times: int

    @property
    def weights(self) -> int:
        return self.columns * self.depth

    def operations(self, rows: int) -> int:
        return 2 * rows * self.weights


@dataclass(frozen=True)
class Network:
    """Sizes of a preset's network."""

    features: int
    width: int
    heads: int
    layers: int
    window: int
    hidden: int

    @property
    def products(self) -> tuple[Product, ...]:
        d, n = self.width, self.layers
        return (
            Product("input", d, self.features, 1),
            Product("qkv", 3 * d, d, n),
            Product("out", d, d, n),
            Product("up", self.hidden, d, n),
            Product("down", d, self.hidden, n),
            Product("output", self.features, d, 1),
        )

    @property
    def weights(self) -> int:
        return sum(p.weights * p.times for p in self.products)

    @property
    def biases(self) -> int:
        """Numbers beside the products' weights that every step reads."""
        return sum(p.columns * p.times for p in self.products) + self.layers * self.heads * (2 * self.window + 1)

    def pairs(self, frames: int) -> int:
        """Visible (query, key) pairs of a head."""
        w = min(self.window, frames - 1)
        return frames * (2 * w + 1) - w * (w + 1)

    def operations(self, batch: int, frames: int) -> int:
        attention = 4 * batch * self.width * self.pairs(frames) * self.layers
        return attention + sum(p.operations(batch * frames) * p.times for p in self.products)


def network_of(preset: str) -> tuple[nn.Module, Network]:
    """A preset's network on the meta device, and its sizes."""
    settings = PRESETS[preset]
    with torch.device("meta"):
        network = settings.build(FEATURES).eval()
    a = settings.arguments()
    return network, Network(FEATURES, a["d_model"], a["heads"], a["layers"], a["window"], a["mlp_ratio"] * a["d_model"])


class _Operators(TorchDispatchMode):
    """Counts the operators that compute something: no views, nothing that only allocates or asks."""

    NOTHING = ("aten::empty", "aten::_unsafe_view", "aten::promote_types")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function._schema.name
        if not function.is_view and not name.startswith(self.NOTHING):
            self.seen[name] += 1
        return function(*arguments, **(options or {}))


def launches(network: nn.Module, sizes: Network, batch: int, frames: int) -> Counter[str]:
    """Kernels of one captured step on CUDA in float32, by operator: one each, and a norm's own where no backend for
    CUDA has it."""
    meta = torch.device("meta")
    steps = 8  # of the tables, of which one row is taken
    integers: dict[str, Any] = {"dtype": torch.int64, "device": meta}
    tensors = {
        "x": torch.empty(batch, frames, sizes.features, device=meta),
        "samples": torch.empty(batch, **integers),
        "coefficients": torch.empty(steps, len(STEP_COLUMNS), device=meta),
        "told": torch.empty(steps, sizes.layers, 6 * sizes.width, device=meta),
        "words": torch.empty(steps, **integers),
    }
    cursor = torch.zeros(1, **integers)
    plan: Any = SimpleNamespace(draws=True, clips=False)
    loop = sampling._Loop(network, plan, tensors, 0, frames)

    def on_cuda(op: str, *_: object) -> str:
        table = _dispatch._IMPLEMENTATIONS[op]
        return next(name for name in ("cuda", "triton", "reference") if name in table)

    # It knows no meta tensors.
    autocast: dict[str, Any] = {"is_autocast_enabled": lambda *_: False, "autocast": lambda *_, **__: nullcontext()}
    with (
        torch.no_grad(),
        mock.patch.object(_dispatch, "_choose", on_cuda),
        mock.patch.multiple(torch, **autocast),
        _Operators() as step,
    ):
        loop.captured_step(tensors, cursor)
        cursor.add_(1)
    if on_cuda("norm_affine") == "reference":
        norms = step.seen.pop("sinmdm::norm_affine", 0)
        x, row = torch.empty(batch, frames, sizes.width, device=meta), torch.empty(1, sizes.width, device=meta)
        with torch.no_grad(), _Operators() as one:
            norm_affine.norm_affine(x, row, row, 0, 1e-5, False)
        for name, count in one.seen.items():
            step.seen[f"norm_affine: {name}"] = norms * count
    return step.seen


@dataclass(frozen=True)
class Way:
    """How blocks work. largest: blocks of the launch's clusters. ahead: weights come while a block waits. budget: bytes
    of shared memory of a block. warps: products by mma.sync."""

    what: str
    largest: int
    ahead: bool
    budget: int = SHARED
    warps: bool = False


WAYS = {
    "alone": Way("every block for itself, weights on the way", 1, False),
    "dependent": Way("the same, weights ahead, half of the shared memory", 1, True, HALF),
    "ahead": Way("the same, weights ahead, all of it", 1, True),
    "clusters dependent": Way("clusters of up to 8, weights ahead, half of the shared memory", 8, True, HALF),
    "clusters": Way("clusters of up to 8, weights ahead, all of it", 8, True),
    "clusters warps": Way("the same by mma.sync", 8, True, warps=True),
}


@dataclass(frozen=True)
class Tiling:
    """One way to cut a product: units of height x width over a share of the depth. Of a cluster, by_rows units share
    weights and by_columns units share rows. draws: bytes out of the second cache on the way; ahead: those before. Times
    are bounds."""

    height: int
    width: int
    splits: int
    by_rows: int
    by_columns: int
    units: int
    waves: int
    shared: int
    draws: float
    ahead: float
    tensor: float
    port: float
    cache: float

    @property
    def seconds(self) -> float:
        return max(self.tensor, self.port, self.cache)


Tilings = dict[str, dict[str, Tiling]]  # by way and product


def tensor_seconds(height: int, width: int, depth: int, warps: bool = False) -> float:
    """Of one block: the matrix units, or their operands out of shared memory. m64nNk16 after m64nNk16, the 64 along the
    rows or along the columns, or with `warps` mma.sync by 2 x 2 warps; never faster than the large product."""
    slowest = 2 * height * width * depth / (PRODUCT / MULTIPROCESSORS)
    slices = math.ceil(depth / 16)
    if warps:
        if height % 16:
            return math.inf
        compute = height * width * 16 * 2 / PEAK_A_CYCLE / WARP_SHARE
        operands = 2 * (height + width) * 16 * 2 / SHARED_PORT
        return max(slices * max(compute, operands) / CLOCK, slowest)
    ways = []
    for m, n in ((height, width), (width, height)):
        if m % 64 == 0 and n % 8 == 0 and n <= 256:
            compute, operands = 64 * n * 16 * 2 / PEAK_A_CYCLE, (64 + n) * 16 * 2 / SHARED_PORT
            ways.append(m // 64 * slices * max(compute, operands) / CLOCK)
    return max(min(ways, default=math.inf), slowest)


def tilings(product: Product, rows: int, way: Way) -> Iterator[Tiling]:
    """All tilings that fit. Sums of a split depth stay in the cluster, or go through the second cache where there is
    none. Weights that do not come ahead within the least boundary are waited for."""
    heights = {min(8 * n, 8 * math.ceil(rows / 8)) for n in range(2, 33)} | {64, 128, 256}
    sharing = [n for n in (1, 2, 4, 8) if n <= way.largest]
    inside = way.largest > 1
    for height, width, splits in itertools.product(sorted(heights), range(16, 257, 8), (1, 2, 4, 8)):
        depth = math.ceil(product.depth / splits / 16) * 16
        tensor = tensor_seconds(height, width, depth, way.warps)
        shared = 2 * width * (depth if way.ahead else RING * DEEP) + 2 * RING * DEEP * height + 4 * height * width
        if math.isinf(tensor) or shared > way.budget:
            continue
        row_tiles, column_tiles = math.ceil(rows / height), math.ceil(product.columns / width)
        units = row_tiles * column_tiles * splits
        waves = math.ceil(units / usable(way.largest))
        a, b = 2 * height * depth, 2 * width * depth
        partial = 4 * height * width * (splits - 1) / splits  # a block's part of the exchange of sums
        through = 0 if inside or splits == 1 else 8 * row_tiles * height * product.columns * splits
        for by_rows, by_columns in itertools.product(sharing, sharing):
            cluster = by_rows * by_columns * (splits if inside else 1)
            if cluster > way.largest or row_tiles % by_rows or column_tiles % by_columns:
                continue
            draws = units * a / by_columns + 2 * rows * product.columns + through
            weights = units * b / by_rows
            port, cache = waves * (a + b + partial) / PORT, (draws + weights) / L2_READ
            if way.ahead:
                port = max(waves * (a + partial) / PORT, port - HIDDEN)
                cache = max(draws / L2_READ, cache - HIDDEN)
            yield Tiling(
                height, width, splits, by_rows, by_columns, units, waves, shared, draws, weights,
                waves * tensor, port, cache,
            )  # fmt: skip


def best_tiling(product: Product, rows: int, way: Way) -> Tiling:
    """The fastest by its bound, and of those alike that of the smallest cluster and the fewest units."""
    return min(
        tilings(product, rows, way),
        key=lambda t: (round(t.seconds * 1e8), t.by_rows * t.by_columns * t.splits, t.units),
    )


@dataclass(frozen=True)
class Attention:
    """Attention of tiles of rows, a block a head; with `out`, then the out projection of the tile in the same cluster,
    a block a share of the columns."""

    blocks: int
    draws: float
    ahead: float
    shared: int
    seconds: float


def attention_of(sizes: Network, rows: int, height: int, out: bool) -> Attention:
    """Its bound, beside the softmax and the cluster's barriers."""
    head = sizes.width // sizes.heads
    blocks = math.ceil(rows / height) * sizes.heads
    operands = 2 * head * (height + 2 * (height + 2 * sizes.window))
    ahead, gathered, tensor = 0, 0.0, 0.0
    if out:
        ahead, gathered = 2 * sizes.width * head, 2 * height * sizes.width * (sizes.heads - 1) / sizes.heads
        tensor = tensor_seconds(height, head, sizes.width)
    waves = math.ceil(blocks / (usable(sizes.heads) if out else MULTIPROCESSORS))
    seconds = waves * (max(operands / PORT, blocks * operands / L2_READ) + gathered / PORT + tensor)
    shared = ahead + operands + 2 * height * sizes.width + 4 * height * head
    return Attention(blocks, blocks * operands, blocks * ahead, shared, seconds)


def us(seconds: float) -> str:
    return f"{seconds / MICRO:.2f}"


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def report_stages(sizes: Network, batch: int, frames: int) -> None:
    """What a step is made of."""
    rows = batch * frames
    heading(f"Stages of a step, B {batch}, T {frames}: {rows} rows, bf16 weights")
    print("product                 shape times    weights MB bf16   GFLOP  in KB out KB")
    for p in sizes.products:
        print(
            f"{p.name:8} {f'{rows} x {p.depth} x {p.columns}':>20} {p.times:5} {p.weights:10,}",
            f"{2 * p.weights * p.times / MB:7.2f} {p.operations(rows) * p.times / 1e9:7.3f}",
            f"{2 * rows * p.depth / KB:6.0f} {2 * rows * p.columns / KB:6.0f}",
        )
    attention = sizes.operations(batch, frames) - sum(p.operations(rows) * p.times for p in sizes.products)
    print(f"attention: {sizes.pairs(frames)} visible pairs a head; {attention / 1e9:.3f} GFLOP in all layers")
    weights, a_layer = 2 * sizes.weights, 2 * sum(p.weights for p in sizes.products if p.times > 1)
    print(f"weights: {weights / MB:.2f} MB in bf16, {a_layer / MB:.2f} MB a layer, which is", end=" ")
    print(f"{a_layer / MULTIPROCESSORS / KB:.1f} KB a multiprocessor; in float32 {2 * weights / MB:.1f} MB")
    print(f"biases and relative biases: {sizes.biases:,} numbers, {4 * sizes.biases / KB:.0f} KB in float32")
    told = 4 * sizes.layers * 6 * sizes.width
    print(f"modulation, float32: {told / KB:.0f} KB a step, {1000 * told / MB:.1f} MB of 1000 steps")
    state, residual = 4 * rows * sizes.features, 4 * rows * sizes.width
    between = state + residual + 2 * rows * (5 * sizes.width + sizes.hidden)
    print(f"state {state / KB:.0f} KB, residual {residual / KB:.0f} KB (float32)", end=", ")
    print(f"with q, k, v, attended, bf16 residual and hidden layer {between / MB:.2f} MB")
    operations = sizes.operations(batch, frames)
    print(f"operations: {operations / 1e9:.3f} GFLOP, {operations / weights:.0f} a byte of weights")


def report_floors(sizes: Network, operations: float) -> None:
    """What no way of computing goes below."""
    heading("Floors of any way of computing, microseconds")
    weights = 2 * sizes.weights
    for card in CARDS:
        print(
            f"{card.name}: weights from memory {us(weights / card.bandwidth)};",
            f"products at {card.product / 1e12:.0f} TFLOP/s {us(operations / card.product)};",
            f"weights are {weights / card.cache:.0%} of the second cache,",
            f"{weights / (0.75 * card.cache):.0%} of the 3/4 that may be set aside",
        )
    print(f"weights once out of the second cache at {L2_READ / 1e12} TB/s {us(weights / L2_READ)},", end=" ")
    print(f"at the {L2_COPY / 1e12} TB/s of a copy {us(weights / L2_COPY)}")
    print(f"into one multiprocessor, KB a us: {PORT / 1e9:.0f} at its port,", end=" ")
    print(f"{L2_READ / MULTIPROCESSORS / 1e9:.0f} where all draw at once")


def report_tiles(sizes: Network, rows: int) -> Tilings:
    """The simplest tiles, and the best ones in every way of WAYS."""
    heading("The simplest tiles: 64 x 64 outputs, each over the whole depth")
    drawn = 0.0
    for p in sizes.products:
        tiles = math.ceil(rows / 64) * math.ceil(p.columns / 64)
        operands, padding = 2 * 128 * p.depth, tiles * 64 * 64 / (rows * p.columns)
        drawn += tiles * operands * p.times
        print(
            f"{p.name:7} {tiles:4} tiles, padding {padding:.2f} times; of one the products",
            f"{us(tensor_seconds(64, 64, p.depth))}, operands {operands / KB:.0f} KB {us(operands / PORT)}; of all",
            f"{tiles * operands / MB:.1f} MB {us(tiles * operands / L2_READ)} us",
        )
    print(
        f"a step: {drawn / MB:.0f} MB out of the second cache, {drawn / 2 / sizes.weights:.1f} times the weights,",
        end=" ",
    )
    print(f"{us(drawn / L2_READ)} us; rows padded to 8, 16, 64:", end=" ")
    print(", ".join(f"{math.ceil(rows / n) * n / rows:.2f}" for n in (8, 16, 64)))
    found: Tilings = {}
    for way, how in WAYS.items():
        heading(f"Best tiles, '{way}': {how.what}")
        found[way] = {p.name: best_tiling(p, rows, how) for p in sizes.products}
        for name, t in found[way].items():
            print(
                f"{name:7} {t.height:3} x {t.width:3}, depth / {t.splits}, shared by {t.by_rows} x {t.by_columns}:",
                f"{t.units:3} units, {t.waves} wave, {t.shared / KB:.0f} KB;",
                f"tensor {us(t.tensor)}, port {us(t.port)}, cache {us(t.cache)}: {us(t.seconds)} us;",
                f"{t.draws / MB:.1f} + {t.ahead / MB:.1f} MB",
            )
        total = sum(found[way][p.name].seconds * p.times for p in sizes.products)
        drawn = sum((found[way][p.name].draws + found[way][p.name].ahead) * p.times for p in sizes.products)
        print(f"a step: {us(total)} us one after another; {drawn / MB:.0f} MB, {us(drawn / L2_READ)} us of the cache")
    print("\nmultiprocessors that clusters of 1, 2, 4, 8, 16 reach:", [usable(n) for n in (1, 2, 4, 8, 16)])
    return found


def report_fusions(sizes: Network, rows: int, found: Tilings) -> None:
    """What was weighed to save a boundary, and small sums of the design."""
    heading("Fusions weighed, and small sums")
    head, halo = sizes.width // sizes.heads, 2 * sizes.window
    for height in (16, 56):
        factor = (height + 2 * (height + halo)) / (3 * height)
        print(
            f"qkv with attention, {height} rows: {math.ceil(rows / height) * sizes.heads} blocks,",
            f"{factor:.2f} times qkv's operations, {2 * 3 * head * sizes.width / KB:.0f} KB of weights a block",
        )
    both = attention_of(sizes, rows, 16, True)
    print(
        f"attention with out, 16 rows: {both.blocks} blocks of {usable(sizes.heads)}; {both.draws / MB:.1f} MB",
        f"+ {both.ahead / MB:.1f} MB ahead; {both.shared / KB:.0f} KB; {us(both.seconds)} us;",
        f"out by itself {us(found['clusters']['out'].seconds)} us",
    )
    again = sizes.hidden // head // sizes.heads
    print(
        f"out in every cluster of up: {again} times its operations,",
        f"{us(again * 2 * rows * sizes.width**2 / PRODUCT)} us, {again * 4 * 2 * sizes.width**2 / MB:.1f} MB a layer",
    )
    slices = usable(8) // 8 // 3
    print(
        f"up with down, 3 tiles of rows x {slices} slices of the hidden layer:",
        f"{slices * 4 * rows * sizes.width / MB:.2f} MB of partial sums a layer, written and read",
    )
    t = found["clusters"]["qkv"]
    normed, gained = 4 * t.height * sizes.width, 4 * t.width * sizes.width / t.splits  # bytes read and written
    print(
        f"norm of {t.height} rows in shared memory {us(normed / SHARED_PORT / CLOCK)} us on the way,",
        f"{us(2 * sizes.layers * normed / SHARED_PORT / CLOCK)} a step;",
        f"its gain into {t.width} x {sizes.width // t.splits} weights",
        f"{us(gained / SHARED_PORT / CLOCK)} us in the wait",
    )
    constants = 4 * sizes.layers * (3 * sizes.width + sizes.hidden)
    print(f"shift times weights + bias: {constants / KB:.0f} KB a step, {constants * 1000 / MB:.0f} MB of 1000 steps")
    print(f"noise: {rows * sizes.features:,} normals, {rows * sizes.features // 2:,} counters at two a thread")
    stages, tiles = 4 * sizes.layers + 2, math.ceil(rows / 16)
    print(f"flags: {stages} stages x {tiles} tiles x 128 bytes: {stages * tiles * 128 / KB:.0f} KB")
    for blocks, stack in ((16, 256), (104, 64)):
        print(f"emulated: {blocks} blocks x 288 threads x {stack} KB of stack: {blocks * 288 * stack / KB:.0f} MB")
    print("registers of a thread, 256, 288, 384 of them:", [65536 // n // 8 * 8 for n in (256, 288, 384)])


def report_today(sizes: Network, rows: int, seen: Counter[str], operations: float) -> float:
    """What is launched today; returns the seconds of its products as whole waves of tiles."""
    heading("Today's graph, float32: the captured step of sinmdm.diffusion.sample, counted on the meta device")
    for name, number in sorted(seen.items(), key=lambda item: -item[1]):
        print(f"{number:4} {name}")
    print(f"{sum(seen.values())} nodes")
    waves = 0.0
    for p in sizes.products:
        tiles = math.ceil(rows / 128) * math.ceil(p.columns / 64)
        waves += p.times * math.ceil(tiles / MULTIPROCESSORS) * 2 * 128 * 64 * p.depth
    tiled = waves / (FLOAT32 / MULTIPROCESSORS)
    print(f"products at {FLOAT32 / 1e12:.0f} TFLOP/s {us(operations / FLOAT32)} us;", end=" ")
    print(f"as whole waves of 128 x 64 tiles, depth not split, {us(tiled)} us")
    products = sum(p.times for p in sizes.products)
    print(
        f"under autocast to bf16 at least {2 * products} nodes more (weight and bias of {products} products),", end=" "
    )
    print(f"{6 * sizes.weights / MB:.0f} MB of casts: {us(6 * sizes.weights / CARDS[0].bandwidth)} us on an H100")
    return tiled


Times = dict[str, float]  # by case


def predictions(sizes: Network, rows: int, found: Tilings, nodes: int, float32: Times) -> dict[str, Times]:
    """Seconds of a step by what computes it."""
    n = sizes.layers
    plain, few, library = 5 * n + 2, 4 * n + 2, 9 * n + 11
    total = {way: sum(found[way][p.name].seconds * p.times for p in sizes.products) for way in found}
    split = {way: sum(p.times for p in sizes.products if found[way][p.name].splits > 1) for way in found}
    apart, both = (attention_of(sizes, rows, 16, out).seconds for out in (False, True))

    def alone(way: str, case: str) -> float:
        """Of `plain` stages; sums of a split depth meet in the second cache, which is another ramp."""
        slowness, softmax, ramp = (LEADS[name].at(case) for name in ("slowness", "softmax", "ramp"))
        return slowness * (total[way] + n * apart) + n * softmax + (plain + split[way]) * ramp

    def clustered(way: str, case: str) -> float:
        """Of `few` stages: attention and out projection are one, with two barriers of the cluster."""
        names = ("slowness", "softmax", "ramp", "cluster")
        slowness, softmax, ramp, cluster = (LEADS[name].at(case) for name in names)
        out = found[way]["out"]
        crossings = 2 * n + split[way] - (n if out.splits > 1 else 0)
        return slowness * (total[way] + n * (both - out.seconds)) + n * softmax + few * ramp + crossings * cluster

    def each(work: Any, boundary: Any) -> Times:
        return {case: work(case) + boundary(case) for case in CASES}

    def boundaries(kind: str, number: int) -> Any:
        return lambda case: number * LEADS[kind].at(case)

    def barriers(number: int) -> Any:
        return lambda case: LEADS["node"].at(case) + (number - 1) * LEADS["barrier"].at(case)

    def small(number: int) -> Any:
        return lambda case: number * (LEADS["node"].at(case) + LEADS["rest"].at(case))

    return {
        f"(a) today's graph, float32: {nodes} nodes": each(lambda case: float32[case], small(nodes)),
        f"(a') library products in bf16, few kernels beside: {library} nodes": each(
            lambda case: LEADS["slowness"].at(case) * total["alone"], small(library)
        ),
        f"(b) fused kernels: {plain} nodes": each(lambda case: alone("alone", case), boundaries("node", plain)),
        f"(b') dependent launches: {plain} nodes": each(
            lambda case: alone("dependent", case), boundaries("dependent", plain)
        ),
        f"(b'') and clusters: {few} nodes": each(
            lambda case: clustered("clusters dependent", case), boundaries("dependent", few)
        ),
        f"(c) megakernel: 1 node, {plain - 1} barriers": each(lambda case: alone("ahead", case), barriers(plain)),
        f"(c') and clusters: 1 node, {few - 1} barriers": each(lambda case: clustered("clusters", case), barriers(few)),
        "(c'') the same by mma.sync": each(lambda case: clustered("clusters warps", case), barriers(few)),
    }


def report_predictions(sizes: Network, rows: int, found: Tilings, nodes: int, float32: Times) -> None:
    """Predicted times, the floors of the two goals, and what would have to hold for the aims."""
    heading("Predicted times of a step, microseconds: at the best, the likely and the worst leads")
    times = predictions(sizes, rows, found, nodes, float32)
    for name, row in times.items():
        print(f"{name:66} " + "  ".join(f"{row[case] / MICRO:6.1f}" for case in CASES))
    by = {name.split(")")[0].lstrip("("): row for name, row in times.items()}
    n = sizes.layers
    plain, few = 5 * n + 2, 4 * n + 2
    apart, both = (attention_of(sizes, rows, 16, out).seconds for out in (False, True))
    graph_work = sum(found["alone"][p.name].seconds * p.times for p in sizes.products) + n * apart
    out = found["clusters"]["out"].seconds
    work = sum(found["clusters"][p.name].seconds * p.times for p in sizes.products) + n * (both - out)
    node, barrier, ramp, slowness = (LEADS[name] for name in ("node", "barrier", "ramp", "slowness"))
    for case in CASES:
        parts = {
            "work": slowness.at(case) * work,
            "node and barriers": node.at(case) + (few - 1) * barrier.at(case),
            "ramps": few * ramp.at(case),
        }
        parts["softmax and clusters"] = by["c'"][case] - sum(parts.values())
        print(f"(c') {case}: " + ", ".join(f"{name} {us(seconds)}" for name, seconds in parts.items()), end="; ")
        ends, whole = parts["node and barriers"] + parts["ramps"], by["c'"][case]
        print(f"boundaries {us(ends)} of {us(whole)}")

    heading("Floors of the two goals: bounds of the tiles and the least cost of a boundary, nothing else")
    for name, bound, ends, aim in (
        (f"graph of fused kernels, {plain} nodes", graph_work, plain * node.at("low"), 100 * MICRO),
        (f"megakernel, 1 node, {few - 1} barriers", work, node.at("low") + (few - 1) * barrier.at("low"), 50 * MICRO),
    ):
        floor = bound + ends
        print(f"{name}: {us(bound)} + {us(ends)} = {us(floor)} us; 1.5 times {us(1.5 * floor)};", end=" ")
        print(f"the aim of {aim / MICRO:.0f} is {aim / floor:.2f} times it")
    for case in ("low", "mid"):
        rest = by["c'"][case] - (few - 1) * (barrier.at(case) + ramp.at(case))
        print(f"(c') in 50 us, all else at the {case} leads ({us(rest)} us): a barrier and its ramp may take", end=" ")
        print(
            f"{us((50 * MICRO - rest) / (few - 1))} us; leads",
            [round(barrier.at(c) / MICRO + ramp.at(c) / MICRO, 1) for c in CASES],
        )
    for step in INSTRUCTIONS:
        print(
            f"at {us(step)} us a dependent step (Hazy Research, B200): {us(few * step + slowness.at('mid') * work)} us"
        )
    pairs = (
        ("a", "a'"),
        ("a'", "b"),
        ("b", "b'"),
        ("b'", "b''"),
        ("b''", "c'"),
        ("b", "c'"),
        ("a", "b''"),
        ("c''", "c'"),
    )
    print(
        "gains at the likely leads:",
        ", ".join(f"{old} to {new} {us(by[old]['mid'] - by[new]['mid'])}" for old, new in pairs),
    )


def report_sizes(sizes: Network) -> None:
    """Where boundaries stop mattering."""
    heading("Rows, their products at the rate of a large one, and what boundaries are beside them at the likely leads")
    nodes, barriers = (
        (5 * sizes.layers + 2) * LEADS["node"].at("mid"),
        (4 * sizes.layers + 2) * LEADS["barrier"].at("mid"),
    )
    for rows in (200, 400, 800, 1600, 3200, 6400):
        least = sum(p.operations(rows) * p.times for p in sizes.products) / PRODUCT
        print(f"{rows:5}: {us(least):>7} us; nodes of (b) {nodes / (nodes + least):.0%} of both,", end=" ")
        print(f"barriers of (c') {barriers / (barriers + least):.0%}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.megakernel_floor", description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=200)
    arguments = parser.parse_args()
    batch, frames = arguments.batch, arguments.frames
    network, sizes = network_of(PRESET)
    rows, operations = batch * frames, sizes.operations(batch, frames)
    print("Nothing here was measured on a GPU: counts, bounds and predictions.")
    print(f"preset {PRESET}: {sizes}")
    report_stages(sizes, batch, frames)
    report_floors(sizes, operations)
    heading("Leads: best, likely, worst")
    for name, value in LEADS.items():
        print(f"{name:9} {value.low}, {value.mid}, {value.high} {value.unit}: {value.source}")
    found = report_tiles(sizes, rows)
    report_fusions(sizes, rows, found)
    seen = launches(network, sizes, batch, frames)
    tiled, flat = report_today(sizes, rows, seen, operations), operations / FLOAT32
    float32 = {"low": flat, "mid": (flat + tiled) / 2, "high": tiled}
    report_predictions(sizes, rows, found, sum(seen.values()), float32)
    report_sizes(sizes)


if __name__ == "__main__":
    main()
