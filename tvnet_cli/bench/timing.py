"""How calls are timed: in turns, so that all of them meet the same noise, and what a measurement becomes.

Of the processor time of one thread and of the wall time of several the least of all turns counts: what else runs on the
machine can only add to it.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from threadpoolctl import ThreadpoolController

Call = Callable[[], object]
Progress = Callable[[str, int, int], None]  # stage, turns done, turns in all
Reached = Literal["aim", "must", "no"]
Unit = Literal["x", "s", "%", ""]

# Seconds a call, after which there are no more turns with so many threads: beside other busy programs, threads that
# wait for each other can take a hundred times as long as alone.
PATIENCE = 8.0
INSTALL_PEERS = "opencv-contrib-python-headless is not installed: pip install 'tvnet[bench]'"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured. The defaults are those of ``tvnet bench``; tests take less.

    Attributes
    ----------
    repetitions : int
        Turns of calls that take less than a second or two; longer ones have half as many.
    slot_seconds : float
        A call that is shorter is repeated so long in each turn, and its mean counts.
    shrink : int
        Sides of pictures and numbers of pairs and films are divided by it.
    """

    repetitions: int = 5
    slot_seconds: float = 0.15
    shrink: int = 1

    @property
    def few(self) -> int:
        """Turns of long calls."""
        return (self.repetitions + 1) // 2

    def size(self, number: int, least: int = 1) -> int:
        """A side or a number of things."""
        return max(least, number // self.shrink)


class Timing(NamedTuple):
    """What one call took at least."""

    cpu: float  # seconds of processor time, all threads together
    wall: float  # seconds


Timings = dict[int, Timing]  # by number of threads


@dataclass(frozen=True)
class Claim:
    """What the project says about its speed.

    Attributes
    ----------
    subject, text : str
    aim, must : float
        What the project wants to reach, and what it has to.
    unit : {"x", "s", "%", ""}
        ``x``: a ratio of two measurements; none: a number of things.
    smaller_is_better : bool
    """

    subject: str
    text: str
    aim: float
    must: float
    unit: Unit = "x"
    smaller_is_better: bool = False


@dataclass(frozen=True)
class Row:
    """A claim and what was measured.

    Attributes
    ----------
    claim : Claim
    value : float or None
        None if it was not measured: then ``why_not`` says why.
    wall_value : float or None
        The same by wall time on all cores, where ``value`` is by processor time on one.
    ours_seconds, peer_seconds : float or None
        The two times behind ``value``.
    figures : dict of str to float
        What else was computed, such as differences and errors in pixels.
    worse : str
        Why the claim does not hold, whatever its number.
    remark, why_not : str
    """

    claim: Claim
    value: float | None = None
    wall_value: float | None = None
    ours_seconds: float | None = None
    peer_seconds: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    worse: str = ""
    remark: str = ""
    why_not: str = ""

    @property
    def reached(self) -> Reached | None:
        """Whether the value reaches the aim, only what it must, or neither; None if it was not measured."""
        if self.value is None:
            return None
        marks: tuple[tuple[Reached, float], ...] = (("aim", self.claim.aim), ("must", self.claim.must))
        sign = -1 if self.claim.smaller_is_better else 1
        best = (name for name, mark in marks if sign * self.value >= sign * mark)
        return "no" if self.worse else next(best, "no")


def faster(claim: Claim, ours: Timings, peer: Timings, *, per: int = 1, **more: Any) -> Row:
    """How many times faster than its peer something is: by processor time on one thread, and by wall time on all cores.

    Both did ``per`` things, and the seconds of the row are those of one.
    """
    value, wall = _ratios(peer, ours)
    more |= {"ours_seconds": ours[1].cpu / per, "peer_seconds": peer[1].cpu / per}
    return Row(claim, value=value, wall_value=wall, **more)


def slower(claim: Claim, ours: Timings, base: Timings, *, per: int = 1, work: float = 1) -> Row:
    """How many times as long as a base something takes that does ``work`` times as much, else as ``faster``."""
    value, wall = _ratios(ours, base)
    seconds, base_seconds = ours[1].cpu / per, base[1].cpu * work / per
    return Row(claim, value / work, wall / work, ours_seconds=seconds, peer_seconds=base_seconds)


def _ratios(above: Timings, below: Timings) -> tuple[float, float]:
    cores = max(above)
    return above[1].cpu / below[1].cpu, above[cores].wall / below[cores].wall


def not_measured(claim: Claim, why: str) -> Row:
    """A row that says why it is empty."""
    return Row(claim, why_not=why)


class Share(NamedTuple):
    """How near something comes to a floor of the machine."""

    floor: str  # its name
    what: str
    one_thread: float  # in the unit of the floor
    all_threads: float


def share(floor: str, what: str, amount: float, took: Timings) -> Share:
    """So many bytes or operations in the times they took, in 1e9 a second."""
    return Share(floor, what, amount / took[1].cpu / 1e9, amount / took[max(took)].wall / 1e9)


@dataclass
class Results:
    """What a subject measured."""

    rows: list[Row] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def opencv() -> Any:
    """OpenCV with its contributed modules, or None if it is not there."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return None
    return cv2 if hasattr(cv2, "optflow") else None


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """So many threads for all libraries, inside a ``with`` block."""
    before, cv2 = torch.get_num_threads(), opencv()
    torch.set_num_threads(count)
    if cv2:
        cv2_before = cv2.getNumThreads()
        cv2.setNumThreads(count)
    try:
        with ThreadpoolController().limit(limits=count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
        if cv2:
            cv2.setNumThreads(cv2_before)


def interleave(
    calls: Mapping[str, Call],
    repetitions: int,
    slot_seconds: float,
    *,
    threads: Sequence[int] | None = None,
    progress: Progress,
    stage: str,
) -> dict[str, Timings]:
    """Time calls in turns.

    Parameters
    ----------
    calls : dict of name to callable
        Each is called once before, which compiles and fills caches.
    repetitions : int
        Turns of all calls.
    slot_seconds : float
        Shorter calls are repeated so long in each turn.
    threads : sequence of int
        Each turn is taken with each of these numbers of threads; if not given, with one and with all cores.
    progress : callable
        Takes the stage, the turns done and the turns in all.
    stage : str
        For people.

    Returns
    -------
    dict of name to dict of threads to Timing
        The least of all turns, or of as many as ``PATIENCE`` allows.
    """
    threads = sorted({1, num_cores()}) if threads is None else threads
    spent = dict.fromkeys(threads, 0.0)
    best = {name: dict.fromkeys(threads, Timing(float("inf"), float("inf"))) for name in calls}
    counts = {}
    for name, call in calls.items():
        seconds = _clocked(call, 1).wall
        if seconds < slot_seconds:  # the first call may be slow for reasons of its own
            seconds = _clocked(call, 1).wall
        counts[name] = max(1, round(slot_seconds / seconds))
    progress(stage, 0, repetitions)
    for done in range(1, repetitions + 1):
        for count in threads:
            if spent[count] > PATIENCE * len(calls):
                continue
            started = time.perf_counter()
            with num_threads(count):
                for name, call in calls.items():
                    best[name][count] = Timing(*map(min, best[name][count], _clocked(call, counts[name])))
            spent[count] += time.perf_counter() - started
        progress(stage, done, repetitions)
    return best


def _clocked(call: Call, times: int) -> Timing:
    """What a call takes in the mean of so many."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    return Timing((time.process_time() - cpu) / times, (time.perf_counter() - wall) / times)
