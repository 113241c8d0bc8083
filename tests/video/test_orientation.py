"""Frames as players show them: mirrored and turned, in more than 8 bits, interlaced, of several sizes."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from films import write_film
from numpy.typing import NDArray

from tvnet_cli.options import FrameOptions
from tvnet_cli.video.decode import read_clips
from tvnet_cli.video.sequence import open_sequence

ONE = 1 << 16
# What FFmpeg's own players do for a display matrix (a, b, c, d), with its filters.
FILTERS = {
    (1, 0, 0, 1): [],
    (-1, 0, 0, 1): ["hflip"],
    (1, 0, 0, -1): ["vflip"],
    (-1, 0, 0, -1): ["hflip", "vflip"],
    (0, 1, -1, 0): ["transpose=clock"],
    (0, -1, 1, 0): ["transpose=cclock"],
    (0, 1, 1, 0): ["transpose=cclock_flip"],
    (0, -1, -1, 0): ["transpose=clock_flip"],
}


def scene(number: int) -> NDArray[np.uint8]:
    """A picture (64, 96, 3) that no orientation leaves as it is; its details are not finer than chroma."""
    y, x = np.mgrid[:64, :96]
    return np.stack((x * 2, y * 3, 128 + 60 * np.sin((x + 2 * y + number) / 9)), -1).astype(np.uint8)


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Write a display matrix into an .mp4 file."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    numbers = [round(number * ONE) for number in (a, b, c, d)]
    content[at : at + 36] = struct.pack(">9i", numbers[0], numbers[1], 0, numbers[2], numbers[3], 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def filtered(path: Path, filters: list[str]) -> NDArray[np.uint8]:
    """The first frame of a video after filters of FFmpeg."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(template=container.streams.video[0])]
        for text in filters:
            nodes.append(graph.add(*text.partition("=")[::2]))
        nodes.append(graph.add("buffersink"))
        for node, following in pairwise(nodes):
            node.link_to(following)
        graph.configure()
        graph.push(frame)
        return graph.pull().to_ndarray(format="rgb24")


@pytest.mark.parametrize(("matrix", "filters"), FILTERS.items())
def test_all_eight_orientations_are_those_of_ffmpeg(tmp_path: Path, matrix: tuple[int, ...], filters: list[str]):
    path = with_matrix(write_film(tmp_path / "a.mp4", 8, picture=scene, pixel_format="yuv444p"), *matrix)
    expected = filtered(path, filters).astype(int)
    shown = next(open_sequence([path], FrameOptions()).read())
    assert shown is not None
    assert np.abs(shown - expected).max() <= 1
    clips = read_clips(path, 1, 2, short_side=64, crop_size=64)
    top, left = (expected.shape[0] - 64) // 2, (expected.shape[1] - 64) // 2
    assert np.abs(clips.frames[0, 0] - expected[top : top + 64, left : left + 64]).mean() < 9  # of another frame
    assert clips.notes == ()


def test_a_matrix_may_hold_a_scale(tmp_path: Path):
    path = with_matrix(write_film(tmp_path / "a.mp4", 3, picture=scene), 0, 1.5, -1.5, 0)
    assert next(open_sequence([path], FrameOptions()).read()).shape == (96, 64, 3)


def test_another_angle_is_taken_as_the_nearest_quarter_turn_and_noted(tmp_path: Path):
    cosine, sine = np.cos(np.deg2rad(100)), np.sin(np.deg2rad(100))
    path = with_matrix(write_film(tmp_path / "a.mp4", 6, picture=scene), cosine, sine, -sine, cosine)
    assert "rotation 10 degrees from a quarter turn" in read_clips(path, 1, 2, 64, 64).notes[0]


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_deep_frames_are_as_bright_as_they_were(tmp_path: Path, pixel_format: str):
    path = write_film(tmp_path / "a.mkv", 3, picture=scene, pixel_format=pixel_format, options={"crf": "1"})
    shown = next(open_sequence([path], FrameOptions()).read())
    assert shown is not None
    expected = filtered(path, ["scale=flags=bilinear+accurate_rnd+full_chroma_int", "format=rgb24"]).astype(int)
    assert abs(float((shown - expected).mean())) < 0.3
    assert abs(float((shown - scene(0).astype(int)).mean())) < 0.9


def test_interlaced_video_is_noted(tmp_path: Path):
    path = tmp_path / "a.mpg"
    write_film(path, 8, codec="mpeg2video", picture=scene, options={"flags": "+ildct+ilme"})
    assert read_clips(path, 1, 2, 64, 64).notes == ("interlaced: both fields of a frame are taken as one picture",)


def test_a_change_of_size_is_noted(tmp_path: Path):
    small = write_film(tmp_path / "a.ts", 30, picture=scene).read_bytes()
    large = write_film(tmp_path / "b.ts", 30, picture=lambda n: np.tile(scene(n), (2, 2, 1)), pts=lambda n: n + 30)
    (tmp_path / "c.ts").write_bytes(small + large.read_bytes())
    notes = read_clips(tmp_path / "c.ts", 2, 2, 64, 64).notes
    assert any("the size changes from 96 x 64 to 192 x 128 pixels" in note for note in notes)
