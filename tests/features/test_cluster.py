from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from fake_ray import FakeRay

from tvnet_cli.cli import main
from tvnet_cli.errors import ClusterError, DeviceError, VideoReadError
from tvnet_cli.features import cluster
from tvnet_cli.features.cluster import ClusterExtractor, Worker, ray_cluster
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.recipe import software

OPTIONS = ExtractOptions(num_clips=1)


class StubWorker:
    """Gives the name of a video in place of its row."""

    asked: Counter[str]
    given: list[tuple[str, object]]

    def about(self):
        return {"machine": "node", **software(torch.device("cpu"))}

    def prepare(self, *arguments: object) -> None:
        pass

    def row(self, place: str) -> object:
        self.asked[place] += 1
        self.given.append((place, self))
        if place.startswith("fatal") or (place.startswith("unlucky") and self.asked[place] == 1):
            self.actor.ray.kill(self.actor)
        if place.startswith("bad"):
            return VideoReadError("no such file (on node)", "no_such_file")
        if place.startswith("bug"):
            raise ZeroDivisionError("in the worker")
        return f"row of {place}"


@pytest.fixture
def worker(monkeypatch) -> type[StubWorker]:
    kind = type("Stub", (StubWorker,), {"asked": Counter(), "given": []})
    monkeypatch.setattr(cluster, "Worker", kind)
    monkeypatch.setattr(cluster, "TICK", 0.01)
    return kind


def ready(extractor: ClusterExtractor, workers: int) -> None:
    end = time.monotonic() + 60
    while len(extractor._team) < workers:
        assert time.monotonic() < end
        time.sleep(0.01)


def rows(extractor: ClusterExtractor, names: list[str]) -> list[object]:
    def row(name: str) -> object:
        try:
            return extractor.row(name)
        except VideoReadError as error:
            return error

    with ThreadPoolExecutor(extractor.jobs) as threads:
        return list(threads.map(row, names))


def test_all_workers_get_videos_and_each_video_one_worker(worker):
    names = [f"{number}.mp4" for number in range(40)]
    with ClusterExtractor(FakeRay(room=3), {}, OPTIONS) as extractor:
        ready(extractor, 3)
        held = [extractor._team.free() for _ in range(3)]
        assert len({one.__enter__() for one in held}) == 3
        for one in held:
            one.__exit__(None, None, None)
        assert rows(extractor, names) == [f"row of {name}" for name in names]
    assert worker.asked == dict.fromkeys(names, 1)


def test_videos_of_a_lost_machine_go_to_others_and_a_worker_comes_in_its_place(worker):
    names = [f"{number}.mp4" for number in range(10)] + ["unlucky.mp4"] + [f"{number}.mkv" for number in range(10)]
    ray = FakeRay(room=2)
    with ClusterExtractor(ray, {}, OPTIONS) as extractor:
        assert rows(extractor, names) == [f"row of {name}" for name in names]
        assert worker.asked["unlucky.mp4"] == 2
        assert len({one for place, one in worker.given if place == "unlucky.mp4"}) == 2
        ready(extractor, 2)
        assert len(ray.actors) == 3
    assert all(actor.lost for actor in ray.actors)


def test_a_video_that_loses_every_worker_fails_and_the_others_do_not(worker):
    names = ["a.mp4", "fatal.mp4", "b.mp4", "bad.mp4"]
    with ClusterExtractor(FakeRay(room=2), {}, OPTIONS) as extractor:
        found = rows(extractor, names)
    assert found[0::2] == ["row of a.mp4", "row of b.mp4"]
    assert found[1].code == "worker_lost"
    assert str(found[1]) == "4 workers were lost while they had it, on node, node, node, node"
    assert worker.asked["fatal.mp4"] == 4
    assert (found[3].code, str(found[3])) == ("no_such_file", "no such file (on node)")


def test_an_error_of_the_program_is_what_it_was_there(worker):
    with ClusterExtractor(FakeRay(room=1), {}, OPTIONS) as extractor:
        with pytest.raises(ZeroDivisionError, match="in the worker"):
            extractor.row("bug.mp4")
        assert extractor.row("a.mp4") == "row of a.mp4"


def test_more_jobs_than_there_is_room_for_use_machines_that_join(worker):
    ray = FakeRay(room=1)
    with ClusterExtractor(ray, {}, OPTIONS, jobs=9) as extractor:
        assert extractor.jobs == 9
        ready(extractor, 1)
        time.sleep(0.05)
        assert len(extractor._team) == 1
        ray.room = 3
        ray.make_room()
        ready(extractor, 3)


