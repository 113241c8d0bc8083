"""The main job, one straight line: videos -> rows -> feature file."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from tvnet_cli.device import thread_pool
from tvnet_cli.errors import FeatureFileError, VideoReadError
from tvnet_cli.features.cluster import ClusterExtractor, ray_cluster
from tvnet_cli.features.devices import Extractors
from tvnet_cli.features.extractor import Models, RowSource
from tvnet_cli.features.format import RowProgress, named
from tvnet_cli.features.sources import Checking, check_sources, identify_source, source_values
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video.files import RemoteVideo, Video

VIDEOS_AHEAD = 4096  # that are handed out while the result of the first of them, which may hang, is waited for
SECONDS_UNTIL_STOP = 0.2


@dataclass(frozen=True)
class VideoResult:
    """What became of one video.

    Attributes
    ----------
    video_id : str
    status : {"done", "skipped", "failed"}
        ``skipped``: its row was there already.
    reason, code : str
        Why it failed: for people, and one of ``tvnet_cli.errors.REASONS``.
    earlier : bool or None
        True if it failed in an earlier run and was not tried again.
    notes : tuple of str
        What was not as it should be in a video that is done.
    num_frames, padded
        As in the feature file; None unless done.
    seconds : float
        From opening its file to keeping its row; other videos are at work meanwhile.
    error : Exception or None
        Behind the reason.
    """

    video_id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    code: str = ""
    earlier: bool | None = None
    notes: tuple[str, ...] = ()
    num_frames: int | None = None
    padded: bool | None = None
    seconds: float = 0.0
    error: Exception | None = None

    def summary(self) -> dict[str, object]:
        """The result as plain values, ready for JSON."""
        known = {key: value for key, value in vars(self).items() if key != "error" and value not in ("", (), None)}
        return {**known, "seconds": round(self.seconds, 3)}


def extract_features(
    videos: Sequence[Video | RemoteVideo],
    output: Path,
    models: Models,
    *,
    device: torch.device | str | Sequence[torch.device] = "cpu",
    batch_size: int | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    recompute_changed: bool = False,
    wait: bool = False,
    options: ExtractOptions | None = None,
    limits: DecodeLimits | None = None,
    stop: threading.Event | None = None,
    note: Callable[[str], None] = lambda line: None,
    checking: Checking = lambda done, total: None,
    packing: RowProgress = lambda done, total: None,
) -> Generator[VideoResult, None, None]:
    """Extract the features of videos into a feature file.

    Parameters
    ----------
    videos : sequence of Video or RemoteVideo
        From ``tvnet_cli.video.files.find_videos`` or ``find_sources``.
    output : Path
        The feature file. Videos that it holds already are skipped, unless they changed since: by their sizes and by
        the hashes of their first, middle and last bytes.
    models : dict of stream to StreamModel
        From ``tvnet_cli.network.weights.load_models``; their networks stay as they are.
    device : torch.device or str, or a sequence of torch.device
        See ``tvnet_cli.device.choose_device`` and ``choose_devices``; several share the videos.
    batch_size : int, optional
        Clips whose flow is computed at once, at most a pass of the network. Decides memory and speed, not results.
    jobs : int, optional
        Videos at work at once, which are in memory. Decides memory and speed, not results.
    ray : str, optional
        Address of a Ray cluster, whose machines do the work on ``device``, which is then ``auto``, ``cpu`` or ``cuda``;
        see ``tvnet_cli.features.cluster.ray_cluster``.
    overwrite : bool
        Drop what ``output`` holds.
    retry_failed : bool
        Try videos again that failed in an earlier run. Otherwise their reasons are given once more.
    recompute_changed : bool
        Compute the rows of videos again that changed since. Otherwise these videos fail, and their rows stay.
    wait : bool
        For another run that writes ``output``, which otherwise is an error.
    options : ExtractOptions
        Its streams are those of ``models``.
    limits : DecodeLimits
        What reading one video may take.
    stop : Event, optional
        When it is set, the run ends soon: rows in hand are kept, and what is not finished is dropped.
    note : callable
        Is told what people should know about the run as a whole.
    checking : callable
        Is told how many of the videos with a row were compared with what their rows were made of.
    packing : callable
        Is told how many rows of all are in the file that is written at the end.

    Yields
    ------
    VideoResult
        One for each video, in order. A video that cannot be read fails alone.

    Raises
    ------
    FeatureFileError
        If ``output`` is no feature file, was made by another recipe, is damaged or is being written by another run; or
        if a row is damaged twice on its way into the file.
    FileAccessError
        If ``output`` cannot be read now, such as because another program has it open for writing.
    DiskFullError
        Finished videos are kept.
    """
    stop = stop or threading.Event()
    options = options or ExtractOptions(streams=tuple(models))

    def work(video: Video | RemoteVideo) -> VideoResult:
        started = time.perf_counter()
        try:
            remote = source_values(identify_source(video)) if isinstance(video, RemoteVideo) else {}
            row = extractor.row(video.place)
        except VideoReadError as error:
            if stop.is_set():  # then it may be no fault of the video
                raise
            store.add_failure(video.video_id, str(error), error.code)
            return VideoResult(video.video_id, "failed", reason=str(error), code=error.code, error=error)
        store.add(video.video_id, {**row.values, **remote})
        return VideoResult(
            video.video_id,
            "done",
            notes=row.notes,
            num_frames=row.num_frames,
            padded=row.padded,
            seconds=time.perf_counter() - started,
        )

    # A thread for each video at work, which mostly waits. At the end, or when something breaks, what computes goes
    # first, so that no thread waits for it any more; then the threads, each with the row in hand; the file comes last.
    with (
        _row_source(models, options, device, ray, batch_size=batch_size, jobs=jobs, limits=limits) as extractor,
        FeatureStore(output, extractor.recipe, overwrite, wait=wait, stop=stop, note=note, progress=packing) as store,
        thread_pool(extractor.jobs) as at_work,
        extractor,
    ):
        check = check_sources(videos, store.sources, checking, stop)
        for line in check.notes():
            note(line)
        if recompute_changed:
            for video_id in check.changed:
                store.outdate(video_id)
        before = {} if retry_failed else dict(store.failures)
        todo = []
        for video in videos:
            if stop.is_set() and video.video_id in store:
                return  # whether it changed may not be known
            if video.video_id in store and video.video_id in check.changed:
                reason = check.changed[video.video_id]
                yield VideoResult(video.video_id, "failed", reason=reason, code="source_changed")
            elif video.video_id in store:
                yield VideoResult(video.video_id, "skipped")
            elif failure := before.get(video.video_id):
                yield VideoResult(video.video_id, "failed", failure.reason, failure.code, earlier=True)
            else:
                todo.append(video)
        again: set[str] = set()
        while True:
            yield from _in_order(at_work, work, todo, stop)
            if stop.is_set() or store.pack():
                break
            todo = [video for video in videos if not store.knows(video.video_id)]
            if twice := [video.video_id for video in todo if video.video_id in again]:
                raise FeatureFileError(
                    f"the rows of {named(twice)} were damaged twice on their way into {output}: the disk, the network "
                    "or the memory is at fault; the other finished videos are kept"
                )
            again |= {video.video_id for video in todo}
        if not videos:
            store.write_empty()


def _in_order(
    pool: Executor,
    work: Callable[[Video | RemoteVideo], VideoResult],
    videos: Iterable[Video | RemoteVideo],
    stop: threading.Event,
) -> Iterator[VideoResult]:
    """The results of all videos, or of those before the run is to end."""
    left, ahead = iter(videos), deque[Future[VideoResult]]()
    while True:
        ahead.extend(pool.submit(work, video) for video in islice(left, VIDEOS_AHEAD - len(ahead)))
        if not ahead:
            return
        while not ahead[0].done():
            if stop.is_set():
                return
            wait_for([ahead[0]], timeout=SECONDS_UNTIL_STOP)
        yield ahead.popleft().result()


@contextmanager
def _row_source(
    models: Models,
    options: ExtractOptions,
    device: torch.device | str | Sequence[torch.device],
    ray: str | None,
    *,
    batch_size: int | None,
    jobs: int | None,
    limits: DecodeLimits | None,
) -> Iterator[RowSource]:
    """The devices of this machine, or a Ray cluster."""
    if ray is None:
        devices = [torch.device(device)] if isinstance(device, (str, torch.device)) else device
        yield Extractors(models, options, devices, batch_size=batch_size, jobs=jobs, limits=limits)
    else:
        with ray_cluster(ray) as joined:
            yield ClusterExtractor(
                joined, models, options, str(device), batch_size=batch_size, jobs=jobs, limits=limits
            )
