"""Where the pairs of a training of flow come from: drawn, on disk with their flow, or out of films without it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.options import ExtractOptions, FrameOptions
from tvnet_cli.recipe import Recipe
from tvnet_cli.training.drawn import drawn_pair
from tvnet_cli.training.pairs import KnownPair, PairFiles, find_pairs, has_flow, read_pair
from tvnet_cli.video.clips import clip_frames
from tvnet_cli.video.files import find_videos
from tvnet_cli.video.reader import Decoders, decoders
from tvnet_cli.video.sequence import FrameSequence, open_sequence

HELD_OUT = 0.1  # of each film, at its end
MOST_HELD_OUT = 16  # pairs, of all films
FILM_FRAMES = FrameOptions(short_side=ExtractOptions.short_side)  # the size at which features see them


class PairSource(Protocol):
    """An endless source of pairs.

    Attributes
    ----------
    labelled : bool
        Whether the flow of the pairs is known.
    name : str
        What it is, for the card of the weights.
    recipe : dict
        What tells it from others.
    held_out : sequence of KnownPair
        Pairs that are never given for training, if the flow is not known.
    notes : tuple of str
        What is not as it should be.
    """

    labelled: bool
    name: str
    recipe: Recipe
    held_out: Sequence[KnownPair]
    notes: tuple[str, ...]

    def pairs(self, step: int, count: int, random: np.random.Generator) -> list[KnownPair]:
        """The pairs of one step, the same whenever it is asked for with the same random numbers."""
        ...


def open_source(paths: Sequence[Path], seed: int, crop: int, reader: Decoders | None = None) -> PairSource:
    """Pairs with known flow in folders, or else the films in folders and files; drawn pairs without any path.

    Parameters
    ----------
    paths : sequence of Path
    seed : int
        Of drawn pairs.
    crop : int, pixels
        Side of what is trained on.
    reader : Decoders, optional
        Whose processes decode images and videos.

    Raises
    ------
    DatasetError
        If there is nothing to train on, or if both kinds are given.
    """
    if not paths:
        return DrawnPairs(seed, crop)
    with_flow = [path for path in paths if path.is_dir() and has_flow(path)]
    if not with_flow:
        return FilmPairs(paths, crop, reader)
    if len(with_flow) < len(paths):
        other = next(path for path in paths if path not in with_flow)
        raise DatasetError(f"{with_flow[0]} holds known flow, {other} does not: train with one kind at a time")
    return PairsOnDisk(paths, crop, reader)


class DrawnPairs:
    """Pairs drawn for the purpose, squares of ``size`` pixels, no two alike."""

    labelled = True
    held_out: Sequence[KnownPair] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size = seed, size
        self.name, self.recipe = f"drawn pairs, seed {seed}", {"drawn": 1}

    def pairs(self, step: int, count: int, random: np.random.Generator) -> list[KnownPair]:
        return [drawn_pair(self.seed, step * count + number, self.size) for number in range(count)]


class PairsOnDisk:
    """Pairs in folders, drawn with replacement, read when they are needed.

    Raises
    ------
    DatasetError
    """

    labelled = True
    held_out: Sequence[KnownPair] = ()

    def __init__(self, folders: Sequence[Path], crop: int, reader: Decoders | None = None) -> None:
        self._reader = reader or decoders()
        self.files: list[PairFiles] = [pair for folder in folders for pair in find_pairs(folder)]
        self.name = f"{len(self.files)} pairs with known flow"
        self.recipe = {"pairs": len(self.files), "files": _fingerprint(path for pair in self.files for path in pair)}
        small = sum(_short_side(pair.first, self._reader) < crop for pair in self.files)
        self.notes: tuple[str, ...] = ()
        if small:
            self.notes = (
                f"{small} of {len(self.files)} pairs are smaller than the crop of {crop} pixels; crops of batches "
                "with them are too",
            )

    def pairs(self, step: int, count: int, random: np.random.Generator) -> list[KnownPair]:
        return [read_pair(self.files[number], self._reader) for number in random.integers(len(self.files), size=count)]


class FilmPairs:
    """Frames that follow each other in films, at the size at which features see them; all pairs equally likely.

    The end of each film is held out. Films that cannot be read are left out.

    Raises
    ------
    DatasetError
        If none is left.
    """

    labelled = False
    held_out: Sequence[KnownPair] = ()

    def __init__(self, paths: Sequence[Path], crop: int, reader: Decoders | None = None) -> None:
        self._films: list[FrameSequence] = []
        notes = []
        for video in find_videos(paths):
            try:
                film = open_sequence([video.path], FILM_FRAMES, reader)
            except (VideoReadError, DatasetError) as error:
                notes.append(f"left out: {error}")
                continue
            if film.damage:
                notes.append(f"left out: {video.path}: {film.damage}")
            else:
                self._films.append(film)
        if not self._films:
            raise DatasetError(f"no film to train on; {notes[0]}")
        if crop > ExtractOptions.short_side:
            notes.append(f"films are read with a short side of {ExtractOptions.short_side} pixels: no crop is larger")
        self.notes = tuple(notes)
        counts = [len(film.frame_index) - 1 for film in self._films]
        self._trained = [count - int(count * HELD_OUT) for count in counts]
        self.name = f"{sum(self._trained)} pairs of frames from {len(self._films)} films, without their flow"
        files = _fingerprint(film.files[0] for film in self._films)
        self.recipe = {"films": len(self._films), "files": files}
        ends = [(film, at) for film, t, c in zip(self._films, self._trained, counts, strict=True) for at in range(t, c)]
        if ends:
            chosen = clip_frames(len(ends), min(MOST_HELD_OUT, len(ends)), 1)[:, 0]
            self.held_out = [_read(*ends[number]) for number in chosen]

    def pairs(self, step: int, count: int, random: np.random.Generator) -> list[KnownPair]:
        pairs = []
        ends = np.cumsum(self._trained)
        for number in random.integers(ends[-1], size=count):
            film = int(np.searchsorted(ends, number, "right"))
            pairs.append(_read(self._films[film], int(number - ends[film] + self._trained[film])))
        return pairs


def _read(film: FrameSequence, position: int) -> KnownPair:
    first, second = film.read([position, position + 1])
    assert first is not None
    assert second is not None
    return KnownPair(first, second, np.full((2, *first.shape[:2]), np.nan, np.float32))


def _short_side(path: Path, reader: Decoders) -> float:
    """Of a picture, in pixels, by its header alone; what cannot be read is said when it is needed."""
    try:
        return min(reader.image_size(path))
    except VideoReadError:
        return math.inf


def _fingerprint(files: Iterable[Path]) -> str:
    """Of the names and sizes of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]
