from __future__ import annotations

import errno
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from films import write_film
from servers import FilmServer, film_server

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video import remote
from tvnet_cli.video.decode import VideoClips, read_clips
from tvnet_cli.video.files import find_sources
from tvnet_cli.video.reader import ClipReader
from tvnet_cli.video.remote import opened

pytest.importorskip("fsspec", reason="needs tvnet[remote]")
pytest.importorskip("aiohttp", reason="needs tvnet[remote]")

SMALL = ExtractOptions(num_clips=3, short_side=64, crop_size=64)
FEW = (3, 6, 64, 64)  # the same for read_clips
SIGNATURE = "X-Amz-Signature=5ec4e7"


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "a.mp4", 300, options={"g": "20"})  # what it holds stands at its end
    write_film(folder / "my film.mkv", 40)
    write_film(folder / "c.mpg", 40, codec="mpeg1video")
    write_film(folder / "d.avi", 40, codec="mpeg4")
    (folder / "text.mp4").write_text("no film" * 1000)
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture
def server(films, monkeypatch) -> Iterator[FilmServer]:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    with film_server(films) as running:
        yield running


def read(url: str) -> VideoClips:
    with opened(url) as film:
        return read_clips(film, *FEW)


def same(one: VideoClips, other: VideoClips) -> bool:
    arrays = ("frames", "frame_index", "pts_seconds")
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name != "frames") for name in arrays)


@pytest.mark.parametrize("way", ["pieces", "whole files", "whole files of unknown size"])
@pytest.mark.parametrize("name", ["a.mp4", "my film.mkv", "c.mpg", "d.avi"])
def test_a_film_on_the_web_is_read_as_one_on_the_disk(films, server, monkeypatch, way, name):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    server.sends_pieces, server.tells_size = way == "pieces", way != "whole files of unknown size"
    assert same(read(f"{server.url}/{name.replace(' ', '%20')}?{SIGNATURE}"), read_clips(films / name, *FEW))
    assert server.requests > 1


def test_a_small_film_is_fetched_once_and_a_large_one_in_the_parts_that_are_needed(films, server, monkeypatch):
    size = (films / "a.mp4").stat().st_size
    read(f"{server.url}/a.mp4")
    assert server.sent == size
    monkeypatch.setattr(remote, "BLOCK_BYTES", 256)
    monkeypatch.setattr(remote, "KEPT_BLOCKS", 4)
    server.sent = 0
    read(f"{server.url}/a.mp4")
    assert size < server.sent < 2.5 * size


def test_no_copy_is_made_that_would_fill_the_disk(films, server, monkeypatch):
    server.sends_pieces = False
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    usage = shutil.disk_usage(tempfile.gettempdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=remote.SPARE_BYTES + 999))
    with pytest.raises(VideoReadError, match="has no room for a copy") as caught:
        read(f"{server.url}/a.mp4")
    assert caught.value.code == "unreadable"
    assert server.sent < 3 * (films / "a.mp4").stat().st_size


@pytest.mark.parametrize("what", ["write", "open"])
def test_a_folder_for_copies_that_is_full_is_named_and_not_the_server(films, server, monkeypatch, what):
    full = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.BytesIO):
        def write(self, content):
            raise full

    def temporary():
        if what == "open":
            raise full
        return Full()

    server.sends_pieces = False
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    with pytest.raises(VideoReadError, match=f"{tempfile.gettempdir()} has no room for a copy .TMPDIR") as caught:
        read(f"{server.url}/a.mp4")
    assert caught.value.code == "unreadable"
    assert server.sent < 3 * (films / "a.mp4").stat().st_size


