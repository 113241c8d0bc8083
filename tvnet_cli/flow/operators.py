"""The operators of TV-L1 optical flow, in plain torch: the readable reference.

Every operator is differentiable and takes any batch size. Inside the solver ``u`` is the flow, ``p`` its dual
field, ``rho`` the residual of the linearised data term. Fields have two components (x then y) on axis 1, and
the dual field is kept as two tensors, ``p_x`` and ``p_y``: what multiplies the x and the y derivative of both
components.

Sources: Fan et al., End-to-End Learning of Motion Representation for Video Understanding, CVPR 2018 (TVNet),
and the code its authors published; Sanchez Perez, Meinhardt-Llopis, Facciolo, TV-L1 Optical Flow Estimation,
IPOL 2013, doi:10.5201/ipol.2013.26.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tvnet_cli.options import Presmoothing, Sampler

Number = float | Tensor  # a tensor of one number can be trained
DualField = tuple[Tensor, Tensor]  # p_x, p_y

EPSILON = 1e-12  # one constant of the authors' code, in squared intensity and in squared pixels

# The authors' Gaussian by squared distance from the centre, rounded as in their code.
GAUSSIAN_TAPS = {0: 0.219833, 1: 0.110656, 2: 0.0557, 4: 0.01386, 5: 0.006976, 8: 0.000874}
_GAUSSIAN_5X5 = [[GAUSSIAN_TAPS[x * x + y * y] for x in range(-2, 3)] for y in range(-2, 3)]


def grey(frames: Tensor) -> Tensor:
    """Grey level of RGB frames, floored to whole levels.

    Parameters
    ----------
    frames : Tensor, (B, 3, H, W) RGB or (B, 1, H, W) grey, float, 0..255

    Returns
    -------
    Tensor, (B, 1, H, W), whole numbers
        ``floor(0.299 R + 0.587 G + 0.114 B)``. One channel counts as three equal ones. The gradient passes
        straight through the floor, so frames can be trained; the authors' code stops it there.

    Notes
    -----
    The authors list the weights blue first because their demo reads pictures as BGR. For whole-number colours
    the sum of thousandths is exact in float32, which plain float weights are not.
    """
    level = frames
    if frames.shape[1] == 3:
        red, green, blue = frames.unbind(1)
        level = ((299 * red + 587 * green + 114 * blue) / 1000).unsqueeze(1)
    return level + (torch.floor(level) - level).detach()


def stretch_range(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Map the joint range of each pair of frames to 0..255; a pair of one single level stays as it is.

    Parameters
    ----------
    first, second : Tensor, (B, 1, H, W)

    Returns
    -------
    (Tensor, Tensor), (B, 1, H, W), 0..255
    """
    lowest = torch.minimum(first.amin((1, 2, 3), True), second.amin((1, 2, 3), True))
    highest = torch.maximum(first.amax((1, 2, 3), True), second.amax((1, 2, 3), True))
    span = highest - lowest
    flat = span <= 0
    # The safe divisor comes before the choice: 0/0 in the branch not taken would still make NaN gradients.
    safe_span = torch.where(flat, torch.ones_like(span), span)

    def stretched(image: Tensor) -> Tensor:
        return torch.where(flat, image, 255 * (image - lowest) / safe_span)

    return stretched(first), stretched(second)


def smooth(image: Tensor, sigma: Presmoothing = "authors") -> Tensor:
    """Gaussian filter.

    Parameters
    ----------
    image : Tensor, (B, 1, H, W)
    sigma : float, pixels, or "authors"
        Borders repeat; 0 changes nothing. ``authors``: the 5 x 5 filter of their code, with zeros outside the
        picture, so that a 2-pixel rim darkens, alike in both frames.

    Returns
    -------
    Tensor, (B, 1, H, W)
    """
    if sigma == "authors":
        kernel = torch.tensor(_GAUSSIAN_5X5, dtype=image.dtype, device=image.device)
        return F.conv2d(image, kernel[None, None], padding=2)
    if not sigma:
        return image
    radius = math.ceil(3 * sigma)
    taps = [math.exp(-(tap * tap) / (2 * sigma * sigma)) for tap in range(-radius, radius + 1)]
    # Tap by tap: the rounding of a convolution by a single row depends on the batch and on the threads.
    for axis in (-1, -2):
        length = image.shape[axis]
        padded = F.pad(image, (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius), mode="replicate")
        image = torch.zeros_like(image)
        for start, tap in enumerate(taps):
            image = torch.add(image, padded.narrow(axis, start, length), alpha=tap / sum(taps))
    return image


