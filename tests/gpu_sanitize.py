"""Small calls of every op that has CUDA kernels, under the tools of NVIDIA's compute-sanitizer. Installs nothing.

    python tests/gpu_sanitize.py [--tools memcheck racecheck initcheck synccheck]

Exits with 0 where no tool finds anything, 1 where one does, 2 where something is missing (what, it prints).
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from gpu_calls import CALLS, Call, norm_call, qna_call, window_call  # noqa: E402

from sinmdm.kernels import _dispatch  # noqa: E402

FOUND, MISSING = 1, 2
SANITIZER = "compute-sanitizer"
# memcheck sees what lies outside an allocation, and torch's allocator would put many tensors into one.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
# The driver's own probing of newer functions is reported as errors of the API; a launch that fails raises in Python.
OPTIONS = ("--error-exitcode", str(FOUND), "--report-api-errors", "no", "--launch-timeout", "300")
OURS_ALONE = ("--kernel-name", "kns=sinmdm")  # the namespace, in the mangled name
TOOLS = {
    "memcheck": OURS_ALONE,
    "racecheck": OURS_ALONE,
    "synccheck": OURS_ALONE,
    "initcheck": (),  # what torch's kernels have written is initialised, too
}

# Every boundary, lengths, dropout, grouped heads; one frame, more than a tile, more keys than a tile; odd sizes.
SMALL = (
    window_call("clip", 37, (3, 2), dim=16, lengths=True),
    window_call("circular", 21, (4, 4), dim=8, boundary="circular", lengths=True),
    window_call("circular, wider than the sequence", 9, (20, 3), boundary="circular"),
    window_call("shift, dropout", 40, (6, 2), boundary="shift", lengths=True, dropout_p=0.2),
    window_call("odd head_dim", 19, (2, 1), kv_heads=1, dim=5),
    window_call("head_dim 255", 33, (2, 9), heads=2, kv_heads=2, dim=255),
    window_call("one frame", 1, (2, 2)),
    window_call("tiles", 150, (16, 16), heads=2, kv_heads=2, dim=64),
    window_call("wide", 150, (90, 60), heads=2, kv_heads=2, dim=64),
    qna_call("clip", 37, (2, 1), stride=2, lengths=True),
    qna_call("circular", 21, (3, 3), boundary="circular", lengths=True),
    qna_call("odd sizes", 19, (1, 1), heads=3, dim=5),
    qna_call("one frame", 1, (2, 2)),
    qna_call("wide", 150, (90, 60), heads=2),
    norm_call("layer", 19, 48),
    norm_call("layer, odd channels", 19, 37, rows=1),
    norm_call("groups", 37, 48, groups=8),
    norm_call("groups, odd channels", 19, 21, groups=7),
    *(call for call in CALLS if not call.gradients),
)


def of_backend(backend: str, device: str) -> Iterator[tuple[Call, torch.dtype]]:
    """The calls that it takes on this machine, in every dtype."""
    for call in SMALL:
        for dtype in (*call.dtypes, torch.float64) if call.gradients else call.dtypes:
            # A state is float32 in every call: the dtype is its prediction's.
            of_op = str(dtype if call.gradients else torch.float32).removeprefix("torch.")
            if _dispatch._declines(call.op, backend, device, of_op) is None:
                yield call, dtype


def make_calls(backend: str, device: str) -> int:
    """Make every call, as its inputs lie and one element further on; how many there were."""
    made = 0
    for call, dtype in of_backend(backend, device):
        torch.manual_seed(0)
        inputs = call.on(device, dtype)
        moved = {name: x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x) for name, x in inputs.items()}
        for given in (inputs, moved):
            for x in call.results(given, backend).values():
                x.cpu()  # what was never written is seen where it is read
            made += 1
        print(f"{call}, {dtype}", flush=True)
    print(f"{made} calls of {len({call.op for call, _ in of_backend(backend, device)})} ops")
    return made


def find_sanitizer() -> str | None:
    """On PATH, or in the toolkit of the nvcc that is."""
    nvcc = shutil.which(os.environ.get("NVCC") or "nvcc")
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    folders += [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin"]
    return shutil.which(SANITIZER) or next((found for x in folders if (found := shutil.which(SANITIZER, path=x))), None)


def main(arguments_given: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Look for wrong memory accesses and races in every CUDA op.")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help="default: all")
    parser.add_argument("--calls", action="store_true", help="make the calls alone, in this process")
    arguments = parser.parse_args(arguments_given)
    missing = [f"no {SANITIZER} on PATH or beside nvcc: it comes with the CUDA toolkit"] if not find_sanitizer() else []
    lacks = _dispatch.machine_lacks("cuda")
    missing += [lacks] if lacks else []
    if arguments.calls and not lacks:
        return 0 if make_calls("cuda", "cuda") else MISSING
    if missing:
        print("\n".join(missing), file=sys.stderr)
        return MISSING
    failed = []
    for tool in arguments.tools:
        command = [str(find_sanitizer()), "--tool", tool, *OPTIONS, *TOOLS[tool], sys.executable, __file__, "--calls"]
        print(f"{tool}: {' '.join(command)}", flush=True)
        status = subprocess.run(command, env=os.environ | ENVIRONMENT).returncode
        print(f"{tool}: {'nothing found' if status == 0 else f'FAILED with exit status {status}'}", flush=True)
        failed += [tool] if status else []
    print(f"FAILED: {', '.join(failed)}" if failed else f"nothing found by {', '.join(arguments.tools)}")
    return FOUND if failed else 0


if __name__ == "__main__":
    sys.exit(main())
