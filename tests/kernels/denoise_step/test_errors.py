"""denoise_step and affine_step refuse what they cannot do, and name the argument that it lies in."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from sinmdm.kernels import affine_step, denoise_step

OP = "denoise_step"
_spec = importlib.util.spec_from_file_location("denoise_papers", Path(__file__).with_name("test_denoise_step.py"))
papers: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(papers)
SCHEDULE, SHAPE, NO_SIGNAL = papers.SCHEDULE, papers.SHAPE, papers.NO_SIGNAL


def good() -> dict:
    x, output = torch.randn(2, *SHAPE)
    return {"x_t": x, "model_output": output, "t": 5, "schedule": SCHEDULE, "seed": 1}


def bad_values() -> dict[str, tuple[dict, type[Exception], str]]:
    """What is wrong -> (changed arguments, error, what its message must say)."""
    x = torch.randn(SHAPE)
    blend = {"known": x, "mask": torch.ones(1)}
    second = {"previous_x0": x, "seed": None}
    guided = {"unconditional": x, "guidance": 2.0}
    memory = torch.randn(200)
    return {
        "two dimensions": ({"x_t": x[0]}, ValueError, r"x_t must have shape.*got \(7, 5\)"),
        "half state": ({"x_t": x.half()}, TypeError, "x_t must be float32 or float64, got float16"),
        "model_output's shape": ({"model_output": x[:, 1:]}, ValueError, "model_output must have shape"),
        "model_output's dtype": ({"model_output": x.int()}, TypeError, "model_output must be float16.*got int32"),
        "model_output's device": ({"model_output": x.to("meta")}, ValueError, "model_output must be on x_t's device"),
        "t too large": ({"t": 50}, ValueError, "t must be from 0 to 49, got 50"),
        "t negative": ({"t": -1}, ValueError, "t must be from 0 to 49, got -1"),
        "t's shape": ({"t": torch.tensor([1, 2])}, ValueError, r"t must have shape.*\(3,\), got \(2,\)"),
        "t's dtype": ({"t": torch.ones(3)}, TypeError, "t must be int32 or int64, got float32"),
        "t's values": ({"t": torch.tensor([1, 2, 50])}, ValueError, "t must be from 0 to 49, got values from 1 to 50"),
        "t_prev not below": ({"t_prev": 5}, ValueError, "t_prev must be below t, got 5 for t = 5"),
        "t_prev too low": ({"t_prev": -2}, ValueError, "t_prev must be from -1 to 49, got -2"),
        "a row's t_prev not below": (
            {"t": torch.tensor([5, 6, 7]), "t_prev": torch.tensor([4, 6, 3])}, ValueError, "t_prev must be below t",
        ),
        "prediction": ({"prediction": "score"}, ValueError, "prediction must be one of x0, epsilon, v, got 'score'"),
        "variance": ({"variance": "learned"}, ValueError, "variance must be one of fixed_small, fixed_large"),
        "eta above 1": ({"eta": 1.5}, ValueError, "eta must be from 0 to 1, got 1.5"),
        "eta nan": ({"eta": math.nan}, ValueError, "eta must be from 0 to 1, got nan"),
        "known without mask": ({"known": x}, ValueError, "known and mask must be given together"),
        "mask without known": ({"mask": torch.ones(1)}, ValueError, "known and mask must be given together"),
        "known's shape": ({**blend, "known": x[:1]}, ValueError, "known must have shape"),
        "known's dtype": ({**blend, "known": x.double()}, TypeError, "known must be float32, got float64"),
        "mask's shape": ({**blend, "mask": torch.ones(2)}, ValueError, r"mask.*\(3, 7, 5\), got \(2,\)"),
        "mask's dtype": ({**blend, "mask": torch.ones(1).bool()}, TypeError, "mask must be float32, got bool"),
        "mask above 1": ({**blend, "mask": torch.tensor([2.0])}, ValueError, r"mask must lie in \[0, 1\].*2.0"),
        "mask nan": ({**blend, "mask": torch.tensor([math.nan])}, ValueError, r"mask must lie in \[0, 1\].*nan"),
        "mask with a gradient": (
            {**blend, "mask": torch.ones(1, requires_grad=True)}, ValueError, "mask has no gradient",
        ),
        "mask's device": ({**blend, "mask": torch.ones(1, device="meta")}, ValueError, "mask must be on x_t's device"),
        "no noise": ({"seed": None}, ValueError, "give either seed or noise, got neither"),
        "both": ({"noise": x}, ValueError, "give either seed or noise, not both"),
        "noise's shape": ({"seed": None, "noise": x[:2]}, ValueError, "noise must have shape"),
        "noise where there is none": ({"seed": None, "noise": x, "eta": 0.0}, ValueError, "noise must not be given"),
        "noise in second order": ({**second, "noise": x}, ValueError, "noise must not be given"),
        "eta in second order": ({**second, "eta": 0.5}, ValueError, "eta must be None or 0 where previous_x0"),
        "previous_x0's shape": ({**second, "previous_x0": x[:1]}, ValueError, "previous_x0 must have shape"),
        "t_last alone": ({"t_last": 9}, ValueError, "t_last is the timestep of previous_x0, which is not given"),
        "t_last not above": ({**second, "t_last": 5}, ValueError, "t_last must be above t and below 50, got 5"),
        "t_last beyond": ({**second, "t_last": 50}, ValueError, "t_last must be from 0 to 49, got 50"),
        "t_last's default beyond": ({**second, "t": 49}, ValueError, "t_last must be above t and below 50"),
        "seed": ({"seed": -1}, ValueError, "seed must be an int from 0"),
        "sample runs over": ({"sample": 2**32 - 2}, ValueError, "sample must stay within.*for 3 rows"),
        "out's shape": ({"out": x[:, :3]}, ValueError, "out must have shape"),
        "out's dtype": ({"out": x.double()}, TypeError, "out must be float32, got float64"),
        "out with a gradient": (
            {"x_t": x.clone().requires_grad_(), "out": torch.empty(SHAPE)}, ValueError, "out cannot be given where",
        ),
        "no signal": ({"schedule": NO_SIGNAL, "t": 20, "prediction": "epsilon"}, ValueError, "no signal at t = 20"),
        "no signal in a row": (
            {"schedule": NO_SIGNAL, "t": torch.tensor([1, 20, 2]), "prediction": "epsilon"}, ValueError,
            "no signal at t = ",
        ),
        "unconditional alone": ({"unconditional": x}, ValueError, "unconditional and guidance must be given together"),
        "guidance alone": ({"guidance": 2.0}, ValueError, "unconditional and guidance must be given together"),
        "guidance nan": ({**guided, "guidance": math.nan}, ValueError, "guidance must be finite, got nan"),
        "guidance infinite": ({**guided, "guidance": -math.inf}, ValueError, "guidance must be finite, got -inf"),
        "unconditional's shape": ({**guided, "unconditional": x[:1]}, ValueError, "unconditional must have shape"),
        "unconditional's dtype": ({**guided, "unconditional": x.int()}, TypeError, "unconditional must be float16"),
        "unconditional's device": (
            {**guided, "unconditional": x.to("meta")}, ValueError, "unconditional must be on x_t's device",
        ),
        "clip 0": ({"clip": 0.0}, ValueError, "clip must be above 0, got 0.0"),
        "clip negative": ({"clip": -1}, ValueError, "clip must be above 0, got -1"),
        "clip nan": ({"clip": math.nan}, ValueError, "clip must be above 0, got nan"),
        "threshold negative": ({"dynamic_threshold": -0.1}, ValueError, "dynamic_threshold must be.*1, got -0.1"),
        "threshold above 1": ({"dynamic_threshold": 1.1}, ValueError, "dynamic_threshold must be.*1, got 1.1"),
        "threshold nan": ({"dynamic_threshold": math.nan}, ValueError, "dynamic_threshold must be.*1, got nan"),
        "threshold of another shape": (
            {"dynamic_threshold": 0.5, "model_output": x[:, 1:]}, ValueError, "model_output must have shape",
        ),
        "frame negative": ({"frame": -1}, ValueError, r"frame must be from 0 to 2\*\*40 - 1, got -1"),
        "frame too large": ({"frame": 2**40}, ValueError, r"frame must be from 0 to 2\*\*40 - 1, got 1099511627776"),
        "frame True": ({"frame": True}, ValueError, "frame must be.*got True"),
        "frame fractional": ({"frame": 1.0}, ValueError, "frame must be.*got 1.0"),
        "frame's shape": ({"frame": torch.tensor([1, 2])}, ValueError, r"frame must have shape.*\(3,\), got \(2,\)"),
        "frame's dtype": ({"frame": torch.ones(3)}, TypeError, "frame must be int32 or int64, got float32"),
        "a row's frame negative": (
            {"frame": torch.tensor([1, -2, 3])}, ValueError, "frame must be from 0 .*got values from -2",
        ),
        "a row's frame too large": (
            {"frame": torch.tensor([1, 2**40, 3])}, ValueError, "frame must be from 0 .*from 1 to 1099511627776",
        ),
        "x0_out's shape": ({"x0_out": x[:, :3]}, ValueError, "x0_out must have shape"),
        "x0_out's dtype": ({"x0_out": x.double()}, TypeError, "x0_out must be float32, got float64"),
        "x0_out with a gradient": (
            {"x_t": x.clone().requires_grad_(), "x0_out": torch.empty(SHAPE)}, ValueError, "out cannot be given where",
        ),
        "unconditional with a gradient into out": (
            {**guided, "unconditional": x.clone().requires_grad_(), "out": torch.empty(SHAPE)}, ValueError,
            "out cannot be given where",
        ),
        "x0_out that wants a gradient": (
            {"x0_out": torch.empty(SHAPE, requires_grad=True)}, ValueError, "out cannot be given where",
        ),
        "x0_out of fewer elements": (
            {"x0_out": torch.empty(1, 7, 5).expand(SHAPE)}, ValueError, "x0_out must have an element of its own",
        ),
        "out and x0_out the same": ({"out": x, "x0_out": x}, ValueError, "out must share no memory with x0_out"),
        "out and x0_out overlapping": (
            {"out": memory[:105].view(SHAPE), "x0_out": memory[50:155].view(SHAPE)}, ValueError,
            "share no memory with x0_out",
        ),
        "unknown backend": ({"backend": "c"}, ValueError, "backend must be one of cpu, cuda, reference, triton"),
    }  # fmt: skip


@pytest.mark.parametrize("what", bad_values())
def test_errors_name_the_argument(what: str) -> None:
    denoise_step(**good())  # what the case is changed from is fine
    changed, error, message = bad_values()[what]
    with pytest.raises(error, match=message):
        denoise_step(**good() | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": (2, 7, 5)}, "unconditional must have shape"),
        ({"device": "meta"}, "unconditional must be on x_t's device"),
    ],
    ids=["shape", "device"],
)
def test_a_threshold_names_the_second_prediction(changed: dict, message: str) -> None:
    other = torch.empty(changed.get("shape", SHAPE), device=changed.get("device"))
    with pytest.raises(ValueError, match=message):
        denoise_step(**good(), unconditional=other, guidance=2.0, dynamic_threshold=0.5)


def good_coefficients() -> dict:
    x, output = torch.randn(2, *SHAPE)
    row = SCHEDULE.step_coefficients(torch.tensor([5]), torch.tensor([4]))
    return {"x_t": x, "model_output": output, "coefficients": row, "seed": 1}


def bad_coefficients() -> dict[str, tuple[dict, type[Exception], str]]:
    """As bad_values, of affine_step."""
    x, row = torch.randn(SHAPE), torch.zeros(1, 10)
    shape = r"coefficients must have shape \(1 or batch, 10\) = \(3, 10\), got "
    return {
        "one dimension": ({"coefficients": row[0]}, ValueError, shape + r"\(10,\)"),
        "three dimensions": ({"coefficients": row[None]}, ValueError, shape + r"\(1, 1, 10\)"),
        "rows": ({"coefficients": row.expand(2, 10)}, ValueError, shape + r"\(2, 10\)"),
        "columns": ({"coefficients": row[:, :6]}, ValueError, shape + r"\(1, 6\)"),
        "two dimensions": ({"x_t": x[0]}, ValueError, r"x_t must have shape.*got \(7, 5\)"),
        "half state": ({"x_t": x.half()}, TypeError, "x_t must be float32 or float64, got float16"),
        "model_output's shape": ({"model_output": x[:, 1:]}, ValueError, "model_output must have shape"),
        "model_output's dtype": ({"model_output": x.int()}, TypeError, "model_output must be float16.*got int32"),
        "unconditional's shape": ({"unconditional": x[:2]}, ValueError, "unconditional must have shape"),
        "unconditional's device": ({"unconditional": x.to("meta")}, ValueError, "unconditional must be on x_t's"),
        "known without mask": ({"known": x}, ValueError, "known and mask must be given together"),
        "mask without known": ({"mask": torch.ones(1)}, ValueError, "known and mask must be given together"),
        "known's dtype": ({"known": x.double(), "mask": torch.ones(1)}, TypeError, "known must be float32, got"),
        "mask's shape": ({"known": x, "mask": torch.ones(2)}, ValueError, r"mask must broadcast to \(3, 7, 5\)"),
        "mask's dtype": ({"known": x, "mask": torch.ones(1).double()}, TypeError, "mask must be float32, got float64"),
        "mask with a gradient": (
            {"known": x, "mask": torch.ones(1, requires_grad=True)}, ValueError, "mask has no gradient",
        ),
        "previous_x0's shape": ({"previous_x0": x[:1]}, ValueError, "previous_x0 must have shape"),
        "both noise and seed": ({"noise": x}, ValueError, "give either seed or noise, not both"),
        "noise's dtype": ({"seed": None, "noise": x.double()}, TypeError, "noise must be float32, got float64"),
        "seed": ({"seed": 2**64}, ValueError, "seed must be an int from 0"),
        "step": ({"step": 2**32}, ValueError, "step must stay within"),
        "step's shape": ({"step": torch.tensor([1])}, ValueError, "step must have shape"),
        "sample": ({"sample": 2**32 - 2}, ValueError, "sample must stay within.*for 3 rows"),
        "frame": ({"frame": -1}, ValueError, "frame must be from 0"),
        "out's shape": ({"out": x[:1]}, ValueError, "out must have shape"),
        "out and x0_out the same": ({"out": x, "x0_out": x}, ValueError, "out must share no memory with x0_out"),
        "unknown backend": ({"backend": "c"}, ValueError, "backend must be one of cpu, cuda, reference, triton"),
    }  # fmt: skip


@pytest.mark.parametrize("what", bad_coefficients())
def test_errors_of_affine_step_name_the_argument(what: str) -> None:
    affine_step(**good_coefficients())  # what the case is changed from is fine
    changed, error, message = bad_coefficients()[what]
    with pytest.raises(error, match=message):
        affine_step(**good_coefficients() | changed)


@pytest.mark.parametrize("which", ["x_t", "model_output", "unconditional", "known", "previous_x0", "noise"])
@pytest.mark.parametrize("function", [denoise_step, affine_step], ids=["denoise_step", "affine_step"])
def test_forward_mode_is_an_error_in_every_operand(function: Any, which: str, backend: str) -> None:
    tensors = {"x_t": torch.randn(SHAPE), "model_output": torch.randn(SHAPE)}
    options = {"known": {"mask": torch.ones(1), "known": torch.randn(SHAPE)}, "unconditional": {"guidance": 2.0}}
    options = options.get(which, {}) | {"backend": backend}
    if function is affine_step:
        options = {k: v for k, v in options.items() if k != "guidance"}
        options["coefficients"] = good_coefficients()["coefficients"]
    else:
        options |= {"t": 5, "schedule": SCHEDULE}
    if which not in {"noise", "previous_x0"}:
        options["seed"] = 1
    tensors[which] = torch.randn(SHAPE)
    function(**options | tensors)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="denoise_step has no forward-mode derivative"):
        function(**options | tensors | {which: forward_ad.make_dual(tensors[which], torch.ones(SHAPE))})


def test_forward_mode_of_torch_func_is_an_error(backend: str) -> None:
    x = torch.randn(SHAPE)
    with pytest.raises(RuntimeError, match="denoise_step has no forward-mode derivative"):
        torch.func.jvp(lambda y: denoise_step(y, x, 5, SCHEDULE, seed=1, backend=backend), (x,), (x,))


def test_a_dual_level_without_a_tangent_is_fine(backend: str) -> None:
    expected = denoise_step(**(arguments := good()), backend=backend)
    with forward_ad.dual_level():
        assert torch.equal(denoise_step(**arguments, backend=backend), expected)
