"""One run at a time on a feature file, and a name for the one that is at work."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tvnet_cli.errors import FeatureFileError
from tvnet_cli.writing import NO_LOCKS_HERE

SECONDS_BETWEEN_TRIES = 0.5
PARTS = ".parts"
OVERWRITES = "overwrites"  # an empty file among the parts: they are to replace the feature file, not to be added to it


@contextmanager
def locked(
    output: Path,
    *,
    wait: bool = False,
    stop: threading.Event | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Keep other runs from a feature file; gives the folder ``<output>.parts``, which goes at the end if it is empty.

    The system frees the lock of a process that dies. Where a disk knows no locks, the existence of a file is one; that
    of a process that died on the same machine does not count.

    Parameters
    ----------
    output : Path
    wait : bool
        For the run that is at work. Otherwise that is an error.
    stop : Event, optional
        Ends the waiting with that error.
    note : callable
        Is told whom it waits for.

    Raises
    ------
    FeatureFileError
        That says who is at work.
    """
    folder = parts_folder(output)
    if output.is_dir():
        raise FeatureFileError(f"{output} is a folder: name a file in it")
    lock = _acquired(output, folder, wait, stop or threading.Event(), note)
    holder = folder / "holder.json"
    try:
        with suppress(OSError):  # a full disk; it only serves a message
            holder.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}), "utf-8")
        yield folder
    finally:
        with suppress(OSError):
            holder.unlink()
            Path(lock.lock_file).unlink(missing_ok=True)
            folder.rmdir()
        lock.release()


def parts_folder(output: Path) -> Path:
    """Where finished rows wait until they are packed."""
    if not output.name:
        raise FeatureFileError(f"{output} is a folder: name a file in it")
    return output.with_name(output.name + PARTS)


def behind_links(output: Path) -> Path:
    """The file itself: a link to it stays one, and all its names lead to one lock."""
    return Path(os.path.realpath(output)) if output.is_symlink() else output


def _acquired(
    output: Path, folder: Path, wait: bool, stop: threading.Event, note: Callable[[str], None]
) -> BaseFileLock:
    kind: type[BaseFileLock] = FileLock
    told = False
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise FeatureFileError(f"{folder} is in the way, where finished videos are to wait: move it away") from None
        name = "lock" if kind is FileLock else "lock.file"
        lock = kind(folder / name, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=SECONDS_BETWEEN_TRIES if told else 0)
        except FileNotFoundError:  # the run before has just taken the folder away
            continue
        except Timeout:
            if not wait or stop.is_set():
                free = f"; if it is dead, delete {lock.lock_file}" if kind is SoftFileLock else ""
                raise FeatureFileError(
                    f"another run is writing {output}{_holder(folder)}: wait for it (--wait), "
                    f"or choose another output{free}"
                ) from None
            if not told:
                note(f"waiting for another run that is writing {output}{_holder(folder)}")
            told = True
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE or kind is SoftFileLock:
                raise
            kind = SoftFileLock
        else:
            return lock


def _holder(folder: Path) -> str:
    """Which process is at work, as far as it has said so."""
    try:
        found = json.loads((folder / "holder.json").read_text("utf-8"))
        return f" (process {found['pid']} on {found['host']}, since {found['since']})"
    except (OSError, ValueError, KeyError):
        return ""


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")
