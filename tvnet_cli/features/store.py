"""A feature file that grows row by row and is complete at every moment.

While a run goes on, each finished video is a feature file of one row in the folder ``<output>.parts``; now and then
many of them become one, so that the folder stays small. Packing joins all rows in a new file, which replaces the old
one in one step. Every file is written under another name, brought to the disk and renamed. So whatever interrupts a
run, the feature file opens, holds whole rows only, and no finished video is lost.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from tvnet_cli.errors import DamagedError, DiskFullError, FeatureFileError
from tvnet_cli.features.format import (
    Contents,
    Failure,
    RowProgress,
    join,
    named,
    read_columns,
    read_contents,
    read_rows,
    require_replaceable,
    sync_folder,
    write_failures,
    write_row,
)
from tvnet_cli.features.lock import (
    NUMBERED,
    OVERWRITES,
    behind_links,
    locked,
    part_files,
    parts_folder,
    remove_leftovers,
    require_own_parts,
)
from tvnet_cli.features.sources import SOURCE_DATASETS, sources_of_rows
from tvnet_cli.recipe import Recipe, first_difference
from tvnet_cli.video.identity import Identity

BUNDLE_FILES = 64  # parts of one video that become one file
QUICK_BYTES = 2**29  # an interrupted run packs no more than this
DAMAGED, NEW = ".damaged", ".new"


class FeatureStore:
    """A feature file that grows row by row, inside a ``with`` block.

    Parameters
    ----------
    output : Path
        The feature file.
    recipe : dict
        All that decides the values, ready for JSON. Kept in the file.
    overwrite : bool
        Do without the rows that are there; the old file stays until the run ends. An overwriting run that was
        interrupted is gone on with.
    wait : bool
        For another run on this file, which otherwise is an error.
    stop : Event, optional
        The run is to end: waiting ends, and so does packing, unless it is a matter of seconds.
    note : callable, optional
        Is told what people should know.
    progress : callable, optional
        Is told how many of all rows are packed.

    Attributes
    ----------
    sources : dict of video id to Identity
        The videos that have a row, and what it was made of.
    failures : dict of video id to Failure
        The videos that failed, in this run or an earlier one, and have no row.

    Raises
    ------
    FeatureFileError
        On entering, if ``output`` is no feature file, was made by another recipe, or is being written by another run.
    FileAccessError
        On entering or packing, if a file cannot be read now, such as one that another program has open for writing.
    DamagedError
        If ``output`` is damaged.
    DiskFullError
        On writing; what is finished is kept.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> with TemporaryDirectory() as folder:
    ...     with FeatureStore(Path(folder, "features.h5"), recipe={}) as store:
    ...         store.add("a.mp4", {"flow/global_pool": np.ones(1024, np.float32), "num_frames": 120})
    ...         store.add_failure("b.mp4", "no video stream")
    ...     read_ids(Path(folder, "features.h5"))
    (['a.mp4'], {})
    """

    def __init__(
        self,
        output: Path,
        recipe: Recipe,
        overwrite: bool = False,
        *,
        wait: bool = False,
        stop: threading.Event | None = None,
        note: Callable[[str], None] = lambda line: None,
        progress: RowProgress = lambda done, total: None,
    ) -> None:
        self.output = behind_links(output)
        self.parts = parts_folder(self.output)
        self.recipe, self.overwrite = recipe, overwrite
        self.failures: dict[str, Failure] = {}
        self._wait, self._stop = wait, stop or threading.Event()
        self._note, self._progress = note, progress
        self.sources: dict[str, Identity] = {}
        self._outdated: dict[str, Identity] = {}  # sources of rows that are to be made again
        self._singles: dict[Path, None] = {}  # parts of one video, in order
        self._numbers = itertools.count()
        self._bundling = threading.Lock()
        self._overwriting = False
        self._held = ExitStack()

    def __enter__(self) -> FeatureStore:
        with ExitStack() as held:
            held.enter_context(locked(self.output, wait=self._wait, stop=self._stop, note=self._note))
            remove_leftovers(self.parts)
            if self.overwrite:
                require_replaceable(self.output)
            self._find_rows()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._held:
            in_peace = kind is None and not self._stop.is_set()
            if in_peace or (kind is not DiskFullError and self._is_quick()):
                self.pack()
            if not self._part_files():
                self._marker.unlink(missing_ok=True)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.sources

    def knows(self, video_id: str) -> bool:
        """Whether a video has a row, or failed."""
        return video_id in self.sources or video_id in self.failures

    def outdate(self, video_id: str) -> None:
        """Have a row made again; it stays in the file until the new one is packed."""
        self._outdated[video_id] = self.sources.pop(video_id)

    def add(self, video_id: str, values: Mapping[str, ArrayLike]) -> None:
        """Keep the finished row of one video. Threads may add at once, each its own.

        Parameters
        ----------
        video_id : str
        values : dict of dataset name to its value for this video
        """
        self._keep(lambda part: write_row(part, self.recipe, video_id, values))
        columns = {name: np.asarray(values[name])[None] for name in SOURCE_DATASETS if name in values}
        self.sources |= sources_of_rows(columns, [video_id])
        self.failures.pop(video_id, None)

    def add_failure(self, video_id: str, reason: str, code: str = "") -> None:
        """Keep why a video has no row; a row that is added later takes its place. Threads may add at once.

        That of a video with a row that was to be made again is not kept: the row stays.

        Parameters
        ----------
        video_id : str
        reason, code : str
            For people, and one of a short list.
        """
        if video_id in self._outdated:  # its old row stays, and a row counts before a failure
            self.sources[video_id] = self._outdated.pop(video_id)
            return
        failure = Failure(reason, code)
        self._keep(lambda part: write_failures(part, self.recipe, {video_id: failure}))
        self.failures[video_id] = failure

    def write_empty(self) -> None:
        """Have a feature file, if only one that holds nothing."""
        if not self.output.exists():
            self._writing(lambda: join(self.output, self.recipe, [], new=self.parts / ("packed" + NEW)))

    def pack(self) -> bool:
        """Join all finished rows in the feature file.

        Returns
        -------
        bool
            False if rows turned out to be damaged: they were set aside and are to be made again, the others wait.
        """
        paths = self._part_files()
        if not paths:
            return True
        try:
            sources = [read_contents(path) for path in [*self._old(), *paths]]
            new = self.parts / ("packed" + NEW)
            self._writing(lambda: join(self.output, self.recipe, sources, self._packed, new))
        except DamagedError as error:
            if error.path == self.output:
                raise
            self._set_aside(error.path, error.reason, error.video_ids)
            self._find_rows()
            return False
        except _StoppedError:
            return True
        self._unmark()  # before the parts go: without them, it is the new file that counts
        for path in paths:
            path.unlink()
        self._singles.clear()
        self._overwriting = False
        return True

    @property
    def waits(self) -> bool:
        """Whether finished rows wait to be packed."""
        return bool(self._part_files())

    @property
    def _marker(self) -> Path:
        """Says that the rows in parts are to replace the feature file, not to be added to it."""
        return self.parts / OVERWRITES

    def _unmark(self) -> None:
        self._marker.unlink(missing_ok=True)
        sync_folder(self.parts)

    def _part_files(self) -> list[Path]:
        return part_files(self.parts)

    def _old(self) -> list[Path]:
        """The feature file, if there is one whose rows count."""
        return [self.output] if self.output.exists() and not self._overwriting else []

    def _is_quick(self) -> bool:
        return sum(path.stat().st_size for path in [*self._old(), *self._part_files()]) <= QUICK_BYTES

    def _packed(self, done: int, total: int) -> None:
        if self._stop.is_set() and not self._is_quick():
            raise _StoppedError
        self._progress(done, total)

    def _find_rows(self) -> None:
        """What earlier runs finished, packed or not."""
        parts = self._whole_parts()
        self._overwriting = self._marker.exists() and bool(parts)
        if self.overwrite and not (self._overwriting and all(self._agrees(part) for part in parts)):
            for part in parts:
                part.path.unlink()
            parts, self._overwriting = [], True
            self._marker.touch()
            sync_folder(self.parts)
        elif self._overwriting:
            self._note(f"going on with a run that overwrites {self.output} and was interrupted")
        elif self._marker.exists():  # left by a run that finished nothing; the rows of this one must not bear it
            self._unmark()
        found = [*map(read_contents, self._old()), *parts]
        for contents in found:
            for problem in contents.problems:
                self._note(f"{contents.path}: {problem}; it is kept as it is")
        self.sources, self.failures = _known(found, self.recipe)
        for video_id, source in self._outdated.items():
            if self.sources.get(video_id) == source:
                del self.sources[video_id]
        self._singles = dict.fromkeys(part.path for part in parts if _is_single(part))
        known = [int(part.path.stem) for part in parts if NUMBERED.fullmatch(part.path.name)]
        self._numbers = itertools.count(max(known, default=0) + 1)

    def _agrees(self, contents: Contents) -> bool:
        return not first_difference(contents.recipe, self.recipe)

    def _whole_parts(self) -> list[Contents]:
        """The parts that are not damaged; the rows of those with many are checked when they are packed."""
        whole = []
        for path in self._part_files():
            try:
                contents = read_contents(path)
                if _is_single(contents) and contents.rows:
                    _, wrong = read_rows(contents, list(contents.rows))
                    if wrong:
                        raise DamagedError(path, f"{named(wrong)} differs from its checksum")
            except FeatureFileError as error:
                self._set_aside(path, getattr(error, "reason", "not a feature file"))
            else:
                whole.append(contents)
        return whole

    def _set_aside(self, path: Path, reason: str, video_ids: tuple[str, ...] = ()) -> None:
        """Put a damaged part out of the way; its other rows, where it is known which are damaged, stay."""
        names = (path.with_name(f"{path.name}{DAMAGED}{number}") for number in ("", *range(2, 10**6)))
        aside = next(name for name in names if not name.exists())
        self._note(f"{path} is damaged ({reason}): set aside as {aside.name}, what it held is done again")
        if not video_ids:
            path.replace(aside)
            return
        contents = read_contents(path)
        rows = {video_id: row for video_id, row in contents.rows.items() if video_id not in video_ids}
        shutil.copyfile(path, aside)
        self._writing(lambda: join(path, self.recipe, [replace(contents, rows=rows)]))

    def _keep(self, write: Callable[[Path], None]) -> None:
        """Write a part, and make one file of many now and then."""
        part = self.parts / f"{next(self._numbers):09}.h5"
        self._writing(lambda: write(part))
        self._singles[part] = None
        if len(self._singles) >= BUNDLE_FILES and self._bundling.acquire(blocking=False):
            try:
                self._bundle()
            finally:
                self._bundling.release()

    def _bundle(self) -> None:
        """One part out of many; it takes the place of the last of them, so that what is later stays later."""
        *some, last = list(self._singles)[:BUNDLE_FILES]
        try:
            self._writing(lambda: join(last, self.recipe, [read_contents(path) for path in [*some, last]]))
        except DamagedError as error:
            del self._singles[error.path]  # it is set aside when all is packed
            return
        for path in some:
            path.unlink()
        for path in [*some, last]:
            del self._singles[path]

    def _writing(self, write: Callable[[], None]) -> None:
        try:
            write()
        except DiskFullError as error:
            raise DiskFullError(
                f"{error}; {len(self.sources)} finished videos are kept: make room, and the same command goes on"
            ) from error


def already_there(
    output: Path, recipe: Recipe, overwrite: bool = False
) -> tuple[dict[str, Identity], dict[str, Failure]]:
    """The videos that a run would find done, with what their rows were made of, and those that failed before.

    Nothing is changed or kept from others.

    Raises
    ------
    FeatureFileError
        As a ``FeatureStore`` of the same arguments.
    """
    output = behind_links(output)
    folder, parts = parts_folder(output), []
    require_own_parts(folder)
    if overwrite:
        require_replaceable(output)
    for path in part_files(folder):
        with suppress(FeatureFileError):  # a run sets it aside
            parts.append(read_contents(path))
    overwriting = bool(parts) and (folder / OVERWRITES).exists()
    if overwrite and not (overwriting and all(not first_difference(part.recipe, recipe) for part in parts)):
        return {}, {}
    return _known([read_contents(output), *parts] if output.exists() and not overwriting else parts, recipe)


def _known(found: Sequence[Contents], recipe: Recipe) -> tuple[dict[str, Identity], dict[str, Failure]]:
    """The videos with a row in any of these, later ones last, with their sources, and those without that failed."""
    for contents in found:
        if difference := first_difference(contents.recipe, recipe):
            raise FeatureFileError(
                f"{contents.path} was made in another way: {difference}; choose another output, or --overwrite to "
                "start anew"
            )
    done: dict[str, Identity] = {}
    for contents in found:
        done |= sources_of_rows(read_columns(contents, SOURCE_DATASETS), list(contents.rows))
    failures = {video_id: failure for contents in found for video_id, failure in contents.failures.items()}
    return done, {video_id: failure for video_id, failure in failures.items() if video_id not in done}


class _StoppedError(Exception):
    """The run is to end in the middle of packing."""


def _is_single(part: Contents) -> bool:
    return len(part.rows) + len(part.failures) == 1


def read_ids(path: Path) -> tuple[list[str], Recipe]:
    """The video ids of a feature file, in order, and its recipe.

    Raises
    ------
    FeatureFileError
        If the file is not a feature file of this format version.
    """
    contents = read_contents(path)
    return list(contents.rows), contents.recipe
