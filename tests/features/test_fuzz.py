from __future__ import annotations

import h5py
import numpy as np
from damage import damaged, whole_films
from films import write_film

from tvnet_cli.errors import REASONS
from tvnet_cli.features.extract import extract_features
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.files import find_videos


def test_damaged_films_cost_good_ones_nothing_and_each_has_a_row_or_a_reason(tmp_path):
    sources, bad = tmp_path / "sources", tmp_path / "bad"
    for folder in (sources, bad):
        folder.mkdir()
    films = whole_films(sources)
    for number in range(24):
        damaged(films[number % len(films)], number, bad)
    good = [write_film(bad / name, 12, options={"preset": "ultrafast"}) for name in ("15 good.mp4", "x good.mkv")]
    options, models = ExtractOptions(num_clips=1), load_models(["untrained"], ("flow",))
    found = list(extract_features(find_videos(sorted(bad.iterdir())), tmp_path / "all.h5", models, options=options))
    list(extract_features(find_videos(good), tmp_path / "good.h5", models, options=options))

    failed = {result.video_id: result for result in found if result.status == "failed"}
    assert len(found) == 26
    assert len(failed) > 5
    assert all(result.code in REASONS and result.code != "unexpected" for result in failed.values()), failed
    with h5py.File(tmp_path / "all.h5") as everything, h5py.File(tmp_path / "good.h5") as alone:
        ids = everything["video_id"].asstr()[:].tolist()
        assert ids == sorted({result.video_id for result in found} - failed.keys())
        rows = [ids.index(path.name) for path in good]
        for name in ("flow/global_pool", "flow/inception_5b_output", "frame_index", "pts_seconds"):
            assert np.array_equal(everything[name][:][rows], alone[name][:]), name
