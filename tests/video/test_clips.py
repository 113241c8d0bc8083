from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tvnet_cli.video.clips import clip_frames


@pytest.mark.parametrize("num_frames", [6, 7, 24, 25, 149, 150, 151, 175, 1000, 30001])
def test_clips_lie_in_the_middle_of_equal_spans(num_frames):
    frames = clip_frames(num_frames)
    assert frames.shape == (25, 6)
    assert (np.diff(frames, axis=1) == 1).all()
    assert frames.min() >= 0
    assert frames.max() < num_frames
    for i, clip in enumerate(frames.tolist()):
        middle = Fraction((2 * i + 1) * num_frames, 50)
        moved = clip[0] == 0 or clip[-1] == num_frames - 1
        assert abs(Fraction(clip[0] + clip[-1] + 1, 2) - middle) <= Fraction(1, 2) or moved


def test_the_first_and_last_clips_are_mirror_images():
    frames = clip_frames(1234)
    assert (frames + frames[::-1, ::-1] == 1233).all()


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_a_short_video_repeats_its_last_frame(num_frames):
    expected = [*range(num_frames), *[num_frames - 1] * (6 - num_frames)]
    assert clip_frames(num_frames).tolist() == [expected] * 25


def test_no_frames_make_no_clips():
    with pytest.raises(ValueError, match="video of 0"):
        clip_frames(0)
