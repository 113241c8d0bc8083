"""Checkpoints as the projects of old wrote them, from the tensors of one network."""

from __future__ import annotations

import argparse
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvnet_cli.network.bn_inception import BNInception

Tensors = dict[str, Tensor]
BLOBS = ("weight", "bias", "running_mean", "running_var")


def varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def blob(values: np.ndarray, *, old_shape: bool = False, packed: bool = True, double: bool = False) -> bytes:
    sizes = values.shape
    if old_shape:
        four = (1,) * (4 - len(sizes)) + sizes
        shape = b"".join(number(field, size) for field, size in enumerate(four, 1))
    else:
        shape = message(7, message(1, b"".join(map(varint, sizes))))
    field, dtype, wire = (8, "<f8", 1) if double else (5, "<f4", 5)
    data = values.astype(dtype).tobytes()
    if packed:
        return message(field, data) + shape
    cells = np.frombuffer(data, np.uint8).reshape(values.size, -1)
    return shape + np.insert(cells, 0, varint(field << 3 | wire)[0], axis=1).tobytes()


def layer(name: str, blobs: Sequence[bytes], version: int = 2) -> bytes:
    name_number, blobs_number, layer_number = {1: (4, 6, 2), 2: (1, 7, 100)}[version]
    kind = number(5, 4) if version == 1 else message(2, b"Convolution")
    rate = varint(3 << 3 | 5) + struct.pack("<f", 5.0)  # a field that nobody reads
    param = message(8 if version == 1 else 6, rate)
    content = message(name_number, name.encode()) + kind + param + b"".join(message(blobs_number, b) for b in blobs)
    return message(layer_number, content)


def caffe_name(name: str) -> str:
    """Layer names as in the prototxt files: inception_3a/double_3x3_1, conv1/7x7_s2."""
    return re.sub(r"^(conv\d|inception_\d\w)_", r"\1/", name)


def caffemodel(tensors: Tensors, version: int = 2, head: str = "fc-action", **how: bool) -> bytes:
    layers: dict[str, list[bytes]] = {"data": [], "pool1/3x3_s2": []}
    names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
    for name in names:
        found = [tensors[f"{name}.{leaf}"].numpy() for leaf in BLOBS if f"{name}.{leaf}" in tensors]
        if name.endswith("_bn"):
            found = [values[None] for values in found]
        layers[head if name == "fc" else caffe_name(name)] = [blob(values, **how) for values in found]
    return message(1, b"BN-Inception") + b"".join(layer(name, blobs, version) for name, blobs in layers.items())


def rows(tensors: Tensors) -> Tensors:
    """Batch normalisations of shape (1, C), as before torch 0.4."""
    return {key: value[None] if "_bn." in key else value for key, value in tensors.items()}


def renamed(tensors: Tensors, prefix: str, head: str = "fc", head_prefix: str | None = None) -> Tensors:
    return {
        f"{prefix if head_prefix is None else head_prefix}{head}{key[2:]}" if key.startswith("fc.") else prefix + key: t
        for key, t in tensors.items()
    }


def nested(tensors: Tensors) -> Tensors:
    """Names of caffe2pytorch-tsn: first plain, then behind numbers of nested Sequentials."""
    keys = [key for key in tensors if not key.startswith("fc.")]
    names = {key: f"{'' if i < 18 else '0.1.'}base_model.{key}" for i, key in enumerate(keys)}
    return renamed({names.get(key, key): value for key, value in tensors.items()}, "", "fc-action.1", "base_model.")


def without_head(tensors: Tensors) -> Tensors:
    return {key: value for key, value in tensors.items() if not key.startswith("fc.")}


def python2(path: Path, content: dict[str, object], keys: Sequence[str]) -> None:
    """A file of torch before 1.6 with the text of Python 2, bytes, one of them not ASCII."""
    torch.save({"arch": "BNInception#", "state_dict": content}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for key in ("BNInception#", "state_dict", *keys):
        text = key.encode()
        data = data.replace(b"X" + struct.pack("<I", len(text)) + text, b"U" + bytes([len(text)]) + text)
    path.write_bytes(data.replace(b"BNInception#", b"BNInception\xe9"))


def epic(tensors: Tensors) -> dict[str, object]:
    heads = {
        f"{name}.{leaf}": torch.ones(n, 1024)[:, : 1024 if leaf == "weight" else 1]
        for name, n in (("fc_verb", 125), ("fc_noun", 352))
        for leaf in ("weight", "bias")
    }
    heads = {key: value if key.endswith("weight") else value[:, 0].clone() for key, value in heads.items()}
    state = renamed(without_head(tensors), "base_model.") | heads
    return {
        "model_type": "tsn",
        "epoch": 80,
        "segment_count": 8,
        "modality": "Flow",
        "state_dict": state,
        "arch": "BNInception",
        "args": argparse.Namespace(dropout=0.7, gpus=[0], lr_steps=[20.0, 40.0]),
    }


def ssn(tensors: Tensors) -> dict[str, object]:
    heads = {"activity_fc": (21, 1024), "completeness_fc": (20, 3072), "regressor_fc": (40, 3072)}
    state = renamed(without_head(tensors), "module.base_model.")
    for name, (classes, width) in heads.items():
        state |= {f"module.{name}.weight": torch.ones(classes, width), f"module.{name}.bias": torch.ones(classes)}
    return {"epoch": 1, "arch": "BNInception", "state_dict": state, "best_loss": torch.tensor(0.5)}


def tensors_of(network: BNInception) -> Tensors:
    return {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
