"""Open checkpoints of PyTorch, Caffe and safetensors: tensors by the names that they have in the file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from tvnet_cli.errors import WeightsError, lacks_memory
from tvnet_cli.network.caffe import read_caffemodel
from tvnet_cli.network.cards import MAX_WEIGHT_BYTES, read_whole
from tvnet_cli.network.pickles import read_pickle
from tvnet_cli.network.weights import read_tensors

# What downloads are when they are not what was asked for.
NO_WEIGHTS = {
    (b"<!doctype", b"<html", b"<?xml"): "is a web page: the download needs a browser, or its address is gone",
    (b"version https://git-lfs",): "is a pointer of Git LFS, not the weights themselves: git lfs pull fetches them",
}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by the names that they have there; Caffe blobs are named as in PyTorch."""

    format: Literal["PyTorch", "Caffe", "safetensors"]
    tensors: dict[str, Tensor]
    sha256: str


def read_checkpoint(path: Path, allow_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint of any kind; its content, and not its name, tells which.

    Parameters
    ----------
    path : Path
    allow_pickle : bool
        Also read PyTorch files that hold more than tensors and plain values. To read them is to run code from them.

    Raises
    ------
    WeightsError
        If it cannot be read, or holds no tensors.
    """
    try:
        content = read_whole(path, MAX_WEIGHT_BYTES)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    if not content:
        raise WeightsError(f"{path} is empty")
    for openings, what in NO_WEIGHTS.items():
        if content[:512].lstrip().lower().startswith(openings):
            raise WeightsError(f"{path} {what}")
    try:
        return _checkpoint(content, path, allow_pickle)
    except Exception as error:
        if lacks_memory(error):
            raise WeightsError(f"there is not enough memory to read {path}") from error
        raise


def _checkpoint(content: bytes, path: Path, allow_pickle: bool) -> Checkpoint:
    sha256 = hashlib.sha256(content).hexdigest()
    if content[:1] == b"\x80" or content[:2] == b"PK" or content[257:262] == b"ustar":
        return Checkpoint("PyTorch", read_pickle(content, path, allow_pickle), sha256)
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8:
        try:
            return Checkpoint("safetensors", read_tensors(content), sha256)
        except (SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(f"{path} is a damaged safetensors file: {error}") from error
    try:
        return Checkpoint("Caffe", _caffe_tensors(read_caffemodel(content)), sha256)
    except ValueError as error:
        raise WeightsError(f"{path} is neither PyTorch nor safetensors, and as a Caffe model: {error}") from error


def _caffe_tensors(layers: dict[str, list[Any]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, blobs in layers.items():
        # TSN's own BN layer has four blobs; that of BVLC's Caffe has three, and its slope and bias in another layer.
        names = ("weight", "bias", "running_mean", "running_var") if len(blobs) == 4 else ("weight", "bias")
        if len(blobs) not in (1, 2, 4):
            raise ValueError(f"layer {layer} has {len(blobs)} blobs, where TSN's have 1, 2 or 4")
        tensors |= {f"{layer}.{name}": torch.from_numpy(blob) for name, blob in zip(names, blobs, strict=False)}
    return tensors
