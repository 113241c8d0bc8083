from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from pair_files import pair_numbers, write_csv, write_text

from tvnet_cli.aslan.pairs import PairSplits, read_pairs
from tvnet_cli.errors import DatasetError

ROWS = pair_numbers(num_splits=10, pairs_of_a_label=6)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def same_pairs(one: PairSplits, other: PairSplits) -> bool:
    return (one.video_a, one.video_b) == (other.video_a, other.video_b) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("same", "split")
    )


def test_the_real_pairs_are_view_2(shared_data):
    pairs = read_pairs(shared_data / "aslan/view2.txt")
    assert len(pairs) == 6000
    assert pairs.official
    assert pairs.notes == ()
    assert len(pairs.videos) == 3017
    assert (pairs.video_a[0], pairs.video_b[0], pairs.class_a[0]) == ("0084", "0088", "19")
    assert pairs.split_names == tuple(str(number) for number in range(1, 11))
    assert pairs.split.tolist() == [row // 600 for row in range(6000)]
    assert pairs.same.tolist() == [row % 600 < 300 for row in range(6000)]
    assert pairs.sha256.startswith("b94f1a92d786c747")


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.uint16, np.int32])
def test_a_matlab_file_gives_the_pairs_of_the_text(tmp_path, kind):
    matrix = ROWS.reshape(10, -1, 5).transpose(1, 2, 0).astype(kind)
    scipy.io.savemat(tmp_path / "View2.mat", {"action_splits_pairs": matrix, "other": np.ones((4, 5)), "text": "a"})
    text = read_pairs(write_text(tmp_path / "view2.txt", ROWS))
    assert same_pairs(read_pairs(tmp_path / "View2.mat"), text)
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:  # the axes of MATLAB 7.3
        file["action_splits_pairs"] = matrix.T
    assert same_pairs(read_pairs(tmp_path / "new.mat"), text)
    scipy.io.savemat(tmp_path / "renamed.mat", {"splits": matrix, "other": np.ones((4, 4))})
    assert same_pairs(read_pairs(tmp_path / "renamed.mat"), text)
    scipy.io.savemat(tmp_path / "flat.mat", {"pairs": ROWS})
    assert same_pairs(read_pairs(tmp_path / "flat.mat"), text)


