"""Films in a bucket, on a real S3 server on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from films import write_film

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video.decode import read_clips
from tvnet_cli.video.files import find_sources
from tvnet_cli.video.reader import ClipReader

pytest.importorskip("s3fs", reason="needs tvnet[remote]")
moto = pytest.importorskip("moto.server", reason="needs moto[s3] and flask, an S3 server")
boto3 = pytest.importorskip("boto3", reason="needs moto[s3]")

SMALL = ExtractOptions(num_clips=3, short_side=64, crop_size=64)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", 60)


@pytest.fixture(scope="module")
def bucket(film) -> Iterator[str]:
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        host, port = server.get_host_and_port()
        environment.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "someone")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "5ec4e7")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for key in (
            "films/a.mp4",
            "films/deep/er/b #1?.MKV",
            "films/.hidden.mp4",
            "films/.hidden/c.mp4",
            "films/a.flow.mp4",
            "films/notes.txt",
            "films/named",
            "films2/other.mp4",
        ):
            client.upload_file(str(film), "bucket", key)
        yield "s3://bucket"
    server.stop()


def test_a_folder_is_searched_by_the_rules_for_folders(bucket):
    for folder in (f"{bucket}/films", f"{bucket}/films/"):
        found = find_sources([folder])
        assert [video.video_id for video in found] == ["a.mp4", "deep/er/b #1?.MKV"]
    assert [video.video_id for video in find_sources([bucket])] == [
        *("films/a.mp4", "films/deep/er/b #1?.MKV", "films2/other.mp4")
    ]
    assert [video.video_id for video in find_sources([f"{bucket}/films/named", f"{bucket}/films/none"])] == [
        *("named", "none")
    ]


def test_what_cannot_be_listed_has_a_reason(bucket):
    with pytest.raises(DatasetError, match="no videos in s3://bucket/empty/"):
        find_sources([f"{bucket}/empty/"])
    with pytest.raises(DatasetError, match="cannot list s3://nobucket/films/: no such file"):
        find_sources(["s3://nobucket/films/"])


def test_films_are_read_as_those_on_the_disk(bucket, film):
    expected = read_clips(film, 3, 6, 64, 64)
    with ClipReader(SMALL, DecodeLimits()) as reader:
        for video in find_sources([f"{bucket}/films", f"{bucket}/films/named"]):
            clips = reader.read(video.place)
            assert np.array_equal(clips.frames, expected.frames), video
            assert np.array_equal(clips.pts_seconds, expected.pts_seconds)
        with pytest.raises(VideoReadError, match="no such file"):
            reader.read(f"{bucket}/films/none.mp4")
        with pytest.raises(VideoReadError, match="no such file"):
            reader.read("s3://nobucket/film.mp4")
