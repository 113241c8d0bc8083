"""The 12 measures of pairs of videos beside numpy."""

from __future__ import annotations

from functools import partial

import numpy as np

from tvnet_cli.aslan.similarity import pair_measures
from tvnet_cli.bench.peers import numpy_measures
from tvnet_cli.bench.timing import (
    Claim,
    Effort,
    Progress,
    Results,
    Row,
    interleave,
    not_measured,
    num_cores,
    share,
)

PAIRS, VALUES = 600, 50_000  # no video is in two pairs
ONE_THREAD = Claim("measures", "12 measures of 600 pairs against numpy, float32", 3, 3)
TWO_THREADS = Claim("measures", "12 measures, two threads, against numpy (wall)", 5, 5)


def measure_measures(effort: Effort, progress: Progress) -> Results:
    """Both claims about the measures, of feature vectors as long as those of the network's layers."""
    pairs, values, cores = effort.size(PAIRS, 2), effort.size(VALUES), num_cores()
    features = np.random.default_rng(0).random((2 * pairs, values), np.float32) + np.float32(1e-3)
    first, second = np.arange(pairs), np.arange(pairs, 2 * pairs)
    times = interleave(
        {
            "ours": partial(pair_measures, features, first, second, jobs=1),
            "two threads": partial(pair_measures, features, first, second, jobs=2),
            "numpy": partial(numpy_measures, features, first, second),
            "numpy, float64": partial(numpy_measures, features, first, second, np.float64),
        },
        effort.few,
        effort.slot_seconds,
        threads=(1,),
        progress=progress,
        stage="12 measures",
    )
    found, expected = pair_measures(features, first, second), numpy_measures(features, first, second)
    one, two, numpy, exact = (timing[1] for timing in times.values())
    figures = {
        "max_relative_difference": float((np.abs(found - expected) / np.abs(expected)).max()),
        "float64_ratio": exact.cpu / one.cpu,
    }
    rows = [Row(ONE_THREAD, value=numpy.cpu / one.cpu, ours_seconds=one.cpu, peer_seconds=numpy.cpu, figures=figures)]
    if cores > 1:
        rows.append(Row(TWO_THREADS, value=numpy.wall / two.wall, ours_seconds=two.wall, peer_seconds=numpy.wall))
    else:
        rows.append(not_measured(TWO_THREADS, "this process has one core"))
    took = {1: one, 2: two}
    return Results(rows, [share("copy, memory", "12 measures, features read once", features.nbytes, took)])
