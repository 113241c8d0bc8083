"""Numeric matrices in MATLAB files of any version."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from tvnet_cli.errors import DatasetError, FileAccessError
from tvnet_cli.hdf5 import CONTENT_ERRORS, OpenFile, first_line, is_hdf5, opened

NUMERIC = {"double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


MOST_BYTES = 2**31  # of a matrix that is read as a whole: older files hold no larger ones


def matlab_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the numeric matrices in a MATLAB file.

    Parameters
    ----------
    path : Path
        Of any version; those of 7.3 are HDF5 with the axes the other way round.

    Raises
    ------
    DatasetError
        If it is no MATLAB file.
    """
    if is_hdf5(path):
        with matlab_hdf5(path) as source:
            tops = {name: source.file[name] for name in source.datasets if "/" not in name}
            return {name: item.shape[::-1] for name, item in tops.items() if item.shape and item.dtype.kind in "biuf"}
    with _readable(path):
        listed = scipy.io.whosmat(path)
    return {name: tuple(shape) for name, shape, kind in listed if kind in NUMERIC}


def read_matlab(path: Path, wanted: Callable[[str, tuple[int, ...]], bool]) -> dict[str, NDArray[Any]]:
    """The numeric matrices of a MATLAB file whose name and shape are wanted.

    Raises
    ------
    DatasetError
        If it is no MATLAB file, or damaged.
    """
    names = [name for name, shape in matlab_shapes(path).items() if wanted(name, shape)]
    for name, shape in matlab_shapes(path).items():
        if name in names and 8 * math.prod(shape) > MOST_BYTES:
            raise DatasetError(f"{path}: {name} is too large: {' x '.join(map(str, shape))} numbers")
    if is_hdf5(path):
        with matlab_hdf5(path) as source:
            for name in names:
                source.require_stored(name)
            return {name: source.file[name][()].T for name in names}
    with _readable(path):
        found = scipy.io.loadmat(path, variable_names=names)
    return {name: np.asarray(found[name]) for name in names}


@contextmanager
def matlab_hdf5(path: Path) -> Iterator[OpenFile]:
    """A MATLAB file of version 7.3, open.

    Raises
    ------
    DatasetError
        If it is damaged.
    FileAccessError, RefusedFileError
        As ``tvnet_cli.hdf5.opened``.
    """
    try:
        with opened(path) as source:
            yield source
    except CONTENT_ERRORS as error:
        raise DatasetError(f"{path} is not a readable MATLAB file: {first_line(error)}") from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise FileAccessError(f"cannot read {path}: memory does not suffice") from error
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise DatasetError(f"{path} is not a readable MATLAB file: {first_line(error)}") from error
