from __future__ import annotations

import math

import cv2
import numpy as np
import numpy_tvl1
import pytest
import torch

from tvnet_cli.flow.operators import (
    EPSILON,
    centered_gradient,
    divergence,
    dual_denominator,
    dual_step,
    edge_cost,
    forward_gradient,
    grey,
    inverse_squared_gradient,
    leads_inside,
    median_filter,
    resize,
    resize_flow,
    smooth,
    stretch_range,
    warp,
    warp_with_gradient,
)

PLAIN = torch.tensor([-1.0, 1.0]).expand(2, 2, 2)


def test_grey_is_the_floor_of_the_exact_sum_for_any_colour():
    colours = torch.randint(0, 256, (1, 3, 500, 1000))
    red, green, blue = colours.unbind(1)
    exact = (299 * red + 587 * green + 114 * blue) // 1000
    assert torch.equal(grey(colours.float())[:, 0], exact.float())


def test_grey_of_one_channel_is_that_of_three_equal_ones():
    level = torch.rand(2, 1, 5, 7) * 255
    assert torch.equal(grey(level), grey(level.expand(-1, 3, -1, -1)).round())
    assert torch.equal(grey(level), level.floor())


def test_the_gradient_passes_straight_through_the_floor():
    frames = (torch.rand(1, 3, 4, 4) * 255).requires_grad_()
    grey(frames).sum().backward()
    assert frames.grad is not None
    torch.testing.assert_close(frames.grad[0, :, 0, 0], torch.tensor([0.299, 0.587, 0.114]))


def test_stretch_range_is_joint_for_the_pair_and_apart_for_each_sample():
    first = torch.tensor([[10.0, 20.0], [0.0, 255.0]]).view(2, 1, 1, 2)
    second = torch.tensor([[20.0, 30.0], [0.0, 51.0]]).view(2, 1, 1, 2)
    a, b = stretch_range(first, second)
    assert a.flatten().tolist() == [0, 127.5, 0, 255]
    assert b.flatten().tolist() == [127.5, 255, 0, 51]


def test_stretch_range_leaves_a_pair_of_one_level_and_its_gradients_alone():
    level = torch.full((1, 1, 3, 3), 7.0, requires_grad=True)
    a, b = stretch_range(level, level)
    (a + b).sum().backward()
    assert torch.equal(a.detach(), level.detach())
    assert torch.equal(level.grad, torch.full_like(level, 2))


