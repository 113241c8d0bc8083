"""A feature file as one page: a map of the videos, their nearest neighbours, the similarities of each layer.

One straight line: feature file -> chosen videos and layers -> a map of each layer -> thumbnails -> HTML. The page holds
all it needs and asks no network for anything. It is made of ``feature_page.html``, ``.css`` and ``.js`` beside this
module, and of data as JSON.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvnet_cli.aslan.features import VideoFinder
from tvnet_cli.errors import DatasetError, FeatureFileError, VideoReadError
from tvnet_cli.features.table import Source, VideoTable, choose_layers, read_layers, readable
from tvnet_cli.options import DEFAULT_JOBS, MOST_VIDEOS_SHOWN, NEIGHBOURS_SHOWN, DecodeLimits
from tvnet_cli.video.files import find_videos
from tvnet_cli.video.reader import Decoders
from tvnet_cli.video.thumbnails import thumbnail
from tvnet_cli.visualize.feature_map import LEAST_FOR_TSNE, LayerMap, Matrix, Progress, map_layer
from tvnet_cli.visualize.grouping import NO_GROUP, Grouping, group_by_folder, group_by_table
from tvnet_cli.writing import MARK

SAME_PLACE = 1e-9  # a map whose points are no further apart is one point


@dataclass(frozen=True)
class FeaturePage:
    """A page, and what is to be said about it.

    Attributes
    ----------
    html : str
    notes : tuple of str
        What is not as one would expect, for people.
    num_videos, num_layers : int
        That it shows.
    """

    html: str = field(repr=False)
    notes: tuple[str, ...]
    num_videos: int
    num_layers: int


def feature_page(
    path: Path,
    *,
    layers: Sequence[str] = (),
    labels: Path | None = None,
    films: Sequence[Path] = (),
    num_neighbours: int = NEIGHBOURS_SHOWN,
    max_videos: int = MOST_VIDEOS_SHOWN,
    progress: Progress = lambda stage, done, total: None,
    limits: DecodeLimits | None = None,
) -> FeaturePage:
    """The page of a file of ``tvnet features``.

    Parameters
    ----------
    path : Path
    layers : sequence of str, optional
        Those to show, such as ``flow/global_pool``; all by default.
    labels : Path, optional
        A table of labels, which colour the points; see ``group_by_table``. By default the folders do.
    films : sequence of Path, optional
        Folders or files that hold the videos: the page then shows their middle frames. One that is not found or cannot
        be read is counted in a note.
    num_neighbours : int
        Shown of each video.
    max_videos : int, at least 2
        Of more, so many are shown, evenly spaced by name: the page takes about 10 kB a video, a third without pictures.
    progress : callable, optional
        Hears of each stage, the steps that are done, and all steps.
    limits : DecodeLimits, optional
        What decoding one video may take.

    Raises
    ------
    FeatureFileError
        If the file is not of ``tvnet features``, holds fewer than two videos, or has no such layer.
    DatasetError
        If the table does not fit, or a path of the films does not exist.
    """
    if not path.exists():
        raise FeatureFileError(f"no such feature file: {path}")
    sources = choose_layers(read_layers(path), layers)
    if not sources:
        raise FeatureFileError(f"{path} holds no features: no dataset in the groups flow and rgb")
    missing = [film for film in films if not film.exists()]
    if missing:
        raise DatasetError(f"no such folder of films: {missing[0]}")
    rows, notes = _choose_rows(path, len(sources[0].ids), max_videos)
    videos = tuple(sources[0].ids[row] for row in rows)
    grouping = group_by_table(labels, videos) if labels else group_by_folder(videos)
    if grouping and grouping.kind == "label" and (without := int((grouping.of == NO_GROUP).sum())):
        notes.append(f"{without} of {len(videos)} videos have no label in {labels}")
    with readable(path):
        maps = [map_layer(_table(source, rows), grouping, num_neighbours, progress) for source in sources]
    if all(layer.tsne is None for layer in maps):
        few = len(videos) < LEAST_FOR_TSNE
        reason = f"it takes at least {LEAST_FOR_TSNE} videos" if few else "the videos do not differ"
        notes.append(f"no t-SNE: {reason}")
    thumbnails: list[bytes | None] = [None] * len(videos)
    if films:
        thumbnails, more = read_thumbnails(videos, films, progress, limits)
        notes += more
    data = _as_plain(path, len(sources[0].ids), videos, grouping, maps, thumbnails, notes)
    return FeaturePage(_html(path.name, data), tuple(notes), len(videos), len(maps))


def read_thumbnails(
    videos: Sequence[str], films: Sequence[Path], progress: Progress, limits: DecodeLimits | None = None
) -> tuple[list[bytes | None], list[str]]:
    """The middle frame of each video as JPEG, None where there is none, and notes about those."""
    try:
        found = find_videos(films)
    except DatasetError as error:
        return [None] * len(videos), [f"no thumbnails: {error}"]
    find = VideoFinder([(film.video_id, film.path) for film in found], "films")
    paths = [_found_or_none(find, video) for video in videos]
    wrong: list[str] = []

    def read(path: Path | None) -> bytes | None:
        try:
            return thumbnail(path, reader) if path else None
        except VideoReadError as error:
            wrong.append(f"{path}: {error}")
            return None

    thumbnails = []
    # The reader ends first: then no thread waits for a video any more.
    with ThreadPoolExecutor(DEFAULT_JOBS) as pool, Decoders(limits or DecodeLimits()) as reader:
        try:
            for done, picture in enumerate(pool.map(read, paths), 1):
                thumbnails.append(picture)
                progress("thumbnails", done, len(videos))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    notes = []
    gone = [video for video, path in zip(videos, paths, strict=True) if path is None]
    if gone:
        where = ", ".join(map(str, films))
        notes.append(f"{len(gone)} of {len(videos)} films are not in {where}, and have no thumbnail; such as {gone[0]}")
    if wrong:
        notes.append(f"{len(wrong)} of {len(videos)} films cannot be read, and have no thumbnail; such as {min(wrong)}")
    return thumbnails, notes


def _found_or_none(find: VideoFinder[Path], video: str) -> Path | None:
    try:
        return find(video)
    except DatasetError:  # several fit: none is better than a wrong one
        return None


def _choose_rows(path: Path, num_videos: int, most: int) -> tuple[NDArray[np.int64], list[str]]:
    """The videos to show, evenly spaced if there are too many."""
    if num_videos < 2:
        raise FeatureFileError(f"{path} holds one video: a map needs at least two")
    if num_videos <= most:
        return np.arange(num_videos), []
    note = f"shows {most} of {num_videos} videos, evenly spaced by name: --max-videos changes it"
    return np.arange(most) * num_videos // most, [note]


def _table(source: Source, rows: NDArray[np.int64]) -> VideoTable:
    videos = tuple(source.ids[row] for row in rows)
    return VideoTable(source.dataset, videos, ((source, rows, np.arange(len(rows))),))


def _as_plain(
    path: Path,
    num_in_file: int,
    videos: Sequence[str],
    grouping: Grouping | None,
    maps: Sequence[LayerMap],
    thumbnails: Sequence[bytes | None],
    notes: Sequence[str],
) -> dict[str, Any]:
    """All that the page shows, ready for JSON."""
    return {
        "file": path.name,
        "numInFile": num_in_file,
        "videos": list(videos),
        "kind": grouping.kind if grouping else None,
        "groups": list(grouping.names) if grouping else [],
        "groupOf": grouping.of.tolist() if grouping else [NO_GROUP] * len(videos),
        "thumbnails": [b64encode(picture).decode() if picture else None for picture in thumbnails],
        "notes": list(notes),
        "layers": [_layer_as_plain(layer) for layer in maps],
    }


def _layer_as_plain(layer: LayerMap) -> dict[str, Any]:
    return {
        "name": layer.name,
        "numValues": layer.num_values,
        "pca": _unit_square(layer.pca),
        "explained": layer.explained,
        "tsne": None if layer.tsne is None else _unit_square(layer.tsne),
        "neighbours": layer.neighbours.tolist(),
        "similarities": layer.similarities.round(4).tolist(),
        "matrices": {name: _matrix_as_plain(matrix) for name, matrix in layer.matrices.items()},
        "agreement": layer.agreement,
        "chance": layer.chance,
    }


def _unit_square(points: NDArray[np.float64]) -> list[list[float]]:
    """Points moved into [-1, 1], both axes by the same scale."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = max(float((high - low).max()) / 2, SAME_PLACE)
    return [[round(x, 4), round(y, 4)] for x, y in ((points - (low + high) / 2) / half).tolist()]


def _matrix_as_plain(matrix: Matrix) -> dict[str, Any]:
    file = BytesIO()
    Image.fromarray(matrix.levels).save(file, "PNG", optimize=True)
    png = b64encode(file.getvalue()).decode()
    return {"order": matrix.order.tolist(), "png": png, "low": matrix.low, "high": matrix.high}


def _html(name: str, data: dict[str, Any]) -> str:
    """The page. Its policy lets this one script run, and nothing be fetched."""
    body, style, script = (_part(suffix) for suffix in ("html", "css", "js"))
    allowed = f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    # Names are anyone's text: as JSON without <, nothing in them ends the element.
    plain = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="generator" content="{MARK}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(name)} - tvnet</title>\n<style>{style}</style>\n</head>\n<body>\n{body}"
        f'<script type="application/json" id="data">{plain}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _part(suffix: str) -> str:
    return (files(__package__) / f"feature_page.{suffix}").read_text("utf-8")
