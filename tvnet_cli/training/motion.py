"""An endless, seeded source of labelled clips whose classes are motions, not looks. Nothing to download.

A clip is a scene of textured shapes: planes, blobs, boxes, arms that reach into the picture, figures with limbs, pairs
of figures. Its class says what moves and how; all else, what things look like, where they are, how fast they go, what
the camera does, is drawn at random from the seed and the number of the clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import fft, ndimage

from tvnet_cli.training.render import BLOB, BOX, CAPSULE, NUM_TEXTURES, PLANE, Look, Part, exact_flow, render

Array = NDArray[Any]
Random = np.random.Generator

CLIP_LENGTH = 6  # frames
SLOWEST, FASTEST = 0.0012, 0.03  # frame sides per frame: 0.27 and 6.7 pixels at 224
DIRECTIONS = (
    "right",
    "down_right",
    "down",
    "down_left",
    "left",
    "up_left",
    "up",
    "up_right",
)  # 45 degrees apart, y down


@dataclass(frozen=True)
class MotionClip:
    """One drawn clip.

    Attributes
    ----------
    frames : ndarray, (6, H, W, 3), uint8, RGB
    label : int
        Number of its class in ``CLASSES``.
    flow : ndarray, (5, 2, H, W), float32, pixels, or None
        The exact flow of each pair of frames.
    visible : ndarray, (5, H, W), bool, or None
        Where the next frame shows the same thing, so that the flow can be seen.
    """

    frames: Array
    label: int
    flow: Array | None = None
    visible: Array | None = None


def motion_clip(
    seed: int, index: int, size: int, *, with_flow: bool = False, labels: Sequence[int] | None = None
) -> MotionClip:
    """The clip of this number: the same for the same arguments, whichever clips were drawn before.

    Parameters
    ----------
    seed, index : int
        Choose the scene. Clips of other seeds have nothing in common with it.
    size : int, pixels
        Side of the frames. The scene fills them whatever the size.
    with_flow : bool
        Also give the exact flow, which takes as long again.
    labels : sequence of int, optional
        Classes to choose from; all of them by default.

    Returns
    -------
    MotionClip
    """
    rng = np.random.default_rng((seed, index))
    label = int(rng.integers(len(CLASSES)) if labels is None else rng.choice(list(labels)))
    scene = Scene(rng, size)
    parts = CLASSES[CLASS_NAMES[label]](scene)
    frames = _filmed(scene, parts, size)
    flow, visible = exact_flow(scene.at_frames(parts), size, size) if with_flow else (None, None)
    return MotionClip(frames, label, flow, visible)


class Scene:
    """What the classes draw on: random numbers, the moments of exposure, and the things they have in common.

    Parameters
    ----------
    rng : Generator
    size : int, pixels
        Side of the frames; textures are not finer than pixels.
    """

    def __init__(self, rng: Random, size: int) -> None:
        self.rng = rng
        self.size = size
        # Motion blur: two exposures a frame, the shutter open for a part of the frame's time.
        self.exposures = 2 if rng.random() < 0.25 else 1
        shutter = rng.uniform(0.2, 0.8)
        frames = np.arange(CLIP_LENGTH) - (CLIP_LENGTH - 1) / 2
        self.times = (frames[:, None] + shutter * np.arange(self.exposures) / 2).ravel()  # frames, 0 in the middle
        self.dark = rng.uniform(20, 110)  # mean grey of the darker things
        self.contrast = math.exp(rng.uniform(math.log(4), math.log(45)))

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.rng.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def sign(self) -> int:
        return 1 if self.chance(0.5) else -1

    def speed(self) -> float:
        """Frame sides per frame."""
        return self.log_uniform(SLOWEST, FASTEST)

    def towards(self, direction: str) -> Array:
        """A unit vector within 20 degrees of the direction."""
        angle = math.radians(45 * DIRECTIONS.index(direction) + self.uniform(-20, 20))
        return np.array([math.cos(angle), math.sin(angle)])

    def place(self, reach: float = 0.3) -> Array:
        return self.rng.uniform(-reach, reach, 2)

    def look(self, contrast: float = 1.0, texels: tuple[float, float] = (50, 300)) -> Look:
        """A random texture and colour; ``contrast`` is relative to that of the scene."""
        grey = self.dark + self.uniform(0, 130)
        colour = np.clip(grey + self.rng.normal(0, 25, 3), 0, 255)
        return Look(
            texture=int(self.rng.integers(NUM_TEXTURES)),
            offset=(self.uniform(0, 256), self.uniform(0, 256)),
            texels=min(self.log_uniform(*texels), 1.2 * self.size),
            colour=(float(colour[0]), float(colour[1]), float(colour[2])),
            contrast=contrast * self.contrast * self.uniform(0.5, 1.3),
        )

    def rigid(
        self,
        place: Array,
        velocity: Array | float = 0.0,
        *,
        angle: Array | float = 0.0,
        scale: Array | float = 1.0,
    ) -> Array:
        """Poses (K, 2, 3): turned by ``angle``, sized by ``scale``, at ``place`` in the middle of the clip."""
        path = place + np.multiply.outer(self.times, velocity) if np.ndim(velocity) == 1 else place + velocity
        return poses(np.broadcast_to(path, (len(self.times), 2)), angle, scale)

    def ground(self) -> list[Part]:
        """The background, still: one plane, and sometimes things on it."""
        parts = [Part(self.rigid(np.zeros(2), angle=self.uniform(0, 6.28)), PLANE, (), self.look())]
        for _ in range(int(self.rng.integers(0, 3))):
            still = self.rigid(self.place(0.5), angle=self.uniform(0, 6.28))
            parts.append(self.thing(still, self.log_uniform(0.05, 0.3)))
        return parts

    def thing(self, path: Array, radius: float) -> Part:
        """A blob, box or capsule of about this radius."""
        look = self.look(1.3)
        kind = int(self.rng.choice([BLOB, BLOB, BOX, CAPSULE]))
        if kind == BLOB:
            harmonics = (self.uniform(0, 0.25), self.uniform(0, 6.28), self.uniform(0, 0.2), self.uniform(0, 6.28))
            return Part(path, BLOB, (radius, *harmonics), look)
        thin = radius * self.uniform(0.35, 0.9)
        if kind == BOX:
            return Part(path, BOX, (radius, thin), look)
        path = compose(path, np.array([[1.0, 0, -radius * 0.7], [0, 1, 0]]))
        return Part(path, CAPSULE, (1.4 * radius, 0.6 * thin, 0.6 * thin * self.uniform(0.6, 1.4)), look)

    def filmed_from(self, parts: Sequence[Part], camera: Array) -> list[Part]:
        return [replace(part, poses=compose(camera, part.poses)) for part in parts]

    def with_camera(self, parts: Sequence[Part]) -> list[Part]:
        """Seen by a camera that stands still, shakes in someone's hand, or slowly follows something else."""
        kind = self.rng.choice(3, p=[0.45, 0.3, 0.25])
        count = len(self.times)
        path, angle, scale = np.zeros((count, 2)), np.zeros(count), np.ones(count)
        if kind == 1:
            path = self._tremble(2) * self.log_uniform(0.0005, 0.004)
            angle = self._tremble(1)[:, 0] * self.uniform(0, 0.006)
        elif kind == 2:
            path = np.multiply.outer(self.times, self.towards(str(self.rng.choice(DIRECTIONS))))
            path *= self.log_uniform(0.0005, 0.006)
            angle = self.times * self.rng.normal(0, 0.004)
            scale = np.exp(self.times * self.rng.normal(0, 0.004))
        if self.chance(0.12):  # something in front of everything, close to the camera
            front = self.rigid(self.sign() * self.rng.uniform(0.3, 0.55, 2), angle=self.uniform(0, 6.28))
            parts = [*parts, self.thing(front, self.uniform(0.1, 0.25))]
        return self.filmed_from(parts, poses(path, angle, scale))

    def at_frames(self, parts: Sequence[Part]) -> list[Part]:
        """The parts at the first exposure of each frame."""
        return [replace(part, poses=part.poses[:: self.exposures]) for part in parts]

    def _tremble(self, axes: int) -> Array:
        """Smooth random paths (K, axes) that start anywhere."""
        phase = self.rng.uniform(0, 6.28, (3, axes))
        rates = self.rng.uniform(0.2, 1.6, (3, axes))
        return np.asarray(np.sin(self.times[:, None, None] * rates + phase).sum(1))


