from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tvnet_cli import TVNet, optical_flow
from tvnet_cli.flow.tvnet import check_range

LEVELS = torch.randint(0, 256, (1, 3, 24, 32), generator=torch.Generator().manual_seed(0)).float()
MOVED = LEVELS.roll(1, -1)
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def flow_of(*frames: Tensor, **options: float) -> Tensor:
    return TVNet(num_iterations=3, **options)(*frames).detach()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_frames_within_0_and_1_are_an_error_that_says_what_to_do(dtype: torch.dtype):
    with pytest.raises(
        ValueError, match=r"within 0..1, expected 0..255: multiply the frames by 255, or.*input_range=1.0"
    ):
        flow_of((LEVELS / 255).to(dtype), (MOVED / 255).to(dtype))


def test_frames_normalised_as_for_image_networks_are_an_error():
    with pytest.raises(ValueError, match=r"negative levels.*undo their normalisation"):
        flow_of(*((frame / 255 - MEAN) / DEVIATION for frame in (LEVELS, MOVED)))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinite_levels_are_an_error(wrong: float):
    spoilt = MOVED.clone()
    spoilt[0, 1, 3, 4] = wrong
    with pytest.raises(ValueError, match="NaN or infinite"):
        flow_of(LEVELS, spoilt)


def test_levels_of_16_bits_are_an_error():
    for frames in ((LEVELS * 257, MOVED * 257), (LEVELS.int() * 257, MOVED.int() * 257)):
        with pytest.raises(ValueError, match=r"up to 65535, expected 0..255: divide 16-bit levels by 257"):
            flow_of(*frames)


def test_bool_frames_are_an_error():
    with pytest.raises(ValueError, match="bool"):
        flow_of(LEVELS > 9, MOVED > 9)


def test_dark_frames_of_whole_levels_and_overshoot_are_no_error():
    dark = (LEVELS > 127).float()
    check_range(dark, dark.roll(1, -1))
    check_range(torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16))
    check_range(LEVELS * 1.1 - 8, MOVED)  # as sharp resampling makes them
    check_range(LEVELS.to(torch.uint16), MOVED.to(torch.uint8))


def test_an_input_range_of_1_gives_the_flow_of_255():
    same = flow_of(LEVELS / 255, MOVED / 255, input_range=1.0)
    torch.testing.assert_close(same, flow_of(LEVELS, MOVED), rtol=0, atol=2e-3)  # the floor of a level may differ
    assert same.abs().max() > 0.1
    with pytest.raises(ValueError, match=r"up to 255, expected 0..1"):
        flow_of(LEVELS, MOVED, input_range=1.0)
    with pytest.raises(ValueError, match="leave out input_range"):
        flow_of(LEVELS.byte(), MOVED.byte(), input_range=1.0)
    with pytest.raises(ValueError, match="input_range must be a positive number"):
        TVNet(input_range=0.0)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA", "CMYK", "I;16"])
def test_images_of_pillow_in_other_modes_are_an_error_that_says_what_to_do(mode: str):
    image = Image.new(mode, (32, 24))
    with pytest.raises(ValueError, match=r'image.convert\("RGB"\)'):
        optical_flow(image, image)


def test_images_of_pillow_in_grey_and_colour_are_taken():
    images = [Image.fromarray(frame[0].byte().movedim(0, -1).numpy()) for frame in (LEVELS, MOVED)]
    for mode in ("RGB", "L"):
        assert np.abs(optical_flow(*(image.convert(mode) for image in images))).max() > 0.1


def test_an_alpha_channel_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"image\[..., :3\]"):
        optical_flow(np.zeros((24, 32, 4), np.uint8), np.zeros((24, 32, 4), np.uint8))
    with pytest.raises(ValueError, match="complex"):
        optical_flow(np.zeros((24, 32), complex), np.zeros((24, 32), complex))


def test_optical_flow_is_float32_whatever_the_default_of_torch_is():
    frames = [frame[0].movedim(0, -1).numpy() for frame in (LEVELS, MOVED)]
    expected = optical_flow(*frames, input_range=255)
    torch.set_default_dtype(torch.float64)
    try:
        found = optical_flow(*frames)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_16_bits_are_computed_with_in_float32(dtype: torch.dtype):
    net = TVNet(num_scales=2, num_iterations=5)
    expected = net(LEVELS, MOVED)
    found = net.to(dtype)(LEVELS, MOVED)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


def test_autocast_does_not_reach_the_solver():
    for solver in ("torch", "numba"):
        net = TVNet(num_iterations=5, solver=solver, presmoothing=0.5)
        expected = net(LEVELS, MOVED)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(net(LEVELS, MOVED), expected)
