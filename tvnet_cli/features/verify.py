"""Whether a feature file is what was written, and what to save of one that is not."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import DamagedError, FeatureFileError
from tvnet_cli.features.format import Contents, RowProgress, join, look_into, named, read_rows, sync_folder
from tvnet_cli.features.lock import PARTS, behind_links, locked, part_files, parts_folder

UNIT_NORM = 1e-3  # how far the L2 norm of features may be from 1
MAY_BE_NAN = {"pts_seconds"}


@dataclass(frozen=True)
class Findings:
    """What was found in a feature file.

    Attributes
    ----------
    path : Path
    num_rows, num_failures : int
    has_checksums : bool
        Files of older programs have none: their rows are then only looked at.
    wrong_rows : dict of video id to what is wrong with its row
    problems : tuple of str
        Of the file as a whole.
    num_waiting : int
        Finished videos in ``<path>.parts``, which the next run packs.
    set_aside : tuple of Path
        Where a repair put what is damaged: the file, and those that wait beside it.
    """

    path: Path
    num_rows: int = 0
    num_failures: int = 0
    has_checksums: bool = True
    wrong_rows: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    num_waiting: int = 0
    set_aside: tuple[Path, ...] = ()

    @property
    def good(self) -> bool:
        """Whether all is as it was written."""
        return not self.problems and not self.wrong_rows

    def summary(self) -> dict[str, Any]:
        """The findings as plain values, ready for JSON."""
        paths = {"path": str(self.path), "set_aside": [str(path) for path in self.set_aside]}
        return {"good": self.good, **vars(self), **paths}

    def lines(self) -> list[str]:
        """The findings as text."""
        counts = [f"{self.num_rows} rows", f"{self.num_failures} failures"]
        counts += [f"{self.num_waiting} more videos wait to be packed"] if self.num_waiting else []
        counts += [] if self.has_checksums else ["no checksums, an older program wrote it"]
        bad = [f"{self.path}: {what}" for what in self.problems]
        bad += [f"{self.path}: {video_id}: {what}" for video_id, what in self.wrong_rows.items()]
        end = [f"{'good' if self.good else 'bad '}  {self.path}: {', '.join(counts)}"]
        aside = "the damaged file is now {}; the command that made it does what is missing"
        end += [aside.format(path) for path in self.set_aside]
        return [*bad, *end]


def verify_features(path: Path, progress: RowProgress = lambda done, total: None) -> Findings:
    """Check all rows of a feature file, and those that wait beside it.

    Parameters
    ----------
    path : Path
        A feature file or a folder of parts.
    progress : callable
        Is told how many rows are checked.

    Raises
    ------
    FeatureFileError
        If there is no such file.
    """
    return _as_one(*_look_at(path, progress))


def repair_features(path: Path, progress: RowProgress = lambda done, total: None) -> Findings:
    """Put a damaged feature file aside, as ``<path>.damaged``, and its good rows in its place.

    A run over the same videos makes the others again. A file that is good stays as it is, and one whose content could
    not be read for a reason of the system does too.

    Returns
    -------
    Findings
        As they were before.

    Raises
    ------
    FeatureFileError
        If there is no such file.
    FileAccessError, RefusedFileError
        If a file cannot be looked at now, or leads to other files; it stays where it is.
    DiskFullError
    """
    output, parts = _file_and_parts(path)
    with locked(output):
        whole, waiting = _look_at(path, progress)
        bad = [found for found in (whole, *waiting) if not found.good]
        aside = tuple(_put_aside(found, parts, progress) for found in bad)
        return replace(_as_one(whole, waiting), set_aside=aside)


def _look_at(path: Path, progress: RowProgress) -> tuple[Findings, list[Findings]]:
    """What is found in a feature file, unless the folder of its parts was given, and in each of those."""
    output, parts = _file_and_parts(path)
    waiting = [found for part in part_files(parts) if (found := _verify_part(part))]
    return _verify_file(output, progress) if output.exists() and not path.is_dir() else Findings(path), waiting


def _as_one(whole: Findings, waiting: Sequence[Findings]) -> Findings:
    return replace(
        whole,
        has_checksums=whole.has_checksums and all(part.has_checksums for part in waiting),
        wrong_rows={**whole.wrong_rows, **{key: what for part in waiting for key, what in part.wrong_rows.items()}},
        problems=(*whole.problems, *(f"{part.path.name}: {what}" for part in waiting for what in part.problems)),
        num_waiting=sum(part.num_rows for part in waiting),
    )


def _put_aside(found: Findings, parts: Path, progress: RowProgress) -> Path:
    """Put a damaged file aside, and its good rows, if it can be read, in its place."""
    path, aside = found.path, _free_name(found.path)
    try:
        contents = look_into(path)
    except FeatureFileError:  # its content was read; other errors go on
        path.replace(aside)
        sync_folder(path.parent)
        return aside
    good = {video_id: row for video_id, row in contents.rows.items() if video_id not in found.wrong_rows}
    # A name of its own, which is neither that of a part nor that of what an earlier repair left.
    repaired = parts / f"repaired-{secrets.token_hex(4)}.new"
    try:
        join(repaired, contents.recipe, [replace(contents, rows=good)], progress)
        _require_whole(repaired, len(good))
        _keep_as(path, aside)
        repaired.replace(path)
    finally:
        repaired.unlink(missing_ok=True)
    sync_folder(path.parent)
    return aside


def _require_whole(repaired: Path, num_rows: int) -> None:
    """Check what was written before it takes the place of anything."""
    found = _verify_file(repaired)
    if not found.good or found.num_rows != num_rows:
        raise FeatureFileError(
            f"the good rows could not be written to {repaired} without damage: the disk or the memory is at fault; "
            "nothing was changed"
        )


def _keep_as(path: Path, aside: Path) -> None:
    """Give a file a second name; where the disk knows no such thing, a copy."""
    try:
        os.link(path, aside)
    except FileExistsError:
        raise
    except OSError:
        shutil.copy2(path, aside)


def _file_and_parts(path: Path) -> tuple[Path, Path]:
    """A feature file and the folder of its parts, one of which was given; at least one of them is there."""
    if path.is_dir() and not path.name.endswith(PARTS):
        raise FeatureFileError(f"{path} is a folder: name feature files, or the folder {PARTS} of one")
    output = path.with_name(path.name.removesuffix(PARTS)) if path.is_dir() else behind_links(path)
    parts = parts_folder(output)
    if not output.exists() and not part_files(parts):
        raise FeatureFileError(f"there is no feature file {output}, nor finished videos in {parts}")
    return output, parts


def _verify_file(path: Path, progress: RowProgress = lambda done, total: None) -> Findings:
    try:
        contents = look_into(path)
    except DamagedError as error:
        return Findings(path, problems=(f"cannot be read: {error.reason}",))
    wrong: dict[str, str] = {}
    done = 0
    for videos in contents.portions():
        wrong |= _faults(contents, videos)
        done += len(videos)
        progress(done, len(contents.rows))
    in_order = list(contents.rows) == sorted(contents.rows)
    twice = [video_id for video_id in contents.failures if video_id in contents.rows]
    problems = [*contents.problems, *([] if in_order else ["rows are not sorted by video_id"])]
    problems += [f"among the failures although they have rows: {named(twice)}"] if twice else []
    return Findings(path, len(contents.rows), len(contents.failures), contents.has_checksums, wrong, tuple(problems))


def _verify_part(path: Path) -> Findings | None:
    """None if a run that is at work has packed it meanwhile."""
    try:
        return _verify_file(path)
    except FeatureFileError:
        return Findings(path, problems=("not a feature file",)) if path.exists() else None


def _faults(contents: Contents, videos: Sequence[str]) -> dict[str, str]:
    """What is wrong with these rows."""
    try:
        values, differing = read_rows(contents, videos)
    except DamagedError as error:
        if len(videos) == 1:
            return {videos[0]: f"cannot be read: {error.reason}"}
        return {key: what for video_id in videos for key, what in _faults(contents, [video_id]).items()}
    made_by = values.get("written_by", np.zeros(len(videos), np.int64))
    unknown = (made_by < 0) | (made_by >= len(contents.software))
    odd = {videos[row]: "written_by names no record of software" for row in np.flatnonzero(unknown).tolist()}
    return {**odd, **_odd_values(videos, values), **dict.fromkeys(differing, "differs from its checksum")}


def _odd_values(videos: Sequence[str], values: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Rows with values that the program does not write."""
    found: dict[str, str] = {}
    for name, block in values.items():
        rows = block.reshape(len(videos), -1)
        if block.dtype.kind == "f" and name not in MAY_BE_NAN:
            odd = ~np.isfinite(rows).all(axis=1)
            found |= {videos[row]: f"{name} holds what is no number" for row in np.flatnonzero(odd).tolist()}
            if "/" in name:
                norms = np.linalg.norm(rows.astype(np.float64), axis=1)
                odd = (np.abs(norms - 1) > UNIT_NORM) & (norms != 0) & np.isfinite(norms)
                found |= {videos[row]: f"{name} has the norm {norms[row]:.4g}" for row in np.flatnonzero(odd).tolist()}
    return found


def _free_name(path: Path) -> Path:
    """Of a file that is put aside."""
    names = (path.with_name(f"{path.name}.damaged{number}") for number in ("", *range(2, 1000)))
    return next(name for name in names if not name.exists())
