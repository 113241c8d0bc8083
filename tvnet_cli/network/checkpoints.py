"""Open checkpoints of PyTorch, Caffe and safetensors: tensors by the names that they have in the file."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from tvnet_cli.errors import WeightsError
from tvnet_cli.network.caffe import read_caffemodel
from tvnet_cli.network.cards import MAX_WEIGHT_BYTES, read_whole

CONTAINERS = ("state_dict", "model")  # entries of checkpoints that hold the tensors among other things
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
    sha256 = hashlib.sha256(content).hexdigest()
    if content[:1] == b"\x80" or content[:2] == b"PK" or content[257:262] == b"ustar":
        _refuse_packed(path, len(content))
        tensors = _state_dict(_read_torch(path, allow_pickle), path)
        _refuse_larger_than(len(content), tensors, path)
        return Checkpoint("PyTorch", tensors, sha256)
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8:
        try:
            return Checkpoint("safetensors", load(content), sha256)
        except (SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(f"{path} is a damaged safetensors file: {error}") from error
    try:
        return Checkpoint("Caffe", _caffe_tensors(read_caffemodel(content)), sha256)
    except ValueError as error:
        raise WeightsError(f"{path} is neither PyTorch nor safetensors, and as a Caffe model: {error}") from error


def _refuse_packed(path: Path, size: int) -> None:
    """PyTorch stores its tensors as they are; an archive that holds more than its size is made to fill the memory."""
    with suppress(zipfile.BadZipFile, ValueError), zipfile.ZipFile(path) as archive:  # what no archive is, torch says
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise WeightsError(f"{path} is an archive that unpacks to more than its size, which PyTorch's never do")


def _refuse_larger_than(size: int, tensors: dict[str, Tensor], path: Path) -> None:
    """A tensor may be a small storage seen through strides of 0, or have no numbers at all."""
    for key, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > size:
            raise WeightsError(f"{path}: {key} is no plain tensor, or claims to be larger than the file")


def _read_torch(path: Path, allow_pickle: bool) -> Any:
    try:
        # EPIC Kitchens checkpoints hold their command line, which is plain values by another name.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _torch_load(path, weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the unpickler
        # Not PyTorch's own text, which is long and of no help to the users of this program.
        unsafe = re.search(r"GLOBAL (\S+)|unrecognized (?:function|class) (\S+)|TorchScript|legacy \.tar", str(error))
        if unsafe is None:
            raise WeightsError(f"cannot read {path}: it is damaged, or no file of a known format") from error
        if not allow_pickle:
            what = next(filter(None, unsafe.groups()), unsafe[0])
            raise WeightsError(
                f"{path} holds more than tensors ({what}), and to read that is to run code from the file: "
                "--allow-pickle does, for files from people you trust"
            ) from error
    try:
        return _torch_load(path, weights_only=False)
    except Exception as error:  # code from the file may raise anything
        raise WeightsError(f"cannot read {path}: {_first_line(error)}") from error


def _torch_load(path: Path, weights_only: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about files that it reads or refuses anyway
        try:
            return torch.load(path, map_location="cpu", weights_only=weights_only)
        except UnicodeDecodeError:  # text of Python 2
            return torch.load(path, map_location="cpu", weights_only=weights_only, encoding="latin1")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[key] for key in CONTAINERS if key in content), content)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path} holds a {type(content).__name__} and no tensors by name")
    others = [f"{key} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"{path} holds no table of tensors: not tensors are {', '.join(others)}")
    return {str(key): tensor.detach() for key, tensor in content.items()}


def _caffe_tensors(layers: dict[str, list[Any]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, blobs in layers.items():
        # TSN's own BN layer has four blobs; that of BVLC's Caffe has three, and its slope and bias in another layer.
        names = ("weight", "bias", "running_mean", "running_var") if len(blobs) == 4 else ("weight", "bias")
        if len(blobs) not in (1, 2, 4):
            raise ValueError(f"layer {layer} has {len(blobs)} blobs, where TSN's have 1, 2 or 4")
        tensors |= {f"{layer}.{name}": torch.from_numpy(blob) for name, blob in zip(names, blobs, strict=False)}
    return tensors


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or no PyTorch file"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