def poses(path: Array, angle: Array | float = 0.0, scale: Array | float = 1.0) -> Array:
    """Similarity transforms (K, 2, 3) from places (K, 2), angles in radians (x towards y) and scales."""
    angle, scale = np.broadcast_to(angle, len(path)), np.broadcast_to(scale, len(path))
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    return np.stack([np.stack([cosine, -sine, path[:, 0]], -1), np.stack([sine, cosine, path[:, 1]], -1)], 1)


def compose(outer: Array, inner: Array) -> Array:
    """First ``inner``, then ``outer``: affine transforms (..., 2, 3)."""
    linear = outer[..., :2] @ inner[..., :2]
    moved = (outer[..., :2] @ inner[..., 2:])[..., 0] + outer[..., 2]
    return np.concatenate([linear, moved[..., None]], -1)


# --- the camera moves -------------------------------------------------------------------------------------------------


def _camera(
    scene: Scene, path: Array | float = 0.0, angle: Array | float = 0.0, scale: Array | float = 1.0
) -> list[Part]:
    parts = scene.ground()
    if scene.chance(0.4):
        parts += _standing(scene)
    places = np.broadcast_to(path, (len(scene.times), 2))
    return scene.filmed_from(parts, poses(places, angle, scale))


def _still(scene: Scene) -> list[Part]:
    return _camera(scene)


