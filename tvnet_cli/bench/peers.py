"""What TVNet-50 is measured against: the same 50 updates, written well for numpy, for torch, and by OpenCV.

All of them are TV-L1 with one scale and one warp from a flow of 0, as TVNet is before training; see
``tvnet_cli.flow.operators`` for the formulas and their sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tvnet_cli.aslan.similarity import MEASURES
from tvnet_cli.flow.operators import centered_gradient, inverse_squared_gradient
from tvnet_cli.options import EvalOptions, TVNetOptions

Image = NDArray[np.float32]
Solve = Callable[[Any, Any], Image]  # two grey frames (H, W) to flow (2, H, W) in pixels
DEFAULTS = TVNetOptions()


def numpy_tvl1(first: Image, second: Image, options: TVNetOptions = DEFAULTS) -> Image:
    """TV-L1 in numpy, in arrays that are made once.

    The dual field is kept times ``theta``, which saves a multiplication of the whole field for each divergence.

    Parameters
    ----------
    first, second : ndarray, (H, W), float32, 0..255
    options : TVNetOptions
        Of which ``num_iterations``, ``tau``, ``lambda_`` and ``theta`` count.

    Returns
    -------
    ndarray, (2, H, W), float32, pixels
    """
    limit = np.float32(options.lambda_ * options.theta)
    step, tau = np.float32(options.tau / options.theta), np.float32(options.tau)
    padded = np.pad(second, 1, mode="edge")
    gradient = np.stack((padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1])) / np.float32(2)
    squared = (gradient * gradient).sum(0)
    negative_inverse = -np.divide(1, squared, out=np.zeros_like(squared), where=squared > 1e-12)
    rho_constant = second - first
    u: Image
    u, q_x, q_y, u_x, u_y, length, product = np.zeros((7, 2, *first.shape), np.float32)
    rho = np.empty_like(first)
    for _ in range(options.num_iterations):
        np.multiply(gradient, u, out=product)
        np.add(product[0], product[1], out=rho)
        rho += rho_constant
        rho *= negative_inverse
        np.clip(rho, -limit, limit, out=rho)
        np.multiply(gradient, rho, out=product)
        u += product
        u += q_x
        u[:, :, 1:] -= q_x[:, :, :-1]
        u += q_y
        u[:, 1:] -= q_y[:, :-1]
        # The last column of u_x and the last row of u_y stay 0, and so do those of the dual field.
        np.subtract(u[:, :, 1:], u[:, :, :-1], out=u_x[:, :, :-1])
        np.subtract(u[:, 1:], u[:, :-1], out=u_y[:, :-1])
        np.multiply(u_x, u_x, out=length)
        np.multiply(u_y, u_y, out=product)
        length += product
        np.sqrt(length, out=length)
        length *= step
        length += np.float32(1)
        for q, along in ((q_x, u_x), (q_y, u_y)):
            along *= tau
            q += along
            q /= length
    return u


@torch.inference_mode()
def inplace_tvl1(first: Tensor, second: Tensor, options: TVNetOptions = DEFAULTS) -> Tensor:
    """TV-L1 in torch without gradients, in tensors that are made once: 20 kernels an iteration, 70 in plain torch.

    Parameters
    ----------
    first, second : Tensor, (B, 1, H, W), float32, 0..255
    options : TVNetOptions
        Of which ``num_iterations``, ``tau``, ``lambda_`` and ``theta`` count.

    Returns
    -------
    Tensor, (B, 2, H, W), pixels
    """
    limit, step, theta = options.lambda_ * options.theta, options.tau / options.theta, options.theta
    gradient = centered_gradient(second)
    negative_inverse = -inverse_squared_gradient(gradient)
    rho_constant = second - first
    u, p_x, p_y, u_x, u_y, length = (torch.zeros_like(gradient) for _ in range(6))
    rho, one = torch.empty_like(first), torch.ones((), device=first.device)
    for _ in range(options.num_iterations):
        torch.addcmul(rho_constant, gradient[:, :1], u[:, :1], out=rho)
        rho.addcmul_(gradient[:, 1:], u[:, 1:]).mul_(negative_inverse).clamp_(-limit, limit)
        u.addcmul_(gradient, rho)
        u.add_(p_x, alpha=theta)
        u[..., 1:].sub_(p_x[..., :-1], alpha=theta)
        u.add_(p_y, alpha=theta)
        u[..., 1:, :].sub_(p_y[..., :-1, :], alpha=theta)
        # The last column of u_x and the last row of u_y stay 0, and so do those of the dual field.
        torch.sub(u[..., 1:], u[..., :-1], out=u_x[..., :-1])
        torch.sub(u[..., 1:, :], u[..., :-1, :], out=u_y[..., :-1, :])
        torch.mul(u_x, u_x, out=length)
        length.addcmul_(u_y, u_y).sqrt_()
        torch.add(one, length, alpha=step, out=length)
        p_x.add_(u_x, alpha=step).div_(length)
        p_y.add_(u_y, alpha=step).div_(length)
    return u


def opencv_same_work(cv2: Any, options: TVNetOptions = DEFAULTS) -> Solve:
    """OpenCV's DualTVL1 set to the same updates: one scale, one warp, no early stop and no median filter."""
    # By position, because OpenCV spells the name of one argument wrongly: tau, lambda, theta, scales, warps, epsilon,
    # inner and outer iterations, ratio of scales, gamma, side of the median filter, whether a flow is given.
    dual = cv2.optflow.DualTVL1OpticalFlow_create(
        options.tau, options.lambda_, options.theta, 1, 1, 0.0, options.num_iterations, 1, 0.5, 0.0, 1, False
    )

    def solve(first: Image, second: Image) -> Image:
        return _x_then_y(dual.calc(first / np.float32(255), second / np.float32(255), None))  # it wants 0..1

    return solve


