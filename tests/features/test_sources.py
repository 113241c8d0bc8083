"""Whether a video is still the one that its row was made of."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from feature_files import content
from films import write_film

from tvnet_cli.errors import FeatureFileError, FileAccessError, VideoReadError
from tvnet_cli.features.extract import extract_features
from tvnet_cli.features.extractor import Extractor
from tvnet_cli.features.merge import merge_features
from tvnet_cli.features.plan import plan_run
from tvnet_cli.features.shards import Shard
from tvnet_cli.features.sources import UNKNOWN_SOURCE, check_sources
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.features.verify import verify_features
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video import remote
from tvnet_cli.video.files import RemoteVideo, Video, find_videos
from tvnet_cli.video.identity import Identity, identify
from tvnet_cli.video.reader import ClipReader

SMALL = ExtractOptions(num_clips=1, short_side=96, crop_size=96)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number, name in enumerate("ab"):
        write_film(folder / f"{name}.mp4", 10 + 10 * number)
    return folder


@pytest.fixture(scope="module")
def models():
    return load_models(["untrained"], ("flow",))


@pytest.fixture
def run(films, tmp_path, models):
    """A run over the films; its results by video id, and what it noted."""

    def run_them(output: Path = tmp_path / "f.h5", **how):
        notes: list[str] = []
        found = extract_features(find_videos([films]), output, models, options=SMALL, note=notes.append, **how)
        return {result.video_id: result for result in found}, notes

    return run_them


def statuses(results) -> dict[str, str]:
    return {video_id: result.status for video_id, result in results.items()}


def test_a_row_keeps_size_time_and_hash_of_its_video(films, run, tmp_path):
    run()
    found, source = content(tmp_path / "f.h5"), identify(films / "a.mp4")
    assert (found["source_bytes"].dtype, found["source_mtime_ns"].dtype) == (np.int64, np.int64)
    assert (found["source_hash"].shape, found["source_hash"].dtype) == ((2, 32), np.uint8)
    stored = found["source_bytes"][0], found["source_mtime_ns"][0], found["source_hash"][0].tobytes().hex()
    assert stored == (source.size, source.mtime_ns, source.sha256)
    assert verify_features(tmp_path / "f.h5").good


@pytest.mark.parametrize("same_size", [False, True])
def test_a_changed_video_fails_and_its_old_row_stays(films, run, tmp_path, same_size):
    run()
    before, old = content(tmp_path / "f.h5"), (films / "a.mp4").stat()
    replace_film(films / "a.mp4", same_size)
    os.utime(films / "a.mp4", ns=(old.st_mtime_ns, old.st_mtime_ns))
    results, _ = run()
    assert statuses(results) == {"a.mp4": "failed", "b.mp4": "skipped"}
    assert (results["a.mp4"].code, results["a.mp4"].earlier) == ("source_changed", None)
    what = "another content" if same_size else f"{old.st_size} bytes then, {(films / 'a.mp4').stat().st_size} now"
    assert what in results["a.mp4"].reason
    after = content(tmp_path / "f.h5")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before if before[name].dtype != object)


def replace_film(path: Path, same_size: bool) -> None:
    """Another film, or the same with another byte in its middle."""
    if not same_size:
        write_film(path, 33)
        return
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_on_request_a_changed_video_is_computed_again(films, run, tmp_path):
    run()
    write_film(films / "a.mp4", 33)
    results, _ = run(recompute_changed=True)
    assert statuses(results) == {"a.mp4": "done", "b.mp4": "skipped"}
    assert statuses(run()[0]) == {"a.mp4": "skipped", "b.mp4": "skipped"}
    run(tmp_path / "new.h5")
    resumed, new = content(tmp_path / "f.h5"), content(tmp_path / "new.h5")
    assert all(resumed[name].tobytes() == new[name].tobytes() for name in new if new[name].dtype != object)


def test_a_changed_video_that_cannot_be_computed_again_keeps_its_row(films, run, tmp_path):
    run()
    (films / "a.mp4").write_text("no film")
    results, _ = run(recompute_changed=True)
    assert statuses(results) == {"a.mp4": "failed", "b.mp4": "skipped"}
    found = content(tmp_path / "f.h5")
    assert (found["video_id"].tolist(), found["failures/video_id"].tolist()) == ([b"a.mp4", b"b.mp4"], [])
    assert run()[0]["a.mp4"].code == "source_changed"


def test_another_modification_time_alone_is_noted_and_the_row_is_kept(films, run):
    run()
    for name in ("a.mp4", "b.mp4"):
        os.utime(films / name, ns=(1, 1))
    results, notes = run()
    assert statuses(results) == {"a.mp4": "skipped", "b.mp4": "skipped"}
    assert len(notes) == 1
    assert notes[0].startswith("2 videos have another modification time")
    assert "--overwrite" in notes[0]


def test_rows_of_an_older_version_are_kept_with_one_note(films, run, tmp_path):
    run()
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        for name in ("software", "datasets", "checksums"):
            del file.attrs[name]
        file.attrs["format_version"] = 1
        for name in ("source_bytes", "source_mtime_ns", "source_hash", "notes", "written_by", "checksum", "failures"):
            del file[name]
    write_film(films / "a.mp4", 33)
    write_film(films / "c.mp4", 12)
    results, notes = run()
    assert statuses(results) == {"a.mp4": "skipped", "b.mp4": "skipped", "c.mp4": "done"}
    assert [note[:7] for note in notes] == ["2 rows "]
    found = content(tmp_path / "f.h5")
    assert found["source_bytes"].tolist() == [-1, -1, (films / "c.mp4").stat().st_size]
    assert found["source_hash"].any(axis=1).tolist() == [False, False, True]


def test_a_video_that_changes_while_it_is_read_fails(films, run, tmp_path, monkeypatch):
    read = ClipReader.read

    def and_append(self: ClipReader, place: Path):
        clips = read(self, place)
        if place.name == "a.mp4":
            with place.open("ab") as file:
                file.write(b"more")
        return clips

    monkeypatch.setattr(ClipReader, "read", and_append)
    results, _ = run()
    assert (results["a.mp4"].status, results["a.mp4"].code) == ("failed", "changed")
    assert results["b.mp4"].status == "done"


def test_a_dry_run_counts_changed_videos(films, run, tmp_path, models):
    run()
    write_film(films / "a.mp4", 33)
    plan = plan_run(find_videos([films]), tmp_path / "f.h5", Extractor(models, SMALL))
    assert (plan.todo, plan.done, plan.changed) == (0, 1, 1)
    assert "1 changed since (--recompute-changed computes them again)" in str(plan)
    assert plan.summary()["changed"] == 1


def test_shards_notice_changed_videos_too(films, tmp_path, models):
    shard = next(shard for shard in (Shard(0, 2), Shard(1, 2)) if shard.holds("a.mp4"))
    mine = [video for video in find_videos([films]) if shard.holds(video.video_id)]
    for expected in ("done", "source_changed"):
        found = list(extract_features(mine, shard.output(tmp_path / "f.h5"), models, options=SMALL))
        assert expected in {found[0].status, found[0].code}
        write_film(films / "a.mp4", 33)


def test_rows_of_copies_merge_and_rows_of_other_videos_do_not(tmp_path):
    for name, size, time in (("a", 7, 1), ("b", 7, 2), ("c", 8, 1)):
        with FeatureStore(tmp_path / f"{name}.h5", {}) as store:
            digest = np.full(32, size, np.uint8)
            sources = {"source_bytes": np.int64(size), "source_mtime_ns": np.int64(time), "source_hash": digest}
            store.add("v.mp4", {"num_frames": np.int64(3), **sources})
    merge_features([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "ab.h5")
    with pytest.raises(FeatureFileError, match=r"different rows of v\.mp4: source_bytes, source_hash"):
        merge_features([tmp_path / "a.h5", tmp_path / "c.h5"], tmp_path / "ac.h5")


def test_videos_that_cannot_be_looked_at_keep_their_rows_with_a_note(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    videos = [Video(name, tmp_path / name) for name in ("gone.mp4", "pipe.mp4")]
    found = check_sources(videos, dict.fromkeys(("gone.mp4", "pipe.mp4"), Identity(1, 1, "00")))
    assert (found.changed, list(found.unreadable)) == ({}, ["gone.mp4", "pipe.mp4"])
    (note,) = found.notes()
    assert note.startswith("2 videos with a row cannot be checked for changes, such as gone.mp4 (No such file")


def test_only_videos_with_rows_are_looked_at_and_progress_tells(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    told: list[tuple[int, int]] = []
    videos = [Video(name, tmp_path / name) for name in ("a.mp4", "gone.mp4")]
    found = check_sources(videos, {"a.mp4": identify(tmp_path / "a.mp4")}, lambda *numbers: told.append(numbers))
    assert (found.notes(), told) == ([], [(1, 1)])


def test_a_run_that_is_to_end_calls_no_row_unchanged_that_it_did_not_look_at(films, run):
    run()
    write_film(films / "a.mp4", 33)
    stop = threading.Event()
    stop.set()
    assert run(stop=stop) == ({}, [])


@pytest.mark.parametrize(
    ("said", "then"),
    [
        ({"size": 7, "ETag": '"x"'}, ""),
        ({"size": 7, "ETag": '"y"'}, "7 bytes as then, with another content"),
        ({"size": 8, "ETag": '"x"'}, "7 bytes then, 8 now"),
        ({"size": None}, ""),
    ],
)
def test_a_remote_video_is_told_apart_by_size_and_tag(said, then):
    before = remote._identity({"size": 7, "etag": '"x"', "LastModified": datetime(2024, 1, 1, tzinfo=timezone.utc)})
    now = RemoteVideo("a.mp4", "s3://bucket/a.mp4", remote._identity(said))
    assert before.mtime_ns == 1704067200 * 10**9
    found = check_sources([now], {"a.mp4": before})
    assert then in found.changed.get("a.mp4", "")
    assert bool(found.changed) == bool(then)


def test_without_tags_the_time_that_a_server_says_tells_remote_videos_apart():
    days = [remote._identity({"size": 7, "Last-Modified": f"Mon, 0{day} Jan 2024 00:00:00 GMT"}) for day in (1, 8)]
    assert days[0].mtime_ns == 1704067200 * 10**9
    found = check_sources([RemoteVideo("a.mp4", "https://x/a.mp4", days[1])], {"a.mp4": days[0]})
    assert "changed at another time" in found.changed["a.mp4"]


def test_a_video_that_moved_to_a_bucket_is_compared_by_its_size():
    local, there = Identity(7, 1, "ab" * 32), remote._identity({"size": 7, "ETag": "x"})
    assert check_sources([RemoteVideo("a.mp4", "s3://b/a.mp4", there)], {"a.mp4": local}).changed == {}
    assert check_sources([RemoteVideo("a.mp4", "s3://b/a.mp4", there)], {"a.mp4": UNKNOWN_SOURCE}).unrecorded == 1


def test_a_server_that_cannot_be_asked_makes_no_row_changed(monkeypatch):
    def unreachable(url: str) -> Identity:
        raise VideoReadError("the server cannot be reached", "network")

    monkeypatch.setattr("tvnet_cli.features.sources.ask_identity", unreachable)
    found = check_sources([RemoteVideo("a.mp4", "https://x/a.mp4")], {"a.mp4": Identity(7, 1, "")})
    assert found.unreadable == {"a.mp4": "the server cannot be reached"}


def test_few_bytes_of_each_known_video_are_read(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(bytes(10**7))
    read: list[bytes] = []
    pieces = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda: SimpleNamespace(update=read.append, hexdigest=pieces().hexdigest))
    check_sources([Video("a.mp4", tmp_path / "a.mp4")], {"a.mp4": Identity(10**7, 1, "ab" * 32)})
    assert (len(read), sum(map(len, read))) == (3, 3 * 2**16)


WRITER = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"


def test_a_file_that_another_program_writes_is_open_there_and_not_damaged(films, run, tmp_path):
    run()
    before = (tmp_path / "f.h5").read_bytes()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "f.h5")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(FileAccessError, match=r"f\.h5 is open in another program \(lock\)") as raised:
            run()
        other.communicate()
    assert "damaged" not in str(raised.value)
    assert "repair" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5", "films"]
    assert len((tmp_path / "f.h5").read_bytes()) == len(before)
    assert statuses(run()[0]) == {"a.mp4": "skipped", "b.mp4": "skipped"}
