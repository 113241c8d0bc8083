"""What a run would do, and about how long it would take and how large its file would be; nothing is written."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvnet_cli.device import num_workers
from tvnet_cli.errors import VideoReadError
from tvnet_cli.features.extractor import NETWORK_BATCH, Extractor, VideoRow
from tvnet_cli.features.sources import HASH_BYTES, check_sources
from tvnet_cli.features.store import already_there
from tvnet_cli.video.clips import clip_frames
from tvnet_cli.video.decode import VideoClips
from tvnet_cli.video.files import RemoteVideo, Video

SAMPLE = 5  # videos that are read
PATIENCE = 30.0  # seconds of reading, after which no other is begun
TIMED_SECONDS = 2.0  # of computing at least, and at most so many turns
TIMED_TURNS = 5
ID_BYTES = 32  # of a name in an HDF5 file, beside its letters
CHECKSUM_BYTES = 4
SOURCE_BYTES = 8 + 8 + HASH_BYTES  # size, modification time and hash of the video

AnyVideo = Video | RemoteVideo
Progress = Callable[[str, int, int], None]  # stage, turns done, turns in all


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured.

    Attributes
    ----------
    compute_seconds : float
        Of one video, on the whole device.
    alone_seconds : float
        Of one video from its first pass to its last, if no other is at work.
    clips : int
        That were computed to measure it, of random frames.
    read_seconds : float
        Of one video, on one core.
    read : int
        Videos that were read to measure it.
    unreadable : dict of video id to reason
        Those among them that cannot be read.
    row_bytes : int
        Of the values of one video.
    """

    compute_seconds: float
    alone_seconds: float
    clips: int
    read_seconds: float
    read: int
    unreadable: dict[str, str] = field(default_factory=dict)
    row_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    todo, done, failed_before, changed : int
        Videos; those that changed since their rows were made are among the first with ``recompute_changed``.
    output : Path
    device : str
    cores : int
    seconds : float
        Of the whole run, about.
    new_bytes, old_bytes : int
        What the run would add to the file, and what it holds.
    free_bytes : int
        On its disk.
    costs : Costs or None
        What that was computed from; None where there is nothing to do.
    """

    todo: int
    done: int
    failed_before: int
    changed: int = 0
    output: Path
    device: str
    cores: int
    seconds: float = 0.0
    new_bytes: int = 0
    old_bytes: int
    free_bytes: int
    costs: Costs | None = None

    @property
    def needed_bytes(self) -> int:
        """Free space that the run needs at most: finished videos wait beside the file until a new one is whole."""
        return 2 * self.new_bytes + self.old_bytes if self.new_bytes else 0

    def summary(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        costs = {} if self.costs is None else {"measured": vars(self.costs)}
        plain = {name: value for name, value in vars(self).items() if name not in ("costs", "output")}
        rounded = {"seconds": round(self.seconds, 1), "needed_bytes": self.needed_bytes}
        return {"output": str(self.output), **plain, **rounded, **costs}

    def __str__(self) -> str:
        before = f", {self.failed_before} failed before (--retry-failed tries them again)" if self.failed_before else ""
        changed = f", {self.changed} changed since (--recompute-changed computes them again)" if self.changed else ""
        lines = [f"{self.todo} videos to do, {self.done} done already{before}{changed}; nothing was written"]
        costs = self.costs
        if costs is None:
            return lines[0]
        lines += [
            f"time  about {_duration(self.seconds)} on {self.device}: a video takes {costs.compute_seconds:.2g} s to "
            f"compute, and {costs.read_seconds:.2g} s of one of {self.cores} cores to read",
            f"size  {_size(self.new_bytes)} more in {self.output}: {costs.row_bytes} bytes a video, beside its name",
            f"disk  up to {_size(self.needed_bytes)} needed while the file is written, {_size(self.free_bytes)} free",
            f"from  {costs.clips} clips of random frames that were computed, and {costs.read} videos of all sizes that "
            "were read; what else runs here counts, writing to the disk does not",
        ]
        if self.needed_bytes > self.free_bytes:
            lines.append("note  the disk is too small for all of it")
        lines += [f"note  cannot be read: {name}: {reason}" for name, reason in costs.unreadable.items()]
        return "\n".join(lines)


def plan_run(
    videos: Sequence[AnyVideo],
    output: Path,
    extractor: Extractor,
    *,
    devices: int = 1,
    jobs: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    recompute_changed: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Plan:
    """Find what a run would do, measure a little, and say what the whole would take.

    Parameters
    ----------
    videos : sequence of Video or RemoteVideo
        From ``tvnet_cli.video.files.find_videos`` or ``find_sources``.
    output : Path
        The feature file; of what it and the folder of its parts hold, nothing is changed.
    extractor : Extractor
        That would do the work, or its share.
    devices : int
        Those that would work as it does.
    jobs : int, optional
        Videos at work at once.
    overwrite, retry_failed, recompute_changed : bool
        As in ``tvnet_cli.features.extract.extract_features``.
    progress : callable
        Takes the stage, the turns done and the turns in all.

    Raises
    ------
    FeatureFileError
        If ``output`` is no feature file or was made by another recipe.
    """
    sources, failures = already_there(output, extractor.recipe, overwrite)
    check = check_sources(videos, sources, partial(progress, "checking videos with a row"))
    done = sources.keys() - check.changed.keys()
    known = done if retry_failed else done | failures.keys()
    known |= set() if recompute_changed else check.changed.keys()
    todo = [video for video in videos if video.video_id not in known]
    there = next(place for place in (output.absolute(), *output.absolute().parents) if place.exists())
    plan = Plan(
        todo=len(todo),
        done=sum(video.video_id in done for video in videos),
        changed=0 if recompute_changed else len(check.changed),
        failed_before=0 if retry_failed else sum(video.video_id in failures for video in videos),
        output=output,
        device=f"{extractor.device}" + (f" and {devices - 1} more" if devices > 1 else ""),
        cores=torch.get_num_threads(),  # knows of affinity and OMP_NUM_THREADS
        old_bytes=output.stat().st_size if output.exists() and not overwrite else 0,
        free_bytes=shutil.disk_usage(there).free,
    )
    if not todo:
        return plan
    with extractor:
        costs = measure(todo, extractor, progress)
    names = sum(ID_BYTES + len(video.video_id.encode()) for video in todo)
    shared = extractor.device.type == "cpu"
    jobs = jobs or max(2 * devices, extractor.jobs)
    seconds = run_seconds(len(todo), costs, jobs, plan.cores, devices=devices, shared=shared)
    return replace(plan, seconds=seconds, new_bytes=len(todo) * costs.row_bytes + names, costs=costs)


def run_seconds(videos: int, costs: Costs, jobs: int, cores: int, *, devices: int = 1, shared: bool) -> float:
    """What a run takes: as long as what is busiest, or, where few videos are at work, as long as each of them waits.

    Parameters
    ----------
    videos : int
        To do.
    costs : Costs
    jobs : int
        Videos at work at once.
    cores, devices : int
    shared : bool
        The cores that read also compute.
    """
    reading = costs.read_seconds / cores
    computing = costs.compute_seconds / devices
    busy = computing + reading if shared else max(computing, reading)
    alone = costs.read_seconds + costs.alone_seconds
    return max(videos * busy, math.ceil(videos / jobs) * alone)


def measure(todo: Sequence[AnyVideo], extractor: Extractor, progress: Progress) -> Costs:
    """What one video takes: by computing random frames, and by reading a few videos."""
    device, options = extractor.device, extractor.options
    workers, batch = num_workers(device), NETWORK_BATCH[device.type]
    clips = _random_clips(extractor, workers * batch)
    row = extractor.compute(clips)  # compiles, and fills caches
    turns, started = 0, time.perf_counter()
    while not turns or (turns < TIMED_TURNS and time.perf_counter() - started < TIMED_SECONDS):
        progress("computing random frames", turns, TIMED_TURNS)
        extractor.compute(clips)
        turns += 1
    pass_seconds = (time.perf_counter() - started) / turns
    progress("computing random frames", TIMED_TURNS, TIMED_TURNS)

    sample = _sample(todo)
    times: list[float] = []
    unreadable: dict[str, str] = {}
    for number, video in enumerate(sample):
        if sum(times) > PATIENCE:
            break
        progress("reading videos", number, len(sample))
        begun = time.perf_counter()
        try:
            extractor.read(video.place)
        except VideoReadError as error:
            unreadable[video.video_id] = str(error)
        times.append(time.perf_counter() - begun)
    progress("reading videos", len(sample), len(sample))
    passes = math.ceil(options.num_clips / batch)
    return Costs(
        compute_seconds=pass_seconds * passes / workers,
        alone_seconds=pass_seconds * math.ceil(passes / workers),
        clips=(1 + turns) * workers * batch,
        read_seconds=sum(times) / len(times),
        read=len(times),
        unreadable=unreadable,
        row_bytes=_row_bytes(row),
    )


def _bytes(video: AnyVideo) -> int:
    """Of its file; 0 where there is none, or where to ask takes long."""
    try:
        return video.path.stat().st_size if isinstance(video, Video) else 0
    except OSError:
        return 0


def _sample(videos: Sequence[AnyVideo]) -> list[AnyVideo]:
    """A few videos, evenly over their sizes, those in the middle first."""
    by_size = sorted(videos, key=_bytes)
    numbers = np.unique(clip_frames(len(by_size), SAMPLE, 1)).tolist()
    return [by_size[number] for number in sorted(numbers, key=lambda number: abs(2 * number - len(by_size) + 1))]


def _random_clips(extractor: Extractor, count: int) -> VideoClips:
    """So many clips, with the frame list of a whole video."""
    options, rng = extractor.options, np.random.default_rng(0)
    shape = options.num_clips, options.clip_length
    return VideoClips(
        frames=rng.integers(0, 256, (count, options.clip_length, options.crop_size, options.crop_size, 3), np.uint8),
        frame_index=np.zeros(shape, np.int64),
        pts_seconds=np.zeros(shape),
        num_frames=options.num_clips * options.clip_length,
        padded=False,
    )


def _row_bytes(row: VideoRow) -> int:
    return CHECKSUM_BYTES + SOURCE_BYTES + sum(np.asarray(value).nbytes for value in row.values.values())


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(number: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
