"""One run: the floors of the machine, then each subject with its peers beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import chain

from tvnet_cli.bench.features import measure_features
from tvnet_cli.bench.flow import measure_flow
from tvnet_cli.bench.gpu import measure_gpu
from tvnet_cli.bench.machine import describe, measure_floors
from tvnet_cli.bench.measures import measure_measures
from tvnet_cli.bench.network import measure_network
from tvnet_cli.bench.pairs import KnownPair
from tvnet_cli.bench.report import Report
from tvnet_cli.bench.scale import NUM_VIDEOS, measure_scale
from tvnet_cli.bench.timing import Effort, Progress, Results

Measure = Callable[[Effort, Progress], Results]
EFFORT = Effort()


def run_bench(
    subject: str,
    progress: Progress,
    known: Sequence[KnownPair] = (),
    effort: Effort = EFFORT,
    num_videos: int = NUM_VIDEOS,
) -> Report:
    """Measure the claims of a subject.

    Parameters
    ----------
    subject : {"flow", "network", "features", "measures", "scale", "all"}
        ``scale``, which takes as long as one likes, is not one of all.
    progress : callable
        Takes a stage, how much of it is done, and how much there is.
    known : sequence of KnownPair
        Real pairs for the claim about ``tv-l1``.
    effort : Effort
        How much is measured.
    num_videos : int
        Of ``scale``.

    Returns
    -------
    Report
    """
    subjects: dict[str, list[Measure]] = {
        "flow": [partial(measure_flow, known=known), measure_gpu],
        "network": [measure_network],
        "features": [measure_features],
        "measures": [measure_measures],
    }
    every = list(chain.from_iterable(subjects.values()))
    subjects["scale"] = [partial(measure_scale, num_videos=num_videos)]
    date, started = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    machine = {**describe(), "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None}
    floors = measure_floors(effort, progress)
    rows, shares = [], []
    for measure in every if subject == "all" else subjects[subject]:
        results = measure(effort, progress)
        rows += results.rows
        shares += results.shares
    return Report(subject, date, time.monotonic() - started, machine, floors, rows, shares)
