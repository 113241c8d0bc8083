"""Picture files: which ones, in what order, and their pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.video.files import VIDEO_SUFFIXES

IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())

NUMBERS = re.compile(r"[0-9]+")
NAMED = 4  # patterns of names, in a message
MOST_FRAMES = 2**31  # what spans more is no number of a frame but a date, say

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow; a file is opened as one of these alone
ANIMATED = {"GIF", "PNG", "WEBP"}


def find_images(folder: Path) -> list[Path]:
    """The pictures in a folder, in natural order: frame2 before frame10. Hidden files and subfolders do not count.

    Raises
    ------
    DatasetError
        If there is none, if they are not the frames of one sequence, or if the folder cannot be read.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    except OSError as error:
        raise DatasetError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not files:
        raise DatasetError(f"no images in {folder}: looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    require_one_sequence(folder, files)
    return sorted(files, key=natural_order)


def require_one_sequence(folder: Path, images: Sequence[Path]) -> None:
    """Refuse a folder whose images are not the frames of one sequence.

    Names belong together that differ in numbers alone. Where no name has a number, all of them do.

    Raises
    ------
    DatasetError
        If there are several sequences, videos beside the images, or a number twice.
    """
    patterns = Counter(_pattern(path) for path in images)
    videos = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "."]
    if any("*" in pattern for pattern in patterns) and len(patterns) > 1:
        several = [f"{pattern} ({count})" for pattern, count in patterns.most_common()]
        raise DatasetError(
            f"{folder} holds several sequences of images: {', '.join(several[:NAMED])}"
            f"{f' and {len(several) - NAMED} more' if len(several) > NAMED else ''}: give a folder that holds one"
        )
    if videos:
        raise DatasetError(
            f"{folder} holds {len(images)} images and {len(videos)} videos ({videos[0].name}): give one video, or a "
            "folder of images alone"
        )
    numbers = Counter(tuple(map(int, NUMBERS.findall(path.stem))) for path in images)
    twice = [path.name for path in images if numbers[tuple(map(int, NUMBERS.findall(path.stem)))] > 1]
    if twice and "*" in _pattern(images[0]):
        raise DatasetError(
            f"{folder} holds one number twice ({', '.join(twice[:2])}): give a folder with each frame once"
        )


def frame_numbers(images: Sequence[Path]) -> NDArray[np.int64]:
    """Return the numbers in the names of one sequence, less the first; 0, 1, 2 ... where they have no single number.

    Returns
    -------
    ndarray, (N,), int64
        Rising; with gaps where images are missing.
    """
    found = [tuple(map(int, NUMBERS.findall(path.stem))) for path in images]
    varying = [place for place in range(len(found[0])) if len({numbers[place] for numbers in found}) > 1]
    if len(varying) == 1:
        numbers = np.array([numbers[varying[0]] for numbers in found], np.float64)
        if numbers[-1] - numbers[0] < MOST_FRAMES and (np.diff(numbers) > 0).all():
            rising: NDArray[np.int64] = (numbers - numbers[0]).astype(np.int64)
            return rising
    return np.arange(len(images))


def _pattern(path: Path) -> str:
    """A name with a star for each number, such as ``frame_*.png``."""
    return NUMBERS.sub("*", path.stem) + path.suffix.lower()


def natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A sort key by the numbers in a name, then by the name itself."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in parts if part], path.name


def count_pictures(path: Path) -> int:
    """How many pictures a file holds: several in an animation; 1 if it cannot be read."""
    try:
        with _opened(path) as image:
            # In other formats the pictures behind the first one are small copies of it, or pages.
            return int(getattr(image, "n_frames", 1)) if image.format in ANIMATED else 1
    except (OSError, VideoReadError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return 1  # reading it will say why


def _opened(path: Path) -> Image.Image:
    """Open an image of a known format; whatever is no regular file, such as a pipe, is never waited for.

    Raises
    ------
    VideoReadError
        If it is not a regular file.
    OSError
    """
    if path.exists() and not path.is_file():
        raise VideoReadError(
            f"{path}: a {'folder' if path.is_dir() else 'pipe, device or socket'} is no image", "not_a_file"
        )
    return Image.open(path, formats=FORMATS)


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image by its header alone.

    Raises
    ------
    VideoReadError
        If it is not a regular file.
    OSError, ValueError, SyntaxError, DecompressionBombError
        Of Pillow, if the header cannot be read.
    """
    with _opened(path) as image:
        return image.size


def read_image(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture, upright.

    Returns
    -------
    ndarray, (H, W, 3), uint8, RGB
        16-bit levels are divided by 257; transparency is left out.

    Raises
    ------
    VideoReadError
        Naming the file.
    """
    try:
        with _opened(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16") or upright.mode == "I":  # Pillow would clip them at 255
                levels = np.clip(np.asarray(upright).astype(np.int64), 0, 65535)
                return np.repeat(((levels + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise VideoReadError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise VideoReadError(f"{path}: not an image, or damaged") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoReadError(f"{path}: cannot read this image ({reason})") from error