def _pan(scene: Scene, direction: str) -> list[Part]:
    return _camera(scene, np.multiply.outer(scene.times, scene.towards(direction) * scene.speed()))


def _zoom(scene: Scene, sign: int) -> list[Part]:
    return _camera(scene, scale=np.exp(sign * scene.times * scene.log_uniform(0.005, 0.05)))


def _roll(scene: Scene, sign: int) -> list[Part]:
    return _camera(scene, angle=sign * scene.times * scene.log_uniform(0.004, 0.05))


# --- one thing moves --------------------------------------------------------------------------------------------------


def _object(scene: Scene, path: Array | float, angle: Array | float = 0.0, scale: Array | float = 1.0) -> list[Part]:
    moved = scene.rigid(scene.place(), path, angle=scene.uniform(0, 6.28) + angle, scale=scale)
    return scene.with_camera([*scene.ground(), scene.thing(moved, scene.log_uniform(0.06, 0.3))])


def _translate(scene: Scene, direction: str) -> list[Part]:
    return _object(scene, scene.towards(direction) * scene.speed())


def _rotate(scene: Scene, sign: int) -> list[Part]:
    return _object(scene, 0.0, sign * scene.times * scene.log_uniform(0.02, 0.2))


def _grow(scene: Scene, sign: int) -> list[Part]:
    return _object(scene, 0.0, scale=np.exp(sign * scene.times * scene.log_uniform(0.01, 0.08)))


def _circle(scene: Scene, sign: int) -> list[Part]:
    return _object(scene, _circling(scene, sign))


def _circling(scene: Scene, sign: int) -> Array:
    """A path (K, 2) that bends enough within the clip to be told from a straight one."""
    turn = scene.uniform(0.18, 0.55)  # radians a frame
    radius = scene.speed() / turn
    angle = scene.uniform(0, 6.28) + sign * turn * scene.times
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def _swing(scene: Scene) -> list[Part]:
    """To and fro about a point, as a pendulum."""
    turning = _oscillation(scene, 0.12, 0.6)
    length, hung = scene.uniform(0.2, 0.5), scene.uniform(0, 6.28)
    pivot = scene.rigid(scene.place(), angle=hung + turning)
    arm = compose(pivot, np.array([[1.0, 0, length], [0, 1, 0]]))
    return scene.with_camera([*scene.ground(), scene.thing(arm, scene.log_uniform(0.06, 0.2))])


def _shake(scene: Scene, axis: int) -> list[Part]:
    """To and fro along one axis."""
    path = np.zeros((len(scene.times), 2))
    path[:, axis] = _oscillation(scene, 0.004, 0.03)
    path[:, 1 - axis] = path[:, axis] * scene.uniform(-0.25, 0.25)
    return _object(scene, path)


