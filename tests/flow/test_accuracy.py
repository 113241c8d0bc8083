from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tvnet_cli.flow.accuracy import angular_error, endpoint_error, occlusion

RNG = np.random.default_rng(0)


def test_errors_are_those_of_their_definitions():
    flow, truth = RNG.normal(0, 3, (2, 2, 5, 7))
    ends, angles = [], []
    for y in range(5):
        for x in range(7):
            a, b = [*flow[:, y, x], 1.0], [*truth[:, y, x], 1.0]
            ends.append(math.dist(a, b))
            cosine = sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
            angles.append(math.degrees(math.acos(cosine)))
    assert endpoint_error(flow, truth) == pytest.approx(np.mean(ends))
    assert angular_error(flow, truth) == pytest.approx(np.mean(angles))


def test_equal_fields_have_no_error_at_all():
    flow = RNG.normal(0, 30, (2, 20, 20)).astype(np.float32)
    assert endpoint_error(flow, flow) == 0
    assert angular_error(flow, flow) == 0


def test_unknown_truth_does_not_count():
    flow, truth = np.ones((2, 2, 2)), np.ones((2, 2, 2))
    flow[0, 0, 0] = truth[0, 1, 1] = 3.0
    truth[:, 0, 0] = 1e10
    truth[1, 0, 1] = np.nan
    assert endpoint_error(flow, truth) == pytest.approx(1.0)  # 0 and 2 over the two that are known
    assert math.isnan(endpoint_error(flow, np.full_like(truth, 1e10)))
    assert math.isnan(angular_error(flow, np.full_like(truth, 1e10)))


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="the truth is 4 x 3, the flow 3 x 4 pixels"):
        endpoint_error(np.zeros((2, 4, 3)), np.zeros((2, 3, 4)))


def test_a_square_that_moves_over_still_ground_hides_what_lies_before_it():
    forward, backward = torch.zeros(2, 1, 2, 40, 60)
    forward[0, 0, 10:30, 10:30] = 8.0  # the square goes to columns 18..38
    backward[0, 0, 10:30, 18:38] = -8.0
    mask = occlusion(forward, backward)
    assert mask.shape == (1, 40, 60)
    expected = torch.zeros(40, 60, dtype=torch.bool)
    expected[10:30, 30:38] = True
    assert torch.equal(mask[0], expected)


def test_what_leaves_the_picture_is_occluded():
    forward, backward = torch.zeros(2, 1, 2, 20, 30)
    forward[:, 0], backward[:, 0] = 5.0, -5.0
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[:, 25:] = True
    assert torch.equal(occlusion(forward, backward)[0], expected)
    forward[:, 0], backward[:, 0] = 0.0, 0.0
    forward[:, 1], backward[:, 1] = -3.0, 3.0
    assert occlusion(forward, backward)[0].nonzero()[:, 0].unique().tolist() == [0, 1, 2]


def test_small_contradictions_are_allowed():
    forward = torch.zeros(1, 2, 20, 20)
    assert not occlusion(forward, torch.full((1, 2, 20, 20), 0.49)).any()  # |f + b|^2 = 0.48
    assert occlusion(forward, torch.full((1, 2, 20, 20), 0.52)).all()  # 0.54 > 0.5 + 0.01 * 0.54
