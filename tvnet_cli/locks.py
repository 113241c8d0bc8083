"""One run at a time on an output, and a name for the run that holds the lock.

A lock is a folder of our own beside the output. It holds a file that is locked by the system or, where the disk knows
no such locks, whose existence is the lock; who holds it; and a marker, by which the folder is known to be ours.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tvnet_cli.errors import TVNetError
from tvnet_cli.writing import MARK, NO_LOCKS_HERE

SECONDS_BETWEEN_TRIES = 0.5
LOCK, FILE_AS_LOCK = "lock", "lock.file"
HOLDER, MARKER = "holder.json", "made-by-tvnet.txt"
OWN_NAMES = {LOCK, FILE_AS_LOCK, HOLDER, MARKER}
LOCK_RECORD = re.compile(rb"(\d+\n.*|filelock/.*)?", re.DOTALL)  # process, host and more: what ``FILE_AS_LOCK`` holds
RECORD_BYTES = 4096  # at most, of a lock file and of ``HOLDER``


@contextmanager
def locked(
    output: Path,
    folder: Path,
    error: type[TVNetError],
    *,
    wait: bool = False,
    stop: threading.Event | None = None,
    note: Callable[[str], None] = lambda line: None,
    advice: str = "wait for it, or choose another output",
    ours: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[None]:
    """Keep other runs from an output, inside a ``with`` block.

    The system frees the lock of a process that dies. Where a disk knows no locks, the existence of a file is one; that
    of a process that died on the same machine does not count.

    Parameters
    ----------
    output : Path
        A file or a folder, which need not exist. Only named in messages.
    folder : Path
        Where the lock lies, such as ``lock_folder(output)``. It is made if it does not exist, and removed at the end
        if nothing else is in it.
    error : type of TVNetError
        Raised if another run holds the lock.
    wait : bool
        Wait for the run that holds the lock. Otherwise that is an error.
    stop : Event, optional
        Ends the waiting with that error.
    note : callable
        Takes one line, which names the run that is waited for.
    advice : str
        The end of the message of the error.
    ours : callable
        Takes ``folder`` where it exists without a marker; returns whether it is ours all the same.

    Raises
    ------
    error
        If another run holds the lock, whose process and host the message names; or if ``folder`` is not ours.
    OSError
        If the lock file cannot be written.
    """
    lock = _acquired(output, folder, error, wait, stop or threading.Event(), note, advice, ours)
    tried = [LOCK] if isinstance(lock, SoftFileLock) else []  # made before it turned out that the disk knows no locks
    try:
        with suppress(OSError):  # a full disk; they only serve a message and the next run
            (folder / MARKER).write_text(f"{MARK}: a run on {output} keeps its files here\n", "utf-8")
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
            (folder / HOLDER).write_text(json.dumps(holder), "utf-8")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
            if OWN_NAMES.issuperset(path.name for path in folder.iterdir()):
                (folder / MARKER).unlink(missing_ok=True)  # before the lock: a marker that comes later is another's
            for name in [*tried, Path(lock.lock_file).name]:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        lock.release()


def lock_folder(output: Path) -> Path:
    """Return the hidden folder beside an output in which its lock lies; all links to the output have the same.

    It lies in the output if that is a folder beside which nothing can be written.
    """
    real = Path(os.path.realpath(output))
    place = real if real.is_dir() and not os.access(real.parent, os.W_OK) else real.parent
    return place / f".{real.name}.tvnet-lock"


def require_own_folder(
    folder: Path, error: type[TVNetError], ours: Callable[[Path], bool] = lambda folder: False
) -> None:
    """Refuse a folder that this program did not make: nothing in it may be used, moved or removed.

    Parameters
    ----------
    folder : Path
        Need not exist.
    error : type of TVNetError
    ours : callable
        As in ``locked``.

    Raises
    ------
    error
        If something else than a folder of ours has its name.
    """
    try:
        names = {path.name for path in folder.iterdir()}
        found = MARKER in names or _only_locks(folder, names) or ours(folder)
    except FileNotFoundError:  # so it is for the run before, too, which has just removed it
        return
    except NotADirectoryError:
        found = False
    if not found:
        raise error(f"{folder} is in the way: tvnet did not make it, and needs this name; move it away")


def read_holder(folder: Path) -> dict[str, object] | None:
    """Return host, process and beginning of the run that holds a lock, or None where it did not write them."""
    try:
        found = json.loads(_beginning(folder / HOLDER))
        return {name: found[name] for name in ("host", "pid", "since")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _acquired(
    output: Path,
    folder: Path,
    error: type[TVNetError],
    wait: bool,
    stop: threading.Event,
    note: Callable[[str], None],
    advice: str,
    ours: Callable[[Path], bool],
) -> BaseFileLock:
    kind: type[BaseFileLock] = FileLock
    told = False
    while True:
        require_own_folder(folder, error, ours)
        folder.mkdir(parents=True, exist_ok=True)
        name = LOCK if kind is FileLock else FILE_AS_LOCK
        lock = kind(folder / name, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=SECONDS_BETWEEN_TRIES if told else 0)
        except FileNotFoundError:  # the run before has just removed the folder
            continue
        except Timeout:
            if not wait or stop.is_set():
                free = f"; if it is dead, delete {lock.lock_file}" if kind is SoftFileLock else ""
                raise error(f"another run is writing {output}{_holder(folder)}: {advice}{free}") from None
            if not told:
                note(f"waiting for another run that is writing {output}{_holder(folder)}")
            told = True
        except OSError as failed:
            if failed.errno not in NO_LOCKS_HERE or kind is SoftFileLock:
                raise
            kind = SoftFileLock
        else:
            return lock


def _only_locks(folder: Path, names: set[str]) -> bool:
    """Return whether a folder without a marker holds nothing, or only what a run leaves that was killed as it began."""
    if not OWN_NAMES.issuperset(names):
        return False
    return _is_lock(folder / LOCK) and _is_lock(folder / FILE_AS_LOCK) and _is_holder(folder / HOLDER)


def _is_lock(path: Path) -> bool:
    """Return whether a lock file, if there is one, holds nothing of others."""
    content = _beginning(path)
    return not content or (path.name == FILE_AS_LOCK and LOCK_RECORD.fullmatch(content) is not None)


def _is_holder(path: Path) -> bool:
    return not _beginning(path) or read_holder(path.parent) is not None


def _beginning(path: Path) -> bytes:
    """Return the first bytes of a file; none if it does not exist, as when the run that made it has just ended."""
    try:
        with path.open("rb") as file:
            return file.read(RECORD_BYTES)
    except FileNotFoundError:
        return b""


def _holder(folder: Path) -> str:
    """Return which process holds the lock, as far as it wrote that."""
    found = read_holder(folder)
    return f" (process {found['pid']} on {found['host']}, since {found['since']})" if found else ""


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")
