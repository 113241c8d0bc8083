"""The machine that everything is measured on: what it is, and the floors that no program on it can beat."""

from __future__ import annotations

import platform
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from tvnet_cli import __version__
from tvnet_cli.bench.timing import Call, Effort, Progress, interleave, num_cores, opencv

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Those that matter here, by their names in /proc/cpuinfo, x86 and then Arm.
VECTORS = "sse4_2 avx avx2 fma avx512f avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8 asimd sve sve2 bf16".split()
USUAL_CACHES = {"L2": 1 << 20, "L3": 8 << 20}  # bytes, where the machine does not tell
MEMORY = 512 << 20  # bytes of both arrays of all cores, more than most caches hold
L3_ENOUGH = 16 << 20  # bytes
COPIED = 64 << 20  # bytes at least that one call copies
MATRIX_SIDE = 2048
EMULATED_SIDE = 256  # where the processor has no instructions for bfloat16


class Floor(NamedTuple):
    """What the machine can do at best."""

    name: str
    unit: str
    one_thread: float
    all_threads: float


def describe() -> dict[str, Any]:
    """The machine and the software, ready for JSON; what it does not tell is left out."""
    info = CPUINFO.read_text() if CPUINFO.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    cv2 = opencv()
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": num_cores(),
        "vector_extensions": vector_extensions(),
        "cache_bytes": caches(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "software": {
            "tvnet": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "numba": numba.__version__,
            "opencv": cv2.__version__ if cv2 else None,
        },
    }


def vector_extensions() -> list[str]:
    """Of the processor, by their names in Linux; where that does not tell, the one that torch uses."""
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", CPUINFO.read_text() if CPUINFO.exists() else "", re.MULTILINE)
    if flags:
        return [name for name in VECTORS if name in flags[1].split()]
    return [torch.backends.cpu.get_cpu_capability().lower()]


def has_amx() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware."""
    return "amx_bf16" in vector_extensions()


def caches() -> dict[str, int]:
    """Bytes of each cache that the first core sees, such as L1d, L2 and L3; empty where the machine does not tell."""
    found = {}
    for index in sorted(CACHES.glob("index*")):
        level, kind, size = (index.joinpath(name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction" and re.fullmatch(r"\d+K", size):
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = 1024 * int(size[:-1])
    return found


def measure_floors(effort: Effort, progress: Progress) -> list[Floor]:
    """Copies in memory and in the caches, and products of matrices.

    Returns
    -------
    list of Floor
        Copies in GB/s, read and written bytes together; products in GFLOP/s.
    """
    sizes, cores = USUAL_CACHES | caches(), num_cores()
    # Bytes of the two arrays of a copy, of one core: half of what is its own of a cache, and of memory so much that no
    # cache holds it. The third cache may be shared with machines beside this one.
    room = {
        "copy, memory": MEMORY // cores,
        "copy, L3": max(min(sizes["L3"] // 2, L3_ENOUGH) // cores, 2 * sizes["L2"]),
        "copy, L2": sizes["L2"] // 2,
    }
    calls: dict[str, Call] = {}
    amounts = {}  # of one thread, and of all
    for name, size in room.items():
        arrays = np.ones((cores, 2, effort.size(size // 8)), np.float32)
        times = -(-COPIED // arrays[0].nbytes)
        calls[name] = partial(_copy_on_all, arrays, times)
        amounts[name] = 2 * times * arrays[0].nbytes, 2 * times * arrays.nbytes
    emulated = not {"amx_bf16", "avx512_bf16"} & set(vector_extensions())
    for dtype in (torch.float32, torch.bfloat16):
        side = effort.size(EMULATED_SIDE if dtype == torch.bfloat16 and emulated else MATRIX_SIDE)
        matrix = torch.ones((side, side), dtype=dtype)
        name = f"matrix product, {str(dtype).removeprefix('torch.')}"
        calls[name] = partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))
        amounts[name] = 2 * len(matrix) ** 3, 2 * len(matrix) ** 3
    found = interleave(calls, effort.repetitions, effort.slot_seconds, progress=progress, stage="floors of the machine")
    return [
        Floor(
            name,
            "GB/s" if name in room else "GFLOP/s",
            amounts[name][0] / took[1].cpu / 1e9,
            amounts[name][1] / took[cores].wall / 1e9,
        )
        for name, took in found.items()
    ]


def _copy_on_all(arrays: NDArray[np.float32], times: int) -> None:
    """Copy to and fro, one pair of arrays a thread."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        # Large copies pass by the caches in numpy; small ones have no time for Python.
        copy = _copy_large if times == 1 else _copy_small
        list(pool.map(copy, arrays[:threads, 0], arrays[:threads, 1], [times] * threads))


def _copy_large(one: NDArray[np.float32], other: NDArray[np.float32], _: int) -> None:
    np.copyto(other, one)
    np.copyto(one, other)


@numba.njit(nogil=True, cache=True)
def _copy_small(one, other, times):  # type: ignore[no-untyped-def]
    for _ in range(times):
        for k in range(one.size):
            other[k] = one[k]
        for k in range(one.size):
            one[k] = other[k]
