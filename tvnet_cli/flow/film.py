"""A film of frames and their flow side by side."""

from __future__ import annotations

import math
import struct
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from tvnet_cli.errors import InputChangedError
from tvnet_cli.flow.colour import draw_legend, flow_to_colour
from tvnet_cli.flow.field import FlowField
from tvnet_cli.video.sequence import Picture
from tvnet_cli.writing import MARK, replacing, require_replaceable, writing

BT709 = int(av.video.reformatter.Colorspace.ITU709)


class FlowFilm:
    """An .mp4 film: each frame beside the colours of its flow, at the times of the source.

    The last frame, which has no next one, stands beside the flow of the pair that it ends. With the flow of several
    scales these follow the frame row by row, coarse to fine. The film takes its place when the run ends or is
    interrupted, with what was done.

    Parameters
    ----------
    path : Path
    max_flow : float, pixels
        Length that is shown fully saturated, in all of the film.
    time_base : Fraction, seconds
        The times of the frames are whole multiples of it.
    overwrite : bool
        Let ``check`` pass a file that this program did not make.
    """

    num_done = 0
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, max_flow: float, time_base: Fraction, *, overwrite: bool = False) -> None:
        self.path, self.max_flow, self.time_base, self.overwrite = path, max_flow, time_base, overwrite
        self._place = ExitStack()
        self._container: av.container.OutputContainer | None = None
        self._last_tick: int | None = None
        self._end: tuple[list[Picture], float] | None = None

    def check(self) -> None:
        """Refuse to replace a file that this program did not make, unless ``overwrite`` is true.

        Raises
        ------
        OutputError
        """
        require_replaceable(self.path, overwrite=self.overwrite)

    def __enter__(self) -> FlowFilm:
        return self

    def write(self, field: FlowField) -> None:
        colours = self._colours(field)
        with writing(self.path):
            self._show([field.first, *colours], field.pts_seconds[0])
        self._end = [field.second, *colours], field.pts_seconds[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        if isinstance(error, InputChangedError):
            self._container.close()
            self._place.__exit__(kind, error, traceback)
            return
        with self._place, writing(self.path):
            with self._container as container:
                if self._end is not None:
                    self._show(*self._end)
                container.mux(self._stream.encode(None))
            with self._new.open("ab") as file:  # players skip this box; it is the end, however long the tables are
                file.write(struct.pack(">I4s", 8 + len(MARK), b"free") + MARK.encode())

    def _colours(self, field: FlowField) -> list[Picture]:
        """The flow of all scales, each as large as the frame, the legend on the finest."""
        height, width = field.first.shape[:2]
        colours = []
        for flow in field.scales:
            rows = np.arange(height) * flow.shape[1] // height
            columns = np.arange(width) * flow.shape[2] // width
            full = np.float32(width / flow.shape[2])  # vectors of a coarse level in pixels of the finest
            colours.append(flow_to_colour(flow * full, self.max_flow)[rows[:, None], columns])
        return [*colours[:-1], draw_legend(colours[-1], self.max_flow)]

    def _show(self, tiles: list[Picture], seconds: float) -> None:
        picture = _tiled(tiles)
        if self._container is None:
            self._open(*picture.shape[:2])
        tick = round(Fraction(seconds) / self.time_base)
        if self._last_tick is not None:  # damaged films repeat times, which a film cannot
            tick = max(tick, self._last_tick + 1)
        self._last_tick = tick
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = self._converter.reformat(frame, format="yuv420p", dst_colorspace=BT709)
        frame.pts, frame.time_base = tick, self.time_base
        assert self._container is not None
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        self._new = self._place.enter_context(replacing(self.path))
        self._converter = av.video.reformatter.VideoReformatter()
        self._container = av.open(f"file:{self._new}", "w", format="mp4", options={"movflags": "faststart"})
        self._container.metadata["comment"] = MARK
        # No B-frames: times stay as they are, without an edit list. crf 18 looks like the original.
        self._stream = self._container.add_stream("libx264", rate=25, options={"crf": "18", "bf": "0"})
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.time_base = self.time_base
        self._stream.codec_context.colorspace = BT709


def _tiled(tiles: list[Picture]) -> Picture:
    """Pictures of one size in rows, two beside each other, more in about a square; both sides even, as films need."""
    height, width = tiles[0].shape[:2]
    columns = max(2, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    canvas = np.full((rows * height + rows * height % 2, columns * width + columns * width % 2, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + height, left : left + width] = tile
    return canvas