def _oscillation(scene: Scene, weakest: float, strongest: float) -> Array:
    """Turns round within the clip: period 4 to 9 frames."""
    rate = 2 * math.pi / scene.uniform(4, 9)
    return scene.log_uniform(weakest, strongest) * np.sin(rate * scene.times + scene.uniform(-0.6, 0.6))


# --- two things move --------------------------------------------------------------------------------------------------


def _two(scene: Scene, relation: str) -> list[Part]:
    axis = scene.towards(str(scene.rng.choice(DIRECTIONS)))
    across = np.array([-axis[1], axis[0]])
    radius, speed = scene.log_uniform(0.06, 0.2), scene.speed()
    middle = scene.place(0.2)
    gap = radius * scene.uniform(1.1, 2.2)
    velocity = {"approach": -axis, "part": axis, "pass_cw": across, "pass_ccw": -across}[relation] * speed
    parts = scene.ground()
    for side in (1, -1):
        share = scene.uniform(0.5, 1.0)
        path = scene.rigid(middle + side * gap * axis, side * velocity * share, angle=scene.uniform(0, 6.28))
        parts.append(scene.thing(path, radius * scene.uniform(0.8, 1.2)))
    return scene.with_camera(parts)


# --- an arm reaches into the picture ----------------------------------------------------------------------------------


def _arm(scene: Scene, path: Array) -> list[Part]:
    """A hand on a forearm that comes from outside, moved by poses (K, 2, 3) about the hand."""
    parts = scene.ground()
    size = scene.log_uniform(0.04, 0.13)
    skin = scene.look(0.7)
    sleeve = skin if scene.chance(0.4) else scene.look(1.0)
    outwards = math.radians(90 + scene.rng.normal(0, 35)) if scene.chance(0.8) else scene.uniform(0, 6.28)
    turned = compose(path, poses(np.zeros((1, 2)), outwards)[0])
    parts.append(Part(turned, CAPSULE, (1.2, 0.6 * size, 0.9 * size), sleeve))
    parts.append(Part(path, BLOB, (size, scene.uniform(0, 0.2), scene.uniform(0, 6.28), 0.1, 0.0), skin))
    spread = scene.uniform(0.1, 0.5)
    for finger in range(int(scene.rng.integers(0, 5))):
        angle = outwards + math.pi + spread * (finger - 1.5)
        placed = compose(path, poses(np.zeros((1, 2)), angle)[0])
        parts.append(Part(placed, CAPSULE, (size * scene.uniform(1.4, 2.1), 0.25 * size, 0.2 * size), skin))
    return scene.with_camera(parts)


def _arm_translate(scene: Scene, direction: str) -> list[Part]:
    return _arm(scene, scene.rigid(scene.place(), scene.towards(direction) * scene.speed()))


def _arm_circle(scene: Scene, sign: int) -> list[Part]:
    return _arm(scene, scene.rigid(scene.place(), _circling(scene, sign)))


def _arm_wave(scene: Scene) -> list[Part]:
    """The forearm turns to and fro about an elbow below."""
    elbow = np.array([[1.0, 0, 0], [0, 1, -scene.uniform(0.3, 0.7)]])
    pivot = scene.rigid(scene.place() - elbow[:, 2], angle=_oscillation(scene, 0.02, 0.15))
    return _arm(scene, compose(pivot, elbow))


# --- figures ----------------------------------------------------------------------------------------------------------

# Angles in radians from straight down, forwards positive; torso from straight up. Shoulders and hips are absolute,
# elbows and knees relative. Near and far are the sides of the body.
JOINTS = ("torso", "near_arm", "near_elbow", "far_arm", "far_elbow", "near_leg", "near_knee", "far_leg", "far_knee")
STANDING = {"near_arm": 0.1, "near_elbow": 0.25, "far_arm": -0.1, "far_elbow": 0.25, "near_leg": 0.1, "far_leg": -0.1}

Pose = dict[str, float]


