"""HDF5 files of anyone, opened for reading: nothing outside the file is read, and no more than the file holds.

A file is read through one file of Python, without HDF5's own locks: HDF5 refuses to open a file twice in a process
with different settings of locks, and some network disks know no locks. A shared lock of the system is tried instead,
so that a file that another program is writing is not read half-written.
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import FileAccessError, RefusedFileError, TVNetError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FIRST_PLACE = 512  # of the signature, if it is not at the beginning; then twice as far, and so on
MOST_LINKS, MOST_LEVELS = 100_000, 32
MOST_CHUNK_BYTES = 2**28  # of numbers that can be read together only
MOST_RATIO = 1100  # of compression: gzip cannot do better
SMALL_BYTES = 2**24  # that a dataset may always declare
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
# All that HDF5 and h5py raise for files that are damaged.
CONTENT_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
NO_MEMORY = ("allocat", "out of memory")  # in HDF5's own messages


class _RawFile(io.FileIO):
    """A file that keeps the first error of the system while it is read."""

    error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            self.error = self.error or error
            raise


@dataclass(frozen=True)
class OpenFile:
    """An HDF5 file that is open for reading.

    Attributes
    ----------
    path : Path
    file : h5py.File
    size : int, bytes
    groups : tuple of str
        Without the root.
    datasets : tuple of str
    """

    path: Path
    file: h5py.File = field(repr=False)
    raw: _RawFile = field(repr=False)
    size: int
    groups: tuple[str, ...]
    datasets: tuple[str, ...]

    def require_stored(self, name: str, most_ratio: int = MOST_RATIO) -> None:
        """Check before it is read that a dataset declares no more than it can hold.

        Raises
        ------
        RefusedFileError
            If it is larger than ``most_ratio`` times its bytes in the file.
        """
        dataset = self.file[name]
        declared = 0 if dataset.shape is None else math.prod(dataset.shape) * dataset.dtype.itemsize
        layout = dataset.id.get_create_plist()
        stored = min(dataset.id.get_storage_size(), self.size)
        if layout.get_layout() == h5py.h5d.CHUNKED:
            chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
            if chunk > MOST_CHUNK_BYTES:
                raise RefusedFileError(f"{self.path}: {name} declares chunks of {chunk} bytes, which is too large")
            for number in range(layout.get_nfilters()):
                if layout.get_filter(number)[0] not in FILTERS:
                    raise RefusedFileError(f"{self.path}: {name} is compressed in a way that is not known here")
            fits = declared <= max(SMALL_BYTES, most_ratio * stored)
        else:
            fits = declared <= max(SMALL_BYTES, stored)
        if not fits:
            raise RefusedFileError(
                f"{self.path}: {name} declares {declared} bytes, but takes {stored} in the file, which is too few"
            )

    def text(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read rows of a dataset of text, UTF-8; see ``text_bytes``."""
        lines = self.text_bytes(name, rows)
        decoded = np.empty(lines.shape, object)
        for place, line in np.ndenumerate(lines):
            decoded[place] = line.decode()
        return decoded

    def text_bytes(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read rows of a dataset of text as bytes.

        Raises
        ------
        RefusedFileError
            If the texts together are larger than the file, as when many rows point to one text.
        """
        self.require_stored(name)
        dataset = self.file[name]
        start, stop, _ = rows.indices(dataset.shape[0])
        lines = np.empty((max(0, stop - start), *dataset.shape[1:]), object)
        in_a_row = math.prod(dataset.shape[1:])
        step, left = max(1, SMALL_BYTES // (self.size * max(1, in_a_row))), self.size
        if (place := self._place(dataset)) is not None and lines.size:
            left -= int(self._lengths(place + 16 * in_a_row * start, lines.size).sum(dtype=np.uint64))
            step = len(lines)
        for begin in range(0, len(lines), step):
            if left >= 0:
                block = dataset[start + begin : min(start + begin + step, stop)]
                left -= 0 if place is not None else sum(map(len, block.flat))
                lines[begin : begin + step] = block
        if left < 0:
            raise RefusedFileError(f"{self.path}: the texts of {name} are larger than the file")
        return lines

    def rows(self, name: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Read rows of a dataset by their numbers, which rise, (n, ...); text as bytes."""
        dataset = self.file[name]
        is_text = dataset.dtype.kind == "O"
        values = np.empty((len(numbers), *dataset.shape[1:]), dataset.dtype)
        for begin, end, rows in runs(numbers):
            values[begin:end] = self.text_bytes(name, rows) if is_text else dataset[rows]
        return values

    def _place(self, dataset: h5py.Dataset) -> int | None:
        """Where texts of any length have their lengths, 16 bytes apart, if those lie in one piece."""
        described = h5py.check_string_dtype(dataset.dtype)
        place: int | None = dataset.id.get_offset()
        return place if described and described.length is None else None

    def _lengths(self, place: int, count: int) -> NDArray[np.uint32]:
        self.raw.seek(place)
        return np.frombuffer(self.raw.read(16 * count), "<u4")[::4]


def runs(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int, slice]]:
    """Where numbers that follow each other begin and end, and the rows that they are."""
    begin = 0
    for end in [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]:
        yield begin, end, slice(int(numbers[begin]), int(numbers[end - 1]) + 1)
        begin = end


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does, there or behind a block of the user; a pipe or device never does.

    Raises
    ------
    FileAccessError
        If that cannot be read.
    """
    try:
        if not path.is_file():
            return False
        size, place = path.stat().st_size, 0
        with path.open("rb", buffering=0) as file:
            while place < size:
                file.seek(place)
                if file.read(len(SIGNATURE)) == SIGNATURE:
                    return True
                place = 2 * place or FIRST_PLACE
    except OSError as error:
        raise no_access(path, error) from error
    return False


@contextmanager
def opened(path: Path) -> Iterator[OpenFile]:
    """An HDF5 file, open for reading; what it says about other files is not followed.

    Errors of what the file holds come as they are, all of ``CONTENT_ERRORS``.

    Raises
    ------
    FileAccessError
        If the system does not let it be read, another program is writing it, or memory does not suffice: that says
        nothing about its content.
    RefusedFileError
        If it is no file, or if a link or a dataset in it leads to another file.
    """
    raw = _open(path)
    try:  # what is written in the body must raise its errors outside: here they would be those of this file
        with raw:
            _require_unlocked(path, raw)
            with h5py.File(raw, "r") as file:
                yield OpenFile(path, file, raw, os.fstat(raw.fileno()).st_size, *names_inside(path, file))
    except TVNetError:
        raise
    except MemoryError as error:
        raise FileAccessError(f"cannot read {path}: memory does not suffice") from error
    except CONTENT_ERRORS as error:
        # Errors of what a file holds have no number.
        of_system = raw.error or (error if isinstance(error, OSError) and error.errno is not None else None)
        if of_system is not None and not isinstance(of_system, FileNotFoundError):
            raise no_access(path, of_system) from error
        if isinstance(error, (OSError, RuntimeError)) and any(word in str(error).lower() for word in NO_MEMORY):
            raise FileAccessError(f"cannot read {path}: memory does not suffice ({first_line(error)})") from error
        raise


def no_access(path: Path, error: OSError) -> FileAccessError:
    """What an error of the system means for a file that was to be read."""
    return FileAccessError(f"cannot read {path}: {error.strerror or first_line(error)}; its content may be good")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open(path: Path) -> _RawFile:
    at_once = getattr(os, "O_NONBLOCK", 0)  # a pipe is opened without waiting
    try:
        number = os.open(path, os.O_RDONLY | at_once | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise no_access(path, error) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise RefusedFileError(f"{path} is a folder, a pipe or a device, not a file")
    return _RawFile(number, "rb")


def _require_unlocked(path: Path, raw: _RawFile) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(raw.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise FileAccessError(
                f"{path} is open in another program (lock): close it there, then give the command again"
            ) from error
        # Any other error is of a disk that knows no locks.


def names_inside(path: Path, file: h5py.File) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of all groups and datasets of a file, none of which leads out of it.

    Raises
    ------
    RefusedFileError
        If one is a link that is no hard one, or is stored in another file, or if there are very many.
    """
    groups: list[str] = []
    datasets: list[str] = []
    seen: set[int] = set()
    left: list[tuple[str, Any]] = [("", file.id)]
    count = 0
    while left:
        prefix, group = left.pop()
        for key, kind in _links(group):
            name = prefix + key.decode("utf-8", "replace")
            count += 1
            if kind != h5py.h5l.TYPE_HARD:
                raise RefusedFileError(f"{path}: {name} is a link that may lead out of the file, which is not followed")
            if count > MOST_LINKS or name.count("/") > MOST_LEVELS:
                raise RefusedFileError(f"{path} holds more than {MOST_LINKS} objects or {MOST_LEVELS} levels of groups")
            about = h5py.h5o.get_info(group, key)
            if about.type == h5py.h5o.TYPE_DATASET:
                _require_own_storage(path, name, h5py.h5o.open(group, key))
                datasets.append(name)
            elif about.type == h5py.h5o.TYPE_GROUP:
                groups.append(name)
                if about.addr not in seen:
                    seen.add(about.addr)
                    left.append((name + "/", h5py.h5o.open(group, key)))
    return tuple(sorted(groups)), tuple(sorted(datasets))


def _links(group: Any) -> list[tuple[bytes, int]]:
    """Names and kinds of the links in a group, one more than may be at most."""
    found: list[tuple[bytes, int]] = []

    def keep(name: bytes, about: Any) -> bool | None:
        found.append((name, about.type))
        return True if len(found) > MOST_LINKS else None

    group.links.iterate(keep, info=True)
    return found


def _require_own_storage(path: Path, name: str, dataset: Any) -> None:
    layout = dataset.get_create_plist()
    if layout.get_external_count():
        raise RefusedFileError(f"{path}: {name} is stored in another file (external storage)")
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        raise RefusedFileError(f"{path}: {name} is a virtual dataset, made of others")
