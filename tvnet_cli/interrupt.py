"""Ctrl-C at a moment that suits: what is in hand is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Inside it the first Ctrl-C is an event, to be asked for between two pieces of work; the second one stops at once.

    An exception in the middle of a piece, which Ctrl-C is otherwise, could lose half of it, such as a packet of a film
    between its encoder and its file.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
