"""Feature files, our own and those that others made, as tables with one row a video.

Nothing is ever read as a whole: tables give blocks of rows or blocks of columns. What cannot be read in that way (a
compressed archive, a file a video) is first laid out flat in a temporary folder.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.aslan.arrays import archive_members, file_header, load_array, load_member, require_room, unpack
from tvnet_cli.aslan.matlab import matlab_hdf5, matlab_shapes, read_matlab
from tvnet_cli.aslan.pairs import PairSplits, sample_id
from tvnet_cli.errors import DatasetError, DiskFullError, FeatureFileError
from tvnet_cli.features.table import (
    Source,
    VideoTable,
    checked_source,
    choose_layers,
    read_layers,
    readable,
    rows_at_once,
    times,
)
from tvnet_cli.hdf5 import is_hdf5
from tvnet_cli.writing import DISK_IS_FULL, no_room

ID_LISTS = ("video_id.txt", "video_id.npy", "ids.txt", "ids.npy")
STIP_MATRIX = re.compile(r"STIP_(\w+)_pairs_mat")
T = TypeVar("T")
FOUR_DIGITS = re.compile(r"(?<!\d)\d{4}$")
UNKNOWN_FILE = (
    "a feature file of this program, an .npz with video_id, an .npy beside a list of ids "
    f"({' or '.join(ID_LISTS)}), a folder of such files or of one .npy or .npz a video, or ASLAN_..._pairs.mat"
)


class FeatureType(Protocol):
    """One kind of feature vector, such as a layer of a network, for many videos."""

    @property
    def name(self) -> str:
        """Such as ``flow/global_pool``."""

    @property
    def by_split(self) -> bool:
        """Whether the features differ by the split that is tested."""

    @property
    def files(self) -> list[str]:
        """Where the features come from."""

    @property
    def num_values(self) -> int:
        """Length D of a feature vector."""

    def missing(self, videos: Sequence[str]) -> list[str]:
        """Those of the videos that have no features."""

    def tables(self, videos: Sequence[str], tested: Sequence[int]) -> Iterator[VideoTable]:
        """One table for all splits, or one for each tested split."""


class VideoFinder(Generic[T]):
    """Finds the videos of pairs among named things, such as rows of a feature file.

    An equal name goes first. Otherwise a suffix or folders that only one of the two names has do not count, and a
    sample id is found as the last four digits of a stem.

    Parameters
    ----------
    things : sequence of (name, thing)
    where : str
        Said in the message of an error.

    Examples
    --------
    >>> find = VideoFinder([("walk/a.avi", 0), ("clip-0084.mp4", 1)], "features.h5")
    >>> find("walk/a.avi"), find("a"), find("run/a"), find("0084")
    (0, 0, None, 1)
    """

    def __init__(self, things: Sequence[tuple[str, T]], where: str) -> None:
        self.things, self.where = things, where
        self._exact: dict[str, list[int]] = defaultdict(list)
        self._last: dict[str, list[int]] = defaultdict(list)
        self._sample: dict[str, list[int]] = defaultdict(list)
        for number, (name, _) in enumerate(things):
            self._exact[name].append(number)
            for last in {parts[-1] for parts in _name_forms(name)}:
                self._last[last].append(number)
            self._sample[_sample_id_of(name)].append(number)

    def __call__(self, video: str) -> T | None:
        """The thing that belongs to the video, or None.

        Raises
        ------
        DatasetError
            If more than one fits.
        """
        fitting = self._exact.get(video) or sorted({*self._tails(video), *self._sample.get(video or " ", ())})
        if len(fitting) > 1:
            names = " and ".join(self.things[number][0] for number in fitting[:2])
            raise DatasetError(f"{self.where}: {names} both fit the video {video}")
        return self.things[fitting[0]][1] if fitting else None

    def _tails(self, video: str) -> Iterator[int]:
        """Names of which one is the end of the other."""
        for wanted in _name_forms(video):
            for number in self._last.get(wanted[-1], ()):
                for known in _name_forms(self.things[number][0]):
                    length = min(len(wanted), len(known))
                    if wanted[-length:] == known[-length:]:
                        yield number


def _name_forms(name: str) -> set[tuple[str, ...]]:
    """The parts of a path, with and without its suffix."""
    path = PurePosixPath(name or " ")
    return {path.parts, path.with_suffix("").parts}


def _sample_id_of(name: str) -> str:
    """The sample id in a name, or nothing."""
    stem = PurePosixPath(name).stem
    match = FOUR_DIGITS.search(stem)
    return match[0] if match else sample_id(stem) if stem.isdigit() and len(stem) < 4 else ""


class FileFeatures:
    """A feature type out of one or more files with a row a video."""

    by_split = False

    def __init__(self, name: str, sources: Sequence[Source]) -> None:
        self.name, self.sources = name, tuple(sources)
        first = sources[0]
        for source in sources[1:]:
            if source.shape[1:] != first.shape[1:]:
                raise FeatureFileError(
                    f"{name} has rows of {times(first.shape[1:])} in {first.file} "
                    f"and of {times(source.shape[1:])} in {source.file}"
                )
        rows = [(name, (number, row)) for number, source in enumerate(sources) for row, name in enumerate(source.ids)]
        self.files = list(dict.fromkeys(source.file for source in sources))
        self._find = VideoFinder(rows, f"{name} in {', '.join(self.files)}")

    @property
    def num_values(self) -> int:
        """Length D of a feature vector."""
        return int(np.prod(self.sources[0].shape[1:]))

    def missing(self, videos: Sequence[str]) -> list[str]:
        """Those of the videos that have no features."""
        return [video for video in videos if self._find(video) is None]

    def tables(self, videos: Sequence[str], tested: Sequence[int]) -> Iterator[VideoTable]:
        """One table, which serves all splits."""
        rows: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, video in enumerate(videos):
            found = self._find(video)
            assert found is not None
            rows[found[0]].append((found[1], place))
        parts = []
        for number, pairs in sorted(rows.items()):
            order = np.array(sorted(pairs), np.int64)
            parts.append((self.sources[number], order[:, 0], order[:, 1]))
        yield VideoTable(self.name, tuple(videos), tuple(parts))


class StipFeatures:
    """The official ``ASLAN_{HOG,HOF,HNF}_pairs.mat``: pairs x D x 2 x splits, the vocabulary differs by split.

    In the slice of a split its own test pairs come first, then all others, taken here in the order of the pairs
    file. A video that occurs in several pairs must have the same values in each: that is checked, and would show
    another order.
    """

    by_split = True

    def __init__(self, path: Path, variable: str, shape: Sequence[int], pairs: PairSplits, staging: Path) -> None:
        match = STIP_MATRIX.fullmatch(variable)
        self.name = match[1] if match else variable
        self.path, self.variable, self.pairs, self.staging = path, variable, pairs, staging
        if tuple(shape[i] for i in (0, 2, 3)) != (len(pairs), 2, len(pairs.split_names)):
            raise FeatureFileError(
                f"{path}: {variable} is {times(shape)}, for {len(pairs)} pairs in {len(pairs.split_names)} splits it "
                f"should be {len(pairs)} x D x 2 x {len(pairs.split_names)}: it belongs to other pairs"
            )
        self.num_values, self.files = shape[1], [str(path)]

    def missing(self, videos: Sequence[str]) -> list[str]:
        """Those of the videos that have no features."""
        known = set(self.pairs.videos)
        return [video for video in videos if video not in known]

    def tables(self, videos: Sequence[str], tested: Sequence[int]) -> Iterator[VideoTable]:
        """One table for each tested split."""
        for split in tested:
            path = self.staging / f"{self.name}.npy"
            with _staged(self.staging):
                ids = self._lay_out(path, split)
            yield from FileFeatures(
                self.name, [Source(str(self.path), path, "", ids, (len(ids), self.num_values))]
            ).tables(videos, tested)
            path.unlink()

    def _lay_out(self, path: Path, split: int) -> tuple[str, ...]:
        """Write the features of each video under the vocabulary of a split; the ids of the rows."""
        pairs = self.pairs
        order = np.concatenate([np.flatnonzero(pairs.split == split), np.flatnonzero(pairs.split != split)])
        row_of = {video: row for row, video in enumerate(pairs.videos)}
        require_room(path.parent, self.path, 8 * len(row_of) * self.num_values)
        table = np.lib.format.open_memmap(path, "w+", np.float64, (len(row_of), self.num_values))
        seen = np.zeros(len(row_of), np.bool_)
        for start, block in self._blocks(split):  # (n, D, 2)
            for number, row in enumerate(order[start : start + len(block)].tolist()):
                for side, video in enumerate((pairs.video_a[row], pairs.video_b[row])):
                    place, values = row_of[video], block[number, :, side]
                    if seen[place] and not np.array_equal(table[place], values, equal_nan=True):
                        raise FeatureFileError(
                            f"{self.path}: row {start + number + 1} of slice {split + 1} should hold the video "
                            f"{video}, but differs from an earlier row of it: the file belongs to other pairs, or to "
                            "another order of them"
                        )
                    table[place], seen[place] = values, True
        return tuple(row_of)

    def _blocks(self, split: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """The first pair of a block, and (n, D, 2) values."""
        if not is_hdf5(self.path):  # at most 2 GB, that format has no more
            yield 0, read_matlab(self.path, lambda name, shape: name == self.variable)[self.variable][..., split]
            return
        with matlab_hdf5(self.path) as source:
            source.require_stored(self.variable)
            matrix = source.file[self.variable]  # (splits, 2, D, pairs): the axes of HDF5 are the other way round
            step = max(rows_at_once(2 * self.num_values), (matrix.chunks or (1,))[-1])
            for start in range(0, len(self.pairs), step):
                yield start, matrix[split, :, :, start : start + step].T


@contextmanager
def open_features(paths: Sequence[Path], pairs: PairSplits, names: Sequence[str] = ()) -> Iterator[list[FeatureType]]:
    """The feature types of files, joined by video id.

    Parameters
    ----------
    paths : sequence of Path
        - HDF5 files of ``tvnet features``: every dataset of the groups ``flow`` and ``rgb``.
        - ``.npz`` with ``video_id`` and one array (N, D) a feature type.
        - ``.npy`` (N, D), the type is its name; beside it a list of ids, ``video_id.txt`` or ``ids.txt`` (a line
          each), or the same as ``.npy``.
        - A folder of such ``.npy`` files with their list.
        - A folder of one file a video, ``.npy`` (D,) or ``.npz`` with one array (D,) a type; with two axes, the first
          are clips: averaged, then divided by the L2 norm.
        - The official ``ASLAN_{HOG,HOF,HNF}_pairs.mat``.

        One type may come from several files, for different videos.
    pairs : PairSplits
        What the official ``.mat`` files are held against.
    names : sequence of str, optional
        The types to take, in this order; without, all: ours in the order of ``KNOWN_ORDER``, then others as they come.

    Yields
    ------
    list of FeatureType
        They read from the files, inside the ``with`` block.

    Raises
    ------
    FeatureFileError
        If a file is not of these kinds, is damaged, or has no such type.
    """
    with TemporaryDirectory(prefix="tvnet-") as folder:
        staging = Path(folder)
        sources: dict[str, list[Source]] = defaultdict(list)
        stip: dict[str, FeatureType] = {}
        for number, path in enumerate(paths):
            if not path.exists():
                raise FeatureFileError(f"no such feature file: {path}")
            if not (path.is_file() or path.is_dir()):
                raise FeatureFileError(f"{path} is a pipe or a device, not a feature file")
            place = staging / str(number)
            place.mkdir()
            if path.suffix.lower() == ".mat":
                for variable, shape in _stip_matrices(path).items():
                    features = StipFeatures(path, variable, shape, pairs, place)
                    stip[features.name] = features
                continue
            for name, source in _sources(path, place):
                sources[name].append(source)
        types: dict[str, FeatureType] = {name: FileFeatures(name, several) for name, several in sources.items()}
        yield choose_layers(types | stip, names)


def _stip_matrices(path: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {name: shape for name, shape in matlab_shapes(path).items() if shape[3:]}
    if not shapes:
        raise FeatureFileError(f"{path} holds no matrix of pairs x values x 2 x splits")
    return shapes


def _sources(path: Path, staging: Path) -> Iterator[tuple[str, Source]]:
    """The feature types of a file or folder."""
    with readable(path), _staged(staging):
        if path.is_dir():
            yield from _from_folder(path, staging)
        elif is_hdf5(path):
            yield from read_layers(path).items()
        elif zipfile.is_zipfile(path):
            yield from _from_npz(path, staging)
        elif path.suffix.lower() == ".npy":
            yield from _from_npy(path, _id_list(path.parent))
        else:
            raise FeatureFileError(f"{path} is no feature file: expected {UNKNOWN_FILE}")


@contextmanager
def _staged(staging: Path) -> Iterator[None]:
    """Name the temporary folder, and not the input, where there is no room for what is laid out flat in it."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise DiskFullError(f"{no_room(staging, error)} (TMPDIR names another folder)") from error
        raise


