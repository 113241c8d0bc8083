"""The display matrix of a frame: how players turn and mirror it, which `VideoFrame.rotation` tells by half."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

TOLERANCE_DEGREES = 0.5  # up to it ffmpeg takes a rotation for a multiple of 90 degrees
KINDS_OF_SIDE_DATA = 64  # more than FFmpeg has


class Orientation(NamedTuple):
    """How a stored frame is made upright: the axes are exchanged first, then the result is mirrored.

    Attributes
    ----------
    transposed : bool
        Rows become columns.
    hflip, vflip : bool
        Left and right, top and bottom are exchanged.
    note : str
        What of the display matrix is not followed, for people; empty if nothing is.
    """

    transposed: bool = False
    hflip: bool = False
    vflip: bool = False
    note: str = ""

    def apply(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Return a stored picture (H, W, 3) upright, as a view."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.vflip else 1, :: -1 if self.hflip else 1]


def orientation(frame: av.VideoFrame) -> Orientation:
    """Return the orientation that the display matrix of a decoded frame asks for, from its stream or its codec.

    Scale and offset of the matrix are left alone, as ffmpeg and players do.
    """
    matrix = _display_matrix(frame)
    return Orientation() if matrix is None else _nearest(*(float(matrix[place]) for place in (0, 1, 3, 4)))


def _nearest(a: float, b: float, c: float, d: float) -> Orientation:
    """Return the nearest of the eight orientations to x' = a x + c y, y' = b x + d y, where y points down."""
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not abs(a * d - b * c) > across * down * math.sin(math.radians(TOLERANCE_DEGREES)):
        return Orientation(note="its display matrix is not invertible and is ignored")
    a, c, b, d = a / across, c / across, b / down, d / down
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    away = max(abs(a), abs(d)) if transposed else max(abs(b), abs(c))
    note = ""
    if away > math.sin(math.radians(TOLERANCE_DEGREES)):
        degrees = math.degrees(math.atan2(b, a))
        note = (
            "its display matrix is neither a quarter turn nor a mirror image "
            f"(it rotates by {degrees % 360:.0f} degrees clockwise): the nearest of these is used"
        )
    return Orientation(transposed, (c if transposed else a) < 0, (b if transposed else d) < 0, note)


def _display_matrix(frame: av.VideoFrame) -> NDArray[np.int32] | None:
    """Return the nine numbers of the display matrix, row by row, or None where there is none."""
    side_data: list[Any]  # PyAV's stubs know neither what holds the side data nor that it can be iterated
    try:
        side_data = list(frame.side_data)
    except ValueError:  # PyAV cannot name one of the kinds and then gives none, as with EXIF and its orientation
        side_data = list(_without_nameless_side_data(frame).side_data)
    return next((np.frombuffer(bytes(data), np.int32) for data in side_data if data.type == Type.DISPLAYMATRIX), None)


def _without_nameless_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """Return a frame without the kinds of side data that PyAV has no name for."""
    graph = av.filter.Graph()
    unit = frame.time_base or Fraction(1)
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=unit)]
    for kind in sorted(set(range(KINDS_OF_SIDE_DATA)) - {kind.value for kind in Type}):
        nodes.append(graph.add("sidedata", f"mode=delete:type={kind}"))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()
