"""Picture files: which ones, in what order, and their pixels."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.options import MAX_FRAME_PIXELS
from tvnet_cli.video.files import VIDEO_SUFFIXES
from tvnet_cli.writing import is_marked

IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())

Number = int | Fraction
NUMBERS = re.compile(r"[0-9]{9,}\.[0-9]+|[0-9]+")  # the first: seconds of a clock
CLOCK_NUMBERS = 10**8  # and more are no numbers of frames; 46 days at 25 frames per second have fewer
SAME_SUFFIXES = {".jpeg": ".jpg", ".tif": ".tiff"}
NAMED = 5  # patterns of names, in a message

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow; a file is opened as one of these alone
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ANIMATED = {"GIF", "PNG", "WEBP"}


def find_images(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order: frame2 before frame10. Hidden files and subfolders do not count.

    Raises
    ------
    DatasetError
        If there is none, if they are not the frames of one sequence, or if the folder cannot be read.
    """
    try:
        entries = [path for path in folder.iterdir() if path.name[0] != "."]
    except OSError as error:
        raise DatasetError(f"cannot read the folder {folder}: {error.strerror}") from error
    files = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise DatasetError(f"no images in {folder}: looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    files.sort(key=natural_order)
    videos = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES and _is_of_others(path)]
    _require_one_sequence(folder, files, sorted(videos))
    return files


def frame_numbers(images: Sequence[Path]) -> tuple[NDArray[np.int64], str]:
    """Return the numbers of the frames of one sequence, by the numbers in their names, and a note for people.

    Parameters
    ----------
    images : sequence of Path
        From ``find_images``.

    Returns
    -------
    ndarray, (N,), int64
        From 0 on, rising; with gaps where numbers are missing.
    str
        What the gaps mean; empty without gaps.
    """
    found = _frame_column([_numbers(path) for path in images])
    if not found or found[-1] - found[0] == len(images) - 1:
        return np.arange(len(images)), ""
    if found[-1] >= CLOCK_NUMBERS:
        return np.arange(len(images)), (
            f"the numbers in names such as {images[0].name} are too large for numbers of frames, and may be times: "
            "the images are taken in their order, at the constant rate of --fps"
        )
    gap = next(place for place, (one, other) in enumerate(pairwise(found)) if other - one > 1)
    numbers = np.array([int(number - found[0]) for number in found], np.int64)
    return numbers, (
        f"{numbers[-1] + 1 - len(images)} numbers are missing among the {len(images)} images, the first after "
        f"{images[gap].name}: times and frame_index follow the numbers, and the flow across a gap is the whole motion "
        "from the image before it to the one after it"
    )


def _require_one_sequence(folder: Path, images: Sequence[Path], videos: Sequence[Path]) -> None:
    """Refuse a folder that holds more than the frames of one sequence.

    Names belong together that differ in numbers alone, one of which rises from each image to the next. Names without
    any number belong together too, unless two differ in their suffixes alone.

    Raises
    ------
    DatasetError
        If there are several sequences, videos beside the images, or a number twice.
    """
    numbered = any(_numbers(path) for path in images)
    stems = {path.stem.casefold() for path in images}
    if numbered:
        groups = _grouped(images, _text)
    elif len(stems) < len(images):
        groups = _grouped(images, lambda path: path.suffix.lower())
    else:
        groups = [list(images)]
    if len(groups) == 1 and numbered:
        for same in _grouped(images, _numbers):
            if len(same) > 1:
                raise DatasetError(
                    f"{folder} holds one number twice ({same[0].name}, {same[1].name}): give a folder with each frame "
                    "once"
                )
        groups = _by_rising_number(groups[0])
    if len(groups) == 1 and not videos:
        return
    named = [f"{_pattern(group)} ({len(group)})" for group in sorted(groups, key=len, reverse=True)]
    more = f", and {len(named) - NAMED} more" if len(named) > NAMED else ""
    if videos:
        more += f", {videos[0].name} (video)" if len(videos) == 1 else f", {videos[0].name} ... ({len(videos)} videos)"
    raise DatasetError(
        f"{folder} holds several sequences: {', '.join(named[:NAMED])}{more}: give a folder of one, or its images one "
        "by one in their order"
    )


