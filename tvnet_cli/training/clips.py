"""Batches of snippets from labelled videos, each a function of its step alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tvnet_cli.errors import DatasetError, FrameListError, VideoReadError
from tvnet_cli.options import ActionOptions
from tvnet_cli.training.augment import cut, draw_crop, random_snippets
from tvnet_cli.training.datasets import LabelledVideo
from tvnet_cli.video.decode import VideoScan, refuse_damaged
from tvnet_cli.video.reader import Decoders, decoders

NAMED = 10  # of the videos that cannot be read, in a message
_ORDER, _SAMPLE = 0, 1  # two kinds of random numbers from one seed


class ActionBatch(NamedTuple):
    """Videos of one step.

    Attributes
    ----------
    frames : Tensor, (B, segments, frames, 3, size, size), uint8, RGB
    labels : Tensor, (B,), int64
    """

    frames: Tensor
    labels: Tensor


class TrainingClips:
    """The batches of a training.

    Each epoch shows all videos once, in a random order; a batch may end one epoch and begin the next.

    Parameters
    ----------
    videos : sequence of LabelledVideo
    options : ActionOptions
    pool : Executor
        Reads the videos of a batch at the same time.
    rank, world : int
        This process and the number of processes; each has its part of every batch.
    reader : Decoders, optional
        Whose processes decode the videos.
    """

    def __init__(
        self,
        videos: Sequence[LabelledVideo],
        options: ActionOptions,
        pool: Executor,
        rank: int = 0,
        world: int = 1,
        reader: Decoders | None = None,
    ) -> None:
        self.videos, self.options, self.pool = videos, options, pool
        self._share = range(rank, options.batch_size, world)
        self._reader = reader or decoders()
        self._scan = lru_cache(maxsize=None)(self._reader.scan)
        self._order = lru_cache(maxsize=8)(self._shuffled)

    def __call__(self, step: int) -> ActionBatch:
        """The batch of a step, counted from 0: the same whatever was asked for before.

        Raises
        ------
        VideoReadError
            Naming the video that cannot be read.
        """
        samples = list(self.pool.map(self._sample, [step] * len(self._share), self._share))
        frames, labels = zip(*samples, strict=True)
        return ActionBatch(torch.stack(frames), torch.tensor(labels))

    def _sample(self, step: int, index: int) -> tuple[Tensor, int]:
        epoch, place = divmod(step * self.options.batch_size + index, len(self.videos))
        video = self.videos[self._order(epoch)[place]]
        return self._read(video.path, [self.options.seed, _SAMPLE, step, index]), video.label

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.options.seed, _ORDER, epoch]).permutation(len(self.videos))

    def _read(self, path: Path, seed: list[int]) -> Tensor:
        try:
            try:
                return self._snippets(self._scan(path), seed)
            except FrameListError:
                return self._snippets(self._scan(path, counted=True), seed)
        except VideoReadError as error:
            raise VideoReadError(f"{path}: {error}") from error

    def _snippets(self, video: VideoScan, seed: list[int]) -> Tensor:
        """Snippets of a video, (segments, frames, 3, size, size), all cut at the same place."""
        options, random = self.options, np.random.default_rng(seed)
        crop = draw_crop(options.crop_scales, options.flip, random)
        frame_index = random_snippets(video.num_frames, options.num_segments, options.clip_length, random)
        wanted, place = np.unique(frame_index, return_inverse=True)
        frames = self._reader.frames(video, wanted.tolist(), short_side=options.short_side)
        pictures = [cut(frame, crop, options.size) for frame in frames if frame is not None]
        return torch.stack(pictures)[torch.from_numpy(place.reshape(frame_index.shape))]


def validation_clips(video: LabelledVideo, options: ActionOptions, reader: Decoders | None = None) -> Tensor:
    """Clips at equal distances from the middle of the picture, (clips, 1, frames, 3, size, size), uint8.

    Raises
    ------
    VideoReadError
        Naming the video.
    """
    try:
        clips = (reader or decoders()).clips(
            video.path, options.validation_clips, options.clip_length, options.short_side, options.size
        )
    except VideoReadError as error:
        raise VideoReadError(f"{video.path}: {error}") from error
    return torch.from_numpy(clips.frames).movedim(-1, -3)[:, None]


def refuse_unreadable(videos: Sequence[LabelledVideo], pool: Executor, reader: Decoders | None = None) -> None:
    """Look into every video before hours of work.

    Raises
    ------
    DatasetError
        Naming those that cannot be read, and of many how many more there are.
    """
    reasons = [reason for reason in pool.map(partial(_unreadable, reader or decoders()), videos) if reason]
    if reasons:
        more = [f"and {len(reasons) - NAMED} more"] if len(reasons) > NAMED else []
        raise DatasetError(
            f"{len(reasons)} of {len(videos)} videos cannot be read: {'; '.join([*reasons[:NAMED], *more])}"
        )


def _unreadable(reader: Decoders, video: LabelledVideo) -> str:
    try:
        refuse_damaged(reader.scan(video.path))
    except VideoReadError as error:
        return f"{video.path}: {error}"
    return ""
