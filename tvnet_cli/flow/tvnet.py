"""TVNet: the TV-L1 solver unrolled into a network, trained or not."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tvnet_cli.flow import operators
from tvnet_cli.flow.operators import DualField, Number, edge_cost
from tvnet_cli.options import FLOW_SOLVERS, MIN_FRAME_SIDE, FlowSolver, Presmoothing, Sampler, TVNetOptions

COARSEST_DIAGONAL = 4  # pixels; the authors' pyramid stops there


class Engine(Protocol):
    """Who does the heavy work: ``operators``, the reference, or a module that does the same faster."""

    def prepare(
        self, first: Tensor, second: Tensor, sigma: Presmoothing, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]: ...
    def solve_warp(
        self,
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
    ) -> tuple[Tensor, DualField | None]: ...
    def median_filter(self, field: Tensor, size: int) -> Tensor: ...
    def resize(self, image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor: ...
    def resize_flow(self, flow: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor: ...


class TVNet(nn.Module):
    """Optical flow between two frames by TV-L1, every operator a layer that can be trained.

    Untrained it is the TV-L1 solver itself. With the defaults it is TVNet-50 of the paper: one scale, one warp,
    50 iterations.

    Parameters
    ----------
    num_scales, num_warps, num_iterations : int
        Levels of the pyramid, warps of each level, iterations of each warp.
    u0_size : (int, int), pixels
        Height and width at which the start field is stored. It is resized to the coarsest level of each pair.
    solver : {"auto", "torch", "numba", "triton"}
        Who computes: plain torch, which is the reference, takes any type and device; compiled code takes float32,
        ``numba`` on the CPU and ``triton`` on a GPU, and gives the same to about 1e-5 pixels. ``auto`` takes the
        compiled one that fits, and torch where none does. May be changed at any time.
    **options
        ``zoom_factor``, ``tau``, ``lambda_``, ``theta``, ``sampler`` and the others that
        ``tvnet_cli.options.TVNetOptions`` lists; it also holds all defaults.

    Attributes
    ----------
    u0 : Parameter, (1, 2, *u0_size), pixels
        Start of the flow on the coarsest level, 0 before training.
    gradient_kernels, divergence_kernels : Parameter, (scales, warps, iterations, 2 components, 2 axes, 2 taps)
        Two-tap kernels of the forward gradient of u and of the divergence of p, ``(-1, 1)`` before training,
        none shared. Scale 0 is the finest, axis 0 is x.
    tau, lambda_, theta : float
        Those of the options. Put a ``torch.nn.Parameter`` of one number in place of one to train it.

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
        u0_size: tuple[int, int] = (224, 224),
        solver: FlowSolver = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        if solver not in FLOW_SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(FLOW_SOLVERS)}, not {solver!r}")
        self.solver = solver
        self.options = TVNetOptions(
            num_scales=num_scales, num_warps=num_warps, num_iterations=num_iterations, **options
        )
        self.tau: Number = self.options.tau
        self.lambda_: Number = self.options.lambda_
        self.theta: Number = self.options.theta
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
        return cls(**vars(options), **arguments)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self.options).items())

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
        return self.flow_scales(first, second)[-1]

    def flow_scales(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """The flow of every scale, for frames as ``forward`` takes them.

        Returns
        -------
        list of Tensor, (B, 2, height, width) each, pixels of that scale
            The coarsest first. The last is what ``forward`` returns.
        """
        _check_frames(first, second)
        prepared = self._engine().prepare(first, second, self.options.presmoothing, self.u0.dtype)
        return self.solve_scales(*prepared)

    def solve(self, first: Tensor, second: Tensor) -> Tensor:
        """The solver without its pre-processing.

        Parameters
        ----------
        first, second : Tensor, (B, 1, H, W), float, 0..255

        Returns
        -------
        Tensor, (B, 2, H, W), pixels
        """
        return self.solve_scales(first, second)[-1]

    def solve_scales(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """The solver without its pre-processing, coarse to fine over the pyramid.

        Parameters
        ----------
        first, second : Tensor, (B, 1, H, W), float, 0..255

        Returns
        -------
        list of Tensor, (B, 2, height, width) each, pixels of that scale
            The coarsest first.
        """
        options = self.options
        height, width = first.shape[-2:]
        sizes = pyramid_sizes(height, width, options.num_scales, options.zoom_factor, options.coarsest_side)
        engine = self._engine()
        flows: list[Tensor] = []
        for scale, size in reversed(list(enumerate(sizes))):
            if flows:
                u = self._to_finer_level(engine, flows[-1], size)
            else:
                u = engine.resize_flow(self.u0, size, options.antialias).expand(first.shape[0], -1, -1, -1)
            first_level, second_level = (engine.resize(frame, size, options.antialias) for frame in (first, second))
            flows.append(self._solve_level(engine, first_level, second_level, u, scale))
        return flows

    def solver_in_use(self) -> FlowSolver:
        """``torch``, ``numba`` or ``triton``: what ``solver`` means for the type and the device of the parameters.

        Raises
        ------
        ValueError
            If the solver that was asked for does not serve them.
        """
        device, single = self.u0.device, self.u0.dtype == torch.float32
        serving = {"cpu": "numba", "cuda": "triton"}.get(device.type) if single else None
        if self.solver == "auto":
            return "numba" if serving == "numba" else "triton" if serving and _triton_serves(device) else "torch"
        if self.solver not in ("torch", serving):
            raise ValueError(f"the solver {self.solver} does not serve {self.u0.dtype} on {device.type}")
        return self.solver

    def _engine(self) -> Engine:
        solver = self.solver_in_use()
        if solver == "numba":
            from tvnet_cli.flow import solver_cpu

            return solver_cpu
        if solver == "triton":
            from tvnet_cli.flow import solver_cuda

            return solver_cuda
        return operators

    def _to_finer_level(self, engine: Engine, u: Tensor, size: tuple[int, int]) -> Tensor:
        if self.options.sampler == "authors":
            return operators.resize(u, size) / self.options.zoom_factor  # by the factor, not by the true ratio
        return engine.resize_flow(u, size, self.options.antialias)

    def _solve_level(self, engine: Engine, first: Tensor, second: Tensor, u: Tensor, scale: int) -> Tensor:
        """All warps and iterations on one level; the dual field starts at 0 and is kept from warp to warp."""
        options = self.options
        cost = edge_cost(first, options.edge_weight) if options.edge_weight else None
        p: DualField | None = None
        for warp_number in range(options.num_warps):
            u, p = engine.solve_warp(
                first,
                second,
                u,
                p,
                cost,
                self.gradient_kernels[scale, warp_number],
                self.divergence_kernels[scale, warp_number],
                tau=self.tau,
                lambda_=self.lambda_,
                theta=self.theta,
                sampler=options.sampler,
                ignore_outside=options.ignore_outside,
                last=warp_number == options.num_warps - 1,
            )
            if options.median_size:
                u = engine.median_filter(u, options.median_size)
        return u


@cache
def _triton_serves(device: torch.device) -> bool:
    """Whether Triton is there and works on the device."""
    if find_spec("triton") is None:
        return False
    from tvnet_cli.flow import solver_cuda

    return solver_cuda.usable(device)


def pyramid_sizes(
    height: int,
    width: int,
    max_scales: int,
    zoom_factor: float,
    coarsest_side: int = TVNetOptions.coarsest_side,
) -> list[tuple[int, int]]:
    """Height and width of each level, the finest first.

    The authors' rule, with two repairs: a fractional number of levels is rounded down (their code stops with an
    error), and no level has a side smaller than ``coarsest_side``.
    """
    diagonal = math.hypot(height, width)
    limit = 1 + math.log(diagonal / COARSEST_DIAGONAL) / math.log(1 / zoom_factor)
    sizes = []
    for scale in range(max(1, min(int(limit), max_scales))):
        factor = zoom_factor**scale
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        if scale > 0 and min(size) < coarsest_side:
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