def _by_rising_number(images: list[Path]) -> list[list[Path]]:
    """Split images whose names differ in numbers alone where no number rises from each to the next.

    They are put together by all numbers but one, so that there are as few groups as possible.
    """
    numbers = [_numbers(path) for path in images]
    if _frame_column(numbers):
        return [images]
    ways = []
    for place in range(len(numbers[0])):
        others = {path: (*all_of[:place], *all_of[place + 1 :]) for path, all_of in zip(images, numbers, strict=True)}
        ways.append(_grouped(images, others.__getitem__))
    return min(reversed(ways), key=len)


def _frame_column(numbers: Sequence[tuple[Number, ...]]) -> list[Number]:
    """Return the numbers at that place of the names where they rise from each image to the next, with fewest gaps.

    None, if there is no such place.
    """
    columns = [list(column) for column in zip(*numbers, strict=True)]
    rising = [column for column in columns if all(one < other for one, other in pairwise(column))]
    return min(rising, key=lambda column: column[-1] - column[0], default=[])


def _grouped(images: Sequence[Path], key: Callable[[Path], object]) -> list[list[Path]]:
    groups: dict[object, list[Path]] = {}
    for path in images:
        groups.setdefault(key(path), []).append(path)
    return list(groups.values())


def _text(path: Path) -> tuple[str, ...]:
    """Return what is not a number in the name of an image; upper and lower case are the same, as jpg and jpeg are."""
    suffix = path.suffix.lower()
    return *NUMBERS.split(path.stem.casefold()), SAME_SUFFIXES.get(suffix, suffix)


def _numbers(path: Path) -> tuple[Number, ...]:
    return tuple(int(text) if text.isdecimal() else Fraction(text) for text in NUMBERS.findall(path.stem))


def _pattern(images: Sequence[Path]) -> str:
    """Return a name with a star for each number that is not the same in all images, such as ``frame_*.png``."""
    if len(images) == 1:
        return images[0].name
    if not all(_text(path)[:-1] == _text(images[0])[:-1] for path in images):
        return f"*{images[0].suffix}"
    columns = iter(zip(*(_numbers(path) for path in images), strict=True))
    return NUMBERS.sub(lambda match: match[0] if len(set(next(columns))) == 1 else "*", images[0].stem) + (
        images[0].suffix
    )


def _is_of_others(video: Path) -> bool:
    """Return whether a file is something else than flow that this program wrote between its frames."""
    try:
        return video.is_file() and not is_marked(video)
    except OSError:
        return True


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
        If it is not a regular file, or too large.
    OSError
    """
    require_file(path)
    image = Image.open(path, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_FRAME_PIXELS:
        image.close()
        raise VideoReadError(f"{path}: {_too_large(width, height)}", "too_large")
    return image


def require_file(path: Path) -> None:
    """Refuse what is no regular file, such as a pipe, which may never answer.

    Raises
    ------
    VideoReadError
        If it is there and something else.
    """
    if path.exists() and not path.is_file():
        raise VideoReadError(
            f"{path}: a {'folder' if path.is_dir() else 'pipe, device or socket'} is no image", "not_a_file"
        )


def _too_large(width: int, height: int) -> str:
    return f"too large: {width} x {height} pixels, at most {MAX_FRAME_PIXELS:,} are taken"


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


def read_levels(path: Path) -> NDArray[np.uint16]:
    """Return the levels of a PNG image of three channels of 16 bits, as KITTI keeps flow.

    Returns
    -------
    ndarray, (H, W, 3), uint16

    Raises
    ------
    VideoReadError
        If it is not a regular file, or no such image; without the file's name.
    """
    require_file(path)
    try:
        content = path.read_bytes()
        if not content.startswith(PNG_SIGNATURE):
            raise VideoReadError("not a PNG image")
        # As an image and nothing else: libav would take a text that describes a stream for one, and listen to it.
        only = {"protocol_whitelist": "none", "format_whitelist": "png_pipe"}
        with av.open(io.BytesIO(content), "r", format="png_pipe", options=only) as container:
            width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
            if width * height > MAX_FRAME_PIXELS:
                raise VideoReadError(_too_large(width, height), "too_large")
            frame = next(container.decode(video=0), None)
            if frame is None or not frame.format.name.startswith("rgb48"):
                raise VideoReadError("KITTI's have three channels of 16 bits", "cannot_open")
            return frame.to_ndarray(format="rgb48le").astype(np.uint16)
    except (OSError, av.error.FFmpegError) as error:
        raise VideoReadError(getattr(error, "strerror", None) or str(error)) from error


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