def _from_npz(path: Path, staging: Path) -> Iterator[tuple[str, Source]]:
    members = archive_members(path)
    if "video_id" not in members:
        raise FeatureFileError(f"{path} has no array video_id; it holds {', '.join(members)}")
    ids = _as_ids(load_member(path, members.pop("video_id")))
    for name, flat in unpack(path, members, staging):
        yield name, checked_source(name, path, flat, "", ids, _npy_shape(flat))


def _from_npy(path: Path, ids: tuple[str, ...]) -> Iterator[tuple[str, Source]]:
    yield path.stem, checked_source(path.stem, path, path, "", ids, _npy_shape(path))


def _from_folder(folder: Path, staging: Path) -> Iterator[tuple[str, Source]]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".npy", ".npz"))
    files = [path for path in files if not path.name.startswith(".")]
    if any((folder / name).exists() for name in ID_LISTS):
        ids = _id_list(folder)
        for path in files:
            if path.parent == folder and path.suffix.lower() == ".npy" and path.name not in ID_LISTS:
                yield from _from_npy(path, ids)
        return
    if not files:
        raise FeatureFileError(f"the folder {folder} holds no .npy or .npz; expected {UNKNOWN_FILE}")
    yield from _lay_out_files(folder, files, staging)


def _lay_out_files(folder: Path, files: Sequence[Path], staging: Path) -> Iterator[tuple[str, Source]]:
    """One file a video, written into one flat file a type."""
    ids = tuple(path.relative_to(folder).with_suffix("").as_posix() for path in files)
    tables: dict[str, tuple[Path, Any]] = {}
    for row, path in enumerate(files):
        vectors = _vectors_of_a_video(path, folder.resolve().name)
        if row and vectors.keys() != tables.keys():
            raise FeatureFileError(f"{path} holds {', '.join(vectors)}; the files before it {', '.join(tables)}")
        for name, vector in vectors.items():
            if not row:
                require_room(staging, folder, 8 * len(files) * vector.size)
                flat = staging / f"{len(tables)}.npy"
                tables[name] = flat, np.lib.format.open_memmap(flat, "w+", np.float64, (len(files), len(vector)))
            table = tables[name][1]
            if vector.shape != table.shape[1:]:
                raise FeatureFileError(f"{path}: {name} has {len(vector)} values, the files before it {table.shape[1]}")
            table[row] = vector
    for name, (flat, table) in tables.items():
        table.flush()
        yield name, checked_source(name, folder, flat, "", ids, table.shape)


