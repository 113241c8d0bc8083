"""The process that decodes. ``tvnet_cli.video.reader`` starts it, asks it, and survives whatever it meets.

A question is a line of JSON on stdin: a task, the place of a video or an image, and what the task needs. The answer is
one or more messages, each a line of JSON and the bytes of the arrays that it announces; the line of the last one says
so. No torch in here: it is there in a quarter of a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from tvnet_cli.errors import FrameListError, VideoReadError
from tvnet_cli.url import is_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvnet_cli.video.decode import VideoScan
    from tvnet_cli.video.remote import RemoteFilm

Message = tuple[dict[str, Any], "Sequence[NDArray[Any]]"]
KEPT_SCANS = 64  # frame lists of the videos that were asked about last

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


def _answer(answers: IO[bytes], task: str, place: str, memory: int, **needed: Any) -> None:
    try:
        with _ends_above(memory), ExitStack() as held:
            for value, arrays in TASKS[task](_opened(place, held), **needed):
                _send(answers, {"value": value}, arrays)
        _send(answers, {"last": True})
    except VideoReadError as error:
        _send_error(answers, str(error), error.code, frame_list=isinstance(error, FrameListError))
    except MemoryError:
        _send_error(answers, "decoding needs more memory than there is", "out_of_memory")
    except Exception as error:  # whatever a decoder meets in one video must not stop the others
        _send_error(answers, f"{type(error).__name__}: {error}", "unexpected")


def _send(answers: IO[bytes], header: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
    header["arrays"] = [[array.dtype.str, list(array.shape)] for array in arrays]
    answers.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        answers.write(array.data.cast("B") if array.size else b"")
    answers.flush()


def _send_error(answers: IO[bytes], reason: str, code: str, *, frame_list: bool = False) -> None:
    error = {"reason": reason, "code": code, "frame_list": frame_list, "traceback": traceback.format_exc()}
    _send(answers, {"last": True, "error": error})


def _opened(place: str, held: ExitStack) -> Path | RemoteFilm:
    if not is_url(place):
        return Path(place)
    from tvnet_cli.video.remote import opened

    return held.enter_context(opened(place))


def _clips(path: Path | RemoteFilm, clips: list[int]) -> Iterator[Message]:
    """Answer as ``tvnet_cli.video.decode.read_clips``."""
    from tvnet_cli.video import decode

    found = decode.read_clips(path, *clips)
    value = {name: getattr(found, name) for name in ("num_frames", "padded", "notes", "bad_packets")}
    yield value, [found.frames, found.frame_index, found.pts_seconds]


def _scan(path: Path, counted: bool) -> Iterator[Message]:
    """Answer as ``tvnet_cli.video.decode.scan``, or as ``scan_by_decoding``; the file is read anew."""
    import numpy as np

    _scanned.cache_clear()
    found = _scanned(path, counted)
    value = {
        "notes": found.notes,
        "damage": found.damage and vars(found.damage),
        "time_base": found.time_base and [found.time_base.numerator, found.time_base.denominator],
        "keys": found.keys,
    }
    yield value, [found.pts_seconds, *([] if found.pts is None else [np.ascontiguousarray(found.pts, np.int64)])]


@lru_cache(KEPT_SCANS)
def _scanned(path: Path, counted: bool) -> VideoScan:
    from tvnet_cli.video import decode

    return decode.scan_by_decoding(path) if counted else decode.scan(path)


def _frames(
    path: Path,
    counted: bool,
    checksum: int,
    wanted: list[int],
    first: int,
    to_end: bool,
    short_side: int | None,
    size: list[int] | None,
) -> Iterator[Message]:
    """Answer with the frames of these numbers as RGB, those before the place ``first`` without their pixels."""
    import av
    import numpy as np

    from tvnet_cli.video import decode

    video = _scanned(path, counted)
    if video.checksum != checksum:
        raise FrameListError("it has other frames than before")
    converter = av.video.reformatter.VideoReformatter()
    seen = decode.FrameNotes()
    frames = decode.read_frames(video, wanted, seen)
    for place, frame in zip(range(len(wanted)), frames, strict=False):
        if place < first:
            yield {"notes": seen.notes}, []
            continue
        picture = decode.upright_rgb(frame, converter, short_side, (size[0], size[1]) if size else None)
        yield {"notes": seen.notes}, [np.ascontiguousarray(picture)]
    if to_end:
        next(frames, None)  # lets it look whether the video ends here, as it should


def _image(path: Path) -> Iterator[Message]:
    """Answer as ``tvnet_cli.video.images.read_image``."""
    import numpy as np

    from tvnet_cli.video.images import read_image

    yield {}, [np.ascontiguousarray(read_image(path))]


def _levels(path: Path) -> Iterator[Message]:
    """Answer as ``tvnet_cli.video.images.read_levels``."""
    from tvnet_cli.video.images import read_levels

    yield {}, [read_levels(path)]


def _count(path: Path) -> Iterator[Message]:
    """Answer as ``tvnet_cli.video.images.count_pictures``."""
    from tvnet_cli.video.images import count_pictures

    yield {"count": count_pictures(path)}, []


def _size(path: Path) -> Iterator[Message]:
    """Answer as ``tvnet_cli.video.images.image_size``."""
    from tvnet_cli.video.images import image_size

    yield {"size": image_size(path)}, []


TASKS: dict[str, Any] = {
    "clips": _clips,
    "scan": _scan,
    "frames": _frames,
    "image": _image,
    "levels": _levels,
    "count": _count,
    "size": _size,
}


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
