"""Feature files as tables with one row a video.

Nothing is ever read as a whole: tables give blocks of rows or blocks of columns.
"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import DamagedError, FeatureFileError, FileAccessError
from tvnet_cli.features.datasets import STREAM_GROUPS
from tvnet_cli.features.format import Contents, named, read_contents, read_rows
from tvnet_cli.hdf5 import CONTENT_ERRORS, first_line, opened

# The order of the paper's supplement; other types follow in the order of their files.
KNOWN_ORDER = (
    "flow/global_pool",
    "flow/inception_5b_output",
    "flow/inception_5a_output",
    "flow/inception_4e_output",
    "rgb/global_pool",
)
# Read at once. Columns of a table lie apart in the file, so that pieces should be long: here some 30 kB a video.
BLOCK_BYTES = 128 * 2**20
VALUE_BYTES = 4  # mostly: float32
# All that h5py, numpy and the archives raise for files that are damaged.
UNREADABLE = (*CONTENT_ERRORS, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
T = TypeVar("T")


class RowChecks:
    """Hold rows of a feature file against their checksums, each once, before they are used."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._left = set(contents.rows) if contents.has_checksums else set()

    def require(self, videos: Sequence[str]) -> None:
        """Check the rows of these videos.

        Raises
        ------
        DamagedError
            If one differs from its checksum.
        """
        for some in self._contents.portions([video_id for video_id in videos if video_id in self._left]):
            _, wrong = read_rows(self._contents, some)
            if wrong:
                path = self._contents.path
                raise DamagedError(path, f"the row of {named(wrong)} differs from its checksum", tuple(wrong))
            self._left.difference_update(some)


@dataclass(frozen=True)
class Source:
    """The rows of one feature type in one file.

    Attributes
    ----------
    file : str
        What the user gave, for messages.
    path : Path
        An HDF5 file, or an .npy file.
    dataset : str
        In the HDF5 file; empty for .npy.
    ids : tuple of str
        Of the rows.
    shape : tuple of int, (N, ...)
        Rows of more than one axis are flattened.
    checks : RowChecks, optional
        Of a file with checksums.
    """

    file: str
    path: Path
    dataset: str
    ids: tuple[str, ...] = field(repr=False)
    shape: tuple[int, ...]
    checks: RowChecks | None = field(default=None, repr=False, compare=False)

    def require_whole(self, rows: NDArray[np.int64]) -> None:
        """Check that rows are what was written, where that can be known.

        Raises
        ------
        DamagedError
        """
        if self.checks:
            self.checks.require([self.ids[row] for row in rows.tolist()])

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        """A block of rows, and of positions on the first axis of a row; (n, values)."""
        if self.dataset:
            with readable(self.path), opened(self.path) as source:
                block = source.file[self.dataset][rows, columns]
        else:
            # Mapped anew for each block, so that pages that were read do not stay in the process.
            with readable(self.path):
                block = np.array(np.load(self.path, mmap_mode="r")[rows, columns])
        return block.reshape(len(block), -1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class VideoTable:
    """The features of the videos that are wanted, in their order.

    Attributes
    ----------
    name : str
        The feature type.
    videos : tuple of str, V
    parts : tuple of (Source, rows, places)
        Rows of a source, rising, and where in the table they stand.
    """

    name: str
    videos: tuple[str, ...] = field(repr=False)
    parts: tuple[tuple[Source, NDArray[np.int64], NDArray[np.int64]], ...] = field(repr=False)

    @property
    def num_values(self) -> int:
        """Length D of a feature vector."""
        return int(np.prod(self.parts[0][0].shape[1:]))

    def rows(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """All features, some videos at a time: their places in the table, and (n, D) float."""
        for source, rows, places in self.parts:
            source.require_whole(rows)
            step = rows_at_once(self.num_values)
            for start in range(int(rows[0]), int(rows[-1]) + 1, step):
                inside = (rows >= start) & (rows < start + step)
                if inside.any():
                    yield places[inside], source.read(slice(start, start + step), slice(None))[rows[inside] - start]

    def columns(self) -> Iterator[NDArray[np.floating]]:
        """All features, some coordinates of all videos at a time: (V, W), float32 if all sources are, else float64."""
        for source, rows, _ in self.parts:
            source.require_whole(rows)
        shape = self.parts[0][0].shape
        inner = int(np.prod(shape[2:]))
        most_rows = max(int(rows[-1] - rows[0]) + 1 for _, rows, _ in self.parts)
        step = rows_at_once(inner * most_rows)
        for start in range(0, shape[1], step):
            blocks = [
                source.read(slice(int(rows[0]), int(rows[-1]) + 1), slice(start, start + step))[rows - rows[0]]
                for source, rows, _ in self.parts
            ]
            kind = np.float32 if all(values.dtype == np.float32 for values in blocks) else np.float64
            block = np.empty((len(self.videos), blocks[0].shape[1]), kind)
            for values, (_, _, places) in zip(blocks, self.parts, strict=True):
                block[places] = values
            yield block

    def inner_products(self, report: Callable[[int], None]) -> NDArray[np.float64]:
        """Inner products of the features of all videos, (V, V); ``report`` hears of each so many values read.

        Raises
        ------
        FeatureFileError
            If a value is no number.
        """
        products = np.zeros((len(self.videos), len(self.videos)))
        for block in self.columns():
            if not np.isfinite(block).all():
                raise self.no_numbers(int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0]))
            wide = block.astype(np.float64)
            products += wide @ wide.T
            report(block.size)
        return products

    def no_numbers(self, place: int) -> FeatureFileError:
        """What to raise for a video whose features are no numbers."""
        return FeatureFileError(
            f"{self.name} of the video {self.videos[place]} has NaN or infinite values: extract it again"
        )


