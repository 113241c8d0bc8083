"""Which datasets a feature file has: one table, and what a file is held against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np

from tvnet_cli.hdf5 import OpenFile
from tvnet_cli.recipe import Recipe

# 1a: format version 1 of programs that kept no failures and no checksums; 1b: version 1 of those that did; 2: version
# 2, whose files list the datasets of their rows under a checksum: all of those must be there.
Generation = Literal["1a", "1b", "2"]

TEXT = h5py.string_dtype("utf-8")
UINT8, UINT32, INT64 = np.dtype(np.uint8), np.dtype(np.uint32), np.dtype(np.int64)
FLOAT32, FLOAT64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_)
MOST_RATIO = 20  # of compression, in files that others have compressed: features are as good as random
MOST_LENGTH = 4096  # of any axis of a row that the recipe decides
FILL = {"i": -1, "u": 0, "f": np.nan, "c": np.nan, "b": False, "O": ""}  # by kind of type: rows without a value
STREAM_GROUPS = ("flow", "rgb")


class Dataset(NamedTuple):
    """A dataset that the program writes.

    Attributes
    ----------
    dtype : dtype
    row : tuple of int or str
        The largest shape of a row; a word stands for what the recipe says, see ``largest_row``.
    unit, description : str
    required : tuple of Generation
        The files that must have it, if they have rows; a layer only if its stream is in the recipe.
    computed : bool
        Whether video and recipe alone decide its values, so that two files agree.
    """

    dtype: np.dtype[Any]
    row: tuple[int | str, ...]
    unit: str
    description: str
    required: tuple[Generation, ...] = ()
    computed: bool = True


OLD: tuple[Generation, ...] = ("1a", "1b")
LATER: tuple[Generation, ...] = ("1b", "2")
ALL: tuple[Generation, ...] = ("1a", "1b", "2")
_LAYER = "flow network, mean over clips, then L2 norm 1 over the flattened layer"

DATASETS: dict[str, Dataset] = {
    "video_id": Dataset(TEXT, (), "text", "path relative to the folder given, or the name of a lone file", ALL),
    "checksum": Dataset(
        UINT32,
        (),
        "1",
        "CRC-32 of video_id, then of name and row of each other dataset that the program wrote, in the order of their "
        "names",
        LATER,
    ),
    "flow/global_pool": Dataset(FLOAT32, (1024,), "1", "flow network, mean over clips, then L2 norm 1", OLD),
    "flow/inception_5b_output": Dataset(FLOAT32, (1024, "side", "side"), "1", _LAYER, OLD),
    "flow/inception_5a_output": Dataset(FLOAT32, (1024, "side", "side"), "1", _LAYER, OLD),
    "flow/inception_4e_output": Dataset(FLOAT32, (1056, "side", "side"), "1", _LAYER, OLD),
    "rgb/global_pool": Dataset(
        FLOAT32, (1024,), "1", "RGB network on each clip's middle frame, mean over clips, then L2 norm 1", OLD
    ),
    "frame_index": Dataset(
        INT64, ("clips", "frames"), "frames", "numbers of the frames used, among the decodable ones, by clip"
    ),
    "pts_seconds": Dataset(
        FLOAT64, ("clips", "frames"), "seconds", "times of the frames used, from the container; NaN where it has none"
    ),
    "num_frames": Dataset(INT64, (), "frames", "decodable frames of the video"),
    "padded": Dataset(
        BOOL, (), "1", "True if the video has fewer frames than a clip, whose last frame was then repeated"
    ),
    "bad_packets": Dataset(INT64, (), "packets", "packets of the video that cannot be decoded and were passed over"),
    "notes": Dataset(TEXT, (), "text", "what was not as it should be in the video, separated by '; '", ("2",), False),
    "written_by": Dataset(
        INT64, (), "1", "which record of the root attribute software made the row, from 0", ("2",), False
    ),
    "source_bytes": Dataset(INT64, (), "bytes", "size of the video's file; -1 if unknown", (), False),
    "source_mtime_ns": Dataset(
        INT64, (), "nanoseconds", "modification time of the video's file, since 1970; -1 if unknown", (), False
    ),
    "source_hash": Dataset(
        UINT8,
        (32,),
        "1",
        "SHA-256 of the first, the middle and the last 64 KiB of the video's file, of all of a file up to 192 KiB; of "
        "a remote video: 'etag', then bytes 5 to 32 of the SHA-256 of its ETag; zeros if unknown",
        (),
        False,
    ),
    "failures/video_id": Dataset(TEXT, (), "text", "videos that were tried and have no row", LATER),
    "failures/reason": Dataset(TEXT, (), "text", "why", LATER),
    "failures/code": Dataset(TEXT, (), "text", "why, as one of a short list of words", LATER),
}
NOT_IN_ROWS = {"video_id", "checksum"}  # and the failures


def in_rows(name: str) -> bool:
    """Whether a dataset of the program holds values of videos that have a row."""
    return name not in NOT_IN_ROWS and not name.startswith("failures/")


def largest_row(name: str, recipe: Recipe) -> tuple[int, ...]:
    """The largest shape of a row of a dataset under a recipe.

    ``clips`` and ``frames`` stand for the clips of a video and the frames of a clip, ``side`` for the side of a layer.
    """
    options = recipe.get("options")
    known = options if isinstance(options, dict) else {}
    lengths = {
        "clips": known.get("num_clips", MOST_LENGTH),
        "frames": known.get("clip_length", MOST_LENGTH),
        "side": max(7, math.ceil(known.get("crop_size", 224) / 32)),
    }
    return tuple(min(lengths[axis], MOST_LENGTH) if isinstance(axis, str) else axis for axis in DATASETS[name].row)


def fault(opened: OpenFile, name: str, recipe: Recipe, num_rows: int) -> str:
    """What is wrong with a dataset of the program beside its values, or nothing."""
    dataset, documented = opened.file[name], DATASETS[name]
    if _type_name(dataset.dtype) != _type_name(documented.dtype):
        return f"{name} holds {_type_name(dataset.dtype)} where {_type_name(documented.dtype)} should be"
    most = largest_row(name, recipe)
    if dataset.shape is None or len(dataset.shape) != 1 + len(most):
        return f"{name} has the shape {dataset.shape}, where N x {' x '.join(map(str, most)) or 1} should be"
    row = dataset.shape[1:]
    if any(not 0 < length <= largest for length, largest in zip(row, most, strict=True)):
        return f"{name} has rows of {row}, larger than {most}" if 0 not in row else f"{name} has empty rows"
    if dataset.shape[0] != num_rows:
        return f"{name} differs in length: {dataset.shape[0]}, not {num_rows}"
    opened.require_stored(name, MOST_RATIO)
    return ""


def missing(found: Mapping[str, object], generation: Generation, recipe: Recipe, num_rows: int) -> list[str]:
    """The datasets that a file should have and has not."""
    options = recipe.get("options")
    streams = options.get("streams", ()) if isinstance(options, dict) else ()
    wanted = [name for name, dataset in DATASETS.items() if generation in dataset.required]
    if not num_rows:
        wanted = [name for name in wanted if not in_rows(name)]
    other_streams = tuple(f"{group}/" for group in STREAM_GROUPS if group not in streams)
    return [name for name in wanted if name not in found and not name.startswith(other_streams)]


def _type_name(dtype: np.dtype[Any]) -> str:
    string = h5py.check_string_dtype(dtype)
    if string is not None:
        return "text" if string.length is None else "text of fixed length"
    return "references or lists" if dtype.kind == "O" else str(dtype)
