"""Flow fields in plain HDF5, readable whatever interrupts the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import FlowFileError
from tvnet_cli.flow.field import Arrays, FlowField, as_stored
from tvnet_cli.recipe import Recipe, require_same_recipe

FORMAT, FORMAT_VERSION = "tvnet-flow", 1
SPACE_BYTES = 2**30

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
    stops the run, a kill too, the file opens. ``pts_seconds`` is NaN for a field that is not there yet, and is written
    after all else of its field. A run that ends or is interrupted cuts the file to the fields that are there.

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
        On entering, if the file is not ours, was made by another recipe, or is being written by another run.
    """

    def __init__(self, path: Path, num_fields: int, recipe: Recipe, half: bool, overwrite: bool) -> None:
        self.path, self.num_fields, self.recipe, self.half = path, num_fields, recipe, half
        self.overwrite = overwrite
        self.num_done = 0
        self._file: h5py.File | None = None

    def __enter__(self) -> FlowStore:
        if self.path.exists() and not self.overwrite:
            self._file = self._reopened()
            self.num_done = int(np.isfinite(self._file["pts_seconds"][:]).cumprod().sum())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        with self._file as file:
            for name in file:
                if len(file[name]) != self.num_done:
                    file[name].resize(self.num_done, axis=0)
            file.attrs["complete"] = kind is None
        self._file = None

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
            self._file = self._created(values)
        file = self._file
        if field.position >= len(file["pts_seconds"]):
            self._make_room(file, field.position, values)
        for name, value in values.items():
            file[name][field.position] = value
        file.flush()
        file["pts_seconds"][field.position] = field.pts_seconds[0]
        file.flush()
        self.num_done = field.position + 1

    def _make_room(self, file: h5py.File, start: int, values: dict[str, NDArray[Any]]) -> None:
        """Set aside space for the next fields."""
        file.attrs["complete"] = False
        for name in file:
            file[name].resize(start + self._fields_at_once(start, values), axis=0)
        file["pts_seconds"][start:] = np.nan
        file.flush()

    def _fields_at_once(self, start: int, values: dict[str, NDArray[Any]]) -> int:
        """How many fields to set space aside for, from number ``start`` on."""
        fitting = SPACE_BYTES // sum(value.nbytes for value in values.values())
        return max(1, min(fitting, self.num_fields - start))

    def _reopened(self) -> h5py.File:
        try:
            file = h5py.File(self.path, "r+")
        except BlockingIOError:
            raise FlowFileError(f"another run is writing {self.path}: wait for it, or choose another output") from None
        except OSError as error:
            reason = "it is a folder" if self.path.is_dir() else str(error).splitlines()[0]
            raise FlowFileError(
                f"{self.path} is not a readable flow file ({reason}): choose another output, or --overwrite"
            ) from error
        try:
            if file.attrs.get("format") != FORMAT or file.attrs.get("format_version") != FORMAT_VERSION:
                raise FlowFileError(
                    f"{self.path} is an HDF5 file, but no flow file of format version {FORMAT_VERSION}: "
                    "choose another output, or --overwrite"
                )
            require_same_recipe(self.path, json.loads(file.attrs["recipe"]), self.recipe)
        except BaseException:
            file.close()
            raise
        return file

    def _created(self, values: dict[str, NDArray[Any]]) -> h5py.File:
        """The file with all its space, put in its place when it is whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            with h5py.File(new, "w") as file:
                file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
                file.attrs["recipe"], file.attrs["complete"] = json.dumps(self.recipe), False
                room = self._fields_at_once(0, values)
                for name, value in values.items():
                    _create(file, name, (room, *value.shape), value.dtype, (1, *value.shape))
                _create(file, "pts_seconds", (room,), np.dtype(np.float64), (1024,))
                file["pts_seconds"][:] = np.nan
            with new.open("rb") as written:
                os.fsync(written.fileno())
            new.replace(self.path)
        finally:
            new.unlink(missing_ok=True)
        return h5py.File(self.path, "r+")


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dataset = file.create_dataset(name, shape, dtype, maxshape=(None, *shape[1:]), chunks=chunks, dcpl=layout)
    kind = "flow_scale" if name.startswith("flow_scale") else name
    dataset.attrs["description"], dataset.attrs["unit"] = _DATASETS[kind]
