from __future__ import annotations

import numpy as np
import torch

from tvnet_cli.flow.operators import leads_inside, warp
from tvnet_cli.training.drawn import drawn_pair


def test_a_pair_depends_on_its_numbers_alone():
    first = drawn_pair(3, 5, 48)
    drawn_pair(3, 6, 48)
    for a, b in zip(first, drawn_pair(3, 5, 48), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.first, drawn_pair(4, 5, 48).first)
    assert first.first.shape == first.second.shape == (48, 48, 3)
    assert first.first.dtype == np.uint8
    assert first.truth.shape == (2, 48, 48)
    assert first.truth.dtype == np.float32


def test_the_second_frame_looks_like_the_first_where_the_flow_leads():
    better = []
    for index in range(20):
        pair = drawn_pair(0, index, 96)
        first, second = (torch.from_numpy(f).movedim(-1, 0)[None].float() for f in (pair.first, pair.second))
        flow = torch.from_numpy(pair.truth)[None]
        inside = leads_inside(flow)[:, 0]
        warped = (warp(second, flow) - first).abs().mean(1)[inside].median()
        opposite = (warp(second, -flow) - first).abs().mean(1)[inside].median()
        better.append(float(warped / opposite))
    assert np.mean(better) < 0.5
    assert max(better) < 1


def test_motions_are_slow_and_fast_and_go_in_all_directions():
    fields = np.stack([drawn_pair(1, index, 32).truth for index in range(300)])
    lengths = np.hypot(fields[:, 0], fields[:, 1]).mean((1, 2))
    assert np.quantile(lengths, 0.1) < 1
    assert np.quantile(lengths, 0.9) > 5
    assert lengths.max() < 20
    centres = fields[..., 16, 16]
    assert np.abs(centres.mean(0)).max() < 0.7
    assert {(x > 0, y > 0) for x, y in centres} == {(a, b) for a in (True, False) for b in (True, False)}
