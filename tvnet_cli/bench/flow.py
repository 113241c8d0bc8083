"""Optical flow on the processor beside its peers: speed, memory, and whether the fields agree."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tvnet_cli.bench.pairs import KnownPair, drawn_pair
from tvnet_cli.bench.peers import Solve, inplace_tvl1, numpy_tvl1, opencv_other_methods, opencv_same_work, opencv_tvl1
from tvnet_cli.bench.timing import (
    INSTALL_PEERS,
    Claim,
    Effort,
    Progress,
    Results,
    Row,
    faster,
    interleave,
    not_measured,
    num_cores,
    opencv,
    share,
    slower,
)
from tvnet_cli.flow.accuracy import endpoint_error
from tvnet_cli.flow.operators import prepare
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.options import PRESETS

SIDE = 224  # pixels, of the frames that features are made of
LONGEST = 2.0  # pixels, of the motion that TVNet-50 is made for
LARGE = (1080, 1920)  # pixels
BYTES_PER_UPDATE = 64  # of a pixel, when all arrays are read and written once: 10 float32 read, 6 written
FLOP_PER_UPDATE = 51  # of a pixel, square root and division counted as one
ALLOWED_DIFFERENCE = 1e-3  # pixels; a peer that is further off does other work
TRAINING_BATCH = 8

# What does the same 50 updates, and what finds flow in another way.
SAME_WORK = {
    "opencv": Claim("flow", "TVNet-50 against OpenCV DualTVL1, same 50 updates", 33, 25),
    "reference": Claim("flow", "TVNet-50 against plain torch", 40, 30),
    "in-place": Claim("flow", "TVNet-50 against in-place torch", 11, 8),
    "numpy": Claim("flow", "TVNet-50 against numpy", 20, 15),
}
OTHER_METHODS = {
    "dis": Claim("flow", "TVNet-50 against OpenCV DIS medium", 1.6, 1.3),
    "farneback": Claim("flow", "TVNet-50 against OpenCV Farneback", 3, 2.5),
}
TRAINED = Claim("flow", "TVNet-50, trained against untrained kernels", 1.05, 1.15, smaller_is_better=True)
TWO_THREADS = Claim("flow", "TVNet-50, two threads against one (wall)", 1.85, 1.65)
LARGE_PICTURES = Claim("flow", "cost of a pixel, 1080p against 224 x 224", 1.1, 1.3, smaller_is_better=True)
TRAINING = Claim("flow", "forward and backward against autograd of torch", 15, 10)
MEMORY = Claim("flow", "peak memory of forward and backward, times less", 40, 20)
CLASSIC = Claim("flow", "tv-l1 against OpenCV DualTVL1 with its defaults", 15, 8)


def measure_flow(effort: Effort, progress: Progress, known: Sequence[KnownPair] = ()) -> Results:
    """All claims about optical flow on the processor.

    Parameters
    ----------
    effort : Effort
    progress : callable
    known : sequence of KnownPair
        Pairs for the claim about ``tv-l1``; without, it is measured on drawn ones.
    """
    results = same_frames(effort, progress)
    results.rows += [
        large_pictures(effort, progress),
        classic(effort, progress, known),
        training(effort, progress),
        memory(effort, progress),
    ]
    return results


def reference(net: TVNet) -> TVNet:
    """The same network, computed by the readable operators in plain torch."""
    plain = copy.deepcopy(net)
    plain.solver = "torch"
    return plain


def trained(net: TVNet) -> TVNet:
    """The same network with kernels that are no plain differences any more."""
    other, generator = copy.deepcopy(net), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for kernels in (other.gradient_kernels, other.divergence_kernels):
            kernels.add_(torch.randn(kernels.shape, generator=generator), alpha=0.01)
    return other


def prepared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (B, 1, H, W) as the solver gets them: stretched to 0..255 and smoothed, float32."""
    return prepare(first.float(), second.float(), "authors")


def as_batch(pairs: Sequence[KnownPair]) -> tuple[Tensor, Tensor]:
    """Two tensors (B, 1, H, W), uint8."""
    first, second = (torch.from_numpy(np.stack([pair[frame] for pair in pairs])[:, None]) for frame in (0, 1))
    return first, second


