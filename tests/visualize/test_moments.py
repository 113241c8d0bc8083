from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from films import numbered_picture, read_number, write_film

from tvnet_cli import TVNet
from tvnet_cli.errors import DatasetError
from tvnet_cli.options import FrameOptions
from tvnet_cli.video.sequence import FrameSequence, open_sequence
from tvnet_cli.visualize.moments import Moment, liveliest_moments, moments_at, motion


def texture(place: float) -> np.ndarray:
    """(64, 96), a soft pattern shifted by so many pixels."""
    y, x = np.mgrid[:64, :96]
    x = x - place
    return (128 + 50 * np.sin(x / 3) * np.cos(y / 4) + 40 * np.sin((x + 2 * y) / 7)).astype(np.uint8)


def film(path: Path, places: list[float]) -> FrameSequence:
    """A pattern that is so far to the right in each frame."""
    write_film(path, len(places), picture=lambda number: texture(places[number]))
    return open_sequence([path], FrameOptions())


def test_moments_are_found_by_their_time(tmp_path):
    write_film(tmp_path / "a.mp4", 30)
    sequence = open_sequence([tmp_path / "a.mp4"], FrameOptions())
    moments = moments_at(sequence, [0.42, 0.0, 1.16, 0.42])
    assert [round(moment.seconds, 2) for moment in moments] == [0.4, 0.0, 1.12, 0.4]
    for moment, first in zip(moments, (10, 0, 28, 10), strict=True):
        assert (read_number(moment.first), read_number(moment.second)) == (first, first + 1)
    clips = [[read_number(frame) for frame in moment.frames] for moment in moments[:3]]
    assert clips == [[*range(8, 14)], [*range(6)], [*range(24, 30)]]


def test_the_liveliest_moment_of_each_part_is_found(tmp_path):
    speeds = [0.3] * 60
    speeds[10:15], speeds[45:50] = [1.0, 1.2, 1.4, 1.2, 1.0], [0.8, 1.0, 1.2, 1.0, 0.8]
    moments = liveliest_moments(film(tmp_path / "a.mp4", np.cumsum([0.0, *speeds]).tolist()), 2)
    assert len(moments) == 2
    assert abs(moments[0].seconds * 25 - 12) <= 1
    assert abs(moments[1].seconds * 25 - 47) <= 1


def test_parts_without_motion_give_no_moment(tmp_path):
    places = np.cumsum([0.0] * 30 + [1.0] * 30).tolist()
    moments = liveliest_moments(film(tmp_path / "a.mp4", places), 2)
    assert len(moments) == 1
    assert moments[0].seconds > 1


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_clip_with_a_cut_does_not_count(cut):
    frames = [np.repeat(texture(number)[..., None], 3, axis=2) for number in range(6)]
    assert motion(Moment(0.0, tuple(frames), 2), TVNet()) > 0.5
    frames[cut:] = [255 - frame for frame in frames[cut:]]
    assert motion(Moment(0.0, tuple(frames), 2), TVNet()) == 0


def test_a_film_that_repeats_every_other_frame_moves(tmp_path):
    assert liveliest_moments(film(tmp_path / "a.mp4", [2.0 * (number // 2) for number in range(40)]), 1)


def test_a_film_in_which_nothing_moves_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.mp4: nothing moves in it"):
        liveliest_moments(film(tmp_path / "a.mp4", [0.0] * 40), 3)


def test_a_film_that_is_too_short_is_refused(tmp_path):
    sequence = film(tmp_path / "a.mp4", [0.0, 1, 2, 3, 4])
    for find in (lambda: liveliest_moments(sequence, 1), lambda: moments_at(sequence, [0.1])):
        with pytest.raises(DatasetError, match="has 5 frames: 6 are needed"):
            find()
    assert len(liveliest_moments(film(tmp_path / "b.mp4", [0.0, 1, 2, 3, 4, 5]), 9)) == 5


@pytest.mark.parametrize("seconds", [-0.1, 1.5])
def test_a_moment_outside_is_refused(tmp_path, seconds):
    write_film(tmp_path / "a.mp4", 30, picture=lambda number: numbered_picture(number))
    sequence = open_sequence([tmp_path / "a.mp4"], FrameOptions())
    with pytest.raises(DatasetError, match=f"has no moment {seconds} s: it lasts 1.16 s"):
        moments_at(sequence, [seconds])
