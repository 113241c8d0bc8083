"""Several processes that train one model, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Inside it the processes that torchrun started are one group of torch.distributed; a process alone is none.

    Parameters
    ----------
    device : torch.device
        ``cpu``, or ``cuda``, of which each process takes the GPU of its own number.

    Yields
    ------
    torch.device
        Of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Models lie on GPUs; what is small and counted lies on CPUs.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 outside a group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def add_over_processes(counts: torch.Tensor) -> torch.Tensor:
    """Sums, on the CPU, over the processes of a group."""
    if rank_and_world()[1] > 1:
        distributed.all_reduce(counts)
    return counts
