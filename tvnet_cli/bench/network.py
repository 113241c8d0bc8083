"""BN-Inception as features are computed with it, beside the network as torch runs it when nothing is done about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tvnet_cli.bench.machine import has_amx
from tvnet_cli.bench.timing import Claim, Effort, Progress, Results, faster, interleave, not_measured, share
from tvnet_cli.features.extractor import NETWORK_BATCH
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.inference import InferenceNetwork
from tvnet_cli.network.weights import untrained_model

BATCH = 25  # clips of a video
SIDE = 224  # pixels
FLOAT32 = Claim("network", "BN-Inception, float32, against plain torch", 2.1, 1.8)
BFLOAT16 = Claim("network", "BN-Inception, bfloat16, against plain torch, float32", 9, 4.5)


def as_in_features(dtype: torch.dtype, stacks: Tensor) -> Callable[[], dict[str, Tensor]]:
    """The layers of flow stacks (B, 10, H, W), as ``tvnet features`` computes them."""
    network = InferenceNetwork(_fresh(), dtype)

    def call() -> dict[str, Tensor]:
        passes = [network.features(part) for part in torch.split(stacks, NETWORK_BATCH["cpu"])]
        return {layer: torch.cat([one[layer] for one in passes]) for layer in passes[0]}

    return call


@torch.inference_mode()
def measure_network(effort: Effort, progress: Progress) -> Results:
    """Both claims about the network, from flow stacks to its four layers."""
    side = effort.size(SIDE, 64) // 32 * 32  # of the sizes that the graph takes
    stacks = 40 * torch.randn(effort.size(BATCH, 2), 10, side, side, generator=torch.Generator().manual_seed(0))
    plain = _fresh()
    calls: dict[str, Callable[[], dict[str, Tensor]]] = {
        "plain": partial(plain.features, stacks),
        "float32": as_in_features(torch.float32, stacks),
    }
    if has_amx():
        calls["bfloat16"] = as_in_features(torch.bfloat16, stacks)
    times = interleave(calls, effort.few, effort.slot_seconds, progress=progress, stage="BN-Inception")
    rows, shares, flop = [], [], len(stacks) * 2 * multiplications(plain, side)
    for name, claim in {"float32": FLOAT32, "bfloat16": BFLOAT16}.items():
        if name in calls:
            difference = _difference(calls[name](), plain.features(stacks))
            figures = {"max_relative_difference": difference}
            rows.append(faster(claim, times[name], times["plain"], figures=figures))
            shares.append(share(f"matrix product, {name}", f"BN-Inception, {name}", flop, times[name]))
        else:
            rows.append(not_measured(claim, "this processor has no AMX (amx_bf16)"))
    return Results(rows, shares)


def multiplications(network: BNInception, side: int) -> int:
    """Of all convolutions for one picture."""
    count = 0

    def add(convolution: torch.nn.Module, _: object, output: Tensor) -> None:
        nonlocal count
        count += output[0].numel() * convolution.get_parameter("weight")[0].numel()

    hooks = [one.register_forward_hook(add) for one in network.modules() if isinstance(one, torch.nn.Conv2d)]
    network.features(torch.zeros(1, network.in_channels, side, side))
    for hook in hooks:
        hook.remove()
    return count


def _fresh() -> BNInception:
    """A network of its own with the weights that all of them have."""
    return untrained_model("flow").network


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of all layers, relative to the largest value of the layer."""
    return max(
        float((found[layer].float() - values).abs().max() / values.abs().max()) for layer, values in expected.items()
    )
