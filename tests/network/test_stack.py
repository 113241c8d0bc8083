from __future__ import annotations

import pytest
import torch

from tvnet_cli.network.stack import prepare_rgb, stack_flow


def five_fields() -> torch.Tensor:
    """Two clips; field i has x = i and y = -i, the second clip 100 more."""
    field = torch.arange(5.0)
    clip = torch.stack((field, -field), 1)
    return torch.cat((clip, clip + 100))[..., None, None].expand(-1, -1, 2, 3)


def test_a_stack_is_x0_y0_x1_y1():
    stack = stack_flow(five_fields(), scale=1, clip_pixels=1000)
    assert stack.shape == (2, 10, 2, 3)
    assert stack[0, :, 0, 0].tolist() == [0, 0, 1, -1, 2, -2, 3, -3, 4, -4]
    assert stack[1, 2:4, 0, 0].tolist() == [101, 99]


def test_a_grouped_stack_has_all_x_first():
    stack = stack_flow(five_fields(), scale=1, clip_pixels=1000, order="grouped")
    assert stack[0, :, 1, 2].tolist() == [0, 1, 2, 3, 4, 0, -1, -2, -3, -4]


def test_flow_is_clipped_then_scaled_and_zero_stays_zero():
    stack = stack_flow(five_fields(), scale=6.375, clip_pixels=2)
    assert stack[0, :, 0, 0].tolist() == [0, 0, 6.375, -6.375, *[12.75, -12.75] * 3]


def test_fields_that_do_not_make_clips_are_refused():
    with pytest.raises(ValueError, match="9 flow fields do not make clips of 5"):
        stack_flow(torch.zeros(9, 2, 4, 4), 1, 20)


def test_rgb_means_come_off_in_the_order_of_the_card():
    frame = torch.tensor([200.0, 150.0, 100.0]).view(1, 3, 1, 1)
    assert prepare_rgb(frame, (104, 117, 123), "BGR").flatten().tolist() == [-4, 33, 77]
    assert prepare_rgb(frame, (123, 117, 104), "RGB").flatten().tolist() == [77, 33, -4]
