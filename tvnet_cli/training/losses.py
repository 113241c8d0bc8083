"""What training makes small: the flow loss, which needs no labels, and the endpoint error, which needs the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from tvnet_cli.flow.operators import warp

DATA_WEIGHT = 0.15  # the authors' lambda, for frames in 0..255
EPSILON = 1e-3  # pixels; far below what any flow is right to


def flow_loss(first: Tensor, second: Tensor, flow: Tensor, data_weight: float = DATA_WEIGHT) -> Tensor:
    """The TV-L1 energy of a flow field: how little the warped frames agree, and how much the field bends.

    ``data_weight * mean |second(x + u) - first(x)| + mean (|d_x u_1| + |d_y u_1| + |d_x u_2| + |d_y u_2|)``, the
    first mean over batch, channels and pixels, the second over batch and pixels. The differences are forward, 0 in
    the last column (x) and the last row (y), and fixed: trained ones, as in the authors' code, could make the field
    look smooth by themselves.

    Sources: Fan et al., End-to-End Learning of Motion Representation for Video Understanding, CVPR 2018,
    and ``get_loss`` of the code that its authors published.

    Parameters
    ----------
    first, second : Tensor, (B, C, H, W), any number type, 0..255
        The frames as they are, not made grey and not smoothed.
    flow : Tensor, (B, 2, H, W), float, pixels
        From the first frame to the second.
    data_weight : float
        Of the first term: larger follows the pictures, smaller is smoother.

    Returns
    -------
    Tensor, (), of the type of ``flow``

    Raises
    ------
    ValueError
        If batch, height or width differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two frames differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    data = (warp(second.to(flow.dtype), flow) - first.to(flow.dtype)).abs().mean()
    bends = (flow[..., 1:] - flow[..., :-1]).abs().sum() + (flow[..., 1:, :] - flow[..., :-1, :]).abs().sum()
    return data_weight * data + bends / flow[:, 0].numel()


def endpoint_error(flow: Tensor, truth: Tensor, valid: Tensor | None = None, epsilon: float = EPSILON) -> Tensor:
    """Mean distance between the ends of the vectors, with a gradient everywhere.

    ``mean sqrt(du^2 + dv^2 + epsilon^2)`` over the pixels whose flow is known. The authors train without epsilon,
    and the gradient is then not a number where a vector is exactly right.

    Parameters
    ----------
    flow, truth : Tensor, (B, 2, H, W), float, pixels
    valid : Tensor, (B, H, W), bool, or None
        Where the truth is known; there alone ``truth`` need be a number. None: everywhere.
    epsilon : float, pixels

    Returns
    -------
    Tensor, (), pixels
        0 if nothing is known.

    Raises
    ------
    ValueError
        If the sizes differ.
    """
    if flow.shape != truth.shape or (valid is not None and valid.shape != flow[:, 0].shape):
        raise ValueError(
            f"the flow is {tuple(flow.shape)}, the truth {tuple(truth.shape)}"
            + (f", its mask {tuple(valid.shape)}" if valid is not None else "")
        )
    difference = flow - truth
    if valid is not None:
        # Chosen, not multiplied: what is unknown may be no number, and 0 times that is none either.
        difference = torch.where(valid.unsqueeze(1), difference, torch.zeros_like(difference))
    distance = (difference.square().sum(1) + epsilon * epsilon).sqrt()
    if valid is None:
        return distance.mean()
    return (distance * valid).sum() / valid.sum().clamp(min=1)
