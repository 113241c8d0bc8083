"""Drawn films: what is painted lies where its pose says, and the flow is where it goes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tvnet_cli.training.render import BLOB, BOX, CAPSULE, PLANE, Look, Part, exact_flow, render, textures

BLACK = Look(0, (0.0, 0.0), 100.0, (0.0, 0.0, 0.0), 0.0)
RED = Look(0, (0.0, 0.0), 100.0, (200.0, 40.0, 0.0), 0.0)


def at(*places: tuple[float, float], angle: float = 0.0) -> np.ndarray:
    """Poses that turn by an angle and move to places of the world."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[[cosine, -sine, x], [sine, cosine, y]] for x, y in places])


def plane(moments: int = 1, look: Look = BLACK) -> Part:
    return Part(at(*[(0.0, 0.0)] * moments), PLANE, (), look)


@pytest.mark.parametrize(
    ("kind", "shape", "area"),
    [
        (BOX, (0.2, 0.1), 0.4 * 0.2),
        (BLOB, (0.15, 0.0, 0.0, 0.0, 0.0), math.pi * 0.15**2),
        (BLOB, (0.15, 0.2, 1.0, 0.1, 2.0), math.pi * 0.15**2 * (1 + (0.2**2 + 0.1**2) / 2)),
        (CAPSULE, (0.3, 0.05, 0.05), 0.3 * 0.1 + math.pi * 0.05**2),
    ],
)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_a_shape_covers_its_area_at_its_place(kind, shape, area, angle):
    picture = render([plane(), Part(at((0.05, -0.1), angle=angle), kind, shape, RED)], 200, 200)[0]
    cover = picture[..., 0] / 200
    assert cover.sum() / 200**2 == pytest.approx(area, rel=0.02)
    np.testing.assert_allclose(picture[..., 1], picture[..., 0] * 0.2, atol=1e-3)
    y, x = np.mgrid[:200, :200]
    centre = np.array([(cover * axis).sum() / cover.sum() for axis in (x, y)]) / 200 - 0.4975
    own = {CAPSULE: 0.15}.get(kind, 0.0)  # a capsule begins at its origin
    expected = (0.05 + own * math.cos(angle), -0.1 + own * math.sin(angle))
    if shape[-1] != 2.0:  # the bumpy blob has its centre elsewhere
        np.testing.assert_allclose(centre, expected, atol=0.004)


def test_edges_are_smooth_and_what_comes_later_is_in_front():
    front = Look(0, (0.0, 0.0), 100.0, (10.0, 250.0, 10.0), 0.0)
    parts = [plane(), Part(at((0, 0)), BOX, (0.25, 0.25), RED), Part(at((0, 0)), BOX, (0.1, 0.1), front)]
    picture = render(parts, 65, 65)[0]
    assert picture[32, 32].tolist() == [10, 250, 10]
    assert picture[32, 20].tolist() == [200, 40, 0]
    assert ((picture[32, :, 0] > 1) & (picture[32, :, 0] < 199) & (picture[32, :, 1] < 40)).sum() in (1, 2)


def test_a_texture_moves_with_its_part():
    look = Look(2, (10.0, 20.0), 100.0, (128.0, 128.0, 128.0), 40.0)
    steps = ((0.0, 0.0), (0.03, -0.02))  # 3 and 2 pixels
    first, second = render([Part(at(*steps), PLANE, (), look)], 100, 100)
    np.testing.assert_allclose(second[:-2, 3:], first[2:, :-3], atol=0.01)
    assert first.std() > 20


def test_the_flow_is_that_of_the_part_in_front_and_says_what_can_be_seen():
    still, moving = plane(2), Part(at((0, 0), (0.1, 0.05)), BOX, (0.15, 0.15), RED)
    flow, visible = exact_flow([still, moving], 100, 100)
    assert flow.shape == (1, 2, 100, 100)
    inside = np.zeros((100, 100), bool)
    inside[35:65, 35:65] = True
    np.testing.assert_allclose(flow[0][:, inside] - [[10.0], [5.0]], 0, atol=1e-4)
    np.testing.assert_allclose(flow[0][:, ~inside], 0, atol=1e-4)
    covered = np.zeros((100, 100), bool)  # by the box in the second frame, and not its own
    covered[40:70, 45:75] = True
    np.testing.assert_array_equal(visible[0], ~(covered & ~inside))


def test_the_flow_of_turning_and_growing_is_that_of_the_transform():
    angle, scale = 0.1, 1.05
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    poses = np.stack([np.eye(2, 3), np.concatenate([turn, np.zeros((2, 1))], 1)])
    flow, visible = exact_flow([Part(poses, PLANE, (), BLACK)], 41, 61)
    y, x = np.mgrid[:41, :61]
    from_centre = np.stack([x - 30.0, y - 20.0])
    expected = np.einsum("ij,jyx->iyx", turn - np.eye(2), from_centre)
    np.testing.assert_allclose(flow[0], expected, atol=1e-4)
    assert visible[0, 20, 30]
    assert not visible[0, 0, 0]  # it leaves the frame


def test_textures_are_standardised_different_and_without_a_seam():
    bank = textures()
    np.testing.assert_allclose(bank.mean((1, 2)), 0, atol=0.15)
    np.testing.assert_allclose(bank.std((1, 2)), 1, atol=0.15)
    flat = bank.reshape(len(bank), -1)
    assert np.abs(np.corrcoef(flat) - np.eye(len(bank))).max() < 0.7
    within = np.abs(np.diff(bank, axis=2)).mean()
    across = np.abs(bank[:, :, 0] - bank[:, :, -1]).mean()
    assert across < 1.3 * within
