"""The compiled kernels of the CPU solver: one warp of one pair of frames, forward and adjoint, on numpy arrays.

The primal-dual updates run as a wavefront: each iteration follows the one before it down the picture with one row of
lag, in place, so that a few dozen iterations share the rows that lie in the cache. Very wide pictures are cut into
strips, which each iteration shifts left by one column. The arithmetic of a pixel does not depend on any of it.

Fields lie in padded planes of one float32 array. Two things are folded into the kernels of the gradient and of the
divergence, so that nothing is left to multiply: ``tau / theta`` and ``theta``. The bound of the dual field is then
``1 + edge * |scaled gradient|`` with ``edge = 1 / edge_cost``.
"""

from __future__ import annotations

import platform
from typing import Any

import numba
import numpy as np
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.extending import intrinsic
from numpy.typing import NDArray

from tvnet_cli.flow.operators import EPSILON

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# Planes of the state of a pair. The first six change with each iteration: flow u, dual field p by component and axis.
U1, U2, P1X, P1Y, P2X, P2Y, GX, GY, INVERSE, RHO, EDGE = range(11)
NUM_CHANGING, NUM_PLANES = 6, 11
# Planes of the adjoint state: of u, p, gradient, inverse, rho and edge; the same numbers as above.

PAD = 8  # columns left and right of each row
# Rows are worked on in whole vectors, also those whose length is no multiple of them: what lies behind their end is 0
# and stays 0. So long is the longest vector of today, in columns.
VECTOR = 16
CACHE_BYTES = 256 * 1024  # of the rows that a wavefront works on: half of the smallest second cache of today
STRIP = 512  # columns

AUTHORS, EXACT, BICUBIC = range(3)  # samplers

ZERO, ONE, TWO, HALF = (np.float32(number) for number in (0, 1, 2, 0.5))
EPS = np.float32(EPSILON)


class _NoAliasCompiler(CompilerBase):
    """The usual compiler, told that the pointers a function takes lead to separate memory.

    Without it LLVM has to check for each row which of a dozen pointers overlap, or gives up and makes scalar code.
    """

    def define_pipelines(self) -> list[Any]:
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]  # type: ignore[no-untyped-call]


def _can_cache() -> bool:
    """Whether numba finds a folder to keep compiled code in: beside this file, in the user's cache or as told."""
    try:
        numba.njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


COMPILER: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": _can_cache()}
# Where numba no longer knows the flag, rows are slower, and as right.
ROW_COMPILER: dict[str, Any] = {"pipeline_class": _NoAliasCompiler} if hasattr(Flags, "noalias") else {}

# No sum may be taken in another order, no quotient be estimated, and a product fused into a sum by ``_fma`` alone:
# LLVM works on a function alone in the process that compiles it, and on a copy in its caller in those that find that in
# the cache, on each in its own way. Results are to be the same to the last bit.
SAME_ANYWHERE = {"nnan", "nsz"}
compiled = numba.njit(fastmath=SAME_ANYWHERE, **COMPILER)
inlined = numba.njit(fastmath=SAME_ANYWHERE)  # LLVM inlines what is small
row_kernel = numba.njit(fastmath=SAME_ANYWHERE, **COMPILER, **ROW_COMPILER)
summing_row_kernel = numba.njit(fastmath=True, **COMPILER, **ROW_COMPILER)  # sums of a row, for gradients of kernels


def _pointer(typing_context: Any, array: Any, index: Any) -> Any:
    """Pointer to element ``index`` of a flat array: what row kernels take, since slices cost more than short rows.

    The array has to be one that the caller in Python holds. One made by compiled code is freed as soon as its own name
    is used no more, though pointers into it are: so no kernel makes any.
    """
    signature = types.CPointer(array.dtype)(array, types.intp)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return signature, generate


_at: Any = intrinsic(_pointer)


