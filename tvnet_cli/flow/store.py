"""Flow fields in plain HDF5, readable whatever interrupts the run.

All writing goes through Python's own files, so that a full disk is an error like any other: inside HDF5 it ends the
process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import DiskFullError, FlowFileError, InputChangedError
from tvnet_cli.flow.field import Arrays, FlowField, as_stored
from tvnet_cli.recipe import Recipe, require_same_recipe
from tvnet_cli.writing import NO_LOCKS_HERE, CalmFile, disk_full, replacing, require_replaceable, writing

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows
    flock = None  # type: ignore[assignment]

FORMAT, FORMAT_VERSION = "tvnet-flow", 1
SPACE_BYTES = 2**30
TABLE_BYTES = 256  # at most, of what the tables of the file say about an array of a field
BEGINNING_BYTES = 2**16  # at most, of what the file holds before any field

_DATASETS = {
    "flow": ("flow from the first frame to the second: x to the right, y down", "pixels"),
    "backward": ("flow from the second frame to the first", "pixels"),
    "occlusion": ("1 where the second frame does not show what the first shows", "1"),
    "flow_scale": ("flow of a coarser level of the pyramid, 1 next to the finest", "pixels of the level"),
    "frame_index": ("numbers of the two frames", "frames"),
    "pts_seconds": ("time of the first frame", "seconds"),
}


class FlowStore:
    """A flow file, ``flow`` (N, 2, H, W) and what belongs to it, inside a ``with`` block.

    Space is set aside for a gibibyte of fields at once, so that adding a field moves no table of the file: whatever
    stops the run, a kill or a full disk too, the file opens. ``pts_seconds`` is NaN for a field that is not there yet,
    and is written after all else of its field. A run that ends or is interrupted cuts the file to the fields that are
    there; where the disk is full it stays as it is.

    Parameters
    ----------
    path : Path
    num_fields : int
        How many there will be; more or fewer in the end do no harm.
    recipe : dict
        All that decides the values. Kept in the file.
    half : bool
        Flow as float16.
    overwrite : bool
        Begin a new file.

    Attributes
    ----------
    num_done : int
        Fields that are there, from the beginning on.

    Raises
    ------
    FlowFileError
        On entering, if the file is not ours, or was made by another recipe or of another input; and, unless it is
        complete, if another program has it open.
    DiskFullError
        On writing and on leaving. The fields that are there stay, and the file is not said to be complete.
    """

    def __init__(self, path: Path, num_fields: int, recipe: Recipe, half: bool, overwrite: bool) -> None:
        self.path, self.num_fields, self.recipe, self.half = path, num_fields, recipe, half
        self.overwrite = overwrite
        self.num_done = 0
        self.notes: tuple[str, ...] = ()
        self._num_before = 0  # fields of earlier runs
        self._file: h5py.File | None = None
        self._raw: CalmFile | None = None

    def check(self) -> None:
        """Refuse a file that cannot be resumed, as on entering; with ``overwrite``, what is not a file.

        Raises
        ------
        FlowFileError, OutputError
        """
        require_replaceable(self.path, overwrite=True)
        with self:
            self._close()

    def __enter__(self) -> FlowStore:
        if not self.overwrite and self.path.exists() and (self.path.is_dir() or self.path.stat().st_size):
            # A file that is complete is only read, so that it may be open in other programs.
            self._open(writable=not is_complete(self.path))
            assert self._file is not None
            self.num_done = int(np.isfinite(self._file["pts_seconds"][:]).cumprod().sum())
        self._num_before = self.num_done
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is None or self._raw is None:
            return
        if isinstance(error, InputChangedError):
            self.num_done = self._num_before
            if not self.num_done:
                self._close()
                self.path.unlink(missing_ok=True)
                return
        try:
            with self._raw as raw, self._file as file:
                if raw.writable() and raw.error is None and not isinstance(error, DiskFullError):
                    with self._checked():
                        for name in file:
                            if len(file[name]) != self.num_done:
                                file[name].resize(self.num_done, axis=0)
                        file.flush()
                        os.fsync(raw.fileno())  # some disks say only here that they are full
                    file.attrs["complete"] = kind is None
            if kind is None:
                with self._checked():
                    pass
        finally:
            self._file = self._raw = None

    @property
    def exact(self) -> bool:
        """Whether the file gives fields back as they were."""
        return not self.half

    def times(self) -> NDArray[np.float64]:
        """Times of the fields that are there, (num_done,), seconds."""
        return self._file["pts_seconds"][: self.num_done] if self._file else np.empty(0)

    def read(self, position: int) -> Arrays:
        """The arrays of a field that is there."""
        assert self._file is not None
        names = [name for name in self._file if name not in ("frame_index", "pts_seconds")]
        return {name: self._file[name][position] for name in names}

    def write(self, field: FlowField) -> None:
        """Add the next field."""
        if field.position < self.num_done:
            return
        values: dict[str, Any] = {name: as_stored(array, self.half) for name, array in field.arrays.items()}
        values["frame_index"] = np.array(field.frame_index, np.int64)
        if self._file is None:
            self._create(values)
            self._open(writable=True)
        assert self._raw is not None
        if not self._raw.writable():  # the sequence has more frames than it had
            self._close()
            self._open(writable=True)
        file = self._file
        assert file is not None
        with self._checked():
            if field.position >= len(file["pts_seconds"]):
                self._make_room(file, field.position, values)
            for name, value in values.items():
                file[name][field.position] = value
            file.flush()
            file["pts_seconds"][field.position] = field.pts_seconds[0]
            file.flush()
        self.num_done = field.position + 1

    def _close(self) -> None:
        """Close the file as it is."""
        if self._raw is not None and self._file is not None:
            with self._raw, self._file:
                pass
        self._file = self._raw = None

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """What goes wrong in writing, which the file keeps to itself."""
        assert self._raw is not None
        with writing(self.path):
            try:
                yield
            finally:
                self._raw.check()

    def _make_room(self, file: h5py.File, start: int, values: dict[str, NDArray[Any]]) -> None:
        """Set aside space for the next fields."""
        room = self._fields_at_once(start, values)
        file.attrs["complete"] = False
        for name in file:
            file[name].resize(start + room, axis=0)
        file["pts_seconds"][start:] = np.nan
        file.flush()

    def _fields_at_once(self, start: int, values: dict[str, NDArray[Any]]) -> int:
        """How many fields to set space aside for, from number ``start`` on.

        No more than the disk has room for: one that fills while the tables grow could leave them in halves.
        """
        size = sum(value.nbytes + TABLE_BYTES for value in values.values())
        room = (shutil.disk_usage(self.path.parent).free - BEGINNING_BYTES) // size
        if room < 1:
            raise disk_full(self.path, f"a field takes {size / 1e6:.1f} MB")
        return max(1, min(SPACE_BYTES // size, room, self.num_fields - start))

    def _open(self, *, writable: bool) -> None:
        """Open the file that exists; to write, only if no other program has it open."""
        with ExitStack() as stack:
            try:
                raw = stack.enter_context(CalmFile(self.path, "r+b" if writable else "rb"))
                raw.read(1)  # what the disk does not give says nothing about the content
                if writable:
                    _lock(raw)
                file = stack.enter_context(h5py.File(raw, "r+" if writable else "r"))
            except BlockingIOError:
                raise FlowFileError(
                    f"{self.path} is not complete, and is open in another program: close it there, or choose another "
                    "output"
                ) from None
            except OSError as error:
                if error.errno is not None and not self.path.is_dir():
                    raise FlowFileError(
                        f"cannot open {self.path}, whose content was not read: {os.strerror(error.errno)}"
                    ) from error
                reason = "it is a folder" if self.path.is_dir() else str(error).splitlines()[0]
                raise FlowFileError(
                    f"{self.path} is not a readable flow file ({reason}): choose another output, or --overwrite"
                ) from error
            except MemoryError as error:
                raise FlowFileError(f"cannot open {self.path}, whose content was not read: out of memory") from error
            if file.attrs.get("format") != FORMAT or file.attrs.get("format_version") != FORMAT_VERSION:
                raise FlowFileError(
                    f"{self.path} is an HDF5 file, but no flow file of format version {FORMAT_VERSION}: "
                    "choose another output, or --overwrite"
                )
            self.notes = require_same_recipe(self.path, _recipe(self.path, file), self.recipe)
            self._file, self._raw = file, raw
            stack.pop_all()

    def _create(self, values: dict[str, NDArray[Any]]) -> None:
        """The file with all its space, put in its place when it is whole."""
        with replacing(self.path) as new, CalmFile(new, "w+b") as raw:
            room = self._fields_at_once(0, values)
            with h5py.File(raw, "w") as file:
                file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
                file.attrs["recipe"], file.attrs["complete"] = json.dumps(self.recipe), False
                for name, value in values.items():
                    _create_dataset(file, name, (room, *value.shape), value.dtype, (1, *value.shape))
                _create_dataset(file, "pts_seconds", (room,), np.dtype(np.float64), (1024,))
                file["pts_seconds"][:] = np.nan
            raw.check()
            os.fsync(raw.fileno())


def is_complete(path: Path) -> bool:
    """Return whether a file is a flow file that a run finished; nothing of it is locked or changed."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as raw, h5py.File(raw, "r") as file:
            return bool(file.attrs.get("format") == FORMAT and file.attrs.get("complete"))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return False  # to open it to write says what is wrong


def _recipe(path: Path, file: h5py.File) -> Recipe:
    """Return the recipe that a flow file was made by."""
    try:
        recipe: Recipe = json.loads(file.attrs["recipe"])
        if not isinstance(recipe, dict) or not isinstance(file["pts_seconds"], h5py.Dataset):
            raise ValueError("its recipe or its times are not what a flow file holds")
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise FlowFileError(f"{path} is damaged ({error}): choose another output, or --overwrite") from error
    return recipe


def _lock(file: CalmFile) -> None:
    """Keep other programs from a file for as long as it is open, HDF5's readers too, where the disk knows locks."""
    if flock is None:
        return
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise


def _create_dataset(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]
) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dataset = file.create_dataset(name, shape, dtype, maxshape=(None, *shape[1:]), chunks=chunks, dcpl=layout)
    kind = "flow_scale" if name.startswith("flow_scale") else name
    dataset.attrs["description"], dataset.attrs["unit"] = _DATASETS[kind]