@dataclass(frozen=True)
class Action:
    """What a figure does: joints from one pose to another, steps, and the ways of its hips.

    Attributes
    ----------
    start, end : dict
        Angles of the joints that move.
    frames : (float, float)
        How long it takes, shortest and longest.
    walk : float
        Strength of the swing of legs and arms.
    forwards, down : float, body heights
        How far the hips go in the time of the action.
    fall : float, radians
        The whole body turns about its feet.
    tremble : tuple of str
        Joints that go to and fro.
    """

    start: Pose
    end: Pose
    frames: tuple[float, float] = (8, 30)
    walk: float = 0.0
    forwards: float = 0.0
    down: float = 0.0
    fall: float = 0.0
    tremble: tuple[str, ...] = ()


STAND = Action({}, {})
RAISE = Action({}, {"near_arm": 2.4, "near_elbow": 0.2})
RAISE_BOTH = Action({}, {"near_arm": 2.5, "far_arm": 2.6})
LOWER = Action(RAISE.end, {})
STRIKE = Action(
    {"near_arm": 0.5, "near_elbow": 2.2, "torso": -0.1},
    {"near_arm": 1.5, "near_elbow": 0.05, "torso": 0.2},
    (5, 16),
    forwards=0.05,
)
SHOVE = Action(
    {"near_arm": 0.7, "near_elbow": 1.9, "far_arm": 0.7, "far_elbow": 1.9, "torso": 0.0},
    {"near_arm": 1.5, "near_elbow": 0.1, "far_arm": 1.4, "far_elbow": 0.1, "torso": 0.35},
    (6, 18),
    forwards=0.08,
)
KICK = Action(
    {"near_leg": -0.4, "near_knee": -1.0, "torso": 0.1}, {"near_leg": 1.4, "near_knee": -0.1, "torso": -0.25}, (5, 16)
)
REACH = Action({}, {"near_arm": 1.2, "near_elbow": 0.3}, (10, 30))
EMBRACE = Action(
    {}, {"near_arm": 1.4, "near_elbow": 0.5, "far_arm": 1.3, "far_elbow": 0.5, "torso": 0.1}, (10, 30), forwards=0.15
)
WAVE = Action(
    {"near_arm": 2.4, "near_elbow": 0.5}, {"near_arm": 2.4, "near_elbow": 0.5}, tremble=("near_elbow", "near_arm")
)
WALK = Action({}, {}, (12, 30), walk=0.5, forwards=0.75)
CROUCH = Action({}, {"near_leg": 1.3, "near_knee": -2.3, "far_leg": 1.2, "far_knee": -2.2, "torso": 0.5}, down=0.3)
RISE = Action(CROUCH.end, {}, down=-0.3)
JUMP = Action(
    {"near_arm": 0.4, "far_arm": 0.4},
    {"near_arm": 1.4, "far_arm": 1.4, "near_knee": -0.4, "far_knee": -0.4},
    (6, 14),
    down=-0.25,
)
BEND = Action({}, {"torso": 1.3, "near_arm": 0.6, "far_arm": 0.5})
FALL = Action({}, {"near_arm": 1.0, "far_arm": 0.8}, (10, 30), fall=1.4)
RECOIL = Action({}, {"torso": -0.4, "near_arm": 0.5, "far_arm": 0.4}, (6, 18), forwards=-0.12)


