from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import numpy_tvl1
import pytest
import torch
from torch import Tensor

import tvnet_cli
from tvnet_cli import TVNet
from tvnet_cli.flow.operators import resize_flow
from tvnet_cli.flow.tvnet import pyramid_sizes
from tvnet_cli.options import PRESETS, TVNetOptions


def textured_pair(height: int, width: int, dx: float, dy: float, channels: int = 3) -> tuple[Tensor, Tensor]:
    """A pattern of smooth waves and the same moved right by dx and down by dy pixels, whole levels 0..255."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    first, second = torch.zeros(2, channels, height, width)
    for _ in range(30):
        fx, fy, start = (torch.rand(3, generator=generator) - 0.5).tolist()
        strength = torch.rand(channels, 1, 1, generator=generator)
        first += strength * torch.cos(fx * x + fy * y + 6 * start)
        second += strength * torch.cos(fx * (x - dx) + fy * (y - dy) + 6 * start)
    return tuple((128 + 18 * image).round().clamp(0, 255).unsqueeze(0) for image in (first, second))


def random_kernels(net: TVNet, spread: float = 0.1) -> TVNet:
    with torch.no_grad():
        net.gradient_kernels.add_(spread * torch.randn_like(net.gradient_kernels))
        net.divergence_kernels.add_(spread * torch.randn_like(net.divergence_kernels))
    return net


def test_the_flow_equals_that_of_the_authors_code(shared_data):
    golden = np.load(shared_data / "tvnet_golden" / "sample240_s1w1i50.npz")
    first, second = (torch.from_numpy(golden[name]).permute(0, 3, 1, 2) for name in ("img1_rgb", "img2_rgb"))
    with torch.inference_mode():
        flow = TVNet()(first, second).numpy()
    difference = np.abs(flow - np.stack([golden["u1"], golden["u2"]], 1))
    assert difference.mean() < 1e-5
    assert difference.max() < 2e-3


@pytest.mark.parametrize(
    ("height", "width", "scales", "warps", "iterations", "trained"),
    [(24, 33, 1, 1, 50, False), (30, 41, 3, 2, 8, False), (37, 26, 2, 3, 5, True), (28, 40, 9, 1, 4, True)],
)
def test_every_schedule_equals_a_second_implementation(height, width, scales, warps, iterations, trained):
    first, second = textured_pair(height, width, 1.3, -0.7)
    net = TVNet(scales, warps, iterations, u0_size=pyramid_sizes(height, width, scales, 0.5)[-1])
    if trained:
        random_kernels(net)
        with torch.no_grad():
            net.u0.normal_(0, 0.2)
    pair = (image[0].permute(1, 2, 0).numpy().astype(np.uint8) for image in (first, second))
    kernels = (net.gradient_kernels.detach().numpy(), net.divergence_kernels.detach().numpy())
    expected = numpy_tvl1.flow(*pair, scales, warps, iterations, kernels, net.u0[0].detach().numpy())
    with torch.inference_mode():
        flow = net(first, second)[0].numpy()
    assert np.abs(expected).max() > 0.3
    assert np.abs(flow - expected).mean() < 1e-5
    assert np.abs(flow - expected).max() < 2e-3


def test_the_solver_equals_opencv_dual_tvl1_at_equal_work():
    first, second = textured_pair(61, 83, 0.8, -0.5, channels=1)
    solver = cv2.optflow.DualTVL1OpticalFlow_create(
        tau=0.25, lambda_=0.15, theta=0.3, nscales=1, warps=1, epsilon=0.0, innnerIterations=50, outerIterations=1
    )
    solver.setMedianFiltering(1)
    expected = solver.calc(first[0, 0].numpy().astype(np.uint8), second[0, 0].numpy().astype(np.uint8), None)
    with torch.inference_mode():
        flow = TVNet().solve(first, second)[0].permute(1, 2, 0).numpy()
    assert np.abs(expected).max() > 0.3
    assert np.abs(flow - expected).max() < 1e-3


@pytest.mark.parametrize("sampler", ["authors", "exact"])
def test_a_pattern_moved_right_and_up_has_positive_x_and_negative_y(sampler):
    first, second = textured_pair(72, 100, 3, -1)
    net = TVNet(num_scales=4, num_warps=5, num_iterations=30, sampler=sampler)
    with torch.inference_mode():
        flow = net(first, second)[..., 8:-8, 8:-8]
    truth = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
    assert (flow - truth).norm(dim=1).mean() < 0.1


def test_the_exact_sampler_is_closer_to_the_truth():
    first, second = textured_pair(72, 100, 4, 2)
    truth = torch.tensor([4.0, 2.0]).view(1, 2, 1, 1)

    def error(sampler: str) -> float:
        with torch.inference_mode():
            flow = TVNet(4, 5, 30, sampler=sampler)(first, second)[..., 10:-10, 10:-10]
        return float((flow - truth).norm(dim=1).mean())

    assert error("exact") < 0.8 * error("authors")


def test_equal_frames_and_constant_frames_have_no_flow():
    first, _ = textured_pair(32, 40, 0, 0)
    for frame in (first, torch.full_like(first, 99)):
        with torch.inference_mode():
            assert TVNet(2, 2, 20)(frame, frame).abs().max() < 1e-5


def test_pairs_in_a_batch_give_what_they_give_alone():
    pairs = [textured_pair(20, 31, dx, 0.5) for dx in (-1, 0, 2)]
    net = random_kernels(TVNet(2, 2, 10))
    with torch.inference_mode():
        together = net(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))
        alone = torch.cat([net(a, b) for a, b in pairs])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("size", [(16, 16), (17, 200), (333, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_from_16_pixels_on_works_with_many_scales(size, channels):
    first, second = textured_pair(*size, 1, 0, channels)
    with torch.inference_mode():
        flow = TVNet(num_scales=20, num_warps=1, num_iterations=3)(first, second)
    assert flow.shape == (1, 2, *size)
    assert torch.isfinite(flow).all()


def test_whole_number_frames_of_any_type_are_taken():
    first, second = textured_pair(20, 24, 1, 0)
    net = TVNet(num_iterations=5)
    with torch.inference_mode():
        assert torch.equal(net(first.byte(), second.byte()), net(first, second))
        assert torch.equal(net(first.double(), second.half()), net(first, second))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((1, 3, 20, 20), (1, 3, 20, 21), "differ in shape"),
        ((3, 20, 20), (3, 20, 20), "must be"),
        ((1, 2, 20, 20), (1, 2, 20, 20), "must be"),
        ((1, 3, 15, 20), (1, 3, 15, 20), "at least 16 x 16"),
    ],
)
def test_frames_that_do_not_fit_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        TVNet()(torch.zeros(first), torch.zeros(second))


def test_options_out_of_range_are_refused_by_name():
    wrong = {"num_scales": 0, "tau": -1, "theta": math.nan, "zoom_factor": 1, "sampler": "best"}
    wrong |= {"antialias": 1, "coarsest_side": 2, "median_size": 4, "edge_weight": -1}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            TVNet(**{name: value})


def test_tvnet_50_has_the_parameters_of_the_paper():
    net = TVNet(u0_size=(240, 240))
    assert sum(parameter.numel() for parameter in net.parameters()) == 116_000
    assert net.gradient_kernels.numel() + net.divergence_kernels.numel() == 800
    assert net.options == TVNetOptions()


def test_the_pyramid_is_that_of_the_authors_and_never_too_small():
    assert pyramid_sizes(240, 320, 5, 0.5) == [(240, 320), (120, 160), (60, 80), (30, 40), (15, 20)]
    assert pyramid_sizes(20, 24, 5, 0.5) == [(20, 24), (10, 12), (5, 6)]
    assert pyramid_sizes(16, 2000, 20, 0.5) == [(16, 2000), (8, 1000), (4, 500)]
    assert pyramid_sizes(16, 2000, 20, 0.5, coarsest_side=8) == [(16, 2000), (8, 1000)]


def test_a_start_field_of_one_size_serves_any_size():
    net = TVNet(num_scales=2, num_iterations=1, u0_size=(12, 20))
    with torch.no_grad():
        net.u0[:, 0], net.u0[:, 1] = 1.9, -1.1
    frame = torch.full((1, 1, 46, 78), 50.0)  # no data term, and a constant field has no total variation
    with torch.inference_mode():
        flow = net(frame, frame)
    # Coarsest level 23 x 39: corners are 38/19 and 22/11 as far apart as stored; then twice that by the zoom.
    torch.testing.assert_close(flow[0, :, 20, 30], torch.tensor([1.9 * 2 * 2, -1.1 * 2 * 2]))


def test_gradients_equal_finite_differences():
    first, second = (image.double() for image in textured_pair(16, 17, 0.4, -0.3, channels=1))
    net = random_kernels(TVNet(2, 2, 2, u0_size=(16, 17)).double())
    with torch.no_grad():
        net.u0.normal_(0, 0.1)
    net.requires_grad_(False)

    def flow(first: Tensor, u0: Tensor, gradient_kernels: Tensor, divergence_kernels: Tensor) -> Tensor:
        changed = {"u0": u0, "gradient_kernels": gradient_kernels, "divergence_kernels": divergence_kernels}
        return torch.func.functional_call(_Solve(net), {f"net.{key}": value for key, value in changed.items()}, first)

    class _Solve(torch.nn.Module):
        def __init__(self, net: TVNet) -> None:
            super().__init__()
            self.net = net

        def forward(self, first: Tensor) -> Tensor:
            return self.net.solve(first, second)

    inputs = [
        tensor.detach().clone().requires_grad_()
        for tensor in (first, net.u0, net.gradient_kernels, net.divergence_kernels)
    ]
    assert torch.autograd.gradcheck(flow, inputs, eps=1e-7, atol=1e-3, rtol=1e-3, fast_mode=True)


def test_gradients_reach_frames_kernels_and_start_field():
    first, second = (image.requires_grad_() for image in textured_pair(24, 30, 1, 0))
    net = TVNet(num_scales=2, num_warps=2, num_iterations=3)
    net(first, second).square().sum().backward()
    assert first.grad.abs().max() > 0
    assert second.grad.abs().max() > 0
    assert net.u0.grad.abs().max() > 0
    used = net.gradient_kernels.grad.abs().amax((-3, -2, -1)) > 0
    # Nobody reads what the last gradient of a level is for, and the first divergence of a level is that of zeros.
    assert used.tolist() == [[[True] * 3, [True, True, False]]] * 2
    used = net.divergence_kernels.grad.abs().amax((-3, -2, -1)) > 0
    assert used.tolist() == [[[False, True, True], [True] * 3]] * 2


@pytest.mark.parametrize("sampler", ["authors", "exact"])
def test_gradients_are_never_nan_even_on_constant_frames(sampler):
    for level in (0.0, 128.0):
        frame = torch.full((2, 3, 16, 20), level, requires_grad=True)
        net = TVNet(2, 2, 5, sampler=sampler)
        (net(frame, frame + 1).sum() + net(frame, frame).sum()).backward()
        assert torch.isfinite(frame.grad).all()
        for parameter in net.parameters():
            assert torch.isfinite(parameter.grad).all()


def test_training_the_kernels_lowers_the_error():
    first, second = textured_pair(24, 32, 1.0, 0.5)
    truth = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
    net = TVNet(num_iterations=8)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    errors = []
    for _ in range(30):
        optimizer.zero_grad()
        error = ((net(first, second) - truth).square().sum(1) + 1e-6).sqrt().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]


def test_a_state_dict_goes_round():
    net = random_kernels(TVNet(num_iterations=4, u0_size=(20, 20)))
    other = TVNet(num_iterations=4, u0_size=(20, 20))
    other.load_state_dict(net.state_dict())
    first, second = textured_pair(20, 20, 1, 0)
    with torch.inference_mode():
        assert torch.equal(net(first, second), other(first, second))


def test_importing_the_package_imports_no_torch():
    code = "import sys, tvnet_cli; assert 'torch' not in sys.modules; tvnet_cli.TVNet; assert 'torch' in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    with pytest.raises(AttributeError, match="no attribute 'TVNet2'"):
        _ = tvnet_cli.TVNet2


def all_helpers(**changes: object) -> TVNet:
    """The classic method on a small schedule, all of its helpers in use."""
    small = {"num_scales": 3, "num_warps": 2, "num_iterations": 4, "median_size": 3}
    return TVNet.from_options(replace(PRESETS["tv-l1"], **{**small, **changes}))


def test_the_classic_preset_is_close_to_the_truth_of_real_pairs(shared_data):
    net = TVNet.from_options(PRESETS["tv-l1"])
    errors = []
    for name in ("Dimetrodon", "RubberWhale", "Venus"):
        folder = shared_data / "flow_gt" / f"middlebury_{name}"
        frames = (cv2.imread(str(folder / f"frame{number}.png"))[..., ::-1].copy() for number in (10, 11))
        truth = torch.from_numpy(cv2.readOpticalFlow(str(folder / "flow10.flo"))).permute(2, 0, 1)
        with torch.inference_mode():
            flow = net(*(torch.from_numpy(frame).permute(2, 0, 1)[None] for frame in frames))[0]
        error = (flow - truth).norm(dim=0)[truth.abs().amax(0) < 1e9]
        errors.append(float(error.mean()))
    assert np.mean(errors) < 0.178, errors
    assert errors[2] < 0.25, errors


def test_the_presets_of_the_paper_differ_in_their_iterations_alone():
    for number in (10, 30, 50):
        assert PRESETS[f"tvnet-{number}"] == TVNetOptions(num_iterations=number)


@pytest.mark.parametrize(("dx", "dy"), [(9, 4), (-0.4, 0.3)])
def test_the_classic_preset_follows_large_and_small_motion_up_to_the_border(dx, dy):
    first, second = textured_pair(72, 100, dx, dy)
    with torch.inference_mode():
        flow = TVNet.from_options(PRESETS["tv-l1"])(first, second)
    assert (flow - torch.tensor([dx, dy]).view(1, 2, 1, 1)).norm(dim=1).mean() < 0.05


def test_each_helper_changes_the_flow():
    first, second = textured_pair(40, 52, 2.3, -1.2)
    off = {"presmoothing": 0, "antialias": False, "ignore_outside": False}
    off |= {"median_size": 0, "edge_weight": 0.0, "sampler": "exact"}
    with torch.inference_mode():
        flow = all_helpers()(first, second)
        for name, value in off.items():
            assert (all_helpers(**{name: value})(first, second) - flow).abs().mean() > 1e-3, name


def test_no_data_term_acts_where_the_flow_leaves_the_frame():
    # A flow that leaves the frame at once and has no variation stays what it is, whatever the frames hold.
    first, second = (torch.rand(1, 1, 20, 24) * 255 for _ in range(2))
    for ignore_outside in (True, False):
        net = all_helpers(num_scales=1, num_warps=1, sampler="exact", ignore_outside=ignore_outside)
        with torch.no_grad():
            net.u0.fill_(1.0)
            start = net.u0[..., :1, :1] * torch.tensor([23 / 223, 19 / 223]).view(1, 2, 1, 1)
            net.u0.mul_(1000 / start.amin())
        with torch.inference_mode():
            moved = (net.solve(first, second) - resize_flow(net.u0, (20, 24), antialias=True)).abs().max()
        assert (moved < 1e-2) == ignore_outside


def test_the_last_of_all_scales_is_the_flow_and_the_others_are_its_pyramid():
    first, second = textured_pair(60, 81, 4, 2)
    net = TVNet.from_options(PRESETS["tv-l1"])
    with torch.inference_mode():
        flows = net.flow_scales(first, second)
        assert torch.equal(flows[-1], net(first, second))
    assert [tuple(flow.shape[-2:]) for flow in reversed(flows)] == pyramid_sizes(60, 81, 20, 0.7, 8)
    for flow in flows[4:]:  # in pixels of their own scale
        truth = torch.tensor([4 * flow.shape[3] / 81, 2 * flow.shape[2] / 60]).view(1, 2, 1, 1)
        assert (flow - truth).norm(dim=1).mean() < 0.1


def test_equal_frames_and_constant_frames_have_no_flow_by_the_classic_preset():
    first, _ = textured_pair(33, 40, 0, 0)
    net = TVNet.from_options(PRESETS["tv-l1"])
    for frame in (first, torch.full_like(first, 99), torch.zeros_like(first)):
        with torch.inference_mode():
            assert net(frame, frame).abs().max() < 1e-5
            assert torch.isfinite(net(first, frame)).all()


@pytest.mark.parametrize("size", [(16, 16), (17, 200), (333, 16)])
def test_the_classic_preset_takes_any_size_from_16_pixels_on(size):
    first, second = textured_pair(*size, 1, 0)
    with torch.inference_mode():
        flow = all_helpers(num_scales=16)(first, second)
    assert flow.shape == (1, 2, *size)
    assert torch.isfinite(flow).all()


def test_the_helpers_give_the_same_for_any_batch_and_any_number_of_threads():
    pairs = [textured_pair(150, 131, dx, 0.5) for dx in (-1, 0, 2)]
    net = random_kernels(all_helpers())
    first, second = (torch.cat(frames) for frames in zip(*pairs, strict=True))
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(1)
            alone = torch.cat([net(a, b) for a, b in pairs])
            torch.set_num_threads(4)
            together = net(first, second)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, alone)


def test_gradients_pass_through_every_helper():
    first, second = (image.requires_grad_() for image in textured_pair(24, 30, 1, 0))
    net = all_helpers()
    net(first, second).square().sum().backward()
    for tensor in (first, second, net.gradient_kernels, net.divergence_kernels, net.u0):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().max() > 0


def test_gradients_of_the_helpers_equal_finite_differences():
    first, second = (image.double() for image in textured_pair(16, 17, 0.4, -0.3, channels=1))
    net = random_kernels(all_helpers(num_scales=2, num_iterations=2)).double().requires_grad_(False)
    inputs = [image.requires_grad_() for image in (first, second)]
    assert torch.autograd.gradcheck(net.solve, inputs, eps=1e-7, atol=1e-3, rtol=1e-3, fast_mode=True)


def test_options_written_before_the_helpers_still_mean_the_same():
    old = {"num_scales": 2, "num_warps": 3, "num_iterations": 5, "zoom_factor": 0.5, "tau": 0.25}
    old |= {"lambda_": 0.15, "theta": 0.3, "sampler": "exact"}
    assert vars(TVNetOptions(**old)).items() >= old.items()
    assert TVNetOptions(**old) == TVNet(2, 3, 5, sampler="exact").options
