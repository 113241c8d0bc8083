from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tvnet_cli.errors import DiskFullError, WeightsError
from tvnet_cli.network import fetch, registry
from tvnet_cli.network.fetch import fetch_published
from tvnet_cli.network.registry import PUBLISHED, PublishedWeights

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WEIGHTS = PublishedWeights(
    name="theirs", stream="rgb", file="theirs.pth", urls=(), source="a test", training_data="none", sha256=SHA256
)


class Server(ThreadingHTTPServer):
    """Serves ``content`` at any path but /missing, in the ways that servers have."""

    content = CONTENT
    cut_after: int | None = None  # bytes of each answer
    knows_ranges = True
    range_error = 0  # bytes by which its ranges are wrong
    says_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str = "/theirs.pth") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.asked.append((self.path, wanted))
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.knows_ranges else 0
        if start and start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + server.range_error
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        if server.says_length:
            self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start:][: server.cut_after])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TVNET_OFFLINE", raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def publish(server, monkeypatch):
    """Have the registry know one file, which the server has."""

    def publish(*paths: str, **changes: object) -> None:
        urls = tuple(server.url(path) for path in paths or ["/theirs.pth"])
        monkeypatch.setitem(PUBLISHED, "theirs", dataclasses.replace(WEIGHTS, urls=urls, **changes))

    return publish


@pytest.fixture
def downloads(cache_folder) -> Path:
    return cache_folder / "downloads"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_downloaded_checked_and_not_asked_for_again(server, publish, downloads):
    publish()
    seen = []
    path = fetch_published("theirs", progress=lambda done, total: seen.append((done, total)))
    assert path == downloads / "theirs.pth"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch_published("theirs", offline=True) == path
    assert server.asked == [("/theirs.pth", None)]
    path.write_bytes(b"damaged")
    assert fetch_published("theirs").read_bytes() == CONTENT
    assert names(downloads) == ["theirs.pth"]


def test_a_download_that_is_cut_goes_on_where_it_was(server, publish, downloads):
    publish()
    server.cut_after = 300_000
    fetch_published("theirs")
    assert [wanted for _, wanted in server.asked] == [None, *(f"bytes={n}00000-" for n in (3, 6, 9))]
    assert (downloads / "theirs.pth").read_bytes() == CONTENT


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server, publish, downloads, monkeypatch):
    publish()
    server.cut_after = 300_000
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    with pytest.raises(WeightsError, match=r"the connection was cut; 300000 bytes are kept"):
        fetch_published("theirs")
    assert names(downloads) == ["theirs.pth.part"]
    server.cut_after = None
    assert fetch_published("theirs").read_bytes() == CONTENT
    assert server.asked[-1] == ("/theirs.pth", "bytes=300000-")


def test_a_server_without_ranges_sends_all_of_it_again(server, publish, downloads):
    publish()
    server.knows_ranges = False
    downloads.mkdir()
    (downloads / "theirs.pth.part").write_bytes(CONTENT[:1000])
    assert fetch_published("theirs").read_bytes() == CONTENT


def test_a_server_without_a_length_is_trusted_to_end_where_the_file_does(server, publish):
    publish()
    server.says_length = False
    assert fetch_published("theirs").read_bytes() == CONTENT


def test_a_wrong_range_is_not_appended(server, publish, downloads):
    publish()
    server.range_error = 5
    downloads.mkdir()
    (downloads / "theirs.pth.part").write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsError, match="another range"):
        fetch_published("theirs")
    assert names(downloads) == []


@pytest.mark.parametrize("part", [b"of another file", CONTENT, CONTENT + b"more"])
def test_a_part_of_another_file_does_not_spoil_the_download(publish, downloads, part):
    publish()
    downloads.mkdir()
    (downloads / "theirs.pth.part").write_bytes(part)
    assert fetch_published("theirs").read_bytes() == CONTENT


@pytest.mark.parametrize("says_length", [True, False])
def test_a_download_larger_than_import_takes_is_stopped_and_leaves_nothing(
    server, publish, downloads, monkeypatch, says_length
):
    publish()
    server.says_length, seen = says_length, []
    monkeypatch.setattr(fetch, "MAX_WEIGHT_BYTES", 600_000)
    with pytest.raises(WeightsError, match=r"it has more than 600,000 bytes, and no more are taken$"):
        fetch_published("theirs", progress=lambda done, total: seen.append(done))
    assert max(seen, default=0) <= 600_000
    assert bool(seen) is not says_length
    assert names(downloads) == []
    assert len(server.asked) == 1


def test_a_part_larger_than_import_takes_is_not_resumed(server, publish, downloads, monkeypatch):
    publish()
    monkeypatch.setattr(fetch, "MAX_WEIGHT_BYTES", len(CONTENT))
    downloads.mkdir()
    (downloads / "theirs.pth.part").write_bytes(CONTENT + b"more")
    assert fetch_published("theirs").read_bytes() == CONTENT
    assert server.asked == [("/theirs.pth", None)]


def test_two_downloads_of_one_file_do_not_mix(server, publish, downloads):
    publish()
    downloads.mkdir()
    part = downloads / "theirs.pth.part"
    with part.open("wb") as other:  # of another process, which has begun
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"begun")
        other.flush()
        assert fetch_published("theirs").read_bytes() == CONTENT
        assert part.read_bytes() == b"begun"
    assert names(downloads) == ["theirs.pth", "theirs.pth.part"]


def test_a_disk_without_locks_takes_a_download_too(publish, downloads, monkeypatch):
    publish()

    def no_locks(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fetch.fcntl, "flock", no_locks)
    assert fetch_published("theirs").read_bytes() == CONTENT
    assert names(downloads) == ["theirs.pth"]


