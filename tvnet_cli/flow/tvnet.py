"""TVNet: the TV-L1 solver unrolled into a network, trained or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tvnet_cli.flow import operators
from tvnet_cli.flow.operators import DualField, Number, edge_cost
from tvnet_cli.options import FLOW_SOLVERS, MIN_FRAME_SIDE, FlowSolver, Presmoothing, Sampler, TVNetOptions

COARSEST_DIAGONAL = 4  # pixels; the authors' pyramid stops there
WHITE = 255.0  # the level of white that all constants of the solver belong to
OVERSHOOT = 0.2  # of the highest level: what sharp resampling, such as bicubic, goes beyond black and white, and more


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
    input_range : float
        Level of white in the frames: 255, or 1.0 for frames as most image loaders for torch give them.
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
        input_range: float = WHITE,
        **options: Any,
    ) -> None:
        super().__init__()
        if not 0 < input_range < math.inf:
            raise ValueError(f"input_range must be a positive number, such as 255 or 1.0, not {input_range}")
        self.input_range = float(input_range)
        self._range_checked = False
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
        first, second : Tensor, (B, 3, H, W) RGB or (B, 1, H, W) grey, 0..255, or 0..``input_range``
            Any number type. Both sides at least 16 pixels.

        Returns
        -------
        Tensor, (B, 2, H, W), type of the parameters, pixels
            Channel 0 is x, right positive; channel 1 is y, down positive: ``second`` at ``x + flow`` looks like
            ``first`` at ``x``. With parameters of 16 bits, and under autocast, it is computed in float32.

        Raises
        ------
        ValueError
            If the frames differ in shape, are not a batch of 1- or 3-channel frames, or are too small; or if their
            levels are not 0..``input_range``: NaN or infinite, clearly negative, clearly above white, or all within
            0..1 where white is 255 and not all whole. On a GPU the levels of the first call alone are checked, because
            to look at them is to wait for the GPU; a graph of torch.compile or torch.export checks none.
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
        self._check_range(first, second)
        with _float32_kept(first.device.type):
            if self.input_range != WHITE:
                factor = WHITE / self.input_range
                first, second = (frame.to(self._dtype) * factor for frame in (first, second))
            prepared = self._engine().prepare(first, second, self.options.presmoothing, self._dtype)
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
        options, dtype = self.options, self._dtype
        first, second = first.to(dtype), second.to(dtype)
        height, width = first.shape[-2:]
        sizes = pyramid_sizes(height, width, options.num_scales, options.zoom_factor, options.coarsest_side)
        engine = self._engine()
        flows: list[Tensor] = []
        for scale, size in reversed(list(enumerate(sizes))):
            if flows:
                u = self._to_finer_level(engine, flows[-1], size)
            else:
                start = engine.resize_flow(self.u0.to(dtype), size, options.antialias)
                u = start.expand(first.shape[0], -1, -1, -1)
            first_level, second_level = (engine.resize(frame, size, options.antialias) for frame in (first, second))
            flows.append(self._solve_level(engine, first_level, second_level, u, scale))
        return [flow.to(self.u0.dtype) for flow in flows]

    @property
    def _dtype(self) -> torch.dtype:
        """The type that is computed in: 16 bits do not hold what the solver squares and divides by."""
        return torch.float64 if self.u0.dtype == torch.float64 else torch.float32

    def _check_range(self, first: Tensor, second: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        if first.is_cuda:  # once: to look at levels is to wait for all that the GPU has still to do
            if self._range_checked:
                return
            self._range_checked = True
        check_range(first, second, self.input_range)

    def solver_in_use(self) -> FlowSolver:
        """``torch``, ``numba`` or ``triton``: what ``solver`` means for the type and the device of the parameters.

        Raises
        ------
        ValueError
            If the solver that was asked for does not serve them.
        """
        device, single = self.u0.device, self._dtype == torch.float32
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
                self.gradient_kernels[scale, warp_number].to(self._dtype),
                self.divergence_kernels[scale, warp_number].to(self._dtype),
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


def check_range(first: Tensor, second: Tensor, input_range: float = WHITE) -> None:
    """Refuse frames whose levels are not those that the solver expects.

    Parameters
    ----------
    first, second : Tensor, any shape and type
    input_range : float
        Level of white.

    Raises
    ------
    ValueError
        If a level is NaN or infinite, clearly negative or clearly above white; if white is 255 and all levels are
        within 0..1, not all of them whole (0 and 1 alone are the levels of a dark video); if the frames are bool; or
        if they are uint8 and white is not 255.
    """
    frames = first, second
    if any(frame.dtype == torch.bool for frame in frames):
        raise ValueError("frames are bool, not levels of 0..255: multiply them by 255")
    if all(frame.dtype == torch.uint8 for frame in frames):
        if input_range != WHITE:
            raise ValueError(f"uint8 frames have levels of 0..255, not 0..{input_range:g}: leave out input_range")
        return
    if not first.numel():
        return
    levels = [frame.detach() if frame.is_floating_point() else frame.to(torch.float64) for frame in frames]
    ends = [(float(low), float(high)) for low, high in map(torch.aminmax, levels)]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    if not all(math.isfinite(end) for pair in ends for end in pair):
        raise ValueError("frames hold NaN or infinite levels")
    expected = f"expected 0..{input_range:g}"
    if lowest < -OVERSHOOT * max(highest, 0.0) - 1e-3 * input_range:
        raise ValueError(
            f"frames have negative levels, {lowest:.4g} to {highest:.4g}, {expected}: undo their normalisation"
        )
    if highest > (1 + OVERSHOOT) * input_range:
        raise ValueError(f"frames have levels up to {highest:.6g}, {expected}: divide 16-bit levels by 257")
    if input_range == WHITE and highest <= 1 and not all(_is_whole(frame) for frame in frames):
        raise ValueError(f"all levels lie within 0..1, {expected}: multiply the frames by 255, or pass input_range=1.0")


def _is_whole(frame: Tensor) -> bool:
    return not frame.is_floating_point() or bool((frame == frame.round()).all())


@contextmanager
def _float32_kept(device_type: str) -> Iterator[None]:
    """Keep autocast from computing the solver in 16 bits."""
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield


def _check_frames(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"the two frames differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    if first.dim() != 4 or first.shape[1] not in (1, 3):
        raise ValueError(f"frames must be (B, 3, H, W) or (B, 1, H, W), not {tuple(first.shape)}")
    if min(first.shape[-2:]) < MIN_FRAME_SIDE:
        raise ValueError(
            f"frames must be at least {MIN_FRAME_SIDE} x {MIN_FRAME_SIDE} pixels, not {tuple(first.shape[-2:])}"
        )
