"""Pairs of pictures whose flow is known, as the data sets lay them out on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import DatasetError
from tvnet_cli.flow.colour import UNKNOWN
from tvnet_cli.flow.files import read_flow
from tvnet_cli.options import MIN_FRAME_SIDE
from tvnet_cli.video.images import IMAGE_SUFFIXES, natural_order
from tvnet_cli.video.reader import Decoders, decoders
from tvnet_cli.video.sequence import Picture

KITTI_FLOWS = ("flow_occ", "flow_noc")  # the same pairs; the second knows fewer pixels
KITTI_FRAMES = ("image_2", "colored_0", "image_0")  # of 2015, of 2012, of 2012 in grey
SINTEL_FRAMES = ("clean", "final")  # the same flow, two renderings

_SIGNS = np.array([-1, 1], np.float32)[:, None, None]  # of a flow seen in a mirror, left to right


class PairFiles(NamedTuple):
    """Where a pair lies."""

    first: Path
    second: Path
    truth: Path


class KnownPair(NamedTuple):
    """Two frames (H, W, 3), uint8, RGB, and the flow (2, H, W), float32, pixels, NaN where it is not known."""

    first: Picture
    second: Picture
    truth: NDArray[np.float32]


def find_pairs(folder: Path) -> list[PairFiles]:
    """All pairs with known flow in a folder, at any depth, in natural order.

    By the names that the data sets use:

    ====================== ================================ ===============================================
    Data set               Flow                             Frames
    ====================== ================================ ===============================================
    FlyingChairs           ``00001_flow.flo``               ``00001_img1.ppm``, ``00001_img2.ppm``
    Middlebury             ``flow10.flo``                   ``frame10.png``, ``frame11.png`` beside it, or
                                                            under ``other-data`` for ``other-gt-flow``
    MPI-Sintel             ``flow/alley_1/frame_0001.flo``  ``frame_0001.png``, ``frame_0002.png`` under
                                                            ``clean`` and ``final``: a pair each
    KITTI 2012, 2015       ``flow_occ/000000_10.png``       ``000000_10.png``, ``000000_11.png`` under
                                                            ``image_2``, ``colored_0`` or ``image_0``
    any                    one .flo in its folder           the only two pictures there, in natural order
    ====================== ================================ ===============================================

    Raises
    ------
    DatasetError
        If there is no flow, or a flow without its frames.
    """
    pairs = []
    for truth in _flow_files(folder):
        frames = _frames(truth)
        if not frames:
            raise DatasetError(f"{truth}: the two frames of this flow are not where a known data set has them")
        pairs += [PairFiles(first, second, truth) for first, second in frames]
    if not pairs:
        raise DatasetError(f"no known flow in {folder}: looked for .flo and for .png in {' and '.join(KITTI_FLOWS)}")
    return pairs


def find_named_pairs(folders: Sequence[Path]) -> list[tuple[str, PairFiles]]:
    """All pairs in folders, each with what its flow is called inside its folder; with several, after the folder.

    Raises
    ------
    DatasetError
        See ``find_pairs``.
    """
    named = []
    for folder in folders:
        within = folder.parent if len(folders) > 1 else folder
        named += [(pair.truth.relative_to(within).with_suffix("").as_posix(), pair) for pair in find_pairs(folder)]
    return named


def has_flow(folder: Path) -> bool:
    """Whether there is known flow in a folder, at any depth."""
    return next(_flow_files(folder), None) is not None


def read_pair(files: PairFiles, reader: Decoders | None = None) -> KnownPair:
    """The pixels and the flow of a pair.

    Parameters
    ----------
    files : PairFiles
    reader : Decoders, optional
        Whose processes decode them.

    Raises
    ------
    VideoReadError, FlowFileError, DatasetError
        If a file cannot be read, if their sizes differ, if they are too small, or if nothing of the flow is known.
    """
    reader = reader or decoders()
    first, second, truth = reader.image(files.first), reader.image(files.second), read_flow(files.truth, reader)
    for path, (height, width) in ((files.second, second.shape[:2]), (files.truth, truth.shape[1:])):
        if (height, width) != first.shape[:2]:
            raise DatasetError(
                f"{path} has {width} x {height} pixels, {files.first.name} has {first.shape[1]} x {first.shape[0]}"
            )
    if min(first.shape[:2]) < MIN_FRAME_SIDE:
        raise DatasetError(f"{files.first} is too small: at least {MIN_FRAME_SIDE} pixels on each side are needed")
    truth[:, ~(np.abs(truth) <= UNKNOWN).all(0)] = np.nan
    if np.isnan(truth).all():
        raise DatasetError(f"{files.truth}: no vector in it is known")
    return KnownPair(first, second, truth)


def crop(pair: KnownPair, height: int, width: int, random: np.random.Generator) -> KnownPair:
    """The same piece of this size of both frames and of the flow, at a random place."""
    top = int(random.integers(pair.first.shape[0] - height + 1))
    left = int(random.integers(pair.first.shape[1] - width + 1))
    rows, columns = slice(top, top + height), slice(left, left + width)
    return KnownPair(pair.first[rows, columns], pair.second[rows, columns], pair.truth[:, rows, columns])


def mirror(pair: KnownPair, random: np.random.Generator) -> KnownPair:
    """The pair or one of its mirror images, left to right and top to bottom: all directions become equally likely."""
    first, second, truth = pair
    if random.random() < 0.5:
        first, second, truth = first[:, ::-1], second[:, ::-1], truth[..., ::-1] * _SIGNS
    if random.random() < 0.5:
        first, second, truth = first[::-1], second[::-1], truth[:, ::-1] * -_SIGNS
    return KnownPair(first, second, truth)


def stack(pairs: Iterable[KnownPair], size: int, random: np.random.Generator, mirrored: bool = True) -> KnownPair:
    """Crops of pairs as one batch, mirrored or not; each side is ``size``, or less if a pair is smaller.

    Returns
    -------
    KnownPair, (B, height, width, 3) twice and (B, 2, height, width)
    """
    pairs = list(pairs)
    height, width = (min(size, *(pair.first.shape[axis] for pair in pairs)) for axis in (0, 1))
    crops = [crop(pair, height, width, random) for pair in pairs]
    if mirrored:
        crops = [mirror(pair, random) for pair in crops]
    return KnownPair(*(np.stack(arrays) for arrays in zip(*crops, strict=True)))


def _flow_files(folder: Path) -> Iterator[Path]:
    found = []
    for place, subfolders, names in os.walk(folder, onerror=_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        here = Path(place)
        kitti = here.name == KITTI_FLOWS[0] or (here.name == KITTI_FLOWS[1] and not (here.parent / "flow_occ").is_dir())
        wanted = ".png" if kitti else ".flo"
        found += [here / name for name in names if name.lower().endswith(wanted) and not name.startswith(".")]
    yield from sorted(found, key=lambda path: (str(path.parent), natural_order(path)))


def _unreadable(error: OSError) -> None:
    raise DatasetError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _frames(truth: Path) -> list[tuple[Path, Path]]:
    """The two frames of a flow, by its name and place; with Sintel there are two pairs of them."""
    place, name = truth.parent, truth.name
    pairs: list[tuple[Path | None, Path | None]] = []
    if place.name in KITTI_FLOWS and (match := re.fullmatch(r"(.+)_10\.png", name)):
        folder = next((place.parent / other for other in KITTI_FRAMES if (place.parent / other).is_dir()), place)
        pairs = [(_picture(folder, f"{match[1]}_10"), _picture(folder, f"{match[1]}_11"))]
    elif match := re.fullmatch(r"(.+)_flow\.flo", name):
        pairs = [(_picture(place, f"{match[1]}_img1"), _picture(place, f"{match[1]}_img2"))]
    elif match := re.fullmatch(r"flow(\d+)\.flo", name):
        folder = place
        if place.parent.name.endswith("-gt-flow"):
            folder = place.parent.with_name(place.parent.name.replace("-gt-flow", "-data")) / place.name
        pairs = [_numbered(folder, "frame", match[1])]
    elif (match := re.fullmatch(r"frame_(\d+)\.flo", name)) and place.parent.name == "flow":
        folders = (place.parent.with_name(rendering) / place.name for rendering in SINTEL_FRAMES)
        pairs = [_numbered(folder, "frame_", match[1]) for folder in folders if folder.is_dir()]
    found = [(first, second) for first, second in pairs if first and second]
    return found or _only_two(place)


def _numbered(folder: Path, stem: str, number: str) -> tuple[Path | None, Path | None]:
    """The frame of this number and the next one, with as many digits."""
    return _picture(folder, stem + number), _picture(folder, f"{stem}{int(number) + 1:0{len(number)}}")


def _picture(folder: Path, stem: str) -> Path | None:
    paths = (folder / (stem + suffix) for suffix in sorted(IMAGE_SUFFIXES))
    return next((path for path in paths if path.is_file()), None)


def _only_two(folder: Path) -> list[tuple[Path, Path]]:
    """The two pictures of a folder that holds one flow and no others."""
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if len(pictures) != 2 or len(list(folder.glob("*.flo"))) != 1:
        return []
    first, second = sorted(pictures, key=natural_order)
    return [(first, second)]
