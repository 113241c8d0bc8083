"""Small pictures of films, for pages."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from tvnet_cli.video.reader import Decoders, decoders

THUMBNAIL_SIDE = 160  # pixels
QUALITY = 75  # of the JPEG; a picture takes about 6 kB


def thumbnail(path: Path, reader: Decoders | None = None) -> bytes:
    """The middle of a film's middle frame as a square JPEG of ``THUMBNAIL_SIDE`` pixels.

    Parameters
    ----------
    path : Path
    reader : Decoders, optional
        Whose processes decode it.

    Raises
    ------
    VideoReadError
        Whose message is the reason.
    """
    clips = (reader or decoders()).clips(path, 1, 1, short_side=THUMBNAIL_SIDE, crop_size=THUMBNAIL_SIDE)
    file = BytesIO()
    Image.fromarray(clips.frames[0, 0]).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
