"""The main job, one straight line: videos -> rows -> feature file."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tvnet_cli.device import thread_pool
from tvnet_cli.errors import VideoReadError
from tvnet_cli.features.devices import Extractors
from tvnet_cli.features.extractor import Models
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video.files import RemoteVideo, Video


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
    overwrite: bool = False,
    options: ExtractOptions | None = None,
    limits: DecodeLimits | None = None,
) -> Generator[VideoResult, None, None]:
    """Extract the features of videos into a feature file.

    Parameters
    ----------
    videos : sequence of Video or RemoteVideo
        From ``tvnet_cli.video.files.find_videos`` or ``find_sources``.
    output : Path
        The feature file. Videos that it holds already are skipped.
    models : dict of stream to StreamModel
        From ``tvnet_cli.network.weights.load_models``; their networks stay as they are.
    device : torch.device or str, or a sequence of torch.device
        See ``tvnet_cli.device.choose_device`` and ``choose_devices``; several share the videos.
    batch_size : int, optional
        Clips whose flow is computed at once, at most a pass of the network. Decides memory and speed, not results.
    jobs : int, optional
        Videos at work at once, which are in memory. Decides memory and speed, not results.
    overwrite : bool
        Drop what ``output`` holds.
    options : ExtractOptions
        Its streams are those of ``models``.
    limits : DecodeLimits
        What reading one video may take.

    Yields
    ------
    VideoResult
        One for each video, in order. A video that cannot be read fails alone.

    Raises
    ------
    FeatureFileError
        If ``output`` is no feature file or was made by another recipe.
    """
    options = options or ExtractOptions(streams=tuple(models))
    devices = [torch.device(device)] if isinstance(device, (str, torch.device)) else device
    extractor = Extractors(models, options, devices, batch_size=batch_size, jobs=jobs, limits=limits)

    def work(video: Video | RemoteVideo) -> VideoResult:
        started = time.perf_counter()
        try:
            row = extractor.row(video.place)
        except VideoReadError as error:
            return VideoResult(video.video_id, "failed", reason=str(error), code=error.code, error=error)
        store.add(video.video_id, row.values)
        return VideoResult(
            video.video_id,
            "done",
            notes=row.notes,
            num_frames=row.num_frames,
            padded=row.padded,
            seconds=time.perf_counter() - started,
        )

    # A thread for each video at work, which mostly waits. At the end, or when something breaks, videos go first and
    # the file is packed last.
    with (
        FeatureStore(output, extractor.recipe, overwrite) as store,
        extractor,
        thread_pool(extractor.jobs) as at_work,
    ):
        todo = [video for video in videos if video.video_id not in store]
        yield from (VideoResult(video.video_id, "skipped") for video in videos if video.video_id in store)
        yield from at_work.map(work, todo)
