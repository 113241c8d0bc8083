"""Where the system gives little memory (``ulimit -v``): one clear line with what was being done, and exit code 1."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from network_weights import write_card

from tvnet_cli.cli import main
from tvnet_cli.errors import WeightsError, lacks_memory
from tvnet_cli.flow import solver_cpu
from tvnet_cli.network import cards, checkpoints, weights
from tvnet_cli.network.checkpoints import read_checkpoint
from tvnet_cli.network.weights import load_weights

TORCH = "[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4"
WANTS = [
    MemoryError(),
    RuntimeError(TORCH),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
]


def failing(error: BaseException):
    def fail(*arguments: object, **more: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", WANTS, ids=repr)
def test_want_of_memory_is_one_line_that_says_what_was_being_done(monkeypatch, error):
    monkeypatch.setattr(cards, "list_cards", failing(error))
    result = CliRunner().invoke(main, ["weights", "list"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: there is not enough memory for main weights list: free some, or raise the ")
    assert result.stderr.count("\n") == 1


def test_what_comes_from_want_of_memory_is_that_too():
    error = RuntimeError("could not find a library")
    error.__cause__ = OSError("libsvml.so: failed to map segment from shared object")
    assert lacks_memory(error)
    assert not lacks_memory(RuntimeError("something else"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(TORCH)], ids=repr)
def test_want_of_memory_names_the_weights(tmp_path, monkeypatch, error):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    write_card(path)
    monkeypatch.setattr(weights, "load", failing(error))
    with pytest.raises(WeightsError, match=rf"there is not enough memory to load the weights {path}"):
        load_weights(str(path))
    path.with_suffix(".toml").unlink()
    monkeypatch.setattr(checkpoints, "read_tensors", failing(error))
    with pytest.raises(WeightsError, match=rf"there is not enough memory to read {path}"):
        read_checkpoint(path)


def test_a_file_larger_than_the_memory_is_named(tmp_path, monkeypatch):
    path = tmp_path / "mine.pth"
    path.write_bytes(bytes(8))
    monkeypatch.setattr(cards, "_content", failing(MemoryError()))
    with pytest.raises(WeightsError, match=r"cannot read .*mine\.pth: there is not enough memory for its 8 bytes"):
        read_checkpoint(path)


def test_the_compiler_is_not_begun_where_it_would_end_the_process(monkeypatch):
    monkeypatch.setattr(solver_cpu, "address_space_left", lambda: 100 << 20)
    with pytest.raises(MemoryError, match="the compiler of the flow solver needs 400 MiB"):
        solver_cpu._compile("a kernel that is not there", torch.zeros)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold to the limit")
def test_a_limit_below_which_nothing_can_work_is_said(tmp_path):
    """Below it torch ends the process when it is imported."""
    path = tmp_path / "mine.safetensors"
    command = [sys.executable, "-m", "tvnet_cli", "weights", "verify", str(path)]
    limit = (300 << 20, resource.RLIM_INFINITY)
    ended = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Error: there is not enough memory for tvnet weights verify {path}: free some, or raise the limit (ulimit -v) "
        "(it may have 300 MiB, and needs at least 700)\n"
    )
