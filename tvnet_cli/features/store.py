"""The feature file: plain HDF5, one row a video, sorted by id, complete at every moment.

While a run goes on, each finished video is a feature file of one row in the folder ``<output>.parts``, written
under another name and renamed when it is whole. Packing joins all rows into a new file, which replaces the old one
in one step. So whatever interrupts a run, the feature file opens, holds whole rows only, and no finished video
is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike, NDArray

from tvnet_cli.errors import FeatureFileError
from tvnet_cli.recipe import Recipe, first_difference

FORMAT, FORMAT_VERSION = "tvnet-features", 1

# dataset: (description, unit)
_DATASETS = {
    "video_id": ("path relative to the folder given, or the name of a lone file", "text"),
    "flow/global_pool": ("flow network, mean over clips, then L2 norm 1", "1"),
    "flow/inception_5b_output": ("flow network, mean over clips, then L2 norm 1 over the flattened layer", "1"),
    "flow/inception_5a_output": ("flow network, mean over clips, then L2 norm 1 over the flattened layer", "1"),
    "flow/inception_4e_output": ("flow network, mean over clips, then L2 norm 1 over the flattened layer", "1"),
    "rgb/global_pool": ("RGB network on each clip's middle frame, mean over clips, then L2 norm 1", "1"),
    "frame_index": ("numbers of the frames used, among the decodable ones, by clip", "frames"),
    "pts_seconds": ("times of the frames used, from the container; NaN where it has none", "seconds"),
    "num_frames": ("decodable frames of the video", "frames"),
    "padded": ("True if the video has fewer frames than a clip, whose last frame was then repeated", "1"),
    "bad_packets": ("packets of the video that cannot be decoded and were passed over", "packets"),
}


@dataclass(frozen=True)
class _Row:
    """Where a finished row lies."""

    path: Path
    number: int


class FeatureStore:
    """A feature file that grows row by row, inside a ``with`` block.

    Parameters
    ----------
    output : Path
        The feature file.
    recipe : dict
        All that decides the values, ready for JSON. Kept in the file.
    overwrite : bool
        Do without the rows that are there; the old file stays until the run ends.

    Raises
    ------
    FeatureFileError
        On entering, if ``output`` is no feature file, was made by another recipe, or is being written by another run.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with FeatureStore(Path(folder, "features.h5"), recipe={}) as store:
    ...         store.add("a.mp4", {"flow/global_pool": np.ones(1024, np.float32), "num_frames": 120})
    ...     read_ids(Path(folder, "features.h5"))
    (['a.mp4'], {})
    """

    def __init__(self, output: Path, recipe: Recipe, overwrite: bool = False) -> None:
        self.output, self.recipe, self.overwrite = output, recipe, overwrite
        self.parts = output.with_name(output.name + ".parts")
        self._lock = FileLock(self.parts / "lock", timeout=0)
        self._rows: dict[str, _Row] = {}

    def __enter__(self) -> FeatureStore:
        self.parts.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise FeatureFileError(f"another run is writing {self.output}: wait for it, or choose another") from None
        try:
            self._find_rows()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._part_files():
                self._pack()
        finally:
            self._leave()

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._rows

    def add(self, video_id: str, values: dict[str, ArrayLike]) -> None:
        """Keep the finished row of one video. Threads may add at once, each its own.

        Parameters
        ----------
        video_id : str
        values : dict of dataset name to its value for this video
        """
        path = self.parts / f"{hashlib.sha256(video_id.encode()).hexdigest()[:32]}.h5"
        with _replacing(path) as file:
            _create(file, self.recipe, 1, {name: np.asarray(value) for name, value in values.items()})
            file["video_id"][0] = video_id
            for name, value in values.items():
                file[name][0] = value
        self._rows[video_id] = _Row(path, 0)

    def _part_files(self) -> list[Path]:
        return sorted(self.parts.glob("*.h5"))

    def _find_rows(self) -> None:
        """The rows that earlier runs finished, packed or not."""
        parts = self._part_files()
        if self.overwrite:
            for part in parts:
                part.unlink()
            return
        for path in [self.output, *parts] if self.output.exists() else parts:
            ids, recipe = read_ids(path)
            difference = first_difference(recipe, self.recipe)
            if difference:
                raise FeatureFileError(
                    f"{path} was made in another way: {difference}; choose another output, or --overwrite to start anew"
                )
            self._rows.update({video_id: _Row(path, number) for number, video_id in enumerate(ids)})

    def _pack(self) -> None:
        """Join all finished rows in the feature file, sorted by id."""
        moves: dict[Path, list[tuple[int, int]]] = defaultdict(list)  # from row, to row; each file is opened once
        for number, video_id in enumerate(sorted(self._rows)):
            row = self._rows[video_id]
            moves[row.path].append((row.number, number))
        with _replacing(self.output) as file:
            for path, rows in moves.items():
                with h5py.File(path, "r") as source:
                    names = [name for name in _DATASETS if name in source]
                    if "video_id" not in file:
                        samples = {name: source[name][0] for name in names if name != "video_id"}
                        _create(file, self.recipe, len(self._rows), samples)
                    for name in names:
                        for old, new in rows:
                            file[name][new] = source[name][old]
        for part in self._part_files():
            part.unlink()

    def _leave(self) -> None:
        """Let the next run in; the folder of parts goes unless rows wait in it."""
        if not self._part_files():
            shutil.rmtree(self.parts, ignore_errors=True)
        self._lock.release()


def read_ids(path: Path) -> tuple[list[str], Recipe]:
    """The video ids of a feature file, in order, and its recipe.

    Raises
    ------
    FeatureFileError
        If the file is not a feature file of this format version.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise FeatureFileError(f"{path} is an HDF5 file, but not of tvnet features: choose another output")
            if file.attrs["format_version"] != FORMAT_VERSION:
                raise FeatureFileError(
                    f"{path} has format version {file.attrs['format_version']}, this program knows {FORMAT_VERSION}"
                )
            return list(file["video_id"].asstr()[:]), json.loads(file.attrs["recipe"])
    except (OSError, KeyError, ValueError) as error:
        reason = "it is a folder" if path.is_dir() else str(error).splitlines()[0]
        raise FeatureFileError(
            f"{path} is not a readable feature file ({reason}): choose another output, or move it away"
        ) from error


def _create(file: h5py.File, recipe: Recipe, num_rows: int, samples: dict[str, NDArray[Any]]) -> None:
    """Empty datasets for so many rows, each shaped like its sample."""
    file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
    file.attrs["recipe"] = json.dumps(recipe)
    file.create_dataset("video_id", (num_rows,), h5py.string_dtype("utf-8"))
    for name, sample in samples.items():
        file.create_dataset(name, (num_rows, *sample.shape), sample.dtype)
    for name in ("video_id", *samples):
        file[name].attrs["description"], file[name].attrs["unit"] = _DATASETS[name]


@contextmanager
def _replacing(path: Path) -> Iterator[h5py.File]:
    """A new file that takes the place of ``path`` when it is whole and on the disk."""
    new = path.with_name(path.name + ".new")
    try:
        with h5py.File(new, "w") as file:
            yield file
        with new.open("rb") as written:
            os.fsync(written.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
