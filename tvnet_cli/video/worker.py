"""The process that decodes. ``tvnet_cli.video.reader`` starts it, asks it, and survives whatever it meets.

A question is a line of JSON on stdin; an answer is a line of JSON and, where a film was read, the bytes of ``ARRAYS``.
No torch in here: it is there in a quarter of a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from tvnet_cli.errors import VideoReadError
from tvnet_cli.url import is_url

if TYPE_CHECKING:
    from tvnet_cli.video.decode import VideoClips

ARRAYS = {"frames": "u1", "frame_index": "i8", "pts_seconds": "f8"}  # of VideoClips, as they are sent: names, dtypes

OUT_OF_MEMORY = 77  # exit code
LOOK_SECONDS = 0.05


def main() -> None:
    """Answer until the other end is gone, which ends the film in hand too."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints would print into the answers
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(number, signal.SIG_IGN)  # systems send it to all processes of a job: the other end decides
    questions: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    with suppress(Exception):  # now, and not when a film waits; what is wrong with it is said then
        from tvnet_cli.video import decode  # noqa: F401
    while True:
        _answer(answers, **questions.get())


def _listen(questions: SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        questions.put(json.loads(line))
    os._exit(0)


def _answer(answers: IO[bytes], place: str, clips: list[int], memory: int) -> None:
    arrays: list[memoryview] = []
    try:
        found = _read(place, clips, memory)
        answer = {name: getattr(found, name) for name in ("num_frames", "padded", "notes", "bad_packets")}
        arrays = [memoryview(getattr(found, name)).cast("B") for name in ARRAYS]
    except VideoReadError as error:
        answer = {"reason": str(error), "code": error.code, "traceback": traceback.format_exc()}
    except Exception as error:  # whatever a decoder meets in one film must not stop the others
        reason = f"{type(error).__name__}: {error}"
        answer = {"reason": reason, "code": "unexpected", "traceback": traceback.format_exc()}
    answers.write(json.dumps(answer).encode() + b"\n")
    for array in arrays:
        answers.write(array)
    answers.flush()


def _read(place: str, clips: list[int], memory: int) -> VideoClips:
    from tvnet_cli.video.decode import read_clips
    from tvnet_cli.video.remote import opened

    try:
        with _ends_above(memory):
            if not is_url(place):
                return read_clips(Path(place), *clips)
            with opened(place) as film:
                return read_clips(film, *clips)
    except MemoryError as error:
        raise VideoReadError("decoding needs more memory than there is", "out_of_memory") from error


@contextmanager
def _ends_above(mebibytes: int) -> Iterator[None]:
    """Ends this process once it has taken more memory inside the block; 0 never, and only where there is ``/proc``.

    Under a limit of the system allocations would fail, and decoders take that for damage to the film.
    """
    status, done = Path("/proc/self/status"), threading.Event()

    def look() -> None:
        if int(status.read_text().partition("VmHWM:")[2].split(maxsplit=1)[0]) > mebibytes << 10:
            os._exit(OUT_OF_MEMORY)

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            look()

    if not mebibytes or not status.exists():
        yield
        return
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()
        look()  # so that it does not depend on when it looked
