"""A second, slow implementation of the authors' arithmetic, from its description alone: the oracle of the tests."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

E = np.float32(1e-12)
GAUSSIAN = np.array(
    [
        [0.000874, 0.006976, 0.01386, 0.006976, 0.000874],
        [0.006976, 0.0557, 0.110656, 0.0557, 0.006976],
        [0.01386, 0.110656, 0.219833, 0.110656, 0.01386],
        [0.006976, 0.0557, 0.110656, 0.0557, 0.006976],
        [0.000874, 0.006976, 0.01386, 0.006976, 0.000874],
    ],
    np.float32,
)


def prepare(first: Image, second: Image) -> tuple[Image, Image]:
    """RGB (H, W, 3) uint8 pair to smoothed grey levels."""

    def grey(rgb: Image) -> Image:
        r, g, b = (rgb[..., channel].astype(np.int64) for channel in range(3))
        return ((114 * b + 587 * g + 299 * r) // 1000).astype(np.float32)

    a, b = grey(first), grey(second)
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    if high > low:
        a, b = 255 * (a - low) / (high - low), 255 * (b - low) / (high - low)

    def blur(image: Image) -> Image:
        padded, out = np.pad(image, 2), np.zeros_like(image)
        for i in range(5):
            for j in range(5):
                out += GAUSSIAN[i, j] * padded[i : i + image.shape[0], j : j + image.shape[1]]
        return out

    return blur(a), blur(b)


def sample(image: Image, gx: Image, gy: Image) -> Image:
    """Read at normalised coordinates -1..1, pixel by pixel."""
    height, width = image.shape
    out = np.zeros(gx.shape, np.float32)
    for i, j in np.ndindex(gx.shape):
        x = (gx[i, j] + np.float32(1)) * np.float32(width - 1) / np.float32(2)
        y = (gy[i, j] + np.float32(1)) * np.float32(height - 1) / np.float32(2)
        fx, fy = math.floor(x), math.floor(y)
        x0, x1 = min(max(fx, 0), width - 2), min(max(fx + 1, 0), width - 1)
        y0, y1 = min(max(fy, 0), height - 2), min(max(fy + 1, 0), height - 1)
        out[i, j] = (
            (x1 - x) * (y1 - y) * image[y0, x0]
            + (x1 - x) * (y - y0) * image[y1, x0]
            + (x - x0) * (y1 - y) * image[y0, x1]
            + (x - x0) * (y - y0) * image[y1, x1]
        )
    return out


def grid(height: int, width: int) -> tuple[Image, Image]:
    gx, gy = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    return gx, gy


def resize(image: Image, height: int, width: int) -> Image:
    return sample(image, *grid(height, width))


def warp(image: Image, u: Image) -> Image:
    height, width = image.shape
    gx, gy = grid(height, width)
    return sample(image, gx + u[0] / np.float32(width) * 2, gy + u[1] / np.float32(height) * 2)


def centered(image: Image) -> tuple[Image, Image]:
    gx, gy = np.zeros_like(image), np.zeros_like(image)
    gx[:, 1:-1] = (image[:, 2:] - image[:, :-2]) / 2
    gx[:, 0], gx[:, -1] = (image[:, 1] - image[:, 0]) / 2, (image[:, -1] - image[:, -2]) / 2
    gy[1:-1] = (image[2:] - image[:-2]) / 2
    gy[0], gy[-1] = (image[1] - image[0]) / 2, (image[-1] - image[-2]) / 2
    return gx, gy


def divergence(p: Image, k: Image) -> Image:
    """Of p (2 axes, H, W) with kernels k (2 axes, 2 taps)."""
    _, height, width = p.shape
    zero_column, zero_row = np.zeros((height, 1), np.float32), np.zeros((1, width), np.float32)
    qx = np.concatenate([zero_column, p[0][:, :-1], zero_column], 1)
    qy = np.concatenate([zero_row, p[1][:-1], zero_row], 0)
    return k[0, 0] * qx[:, :-1] + k[0, 1] * qx[:, 1:] + k[1, 0] * qy[:-1] + k[1, 1] * qy[1:]


def gradient(u: Image, k: Image) -> Image:
    out = np.zeros((2, *u.shape), np.float32)
    out[0, :, :-1] = k[0, 0] * u[:, :-1] + k[0, 1] * u[:, 1:]
    out[1, :-1] = k[1, 0] * u[:-1] + k[1, 1] * u[1:]
    return out


def flow(
    first: Image,
    second: Image,
    scales: int,
    warps: int,
    iterations: int,
    kernels: tuple[Image, Image],
    u0: Image | None = None,
    zoom: float = 0.5,
    tau: float = 0.25,
    lambda_: float = 0.15,
    theta: float = 0.3,
) -> Image:
    """Flow (2, H, W) of an RGB pair; kernels are (gradient, divergence), as in the module."""
    a_full, b_full = prepare(first, second)
    height, width = a_full.shape
    levels = 1 + math.log(math.sqrt(height**2 + width**2) / 4) / math.log(1 / zoom)
    scales = min(int(levels), scales)
    l_t, taut = np.float32(lambda_ * theta), np.float32(tau / theta)
    u = u0
    for s in reversed(range(scales)):
        h, w = int(height * zoom**s + 0.5), int(width * zoom**s + 0.5)
        a, b = resize(a_full, h, w), resize(b_full, h, w)
        if s == scales - 1:
            u = np.zeros((2, h, w), np.float32) if u is None else u
        else:
            u = np.stack([resize(part, h, w) / np.float32(zoom) for part in u])
        gx, gy = centered(b)
        p = np.zeros((2, 2, h, w), np.float32)
        for n in range(warps):
            bw, gxw, gyw = warp(b, u), warp(gx, u), warp(gy, u)
            g = gxw**2 + gyw**2 + E
            rho_c = bw - gxw * u[0] - gyw * u[1] - a
            for i in range(iterations):
                rho = rho_c + gxw * u[0] + gyw * u[1] + E
                c = np.where(rho < -l_t * g, l_t, np.where(rho > l_t * g, -l_t, np.where(g > E, -rho / g, 0)))
                v = u + c * np.stack([gxw, gyw])
                u = np.stack([v[d] + np.float32(theta) * divergence(p[d], kernels[1][s, n, i, d]) for d in (0, 1)])
                for d in (0, 1):
                    grad = gradient(u[d], kernels[0][s, n, i, d])
                    p[d] = (p[d] + taut * grad) / (1 + taut * np.sqrt(grad[0] ** 2 + grad[1] ** 2 + E))
    return u
