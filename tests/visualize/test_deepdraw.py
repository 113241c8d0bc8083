"""The ascent against its formula, in float64 and in numpy and scipy alone, on a network that is made by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.signal import convolve2d, correlate2d

from tvnet_cli.options import DRAW_PRESETS, DrawOptions, Octave
from tvnet_cli.visualize.deepdraw import UNITS_AT_ONCE, Space, ascent_step, draw_units, gaussian_blur

Array = NDArray[np.float64]
CHANNELS, SIDE, KERNELS, UNITS = 4, 18, 6, 3
MEAN = np.array([128, 100, 60, 128], np.float32)
LOW, HIGH = (torch.from_numpy(bound)[:, None, None] for bound in (-MEAN, 255 - MEAN))
OPTIONS = DrawOptions(
    octaves=(
        Octave(steps=3, blur=(2.5, 0.78), rate=(11, 11)),
        Octave(steps=4, scale=1.2, blur=(0.936, 0.4), rate=(6, 3)),
    )
)
SPACE = Space(MEAN, SIDE, 128.0)


class ByHand:
    """One convolution, a ReLU, and either the maps or sums over them; with its gradient worked out on paper."""

    def __init__(self, maps: bool) -> None:
        random = np.random.default_rng(5)
        self.maps = maps
        self.kernels = random.standard_normal((KERNELS, CHANNELS, 3, 3))
        self.bias = random.standard_normal(KERNELS) * 20 + (500 if maps else 0)
        self.sums = random.standard_normal((UNITS, KERNELS))

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        kernels, bias, sums = (torch.from_numpy(values).to(windows) for values in (self.kernels, self.bias, self.sums))
        maps = torch.nn.functional.conv2d(windows, kernels, bias).relu()
        return maps if self.maps else maps.mean((2, 3)) @ sums.T

    def gradient(self, window: Array, unit: int) -> Array:
        gradient = np.zeros_like(window)
        for number, kernel in enumerate(self.kernels):
            answer = self.bias[number] + sum(
                correlate2d(channel, taps, "valid") for channel, taps in zip(window, kernel, strict=True)
            )
            arriving = np.zeros_like(answer)
            if not self.maps:
                arriving[answer > 0] = self.sums[unit, number] / answer.size
            elif number == unit:
                row, column = ((side - 1) // 2 for side in answer.shape)
                arriving[row, column] = answer[row, column] > 0
            for channel, taps in enumerate(kernel):
                gradient[channel] += convolve2d(arriving, taps, "full")
        return gradient


def formula(window: Array, gradient: Array, blur: float, rate: float) -> Array:
    moved = window + rate * gradient / np.abs(gradient).mean()
    mean = MEAN.astype(np.float64)[:, None, None]
    moved = np.clip(moved, -mean, 255 - mean)
    return np.stack([gaussian_filter(channel, blur) for channel in moved])


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize(("blur", "rate"), [(2.5, 11.0), (0.4, 60.0), (0.78, 3.0)])
def test_a_step_equals_its_formula_in_float64(maps, blur, rate):
    layer, units = ByHand(maps), [2, 0]
    windows = np.random.default_rng(0).normal(0, 30, (2, CHANNELS, SIDE, SIDE))
    found = ascent_step(layer, torch.from_numpy(windows.astype(np.float32)), units, blur, rate, LOW, HIGH)
    assert found.dtype == torch.float32
    for window, unit, ours in zip(windows, units, found.numpy(), strict=True):
        expected = formula(window, layer.gradient(window, unit), blur, rate)
        assert np.abs(expected - window).max() > rate / 10
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_an_ascent_is_the_loop_of_deepdraw():
    layer, unit = ByHand(maps=False), 1
    random = np.random.default_rng((0, unit))
    mean = MEAN.astype(np.float64)[:, None, None]
    canvas = random.normal(128, 8, (CHANNELS, SIDE, SIDE)) - mean
    schedules: list[tuple[float, list[tuple[float, float]]]] = [
        (1.0, [(2.5 + (0.78 - 2.5) * i / 3, 11.0) for i in range(3)]),
        (1.2, [(0.936 + (0.4 - 0.936) * i / 4, 6 + (3 - 6) * i / 4) for i in range(4)]),
    ]
    offsets = []
    for scale, steps in schedules:
        canvas = zoom(canvas, (1, scale, scale))
        for blur, rate in steps:
            room = canvas.shape[1] - SIDE
            top, left = (int(min(max(o, 0), room)) for o in random.normal(room / 2, 0.3 * room, 2)) if room else (0, 0)
            offsets.append((top, left))
            window = canvas[:, top : top + SIDE, left : left + SIDE]
            window[:] = formula(window, layer.gradient(window, unit), blur, rate)
    (found,) = draw_units(layer, [unit], SPACE, OPTIONS)
    assert len(set(offsets)) > 2
    assert found.canvas.shape == (CHANNELS, 22, 22)
    assert not found.dead
    np.testing.assert_allclose(found.canvas, canvas + mean, rtol=0, atol=1e-2)
    assert found.canvas.min() >= 0
    assert found.canvas.max() <= 255


def test_an_ascent_excites_its_unit():
    layer = ByHand(maps=False)
    for drawing in draw_units(layer, range(UNITS), SPACE, OPTIONS):
        start, end = (
            layer(torch.from_numpy(canvas - MEAN[:, None, None])[None])[0, drawing.unit]
            for canvas in (np.full((CHANNELS, SIDE, SIDE), 128, np.float32), drawing.canvas)
        )
        assert end > start + 10


def test_a_run_repeats_bit_for_bit_and_a_unit_is_the_same_alone_and_beside_others():
    layer = ByHand(maps=False)
    together = {drawing.unit: drawing.canvas for drawing in draw_units(layer, [2, 0, 1], SPACE, OPTIONS)}
    assert list(together) == [2, 0, 1]
    for unit, canvas in together.items():
        (alone,) = draw_units(layer, [unit], SPACE, OPTIONS)
        assert np.array_equal(alone.canvas, canvas)
    (other,) = draw_units(layer, [1], SPACE, DrawOptions(octaves=OPTIONS.octaves, seed=1))
    assert not np.array_equal(other.canvas, together[1])


def test_dead_units_are_told_from_others():
    layer = ByHand(maps=True)
    layer.bias[[1, 3]] = -1e6
    found = list(draw_units(layer, [0, 1, 2, 3], SPACE, OPTIONS))
    assert [drawing.dead for drawing in found] == [False, True, False, True]
    assert all(np.isfinite(drawing.canvas).all() for drawing in found)


def test_a_unit_that_falls_silent_on_its_way_is_blurred_only():
    layer = ByHand(maps=True)
    layer.bias[:] = -1e6
    window = torch.randn(1, CHANNELS, SIDE, SIDE)
    assert torch.equal(ascent_step(layer, window, [0], 0.5, 11, LOW, HIGH), gaussian_blur(window, 0.5))


@pytest.mark.parametrize("sigma", [0, 0.3, 1.0, 2.5, 9.0])
def test_the_blur_is_that_of_scipy(sigma):
    picture = np.random.default_rng(0).normal(0, 50, (2, 3, 20, 31))
    expected = np.stack([[gaussian_filter(channel, sigma) for channel in one] for one in picture]) if sigma else picture
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(picture), sigma).numpy(), expected, atol=1e-10)


def test_progress_counts_every_step_of_every_unit():
    steps: list[int] = []
    list(draw_units(ByHand(maps=False), [0, 1], SPACE, OPTIONS, progress=steps.append))
    assert sum(steps) == 2 * OPTIONS.num_steps


def test_who_stops_asking_waits_for_no_more_than_a_step():
    layer, steps = ByHand(maps=True), []
    layer.bias[0] = -1e6
    many = DrawOptions(octaves=(Octave(steps=5000, blur=(1, 1), rate=(1, 1)),))
    drawings = draw_units(layer, [0, 1], SPACE, many, progress=steps.append)
    assert next(drawings).dead
    drawings.close()
    assert sum(steps) < 2 * 5000


def test_units_of_one_batch_are_those_of_units_alone(monkeypatch):
    """As on a GPU; the rounding of a batch may be another."""
    layer, steps = ByHand(maps=True), []
    layer.bias[1] = -1e6
    alone = list(draw_units(layer, [0, 1, 2], SPACE, OPTIONS))
    monkeypatch.setitem(UNITS_AT_ONCE, "cpu", 3)
    found = list(draw_units(layer, [0, 1, 2], SPACE, OPTIONS, progress=steps.append))
    assert sum(steps) == 3 * OPTIONS.num_steps
    for ours, other in zip(found, alone, strict=True):
        assert (ours.unit, ours.dead) == (other.unit, other.dead)
        np.testing.assert_allclose(ours.canvas, other.canvas, rtol=0, atol=1e-2)


def test_schedules_never_quite_reach_their_end():
    octave = Octave(steps=4, blur=(2.0, 1.0), rate=(6, 2))
    assert [octave.at(step) for step in range(4)] == [(2.0, 6), (1.75, 5), (1.5, 4), (1.25, 3)]
    assert DRAW_PRESETS["coherent"].num_steps == 640


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"scale": 0.5}, "scale must be 1 to"),
        ({"blur": (1, -1)}, "blur must be 0 to"),
        ({"rate": (0, 1)}, "more than 0 grey levels"),
    ],
)
def test_an_octave_that_cannot_be_is_refused(wrong: dict[str, object], message: str):
    make: Callable[..., Octave] = Octave
    with pytest.raises(ValueError, match=message):
        make(**{"steps": 1, "blur": (1, 1), "rate": (1, 1), **wrong})