@pytest.mark.parametrize("sigma", [0.4, 0.5, 1.3])
def test_smoothing_by_a_number_is_the_gaussian_filter_with_repeated_borders(sigma):
    image = torch.rand(2, 1, 23, 31) * 255
    size = 2 * math.ceil(3 * sigma) + 1
    for smoothed, original in zip(smooth(image, sigma), image, strict=True):
        theirs = cv2.GaussianBlur(original[0].numpy(), (size, size), sigma, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(smoothed[0], theirs, atol=1e-3)


def test_smoothing_by_nothing_changes_nothing():
    image = torch.rand(1, 1, 9, 11)
    assert torch.equal(smooth(image, 0), image)


def test_smoothing_keeps_a_level_inside_and_darkens_a_rim_of_two_pixels():
    smoothed = smooth(torch.full((1, 1, 9, 11), 100.0))[0, 0]
    torch.testing.assert_close(smoothed[2:-2, 2:-2], torch.full((5, 7), 100.0001), rtol=0, atol=1e-3)
    assert smoothed[0, 5] < smoothed[1, 5] < 100
    assert smoothed[0, 0] < smoothed[0, 5]


def test_a_ramp_in_x_has_gradient_one_zero_and_half_of_it_at_the_border():
    ramp = torch.arange(6.0).expand(1, 1, 4, 6)
    gradient = centered_gradient(ramp)[0]
    assert gradient[0, 0].tolist() == [0.5, 1, 1, 1, 1, 0.5]
    assert not gradient[1].any()


def test_the_forward_gradient_ends_with_zeros():
    u = torch.arange(12.0).view(1, 1, 3, 4).expand(-1, 2, -1, -1)
    u_x, u_y = forward_gradient(u, PLAIN)
    assert u_x[0, 1].tolist() == [[1, 1, 1, 0]] * 3
    assert u_y[0, 0].tolist() == [[4] * 4, [4] * 4, [0] * 4]


def test_divergence_is_the_negative_adjoint_of_the_gradient():
    u, p_x, p_y = torch.rand(3, 2, 2, 7, 9, dtype=torch.float64).unbind(0)
    u_x, u_y = forward_gradient(u, PLAIN.double())
    torch.testing.assert_close((u_x * p_x + u_y * p_y).sum(), -(u * divergence(p_x, p_y, PLAIN.double())).sum())


def test_each_component_and_axis_has_kernels_of_its_own():
    kernels = torch.randn(2, 2, 2)
    u, p_x, p_y = torch.randn(3, 1, 2, 5, 6).unbind(0)
    got = torch.stack(forward_gradient(u, kernels), 2)[0]
    for d in (0, 1):
        np.testing.assert_allclose(got[d], numpy_tvl1.gradient(u[0, d].numpy(), kernels[d].numpy()), atol=1e-6)
        expected = numpy_tvl1.divergence(torch.stack((p_x, p_y), 2)[0, d].numpy(), kernels[d].numpy())
        np.testing.assert_allclose(divergence(p_x, p_y, kernels)[0, d], expected, atol=1e-6)


def test_warping_by_whole_pixels_shifts_and_repeats_the_border():
    image = torch.rand(1, 2, 5, 8)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(-1, -1, 5, 8)
    warped = warp(image, flow, "exact")
    torch.testing.assert_close(warped[..., 1:, :-2], image[..., :-1, 2:])
    torch.testing.assert_close(warped[..., 0, :-2], image[..., 0, 2:])
    torch.testing.assert_close(warped[..., 1:, -1], image[..., :-1, -1])


def test_the_authors_sampler_equals_its_description_everywhere():
    image, flow = torch.rand(1, 1, 9, 13) * 255, 8 * torch.randn(1, 2, 9, 13)
    expected = numpy_tvl1.warp(image[0, 0].numpy(), flow[0].numpy())
    np.testing.assert_allclose(warp(image, flow, "authors")[0, 0], expected, rtol=1e-5, atol=2e-3)


def test_the_authors_sampler_reads_zero_left_and_extrapolates_right():
    ramp = torch.arange(10.0, 50, 10).expand(1, 1, 2, 4)
    flow = torch.zeros(1, 2, 2, 4)
    flow[0, 0, 0] = torch.tensor([-1e-3, -2.0, 0, 4.0])
    row = warp(ramp, flow, "authors")[0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([0, 0, 30, 70.0]))
    flow[0, 0, 0, 0] = -1e-9  # lost in the rounding of the grid, so still inside
    assert warp(ramp, flow, "authors")[0, 0, 0, 0] == 10


def test_a_huge_flow_is_finite_and_so_is_its_gradient():
    flow = torch.full((1, 2, 4, 5), 1e12, requires_grad=True)
    warped = warp(torch.rand(1, 1, 4, 5), flow, "exact")
    warped.sum().backward()
    assert torch.isfinite(warped).all()
    assert torch.isfinite(flow.grad).all()


@pytest.mark.parametrize("shape", [(1, 2, 4, 6), (2, 2, 4, 5), (1, 1, 4, 5)])
def test_warp_refuses_shapes_that_do_not_fit_and_names_both(shape):
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 5\).*" + str(shape).replace("(", r"\(").replace(")", r"\)")):
        warp(torch.rand(1, 1, 4, 5), torch.zeros(shape))