def read_layers(path: Path) -> dict[str, Source]:
    """Every dataset of the groups ``flow`` and ``rgb`` in a file of ``tvnet features``.

    Raises
    ------
    FeatureFileError
        If the file is not one, is damaged, or holds no video.
    """
    if path.is_dir():
        raise FeatureFileError(f"{path} is a folder: a file of tvnet features is needed")
    try:
        contents = read_contents(path)
    except DamagedError as error:
        raise FeatureFileError(
            f"{path} is not a readable feature file: {error.reason}; tvnet verify {path} tells what is good in it"
        ) from error
    if not contents.rows:
        raise FeatureFileError(f"{path} holds no videos")
    ids, checks = tuple(contents.rows), RowChecks(contents)
    layers = {name: (shape, dtype) for name, (shape, dtype) in contents.fields.items()}
    layers |= {name: (rows.shape, rows.dtype) for name, rows in contents.users.items() if rows.dtype.kind == "f"}
    shapes = {
        name: (len(ids), *shape) for name, (shape, _) in layers.items() if shape and name.split("/")[0] in STREAM_GROUPS
    }
    with readable(path), opened(path) as source:
        for name in shapes:
            source.require_stored(name)
    found = {name: checked_source(name, path, path, name, ids, shapes[name]) for name in sorted(shapes)}
    return {name: replace(source, checks=checks) for name, source in found.items()}


def checked_source(
    name: str, file: Path, path: Path, dataset: str, ids: tuple[str, ...], shape: tuple[int, ...]
) -> Source:
    """A source, if its shape is that of a row a video.

    Raises
    ------
    FeatureFileError
    """
    if len(shape) < 2 or shape[0] != len(ids) or not all(shape):
        raise FeatureFileError(f"{file}: {name} is {times(shape)}, for {len(ids)} videos it should be {len(ids)} x D")
    return Source(str(file), path, dataset, ids, tuple(shape))


def choose_layers(layers: Mapping[str, T], names: Sequence[str]) -> list[T]:
    """Those with these names, in this order; without names all, ours in the order of ``KNOWN_ORDER``, then others.

    Raises
    ------
    FeatureFileError
        If there is no such layer.
    """
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise FeatureFileError(f"no features are called {unknown[0]}; there are {', '.join(layers)}")
    known = [name for name in KNOWN_ORDER if name in layers]
    return [layers[name] for name in names or [*known, *(name for name in layers if name not in KNOWN_ORDER)]]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while a feature file is read, as one line that names it."""
    try:
        yield
    except MemoryError as error:
        raise FileAccessError(f"cannot read {path}: memory does not suffice") from error
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise FeatureFileError(f"{path} is not a readable feature file: {reason}") from error


def rows_at_once(num_values: int) -> int:
    """How many rows of so many values to read at once."""
    return max(1, BLOCK_BYTES // (VALUE_BYTES * num_values))


def times(shape: Sequence[int]) -> str:
    """A shape for people."""
    return " x ".join(map(str, shape))
