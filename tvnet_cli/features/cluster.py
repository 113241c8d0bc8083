"""The machines of a Ray cluster: names of videos go out, rows come back to the one process that writes them.

Each worker, an actor of Ray on one GPU or on a few cores, holds the networks and turns a few videos at once into rows.
A video goes to the worker that has the least to do. When a worker or its machine is lost, its videos go to others, and
another worker takes its place as soon as there is room: on the machine that comes back, or on one that joins.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tvnet_cli.errors import ClusterError, DeviceError, VideoReadError
from tvnet_cli.features.extractor import Extractor, Models, VideoRow, default_jobs, recipe
from tvnet_cli.features.team import Team
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.recipe import Recipe, software

TRIES = 4  # workers that a video may lose
STARTS = 5  # workers that may break down one after the other before one of them is ready
PATIENCE = 600.0  # seconds without any worker
TICK = 0.5  # seconds
CONNECT_SECONDS = 10.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by itself, and warns of
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # else news of lost machines would stand on stdout
}
# Reasons that are about a machine as much as about a video.
ABOUT_MACHINES = {"no_such_file", "unreadable", "network", "out_of_memory", "decoder_crashed", "unexpected"}


COMPARED = ("tvnet", "torch", "av", "numpy")  # of the software, which must be the same everywhere


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster that runs already, inside a ``with`` block.

    Parameters
    ----------
    address : str
        ``auto``: the cluster of this machine, or that of the environment variable ``RAY_ADDRESS``. Else ``host:port``
        of its head, of which this machine must be a node.

    Raises
    ------
    ClusterError
        If there is no Ray, or no cluster.
    """
    try:
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        import ray
    except ImportError:
        raise ClusterError("--ray needs another package: pip install 'tvnet[ray]'") from None
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        _require_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:  # Ray ends the program if a cluster does not answer
        if address == "auto":
            message = "no Ray cluster runs on this machine: ray start starts one, or --ray HOST:PORT joins one"
        else:
            message = (
                f"cannot join the Ray cluster at {address}: {(str(error).splitlines() or [type(error).__name__])[0]}"
            )
        raise ClusterError(message) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        raise ClusterError(f"{address!r} is no address of a Ray cluster: auto or HOST:PORT, on one of its machines")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


class Worker:
    """One actor: networks on one GPU or a few cores of some machine."""

    def about(self) -> Recipe:
        """Name and software of this machine. Says the same in all versions of the program."""
        return {"machine": socket.gethostname(), **software(torch.device("cpu"))}

    def prepare(
        self,
        models: Models,
        fingerprint: str,
        options: ExtractOptions,
        device: str,
        cores: int,
        batch_size: int | None,
        limits: DecodeLimits,
    ) -> None:
        """Get ready for videos."""
        if _fingerprint(models) != fingerprint:
            raise ClusterError(f"the weights that reached {socket.gethostname()} are not those that were sent")
        torch.set_num_threads(cores)
        self._extractor = Extractor(models, options, device, batch_size=batch_size, limits=limits).__enter__()

    def row(self, place: Path | str) -> VideoRow | VideoReadError:
        """The row of one video, or why it has none."""
        try:
            return self._extractor.row(place)
        except VideoReadError as error:
            where = f" (on {socket.gethostname()})" if error.code in ABOUT_MACHINES else ""
            return VideoReadError(f"{error}{where}", error.code)


@dataclass(frozen=True)
class _Share:
    """What a worker takes of a machine, and how many workers fit the cluster now."""

    device: str
    cpus: int
    workers: int

    @property
    def resources(self) -> dict[str, int]:
        return {"num_cpus": self.cpus, "num_gpus": int(self.device == "cuda")}


@dataclass(frozen=True, eq=False)
class _Hired:
    """A worker that is ready, or will be."""

    actor: Any
    about: Any
    machine: str = ""