@torch.inference_mode()
def same_frames(effort: Effort, progress: Progress) -> Results:
    """TVNet-50 beside what does the same 50 updates on the same frames, and beside other fast methods.

    Those that do the same get the frames as the solver does, and it is timed alone. The others, and TVNet beside them,
    get the frames as they are.
    """
    side, cores, cv2 = effort.size(SIDE, 16), num_cores(), opencv()
    pairs = [drawn_pair(side, side, LONGEST, seed) for seed in range(effort.size(4, 2))]
    raw = as_batch(pairs)
    first, second = prepared(*raw)
    net = TVNet().eval()
    plain, moved = reference(net), trained(net)
    same: dict[str, Solve] = {
        "reference": _by_torch(plain.solve),
        "in-place": _by_torch(inplace_tvl1),
        "numpy": numpy_tvl1,
    }
    others: dict[str, Solve] = {}
    if cv2:
        same["opencv"], others = opencv_same_work(cv2), opencv_other_methods(cv2)
    calls = {
        "ours": partial(net.solve, first, second),
        "ours, all of it": partial(net, *raw),
        "trained": partial(moved.solve, first, second),
        **{name: partial(_pair_by_pair, solve, first, second) for name, solve in same.items()},
        **{name: partial(_pair_by_pair, solve, *raw) for name, solve in others.items()},
    }
    times = interleave(
        calls,
        effort.repetitions,
        effort.slot_seconds,
        threads=sorted({1, min(2, cores), cores}),
        progress=progress,
        stage="TVNet-50 and its peers",
    )

    rows, flow = [], net.solve(first, second).numpy()
    for name, claim in SAME_WORK.items():
        if name in same:
            difference = float(np.abs(_pair_by_pair(same[name], first, second) - flow).max())
            worse = "" if difference < ALLOWED_DIFFERENCE else "the fields differ"
            figures = {"max_difference_px": difference}
            rows.append(faster(claim, times["ours"], times[name], per=len(pairs), figures=figures, worse=worse))
        else:
            rows.append(not_measured(claim, INSTALL_PEERS))
    error = _mean_error(net(*raw).numpy(), pairs)
    for name, claim in OTHER_METHODS.items():
        if name in others:
            theirs = _mean_error(_pair_by_pair(others[name], *raw), pairs)
            figures = {"endpoint_error_px": error, "peer_endpoint_error_px": theirs}
            whole, remark = times["ours, all of it"], "another algorithm"
            rows.append(faster(claim, whole, times[name], per=len(pairs), figures=figures, remark=remark))
        else:
            rows.append(not_measured(claim, INSTALL_PEERS))
    rows.append(slower(TRAINED, times["trained"], times["ours"], per=len(pairs)))
    if cores > 1:
        one, two = (times["ours"][threads].wall / len(pairs) for threads in (1, 2))
        rows.append(Row(TWO_THREADS, value=one / two, ours_seconds=two, peer_seconds=one))
    else:
        rows.append(not_measured(TWO_THREADS, "this process has one core"))

    updates = first.numel() * net.options.num_iterations
    work = f"TVNet-50, {BYTES_PER_UPDATE} B per pixel and update", updates * BYTES_PER_UPDATE, times["ours"]
    shares = [share(floor, *work) for floor in ("copy, memory", "copy, L3", "copy, L2")]
    work = f"TVNet-50, {FLOP_PER_UPDATE} flop per pixel and update", updates * FLOP_PER_UPDATE, times["ours"]
    return Results(rows, [*shares, share("matrix product, float32", *work)])


@torch.inference_mode()
def large_pictures(effort: Effort, progress: Progress) -> Row:
    """What a pixel of a large picture costs beside one of a small picture, which the caches hold."""
    side, (height, width) = effort.size(SIDE, 16), (effort.size(length) for length in LARGE)
    net = TVNet().eval()
    small = prepared(*as_batch([drawn_pair(side, side, LONGEST, seed) for seed in range(8)]))
    large = prepared(*as_batch([drawn_pair(height, width, LONGEST)]))
    times = interleave(
        {"large": partial(net.solve, *large), "small": partial(net.solve, *small)},
        effort.few,
        effort.slot_seconds,
        progress=progress,
        stage="1080p",
    )
    return slower(LARGE_PICTURES, times["large"], times["small"], work=large[0].numel() / small[0].numel())


@torch.inference_mode()
def classic(effort: Effort, progress: Progress, known: Sequence[KnownPair] = ()) -> Row:
    """The preset for flow that is right beside OpenCV's own settings; it may not have the larger endpoint error."""
    cv2 = opencv()
    if not cv2:
        return not_measured(CLASSIC, INSTALL_PEERS)
    # Sides that no level of either pyramid is too small for.
    height, width = effort.size(240, 64), effort.size(320, 64)
    pairs = known or [drawn_pair(height, width, 6.0, seed) for seed in range(2)]
    net = TVNet.from_options(PRESETS["tv-l1"]).eval()
    dual = opencv_tvl1(cv2)

    def ours() -> list[NDArray[np.float32]]:
        return [net(*as_batch([pair]))[0].numpy() for pair in pairs]

    def theirs() -> list[NDArray[np.float32]]:
        return [dual(pair.first, pair.second) for pair in pairs]

    calls = {"ours": ours, "opencv": theirs}
    times = interleave(calls, effort.few, effort.slot_seconds, progress=progress, stage="tv-l1")
    error, peer_error = _mean_error(ours(), pairs), _mean_error(theirs(), pairs)
    return faster(
        CLASSIC,
        times["ours"],
        times["opencv"],
        per=len(pairs),
        figures={"endpoint_error_px": error, "peer_endpoint_error_px": peer_error},
        worse="" if error <= peer_error else "larger endpoint error",
        remark="given pairs" if known else "drawn pairs",
    )