def _vectors_of_a_video(path: Path, name: str) -> dict[str, NDArray[Any]]:
    """The feature vectors of one video; an array with two axes holds clips, which are averaged, then L2-normalised."""
    if path.suffix.lower() == ".npz":
        arrays = {key: load_member(path, member) for key, member in archive_members(path).items()}
    else:
        arrays = {name: load_array(path)}
    vectors = {}
    for key, array in arrays.items():
        if array.ndim not in (1, 2) or array.dtype.kind not in "biuf" or not array.size:
            raise FeatureFileError(
                f"{path}: {key} is {array.dtype} of shape {array.shape}; expected numbers (D,) or (clips, D)"
            )
        if array.ndim == 2:
            mean = array.astype(np.float64).mean(axis=0)
            array = mean / (np.linalg.norm(mean) or 1.0)
        vectors[key] = array
    return vectors


def _npy_shape(path: Path) -> tuple[int, ...]:
    shape, dtype = file_header(path)
    if dtype.kind not in "biuf":
        raise FeatureFileError(f"{path} holds {dtype}, no numbers")
    return shape


def _id_list(folder: Path) -> tuple[str, ...]:
    for name in ID_LISTS:
        path = folder / name
        if path.suffix == ".npy" and path.exists():
            return _as_ids(load_array(path))
        if path.is_file():
            return tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    raise FeatureFileError(f"no list of ids in {folder}: expected one of {', '.join(ID_LISTS)}, an id a line")


def _as_ids(array: NDArray[Any]) -> tuple[str, ...]:
    return tuple(one.decode() if isinstance(one, bytes) else str(one) for one in array.ravel().tolist())
