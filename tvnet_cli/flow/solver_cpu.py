"""The fused CPU solver: the same results as ``operators`` to the last bits but one, many times faster."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from tvnet_cli.device import address_space_left
from tvnet_cli.flow import kernels_cpu as kernels
from tvnet_cli.flow import operators
from tvnet_cli.flow.operators import EPSILON, DualField, Number
from tvnet_cli.options import Presmoothing, Sampler

SAMPLER_NUMBERS = {"authors": kernels.AUTHORS, "exact": kernels.EXACT, "bicubic": kernels.BICUBIC}

SEGMENT = 8  # iterations that the adjoint goes back at once: more need a longer ring, fewer more checkpoints

COMPILER_BYTES = 400 << 20
PATIENCE = 2.0  # seconds before it is said what takes so long

_scratch = threading.local()
_begun: set[str] = set()


@dataclass(frozen=True)
class _Layout:
    """How fields of one size lie in a state."""

    height: int
    width: int

    @cached_property
    def grids(self) -> tuple[kernels.Floats, kernels.Floats, kernels.Floats]:
        """The authors' grids of x and y, and 1 in all columns but the last, to the end of a vector."""
        not_last = np.zeros(_up_to(self.width, kernels.VECTOR), np.float32)
        not_last[: self.width - 1] = 1
        # torch's linspace, whose last bits the authors' sampler depends on.
        grid_x, grid_y = (torch.linspace(-1, 1, length).numpy() for length in (self.width, self.height))
        return grid_x, grid_y, not_last

    @cached_property
    def stride(self) -> int:
        return _up_to(self.width, kernels.VECTOR) + 2 * kernels.PAD

    @cached_property
    def plane(self) -> int:
        """Floats in a plane; not a multiple of 4096 bytes, since pixels at such distances evict each other."""
        return _up_to((self.height + 2) * self.stride, 1024) + 80

    def state(self, name: str = "state") -> kernels.Floats:
        """The planes of a state, in memory of this thread."""
        return self.floats(name, kernels.NUM_PLANES * self.plane)

    def margins(self) -> kernels.Floats:
        """A picture with two pixels more on each side, in memory of this thread."""
        return self.floats("margins", (self.height + 4) * (self.width + 4))

    @staticmethod
    def floats(name: str, size: int) -> kernels.Floats:
        """Memory of this thread, with whatever the last one who used it left there."""
        held: kernels.Floats | None = getattr(_scratch, name, None)
        if held is None or held.size < size:
            held = np.zeros(size, np.float32)
            setattr(_scratch, name, held)
        return held[:size]


