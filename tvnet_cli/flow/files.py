"""Flow in files that others read: Middlebury .flo, KITTI .png, .npz, colour pictures, pairs of grey pictures."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tvnet_cli.errors import DiskFullError, FlowFileError, InputChangedError, VideoReadError
from tvnet_cli.flow.colour import flow_to_colour
from tvnet_cli.flow.field import FlowField, as_stored
from tvnet_cli.recipe import Recipe, require_same_recipe
from tvnet_cli.video.reader import Decoders, decoders
from tvnet_cli.writing import MARK, no_room, replacing, require_replaceable, write_whole, writing

FLO_TAG = 202021.25  # reads "PIEH" as bytes
JPG_BOUND = 20.0  # pixels of flow at grey levels 0 and 255, as in the training sets of two-stream networks
JPG_QUALITY = 100  # at 95 a level is off by more than a half too often

Encode = Callable[[FlowField], dict[str, bytes]]


def write_flo(flow: NDArray[np.floating]) -> bytes:
    """A flow field (2, H, W) in pixels as the content of a Middlebury .flo file: x and y interleaved, float32."""
    header = struct.pack("<fii", FLO_TAG, flow.shape[2], flow.shape[1])
    return header + flow.transpose(1, 2, 0).astype("<f4").tobytes()


def read_flow(path: Path, reader: Decoders | None = None) -> NDArray[np.float32]:
    """A flow field from a Middlebury .flo or a KITTI .png file.

    Parameters
    ----------
    path : Path
    reader : Decoders, optional
        Whose processes decode PNG files.

    Returns
    -------
    ndarray, (2, H, W), float32, pixels
        What a KITTI file marks as not valid is NaN.

    Raises
    ------
    FlowFileError
        Naming the file.
    """
    if path.exists() and not path.is_file():
        raise FlowFileError(f"{path} is no flow file but {'a folder' if path.is_dir() else 'a pipe or a device'}")
    try:
        if path.suffix.lower() == ".png":
            return _kitti_flow((reader or decoders()).levels(path))
        content = path.read_bytes()
    except (OSError, VideoReadError) as error:
        if getattr(error, "code", "") == "cannot_open":
            raise FlowFileError(f"{path} is no flow file: {error}") from error
        raise FlowFileError(f"cannot read the flow {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) < 12 or content[:4] != struct.pack("<f", FLO_TAG):
        raise FlowFileError(f"{path} is no flow file: Middlebury .flo and KITTI .png can be read")
    width, height = struct.unpack("<ii", content[4:12])
    if min(width, height) < 1 or len(content) != 12 + 8 * width * height:
        raise FlowFileError(f"{path} is damaged: {len(content)} bytes do not make {width} x {height} vectors")
    vectors = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)
    return np.ascontiguousarray(vectors.transpose(2, 0, 1), np.float32)


def _kitti_flow(stored: NDArray[np.uint16]) -> NDArray[np.float32]:
    levels = stored.astype(np.float32)
    flow = (levels[..., :2] - np.float32(32768)) / np.float32(64)
    flow[levels[..., 2] == 0] = np.nan
    return np.ascontiguousarray(flow.transpose(2, 0, 1), np.float32)


def encode_flo(field: FlowField) -> dict[str, bytes]:
    """Each array of a field as a file: .flo, and .png for the occlusion mask."""
    files = {}
    for name, array in field.arrays.items():
        if name == "occlusion":
            files["occlusion.png"] = _png(array * np.uint8(255))
        else:
            files[f"{name}.flo"] = write_flo(array)
    return files


def encode_png(field: FlowField, max_flow: float) -> dict[str, bytes]:
    """Each array of a field as a picture: colours for flow, white for occluded pixels."""
    files = {}
    for name, array in field.arrays.items():
        if name == "occlusion":
            files["occlusion.png"] = _png(array * np.uint8(255))
        else:
            full = field.flow.shape[2] / array.shape[2]  # vectors of a coarse level in pixels of the finest
            files[f"{name}.png"] = _png(flow_to_colour(array * np.float32(full), max_flow), max_flow)
    return files


def encode_jpg_pair(field: FlowField) -> dict[str, bytes]:
    """The two components of a field as grey pictures: level 0 is -20 pixels, 128 is 0, 255 is 20, cut off beyond.

    Rounded half to even, as the programs that made the published training sets do.
    """
    levels = np.rint((field.flow.astype(np.float64) + JPG_BOUND) * (255 / (2 * JPG_BOUND)))
    x, y = np.clip(levels, 0, 255).astype(np.uint8)
    return {"flow_x.jpg": _jpg(x), "flow_y.jpg": _jpg(y)}


def _png(picture: NDArray[np.uint8], max_flow: float | None = None) -> bytes:
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("Software", MARK)
    if max_flow is not None:
        info.add_text("max_flow", f"{max_flow:.6g} pixels")
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _jpg(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPG_QUALITY, comment=MARK)
    return buffer.getvalue()


class FieldFile:
    """The files of one single field: ``name.flo`` for the flow, and beside it ``name.backward.flo`` and the like.

    They are written in the end, all or none.

    Parameters
    ----------
    path : Path
        The file of the flow.
    encode : callable
        From a field to its files.
    overwrite : bool
        Replace files that this program did not make.
    names : sequence of str
        All files that ``encode`` may give.
    """

    num_done = 0
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, encode: Encode, *, overwrite: bool = False, names: Sequence[str] = ()) -> None:
        self.path, self.encode, self.overwrite = path, encode, overwrite
        self._names = names or [f"flow{path.suffix.lower()}"]
        self._contents: dict[Path, bytes] = {}

    def check(self) -> None:
        """Refuse to replace files that this program did not make, unless ``overwrite`` is true.

        A .flo file has no room for a mark: what looks like one is compared with what is to be written, in the end.

        Raises
        ------
        OutputError
        """
        for path in map(self._path, self._names):
            if not (path.suffix.lower() == ".flo" and path.is_file() and _begins_as_flo(path)):
                require_replaceable(path, overwrite=self.overwrite)

    def __enter__(self) -> FieldFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InputChangedError):
            return
        new = {path: content for path, content in self._contents.items() if not _holds(path, content)}
        for path in new:
            require_replaceable(path, overwrite=self.overwrite)
        for path, content in new.items():
            write_whole(path, content)

    def write(self, field: FlowField) -> None:
        self._contents = {self._path(name): content for name, content in self.encode(field).items()}

    def _path(self, name: str) -> Path:
        own = name == f"flow{self.path.suffix.lower()}"
        return self.path if own else self.path.with_name(f"{self.path.stem}.{name}")


def _begins_as_flo(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == struct.pack("<f", FLO_TAG)
    except OSError:
        return False


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a file holds this already."""
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


