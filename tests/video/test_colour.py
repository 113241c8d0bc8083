"""The RGB of a frame is what ffmpeg makes of it: libswscale behind its filters is the reference."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
import pytest
from films import write_film

from tvnet_cli.video.decode import read_frames, scan, upright_rgb

EXACT = "flags=bilinear+accurate_rnd+full_chroma_int"
MATRICES = {"bt470bg": 5, "bt709": 1, "bt2020": 9}


@lru_cache
def picture() -> np.ndarray:
    """Smooth colours, (96, 160, 3): what is lost by fewer samples of chroma is little."""
    y, x = np.mgrid[:96, :160]
    waves = [np.sin(x / 25 + phase) * np.cos(y / 18 + 2 * phase) for phase in (0, 1, 2)]
    return np.round(np.stack(waves, -1) * 100 + 128).astype(np.uint8)


def filtered(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.VideoFrame:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    graph.link_nodes(source, *(graph.add(*one) for one in filters), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def stored(pixel_format: str, matrix: str, levels: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture(), format="rgb24")
    frame = filtered(
        frame, ("scale", f"out_color_matrix={matrix}:out_range={levels}:{EXACT}"), ("format", pixel_format)
    )
    frame.colorspace, frame.color_range = MATRICES[matrix], {"limited": 1, "full": 2}[levels]
    return frame


def ours(frame: av.VideoFrame, **more: int) -> np.ndarray:
    return upright_rgb(frame, av.video.reformatter.VideoReformatter(), **more).astype(float)


def by_ffmpeg(frame: av.VideoFrame, scale: str) -> np.ndarray:
    return filtered(frame, ("scale", scale), ("format", "rgb24")).to_ndarray().astype(float)


@pytest.mark.parametrize("levels", ["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "p010le"])
def test_deep_colour_is_that_of_ffmpeg_and_of_the_scene(pixel_format, matrix, levels):
    frame = stored(pixel_format, matrix, levels)
    for size, difference in (
        ("stored", ours(frame) - by_ffmpeg(frame, EXACT)),
        ("resized", ours(frame, short_side=120) - by_ffmpeg(frame, f"200:120:{EXACT}")),
        ("scene", ours(frame) - picture()),
    ):
        # ffmpeg takes 1020 for white in 10 bits of full range, and 1023 is right: its own 0.4 levels
        allowed = 0.6 if (size, levels) == ("scene", "full") else 0.3
        assert abs(difference.mean()) < allowed, size
        assert np.abs(difference).mean() < allowed, size


@pytest.mark.parametrize("levels", ["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "nv12", "gray"])
def test_ordinary_colour_is_what_ffmpeg_gives_by_default(pixel_format, matrix, levels):
    frame = stored(pixel_format, matrix, levels)
    assert np.array_equal(ours(frame), by_ffmpeg(frame, "flags=bilinear"))
    assert np.array_equal(ours(frame, short_side=120), by_ffmpeg(frame, "200:120:flags=bilinear"))


@pytest.mark.parametrize(("place", "number"), [("left", 0), ("center", 1), ("topleft", 2)])
def test_chroma_lies_where_the_stream_says(tmp_path, place, number):
    options = {"qp": "0", "preset": "ultrafast", "x264-params": f"chromaloc={number}"}
    film = tmp_path / "film.mp4"
    write_film(film, 1, pixel_format="yuv420p10le", picture=lambda _: picture(), options=options)
    frame = next(read_frames(scan(film), [0]))
    differences = {
        other: np.abs(ours(frame) - by_ffmpeg(frame, f"in_chroma_loc={other}:{EXACT}")).mean()
        for other in ("left", "center", "topleft")
    }
    assert min(differences, key=differences.__getitem__) == place
    assert differences[place] < 0.01
