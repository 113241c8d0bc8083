"""Pairs, feature files and plain formulas for the tests of the ASLAN benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

EPS = 2.0**-52


def twelve_measures(x: Sequence[float], y: Sequence[float], eps: float = EPS) -> list[float]:
    """The paper's Table 3 for two vectors, term by term in float64, without any of the program's code."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    length_x, length_y = np.sqrt((x**2).sum()), np.sqrt((y**2).sum())
    u, v = x / (length_x or 1), y / (length_y or 1)
    either, either_unit = (x + y) > 0, (u + v) > 0
    x1, y1 = x[either], y[either]
    u1, v1 = u[either_unit], v[either_unit]
    return [
        (x * y).sum(),
        np.sqrt((x * y).sum()),
        np.sqrt((np.sqrt(x) * np.sqrt(y)).sum()),
        np.sqrt((x1 * y1 / (x1 + y1)).sum()),
        (x * y).sum() / (length_x * length_y) if length_x * length_y else 0.0,
        np.sqrt(((x1 - y1) ** 2 / (x1 + y1)).sum()),
        np.abs(x - y).sum(),
        np.sqrt(((np.sqrt(x) - np.sqrt(y)) ** 2).sum()),
        np.sqrt(((u - v) ** 2).sum()),
        ((u - v) * (np.log(u + eps) - np.log(v + eps))).sum() / 2,
        (np.sqrt(np.maximum(u1, v1)) / np.sqrt(u1 + v1)).sum(),
        np.minimum(u, v).sum() / (u.sum() * v.sum()) if u.sum() * v.sum() else 0.0,
    ]


def pair_numbers(num_splits: int = 5, pairs_of_a_label: int = 30, seed: int = 0) -> NDArray[np.int64]:
    """Pairs as in View 2, five numbers a row, classes and videos of their own in each split; six videos a class."""
    random = np.random.default_rng(seed)
    rows = []
    for split in range(num_splits):
        classes = np.arange(split * 6, split * 6 + 6)
        seen = set()
        for label in (1, 0):
            count = 0
            while count < pairs_of_a_label:
                a = int(random.choice(classes))
                b = a if label else int(random.choice(classes[classes != a]))
                one, other = sorted((a * 6 + int(random.integers(6)) + 1, b * 6 + int(random.integers(6)) + 1))
                if one != other and (one, other) not in seen:
                    seen.add((one, other))
                    rows.append((one, other, label, (one - 1) // 6 + 1, (other - 1) // 6 + 1))
                    count += 1
    return np.array(rows)


def class_features(num_videos: int, num_values: int, strength: float = 0.5, seed: int = 0) -> NDArray[np.float32]:
    """Features (V, D) of videos in classes of six, not negative, L2 norm 1; larger strength: easier to tell apart."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(num_videos // 6 + 1, num_values))
    features = np.maximum(random.normal(size=(num_videos, num_values)), 0)
    features = np.maximum(features + strength * means[np.arange(num_videos) // 6], 0)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def write_text(path: Path, rows: NDArray[np.int64]) -> Path:
    np.savetxt(path, rows, fmt="%6d")
    return path


def write_csv(path: Path, rows: NDArray[np.int64], num_splits: int = 5) -> Path:
    """The same pairs with names of videos."""
    lines = [
        f"{one:04d}.avi,{other:04d}.avi,{label},{row * num_splits // len(rows)}"
        for row, (one, other, label, *_) in enumerate(rows)
    ]
    path.write_text("\n".join(["video_a,video_b,label,fold", *lines]) + "\n")
    return path


def write_features(path: Path, ids: Sequence[str], layers: dict[str, NDArray[np.floating]]) -> Path:
    """A file as ``tvnet features`` writes it."""
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "tvnet-features", 1
        file.attrs["recipe"] = json.dumps({})
        file.create_dataset("video_id", data=list(ids), dtype=h5py.string_dtype())
        file["num_frames"] = np.full(len(ids), 100)
        for name, values in layers.items():
            file[name] = values.astype(np.float32)
    return path


def sample_ids(count: int) -> list[str]:
    return [f"{number:04d}.avi" for number in range(1, count + 1)]
