"""One flow field and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.video.sequence import Picture

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class FlowField:
    """The flow between two frames.

    Attributes
    ----------
    position : int
        Number of the field in its sequence, from 0.
    frame_index : (int, int)
        Numbers of the two frames in the film or among the pictures.
    pts_seconds : (float, float), seconds
        Their times.
    first, second : ndarray, (H, W, 3), uint8, RGB
        The frames.
    arrays : dict of name to ndarray
        ``flow`` (2, H, W) float32, pixels, x then y; and, where they were asked for, ``backward`` like it,
        ``occlusion`` (H, W) uint8 of 0 and 1, and ``flow_scale_1``, ``flow_scale_2`` ...: the flow of the coarser
        levels of the pyramid, in pixels of the level.
    """

    position: int
    frame_index: tuple[int, int]
    pts_seconds: tuple[float, float]
    first: Picture = field(repr=False)
    second: Picture = field(repr=False)
    arrays: Arrays = field(repr=False)

    @property
    def flow(self) -> NDArray[np.float32]:
        return self.arrays["flow"]

    @property
    def scales(self) -> list[NDArray[np.float32]]:
        """The flow of the levels that are there, coarse to fine."""
        return scales_of(self.arrays)


def scales_of(arrays: Arrays) -> list[NDArray[np.float32]]:
    """The flow of the levels among the arrays of a field, coarse to fine."""
    return [arrays[name] for name in sorted(arrays, key=_scale, reverse=True) if _scale(name) >= 0]


def as_stored(array: NDArray[Any], half: bool) -> NDArray[Any]:
    """An array as files of half precision keep it: float32 as float16, all else as it is."""
    return array.astype(np.float16) if half and array.dtype == np.float32 else array


def _scale(name: str) -> int:
    if name == "flow":
        return 0
    return int(name.removeprefix("flow_scale_")) if name.startswith("flow_scale_") else -1
