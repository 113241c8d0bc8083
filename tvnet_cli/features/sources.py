"""Whether videos are still those that rows were made of: a row keeps the identity of its source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvnet_cli.errors import VideoReadError
from tvnet_cli.video.files import RemoteVideo, Video
from tvnet_cli.video.identity import Identity, identify
from tvnet_cli.video.remote import ask_identity, is_of_a_server

BYTES, MTIME, HASH = SOURCE_DATASETS = "source_bytes", "source_mtime_ns", "source_hash"
HASH_BYTES = 32
UNKNOWN_SOURCE = Identity(-1, -1, "")
THREADS = 8  # ask at once: on network disks each answer takes a while
RECOMPUTE = "--recompute-changed computes it again"

Checking = Callable[[int, int], None]  # videos looked at, of so many


@dataclass(frozen=True)
class SourceCheck:
    """What was found about the videos of rows that exist.

    Attributes
    ----------
    changed : dict of video id to what differs
    touched : int
        Videos with another modification time alone, whose rows are kept.
    unrecorded : int
        Rows of an older version, which did not keep the identity of the source.
    unreadable : dict of video id to reason
        Videos that cannot be looked at, whose rows are kept.
    """

    changed: dict[str, str] = field(default_factory=dict)
    touched: int = 0
    unrecorded: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return what people should know, a line for each kind."""
        lines = []
        if self.touched:
            lines.append(
                f"{self.touched} videos have another modification time than when their rows were made, with the same "
                "size and hash: their rows are kept; --overwrite computes all rows again"
            )
        if self.unrecorded:
            lines.append(
                f"{self.unrecorded} rows keep no size and hash of their videos, as those of older versions: whether "
                "the videos changed is not checked; --overwrite computes all rows again"
            )
        if self.unreadable:
            first, reason = next(iter(self.unreadable.items()))
            lines.append(
                f"{len(self.unreadable)} videos with a row cannot be checked for changes, such as {first} ({reason}): "
                "their rows are kept"
            )
        return lines


def source_values(source: Identity) -> dict[str, ArrayLike]:
    """Return what a row keeps of the identity of its video: int64, int64 and (32,) uint8."""
    digest = bytes.fromhex(source.sha256) or bytes(HASH_BYTES)
    values = np.int64(source.size), np.int64(source.mtime_ns), np.frombuffer(digest, np.uint8)
    return dict(zip(SOURCE_DATASETS, values, strict=True))


def sources_of_rows(columns: Mapping[str, NDArray[np.generic]], videos: Sequence[str]) -> dict[str, Identity]:
    """Return the identity of the source of each row, from the columns of ``SOURCE_DATASETS``, if there are any.

    Parameters
    ----------
    columns : dict of dataset name to ndarray, (n, ...)
    videos : sequence of str, n
    """
    if any(name not in columns for name in SOURCE_DATASETS):
        return dict.fromkeys(videos, UNKNOWN_SOURCE)
    rows = zip(videos, columns[BYTES].tolist(), columns[MTIME].tolist(), columns[HASH], strict=True)
    return {
        video_id: Identity(size, mtime, digest.tobytes().hex() if digest.any() else "")
        for video_id, size, mtime, digest in rows
    }


def is_unknown(values: NDArray[np.generic]) -> bool:
    """Return whether a value of ``SOURCE_DATASETS`` in a row says that nothing is known."""
    return bool((values == (0 if values.dtype == np.uint8 else -1)).all())


def identify_source(video: Video | RemoteVideo) -> Identity:
    """Return the identity of a video as it is now; that of a remote one is what its server says.

    Raises
    ------
    OSError
        If the file cannot be read.
    VideoReadError
        If the server cannot be asked.
    """
    if isinstance(video, Video):
        return identify(video.path)
    return video.source or ask_identity(video.place)


def check_sources(
    videos: Sequence[Video | RemoteVideo],
    known: Mapping[str, Identity],
    progress: Checking = lambda done, total: None,
    stop: threading.Event | None = None,
) -> SourceCheck:
    """Compare the videos that have rows with what the rows keep of their sources.

    Parameters
    ----------
    videos : sequence of Video or RemoteVideo
    known : dict of video id to Identity
        Of the sources of the rows. Other videos are not looked at.
    progress : callable
        Takes the number of videos that were looked at, and of all that are to be.
    stop : Event, optional
        Ends the check early, with what was found until then.
    """
    rows = [video for video in videos if known.get(video.video_id, UNKNOWN_SOURCE) != UNKNOWN_SOURCE]
    changed: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    touched = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        for number, (video, now) in enumerate(zip(rows, pool.map(_identity_now, rows), strict=True), 1):
            if stop is not None and stop.is_set():
                break
            before = known[video.video_id]
            if isinstance(now, str):
                unreadable[video.video_id] = now
            elif what := _difference(before, now):
                changed[video.video_id] = f"changed since its row was made: {what}; {RECOMPUTE}"
            else:
                touched += -1 != before.mtime_ns != now.mtime_ns != -1
            progress(number, len(rows))
    finally:
        pool.shutdown(cancel_futures=True)
    unrecorded = sum(known.get(video.video_id) == UNKNOWN_SOURCE for video in videos)
    return SourceCheck(changed, touched, unrecorded, unreadable)


def _identity_now(video: Video | RemoteVideo) -> Identity | str:
    """Return the identity of a video, or why there is none."""
    try:
        return identify_source(video)
    except (OSError, VideoReadError) as error:
        return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _difference(before: Identity, now: Identity) -> str:
    """Return what differs between the source of a row and a video; empty if both are the same, as far as is known."""
    if -1 != before.size != now.size != -1:
        return f"{before.size} bytes then, {now.size} now"
    hashes = before.sha256, now.sha256
    if all(hashes) and is_of_a_server(hashes[0]) == is_of_a_server(hashes[1]):
        return "" if hashes[0] == hashes[1] else f"{now.size} bytes as then, with another content"
    if not any(hashes) and -1 != before.mtime_ns != now.mtime_ns != -1:
        return f"{now.size} bytes as then, changed at another time"
    return ""