def _figure(
    scene: Scene, action: Action, facing: int, feet: Array, height: float, pace: float | None = None
) -> list[Part]:
    """The parts of a figure that stands at ``feet`` in the middle of its action.

    ``pace``, frames, is how long the action takes, if it is to be the same for two.
    """
    rng = scene.rng
    duration = pace or scene.log_uniform(*action.frames)
    middle = scene.uniform(0.25, 0.75)
    done = np.clip(middle + scene.times / duration, 0, 1)
    eased = done * done * (3 - 2 * done)
    joints = {}
    for joint in JOINTS:
        rest = STANDING.get(joint, 0.0) + rng.normal(0, 0.12)
        if joint.endswith("knee"):
            rest = -abs(rest)
        begin, finish = action.start.get(joint), action.end.get(joint)
        begin = rest if begin is None else begin + rng.normal(0, 0.12)
        finish = rest if finish is None else finish + rng.normal(0, 0.12)
        joints[joint] = begin + (finish - begin) * eased
    for joint in action.tremble:
        joints[joint] = joints[joint] + _oscillation(scene, 0.15, 0.6)
    if action.walk:
        step = math.pi * 2 * (middle + scene.times / duration) + scene.uniform(0, 6.28)
        reach = action.walk * scene.uniform(0.6, 1.2)
        joints["near_leg"], joints["far_leg"] = reach * np.sin(step), -reach * np.sin(step)
        joints["near_knee"] = -reach * (1 + np.cos(step)) * 0.6
        joints["far_knee"] = -reach * (1 - np.cos(step)) * 0.6
        joints["near_arm"], joints["far_arm"] = -0.7 * reach * np.sin(step), 0.7 * reach * np.sin(step)
    if scene.chance(0.5):  # the other side does it
        swapped = {"near": "far", "far": "near"}
        joints = {
            (swapped[side] + "_" + name if name else side): value
            for (side, _, name), value in ((joint.partition("_"), value) for joint, value in joints.items())
        }
    travelled = done - middle
    hips = np.stack([action.forwards * travelled, -0.5 + action.down * travelled], -1)
    width = facing * scene.uniform(0.55, 1.0)  # seen more or less from the side
    body = np.zeros((len(done), 2, 3))
    body[:, 0, 0], body[:, 1, 1], body[:, :, 2] = width * height, height, feet
    if action.fall:
        turned = poses(np.zeros((len(done), 2)), action.fall * (eased - 0.5) + action.fall * scene.uniform(0.2, 0.5))
        body = compose(body, turned)
    return _body_parts(scene, body, hips, joints)


def _body_parts(scene: Scene, body: Array, hips: Array, joints: dict[str, Array]) -> list[Part]:
    shirt, trousers, skin = scene.look(1.2), scene.look(1.0), scene.look(0.5)
    stout = scene.uniform(0.8, 1.35)
    count = len(hips)

    def limb(start: Array, angle: Array, length: float, radii: tuple[float, float], look: Look) -> tuple[Part, Array]:
        """A capsule from ``start`` along ``angle`` from straight down, and where it ends."""
        placed = compose(body, poses(start, math.pi / 2 - angle))
        ends = start + length * np.stack([np.sin(angle), np.cos(angle)], -1)
        return Part(placed, CAPSULE, (length, radii[0] * stout, radii[1] * stout), look), ends

    torso, neck = limb(hips, math.pi - joints["torso"], 0.29, (0.06, 0.075), shirt)
    tall = math.pi - joints["torso"] + scene.rng.normal(0, 0.1)
    _, head_centre = limb(neck, tall, 0.11, (0.0, 0.0), skin)
    head = Part(compose(body, poses(head_centre)), BLOB, (0.065, 0.1, 0.0, 0.0, 0.0), skin)
    shoulders = neck + (hips - neck) * 0.12
    sides: dict[str, list[Part]] = {}
    bare = skin if scene.chance(0.4) else shirt
    for side in ("near", "far"):
        upper, elbow = limb(shoulders, joints[f"{side}_arm"], 0.16, (0.035, 0.03), shirt)
        bent = joints[f"{side}_arm"] + joints[f"{side}_elbow"]
        lower, wrist = limb(elbow, bent, 0.15, (0.03, 0.022), bare)
        hand = Part(compose(body, poses(wrist)), BLOB, (0.03 * stout, 0.1, 0.0, 0.0, 0.0), skin)
        thigh, knee = limb(hips, joints[f"{side}_leg"], 0.25, (0.05, 0.04), trousers)
        shin, ankle = limb(knee, joints[f"{side}_leg"] + joints[f"{side}_knee"], 0.25, (0.038, 0.028), trousers)
        foot, _ = limb(ankle, np.full(count, 1.45), 0.07, (0.025, 0.02), skin)
        sides[side] = [thigh, shin, foot, upper, lower, hand]
    far, near = sides["far"], sides["near"]
    return [*far[3:], *far[:3], *near[:3], torso, head, *near[3:]]


def _stage(scene: Scene, people: int = 1) -> tuple[float, Array]:
    """Height of a figure and the middle of the feet, so that most of it is in the picture."""
    height = scene.log_uniform(0.45, 1.15) if people == 1 else scene.log_uniform(0.45, 1.0)
    top = scene.uniform(-0.5, max(-0.45, 0.5 - height)) + scene.rng.normal(0, 0.05)
    return height, np.array([scene.uniform(-0.25, 0.25) / people, top + height])


