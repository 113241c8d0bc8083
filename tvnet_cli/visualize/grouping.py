"""Which videos belong together: by a table of labels, or by the folders they lie in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.aslan.features import VideoFinder
from tvnet_cli.errors import DatasetError
from tvnet_cli.reading import read_text

VIDEO_COLUMNS = ("video_id", "video", "file", "path", "filename", "name")
LABEL_COLUMNS = ("label", "class", "category", "action")
NO_FOLDER = "(no folder)"
NO_GROUP = -1


@dataclass(frozen=True)
class Grouping:
    """Groups of videos.

    Attributes
    ----------
    kind : {"label", "folder"}
        What the groups are.
    names : tuple of str
        Of the groups, sorted.
    of : ndarray, (N,), int64
        Number of the group of each video; ``NO_GROUP`` of one that has none.
    """

    kind: Literal["label", "folder"]
    names: tuple[str, ...]
    of: NDArray[np.int64] = field(repr=False)


def group_by_folder(videos: Sequence[str]) -> Grouping | None:
    """Groups by the first folder that is not common to all videos; None where there are not several.

    Examples
    --------
    >>> group_by_folder(["set/run/a.mp4", "set/walk/b.mp4", "set/walk/x/c.mp4"]).of.tolist()
    [0, 1, 1]
    >>> group_by_folder(["walk/a.mp4", "walk/b.mp4"]) is None
    True
    """
    folders = [PurePosixPath(video).parts[:-1] for video in videos]
    common = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))))
    groups = [parts[common] if len(parts) > common else NO_FOLDER for parts in folders]
    return _grouping("folder", groups) if len(set(groups)) > 1 else None


def group_by_table(path: Path, videos: Sequence[str]) -> Grouping:
    """Groups by the labels in a table.

    Parameters
    ----------
    path : Path
        Comma, semicolon or tab separated, in UTF-8. The first line names the columns: one of ``VIDEO_COLUMNS`` and one
        of ``LABEL_COLUMNS``; others do not count. Folders and suffixes that only one of two names has do not count.
    videos : sequence of str

    Raises
    ------
    DatasetError
        If the table cannot be read, contradicts itself, or knows none of the videos.
    """
    labels = _read_labels(path)
    find = VideoFinder([(name, name) for name in labels], str(path))
    of_name: dict[str, str] = {}
    groups = []
    for video in videos:
        name = find(video)
        groups.append(labels[name] if name else "")
        if name and of_name.setdefault(name, video) != video:
            raise DatasetError(f"{path}: {name} fits {of_name[name]} and {video}: name them with their folders")
    if not any(groups):
        raise DatasetError(
            f"{path} names {next(iter(labels))} and others, but none of the {len(videos)} videos, such as {videos[0]}"
        )
    return _grouping("label", groups)


def _grouping(kind: Literal["label", "folder"], groups: Sequence[str]) -> Grouping:
    names = sorted(set(groups) - {""})
    number = {name: place for place, name in enumerate(names)}
    return Grouping(kind, tuple(names), np.array([number.get(group, NO_GROUP) for group in groups], np.int64))


def _read_labels(path: Path) -> dict[str, str]:
    """The label of each video of a table, empty where it has none."""
    text = read_text(path, "the labels")
    head = text.partition("\n")[0]
    rows = csv.DictReader(StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
        video, label = (
            next((names[name] for name in known if name in names), None) for known in (VIDEO_COLUMNS, LABEL_COLUMNS)
        )
        if video is None or label is None:
            raise DatasetError(
                f"{path} should begin with a line such as video_id,label: a column {' or '.join(VIDEO_COLUMNS)}, "
                f"and a column {' or '.join(LABEL_COLUMNS)}"
            )
        labels: dict[str, str] = {}
        for row in rows:
            name, own = ((row[column] or "").strip() for column in (video, label))
            if name and labels.setdefault(name, own) != own:
                raise DatasetError(f"{path}, line {rows.line_num}: {name} is {own!r} here, and {labels[name]!r} before")
    except csv.Error as error:
        raise DatasetError(f"cannot read the labels {path}, line {rows.line_num}: {error}") from error
    if not labels:
        raise DatasetError(f"{path} holds no videos")
    return labels
