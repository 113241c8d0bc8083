"""What decided the values in a file: kept in it, and compared before anything is added to it."""

from __future__ import annotations

import json
import logging
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


def require_same_recipe(path: Path, old: Recipe, new: Recipe) -> None:
    """Refuse to add fields to a flow file or folder that another recipe made.

    Raises
    ------
    FlowFileError
    """
    known, found = old.get("input", {}), new.get("input", {})
    if "sha256" in found and "sha256" not in known:  # version 0.1.0 kept the name, the number and the size alone
        new = {**new, "input": {name: value for name, value in found.items() if name != "sha256"}}
    difference = first_difference(old, new)
    if difference.startswith("input."):
        raise FlowFileError(
            f"{path} holds flow of another input: {found.get('first')} has changed since ({difference}); --overwrite "
            "computes it again"
        )
    if "mtime_ns" in known and known["mtime_ns"] != found.get("mtime_ns"):
        logging.getLogger(__name__).warning(
            f"{found['first']} has another time of change, and the same content as far as size, head, middle and tail "
            f"say: what {path} holds is kept"
        )
    if difference:
        raise FlowFileError(f"{path} was made in another way: {difference}; choose another output, or --overwrite")


def first_difference(old: Any, new: Any, name: str = "") -> str:
    """Name and values of the first entry that differs between two recipes, or nothing."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in dict.fromkeys([*old, *new]) if key not in NOT_COMPARED]
        differences = (first_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, differences), "")
    was, now = json.dumps(old), json.dumps(new)
    return "" if was == now else f"{name} was {was}, now {now}"
