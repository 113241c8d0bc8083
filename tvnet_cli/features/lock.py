"""One run at a time on a feature file."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tvnet_cli import locks
from tvnet_cli.errors import FeatureFileError, RefusedFileError
from tvnet_cli.features.format import read_contents

PARTS = ".parts"
OVERWRITES = "overwrites"  # an empty file among the parts: they are to replace the feature file, not to be added to it
NUMBERED = re.compile(r"\d{9}\.h5")  # names of parts
PART = re.compile(r"\d{9}\.h5|repaired.*\.h5")  # and of the good rows of a part that was repaired
LEFTOVER = re.compile(r"\.?(\d{9}\.h5|packed|merged|repaired.*)(\.[0-9a-f]{8})?\.new")  # by a run that was killed


@contextmanager
def locked(
    output: Path,
    *,
    wait: bool = False,
    stop: threading.Event | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Keep other runs from a feature file; gives the folder ``<output>.parts``, which goes at the end if it is empty.

    Parameters
    ----------
    output : Path
    wait, stop, note
        As of ``tvnet_cli.locks.locked``.

    Raises
    ------
    FeatureFileError
        If another run holds the lock, which the message names; or if something else has the name of the folder.
    """
    folder = parts_folder(output)
    if output.is_dir():
        raise FeatureFileError(f"{output} is a folder: name a file in it")
    advice = "wait for it (--wait), or choose another output"
    with locks.locked(
        output, folder, FeatureFileError, wait=wait, stop=stop, note=note, advice=advice, ours=_is_of_an_older_version
    ):
        yield folder


def parts_folder(output: Path) -> Path:
    """Where finished rows wait until they are packed."""
    if not output.name:
        raise FeatureFileError(f"{output} is a folder: name a file in it")
    return output.with_name(output.name + PARTS)


def part_files(folder: Path) -> list[Path]:
    """Return the finished rows that wait in a folder of parts, in their order; other files are not ours to touch."""
    return sorted(path for path in folder.glob("*.h5") if PART.fullmatch(path.name))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left half-written in a folder of parts that is locked."""
    for path in folder.glob("*.new"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink()


def has_own_parts(folder: Path) -> bool:
    """Return whether finished rows wait in a folder of parts that this program made."""
    try:
        require_own_parts(folder)
    except FeatureFileError:
        return False
    return bool(part_files(folder))


def require_own_parts(folder: Path) -> None:
    """Refuse a folder of parts that this program did not make.

    Raises
    ------
    FeatureFileError
    """
    locks.require_own_folder(folder, FeatureFileError, _is_of_an_older_version)


def behind_links(output: Path) -> Path:
    """The file itself: a link to it stays one, and all its names lead to one lock."""
    return Path(os.path.realpath(output)) if output.is_symlink() else output


def _is_of_an_older_version(folder: Path) -> bool:
    """Return whether version 0.1.0, which left no marker, made a folder: by who holds the lock, or by a part."""
    paths = sorted(folder.iterdir())
    if locks.read_holder(folder) or paths == [folder / OVERWRITES]:
        return True
    return any(_is_part(path) for path in paths if PART.fullmatch(path.name))


def _is_part(path: Path) -> bool:
    try:
        read_contents(path)
    except (FeatureFileError, RefusedFileError):
        return False
    return True
