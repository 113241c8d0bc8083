"""Kernels that learned from drawn pairs alone serve real pairs."""

from __future__ import annotations

import numpy as np

from tvnet_cli.options import FlowTrainingOptions, TVNetOptions
from tvnet_cli.training import flow as training
from tvnet_cli.training.pairs import find_named_pairs
from tvnet_cli.training.sources import open_source


def test_training_on_drawn_pairs_lowers_the_error_on_real_ones(shared_data, tmp_path, monkeypatch):
    """Mean of the three Middlebury pairs; `tvnet train flow` with its defaults goes further."""
    monkeypatch.setattr(training, "NUM_DRAWN", 1)
    options = FlowTrainingOptions(steps=50, batch_size=4)
    solver, source = TVNetOptions(), open_source([], options.seed, options.crop)
    net = training.train_flow(tmp_path, source, solver, options)
    assert net is not None
    folders = [shared_data / "flow_gt" / f"middlebury_{name}" for name in ("Dimetrodon", "RubberWhale", "Venus")]
    _, *pairs, mean = training.compare(net, solver, source, options, find_named_pairs(folders))
    np.testing.assert_allclose([pair.before for pair in pairs], [1.304, 0.417, 3.120], atol=1e-3)
    assert mean.after < 0.9 * mean.before