def test_resizing_keeps_the_corners_and_a_flow_its_meaning():
    assert resize(torch.arange(3.0).expand(1, 1, 2, 3), (2, 5))[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2]
    # A flow that leads from the left corner to the right one, and from the top to the bottom, still does.
    flow = resize_flow(torch.tensor([10.0, 4.0]).view(1, 2, 1, 1).expand(-1, -1, 5, 11), (17, 31))
    torch.testing.assert_close(flow, torch.tensor([30.0, 16.0]).view(1, 2, 1, 1).expand(-1, -1, 17, 31))


def test_flat_places_have_inverse_zero_and_finite_gradients():
    gradient = torch.tensor([[0.0, 1e-7, 2.0], [0.0, 0.0, 0.0]]).view(1, 2, 1, 3).requires_grad_()
    inverse = inverse_squared_gradient(gradient)
    inverse.sum().backward()
    assert inverse.flatten()[0] == 0
    assert inverse.flatten()[2] == 0.25
    assert torch.isfinite(gradient.grad).all()


def test_the_gradient_of_the_dual_update_is_equation_2_of_the_supplement():
    # d p'_d / d grad u_d1 = a - b / |grad u|, the derivative of the first axis' update.
    step = 0.25 / 0.3
    p, u_x, u_y = torch.randn(3, 2, 2, 6, 5, dtype=torch.float64).unbind(0)
    u_x[0, 0, 0, 0] = u_y[0, 0, 0, 0] = 0  # where epsilon alone keeps it finite
    u_x.requires_grad_()
    dual_step(p, u_x, dual_denominator(u_x, u_y, step), step).sum().backward()
    norm = (u_x.detach() ** 2 + u_y**2 + EPSILON).sqrt()
    a = step / (1 + step * norm)
    b = step * u_x.detach() * (p + step * u_x.detach()) / (1 + step * norm) ** 2
    torch.testing.assert_close(u_x.grad, a - b / norm, rtol=1e-12, atol=1e-12)


def test_the_bicubic_sampler_is_cubic_convolution_with_repeated_borders():
    image, flow = torch.rand(2, 3, 7, 9), 3 * torch.randn(2, 2, 7, 9)

    def weight(distance: float) -> float:  # Keys 1981, a = -1/2
        d = abs(distance)
        return 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0

    expected = np.zeros(image.shape)
    for b, i, j in np.ndindex(2, 7, 9):
        x = min(max(j + float(flow[b, 0, i, j]), 0), 8)
        y = min(max(i + float(flow[b, 1, i, j]), 0), 6)
        for m, n in np.ndindex(11, 13):  # two more rows and columns on each side
            row, column = min(max(m - 2, 0), 6), min(max(n - 2, 0), 8)
            expected[b, :, i, j] += weight(m - 2 - y) * weight(n - 2 - x) * image[b, :, row, column].numpy()
    np.testing.assert_allclose(warp(image, flow, "bicubic"), expected, atol=1e-5)