def _fused(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the processor can."""
    number = types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if HAS_FMA:
            return builder.fma(*arguments)
        return builder.fadd(builder.fmul(*arguments[:2]), arguments[2])

    return number(number, number, number), generate


HAS_FMA = get_host_cpu_features().get("fma", False) or platform.machine() in ("aarch64", "arm64")
_fma: Any = intrinsic(_fused)


# Forward ------------------------------------------------------------------------------------------------------------


@row_kernel
def _u_row(n, u1, u2, p1x, p1y, p1y_above, p2x, p2y, p2y_above, gx, gy, inverse, rho, limit, k):
    """Update of one row of u: the thresholding step, then the divergence of p."""
    a0, a1, b0, b1, c0, c1, d0, d1 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
    for i in range(n):
        residual = _fma(gy[i], u2[i], _fma(gx[i], u1[i], rho[i]))
        t = min(max(-residual * inverse[i], -limit), limit)
        v1, v2 = _fma(t, gx[i], u1[i]), _fma(t, gy[i], u2[i])
        u1[i] = _fma(a0, p1x[i - 1], _fma(a1, p1x[i], _fma(b0, p1y_above[i], _fma(b1, p1y[i], v1))))
        u2[i] = _fma(c0, p2x[i - 1], _fma(c1, p2x[i], _fma(d0, p2y_above[i], _fma(d1, p2y[i], v2))))


@row_kernel
def _p_row(n, px, py, u, u_below, edge, not_last, a0, a1, b0, b1, epsilon):
    """Update of one row of one component of p."""
    for i in range(n):
        along_x = _fma(a1, u[i + 1], a0 * u[i]) * not_last[i]
        along_y = _fma(b1, u_below[i], b0 * u[i])
        length = np.sqrt(_fma(along_y, along_y, _fma(along_x, along_x, epsilon)))
        scale = ONE / _fma(edge[i], length, ONE)
        px[i] = (px[i] + along_x) * scale
        py[i] = (py[i] + along_y) * scale


@compiled
def _copy_row(n, source, target):
    for i in range(n):
        target[i] = source[i]


@compiled
def _update_u(state, plane, stride, o, n, limit, kernels, k):
    """The ``n`` values of u from offset ``o`` on, by the kernels from ``k`` on."""
    _u_row(
        n, _at(state, o), _at(state, plane + o),
        _at(state, P1X * plane + o), _at(state, P1Y * plane + o), _at(state, P1Y * plane + o - stride),
        _at(state, P2X * plane + o), _at(state, P2Y * plane + o), _at(state, P2Y * plane + o - stride),
        _at(state, GX * plane + o), _at(state, GY * plane + o), _at(state, INVERSE * plane + o),
        _at(state, RHO * plane + o), limit, _at(kernels, k),
    )  # fmt: skip


@compiled
def _update_p(state, plane, stride, o, n, not_last, below, kernels, k, epsilon):
    """The ``n`` values of p from offset ``o`` on; ``below`` is 0 in the last row, else 1."""
    for c in range(2):
        g = k + 8 + 4 * c
        _p_row(
            n, _at(state, (P1X + 2 * c) * plane + o), _at(state, (P1Y + 2 * c) * plane + o),
            _at(state, c * plane + o), _at(state, c * plane + o + stride), _at(state, EDGE * plane + o), not_last,
            kernels[g], kernels[g + 1], kernels[g + 2] * below, kernels[g + 3] * below, epsilon,
        )  # fmt: skip


@compiled
def iterate(state, plane, stride, height, width, kernels, limit, epsilon, not_last, first, stop, last):
    """Iterations ``first`` to ``stop`` of a state; with ``last`` the last of them does not update p.

    ``kernels`` is (iterations * 16): for each iteration those of the divergence, then those of the gradient, folded.
    ``width`` may count columns behind the end of the rows, up to a whole vector.
    """
    strip = width if width <= STRIP + STRIP // 2 else STRIP
    chunks = -(-(stop - first) // max(4, CACHE_BYTES // (4 * NUM_PLANES * strip)))
    depth = -(-(stop - first) // chunks)  # iterations that follow each other
    for start in range(first, stop, depth):
        count = min(depth, stop - start)
        left = 0
        while left - count < width:
            right = left + strip if strip < width else width + count
            for step in range(height + count):
                for j in range(count):
                    k = (start + j) * 16
                    y = step - j
                    begin, end = max(0, left - j), min(width, right - j)
                    if 0 <= y < height and begin < end:
                        o = (y + 1) * stride + PAD + begin
                        _update_u(state, plane, stride, o, end - begin, limit, kernels, k)
                    y -= 1
                    begin, end = max(0, left - j - 1), min(width, right - j - 1)
                    if 0 <= y < height and begin < end and not (last and start + j == stop - 1):
                        o = (y + 1) * stride + PAD + begin
                        below = ONE if y < height - 1 else ZERO
                        n = end - begin
                        _update_p(state, plane, stride, o, n, _at(not_last, begin), below, kernels, k, epsilon)
            left = right


@compiled
def clear_borders(state, plane, stride, height, width):
    """Zeros around the fields."""
    for c in range(NUM_PLANES):
        for y in range(height + 2):
            row = c * plane + y * stride
            state[row : row + PAD] = ZERO
            state[row + PAD + width : row + stride] = ZERO
        for x in range(stride):
            state[c * plane + x] = ZERO
            state[c * plane + (height + 1) * stride + x] = ZERO


@compiled
def load(field, state, offset, stride):
    """A field (H, W) into a plane that begins at ``offset``."""
    height, width = field.shape
    for y in range(height):
        o = offset + (y + 1) * stride + PAD
        for x in range(width):
            state[o + x] = field[y, x]


@compiled
def store(state, offset, stride, field):
    """A plane back into a field (H, W)."""
    height, width = field.shape
    for y in range(height):
        o = offset + (y + 1) * stride + PAD
        for x in range(width):
            field[y, x] = state[o + x]


@compiled
def centered_gradient(image, along_x, along_y):
    """``operators.centered_gradient`` of an image (H, W)."""
    height, width = image.shape
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            along_y[y, x] = (image[below, x] - image[above, x]) * HALF
        for x in range(1, width - 1):
            along_x[y, x] = (image[y, x + 1] - image[y, x - 1]) * HALF
        along_x[y, 0] = (image[y, 1] - image[y, 0]) * HALF
        along_x[y, width - 1] = (image[y, width - 1] - image[y, width - 2]) * HALF


@compiled
def _position(pixel, grid, displacement, length, sampler):
    """Where to read along one axis: ``operators._sample_positions``, operation by operation."""
    size = np.float32(length)
    if sampler == AUTHORS:
        return (grid + displacement / size * TWO + ONE) * (size - ONE) / TWO
    return min(max(np.float32(pixel) + displacement, ZERO), size - ONE)


@compiled
def _pixel(position, length):
    """A whole position inside the picture as a number of a pixel; a position that is no number is that of some pixel.

    What is read there counts NaN times, and comes out as NaN; what lies outside would be memory of others.
    """
    return min(max(np.int32(position), np.int32(0)), np.int32(length - 1))


@compiled
def _corner(position, length):
    """The two pixels around a position and the weights of the upper and of the lower one, all as float32.

    Outside the picture the weights extrapolate.
    """
    size = np.float32(length)
    lower = min(max(np.floor(position), -ONE), size)
    upper = min(max(lower + ONE, ZERO), size - ONE)
    lower = min(max(lower, ZERO), size - TWO)
    return lower, upper, position - lower, upper - position


@row_kernel
def _corners(n, pixel, step, grid, displacement, length, sampler, lower, upper, near, far):
    """``_corner`` of each position of a row; pixel and grid advance by ``step``: 1 along x, 0 along y."""
    for i in range(n):
        position = _position(pixel + i * step, grid[i * step], displacement[i], length, sampler)
        below, above, near[i], far[i] = _corner(position, length)
        lower[i], upper[i] = _pixel(below, length), _pixel(above, length)


@compiled
def _cubic(t):
    """``operators._cubic_weights``."""
    s = ONE - t
    three = np.float32(3)
    return (
        -t * s * s * HALF,
        s + t * s * (three * s - ONE) * HALF,
        t + t * s * (three * t - ONE) * HALF,
        -s * t * t * HALF,
    )


@compiled
def _cubic_slopes(t):
    """Derivatives of the cubic weights."""
    f = np.float32
    return (
        f(-0.5) + f(2) * t - f(1.5) * t * t,
        f(-5) * t + f(4.5) * t * t,
        f(0.5) + f(4) * t - f(4.5) * t * t,
        -t + f(1.5) * t * t,
    )


@compiled
def _inside(x, y, u, v, height, width):
    to_x, to_y = np.float32(x) + u, np.float32(y) + v
    return ZERO <= to_x <= np.float32(width - 1) and ZERO <= to_y <= np.float32(height - 1)


@row_kernel
def _cells(n, pixel, step, displacement, length, lower, fraction):
    """For a row of positions inside the picture the pixel before each and how far behind it lies."""
    for i in range(n):
        position = _position(pixel + i * step, ZERO, displacement[i], length, BICUBIC)
        below = np.floor(position)
        lower[i], fraction[i] = _pixel(below, length), position - below


@row_kernel
def _read_bicubic(n, height, width, lower_x, lower_y, fraction_x, fraction_y, image, out):
    """One row of an image at positions given by ``_cells``."""
    for x in range(n):
        x0, y0 = lower_x[x], lower_y[x]
        wx, wy = _cubic(fraction_x[x]), _cubic(fraction_y[x])
        total = ZERO
        if 1 <= x0 < width - 2 and 1 <= y0 < height - 2:
            k = (y0 - 1) * width + x0 - 1
            for i in range(4):
                total += wy[i] * (wx[0] * image[k] + wx[1] * image[k + 1] + wx[2] * image[k + 2] + wx[3] * image[k + 3])
                k += width
        else:
            for i in range(4):
                row = min(max(y0 - 1 + i, 0), height - 1) * width
                for j in range(4):
                    total += wy[i] * wx[j] * image[row + min(max(x0 - 1 + j, 0), width - 1)]
        out[x] = total


@row_kernel
def _read_bilinear(n, width, x0, x1, y0, y1, right, left, below, above, image, along_x, along_y, warped, gx, gy):
    """One row of an image and of its gradient at positions given by ``_corners``."""
    for x in range(n):
        i, j, k, m = y0[x] * width + x0[x], y0[x] * width + x1[x], y1[x] * width + x0[x], y1[x] * width + x1[x]
        a, b, c, d = above[x] * left[x], above[x] * right[x], below[x] * left[x], below[x] * right[x]
        warped[x] = a * image[i] + b * image[j] + c * image[k] + d * image[m]
        gx[x] = a * along_x[i] + b * along_x[j] + c * along_x[k] + d * along_x[m]
        gy[x] = a * along_y[i] + b * along_y[j] + c * along_y[k] + d * along_y[m]


@row_kernel
def _linear_row(n, y, u, v, warped, first, gx, gy, inverse, rho, ignore_outside, height, width):
    for x in range(n):
        squared = gx[x] * gx[x] + gy[x] * gy[x] + EPS
        useful = squared > EPS and (not ignore_outside or _inside(x, y, u[x], v[x], height, width))
        inverse[x] = ONE / squared if useful else ZERO
        rho[x] = warped[x] - (gx[x] * u[x] + gy[x] * v[x]) - first[x]


@compiled
def linearise(
    first, second, u, grid_x, grid_y, sampler, ignore_outside, images, pixels, weights, state, plane, stride
):  # fmt: skip
    """The data term near ``u`` into the planes GX, GY, INVERSE and RHO.

    ``images`` (3, H, W) is scratch: the warped second frame, and for the bilinear samplers the gradient of the second
    frame, for the bicubic one that of the warped frame. So are ``pixels`` and ``weights`` (4 * W): where a row reads.
    """
    height, width = first.shape
    size = height * width
    flat_u, flat_images = u.reshape(-1), images.reshape(-1)
    flat_first, flat_second = first.reshape(-1), second.reshape(-1)
    x0, x1, y0, y1 = _at(pixels, 0), _at(pixels, width), _at(pixels, 2 * width), _at(pixels, 3 * width)
    right, left, below, above = _at(weights, 0), _at(weights, width), _at(weights, 2 * width), _at(weights, 3 * width)
    if sampler == BICUBIC:
        for y in range(height):
            _cells(width, 0, 1, _at(flat_u, y * width), width, x0, right)
            _cells(width, y, 0, _at(flat_u, size + y * width), height, y0, below)
            target = _at(flat_images, y * width)
            _read_bicubic(width, height, width, x0, y0, right, below, _at(flat_second, 0), target)
        centered_gradient(images[0], images[1], images[2])
    else:
        centered_gradient(second, images[1], images[2])
    for y in range(height):
        o, r = (y + 1) * stride + PAD, y * width
        u_row, v_row, warped = _at(flat_u, r), _at(flat_u, size + r), _at(flat_images, r)
        gx, gy = _at(state, GX * plane + o), _at(state, GY * plane + o)
        if sampler == BICUBIC:
            _copy_row(width, _at(flat_images, size + r), gx)
            _copy_row(width, _at(flat_images, 2 * size + r), gy)
        else:
            _corners(width, 0, 1, _at(grid_x, 0), u_row, width, sampler, x0, x1, right, left)
            _corners(width, y, 0, _at(grid_y, y), v_row, height, sampler, y0, y1, below, above)
            _read_bilinear(
                width, width, x0, x1, y0, y1, right, left, below, above,
                _at(flat_second, 0), _at(flat_images, size), _at(flat_images, 2 * size), warped, gx, gy,
            )  # fmt: skip
        _linear_row(
            width, y, u_row, v_row, warped, _at(flat_first, r), gx, gy,
            _at(state, INVERSE * plane + o), _at(state, RHO * plane + o), ignore_outside, height, width,
        )  # fmt: skip


@compiled
def solve_pair(
    first, second, u, p_x, p_y, cost, kernels, limit, epsilon, sampler, ignore_outside, last,
    grid_x, grid_y, not_last, images, pixels, weights, state, plane, stride, new_u, new_p_x, new_p_y,
):  # fmt: skip
    """One warp of one pair: all arrays (H, W) or (2, H, W).

    Empty arrays stand for a cost of 1 everywhere, for a dual field of 0, and for one that nobody asks for.
    """
    height = first.shape[0]
    begin(
        first, second, u, p_x, p_y, cost, sampler, ignore_outside, grid_x, grid_y, images, pixels, weights, state,
        plane, stride,
    )  # fmt: skip
    columns = not_last.size
    iterate(state, plane, stride, height, columns, kernels, limit, epsilon, not_last, 0, kernels.size // 16, last)
    for c in range(2):
        store(state, c * plane, stride, new_u[c])
        if new_p_x.size:
            store(state, (P1X + 2 * c) * plane, stride, new_p_x[c])
            store(state, (P1Y + 2 * c) * plane, stride, new_p_y[c])


@compiled
def begin(
    first, second, u, p_x, p_y, cost, sampler, ignore_outside, grid_x, grid_y, images, pixels, weights, state, plane,
    stride,
):  # fmt: skip
    """The state before the first iteration."""
    height, width = first.shape
    clear_borders(state, plane, stride, height, width)
    linearise(
        first, second, u, grid_x, grid_y, sampler, ignore_outside, images, pixels, weights, state, plane, stride
    )  # fmt: skip
    for c in range(2):
        load(u[c], state, c * plane, stride)
        if p_x.size:
            load(p_x[c], state, (P1X + 2 * c) * plane, stride)
            load(p_y[c], state, (P1Y + 2 * c) * plane, stride)
    if not p_x.size:
        state[P1X * plane : NUM_CHANGING * plane] = ZERO
    for y in range(height):
        o = EDGE * plane + (y + 1) * stride + PAD
        for x in range(width):
            state[o + x] = ONE / cost[y, x] if cost.size else ONE


# Before and between the warps -----------------------------------------------------------------------------------------


@compiled
def grey(frame, level):
    """``operators.grey`` of a frame (1 or 3, H, W)."""
    channels, height, width = frame.shape
    for y in range(height):
        for x in range(width):
            if channels == 1:
                level[y, x] = np.floor(frame[0, y, x])
            else:
                thousandths = (
                    np.float32(299) * frame[0, y, x]
                    + np.float32(587) * frame[1, y, x]
                    + np.float32(114) * frame[2, y, x]
                )
                level[y, x] = np.floor(thousandths / np.float32(1000))


@compiled
def extremes(level):
    """Least and greatest value of (H, W)."""
    lowest = highest = level[0, 0]
    for y in range(level.shape[0]):
        for x in range(level.shape[1]):
            lowest, highest = min(lowest, level[y, x]), max(highest, level[y, x])
    return lowest, highest


@row_kernel
def _add_row(n, weight, source, target):
    for i in range(n):
        target[i] += weight * source[i]


@compiled
def resize_areas(image, first_rows, row_weights, first_columns, column_weights, tall, out):
    """One picture (H, W) to another size, each axis by the taps of ``operators.area_taps``.

    ``first_rows`` and ``first_columns`` are the pixels of the first taps, which may lie outside: borders repeat.
    ``tall`` (height, W) is scratch.
    """
    height, width = image.shape
    flat, flat_tall = image.reshape(-1), tall.reshape(-1)
    tall[:] = ZERO
    for y in range(out.shape[0]):
        for tap in range(row_weights.shape[0]):
            row = min(max(first_rows[y] + tap, 0), height - 1)
            _add_row(width, row_weights[tap, y], _at(flat, row * width), _at(flat_tall, y * width))
        for x in range(out.shape[1]):
            total = ZERO
            for tap in range(column_weights.shape[0]):
                total += column_weights[tap, x] * tall[y, min(max(first_columns[x] + tap, 0), width - 1)]
            out[y, x] = total


@row_kernel
def _blur_row(n, above2, above1, row, below1, below2, taps, out):
    """One row of the authors' 5 x 5 filter, pixels at equal distances from the centre added up first."""
    t0, t1, t2, t4, t5, t8 = taps[0], taps[1], taps[2], taps[3], taps[4], taps[5]
    for i in range(n):
        near = above1[i] + below1[i] + row[i - 1] + row[i + 1]
        diagonal = above1[i - 1] + above1[i + 1] + below1[i - 1] + below1[i + 1]
        far = above2[i] + below2[i] + row[i - 2] + row[i + 2]
        knight = above2[i - 1] + above2[i + 1] + below2[i - 1] + below2[i + 1]
        knight += above1[i - 2] + above1[i + 2] + below1[i - 2] + below1[i + 2]
        corner = above2[i - 2] + above2[i + 2] + below2[i - 2] + below2[i + 2]
        out[i] = t0 * row[i] + t1 * near + t2 * diagonal + t4 * far + t5 * knight + t8 * corner


@compiled
def stretch_and_blur(level, lowest, highest, taps, padded, out):
    """``operators.stretch_range`` with known extremes, then the authors' filter unless ``taps`` is empty.

    ``padded`` is scratch of (height + 4) * (width + 4) floats.
    """
    height, width = level.shape
    stride = width + 4
    flat = highest <= lowest
    factor = np.float32(255) / (highest - lowest) if not flat else ONE
    floor = lowest if not flat else ZERO
    if taps.size == 0:
        for y in range(height):
            for x in range(width):
                out[y, x] = (level[y, x] - floor) * factor
        return
    padded[:] = ZERO
    for y in range(height):
        o = (y + 2) * stride + 2
        for x in range(width):
            padded[o + x] = (level[y, x] - floor) * factor
    flat_out = out.reshape(-1)
    for y in range(height):
        o = (y + 2) * stride + 2
        _blur_row(
            width, _at(padded, o - 2 * stride), _at(padded, o - stride), _at(padded, o), _at(padded, o + stride),
            _at(padded, o + 2 * stride), _at(taps, 0), _at(flat_out, y * width),
        )  # fmt: skip


@inlined
def _order(a, b):
    return min(a, b), max(a, b)


@inlined
def _sort5(a, b, c, d, e):
    """Nine comparisons, the fewest there are."""
    a, b = _order(a, b)
    d, e = _order(d, e)
    c, e = _order(c, e)
    c, d = _order(c, d)
    b, e = _order(b, e)
    a, d = _order(a, d)
    a, c = _order(a, c)
    b, d = _order(b, d)
    b, c = _order(b, c)
    return a, b, c, d, e


# Forgetful selection: of any half of the values and two more, neither the least nor the greatest is the median. These
# give back all but those two.


@inlined
def _inner_8(a, b, c, d, e, f, g, h):
    a, h = _order(a, h)
    b, g = _order(b, g)
    c, f = _order(c, f)
    d, e = _order(d, e)
    a, b = _order(a, b)
    a, c = _order(a, c)
    a, d = _order(a, d)
    e, h = _order(e, h)
    f, h = _order(f, h)
    g, h = _order(g, h)
    return b, c, d, e, f, g


@inlined
def _inner_7(a, b, c, d, e, f, g):
    a, g = _order(a, g)
    b, f = _order(b, f)
    c, e = _order(c, e)
    a, b = _order(a, b)
    a, c = _order(a, c)
    a, d = _order(a, d)
    d, g = _order(d, g)
    e, g = _order(e, g)
    f, g = _order(f, g)
    return b, c, d, e, f


@inlined
def _inner_6(a, b, c, d, e, f):
    a, f = _order(a, f)
    b, e = _order(b, e)
    c, d = _order(c, d)
    a, b = _order(a, b)
    a, c = _order(a, c)
    d, f = _order(d, f)
    e, f = _order(e, f)
    return b, c, d, e


@inlined
def _inner_5(a, b, c, d, e):
    a, e = _order(a, e)
    b, d = _order(b, d)
    a, b = _order(a, b)
    a, c = _order(a, c)
    c, e = _order(c, e)
    d, e = _order(d, e)
    return b, c, d


@inlined
def _inner_4(a, b, c, d):
    a, d = _order(a, d)
    b, c = _order(b, c)
    a, b = _order(a, b)
    c, d = _order(c, d)
    return b, c


@row_kernel
def _sort_columns(n, r0, r1, r2, r3, r4, s0, s1, s2, s3, s4):
    for i in range(n):
        s0[i], s1[i], s2[i], s3[i], s4[i] = _sort5(r0[i], r1[i], r2[i], r3[i], r4[i])


@row_kernel
def _median_of_sorted_columns(n, s0, s1, s2, s3, s4, out):
    """Median of 5 x 5 from sorted columns.

    With the rows sorted too, twelve of the 25 values have 13 others on one side; the median is that of the other 13.
    """
    for i in range(n):
        _, _, _, a3, a4 = _sort5(s0[i], s0[i + 1], s0[i + 2], s0[i + 3], s0[i + 4])
        _, _, b2, b3, b4 = _sort5(s1[i], s1[i + 1], s1[i + 2], s1[i + 3], s1[i + 4])
        _, c1, c2, c3, _ = _sort5(s2[i], s2[i + 1], s2[i + 2], s2[i + 3], s2[i + 4])
        d0, d1, d2, _, _ = _sort5(s3[i], s3[i + 1], s3[i + 2], s3[i + 3], s3[i + 4])
        e0, e1, _, _, _ = _sort5(s4[i], s4[i + 1], s4[i + 2], s4[i + 3], s4[i + 4])
        a3, b2, b3, c1, c2, c3 = _inner_8(a3, a4, b2, b3, b4, c1, c2, c3)
        a3, b2, b3, c1, c2 = _inner_7(a3, b2, b3, c1, c2, c3, d0)
        a3, b2, b3, c1 = _inner_6(a3, b2, b3, c1, c2, d1)
        a3, b2, b3 = _inner_5(a3, b2, b3, c1, d2)
        a3, b2 = _inner_4(a3, b2, b3, e0)
        out[i] = max(min(a3, b2), min(max(a3, b2), e1))


@compiled
def median5(field, padded, sorted_rows, out):
    """Median of the 5 x 5 pixels around each pixel of (H, W); borders repeat.

    ``padded`` is scratch of (height + 4) * (width + 4) floats, ``sorted_rows`` of 5 * (width + 4).
    """
    height, width = field.shape
    stride = width + 4
    for y in range(height + 4):
        row = field[min(max(y - 2, 0), height - 1)]
        o = y * stride
        for x in range(width):
            padded[o + 2 + x] = row[x]
        padded[o] = padded[o + 1] = row[0]
        padded[o + width + 2] = padded[o + width + 3] = row[width - 1]
    flat_out = out.reshape(-1)
    for y in range(height):
        o = y * stride
        _sort_columns(
            stride, _at(padded, o), _at(padded, o + stride), _at(padded, o + 2 * stride), _at(padded, o + 3 * stride),
            _at(padded, o + 4 * stride), _at(sorted_rows, 0), _at(sorted_rows, stride), _at(sorted_rows, 2 * stride),
            _at(sorted_rows, 3 * stride), _at(sorted_rows, 4 * stride),
        )  # fmt: skip
        _median_of_sorted_columns(
            width, _at(sorted_rows, 0), _at(sorted_rows, stride), _at(sorted_rows, 2 * stride),
            _at(sorted_rows, 3 * stride), _at(sorted_rows, 4 * stride), _at(flat_out, y * width),
        )  # fmt: skip


# Adjoint --------------------------------------------------------------------------------------------------------------
#
# What the loss gains by a small change of a number stands in a plane of the same place, here named after it with _a.


@summing_row_kernel
def _p_row_adjoint(
    n, px_a, py_a, px, py, u, u_below, edge, not_last, a0, a1, b0, b1, below, epsilon, gx_a, gy_a, edge_a, sums
):
    """Through ``_p_row``: ``px``, ``py`` are the values after it, ``gx_a``, ``gy_a`` the way to the gradient of u."""
    a0_a = a1_a = b0_a = b1_a = ZERO
    for i in range(n):
        along_x = (a0 * u[i] + a1 * u[i + 1]) * not_last[i]
        along_y = (b0 * u[i] + b1 * u_below[i]) * below
        length = np.sqrt(along_x * along_x + along_y * along_y + epsilon)
        scale = ONE / (ONE + edge[i] * length)
        shrunk = (px_a[i] * px[i] + py_a[i] * py[i]) * scale
        px_a[i] *= scale
        py_a[i] *= scale
        pull = shrunk * edge[i] / length
        gx = (px_a[i] - pull * along_x) * not_last[i]
        gy = (py_a[i] - pull * along_y) * below
        edge_a[i] -= shrunk * length
        gx_a[i], gy_a[i] = gx, gy
        a0_a += gx * u[i]
        a1_a += gx * u[i + 1]
        b0_a += gy * u[i]
        b1_a += gy * u_below[i]
    sums[0] += a0_a
    sums[1] += a1_a
    sums[2] += b0_a
    sums[3] += b1_a


@row_kernel
def _gradient_row_adjoint(n, u_a, gx_a, gy_a, gy_a_above, a0, a1, b0, b1):
    for i in range(n):
        u_a[i] += a0 * gx_a[i] + a1 * gx_a[i - 1] + b0 * gy_a[i] + b1 * gy_a_above[i]


@summing_row_kernel
def _divergence_row_adjoint(n, u_a, px_a, py_a, py_a_above, px, py, py_above, not_last, a0, a1, b0, b1, below, sums):
    a0_a = a1_a = b0_a = b1_a = ZERO
    for i in range(n):
        px_a[i] += (a1 * u_a[i] + a0 * u_a[i + 1]) * not_last[i]
        py_a[i] += b1 * below * u_a[i]
        py_a_above[i] += b0 * u_a[i]
        a0_a += u_a[i] * px[i - 1]
        a1_a += u_a[i] * px[i]
        b0_a += u_a[i] * py_above[i]
        b1_a += u_a[i] * py[i]
    sums[0] += a0_a
    sums[1] += a1_a
    sums[2] += b0_a
    sums[3] += b1_a


@summing_row_kernel
def _data_row_adjoint(n, u1_a, u2_a, u1, u2, gx, gy, inverse, rho, limit, gx_a, gy_a, inverse_a, rho_a, sums):
    limit_a = ZERO
    for i in range(n):
        residual = rho[i] + gx[i] * u1[i] + gy[i] * u2[i]
        wanted = -residual * inverse[i]
        t = min(max(wanted, -limit), limit)
        t_a = u1_a[i] * gx[i] + u2_a[i] * gy[i]
        free = t_a if -limit <= wanted <= limit else ZERO
        residual_a = -inverse[i] * free
        limit_a += (t_a - free) * (ONE if wanted > ZERO else -ONE)
        inverse_a[i] -= residual * free
        rho_a[i] += residual_a
        gx_a[i] += u1_a[i] * t + residual_a * u1[i]
        gy_a[i] += u2_a[i] * t + residual_a * u2[i]
        u1_a[i] += residual_a * gx[i]
        u2_a[i] += residual_a * gy[i]
    sums[0] += limit_a


@compiled
def _keep(state, plane, o, n, planes, first_plane, ring, slot, rows, stride, y):
    """Copy row ``y`` of some planes, with a column left and right of it, into a slot of the ring."""
    for c in range(first_plane, first_plane + planes):
        target = ((slot * NUM_CHANGING + c) * rows + y % rows) * stride + PAD
        _copy_row(n + 2, _at(state, c * plane + o - 1), _at(ring, target - 1))


@compiled
def iterate_back(
    state, ring, rows, adjoint, gradients, plane, stride, height, width, kernels, limit, epsilon, not_last, first, stop,
    last, sums,
):  # fmt: skip
    """Iterations ``first`` to ``stop`` of a state, and behind them their adjoint, from the last one to the first.

    Forward each iteration follows the one before it with one row of lag, backward with two. So of u and p before and
    after each iteration no more than the last ``rows`` rows are needed: ``ring`` is (iterations + 1, NUM_CHANGING,
    rows, stride). ``gradients`` is scratch of (stop - first) * 6 * stride floats. ``sums`` (iterations * 16 + 1) gains
    the gradients of the folded kernels and of the limit.
    """
    count = stop - first
    gradients[: count * 6 * stride] = ZERO
    zeros = _at(state, P1Y * plane + PAD)  # the row above p
    for step in range(height + 3 * count):
        for j in range(count):
            k = (first + j) * 16
            y = step - j
            if 0 <= y < height:
                o = (y + 1) * stride + PAD
                if j == 0:
                    _keep(state, plane, o, width, NUM_CHANGING, U1, ring, 0, rows, stride, y)
                _update_u(state, plane, stride, o, width, limit, kernels, k)
                _keep(state, plane, o, width, 2, U1, ring, j + 1, rows, stride, y)
            y -= 1
            if 0 <= y < height and not (last and first + j == stop - 1):
                o = (y + 1) * stride + PAD
                below = ONE if y < height - 1 else ZERO
                _update_p(state, plane, stride, o, width, _at(not_last, 0), below, kernels, k, epsilon)
                _keep(state, plane, o, width, 4, P1X, ring, j + 1, rows, stride, y)
        for i in range(count):
            y = step - count - 2 * i
            if not 0 <= y < height:
                continue
            j = count - 1 - i
            k = (first + j) * 16
            o = (y + 1) * stride + PAD
            size = rows * stride
            before = j * NUM_CHANGING * size + (y % rows) * stride + PAD
            before_above = j * NUM_CHANGING * size + ((y - 1) % rows) * stride + PAD
            after = before + NUM_CHANGING * size
            after_below = (j + 1) * NUM_CHANGING * size + ((y + 1) % rows) * stride + PAD
            below = ONE if y < height - 1 else ZERO
            for c in range(2):
                px, py = P1X + 2 * c, P1Y + 2 * c
                if not (last and first + j == stop - 1):
                    # Rows of the adjoint of the gradient: along x, and along y by turns, for the last one is read too.
                    row = (i * 6 + 3 * c) * stride + PAD
                    along_x, along_y, above = row, row + (1 + y % 2) * stride, row + (2 - y % 2) * stride
                    g = k + 8 + 4 * c
                    _p_row_adjoint(
                        width, _at(adjoint, px * plane + o), _at(adjoint, py * plane + o),
                        _at(ring, after + px * size), _at(ring, after + py * size),
                        _at(ring, after + c * size), _at(ring, after_below + c * size),
                        _at(state, EDGE * plane + o), _at(not_last, 0),
                        kernels[g], kernels[g + 1], kernels[g + 2], kernels[g + 3], below, epsilon,
                        _at(gradients, along_x), _at(gradients, along_y), _at(adjoint, EDGE * plane + o), _at(sums, g),
                    )  # fmt: skip
                    _gradient_row_adjoint(
                        width, _at(adjoint, c * plane + o), _at(gradients, along_x), _at(gradients, along_y),
                        _at(gradients, above), kernels[g], kernels[g + 1], kernels[g + 2], kernels[g + 3],
                    )  # fmt: skip
                d = k + 4 * c
                py_above = _at(ring, before_above + py * size) if y > 0 else zeros
                _divergence_row_adjoint(
                    width, _at(adjoint, c * plane + o), _at(adjoint, px * plane + o), _at(adjoint, py * plane + o),
                    _at(adjoint, py * plane + o - stride), _at(ring, before + px * size), _at(ring, before + py * size),
                    py_above, _at(not_last, 0),
                    kernels[d], kernels[d + 1], kernels[d + 2], kernels[d + 3], below, _at(sums, d),
                )  # fmt: skip
            _data_row_adjoint(
                width, _at(adjoint, o), _at(adjoint, plane + o), _at(ring, before), _at(ring, before + size),
                _at(state, GX * plane + o), _at(state, GY * plane + o), _at(state, INVERSE * plane + o),
                _at(state, RHO * plane + o), limit, _at(adjoint, GX * plane + o), _at(adjoint, GY * plane + o),
                _at(adjoint, INVERSE * plane + o), _at(adjoint, RHO * plane + o), _at(sums, sums.size - 1),
            )  # fmt: skip


@compiled
def _centered_gradient_adjoint(along_x_a, along_y_a, image_a):
    """Adds to ``image_a``."""
    height, width = image_a.shape
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            half_x, half_y = along_x_a[y, x] * HALF, along_y_a[y, x] * HALF
            image_a[y, right] += half_x
            image_a[y, left] -= half_x
            image_a[below, x] += half_y
            image_a[above, x] -= half_y


@compiled
def linearise_back(
    second, u, grid_x, grid_y, sampler, images, images_a, state, adjoint, plane, stride, first_a, second_a
):
    """Through ``linearise``: sets ``first_a``, adds to ``second_a`` and to the adjoint of u.

    ``images`` is what ``linearise`` left; ``images_a`` (3, H, W) is scratch.
    """
    height, width = second.shape
    images_a[:] = ZERO
    size_x, size_y = np.float32(width), np.float32(height)
    scale_x = (size_x - ONE) / size_x if sampler == AUTHORS else ONE
    scale_y = (size_y - ONE) / size_y if sampler == AUTHORS else ONE
    for y in range(height):
        o = (y + 1) * stride + PAD
        for x in range(width):
            gx, gy, inverse = state[GX * plane + o + x], state[GY * plane + o + x], state[INVERSE * plane + o + x]
            warped_a = adjoint[RHO * plane + o + x]
            steep = -TWO * adjoint[INVERSE * plane + o + x] * inverse * inverse
            gx_a = adjoint[GX * plane + o + x] + steep * gx - warped_a * u[0, y, x]
            gy_a = adjoint[GY * plane + o + x] + steep * gy - warped_a * u[1, y, x]
            adjoint[o + x] -= warped_a * gx
            adjoint[plane + o + x] -= warped_a * gy
            first_a[y, x] = -warped_a
            if sampler == BICUBIC:
                images_a[0, y, x] = warped_a
                images_a[1, y, x], images_a[2, y, x] = gx_a, gy_a
                continue
            at_x = _position(x, grid_x[x], u[0, y, x], width, sampler)
            at_y = _position(y, grid_y[y], u[1, y, x], height, sampler)
            lower_x, upper_x, right, left = _corner(at_x, width)
            lower_y, upper_y, below, above = _corner(at_y, height)
            x0, x1 = _pixel(lower_x, width), _pixel(upper_x, width)
            y0, y1 = _pixel(lower_y, height), _pixel(upper_y, height)
            slope_x = slope_y = ZERO
            for c in range(3):
                values = second if c == 0 else images[c]
                value_a = warped_a if c == 0 else (gx_a if c == 1 else gy_a)
                p, q, r, s = values[y0, x0], values[y0, x1], values[y1, x0], values[y1, x1]
                slope_x += value_a * (above * (q - p) + below * (s - r))
                slope_y += value_a * (left * (r - p) + right * (s - q))
                images_a[c, y0, x0] += value_a * above * left
                images_a[c, y0, x1] += value_a * above * right
                images_a[c, y1, x0] += value_a * below * left
                images_a[c, y1, x1] += value_a * below * right
            if sampler == AUTHORS or ZERO <= np.float32(x) + u[0, y, x] <= size_x - ONE:
                adjoint[o + x] += slope_x * scale_x
            if sampler == AUTHORS or ZERO <= np.float32(y) + u[1, y, x] <= size_y - ONE:
                adjoint[plane + o + x] += slope_y * scale_y
    if sampler != BICUBIC:
        second_a += images_a[0]
        _centered_gradient_adjoint(images_a[1], images_a[2], second_a)
    else:
        _centered_gradient_adjoint(images_a[1], images_a[2], images_a[0])
        _read_bicubic_back(second, u, images_a[0], adjoint, plane, stride, second_a)


@compiled
def _read_bicubic_back(second, u, warped_a, adjoint, plane, stride, second_a):
    height, width = second.shape
    for y in range(height):
        o = (y + 1) * stride + PAD
        for x in range(width):
            at_x = _position(x, ZERO, u[0, y, x], width, BICUBIC)
            at_y = _position(y, ZERO, u[1, y, x], height, BICUBIC)
            x0, y0 = _pixel(at_x, width), _pixel(at_y, height)
            wx, wy = _cubic(at_x - np.float32(x0)), _cubic(at_y - np.float32(y0))
            dx, dy = _cubic_slopes(at_x - np.float32(x0)), _cubic_slopes(at_y - np.float32(y0))
            slope_x = slope_y = ZERO
            for i in range(4):
                row = min(max(y0 - 1 + i, 0), height - 1)
                for j in range(4):
                    column = min(max(x0 - 1 + j, 0), width - 1)
                    second_a[row, column] += wy[i] * wx[j] * warped_a[y, x]
                    slope_x += wy[i] * dx[j] * second[row, column]
                    slope_y += dy[i] * wx[j] * second[row, column]
            if ZERO <= np.float32(x) + u[0, y, x] <= np.float32(width - 1):
                adjoint[o + x] += slope_x * warped_a[y, x]
            if ZERO <= np.float32(y) + u[1, y, x] <= np.float32(height - 1):
                adjoint[plane + o + x] += slope_y * warped_a[y, x]


@compiled
def solve_pair_back(
    first, second, u, p_x, p_y, cost, kernels, limit, epsilon, sampler, ignore_outside, last,
    grid_x, grid_y, not_last, images, pixels, weights, state, plane, stride, segment, checkpoints, ring, rows, adjoint,
    images_a, gradients, u_a, p_x_a, p_y_a, first_a, second_a, u_in_a, p_x_in_a, p_y_in_a, cost_a, sums,
):  # fmt: skip
    """The adjoint of ``solve_pair``: what comes in is ``u_a``, ``p_x_a`` and ``p_y_a``.

    The forward way is gone again, in segments: the state before each of them is held in ``checkpoints``.
    """
    height, width = first.shape
    num_iterations, columns = kernels.size // 16, not_last.size
    block = NUM_CHANGING * plane
    begin(
        first, second, u, p_x, p_y, cost, sampler, ignore_outside, grid_x, grid_y, images, pixels, weights, state,
        plane, stride,
    )  # fmt: skip
    ring[:] = ZERO  # the row below the last one counts 0 times, which only numbers survive
    starts = range(0, num_iterations, segment)
    for number, start in enumerate(starts):
        checkpoints[number * block : (number + 1) * block] = state[:block]
        if start + segment < num_iterations:
            stop = start + segment
            iterate(state, plane, stride, height, columns, kernels, limit, epsilon, not_last, start, stop, False)
    adjoint[:] = ZERO
    for c in range(2):
        load(u_a[c], adjoint, c * plane, stride)
        if p_x_a.size:
            load(p_x_a[c], adjoint, (P1X + 2 * c) * plane, stride)
            load(p_y_a[c], adjoint, (P1Y + 2 * c) * plane, stride)
    for number in range(len(starts) - 1, -1, -1):
        start, stop = number * segment, min((number + 1) * segment, num_iterations)
        if stop < num_iterations:  # the last segment lies in the state as it is
            state[:block] = checkpoints[number * block : (number + 1) * block]
        iterate_back(
            state, ring, rows, adjoint, gradients, plane, stride, height, columns, kernels, limit, epsilon, not_last,
            start, stop, last and stop == num_iterations, sums,
        )  # fmt: skip
    linearise_back(
        second, u, grid_x, grid_y, sampler, images, images_a, state, adjoint, plane, stride, first_a, second_a
    )
    for c in range(2):
        store(adjoint, c * plane, stride, u_in_a[c])
        if p_x_in_a.size:
            store(adjoint, (P1X + 2 * c) * plane, stride, p_x_in_a[c])
            store(adjoint, (P1Y + 2 * c) * plane, stride, p_y_in_a[c])
    if cost.size:
        for y in range(height):
            o = EDGE * plane + (y + 1) * stride + PAD
            for x in range(width):
                cost_a[y, x] = -adjoint[o + x] * state[o + x] * state[o + x]
