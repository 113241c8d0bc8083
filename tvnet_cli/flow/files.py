"""Flow in files that others read: Middlebury .flo, KITTI .png, .npz, colour pictures, pairs of grey pictures."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tvnet_cli.errors import FlowFileError, OutputError
from tvnet_cli.flow.colour import flow_to_colour
from tvnet_cli.flow.field import FlowField, as_stored
from tvnet_cli.recipe import Recipe, require_same_recipe
from tvnet_cli.writing import MARK, beside, is_marked, replacing, require_replaceable, write_whole, writing

FLO_TAG = 202021.25  # reads "PIEH" as bytes
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPG_BOUND = 20.0  # pixels of flow at grey levels 0 and 255, as in the training sets of two-stream networks
JPG_QUALITY = 100  # at 95 a level is off by more than a half too often

Encode = Callable[[FlowField], dict[str, bytes]]


def write_flo(flow: NDArray[np.floating]) -> bytes:
    """A flow field (2, H, W) in pixels as the content of a Middlebury .flo file: x and y interleaved, float32."""
    header = struct.pack("<fii", FLO_TAG, flow.shape[2], flow.shape[1])
    return header + flow.transpose(1, 2, 0).astype("<f4").tobytes()


def read_flow(path: Path) -> NDArray[np.float32]:
    """A flow field from a Middlebury .flo or a KITTI .png file.

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
            return _read_kitti(path)
        content = path.read_bytes()
    except (OSError, av.error.FFmpegError) as error:
        raise FlowFileError(f"cannot read the flow {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) < 12 or content[:4] != struct.pack("<f", FLO_TAG):
        raise FlowFileError(f"{path} is no flow file: Middlebury .flo and KITTI .png can be read")
    width, height = struct.unpack("<ii", content[4:12])
    if min(width, height) < 1 or len(content) != 12 + 8 * width * height:
        raise FlowFileError(f"{path} is damaged: {len(content)} bytes do not make {width} x {height} vectors")
    vectors = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)
    return np.ascontiguousarray(vectors.transpose(2, 0, 1), np.float32)


def _read_kitti(path: Path) -> NDArray[np.float32]:
    content = path.read_bytes()
    if not content.startswith(PNG_SIGNATURE):
        raise FlowFileError(f"{path} is no flow file: not a PNG image")
    # As an image and nothing else: libav would take a text that describes a stream for one, and listen to the network.
    with av.open(io.BytesIO(content), "r", format="png_pipe", options={"protocol_whitelist": ""}) as container:
        frame = next(container.decode(video=0))
        if not frame.format.name.startswith("rgb48"):
            raise FlowFileError(f"{path} is no flow file: KITTI's have three channels of 16 bits")
        levels = frame.to_ndarray(format="rgb48le").astype(np.float32)
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


def read_card(path: Path) -> Recipe:
    """Return the recipe that a folder of fields was made by.

    Raises
    ------
    FlowFileError
        If the card cannot be read.
    """
    try:
        recipe: Recipe = json.loads(path.read_text("utf-8"))
        if not isinstance(recipe, dict):
            raise ValueError("not a recipe")
    except (OSError, ValueError) as error:
        raise FlowFileError(
            f"{path} is damaged ({error}): choose another output folder, or --overwrite to begin anew"
        ) from error
    return recipe


class FieldFile:
    """The files of one single field: ``name.flo`` for the flow, and beside it ``name.backward.flo`` and the like."""

    num_done = 0

    def __init__(self, path: Path, encode: Encode, *, overwrite: bool = False) -> None:
        self.path, self.encode, self.overwrite = path, encode, overwrite

    def __enter__(self) -> FieldFile:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, field: FlowField) -> None:
        for name, content in self.encode(field).items():
            own = name == f"flow{self.path.suffix.lower()}"
            path = self.path if own else self.path.with_name(f"{self.path.stem}.{name}")
            if path.is_file() and path.read_bytes() == content:  # .flo has no room for a mark
                continue
            require_replaceable(path, overwrite=self.overwrite)
            write_whole(path, content)


