"""Films that lie elsewhere, under an address: found, and read piece by piece without a local copy.

fsspec knows the ways there (``s3://``, ``gs://``, ``https://`` and many more) and where each keeps its credentials.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import IO, Any, TypeVar

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.url import WEB, shown, url_name, url_way
from tvnet_cli.video.identity import Identity
from tvnet_cli.writing import DISK_IS_FULL

BLOCK_BYTES = 1 << 22
KEPT_BLOCKS = 16  # of a film, in memory: of one that is not larger, nothing is asked for twice
SPARE_BYTES = 1 << 28  # of the disk, which a copy leaves free
PAUSES = (0.5, 2.0)  # seconds before the second and the third attempt
CONNECT_SECONDS, SILENCE_SECONDS = 15, 60
# Names of what servers say of a file, which differ from one kind of them to the next.
TAGS = "ETag", "etag", "e_tag", "md5Hash"
TIMES = "LastModified", "last_modified", "Last-Modified", "mtime", "updated"
OF_A_SERVER = b"etag".hex()  # begins the hash of what a server says, which is no hash of a content

Answer = TypeVar("Answer")


def require_way(url: str) -> None:
    """Refuse an address to which no way is known here.

    Raises
    ------
    DatasetError
        That says what to install.
    """
    try:
        import fsspec

        fsspec.get_filesystem_class(url_way(url))
    except ImportError:
        raise DatasetError(f"{shown(url)}: films over {url_way(url)} need pip install 'tvnet[remote]'") from None
    except ValueError:
        raise DatasetError(f"{shown(url)}: no way is known to films over {url_way(url)!r}") from None


def list_folder(url: str) -> list[tuple[str, str, Identity]] | None:
    """All files below an address, at any depth.

    Parameters
    ----------
    url : str

    Returns
    -------
    list of (str, str, Identity), or None
        The path of each, relative to ``url``, its address, and its identity by the listing. None: it is the address of
        a file, or of nothing.

    Raises
    ------
    DatasetError
        If it cannot be listed.
    """
    if url_way(url) in WEB:
        if url.endswith("/"):
            raise DatasetError(f"{shown(url)} cannot be listed, as nothing on the web can: name the films one by one")
        return None
    try:
        files, path = _file_system(url)
        found = _tried(lambda: {} if not url.endswith("/") and files.isfile(path) else files.find(path, detail=True))
    except VideoReadError as error:
        raise DatasetError(f"cannot list {shown(url)}: {error}") from None
    start = path.rstrip("/") + "/"
    below = [name for name, about in found.items() if about["type"] == "file" and name.startswith(start)]
    if not below and not url.endswith("/"):
        return None
    return [(name.removeprefix(start), files.unstrip_protocol(name), _identity(found[name])) for name in below]


def ask_identity(url: str) -> Identity:
    """Return what the server says of a remote video, as its identity; -1 and "" where it says nothing.

    Its ``sha256`` is of the server's tag of the content (ETag), and says so by its first bytes.

    Raises
    ------
    VideoReadError
        If the server cannot be asked.
    """
    files, path = _file_system(url)
    return _identity(_tried(lambda: files.info(path)))


def is_of_a_server(sha256: str) -> bool:
    """Return whether the hash of an identity is of what a server says, not of the content."""
    return sha256.startswith(OF_A_SERVER)


def _identity(about: Mapping[str, Any]) -> Identity:
    size = about.get("size")
    tag = next((str(about[name]) for name in TAGS if about.get(name)), "")
    time_ns = next((_nanoseconds(about[name]) for name in TIMES if about.get(name)), -1)
    sha256 = OF_A_SERVER + hashlib.sha256(tag.encode()).hexdigest()[len(OF_A_SERVER) :] if tag else ""
    return Identity(-1 if size is None else int(size), time_ns, sha256)


def _nanoseconds(said: object) -> int:
    """Return a time since 1970 that a server says as seconds, as a date or as text; -1 if it is unclear."""
    try:
        if isinstance(said, str):
            said = parsedate_to_datetime(said) if "," in said else datetime.fromisoformat(said.replace("Z", "+00:00"))
        if isinstance(said, datetime):
            said = (said if said.tzinfo else said.replace(tzinfo=timezone.utc)).timestamp()
        return int(float(said) * 1e9)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return -1


class RemoteFilm(io.RawIOBase):
    """A film elsewhere, as a file to be read; pieces of it are fetched as they are asked for.

    Attributes
    ----------
    name : str
        Without the way to it; its suffix tells the decoder something.
    size : int, bytes
    broken : VideoReadError or None
        Why it cannot be read any more. A decoder that meets it may say something else, or just take it for the end.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name, self.size = name, file.seek(0, io.SEEK_END)
        self.broken: VideoReadError | None = None
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def read(self, number: int = -1) -> bytes:
        """So many bytes, fewer only at the end.

        Raises
        ------
        VideoReadError
            If they cannot be had, now and from now on.
        """
        left = max(0, self.size - self._position)
        number = left if number < 0 else min(number, left)
        if self.broken is None:
            try:
                found = _tried(lambda: self._read(number))
            except VideoReadError as error:
                self.broken = error
        if self.broken is not None:
            raise self.broken
        self._position += number
        return found

    def _read(self, number: int) -> bytes:
        self._file.seek(self._position)
        found = self._file.read(number)
        if len(found) < number:
            raise VideoReadError(f"the server broke off: it sent {len(found)} bytes of {number}", "network")
        return found


