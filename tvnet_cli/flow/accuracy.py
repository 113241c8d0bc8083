"""How far a flow field is from the truth, and where two fields contradict each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tvnet_cli.flow.colour import UNKNOWN
from tvnet_cli.flow.operators import leads_inside, warp


def endpoint_error(flow: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Mean distance between the ends of the vectors, where the truth is known.

    Parameters
    ----------
    flow, truth : ndarray, (2, H, W), float, pixels
        Truth that is not finite or beyond 1e9 is unknown.

    Returns
    -------
    float, pixels
        NaN if nothing is known.

    Raises
    ------
    ValueError
        If the sizes differ.
    """
    found, true = _known(flow, truth)
    return float(np.hypot(*(found - true)).mean()) if true.size else float("nan")


def angular_error(flow: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Mean angle between the vectors (x, y, 1), where the truth is known.

    Source: Barron, Fleet, Beauchemin, Performance of Optical Flow Techniques, IJCV 1994.

    Parameters
    ----------
    flow, truth : ndarray, (2, H, W), float, pixels

    Returns
    -------
    float, degrees
        NaN if nothing is known.

    Raises
    ------
    ValueError
        If the sizes differ.
    """
    found, true = _known(flow, truth)
    if not true.size:
        return float("nan")
    # By sine and cosine: the arc cosine alone loses the small angles to rounding.
    cosine = 1 + (found * true).sum(0)
    sine = np.sqrt(
        (found[0] - true[0]) ** 2 + (found[1] - true[1]) ** 2 + (found[0] * true[1] - found[1] * true[0]) ** 2
    )
    return float(np.degrees(np.arctan2(sine, cosine)).mean())


def _known(flow: NDArray[np.floating], truth: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if flow.shape != truth.shape:
        raise ValueError(
            f"the truth is {truth.shape[2]} x {truth.shape[1]}, the flow {flow.shape[2]} x {flow.shape[1]} pixels"
        )
    known = (np.abs(truth) <= UNKNOWN).all(0)
    return flow[:, known].astype(np.float64), truth[:, known].astype(np.float64)


def occlusion(forward: Tensor, backward: Tensor) -> Tensor:
    """Pixels of the first frame that the second does not show.

    There the backward flow, read where the forward flow leads, does not lead back:
    ``|f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5``; or the forward flow leads out of the picture. Source: Sundaram, Brox,
    Keutzer, Dense Point Trajectories by GPU-Accelerated Large Displacement Optical Flow, ECCV 2010, Eq. (5).

    Parameters
    ----------
    forward, backward : Tensor, (B, 2, H, W), float, pixels
        Flow from the first frame to the second, and from the second to the first.

    Returns
    -------
    Tensor, (B, H, W), bool
    """
    back = warp(backward, forward, "exact")
    contradiction = (forward + back).square().sum(1)
    allowed = 0.01 * (forward.square().sum(1) + back.square().sum(1)) + 0.5
    return (contradiction > allowed) | ~leads_inside(forward)[:, 0]
