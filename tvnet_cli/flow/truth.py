"""The error of a run against the true flow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvnet_cli.errors import DatasetError
from tvnet_cli.flow.accuracy import angular_error, endpoint_error
from tvnet_cli.flow.field import FlowField
from tvnet_cli.flow.files import read_flow
from tvnet_cli.video.images import natural_order
from tvnet_cli.video.reader import Decoders
from tvnet_cli.video.sequence import FrameSequence

TRUTH_SUFFIXES = {".flo", ".png"}


class FlowErrors:
    """Mean errors of the fields of a sequence.

    Parameters
    ----------
    truth : Path or None
        One file for one field, or a folder with one for each, in natural order.
    sequence : FrameSequence
    reader : Decoders, optional
        Whose processes decode the truth.

    Raises
    ------
    DatasetError
        If there are not as many true fields as there will be fields.
    """

    def __init__(self, truth: Path | None, sequence: FrameSequence, reader: Decoders | None = None) -> None:
        self._reader = reader
        self.truths: list[Path] = []
        self._errors: list[tuple[float, float]] = []
        if truth is None:
            return
        if truth.is_dir():
            found = (path for path in truth.iterdir() if path.suffix.lower() in TRUTH_SUFFIXES and path.name[0] != ".")
            self.truths = sorted(found, key=natural_order)
        else:
            self.truths = [truth]
        num_fields = len(sequence.frame_index) - 1
        if len(self.truths) != num_fields:
            raise DatasetError(f"{truth} holds {len(self.truths)} true fields, {sequence.name} gives {num_fields}")

    def add(self, field: FlowField) -> None:
        """Compare one field with its truth.

        Raises
        ------
        DatasetError
            If the truth has another size, or nothing in it is known.
        """
        if not self.truths:
            return
        path = self.truths[field.position]
        truth = read_flow(path, self._reader)
        try:
            errors = endpoint_error(field.flow, truth), angular_error(field.flow, truth)
        except ValueError as error:
            raise DatasetError(f"{path}: {error}; --size changes that of the flow") from error
        if np.isnan(errors).any():
            raise DatasetError(f"{path}: no vector in it is known")
        self._errors.append(errors)

    def means(self) -> dict[str, float]:
        """Mean over the fields, each counted alike; empty without truth."""
        if not self._errors:
            return {}
        endpoint, angular = np.mean(self._errors, axis=0)
        return {"endpoint_error_pixels": float(endpoint), "angular_error_degrees": float(angular)}

    def __str__(self) -> str:
        means = self.means()
        over = f" (mean of {len(self._errors)} fields)" if len(self._errors) > 1 else ""
        return (
            f"endpoint error {means['endpoint_error_pixels']:.3f} px, "
            f"angular error {means['angular_error_degrees']:.2f} degrees{over}"
        )
