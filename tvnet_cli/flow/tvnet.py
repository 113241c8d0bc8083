"""TVNet: the TV-L1 solver unrolled into a network, trained or not."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from tvnet_cli.flow.operators import (
    centered_gradient,
    data_step,
    divergence,
    dual_denominator,
    dual_step,
    forward_gradient,
    grey,
    inverse_squared_gradient,
    resize,
    resize_flow,
    smooth,
    stretch_range,
    warp,
)
from tvnet_cli.options import MIN_FRAME_SIDE, Sampler, TVNetOptions

MIN_LEVEL_SIDE = 3  # pixels; a centred difference needs three
COARSEST_DIAGONAL = 4  # pixels; the authors' pyramid stops there


class TVNet(nn.Module):
    """Optical flow between two frames by TV-L1, every operator a layer that can be trained.

    Untrained it is the TV-L1 solver itself. With the defaults it is TVNet-50 of the paper: one scale, one warp,
    50 iterations.

    Parameters
    ----------
    num_scales, num_warps, num_iterations, zoom_factor, tau, lambda_, theta, sampler
        See ``tvnet_cli.options.TVNetOptions``, which also holds the defaults.
    u0_size : (int, int), pixels
        Height and width at which the start field is stored. It is resized to the coarsest level of each pair.

    Attributes
    ----------
    u0 : Parameter, (1, 2, *u0_size), pixels
        Start of the flow on the coarsest level, 0 before training.
    gradient_kernels, divergence_kernels : Parameter, (scales, warps, iterations, 2 components, 2 axes, 2 taps)
        Two-tap kernels of the forward gradient of u and of the divergence of p, ``(-1, 1)`` before training,
        none shared. Scale 0 is the finest, axis 0 is x.

    References
    ----------
    Fan, Huang, Gan, Ermon, Gong, Huang: End-to-End Learning of Motion Representation for Video Understanding,
    CVPR 2018, arXiv:1804.00413. We follow the authors' published code, with three differences: frames are RGB
    (theirs BGR), gradients reach the frames (straight through the floor of the grey levels), and a start field
    of one size serves any size.

    Examples
    --------
    >>> first = torch.randint(0, 256, (1, 3, 48, 64)).float()
    >>> TVNet()(first, first).shape
    torch.Size([1, 2, 48, 64])
    """

    def __init__(
        self,
        num_scales: int = TVNetOptions.num_scales,
        num_warps: int = TVNetOptions.num_warps,
        num_iterations: int = TVNetOptions.num_iterations,
        *,
        zoom_factor: float = TVNetOptions.zoom_factor,
        tau: float = TVNetOptions.tau,
        lambda_: float = TVNetOptions.lambda_,
        theta: float = TVNetOptions.theta,
        sampler: Sampler = TVNetOptions.sampler,
        u0_size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        self.options = TVNetOptions(
            num_scales=num_scales,
            num_warps=num_warps,
            num_iterations=num_iterations,
            zoom_factor=zoom_factor,
            tau=tau,
            lambda_=lambda_,
            theta=theta,
            sampler=sampler,
        )
        if min(u0_size) < 2:
            raise ValueError(f"u0_size must be at least 2 x 2, not {u0_size[0]} x {u0_size[1]}")
        self.u0 = nn.Parameter(torch.zeros(1, 2, *u0_size))
        difference = torch.tensor([-1.0, 1.0])
        shape = (num_scales, num_warps, num_iterations, 2, 2, 2)
        self.gradient_kernels = nn.Parameter(difference.expand(shape).clone())
        self.divergence_kernels = nn.Parameter(difference.expand(shape).clone())

    @classmethod
    def from_options(cls, options: TVNetOptions, **arguments: Any) -> TVNet:
        """A network with the schedule of ``options``."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(options)}, **arguments)

    def extra_repr(self) -> str:
        return ", ".join(f"{field.name}={getattr(self.options, field.name)}" for field in fields(self.options))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow that takes the first frame to the second.

        Parameters
        ----------
        first, second : Tensor, (B, 3, H, W) RGB or (B, 1, H, W) grey, 0..255
            Any number type; computed in the type of the parameters. Both sides at least 16 pixels.

        Returns
        -------
        Tensor, (B, 2, H, W), pixels
            Channel 0 is x, right positive; channel 1 is y, down positive: ``second`` at ``x + flow`` looks like
            ``first`` at ``x``.

        Raises
        ------
        ValueError
            If the frames differ in shape, are not a batch of 1- or 3-channel pictures, or are too small.
        """
        _check_frames(first, second)
        first, second = first.to(self.u0.dtype), second.to(self.u0.dtype)
        first, second = stretch_range(grey(first), grey(second))
        return self.solve(smooth(first), smooth(second))

    def solve(self, first: Tensor, second: Tensor) -> Tensor:
        """The solver without its pre-processing: coarse to fine over the pyramid.

        Parameters
        ----------
        first, second : Tensor, (B, 1, H, W), float, 0..255

        Returns
        -------
        Tensor, (B, 2, H, W), pixels
        """
        sizes = pyramid_sizes(first.shape[-2], first.shape[-1], self.options.num_scales, self.options.zoom_factor)
        u = resize_flow(self.u0, sizes[-1]).expand(first.shape[0], -1, -1, -1)
        for scale in reversed(range(len(sizes))):
            if scale < len(sizes) - 1:
                u = self._to_finer_level(u, sizes[scale])
            u = self._solve_level(resize(first, sizes[scale]), resize(second, sizes[scale]), u, scale)
        return u

    def _to_finer_level(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        if self.options.sampler == "exact":
            return resize_flow(u, size)
        return resize(u, size) / self.options.zoom_factor  # authors: by the factor, not by the true ratio

    def _solve_level(self, first: Tensor, second: Tensor, u: Tensor, scale: int) -> Tensor:
        """All warps and iterations on one level; the dual field starts at 0 and is kept from warp to warp."""
        options = self.options
        step, limit = options.tau / options.theta, options.lambda_ * options.theta
        second_and_gradient = torch.cat((second, centered_gradient(second)), 1)
        p_x = p_y = torch.zeros_like(u)
        for warp_number in range(options.num_warps):
            warped = warp(second_and_gradient, u, options.sampler)
            gradient = warped[:, 1:]
            inverse = inverse_squared_gradient(gradient)
            rho_constant = warped[:, :1] - (gradient * u).sum(1, keepdim=True) - first
            for iteration in range(options.num_iterations):
                v = data_step(u, gradient, inverse, rho_constant, limit)
                kernels = self.divergence_kernels[scale, warp_number, iteration]
                u = torch.add(v, divergence(p_x, p_y, kernels), alpha=options.theta)
                if warp_number == options.num_warps - 1 and iteration == options.num_iterations - 1:
                    break  # nobody reads the dual field after the last update of u
                u_x, u_y = forward_gradient(u, self.gradient_kernels[scale, warp_number, iteration])
                denominator = dual_denominator(u_x, u_y, step)
                p_x, p_y = dual_step(p_x, u_x, denominator, step), dual_step(p_y, u_y, denominator, step)
        return u


def pyramid_sizes(height: int, width: int, max_scales: int, zoom_factor: float) -> list[tuple[int, int]]:
    """Height and width of each level, the finest first.

    The authors' rule, with two repairs: a fractional number of levels is rounded down (their code stops with an
    error), and no level is smaller than 3 pixels on a side.
    """
    diagonal = math.hypot(height, width)
    limit = 1 + math.log(diagonal / COARSEST_DIAGONAL) / math.log(1 / zoom_factor)
    sizes = []
    for scale in range(max(1, min(int(limit), max_scales))):
        factor = zoom_factor**scale
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        if scale > 0 and min(size) < MIN_LEVEL_SIDE:
            break
        sizes.append(size)
    return sizes


def _check_frames(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"the two frames differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    if first.dim() != 4 or first.shape[1] not in (1, 3):
        raise ValueError(f"frames must be (B, 3, H, W) or (B, 1, H, W), not {tuple(first.shape)}")
    if min(first.shape[-2:]) < MIN_FRAME_SIDE:
        raise ValueError(
            f"frames must be at least {MIN_FRAME_SIDE} x {MIN_FRAME_SIDE} pixels, not {tuple(first.shape[-2:])}"
        )