class ClusterExtractor:
    """Turns videos into rows as ``Extractor`` does, on a Ray cluster, inside a ``with`` block.

    Parameters
    ----------
    ray : module
        From ``ray_cluster``.
    models, options, batch_size, limits
        As of ``Extractor``.
    device : {"auto", "cpu", "cuda"}
        What the workers compute on; ``auto``: on GPUs if there are any.
    jobs : int, optional
        Videos at work at once in the whole cluster. More than fit it now make use of machines that join.

    Attributes
    ----------
    recipe : dict
        As of ``Extractor``.
    jobs : int
        Threads that ask at once and keep all workers busy.
    """

    def __init__(
        self,
        ray: Any,
        models: Models,
        options: ExtractOptions,
        device: str = "auto",
        *,
        batch_size: int | None = None,
        jobs: int | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        self._ray = ray
        self._share = _share([node["Resources"] for node in ray.nodes() if node["Alive"]], device)
        self._models, self._options = models, options
        self._batch_size, self._limits = batch_size, limits or DecodeLimits()
        device_here = torch.device(self._share.device)
        self.recipe = recipe(options, models, device_here)
        self._places = default_jobs(device_here, max(1, self._share.cpus), options.num_clips)
        self.jobs = jobs or self._places * self._share.workers
        self._wanted = math.ceil(self.jobs / self._places)
        self._team: Team[_Hired] = Team()
        self._closed = threading.Event()
        self._recruiter = threading.Thread(target=self._recruit, daemon=True)

    def __enter__(self) -> ClusterExtractor:
        self._recruiter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._team.break_up(RuntimeError("the cluster was left"))
        self._recruiter.join()
        for worker in self._team.members():
            self._dismiss(worker)

    def row(self, place: Path | str) -> VideoRow:
        """The row of one video; see ``Extractor.row``."""
        if isinstance(place, Path):
            place = place.absolute()  # workers are in other folders
        lost: list[str] = []
        while len(lost) < TRIES:
            with self._team.free() as worker:
                try:
                    answer = self._ray.get(worker.actor.row.remote(place))
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except self._ray.exceptions.RayError:  # it is lost, or its machine is, or its answer on the way
                    lost.append(worker.machine)
                    if self._team.leave(worker):
                        self._dismiss(worker)
                    continue
            if isinstance(answer, VideoReadError):
                raise answer
            return answer  # type: ignore[no-any-return]
        raise VideoReadError(f"{TRIES} workers were lost while they had it, on {', '.join(lost)}", "worker_lost")

    def _recruit(self) -> None:
        """Keeps as many workers as are wanted; those for which there is no room wait for it."""
        coming: dict[Any, _Hired] = {}  # by what tells that they are ready
        try:
            weights, fingerprint = self._ray.put(self._models), _fingerprint(self._models)
            broken, since = 0, time.monotonic()
            while not self._closed.is_set():
                while len(coming) + len(self._team) < self._wanted:
                    worker = self._start()
                    coming[self._prepare(worker, weights, fingerprint)] = worker
                for ready in self._wait(list(coming)):
                    worker = coming.pop(ready)
                    try:
                        self._join(worker, ready)
                        broken = 0
                    except self._ray.exceptions.RayError as error:
                        broken += 1
                        self._dismiss(worker)
                        if broken == STARTS:
                            raise ClusterError(_why_broken(error)) from error
                if len(self._team):
                    since = time.monotonic()
                elif time.monotonic() - since > PATIENCE:
                    raise ClusterError(self._no_room())
        except Exception as error:
            self._team.break_up(error)
        finally:
            for worker in coming.values():
                self._dismiss(worker)

    def _start(self) -> _Hired:
        # Each video at work has a thread of its actor; one more prepares it.
        how = {**self._share.resources, "max_concurrency": self._places + 1, "max_restarts": 0}
        actor = self._ray.remote(Worker).options(**how).remote()
        return _Hired(actor, actor.about.remote())

    def _prepare(self, worker: _Hired, weights: Any, fingerprint: str) -> Any:
        share = self._share
        return worker.actor.prepare.remote(
            weights, fingerprint, self._options, share.device, max(1, share.cpus), self._batch_size, self._limits
        )

    def _wait(self, coming: list[Any]) -> list[Any]:
        if not coming:
            self._closed.wait(TICK)
            return []
        ready: list[Any] = self._ray.wait(coming, timeout=TICK)[0]
        return ready

    def _join(self, worker: _Hired, ready: Any) -> None:
        about = self._ray.get(worker.about)
        for name in COMPARED:
            if about[name] != self.recipe["software"][name]:
                raise ClusterError(
                    f"{about['machine']} has {name} {about[name]}, and this machine {self.recipe['software'][name]}: "
                    "install the same on all machines of the cluster"
                )
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        self._team.join(replace(worker, machine=about["machine"]), self._places)

    def _dismiss(self, worker: _Hired) -> None:
        with suppress(Exception):  # it may be gone
            self._ray.kill(worker.actor)

    def _no_room(self) -> str:
        free = self._ray.available_resources()
        return (
            f"no worker of the Ray cluster got ready in {PATIENCE / 60:.0f} minutes: each wants "
            f"{self._share.cpus} CPUs and {self._share.resources['num_gpus']} GPUs of one machine; "
            f"free are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs in all"
        )


def _share(machines: list[dict[str, float]], device: str) -> _Share:
    """A GPU with its share of the cores, or one core: of each machine as many as there are."""
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda":
        if not gpus:
            raise DeviceError("GPUs were asked for, but the Ray cluster has none; use --device cpu or auto")
        cpus = min(
            int(machine.get("CPU", 0) / int(machine["GPU"])) for machine in machines if machine.get("GPU", 0) >= 1
        )
        return _Share("cuda", cpus, gpus)
    cpus = sum(int(machine.get("CPU", 0)) for machine in machines)
    if not cpus:
        raise ClusterError("the Ray cluster has no cores to work on")
    return _Share("cpu", 1, cpus)


def _fingerprint(models: Models) -> str:
    """Of all numbers in the models."""
    digest = hashlib.sha256()
    for stream, model in models.items():
        for module in filter(None, (model.network, model.tvnet)):
            for name, values in module.state_dict().items():
                digest.update(f"{stream} {name}".encode())
                digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _why_broken(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("No module named 'tvnet_cli'" in line for line in lines):
        return "a machine of the Ray cluster has no tvnet: install it on all of them, in the Python that runs Ray"
    return (
        f"{STARTS} workers of the Ray cluster broke down before they were ready, the last with: {(lines or ['?'])[-1]}"
    )
