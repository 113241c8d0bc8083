"""Arrays in .npy and .npz files of anyone: looked at before they are read, never pickles, no larger than they say."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import DiskFullError, FeatureFileError

MOST_ARRAY_BYTES = 2**30  # of an array that is read as a whole: ids, or the features of one video
MOST_UNPACKED_BYTES = 2**36  # of the arrays of an archive that are laid out on the disk
MOST_MEMBERS = 10_000


def array_header(file: IO[bytes], name: str, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an .npy file of ``size`` bytes, whose place is behind the header afterwards.

    Raises
    ------
    FeatureFileError
        If it holds objects, which only a pickle can, or is larger than the file.
    ValueError
        If it is no .npy file.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise FeatureFileError(f"{name} holds Python objects, which are not read: save it as numbers or text")
    if math.prod(shape) * dtype.itemsize > size:
        raise FeatureFileError(f"{name} says that it holds {math.prod(shape)} values, but has {size} bytes only")
    return shape, dtype


def file_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an .npy file; errors as ``array_header``."""
    if not path.is_file():
        raise FeatureFileError(f"{path} is not a file")
    with path.open("rb") as file:
        return array_header(file, str(path), path.stat().st_size)


def load_array(path: Path) -> NDArray[Any]:
    """A small .npy file as a whole.

    Raises
    ------
    FeatureFileError
        As ``array_header``; also if it is larger than 1 GiB.
    """
    shape, dtype = file_header(path)
    _require_small(path, path.name, math.prod(shape) * dtype.itemsize)
    return np.load(path)  # type: ignore[no-any-return]


def archive_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz file, by name.

    Raises
    ------
    FeatureFileError
        If there are too many, or two of one name.
    """
    if not path.is_file():
        raise FeatureFileError(f"{path} is not a file")
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(infos) > MOST_MEMBERS or len(members) < len(infos):
        raise FeatureFileError(f"{path} holds more than {MOST_MEMBERS} arrays, or two of one name")
    return members


def load_member(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    """A small array of an .npz file; errors as ``load_array``."""
    _require_small(path, member.filename, member.file_size)
    with zipfile.ZipFile(path) as archive:
        with archive.open(member) as file:
            array_header(file, f"{path}: {member.filename}", member.file_size)
        with archive.open(member) as file:
            return np.lib.format.read_array(file)


def unpack(path: Path, members: dict[str, zipfile.ZipInfo], folder: Path) -> Iterator[tuple[str, Path]]:
    """Lay out arrays of an .npz file flat in a folder, one after the other: their names and their files.

    Raises
    ------
    FeatureFileError
        If they are larger than 64 GiB together, or as ``array_header``.
    DiskFullError
        If there is no room for them.
    """
    require_room(folder, path, sum(member.file_size for member in members.values()))
    with zipfile.ZipFile(path) as archive:
        for number, (name, member) in enumerate(members.items()):
            with archive.open(member) as file:
                array_header(file, f"{path}: {name}", member.file_size)
            flat = folder / f"{number}.npy"
            with archive.open(member) as packed, flat.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            yield name, flat


def require_room(folder: Path, path: Path, size: int) -> None:
    """Check that so many bytes of a file can be laid out flat in a folder.

    Raises
    ------
    FeatureFileError, DiskFullError
    """
    if size > MOST_UNPACKED_BYTES:
        raise FeatureFileError(f"{path} is too large: {size} bytes when unpacked, at most {MOST_UNPACKED_BYTES}")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskFullError(
            f"{path} needs {size / 1e6:.0f} MB in the temporary folder {folder.parent}, where {free / 1e6:.0f} MB are "
            "free: set TMPDIR to a folder with more room"
        )


def _require_small(path: Path, name: str, size: int) -> None:
    if size > MOST_ARRAY_BYTES:
        raise FeatureFileError(f"{path}: {name} is too large: {size} bytes, at most {MOST_ARRAY_BYTES} may be")
