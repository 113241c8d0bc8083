"""Which frames of a video a training sample shows, and which part of them: all of it drawn from a generator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Top and left of a crop as shares of the room that it leaves: the four corners and the centre.
POSITIONS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
MAX_DISTORTION = 1  # steps between the scales of the height and the width of a crop


class CropChoice(NamedTuple):
    """A part of a picture of any size.

    Attributes
    ----------
    height, width : float
        Of the crop, as shares of the picture's short side.
    top, left : float
        As shares of the room that the crop leaves.
    flip : bool
        Mirror left and right.
    """

    height: float
    width: float
    top: float
    left: float
    flip: bool


def random_snippets(num_frames: int, num_segments: int, length: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Consecutive frames from a random place of each segment of a video, as in Temporal Segment Networks.

    Parameters
    ----------
    num_frames : int
        T, at least 1.
    num_segments : int
        Parts of equal length that the possible starts are split into.
    length : int, frames
    random : Generator

    Returns
    -------
    ndarray, (num_segments, length), int64
        Frame numbers, from 0. In a video shorter than ``length`` the last one repeats.
    """
    starts = max(1, num_frames - length + 1)
    edges = np.linspace(0, starts, num_segments + 1)
    chosen = np.minimum(random.uniform(edges[:-1], edges[1:]).astype(np.int64), starts - 1)
    frames: NDArray[np.int64] = np.minimum(chosen[:, None] + np.arange(length), num_frames - 1)
    return frames


def draw_crop(scales: tuple[float, ...], flip: bool, random: np.random.Generator) -> CropChoice:
    """A corner or the centre, its height and width of random scales at most one step apart.

    Parameters
    ----------
    scales : tuple of float, in (0, 1]
        Sides of the crop as shares of the short side of the picture, in order.
    flip : bool
        Mirror half of all.
    random : Generator
    """
    steps = range(len(scales))
    pairs = [(scales[i], scales[j]) for i in steps for j in steps if abs(i - j) <= MAX_DISTORTION]
    height, width = pairs[random.integers(len(pairs))]
    top, left = POSITIONS[random.integers(len(POSITIONS))]
    return CropChoice(height, width, top, left, flip and bool(random.integers(2)))


def cut(picture: NDArray[np.uint8], crop: CropChoice, size: int) -> Tensor:
    """The part of a picture, resized to a square.

    Parameters
    ----------
    picture : ndarray, (H, W, 3), uint8
    crop : CropChoice
    size : int, pixels

    Returns
    -------
    Tensor, (3, size, size), uint8
    """
    full_height, full_width = picture.shape[:2]
    short = min(full_height, full_width)
    height, width = max(1, round(crop.height * short)), max(1, round(crop.width * short))
    top, left = round(crop.top * (full_height - height)), round(crop.left * (full_width - width))
    part = torch.from_numpy(np.ascontiguousarray(picture[top : top + height, left : left + width])).movedim(-1, 0)
    if (height, width) != (size, size):
        resized = F.interpolate(part[None].float(), (size, size), mode="bilinear", antialias=True)[0]
        part = resized.round_().clamp_(0, 255).to(torch.uint8)
    return part.flip(-1) if crop.flip else part


def flip_flow(flow: Tensor) -> Tensor:
    """The flow (..., 2, H, W) of a film seen in a mirror: left and right are exchanged, and u changes its sign."""
    return flow.flip(-1) * flow.new_tensor([-1.0, 1.0])[:, None, None]