def prepare(
    first: Tensor, second: Tensor, sigma: Presmoothing, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """What the solver reads: grey levels of a pair, stretched to 0..255 and smoothed.

    Parameters
    ----------
    first, second : Tensor, (B, 3, H, W) RGB or (B, 1, H, W) grey, any number type, 0..255
    sigma : float, pixels, or "authors"
        As for ``smooth``.
    dtype : torch.dtype
        Of the arithmetic and the result.

    Returns
    -------
    (Tensor, Tensor), (B, 1, H, W)
    """
    first, second = stretch_range(grey(first.to(dtype)), grey(second.to(dtype)))
    return smooth(first, sigma), smooth(second, sigma)


def resize(image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Bilinear resize, by corners as in the authors' code or by areas with an anti-alias filter.

    Parameters
    ----------
    image : Tensor, (B, C, H, W)
    size : (int, int)
        Height, width.
    antialias : bool
        False: corner pixels stay in the corners. True: the edges of the picture stay where they are, and when it
        shrinks, the triangle of the weights widens by the same factor.

    Returns
    -------
    Tensor, (B, C, height, width)
    """
    if image.shape[-2:] == size:
        return image
    if antialias:
        return _resize_areas(_resize_areas(image, size[0], 2), size[1], 3)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=True)


def area_taps(old: int, length: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of a resized axis comes from, by triangle weights.

    Parameters
    ----------
    old, length : int, pixels
        Lengths before and after.

    Returns
    -------
    (Tensor, Tensor), (length,) int64 and (taps, length) float64
        The pixel of the first tap, which may lie outside, and the weights of it and of those after it; their sum is 1.
    """
    reach = max(1.0, old / length)
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) * (old / length) - 0.5
    first = (centres - reach).ceil()
    pixels = first + torch.arange(int(2 * reach) + 1, dtype=torch.float64)[:, None]
    weights = (1 - (pixels - centres).abs() / reach).clamp(min=0)
    return first.long(), weights / weights.sum(0)


def _resize_areas(image: Tensor, length: int, axis: int) -> Tensor:
    """Resize one axis by triangle weights; the border pixel repeats.

    Tap by tap, because the last bits of torch's own anti-aliased resize depend on the batch.
    """
    first, weights = (part.to(image.device) for part in area_taps(image.shape[axis], length))
    weights = weights.to(image.dtype)
    if axis == 2:
        weights = weights.unsqueeze(2)
    total = image.new_zeros(())
    for tap, weight in enumerate(weights):
        total = total + weight * image.index_select(axis, (first + tap).clamp(0, image.shape[axis] - 1))
    return total


def resize_flow(flow: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Resize a flow field and its values: x by the width ratio, y by the height ratio.

    Parameters
    ----------
    flow : Tensor, (B, 2, H, W), pixels of the old grid
    size : (int, int)
        Height, width.
    antialias : bool
        As for ``resize``.

    Returns
    -------
    Tensor, (B, 2, height, width), pixels of the new grid
        The ratio is that of what ``resize`` keeps in place: the distances between corner pixels, or the sides.
    """
    if flow.shape[-2:] == size:
        return flow
    return resize(flow, size, antialias) * flow_ratio(flow, size, antialias)


def flow_ratio(flow: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """By what ``resize_flow`` multiplies: (2, 1, 1)."""
    spans = [(side, old) if antialias else (side - 1, old - 1) for side, old in zip(size, flow.shape[-2:], strict=True)]
    (height, old_height), (width, old_width) = spans
    return flow.new_tensor([width / old_width, height / old_height])[:, None, None]


def warp(image: Tensor, flow: Tensor, sampler: Sampler = "exact") -> Tensor:
    """Read an image where the flow points (backward warp).

    Pixel (x, y) of the result is ``image`` at ``(x + flow_x, y + flow_y)``, so the second frame, warped with
    the flow first -> second, looks like the first.

    Parameters
    ----------
    image : Tensor, (B, C, H, W), float, any intensity
    flow : Tensor, (B, 2, H, W), float, pixels
        x then y.
    sampler : {"exact", "bicubic", "authors"}
        ``exact``: true pixel units; outside, the border pixel is repeated. ``bicubic``: the same with cubic
        instead of linear interpolation, which blurs less. ``authors``: the arithmetic of the authors' code, whose
        displacements are (W-1)/W of what they should be, which reads 0 left of and above the picture, and
        extrapolates linearly right of and below it.

    Returns
    -------
    Tensor, (B, C, H, W), float, unit of ``image``
        Bilinear or bicubic samples.

    Raises
    ------
    ValueError
        If batch, height or width differ, or if height or width is 1.

    Examples
    --------
    >>> ramp = torch.arange(4.0).expand(1, 1, 2, 4)
    >>> one_right = torch.zeros(1, 2, 2, 4)
    >>> one_right[:, 0] = 1
    >>> warp(ramp, one_right)[0, 0, 0].tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    (batch, _, height, width), flow_shape = image.shape, tuple(flow.shape)
    if flow_shape != (batch, 2, height, width) or min(height, width) < 2:
        raise ValueError(
            f"cannot warp an image {tuple(image.shape)} with a flow {flow_shape}: "
            f"expected a flow ({batch}, 2, {height}, {width}) and at least 2 x 2 pixels"
        )
    x = _sample_positions(flow[:, 0], width, -1, sampler)
    y = _sample_positions(flow[:, 1], height, -2, sampler)
    return _bicubic(image, x, y) if sampler == "bicubic" else _bilinear(image, x, y)


def warp_with_gradient(image: Tensor, flow: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """The warped image and the gradient of the image where the flow points.

    Parameters
    ----------
    image : Tensor, (B, 1, H, W)
    flow : Tensor, (B, 2, H, W), pixels
    sampler : {"exact", "bicubic", "authors"}
        ``bicubic`` differentiates the warped image, which costs one cubic read and not three. The others warp
        the gradient too.

    Returns
    -------
    (Tensor, Tensor), (B, 1, H, W) and (B, 2, H, W)
    """
    if sampler == "bicubic":
        warped = warp(image, flow, sampler)
        return warped, centered_gradient(warped)
    both = warp(torch.cat((image, centered_gradient(image)), 1), flow, sampler)
    return both[:, :1], both[:, 1:]


def leads_inside(flow: Tensor) -> Tensor:
    """Whether the flow ends inside the picture.

    Parameters
    ----------
    flow : Tensor, (B, 2, H, W), pixels

    Returns
    -------
    Tensor, (B, 1, H, W), bool
    """
    height, width = flow.shape[-2:]
    x = flow[:, :1] + torch.arange(width, dtype=flow.dtype, device=flow.device)
    y = flow[:, 1:] + torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _sample_positions(displacement: Tensor, length: int, axis: int, sampler: Sampler) -> Tensor:
    """Where to read along one axis, in pixels: (B, H, W)."""
    shape = [1, 1, 1]
    shape[axis] = length
    if sampler != "authors":
        pixels = torch.arange(length, dtype=displacement.dtype, device=displacement.device)
        return (pixels.view(shape) + displacement).clamp(0, length - 1)
    # The order of these operations is the authors', to the last rounding: a position of -1e-9 is outside and
    # reads 0, while -1 + -1e-9 is still -1 in float32 and reads the first pixel.
    grid = torch.linspace(-1, 1, length, dtype=displacement.dtype, device=displacement.device)
    return (grid.view(shape) + displacement / length * 2 + 1) * (length - 1) / 2


def _bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples; corner indices are clipped and weights are not, which extrapolates outside."""
    batch, channels, height, width = image.shape
    x0 = x.detach().floor().clamp(-1, width).long()
    y0 = y.detach().floor().clamp(-1, height).long()
    x0, x1 = x0.clamp(0, width - 2), (x0 + 1).clamp(0, width - 1)
    y0, y1 = y0.clamp(0, height - 2), (y0 + 1).clamp(0, height - 1)
    pixels = image.reshape(batch, channels, height * width)

    def read(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).reshape(batch, 1, -1).expand(-1, channels, -1)
        return pixels.gather(2, index).reshape(image.shape)

    right, left = (x - x0).unsqueeze(1), (x1 - x).unsqueeze(1)
    below, above = (y - y0).unsqueeze(1), (y1 - y).unsqueeze(1)
    top = above * (left * read(y0, x0) + right * read(y0, x1))
    return top + below * (left * read(y1, x0) + right * read(y1, x1))


def _bicubic(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cubic convolution (Keys 1981) of the 4 x 4 pixels around positions inside the picture; borders repeat."""
    batch, channels, height, width = image.shape
    x0, y0 = x.detach().floor(), y.detach().floor()
    weights_x, weights_y = _cubic_weights(x - x0), _cubic_weights(y - y0)
    columns = [(x0.long() + offset).clamp(0, width - 1) for offset in range(-1, 3)]
    rows = [(y0.long() + offset).clamp(0, height - 1) * width for offset in range(-1, 3)]
    pixels = image.reshape(batch, channels, height * width)
    result = torch.zeros_like(image)
    for row, weight_y in zip(rows, weights_y, strict=True):
        line = torch.zeros_like(image)
        for column, weight_x in zip(columns, weights_x, strict=True):
            index = (row + column).reshape(batch, 1, -1).expand(-1, channels, -1)
            line = torch.addcmul(line, weight_x.unsqueeze(1), pixels.gather(2, index).reshape(image.shape))
        result = torch.addcmul(result, weight_y.unsqueeze(1), line)
    return result


def _cubic_weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the pixels at -1, 0, 1 and 2, read at ``t`` in 0..1: exact for parabolas (Keys' a = -1/2)."""
    s = 1 - t
    return -t * s * s / 2, s + t * s * (3 * s - 1) / 2, t + t * s * (3 * t - 1) / 2, -s * t * t / 2


def centered_gradient(image: Tensor) -> Tensor:
    """Centred differences of an image; at the border half of the one-sided difference, as in the authors' code.

    Parameters
    ----------
    image : Tensor, (B, 1, H, W)

    Returns
    -------
    Tensor, (B, 2, H, W), intensity per pixel
        x derivative, y derivative.
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    along_x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    along_y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.cat((along_x, along_y), 1) / 2


def forward_gradient(u: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences of both components by two-tap kernels; 0 in the last column (x) and the last row (y).

    Parameters
    ----------
    u : Tensor, (B, 2, H, W)
    kernels : Tensor, (2 components, 2 axes, 2 taps)
        ``(-1, 1)`` everywhere is the plain difference.

    Returns
    -------
    (Tensor, Tensor), (B, 2, H, W) each
        x derivatives, y derivatives.
    """
    taps = kernels[..., None, None]  # (2, 2, 2, 1, 1): component, axis, tap
    u_x = torch.addcmul(taps[:, 0, 0] * u[..., :-1], taps[:, 0, 1], u[..., 1:])
    u_y = torch.addcmul(taps[:, 1, 0] * u[..., :-1, :], taps[:, 1, 1], u[..., 1:, :])
    return F.pad(u_x, (0, 1)), F.pad(u_y, (0, 0, 0, 1))


def divergence(p_x: Tensor, p_y: Tensor, kernels: Tensor) -> Tensor:
    """Backward differences of a dual field by two-tap kernels, summed over the axes.

    With kernels ``(-1, 1)`` it is the negative adjoint of ``forward_gradient``: zeros lie left of and above the
    field, and its last column (x part) and last row (y part) count as 0.

    Parameters
    ----------
    p_x, p_y : Tensor, (B, 2, H, W)
    kernels : Tensor, (2 components, 2 axes, 2 taps)

    Returns
    -------
    Tensor, (B, 2, H, W)
    """
    taps = kernels[..., None, None]
    q_x = F.pad(p_x[..., :-1], (1, 1))
    q_y = F.pad(p_y[..., :-1, :], (0, 0, 1, 1))
    along_x = torch.addcmul(taps[:, 0, 0] * q_x[..., :-1], taps[:, 0, 1], q_x[..., 1:])
    along_y = torch.addcmul(taps[:, 1, 0] * q_y[..., :-1, :], taps[:, 1, 1], q_y[..., 1:, :])
    return along_x + along_y


def inverse_squared_gradient(gradient: Tensor) -> Tensor:
    """``1 / |gradient|^2`` with 0 where the image is flat, so that the data term does nothing there.

    Parameters
    ----------
    gradient : Tensor, (B, 2, H, W)

    Returns
    -------
    Tensor, (B, 1, H, W)
    """
    squared = (gradient * gradient).sum(1, keepdim=True) + EPSILON
    flat = squared <= EPSILON
    return torch.where(flat, torch.zeros_like(squared), 1 / squared)


def linearise(
    first: Tensor, second: Tensor, u: Tensor, sampler: Sampler, ignore_outside: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The data term, linear around ``u``: what all updates of one warp read.

    Parameters
    ----------
    first, second : Tensor, (B, 1, H, W)
    u : Tensor, (B, 2, H, W), pixels
    sampler, ignore_outside
        As in ``tvnet_cli.options.TVNetOptions``.

    Returns
    -------
    (Tensor, Tensor, Tensor), (B, 2, H, W), (B, 1, H, W), (B, 1, H, W)
        ``gradient``, ``inverse`` and ``rho_constant`` as ``data_step`` takes them.
    """
    warped, gradient = warp_with_gradient(second, u, sampler)
    inverse = inverse_squared_gradient(gradient)
    if ignore_outside:
        inverse = inverse * leads_inside(u)
    return gradient, inverse, warped - (gradient * u).sum(1, keepdim=True) - first


def data_step(u: Tensor, gradient: Tensor, inverse: Tensor, rho_constant: Tensor, limit: Number) -> Tensor:
    """Minimise the linearised data term near ``u``: the thresholding step.

    Parameters
    ----------
    u : Tensor, (B, 2, H, W)
    gradient : Tensor, (B, 2, H, W)
        Of the warped second frame.
    inverse : Tensor, (B, 1, H, W)
        ``inverse_squared_gradient(gradient)``.
    rho_constant : Tensor, (B, 1, H, W)
        The residual ``rho`` less its part linear in ``u``.
    limit : float or Tensor of one number
        ``lambda_ * theta``.

    Returns
    -------
    Tensor, (B, 2, H, W)
        The auxiliary field v. The three cases of the paper's Eq. (3) are one clamp of ``-rho / |gradient|^2``.
    """
    rho = torch.addcmul(rho_constant, gradient[:, :1], u[:, :1])
    rho = torch.addcmul(rho, gradient[:, 1:], u[:, 1:])
    return torch.addcmul(u, (rho * -inverse).clamp(-limit, limit), gradient)  # type: ignore[arg-type]


def edge_cost(image: Tensor, edge_weight: float) -> Tensor:
    """Weight of the total variation at each pixel: 1 where the image is flat, little where it has an edge.

    Parameters
    ----------
    image : Tensor, (B, 1, H, W), 0..255
    edge_weight : float

    Returns
    -------
    Tensor, (B, 1, H, W), in (0, 1]
        ``exp(-edge_weight * |gradient| / 255)``: Wedel, Cremers, Pock, Bischof, Structure- and motion-adaptive
        regularization for high accuracy optic flow, ICCV 2009, without the power, which changes little.
    """
    gradient = centered_gradient(image)
    squared = (gradient * gradient).sum(1, keepdim=True) + EPSILON  # no root has a gradient at 0
    return torch.exp(torch.sqrt(squared) * (-edge_weight / 255))


def median_filter(field: Tensor, size: int) -> Tensor:
    """Median of the ``size`` x ``size`` pixels around each pixel, component by component; borders repeat.

    Parameters
    ----------
    field : Tensor, (B, C, H, W)
    size : int, odd

    Returns
    -------
    Tensor, (B, C, H, W)

    Notes
    -----
    Minima and maxima of whole pictures, which are fast and have gradients: of any half of the values and two
    more, neither the least nor the greatest is the median, so both are dropped and the next value comes in.
    """
    height, width = field.shape[-2:]
    padded = F.pad(field, (size // 2,) * 4, mode="replicate")
    values = [padded[..., i : i + height, j : j + width] for i in range(size) for j in range(size)]
    held = values[: len(values) // 2 + 2]
    for value in [*values[len(held) :], None]:
        _move_extremes_to_the_ends(held)
        held = held[1:-1]
        if value is not None:
            held.append(value)
    return held[0]


def _move_extremes_to_the_ends(values: list[Tensor]) -> None:
    """Exchange values pixel by pixel until the least is first and the greatest last."""

    def order(i: int, j: int) -> None:
        values[i], values[j] = torch.minimum(values[i], values[j]), torch.maximum(values[i], values[j])

    last = len(values) - 1
    for i in range(len(values) // 2):
        order(i, last - i)
    for i in range(1, (len(values) + 1) // 2):
        order(0, i)
        order(last - i, last)


def dual_step(p: Tensor, u_along_axis: Tensor, denominator: Tensor, step: Number) -> Tensor:
    """One axis of the dual update, the paper's Eq. (11): ``(p + step * grad u) / denominator``.

    Parameters
    ----------
    p, u_along_axis : Tensor, (B, 2, H, W)
        Dual field and derivative of ``u`` along the axis.
    denominator : Tensor, (B, 2, H, W)
        ``dual_denominator`` of both derivatives.
    step : float or Tensor of one number
        ``tau / theta``.

    Returns
    -------
    Tensor, (B, 2, H, W)
    """
    return _add_scaled(p, u_along_axis, step) / denominator


def dual_denominator(u_x: Tensor, u_y: Tensor, step: float | Tensor) -> Tensor:
    """``1 + step * sqrt(u_x^2 + u_y^2 + epsilon)``; the epsilon keeps its gradient finite on flat fields.

    Parameters
    ----------
    u_x, u_y : Tensor, (B, 2, H, W)
    step : float or Tensor, (B, 1, H, W)
        ``tau / theta``, divided by the weight of the total variation, which so bounds the dual field.

    Returns
    -------
    Tensor, (B, 2, H, W), at least 1
    """
    return 1 + step * torch.sqrt(torch.addcmul(u_x * u_x + EPSILON, u_y, u_y))


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
    """One warp: linearise the data term where ``u`` points, then all primal-dual updates.

    Parameters
    ----------
    first, second : Tensor, (B, 1, H, W), 0..255
        Both sides at least 2.
    u : Tensor, (B, 2, H, W), pixels
    p : (Tensor, Tensor), (B, 2, H, W) each, or None
        The dual field; its last column (x part) and last row (y part) are 0. None: 0 everywhere.
    cost : Tensor, (B, 1, H, W), or None
        ``edge_cost`` of the first frame; None counts as 1 everywhere.
    gradient_kernels, divergence_kernels : Tensor, (iterations, 2 components, 2 axes, 2 taps)
    tau, lambda_, theta, sampler, ignore_outside
        As in ``tvnet_cli.options.TVNetOptions``; the first three are floats, or tensors of one number to be trained.
    last : bool
        No warp follows that would read the dual field: its last update is left out.

    Returns
    -------
    (Tensor, (Tensor, Tensor) or None)
        ``u`` and ``p`` after the last update; with ``last`` no ``p``.
    """
    step, limit = tau / theta, lambda_ * theta
    bound_step = step if cost is None else step / cost
    p_x, p_y = p or (torch.zeros_like(u), torch.zeros_like(u))
    gradient, inverse, rho_constant = linearise(first, second, u, sampler, ignore_outside)
    num_iterations = len(gradient_kernels)
    for iteration in range(num_iterations):
        v = data_step(u, gradient, inverse, rho_constant, limit)
        u = _add_scaled(v, divergence(p_x, p_y, divergence_kernels[iteration]), theta)
        if last and iteration == num_iterations - 1:
            return u, None
        u_x, u_y = forward_gradient(u, gradient_kernels[iteration])
        denominator = dual_denominator(u_x, u_y, bound_step)
        p_x, p_y = dual_step(p_x, u_x, denominator, step), dual_step(p_y, u_y, denominator, step)
    return u, (p_x, p_y)


def _add_scaled(values: Tensor, others: Tensor, scale: Number) -> Tensor:
    """``values + scale * others`` in one pass."""
    if isinstance(scale, Tensor):
        return torch.addcmul(values, scale.to(values.dtype), others)
    return torch.add(values, others, alpha=scale)
