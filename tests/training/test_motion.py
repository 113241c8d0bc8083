"""Drawn clips: endless, the same for the same numbers, and moving as their class says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tvnet_cli.flow.operators import warp
from tvnet_cli.training.motion import CLASS_NAMES, DIRECTIONS, motion_clip

SIZE = 96


def clip_of(name: str, index: int, size: int = SIZE, seed: int = 3):
    return motion_clip(seed, index, size, with_flow=True, labels=[CLASS_NAMES.index(name)])


def test_a_clip_depends_on_its_numbers_alone():
    one = motion_clip(1, 5, SIZE)
    motion_clip(1, 4, SIZE)
    again, other, elsewhere = motion_clip(1, 5, SIZE), motion_clip(1, 6, SIZE), motion_clip(2, 5, SIZE)
    assert one.frames.dtype == np.uint8
    assert one.frames.shape == (6, SIZE, SIZE, 3)
    np.testing.assert_array_equal(one.frames, again.frames)
    assert one.label == again.label
    for different in (other, elsewhere):
        assert np.abs(one.frames.astype(int) - different.frames).mean() > 5


def test_asking_for_the_flow_changes_no_frame():
    np.testing.assert_array_equal(motion_clip(1, 5, SIZE).frames, motion_clip(1, 5, SIZE, with_flow=True).frames)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_every_class_can_be_drawn_and_its_flow_explains_its_frames(name):
    clips = [clip_of(name, index) for index in range(3)]
    before = after = 0.0
    for clip in clips:
        assert CLASS_NAMES[clip.label] == name
        assert np.isfinite(clip.flow).all()
        frames = torch.from_numpy(clip.frames).float().movedim(-1, 1)
        warped = warp(frames[1:], torch.from_numpy(clip.flow), "exact")
        seen = torch.from_numpy(
            clip.visible & (np.abs(clip.flow).max(1) > 0.2)
        )  # where nothing moves nothing can be explained
        assert clip.visible.mean() > 0.6
        before += float((frames[1:] - frames[:-1]).abs().mean(1)[seen].sum())
        after += float((warped - frames[:-1]).abs().mean(1)[seen].sum())
    assert after <= before  # noise, drift and blur stay


def test_the_classes_are_drawn_equally_often_or_as_asked():
    labels = [motion_clip(0, index, 32).label for index in range(600)]
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    assert counts.min() >= 1
    assert counts.max() < 25
    assert {motion_clip(0, index, 32, labels=[3, 7]).label for index in range(20)} == {3, 7}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_goes_in_a_direction_goes_there(direction):
    angle = np.radians(45 * DIRECTIONS.index(direction))
    for family in ("camera/pan", "object/translate", "arm/translate"):
        total = np.zeros(2)
        for index in range(12):
            clip = clip_of(f"{family}_{direction}", index)
            total += clip.flow.mean((0, 2, 3)) if family == "camera/pan" else _strongest(clip.flow)
        assert total @ [np.cos(angle), np.sin(angle)] > 0.85 * np.linalg.norm(total)


def _strongest(flow: np.ndarray) -> np.ndarray:
    """The mean of the largest vectors, which are those of what moves before a camera that shakes at most."""
    vectors = (flow - np.median(flow, (2, 3), keepdims=True)).transpose(1, 0, 2, 3).reshape(2, -1)
    length = np.hypot(*vectors)
    return vectors[:, length >= np.quantile(length, 0.97)].mean(1)


def test_turning_and_growing_have_their_sign():
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    for name, out, round_ in [
        ("camera/zoom_in", 1, 0),
        ("camera/zoom_out", -1, 0),
        ("camera/roll_cw", 0, 1),
        ("camera/roll_ccw", 0, -1),
    ]:
        flow = clip_of(name, 1).flow.mean(0)
        divergence, curl = (flow[0] * x + flow[1] * y).mean(), (flow[1] * x - flow[0] * y).mean()
        assert np.sign(divergence) == out or abs(divergence) < 0.05 * abs(curl)
        assert np.sign(curl) == round_ or abs(curl) < 0.05 * abs(divergence)


def test_a_scene_is_the_same_at_every_size():
    """Only larger: so many pixels a frame grow with it."""
    name = "object/translate_right"
    small = [np.abs(_strongest(clip_of(name, index, 64).flow)).max() for index in range(6)]
    large = [np.abs(_strongest(clip_of(name, index, 192).flow)).max() for index in range(6)]
    assert np.median(np.array(large) / small) == pytest.approx(3, rel=0.02)


def test_speeds_cover_two_orders_of_magnitude():
    lengths = [np.linalg.norm(clip_of("camera/pan_left", index, 224).flow.mean((0, 2, 3))) for index in range(40)]
    assert min(lengths) < 0.6
    assert max(lengths) > 4
