"""Download a file so that what is there under its name is whole and right: continued, checked, renamed."""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from tvnet_cli import __version__
from tvnet_cli.errors import WeightsError
from tvnet_cli.network.cards import MAX_WEIGHT_BYTES, cache_folder, suggestion
from tvnet_cli.network.registry import PUBLISHED, PublishedWeights
from tvnet_cli.writing import NO_LOCKS_HERE, writing

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # at one address, as long as each brings something
CHUNK = 1 << 18  # bytes
SURE_PREFIX = 8  # hexadecimal digits of a hash from which on a wrong continuation would be noticed

Progress = Callable[[int, int | None], None]  # bytes that are there, and bytes in all where that is known


def fetch_published(
    name: str,
    *,
    mirrors: Sequence[str] = (),
    trust: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Download published weights into the cache.

    Parameters
    ----------
    name : str
        Of ``tvnet_cli.network.registry.PUBLISHED``.
    mirrors : sequence of str
        Addresses to try before those that are known.
    trust : bool
        Also take a file whose full sha256 nobody knows; what is known of it is compared.
    offline : bool
        Take only what is in the cache already. ``TVNET_OFFLINE=1`` asks for the same.
    progress : callable
        Told of bytes that are there, and of bytes in all or None.

    Returns
    -------
    Path
        The file, in the cache.

    Raises
    ------
    WeightsError
        Naming each address and why it did not serve.
    """
    if name not in PUBLISHED:
        raise WeightsError(f"no published weights are called {name!r}: {suggestion(name, PUBLISHED)}")
    weights = PUBLISHED[name]
    if not weights.sha256 and not trust:
        known = (
            f"only the beginning of its sha256 is known, {weights.sha256_prefix}"
            if weights.sha256_prefix
            else ("its sha256 is not known")
        )
        raise WeightsError(f"{name} cannot be checked: {known}; --trust takes it as it comes ({weights.source})")
    path = cache_folder() / "downloads" / weights.file
    if path.exists():
        try:
            _check(path, weights)
        except WeightsError:
            path.unlink()  # damaged since
        else:
            return path
    urls = [*mirrors, *weights.urls]
    if offline or os.environ.get("TVNET_OFFLINE", "0") not in ("", "0"):
        raise WeightsError(f"{name} is not in {path.parent}, and nothing is downloaded offline")
    if not urls:
        raise WeightsError(f"{name} {weights.note}; {weights.source}")
    failures = []
    for url in urls:
        try:
            download(url, path, lambda part: _check(part, weights), resume=_is_sure(weights), progress=progress)
        except WeightsError as error:
            failures.append(str(error))
        else:
            return path
    note = f" ({weights.note})" if weights.note else ""
    raise WeightsError(f"cannot fetch {name}{note}: {'; '.join(failures)}")


def download(
    url: str, path: Path, check: Callable[[Path], None], *, resume: bool = True, progress: Progress | None = None
) -> None:
    """Download one file.

    The bytes go to ``<path>.part``, which becomes ``path`` once it is whole, checked and on the disk. A part that was
    left by an earlier try is resumed if ``resume`` says that the check will notice if it was of another file. While
    another process downloads the same file, the bytes go to a file of this process alone.

    Raises
    ------
    WeightsError
        If the address does not serve, or serves more than ``tvnet weights import`` takes. What came of a right file so
        far stays for the next try; a wrong one goes.
    DiskFullError
    """
    if not re.match(r"https?://", url):
        raise WeightsError(f"{url} is no http or https address")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _part_of(path) as (part, file, shared):
        _download(url, part, file, check, resume and shared, progress)
        os.fsync(file.fileno())
        part.replace(path)


@contextmanager
def _part_of(path: Path) -> Iterator[tuple[Path, FileIO, bool]]:
    """A file for the bytes that come, which no other process writes to, and whether a later run finds it by its name.

    Empty ones go at the end, and those that only this process knows.
    """
    part, shared = path.with_name(f"{path.name}.part"), True
    file = _locked(part)
    if file is None:
        part, shared = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"), False
        file = part.open("a+b", buffering=0)
    with file:
        try:
            yield part, file, shared
        finally:
            if _is_there(part, file) and not (shared and os.fstat(file.fileno()).st_size):
                part.unlink()


def _locked(part: Path) -> FileIO | None:
    """The file, opened and locked; None if another process has it, or the disk knows no locks."""
    while True:
        file = part.open("a+b", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if not _size(file):
                part.unlink()
            file.close()
            if error.errno in NO_LOCKS_HERE:
                return None
            raise
        if _is_there(part, file):
            return file
        file.close()  # the process before has just put it in its place


def _is_there(part: Path, file: FileIO) -> bool:
    """Whether the name still leads to this file."""
    try:
        return os.path.samestat(part.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _download(
    url: str,
    part: Path,
    file: FileIO,
    check: Callable[[Path], None],
    resume: bool,
    progress: Progress | None,
) -> None:
    """Fill the file with what the address serves, in several attempts where it is cut."""
    if not resume or _size(file) > MAX_WEIGHT_BYTES:
        file.truncate(0)
    resumed = _size(file) > 0
    for attempt in range(ATTEMPTS):
        before = _size(file)
        try:
            whole = _receive(url, file, before, progress)
        except urllib.error.HTTPError as error:
            raise WeightsError(f"{url}: {error.code} {error.reason}") from error
        except _TooLargeError as error:
            file.truncate(0)
            raise WeightsError(f"{url}: {error}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            whole = False
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        else:
            reason = "the connection was cut"
        if whole:
            try:
                check(part)
            except WeightsError as error:
                file.truncate(0)
                if resumed:  # perhaps only the part was of another file
                    resumed = False
                    continue
                raise WeightsError(f"{url}: {error}") from error
            return
        if _size(file) <= before or attempt == ATTEMPTS - 1:
            break
    if not resume:
        file.truncate(0)
    kept = f"; {_size(file)} bytes are kept, the same command resumes from there" if _size(file) else ""
    raise WeightsError(f"{url}: {reason}{kept}")


class _TooLargeError(Exception):
    """The server sends more than weights have."""

    def __init__(self) -> None:
        super().__init__(f"it has more than {MAX_WEIGHT_BYTES:,} bytes, and no more are taken")


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _receive(url: str, file: FileIO, offset: int, progress: Progress | None) -> bool:
    """Append what is missing, and tell if that was all of it."""
    request = urllib.request.Request(url, headers={"User-Agent": f"tvnet/{__version__}"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            error.close()
            return _receive(url, file, 0, progress)  # what is there is no shorter than the file
        raise
    with response:
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdecimal() else None
        if offset and response.status == http.HTTPStatus.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != offset:
                file.truncate(0)
                raise http.client.HTTPException("the server answers with another range than was asked for")
            total = int(span[3]) if span[3] != "*" else int(span[2]) + 1
        else:
            offset = 0  # a server that knows no ranges sends the file from its beginning
        if total is not None and total > MAX_WEIGHT_BYTES:
            raise _TooLargeError
        file.truncate(offset)
        while chunk := response.read(CHUNK):
            offset += len(chunk)
            if offset > MAX_WEIGHT_BYTES:
                raise _TooLargeError
            _append(file, chunk)
            if progress:
                progress(offset, total)
    return total is None or offset == total


def _append(file: FileIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    with writing(Path(os.fsdecode(file.name))):
        while left:
            left = left[file.write(left) :]


def _is_sure(weights: PublishedWeights) -> bool:
    return len(weights.sha256_prefix) >= SURE_PREFIX or len(weights.git_blob) >= SURE_PREFIX


def _check(path: Path, weights: PublishedWeights) -> None:
    """Compare all that is known of a file."""
    size = path.stat().st_size
    sha256, git_blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            git_blob.update(chunk)
    for kind, found, expected in (
        ("sha256", sha256.hexdigest(), weights.sha256_prefix),
        ("git blob id", git_blob.hexdigest(), weights.git_blob),
    ):
        if not found.startswith(expected):
            raise WeightsError(
                f"{path.name.removesuffix('.part')} is not the published file: its {kind} is {found}, "
                f"not {expected}{'' if len(expected) >= 40 else '...'}"
            )