def _standing(scene: Scene) -> list[Part]:
    height, feet = _stage(scene)
    return _figure(scene, STAND, scene.sign(), feet, height)


def _person(scene: Scene, actions: Sequence[Action], facing: int | None = None) -> list[Part]:
    height, feet = _stage(scene)
    action = actions[int(scene.rng.integers(len(actions)))]
    moving = _figure(scene, action, facing or scene.sign(), feet, height)
    bystander = _standing(scene) if scene.chance(0.1) else []
    return scene.with_camera([*scene.ground(), *bystander, *moving])


def _pair(scene: Scene, left: Action, right: Action, gap: tuple[float, float], apart: int = 1) -> list[Part]:
    """Two figures that face each other (``apart`` 1) or turn their backs (-1), in step with each other."""
    height, middle = _stage(scene, people=2)
    slow, fast = max(left.frames[0], right.frames[0]), min(left.frames[1], right.frames[1])
    pace = scene.log_uniform(min(slow, fast), max(slow, fast))
    distance = np.array([height * scene.uniform(*gap) / 2, 0])
    parts = scene.ground()
    figures = [
        _figure(scene, left, apart, middle - distance, height * scene.uniform(0.92, 1.08), pace),
        _figure(scene, right, -apart, middle + distance, height * scene.uniform(0.92, 1.08), pace),
    ]
    if scene.chance(0.5):
        figures.reverse()
    return scene.with_camera([*parts, *figures[0], *figures[1]])


def _meeting(scene: Scene, apart: int) -> list[Part]:
    """Both walk, or one does while the other waits."""
    waiting = int(scene.rng.integers(4))  # 0: the left one, 1: the right one, else none
    left, right = STAND if waiting == 0 else WALK, STAND if waiting == 1 else WALK
    return _pair(scene, left, right, (0.45, 0.95), apart)


def _attack(scene: Scene, action: Action, gap: tuple[float, float], by_left: bool) -> list[Part]:
    other = RECOIL if scene.chance(0.7) else STAND
    return _pair(scene, action, other, gap) if by_left else _pair(scene, other, action, gap)


# --- the classes ------------------------------------------------------------------------------------------------------


def _facings(name: str, *actions: Action) -> dict[str, Callable[[Scene], list[Part]]]:
    return {
        f"figure/{name}_{side}": lambda scene, sign=sign: _person(scene, actions, sign)  # type: ignore[misc]
        for side, sign in (("right", 1), ("left", -1))
    }


def _sides(name: str, action: Action, gap: tuple[float, float]) -> dict[str, Callable[[Scene], list[Part]]]:
    return {
        f"pair/{name}_{side}": lambda scene, by_left=by_left: _attack(scene, action, gap, by_left)  # type: ignore[misc]
        for side, by_left in (("right", True), ("left", False))
    }


def _eight(family: str, draw: Callable[[Scene, str], list[Part]]) -> dict[str, Callable[[Scene], list[Part]]]:
    return {f"{family}_{way}": lambda scene, way=way: draw(scene, way) for way in DIRECTIONS}  # type: ignore[misc]