def test_a_csv_gives_names_labels_and_folds(tmp_path):
    path = tmp_path / "pairs.csv"
    lines = ["Fold, video_b,label,video_a,extra,class_a,class_b"]
    lines += [
        "x,b.mp4,same,a.mp4,1,run,run",
        'y,"c, d.mp4",1,7,2,go,go',
        "x,b.mp4,-1,e,,run,sit",
        "y,e2,not-same,b2,,a,b",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    pairs = read_pairs(path)
    assert pairs.video_a == ("a.mp4", "0007", "e", "b2")
    assert pairs.video_b == ("b.mp4", "c, d.mp4", "b.mp4", "e2")
    assert pairs.same.tolist() == [True, True, False, False]
    assert pairs.split_names == ("x", "y")
    assert pairs.split.tolist() == [0, 1, 0, 1]
    assert pairs.class_b == ("run", "go", "sit", "b")
    assert not pairs.official


def test_view_1_is_trained_on_one_file_and_tested_on_the_other(tmp_path):
    scipy.io.savemat(tmp_path / "train_pairs.mat", {"train": ROWS[:72]})
    scipy.io.savemat(tmp_path / "test_pairs.mat", {"test": ROWS[72:]})
    pairs = read_pairs(tmp_path / "train_pairs.mat", tmp_path / "test_pairs.mat")
    assert pairs.split_names == ("train", "test")
    assert pairs.tested == (1,)
    assert np.bincount(pairs.split).tolist() == [72, 48]
    assert not any("leak" in note for note in pairs.notes)


def test_view_1_may_be_csv_without_folds(tmp_path):
    write(tmp_path / "a.csv", "video_a,video_b,label\na,b,1\na,c,0\n")
    write(tmp_path / "b.csv", "video_a,video_b,label\nd,e,1\nd,f,0\n")
    assert read_pairs(tmp_path / "a.csv", tmp_path / "b.csv").tested == (1,)
    with pytest.raises(DatasetError, match="no splits, and 2 is not a multiple of 10"):
        read_pairs(tmp_path / "a.csv")


def csv(*lines: str) -> str:
    return "\n".join(["video_a,video_b,label,fold", *lines]) + "\n"


BALANCED = ("a,b,1,1", "a,c,0,1", "d,e,1,2", "d,f,0,2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pairs"),
        ("1 2 1 3\n", "line 1: expected five whole numbers, got 1 2 1 3"),
        ("1 2 1 3 3\n4 5.5 1 3 3\n", "line 2: expected five whole numbers, got 4 5.5 1 3 3"),
        ("hello\n", "line 1: expected five whole numbers, or a CSV with the columns video_a,video_b,label,fold"),
        ("0 2 1 3 3\n", "line 1: sample ids start at 1, got 0 and 2"),
        ("1 2 2 3 3\n", "line 1: the label is 2"),
        ("1 2 1 3 3\n" * 9, "9 is not a multiple of 10"),
        ("video_a,label\na,1\n", "no column video_b; expected video_a,video_b,label,fold"),
        (csv("a,b,maybe,1"), "line 2: the label is 'maybe'"),
        (csv("a,,1,1"), "line 2: two video names are needed"),
        (csv("a,b,1,"), "line 2: the fold is empty"),
        (csv("a,b,1,1", "a,c,0,1"), "all pairs are in one split"),
        (csv("a,b,1,1", "a,c,0,1", "d,e,1,2"), "split 2 has only same pairs"),
        (csv(*BALANCED, "7,0007,1,1"), "1 pairs hold the same video twice: 0007"),
    ],
)
def test_impossible_pairs_are_refused_with_the_place(tmp_path, text, message):
    path = write(tmp_path / "pairs", text)
    with pytest.raises(DatasetError) as error:
        read_pairs(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        ((), "not the official View 2: 4 pairs in 2 splits"),
        (("a,g,0,2",), "leak: 1 videos occur in several splits, so tests meet what was trained on: a"),
        (("b,a,1,1",), "1 pairs occur more than once: a b"),
        (("a,g,1,1",), "unbalanced, so that guessing gives other than 50 %: split 1 (2 same, 1 not-same)"),
    ],
)
def test_doubtful_pairs_give_notes(tmp_path, lines, note):
    notes = read_pairs(write(tmp_path / "p.csv", csv(*BALANCED, *lines))).notes
    assert any(one.startswith(note) for one in notes), notes


def test_classes_are_held_against_labels_and_splits(tmp_path):
    rows = ROWS.copy()
    rows[3, 2] = 0
    notes = read_pairs(write_text(tmp_path / "wrong.txt", rows)).notes
    assert "1 labels contradict the classes: pairs 4" in notes
    rows = ROWS.copy()
    rows[12:24, 3:] = rows[:12, 3:]
    notes = read_pairs(write_text(tmp_path / "leak.txt", rows)).notes
    assert any("classes occur in several splits" in note for note in notes)


def test_a_matlab_file_without_pairs_says_what_it_holds(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"features": np.ones((3, 4)), "name": "x"})
    with pytest.raises(DatasetError, match=r"expected the variable action_splits_pairs.* it holds features 3 x 4"):
        read_pairs(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "b.mat", {"one": np.ones((3, 5)), "two": np.ones((6, 5))})
    with pytest.raises(DatasetError, match="it holds one 3 x 5, two 6 x 5"):
        read_pairs(tmp_path / "b.mat")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "noise.mat").write_bytes(b"\0\1\2\3" * 100)
    for name, reason in (("noise.mat", "not a readable MATLAB file"), ("gone.mat", "No such file"), (".", "directory")):
        with pytest.raises(DatasetError, match=reason):
            read_pairs(tmp_path / name)


def test_keeping_some_pairs_keeps_their_order_and_says_why(tmp_path):
    pairs = read_pairs(write_csv(tmp_path / "p.csv", ROWS, 10))
    kept = pairs.keep(np.arange(len(pairs)) % 3 > 0, "a reason")
    assert len(kept) == 80
    assert kept.video_a[:2] == pairs.video_a[1:3]
    assert kept.notes[-1] == "a reason"
    assert not kept.official


def test_a_matrix_of_far_too_many_pairs_is_not_read(tmp_path):
    with h5py.File(tmp_path / "bomb.mat", "w") as file:
        file.create_dataset("action_splits_pairs", (10, 5, 10**9), "f8", chunks=(1, 5, 1000), compression="gzip")
    with pytest.raises(DatasetError, match=r"bomb.mat: action_splits_pairs is 1000000000 x 5 x 10; .* are taken"):
        read_pairs(tmp_path / "bomb.mat")
