"""Optical flow on a GPU beside the best that torch alone does there."""

from __future__ import annotations

from functools import partial

import torch

from tvnet_cli.bench.flow import ALLOWED_DIFFERENCE, BYTES_PER_UPDATE, LONGEST, SIDE, as_batch, prepared
from tvnet_cli.bench.pairs import drawn_pair
from tvnet_cli.bench.peers import inplace_tvl1
from tvnet_cli.bench.timing import Call, Claim, Effort, Progress, Results, Row, interleave, not_measured
from tvnet_cli.device import true_float32
from tvnet_cli.flow.tvnet import TVNet

PAIRS = 125  # of a video: 25 clips of 6 frames
COPIED = 1 << 30  # bytes of one of the two arrays of a copy, more than any cache holds
AGAINST_TORCH = Claim("gpu", "TVNet-50 on the GPU against in-place torch there", 6, 4.5)
BANDWIDTH = Claim("gpu", "TVNet-50 on the GPU, share of its copy rate", 85, 65, "%")


@torch.inference_mode()
def measure_gpu(effort: Effort, progress: Progress, device: str = "cuda") -> Results:
    """Both claims about the GPU; two rows that say so where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        return Results([not_measured(claim, "no GPU that torch can use") for claim in (AGAINST_TORCH, BANDWIDTH)])
    pairs, side = effort.size(PAIRS, 2), effort.size(SIDE, 16)
    # A few drawn pairs, again and again: what is in them does not change the time.
    drawn = as_batch([drawn_pair(side, side, LONGEST, seed) for seed in range(min(pairs, 5))])
    first, second = (
        frame.repeat(-(-pairs // len(frame)), 1, 1, 1)[:pairs].to(device).contiguous() for frame in prepared(*drawn)
    )
    net = TVNet().eval().to(device)
    source = torch.ones(effort.size(COPIED) // 4, device=device)

    def until_done(call: Call) -> Call:
        """A call that ends when the device has done it."""

        def timed() -> None:
            call()
            if device != "cpu":
                torch.cuda.synchronize(device)

        return timed

    ours, theirs = partial(net.solve, first, second), partial(inplace_tvl1, first, second)
    with true_float32():
        difference = float((ours() - theirs()).abs().max())
        times = interleave(
            {
                "ours": until_done(ours),
                "in-place": until_done(theirs),
                "copy": until_done(partial(torch.empty_like(source).copy_, source)),
            },
            effort.repetitions,
            effort.slot_seconds,
            threads=[1],
            progress=progress,
            stage="TVNet-50 on the GPU",
        )
    seconds, peer_seconds, copy_seconds = (timing[1].wall for timing in times.values())
    rate = first.numel() * net.options.num_iterations * BYTES_PER_UPDATE / seconds
    copy_rate = 2 * 4 * source.numel() / copy_seconds
    return Results(
        [
            Row(
                AGAINST_TORCH,
                value=peer_seconds / seconds,
                ours_seconds=seconds,
                peer_seconds=peer_seconds,
                figures={"max_difference_px": difference, "pairs_a_second": pairs / seconds},
                worse="" if difference < ALLOWED_DIFFERENCE else "the fields differ",
            ),
            Row(
                BANDWIDTH,
                value=100 * rate / copy_rate,
                ours_seconds=seconds,
                figures={"gigabytes_a_second": rate / 1e9, "copy_gigabytes_a_second": copy_rate / 1e9},
            ),
        ]
    )
