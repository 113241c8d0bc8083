from __future__ import annotations

import pytest

from tvnet_cli.errors import DatasetError
from tvnet_cli.visualize.grouping import group_by_folder, group_by_table

VIDEOS = ["hug/a.avi", "hug/b.avi", "kick/a.avi"]


def test_folders_are_groups_where_they_differ():
    grouping = group_by_folder(["all/hug/x/a.avi", "all/b.avi", "all/kick/a.avi", "all/hug/a.avi"])
    assert (grouping.kind, grouping.names) == ("folder", ("(no folder)", "hug", "kick"))
    assert grouping.of.tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize("videos", [["a.avi", "b.avi"], ["hug/a.avi", "hug/b.avi"], ["x/hug/a.avi", "x/hug/b.avi"]])
def test_one_folder_is_no_group(videos):
    assert group_by_folder(videos) is None


@pytest.mark.parametrize(
    "table",
    [
        "video_id,label\nhug/a.avi,close\nhug/b.avi,close\nkick/a.avi,far\n",
        "file,set,class,group\nset/hug/a.avi,s,close,1\nset/hug/b.avi,s,close,2\nset/kick/a.avi,s,far,\n",
        "\ufeffLabel;Video\r\nclose;hug/a\r\nclose;hug/b\r\nfar;kick/a\r\n",
        "path\tcategory\nhug/a.avi\tclose\nb.avi\tclose\nkick/a.avi\tfar\nkick/a.avi\tfar\nother/c.avi\tnone\n",
    ],
)
def test_tables_as_people_write_them(tmp_path, table):
    (tmp_path / "labels.csv").write_text(table, "utf-8", newline="")
    grouping = group_by_table(tmp_path / "labels.csv", VIDEOS)
    assert (grouping.kind, grouping.names, grouping.of.tolist()) == ("label", ("close", "far"), [0, 0, 1])


def test_a_video_may_have_no_label(tmp_path):
    (tmp_path / "labels.csv").write_text("video,label\nhug/a.avi,close\nhug/b.avi,\n")
    assert group_by_table(tmp_path / "labels.csv", VIDEOS).of.tolist() == [0, -1, -1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"hug/a.avi,close\n", "should begin with a line such as video_id,label"),
        (b"video,colour\nhug/a.avi,red\n", "should begin with a line such as video_id,label"),
        (b"video,label\n", "holds no videos"),
        (b"", "should begin with a line"),
        (
            b"video,label\nhug/x.avi,close\n",
            "names hug/x.avi and others, but none of the 3 videos, such as hug/a.avi",
        ),
        (b"video,label\nhug/a.avi,close\nhug/a.avi,far\n", "line 3: hug/a.avi is 'far' here, and 'close' before"),
        (b"video,label\na.avi,close\n", "a.avi fits hug/a.avi and kick/a.avi: name them with their folders"),
        (b"video,label\nx/hug/a.avi,close\ny/hug/a.avi,far\n", "both fit the video hug/a.avi"),
        (b"video,label\nhug/\xff.avi,close\n", "not UTF-8 text"),
        (b'video,label\n"hug/a.avi,close\n', "cannot read"),
    ],
)
def test_tables_that_do_not_serve(tmp_path, table, message):
    (tmp_path / "labels.csv").write_bytes(table)
    with pytest.raises(DatasetError, match=message) as raised:
        group_by_table(tmp_path / "labels.csv", VIDEOS)
    assert "labels.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.csv: No such file"):
        group_by_table(tmp_path / "gone.csv", VIDEOS)
