"""The updates of one warp on an NVIDIA GPU, in Triton: one kernel an iteration, and an adjoint of the same shape.

``solve_warp`` stands in for ``tvnet_cli.flow.operators.solve_warp``, which says what is computed; the names are those
of that module. Importing this module needs Triton, which comes with torch's CUDA wheels for Linux.

An update moves 64 bytes a pixel: it reads u, p and the four planes of the linearised data term and writes u and p
(68 with a cost). The dual step reads the new u of the right and the lower neighbour, which lie in other programs'
tiles, so each pixel computes those two again rather than wait for a second kernel. No program writes what another
one reads: results do not depend on the order in which programs run, nor on the batch.

The adjoint keeps no iterate of the forward pass, only its inputs. Backwards the iterates come again in segments, from
about sqrt(iterations) kept ones. Written ``x_bar`` for the derivative of the loss by ``x``, an iteration backwards is

- dual step: ``p_bar`` -> ``u_x_bar``, ``u_y_bar`` of each pixel, and ``p_bar`` less what the divergence adds,
- forward gradient: ``u_x_bar``, ``u_y_bar`` of a pixel and of its left and upper neighbour -> ``u_bar``,
- divergence: ``u_bar`` of a pixel and of its right and lower neighbour -> ``p_bar``,
- data step: ``u_bar`` at the pixel itself.

One kernel takes the last two of iteration k and the first two of iteration k - 1. Cut like that, it reads one iterate,
the one between both, and computes dual steps at three pixels, where whole iterations would need them at seven. It
moves 120 bytes a pixel, 132 with a cost, and nearly two updates come before it to have the iterates again.
Every pixel gathers from its neighbours; nothing is added up in an order that could change.

The linearisation, once a warp, is one kernel for the bilinear samplers. With the bicubic one, and backwards with any,
it is that of the reference.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from tvnet_cli.flow import operators
from tvnet_cli.flow.operators import DualField, Number
from tvnet_cli.options import Sampler

# first, second, u, p_x, p_y, cost, both sets of kernels, numbers
Fields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]
State = tuple[Tensor, Tensor, Tensor]  # u, p_x, p_y, or what belongs to them, all contiguous (B, 2, H, W)

# A program computes one tile. Warps read whole cache lines of 128 bytes, and 8 rows share what their lower and upper
# neighbours read. Two pixels a thread: with one, a third more instructions, nearly all of them about addresses.
TILE_HEIGHT = tl.constexpr(8)
TILE_WIDTH = tl.constexpr(32)
NUM_WARPS = 4
EPSILON = tl.constexpr(operators.EPSILON)


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
    """One warp, as ``tvnet_cli.flow.operators.solve_warp``, for float32 tensors on one GPU.

    Differentiable once, by all tensors, ``tau``, ``lambda_`` and ``theta`` included where they are tensors.
    """
    # Filled on the GPU: no number waits to be copied there.
    numbers = [
        number.to(u).reshape(()) if isinstance(number, Tensor) else u.new_full((), number)
        for number in (tau / theta, lambda_ * theta, theta)
    ]
    p = p or (torch.zeros_like(u), torch.zeros_like(u))
    fields = (first, second, u, *p, cost, gradient_kernels, divergence_kernels, torch.stack(numbers))
    u, p_x, p_y = _SolveWarp.apply(*fields, sampler, ignore_outside, last)  # type: ignore[no-untyped-call]
    return u, None if last else (p_x, p_y)


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether the kernels start on a device and, on a small warp, agree with the reference; warns if not.

    To start a kernel Triton needs a C compiler and Python's headers, which many a machine with a GPU does without.
    """
    waves = torch.sin(torch.arange(4 * 9 * 40, device=device) * 0.7).reshape(4, 1, 1, 9, 40)
    u = torch.cat((waves[2], waves[3]), 1)
    kernels = torch.tensor([-1.0, 1.0], device=device).expand(2, 2, 2, 2, 2)

    def solved(solve: Any) -> Tensor:
        numbers = {"tau": 0.25, "lambda_": 0.15, "theta": 0.3}
        how = {"sampler": "authors", "ignore_outside": False, "last": True}
        new_u, _ = solve(waves[0] * 100, waves[1] * 100, u, None, None, *kernels, **numbers, **how)
        assert isinstance(new_u, Tensor)
        return new_u

    try:
        difference = float((solved(solve_warp) - solved(operators.solve_warp)).abs().amax())
        reason = None if difference < 1e-4 else f"differs from the reference by {difference:.1g} pixels"
    except Exception as error:
        reason = f"does not start: {error}"
    if reason is not None:
        warnings.warn(f"the Triton solver {reason}; torch computes the flow on {device}", stacklevel=2)
    return reason is None


