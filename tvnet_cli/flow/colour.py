"""The Middlebury colour code of optical flow, which MPI-Sintel uses too, and its legend.

The colour is the direction, the saturation the length: white stands still. Source: Baker, Scharstein, Lewis, Roth,
Black, Szeliski, A Database and Evaluation Methodology for Optical Flow, IJCV 2011, doi:10.1007/s11263-010-0390-2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Steps of the wheel from one pure colour to the next: perceived differences, not angles, are to be alike.
_STEPS = {"red-yellow": 15, "yellow-green": 6, "green-cyan": 4, "cyan-blue": 11, "blue-magenta": 13, "magenta-red": 6}
_PURE = np.array([[255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 255, 255], [0, 0, 255], [255, 0, 255], [255, 0, 0]])
_TOO_LONG = 0.75  # brightness of vectors longer than the scale
LEAST_SCALE = 0.25  # pixels, of scales that the fields decide: no rounding noise where nothing moves
COVERED = 0.999  # share of a film's vectors that the scale covers
LEGEND_MIN_SIDE = 64  # pixels; it would cover a smaller picture
UNKNOWN = 1e9  # pixels; the Middlebury files mark unknown flow by more than this


def colour_wheel() -> NDArray[np.float64]:
    """The colours of all directions, (55, 3), RGB in 0..255, from left over up, right and down back to left."""
    arcs = []
    for number, steps in enumerate(_STEPS.values()):
        share = np.floor(255 * np.arange(steps) / steps)[:, None] / 255
        start, end = _PURE[number], _PURE[number + 1]
        # A falling channel is 255 less the rounded-down rise, as in the authors' table.
        arcs.append(start + share * (end - start))
    return np.concatenate(arcs)


def flow_to_colour(flow: NDArray[np.floating], max_flow: float | None = None) -> NDArray[np.uint8]:
    """A flow field as a picture.

    Parameters
    ----------
    flow : ndarray, (2, H, W), float, pixels
        x then y. Values that are not finite or beyond 1e9 are unknown and become black.
    max_flow : float, pixels, or None
        Length that is shown fully saturated; longer vectors are darker. None: the longest of this field.

    Returns
    -------
    ndarray, (H, W, 3), uint8, RGB
    """
    unknown = ~(np.abs(flow) <= UNKNOWN).all(0)
    x, y = np.where(unknown, 0, flow).astype(np.float64)
    if max_flow is None:
        max_flow = longest(flow)
    length = np.hypot(x, y) / max(max_flow, 1e-5)
    wheel = colour_wheel() / 255
    turn = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    before = turn.astype(np.int64)
    share = (turn - before)[..., None]
    hue = (1 - share) * wheel[before] + share * wheel[(before + 1) % len(wheel)]
    length = length[..., None]
    colour = np.where(length <= 1, 1 - length * (1 - hue), _TOO_LONG * hue)
    colour[unknown] = 0
    picture: NDArray[np.uint8] = np.floor(255 * colour).astype(np.uint8)
    return picture


def colour_scale(fields: Sequence[NDArray[np.floating]]) -> float:
    """The length, in pixels, to be shown fully saturated in pictures of these fields, (2, H, W) each.

    For one field its longest vector, as is usual; for a film the length that 99.9 % of the vectors do not exceed,
    since one wild vector would make all of the film pale. At least 0.25 pixels, at which rounding noise is white.
    """
    if len(fields) == 1:
        return max(LEAST_SCALE, longest(fields[0]))
    lengths = np.concatenate([np.hypot(*field).ravel() for field in fields])
    return max(LEAST_SCALE, float(np.quantile(lengths, COVERED)))


def longest(flow: NDArray[np.floating]) -> float:
    """Length of the longest vector that is known, in pixels; ``flow`` is (2, H, W)."""
    known = flow[:, (np.abs(flow) <= UNKNOWN).all(0)].astype(np.float64)
    return float(np.hypot(*known).max(initial=0))


def draw_legend(picture: NDArray[np.uint8], max_flow: float) -> NDArray[np.uint8]:
    """A copy of a picture with the scale of its colours in the lower right corner: a wheel and its radius.

    Pictures with a side below 64 pixels stay without.

    Parameters
    ----------
    picture : ndarray, (H, W, 3), uint8
    max_flow : float, pixels

    Returns
    -------
    ndarray, (H, W, 3), uint8
    """
    height, width = picture.shape[:2]
    if min(height, width) < LEGEND_MIN_SIDE:
        return picture.copy()
    side = max(17, min(height, width) // 6 | 1)
    text = f"{max_flow:.3g} px"
    font = ImageFont.load_default(max(9, side // 4))
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = (round(edge) for edge in draw.textbbox((0, 0), text, font=font))
    gap = max(1, side // 12)
    box_width, box_height = max(side, right - left) + 2 * gap, side + bottom - top + 3 * gap
    corner = (width - box_width, height - box_height)
    draw.rectangle((corner, (width, height)), fill="white")
    canvas.paste(Image.fromarray(colour_disc(side)), (corner[0] + (box_width - side) // 2, corner[1] + gap))
    draw.text((corner[0] + (box_width - right + left) // 2 - left, height - bottom - gap), text, "black", font)
    return np.asarray(canvas)


def colour_disc(side: int) -> NDArray[np.uint8]:
    """All vectors up to the scale, as a disc on white."""
    radius = (side - 1) / 2
    y, x = np.mgrid[:side, :side] - radius
    disc = flow_to_colour(np.stack((x, y)), radius)
    disc[np.hypot(x, y) > radius] = 255
    return disc
