"""Pairs of pictures with known flow: drawn here, or read from folders as Middlebury lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from tvnet_cli.errors import DatasetError
from tvnet_cli.flow.files import read_flow
from tvnet_cli.video.reader import decoders

Picture = NDArray[np.uint8]
GRAINS = (1.5, 4.0, 12.0)  # pixels, sigmas of the noise that textures are made of


class KnownPair(NamedTuple):
    """Two grey frames (H, W) and the flow (2, H, W) from the first to the second, in pixels."""

    first: Picture
    second: Picture
    truth: NDArray[np.float32]


def drawn_pair(height: int, width: int, longest: float, seed: int = 0) -> KnownPair:
    """A textured surface that turns, grows, moves and bends a little.

    The first frame is the second one, read where the flow leads, so the flow is exact but for the rounding to whole
    grey levels and nothing is hidden.

    Parameters
    ----------
    height, width : int, pixels
    longest : float, pixels
        Length of the longest vector.
    seed : int
        Of texture and motion.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    across, down = x / width - 0.5, y / height - 0.5
    motion = np.stack([a + b * across + c * down for a, b, c in rng.uniform(-1, 1, (2, 3))])
    motion += 0.3 * np.sin(2 * np.pi * (across + down + rng.uniform()))
    motion *= longest / np.hypot(*motion).max()
    margin = int(longest) + 3
    surface = texture(height + 2 * margin, width + 2 * margin, rng)
    first = map_coordinates(surface, (y + motion[1] + margin, x + motion[0] + margin), order=3)
    second = surface[margin:-margin, margin:-margin]
    return KnownPair(_levels(first), _levels(second), motion.astype(np.float32))


def texture(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Blurred noise of several grains, (height, width), mean 128; most of it inside 0..255."""
    surface = sum(gaussian_filter(rng.standard_normal((height, width)), grain) * grain for grain in GRAINS)
    return np.asarray(128 + 45 * (surface - surface.mean()) / surface.std())


def read_pairs(folder: Path) -> list[KnownPair]:
    """The pairs in the folders of a folder that hold ``frame10.png``, ``frame11.png`` and ``flow10.flo``.

    Raises
    ------
    DatasetError
        If there is none.
    """
    pairs = []
    for truth in sorted(folder.glob("*/flow10.flo")):
        frames = [truth.with_name(name) for name in ("frame10.png", "frame11.png")]
        if all(path.is_file() for path in (truth, *frames)):  # pipes are not waited for
            first, second = (_grey(decoders().image(frame)) for frame in frames)
            pairs.append(KnownPair(first, second, read_flow(truth)))
    if not pairs:
        raise DatasetError(f"no folder in {folder} holds frame10.png, frame11.png and flow10.flo")
    return pairs


def _grey(picture: Picture) -> Picture:
    """Whole grey levels (H, W) of RGB (H, W, 3), as the solver takes them."""
    return (picture.astype(np.int64) @ (299, 587, 114) // 1000).astype(np.uint8)


def _levels(picture: NDArray[np.float64]) -> Picture:
    return np.clip(picture, 0, 255).round().astype(np.uint8)