@contextmanager
def opened(url: str) -> Iterator[RemoteFilm]:
    """A film elsewhere. Where the server sends whole files only, it is a nameless copy in the folder for such files.

    Raises
    ------
    VideoReadError
        If it cannot be had, whatever the block made of that.
    """
    with _file(url) as file:
        film = RemoteFilm(file, url_name(url))
        try:
            yield film
        except VideoReadError as error:
            raise film.broken or error from None
        if film.broken:
            raise film.broken


@contextmanager
def _file(url: str) -> Iterator[IO[bytes]]:
    try:
        files, path = _file_system(url)
    except ImportError:
        raise VideoReadError(f"films over {url_way(url)} need pip install 'tvnet[remote]'", "unreadable") from None
    blocks = {"block_size": BLOCK_BYTES, "cache_type": "blockcache", "cache_options": {"maxblocks": KEPT_BLOCKS}}
    with _tried(lambda: files.open(path, "rb", **blocks)) as file:
        if _sends_pieces(file):
            yield file
            return
    with _temporary_file() as copy:
        _tried(lambda: _copy(files, path, copy))
        yield copy


def _file_system(url: str) -> tuple[Any, str]:
    """What reads there, and the path for it."""
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if url_way(url) in WEB:
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        options = {"client_kwargs": {"timeout": timeout}}
    files, path = url_to_fs(url, **options)
    return files, path


def _sends_pieces(file: Any) -> bool:
    if getattr(file, "size", None) is None:
        return False

    def try_last() -> bool:
        try:
            file.seek(max(0, file.size - 1))
            return bool(file.read(1)) or not file.size
        except ValueError:  # it would send all of it again
            return False

    return _tried(try_last)


def _copy(files: Any, path: str, copy: IO[bytes]) -> None:
    copy.seek(0)
    copy.truncate()
    with files.open(path, "rb", block_size=0) as source:
        while part := source.read(BLOCK_BYTES):
            if shutil.disk_usage(tempfile.gettempdir()).free < SPARE_BYTES + len(part):
                raise _no_room()
            try:
                copy.write(part)
            except OSError as error:
                if error.errno in DISK_IS_FULL:
                    raise _no_room() from None
                raise


def _temporary_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # also where no folder for such files has any room
        raise _no_room() from None


def _no_room() -> VideoReadError:
    place = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
    return VideoReadError(
        f"its server sends whole files only, and {place} has no room for a copy (TMPDIR names another folder)",
        "unreadable",
    )


def _tried(work: Callable[[], Answer]) -> Answer:
    """Its answer, in a few attempts if the network fails."""
    for pause in (*PAUSES, None):
        try:
            return work()
        except (VideoReadError, MemoryError):
            raise
        except Exception as error:
            reason = _reason(error)
            if pause is None or reason.code != "network":
                raise reason from None  # the error itself may hold the whole address
            time.sleep(pause)
    raise AssertionError


def _reason(error: Exception) -> VideoReadError:
    """What people are told; never the error's own words, in which the whole address may stand."""
    # Libraries say "not found" also of what could not be reached, and keep the truth behind it.
    behind = error.__cause__ or error
    statuses = (getattr(one, "status", None) for one in (error, behind))
    status = next((status for status in statuses if isinstance(status, int)), None)
    what = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(behind).__name__
    unreached = type(behind).__module__.startswith("aiohttp") or isinstance(behind, (ConnectionError, TimeoutError))
    if "Credentials" in what:
        return VideoReadError("access denied: no credentials were found", "unreadable")
    if status in (401, 403) or isinstance(error, PermissionError):
        return VideoReadError("access denied", "unreadable")
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and status is None and not unreached):
        return VideoReadError("no such file", "no_such_file")
    if status is not None and status != 429 and status < 500:
        return VideoReadError(f"the server refuses it (status {status})", "unreadable")
    return VideoReadError(f"the server cannot be reached, or broke off ({status or what})", "network")
