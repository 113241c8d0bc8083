"""Texts that people and other programs wrote: tables, lists and cards, read whole, or refused in one line."""

from __future__ import annotations

import codecs
import stat
from pathlib import Path

from tvnet_cli.errors import DatasetError

MAX_TEXT_BYTES = 64 << 20  # more than a million pairs of videos
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def require_file(path: Path, most: int, what: str) -> None:
    """Refuse what is not a file of at most so many bytes. Pipes and devices, which may never end, are not opened.

    Parameters
    ----------
    path : Path
    most : int, bytes
    what : str
        What it should be, for the message, such as ``"the pairs"``.

    Raises
    ------
    DatasetError
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DatasetError(f"cannot read {what} {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe, a device or a socket"
        raise DatasetError(f"cannot read {what} {path}: it is {kind}, and a file is needed")
    if found.st_size > most:
        raise DatasetError(f"cannot read {what} {path}: it has {found.st_size:,} bytes, at most {most:,} are taken")


def looks_like_utf_16(start: bytes) -> bool:
    """Return whether a text begins with the byte order mark of UTF-16, as spreadsheets write it."""
    return start.startswith(UTF_16)


def read_text(path: Path, what: str, most: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Raises
    ------
    DatasetError
        If it is no file, has more than ``most`` bytes, is in UTF-16 or another encoding, or holds NUL bytes.
    """
    require_file(path, most, what)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {what} {path}: {error.strerror}") from error
    if looks_like_utf_16(content):
        raise DatasetError(f"cannot read {what} {path}: it is UTF-16 text: save it as UTF-8")
    at = content.find(b"\0")
    if at >= 0:
        line = content.count(b"\n", 0, at) + 1
        raise DatasetError(f"cannot read {what} {path}: line {line} holds a NUL byte: it is no text in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"cannot read {what} {path}: line {line} is not UTF-8 text: {error.reason}") from error
