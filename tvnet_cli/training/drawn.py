"""An endless, seeded source of pairs whose flow is known: layers of textured things, each under its own motion."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from tvnet_cli.training.motion import Scene, compose, poses
from tvnet_cli.training.pairs import KnownPair
from tvnet_cli.training.render import PLANE, Array, Look, Part, exact_flow, render

SLOWEST, FASTEST = 0.2, 10.0  # pixels
MOST_THINGS = 8
# Chosen so that the gradients of a frame are as strong and as sparse as in 17 ordinary films: mean 5 and median 2 grey
# levels a pixel, a tenth above 12, a hundredth above 35, once stretched and smoothed as the solver does.
CONTRAST = (12.0, 60.0)  # grey levels, standard deviation of a texture
TEXELS = (8.0, 120.0)  # for a thing as large as the picture: from nearly plain to fine
LENS = (0.2, 1.0)  # pixels, sigma of its blur
NOISE = (0.3, 3.0)  # grey levels, standard deviation


class _Layers(Scene):
    def look(self, contrast: float = 1.0, texels: tuple[float, float] = TEXELS) -> Look:
        return super().look(contrast, texels)


def drawn_pair(seed: int, index: int, size: int) -> KnownPair:
    """The pair of this number: the same for the same arguments, whichever pairs were drawn before.

    A background and up to 8 things before it are moved, turned, sized and sheared a little. Half of the things go
    their own way, the others nearly that of the background, as seen by a camera that moves. Speeds are drawn by
    their logarithm, so that slow and fast motion are as frequent, and all directions are equally likely. The camera
    blurs and adds noise.

    Parameters
    ----------
    seed, index : int
        Choose the scene. Pairs of other seeds have nothing in common with it.
    size : int, pixels
        Side of the frames. Speeds are in pixels, whatever the size.

    Returns
    -------
    KnownPair
        The flow is known everywhere, also of what the second frame covers.
    """
    rng = np.random.default_rng((seed, index))
    scene = _Layers(rng, size)
    scene.contrast = scene.log_uniform(*CONTRAST)
    camera = _motion(scene)
    start = poses(np.zeros((1, 2)), scene.uniform(0, 6.28))[0]
    parts = [Part(_moved(start, camera), PLANE, (), scene.look())]
    for _ in range(int(rng.integers(MOST_THINGS + 1))):
        own = _motion(scene)
        if scene.chance(0.5):
            own = camera + 0.2 * (own - _REST)
        start = poses(scene.place(0.5)[None], scene.uniform(0, 6.28))[0]
        parts.append(scene.thing(_moved(start, own), scene.log_uniform(0.06, 0.4)))
    sigma = scene.uniform(*LENS)
    pictures = ndimage.gaussian_filter(render(parts, size, size), (0, sigma, sigma, 0), truncate=3)
    pictures += np.float32(scene.log_uniform(*NOISE)) * rng.standard_normal(pictures.shape, np.float32)
    first, second = np.clip(np.rint(pictures), 0, 255).astype(np.uint8)
    flow, _ = exact_flow(parts, size, size)
    return KnownPair(first, second, flow[0])


_REST = np.eye(2, 3)


def _motion(scene: Scene) -> Array:
    """An affine transform of the world, (2, 3), from one frame to the next, about a place in the picture."""
    rng = scene.rng
    turned: Array = poses(np.zeros((1, 2)), rng.normal(0, 0.015), math.exp(rng.normal(0, 0.015)))[0]
    turned[:, :2] += rng.normal(0, 0.006, (2, 2))
    centre, direction = scene.place(0.5), scene.uniform(0, 2 * math.pi)
    way = np.array([math.cos(direction), math.sin(direction)]) * scene.log_uniform(SLOWEST, FASTEST) / scene.size
    turned[:, 2] = centre - turned[:, :2] @ centre + way
    return turned


def _moved(start: Array, motion: Array) -> Array:
    """Poses (2, 2, 3) of the two frames."""
    return np.stack((start, compose(motion, start)))
