"""Pairs with known flow on disk, for the tests."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tvnet_cli.flow.files import write_flo
from tvnet_cli.training.pairs import KnownPair


def write_pair(folder: Path, pair: KnownPair) -> Path:
    """As Middlebury lays it out."""
    folder.mkdir(parents=True)
    Image.fromarray(pair.first).save(folder / "frame10.png")
    Image.fromarray(pair.second).save(folder / "frame11.png")
    (folder / "flow10.flo").write_bytes(write_flo(pair.truth))
    return folder
