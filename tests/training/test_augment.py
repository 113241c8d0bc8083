from __future__ import annotations

import numpy as np
import torch
from training_films import moving_texture

from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.training.augment import CropChoice, cut, draw_crop, flip_flow, random_snippets

SCALES = (1.0, 0.875, 0.75, 0.65625)


def draws(function, count=300):
    return [function(np.random.default_rng([7, number])) for number in range(count)]


def test_each_segment_gives_a_snippet_from_anywhere_in_it():
    starts = np.array([frames[:, 0] for frames in draws(lambda random: random_snippets(65, 3, 6, random))])
    # 60 possible starts in three segments, and every one of them is drawn.
    for segment in range(3):
        assert set(starts[:, segment]) == set(range(20 * segment, 20 * segment + 20))
    frames = random_snippets(65, 3, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(np.diff(frames), 1)


def test_snippets_of_short_videos_stay_inside():
    for num_frames in range(1, 12):
        for frames in draws(lambda random: random_snippets(num_frames, 3, 6, random), 40):  # noqa: B023
            assert frames.shape == (3, 6)
            assert frames.min() >= 0
            assert frames.max() <= num_frames - 1
            assert (np.diff(frames) <= 1).all()
    assert random_snippets(2, 2, 4, np.random.default_rng(0)).tolist() == [[0, 1, 1, 1]] * 2


def test_crops_are_corners_and_the_centre_at_neighbouring_scales():
    crops = draws(lambda random: draw_crop(SCALES, True, random), 600)
    sides = {(crop.height, crop.width) for crop in crops}
    assert sides == {(a, b) for i, a in enumerate(SCALES) for j, b in enumerate(SCALES) if abs(i - j) <= 1}
    assert len({(crop.top, crop.left) for crop in crops}) == 5
    assert 0.4 < np.mean([crop.flip for crop in crops]) < 0.6
    assert not any(crop.flip for crop in draws(lambda random: draw_crop(SCALES, False, random)))


def test_a_crop_is_the_named_part_of_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (256, 340, 3), dtype=np.uint8)
    whole = torch.from_numpy(picture).movedim(-1, 0)
    corner = cut(picture, CropChoice(0.875, 0.875, 1.0, 0.0, False), 224)
    assert torch.equal(corner, whole[:, 32:, :224])
    centre = cut(picture, CropChoice(0.875, 0.875, 0.5, 0.5, True), 224)
    assert torch.equal(centre, whole[:, 16:240, 58:282].flip(-1))


def test_a_crop_of_another_size_is_resized():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 340, 3))
    resized = cut(ramp, CropChoice(0.75, 1.0, 0.0, 0.0, False), 96)
    assert resized.shape == (3, 96, 96)
    assert resized.dtype == torch.uint8
    # Rows 0 to 191 become 96, each the mean of two.
    assert (resized[0, :, 50].float() - (2 * torch.arange(96) + 0.5)).abs().max() <= 1


def test_flow_of_mirrored_frames_is_mirrored_flow_with_u_negated():
    first, second = (
        torch.from_numpy(moving_texture(number, (1, 1), seed=3)).movedim(-1, 0)[None].float() for number in (0, 1)
    )
    with torch.no_grad():
        flow = TVNet()(first, second)
        mirrored = TVNet()(first.flip(-1), second.flip(-1))
    inside = (..., slice(8, -8), slice(8, -8))  # forward differences tell left from right at the borders
    error = (flip_flow(flow) - mirrored)[inside].abs().mean()
    assert error < 0.05 * flow[inside].abs().mean()
    assert (flow.flip(-1) - mirrored)[inside].abs().mean() > 10 * error
