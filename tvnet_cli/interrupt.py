"""Ctrl-C at a moment that suits: what is in hand is finished first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130
SHOW_CURSOR = "\x1b[?25h"
HANGUP = getattr(signal, "SIGHUP", None)  # there is none on Windows


@contextmanager
def interruptible(hard: bool = False) -> Iterator[threading.Event]:
    """Inside it the first Ctrl-C is an event, to be asked for between two pieces of work; the second one stops at once.

    An exception in the middle of a piece, which Ctrl-C is otherwise, could lose half of it, such as a packet of a film
    between its encoder and its file. SIGTERM, by which systems announce that they are about to kill, is the same, and
    so is SIGHUP, by which a terminal says that it is closed; ``nohup`` still keeps that out.

    Parameters
    ----------
    hard : bool
        The second one ends the process on the spot, whatever waits for whatever: for work that may be killed at any
        moment.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        for one in before:
            signal.signal(one, end if hard else before[one])

    def end(number: int, frame: FrameType | None) -> None:
        if sys.stderr.isatty():
            os.write(2, SHOW_CURSOR.encode())  # which a progress bar hides
        os._exit(EXIT_CODE)

    hangups = [HANGUP] if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN else []
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, *hangups)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def nothing_begun() -> Iterator[None]:
    """Inside it Ctrl-C ends the process on the spot: an exception amid the imports of a large library can break it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: os._exit(EXIT_CODE))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
