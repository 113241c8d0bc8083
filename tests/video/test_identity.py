from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tvnet_cli.video.identity import PIECE_BYTES, identify, identify_all


def change(path: Path, at: int) -> None:
    """Change one byte and keep size and time."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("share", [0, 0.5, 0.999999])
def test_a_change_at_the_head_the_middle_or_the_tail_is_noticed(tmp_path: Path, share: float):
    path = tmp_path / "a.mp4"
    path.write_bytes(os.urandom(20 * PIECE_BYTES))
    before = identify(path)
    change(path, int(share * 20 * PIECE_BYTES))
    after = identify(path)
    assert (before.size, before.mtime_ns) == (after.size, after.mtime_ns)
    assert not before.same_content(after)


def test_a_copy_has_the_same_content_and_another_time(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(os.urandom(100))
    shutil.copyfile(tmp_path / "a.mp4", tmp_path / "b.mp4")
    os.utime(tmp_path / "b.mp4", (1, 1))
    first, second = identify(tmp_path / "a.mp4"), identify(tmp_path / "b.mp4")
    assert first.same_content(second)
    assert second.mtime_ns == 10**9
    assert first != second


def test_one_byte_anywhere_in_one_of_many_pictures_is_noticed(tmp_path: Path):
    paths = [tmp_path / f"{number}.ppm" for number in range(3)]
    for path in paths:
        path.write_bytes(bytes(9 * PIECE_BYTES))
    before = identify_all(paths)
    assert before.size == 27 * PIECE_BYTES
    change(paths[1], 3 * PIECE_BYTES)  # neither head nor middle nor tail
    assert not before.same_content(identify_all(paths))


def test_names_and_order_of_pictures_are_part_of_their_identity(tmp_path: Path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(path.name.encode())
    assert not identify_all(paths).same_content(identify_all(paths[::-1]))


def test_a_pipe_and_a_folder_are_never_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "missing"):
        with pytest.raises(OSError, match=r"regular file|directory"):
            identify(tmp_path / name)
