from __future__ import annotations

import numpy as np
import pytest

from tvnet_cli.network.cards import FlowInput, RGBInput
from tvnet_cli.visualize.pictures import canvas_pictures, imagined_flow, stretched

HOW = FlowInput(6.375, 20.0, "interleaved")
GROUPED = FlowInput(6.375, 20.0, "grouped")


def canvas(order: FlowInput = HOW) -> np.ndarray:
    """Channels x1 = 10, x2 = 20 ... x5 = 50, and y1 = 110 ... y5 = 150."""
    x, y = np.arange(10, 60, 10), np.arange(110, 160, 10)
    levels = np.concatenate((x, y)) if order is GROUPED else np.stack((x, y), 1).ravel()
    return np.broadcast_to(levels[:, None, None], (10, 4, 6)).astype(np.float32)


@pytest.mark.parametrize("how", [HOW, GROUPED])
def test_pictures_are_means_and_channels(how):
    assert {title: int(one[0, 0]) for title, one in canvas_pictures(canvas(how), how).items()} == {"mean": 80}
    both = canvas_pictures(canvas(how), how, "xy")
    assert {title: int(one[0, 0]) for title, one in both.items()} == {"mean": 80, "mean of x": 30, "mean of y": 130}
    every = canvas_pictures(canvas(how), how, "all")
    assert list(every)[3:] == ["x1", "x2", "x3", "x4", "x5", "y1", "y2", "y3", "y4", "y5"]
    assert [int(every[title][0, 0]) for title in ("x1", "x5", "y1", "y5")] == [10, 50, 110, 150]
    assert every["mean"].shape == (4, 6)
    assert every["mean"].dtype == np.uint8


@pytest.mark.parametrize("how", [HOW, GROUPED])
def test_the_flow_is_in_pixels_and_128_stands_still(how):
    flow = imagined_flow(canvas(how), how)
    assert flow.shape == (5, 2, 4, 6)
    np.testing.assert_allclose(flow[:, 0, 0, 0], (np.arange(10, 60, 10) - 128) * 40 / 255, rtol=1e-6)
    np.testing.assert_allclose(flow[:, 1, 0, 0], (np.arange(110, 160, 10) - 128) * 40 / 255, rtol=1e-6)


def test_rgb_has_its_colours_whatever_its_order():
    blue_green_red = np.stack([np.full((2, 3), level, np.float32) for level in (10, 20, 30.4)])
    for order, colour in (("BGR", [30, 20, 10]), ("RGB", [10, 20, 30])):
        (picture,) = canvas_pictures(blue_green_red, RGBInput((104, 117, 123), order), "all").values()
        assert picture.shape == (2, 3, 3)
        assert picture[0, 0].tolist() == colour


def test_a_stretched_picture_keeps_its_mid_grey_and_uses_the_rest():
    picture = np.full((100, 100), 128, np.uint8)
    picture[:10], picture[10:20] = 118, 133
    levels = stretched(picture)
    assert (levels[50, 0], levels[0, 0]) == (128, 1)
    assert levels[15, 0] == round(128 + 5 * 12.7)
    assert (stretched(np.full((4, 4), 128, np.uint8)) == 128).all()
