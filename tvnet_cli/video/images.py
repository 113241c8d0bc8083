"""Picture files: which ones, in what order, and their pixels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tvnet_cli.errors import DatasetError, VideoReadError

IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())

ANIMATED = {"GIF", "PNG", "WEBP"}


def find_images(folder: Path) -> list[Path]:
    """The pictures in a folder, in natural order: frame2 before frame10. Hidden files and subfolders do not count.

    Raises
    ------
    DatasetError
        If there is none, or the folder cannot be read.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    except OSError as error:
        raise DatasetError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not files:
        raise DatasetError(f"no images in {folder}: looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(files, key=natural_order)


def natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A sort key by the numbers in a name, then by the name itself."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in parts if part], path.name


def count_pictures(path: Path) -> int:
    """How many pictures a file holds: several in an animation; 1 if it cannot be read."""
    try:
        with Image.open(path) as image:
            # In other formats the pictures behind the first one are small copies of it, or pages.
            return int(getattr(image, "n_frames", 1)) if image.format in ANIMATED else 1
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return 1  # reading it will say why


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
        with Image.open(path) as image:
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
