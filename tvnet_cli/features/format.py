"""What a feature file is: plain HDF5, one row a video, sorted by id, each row with a checksum.

The root has checksums of its own: of the recipe, the list of software, the list of datasets and the failures. What
users add to a file, attributes and datasets, is under no checksum and is carried along when the file is written anew.

All writing goes through Python's own files, so that a full disk is an error like any other (inside HDF5 it ends the
process), and into a new file that takes the place of the old one when it is whole and on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvnet_cli.errors import DamagedError, FeatureFileError
from tvnet_cli.features.datasets import DATASETS, FILL, TEXT, Generation, fault, in_rows, missing
from tvnet_cli.features.users import UserRows, carry, find_user_rows, require_copyable
from tvnet_cli.hdf5 import CONTENT_ERRORS, OpenFile, first_line, is_hdf5, opened, runs
from tvnet_cli.recipe import Recipe
from tvnet_cli.writing import DISK_IS_FULL, CalmFile, disk_full, no_room

FORMAT, FORMAT_VERSION = "tvnet-features", 2
READABLE_VERSIONS = (1, 2)
HDF5_VERSION = "v108"  # of the file's own tables: everything since 2008 reads it, and they carry checksums
PORTION_BYTES = 2**25  # of rows that are copied or checked at once
FAILURES = ("failures/video_id", "failures/reason", "failures/code")
SOFTWARE_PROBLEM = "the list of software differs from its checksum"

Fields = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shape and type of a row, by name of dataset
RowProgress = Callable[[int, int], None]  # rows done, of so many


@dataclass(frozen=True)
class Failure:
    """Why a video has no row: for people, and as one of ``tvnet_cli.errors.REASONS``."""

    reason: str
    code: str = ""


@dataclass(frozen=True)
class Contents:
    """What a feature file holds, without the rows themselves.

    Attributes
    ----------
    path : Path
    recipe : dict
        Its ``software`` is the first record of the list.
    rows : dict of video id to the number of its row
    fields : dict of dataset name to (shape, type) of a row
        That the program wrote; without ``video_id`` and ``checksum``.
    failures : dict of video id to Failure
    has_checksums : bool
        Files of older programs have none.
    software : tuple of dict
        The records of software that made the rows; ``written_by`` counts them.
    users : dict of dataset name to UserRows
        Datasets that users added, with a row for each video.
    problems : tuple of str
        Of the file as a whole, which leave its rows good.
    """

    path: Path
    recipe: Recipe
    rows: dict[str, int] = field(repr=False)
    fields: Fields = field(repr=False)
    failures: dict[str, Failure] = field(repr=False)
    has_checksums: bool
    software: tuple[Recipe, ...] = field(repr=False)
    users: dict[str, UserRows] = field(repr=False)
    problems: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Size of a row, with what users added."""
        own = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.fields.values())
        return own + sum(rows.row_bytes for rows in self.users.values())

    def portions(self, videos: Sequence[str] | None = None) -> Iterator[list[str]]:
        """All videos, or these, some at a time, in the order of their rows."""
        in_order = sorted(self.rows if videos is None else videos, key=self.rows.__getitem__)
        size = max(1, PORTION_BYTES // max(1, self.row_bytes))
        for start in range(0, len(in_order), size):
            yield in_order[start : start + size]


def read_contents(path: Path) -> Contents:
    """What a feature file holds, without the rows themselves.

    Raises
    ------
    DamagedError
        If it is a feature file, or another HDF5 file, that cannot be read, or differs from what was written.
    FeatureFileError
        If it is no feature file of this format version.
    FileAccessError, RefusedFileError
        As ``tvnet_cli.hdf5.opened``.
    """
    contents = look_into(path)
    for problem in contents.problems:
        if problem != SOFTWARE_PROBLEM:  # nothing that is used depends on that one
            raise DamagedError(path, problem)
    return contents


def look_into(path: Path) -> Contents:
    """As ``read_contents``, but problems of the file that leave its rows good are told and not raised.

    Failures that differ from their checksum are left out.
    """
    with _reading(path) as source:
        attributes = source.file.attrs
        generation = _generation(source)
        _require_places(source)
        recipe = json.loads(attributes["recipe"])
        if not isinstance(recipe, dict):
            raise DamagedError(path, "the recipe is not a JSON object")
        records: list[Recipe] = []
        problems = []
        if generation == "2":
            # The recipe of a file has the software that it was begun with, which is the first record of the list.
            records = [recipe.get("software", {}), *json.loads(attributes["software"])[1:]]
            sums = json.loads(attributes["checksums"])
            if root_sum(without_software(recipe)) != sums["recipe"]:
                raise DamagedError(path, "the recipe differs from its checksum")
            if root_sum(json.loads(attributes["datasets"])) != sums["datasets"]:
                raise DamagedError(path, "the list of datasets differs from its checksum")
            problems += [SOFTWARE_PROBLEM] if root_sum(records) != sums["software"] else []
        else:
            records = [recipe.get("software", {})]
        ids = source.text("video_id").tolist()
        if len(set(ids)) != len(ids):
            raise DamagedError(path, "a video has two rows")
        fields = _fields(source, generation, recipe, len(ids))
        failures = _failures(source)
        if generation == "2" and root_sum(_failure_lines(failures)) != sums["failures"]:
            problems.append("the list of failures differs from its checksum")
            failures = {}
        return Contents(
            path,
            {**recipe, "software": records[0]} if records[0] else recipe,
            {video_id: number for number, video_id in enumerate(ids)},
            fields,
            failures,
            "checksum" in source.datasets,
            tuple(records),
            find_user_rows(source, len(ids)),
            tuple(problems),
        )


def _require_places(source: OpenFile) -> None:
    """Check that groups and datasets of the program are not the other way round."""
    groups = {name.rpartition("/")[0] for name in DATASETS} - {""}
    if wrong := [*(groups & set(source.datasets)), *(DATASETS.keys() & set(source.groups))]:
        raise DamagedError(source.path, f"{wrong[0]} is {'not ' if wrong[0] in groups else ''}a group")


def _generation(source: OpenFile) -> Generation:
    if source.file.attrs["format_version"] == FORMAT_VERSION:
        return "2"
    if {"checksums", "datasets"} & set(source.file.attrs):
        raise DamagedError(source.path, "its format_version is 1, but it was written as 2")
    return "1b" if "failures" in source.groups else "1a"


def _fields(source: OpenFile, generation: Generation, recipe: Recipe, num_rows: int) -> Fields:
    """Shapes and types of the rows that the program wrote, held against the table of all datasets."""
    there = [name for name in DATASETS if name in source.datasets]
    if generation == "2":
        listed = json.loads(source.file.attrs["datasets"])
        if unknown := [name for name in listed if name not in DATASETS]:
            raise FeatureFileError(f"{source.path} was written by a newer program: {named(unknown)} is not known here")
        if foreign := [name for name in there if in_rows(name) and name not in listed]:
            raise DamagedError(source.path, f"{named(foreign)} is not in its list of datasets")
        lost = [name for name in listed if name not in there]
        wrong = [name for name in there if name in listed and _as_listed(source.file[name]) != listed[name]]
        if lost or wrong:
            raise DamagedError(
                source.path, f"{'missing' if lost else 'changed in type or shape'}: {named(lost or wrong)}"
            )
    if lost := missing(dict.fromkeys(there), generation, recipe, num_rows):
        raise DamagedError(source.path, f"missing: {named(lost)}")
    for name in there:
        length = source.file["failures/video_id"].shape[0] if name in FAILURES else num_rows
        if problem := fault(source, name, recipe, length):
            raise DamagedError(source.path, problem)
    fields = {name: (tuple(source.file[name].shape[1:]), source.file[name].dtype) for name in there if in_rows(name)}
    for name, (_, dtype) in fields.items():
        if dtype == TEXT:
            source.text(name)  # that it is no larger than the file
    return dict(sorted(fields.items()))


def _failures(source: OpenFile) -> dict[str, Failure]:
    if "failures" not in source.groups:
        return {}
    return {video_id: Failure(*why) for video_id, *why in zip(*map(source.text, FAILURES), strict=True)}


def _failure_lines(failures: Mapping[str, Failure]) -> list[list[str]]:
    return [[video_id, failures[video_id].reason, failures[video_id].code] for video_id in sorted(failures)]


def _as_listed(dataset: h5py.Dataset) -> list[Any]:
    """Type and shape of a row as the list of datasets has them."""
    return _listed(tuple(dataset.shape[1:]), dataset.dtype)


def _listed(shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Any]:
    return ["text" if dtype.kind == "O" else dtype.str, list(shape)]


def root_sum(value: Any) -> int:
    """CRC-32 of a value as JSON with sorted keys and without spaces."""
    return zlib.crc32(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def without_software(recipe: Recipe) -> Recipe:
    """The part of a recipe that has to agree."""
    return {key: value for key, value in recipe.items() if key != "software"}


def require_replaceable(path: Path) -> None:
    """That nothing but a feature file, damaged perhaps, is lost if another takes its place.

    Raises
    ------
    FeatureFileError
    """
    if path.exists() and not (path.is_file() and path.stat().st_size == 0):
        with suppress(DamagedError), _reading(path):
            pass  # what it is stands at its beginning


def read_rows(contents: Contents, videos: Sequence[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Some rows, which lie near each other, in their order.

    Returns
    -------
    dict of dataset name to ndarray, (n, ...)
    list of str
        The videos whose rows do not fit their checksums.

    Raises
    ------
    DamagedError
        If they cannot be read.
    """
    numbers = np.array([contents.rows[video_id] for video_id in videos], np.int64)
    with _reading(contents.path) as source:
        values = {name: source.rows(name, numbers) for name in contents.fields}
        stored = source.rows("checksum", numbers) if contents.has_checksums else None
    fits = np.ones(len(videos), np.bool_) if stored is None else checksums(videos, values) == stored
    return values, [video_id for video_id, right in zip(videos, fits.tolist(), strict=True) if not right]


def read_columns(contents: Contents, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return some small datasets of all rows, as far as the file has them, without a look at checksums.

    Raises
    ------
    DamagedError
        If they cannot be read.
    """
    with _reading(contents.path) as source:
        return {name: source.file[name][:] for name in names if name in contents.fields}


def checksums(videos: Sequence[str], values: Mapping[str, NDArray[Any]]) -> NDArray[np.uint32]:
    """The checksums of rows: CRC-32 of the id, then of name and bytes of each dataset in the order of their names.

    Text is UTF-8, numbers are little-endian, arrays in C order.

    Parameters
    ----------
    videos : sequence of str, n
    values : dict of dataset name to ndarray, (n, ...)

    Returns
    -------
    ndarray, (n,), uint32
    """
    sums = [zlib.crc32(video_id.encode()) for video_id in videos]
    for name in sorted(values):
        if values[name].dtype.kind == "O":
            rows: list[Any] = [text.encode() if isinstance(text, str) else text for text in values[name]]
        else:
            block = np.ascontiguousarray(values[name], values[name].dtype.newbyteorder("<"))
            rows = [row.data for row in block.reshape(len(sums), -1).view(np.uint8)]
        sums = [zlib.crc32(row, zlib.crc32(name.encode(), value)) for row, value in zip(rows, sums, strict=True)]
    return np.array(sums, np.uint32)


def write_row(path: Path, recipe: Recipe, video_id: str, values: Mapping[str, ArrayLike]) -> None:
    """A feature file of one row.

    Raises
    ------
    DiskFullError
    """
    given = {"notes": "", "written_by": 0, **values}
    row = {name: np.asarray(value, DATASETS[name].dtype)[None] for name, value in given.items()}
    fields = {name: (array.shape[1:], DATASETS[name].dtype) for name, array in row.items()}
    with _replacing(path) as new:
        _create(new.file, recipe, [recipe.get("software", {})], [video_id], fields, {})
        for name, array in row.items():
            new.file[name][:] = array
        new.file["checksum"][:] = checksums([video_id], row)


def write_failures(path: Path, recipe: Recipe, failures: Mapping[str, Failure]) -> None:
    """A feature file without a row, of failures or of nothing.

    Raises
    ------
    DiskFullError
    """
    with _replacing(path) as new:
        _create(new.file, recipe, [recipe.get("software", {})], [], {}, failures)


def join(
    output: Path,
    recipe: Recipe,
    sources: Sequence[Contents],
    progress: RowProgress | None = None,
    new: Path | None = None,
) -> None:
    """Write one feature file of the rows and failures of others, sorted by id.

    Each file is read once, from its first row to its last, some at a time, and each row is held against its checksum.
    What users added to the sources is carried along: see ``tvnet_cli.features.users``.

    Parameters
    ----------
    output : Path
        May be one of the sources: it is replaced in one step, at the end.
    recipe : dict
        The software in it counts if no source has a row.
    sources : sequence of Contents
        Where two hold the same, that of the later counts. A row counts before a failure.
    progress : callable, optional
        May raise, to stop.
    new : Path, optional
        Where the file grows; on the same disk.

    Raises
    ------
    DamagedError
        If rows do not fit their checksums, or cannot be read.
    FeatureFileError
        If two sources have rows of different shapes.
    DiskFullError
    """
    home = {video_id: number for number, source in enumerate(sources) for video_id in source.rows}
    failures = {video_id: failure for source in sources for video_id, failure in source.failures.items()}
    ids = sorted(home)
    place = {video_id: number for number, video_id in enumerate(ids)}
    fields, users = _common_fields(sources), _common_users(sources)
    software, records = _software(recipe, sources, set(home.values()))
    _require_room(output, sum(len(source.rows) * source.row_bytes for source in sources))
    for source in sources:
        if source.users:
            with _reading(source.path) as old:
                require_copyable(old, source.users)
    with _replacing(output, new) as target:
        failed = {video_id: failure for video_id, failure in failures.items() if video_id not in home}
        _create(target.file, recipe, software, ids, fields, failed)
        for name, rows in users.items():
            rows.create(target.file, name, len(ids))
        for source in sources:
            with _reading(source.path) as old:
                carry(old, target.file, users)
        sums = np.zeros(len(ids), np.uint32)
        done = 0
        for number, source in enumerate(sources):
            for videos in source.portions([video_id for video_id in source.rows if home[video_id] == number]):
                places = np.array([place[video_id] for video_id in videos], np.int64)
                sums[places] = _copy_rows(target, source, videos, places, fields, records[number])
                done += len(videos)
                if progress:
                    progress(done, len(ids))
        target.file["checksum"][:] = sums


def _copy_rows(
    target: _NewFile,
    source: Contents,
    videos: Sequence[str],
    places: NDArray[np.int64],
    fields: Fields,
    records: NDArray[np.int64],
) -> NDArray[np.uint32]:
    """Copy some rows of a file; their new checksums. ``records`` has the new number of each record of software."""
    values, wrong = read_rows(source, videos)
    if wrong:
        raise DamagedError(source.path, f"{named(wrong)} differ from their checksums", tuple(wrong))
    made_by = values.get("written_by", np.zeros(len(videos), np.int64))
    values["written_by"] = records[np.clip(made_by, 0, len(records) - 1)]
    for name, (shape, dtype) in fields.items():
        if name not in values:
            values[name] = np.full((len(videos), *shape), FILL[dtype.kind], dtype)
        _write_runs(target.file[name], places, values[name])
        target.raw.check()
    if source.users:
        numbers = np.array([source.rows[video_id] for video_id in videos], np.int64)
        with _reading(source.path) as old:
            added = {name: old.rows(name, numbers) for name in source.users}
        for name, block in added.items():
            _write_runs(target.file[name], places, block)
            target.raw.check()
    return checksums(videos, {name: values[name] for name in fields})


def _software(
    recipe: Recipe, sources: Sequence[Contents], with_rows: set[int]
) -> tuple[list[Recipe], list[NDArray[np.int64]]]:
    """The records of software of all sources that have rows, each once, and where those of each source are in them."""
    found: list[Recipe] = []
    for number, source in enumerate(sources):
        if number in with_rows:
            found += [record for record in source.software if record not in found]
    found = found or [recipe.get("software", {})]
    return found, [
        np.array([found.index(record) if record in found else 0 for record in source.software], np.int64)
        for source in sources
    ]


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, not only in memory."""
    with suppress(OSError):  # some network disks know no such thing
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def named(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _reading(path: Path) -> Iterator[OpenFile]:
    """A feature file, open; what goes wrong in reading it has a clear name."""
    if path.exists() and not path.is_file():  # to open a pipe is to wait
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise FeatureFileError(f"{path} is not a feature file but {kind}: choose another file")
    try:
        with opened(path) as source:
            attributes = source.file.attrs
            if attributes.get("format") != FORMAT:
                raise FeatureFileError(
                    f"{path} is an HDF5 file, but not of tvnet features: choose another file, or move it away"
                )
            if attributes["format_version"] not in READABLE_VERSIONS:
                raise FeatureFileError(
                    f"{path} has format version {attributes['format_version']}, this program knows "
                    f"{' and '.join(map(str, READABLE_VERSIONS))}"
                )
            yield source
    except CONTENT_ERRORS as error:
        if not isinstance(error, FileNotFoundError) and is_hdf5(path):
            raise DamagedError(path, first_line(error)) from error
        raise FeatureFileError(
            f"{path} is not a readable feature file ({first_line(error)}): choose another file, or move it away"
        ) from error


def _create(
    file: h5py.File,
    recipe: Recipe,
    software: Sequence[Recipe],
    ids: Sequence[str],
    fields: Fields,
    failures: Mapping[str, Failure],
) -> None:
    """All of a feature file but its rows and their checksums."""
    listed = {name: _listed(*fields[name]) for name in fields}
    sums = {
        "recipe": root_sum(without_software(recipe)),
        "software": root_sum(list(software)),
        "datasets": root_sum(listed),
        "failures": root_sum(_failure_lines(failures)),
    }
    file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
    file.attrs["recipe"] = json.dumps({**recipe, "software": software[0]} if software[0] else recipe)
    for name, value in {"software": list(software), "datasets": listed, "checksums": sums}.items():
        file.attrs[name] = json.dumps(value)
    failed = sorted(failures)
    texts = {
        "video_id": ids,
        "failures/video_id": failed,
        "failures/reason": [failures[video_id].reason for video_id in failed],
        "failures/code": [failures[video_id].code for video_id in failed],
    }
    for name, lines in texts.items():
        file.create_dataset(name, (len(lines),), TEXT)[:] = lines
    for name, (shape, dtype) in {**fields, "checksum": ((), np.dtype(np.uint32))}.items():
        file.create_dataset(name, (len(ids), *shape), dtype)
    for name in (*texts, *fields, "checksum"):
        about = DATASETS[name]
        file[name].attrs["description"], file[name].attrs["unit"] = about.description, about.unit


def _common_fields(sources: Sequence[Contents]) -> Fields:
    """Shapes and types that the rows of all sources have."""
    found: dict[str, tuple[Path, tuple[tuple[int, ...], np.dtype[Any]]]] = {}
    for source in sources:
        for name, mine in source.fields.items():
            first, theirs = found.setdefault(name, (source.path, mine))
            if theirs != mine:
                raise FeatureFileError(f"{name} has rows of {theirs} in {first} and of {mine} in {source.path}")
    if any(source.rows for source in sources):  # what files of version 1 lack
        found |= {name: found.get(name, (Path(), ((), DATASETS[name].dtype))) for name in ("notes", "written_by")}
    return {name: found[name][1] for name in DATASETS if name in found}


def _common_users(sources: Sequence[Contents]) -> dict[str, UserRows]:
    """The same for datasets that users added."""
    found: dict[str, tuple[Path, UserRows]] = {}
    for source in sources:
        for name, mine in source.users.items():
            first, theirs = found.setdefault(name, (source.path, mine))
            if theirs != mine:
                raise FeatureFileError(f"{name} has rows of {theirs} in {first} and of {mine} in {source.path}")
    return {name: rows for name, (_, rows) in found.items()}


def _write_runs(dataset: h5py.Dataset, places: NDArray[np.int64], block: NDArray[Any]) -> None:
    """Write rows to their places, those that lie side by side at once."""
    for begin, end, rows in runs(places):
        dataset[rows] = block[begin:end]


@dataclass(frozen=True)
class _NewFile:
    """A feature file in the making."""

    file: h5py.File
    raw: CalmFile


@contextmanager
def _replacing(path: Path, new: Path | None = None) -> Iterator[_NewFile]:
    """A new file that takes the place of ``path`` when it is whole and on the disk."""
    new = new or path.with_name(path.name + ".new")
    try:
        with CalmFile(new, "w+b") as raw:
            with h5py.File(raw, "w", libver=(HDF5_VERSION, HDF5_VERSION)) as file:
                made = _NewFile(file, raw)
                yield made
            raw.check()
            os.fsync(raw.fileno())
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise no_room(path, error) from error
        raise
    finally:
        new.unlink(missing_ok=True)


def _require_room(path: Path, num_bytes: int) -> None:
    """Before an hour of copying, that there is room for it."""
    if num_bytes > shutil.disk_usage(path.parent).free:
        raise disk_full(path, f"{num_bytes / 1e6:.0f} MB more are needed")
