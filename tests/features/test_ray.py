"""A real Ray cluster of two nodes on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from films import write_film

from tvnet_cli.features import cluster
from tvnet_cli.features.extract import extract_features
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.files import find_videos

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs tvnet[ray]"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),  # of Ray itself
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # files that Ray leaves open
]
TWO_CLIPS = ExtractOptions(num_clips=2)
NODE = {
    "num_cpus": 1,
    "num_gpus": 0,
    "object_store_memory": 80 << 20,
    "include_dashboard": False,
}


@pytest.fixture
def ray_nodes(monkeypatch) -> Iterator:
    for name, value in cluster.QUIET.items():  # before Ray is imported
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args=NODE)
    yield nodes
    nodes.shutdown()


def content(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return {name: values for name, values in found.items() if not name.startswith("failures/")}


def test_a_machine_is_lost_in_the_middle_and_no_row_is(ray_nodes, tmp_path, capfd):
    second = ray_nodes.add_node(**{name: value for name, value in NODE.items() if name != "include_dashboard"})
    films = tmp_path / "films"
    films.mkdir()
    for number in range(24):
        write_film(films / f"{number}.mp4", 20 + number)
    (films / "broken.mp4").write_text("no film")
    videos, models = find_videos([films]), load_models(["untrained"], ("flow",))

    results = []
    for result in extract_features(
        videos, tmp_path / "ray.h5", models, device="auto", options=TWO_CLIPS, ray=ray_nodes.address
    ):
        results.append(result)
        if len(results) == 6:
            ray_nodes.remove_node(second, allow_graceful=False)
    assert sorted(result.video_id for result in results) == sorted(video.video_id for video in videos)
    assert [result.reason for result in results if result.status != "done"] == [
        result.reason for result in results if result.video_id == "broken.mp4"
    ]
    assert capfd.readouterr().out == ""  # which is for --json

    local = list(extract_features(videos, tmp_path / "local.h5", models, options=TWO_CLIPS))
    assert len(local) == 25
    one, other = content(tmp_path / "local.h5"), content(tmp_path / "ray.h5")
    assert len(one["video_id"]) == 24
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name
