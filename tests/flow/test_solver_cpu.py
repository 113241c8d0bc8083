"""The compiled solver against the reference in plain torch."""

from __future__ import annotations

import ast
import inspect
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import pytest
import torch
import torch.nn.functional as F
from numba import types
from torch import Tensor

from tvnet_cli import TVNet
from tvnet_cli.flow import kernels_cpu, operators, solver_cpu
from tvnet_cli.options import PRESETS

SIZES = [(2, 2), (3, 7), (17, 33), (5, 700), (2, 1600), (70, 4)]
SAMPLERS = ["authors", "exact", "bicubic"]


def random_warp(
    height: int, width: int, sampler: str, *, helpers: bool, last: bool = False, iterations: int = 11, batch: int = 2
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Arguments of ``solve_warp``: smooth random frames, random kernels, flow of about a pixel that also leaves."""
    generator = torch.Generator().manual_seed(height * width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def blurred(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, (2, 2, 2, 2), mode="replicate"), 5, 1)

    first, second = (blurred(255 * torch.rand(batch, 1, height, width, generator=generator)) for _ in range(2))
    p_x, p_y = 0.3 * normal(2, batch, 2, height, width)
    p_x[..., -1] = 0
    p_y[..., -1, :] = 0
    cost = 0.1 + 0.9 * torch.rand(batch, 1, height, width, generator=generator)
    difference = torch.tensor([-1.0, 1.0]).expand(iterations, 2, 2, 2)
    kernels = [difference + 0.1 * normal(iterations, 2, 2, 2) for _ in range(2)]
    fields = [first, second, normal(batch, 2, height, width), p_x, p_y, cost if helpers else None, *kernels]
    return fields, {"sampler": sampler, "ignore_outside": helpers, "last": last}


def solve(engine: Any, fields: list[Any], options: dict[str, Any], numbers: Any = (0.25, 0.15, 0.3)) -> list[Tensor]:
    first, second, u, p_x, p_y, cost, *kernels = fields
    tau, lambda_, theta = numbers
    p = None if p_x is None else (p_x, p_y)
    u, p = engine.solve_warp(first, second, u, p, cost, *kernels, tau=tau, lambda_=lambda_, theta=theta, **options)
    return [u, *(p or ())]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("helpers", [True, False])
def test_a_warp_equals_that_of_the_reference(size, sampler, helpers):
    fields, options = random_warp(*size, sampler, helpers=helpers)
    for found, expected in zip(solve(solver_cpu, fields, options), solve(operators, fields, options), strict=True):
        assert expected.abs().max() > 0.1
        assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("iterations", [1, 2, 200])
def test_the_last_warp_and_a_start_without_dual_field_equal_those_of_the_reference(iterations):
    fields, options = random_warp(19, 41, "exact", helpers=True, last=True, iterations=iterations)
    fields[3:5] = None, None
    (found,), (expected,) = solve(solver_cpu, fields, options), solve(operators, fields, options)
    assert (found - expected).abs().max() < 1e-4


def gradients(engine: Any, fields: list[Tensor | None], options: dict[str, Any]) -> list[Tensor]:
    """Of a random weighting of all results, to all inputs and to tau, lambda and theta."""
    numbers = [torch.tensor(number, requires_grad=True) for number in (0.25, 0.15, 0.3)]
    leaves = [None if field is None else field.clone().requires_grad_() for field in fields]
    generator = torch.Generator().manual_seed(5)
    results = solve(engine, leaves, options, numbers)
    sum((result * torch.randn(result.shape, generator=generator)).sum() for result in results).backward()
    used = [leaf for leaf in [*leaves, *numbers] if leaf is not None]
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in used]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("size", "helpers", "last", "iterations"),
    [
        ((2, 2), True, False, 4),
        ((3, 7), False, True, 9),
        ((17, 33), True, True, 11),
        ((24, 57), False, False, 8),
        ((40, 9), True, False, 3),
    ],
)
def test_gradients_equal_those_of_the_reference(size, sampler, helpers, last, iterations):
    fields, options = random_warp(*size, sampler, helpers=helpers, last=last, iterations=iterations)
    if last:
        fields[3:5] = None, None
    found, expected = gradients(solver_cpu, fields, options), gradients(operators, fields, options)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-5


def test_gradients_through_whole_networks_equal_those_of_the_reference():
    torch.manual_seed(0)
    net = TVNet(2, 2, 7, u0_size=(9, 12))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    x = torch.arange(41.0)
    frames = [
        (128 + 90 * torch.sin(0.3 * x + phase) * torch.cos(0.25 * torch.arange(30.0)[:, None] - phase)).expand(
            2, 3, 30, 41
        )
        for phase in (0.0, 0.2)
    ]
    found = {}
    for solver in ("numba", "torch"):
        net.solver = solver
        net.zero_grad()
        leaves = [frame.clone().requires_grad_() for frame in frames]
        net(*leaves).square().mean().backward()
        found[solver] = [leaf.grad for leaf in leaves] + [parameter.grad for parameter in net.parameters()]
    for one, other in zip(found["numba"], found["torch"], strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_constant_frames_have_no_flow_and_finite_gradients(sampler):
    fields, options = random_warp(18, 21, sampler, helpers=False)
    fields[0] = fields[1] = torch.full_like(fields[0], 77)
    fields[2:5] = torch.zeros_like(fields[2]), None, None
    assert solve(solver_cpu, fields, options)[0].abs().max() == 0
    found, expected = gradients(solver_cpu, fields, options), gradients(operators, fields, options)
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-5


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_equal_the_reference(preset):
    generator = torch.Generator().manual_seed(1)
    frame = F.avg_pool2d(torch.rand(1, 3, 70, 90, generator=generator), 7, 1) * 255
    net = TVNet.from_options(PRESETS[preset])
    flows = {}
    with torch.inference_mode():
        for net.solver in ("numba", "torch"):
            flows[net.solver] = net(frame[..., :60, 2:80], frame[..., 1:61, :78])
    assert flows["torch"].abs().max() > 0.3
    assert (flows["numba"] - flows["torch"]).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", ["authors", 0, 0.8])
def test_preparation_equals_the_reference(channels, sigma):
    first, second = torch.randint(0, 200, (2, 3, channels, 37, 45)).float()
    second[1] = first[1] = 9  # one level, which cannot be stretched
    for found, expected in zip(
        solver_cpu.prepare(first, second, sigma), operators.prepare(first, second, sigma), strict=True
    ):
        assert (found - expected).abs().max() < 2e-4


@pytest.mark.parametrize("sigma", ["authors", 0])
def test_gradients_of_the_preparation_equal_the_reference(sigma):
    frames = torch.randint(0, 200, (2, 3, 3, 20, 25)).float()
    frames[:, 1] = 9  # one level
    weights, found = torch.randn(2, 3, 1, 20, 25), []
    for engine in (solver_cpu, operators):
        leaves = [frame.clone().requires_grad_() for frame in frames]
        torch.stack(engine.prepare(*leaves, sigma)).mul(weights).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_the_range_of_a_pair_is_that_of_both_frames():
    first, second = torch.full((2, 1, 1, 16, 16), 50.0)
    second[..., 3, 4] = 60
    prepared = solver_cpu.prepare(first, second, 0)
    assert prepared[0].max() == 0
    assert prepared[1].max() == 255


@pytest.mark.parametrize("size", [(16, 16), (2, 2), (1, 9), (31, 50)])
def test_the_median_equals_the_reference_to_the_last_bit(size):
    field = torch.randn(2, 2, *size)
    assert torch.equal(solver_cpu.median_filter(field, 5), operators.median_filter(field, 5))
    assert torch.equal(solver_cpu.median_filter(field.round(), 5), operators.median_filter(field.round(), 5))
    assert torch.equal(solver_cpu.median_filter(field, 3), operators.median_filter(field, 3))


def test_frames_that_lie_anyhow_in_memory_are_taken():
    fields, options = random_warp(20, 31, "exact", helpers=True)
    turned = [None if field is None else field.mT.contiguous().mT for field in fields]
    for found, expected in zip(solve(solver_cpu, turned, options), solve(solver_cpu, fields, options), strict=True):
        assert torch.equal(found, expected)


def test_callers_on_several_threads_do_not_disturb_each_other():
    warps = [random_warp(20 + size, 30, "exact", helpers=True) for size in range(8)]
    alone = [solve(solver_cpu, *warp)[0] for warp in warps]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda warp: solve(solver_cpu, *warp)[0], warps * 5))
    for found, expected in zip(together, alone * 5, strict=True):
        assert torch.equal(found, expected)


def test_a_solver_that_does_not_serve_is_an_error():
    frame = 255 * torch.rand(1, 1, 16, 16)
    with pytest.raises(ValueError, match="solver must be one of"):
        TVNet(solver="fast")
    with pytest.raises(ValueError, match=r"numba does not serve torch.float64 on cpu"):
        TVNet(solver="numba").double()(frame, frame)
    with pytest.raises(ValueError, match=r"triton does not serve torch.float32 on cpu"):
        TVNet(solver="triton")(frame, frame)


POINTER, SUMS, NUMBER, COUNT = types.CPointer(types.float32), types.CPointer(types.float64), types.float32, types.int64


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for the registers of x86")
@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (kernels_cpu._u_row, (COUNT, *[POINTER] * 12, NUMBER, POINTER)),
        (kernels_cpu._p_row, (COUNT, *[POINTER] * 6, *[NUMBER] * 5)),
        (kernels_cpu._p_row_adjoint, (COUNT, *[POINTER] * 8, *[NUMBER] * 6, *[POINTER] * 3, SUMS)),
        (kernels_cpu._gradient_row_adjoint, (COUNT, *[POINTER] * 4, *[NUMBER] * 4)),
        (kernels_cpu._divergence_row_adjoint, (COUNT, *[POINTER] * 8, *[NUMBER] * 5, SUMS)),
        (kernels_cpu._data_row_adjoint, (COUNT, *[POINTER] * 8, NUMBER, *[POINTER] * 4, SUMS)),
        (kernels_cpu._blur_row, (COUNT, *[POINTER] * 7)),
        (kernels_cpu._sort_columns, (COUNT, *[POINTER] * 10)),
        (kernels_cpu._median_of_sorted_columns, (COUNT, *[POINTER] * 6)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rows_are_worked_on_by_vectors(kernel, arguments):
    """Without the noalias flag the compiler adds checks to each row or gives up on it, silently."""
    options = {"fastmath": True, "error_model": "numpy", **kernels_cpu.ROW_COMPILER}
    anew = numba.njit(**options)(kernel.py_func)  # what comes from the cache has no assembly to look at
    anew.compile(arguments)
    (assembly,), (optimised,) = anew.inspect_asm().values(), anew.inspect_llvm().values()
    assert re.findall(r"\tv?(?:mul|min|max|fn?m(?:add|sub)\d+)ps\t", assembly)
    assert "vector.memcheck" not in optimised


def test_frames_that_are_not_numbers_spoil_their_own_gradients_alone():
    fields, options = random_warp(17, 33, "exact", helpers=True)
    before = gradients(solver_cpu, fields, options)
    larger, _ = random_warp(40, 33, "exact", helpers=True)  # fills more rows of the memory that both work in
    gradients(solver_cpu, [larger[0], torch.full_like(larger[1], torch.nan), *larger[2:]], options)
    for one, other in zip(gradients(solver_cpu, fields, options), before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
@pytest.mark.parametrize("sampler", ["authors", "exact", "bicubic"])
def test_a_flow_that_leads_nowhere_reads_no_memory_of_others(sampler, value):
    fields, options = random_warp(64, 80, sampler, helpers=True)
    fields[2][:, :, ::3, ::5] = value
    u = solve(solver_cpu, fields, options)[0]
    assert value == value or u.isnan().any()
    gradients(solver_cpu, fields, options)


def test_pointers_lead_into_memory_of_the_caller_alone():
    """An array that compiled code makes is freed behind the last use of its name, whatever points into it."""
    used = 0
    for function in ast.parse(inspect.getsource(kernels_cpu)).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        held = {argument.arg for argument in function.args.args}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                pairs = [(node.targets[0], node.value)]
                if isinstance(node.value, ast.Tuple):
                    pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
                held |= {
                    ast.unparse(name)
                    for name, value in pairs
                    if ast.unparse(value).removesuffix(".reshape(-1)") in held
                }
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "_at":
                assert ast.unparse(node.args[0]) in held, f"{function.name}: {ast.unparse(node)}"
                used += 1
    assert used > 50


def test_the_run_that_compiles_gives_what_all_later_ones_give(tmp_path):
    code = (
        "import hashlib, torch; from tvnet_cli import TVNet\n"
        "noise = torch.arange(2 * 40 * 50.0).mul(2.1).sin().reshape(2, 1, 40, 50)\n"
        "first, second = torch.nn.functional.avg_pool2d(noise, 3, 1)\n"
        "with torch.inference_mode(): flow = TVNet(num_iterations=9)(99 + 90 * first[None], 99 + 90 * second[None])\n"
        "print(hashlib.sha256(flow.numpy().tobytes()).hexdigest(), float(flow.abs().max()) > 0.1)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    compiling, later = (
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True) for _ in "12"
    )
    assert compiling.stdout == later.stdout
    assert "True" in later.stdout


def test_compiled_code_is_not_kept_where_there_is_no_place(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert not kernels_cpu._can_cache()
    monkeypatch.undo()
    assert kernels_cpu._can_cache()


def test_who_waits_long_for_the_compiler_is_told_why(monkeypatch, caplog):
    monkeypatch.setattr(solver_cpu, "PATIENCE", 0.01)
    monkeypatch.setattr(solver_cpu, "_begun", set())
    solver_cpu._say_why.cache_clear()
    solver_cpu._compile("fast", lambda: None)
    assert not caplog.records
    solver_cpu._compile("slow", lambda: time.sleep(0.5))
    solver_cpu._compile("slower", lambda: time.sleep(0.5))
    assert [record.message for record in caplog.records] == [
        "compiling the flow solver for this processor, once: about half a minute"
    ]


@pytest.mark.parametrize("size", [(31, 40), (7, 12), (37, 3), (50, 90), (2, 2)])
def test_resizing_equals_the_reference(size):
    image = torch.randn(2, 2, 37, 45)
    for antialias in (True, False):
        for name in ("resize", "resize_flow"):
            found = getattr(solver_cpu, name)(image, size, antialias)
            assert (found - getattr(operators, name)(image, size, antialias)).abs().max() < 1e-5