class FieldFolder:
    """A folder with the files of each field: ``flow_00001.flo``, ``backward_00001.flo`` and the like.

    A hidden file in it, the card, keeps the recipe and how many fields were begun: their files are ours.

    Parameters
    ----------
    path : Path
        The folder.
    encode : callable
        From a field to its files.
    last : str
        The file that ``encode`` is sure to give, written last: where it is, the field is complete.
    recipe : dict
        Kept in the card, by which a later run knows whether it may resume.
    overwrite : bool
        Remove the fields that are there, when the first one is written: ours, and what has the names of the files that
        are to be written. Nothing else is removed.
    names : sequence of str
        All files that ``encode`` may give.

    Raises
    ------
    FlowFileError
        On entering, if the folder holds fields made in another way or of another input, or its card is damaged.
    OutputError
        On entering and on writing, if a file would be replaced that this program did not make.
    """

    def __init__(
        self,
        path: Path,
        encode: Encode,
        last: str,
        recipe: Recipe,
        overwrite: bool,
        names: Sequence[str] = (),
    ) -> None:
        self.path, self.encode, self.recipe, self.overwrite = path, encode, recipe, overwrite
        self.num_done = 0
        self.notes: tuple[str, ...] = ()
        self._last, self._names = last, tuple(dict.fromkeys((*names, last)))
        self._card = path / f".tvnet-{last}.json"
        self._begun = 0  # fields whose files are ours
        self._num_before = 0  # fields of earlier runs
        self._to_remove = overwrite

    def check(self) -> None:
        """Refuse, as on entering; what the recipe does not hold yet, as the scale of the colours, is not compared."""
        self._look(whole=False)

    def __enter__(self) -> FieldFolder:
        self._look(whole=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InputChangedError) and self._begun > self._num_before:
            for path in self._files(self._names, self._num_before, self._begun):
                path.unlink(missing_ok=True)
            self._begin(self._num_before - 1)

    def write(self, field: FlowField) -> None:
        if field.position < self.num_done:
            return
        if self._to_remove:
            self._remove_fields()
        files = self.encode(field)
        paths = {name: self._name(name, field.position) for name in files}
        if field.position >= self._begun:
            for path in paths.values():
                require_replaceable(path, overwrite=self.overwrite)
            self._begin(field.position)
        for name in sorted(files, key=lambda name: name == self._last):
            write_whole(paths[name], files[name])
        self.num_done = field.position + 1

    def _look(self, whole: bool) -> None:
        """Find the fields that are there, and refuse what cannot be resumed."""
        card = None if self.overwrite else self._read_card()
        self.num_done = self._begun = 0
        if card is not None:
            known, begun, _ = card
            while (begun is None or self.num_done < begun) and self._name(self._last, self.num_done).exists():
                self.num_done += 1
            self._begun = self.num_done + 1 if begun is None else begun
            if self._begun:
                known = known if whole else {name: known[name] for name in self.recipe if name in known}
                self.notes = require_same_recipe(self.path, known, self.recipe)
        self._num_before = self.num_done
        for path in self._files(self._names, self._begun):
            require_replaceable(path, overwrite=self.overwrite)

    def _read_card(self) -> tuple[Recipe, int | None, tuple[str, ...]] | None:
        """Return the recipe of the fields that are there, the number begun, and the names of their files.

        Version 0.1.0 kept the recipe alone: the number is None then. None for all, if there is no card.
        """
        try:
            card = json.loads(self._card.read_text("utf-8"))
            if "begun" not in card:
                return {**card}, None, self._names
            return {**card["recipe"]}, int(card["begun"]), tuple(map(str, card["names"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FlowFileError(f"cannot read {self._card}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise FlowFileError(
                f"{self._card} is damaged ({error}): choose another output folder, or --overwrite to begin anew"
            ) from error

    def _begin(self, position: int) -> None:
        """Write the card, by which the files of all fields up to this one are ours."""
        self._begun = position + 1
        card = {"made by": MARK, "recipe": self.recipe, "begun": self._begun, "names": self._names}
        try:
            write_whole(self._card, json.dumps(card).encode())
        except DiskFullError as error:
            if isinstance(error.__cause__, OSError):  # people know the field, not the card
                raise no_room(self._name(self._last, position), error.__cause__) from error
            raise

    def _name(self, name: str, position: int) -> Path:
        stem, suffix = name.rsplit(".", 1)
        return self.path / f"{stem}_{position + 1:05d}.{suffix}"

    def _files(self, names: Sequence[str], start: int, end: int | None = None) -> list[Path]:
        """Return what has the name of a file of a field from position ``start`` on, and before ``end``."""
        stems = "|".join(f"{re.escape(stem)}_[0-9]{{5,}}[.]{suffix}" for stem, suffix in (n.split(".") for n in names))
        found = []
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if re.fullmatch(stems, path.name):
                position = int(path.stem.rsplit("_", 1)[1]) - 1
                if position >= start and (end is None or position < end):
                    found.append(path)
        return found

    def _remove_fields(self) -> None:
        """Remove the fields of earlier runs, and what has the names of files that are to be written."""
        self._to_remove = False
        try:
            card = self._read_card()
        except FlowFileError:
            card = None
        _, begun, names = card or ({}, 0, ())
        for path in (*self._files(names, 0, begun), *self._files(self._names, 0)):
            path.unlink(missing_ok=True)
        self._card.unlink(missing_ok=True)


class NpzFile:
    """One .npz file with the arrays of all fields, each with the field as its first axis.

    The fields wait in files without a name, not in memory, until the number of them is known.

    Parameters
    ----------
    path : Path
    half : bool
        Flow as float16.
    overwrite : bool
        Let ``check`` pass a file that this program did not make.
    """

    num_done = 0
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, half: bool, *, overwrite: bool = False) -> None:
        self.path, self.half, self.overwrite = path, half, overwrite
        self._place = ExitStack()
        self._new: Path | None = None
        self._files: dict[str, tuple[IO[bytes], np.dtype[Any], tuple[int, ...]]] = {}
        self._frame_index: list[tuple[int, int]] = []
        self._pts_seconds: list[float] = []

    def check(self) -> None:
        """Refuse to replace a file that this program did not make, unless ``overwrite`` is true.

        Raises
        ------
        OutputError
        """
        require_replaceable(self.path, overwrite=self.overwrite)

    def __enter__(self) -> NpzFile:
        return self

    def write(self, field: FlowField) -> None:
        if self._new is None:
            self._new = self._place.enter_context(replacing(self.path))
        for name, array in field.arrays.items():
            stored = as_stored(array, self.half)
            with writing(self.path):
                if name not in self._files:
                    part = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115 - closed on leaving
                    self._files[name] = part, stored.dtype, stored.shape
                self._files[name][0].write(stored.tobytes())
                self._files[name][0].flush()
        self._frame_index.append(field.frame_index)
        self._pts_seconds.append(field.pts_seconds[0])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._new is None:
                return
            if isinstance(error, InputChangedError) or not self._frame_index:
                self._place.__exit__(kind, error, traceback)
                return
            with self._place, writing(self.path):
                self._pack(self._new)
        finally:
            for file, _, _ in self._files.values():
                with suppress(OSError):  # that the disk is full was said before
                    file.close()

    def _pack(self, new: Path) -> None:
        count = len(self._frame_index)  # also if the run was stopped while a field was being written
        with zipfile.ZipFile(new, "w", allowZip64=True) as archive:
            archive.comment = MARK.encode()
            for name, (file, dtype, shape) in self._files.items():
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (count, *shape),
                }
                file.truncate(count * int(np.prod(shape)) * dtype.itemsize)
                file.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(file, member, 1 << 20)
            for name, values in (("frame_index", self._frame_index), ("pts_seconds", self._pts_seconds)):
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(values[:count]))
