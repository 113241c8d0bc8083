"""Whether a video or a picture is the file that an earlier run read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PIECE_BYTES = 2**16  # of the head, the middle and the tail of a file, that are hashed
PICTURE_BYTES = 2**21  # pictures up to this size are hashed whole: one without compression may differ anywhere


@dataclass(frozen=True)
class Identity:
    """What tells a file, or a row of files, from another one under the same name.

    Attributes
    ----------
    size : int, bytes
        The sum, of several files.
    mtime_ns : int, nanoseconds since 1970
        When it was changed; the latest, of several files. A copy may have another one.
    sha256 : str
        Of head, middle and tail, or of all of a small file; of several files, of their names and these hashes.
    """

    size: int
    mtime_ns: int
    sha256: str

    def same_content(self, other: Identity) -> bool:
        """Return whether sizes and hashes agree, whatever the times are."""
        return (self.size, self.sha256) == (other.size, other.sha256)


def identify(path: Path, whole_bytes: int = 3 * PIECE_BYTES) -> Identity:
    """Return the identity of a regular file; a file of up to ``whole_bytes`` is hashed whole.

    Raises
    ------
    OSError
        If it cannot be read, or is a pipe, a device or a folder, which is never read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        size, sha256 = found.st_size, hashlib.sha256()
        if size <= max(whole_bytes, 3 * PIECE_BYTES):
            pieces = [(0, size)]
        else:
            pieces = [(start, PIECE_BYTES) for start in (0, (size - PIECE_BYTES) // 2, size - PIECE_BYTES)]
        for start, count in pieces:
            file.seek(start)
            sha256.update(file.read(count))
    return Identity(size, found.st_mtime_ns, sha256.hexdigest())


def identify_all(paths: Sequence[Path]) -> Identity:
    """Return one identity for a video, or for pictures in this order; pictures of usual size are hashed whole.

    Raises
    ------
    OSError
        As ``identify``.
    """
    if len(paths) == 1:
        return identify(paths[0])
    sha256, size, latest = hashlib.sha256(), 0, 0
    for path in paths:
        one = identify(path, PICTURE_BYTES)
        size, latest = size + one.size, max(latest, one.mtime_ns)
        sha256.update(f"{path.name}\0{one.size}\0{one.sha256}\n".encode("utf-8", "surrogateescape"))
    return Identity(size, latest, sha256.hexdigest())