def test_the_bicubic_sampler_reads_a_parabola_exactly():
    x, y = torch.arange(12.0), torch.arange(10.0)[:, None]
    flow = torch.tensor([0.3, -0.6]).view(1, 2, 1, 1).expand(-1, -1, 10, 12)
    warped = warp((x * x - 2 * y * y + x * y)[None, None], flow, "bicubic")[0, 0]
    expected = (x + 0.3) ** 2 - 2 * (y - 0.6) ** 2 + (x + 0.3) * (y - 0.6)
    torch.testing.assert_close(warped[3:-2, 2:-3], expected[3:-2, 2:-3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["authors", "exact", "bicubic"])
def test_the_gradient_comes_with_the_warped_image(sampler):
    ramp = 3 * torch.arange(8.0).expand(1, 1, 6, 8)
    flow = torch.full((1, 2, 6, 8), 0.5)
    warped, gradient = warp_with_gradient(ramp, flow, sampler)
    assert torch.equal(warped, warp(ramp, flow, sampler))
    torch.testing.assert_close(gradient[0, :, 2:4, 2:5], torch.tensor([3.0, 0]).view(2, 1, 1).expand(-1, 2, 3))


def test_the_bicubic_sampler_differentiates_what_it_read():
    ramp = 3 * torch.arange(12.0).expand(1, 1, 6, 12)
    stretch = torch.zeros(1, 2, 6, 12)
    stretch[:, 0] = torch.arange(12.0) / 5 - 1  # the warped ramp is 1.2 times as steep
    for sampler, slope in (("exact", 3.0), ("bicubic", 3.6)):
        gradient = warp_with_gradient(ramp, stretch, sampler)[1]
        torch.testing.assert_close(gradient[0, 0, 2:4, 4:8], torch.full((2, 4), slope))


def test_a_flow_leads_inside_up_to_the_border_pixels():
    flow = torch.zeros(1, 2, 3, 4)
    flow[0, 0, 0] = torch.tensor([-0.1, 2, 1, 0.1])
    flow[0, 1, 2] = torch.tensor([0, 0.1, -2, -2.1])
    assert leads_inside(flow)[0, 0].tolist() == [[False, True, True, False], [True] * 4, [True, False, True, False]]


@pytest.mark.parametrize("size", [3, 5, 7])
def test_the_median_filter_equals_the_median_of_each_window(size):
    field = torch.rand(2, 2, 9, 12).round(decimals=1)  # with equal values in it
    padded = np.pad(field.numpy(), ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2), mode="edge")
    expected = np.median(np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3)), (-2, -1))
    assert np.array_equal(median_filter(field, size), expected)
    if size in (3, 5):
        assert np.array_equal(median_filter(field, size)[1, 0], cv2.medianBlur(field[1, 0].numpy(), size))


def test_the_gradient_of_a_median_goes_to_the_middle_value():
    field = torch.randperm(9).float().view(1, 1, 3, 3).requires_grad_()
    median_filter(field, 3)[0, 0, 1, 1].backward()
    assert torch.equal(field.grad, (field == 4).float())


def test_antialiasing_averages_what_a_smaller_picture_drops():
    stripes = 100.0 * (torch.arange(81) % 2).expand(1, 1, 81, 81)
    assert resize(stripes, (41, 41)).std() == 0  # every other pixel: a false flat picture
    assert resize(stripes, (33, 33)).std() > 30
    inside = resize(stripes, (33, 33), antialias=True)[..., 2:-2, 2:-2]
    assert (inside - 50).abs().max() < 15


@pytest.mark.parametrize("size", [(33, 50), (90, 121)])
def test_antialiased_resizing_keeps_every_place_and_a_flow_its_meaning(size):
    x = torch.arange(81.0).expand(1, 1, 60, 81)
    got = resize(x, size, antialias=True)[0, 0, :, 3:-3]
    expected = (torch.arange(size[1]) + 0.5) * 81 / size[1] - 0.5  # pixel centres, the left edge at -1/2
    torch.testing.assert_close(got, expected[3:-3].expand(size[0], -1), rtol=0, atol=0.1)
    flow = torch.tensor([81.0, 60.0]).view(1, 2, 1, 1).expand(-1, -1, 60, 81)  # from side to side
    moved = torch.tensor([size[1], size[0]]).float().view(1, 2, 1, 1).expand(-1, -1, *size)
    torch.testing.assert_close(resize_flow(flow, size, antialias=True), moved)


def test_the_flow_bends_more_cheaply_at_edges():
    image = torch.zeros(1, 1, 4, 8)
    image[..., 4:] = 255
    image[0, 0, 2:, 0] = 51
    cost = edge_cost(image, 10.0)[0, 0]
    torch.testing.assert_close(cost[1, 3:5], torch.full((2,), float(np.exp(-5))))
    torch.testing.assert_close(cost[3, 0], torch.exp(torch.tensor(-1.0)))
    torch.testing.assert_close(cost[1, 1:3], torch.ones(2))


def test_a_constant_picture_has_finite_gradients_of_its_edge_cost():
    image = torch.full((1, 1, 4, 5), 9.0, requires_grad=True)
    edge_cost(image, 4.0).sum().backward()
    assert torch.isfinite(image.grad).all()
