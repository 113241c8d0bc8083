"""A small set of films in four classes: a texture that moves left, right, up or down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from films import write_film
from numpy.typing import NDArray

MOTIONS = {"down": (2, 0), "left": (0, -2), "right": (0, 2), "up": (-2, 0)}  # rows and columns a frame


def moving_texture(number: int, motion: tuple[int, int], seed: int, side: int = 112) -> NDArray[np.uint8]:
    """Frame ``number`` (H, W, 3) of a random smooth texture that goes round."""
    random = np.random.default_rng(seed)
    texture = random.uniform(0, 255, (side // 8, side // 8, 3)).repeat(8, 0).repeat(8, 1)
    for axis in (0, 1):
        texture = sum(np.roll(texture, shift, axis) for shift in range(-3, 4)) / 7
    return np.roll(texture, tuple(number * step for step in motion), (0, 1)).astype(np.uint8)


def write_films(folder: Path, films_a_class: int = 2, num_frames: int = 12) -> Path:
    """One folder a class of MJPEG films, 25 frames a second."""
    for label, (name, motion) in enumerate(MOTIONS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(films_a_class):
            write_film(
                folder / name / f"{name}{number}.avi",
                num_frames,
                codec="mjpeg",
                pixel_format="yuvj420p",
                picture=lambda frame, motion=motion, seed=10 * label + number: moving_texture(frame, motion, seed),
            )
    return folder
