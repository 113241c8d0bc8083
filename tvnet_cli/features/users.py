"""What users add to a feature file, attributes and datasets, is carried along when the file is written anew.

A dataset whose first axis has as many entries as there are rows holds a row for each video: its rows follow their
videos, and new videos get -1 (whole numbers), 0 (unsigned ones), NaN, False, or zeros and empty text. All others stay
as they are. Where two files have the same attribute or dataset, the first one's is kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import h5py
import numpy as np

from tvnet_cli.errors import FeatureFileError
from tvnet_cli.features.datasets import DATASETS, FILL
from tvnet_cli.hdf5 import OpenFile

ROOT_ATTRIBUTES = ("format", "format_version", "recipe", "software", "datasets", "checksums")  # of the program
MOST_RATIO = 100  # of compression, in what is copied uncompressed
DATASET_ATTRIBUTES = ("description", "unit")


class UserRows(NamedTuple):
    """Shape and type of a row of a dataset that users added."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def create(self, file: h5py.File, name: str, num_rows: int) -> None:
        """Create it in a new file, with what stands for no value in each row."""
        fill = None if self.dtype.hasobject else FILL.get(self.dtype.kind)
        file.create_dataset(name, (num_rows, *self.shape), self.dtype, fillvalue=fill)


def find_user_rows(source: OpenFile, num_rows: int) -> dict[str, UserRows]:
    """The datasets that users added, with a row for each video."""
    added = {name: source.file[name] for name in source.datasets if name not in DATASETS}
    return {
        name: UserRows(tuple(dataset.shape[1:]), dataset.dtype)
        for name, dataset in added.items()
        if dataset.shape and dataset.shape[0] == num_rows
    }


def carry(source: OpenFile, file: h5py.File, by_rows: Collection[str]) -> None:
    """Copy what users added to a file, but the rows of the datasets ``by_rows``, into a new file.

    Raises
    ------
    FeatureFileError
        If a dataset holds references, or lists of any length: they cannot be copied.
    """
    _copy_attributes(source.file.attrs, file.attrs, ROOT_ATTRIBUTES)
    for name in source.groups:
        _copy_attributes(source.file[name].attrs, file.require_group(name).attrs, ())
    for name in source.datasets:
        dataset = source.file[name]
        if name not in DATASETS and name not in by_rows and name not in file:
            require_copyable(source, [name])
            if dataset.dtype.kind == "O":
                source.text_bytes(name)  # that it is no larger than the file
            file.copy(dataset, file, name)
        if name in file:
            _copy_attributes(dataset.attrs, file[name].attrs, DATASET_ATTRIBUTES if name in DATASETS else ())


def _copy_attributes(old: Any, new: Any, but: Collection[str]) -> None:
    for name in old:
        if name not in but and name not in new:
            about = old.get_id(name)
            if about.dtype.kind == "O" and h5py.check_string_dtype(about.dtype) is None:
                raise FeatureFileError(f"the attribute {name} holds references or lists, which cannot be copied")
            new.create(name, old[name], shape=about.shape, dtype=about.dtype)


def require_copyable(source: OpenFile, names: Collection[str]) -> None:
    """Check that datasets can be copied.

    Raises
    ------
    FeatureFileError
        If one holds references, or lists of any length.
    RefusedFileError
        If one declares more than it holds.
    """
    for name in names:
        dtype = source.file[name].dtype
        if dtype.hasobject and h5py.check_string_dtype(dtype) is None:
            raise FeatureFileError(
                f"{source.path}: {name} holds references or lists, which cannot be copied: move it to another file"
            )
        source.require_stored(name, MOST_RATIO)