CLASSES: dict[str, Callable[[Scene], list[Part]]] = {
    "camera/still": _still,
    **_eight("camera/pan", _pan),
    "camera/zoom_in": lambda scene: _zoom(scene, 1),
    "camera/zoom_out": lambda scene: _zoom(scene, -1),
    "camera/roll_cw": lambda scene: _roll(scene, 1),
    "camera/roll_ccw": lambda scene: _roll(scene, -1),
    **_eight("object/translate", _translate),
    "object/rotate_cw": lambda scene: _rotate(scene, 1),
    "object/rotate_ccw": lambda scene: _rotate(scene, -1),
    "object/grow": lambda scene: _grow(scene, 1),
    "object/shrink": lambda scene: _grow(scene, -1),
    "object/circle_cw": lambda scene: _circle(scene, 1),
    "object/circle_ccw": lambda scene: _circle(scene, -1),
    "object/swing": _swing,
    "object/shake_across": lambda scene: _shake(scene, 0),
    "object/shake_up_down": lambda scene: _shake(scene, 1),
    "two/approach": lambda scene: _two(scene, "approach"),
    "two/part": lambda scene: _two(scene, "part"),
    "two/pass_cw": lambda scene: _two(scene, "pass_cw"),
    "two/pass_ccw": lambda scene: _two(scene, "pass_ccw"),
    **_eight("arm/translate", _arm_translate),
    "arm/circle_cw": lambda scene: _arm_circle(scene, 1),
    "arm/circle_ccw": lambda scene: _arm_circle(scene, -1),
    "arm/wave": _arm_wave,
    "figure/raise": lambda scene: _person(scene, (RAISE, RAISE_BOTH)),
    "figure/lower": lambda scene: _person(scene, (LOWER,)),
    "figure/wave": lambda scene: _person(scene, (WAVE,)),
    "figure/crouch": lambda scene: _person(scene, (CROUCH,)),
    "figure/rise": lambda scene: _person(scene, (RISE,)),
    "figure/jump": lambda scene: _person(scene, (JUMP,)),
    **_facings("walk", WALK),
    **_facings("strike", STRIKE),
    **_facings("shove", SHOVE),
    **_facings("kick", KICK),
    **_facings("bend", BEND),
    **_facings("fall", FALL),
    "pair/approach": lambda scene: _meeting(scene, 1),
    "pair/part": lambda scene: _meeting(scene, -1),
    "pair/join_hands": lambda scene: _pair(scene, REACH, REACH, (0.4, 0.65)),
    "pair/embrace": lambda scene: _pair(scene, EMBRACE, EMBRACE, (0.2, 0.45)),
    **_sides("strike", STRIKE, (0.35, 0.6)),
    **_sides("shove", SHOVE, (0.35, 0.6)),
    **_sides("kick", KICK, (0.4, 0.7)),
}
CLASS_NAMES = tuple(CLASSES)


# --- the camera's picture ---------------------------------------------------------------------------------------------


def _filmed(scene: Scene, parts: Sequence[Part], size: int) -> Array:
    """The scene as a camera and a codec would keep it: (6, size, size, 3) uint8."""
    rng = scene.rng
    coarse = scene.chance(0.3)  # filmed small, shown large
    side = max(48, round(size * scene.uniform(0.4, 0.9))) if coarse else size
    pictures = render(parts, side, side)
    pictures = pictures.reshape(CLIP_LENGTH, scene.exposures, side, side, 3).mean(1)
    if scene.chance(0.4):
        sigma = scene.uniform(0.3, 1.2)
        pictures = ndimage.gaussian_filter(pictures, (0, sigma, sigma, 0), truncate=2.5)
    if scene.chance(0.4):  # exposure drifts
        pictures *= np.exp(rng.normal(0, 0.012) * np.arange(CLIP_LENGTH, dtype=np.float32))[:, None, None, None]
    if scene.chance(0.5):
        noise = rng.standard_normal((CLIP_LENGTH, side, side, 1), np.float32)
        pictures += np.float32(scene.log_uniform(0.5, 4)) * noise
    if scene.chance(0.3):
        pictures = _quantised(pictures, scene.log_uniform(3, 20))
    if coarse:
        channels_first = torch.from_numpy(pictures).movedim(-1, 1)
        pictures = F.interpolate(channels_first, size=(size, size), mode="bilinear").movedim(1, -1).numpy()
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def _quantised(pictures: Array, step: float) -> Array:
    """Blocks of 8 x 8 pixels in cosines, high frequencies rounded the more coarsely: what codecs do."""
    count, height, width, _ = pictures.shape
    cut = pictures[:, : height // 8 * 8, : width // 8 * 8]
    blocks = cut.reshape(count, height // 8, 8, width // 8, 8, 3)
    coefficients = fft.dctn(blocks, axes=(2, 4), norm="ortho", overwrite_x=True)
    order = np.arange(8, dtype=np.float32)
    steps = np.float32(step) * (1 + 0.6 * (order[:, None, None, None] + order[:, None]))
    restored = fft.idctn(np.rint(coefficients / steps) * steps, axes=(2, 4), norm="ortho", overwrite_x=True)
    result = pictures.copy()
    result[:, : height // 8 * 8, : width // 8 * 8] = restored.reshape(cut.shape)
    return result
