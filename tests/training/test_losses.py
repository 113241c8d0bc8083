from __future__ import annotations

import numpy as np
import pytest
import torch

from tvnet_cli.training.losses import endpoint_error, flow_loss

BATCH, HEIGHT, WIDTH = 2, 7, 9


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    frames = random.uniform(0, 255, (2, BATCH, 3, HEIGHT, WIDTH))
    return frames[0], frames[1], random.uniform(-1.8, 1.8, (BATCH, 2, HEIGHT, WIDTH))


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def numpy_flow_loss(first: np.ndarray, second: np.ndarray, flow: np.ndarray, weight: float = 0.15) -> float:
    """Pixel by pixel, float64."""
    distance = bends = 0.0
    for b, y, x in np.ndindex(BATCH, HEIGHT, WIDTH):
        to_x, to_y = (
            np.clip(place + shift, 0, side - 1)
            for place, shift, side in ((x, flow[b, 0, y, x], WIDTH), (y, flow[b, 1, y, x], HEIGHT))
        )
        x0, y0 = min(int(to_x), WIDTH - 2), min(int(to_y), HEIGHT - 2)
        right, below = to_x - x0, to_y - y0
        above = (1 - right) * second[b, :, y0, x0] + right * second[b, :, y0, x0 + 1]
        under = (1 - right) * second[b, :, y0 + 1, x0] + right * second[b, :, y0 + 1, x0 + 1]
        distance += np.abs((1 - below) * above + below * under - first[b, :, y, x]).sum()
        for d in (0, 1):
            bends += abs(flow[b, d, y, x + 1] - flow[b, d, y, x]) if x + 1 < WIDTH else 0
            bends += abs(flow[b, d, y + 1, x] - flow[b, d, y, x]) if y + 1 < HEIGHT else 0
    pixels = BATCH * HEIGHT * WIDTH
    return weight * distance / (3 * pixels) + bends / pixels


def check_gradient(loss, field: torch.Tensor, step: float = 1e-6, tolerance: float = 1e-5) -> None:
    field.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(field), field)
    places = np.random.default_rng(1).integers(0, field.numel(), 25)
    for place in places:
        moved = torch.zeros(field.numel(), dtype=field.dtype)
        moved[place] = step
        moved = moved.reshape(field.shape)
        with torch.no_grad():
            slope = (loss(field + moved) - loss(field - moved)) / (2 * step)
        assert abs(float(slope) - float(gradient.flatten()[place])) < tolerance


@pytest.mark.parametrize("weight", [0.15, 2.0])
def test_the_flow_loss_equals_its_equation(weight):
    arrays = example()
    found = flow_loss(*tensors(*arrays), weight)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(float(found), numpy_flow_loss(*arrays, weight), rtol=1e-12)


def test_the_flow_loss_takes_frames_as_they_are_read():
    first, second, flow = example()
    first, second = (frame.astype(np.uint8) for frame in (first, second))
    found = flow_loss(*tensors(first, second, flow.astype(np.float32)))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        float(found), numpy_flow_loss(first.astype(float), second.astype(float), flow), rtol=1e-5
    )


def test_the_gradient_of_the_flow_loss_is_that_of_differences():
    first, second, flow = tensors(*example())
    check_gradient(lambda field: flow_loss(first, second, field), flow)


def test_the_flow_loss_is_least_near_the_truth():
    ramp = np.add.outer(3.0 * np.arange(40), 5.0 * np.arange(40))[None, None] % 256
    first = torch.from_numpy(ramp)
    second = torch.roll(first, (1, 2), (2, 3))
    true = torch.tensor([2.0, 1.0], dtype=torch.float64)[None, :, None, None].expand(1, 2, 40, 40)
    losses = [float(flow_loss(first, second, factor * true)) for factor in (0.0, 0.5, 1.0, 1.5)]
    assert losses.index(min(losses)) == 2


@pytest.mark.parametrize("masked", [False, True])
def test_the_endpoint_error_equals_its_equation(masked):
    _, _, flow = example()
    _, _, truth = example(1)
    valid = np.random.default_rng(2).uniform(size=(BATCH, HEIGHT, WIDTH)) < 0.6
    found = endpoint_error(*tensors(flow, truth), *(tensors(valid) if masked else ()), epsilon=0.1)
    distances = np.sqrt(((flow - truth) ** 2).sum(1) + 0.01)
    np.testing.assert_allclose(float(found), distances[valid].mean() if masked else distances.mean(), rtol=1e-12)


def test_the_gradient_of_the_endpoint_error_is_that_of_differences():
    (flow,), (truth,) = tensors(example()[2]), tensors(example(1)[2])
    valid = torch.rand(BATCH, HEIGHT, WIDTH) < 0.6
    check_gradient(lambda field: endpoint_error(field, truth, valid), flow)


def test_a_flow_that_is_right_has_a_finite_gradient():
    truth = torch.randn(1, 2, 4, 5)
    flow = truth.clone().requires_grad_()
    error = endpoint_error(flow, truth)
    error.backward()
    assert 0 < error.item() < 0.01
    assert torch.equal(flow.grad, torch.zeros_like(flow))


@pytest.mark.parametrize("unknown", [float("nan"), float("inf"), 1e10])
def test_unknown_flow_does_not_matter(unknown):
    (flow,), (truth,) = tensors(example()[2]), tensors(example(1)[2])
    valid = torch.rand(BATCH, HEIGHT, WIDTH) < 0.5
    results = []
    for value in (0.0, unknown):
        field = flow.clone().requires_grad_()
        error = endpoint_error(field, torch.where(valid[:, None], truth, value), valid)
        error.backward()
        results.append((error.item(), field.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    nothing = endpoint_error(flow, torch.full_like(truth, unknown), torch.zeros_like(valid))
    assert float(nothing) == 0


def test_sizes_must_agree():
    first, second, flow = tensors(*example())
    with pytest.raises(ValueError, match="differ in shape"):
        flow_loss(first, second[..., 1:], flow)
    with pytest.raises(ValueError, match="cannot warp"):
        flow_loss(first, second, flow[..., 1:])
    with pytest.raises(ValueError, match="the truth"):
        endpoint_error(flow, flow[..., 1:])
    with pytest.raises(ValueError, match="its mask"):
        endpoint_error(flow, flow, torch.ones(BATCH, 1, HEIGHT, WIDTH, dtype=torch.bool))
