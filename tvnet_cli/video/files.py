"""Which videos to work on, and the id of each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeVar

from tvnet_cli.errors import DatasetError
from tvnet_cli.url import shown, url_name, url_way
from tvnet_cli.video.identity import Identity
from tvnet_cli.video.remote import list_folder, require_way

VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf "
    ".nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)
FLOW_FILM = ".flow.mp4"


@dataclass(frozen=True)
class Video:
    """A file to work on and the id under which its features are kept."""

    video_id: str
    path: Path

    @property
    def place(self) -> Path:
        """What is to be read."""
        return self.path


@dataclass(frozen=True)
class RemoteVideo:
    """A remote video; its address may hold secrets.

    Attributes
    ----------
    video_id, place : str
        Its id, and its address.
    source : Identity or None
        By the listing of its folder; None if it was named alone.
    """

    video_id: str
    place: str = field(repr=False)
    source: Identity | None = field(default=None, compare=False)


AnyVideo = TypeVar("AnyVideo", Video, Video | RemoteVideo)


def find_videos(paths: Iterable[Path]) -> list[Video]:
    """All videos in folders and among files, sorted by id.

    Parameters
    ----------
    paths : iterable of Path
        A folder gives its files with a known video suffix, at any depth, without hidden ones and the ``.flow.mp4``
        that ``tvnet flow`` writes; their ids are POSIX paths relative to it. A file is taken whatever its suffix,
        and so is a path that does not exist, so that it fails under its own name; its id is its name. A folder that
        cannot be read fails like a video too; its id is its own path and ends in ``/``.

    Returns
    -------
    list of Video

    Raises
    ------
    DatasetError
        If nothing is found, or if two different files would have the same id.
    """
    paths = list(paths)
    return _by_id((video for path in paths for video in _videos(path)), paths)


def find_sources(
    places: Sequence[Path | str], note: Callable[[str], None] = lambda line: None
) -> list[Video | RemoteVideo]:
    """All videos in folders, among files, and elsewhere, sorted by id.

    Parameters
    ----------
    places : sequence of Path or str
        Paths are those of ``find_videos``; text is an address, such as ``s3://bucket/films``. Where the way there knows
        folders, that of one gives its files by the rules for folders. Any other is that of a film; its id is its
        last part, without what follows ``?``.
    note : callable
        Is told of folders in which there is nothing, beside others.

    Returns
    -------
    list of Video and RemoteVideo

    Raises
    ------
    DatasetError
        As ``find_videos``, and if there is no way to an address.
    """
    ways = {url_way(place): place for place in places if isinstance(place, str)}
    for url in ways.values():
        require_way(url)
    found: dict[Path | str, list[Video | RemoteVideo]] = {
        place: [*(_videos(place) if isinstance(place, Path) else _elsewhere(place))] for place in places
    }
    for place, videos in found.items():
        if not videos and any(found.values()):
            note(f"no videos in {_named(place)}")
    return _by_id(chain.from_iterable(found.values()), places)


def _by_id(videos: Iterable[AnyVideo], looked_in: Iterable[Path | str]) -> list[AnyVideo]:
    found: dict[str, AnyVideo] = {}
    for video in videos:
        known = found.setdefault(video.video_id, video)
        if known is not video and _real(known) != _real(video):
            raise DatasetError(
                f"two files have the id {video.video_id!r}: {_named(known.place)} and {_named(video.place)}; "
                "give their common folder instead, or write them to two feature files"
            )
    if not found:
        raise DatasetError(
            f"no videos in {', '.join(map(_named, looked_in)) or 'an empty list'}: folders are searched for "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}; name other files one by one"
        )
    return [found[video_id] for video_id in sorted(found)]


def _real(video: Video | RemoteVideo) -> str:
    return os.path.realpath(video.path) if isinstance(video, Video) else video.place


def _named(place: Path | str) -> str:
    return shown(place) if isinstance(place, str) else _text(place)


def _videos(path: Path) -> Iterator[Video]:
    return _walk(path) if os.path.isdir(path) else iter([Video(_text(path.name), path)])  # noqa: PTH112


def _elsewhere(url: str) -> Iterator[RemoteVideo]:
    # A name like that of a film is not asked about: lists are long, and each question takes a while.
    files = (
        None
        if PurePosixPath(url_name(url)).suffix.lower() in VIDEO_SUFFIXES and not url.endswith("/")
        else list_folder(url)
    )
    if files is None:
        yield RemoteVideo(url_name(url), url)
        return
    for name, address, source in files:
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and _is_film(name):
            yield RemoteVideo(name, address, source)


def _is_film(name: str) -> bool:
    """By its name alone; what `tvnet flow` leaves beside a film is none."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not name.endswith(FLOW_FILM)


def _walk(folder: Path) -> Iterator[Video]:
    """The videos below a folder, and the folders that cannot be read; links are followed, each real folder once."""
    seen = set()
    unreadable: list[Path] = []

    def note(error: OSError) -> None:
        unreadable.append(Path(error.filename or folder))

    for place, subfolders, names in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(place)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if _is_film(name) and not name.startswith("."):
                yield Video(_text(path.relative_to(folder).as_posix()), path)
    for path in unreadable:
        name = folder.name if path == folder else path.relative_to(folder).as_posix()
        yield Video(f"{_text(name)}/", path)


def _text(name: object) -> str:
    r"""A name as proper UTF-8; other bytes are written as a backslash, x and two digits.

    So that no two names become one, a backslash that could begin such a thing is written as \x5c.
    """
    told_apart = re.sub(rb"\\(?=x(?:5c|[89a-f][0-9a-f]))", rb"\\x5c", os.fsencode(str(name)))
    return told_apart.decode("utf-8", "backslashreplace")
