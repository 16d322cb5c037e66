"""A built library of the native ops against the reference, in a process of its own: one process loads only one."""

import os
import subprocess
import sys
from pathlib import Path

import torch

# Loads a built library in place of the one found at import, and compares every native CPU op with its reference.
PARITY = """
import sys, torch
from sinmdm import kernels
from sinmdm.kernels import _native
_native._state.update(how="ahead of time", why=None)
torch.ops.load_library(sys.argv[1])
schedule = kernels.Schedule.cosine(50)
worst = 0.0
for shape in ((1, 1, 1), (2, 9, 5), (3, 41, 173), (2, 1025, 1), (0, 4, 4), (2, 0, 3)):
    for layout in range(3):
        def state():
            x = torch.randn(shape)
            if layout == 1:
                x = x.transpose(1, 2).contiguous().transpose(1, 2)
            if layout == 2:
                x = torch.cat([x, x, x], 2)[..., shape[2]:2 * shape[2]]
            return x
        rows = shape[0]
        x, known, noise, previous = state(), state(), state(), state()
        t = torch.arange(rows) + 7
        mask = torch.rand(shape[1], 1)
        outputs = [state().to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)]
        calls = [
            lambda b: kernels.philox_normal(shape[1:], seed=2**63 + 5, sample=torch.arange(rows), backend=b),
            lambda b: kernels.q_sample(x, t, schedule, seed=3, backend=b),
            lambda b: kernels.q_sample(x, t, schedule, noise=noise, return_noise=True, backend=b)[1],
            lambda b: kernels.denoise_step(x, x, t, schedule, noise=noise, backend=b),
            lambda b: kernels.denoise_step(x, x, t, schedule, previous_x0=previous, known=known, mask=mask, backend=b),
            lambda b: kernels.denoise_step(x, x, t, schedule, seed=3, out=state(), backend=b),
            lambda b: kernels.philox_normal(shape[1:], seed=3, frame=2**34 // max(shape[2], 1) - 1, backend=b),
            lambda b: kernels.q_sample(x, t, schedule, seed=3, frame=2**40 - 1, backend=b),
            lambda b: kernels.denoise_step(x, x, t, schedule, eta=0.0, clip=0.5, clipped_direction=False,
                                           x0_out=state(), backend=b)[1],
            lambda b: kernels.denoise_step(x, x, t, schedule, previous_x0=previous, clip=0.5, x0_out=previous.clone(),
                                           out=state(), frame=t, backend=b)[0],
            *[lambda b, o=o: kernels.denoise_step(x, o, t, schedule, seed=3, unconditional=o.flip(1), guidance=1.5,
                                                  clip=1.0, known=known, mask=mask, frame=7, backend=b)
              for o in outputs],
            *[lambda b, o=o: kernels.denoise_step(x, o, t, schedule, seed=3, prediction="v", known=known, mask=mask,
                                                  backend=b) for o in outputs],
        ]
        for call in calls:
            difference = (call("cpu") - call("reference")).abs()
            worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
print("worst", worst)
print("cuda", torch.ops.sinmdm.cuda_build() if _native.has_cuda() else None)
print("backend", kernels.backends()["cuda"])
"""
# Normals within 2e-6, and at most fourteen float32 roundings of terms of about 10.
PARITY_BOUND = 2e-6 + 14 * 10 * torch.finfo(torch.float32).eps


def parity(library: Path, **environment: str) -> dict[str, str]:
    """What PARITY printed, as name -> rest of the line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SINMDM_")} | environment
    said = subprocess.run(
        [sys.executable, "-c", PARITY, str(library)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, (said.stdout + said.stderr)[-4000:]
    return dict(line.split(" ", 1) for line in said.stdout.splitlines())
