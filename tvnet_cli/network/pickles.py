"""Files of PyTorch, which are pickles, read by a process of their own: some hang, swell or crash what reads them.

A pickle is a program. Even where it may call nothing, 800 bytes can keep a processor busy for ever, deaf to Ctrl-C. The
other process has limits of time and memory, and hands back plain tensors as the bytes of a safetensors file.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from tvnet_cli.device import address_space_left
from tvnet_cli.errors import WeightsError, lacks_memory

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

SECONDS = 30  # for a file; 2 GiB take 5
MEMORY_TIMES, MEMORY_MORE = 6, 1 << 30  # bytes for a byte of the file (the file, its storages, copies), and beyond
MOST_TIMES = 2  # bytes of all tensors for a byte of the file: two names may share one storage
CONTAINERS = ("state_dict", "model")  # entries of checkpoints that hold the tensors among other things
SHOWN = 5  # entries in an error
READY = b"ready\n"
# What this process imports, the other one does too, and nothing that happens to lie in the working directory.
START = "import sys; sys.path[:] = {path!a}; from tvnet_cli.network.pickles import main; main()"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def read_pickle(content: bytes, path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by name.

    Parameters
    ----------
    content : bytes
        Of the file.
    path : Path
        Its name in errors; it is not opened.
    allow_pickle : bool
        Also read a file that holds more than tensors and plain values. To read it is to run code from it.

    Returns
    -------
    dict of str to Tensor
        On the CPU, of any dtype that safetensors knows.

    Raises
    ------
    WeightsError
        If it holds no tensors by name, or takes more time or memory than weights do.
    """
    answer, tensors = _asked({"path": str(path), "allow_pickle": allow_pickle, "size": len(content)}, content, path)
    if "error" in answer:
        raise WeightsError(answer["error"])
    return load(tensors)


def require_harmless(content: bytes, path: Path) -> None:
    """Have the other process read a PyTorch file as ``torch.load(..., weights_only=True)`` does, and forget it.

    Raises
    ------
    WeightsError
        If that takes more time or memory than weights do, or ends the process. Any other error is left to the caller,
        who reads the same bytes.
    """
    _asked({"path": str(path), "allow_pickle": None, "size": len(content)}, content, path)


def _asked(question: dict[str, Any], content: bytes, path: Path) -> tuple[dict[str, Any], bytes]:
    """What the other process answers: plain values and, where it found tensors, a safetensors file."""
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(path=sys.path)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
        start_new_session=True,  # Ctrl-C is for this process, which ends the other one
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            if process.stdout.readline() != READY:  # its imports are not timed
                raise WeightsError(f"cannot read {path}: the process that should read it could not start")
            process.stdin.write(json.dumps(question).encode() + b"\n")
            found, _ = process.communicate(content, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            limited = address_space_left() < math.inf  # for want of memory torch may come to a stop
            why = ", or the limit of memory (ulimit -v) is too low" if limited else ""
            raise WeightsError(
                f"cannot read {path}: it took longer than {SECONDS} s, which no weights do{why}"
            ) from None
        finally:
            process.kill()
    answer, _, tensors = found.partition(b"\n")
    if process.returncode or not answer:
        raise WeightsError(f"cannot read {path}: it is damaged, or made to do harm: {_end(process.returncode)}")
    found_values: dict[str, Any] = json.loads(answer)
    if "no_memory" in found_values:
        raise WeightsError(f"cannot read {path}: it needs more memory than weights do, or than there is")
    return found_values, tensors


def _end(returncode: int) -> str:
    with suppress(ValueError):
        return f"the process that read it was ended by {signal.Signals(-returncode).name}"
    return f"the process that read it ended with exit code {returncode}"


def main() -> None:
    """Answer one question: a line of JSON, then the content of the file."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # code of the file that prints would print into the answer
    answers.write(READY)
    answers.flush()
    question = json.loads(sys.stdin.buffer.readline())
    _limit_itself(question["size"])
    tensors = b""
    answer: dict[str, str] = {}
    try:
        content = sys.stdin.buffer.read(question["size"])
        tensors = _answer(content, Path(question["path"]), question["allow_pickle"])
    except WeightsError as error:
        answer = {"error": str(error)}
    except Exception as error:
        if not lacks_memory(error):
            raise
        answer = {"no_memory": str(error)}
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.write(tensors)
    answers.flush()
    os._exit(0)  # to free what a hostile file made can take long


def _limit_itself(size: int) -> None:
    """The limits hold also where the process that asked is no more. Memory is limited where there is ``/proc``."""
    if resource is None:
        return
    _limit(resource.RLIMIT_CPU, int(time.process_time()) + 2 * SECONDS)
    with suppress(OSError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, taken + MEMORY_TIMES * size + MEMORY_MORE)


def _limit(kind: int, value: int) -> None:
    soft, hard = resource.getrlimit(kind)
    known = [limit for limit in (value, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(known), hard))


def _answer(content: bytes, path: Path, allow_pickle: bool | None) -> bytes:
    """The tensors as a safetensors file; nothing where only the reading was asked for."""
    if allow_pickle is None:
        with suppress(Exception):
            _torch_load(content, weights_only=True)
        return b""
    _refuse_packed(content, path)
    tensors = _state_dict(_read_torch(content, path, allow_pickle), path)
    _refuse_larger_than(len(content), tensors, path)
    return save({key: tensor.contiguous().clone() for key, tensor in tensors.items()})


def _refuse_packed(content: bytes, path: Path) -> None:
    """PyTorch stores its tensors as they are; an archive that holds more than its size is made to fill the memory."""
    with suppress(zipfile.BadZipFile, ValueError):  # what no archive is, torch says
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > len(content):
            raise WeightsError(f"{path} is an archive that unpacks to more than its size, which PyTorch's never do")


def _refuse_larger_than(size: int, tensors: dict[str, Tensor], path: Path) -> None:
    """A tensor may be a small storage seen through strides of 0, or have no numbers at all; many may share one."""
    taken = 0
    for key, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > size:
            raise WeightsError(f"{path}: {key} is no plain tensor, or claims to be larger than the file")
        taken += tensor.numel() * tensor.element_size()
    if taken > MOST_TIMES * size:
        raise WeightsError(f"{path}: its tensors together claim to be larger than the file")


def _read_torch(content: bytes, path: Path, allow_pickle: bool) -> Any:
    try:
        # EPIC Kitchens checkpoints hold their command line, which is plain values by another name.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _torch_load(content, weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the unpickler
        if lacks_memory(error):
            raise
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
        return _torch_load(content, weights_only=False)
    except Exception as error:  # code from the file may raise anything
        raise WeightsError(f"cannot read {path}: {_first_line(error)}") from error


def _torch_load(content: bytes, weights_only: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about files that it reads or refuses anyway
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=weights_only)
        except UnicodeDecodeError:  # text of Python 2
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=weights_only, encoding="latin1")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[key] for key in CONTAINERS if key in content), content)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path} holds a {type(content).__name__} and no tensors by name")
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        some = ", ".join(f"{str(key)[:80]} ({type(content[key]).__name__})" for key in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise WeightsError(f"{path} holds no table of tensors: not tensors are {some}{more}")
    return {str(key): tensor.detach() for key, tensor in content.items()}


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or no PyTorch file"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
