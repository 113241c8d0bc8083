"""Servers of films on the loopback interface."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FilmServer(ThreadingHTTPServer):
    """Serves the files of a folder over HTTP, and remembers what it sent.

    Attributes
    ----------
    sends_pieces, tells_size : bool
        False: every request gets the whole file; its length is not told.
    statuses : list of int
        For the next requests, instead of files.
    breaks_off : int
        So many of the next answers end in the middle.
    sent, requests : int
        Bytes of films, and requests for them.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.sends_pieces = self.tells_size = True
        self.statuses: list[int] = []
        self.breaks_off = self.sent = self.requests = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: FilmServer
    protocol_version = "HTTP/1.0"

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        server, path = self.server, self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        status = server.statuses.pop(0) if server.statuses else 200 if path.is_file() else 404
        if status != 200:
            self.send_error(status)
            return
        body = path.read_bytes()
        piece = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if piece and server.sends_pieces:
            start, end = int(piece[1]), min(int(piece[2]), len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
            body = body[start : end + 1]
        else:
            self.send_response(200)
        if server.tells_size:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            server.requests += 1
            if server.breaks_off:
                server.breaks_off -= 1
                body = body[: len(body) // 2]
            server.sent += len(body)
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def film_server(folder: Path) -> Iterator[FilmServer]:
    """A server of the files in a folder, inside a ``with`` block."""
    with FilmServer(folder) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield server
        server.shutdown()
        serving.join()
