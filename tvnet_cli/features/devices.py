"""The devices of one machine, each with its own networks; a video goes to the one that has the least to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from tvnet_cli.features.extractor import Extractor, Models, VideoRow
from tvnet_cli.features.team import Team
from tvnet_cli.options import DecodeLimits, ExtractOptions


class Extractors:
    """Turns videos into rows as ``Extractor`` does, on one device or several, inside a ``with`` block.

    Parameters
    ----------
    models, options, batch_size, limits
        As of ``Extractor``.
    devices : sequence of torch.device
        See ``tvnet_cli.device.choose_devices``.
    jobs : int, optional
        Videos at work at once, on all devices together.

    Attributes
    ----------
    recipe : dict
        As of ``Extractor``, with the first device.
    jobs : int
        Threads that ask at once and keep all devices busy.
    """

    def __init__(
        self,
        models: Models,
        options: ExtractOptions,
        devices: Sequence[torch.device],
        *,
        batch_size: int | None = None,
        jobs: int | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        self._extractors = [
            Extractor(models, options, device, batch_size=batch_size, limits=limits) for device in devices
        ]
        self.recipe = self._extractors[0].recipe
        # The cores read for all devices; no device waits for its next video.
        self.jobs = jobs or max(2 * len(devices), self._extractors[0].jobs)
        self._team: Team[Extractor] = Team()

    def __enter__(self) -> Extractors:
        with ExitStack() as stack:
            for extractor in self._extractors:
                self._team.join(stack.enter_context(extractor), math.ceil(self.jobs / len(self._extractors)))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._team.break_up(RuntimeError("the devices were given back"))
        self._open.__exit__(kind, error, traceback)

    def row(self, place: Path | str) -> VideoRow:
        """The row of one video; see ``Extractor.row``."""
        with self._team.free() as extractor:
            return extractor.row(place)
