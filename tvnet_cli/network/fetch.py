"""Download a file so that what is there under its name is whole and right: continued, checked, renamed."""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from tvnet_cli import __version__
from tvnet_cli.errors import WeightsError
from tvnet_cli.network.cards import cache_folder, suggestion
from tvnet_cli.network.registry import PUBLISHED, PublishedWeights

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # at one address, as long as each brings something
CHUNK = 1 << 18  # bytes
SURE_PREFIX = 8  # hexadecimal digits of a hash from which on a wrong continuation would be noticed

Progress = Callable[[int, int | None], None]  # bytes that are there, and bytes in all where that is known


def fetch_published(
    name: str,
    *,
    mirrors: Sequence[str] = (),
    trust: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Download published weights into the cache.

    Parameters
    ----------
    name : str
        Of ``tvnet_cli.network.registry.PUBLISHED``.
    mirrors : sequence of str
        Addresses to try before those that are known.
    trust : bool
        Also take a file whose full sha256 nobody knows; what is known of it is compared.
    offline : bool
        Take only what is in the cache already. ``TVNET_OFFLINE=1`` asks for the same.
    progress : callable
        Told of bytes that are there, and of bytes in all or None.

    Returns
    -------
    Path
        The file, in the cache.

    Raises
    ------
    WeightsError
        Naming each address and why it did not serve.
    """
    if name not in PUBLISHED:
        raise WeightsError(f"no published weights are called {name!r}: {suggestion(name, PUBLISHED)}")
    weights = PUBLISHED[name]
    if not weights.sha256 and not trust:
        known = (
            f"only the beginning of its sha256 is known, {weights.sha256_prefix}"
            if weights.sha256_prefix
            else ("its sha256 is not known")
        )
        raise WeightsError(f"{name} cannot be checked: {known}; --trust takes it as it comes ({weights.source})")
    path = cache_folder() / "downloads" / weights.file
    if path.exists():
        try:
            _check(path, weights)
        except WeightsError:
            path.unlink()  # damaged since
        else:
            return path
    urls = [*mirrors, *weights.urls]
    if offline or os.environ.get("TVNET_OFFLINE", "0") not in ("", "0"):
        raise WeightsError(f"{name} is not in {path.parent}, and nothing is downloaded offline")
    if not urls:
        raise WeightsError(f"{name} {weights.note}; {weights.source}")
    failures = []
    for url in urls:
        try:
            download(url, path, lambda part: _check(part, weights), resume=_is_sure(weights), progress=progress)
        except WeightsError as error:
            failures.append(str(error))
        else:
            return path
    note = f" ({weights.note})" if weights.note else ""
    raise WeightsError(f"cannot fetch {name}{note}: {'; '.join(failures)}")


def download(
    url: str, path: Path, check: Callable[[Path], None], *, resume: bool = True, progress: Progress | None = None
) -> None:
    """Download one file.

    The bytes go to ``<path>.part``, which becomes ``path`` once it is whole, checked and on the disk. A part that was
    left by an earlier try is continued if ``resume`` says that the check will notice if it was of another file.

    Raises
    ------
    WeightsError
        If the address does not serve. What came of a right file so far stays for the next try; a wrong one goes.
    """
    if not re.match(r"https?://", url):
        raise WeightsError(f"{url} is no http or https address")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if not resume:
        part.unlink(missing_ok=True)
    continued = part.exists()
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            whole = _receive(url, part, before, progress)
        except urllib.error.HTTPError as error:
            raise WeightsError(f"{url}: {error.code} {error.reason}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            whole = False
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        else:
            reason = "the connection was cut"
        if whole:
            try:
                check(part)
            except WeightsError as error:
                part.unlink()
                if continued:  # perhaps only the part was of another file
                    continued = False
                    continue
                raise WeightsError(f"{url}: {error}") from error
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
            return
        if not part.exists() or part.stat().st_size <= before or attempt == ATTEMPTS - 1:
            break
    kept = f"; {part.stat().st_size} bytes are kept, the same command goes on from there" if _kept(part, resume) else ""
    raise WeightsError(f"{url}: {reason}{kept}")


def _kept(part: Path, resume: bool) -> bool:
    if part.exists() and not (resume and part.stat().st_size):
        part.unlink()
    return part.exists()


def _receive(url: str, part: Path, offset: int, progress: Progress | None) -> bool:
    """Append what is missing, and tell if that was all of it."""
    request = urllib.request.Request(url, headers={"User-Agent": f"tvnet/{__version__}"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            error.close()
            return _receive(url, part, 0, progress)  # what is there is no shorter than the file
        raise
    with response:
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdecimal() else None
        if offset and response.status == http.HTTPStatus.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != offset:
                part.unlink()
                raise http.client.HTTPException("the server answers with another range than was asked for")
            total = int(span[3]) if span[3] != "*" else int(span[2]) + 1
        else:
            offset = 0  # a server that knows no ranges sends the file from its beginning
        with part.open("ab" if offset else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                offset += len(chunk)
                if progress:
                    progress(offset, total)
    return total is None or offset == total


def _is_sure(weights: PublishedWeights) -> bool:
    return len(weights.sha256_prefix) >= SURE_PREFIX or len(weights.git_blob) >= SURE_PREFIX


def _check(path: Path, weights: PublishedWeights) -> None:
    """Compare all that is known of a file."""
    size = path.stat().st_size
    sha256, git_blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            git_blob.update(chunk)
    for kind, found, expected in (
        ("sha256", sha256.hexdigest(), weights.sha256_prefix),
        ("git blob id", git_blob.hexdigest(), weights.git_blob),
    ):
        if not found.startswith(expected):
            raise WeightsError(
                f"{path.name.removesuffix('.part')} is not the published file: its {kind} is {found}, "
                f"not {expected}{'' if len(expected) >= 40 else '...'}"
            )
