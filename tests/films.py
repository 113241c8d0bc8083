"""Films for the tests, each frame with its own number drawn into the pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

CELLS = 4  # the number stands in 4 x 4 black and white cells, 16 bits


def numbered_picture(number: int, height: int = 128, width: int = 128) -> NDArray[np.uint8]:
    """A grey picture (H, W) that shows ``number`` as bits, row by row."""
    bits = np.array([(number >> bit) & 1 for bit in range(CELLS * CELLS)], np.uint8).reshape(CELLS, CELLS)
    rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    return 16 + 220 * bits[rows][:, columns]


def read_number(picture: NDArray[np.uint8]) -> int:
    """The number shown in an RGB picture (H, W, 3) or its centre crop out of a square one."""
    height, width = picture.shape[:2]
    centres = [(2 * cell + 1) / (2 * CELLS) for cell in range(CELLS)]
    # A 224 crop out of 256 cuts 16 pixels at each side.
    bits = [
        picture[int((y * 256 - 16) * height / 224), int((x * 256 - 16) * width / 224)].mean() > 126
        for y in centres
        for x in centres
    ]
    return sum(int(bit) << place for place, bit in enumerate(bits))


def write_film(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: int = 25,
    options: dict[str, str] | None = None,
    pts: Callable[[int], int] = lambda number: number,
    time_base: Fraction | None = None,
    rotation: int = 0,
    matrix: Sequence[int] = (),
    picture: Callable[[int], NDArray[np.uint8]] = numbered_picture,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a film of grey or RGB pictures, shown ``pts(i)`` time units after 0.

    ``rotation`` is what the display matrix asks for; the stored pictures are turned the other way, so that a
    right reader shows them upright. ``matrix`` is a display matrix for pictures that are stored as they are.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        first = picture(0)
        stored_shape = np.rot90(first, k=-rotation // 90).shape
        stream.height, stream.width = stored_shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = time_base or Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            stream.set_display_matrix(matrix)
        for number in range(num_frames):
            stored = np.ascontiguousarray(np.rot90(picture(number), k=-rotation // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="gray" if stored.ndim == 2 else "rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = pts(number), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@contextmanager
def without_privileges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside it root may do what others may, in ``folder``, which is the working directory."""
    folder.chmod(0o755)
    monkeypatch.chdir(folder)  # others may not go the way to it
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if before == 0:
            os.seteuid(0)
