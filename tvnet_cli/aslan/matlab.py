"""Numeric matrices in MATLAB files of any version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from tvnet_cli.errors import DatasetError

NUMERIC = {"double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


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
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            return {
                name: item.shape[::-1]
                for name, item in file.items()
                if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf"
            }
    try:
        listed = scipy.io.whosmat(path)
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise DatasetError(f"{path} is not a readable MATLAB file: {error}") from error
    return {name: tuple(shape) for name, shape, kind in listed if kind in NUMERIC}


def read_matlab(path: Path, wanted: Callable[[str, tuple[int, ...]], bool]) -> dict[str, NDArray[Any]]:
    """The numeric matrices of a MATLAB file whose name and shape are wanted.

    Raises
    ------
    DatasetError
        If it is no MATLAB file, or damaged.
    """
    names = [name for name, shape in matlab_shapes(path).items() if wanted(name, shape)]
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            return {name: file[name][()].T for name in names}
    try:
        found = scipy.io.loadmat(path, variable_names=names)
    except Exception as error:
        raise DatasetError(f"{path} is not a readable MATLAB file: {error}") from error
    return {name: np.asarray(found[name]) for name in names}
