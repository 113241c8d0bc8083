"""Files that are whole at every moment, and errors of writing that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tvnet_cli.errors import DiskFullError
from tvnet_cli.features.format import DISK_IS_FULL, _disk_full


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
            raise disk_full(path, str(error.strerror)) from error
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def disk_full(path: Path, reason: str) -> DiskFullError:
    """The error of a file that there is no room for."""
    return DiskFullError(f"cannot write {path}: {_disk_full(path.parent, reason)}")


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
