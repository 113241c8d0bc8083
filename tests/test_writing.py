from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tvnet_cli.errors import DiskFullError, OutputError
from tvnet_cli.writing import (
    MARK,
    MARKED_BYTES,
    is_vouched_for,
    replacing,
    require_replaceable,
    write_together,
    write_whole,
)


def test_a_file_of_someone_else_is_replaced_on_request_alone(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text("my homepage")
    with pytest.raises(OutputError, match=r"page.html exists, and nothing in it says that tvnet made it.*--overwrite"):
        require_replaceable(path, overwrite=False)
    require_replaceable(path, overwrite=True)


@pytest.mark.parametrize("at", [0, 3 * MARKED_BYTES])
def test_a_file_with_the_mark_near_an_end_may_be_replaced(tmp_path: Path, at: int):
    content = bytearray(3 * MARKED_BYTES + 100)
    content[at : at + len(MARK)] = MARK.encode()
    (tmp_path / "a.png").write_bytes(content)
    require_replaceable(tmp_path / "a.png", overwrite=False)


def test_what_is_not_there_or_empty_may_be_replaced(tmp_path: Path):
    (tmp_path / "empty.png").touch()
    for name in ("empty.png", "new.png", "no_folder/new.png"):
        require_replaceable(tmp_path / name, overwrite=False)


def test_folders_and_pipes_are_never_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(OutputError, match=name):
            require_replaceable(tmp_path / name, overwrite=True)


def test_what_another_program_wrote_meanwhile_stays(tmp_path: Path):
    path = tmp_path / "a.txt"

    def write_while_another_program_does() -> None:
        with replacing(path) as new:
            new.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(OutputError, match="another program"):
        write_while_another_program_does()
    assert path.read_text() == "theirs"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_leftover_of_another_run_is_never_touched(tmp_path: Path):
    for name in (".a.txt.new", "a.txt.new", ".a.txt.12345678.new"):
        (tmp_path / name).write_text("precious")
    write_whole(tmp_path / "a.txt", b"ours")
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["ours", "precious", "precious", "precious"]


def test_a_table_is_known_by_its_hash_in_a_marked_file(tmp_path: Path):
    table, page = tmp_path / "table.csv", tmp_path / "page.html"
    table.write_text("1,2")
    digest = hashlib.sha256(b"1,2").hexdigest()
    for content, ours in ((f"{MARK} {digest}", True), (digest, False), (MARK, False)):
        page.write_text(content)
        assert is_vouched_for(table, page) is ours
    assert not is_vouched_for(table, tmp_path / "gone.html")
    page.write_text(f"{MARK} {digest}")
    require_replaceable(table, overwrite=False, voucher=page)


def test_of_files_that_are_written_together_none_changes_if_one_cannot_be_written(tmp_path: Path, no_room_for):
    (tmp_path / "a").write_text("old")
    no_room_for("b")
    with pytest.raises(DiskFullError, match=r"cannot write .*/b: "):
        write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
