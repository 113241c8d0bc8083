"""``tvnet features`` on many videos: whether the last costs what the first cost, and what piles up meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tvnet_cli.bench.features import draw_film
from tvnet_cli.bench.timing import Claim, Effort, Progress, Results, Row, not_measured
from tvnet_cli.features.extract import extract_features
from tvnet_cli.features.extractor import Models
from tvnet_cli.network.weights import untrained_model
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.files import find_videos

NUM_VIDEOS = 200
FRAMES = 12  # of each video: decoded, cropped and computed like longer ones
CLIPS = 1  # in place of 25, which cost 25 times as much and pile up nothing more
WARM_UP = 0.1  # of the videos, which do not count
PROCESS = Path("/proc/self")

LAST_VIDEO = Claim("scale", "tvnet features, the last fifth of many videos against the first", 1.05, 1.2, "x", True)
MEMORY = Claim("scale", "memory after many videos, more than after a tenth of them", 2, 5, "%", True)
HANDLES = Claim("scale", "files, threads and processes, more than after a tenth of them", 0, 0, "", True)


@dataclass(frozen=True)
class Moment:
    """How things stand when a video is done.

    Attributes
    ----------
    wall, cpu : float, seconds
        On a clock, and of this process.
    memory : int, bytes
        Of this process and those that decode for it; nan where the system does not tell.
    handles : int
        Open files, threads and processes.
    """

    wall: float
    cpu: float
    memory: float
    handles: float


def measure_scale(effort: Effort, progress: Progress, num_videos: int = NUM_VIDEOS) -> Results:
    """The claims about many videos: one drawn film under many names, all of the way for each, with one clip."""
    count = effort.size(num_videos, 10)
    with TemporaryDirectory(prefix="tvnet-bench-") as folder:
        films = Path(folder) / "films"
        films.mkdir()
        draw_film(Path(folder) / "film.mp4", FRAMES, seed=0)
        for number in range(count):
            shutil.copyfile(Path(folder) / "film.mp4", films / f"{number:06}.mp4")
        moments, packing = run(films, Path(folder) / "features.h5", progress)
    return Results(rows(moments, packing))


def run(films: Path, output: Path, progress: Progress) -> tuple[list[Moment], float]:
    """Extract features of all films; the moments at which each was done, and how long the end took, in seconds."""
    videos = find_videos([films])
    models: Models = {"flow": untrained_model("flow")}
    moments = []
    for result in extract_features(videos, output, models, options=ExtractOptions(num_clips=CLIPS)):
        if result.status != "done":
            raise RuntimeError(f"{result.video_id}: {result.reason}")
        moments.append(moment())
        progress("many videos", len(moments), len(videos))
    return moments, time.perf_counter() - moments[-1].wall


def rows(moments: Sequence[Moment], packing: float) -> list[Row]:
    """What the moments say about the claims."""
    steady = moments[int(WARM_UP * len(moments)) :]
    fifth = max(1, (len(steady) - 1) // 5)
    first, last = (steady[0], steady[fifth]), (steady[-1 - fifth], steady[-1])
    cpu_first, cpu_last = (part[1].cpu - part[0].cpu for part in (first, last))
    wall_first, wall_last = (part[1].wall - part[0].wall for part in (first, last))
    figures = {"videos": float(len(moments)), "packing_seconds": packing}
    found = [
        Row(
            LAST_VIDEO,
            value=cpu_last / cpu_first,
            wall_value=wall_last / wall_first,
            ours_seconds=wall_last / fifth,
            peer_seconds=wall_first / fifth,
            figures=figures,
            remark=f"{CLIPS} clip a video",
        )
    ]
    if np.isnan(steady[0].memory):
        return [*found, *(not_measured(claim, "this system has no /proc") for claim in (MEMORY, HANDLES))]
    memory = [float(np.median([one.memory for one in part])) for part in (steady[:fifth], steady[-fifth:])]
    handles = [float(np.median([one.handles for one in part])) for part in (steady[:fifth], steady[-fifth:])]
    return [
        *found,
        Row(MEMORY, value=100 * (memory[1] / memory[0] - 1), figures={"megabytes": memory[1] / 1e6}),
        Row(HANDLES, value=handles[1] - handles[0], figures={"handles": handles[1]}),
    ]


def moment() -> Moment:
    """How things stand now."""
    wall, cpu = time.perf_counter(), time.process_time()
    if not PROCESS.exists():
        return Moment(wall, cpu, np.nan, np.nan)
    children = (PROCESS / "task" / str(os.getpid()) / "children").read_text().split()
    memory = sum(_memory(Path("/proc", child)) for child in ("self", *children))
    handles = len(list((PROCESS / "fd").iterdir())) + threading.active_count() + len(children)
    return Moment(wall, cpu, memory, handles)


def _memory(process: Path) -> int:
    """Bytes of a process that lie in memory; none if it has ended meanwhile."""
    try:
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
