from __future__ import annotations

import os
from pathlib import Path

import pytest
from films import without_privileges

from tvnet_cli.errors import DatasetError
from tvnet_cli.video.files import find_sources, find_videos


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def ids(*paths: Path) -> list[str]:
    return [video.video_id for video in find_videos(paths)]


def test_folders_are_searched_at_any_depth_sorted_and_by_suffix(tmp_path):
    touch(*(tmp_path / name for name in ("b.mp4", "a/z.AVI", "a/b/c.mkv", "notes.txt", "sound.wav", "a-b.ts")))
    assert ids(tmp_path) == ["a-b.ts", "a/b/c.mkv", "a/z.AVI", "b.mp4"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    touch(tmp_path / "._a.mp4", tmp_path / ".cache" / "b.mp4", tmp_path / "c.mp4")
    assert ids(tmp_path) == ["c.mp4"]


def test_a_file_named_is_taken_whatever_its_suffix_and_even_if_missing(tmp_path):
    touch(tmp_path / "film.bin")
    assert ids(tmp_path / "film.bin", tmp_path / "gone.mp4") == ["film.bin", "gone.mp4"]


def test_a_file_met_twice_counts_once(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert ids(tmp_path, tmp_path / "a.mp4", tmp_path / "." / "b.mp4") == ["a.mp4", "b.mp4"]


def test_two_files_of_one_id_are_refused_by_name(tmp_path):
    touch(tmp_path / "x" / "a.mp4", tmp_path / "y" / "a.mp4")
    with pytest.raises(DatasetError, match=r"two files have the id 'a\.mp4': .*x.a\.mp4 and .*y.a\.mp4"):
        find_videos([tmp_path / "x", tmp_path / "y"])


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "real" / "a.mp4")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "set")
    assert ids(tmp_path / "set") == ["link/a.mp4"]


def test_a_folder_that_cannot_be_read_fails_like_a_video_and_its_neighbours_do_not(tmp_path, monkeypatch):
    touch(*(tmp_path / name for name in ("a.mp4", "b/c.mp4", "shut/d.mp4", "e.mp4/f.mp4")))
    (tmp_path / "shut").chmod(0)
    with without_privileges(tmp_path, monkeypatch):
        assert ids(Path()) == ["a.mp4", "b/c.mp4", "e.mp4/f.mp4", "shut/"]
        assert ids(Path("shut")) == ["shut/"]
        assert ids(Path("shut/d.mp4"), Path("a.mp4")) == ["a.mp4", "d.mp4"]
    (tmp_path / "shut").chmod(0o755)


def test_a_link_to_itself_is_a_video_that_fails(tmp_path):
    (tmp_path / "a.mp4").symlink_to("a.mp4")
    (tmp_path / "b").symlink_to("b")
    touch(tmp_path / "c.mp4")
    assert ids(tmp_path, tmp_path / "a.mp4") == ["a.mp4", "c.mp4"]


def test_nothing_found_is_an_error_that_says_where_and_what_for(tmp_path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(DatasetError, match=r"no videos in .*\.mp4"):
        find_videos([tmp_path])


def test_a_name_that_is_not_utf8_still_has_an_id(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert ids(tmp_path) == ["caf\\xe9.mp4"]


def test_no_two_names_of_a_folder_have_one_id(tmp_path):
    names = [b"caf\xe9.mp4", rb"caf\xe9.mp4", rb"caf\x5cxe9.mp4", b"caf\\\xe9.mp4", rb"a\b.mp4", rb"a\x41.mp4"]
    try:
        for name in names:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert len(ids(tmp_path)) == len(names)
    assert {r"a\b.mp4", r"a\x41.mp4", r"caf\xe9.mp4"} <= set(ids(tmp_path))


def test_a_folder_without_videos_beside_others_is_named(tmp_path):
    touch(tmp_path / "full" / "a.mp4")
    (tmp_path / "empty").mkdir()
    notes: list[str] = []
    assert len(find_sources([tmp_path / "full", tmp_path / "empty"], notes.append)) == 1
    assert notes == [f"no videos in {tmp_path / 'empty'}"]
