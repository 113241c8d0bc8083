"""Draw the films of this folder: ``python examples/make_clips.py`` writes them again.

Everything is computed, nothing is recorded: surfaces are sums of cosine waves, and each film is one motion.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 240, 320  # pixels
RATE, SECONDS = 25, 4
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)

Picture = NDArray[np.float64]  # (H, W, 3), 0..255
Place = NDArray[np.float64]  # (H, W), pixels


def texture(seed: int, x: Place, y: Place, colour: tuple[int, int, int], contrast: float = 14.0) -> Picture:
    """A grainy surface of one colour, read at any point of the plane; long waves are stronger than short ones."""
    rng = np.random.default_rng(seed)
    grain = np.zeros(x.shape)
    for length in np.geomspace(7, 90, 30):  # pixels
        angle, start = rng.uniform(0, 2 * np.pi, 2)
        wave = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + start
        grain += np.cos(wave) * np.sqrt(length / 90)
    return np.clip(np.array(colour) + contrast * grain[..., None], 0, 255)


def paint(below: Picture, above: Picture, distance: Place) -> Picture:
    """Lay ``above`` over ``below`` where ``distance`` to its edge is negative, with a soft edge of one pixel."""
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    return below * (1 - cover) + above * cover


def disc(
    picture: Picture, seed: int, colour: tuple[int, int, int], x: float, y: float, radius: float, turn: float = 0.0
) -> Picture:
    """A textured disc at (x, y), turned by ``turn`` radians."""
    dx, dy = X - x, Y - y
    own_x, own_y = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return paint(picture, texture(seed, own_x, own_y, colour, 20), np.hypot(dx, dy) - radius)


def ball_bounces(time: float) -> Picture:
    """A ball flies from left to right and bounces twice."""
    height = 140 * abs(np.sin(np.pi * (0.3 + 2.2 * time)))
    return disc(texture(1, X, Y, (96, 120, 150)), 2, (214, 96, 60), 70 + 180 * time, 200 - height, 26, 4 * time)


def wheel_turns(time: float) -> Picture:
    """A wheel turns once in its place."""
    return disc(texture(3, X, Y, (150, 138, 120)), 4, (60, 130, 110), WIDTH / 2, HEIGHT / 2, 80, 2 * np.pi * time)


def camera_zooms(time: float) -> Picture:
    """The camera comes closer to a wall."""
    zoom = 2.0**time
    return texture(5, (X - WIDTH / 2) / zoom, (Y - HEIGHT / 2) / zoom, (160, 120, 96), 18)


def two_meet(time: float) -> Picture:
    """Two discs meet in the middle and part again."""
    gap = 33 + 60 * abs(1 - 2 * time)
    picture = disc(texture(6, X, Y, (110, 130, 104)), 7, (220, 180, 70), WIDTH / 2 - gap, HEIGHT / 2, 30)
    return disc(picture, 8, (90, 90, 190), WIDTH / 2 + gap, HEIGHT / 2, 30)


def write_film(path: Path, draw: Callable[[float], Picture]) -> None:
    """Write ``draw(0..1)`` as an H.264 film."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "26", "preset": "slow"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(RATE * SECONDS):
            picture = draw(number / (RATE * SECONDS - 1)).round().astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    for film in (ball_bounces, wheel_turns, camera_zooms, two_meet):
        write_film(Path(__file__).with_name(f"{film.__name__}.mp4"), film)
