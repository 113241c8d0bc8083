"""The Triton solver against the reference; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tvnet_cli import TVNet
from tvnet_cli.flow import operators
from tvnet_cli.options import PRESETS

pytest.importorskip("triton", reason="needs Triton, which is not installed")
from tvnet_cli.flow import solver_cuda

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = "first second u p_x p_y cost gradient_kernels divergence_kernels tau lambda_ theta".split()


def warp_inputs(batch: int, height: int, width: int, iterations: int) -> dict[str, Tensor]:
    """All tensors that a warp takes, random, the kernels as if trained."""
    frames = (operators.smooth(torch.rand(batch, 1, height, width) * 255, 1.3) for _ in range(2))
    u, p_x, p_y = torch.randn(3, batch, 2, height, width)
    p_x[..., -1], p_y[..., -1, :] = 0, 0
    cost = 0.2 + 0.8 * torch.rand(batch, 1, height, width)
    kernels = torch.tensor([-1.0, 1.0]) + 0.1 * torch.randn(2, iterations, 2, 2, 2)
    numbers = torch.tensor([0.25, 0.15, 0.3])
    values = *frames, u, 0.5 * p_x, 0.5 * p_y, cost, *kernels, *numbers
    return {name: value.to(DEVICE) for name, value in zip(NAMES, values, strict=True)}


def run(solver, inputs, **how) -> tuple[Tensor, Tensor, Tensor]:
    how = {"sampler": "exact", "ignore_outside": False, "last": False, **how}
    inputs = {"cost": None, **inputs}
    first, second, u, p_x, p_y, cost, gradient_kernels, divergence_kernels, *numbers = (inputs[name] for name in NAMES)
    how |= dict(zip(("tau", "lambda_", "theta"), numbers, strict=True))
    u, p = solver.solve_warp(first, second, u, (p_x, p_y), cost, gradient_kernels, divergence_kernels, **how)
    return u, *(p or ())


def assert_equal_with_gradients(inputs, **how) -> None:
    """Results within 1e-4 pixels and, for a random loss, all gradients within 1e-4 of their length."""
    results, gradients = [], []
    weights: list[Tensor] = []
    for solver in (operators, solver_cuda):
        leaves = {
            name: value.clone().requires_grad_() if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        result = run(solver, leaves, **how)
        weights = weights or [torch.randn_like(field) for field in result]
        sum((field * weight).sum() for field, weight in zip(result, weights, strict=True)).backward()
        results.append([field.detach() for field in result])
        gradients.append({name: leaf.grad for name, leaf in leaves.items() if isinstance(leaf, Tensor)})
    for expected, field in zip(*results, strict=True):
        assert torch.isfinite(field).all()
        assert (field - expected).abs().max() < 1e-4
    for name, expected in gradients[0].items():
        gradient = gradients[1][name]
        if expected is None:  # nothing depends on it
            assert not gradient.any(), name
        else:
            assert torch.isfinite(gradient).all(), name
            assert (gradient - expected).norm() <= 1e-4 * expected.norm(), name


@pytest.mark.parametrize(
    ("size", "iterations", "how"),
    [
        ((1, 9, 35), 2, {"sampler": "exact", "ignore_outside": True}),
        ((1, 10, 34), 2, {"sampler": "authors", "last": True}),
        ((2, 3, 7), 2, {"sampler": "bicubic", "ignore_outside": True, "last": True}),
        ((1, 2, 2), 3, {"sampler": "authors"}),
        ((1, 2, 70), 1, {"sampler": "exact", "last": True}),
    ],
)
def test_a_warp_and_its_gradients_equal_the_reference(size, iterations, how):
    assert_equal_with_gradients(warp_inputs(*size, iterations), **how)


@pytest.mark.parametrize(("iterations", "last"), [(3, False), (7, True)])
def test_gradients_are_right_whatever_the_segments_they_are_computed_in(iterations, last):
    inputs = warp_inputs(1, 4, 5, iterations)
    del inputs["cost"]
    assert_equal_with_gradients({**inputs, "tau": 0.25, "lambda_": 0.15, "theta": 0.3}, last=last)


@pytest.mark.parametrize("sampler", ["authors", "exact"])
def test_constant_frames_have_finite_gradients_equal_to_the_reference(sampler):
    inputs = warp_inputs(1, 4, 6, 2)
    for name, level in (("first", 99), ("second", 100)):
        inputs[name] = torch.full_like(inputs[name], level)
    for name in ("u", "p_x", "p_y"):
        inputs[name] = torch.zeros_like(inputs[name])
    assert_equal_with_gradients(inputs, sampler=sampler)


def test_inputs_may_lie_anyhow_in_memory_and_stay_as_they_are():
    anyhow = warp_inputs(2, 6, 5, 3)
    anyhow["u"] = anyhow["u"][:1].expand(2, -1, -1, -1)
    for name in ("first", "p_x", "cost", "divergence_kernels"):
        anyhow[name] = anyhow[name].mT.contiguous().mT
    straight = {name: value.contiguous() for name, value in anyhow.items()}
    kept = {name: value.clone() for name, value in straight.items()}
    with torch.inference_mode():
        for field, same in zip(run(solver_cuda, straight), run(solver_cuda, anyhow), strict=True):
            assert torch.equal(field, same)
    for name in NAMES:
        assert torch.equal(straight[name], kept[name])
        assert torch.equal(anyhow[name], kept[name])


def test_pairs_in_a_batch_give_what_they_give_alone():
    inputs = warp_inputs(3, 3, 5, 2)
    with torch.inference_mode():
        together = run(solver_cuda, inputs, last=True)
        for pair in range(3):
            one = {name: value[pair : pair + 1] if name in NAMES[:6] else value for name, value in inputs.items()}
            for field, alone in zip(together, run(solver_cuda, one, last=True), strict=True):
                assert torch.equal(field[pair : pair + 1], alone)


def test_what_is_not_a_number_is_not_hidden():
    inputs = warp_inputs(1, 5, 6, 2)
    inputs["first"][0, 0, 2, 3] = torch.nan
    with torch.inference_mode():
        expected, fields = run(operators, inputs), run(solver_cuda, inputs)
    for expectation, field in zip(expected, fields, strict=True):
        assert torch.equal(field.isnan(), expectation.isnan())
    assert fields[0].isnan().any()


def test_a_device_on_which_kernels_do_not_start_or_are_wrong_is_not_usable(monkeypatch):
    usable, device = solver_cuda.usable.__wrapped__, torch.device(DEVICE)
    assert usable(device)
    with monkeypatch.context() as patch:
        patch.setattr(solver_cuda, "solve_warp", lambda *arguments, **_: (0 * arguments[2], arguments[3]))
        with pytest.warns(UserWarning, match="differs from the reference by"):
            assert not usable(device)
    monkeypatch.setattr(solver_cuda, "_update", None)
    with pytest.warns(UserWarning, match="does not start"):
        assert not usable(device)


COMPILE_ALL = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 80, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

def compile_only(kernel, grid):
    def launch(*arguments, **options):
        assert kernel.warmup(*arguments, grid=grid, **options).asm["cubin"]
        compiled.add(kernel.__name__)
    return launch

compiled = set()
triton.runtime.driver.set_active(Driver())
JITFunction.__getitem__ = compile_only

from tvnet_cli.flow import solver_cuda

first, second, cost = torch.rand(3, 1, 1, 16, 16)
u, p_x, p_y = torch.zeros(3, 1, 2, 16, 16).requires_grad_()
kernels = torch.ones(2, 2, 2, 2, 2)
numbers = dict(tau=0.25, lambda_=0.15, theta=0.3)
for cost, how in ((cost, ("exact", True, False)), (None, ("authors", False, True))):
    how = dict(zip(("sampler", "ignore_outside", "last"), how))
    u, p = solver_cuda.solve_warp(first, second, u, (p_x, p_y), cost, *kernels, **numbers, **how)
    if u.requires_grad:
        u.sum().backward()
        u = u.detach()
        p_x, p_y = p_x.detach(), p_y.detach()
print(*sorted(compiled))
"""


