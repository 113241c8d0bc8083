"""The log of a training for TensorBoard, where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvnet_cli.training.loop import Report


def tensorboard(folder: Path) -> Report | None:
    """A report that writes event files into a folder; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Any = None

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal writer
        if writer is None:  # what an earlier run wrote of this step and later ones is dropped
            writer = SummaryWriter(str(folder), purge_step=step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return report
