"""Files that are whole at every moment, and errors of writing that name the file."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tvnet_cli.errors import DiskFullError

DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}  # on some network disks


class CalmFile(io.FileIO):
    """A file that keeps its first error to itself until it is asked.

    HDF5 cannot close a file that it cannot write to, and ends the process later.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except BaseException as error:  # Ctrl-C too
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except BaseException as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise what went wrong in writing so far."""
        if self.error is not None:
            raise self.error


@contextmanager
def saying() -> Iterator[None]:
    """What is said on stderr inside it stops no run; once that fails, as on a full disk, nothing is said any more.

    Python would try again at the end, and make that its exit code.
    """
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system inside it say which file could not be written.

    Raises
    ------
    DiskFullError
        If that was for want of room.
    OSError
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise no_room(path, error) from error
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def no_room(path: Path, error: OSError) -> DiskFullError:
    """What an error of ``DISK_IS_FULL`` means for a file."""
    if error.errno == errno.EFBIG:
        return DiskFullError(f"cannot write {path}: {error.strerror}: the system limits its size (ulimit -f)")
    return disk_full(path, str(error.strerror))


def disk_full(path: Path, reason: str) -> DiskFullError:
    """The error of a file that there is no room for."""
    disk = path.parent.absolute()
    while not disk.is_mount():
        disk = disk.parent
    free = shutil.disk_usage(disk).free / 1e6
    return DiskFullError(f"cannot write {path}: the disk at {disk} is full: {reason}, {free:.1f} MB are free")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside ``path``, which takes its place when all went well, and goes when not.

    Raises
    ------
    DiskFullError, OSError
    """
    new = beside(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield new
            new.replace(path)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is whole at every moment.

    Raises
    ------
    DiskFullError, OSError
    """
    with replacing(path) as new:
        new.write_bytes(content)


def beside(path: Path) -> Path:
    """Where a file grows until it takes the place of ``path``."""
    return path.with_name(f".{path.name}.new")
