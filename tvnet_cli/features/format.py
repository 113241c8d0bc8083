"""What a feature file is: plain HDF5, one row a video, sorted by id, each row with a checksum.

All writing goes through Python's own files, so that a full disk is an error like any other (inside HDF5 it ends the
process), and into a new file that takes the place of the old one when it is whole and on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvnet_cli.errors import DamagedError, FeatureFileError
from tvnet_cli.recipe import Recipe
from tvnet_cli.writing import DISK_IS_FULL, CalmFile, disk_full, no_room

FORMAT, FORMAT_VERSION = "tvnet-features", 1
HDF5_VERSION = "v108"  # of the file's own tables: everything since 2008 reads it, and they carry checksums
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
PORTION_BYTES = 2**25  # of rows that are copied or checked at once

# dataset: (description, unit)
DATASETS = {
    "video_id": ("path relative to the folder given, or the name of a lone file", "text"),
    "checksum": ("CRC-32 of video_id, then of name and row of each other dataset in the order of their names", "1"),
    "flow/global_pool": ("flow network, mean over clips, then L2 norm 1", "1"),
    "flow/inception_5b_output": ("flow network, mean over clips, then L2 norm 1 over the flattened layer", "1"),
    "flow/inception_5a_output": ("flow network, mean over clips, then L2 norm 1 over the flattened layer", "1"),
    "flow/inception_4e_output": ("flow network, mean over clips, then L2 norm 1 over the flattened layer", "1"),
    "rgb/global_pool": ("RGB network on each clip's middle frame, mean over clips, then L2 norm 1", "1"),
    "frame_index": ("numbers of the frames used, among the decodable ones, by clip", "frames"),
    "pts_seconds": ("times of the frames used, from the container; NaN where it has none", "seconds"),
    "num_frames": ("decodable frames of the video", "frames"),
    "padded": ("True if the video has fewer frames than a clip, whose last frame was then repeated", "1"),
    "bad_packets": ("packets of the video that cannot be decoded and were passed over", "packets"),
    "source_bytes": ("size of the video's file; -1 if unknown", "bytes"),
    "source_mtime_ns": ("modification time of the video's file, since 1970; -1 if unknown", "nanoseconds"),
    "source_hash": (
        "SHA-256 of the first, the middle and the last 64 KiB of the video's file, of all of a file up to 192 KiB; of "
        "a remote video: 'etag', then bytes 5 to 32 of the SHA-256 of its ETag; zeros if unknown",
        "1",
    ),
    "failures/video_id": ("videos that were tried and have no row", "text"),
    "failures/reason": ("why", "text"),
    "failures/code": ("why, as one of a short list of words", "text"),
}
UNKNOWN = {"i": -1, "u": 0, "f": np.nan, "b": False}  # by kind of type: where an older program did not write a dataset
TEXT = h5py.string_dtype("utf-8")

Fields = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shape and type of a row, by name of dataset
RowProgress = Callable[[int, int], None]  # rows done, of so many


@dataclass(frozen=True)
class Failure:
    """Why a video has no row: for people, and as one of ``tvnet_cli.errors.REASONS``."""

    reason: str
    code: str = ""


@dataclass(frozen=True)
class Contents:
    """What a feature file holds, without the rows themselves.

    Attributes
    ----------
    path : Path
    recipe : dict
    rows : dict of video id to the number of its row
    fields : dict of dataset name to (shape, type) of a row
        Without ``video_id`` and ``checksum``.
    failures : dict of video id to Failure
    has_checksums : bool
        Files of older programs have none.
    """

    path: Path
    recipe: Recipe
    rows: dict[str, int] = field(repr=False)
    fields: Fields = field(repr=False)
    failures: dict[str, Failure] = field(repr=False)
    has_checksums: bool

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.fields.values())

    def portions(self, videos: Sequence[str] | None = None) -> Iterator[list[str]]:
        """All videos, or these, some at a time, in the order of their rows."""
        in_order = sorted(self.rows if videos is None else videos, key=self.rows.__getitem__)
        size = max(1, PORTION_BYTES // max(1, self.row_bytes))
        for start in range(0, len(in_order), size):
            yield in_order[start : start + size]


def read_contents(path: Path) -> Contents:
    """What a feature file holds, without the rows themselves.

    Raises
    ------
    DamagedError
        If it is a feature file, or another HDF5 file, that cannot be read.
    FeatureFileError
        If it is no feature file of this format version.
    """
    with _reading(path) as file:
        ids = list(file["video_id"].asstr()[:])
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        failures = {}
        if "failures" in file:
            names_and_why = (file[f"failures/{name}"].asstr()[:] for name in ("video_id", "reason", "code"))
            failures = {video_id: Failure(*why) for video_id, *why in zip(*names_and_why, strict=True)}
        fields: Fields = {}
        for name in sorted(names):
            if name not in ("video_id", "checksum") and not name.startswith("failures/"):
                fields[name] = (tuple(file[name].shape[1:]), file[name].dtype)
        wrong = [name for name in fields if file[name].shape[0] != len(ids)]
        if wrong or len(set(ids)) != len(ids):
            raise DamagedError(path, f"{named(wrong)} differ in length" if wrong else "a video has two rows")
        return Contents(
            path,
            json.loads(file.attrs["recipe"]),
            {video_id: number for number, video_id in enumerate(ids)},
            fields,
            failures,
            "checksum" in file,
        )


def require_replaceable(path: Path) -> None:
    """That nothing but a feature file, damaged perhaps, is lost if another takes its place.

    Raises
    ------
    FeatureFileError
    """
    if path.exists() and not (path.is_file() and path.stat().st_size == 0):
        with suppress(DamagedError), _reading(path):
            pass  # what it is stands at its beginning


def read_rows(contents: Contents, videos: Sequence[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Some rows, which lie near each other, in their order.

    Returns
    -------
    dict of dataset name to ndarray, (n, ...)
    list of str
        The videos whose rows do not fit their checksums.

    Raises
    ------
    DamagedError
        If they cannot be read.
    """
    numbers = np.array([contents.rows[video_id] for video_id in videos], np.int64)
    low, high = int(numbers[0]), int(numbers[-1]) + 1
    with _reading(contents.path) as file:
        values = {name: file[name][low:high][numbers - low] for name in contents.fields}
        stored = file["checksum"][low:high][numbers - low] if contents.has_checksums else None
    fits = np.ones(len(videos), np.bool_) if stored is None else checksums(videos, values) == stored
    return values, [video_id for video_id, right in zip(videos, fits.tolist(), strict=True) if not right]


