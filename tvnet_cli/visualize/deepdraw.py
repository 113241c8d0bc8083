"""DeepDraw: the picture that a unit of a network answers to most, by gradient ascent, for any number of channels.

Mathematics on a function of pictures and on arrays; which unit of which network that is, ``units`` says.

Source: Øygard, Visualizing GoogLeNet classes, 2015, https://github.com/auduno/deepdraw. A canvas of noise is drawn on
step by step: a window of it, cut out at random, goes the way of the gradient of one unit, and is clipped and blurred,
less and less, while the canvas grows from octave to octave.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, zoom
from torch import Tensor

from tvnet_cli.device import num_workers, thread_pool, true_float32
from tvnet_cli.options import DrawOptions

Canvas = NDArray[np.float32]
Layer = Callable[[Tensor], Tensor]

CROP_SPREAD = 0.3  # deviation of the place of a window, in parts of the room that it has
# Units of one batch. On a CPU each is the work of one thread, and all cores work side by side on the units: so no core
# waits for another, and no picture depends on what else is drawn.
UNITS_AT_ONCE = {"cpu": 1, "cuda": 32}


@dataclass(frozen=True)
class Space:
    """The pictures that a layer sees.

    Attributes
    ----------
    mean : ndarray, (C,), float32, grey levels
        What a picture of grey levels 0..255 has less in each channel as the layer sees it.
    side : int, pixels
        Of the square window that the layer takes.
    background : float, grey levels
        Of the canvas at the start.
    """

    mean: NDArray[np.float32]
    side: int
    background: float


@dataclass(frozen=True)
class Drawing:
    """What became of one unit.

    Attributes
    ----------
    unit : int
    canvas : ndarray, (C, H, W), float32, grey levels 0..255
        As it was at the start if the unit is dead.
    dead : bool
        The unit has no gradient on the start canvas, and so nothing to go by.
    """

    unit: int
    canvas: Canvas = field(repr=False)
    dead: bool


class _Stopped(Exception):  # noqa: N818
    """Nobody waits for the work any more."""


def draw_units(
    layer: Layer,
    units: Sequence[int],
    space: Space,
    options: DrawOptions,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda steps: None,
) -> Generator[Drawing, None, None]:
    """Draw what units of a layer answer to most.

    Parameters
    ----------
    layer : callable
        Windows (B, C, side, side) of float32, grey levels less their mean, to the layer: (B, N), or (B, N, h, w), of
        which the cell in the middle, ((h - 1) // 2, (w - 1) // 2), counts. Threads call it at once.
    units : sequence of int
        Numbers below N.
    space : Space
    options : DrawOptions
        Its ``leak`` is the layer's affair.
    device : torch.device or str
        That of the layer.
    progress : callable, optional
        Called after each step with the number of units in it.

    Yields
    ------
    Drawing
        One for each unit, in order. A run repeats bit for bit. On a CPU a picture is the same alone and beside others;
        on a GPU the rounding of a batch depends on its size, and an ascent makes much of it.
    """
    device = torch.device(device)
    size = UNITS_AT_ONCE[device.type]
    batches = [units[start : start + size] for start in range(0, len(units), size)]
    stopped = Event()

    def step_done(steps: int) -> None:
        if stopped.is_set():
            raise _Stopped
        progress(steps)

    with true_float32(), thread_pool(num_workers(device) if device.type == "cpu" else 1) as pool:
        at_work = [pool.submit(_ascend, layer, batch, space, options, device, step_done) for batch in batches]
        try:
            for batch in at_work:
                yield from batch.result()
        finally:
            stopped.set()


def _ascend(
    layer: Layer,
    units: Sequence[int],
    space: Space,
    options: DrawOptions,
    device: torch.device,
    step_done: Callable[[int], None],
) -> list[Drawing]:
    """The ascent of one batch of units, each with random numbers of its own."""
    mean = space.mean[:, None, None]
    low, high = torch.from_numpy(-mean).to(device), torch.from_numpy(255 - mean).to(device)
    randoms = {unit: np.random.default_rng((options.seed, unit)) for unit in units}
    canvases: dict[int, Canvas] = {}
    for unit, random in randoms.items():
        noise = random.normal(space.background, options.noise, (len(mean), space.side, space.side))
        canvases[unit] = (noise - mean).astype(np.float32)
    start = torch.from_numpy(np.stack(list(canvases.values()))).to(device)
    strength = unit_gradient(layer, start, units).abs().amax((1, 2, 3))
    alive = [unit for unit, largest in zip(units, strength.tolist(), strict=True) if largest > 0]
    step_done((len(units) - len(alive)) * options.num_steps)
    for octave in options.octaves if alive else ():
        if octave.scale != 1:  # a zoom by 1 would still round
            canvases |= {unit: zoom(canvases[unit], (1, octave.scale, octave.scale)) for unit in alive}
        canvas = torch.from_numpy(np.stack([canvases[unit] for unit in alive])).to(device)
        for step in range(octave.steps):
            places = [_place(randoms[unit], canvas.shape[-1], space.side) for unit in alive]
            windows = [one[:, rows, columns] for one, (rows, columns) in zip(canvas, places, strict=True)]
            moved = ascent_step(layer, torch.stack(windows), alive, *octave.at(step), low, high)
            for window, new in zip(windows, moved, strict=True):
                window.copy_(new)
            step_done(len(alive))
        canvases |= dict(zip(alive, canvas.cpu().numpy(), strict=True))
    return [Drawing(unit, canvases[unit] + mean, unit not in alive) for unit in units]


def ascent_step(
    layer: Layer, windows: Tensor, units: Sequence[int], blur: float, rate: float, low: Tensor, high: Tensor
) -> Tensor:
    """One step: along the gradient so far that pixels move by ``rate`` on average, then clip, then blur.

    Parameters
    ----------
    layer : callable
        As for ``draw_units``.
    windows : Tensor, (B, C, H, W), float
        Stays as it is.
    units : sequence of int
        One for each window.
    blur : float, pixels
        Sigma of the Gaussian; the border is mirrored, and the tail cut at four sigma.
    rate : float, grey levels
    low, high : Tensor, (C, 1, 1)
        Bounds of the values.

    Returns
    -------
    Tensor, (B, C, H, W)
        A window without gradient is clipped and blurred only.
    """
    gradient = unit_gradient(layer, windows, units)
    size = gradient.abs().mean((1, 2, 3), keepdim=True)
    moved = windows + rate * gradient / size.masked_fill(size == 0, 1)
    return gaussian_blur(moved.clamp(low, high), blur)


def unit_gradient(layer: Layer, windows: Tensor, units: Sequence[int]) -> Tensor:
    """The gradient of one unit for each window."""
    windows = windows.detach().requires_grad_()
    with torch.enable_grad():
        chosen = unit_values(layer(windows))[range(len(units)), units].sum()
        (gradient,) = torch.autograd.grad(chosen, windows)
    return gradient


def unit_values(layer: Tensor) -> Tensor:
    """The units of a layer (B, N); of a map (B, N, h, w) its cells in the middle, the upper left one of four."""
    if layer.dim() == 2:
        return layer
    height, width = layer.shape[2:]
    return layer[:, :, (height - 1) // 2, (width - 1) // 2]


def gaussian_blur(pictures: Tensor, sigma: float) -> Tensor:
    """``scipy.ndimage.gaussian_filter`` of each channel, (..., H, W), with its defaults; 0 does not blur."""
    if sigma == 0:
        return pictures
    rows, columns = (
        torch.from_numpy(gaussian_filter1d(np.eye(length), sigma, axis=0)).to(pictures)
        for length in pictures.shape[-2:]
    )
    return rows @ pictures @ columns.T


def _place(random: np.random.Generator, canvas: int, window: int) -> tuple[slice, slice]:
    """Rows and columns of a window in a square canvas, mostly about the middle."""
    room = canvas - window
    if not room:
        return slice(None), slice(None)
    top, left = np.clip(random.normal(room / 2, CROP_SPREAD * room, 2), 0, room).astype(int).tolist()
    return slice(top, top + window), slice(left, left + window)