def test_every_kernel_compiles_to_the_machine_code_of_a_gpu(tmp_path):
    # The interpreter takes what the compiler refuses. No GPU is needed to compile, with the arguments of real calls.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE_ALL], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["_linearise", "_step_back", "_update"]


@pytest.mark.cuda
@pytest.mark.parametrize("sampler", ["authors", "exact", "bicubic"])
@pytest.mark.parametrize("last", [False, True])
def test_on_a_gpu_fifty_iterations_and_their_gradients_equal_the_reference(sampler, last):
    inputs = warp_inputs(8, 224, 224, 50)
    for name in ("u", "p_x", "p_y"):  # from random ones the reference itself is only good to 3e-3 in float32
        inputs[name] = torch.zeros_like(inputs[name])
    assert_equal_with_gradients(inputs, sampler=sampler, last=last)


@pytest.mark.cuda
@pytest.mark.parametrize("preset", ["tvnet-50", "tv-l1"])
def test_on_a_gpu_the_network_gives_the_flow_of_the_torch_solver(preset):
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(320.0), indexing="ij")
    first, second = (
        (128 + 60 * torch.cos(0.2 * x + move) + 60 * torch.cos(0.15 * y - 0.1 * x - move)).round().to(DEVICE)
        for move in (0.0, 0.2)
    )
    flows = []
    for solver in ("triton", "torch"):
        net = TVNet.from_options(PRESETS[preset], solver=solver).to(DEVICE)
        with torch.inference_mode():
            flows.append(net(first[None, None], second[None, None]))
    assert flows[1].abs().max() > 0.5
    assert (flows[0] - flows[1]).abs().mean() < 1e-4


@pytest.mark.cuda
def test_on_a_gpu_training_keeps_few_iterates():
    peaks = []
    for solver in (solver_cuda, operators):
        inputs = {name: value.requires_grad_() for name, value in warp_inputs(8, 224, 224, 50).items()}
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(solver, inputs)[0].sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1] / 3, peaks
