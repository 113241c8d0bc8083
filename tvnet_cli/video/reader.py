"""Videos and images read by processes of their own: a decoder that crashes, hangs or swells costs one of them alone."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import FrameListError, VideoReadError
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video.decode import Damage, KeyFrame, VideoClips, VideoScan
from tvnet_cli.video.worker import OUT_OF_MEMORY

Picture = NDArray[np.uint8]
Self = TypeVar("Self", bound="Decoders")

# What this process imports, the other one does too, and nothing that happens to lie in the working directory.
START = "import sys; sys.path[:] = {path!a}; from tvnet_cli.video.worker import main; main()"
# Threads of libraries would only take address space.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
TICK = 1.0  # seconds
TICKS_AFTER_STOP = 2
DTYPES = {"|u1", "<u2", "<i8", "<f8"}  # of the arrays in answers
LARGEST_ARRAY = 1 << 36  # bytes; memory is taken as it is filled


class Decoders:
    """Reads videos and images in other processes; what takes longer or more memory than the limits allow fails alone.

    Threads may read at once: there are as many processes as there are videos being read. Close it at the end, or use
    it in a ``with`` block.

    Parameters
    ----------
    limits : DecodeLimits
        What reading one video, or one frame of a stream of frames, may take.

    Attributes
    ----------
    stop : threading.Event or None
        Once it is set, a frame or an image that does not come within two seconds is not waited for: whoever asks gets
        KeyboardInterrupt.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._closed = False
        self.stop: threading.Event | None = None
        weakref.finalize(self, _stop_all, self._workers)  # at the latest when Python ends

    def __enter__(self: Self) -> Self:
        self._idle.append(self._started())  # it gets ready meanwhile
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._closed = True
        _stop_all(self._workers)

    def clips(self, place: Path | str, num_clips: int, clip_length: int, short_side: int, crop_size: int) -> VideoClips:
        """Read as ``tvnet_cli.video.decode.read_clips``; ``place`` is a file, or text that is an address.

        Raises
        ------
        VideoReadError
            Also if it takes more than the limits allow, or if the decoder crashes.
        RuntimeError
            If this was closed meanwhile.
        """
        answer = self._one("clips", place, clips=[num_clips, clip_length, short_side, crop_size])
        value, (frames, frame_index, pts_seconds) = answer
        return VideoClips(frames, frame_index, pts_seconds, **{**value, "notes": tuple(value["notes"])})

    def scan(self, path: Path, *, counted: bool = False) -> VideoScan:
        """Read as ``tvnet_cli.video.decode.scan``, or as ``scan_by_decoding``.

        Raises
        ------
        VideoReadError
            As ``clips``.
        """
        value, arrays = self._one("scan", path, counted=counted)
        return VideoScan(
            path,
            arrays[0],
            arrays[1] if len(arrays) > 1 else None,
            tuple(KeyFrame(*key) for key in value["keys"]),
            Fraction(*value["time_base"]) if value["time_base"] else None,
            tuple(value["notes"]),
            Damage(**value["damage"]) if value["damage"] else None,
        )

    def frames(
        self,
        video: VideoScan,
        wanted: Sequence[int],
        *,
        first: int = 0,
        to_end: bool = False,
        short_side: int | None = None,
        size: tuple[int, int] | None = None,
        seen: dict[str, None] | None = None,
    ) -> Iterator[Picture | None]:
        """Read the frames with these rising numbers, each under the limits.

        Parameters
        ----------
        video : VideoScan
            From ``scan``.
        wanted : sequence of int
        first : int
            Frames before this place in ``wanted`` are gone through, and given as None.
        to_end : bool
            Look whether the video ends after the last one.
        short_side, size
            As for ``tvnet_cli.video.decode.upright_rgb``.
        seen : dict of str to None, optional
            Takes what is not as it should be in the frames so far, as its keys.

        Yields
        ------
        ndarray, (H, W, 3), uint8, RGB, or None

        Raises
        ------
        FrameListError
            If the decoder gives other frames than ``video`` promises.
        VideoReadError
            As ``clips``.
        """
        assert isinstance(video.path, Path)
        needed: dict[str, Any] = {"counted": video.pts is None, "checksum": video.checksum}
        needed |= {"wanted": [int(number) for number in wanted], "first": first}
        needed |= {"to_end": to_end, "short_side": short_side, "size": size}
        for value, arrays in self._messages("frames", video.path, needed):
            if seen is not None:
                seen.update(dict.fromkeys(value["notes"]))
            yield arrays[0] if arrays else None

    def image(self, path: Path) -> Picture:
        """Read as ``tvnet_cli.video.images.read_image``.

        Raises
        ------
        VideoReadError
            As ``clips``, naming the file.
        """
        try:
            picture: Picture = self._one("image", path)[1][0]
        except VideoReadError as error:
            named = str(error).startswith(str(path))
            raise error if named else VideoReadError(f"{path}: {error}", error.code) from error
        return picture

    def levels(self, path: Path) -> NDArray[np.uint16]:
        """Read as ``tvnet_cli.video.images.read_levels``.

        Raises
        ------
        VideoReadError
            As ``clips``.
        """
        levels: NDArray[np.uint16] = self._one("levels", path)[1][0]
        return levels

    def count(self, path: Path) -> int:
        """Count as ``tvnet_cli.video.images.count_pictures``.

        Raises
        ------
        VideoReadError
            As ``clips``.
        """
        return int(self._one("count", path)[0]["count"])

    def image_size(self, path: Path) -> tuple[int, int]:
        """Read as ``tvnet_cli.video.images.image_size``.

        Raises
        ------
        VideoReadError
            As ``clips``.
        """
        width, height = self._one("size", path)[0]["size"]
        return width, height

    def _one(self, task: str, place: Path | str, **needed: Any) -> tuple[dict[str, Any], list[Any]]:
        (answer,) = self._messages(task, place, needed)
        return answer

    def _messages(
        self, task: str, place: Path | str, needed: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """The messages that answer a question; the process is idle again behind the last."""
        question = {"task": task, "place": str(place), "memory": self.limits.memory, **needed}
        given = 0
        while True:
            worker = self._taken()
            fresh = not worker.answers
            try:
                for message in worker.ask(question, self.limits, self.stop):
                    given += 1
                    yield message
            except VideoReadError as error:
                if self._closed:
                    raise RuntimeError("the reader of videos was closed") from None
                if not given and not fresh and not worker.runs() and error.code != "timeout":
                    continue  # perhaps an earlier video left the process in pieces
                raise
            finally:
                self._give_back(worker)
            return

    def _taken(self) -> _Worker:
        """A process that waits for a question."""
        while not self._closed:
            try:
                worker = self._idle.pop()
            except IndexError:
                return self._started()
            if worker.runs():
                return worker
            self._give_back(worker)  # something stopped it while it had nothing to do
        raise RuntimeError("the reader of videos was closed")

    def _started(self) -> _Worker:
        worker = _Worker()
        self._workers.add(worker)
        return worker

    def _give_back(self, worker: _Worker) -> None:
        if worker.runs() and not self._closed:
            self._idle.append(worker)
        else:
            worker.stop()
            self._workers.discard(worker)


class ClipReader(Decoders):
    """Reads the clips that options ask for, inside a ``with`` block.

    Parameters
    ----------
    options : ExtractOptions
        Which clips.
    limits : DecodeLimits
        What one video may take.
    """

    def __init__(self, options: ExtractOptions, limits: DecodeLimits) -> None:
        super().__init__(limits)
        self._clips = options.num_clips, options.clip_length, options.short_side, options.crop_size

    def read(self, place: Path | str) -> VideoClips:
        """Read the clips of a video, as ``Decoders.clips`` does."""
        return self.clips(place, *self._clips)


def decoders(limits: DecodeLimits | None = None) -> Decoders:
    """Return the decoders of this process that have these limits, which whatever reads single videos shares."""
    return _shared(limits or DecodeLimits(), os.getpid())


@functools.cache
def _shared(limits: DecodeLimits, process: int) -> Decoders:
    return Decoders(limits)


def _stop_all(workers: set[_Worker]) -> None:
    for worker in tuple(workers):
        worker.stop()


class _Worker:
    """One process; whatever goes wrong in it ends it."""

    def __init__(self) -> None:
        self.answers = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C is for the program, which decides
        )

    def runs(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, question: dict[str, Any], limits: DecodeLimits, stop: threading.Event | None = None
    ) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """The messages that answer a question. Whoever asks no further, or is interrupted, ends the process."""
        whole, asked = False, False
        try:
            while True:
                with _killed_after(limits.timeout, self._process, stop) as expired:
                    if not asked:
                        self._put(question)
                    asked = True
                    header, arrays = self._message()
                if header is None or expired.is_set():
                    self.stop()
                    if stop is not None and stop.is_set():
                        raise KeyboardInterrupt
                    raise _why_it_ended(self._process.returncode, expired.is_set(), limits)
                if header.get("last"):
                    break
                yield header["value"], arrays
            self.answers += 1
            whole = True
            if error := header.get("error"):
                kind = FrameListError if error["frame_list"] else VideoReadError
                found = kind(error["reason"], error["code"])
                found.__cause__ = _WorkerError(error["traceback"])
                raise found
        finally:
            if not whole:  # the answer to this question would be that to the next one
                self.stop()

    def _put(self, question: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended: reading its answer will say why
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()

    def _message(self) -> tuple[dict[str, Any] | None, list[Any]]:
        """None: the process ended, or what it says makes no sense, as memory that was written over does."""
        assert self._process.stdout is not None
        try:
            header = json.loads(self._process.stdout.readline())
            arrays = []
            for dtype, shape in header["arrays"]:
                if dtype not in DTYPES or math.prod(shape) * np.dtype(dtype).itemsize > LARGEST_ARRAY:
                    return None, []
                arrays.append(np.empty(shape, dtype))
                part = arrays[-1].data.cast("B") if arrays[-1].size else memoryview(b"")
                if len(part) and self._process.stdout.readinto(part) < len(part):  # type: ignore[attr-defined]
                    return None, []
            return header, arrays
        except (ValueError, KeyError, TypeError):
            return None, []

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a question that it never read
                if pipe is not None:
                    pipe.close()


class _WorkerError(Exception):
    """The traceback of an error in another process, as text."""


@contextmanager
def _killed_after(
    seconds: float, process: subprocess.Popen[bytes], stop: threading.Event | None = None
) -> Iterator[threading.Event]:
    """Kills the process if the block takes longer, 0 never, or two ticks after ``stop`` is set; the event tells.

    Seconds in which this program itself stands still, such as after Ctrl-Z, hardly count.
    """
    done, expired = threading.Event(), threading.Event()
    seconds = seconds or math.inf

    def watch() -> None:
        waited, stopped = 0.0, 0
        while waited < seconds and stopped < TICKS_AFTER_STOP:
            if done.wait(min(TICK, seconds - waited)):
                return
            waited += TICK
            stopped += stop is not None and stop.is_set()
        expired.set()
        process.kill()

    watched = seconds < math.inf or stop is not None
    watching = threading.Thread(target=watch, daemon=True)
    if watched:
        watching.start()
    try:
        yield expired
    finally:
        done.set()
        if watched:
            watching.join()


def _why_it_ended(returncode: int, expired: bool, limits: DecodeLimits) -> VideoReadError:
    if expired:
        return VideoReadError(f"decoding took longer than {limits.timeout:g} s: --timeout allows more", "timeout")
    if returncode == OUT_OF_MEMORY:
        reason = f"decoding needs more than {limits.memory} MiB: --decoder-memory allows more"
        return VideoReadError(reason, "out_of_memory")
    if returncode == -signal.SIGKILL:
        reason = "the decoder was killed (SIGKILL), as systems do when memory runs out"
    elif returncode < 0:
        reason = f"the decoder crashed ({signal.Signals(-returncode).name})"
    else:
        reason = f"the decoder ended (exit code {returncode})"
    return VideoReadError(reason, "decoder_crashed")
