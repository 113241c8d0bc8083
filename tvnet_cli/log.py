"""What happened in a run, as lines of JSON at the end of a file, which many runs may share."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
import uuid
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tvnet_cli import __version__
from tvnet_cli.errors import OutputError, TVNetError
from tvnet_cli.url import shown

CHECKED_BYTES = 2**16  # at both ends of a log
EVENT = re.compile(rb'\{"time": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", "run": "[0-9a-f]{12}", "event": "')
EXAMPLE = b'{"time": "2000-01-01T00:00:00.000+00:00", "run": "000000000000", "event": "'  # how all of them begin


class EventLog:
    """The events of one run: ``started``, what the command tells, ``error`` where one ends it, and ``ended``.

    Each has the time (UTC, ISO 8601) and the id of the run, and is one write at the end of the file: so lines of runs
    that share it never mix. A run without ``ended`` was killed. Without a file nothing is kept.

    Parameters
    ----------
    path : Path or None
        Made if it is not there.

    Raises
    ------
    OutputError
        If it cannot be written, holds other things than events, or is a pipe that nobody reads.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.run = path, uuid.uuid4().hex[:12]
        self._begun = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._started = self._broken = self._told = False
        self._file: int | None = None
        if path is not None:
            try:
                _require_log(path)
                # A pipe that nobody reads is an error here, and is not waited for.
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
                os.set_blocking(self._file, True)
            except OSError as error:
                raise OutputError(f"cannot write the log file {path}: {error.strerror}") from error

    def started(self, **facts: Any) -> None:
        """The run begins its work, of which these are the facts."""
        self._started = True
        where = {"host": socket.gethostname(), "pid": os.getpid(), "folder": str(Path.cwd())}
        self.write("started", version=__version__, command=["tvnet", *map(shown, sys.argv[1:])], **where, **facts)

    def video(self, summary: dict[str, object]) -> None:
        """What became of one video."""
        self._counts[str(summary["status"])] += 1
        self.write("video", **summary)

    def step(self, step: int, values: dict[str, float]) -> None:
        """What a training tells of a step."""
        self.write("step", step=step, **values)

    def ended(self, exit_code: int, error: BaseException | None = None) -> None:
        """The run ends, by an error or without. The log takes no more."""
        if not self._started:
            self.started()
        if error is not None:
            known = isinstance(error, TVNetError)
            trace = {} if known else {"traceback": "".join(traceback.format_exception(error))}
            self.write("error", type=type(error).__name__, message=str(error), **trace)
        counts = {"counts": dict(self._counts)} if self._counts else {}
        self.write("ended", exit_code=exit_code, **counts, seconds=round(time.monotonic() - self._begun, 3))
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def write(self, event: str, **values: Any) -> None:
        """Append one event. A disk that is full stops no run; it is said once."""
        if self._file is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "run": self.run, "event": event, **values}, default=str) + "\n"
        # What a write left half is a line of its own.
        content = ("\n" * self._broken + line).encode()
        try:
            written = os.write(self._file, content)
            problem = "" if written == len(content) else "only a part of a line was written"
            self._broken = bool(problem)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem and not self._told:
            self._told = True
            print(f"warning: events are missing in the log file {self.path}: {problem}", file=sys.stderr)


def _require_log(path: Path) -> None:
    """Refuse to append to a file whose first and last lines are no events of this program, as far as 64 KiB go.

    A line that was written half, as on a full disk, is taken for an event.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for start in (0, max(0, size - CHECKED_BYTES)):
            file.seek(start)
            lines = file.read(CHECKED_BYTES).split(b"\n")
            whole = lines[1:] if start else lines  # the first one may be the end of a longer one
            if not all(map(_is_event, whole)):
                raise OutputError(f"{path} is there, and no log of tvnet: choose another --log-file")


def _is_event(line: bytes) -> bool:
    """Return whether a line is an event, or the beginning of one, behind which another one may stand."""
    found = EVENT.search(line)
    half = line[: found.start()] if found else line
    return bool(EVENT.match(half + EXAMPLE[len(half) :]))