def training(effort: Effort, progress: Progress) -> Row:
    """Flow and the gradient of its mean square for the kernels and the start field."""
    net = TVNet()
    plain = reference(net)
    batch = training_batch(effort.size(TRAINING_BATCH), effort.size(SIDE, 16))
    calls = {
        "ours": partial(forward_and_backward, net, *batch),
        "plain": partial(forward_and_backward, plain, *batch),
    }
    times = interleave(calls, effort.few, effort.slot_seconds, progress=progress, stage="training")
    pairs_of_gradients = zip(net.parameters(), plain.parameters(), strict=True)
    differences = [
        float((ours.grad - theirs.grad).abs().max() / theirs.grad.abs().max())
        for ours, theirs in pairs_of_gradients
        if ours.grad is not None and theirs.grad is not None
    ]
    figures = {"max_relative_gradient_difference": max(differences)}
    return faster(TRAINING, times["ours"], times["plain"], per=len(batch[0]), figures=figures)


def training_batch(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Frames for the solver, (count, 1, side, side)."""
    return prepared(*as_batch([drawn_pair(side, side, LONGEST, seed) for seed in range(count)]))


def forward_and_backward(net: TVNet, first: Tensor, second: Tensor) -> None:
    """Leave the gradient of the mean square of the flow in the parameters."""
    net.zero_grad(set_to_none=True)
    net.solve(first, second).square().mean().backward()  # type: ignore[no-untyped-call]


def memory(effort: Effort, progress: Progress) -> Row:
    """Peak memory of forward and backward, each way in a process of its own."""
    if not STATUS.exists():
        return not_measured(MEMORY, f"only Linux tells it, in {STATUS}")
    grown = {}
    for done, way in enumerate(("ours", "reference")):
        progress("peak memory", done, 2)
        arguments = [way, str(effort.size(TRAINING_BATCH)), str(effort.size(SIDE, 16))]
        command = [sys.executable, "-c", "from tvnet_cli.bench.flow import print_growth as p; p()", *arguments]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        grown[way] = int(said)
    progress("peak memory", 2, 2)
    megabytes = {"megabytes": grown["ours"] / 1e6, "peer_megabytes": grown["reference"] / 1e6}
    return Row(MEMORY, value=grown["reference"] / max(grown["ours"], 1), figures=megabytes)


STATUS = Path("/proc/self/status")


def print_growth() -> None:
    """Print by how many bytes the memory of this process grows at most; its arguments: way, pairs, side.

    Not by ``ru_maxrss``, which begins with the memory of the process that started this one.
    """
    way, count, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    net = TVNet() if way == "ours" else reference(TVNet())
    batch = training_batch(count, side)
    forward_and_backward(net, *training_batch(1, 16))  # loads and compiles what is needed
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak counts anew
    before = _bytes_of("VmRSS")
    forward_and_backward(net, *batch)
    print(_bytes_of("VmHWM") - before)


def _bytes_of(entry: str) -> int:
    kilobytes = re.search(rf"^{entry}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert kilobytes
    return 1024 * int(kilobytes[1])


def _by_torch(solve: Callable[[Tensor, Tensor], Tensor]) -> Solve:
    """A solver of tensors for one pair of arrays: one pair after the other is fastest for torch, by its caches."""

    def of_pair(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
        one, other = (torch.from_numpy(frame)[None, None] for frame in (first, second))
        return np.asarray(solve(one, other)[0].numpy())

    return of_pair


def _pair_by_pair(solve: Solve, first: Tensor, second: Tensor) -> NDArray[np.float32]:
    """Flow (B, 2, H, W) of frames (B, 1, H, W)."""
    return np.stack([solve(one[0], other[0]) for one, other in zip(first.numpy(), second.numpy(), strict=True)])


def _mean_error(flows: Iterable[NDArray[np.float32]], pairs: Sequence[KnownPair]) -> float:
    """Mean endpoint error, in pixels."""
    return float(np.mean([endpoint_error(flow, pair.truth) for flow, pair in zip(flows, pairs, strict=True)]))
