"""Clips read by processes of their own: a decoder that crashes, hangs or swells costs one video, and not the run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tvnet_cli.errors import VideoReadError
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video.decode import VideoClips
from tvnet_cli.video.worker import ARRAYS, OUT_OF_MEMORY

# What this process imports, the other one does too, and nothing that happens to lie in the working directory.
START = "import sys; sys.path[:] = {path!a}; from tvnet_cli.video.worker import main; main()"
# Threads of libraries would only take address space.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
TICK = 1.0  # seconds


class ClipReader:
    """Reads clips as ``tvnet_cli.video.decode.read_clips`` does, in other processes, inside a ``with`` block.

    Threads may read at once: there are as many processes as there are videos being read.

    Parameters
    ----------
    options : ExtractOptions
        Which clips.
    limits : DecodeLimits
        What one video may take.
    """

    def __init__(self, options: ExtractOptions, limits: DecodeLimits) -> None:
        self.limits = limits
        self._clips = [options.num_clips, options.clip_length, options.short_side, options.crop_size]
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._closed = False

    def __enter__(self) -> ClipReader:
        self._idle.append(self._started())  # it gets ready meanwhile
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        for worker in tuple(self._workers):
            worker.stop()

    def read(self, place: Path | str) -> VideoClips:
        """The clips of a video, a file or text that is an address.

        Raises
        ------
        VideoReadError
            Also if it takes more than the limits allow, or if the decoder crashes.
        RuntimeError
            If the reader was closed meanwhile.
        """
        while True:
            worker = self._taken()
            fresh = not worker.answers
            try:
                clips = worker.ask(place, self._clips, self.limits)
            except VideoReadError as error:
                if self._closed:
                    raise RuntimeError("the reader of videos was closed") from None
                if not fresh and not worker.runs() and error.code != "timeout":
                    continue  # perhaps an earlier film left the process in pieces
                raise
            finally:
                self._give_back(worker)
            return clips

    def _taken(self) -> _Worker:
        """A process that waits for a question."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return self._started()
            if worker.runs():
                return worker
            self._give_back(worker)  # something stopped it while it had nothing to do

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

    def ask(self, place: Path | str, clips: list[int], limits: DecodeLimits) -> VideoClips:
        """What ``read_clips`` gives for these clips."""
        question = {"place": str(place), "clips": clips, "memory": limits.memory}
        try:
            with _killed_after(limits.timeout, self._process) as expired:
                found = self._answer(question)
        except BaseException:  # Ctrl-C, say, after which the answer to this question would be that to the next one
            self.stop()
            raise
        self.answers += 1
        if found is None or expired.is_set():
            self.stop()
        if found is None:
            raise _why_it_ended(self._process.returncode, expired.is_set(), limits)
        if isinstance(found, VideoReadError):
            raise found
        return found

    def _answer(self, question: dict[str, Any]) -> VideoClips | VideoReadError | None:
        """None: the process ended, or what it says makes no sense, as memory that was written over does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        num_clips, clip_length, _, side = question["clips"]
        shapes = [(num_clips, clip_length, side, side, 3), (num_clips, clip_length), (num_clips, clip_length)]
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            if "reason" in answer:
                error = VideoReadError(answer["reason"], answer["code"])
                error.__cause__ = _WorkerError(answer["traceback"])
                return error
            arrays: dict[str, Any] = {}
            for (name, dtype), shape in zip(ARRAYS.items(), shapes, strict=True):
                arrays[name] = np.empty(shape, dtype)
                part = memoryview(arrays[name]).cast("B")
                if self._process.stdout.readinto(part) < len(part):  # type: ignore[attr-defined]
                    return None
            return VideoClips(**arrays, **{**answer, "notes": tuple(answer["notes"])})
        except (BrokenPipeError, ValueError, KeyError, TypeError):
            return None

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
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Kills the process if the block takes longer, 0 never; the event tells.

    Seconds in which this program itself stands still, such as after Ctrl-Z, hardly count.
    """
    done, expired = threading.Event(), threading.Event()

    def watch() -> None:
        for tick in range(math.ceil(seconds / TICK)):
            if done.wait(min(TICK, seconds - tick * TICK)):
                return
        expired.set()
        process.kill()

    watching = threading.Thread(target=watch, daemon=True)
    if seconds:
        watching.start()
    try:
        yield expired
    finally:
        done.set()
        if seconds:
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
