"""What is drawn on a canvas, as pictures: its means in grey, its channels, and the motion that it stands for."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tvnet_cli.network.cards import FlowInput, RGBInput
from tvnet_cli.options import ChannelView
from tvnet_cli.video.sequence import Picture
from tvnet_cli.visualize.deepdraw import Canvas
from tvnet_cli.visualize.units import LEVELS_PER_PIXEL, STILL_LEVEL, Input
from tvnet_cli.writing import MARK

MID_GREY = 128
STRETCHED = 0.999  # share of the pixels that a stretched picture does not clip


def canvas_pictures(canvas: Canvas, how: Input, view: ChannelView = "mean") -> dict[str, Picture]:
    """A canvas as pictures.

    Parameters
    ----------
    canvas : ndarray, (C, H, W), float32, grey levels 0..255
    how : FlowInput or RGBInput
        The order of the channels.
    view : {"mean", "xy", "all"}
        The mean of all channels; the means of x and y as well; each channel as well. RGB has one view: its colours.

    Returns
    -------
    dict of title to ndarray, (H, W) or (H, W, 3), uint8
    """
    if isinstance(how, RGBInput):
        return {"RGB": _levels(np.moveaxis(canvas[::-1] if how.order == "BGR" else canvas, 0, -1))}
    pictures = {"mean": canvas.mean(0)}
    x, y = _components(canvas, how)
    if view != "mean":
        pictures |= {"mean of x": x.mean(0), "mean of y": y.mean(0)}
    if view == "all":
        pictures |= {f"x{number}": channel for number, channel in enumerate(x, start=1)}
        pictures |= {f"y{number}": channel for number, channel in enumerate(y, start=1)}
    return {title: _levels(picture) for title, picture in pictures.items()}


def imagined_flow(canvas: Canvas, how: Input) -> NDArray[np.float32]:
    """The flow fields that a canvas stands for, (fields, 2, H, W), pixels, from -20 to 20."""
    x, y = _components(canvas, how)
    return (np.stack((x, y), axis=1) - np.float32(STILL_LEVEL)) / np.float32(LEVELS_PER_PIXEL)


def stretched(picture: Picture) -> Picture:
    """A grey picture with all the contrast that there is room for about the grey of no motion."""
    away = picture.astype(np.float64) - MID_GREY
    most = np.quantile(np.abs(away), STRETCHED)
    return _levels(MID_GREY + away * (MID_GREY - 1) / max(most, 1))


def as_png(picture: Picture) -> bytes:
    """Return a picture (H, W) or (H, W, 3), uint8, as a PNG file with the mark of this program."""
    info, file = PngInfo(), BytesIO()
    info.add_text("Software", MARK)
    Image.fromarray(picture).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _components(canvas: Canvas, how: Input) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The channels of x and those of y."""
    if isinstance(how, FlowInput) and how.order == "grouped":
        return canvas[: len(canvas) // 2], canvas[len(canvas) // 2 :]
    return canvas[::2], canvas[1::2]


def _levels(values: NDArray[np.floating]) -> Picture:
    picture: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return picture
