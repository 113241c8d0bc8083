"""Network input: 5 flow fields as one 10-channel stack, or one RGB frame, prepared as the weights expect."""

from __future__ import annotations

from torch import Tensor

from tvnet_cli.options import ChannelOrder, StackOrder


def frame_pairs(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Each frame of clips and the next one, the pairs of one clip after each other.

    Parameters
    ----------
    frames : Tensor, (B, T, C, H, W)

    Returns
    -------
    first, second : Tensor, (B * (T - 1), C, H, W)
    """
    return frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)


def stack_flow(
    flow: Tensor, scale: float, clip_pixels: float, order: StackOrder = "interleaved", fields: int = 5
) -> Tensor:
    """Flow fields of each clip as the channels of one network input.

    Parameters
    ----------
    flow : Tensor, (B * fields, 2, H, W), float, pixels
        The fields of one clip follow each other.
    scale : float, network units per pixel
        6.375 = 255 / 40 for weights trained on flow stored as grey levels of -20..20 pixels, less 128. Zero
        flow is 0, and nothing is rounded, because rounding stops gradients.
    clip_pixels : float
        Larger displacements are cut to +-``clip_pixels`` first.
    order : {"interleaved", "grouped"}
        ``x0 y0 x1 y1 ...`` as in the published TSN models, or ``x0 x1 ... y0 y1 ...``.
    fields : int
        Flow fields in a clip.

    Returns
    -------
    Tensor, (B, 2 * fields, H, W), network units

    Raises
    ------
    ValueError
        If the number of fields is not a multiple of ``fields``.
    """
    count, _, height, width = flow.shape
    if count % fields:
        raise ValueError(f"{count} flow fields do not make clips of {fields}")
    clips = (flow.clamp(-clip_pixels, clip_pixels) * scale).view(-1, fields, 2, height, width)
    if order == "grouped":
        clips = clips.transpose(1, 2)
    return clips.reshape(-1, 2 * fields, height, width)


def prepare_rgb(frames: Tensor, mean: tuple[float, float, float], order: ChannelOrder) -> Tensor:
    """RGB frames as the input of an RGB network.

    Parameters
    ----------
    frames : Tensor, (B, 3, H, W), float, RGB, 0..255
    mean : (float, float, float)
        Taken off each channel, in the order of ``order``: (104, 117, 123) BGR for the published Caffe weights,
        (104, 117, 128) BGR for those of tsn-pytorch and its heirs.
    order : {"RGB", "BGR"}
        Channel order that the network saw in training.

    Returns
    -------
    Tensor, (B, 3, H, W), channels in ``order``
    """
    if order == "BGR":
        frames = frames.flip(1)
    return frames - frames.new_tensor(mean)[:, None, None]
