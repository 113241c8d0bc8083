from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import write_film

from tvnet_cli.flow.colour import flow_to_colour
from tvnet_cli.flow.field import FlowField
from tvnet_cli.flow.film import FlowFilm
from tvnet_cli.options import FrameOptions
from tvnet_cli.video.sequence import open_sequence


def make_fields(seconds: list[float], size: tuple[int, int] = (48, 64), **more: np.ndarray) -> list[FlowField]:
    """Grey frames that grow lighter, and a flow that turns."""
    fields = []
    for position in range(len(seconds) - 1):
        first, second = (np.full((*size, 3), 20 + 10 * number, np.uint8) for number in (position, position + 1))
        flow = np.empty((2, *size), np.float32)
        flow[0], flow[1] = 4 * np.cos(position), 4 * np.sin(position)
        times = seconds[position], seconds[position + 1]
        fields.append(FlowField(position, (position, position + 1), times, first, second, {"flow": flow, **more}))
    return fields


def write(path: Path, fields: list[FlowField], time_base: Fraction = Fraction(1, 25)) -> None:
    with FlowFilm(path, 4.0, time_base) as film:
        for field in fields:
            film.write(field)


def read(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in frames], [frame.time for frame in frames]


def test_frames_and_flow_stand_side_by_side(tmp_path):
    fields = make_fields([number / 25 for number in range(6)])
    write(tmp_path / "a.mp4", fields)
    pictures, times = read(tmp_path / "a.mp4")
    assert len(pictures) == 6
    np.testing.assert_allclose(times, np.arange(6) / 25)
    for number, picture in enumerate(pictures):
        assert picture.shape == (48, 128, 3)
        assert np.abs(picture[:, :60] - (20 + 10 * number)).max() <= 6
        expected = flow_to_colour(fields[min(number, 4)].flow, 4.0)
        assert np.abs(picture[4:-4, 68:124] - expected[4:-4, 4:60]).mean() < 12
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("size", [(49, 65), (17, 16)])
def test_odd_sizes_are_filled_up(tmp_path, size):
    write(tmp_path / "a.mp4", make_fields([0, 0.04, 0.08], size))
    pictures, _ = read(tmp_path / "a.mp4")
    assert pictures[0].shape == (size[0] + size[0] % 2, 2 * size[1], 3)


SOURCES = {
    "constant": {"rate": 25},
    "29.97": {"rate": Fraction(30000, 1001), "time_base": Fraction(1001, 30000)},
    "late": {"pts": lambda number: number + 100},
    "variable": {"pts": lambda number: 40 * number + 7 * number * number, "time_base": Fraction(1, 1000)},
    "b-frames": {"options": {"bf": "3", "g": "12"}},
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_times_are_those_of_the_source(tmp_path, source, suffix):
    original = write_film(tmp_path / f"source.{suffix}", 20, **SOURCES[source])
    sequence = open_sequence([original], FrameOptions())
    write(tmp_path / "a.mp4", make_fields(sequence.pts_seconds.tolist()), sequence.time_base)
    _, times = read(tmp_path / "a.mp4")
    _, expected = read(original)
    assert len(times) == 20
    np.testing.assert_allclose(times, expected, atol=1e-6)


def test_times_that_repeat_are_drawn_apart(tmp_path):
    write(tmp_path / "a.mp4", make_fields([0, 0.04, 0.04, 0.0, 0.2]))
    _, times = read(tmp_path / "a.mp4")
    assert len(times) == 5
    assert (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(0.2)


def test_scales_follow_the_frame_coarse_to_fine(tmp_path):
    coarse = {f"flow_scale_{number}": np.zeros((2, 48 >> number, 64 >> number), np.float32) for number in (1, 2)}
    coarse["flow_scale_2"][0] = 1.0  # four pixels of the finest: full red
    write(tmp_path / "a.mp4", make_fields([0, 0.04], **coarse))
    picture = read(tmp_path / "a.mp4")[0][0]
    assert picture.shape == (96, 128, 3)  # frame and coarsest, then middle and finest
    expected = flow_to_colour(np.full((2, 1, 1), [[[4.0]], [[0.0]]]), 4.0)[0, 0]
    assert np.abs(picture[10:38, 74:118].mean((0, 1)) - expected).max() < 12
    assert picture[58:86, 10:54].mean() > 245


def test_an_interrupted_film_plays(tmp_path):
    with suppress(KeyboardInterrupt), FlowFilm(tmp_path / "a.mp4", 4.0, Fraction(1, 25)) as film:
        for field in make_fields([0, 0.04, 0.08]):
            film.write(field)
        raise KeyboardInterrupt
    assert len(read(tmp_path / "a.mp4")[0]) == 3


def test_a_film_without_fields_is_no_file(tmp_path):
    with FlowFilm(tmp_path / "a.mp4", 4.0, Fraction(1, 25)):
        pass
    assert not list(tmp_path.iterdir())
