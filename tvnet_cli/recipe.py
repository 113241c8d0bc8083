"""What decided the values in a file: kept in it, and compared before anything is added to it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvnet_cli import __version__
from tvnet_cli.errors import FlowFileError

if TYPE_CHECKING:
    import torch

# A newer program may resume a file, weights may have moved, and a copy of the input may have another time.
NOT_COMPARED = {"software", "name", "mtime_ns"}

Recipe = dict[str, Any]


def software(device: torch.device) -> Recipe:
    """The versions and the device that compute."""
    # Not above: who only reads a recipe need not wait for all of them.
    import av
    import h5py
    import numpy as np
    import torch

    versions = {
        "torch": str(torch.__version__),
        "av": av.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
    }
    return {"tvnet": __version__, "python": platform.python_version(), **versions, "device": str(device)}


def require_same_recipe(path: Path, old: Recipe, new: Recipe) -> tuple[str, ...]:
    """Refuse to add fields to a flow file or folder that another recipe made, or that was made of another input.

    Returns
    -------
    tuple of str
        What people should know about an input that is taken for the same one.

    Raises
    ------
    FlowFileError
    """
    known, found = old.get("input"), new.get("input")
    notes: tuple[str, ...] = ()
    if isinstance(known, dict) and isinstance(found, dict) and "sha256" in found:
        if "sha256" not in known:  # version 0.1.0 kept name, number and size alone
            found = {name: value for name, value in found.items() if name != "sha256"}
            notes = (
                f"{path} was made by an older version, which kept less about its input: that {found.get('first')} is "
                "the same was only seen by its name, its size and the number of files",
            )
        elif known.get("mtime_ns") != found.get("mtime_ns"):
            notes = (
                f"{found.get('first')} was written at another time than when {path} was made of it: its size and its "
                "hash are the same, and it is taken for the same input",
            )
        if difference := first_difference(known, found, "input"):
            raise FlowFileError(
                f"{path} was made of another input: {found.get('first')} has changed since ({difference}); "
                "--overwrite computes it again"
            )
        old, new = {**old, "input": {}}, {**new, "input": {}}
    if difference := first_difference(old, new):
        raise FlowFileError(f"{path} was made in another way: {difference}; choose another output, or --overwrite")
    return notes


def first_difference(old: Any, new: Any, name: str = "") -> str:
    """Name and values of the first entry that differs between two recipes, or nothing."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in dict.fromkeys([*old, *new]) if key not in NOT_COMPARED]
        differences = (first_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, differences), "")
    was, now = json.dumps(old), json.dumps(new)
    return "" if was == now else f"{name} was {was}, now {now}"