class FieldFolder:
    """A folder with the files of each field: ``flow_00001.flo``, ``backward_00001.flo`` and the like.

    Parameters
    ----------
    path : Path
        The folder.
    encode : callable
        From a field to its files.
    last : str
        The file that ``encode`` is sure to give, written last: where it is, the field is complete.
    recipe : dict
        Kept in the folder in a hidden file, by which a later run knows whether it may go on.
    overwrite : bool
        Remove the fields that are there.

    Raises
    ------
    FlowFileError
        On entering, if the folder holds fields made in another way.
    """

    def __init__(self, path: Path, encode: Encode, last: str, recipe: Recipe, overwrite: bool) -> None:
        self.path, self.encode, self.recipe, self.overwrite = path, encode, recipe, overwrite
        self._last = last
        self._card = path / f".tvnet-{last}.json"
        self.num_done = 0

    def __enter__(self) -> FieldFolder:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            self._remove_fields()
        elif self._card.exists():
            require_same_recipe(self.path, read_card(self._card), self.recipe)
            while self._name(self._last, self.num_done).exists():
                self.num_done += 1
        self._require_no_others()
        write_whole(self._card, json.dumps(self.recipe).encode())
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, field: FlowField) -> None:
        if field.position < self.num_done:
            return
        files = self.encode(field)
        for name in sorted(files, key=lambda name: name == self._last):
            write_whole(self._name(name, field.position), files[name])
        self.num_done = field.position + 1

    def _require_no_others(self) -> None:
        """Refuse a folder with files under the names of fields that are still to be written, unless we made them.

        Those of the next field are what a run of the same card left half-written.
        """
        first = self.num_done + 1 if self._card.exists() else 0
        for path in sorted(self.path.iterdir()):
            match = self._names.fullmatch(path.name)
            if match and int(match["number"]) > first and not is_marked(path):
                raise OutputError(
                    f"{path} exists, and this run did not make it: choose another folder, or --overwrite to remove the "
                    "files of all fields"
                )

    @property
    def _names(self) -> re.Pattern[str]:
        """The names that files of fields have."""
        suffix = re.escape(self._last.rsplit(".", 1)[1])
        fields = rf"(flow(_[xy]|_scale_\d+)?|backward)_\d{{5,}}\.{suffix}"
        return re.compile(rf"(?=.*_(?P<number>\d+)\.)({fields}|occlusion_\d{{5,}}\.png)")

    def _name(self, name: str, position: int) -> Path:
        stem, suffix = name.rsplit(".", 1)
        return self.path / f"{stem}_{position + 1:05d}.{suffix}"

    def _remove_fields(self) -> None:
        self._card.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if self._names.fullmatch(path.name):
                path.unlink()


class NpzFile:
    """One .npz file with the arrays of all fields, each with the field as its first axis.

    The fields wait in files beside it, not in memory, until the number of them is known.
    """

    num_done = 0

    def __init__(self, path: Path, half: bool) -> None:
        self.path, self.half = path, half
        self._parts = beside(path)  # a folder that no other run has
        self._files: dict[str, tuple[BinaryIO, np.dtype[Any], tuple[int, ...]]] = {}
        self._frame_index: list[tuple[int, int]] = []
        self._pts_seconds: list[float] = []

    def __enter__(self) -> NpzFile:
        with writing(self.path):
            self._parts.mkdir(parents=True)
        return self

    def write(self, field: FlowField) -> None:
        for name, array in field.arrays.items():
            stored = as_stored(array, self.half)
            with writing(self.path):
                if name not in self._files:
                    self._files[name] = (self._parts / name).open("w+b"), stored.dtype, stored.shape
                self._files[name][0].write(stored.tobytes())
                self._files[name][0].flush()
        self._frame_index.append(field.frame_index)
        self._pts_seconds.append(field.pts_seconds[0])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._frame_index:
                with writing(self.path):
                    self._pack()
        finally:
            for file, _, _ in self._files.values():
                with suppress(OSError):  # that the disk is full was said before
                    file.close()
            shutil.rmtree(self._parts, ignore_errors=True)

    def _pack(self) -> None:
        count = len(self._frame_index)  # also if the run was stopped while a field was being written
        with replacing(self.path) as new, zipfile.ZipFile(new, "w", allowZip64=True) as archive:
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
