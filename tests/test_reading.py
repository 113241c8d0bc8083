"""Tables and lists that are no texts, never end or are too large: each is refused in one line, at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tvnet_cli import reading
from tvnet_cli.aslan.pairs import read_pairs
from tvnet_cli.errors import DatasetError
from tvnet_cli.reading import read_text
from tvnet_cli.training.datasets import read_dataset
from tvnet_cli.visualize.grouping import group_by_table

READERS: dict[str, Callable[[Path], object]] = {
    "pairs": read_pairs,
    "test pairs": lambda path: read_pairs(path.with_name("good.csv"), path),
    "labels": lambda path: group_by_table(path, ["a", "b"]),
    "data set": read_dataset,
}
HEADERS = b"video_a,video_b,label,fold,video,split\n"
TEXTS = {
    "utf-16": ("video_a,video_b,label\na,b,1\n".encode("utf-16"), "it is UTF-16 text: save it as UTF-8"),
    "nul": (HEADERS + b"a" * 200 + b"\na\0,b\n", "line 3 holds a NUL byte"),
    "latin-1": (HEADERS + b"a\xe9,b,1,1,c,train\n", "line 2 is not UTF-8 text"),
    "field without end": (HEADERS + b"a,b,1,1,c," + b"x" * 200_000, "field larger than field limit"),
}


def refused(reader: str, path: Path) -> str:
    path.with_name("good.csv").write_text("video_a,video_b,label\na,b,1\nc,d,0\n")
    with pytest.raises(DatasetError) as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_pipes_are_refused_and_never_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "table.csv")
    assert "it is a pipe, a device or a socket" in refused(reader, tmp_path / "table.csv")


@pytest.mark.parametrize("reader", READERS)
def test_a_table_is_not_read_past_the_limit(tmp_path, reader):
    path = tmp_path / "table.csv"
    path.touch()
    os.truncate(path, 3 << 30)
    assert "it has 3,221,225,472 bytes, at most " in refused(reader, path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_text_is_one_line(tmp_path, reader, text):
    content, message = TEXTS[text]
    (tmp_path / "table.csv").write_bytes(content)
    assert message in refused(reader, tmp_path / "table.csv")


def test_a_list_that_is_a_pipe_is_refused(tmp_path):
    (tmp_path / "hug").mkdir()
    os.mkfifo(tmp_path / "hug_test_split1.txt")
    with pytest.raises(DatasetError, match=r"the list .*hug_test_split1.txt: it is a pipe"):
        read_dataset(tmp_path)


def test_a_byte_order_mark_and_a_limit_of_ones_own(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfname")
    assert read_text(tmp_path / "a.txt", "the list") == "name"
    with pytest.raises(DatasetError, match="it has 7 bytes, at most 6 are taken"):
        read_text(tmp_path / "a.txt", "the list", 6)
    assert reading.MAX_TEXT_BYTES == 64 << 20


def test_pairs_between_semicolons_are_named_as_such(tmp_path):
    (tmp_path / "p.csv").write_text("video_a;video_b;label;fold\na;b;1;1\n")
    with pytest.raises(DatasetError, match="line 1: the columns are separated by ';'; commas are expected"):
        read_pairs(tmp_path / "p.csv")
