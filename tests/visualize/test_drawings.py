from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from made_up_model import CLASSES, make_model
from PIL import Image

from tvnet_cli.errors import OutputError, UnitError
from tvnet_cli.flow.colour import colour_scale, flow_to_colour
from tvnet_cli.network.cards import FlowInput, RGBInput
from tvnet_cli.visualize.deepdraw import Drawing
from tvnet_cli.visualize.drawings import check_outputs, write_drawings, write_film
from tvnet_cli.visualize.pictures import imagined_flow
from tvnet_cli.visualize.units import NetworkLayer
from tvnet_cli.writing import is_marked

HOW = FlowInput(6.375, 20.0, "interleaved")


@pytest.fixture(scope="module")
def layer() -> NetworkLayer:
    return NetworkLayer(make_model(), "fc")


def canvas(seed: int = 0) -> np.ndarray:
    """Flow of 3 pixels to the right and 1 down, with some noise."""
    levels = 128 + np.resize([3, 1], 10)[:, None, None] * 6.375
    return (levels + np.random.default_rng(seed).normal(0, 5, (10, 60, 60))).astype(np.float32)


def drawings(*units: int, dead: tuple[int, ...] = ()) -> list[Drawing]:
    return [Drawing(unit, canvas(unit), unit in dead) for unit in units]


def read_film(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in frames], [frame.time for frame in frames]


def test_one_unit_is_the_mean_of_its_channels_pixel_by_pixel(layer, tmp_path):
    write_drawings([tmp_path / "unit.png"], layer, drawings(1), "mean")
    picture = Image.open(tmp_path / "unit.png")
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), np.rint(canvas(1).mean(0)))


@pytest.mark.parametrize(("units", "view"), [((0, 1), "mean"), ((0,), "xy"), ((0, 1), "all")])
def test_more_is_a_sheet(layer, tmp_path, units, view):
    write_drawings([tmp_path / "a.png", tmp_path / "a.pdf"], layer, drawings(*units), view)
    with Image.open(tmp_path / "a.png") as sheet:
        width, height = sheet.size
    panels_wide = {"mean": len(units), "xy": 3, "all": 13}[view]
    panels_high = 1 if view == "mean" else len(units)
    assert 0.8 < width / height * panels_high / panels_wide < 1.2
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_a_folder_gets_a_picture_and_a_film_of_each_unit(layer, tmp_path):
    write_drawings([tmp_path / "units"], layer, drawings(0, 1), "mean")
    names = sorted(path.name for path in (tmp_path / "units").iterdir())
    assert names == ["fc_turn_left.mp4", "fc_turn_left.png", "fc_walk.mp4", "fc_walk.png"]


def test_a_folder_gets_them_as_they_come(layer, tmp_path):
    def stopped():
        yield from drawings(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_drawings([tmp_path / "units"], layer, stopped(), "mean")
    assert (tmp_path / "units" / "fc_walk.png").exists()


def test_the_film_shows_a_moving_texture_beside_the_colours_of_each_field(tmp_path):
    write_film(tmp_path / "unit.mp4", canvas(), HOW)
    frames, times = read_film(tmp_path / "unit.mp4")
    assert np.allclose(np.diff(times), 0.2)
    assert len(frames) == 21
    assert frames[0].shape == (60, 120, 3)
    flow = imagined_flow(canvas(), HOW)
    scale = colour_scale(list(flow))
    for number in (0, 3, 8):
        colours = flow_to_colour(flow[number % 5], scale).astype(int)
        assert np.abs(frames[number][:40, 60:] - colours[:40]).mean() < 12  # the legend is below
    # What is seen at a place in one frame is seen 3 to the right and 1 down in the next.
    first, second = (frame[:, :60, 0].astype(float) for frame in frames[:2])
    still = np.abs(second - first)[10:50, 10:50].mean()
    moved = np.abs(second[11:51, 13:53] - first[10:50, 10:50]).mean()
    assert moved < still / 2


def test_dead_units_are_named_after_the_others_are_written(layer, tmp_path):
    with pytest.raises(UnitError, match=r"to begin with: walk, turn_right of fc; --leak 0\.01"):
        write_drawings([tmp_path / "a.png"], layer, drawings(0, 1, 2, dead=(0, 2)), "mean")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.rint(canvas(1).mean(0)))


def test_nothing_is_written_when_all_are_dead(layer, tmp_path):
    with pytest.raises(UnitError, match="walk of fc"):
        write_drawings([tmp_path / "a.png", tmp_path / "units"], layer, drawings(0, dead=(0,)), "mean")
    assert list(tmp_path.iterdir()) == []


def test_a_film_is_of_one_unit_and_of_flow(layer, tmp_path):
    with pytest.raises(OutputError, match="a film shows one unit, and 2 were asked for: give a folder"):
        check_outputs([tmp_path / "a.mp4"], layer, [0, 1])
    rgb = NetworkLayer(make_model(3, input=RGBInput((104, 117, 123), "BGR")), "fc")
    with pytest.raises(OutputError, match="a picture gives no film"):
        check_outputs([tmp_path / "a.mp4"], rgb, [0])
    check_outputs([tmp_path / "a.mp4", tmp_path / "folder"], layer, [0])


def test_rgb_units_are_in_colour_and_have_no_film(tmp_path):
    rgb = NetworkLayer(make_model(3, input=RGBInput((104, 117, 123), "BGR")), "fc")
    colours = np.stack([np.full((8, 8), level, np.float32) for level in (10, 20, 30)])
    write_drawings([tmp_path / "a.png", tmp_path / "units"], rgb, [Drawing(3, colours, False)], "mean")
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (30, 20, 10)
    assert [path.name for path in (tmp_path / "units").iterdir()] == [f"fc_{CLASSES[3]}.png"]


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf", "a.mp4", "units"])
def test_what_was_written_is_known_and_may_be_written_again(layer, tmp_path, name):
    write_drawings([tmp_path / name], layer, drawings(0), "xy")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(map(is_marked, files))
    check_outputs([tmp_path / name], layer, [0])


def test_files_of_others_are_replaced_on_request_alone(layer, tmp_path):
    for name in ("fc_walk.mp4", "b.png"):
        (tmp_path / name).write_bytes(b"mine")
        output = tmp_path if name == "fc_walk.mp4" else tmp_path / name
        with pytest.raises(OutputError, match=rf"{name} exists, and nothing in it says that tvnet made it"):
            check_outputs([output], layer, [0])
        check_outputs([output], layer, [0], overwrite=True)


def test_a_folder_may_have_a_dot_in_its_name(layer, tmp_path):
    (tmp_path / "units.v2").mkdir()
    write_drawings([tmp_path / "units.v2"], layer, drawings(0), "mean")
    assert len(list((tmp_path / "units.v2").iterdir())) == 2
