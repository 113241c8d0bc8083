"""Drawn films: textured shapes under affine motion, painted back to front, and the exact flow between the frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.flow.kernels_cpu import compiled

Array = NDArray[Any]

PLANE, CAPSULE, BLOB, BOX = range(4)
TEXTURE_SIZE = 256  # texels, a power of two: textures repeat without a seam
NUM_TEXTURES = 64


@dataclass(frozen=True)
class Part:
    """One shape of a scene, rigid in its own coordinates; a frame is the square -0.5..0.5 of the world, y down.

    Attributes
    ----------
    poses : ndarray, (K, 2, 3), float64
        Own coordinates to the world, at each of K moments.
    kind : int
        ``PLANE`` is everywhere. ``CAPSULE`` goes from the origin to (length, 0). ``BLOB`` is round with two
        harmonics, ``BOX`` a rectangle, both about the origin.
    shape : tuple of float
        Capsule: length, radius at the origin, radius at the end. Blob: radius, strength and phase of the second and
        of the third harmonic. Box: half width, half height.
    look : Look
    """

    poses: Array
    kind: int
    shape: tuple[float, ...]
    look: Look


@dataclass(frozen=True)
class Look:
    """How a shape is painted: grey or coloured texture that moves with it.

    Attributes
    ----------
    texture : int
        Number of the texture.
    offset : (float, float), texels
        What lies at the origin.
    texels : float
        Texels for each unit of the shape's own coordinates.
    colour : (float, float, float), 0..255
        Mean RGB.
    contrast : float, grey levels
        Standard deviation of the texture.
    """

    texture: int
    offset: tuple[float, float]
    texels: float
    colour: tuple[float, float, float]
    contrast: float


def render(parts: Sequence[Part], height: int, width: int) -> Array:
    """Pictures of a scene, painted back to front with smooth edges.

    Parameters
    ----------
    parts : sequence of Part
        The first is the background.
    height, width : int, pixels
        The longer side shows one unit of the world.

    Returns
    -------
    ndarray, (K, height, width, 3), float32, RGB, about 0..255
    """
    paths, kinds, shapes = _geometry(parts, height, width)
    looks = np.array([(*part.look.offset, part.look.texels, *part.look.colour, part.look.contrast) for part in parts])
    painted = np.array([part.look.texture for part in parts])
    pictures = np.empty((len(paths), height, width, 3), np.float32)
    for picture, matrices in zip(pictures, paths, strict=True):
        _paint(picture, matrices, kinds, shapes, painted, looks.astype(np.float32), textures())
    return pictures


def exact_flow(parts: Sequence[Part], height: int, width: int) -> tuple[Array, Array]:
    """Where each pixel goes from one moment to the next, known from the motion of the part it shows.

    Returns
    -------
    flow : ndarray, (K - 1, 2, height, width), float32, pixels
        x right positive, then y down positive.
    visible : ndarray, (K - 1, height, width), bool
        The next frame shows the same part there: the pixel is neither covered nor gone.
    """
    paths, kinds, shapes = _geometry(parts, height, width)
    owners = np.empty((len(paths), height, width), np.int16)
    for owner, matrices in zip(owners, paths, strict=True):
        _own(owner, matrices, kinds, shapes)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    homogeneous = np.stack([x, y, np.ones_like(x)])
    flow = np.empty((len(owners) - 1, 2, height, width), np.float32)
    visible = np.empty((len(owners) - 1, height, width), bool)
    for moment, owner in enumerate(owners[:-1]):
        now_and_next = zip(*paths[moment : moment + 2], strict=True)
        step = np.stack([_compose(after, _inverse(before)) for before, after in now_and_next])
        there = np.einsum("yxij,jyx->iyx", step[owner], homogeneous)
        flow[moment] = there - homogeneous[:2]
        column, row = np.rint(there).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        shown = owners[moment + 1][row.clip(0, height - 1), column.clip(0, width - 1)]
        visible[moment] = inside & (shown == owner)
    return flow, visible


@cache
def textures() -> Array:
    """The textures that all scenes are painted with, the same on every machine up to rounding.

    Returns
    -------
    ndarray, (64, 256, 256), float32
        Mean 0, standard deviation 1, cut at +-2.5, without a seam. Noise with the spectrum of photographs (1/f and
        its neighbours), smooth and with edges; fallen discs (dead leaves), stripes, checks.
    """
    rng = np.random.default_rng(20180413)
    makers = (_noise, _noise, _leaves, _patches, _stripes)
    return np.stack([_standard(makers[number % len(makers)](rng)) for number in range(NUM_TEXTURES)])


def _noise(rng: np.random.Generator) -> Array:
    """Noise whose amplitude falls with a power of the frequency."""
    size = TEXTURE_SIZE
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency ** rng.uniform(0.6, 1.8)
    return np.asarray(np.fft.irfft2(spectrum))


def _patches(rng: np.random.Generator) -> Array:
    """Noise cut into a few levels: flat regions with edges."""
    noise = _standard(_noise(rng))
    return np.digitize(noise, np.sort(rng.uniform(-1.5, 1.5, rng.integers(1, 4)))) + 0.15 * noise


def _leaves(rng: np.random.Generator) -> Array:
    """Discs and squares that fell on each other, sizes as in photographs of many things."""
    size = TEXTURE_SIZE
    y, x = np.mgrid[:size, :size]
    picture = np.zeros((size, size))
    for _ in range(260):
        radius = min(60.0, 3.0 / rng.uniform(0.02, 1.0))
        dy, dx = (np.abs(axis - rng.uniform(0, size)) for axis in (y, x))
        dy, dx = np.minimum(dy, size - dy), np.minimum(dx, size - dx)
        inside = np.hypot(dy, dx) < radius if rng.random() < 0.6 else (dy < radius) & (dx < radius * 0.7)
        picture[inside] = rng.uniform(-1, 1)
    return picture


def _stripes(rng: np.random.Generator) -> Array:
    """Stripes or checks, sharp or soft, over some noise."""
    axis = np.arange(TEXTURE_SIZE) * (2 * np.pi / TEXTURE_SIZE)
    waves = [np.sin(rng.integers(4, 24) * axis + rng.uniform(0, 6.28)) for _ in range(2)]
    picture = waves[0][:, None] * (waves[1][None] if rng.random() < 0.5 else np.ones((1, TEXTURE_SIZE)))
    if rng.random() < 0.5:
        picture = picture.T
    return np.asarray(np.tanh(picture * rng.uniform(0.5, 6)) + 0.3 * _standard(_noise(rng)))


def _standard(picture: Array) -> Array:
    picture = (picture - picture.mean()) / picture.std()
    return picture.clip(-2.5, 2.5).astype(np.float32)


def _geometry(parts: Sequence[Part], height: int, width: int) -> tuple[Array, Array, Array]:
    """Poses (K, parts, 2, 3) from own coordinates to pixels, whole at their centres; kinds; shapes (parts, 5)."""
    centre = np.array([[0, 0, (width - 1) / 2], [0, 0, (height - 1) / 2]])
    paths = np.stack([part.poses for part in parts], 1) * max(height, width) + centre
    shapes = np.zeros((len(parts), 5), np.float32)
    for shape, part in zip(shapes, parts, strict=True):
        shape[: len(part.shape)] = part.shape
    return paths, np.array([part.kind for part in parts]), shapes


@compiled
def _inverse(matrix):
    (a, b, c), (d, e, f) = matrix[0], matrix[1]
    scale = 1.0 / (a * e - b * d)
    inverse = np.empty((2, 3))
    inverse[0, 0], inverse[0, 1], inverse[0, 2] = e * scale, -b * scale, (b * f - c * e) * scale
    inverse[1, 0], inverse[1, 1], inverse[1, 2] = -d * scale, a * scale, (c * d - a * f) * scale
    return inverse


def _compose(outer: Array, inner: Array) -> Array:
    """First ``inner``, then ``outer``; (..., 2, 3) each."""
    product = outer[..., :2] @ inner
    product[..., 2] += outer[..., 2]
    return np.asarray(product)


@compiled
def _extent(kind, shape, matrix, height, width):
    """First and past-the-last row and column that a part may touch."""
    if kind == PLANE:
        return 0, height, 0, width
    left = bottom = right = 0.0
    if kind == CAPSULE:
        bottom = max(shape[1], shape[2])
        left, right = -bottom, shape[0] + bottom
    elif kind == BLOB:
        bottom = shape[0] * (1 + abs(shape[1]) + abs(shape[3]))
        left, right = -bottom, bottom
    else:
        left, right, bottom = -shape[0], shape[0], shape[1]
    middle, half = (left + right) / 2, (right - left) / 2
    bounds = np.empty((2, 2))
    for axis in range(2):
        centre = matrix[axis, 0] * middle + matrix[axis, 2]
        reach = abs(matrix[axis, 0]) * half + abs(matrix[axis, 1]) * bottom + 1.5  # and the smooth edge
        bounds[axis] = centre - reach, centre + reach + 1
    first_row, last_row = max(bounds[1, 0], 0.0), min(bounds[1, 1], height)
    first_column, last_column = max(bounds[0, 0], 0.0), min(bounds[0, 1], width)
    if first_row >= last_row or first_column >= last_column:
        return 0, 0, 0, 0
    return int(first_row), int(last_row), int(first_column), int(last_column)


@compiled
def _distance(kind, shape, x, y):
    """Signed distance to the edge, in own units, negative inside; exact enough for a smooth edge."""
    if kind == CAPSULE:
        share = min(max(x / max(shape[0], np.float32(1e-6)), np.float32(0)), np.float32(1))
        away = x - share * shape[0]
        return np.sqrt(away * away + y * y) - (shape[1] + share * (shape[2] - shape[1]))
    if kind == BLOB:
        angle = np.arctan2(y, x)
        bumps = shape[1] * np.cos(2 * angle + shape[2]) + shape[3] * np.cos(3 * angle + shape[4])
        return np.sqrt(x * x + y * y) - shape[0] * (1 + bumps)
    if kind == BOX:
        return max(abs(x) - shape[0], abs(y) - shape[1])
    return np.float32(-1e9)


@compiled
def _paint(picture, matrices, kinds, shapes, painted, looks, textures):
    mask = np.int64(TEXTURE_SIZE - 1)
    one, half = np.float32(1), np.float32(0.5)
    height, width, _ = picture.shape
    for part in range(len(kinds)):
        matrix, kind, shape, look, texture = (
            matrices[part],
            kinds[part],
            shapes[part],
            looks[part],
            textures[painted[part]],
        )
        inverse = _inverse(matrix).astype(np.float32)
        sharpness = np.float32(np.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])))  # pixels a unit
        top, bottom, left, right = _extent(kind, shape, matrix, height, width)
        for row in range(top, bottom):
            for column in range(left, right):
                x = inverse[0, 0] * np.float32(column) + inverse[0, 1] * np.float32(row) + inverse[0, 2]
                y = inverse[1, 0] * np.float32(column) + inverse[1, 1] * np.float32(row) + inverse[1, 2]
                cover = min(max(half - _distance(kind, shape, x, y) * sharpness, np.float32(0)), one)
                if cover <= 0:
                    continue
                u, v = look[0] + x * look[2], look[1] + y * look[2]
                right_share, bottom_share = u - np.floor(u), v - np.floor(v)
                i, j = np.int64(np.floor(v)) & mask, np.int64(np.floor(u)) & mask
                k, m = (i + 1) & mask, (j + 1) & mask
                value = (one - bottom_share) * ((one - right_share) * texture[i, j] + right_share * texture[i, m])
                value += bottom_share * ((one - right_share) * texture[k, j] + right_share * texture[k, m])
                for channel in range(3):
                    colour = look[3 + channel] + look[6] * value
                    if cover < one:
                        colour = colour * cover + picture[row, column, channel] * (one - cover)
                    picture[row, column, channel] = colour


@compiled
def _own(owner, matrices, kinds, shapes):
    """Which part each pixel shows."""
    height, width = owner.shape
    for part in range(len(kinds)):
        inverse = _inverse(matrices[part]).astype(np.float32)
        top, bottom, left, right = _extent(kinds[part], shapes[part], matrices[part], height, width)
        for row in range(top, bottom):
            for column in range(left, right):
                x = inverse[0, 0] * np.float32(column) + inverse[0, 1] * np.float32(row) + inverse[0, 2]
                y = inverse[1, 0] * np.float32(column) + inverse[1, 1] * np.float32(row) + inverse[1, 2]
                if _distance(kinds[part], shapes[part], x, y) <= 0:
                    owner[row, column] = part