def test_workers_that_break_down_before_they_are_ready_end_the_run(worker, monkeypatch):
    def broken(self: StubWorker) -> None:
        self.actor.ray.kill(self.actor)

    monkeypatch.setattr(worker, "about", broken)
    ray = FakeRay(room=2)
    with (
        ClusterExtractor(ray, {}, OPTIONS) as extractor,
        pytest.raises(ClusterError, match="broke down before they were ready, the last with: the node was lost"),
    ):
        extractor.row("a.mp4")
    assert len(ray.actors) <= cluster.STARTS + 1


def test_a_worker_with_other_software_ends_the_run(worker, monkeypatch):
    monkeypatch.setattr(worker, "about", lambda self: {**StubWorker.about(self), "tvnet": "0.0.1"})
    with (
        ClusterExtractor(FakeRay(room=2), {}, OPTIONS) as extractor,
        pytest.raises(ClusterError, match=r"node has tvnet 0\.0\.1, and this machine"),
    ):
        extractor.row("a.mp4")


def test_a_cluster_without_room_is_not_waited_for_for_ever(worker, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.1)
    ray = FakeRay(room=1)
    extractor = ClusterExtractor(ray, {}, OPTIONS)
    ray.room = 0
    with extractor, pytest.raises(ClusterError, match="each wants 1 CPUs and 0 GPUs"):
        extractor.row("a.mp4")


def test_who_waits_when_the_cluster_is_left_waits_no_longer(worker, monkeypatch):
    started, never = threading.Event(), threading.Event()

    def endless(self: StubWorker, place: str) -> None:
        started.set()
        never.wait(60)

    monkeypatch.setattr(worker, "row", endless)
    with ThreadPoolExecutor(8) as threads:
        with ClusterExtractor(FakeRay(room=1), {}, OPTIONS) as extractor:
            waiting = [threads.submit(extractor.row, "a.mp4") for _ in range(8)]
            started.wait(60)
        for one in waiting:
            with pytest.raises(RuntimeError, match="the cluster was left"):
                one.result(timeout=60)
        never.set()


def test_workers_take_a_gpu_and_its_share_of_the_cores_or_one_core():
    machines = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 8.0}, {}]
    assert cluster._share(machines, "auto").resources == {"num_cpus": 3, "num_gpus": 1}
    assert cluster._share(machines, "cuda").workers == 5
    assert cluster._share(machines, "cpu").resources == {"num_cpus": 1, "num_gpus": 0}
    assert cluster._share(machines, "cpu").workers == 27
    assert cluster._share(machines[2:], "auto").device == "cpu"
    with pytest.raises(DeviceError, match="the Ray cluster has none"):
        cluster._share(machines[2:], "cuda")
    with pytest.raises(ClusterError, match="no cores"):
        cluster._share([{}], "cpu")


def test_a_worker_checks_its_weights_and_names_its_machine():
    models = load_models(["untrained"], ("flow",))
    fingerprint = cluster._fingerprint(models)
    with pytest.raises(ClusterError, match="are not those that were sent"):
        Worker().prepare(models, "another", OPTIONS, "cpu", 1, None, None)
    with torch.no_grad():
        next(models["flow"].network.parameters()).view(-1)[0] += 1
    assert cluster._fingerprint(models) != fingerprint

    class Broken:
        def row(self, place: str) -> None:
            raise VideoReadError(*place)

    worker = Worker()
    worker._extractor = Broken()
    assert str(worker.row(("no such file", "no_such_file"))) == f"no such file (on {socket.gethostname()})"
    assert str(worker.row(("too small", "too_small"))) == "too small"
    assert worker.row(("too small", "too_small")).code == "too_small"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "auto or HOST:PORT"),
        ("head", "auto or HOST:PORT"),
    ],
)
def test_addresses_without_a_cluster_are_told_at_once(monkeypatch, address, words):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(room=1))
    with pytest.raises(ClusterError, match=words), ray_cluster(address):
        pass


def test_without_ray_a_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.mp4").touch()
    arguments = ["features", str(tmp_path), "-o", str(tmp_path / "f.h5"), "--weights", "untrained", "--ray", "auto"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "pip install 'tvnet[ray]'" in result.stderr
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a.mp4"]
    result = CliRunner().invoke(main, [*arguments, "--device", "cuda:0"])
    assert result.exit_code == 2
    assert "with --ray it is auto, cpu or cuda" in result.stderr