def test_a_full_disk_is_named_and_what_came_is_kept(publish, cache_folder, small_disk, monkeypatch):
    publish()
    monkeypatch.setenv("TVNET_CACHE", str(small_disk))
    (small_disk / "filling").write_bytes(bytes(1_500_000))
    with pytest.raises(DiskFullError, match=rf"cannot write .*theirs\.pth\.part: the disk at {small_disk} is full"):
        fetch_published("theirs")
    (small_disk / "filling").unlink()
    assert fetch_published("theirs").read_bytes() == CONTENT


def test_a_wrong_file_leaves_nothing_behind(server, publish, downloads):
    publish()
    server.content = b"something else"
    with pytest.raises(
        WeightsError, match=rf"theirs\.pth is not the published file: its sha256 is \w+, not {SHA256};?"
    ):
        fetch_published("theirs")
    assert names(downloads) == []


def test_mirrors_are_tried_in_order_and_each_failure_is_told(server, publish):
    publish("/missing", "/theirs.pth")
    assert fetch_published("theirs", mirrors=[server.url("/first")]).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/first"]


def test_the_next_address_is_tried_where_one_does_not_serve(server, publish):
    publish("/missing", "/theirs.pth")
    fetch_published("theirs", mirrors=["http://127.0.0.1:9/", "ftp://127.0.0.1/x", "http://["])
    assert [path for path, _ in server.asked] == ["/missing", "/theirs.pth"]


def test_where_nothing_serves_each_address_is_named(server, publish, downloads):
    publish("/missing", note="old")
    with pytest.raises(
        WeightsError, match=r"cannot fetch theirs \(old\): .*https address; http\S+/missing: 404 Not Fou"
    ):
        fetch_published("theirs", mirrors=["ftp://127.0.0.1/x"])
    assert names(downloads) == []


def test_without_a_full_hash_trust_is_asked_for_and_the_beginning_compared(server, publish, downloads):
    publish(sha256="", file=f"theirs-{SHA256[:12]}.pth")
    with pytest.raises(WeightsError, match=f"only the beginning of its sha256 is known, {SHA256[:12]}; --trust"):
        fetch_published("theirs")
    assert fetch_published("theirs", trust=True).read_bytes() == CONTENT
    publish(sha256="", file="theirs-123456789abc.pth")
    with pytest.raises(WeightsError, match=r"its sha256 is \w{64}, not 123456789abc\.\.\."):
        fetch_published("theirs", trust=True)
    publish(sha256="", git_blob=hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()[:8])
    fetch_published("theirs", trust=True)
    publish(sha256="", git_blob="12345678", file="other.pth")
    with pytest.raises(WeightsError, match=r"its git blob id is \w{40}, not 12345678\.\.\."):
        fetch_published("theirs", trust=True)


def test_what_nothing_checks_is_not_pieced_together(server, publish, downloads):
    publish(sha256="")
    with pytest.raises(WeightsError, match="its sha256 is not known; --trust"):
        fetch_published("theirs")
    downloads.mkdir()
    (downloads / "theirs.pth.part").write_bytes(b"of another file")
    assert fetch_published("theirs", trust=True).read_bytes() == CONTENT
    assert server.asked == [("/theirs.pth", None)]


def test_a_cut_download_of_what_nothing_checks_is_continued_in_the_same_run_only(
    server, publish, downloads, monkeypatch
):
    publish(sha256="")
    server.cut_after = 300_000
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    with pytest.raises(WeightsError, match=r"the connection was cut$"):
        fetch_published("theirs", trust=True)
    assert names(downloads) == []
    monkeypatch.setattr(fetch, "ATTEMPTS", 5)
    assert fetch_published("theirs", trust=True).read_bytes() == CONTENT


@pytest.mark.parametrize(("variable", "offline"), [("", True), ("1", False)])
def test_offline_nothing_is_asked_for(server, publish, monkeypatch, variable, offline):
    publish()
    monkeypatch.setenv("TVNET_OFFLINE", variable)
    with pytest.raises(WeightsError, match=r"theirs is not in .*downloads, and nothing is downloaded offline"):
        fetch_published("theirs", offline=offline)
    assert not server.asked


def test_an_unknown_name_and_one_without_an_address_say_what_to_do(publish, monkeypatch):
    with pytest.raises(WeightsError, match="no published weights are called 'tsn-ucf101-flo': did you mean tsn-ucf101"):
        fetch_published("tsn-ucf101-flo")
    with pytest.raises(
        WeightsError, match=r"tbn-kinetics-flow needs a browser.*tvnet weights import FILE.*Google Drive"
    ):
        fetch_published("tbn-kinetics-flow", trust=True)


def test_the_registry_is_in_order():
    assert len(PUBLISHED) == len(registry._ALL)
    assert [weights.name for weights in PUBLISHED.values() if weights.sha256] == ["cadene-imagenet"]
    for name, weights in PUBLISHED.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", name)
        assert all(re.fullmatch(r"https?://\S+", url) and weights.file in url for url in weights.urls)
        assert "-" not in weights.sha256_prefix
        assert weights.urls or weights.note
    assert PUBLISHED["ssn-thumos-flow"].sha256_prefix == "89dfeaf803e"
    assert PUBLISHED["epic-tsn-flow"].sha256_prefix == "4c720ee3"
    assert PUBLISHED["tbn-kinetics-flow"].state == "browser"
    assert PUBLISHED["mmaction-imagenet"].state == "dead"
