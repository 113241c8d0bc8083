"""Folders of images: which of them are one sequence, and at what times their frames are."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from films import write_film
from PIL import Image

from tvnet_cli.errors import DatasetError
from tvnet_cli.options import FrameOptions
from tvnet_cli.video.images import find_images, frame_numbers
from tvnet_cli.video.sequence import open_sequence
from tvnet_cli.writing import MARK


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def numbered(pattern: str, *numbers: int) -> list[str]:
    return [pattern % number for number in numbers]


SEVERAL = {
    "img_*.jpg (3), flow_x_*.jpg (2), flow_y_*.jpg (2)": [
        *numbered("img_%05d.jpg", 1, 2, 3),
        *numbered("flow_x_%05d.jpg", 1, 2),
        *numbered("flow_y_%05d.jpg", 1, 2),
    ],
    "flow_x_*.jpg (2), flow_y_*.jpg (2)": [*numbered("flow_x_%05d.jpg", 1, 2), *numbered("flow_y_%05d.jpg", 1, 2)],
    "f*.jpg (2), f*.png (2)": [*numbered("f%d.jpg", 1, 2), *numbered("f%d.png", 1, 2)],
    "f*.png (2), cover.png (1)": [*numbered("f%d.png", 1, 2), "cover.png"],
    "f*.png (2), f1_small.png (1)": [*numbered("f%d.png", 1, 2), "f1_small.png"],
    "cam0_*.png (2), cam1_*.png (2)": [*numbered("cam0_%04d.png", 1, 2), *numbered("cam1_%04d.png", 1, 2)],
    "*_cam1.png (3), *_cam2.png (3)": [*numbered("%d_cam1.png", 1, 2, 3), *numbered("%d_cam2.png", 1, 2, 3)],
    "cam1.*.png (2), cam2.*.png (2)": [*numbered("cam1.%04d.png", 1, 2), *numbered("cam2.%04d.png", 1, 2)],
    "*.jpg (2), *.png (2)": ["a.jpg", "a.png", "b.jpg", "b.png"],
    "e1.png (1), and 3 more": numbered("%c1.png", *range(ord("a"), ord("i"))),
}


@pytest.mark.parametrize("named", SEVERAL)
def test_several_sequences_in_a_folder_are_named_with_their_counts(tmp_path: Path, named: str):
    with pytest.raises(DatasetError, match=r"holds several sequences: .*give a folder of one") as caught:
        find_images(touch(tmp_path, *SEVERAL[named]))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1.png", "frame_01.png", "frame_2.png"],
        ["frame_1.png", "Frame_1.png", "frame_2.png"],
        ["frame_1.jpg", "frame_1.jpeg"],
        ["frame_1.PNG", "frame_1.png"],
    ],
)
def test_one_number_twice_is_named_with_both_files(tmp_path: Path, names: list[str]):
    with pytest.raises(DatasetError, match="holds one number twice") as caught:
        find_images(touch(tmp_path, *names))
    assert names[0] in str(caught.value)
    assert names[1] in str(caught.value)


@pytest.mark.parametrize("names", [["a.mp4"], ["a.mp4", "b.avi"]])
def test_videos_beside_images_are_named(tmp_path: Path, names: list[str]):
    touch(tmp_path, *numbered("frame_%d.png", 1, 2, 3), *names)
    with pytest.raises(DatasetError, match=r"several sequences: frame_\*\.png \(3\), a\.mp4 .*video"):
        find_images(tmp_path)


def test_our_own_flow_video_between_the_frames_is_left_out(tmp_path: Path):
    touch(tmp_path, "f1.png", "f2.png")
    (tmp_path / "flow.mp4").write_text(MARK)
    assert [path.name for path in find_images(tmp_path)] == ["f1.png", "f2.png"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (numbered("frame_%05d.png", 1, 2, 3), [0, 1, 2]),
        (numbered("frame_%05d.png", 1, 2, 5), [0, 1, 4]),
        (numbered("%06d.jpg", 100, 102, 103), [0, 2, 3]),
        (["f1.png", "f02.png", "F004.PNG"], [0, 1, 3]),
        (numbered("take2_%d_left.png", 8, 9, 11), [0, 1, 3]),
        (["frame_0001_t0.04.png", "frame_0002_t0.08.png", "frame_0003_t1.00.png"], [0, 1, 2]),
        (["shot1_0001.png", "shot1_0002.png", "shot2_0003.png"], [0, 1, 2]),
        (["start.png", "then.jpg", "z.png"], [0, 1, 2]),
    ],
)
def test_frame_numbers_follow_the_numbers_in_the_names(tmp_path: Path, names: list[str], expected: list[int]):
    images = find_images(touch(tmp_path, *names))
    assert [path.name for path in images] == names
    numbers, note = frame_numbers(images)
    assert numbers.tolist() == expected
    gaps = expected[-1] + 1 - len(expected)
    assert note.startswith(f"{gaps} numbers are missing among the 3 images, the first after ") == bool(gaps)


@pytest.mark.parametrize(
    "names",
    [
        ["1305031102.175304.png", "1305031102.211214.png", "1305031103.000100.png"],
        ["1403636579763555584.png", "1403636579813555456.png", "1403636579863555584.png"],
    ],
)
def test_times_of_a_clock_are_no_frame_numbers_which_is_noted(tmp_path: Path, names: list[str]):
    numbers, note = frame_numbers(find_images(touch(tmp_path, *names)))
    assert numbers.tolist() == [0, 1, 2]
    assert "too large for numbers of frames" in note


def test_times_of_a_folder_with_gaps_follow_the_numbers(tmp_path: Path):
    for number in (1, 2, 5):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"frame_{number:05d}.png")
    sequence = open_sequence([tmp_path], FrameOptions(fps=25))
    np.testing.assert_allclose(sequence.pts_seconds, [0, 1 / 25, 4 / 25])
    assert sequence.frame_index.tolist() == [0, 1, 4]
    assert "the first after frame_00002.png" in sequence.notes[0]
    assert [picture[0, 0, 0] for picture in sequence.read()] == [1, 2, 5]
    late = open_sequence([tmp_path], FrameOptions(fps=25, start=0.02))
    assert [picture[0, 0, 0] for picture in late.read()] == [2, 5]


def test_images_given_one_by_one_keep_their_order_and_the_constant_rate(tmp_path: Path):
    names = ["frame_5.png", "cover.png", "frame_1.png"]
    for place, name in enumerate(names):
        Image.new("RGB", (32, 32), (place, 0, 0)).save(tmp_path / name)
    sequence = open_sequence([tmp_path / name for name in names], FrameOptions(fps=10))
    assert [picture[0, 0, 0] for picture in sequence.read()] == [0, 1, 2]
    np.testing.assert_allclose(sequence.pts_seconds, [0, 0.1, 0.2])
    assert (sequence.notes, sequence.time_base) == ((), Fraction(1, 10))


def test_a_folder_of_a_video_alone_holds_no_images(tmp_path: Path):
    write_film(tmp_path / "a.mp4", 2)
    with pytest.raises(DatasetError, match="no images in"):
        find_images(tmp_path)
