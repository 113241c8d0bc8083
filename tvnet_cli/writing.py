"""Files that are whole at every moment, and errors of writing that name the file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tvnet_cli.errors import DiskFullError, OutputError

# Stands in every file that this program writes and that people could have written too, near its beginning or its end:
# as a comment or as metadata, by what the format offers, and never compressed.
MARK = "made by tvnet"
MARKED_BYTES = 2**16  # of the beginning and of the end of a file, where the mark is looked for

DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ENOTSUPP = 524  # of the kernel of Linux, which some network disks let through
NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, ENOTSUPP, errno.EINVAL}  # of flock


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


def is_marked(path: Path) -> bool:
    """Return whether this program wrote a file, which its first or last 64 KiB say by ``MARK``."""
    return any(MARK.encode() in part for part in _ends(path))


def is_vouched_for(path: Path, voucher: Path) -> bool:
    """Return whether a marked file holds the SHA-256 of ``path``, in hexadecimal digits, where it holds the mark.

    So a file whose format has no room for the mark is recognised.

    Raises
    ------
    OSError
        If a file is there, and cannot be read.
    """
    if not (path.is_file() and voucher.is_file() and is_marked(voucher)):
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return any(digest.hexdigest().encode() in part for part in _ends(voucher))


def _ends(path: Path) -> Iterator[bytes]:
    """Give the beginning and the end of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for start in (0, max(0, size - MARKED_BYTES)):
            file.seek(start)
            yield file.read(MARKED_BYTES)


def require_replaceable(path: Path, *, overwrite: bool, voucher: Path | None = None) -> None:
    """Refuse to replace what this program did not write, unless the user asks for it.

    Nothing is lost with an empty file. Folders, pipes and devices are never replaced.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Whether the user asks for it.
    voucher : Path, optional
        A file whose word is taken for ``path``; see ``is_vouched_for``.

    Raises
    ------
    OutputError
        If ``path`` is not a file; or if it holds something, has no mark and no voucher, and ``overwrite`` is false.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a device or a socket"
        raise OutputError(f"cannot write {path}: it is {what}; choose another output")
    try:
        ours = overwrite or not found.st_size or is_marked(path) or bool(voucher and is_vouched_for(path, voucher))
    except OSError as error:
        raise OutputError(f"cannot read {path}, so that it is not replaced: {error.strerror}") from error
    if not ours:
        raise OutputError(
            f"{path} exists, and nothing in it says that tvnet made it: choose another output, or --overwrite to "
            "replace it"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a new file beside ``path``, which takes its place if all goes well, and is removed if not.

    Raises
    ------
    DiskFullError
        If there is no room for it.
    OSError
        If it cannot be written for another reason.
    OutputError
        If another program wrote ``path`` meanwhile, which then stays.
    """
    new, before = beside(path), _identity(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield new
            if _identity(path) != before:
                raise OutputError(f"{path} was written by another program meanwhile, and stays: choose another output")
            new.replace(path)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file that is whole at every moment; with ``sync``, after a power cut too.

    Raises
    ------
    DiskFullError, OSError, OutputError
        As ``replacing``.
    """
    with replacing(path) as new:
        _write(new, content, sync)


def write_together(contents: Mapping[Path, bytes], *, sync: bool = False) -> None:
    """Write several files, none of which takes its place before there was room for all; ``sync`` as ``write_whole``.

    The last one takes its place first.

    Raises
    ------
    DiskFullError, OSError, OutputError
        As ``replacing``.
    """
    with ExitStack() as places:
        for path, content in contents.items():
            _write(places.enter_context(replacing(path)), content, sync)


def _write(path: Path, content: bytes | memoryview, sync: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def beside(path: Path) -> Path:
    """Return where a file grows until it takes the place of ``path``: a name that no other run has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is replaced or written; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
