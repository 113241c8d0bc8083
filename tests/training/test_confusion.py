from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from tvnet_cli.errors import DiskFullError
from tvnet_cli.training.confusion import RIGHT, WRONG, accuracy, class_table, confusion_picture, write_confusion

CLASSES = ("run", "walk & talk", "still")
CONFUSION = np.array([[3, 1, 0], [2, 0, 1], [0, 0, 0]])


def test_accuracy_is_the_share_of_right_answers():
    assert accuracy(CONFUSION) == 3 / 7
    assert np.isnan(accuracy(np.zeros((2, 2), np.int64)))


def test_each_class_has_its_line():
    assert class_table(CONFUSION, CLASSES).splitlines() == [
        "class,videos,accuracy,most_often_taken_for",
        "run,4,0.7500,walk & talk",
        "walk & talk,3,0.0000,run",
        "still,0,,",
    ]


def test_the_picture_shows_each_count_in_its_cell():
    tree = ElementTree.fromstring(confusion_picture(CONFUSION, CLASSES))
    cells = {
        title.text: (float(rect.get("x")), float(rect.get("y")), rect.get("fill-opacity"), rect.get("fill"))
        for rect in tree.iter("{http://www.w3.org/2000/svg}rect")
        for title in rect
    }
    assert set(cells) == {
        "run taken for run: 3 of 4",
        "run taken for walk & talk: 1 of 4",
        "walk & talk taken for run: 2 of 3",
        "walk & talk taken for still: 1 of 3",
    }
    right, wrong = cells["run taken for run: 3 of 4"], cells["run taken for walk & talk: 1 of 4"]
    assert right[1] == wrong[1]
    assert right[0] < wrong[0]
    assert (right[2], wrong[2]) == ("0.750", "0.250")
    assert (right[3], wrong[3]) == (RIGHT, WRONG)


@pytest.mark.parametrize("name", ["classes.csv", "confusion.svg"])
def test_a_full_disk_is_named(tmp_path, name, no_room_for):
    no_room_for(name)
    with pytest.raises(DiskFullError, match=rf"cannot write .*{name}: the disk at .* is full: No space left on device"):
        write_confusion(tmp_path, np.eye(2, dtype=np.int64), ["a", "b"])
    assert not list(tmp_path.iterdir())
