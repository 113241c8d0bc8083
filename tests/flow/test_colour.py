from __future__ import annotations

import flow_vis
import numpy as np
import pytest

from tvnet_cli.flow.colour import colour_scale, colour_wheel, draw_legend, flow_to_colour, longest

RNG = np.random.default_rng(0)
FLOW = RNG.normal(0, 4, (2, 90, 120)).astype(np.float32)


def test_the_wheel_is_the_established_one():
    np.testing.assert_array_equal(colour_wheel(), flow_vis.make_colorwheel())


def test_colours_are_the_established_ones():
    ours, theirs = flow_to_colour(FLOW), flow_vis.flow_to_color(FLOW.transpose(1, 2, 0))
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1  # theirs divides by the scale plus 1e-5
    assert (difference > 0).mean() < 1e-3


def test_all_directions_and_vectors_beyond_the_scale_too():
    angle = np.linspace(-np.pi, np.pi, 721)
    unit = np.stack((np.cos(angle), np.sin(angle)))[:, None]
    for length in (0, 0.3, 0.999, 1.5):
        theirs = flow_vis.flow_uv_to_colors(*(length * unit))
        assert np.abs(flow_to_colour(3 * length * unit, 3).astype(int) - theirs).max() <= 1


def test_right_is_red_and_no_motion_white():
    flow = np.zeros((2, 1, 2))
    flow[0, 0, 1] = 2.0
    white, red = flow_to_colour(flow)[0]
    assert white.tolist() == [255, 255, 255]
    assert red[0] == 255
    assert max(red[1:]) < 20


def test_unknown_flow_is_black_and_changes_no_scale():
    flow = FLOW.copy()
    flow[:, 3, 4] = 1e10
    flow[0, 5, 6] = np.nan
    picture, whole = flow_to_colour(flow, 5.0), flow_to_colour(FLOW, 5.0)
    assert not picture[[3, 5], [4, 6]].any()
    picture[[3, 5], [4, 6]] = whole[[3, 5], [4, 6]]
    np.testing.assert_array_equal(picture, whole)
    assert longest(flow) == pytest.approx(np.hypot(*FLOW).max())


def test_the_scale_of_a_film_passes_over_a_few_wild_vectors():
    calm = np.full((2, 100, 100), 1.0)
    wild = calm.copy()
    wild[0, 0, :5] = 50.0
    assert colour_scale([calm / 1e6]) == colour_scale([calm / 1e6, calm / 1e6]) == 0.25
    assert colour_scale([wild]) == pytest.approx(np.hypot(50, 1))
    assert colour_scale([calm, wild]) == pytest.approx(np.hypot(1, 1))


def test_still_films_are_white():
    still = np.zeros((2, 20, 20), np.float32)
    assert (flow_to_colour(still, colour_scale([still, still])) == 255).all()


@pytest.mark.parametrize("size", [(64, 64), (80, 200), (720, 1280)])
def test_the_legend_stands_in_the_corner_and_nowhere_else(size):
    picture = np.full((*size, 3), 7, np.uint8)
    shown = draw_legend(picture, 12.34)
    changed = (shown != 7).any(2)
    assert changed[-1, -1]
    assert not changed[0, 0]
    assert changed.mean() < 0.35
    corner = shown[changed]
    assert np.ptp(corner[:, 0].astype(int)) > 200  # the wheel and the writing
    assert (picture == 7).all()


def test_pictures_too_small_for_a_legend_stay_as_they_are():
    picture = np.full((40, 300, 3), 7, np.uint8)
    np.testing.assert_array_equal(draw_legend(picture, 1.0), picture)


def test_the_legend_tells_the_scale():
    picture = np.full((240, 320, 3), 255, np.uint8)
    assert (draw_legend(picture, 1.5) != draw_legend(picture, 2.5)).any()