@pytest.mark.parametrize(
    ("statuses", "code", "words"),
    [
        ([404] * 9, "no_such_file", "no such file"),
        ([403] * 9, "unreadable", "access denied"),
        ([401] * 9, "unreadable", "access denied"),
        ([418] * 9, "unreadable", "refuses it .status 418"),
        ([503] * 9, "network", "broke off .503"),
    ],
)
def test_what_a_server_refuses_has_a_reason_without_secrets(server, statuses, code, words):
    server.statuses = statuses
    with pytest.raises(VideoReadError, match=words) as caught:
        read(f"{server.url}/a.mp4?{SIGNATURE}")
    assert caught.value.code == code
    assert SIGNATURE not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_short_trouble_of_the_network_is_overcome(films, server):
    server.statuses = [503, 200, 503]
    assert same(read(f"{server.url}/a.mp4"), read_clips(films / "a.mp4", *FEW))
    server.breaks_off = 2
    assert same(read(f"{server.url}/a.mp4"), read_clips(films / "a.mp4", *FEW))


def test_a_server_that_is_gone_in_the_middle_is_not_taken_for_the_end_of_the_film(films, server, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 256)
    monkeypatch.setattr(remote, "KEPT_BLOCKS", 4)
    for behind in (3, 6, 12):
        server.statuses = [200] * behind + [500] * 10**4
        with pytest.raises(VideoReadError) as caught:
            read(f"{server.url}/a.mp4?{SIGNATURE}")
        assert caught.value.code == "network"
        server.statuses = []
    with pytest.raises(VideoReadError, match=r"cannot be reached.*ClientConnectorError") as caught:
        read(f"http://127.0.0.1:1/a.mp4?{SIGNATURE}")
    assert caught.value.code == "network"


def test_what_is_no_film_is_told_as_for_files(server):
    for name, code in (("text.mp4", "cannot_open"), ("empty.mp4", "empty"), ("none.mp4", "no_such_file")):
        with pytest.raises(VideoReadError) as caught:
            read(f"{server.url}/{name}")
        assert caught.value.code == code, name


def test_a_playlist_from_elsewhere_opens_no_other_file(films, server, tmp_path):
    for target in (f"file:{films}/c.mpg", f"{server.url}/c.mpg", "c.mpg"):
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:5", "#EXTINF:5,", target, "#EXT-X-ENDLIST", ""]
        (films / "list.m3u8").write_text("\n".join(lines))
        server.requests = 0
        with pytest.raises(VideoReadError):
            read(f"{server.url}/list.m3u8")
        assert server.requests <= 2  # its end, and itself


def test_the_process_that_decodes_reads_addresses(films, server):
    with ClipReader(SMALL, DecodeLimits()) as reader:
        assert same(reader.read(f"{server.url}/a.mp4?{SIGNATURE}"), read_clips(films / "a.mp4", *FEW))
        with pytest.raises(VideoReadError, match="no such file") as caught:
            reader.read(f"{server.url}/none.mp4?{SIGNATURE}")
    assert caught.value.code == "no_such_file"
    assert SIGNATURE not in str(caught.value.__cause__)


def test_addresses_have_ids_that_tell_no_secrets():
    urls = [f"https://me:pass@host/b/a%20b.mp4?{SIGNATURE}#t=3", "s3://bucket/deep/take#1.mp4", "http://host/film"]
    found = find_sources([*urls, Path("here.mp4")])
    assert [video.video_id for video in found] == ["a b.mp4", "film", "here.mp4", "take#1.mp4"]
    assert [video.place for video in found] == [urls[0], urls[2], Path("here.mp4"), urls[1]]
    assert SIGNATURE not in repr(found)
    with pytest.raises(DatasetError, match=r"two files have the id 'a\.mp4'") as caught:
        find_sources([f"https://me:pass@host/a.mp4?{SIGNATURE}", "https://host/b/a.mp4"])
    assert SIGNATURE not in str(caught.value)
    assert "pass" not in str(caught.value)


def test_addresses_that_lead_nowhere_are_refused(monkeypatch):
    with pytest.raises(DatasetError, match="https://host/films/ cannot be listed"):
        find_sources(["https://host/films/"])
    with pytest.raises(DatasetError, match="no way is known to films over 'tape'"):
        find_sources(["tape://films"])
    monkeypatch.setattr("fsspec.get_filesystem_class", Mock(side_effect=ImportError("Install s3fs to access S3")))
    with pytest.raises(DatasetError, match=r"pip install 'tvnet\[remote\]'"):
        find_sources(["s3://bucket/films"])