def read_columns(contents: Contents, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return some small datasets of all rows, as far as the file has them, without a look at checksums.

    Raises
    ------
    DamagedError
        If they cannot be read.
    """
    with _reading(contents.path) as file:
        return {name: file[name][:] for name in names if name in contents.fields}


def checksums(videos: Sequence[str], values: Mapping[str, NDArray[Any]]) -> NDArray[np.uint32]:
    """The checksums of rows: CRC-32 of the id, then of name and bytes of each dataset in the order of their names.

    Text is UTF-8, numbers are little-endian, arrays in C order.

    Parameters
    ----------
    videos : sequence of str, n
    values : dict of dataset name to ndarray, (n, ...)

    Returns
    -------
    ndarray, (n,), uint32
    """
    sums = [zlib.crc32(video_id.encode()) for video_id in videos]
    for name in sorted(values):
        block = np.ascontiguousarray(values[name], values[name].dtype.newbyteorder("<"))
        rows = [row.data for row in block.reshape(len(sums), -1).view(np.uint8)]
        sums = [zlib.crc32(row, zlib.crc32(name.encode(), value)) for row, value in zip(rows, sums, strict=True)]
    return np.array(sums, np.uint32)


def write_row(path: Path, recipe: Recipe, video_id: str, values: Mapping[str, ArrayLike]) -> None:
    """A feature file of one row.

    Raises
    ------
    DiskFullError
    """
    row = {name: np.asarray(value)[None] for name, value in values.items()}
    fields = {name: (array.shape[1:], array.dtype) for name, array in row.items()}
    with _replacing(path) as new:
        _create(new.file, recipe, [video_id], fields, {})
        for name, array in row.items():
            new.file[name][:] = array
        new.file["checksum"][:] = checksums([video_id], row)


def write_failures(path: Path, recipe: Recipe, failures: Mapping[str, Failure]) -> None:
    """A feature file without a row, of failures or of nothing.

    Raises
    ------
    DiskFullError
    """
    with _replacing(path) as new:
        _create(new.file, recipe, [], {}, failures)


def join(
    output: Path,
    recipe: Recipe,
    sources: Sequence[Contents],
    progress: RowProgress | None = None,
    new: Path | None = None,
) -> None:
    """Write one feature file of the rows and failures of others, sorted by id.

    Each file is read once, from its first row to its last, some at a time, and each row is held against its checksum.

    Parameters
    ----------
    output : Path
        May be one of the sources: it is replaced in one step, at the end.
    recipe : dict
    sources : sequence of Contents
        Where two hold the same, that of the later counts. A row counts before a failure.
    progress : callable, optional
        May raise, to stop.
    new : Path, optional
        Where the file grows; on the same disk.

    Raises
    ------
    DamagedError
        If rows do not fit their checksums, or cannot be read.
    FeatureFileError
        If two sources have rows of different shapes.
    DiskFullError
    """
    home = {video_id: number for number, source in enumerate(sources) for video_id in source.rows}
    failures = {video_id: failure for source in sources for video_id, failure in source.failures.items()}
    ids = sorted(home)
    place = {video_id: number for number, video_id in enumerate(ids)}
    fields = _common_fields(sources)
    _require_room(output, sum(len(source.rows) * source.row_bytes for source in sources))
    with _replacing(output, new) as target:
        failed = {video_id: failure for video_id, failure in failures.items() if video_id not in home}
        _create(target.file, recipe, ids, fields, failed)
        sums = np.zeros(len(ids), np.uint32)
        done = 0
        for number, source in enumerate(sources):
            for videos in source.portions([video_id for video_id in source.rows if home[video_id] == number]):
                values, wrong = read_rows(source, videos)
                if wrong:
                    raise DamagedError(source.path, f"{named(wrong)} differ from their checksums", tuple(wrong))
                places = np.array([place[video_id] for video_id in videos], np.int64)
                for name, (shape, dtype) in fields.items():
                    if name not in values:
                        values[name] = np.full((len(videos), *shape), UNKNOWN[dtype.kind], dtype)
                    _write_runs(target.file[name], places, values[name])
                    target.raw.check()
                sums[places] = checksums(videos, values)
                done += len(videos)
                if progress:
                    progress(done, len(ids))
        target.file["checksum"][:] = sums


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, not only in memory."""
    with suppress(OSError):  # some network disks know no such thing
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def named(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """A feature file, open; what goes wrong in reading it has a clear name."""
    if path.exists() and not path.is_file():  # to open a pipe is to wait
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise FeatureFileError(f"{path} is not a feature file but {kind}: choose another file")
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                raise FeatureFileError(
                    f"{path} is an HDF5 file, but not of tvnet features: choose another file, or move it away"
                )
            if file.attrs["format_version"] != FORMAT_VERSION:
                raise FeatureFileError(
                    f"{path} has format version {file.attrs['format_version']}, this program knows {FORMAT_VERSION}"
                )
            yield file
    except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if _begins_as_hdf5(path):
            raise DamagedError(path, reason) from error
        raise FeatureFileError(
            f"{path} is not a readable feature file ({reason}): choose another file, or move it away"
        ) from error


def _begins_as_hdf5(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    return False


def _create(
    file: h5py.File, recipe: Recipe, ids: Sequence[str], fields: Fields, failures: Mapping[str, Failure]
) -> None:
    """All of a feature file but its rows and their checksums."""
    file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
    file.attrs["recipe"] = json.dumps(recipe)
    failed = sorted(failures)
    texts = {
        "video_id": ids,
        "failures/video_id": failed,
        "failures/reason": [failures[video_id].reason for video_id in failed],
        "failures/code": [failures[video_id].code for video_id in failed],
    }
    for name, lines in texts.items():
        file.create_dataset(name, (len(lines),), TEXT)[:] = lines
    for name, (shape, dtype) in {**fields, "checksum": ((), np.dtype(np.uint32))}.items():
        file.create_dataset(name, (len(ids), *shape), dtype)
    for name in (*texts, *fields, "checksum"):
        file[name].attrs["description"], file[name].attrs["unit"] = DATASETS[name]


def _common_fields(sources: Sequence[Contents]) -> Fields:
    """Shapes and types that the rows of all sources have."""
    found: dict[str, tuple[Path, tuple[tuple[int, ...], np.dtype[Any]]]] = {}
    for source in sources:
        for name, mine in source.fields.items():
            first, theirs = found.setdefault(name, (source.path, mine))
            if theirs != mine:
                raise FeatureFileError(f"{name} has rows of {theirs} in {first} and of {mine} in {source.path}")
    return {name: found[name][1] for name in DATASETS if name in found}


def _write_runs(dataset: h5py.Dataset, places: NDArray[np.int64], block: NDArray[Any]) -> None:
    """Write rows to their places, those that lie side by side at once."""
    begin = 0
    for end in [*(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]:
        dataset[int(places[begin]) : int(places[end - 1]) + 1] = block[begin:end]
        begin = end


@dataclass(frozen=True)
class _NewFile:
    """A feature file in the making."""

    file: h5py.File
    raw: CalmFile


@contextmanager
def _replacing(path: Path, new: Path | None = None) -> Iterator[_NewFile]:
    """A new file that takes the place of ``path`` when it is whole and on the disk."""
    new = new or path.with_name(path.name + ".new")
    try:
        with CalmFile(new, "w+b") as raw:
            with h5py.File(raw, "w", libver=(HDF5_VERSION, HDF5_VERSION)) as file:
                made = _NewFile(file, raw)
                yield made
            raw.check()
            os.fsync(raw.fileno())
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise no_room(path, error) from error
        raise
    finally:
        new.unlink(missing_ok=True)


def _require_room(path: Path, num_bytes: int) -> None:
    """Before an hour of copying, that there is room for it."""
    if num_bytes > shutil.disk_usage(path.parent).free:
        raise disk_full(path, f"{num_bytes / 1e6:.0f} MB more are needed")
