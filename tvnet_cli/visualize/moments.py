"""Moments of a film: clips of six frames, and those among them that show the most motion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import DatasetError
from tvnet_cli.flow.compute import solve_pairs
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.options import ExtractOptions, FieldOptions
from tvnet_cli.video.sequence import FrameSequence, Picture

CLIP_LENGTH = ExtractOptions.clip_length
TRIED = 12  # moments in each part of the film, of which the one with the most motion is taken
STILL = 0.1  # pixels; a picture of which less than a hundredth moves so far does not move
CUT = 3.0  # times the next largest change between two frames of a clip, and as many grey levels more, is no motion


@dataclass(frozen=True)
class Moment:
    """A pair of frames and the clip that it lies in.

    Attributes
    ----------
    seconds : float
        From the first frame of the film.
    frames : tuple of ndarray, 6 of (H, W, 3), uint8, RGB
    pair : int
        Number of its first frame in the clip.
    """

    seconds: float
    frames: tuple[Picture, ...] = field(repr=False)
    pair: int

    @property
    def first(self) -> Picture:
        return self.frames[self.pair]

    @property
    def second(self) -> Picture:
        return self.frames[self.pair + 1]


def moments_at(sequence: FrameSequence, seconds: Sequence[float]) -> list[Moment]:
    """The moments nearest to these times.

    Raises
    ------
    DatasetError
        If the film is too short, or ends before one of them.
    VideoReadError
    """
    _check_length(sequence)
    times = sequence.pts_seconds - sequence.pts_seconds[0]
    for wanted in seconds:
        if not 0 <= wanted <= times[-1]:
            raise DatasetError(f"{sequence.name} has no moment {wanted:g} s: it lasts {times[-1]:.2f} s")
    positions = [int(np.abs(times - wanted).argmin()) for wanted in seconds]
    found = dict(_read(sequence, positions))
    return [found[position] for position in positions]


def liveliest_moments(sequence: FrameSequence, number: int) -> list[Moment]:
    """The moment of the most motion in each of so many equal parts of a film; parts in which nothing moves give none.

    Raises
    ------
    DatasetError
        If the film is too short, or nothing moves in it.
    VideoReadError
    """
    _check_length(sequence)
    pairs = np.arange(len(sequence.frame_index) - 1)
    parts = [part[_spread(len(part))].tolist() for part in np.array_split(pairs, min(number, len(pairs)))]
    tvnet = TVNet().eval()
    best: dict[int, tuple[float, Moment]] = {}
    for position, moment in _read(sequence, [position for part in parts for position in part]):
        part = next(number for number, part in enumerate(parts) if position in part)
        moving = motion(moment, tvnet)
        if moving > best.get(part, (0.0, None))[0]:
            best[part] = moving, moment
    if not best:
        raise DatasetError(f"{sequence.name}: nothing moves in it, and a figure of its motion would be empty")
    return [moment for _, moment in best.values()]


def motion(moment: Moment, tvnet: TVNet) -> float:
    """Mean length of the flow of a moment, in pixels; 0 if next to nothing moves, or if its clip holds a cut."""
    clip = np.stack(moment.frames).astype(np.float32)
    *_, second, largest = sorted(np.abs(np.diff(clip, axis=0)).mean((1, 2, 3)))
    (arrays,) = solve_pairs(tvnet, [(moment.first, moment.second)], FieldOptions())
    length = np.hypot(*arrays["flow"])
    cut = largest > CUT * second + CUT  # films may repeat every other frame, but cuts come alone
    return 0.0 if cut or np.quantile(length, 0.99) < STILL else float(length.mean())


def _check_length(sequence: FrameSequence) -> None:
    if len(sequence.frame_index) < CLIP_LENGTH:
        raise DatasetError(f"{sequence.name} has {len(sequence.frame_index)} frames: {CLIP_LENGTH} are needed")


def _spread(length: int) -> NDArray[np.int64]:
    """Up to ``TRIED`` numbers below ``length``, evenly over its middle, so that two parts never show the same."""
    return np.unique(np.linspace(length / 6, length * 5 / 6, TRIED).astype(np.int64))


def _read(sequence: FrameSequence, positions: Sequence[int]) -> Iterator[tuple[int, Moment]]:
    """The moments that begin at these frames, in ascending order, each in the middle of its clip where there is room.

    The film is read once, and no more than a clip of it is kept.
    """
    last = len(sequence.frame_index) - CLIP_LENGTH
    starts = {position: min(max(position - (CLIP_LENGTH - 2) // 2, 0), last) for position in sorted(set(positions))}
    wanted = sorted({number for start in starts.values() for number in range(start, start + CLIP_LENGTH)})
    frames = zip(wanted, sequence.read(wanted), strict=False)
    kept: dict[int, Picture] = {}
    for position, start in starts.items():
        end = start + CLIP_LENGTH
        kept = {number: frame for number, frame in kept.items() if number >= start}
        while end - 1 not in kept:
            number, frame = next(frames, (end, None))
            if frame is None:
                raise DatasetError(f"{sequence.name} ends before its time: choose earlier moments")
            kept[number] = frame
        pair = min(position - start, CLIP_LENGTH - 2)
        seconds = float(sequence.pts_seconds[start + pair] - sequence.pts_seconds[0])
        yield position, Moment(seconds, tuple(kept[number] for number in range(start, end)), pair)
