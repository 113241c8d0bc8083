"""Weights for the tests of the network."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvnet_cli.network.bn_inception import BNInception

FLOW_INPUT = 'scale = 6.375\nclip_pixels = 20.0\norder = "interleaved"'
RGB_INPUT = 'mean = [104, 117, 128]\norder = "BGR"'


def write_card(path: Path, stream: str = "flow", extra: str = "", sha256: str = "", **changes: str) -> None:
    entries = {
        "architecture": "bn_inception",
        "stream": stream,
        "source": "a test",
        "licence": "MIT",
        "training_data": "none",
        "sha256": sha256 or hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest(),
        **changes,
    }
    lines = [f'{key} = "{value}"' for key, value in entries.items() if value != "left out"]
    lines += ["[input]", FLOW_INPUT if stream == "flow" else RGB_INPUT, "[numbers]", "accuracy = 50.0", extra]
    path.with_suffix(".toml").write_text("\n".join(lines))


def recipe_weights(network: BNInception) -> dict[str, Tensor]:
    """The reference weights: random numbers seeded by the name of each tensor."""
    weights = {}
    for key, tensor in network.state_dict().items():
        layer, leaf = key.rsplit(".", 1)
        if leaf == "num_batches_tracked":
            continue
        if layer.endswith("_bn"):
            stream, channels = np.random.RandomState(zlib.crc32(f"{layer}.bn".encode())), tensor.numel()
            variance = 10 ** stream.uniform(-3.0, 0.3, channels)
            gamma = stream.uniform(0.5, 1.5, channels) * np.sqrt(variance)
            gamma = np.where(stream.uniform(0, 1, channels) < 0.1, -gamma, gamma)
            beta, mean = 0.2 * stream.standard_normal(channels), 0.3 * stream.standard_normal(channels)
            values = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}[leaf]
        else:
            values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tensor.numel())
            values = values * (np.sqrt(2 / tensor[0].numel()) if leaf == "weight" else 0.1)
            values = values / 64 if key == "conv1_7x7_s2.weight" else values
        weights[key] = torch.from_numpy(values.astype(np.float32)).view(tensor.shape)
    return weights
