"""Addresses of films elsewhere. What people see of them holds no password, and no signature from behind ``?``."""

from __future__ import annotations

import re
from urllib.parse import unquote

WEB = {"http", "https"}
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether it is an address, and no path on this machine.

    >>> [is_url(text) for text in ("s3://films/a.mp4", "/films/a.mp4", "a:b.mp4", "C:/films")]
    [True, False, False, False]
    """
    return _URL.match(text) is not None


def url_way(url: str) -> str:
    """How an address is reached, such as ``s3``."""
    return url.partition(":")[0].lower()


def shown(url: str) -> str:
    """An address as people may see it; a path as it is.

    >>> shown("https://me:secret@host/films/a.mp4?X-Amz-Signature=abc#t=1")
    'https://host/films/a.mp4'
    """
    if not is_url(url):
        return url
    way, _, rest = url.partition("://")
    rest = re.split("[?#]" if url_way(url) in WEB else "[?]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{way}://{host.rpartition('@')[2]}{slash}{path}"


def url_name(url: str) -> str:
    """The last part of an address.

    >>> url_name("https://host/films/my%20film.mp4?token=abc")
    'my film.mp4'
    """
    name = shown(url).rstrip("/").rpartition("/")[2]
    return unquote(name) if url_way(url) in WEB else name
