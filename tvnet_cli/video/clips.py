"""Which frames make the clips of a video."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.options import ExtractOptions


def clip_frames(
    num_frames: int, num_clips: int = ExtractOptions.num_clips, clip_length: int = ExtractOptions.clip_length
) -> NDArray[np.int64]:
    """Numbers of the frames in clips of equal length.

    Clip i covers the frames ``[i * T / num_clips, (i + 1) * T / num_clips)`` of T. Its ``clip_length`` consecutive
    frames lie in the middle of that span, to the nearest whole frame (the earlier of two), moved inside
    ``[0, T)``.

    Parameters
    ----------
    num_frames : int
        T, the decodable frames of the video, at least 1. With fewer than ``clip_length`` the last one repeats.
    num_clips : int
    clip_length : int, frames

    Returns
    -------
    ndarray, (num_clips, clip_length), int64
        Frame numbers, from 0, never falling.

    Raises
    ------
    ValueError
        If a number is below 1.

    Examples
    --------
    >>> clip_frames(150)[[0, 1, 24]].tolist()
    [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [144, 145, 146, 147, 148, 149]]
    >>> clip_frames(3)[0].tolist()
    [0, 1, 2, 2, 2, 2]
    """
    if min(num_frames, num_clips, clip_length) < 1:
        raise ValueError(f"no {num_clips} clips of {clip_length} frames in a video of {num_frames}")
    # The middle of clip i is (2i+1) T / 2n; half a clip before it, rounded half down, all in whole numbers.
    doubled = (2 * np.arange(num_clips, dtype=np.int64) + 1) * num_frames - num_clips * clip_length
    starts = -((num_clips - doubled) // (2 * num_clips))
    starts = np.clip(starts, 0, max(0, num_frames - clip_length))
    frames: NDArray[np.int64] = np.minimum(starts[:, None] + np.arange(clip_length), num_frames - 1)
    return frames
