"""Which device computes, and how exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from tvnet_cli.errors import DeviceError

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]


def choose_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:i``; ``auto`` is CUDA where there is one.

    Raises
    ------
    DeviceError
        If it is not there, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"no device is called {name!r}: auto, cpu, cuda or cuda:0, cuda:1 ...") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"work is done on cpu or cuda, not on {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(f"{name} was asked for, but PyTorch sees {count} CUDA devices here; use --device cpu or auto")
    return device


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """The devices called by names with commas between them, such as ``cuda:0,cuda:1``; ``all`` is every GPU.

    Raises
    ------
    DeviceError
        If one is not there, or there is no such device.
    ValueError
        If several are named that cannot share the work.
    """
    if names == "all":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError("all GPUs were asked for, but PyTorch sees no CUDA device here; use --device cpu or auto")
        return tuple(torch.device("cuda", index) for index in range(count))
    wanted = [name.strip() for name in names.split(",")]
    if len(wanted) > 1:
        if any(name.partition(":")[0] != "cuda" for name in wanted):
            raise ValueError(f"several devices are several GPUs, such as cuda:0,cuda:1, not {names}")
        wanted = [name if ":" in name else "cuda:0" for name in wanted]
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"{names} names a device twice")
    return tuple(choose_device(name) for name in wanted)


@contextmanager
def thread_pool(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch computes alone; at the end, work that has not begun is dropped.

    For many pieces of work that do not depend on each other: then no core waits for another, which torch's own
    threads do after each operation, and results depend on no number of threads.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # each of them set it for all threads to come


def num_workers(device: torch.device) -> int:
    """Pieces of work to be computed at once: one a core, or two that feed a GPU, one while the other waits for it."""
    return torch.get_num_threads() if device.type == "cpu" else 2  # knows of affinity and OMP_NUM_THREADS


def true_float32() -> AbstractContextManager[None]:
    """Inside it a GPU computes in true float32, and the same on every run."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def address_space_left() -> float:
    """Bytes that the system lets this process take beyond what it has (``ulimit -v``); inf without a limit."""
    if resource is None:
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return math.inf
    return math.inf if limit == resource.RLIM_INFINITY else limit - taken
