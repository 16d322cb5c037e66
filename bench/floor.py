"""What the machine can do at best, measured in the same run: copy bandwidth and the rate of matrix products."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .case import Case
from .timing import cpu_clock, cuda_clock

# Bytes of each buffer of the copy, and the side of the square matrices: on a GPU enough for some tenths of a
# millisecond, beside which a launch is nothing.
COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Floor:
    """copy: bytes read and written a second. products: operations a second, by library and dtype."""

    copy: float
    products: dict[str, float]

    def rate(self, dtype: str) -> float:
        """The fastest product for inputs of `dtype`: a half type may be widened, where that multiplies faster."""
        usable = ("float32",) if dtype in ("float32", "float64") else ("float32", dtype)
        return max(rate for name, rate in self.products.items() if name.endswith(usable))

    def by_bytes(self, case: Case) -> float:
        return case.bytes_moved / self.copy

    def by_operations(self, case: Case) -> float:
        return case.operations / self.rate(case.dtype)

    def seconds(self, case: Case) -> float:
        """No implementation on this machine takes less than about this long for the case."""
        return max(self.by_bytes(case), self.by_operations(case))


def _best(function: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls: a floor is what the machine can do, not what it does on average."""
    clock = cuda_clock if device == "cuda" else cpu_clock
    return min([clock(function) for _ in range(repeats + 1)][1:])  # the first is a warm-up


def _onednn_linear(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")


def _copy_bandwidth(device: str, repeats: int) -> float:
    source = torch.ones(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES[device] / _best(lambda: target.copy_(source), device, repeats)


def measure(device: str, repeats: int = 10) -> Floor:
    """Measure the floor of `device`."""
    copy = _copy_bandwidth(device, repeats)
    products = {}
    side = SIDE[device]
    x, y = torch.randn(2, side, side, device=device)
    out = torch.empty_like(x)
    ways: dict[str, Callable[[], object]] = {"x @ y, float32": lambda: torch.matmul(x, y, out=out)}
    if device == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways["oneDNN linear, float32"] = lambda: _onednn_linear(x, y)
    half_x, half_y = x.bfloat16(), y.bfloat16()
    ways["linear, bfloat16"] = lambda: F.linear(half_x, half_y)
    with torch.no_grad():
        for name, way in ways.items():
            products[name] = 2 * side**3 / _best(way, device, repeats)
    return Floor(copy, products)