def _up_to(number: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-number // multiple) * multiple


_layout = functools.lru_cache(256)(_Layout)


def prepare(
    first: Tensor, second: Tensor, sigma: Presmoothing, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """As ``operators.prepare``, float32; fused for the authors' filter and for none."""
    if sigma not in ("authors", 0) or torch.compiler.is_compiling():
        return operators.prepare(first, second, sigma, dtype)
    if first.dtype != torch.uint8 or second.dtype != torch.uint8:
        first, second = first.to(dtype), second.to(dtype)
    _compile("prepare", lambda: prepare(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), "authors"))
    prepared: tuple[Tensor, Tensor] = _Prepare.apply(first, second, sigma)  # type: ignore[no-untyped-call]
    return prepared


class _Prepare(torch.autograd.Function):
    """Grey levels, stretched and smoothed; keeps the frames alone for the way back."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, sigma: Presmoothing) -> tuple[Tensor, Tensor]:
        frames = first.detach().numpy(), second.detach().numpy()
        batch, _, height, width = first.shape
        prepared = np.empty((2, batch, 1, height, width), np.float32)
        layout, taps = _layout(height, width), _taps(sigma)

        def work(pair: int) -> None:
            levels = layout.floats("images", 2 * height * width).reshape(2, height, width)
            for level, frame in zip(levels, frames, strict=True):
                kernels.grey(np.ascontiguousarray(frame[pair], np.float32), level)
            lowest, highest = kernels.extremes(levels.reshape(2 * height, width))
            for level, out in zip(levels, prepared[:, pair, 0], strict=True):
                kernels.stretch_and_blur(level, lowest, highest, taps, layout.margins(), out)

        _for_each_pair(batch, work)
        ctx.save_for_backward(first, second)
        ctx.sigma = sigma
        return torch.from_numpy(prepared[0]), torch.from_numpy(prepared[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        frames = ctx.saved_tensors
        arrays = [_array(gradient) for gradient in gradients]
        layout, taps = _layout(*frames[0].shape[2:]), _taps(ctx.sigma)
        blurred = [np.empty_like(array) for array in arrays]
        back = [torch.empty_like(frame) for frame in frames]

        def work(pair: int) -> None:
            for array, out in zip(arrays, blurred, strict=True):
                # The filter is symmetric, so it is its own adjoint; a range of 0 to 255 stays as it is.
                kernels.stretch_and_blur(
                    array[pair, 0], np.float32(0), np.float32(255), taps, layout.margins(), out[pair, 0]
                )

        _for_each_pair(len(arrays[0]), work)
        for pair in range(len(back[0])):  # one by one, for the memory
            with torch.enable_grad():
                leaves = [frame[pair : pair + 1].detach().requires_grad_() for frame in frames]
                stretched = operators.stretch_range(*map(operators.grey, leaves))
                parts = torch.autograd.grad(
                    stretched, leaves, [torch.from_numpy(out[pair : pair + 1]) for out in blurred]
                )
            for whole, part in zip(back, parts, strict=True):
                whole[pair : pair + 1] = part
        return *back, None


def _taps(sigma: Presmoothing) -> kernels.Floats:
    """Of the authors' filter by distance; none where there is no filter."""
    return np.array(list(operators.GAUSSIAN_TAPS.values()) if sigma == "authors" else [], np.float32)


def resize(image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """As ``operators.resize``; fused with ``antialias``, where nothing asks for gradients."""
    if not antialias or image.shape[-2:] == size or _needs_gradients(image) or torch.compiler.is_compiling():
        return operators.resize(image, size, antialias)
    _compile("resize", lambda: resize(torch.zeros(1, 1, 2, 2), (3, 3), True))
    images = _array(image)
    batch, channels, height, width = images.shape
    resized = np.empty((batch, channels, *size), np.float32)
    rows, columns = _area_taps(height, size[0]), _area_taps(width, size[1])

    def work(number: int) -> None:
        tall = _layout(height, width).floats("images", size[0] * width).reshape(size[0], width)
        for channel in range(channels):
            kernels.resize_areas(images[number, channel], *rows, *columns, tall, resized[number, channel])

    _for_each_pair(batch, work)
    return torch.from_numpy(resized)


def resize_flow(flow: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """As ``operators.resize_flow``, by ``resize``."""
    if flow.shape[-2:] == size:
        return flow
    return resize(flow, size, antialias) * operators.flow_ratio(flow, size, antialias)


@functools.lru_cache(256)
def _area_taps(old: int, length: int) -> tuple[NDArray[np.int64], kernels.Floats]:
    first, weights = operators.area_taps(old, length)
    return first.numpy(), weights.float().numpy()


def median_filter(field: Tensor, size: int) -> Tensor:
    """As ``operators.median_filter``; fused for 5 x 5, where nothing asks for gradients."""
    if size != 5 or _needs_gradients(field) or torch.compiler.is_compiling():
        return operators.median_filter(field, size)
    _compile("median", lambda: median_filter(torch.zeros(1, 1, 2, 2), 5))
    fields = _array(field)
    filtered = np.empty_like(fields)
    batch, channels, height, width = fields.shape

    def work(number: int) -> None:
        layout = _layout(height, width)
        padded, rows = layout.margins(), layout.floats("images", 5 * (width + 4))
        for channel in range(channels):
            kernels.median5(fields[number, channel], padded, rows, filtered[number, channel])

    _for_each_pair(batch, work)
    return torch.from_numpy(filtered)


def solve_warp(
    first: Tensor,
    second: Tensor,
    u: Tensor,
    p: DualField | None,
    cost: Tensor | None,
    gradient_kernels: Tensor,
    divergence_kernels: Tensor,
    *,
    tau: Number,
    lambda_: Number,
    theta: Number,
    sampler: Sampler,
    ignore_outside: bool,
    last: bool,
) -> tuple[Tensor, DualField | None]:
    """As ``operators.solve_warp``, float32 on the CPU."""
    p_x, p_y = p or (None, None)
    fields = first, second, u, p_x, p_y, cost, gradient_kernels, divergence_kernels
    how = sampler, ignore_outside, last
    if torch.compiler.is_compiling():
        numbers = (torch.as_tensor(number, dtype=torch.float64) for number in (tau, lambda_, theta))
        u, p_x, p_y = _solve_warp_operator(*fields, *numbers, *how)
    else:
        _compile("solve", _solve_example)
        u, p_x, p_y = _SolveWarp.apply(*fields, tau, lambda_, theta, *how)  # type: ignore[no-untyped-call]
    return u, None if last else (p_x, p_y)


class _SolveWarp(torch.autograd.Function):
    """One warp; keeps its inputs alone for the way back."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        ctx.arguments = arguments[8:]
        ctx.save_for_backward(*arguments[:8])
        return _solve(_Warp(*arguments))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, *ctx.arguments)
        return *_solve_back(gradients, arguments, ctx.needs_input_grad[:11]), None, None, None


def _solve(warp: _Warp) -> tuple[Tensor, Tensor, Tensor]:
    u = np.empty_like(warp.u)
    p_x, p_y = (np.empty((len(u), 0, 0, 0) if warp.last else u.shape, np.float32) for _ in range(2))

    def work(pair: int) -> None:
        layout, state, scratch = warp.scratch()
        kernels.solve_pair(
            *warp.fields(pair), warp.kernels.reshape(-1), warp.limit, warp.epsilon, warp.sampler,
            warp.ignore_outside, warp.last, *warp.grids, *scratch, state, layout.plane, layout.stride,
            u[pair], p_x[pair], p_y[pair],
        )  # fmt: skip

    _for_each_pair(len(u), work)
    return torch.from_numpy(u), torch.from_numpy(p_x), torch.from_numpy(p_y)


def _solve_back(gradients: Sequence[Tensor], arguments: Sequence[Any], needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients by the first eleven arguments of a warp, None for those that are not needed."""
    _compile("back", _solve_back_example)
    warp = _Warp(*arguments)
    u_a, p_x_a, p_y_a = (_array(gradient) for gradient in gradients)
    # Of first, second, u, p_x, p_y and cost.
    found = [np.zeros_like(field) for field in (warp.first, warp.second, warp.u, warp.p_x, warp.p_y, warp.cost)]
    sums = np.zeros((len(warp.u), warp.kernels.size + 1))

    def work(pair: int) -> None:
        layout, state, scratch = warp.scratch()
        first, second, u, p_x, p_y, cost = (field[pair] for field in found)
        kernels.solve_pair_back(
            *warp.fields(pair), warp.kernels.reshape(-1), warp.limit, warp.epsilon, warp.sampler,
            warp.ignore_outside, warp.last, *warp.grids, *scratch, state, layout.plane, layout.stride,
            *warp.scratch_back(),
            u_a[pair], p_x_a[pair], p_y_a[pair], first[0], second[0], u, p_x, p_y, cost[0], sums[pair],
        )  # fmt: skip

    _for_each_pair(len(u_a), work)
    fields = [torch.from_numpy(field) if field.size else None for field in found]
    return [
        torch.as_tensor(value).to(argument).reshape(argument.shape) if wanted else None
        for value, argument, wanted in zip((*fields, *warp.unfold(sums.sum(0))), arguments[:11], needed, strict=True)
    ]


# The operators let torch.compile and torch.export put a warp into their graphs. Elsewhere the autograd function is
# called, since to dispatch an operator takes as long as a warp of a coarse level.
@torch.library.custom_op("tvnet::solve_warp", mutates_args=(), device_types="cpu")
def _solve_warp_operator(
    first: Tensor,
    second: Tensor,
    u: Tensor,
    p_x: Tensor | None,
    p_y: Tensor | None,
    cost: Tensor | None,
    gradient_kernels: Tensor,
    divergence_kernels: Tensor,
    tau: Tensor,
    lambda_: Tensor,
    theta: Tensor,
    sampler: str,
    ignore_outside: bool,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _compile("solve", _solve_example)
    numbers = tau, lambda_, theta
    how: tuple[Any, bool, bool] = sampler, ignore_outside, last
    return _solve(_Warp(first, second, u, p_x, p_y, cost, gradient_kernels, divergence_kernels, *numbers, *how))


@_solve_warp_operator.register_fake
def _(first: Tensor, second: Tensor, u: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    dual = (u.shape[0], 0, 0, 0) if arguments[-1] else u.shape  # after the last warp there is no dual field
    return u.new_empty(u.shape), u.new_empty(dual), u.new_empty(dual)


def _with_gaps(fields: list[Tensor], given: list[bool]) -> list[Tensor | None]:
    """Return the fields of a warp in the order of its arguments, None for those that are not given."""
    rest = iter(fields)
    return [next(rest) if there else None for there in given]


@torch.library.custom_op("tvnet::solve_warp_back", mutates_args=(), device_types="cpu")
def _solve_warp_back_operator(
    gradients: list[Tensor],
    fields: list[Tensor],
    given: list[bool],
    numbers: list[Tensor],
    sampler: str,
    ignore_outside: bool,
    last: bool,
    needed: list[bool],
) -> list[Tensor]:
    """Return the gradients that are needed, in the order of the arguments; ``given`` says which fields there are."""
    arguments = [*_with_gaps(fields, given), *numbers, sampler, ignore_outside, last]
    return [found for found in _solve_back(gradients, arguments, needed) if found is not None]


@_solve_warp_back_operator.register_fake
def _(
    gradients: list[Tensor],
    fields: list[Tensor],
    given: list[bool],
    numbers: list[Tensor],
    sampler: str,
    ignore_outside: bool,
    last: bool,
    needed: list[bool],
) -> list[Tensor]:
    arguments = [*_with_gaps(fields, given), *numbers]
    wanted = [argument for argument, one in zip(arguments, needed, strict=True) if one and argument is not None]
    return [torch.empty_like(argument, memory_format=torch.contiguous_format) for argument in wanted]


def _keep_warp(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    fields = [field for field in inputs[:8] if field is not None]
    ctx.given = [field is not None for field in inputs[:8]]
    ctx.how = inputs[11:]
    ctx.save_for_backward(*fields, *inputs[8:11])


def _solve_warp_operator_back(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    *fields, tau, lambda_, theta = ctx.saved_tensors
    needed = [bool(one) for one in ctx.needs_input_grad[:11]]
    numbers = [tau, lambda_, theta]
    found = iter(_solve_warp_back_operator(list(gradients), fields, ctx.given, numbers, *ctx.how, needed))
    return *(next(found) if one else None for one in needed), None, None, None


_solve_warp_operator.register_autograd(_solve_warp_operator_back, setup_context=_keep_warp)


class _Warp:
    """The arguments of one warp as the kernels take them."""

    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        u: Tensor,
        p_x: Tensor | None,
        p_y: Tensor | None,
        cost: Tensor | None,
        gradient_kernels: Tensor,
        divergence_kernels: Tensor,
        tau: Number,
        lambda_: Number,
        theta: Number,
        sampler: Sampler,
        ignore_outside: bool,
        last: bool,
    ) -> None:
        self.first, self.second, self.u = _array(first), _array(second), _array(u)
        empty = np.empty((len(self.u), 1, 0, 0), np.float32)
        self.cost = empty if cost is None else _array(cost)
        self.p_x, self.p_y = (empty if p is None else _array(p) for p in (p_x, p_y))
        step = float(tau) / float(theta)
        self.step, self.theta, self.lambda_ = step, float(theta), float(lambda_)
        self.limit = np.float32(float(lambda_) * float(theta))
        self.epsilon = np.float32(step * step * EPSILON)
        self.kernels = np.empty((len(gradient_kernels), 2, 8), np.float32)
        self.kernels[:, 0] = _array(divergence_kernels).reshape(-1, 8) * np.float64(self.theta)
        self.kernels[:, 1] = _array(gradient_kernels).reshape(-1, 8) * np.float64(step)
        self.sampler = SAMPLER_NUMBERS[sampler]
        self.ignore_outside, self.last = ignore_outside, last
        self.layout = _layout(*self.u.shape[2:])
        self.grids = self.layout.grids

    def fields(self, pair: int) -> tuple[kernels.Floats, ...]:
        """first, second, u, p_x, p_y and cost of one pair."""
        return (
            *(frame[pair, 0] for frame in (self.first, self.second)),
            self.u[pair],
            self.p_x[pair],
            self.p_y[pair],
            self.cost[pair, 0],
        )

    def unfold(self, sums: kernels.Doubles) -> tuple[kernels.Doubles, kernels.Doubles, float, float, float]:
        """Gradients of both kernels, tau, lambda and theta from those of what they were folded into."""
        folded, limit = sums[:-1].reshape(-1, 2, 8), float(sums[-1])
        divergence, gradient = folded[:, 0] * self.theta, folded[:, 1] * self.step
        unfolded = self.kernels.astype(np.float64)
        step = float((folded[:, 1] * unfolded[:, 1]).sum()) / self.step
        theta = float((folded[:, 0] * unfolded[:, 0]).sum()) / self.theta
        return (
            gradient,
            divergence,
            step / self.theta,
            limit * self.theta,
            theta - step * self.step / self.theta + limit * self.lambda_,
        )

    def scratch_back(
        self,
    ) -> tuple[int, kernels.Floats, kernels.Floats, int, kernels.Floats, kernels.Floats, kernels.Floats]:
        """Iterations in a segment; of this thread checkpoints, ring and its rows, adjoint, three images, gradients."""
        iterations, (height, width) = len(self.kernels), (self.layout.height, self.layout.width)
        segment, rows = min(SEGMENT, iterations), 3 * SEGMENT + 2
        images = self.layout.floats("images_back", 3 * height * width).reshape(3, height, width)
        return (
            segment,
            self.layout.floats("checkpoints", -(-iterations // segment) * kernels.NUM_CHANGING * self.layout.plane),
            self.layout.floats("ring", (segment + 1) * kernels.NUM_CHANGING * rows * self.layout.stride),
            rows,
            self.layout.state("adjoint"),
            images,
            self.layout.floats("gradients", segment * 6 * self.layout.stride),
        )

    def scratch(self) -> tuple[_Layout, kernels.Floats, tuple[kernels.Floats, NDArray[np.int32], kernels.Floats]]:
        """Layout; of this thread state, and three images, with pixels and weights of one row."""
        height, width = self.layout.height, self.layout.width
        images = self.layout.floats("images", 3 * height * width).reshape(3, height, width)
        pixels = self.layout.floats("pixels", 4 * width).view(np.int32)
        return self.layout, self.layout.state(), (images, pixels, self.layout.floats("weights", 4 * width))


def _compile(name: str, example: Callable[[], object]) -> None:
    """Before the first use of a kernel: compile it, or load it from numba's cache. Says so if that takes long."""
    if name in _begun:
        return
    if address_space_left() < COMPILER_BYTES:  # LLVM would end the process without a word of which file
        raise MemoryError("the compiler of the flow solver needs 400 MiB")
    _begun.add(name)
    timer = threading.Timer(PATIENCE, _say_why)
    timer.start()
    try:
        with torch.enable_grad():
            example()
    finally:
        timer.cancel()


@functools.cache
def _say_why() -> None:
    logging.getLogger(__name__).warning("compiling the flow solver for this processor, once: about half a minute")


def _example() -> tuple[Any, ...]:
    """Return the arguments of a warp of the smallest frames."""
    frame, u, kernels = torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    return frame, frame, u, None, None, None, kernels, kernels, 0.25, 0.15, 0.3, "exact", False, True


def _solve_example() -> None:
    _solve(_Warp(*_example()))


def _solve_back_example() -> None:
    u, empty = torch.zeros(1, 2, 2, 2), torch.zeros(1, 0, 0, 0)
    _solve_back((u, empty, empty), _example(), [isinstance(one, Tensor) for one in _example()[:11]])


def _array(field: Tensor) -> kernels.Floats:
    # Not copied by torch, whose threads would go on to wait for more work, on the cores of ours.
    array: kernels.Floats = np.ascontiguousarray(field.detach().numpy())
    return array


def _needs_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _for_each_pair(count: int, work: Callable[[int], None]) -> None:
    """Run ``work`` for each pair, on as many threads as torch may use."""
    threads = torch.get_num_threads()
    if min(threads, count) <= 1:
        for pair in range(count):
            work(pair)
    else:
        list(_pool(os.getpid(), threads).map(work, range(count)))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of this process; those of its parent do not live on in it."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tvnet-flow")
