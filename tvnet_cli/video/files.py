"""Which videos to work on, and the id of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tvnet_cli.errors import DatasetError

VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf "
    ".nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)
FLOW_FILM = ".flow.mp4"  # what `tvnet flow` leaves beside a film is no film to work on


@dataclass(frozen=True)
class Video:
    """A file to work on and the id under which its features are kept."""

    video_id: str
    path: Path


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
    found: dict[str, Video] = {}
    looked_in = []
    for path in paths:
        looked_in.append(str(path))
        for video in _walk(path) if os.path.isdir(path) else [Video(_text(path.name), path)]:  # noqa: PTH112
            known = found.setdefault(video.video_id, video)
            if known is not video and os.path.realpath(known.path) != os.path.realpath(video.path):
                raise DatasetError(
                    f"two files have the id {video.video_id!r}: {_text(known.path)} and {_text(video.path)}; "
                    "give their common folder instead, or write them to two feature files"
                )
    if not found:
        raise DatasetError(
            f"no videos in {', '.join(looked_in) or 'an empty list'}: folders are searched for "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}; name other files one by one"
        )
    return [found[video_id] for video_id in sorted(found)]


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
            hidden, flow_film = name.startswith("."), name.endswith(FLOW_FILM)
            if path.suffix.lower() in VIDEO_SUFFIXES and not hidden and not flow_film:
                yield Video(_text(path.relative_to(folder).as_posix()), path)
    for path in unreadable:
        name = folder.name if path == folder else path.relative_to(folder).as_posix()
        yield Video(f"{_text(name)}/", path)


def _text(name: object) -> str:
    """A name as proper UTF-8; other bytes are written as a backslash, x and two digits."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")
