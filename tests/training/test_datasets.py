from __future__ import annotations

from pathlib import Path

import pytest

from tvnet_cli.errors import DatasetError
from tvnet_cli.training.datasets import ActionDataset, read_dataset


def make_videos(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(dataset: ActionDataset) -> tuple[list[str], list[str]]:
    return [video.video_id for video in dataset.train], [video.video_id for video in dataset.validation]


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def ucf101(tmp_path) -> Path:
    data = make_videos(tmp_path / "UCF-101", "Surfing/v1.avi", "Surfing/v2.avi", "Archery/v1.avi", "Archery/v 2.avi")
    lists = tmp_path / "UCF-101" / "ucfTrainTestlist"
    # Not the order of the alphabet: the labels are those of the list.
    write(lists / "classInd.txt", "1 Surfing", "2 Archery")
    write(lists / "trainlist01.txt", "Surfing/v1.avi 1", "Archery/v1.avi 2")
    write(lists / "testlist01.txt", "Surfing/v2.avi", "Archery/v 2.avi")
    return data


def test_the_official_lists_of_ucf101_give_classes_labels_and_parts(ucf101):
    dataset = read_dataset(ucf101)
    assert dataset.classes == ("Surfing", "Archery")
    assert names(dataset) == (["Surfing/v1.avi", "Archery/v1.avi"], ["Surfing/v2.avi", "Archery/v 2.avi"])
    assert [video.label for video in dataset.train] == [0, 1]
    assert dataset.train[0].path == ucf101 / "Surfing/v1.avi"


def test_official_lists_may_lie_elsewhere(ucf101, tmp_path):
    (ucf101 / "ucfTrainTestlist").rename(tmp_path / "lists")
    write(tmp_path / "lists" / "testlist01.txt", "Surfing/v2.avi")
    assert names(read_dataset(ucf101, splits=tmp_path / "lists"))[1] == ["Surfing/v2.avi"]
    with pytest.raises(DatasetError, match="holds no official lists"):
        read_dataset(ucf101, splits=ucf101)


def test_hmdb51_tells_training_test_and_neither(tmp_path):
    data = make_videos(tmp_path / "hmdb", *(f"{name}/{i}.avi" for name in ("wave", "run") for i in range(3)))
    for name in ("wave", "run"):
        write(data / "splits" / f"{name}_test_split2.txt", "0.avi 1 ", "1.avi 2 ", "2.avi 0 ")
    dataset = read_dataset(data, split=2)
    assert dataset.classes == ("run", "wave")
    assert names(dataset) == (["run/0.avi", "wave/0.avi"], ["run/1.avi", "wave/1.avi"])
    with pytest.raises(DatasetError, match=r"no split 3 in .*splits: \*_test_split3.txt is missing"):
        read_dataset(data, split=3)
    write(data / "splits" / "run_test_split2.txt", "0.avi 7")
    with pytest.raises(DatasetError, match=r"'0.avi 7' is no video and 0, 1 or 2"):
        read_dataset(data, split=2)


def test_a_share_of_each_class_is_drawn_for_validation(tmp_path):
    data = make_videos(tmp_path, *(f"{name}/{i}.mp4" for name in ("a", "b") for i in range(10)), "c/0.mp4")
    dataset = read_dataset(data, validation_share=0.2)
    assert [sum(video.label == label for video in dataset.validation) for label in range(3)] == [2, 2, 0]
    assert len(dataset.train) == 17
    assert names(read_dataset(data, validation_share=0.2)) == names(dataset)
    assert names(read_dataset(data, validation_share=0.2, seed=1)) != names(dataset)
    assert not read_dataset(data, validation_share=0).validation
    assert [video.label for video in read_dataset(data, validation_share=0.99).train] == [0, 1, 2]


@pytest.mark.parametrize("validation", ["val", "test", "validation"])
def test_folders_may_say_the_part(tmp_path, validation):
    data = make_videos(tmp_path, "train/a/1.mp4", "train/b/deep/1.mp4", f"{validation}/a/2.mp4", "train/.x/0.mp4")
    dataset = read_dataset(data)
    assert dataset.classes == ("a", "b")
    assert names(dataset) == (["a/1.mp4", "b/deep/1.mp4"], ["a/2.mp4"])


def test_a_class_may_be_called_test(tmp_path):
    data = make_videos(tmp_path, "test/1.mp4", "train/1.mp4", "walk/1.mp4")
    assert read_dataset(data).classes == ("test", "train", "walk")


def test_a_table_gives_videos_labels_and_parts(tmp_path):
    make_videos(tmp_path, "a.mp4", "x/b.mp4", "c.mp4")
    table = write(
        tmp_path / "set.csv",
        "split,video,label,fps",
        "train,a.mp4,run,9",
        "",
        "Val,x/b.mp4,walk,9",
        "train,c.mp4,walk,9",
    )
    dataset = read_dataset(table)
    assert dataset.classes == ("run", "walk")
    assert names(dataset) == (["a.mp4", "c.mp4"], ["x/b.mp4"])
    assert dataset.validation[0].path == tmp_path / "x/b.mp4"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["video,split", "a.mp4,train"], "has no column label"),
        (["video,label,split", "", "a.mp4,run,maybe"], "line 3: .*'maybe'"),
        (["video,label,split", "a.mp4,run"], "line 2: .*''"),
        (["video,label,split", "a.mp4,run,train", "b.mp4,run,val"], "has 1 class: at least two"),
        (["video,label,split"], "has 0 classes"),
        (["video,label,split", "a.mp4,run,train", "b.mp4,walk,val"], "1 classes without videos to train on: walk"),
        (
            ["video,label,split", "a.mp4,run,train", "b.mp4,walk,train", "./a.mp4,run,val"],
            "in training and in .*: a.mp4",
        ),
        (["video,label,split", "a.mp4,run,train", "b.mp4,walk,train", "a.mp4,run,train"], "1 videos twice: a.mp4"),
        (
            ["video,label,split", "a.mp4,run,train", *(f"no{i}.mp4,walk,train" for i in range(5))],
            "5 videos missing: no0.mp4, no1.mp4, no2.mp4 and 2 more",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, lines, message):
    make_videos(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(DatasetError, match=message) as error:
        read_dataset(write(tmp_path / "set.csv", *lines))
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_the_lists_of_ucf101_is_named(ucf101):
    lists = ucf101 / "ucfTrainTestlist"
    with pytest.raises(DatasetError, match=r"no split 2 in .*trainlist02.txt is missing"):
        read_dataset(ucf101, split=2)
    write(lists / "testlist01.txt", "Surfing/none.avi")
    with pytest.raises(DatasetError, match=r"1 videos missing: Surfing/none.avi"):
        read_dataset(ucf101)
    write(lists / "trainlist01.txt", "Surfing/v1.avi 2", "Archery/v1.avi 2")
    with pytest.raises(DatasetError, match=r"Surfing/v1.avi has the label 2, which is not Surfing"):
        read_dataset(ucf101)
    write(lists / "trainlist01.txt", "Surfing/v1.avi 1", "Archery/v1.avi 2", "Diving/v1.avi")
    with pytest.raises(DatasetError, match=r"1 videos of no known class: Diving/v1.avi"):
        read_dataset(ucf101)
    write(lists / "classInd.txt", "Surfing")
    with pytest.raises(DatasetError, match="'Surfing' is no number and class"):
        read_dataset(ucf101)


def test_a_split_of_what_has_none_is_refused(tmp_path, ucf101):
    data = make_videos(tmp_path / "data", "a/1.mp4", "b/1.mp4")
    table = write(data / "set.csv", "video,label,split", "a/1.mp4,a,train", "b/1.mp4,b,train")
    for where in (data, table):
        assert len(read_dataset(where).train) == 2
        with pytest.raises(DatasetError, match=rf"{where} has no official lists, .* split 1 .*: leave out --split$"):
            read_dataset(where, split=1)
    with pytest.raises(DatasetError, match=r"set.csv says itself .*: leave out --splits$"):
        read_dataset(table, splits=ucf101 / "ucfTrainTestlist")


def test_what_is_wrong_with_folders_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"is no folder and no .csv table"):
        read_dataset(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"no such file: .*none.csv"):
        read_dataset(tmp_path / "none.csv")
    data = make_videos(tmp_path / "data", "a/1.mp4", "b/notes.txt")
    with pytest.raises(DatasetError, match="the class b is empty: no videos"):
        read_dataset(data)
    make_videos(data, "b/1.mp4")
    (data / "b/2.mp4").symlink_to(data / "a/1.mp4")
    with pytest.raises(DatasetError, match=r"videos twice: 1.mp4"):
        read_dataset(data, validation_share=0)
