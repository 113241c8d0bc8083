"""Frames in a row, from a film or from pictures: what optical flow is computed on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import DatasetError, FrameListError, VideoReadError
from tvnet_cli.options import FrameOptions
from tvnet_cli.video.decode import VideoScan, upright_rgb
from tvnet_cli.video.files import VIDEO_SUFFIXES
from tvnet_cli.video.images import IMAGE_SUFFIXES, find_images, frame_numbers
from tvnet_cli.video.reader import Decoders, decoders

Picture = NDArray[np.uint8]


class FrameSequence(Protocol):
    """Frames in the order of time, chosen by ``FrameOptions``.

    Attributes
    ----------
    name : str
        For people.
    files : tuple of Path
        What is read.
    frame_index : ndarray, (T,), int64
        Number of each frame in the film or among the pictures.
    pts_seconds : ndarray, (T,), float64, seconds
    time_base : Fraction, seconds
        The times are whole multiples of it.
    notes : tuple of str
        What is not as it should be, for people, as far as the frames were read.
    damage : str
        What is missing and from which time on; empty if nothing is.
    """

    name: str
    files: tuple[Path, ...]
    frame_index: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    time_base: Fraction
    damage: str

    @property
    def notes(self) -> tuple[str, ...]: ...

    def read(self, positions: Sequence[int] | None = None, convert_from: int = 0) -> Iterator[Picture | None]:
        """The frames at these ascending positions, by default all: (H, W, 3), uint8, RGB.

        Those before the position ``convert_from`` are gone through for the sake of their numbers and given as None.
        The list of frames may turn out another than it seemed: it is right once the last one is read.

        Raises
        ------
        VideoReadError
            If a frame cannot be read, naming the file.
        """
        ...

    def count(self) -> None:
        """Make the list of frames anew, by decoding all of them."""
        ...


def open_sequence(paths: Sequence[Path], options: FrameOptions, reader: Decoders | None = None) -> FrameSequence:
    """Open a video, a folder of images, or two and more images.

    Parameters
    ----------
    paths : sequence of Path
    options : FrameOptions
    reader : Decoders, optional
        Whose processes decode them, within its limits.

    Raises
    ------
    VideoReadError, DatasetError
        If it cannot be read, or if there are not two frames.
    """
    sequence: FrameSequence
    reader = reader or decoders()
    for path in paths if len(paths) > 1 else ():
        if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
            raise DatasetError(f"{path} is no image: give one film, two or more images, or one folder of images")
    for path in paths:
        images = len(paths) > 1 or path.suffix.lower() in IMAGE_SUFFIXES
        count = reader.count(path) if images and not path.is_dir() else 1
        if count > 1:
            raise DatasetError(
                f"{path} holds {count} pictures: give a film, or take them apart, as ffmpeg -i FILE frame%04d.png does"
            )
    if len(paths) == 1 and paths[0].is_dir():
        found = find_images(paths[0])
        sequence = _Pictures(paths[0].name or str(paths[0].resolve()), found, options, reader, *frame_numbers(found))
    elif len(paths) == 1 and paths[0].suffix.lower() not in IMAGE_SUFFIXES:
        sequence = _Film(paths[0], options, reader)
    else:
        sequence = _Pictures(" ".join(path.name for path in paths), paths, options, reader)
    if len(sequence.frame_index) < 2:
        raise DatasetError(
            f"{sequence.name}: optical flow needs two frames, and here {len(sequence.frame_index)} can be used: "
            "give a film, two images or a folder of images, and a range that holds two frames"
        )
    return sequence


class _Film:
    """The frames of a film, each held against the scan of its packets; where they differ, counted by decoding."""

    def __init__(self, path: Path, options: FrameOptions, reader: Decoders) -> None:
        self.name, self.options, self._reader = path.name, options, reader
        self._seen: dict[str, None] = {}  # notes on frames that were read
        self.files: tuple[Path, ...] = (path,)
        try:
            self._use(reader.scan(path))
        except VideoReadError as error:
            raise VideoReadError(f"{path}: {error}") from error

    def _use(self, video: VideoScan) -> None:
        self._video = video
        seconds = video.pts_seconds
        if np.isnan(seconds).any():  # raw streams have no times
            seconds = _at_rate(video.num_frames, _frame_time(self.options))
        self.time_base = video.time_base or _frame_time(self.options)
        self.frame_index = _select(seconds, self.options)
        self.pts_seconds = seconds[self.frame_index]
        self.damage = ""
        # What is broken behind the last frame that is wanted does no harm.
        last_wanted = np.inf if self.options.end is None else video.pts_seconds[0] + self.options.end
        if video.damage and not video.damage.seconds >= last_wanted:
            at = f" after {video.damage.seconds:.2f} s" if np.isfinite(video.damage.seconds) else ""
            self.damage = f"breaks{at}: {video.damage.reason}"

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._video.notes, *self._seen)

    def read(self, positions: Sequence[int] | None = None, convert_from: int = 0) -> Iterator[Picture | None]:
        given = 0
        try:
            try:
                for picture in self._read(positions, convert_from):
                    given += 1
                    yield picture
            except FrameListError:
                # Times do not change by counting anew, nor do the frames before the difference.
                self.count()
                yield from self._read(positions, convert_from, given)
        except VideoReadError as error:
            raise VideoReadError(f"{self.files[0]}: {error}") from error

    def count(self) -> None:
        self._use(self._reader.scan(self.files[0], counted=True))

    def _read(self, positions: Sequence[int] | None, convert_from: int, start: int = 0) -> Iterator[Picture | None]:
        wanted = range(len(self.frame_index)) if positions is None else positions
        wanted = [position for position in wanted[start:] if position < len(self.frame_index)]
        numbers = self.frame_index[wanted].tolist()
        frames = self._reader.frames(
            self._video,
            numbers,
            first=sum(position < convert_from for position in wanted),
            to_end=bool(numbers) and numbers[-1] + self.options.every >= self._video.num_frames,
            short_side=self.options.short_side,
            size=self.options.size,
            seen=self._seen,
        )
        shape: tuple[int, ...] = ()
        for position, picture in zip(wanted, frames, strict=False):
            if picture is None:
                yield None
                continue
            shape = shape or picture.shape
            if picture.shape != shape:
                raise VideoReadError(
                    f"changes from {_size(shape)} to {_size(picture.shape)} pixels "
                    f"at {self.pts_seconds[position]:.2f} s: --size makes them one"
                )
            yield picture
        next(frames, None)  # lets it look whether the video ends here, as it should


class _Pictures:
    """Images as frames, at a constant rate; images that are missing among the numbers take their time all the same."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        options: FrameOptions,
        reader: Decoders,
        numbers: NDArray[np.int64] | None = None,
        note: str = "",
    ) -> None:
        self.name, self.options, self._reader = name, options, reader
        self.files = tuple(paths)
        self.damage = ""
        self.time_base = _frame_time(options)
        numbers = np.arange(len(paths)) if numbers is None else numbers
        seconds = numbers.astype(np.float64) * float(self.time_base)
        chosen = _select(seconds, options)
        self.frame_index, self.pts_seconds = numbers[chosen], seconds[chosen]
        self._paths = [paths[place] for place in chosen.tolist()]
        self.notes: tuple[str, ...] = (note,) if note else ()

    def read(self, positions: Sequence[int] | None = None, convert_from: int = 0) -> Iterator[Picture | None]:
        converter = av.video.reformatter.VideoReformatter()
        first: tuple[Path, tuple[int, ...]] | None = None
        for position in range(len(self.frame_index)) if positions is None else positions:
            if position < convert_from:
                yield None
                continue
            path = self._paths[position]
            picture = self._reader.image(path)
            first = first or (path, picture.shape)
            if picture.shape != first[1]:
                raise VideoReadError(
                    f"{path} has {_size(picture.shape)} pixels, {first[0].name} has {_size(first[1])}: "
                    "the frames of optical flow must have one size"
                )
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            try:
                yield upright_rgb(frame, converter, self.options.short_side, self.options.size)
            except VideoReadError as error:
                raise VideoReadError(f"{path}: {error}") from error

    def count(self) -> None:
        pass


def _frame_time(options: FrameOptions) -> Fraction:
    return 1 / Fraction(options.fps).limit_denominator(1001)


def _at_rate(count: int, frame_time: Fraction) -> NDArray[np.float64]:
    return np.arange(count).astype(np.float64) * float(frame_time)


def _select(seconds: NDArray[np.float64], options: FrameOptions) -> NDArray[np.int64]:
    """Numbers of the frames that the options ask for; start and end count from the first frame, as in a player."""
    seconds = seconds - seconds[:1]
    first = -np.inf if options.start is None else options.start
    last = np.inf if options.end is None else options.end
    return np.flatnonzero((seconds >= first) & (seconds < last))[:: options.every]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