def opencv_tvl1(cv2: Any) -> Solve:
    """OpenCV's DualTVL1 with its own settings, on uint8 frames."""
    dual = cv2.optflow.DualTVL1OpticalFlow_create()
    return lambda first, second: _x_then_y(dual.calc(first, second, None))


def opencv_other_methods(cv2: Any) -> dict[str, Solve]:
    """OpenCV's fast methods, on uint8 frames; the settings of Farneback are the usual ones."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    settings = 0.5, 5, 15, 3, 5, 1.2, 0  # ratio of scales, scales, window, iterations, neighbourhood and its sigma
    return {
        "dis": lambda first, second: _x_then_y(dis.calc(first, second, None)),
        "farneback": lambda first, second: _x_then_y(cv2.calcOpticalFlowFarneback(first, second, None, *settings)),
    }


def _x_then_y(flow: Image) -> Image:
    """(H, W, 2) to (2, H, W), without a copy."""
    return flow.transpose(2, 0, 1)


def numpy_measures(
    features: Image,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    dtype: type[np.floating] = np.float32,
    eps: float = EvalOptions.eps,
) -> NDArray[np.float64]:
    """The 12 measures of the ASLAN benchmark pair by pair; float32 is fastest in numpy, float64 as exact as ours.

    Parameters
    ----------
    features : ndarray, (V, D), float32, positive
    first, second : ndarray, (P,), int64
    dtype : {np.float32, np.float64}
        Of the arithmetic.
    eps : float

    Returns
    -------
    ndarray, (P, 12), float64
        As ``tvnet_cli.aslan.similarity.pair_measures``, to the precision of ``dtype``.
    """
    small = dtype(eps)
    measures = np.empty((len(first), len(MEASURES)))
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        x, y = features[one].astype(dtype, copy=False), features[other].astype(dtype, copy=False)
        product, both, difference = x * y, x + y, x - y
        norm_x, norm_y = np.sqrt(x @ x), np.sqrt(y @ y)
        root_x, root_y = np.sqrt(x), np.sqrt(y)
        roots = root_x - root_y
        u, v = x / norm_x, y / norm_y
        apart = u - v
        dot = x @ y
        measures[row] = (
            dot,
            np.sqrt(dot),
            np.sqrt(root_x @ root_y),
            np.sqrt((product / both).sum()),
            dot / (norm_x * norm_y),
            np.sqrt((difference * difference / both).sum()),
            np.abs(difference).sum(),
            np.sqrt(roots @ roots),
            np.sqrt(apart @ apart),
            apart @ (np.log(u + small) - np.log(v + small)) / 2,
            np.sqrt(np.maximum(u, v) / (u + v)).sum(),
            np.minimum(u, v).sum() / (u.sum() * v.sum()),
        )
    return measures