class _SolveWarp(torch.autograd.Function):
    """``numbers`` are tau / theta, lambda_ * theta and theta, as (3,); the rest is as in ``solve_warp``."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        u: Tensor,
        p_x: Tensor,
        p_y: Tensor,
        cost: Tensor | None,
        gradient_kernels: Tensor,
        divergence_kernels: Tensor,
        numbers: Tensor,
        sampler: Sampler,
        ignore_outside: bool,
        last: bool,
    ) -> State:
        fields = first, second, u, p_x, p_y, cost, gradient_kernels, divergence_kernels, numbers
        ctx.save_for_backward(*fields)
        ctx.how = sampler, ignore_outside, last
        with torch.cuda.device(u.get_device()):
            updates = _Updates(fields, *ctx.how)
            state, spares = updates.start, [updates.new_state() for _ in range(2)]
            for iteration in range(updates.num_boundaries - 1):
                state = updates.update(state, iteration, out=spares[iteration % 2])
            if last:
                u, p_x, p_y = state
                state = updates.update_u(state), p_x, p_y
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *bars: Tensor) -> tuple[Tensor | None, ...]:
        sampler, ignore_outside, _ = ctx.how
        with torch.cuda.device(bars[0].get_device()):
            adjoint = _Adjoint(ctx.saved_tensors, *ctx.how)
            u_bar, p_x_bar, p_y_bar = adjoint.run(bars)
            first_bar = second_bar = None
            if any(ctx.needs_input_grad[:3]):
                with torch.enable_grad():
                    first, second, u = leaves = [field.detach().requires_grad_() for field in ctx.saved_tensors[:3]]
                    linear = torch.cat(operators.linearise(first, second, u, sampler, ignore_outside), 1)
                first_bar, second_bar, more = torch.autograd.grad(linear, leaves, adjoint.linear_bar)
                u_bar = u_bar + more
        kernels_and_numbers = adjoint.kernels_and_numbers()
        return first_bar, second_bar, u_bar, p_x_bar, p_y_bar, adjoint.cost_bar, *kernels_and_numbers, None, None, None


class _Updates:
    """The updates of one warp, ready to launch.

    Boundary k lies before iteration k. The last one is before the last iteration where nobody reads its dual step, and
    else behind it.
    """

    def __init__(self, fields: Fields, sampler: Sampler, ignore_outside: bool, last: bool) -> None:
        first, second, u, p_x, p_y, cost, *parameters = fields
        self.start: State = u.contiguous(), p_x.contiguous(), p_y.contiguous()
        self.cost = None if cost is None else cost.contiguous()
        self.parameters = [parameter.contiguous() for parameter in parameters]  # both sets of kernels, numbers
        self.num_iterations = len(parameters[0])
        self.num_boundaries = self.num_iterations + (0 if last else 1)
        batch, _, self.height, self.width = u.shape
        tiles = triton.cdiv(self.height, TILE_HEIGHT.value) * triton.cdiv(self.width, TILE_WIDTH.value)
        self.grid = (batch * tiles,)
        self.linear = self._linearised(first.contiguous(), second.contiguous(), self.start[0], sampler, ignore_outside)

    def _linearised(self, first: Tensor, second: Tensor, u: Tensor, sampler: Sampler, ignore_outside: bool) -> Tensor:
        """Gradient (two planes), inverse and rho_constant: (B, 4, H, W)."""
        if sampler == "bicubic":
            return torch.cat(operators.linearise(first, second, u, sampler, ignore_outside), 1)
        grid_x = grid_y = None
        if sampler == "authors":
            grid_x, grid_y = (torch.linspace(-1, 1, side, device=u.device) for side in (self.width, self.height))
        linear = u.new_empty(len(u), 4, self.height, self.width)
        sizes = self.height, self.width
        _linearise[self.grid](
            first, second, u, grid_x, grid_y, linear, *sizes, ignore_outside=ignore_outside, num_warps=NUM_WARPS
        )
        return linear

    def new_state(self) -> State:
        u, p_x, p_y = (torch.empty_like(field) for field in self.start)
        return u, p_x, p_y

    def update(self, state: State, iteration: int, out: State) -> State:
        """One iteration, from one set of tensors to another."""
        self._launch(state, out, iteration)
        return out

    def update_u(self, state: State) -> Tensor:
        """The last iteration without its dual step."""
        u = torch.empty_like(state[0])
        self._launch(state, (u, None, None), self.num_iterations - 1)
        return u

    def _launch(self, state: State, out: tuple[Tensor, Tensor | None, Tensor | None], iteration: int) -> None:
        fixed = self.linear, self.cost, *self.parameters
        sizes = self.height, self.width
        dual = out[1] is not None
        _update[self.grid](*state, *fixed, *out, iteration, *sizes, dual=dual, num_warps=NUM_WARPS)


class _Adjoint(_Updates):
    """The updates of one warp backwards, and what they add up to for all that every iteration reads."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.linear_bar = torch.zeros_like(self.linear)
        self.cost_bar = None if self.cost is None else torch.zeros_like(self.cost)
        # For each iteration and program, over its tile: by the four taps of both components, and by one number.
        shape = self.num_iterations, 9, *self.grid
        self.gradient_sums, self.divergence_sums = (self.linear.new_zeros(shape) for _ in range(2))

    def run(self, bars: tuple[Tensor, ...]) -> State:
        """From derivatives by the last u and p to derivatives by the first ones."""
        length = math.isqrt(self.num_boundaries - 1) + 1
        state, kept = self.start, [self.start]
        for iteration in range((self.num_boundaries - 1) // length * length):
            state = self.update(state, iteration, self.new_state())
            if (iteration + 1) % length == 0:
                kept.append(state)
        u_bar, p_x_bar, p_y_bar = (bar.contiguous() for bar in bars)
        state_bar = u_bar, p_x_bar, p_y_bar
        while kept:
            states = [kept.pop()]
            start = len(kept) * length
            for iteration in range(start, min(start + length, self.num_boundaries) - 1):
                states.append(self.update(states[-1], iteration, self.new_state()))
            while states:
                state_bar = self._step_back(states.pop(), state_bar, start + len(states))
        return state_bar

    def _step_back(self, state: State, bars: State, boundary: int) -> State:
        out = self.new_state()
        fixed = self.linear, self.cost, *self.parameters
        sums = self.linear_bar, self.cost_bar, self.gradient_sums, self.divergence_sums
        has = {"primal": boundary < self.num_iterations, "dual": boundary > 0}
        sizes = self.height, self.width
        _step_back[self.grid](*state, *fixed, *bars, *out, *sums, boundary, *sizes, **has, num_warps=NUM_WARPS)
        return out

    def kernels_and_numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by both sets of kernels, (iterations, 2, 2, 2), and by the numbers, (3,)."""
        _, divergence_kernels, (_, _, theta) = self.parameters
        by_gradient, by_divergence = self.gradient_sums.sum(-1), self.divergence_sums.sum(-1)
        gradient_bar, divergence_bar = (sums[:, :8].reshape(-1, 2, 2, 2) for sums in (by_gradient, by_divergence))
        numbers_bar = by_gradient[:, 8].sum(), by_divergence[:, 8].sum(), (divergence_kernels * divergence_bar).sum()
        return gradient_bar, theta * divergence_bar, torch.stack(numbers_bar)


# The kernels. They have no types: Triton compiles them. ``inside`` says which pixels there are to read; what is not
# there reads as 0. Offsets of a pixel fit 32 bits; those of planes and pictures are counted in 64.


@triton.jit
def _tile(height, width):
    """Number of the picture, pixels of a plane, and row and column of each pixel of this program's tile."""
    across = tl.cdiv(width, TILE_WIDTH)
    tiles = across * tl.cdiv(height, TILE_HEIGHT)
    program = tl.program_id(0)
    tile = program % tiles
    y = tile // across * TILE_HEIGHT + tl.arange(0, TILE_HEIGHT)[:, None]
    x = tile % across * TILE_WIDTH + tl.arange(0, TILE_WIDTH)[None, :]
    return (program // tiles).to(tl.int64), tl.cast(height * width, tl.int64), y, x


@triton.jit
def _sample_position(displacement, pixel, grid, length):
    """``operators._sample_positions`` along one axis; a grid means the authors' arithmetic, to the last rounding."""
    if grid is None:
        position = tl.minimum(tl.maximum(pixel + displacement, 0.0), length - 1.0)
    else:
        start = tl.load(grid + pixel, mask=pixel < length, other=0.0)
        scaled = tl.div_rn(displacement, tl.zeros_like(displacement) + length) * 2
        position = (start + scaled + 1) * (length - 1) * 0.5
    return position


@triton.jit
def _corner(position, length):
    """The two pixels along an axis to interpolate between."""
    floor = tl.minimum(tl.maximum(tl.floor(position), -1.0), length * 1.0).to(tl.int32)
    return tl.minimum(tl.maximum(floor, 0), length - 2), tl.minimum(tl.maximum(floor + 1, 0), length - 1)


@triton.jit
def _image_and_gradient(image, y, x, inside, height, width):
    """An image and its centred gradient at whole pixels, borders repeated."""
    right = tl.load(image + y * width + tl.minimum(x + 1, width - 1), mask=inside, other=0.0)
    left = tl.load(image + y * width + tl.maximum(x - 1, 0), mask=inside, other=0.0)
    below = tl.load(image + tl.minimum(y + 1, height - 1) * width + x, mask=inside, other=0.0)
    above = tl.load(image + tl.maximum(y - 1, 0) * width + x, mask=inside, other=0.0)
    return tl.load(image + y * width + x, mask=inside, other=0.0), (right - left) * 0.5, (below - above) * 0.5


@triton.jit(do_not_specialize=["height"])
def _linearise(first, second, u, grid_x, grid_y, linear, height, width, ignore_outside: tl.constexpr):
    """``operators.linearise`` with the bilinear samplers."""
    picture, plane, y, x = _tile(height, width)
    first += picture * plane
    second += picture * plane
    u += picture * 2 * plane
    linear += picture * 4 * plane
    inside = (y < height) & (x < width)
    here = y * width + x
    u_1 = tl.load(u + here, mask=inside, other=0.0)
    u_2 = tl.load(u + plane + here, mask=inside, other=0.0)

    at_x = _sample_position(u_1, x, grid_x, width)
    at_y = _sample_position(u_2, y, grid_y, height)
    x_0, x_1 = _corner(at_x, width)
    y_0, y_1 = _corner(at_y, height)
    right, left = at_x - x_0, x_1 - at_x
    below, above = at_y - y_0, y_1 - at_y
    image_00, gradient_x_00, gradient_y_00 = _image_and_gradient(second, y_0, x_0, inside, height, width)
    image_01, gradient_x_01, gradient_y_01 = _image_and_gradient(second, y_0, x_1, inside, height, width)
    image_10, gradient_x_10, gradient_y_10 = _image_and_gradient(second, y_1, x_0, inside, height, width)
    image_11, gradient_x_11, gradient_y_11 = _image_and_gradient(second, y_1, x_1, inside, height, width)
    warped = above * (left * image_00 + right * image_01) + below * (left * image_10 + right * image_11)
    gradient_x = above * (left * gradient_x_00 + right * gradient_x_01)
    gradient_x += below * (left * gradient_x_10 + right * gradient_x_11)
    gradient_y = above * (left * gradient_y_00 + right * gradient_y_01)
    gradient_y += below * (left * gradient_y_10 + right * gradient_y_11)

    squared = gradient_x * gradient_x + gradient_y * gradient_y + EPSILON
    inverse = tl.where(squared <= EPSILON, 0.0, 1 / squared)
    if ignore_outside:
        to_x, to_y = x + u_1, y + u_2
        leads_inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        inverse = tl.where(leads_inside, inverse, 0.0)
    rho_constant = warped - (gradient_x * u_1 + gradient_y * u_2) - tl.load(first + here, mask=inside, other=0.0)
    tl.store(linear + here, gradient_x, mask=inside)
    tl.store(linear + plane + here, gradient_y, mask=inside)
    tl.store(linear + 2 * plane + here, inverse, mask=inside)
    tl.store(linear + 3 * plane + here, rho_constant, mask=inside)


@triton.jit
def _four_neighbours(p_x, p_y, y, x, inside, height, width):
    """What the divergence of one component reads: p_x to the left and here, p_y above and here."""
    here = y * width + x
    left = tl.load(p_x + here - 1, mask=inside & (x > 0), other=0.0)
    here_x = tl.load(p_x + here, mask=inside & (x < width - 1), other=0.0)
    above = tl.load(p_y + here - width, mask=inside & (y > 0), other=0.0)
    here_y = tl.load(p_y + here, mask=inside & (y < height - 1), other=0.0)
    return left, here_x, above, here_y


@triton.jit
def _divergence(p_x, p_y, taps, y, x, inside, height, width):
    """``operators.divergence`` of one component."""
    left, here_x, above, here_y = _four_neighbours(p_x, p_y, y, x, inside, height, width)
    along_x = tl.load(taps) * left + tl.load(taps + 1) * here_x
    return along_x + (tl.load(taps + 2) * above + tl.load(taps + 3) * here_y)


@triton.jit
def _data_term(u, linear, here, inside, plane, limit):
    """Both components of u and of the gradient, the inverse, rho, -rho / |gradient|^2, and that clamped to +-limit."""
    u_1 = tl.load(u + here, mask=inside, other=0.0)
    u_2 = tl.load(u + plane + here, mask=inside, other=0.0)
    gradient_1 = tl.load(linear + here, mask=inside, other=0.0)
    gradient_2 = tl.load(linear + plane + here, mask=inside, other=0.0)
    inverse = tl.load(linear + 2 * plane + here, mask=inside, other=0.0)
    rho = tl.load(linear + 3 * plane + here, mask=inside, other=0.0) + gradient_1 * u_1 + gradient_2 * u_2
    free = rho * -inverse
    # Comparisons and no minimum: what is not a number stays so.
    clamped = tl.where(free > limit, limit, tl.where(free < -limit, -limit, free))
    return u_1, u_2, gradient_1, gradient_2, inverse, rho, free, clamped


@triton.jit
def _new_u(u, p_x, p_y, linear, taps, limit, theta, y, x, inside, plane, height, width):
    """Both components of u after one iteration, at any pixels."""
    u_1, u_2, gradient_1, gradient_2, _, _, _, clamped = _data_term(u, linear, y * width + x, inside, plane, limit)
    divergence_1 = _divergence(p_x, p_y, taps, y, x, inside, height, width)
    divergence_2 = _divergence(p_x + plane, p_y + plane, taps + 4, y, x, inside, height, width)
    return u_1 + clamped * gradient_1 + theta * divergence_1, u_2 + clamped * gradient_2 + theta * divergence_2


@triton.jit
def _forward_gradient(here, right, below, taps, y, x, height, width):
    """``operators.forward_gradient`` of one component."""
    u_x = tl.load(taps) * here + tl.load(taps + 1) * right
    u_y = tl.load(taps + 2) * here + tl.load(taps + 3) * below
    return tl.where(x < width - 1, u_x, 0.0), tl.where(y < height - 1, u_y, 0.0)


@triton.jit
def _bound_step(cost, step, here, inside):
    """The step that bounds the dual field: by the cost of the total variation where there is one."""
    if cost is not None:
        step = step / tl.load(cost + here, mask=inside, other=1.0)
    return step


@triton.jit
def _store_dual_step(p_x, p_y, new_p_x, new_p_y, u_x, u_y, step, bound_step, here, inside):
    """``operators.dual_step`` of one component along both axes."""
    denominator = 1 + bound_step * tl.sqrt(u_x * u_x + u_y * u_y + EPSILON)
    tl.store(new_p_x + here, (tl.load(p_x + here, mask=inside, other=0.0) + step * u_x) / denominator, mask=inside)
    tl.store(new_p_y + here, (tl.load(p_y + here, mask=inside, other=0.0) + step * u_y) / denominator, mask=inside)


@triton.jit(do_not_specialize=["iteration", "height"])
def _update(
    u,
    p_x,
    p_y,
    linear,
    cost,
    gradient_kernels,
    divergence_kernels,
    numbers,
    new_u,
    new_p_x,
    new_p_y,
    iteration,
    height,
    width,
    dual: tl.constexpr,
):
    """One iteration."""
    picture, plane, y, x = _tile(height, width)
    fields = picture * 2 * plane
    u += fields
    p_x += fields
    p_y += fields
    linear += picture * 4 * plane
    if cost is not None:
        cost += picture * plane
    step = tl.load(numbers)
    limit = tl.load(numbers + 1)
    theta = tl.load(numbers + 2)
    taps = divergence_kernels + iteration * 8
    inside = (y < height) & (x < width)
    here = y * width + x

    u_1, u_2 = _new_u(u, p_x, p_y, linear, taps, limit, theta, y, x, inside, plane, height, width)
    tl.store(new_u + fields + here, u_1, mask=inside)
    tl.store(new_u + fields + plane + here, u_2, mask=inside)
    if dual:
        new_p_x += fields
        new_p_y += fields
        has_right, has_below = inside & (x < width - 1), inside & (y < height - 1)
        right_1, right_2 = _new_u(u, p_x, p_y, linear, taps, limit, theta, y, x + 1, has_right, plane, height, width)
        below_1, below_2 = _new_u(u, p_x, p_y, linear, taps, limit, theta, y + 1, x, has_below, plane, height, width)
        taps = gradient_kernels + iteration * 8
        bound_step = _bound_step(cost, step, here, inside)
        u_x, u_y = _forward_gradient(u_1, right_1, below_1, taps, y, x, height, width)
        _store_dual_step(p_x, p_y, new_p_x, new_p_y, u_x, u_y, step, bound_step, here, inside)
        u_x, u_y = _forward_gradient(u_2, right_2, below_2, taps + 4, y, x, height, width)
        _store_dual_step(
            p_x + plane, p_y + plane, new_p_x + plane, new_p_y + plane, u_x, u_y, step, bound_step, here, inside
        )


@triton.jit
def _dual_adjoint(
    u,
    p_x,
    p_y,
    cost,
    u_bar,
    p_x_bar,
    p_y_bar,
    gradient_taps,
    divergence_taps,
    step,
    theta,
    y,
    x,
    inside,
    height,
    width,
    primal: tl.constexpr,
):
    """The adjoint of one component's dual step, whose result is p, at any pixels.

    Returns derivatives by u_x and u_y, by p before the step, by the step and by the bound step, and u at the pixel,
    to its right and below.
    """
    here = y * width + x
    has_right, has_below = inside & (x < width - 1), inside & (y < height - 1)
    x_bar, y_bar = _dual_bar(u_bar, p_x_bar, p_y_bar, divergence_taps, theta, y, x, inside, height, width, primal)

    u_here = tl.load(u + here, mask=inside, other=0.0)
    u_right = tl.load(u + here + 1, mask=has_right, other=0.0)
    u_below = tl.load(u + here + width, mask=has_below, other=0.0)
    u_x, u_y = _forward_gradient(u_here, u_right, u_below, gradient_taps, y, x, height, width)
    bound_step = _bound_step(cost, step, here, inside)
    length = tl.sqrt(u_x * u_x + u_y * u_y + EPSILON)
    x_bar /= 1 + bound_step * length
    y_bar /= 1 + bound_step * length
    # (p + step * u_x) / denominator by the denominator is -p / denominator, with the p behind the step.
    new_p_x = tl.load(p_x + here, mask=inside, other=0.0)
    new_p_y = tl.load(p_y + here, mask=inside, other=0.0)
    denominator_bar = -(x_bar * new_p_x + y_bar * new_p_y)
    by_length = denominator_bar * bound_step / length
    u_x_bar = tl.where(has_right, step * x_bar + by_length * u_x, 0.0)
    u_y_bar = tl.where(has_below, step * y_bar + by_length * u_y, 0.0)
    step_bar = x_bar * u_x + y_bar * u_y
    return u_x_bar, u_y_bar, x_bar, y_bar, step_bar, denominator_bar * length, u_here, u_right, u_below


@triton.jit
def _dual_bar(u_bar, p_x_bar, p_y_bar, taps, theta, y, x, inside, height, width, primal: tl.constexpr):
    """Derivatives by one component of p before an iteration, what its divergence adds included."""
    here = y * width + x
    x_bar = tl.load(p_x_bar + here, mask=inside, other=0.0)
    y_bar = tl.load(p_y_bar + here, mask=inside, other=0.0)
    if primal:
        has_right, has_below = inside & (x < width - 1), inside & (y < height - 1)
        at_pixel = tl.load(u_bar + here, mask=inside, other=0.0)
        right = tl.load(u_bar + here + 1, mask=has_right, other=0.0)
        below = tl.load(u_bar + here + width, mask=has_below, other=0.0)
        from_x = tl.load(taps + 1) * at_pixel + tl.load(taps) * right
        from_y = tl.load(taps + 3) * at_pixel + tl.load(taps + 2) * below
        x_bar += theta * tl.where(has_right, from_x, 0.0)
        y_bar += theta * tl.where(has_below, from_y, 0.0)
    return x_bar, y_bar


@triton.jit
def _gradient_adjoint(
    u,
    p_x,
    p_y,
    cost,
    u_bar,
    p_x_bar,
    p_y_bar,
    new_p_x_bar,
    new_p_y_bar,
    sums,
    gradient_taps,
    divergence_taps,
    step,
    theta,
    y,
    x,
    inside,
    height,
    width,
    primal: tl.constexpr,
):
    """The adjoint of one component's dual step and forward gradient.

    Stores derivatives by p before the step and sums by the taps; returns what the gradient adds to the derivative by
    u, and derivatives by the step and by the bound step.
    """
    here = y * width + x
    to_left, to_above = inside & (x > 0), inside & (y > 0)
    u_x_bar, u_y_bar, x_bar, y_bar, step_bar, bound_bar, u_here, u_right, u_below = _dual_adjoint(
        u, p_x, p_y, cost, u_bar, p_x_bar, p_y_bar, gradient_taps, divergence_taps, step, theta,
        y, x, inside, height, width, primal,
    )  # fmt: skip
    left_x_bar, _, _, _, _, _, _, _, _ = _dual_adjoint(
        u, p_x, p_y, cost, u_bar, p_x_bar, p_y_bar, gradient_taps, divergence_taps, step, theta,
        y, x - 1, to_left, height, width, primal,
    )  # fmt: skip
    _, above_y_bar, _, _, _, _, _, _, _ = _dual_adjoint(
        u, p_x, p_y, cost, u_bar, p_x_bar, p_y_bar, gradient_taps, divergence_taps, step, theta,
        y - 1, x, to_above, height, width, primal,
    )  # fmt: skip
    tl.store(new_p_x_bar + here, x_bar, mask=inside)
    tl.store(new_p_y_bar + here, y_bar, mask=inside)
    _store_sum(sums, 0, u_x_bar * u_here)
    _store_sum(sums, 1, u_x_bar * u_right)
    _store_sum(sums, 2, u_y_bar * u_here)
    _store_sum(sums, 3, u_y_bar * u_below)
    along_x = tl.load(gradient_taps) * u_x_bar + tl.load(gradient_taps + 1) * left_x_bar
    along_y = tl.load(gradient_taps + 2) * u_y_bar + tl.load(gradient_taps + 3) * above_y_bar
    return along_x + along_y, step_bar, bound_bar


@triton.jit
def _store_sum(sums, number, values):
    """The sum over this program's tile, to where it belongs in (9, programs)."""
    tl.store(sums + number * tl.num_programs(0) + tl.program_id(0), tl.sum(values))


@triton.jit
def _add(sums, values, mask):
    tl.store(sums, tl.load(sums, mask=mask, other=0.0) + values, mask=mask)


@triton.jit
def _store_divergence_sums(sums, u_bar, p_x, p_y, y, x, inside, height, width):
    """Sums by the taps of one component's divergence, less the factor theta."""
    left, here_x, above, here_y = _four_neighbours(p_x, p_y, y, x, inside, height, width)
    _store_sum(sums, 0, u_bar * left)
    _store_sum(sums, 1, u_bar * here_x)
    _store_sum(sums, 2, u_bar * above)
    _store_sum(sums, 3, u_bar * here_y)


@triton.jit(do_not_specialize=["boundary", "height"])
def _step_back(
    u,
    p_x,
    p_y,
    linear,
    cost,
    gradient_kernels,
    divergence_kernels,
    numbers,
    u_bar,
    p_x_bar,
    p_y_bar,
    new_u_bar,
    new_p_x_bar,
    new_p_y_bar,
    linear_bar,
    cost_bar,
    gradient_sums,
    divergence_sums,
    boundary,
    height,
    width,
    primal: tl.constexpr,
    dual: tl.constexpr,
):
    """Backwards over one boundary: the primal half of the iteration behind it, the dual half of the one before it.

    In between, and so from launch to launch, ``u_bar`` is by the new u of an iteration, all paths through its dual step
    included, and ``p_bar`` by the p before it, the path through the divergence left out.
    """
    picture, plane, y, x = _tile(height, width)
    fields = picture * 2 * plane
    u += fields
    p_x += fields
    p_y += fields
    u_bar += fields
    p_x_bar += fields
    p_y_bar += fields
    new_u_bar += fields
    new_p_x_bar += fields
    new_p_y_bar += fields
    linear += picture * 4 * plane
    linear_bar += picture * 4 * plane
    if cost is not None:
        cost += picture * plane
        cost_bar += picture * plane
    step = tl.load(numbers)
    limit = tl.load(numbers + 1)
    theta = tl.load(numbers + 2)
    inside = (y < height) & (x < width)
    here = y * width + x
    num_sums = 9 * tl.num_programs(0).to(tl.int64)
    gradient_taps = gradient_kernels + (boundary - 1) * 8
    divergence_taps = divergence_kernels + boundary * 8
    gradient_sums += (boundary - 1) * num_sums
    divergence_sums += boundary * num_sums

    u_bar_1 = tl.load(u_bar + here, mask=inside, other=0.0)
    u_bar_2 = tl.load(u_bar + plane + here, mask=inside, other=0.0)
    if primal:
        _store_divergence_sums(divergence_sums, u_bar_1, p_x, p_y, y, x, inside, height, width)
        more = divergence_sums + 4 * tl.num_programs(0)
        _store_divergence_sums(more, u_bar_2, p_x + plane, p_y + plane, y, x, inside, height, width)
        u_1, u_2, gradient_1, gradient_2, inverse, rho, free, clamped = _data_term(
            u, linear, here, inside, plane, limit
        )
        clamped_bar = u_bar_1 * gradient_1 + u_bar_2 * gradient_2
        above, below = free > limit, free < -limit
        _store_sum(divergence_sums, 8, tl.where(above, clamped_bar, tl.where(below, -clamped_bar, 0.0)))
        free_bar = tl.where(above | below, 0.0, clamped_bar)
        rho_bar = -inverse * free_bar
        _add(linear_bar + here, u_bar_1 * clamped + rho_bar * u_1, inside)
        _add(linear_bar + plane + here, u_bar_2 * clamped + rho_bar * u_2, inside)
        _add(linear_bar + 2 * plane + here, -rho * free_bar, inside)
        _add(linear_bar + 3 * plane + here, rho_bar, inside)
        u_bar_1 += rho_bar * gradient_1
        u_bar_2 += rho_bar * gradient_2
    if dual:
        from_p_1, step_bar_1, bound_bar_1 = _gradient_adjoint(
            u, p_x, p_y, cost, u_bar, p_x_bar, p_y_bar, new_p_x_bar, new_p_y_bar, gradient_sums,
            gradient_taps, divergence_taps, step, theta, y, x, inside, height, width, primal,
        )  # fmt: skip
        from_p_2, step_bar_2, bound_bar_2 = _gradient_adjoint(
            u + plane, p_x + plane, p_y + plane, cost, u_bar + plane, p_x_bar + plane, p_y_bar + plane,
            new_p_x_bar + plane, new_p_y_bar + plane, gradient_sums + 4 * tl.num_programs(0),
            gradient_taps + 4, divergence_taps + 4, step, theta, y, x, inside, height, width, primal,
        )  # fmt: skip
        u_bar_1 += from_p_1
        u_bar_2 += from_p_2
        bound_bar = bound_bar_1 + bound_bar_2
        if cost is not None:
            weight = tl.load(cost + here, mask=inside, other=1.0)
            bound_bar /= weight
            _add(cost_bar + here, -bound_bar * step / weight, inside)
        _store_sum(gradient_sums, 8, step_bar_1 + step_bar_2 + bound_bar)
    else:
        x_bar, y_bar = _dual_bar(u_bar, p_x_bar, p_y_bar, divergence_taps, theta, y, x, inside, height, width, primal)
        tl.store(new_p_x_bar + here, x_bar, mask=inside)
        tl.store(new_p_y_bar + here, y_bar, mask=inside)
        x_bar, y_bar = _dual_bar(
            u_bar + plane, p_x_bar + plane, p_y_bar + plane, divergence_taps + 4, theta, y, x, inside, height, width,
            primal,
        )  # fmt: skip
        tl.store(new_p_x_bar + plane + here, x_bar, mask=inside)
        tl.store(new_p_y_bar + plane + here, y_bar, mask=inside)
    tl.store(new_u_bar + here, u_bar_1, mask=inside)
    tl.store(new_u_bar + plane + here, u_bar_2, mask=inside)


# Once a pair, a level or a warp: torch serves.
prepare, resize, resize_flow = operators.prepare, operators.resize, operators.resize_flow
median_filter = operators.median_filter
