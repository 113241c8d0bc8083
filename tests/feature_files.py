"""Feature files for the tests; as a script, a run that writes one: OUTPUT NUMBER_OF_ROWS [FAILING_EVERY]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tvnet_cli.features.format import checksums
from tvnet_cli.features.store import FeatureStore

RECIPE = {
    "options": {"streams": ["flow"], "num_clips": 25},
    "weights": {"flow": {"name": "a.safetensors", "sha256": "1"}},
    "software": {"torch": "2.6"},
}


def row(number: int) -> dict[str, Any]:
    """A row like those of videos, other for each number."""
    random = np.random.default_rng(number)
    layers = {"flow/global_pool": (1024,), "flow/inception_4e_output": (1056, 7, 7)}
    values: dict[str, Any] = {}
    for name, shape in layers.items():
        layer = random.random(shape, np.float32)
        values[name] = layer / np.linalg.norm(layer)
    times = np.where(np.arange(12) < number % 12, np.nan, 0.04).reshape(2, 6)
    return {**values, "pts_seconds": times, "num_frames": np.int64(number), "padded": np.bool_(number % 2)}


def write(path: Path, *ids: str, recipe: dict[str, Any] = RECIPE, failing: tuple[str, ...] = (), **how: Any) -> Path:
    """A feature file with a row for each id, numbered by its letters, and these failures."""
    with FeatureStore(path, recipe, **how) as store:
        for video_id in ids:
            store.add(video_id, row(number_of(video_id)))
        for video_id in failing:
            store.add_failure(video_id, "no video stream (audio only)", "no_video_stream")
    return path


def as_version_1(path: Path, generation: str = "1b") -> Path:
    """Make a file one of an older program: of format version 1, with checksums and failures (1b) or without (1a)."""
    with h5py.File(path, "r+") as file:
        for name in ("software", "datasets", "checksums"):
            del file.attrs[name]
        file.attrs["format_version"] = 1
        del file["notes"], file["written_by"], file["checksum"]
        ids = file["video_id"].asstr()[:].tolist()
        for name in ("flow/inception_5a_output", "flow/inception_5b_output"):  # that each of them has
            file[name] = np.full((len(ids), 1024, 1, 1), 1 / 32, np.float32)
        if generation == "1a":
            del file["failures"]
            return path
        values: dict[str, Any] = {}
        file.visititems(lambda name, item: values.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        in_rows = {name: values[name] for name in values if name != "video_id" and not name.startswith("failures/")}
        file["checksum"] = checksums(ids, in_rows)
    return path


def number_of(video_id: str) -> int:
    """A number for each id."""
    return sum(256**place * byte for place, byte in enumerate(video_id.encode()[:3]))


def content(path: Path) -> dict[str, Any]:
    """All datasets of a feature file."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same_content(path: Path, other: Path) -> None:
    """Dataset by dataset, bit by bit."""
    mine, theirs = content(path), content(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert mine[name].shape == theirs[name].shape
        assert (
            mine[name].tolist() == theirs[name].tolist()
            if mine[name].dtype == object
            else (mine[name].tobytes() == theirs[name].tobytes())
        ), name


def damage(path: Path, dataset: str, row: int) -> None:
    """Change one bit of a number in a file."""
    with h5py.File(path) as file:
        start = file[dataset].id.get_offset()
        place = start + row * file[dataset].dtype.itemsize * int(np.prod(file[dataset].shape[1:]))
    with path.open("r+b") as raw:
        raw.seek(place)
        byte = raw.read(1)[0]
        raw.seek(place)
        raw.write(bytes([byte ^ 1]))


def main(output: str, count: str, failing_every: str = "0") -> None:
    """Write what is not there yet, and say each id when it is kept."""
    with FeatureStore(Path(output), RECIPE, wait=True) as store:
        for number in range(int(count)):
            video_id = f"{number:04}"
            if video_id in store or video_id in store.failures:
                continue
            if int(failing_every) and number % int(failing_every) == 0:
                store.add_failure(video_id, "no such file", "no_file")
            else:
                store.add(video_id, row(number))
            print(video_id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
