"""Frames are upright as ffmpeg shows them: its filters for each display matrix are the reference."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from films import numbered_picture, write_film
from PIL import Image

from tvnet_cli.options import FrameOptions
from tvnet_cli.video import orientation
from tvnet_cli.video.decode import FrameNotes, read_clips, read_frames, scan, upright_rgb
from tvnet_cli.video.sequence import open_sequence
from tvnet_cli.video.thumbnails import thumbnail

# a, b, c, d of x' = a x + c y, y' = b x + d y, and the filters that ffmpeg inserts for it.
EIGHT = {
    "as stored": ((1, 0, 0, 1), []),
    "hflip": ((-1, 0, 0, 1), [("hflip", "")]),
    "vflip": ((1, 0, 0, -1), [("vflip", "")]),
    "half turn": ((-1, 0, 0, -1), [("hflip", ""), ("vflip", "")]),
    "clockwise": ((0, 1, -1, 0), [("transpose", "clock")]),
    "counter-clockwise": ((0, -1, 1, 0), [("transpose", "cclock")]),
    "transpose": ((0, 1, 1, 0), [("transpose", "cclock_flip")]),
    "transverse": ((0, -1, -1, 0), [("transpose", "clock_flip")]),
}
FAST = {"preset": "ultrafast", "qp": "8"}


def display_matrix(a: float, b: float, c: float, d: float) -> list[int]:
    return [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)] + [1 << 30]


def picture(number: int = 0) -> np.ndarray:
    return numbered_picture(777, 96, 160)


def first_upright(film: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    seen = FrameNotes()
    frame = next(read_frames(scan(film), [0], seen))
    return upright_rgb(frame, av.video.reformatter.VideoReformatter()), seen.notes


def shown_by_ffmpeg(film: Path, filters: list[tuple[str, str]]) -> np.ndarray:
    with av.open(str(film)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    graph = av.filter.Graph()
    frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
    source = graph.add_buffer(width=160, height=96, format=frame.format, time_base=Fraction(1, 25))
    graph.link_nodes(source, *(graph.add(*one) for one in filters), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull().to_ndarray()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("name", EIGHT)
def test_all_eight_orientations_are_what_ffmpeg_shows(tmp_path, name, suffix):
    numbers, filters = EIGHT[name]
    film = write_film(tmp_path / f"film{suffix}", 2, matrix=display_matrix(*numbers), picture=picture, options=FAST)
    ours, notes = first_upright(film)
    assert np.array_equal(ours, shown_by_ffmpeg(film, filters))
    assert notes == ()


@pytest.mark.parametrize("name", EIGHT)
def test_a_scale_in_the_matrix_changes_no_orientation(tmp_path, name):
    (a, b, c, d), filters = EIGHT[name]
    matrix = display_matrix(2 * a, b / 2, c / 2, 2 * d)
    film = write_film(tmp_path / "film.mp4", 2, matrix=matrix, picture=picture, options=FAST)
    ours, notes = first_upright(film)
    assert np.array_equal(ours, shown_by_ffmpeg(film, filters))
    assert notes == ()


def test_flow_features_and_thumbnails_see_a_selfie_as_players_show_it(tmp_path):
    stored = write_film(tmp_path / "stored.mp4", 8, picture=lambda i: numbered_picture(777 + i), options=FAST)
    selfie = tmp_path / "selfie.mp4"
    write_film(selfie, 8, matrix=display_matrix(-1, 0, 0, 1), picture=lambda i: numbered_picture(777 + i), options=FAST)
    for one, other in zip(*(open_sequence([film], FrameOptions()).read() for film in (stored, selfie)), strict=True):
        assert np.array_equal(other, np.fliplr(one))
    assert np.array_equal(read_clips(selfie).frames, read_clips(stored).frames[..., ::-1, :])
    assert thumbnail(selfie) != thumbnail(stored)


@pytest.mark.parametrize("flip", ["", ":flip=horizontal", ":flip=vertical"])
def test_an_orientation_of_the_codec_counts_as_one_of_the_container(tmp_path, flip):
    """H.264 says how a picture is mirrored, and by how much it is turned counter-clockwise after that."""
    plain, turned = write_film(tmp_path / "plain.h264", 2, picture=picture, options=FAST), tmp_path / "turned.mkv"
    with av.open(str(plain)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        insert = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:rotate=90{flip}", stream, stream)
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            for out in insert.filter(packet):
                out.stream, out.pts, out.dts, out.time_base = stream, number, number, Fraction(1, 25)
                target.mux(out)
    name = {"": "counter-clockwise", ":flip=horizontal": "transpose", ":flip=vertical": "transverse"}[flip]
    assert np.array_equal(first_upright(turned)[0], shown_by_ffmpeg(turned, EIGHT[name][1]))


@pytest.mark.parametrize("exif", [1, 2, 5, 7, 8])
def test_exif_of_motion_jpeg_counts_too(tmp_path, exif):
    """PyAV cannot name EXIF, and then hides the display matrix that FFmpeg makes of it."""
    tags = Image.Exif()
    tags[0x0112] = exif
    Image.fromarray(picture()).convert("RGB").save(tmp_path / "one.jpg", exif=tags)
    film = tmp_path / "film.avi"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuvj420p"
        packet = av.Packet((tmp_path / "one.jpg").read_bytes())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 25)
        container.mux(packet)
    name = {1: "as stored", 2: "hflip", 5: "transpose", 7: "transverse", 8: "counter-clockwise"}[exif]
    assert np.array_equal(first_upright(film)[0], shown_by_ffmpeg(film, EIGHT[name][1]))


@pytest.mark.parametrize(("degrees", "nearest"), [(30, "as stored"), (60, "clockwise"), (-170, "half turn")])
def test_a_rotation_that_is_no_quarter_turn_is_noted(tmp_path, degrees, nearest):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    film = tmp_path / "film.mp4"
    write_film(film, 2, matrix=display_matrix(cos, sin, -sin, cos), picture=picture, options=FAST)
    ours, notes = first_upright(film)
    assert np.array_equal(ours, shown_by_ffmpeg(film, EIGHT[nearest][1]))
    assert notes == read_clips(film).notes
    assert f"it rotates by {degrees % 360} degrees clockwise" in notes[0]


def test_a_turn_of_less_than_half_a_degree_is_none(tmp_path):
    assert orientation._nearest(1, 0.008, -0.008, 1) == orientation.Orientation()


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0), (1, 1, 0, 0), (1, 0, 0, 0)])
def test_a_matrix_that_shows_nothing_is_ignored_with_a_note(tmp_path, numbers):
    film = write_film(tmp_path / "film.mp4", 2, matrix=display_matrix(*numbers), picture=picture, options=FAST)
    ours, notes = first_upright(film)
    assert np.array_equal(ours, shown_by_ffmpeg(film, []))
    assert notes == ("its display matrix is not invertible and is ignored",)
