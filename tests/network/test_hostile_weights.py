"""Weight files made to do harm: code, sizes that fill the memory, files without an end."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import blob, layer, message, number, varint
from click.testing import CliRunner
from network_weights import write_card
from safetensors.torch import save

from tvnet_cli.cli import main
from tvnet_cli.errors import WeightsError
from tvnet_cli.network import checkpoints, pickles
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.caffe import read_caffemodel
from tvnet_cli.network.cards import read_card, tomllib
from tvnet_cli.network.checkpoints import read_checkpoint
from tvnet_cli.network.weights import load_tvnet, load_weights
from tvnet_cli.options import TVNetOptions


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str, shape: list[int], end: int) -> dict[str, object]:
    return {"fc.bias": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


SAFETENSORS = {
    "a header of 2^60 bytes": struct.pack("<Q", 1 << 60),
    "a header longer than the file": safetensors({}, length=1 << 20),
    "a header that is no JSON": struct.pack("<Q", 9) + b"{" * 9,
    "a header of many levels": struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
    "numbers beyond the end": safetensors(one("F32", [4], 16), bytes(8)),
    "a size that overflows": safetensors(one("F32", [1 << 40, 1 << 40], 16), bytes(16)),
    "a size below zero": safetensors(one("F32", [-4], 16), bytes(16)),
    "a size that is a text": safetensors(
        {"fc.bias": {"dtype": "F32", "shape": "all", "data_offsets": [0, 4]}}, bytes(4)
    ),
    "a type that nobody knows": safetensors(one("F99", [4], 16), bytes(16)),
    "a type that torch does not know": safetensors(one("F4", [4], 2), bytes(2)),
    "two tensors in one place": safetensors(
        {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}, bytes(16)
    ),
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors_files_made_to_do_harm_are_refused(tmp_path, content):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    write_card(path)
    for read in (lambda: load_weights(str(path)), lambda: read_checkpoint(path)):
        with pytest.raises(WeightsError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_classifier_of_many_classes_without_their_weights_makes_no_large_network(tmp_path):
    tensors = BNInception(10, num_classes=2).state_dict() | {"fc.bias": torch.zeros(100_000_000, dtype=torch.uint8)}
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save(tensors))
    write_card(path)
    with pytest.raises(WeightsError, match=r"fc\.weight is \(2, 1024\), expected \(100000000, 1024\)"):
        load_weights(str(path))


def test_tensors_with_hostile_names_are_told_of_in_few_words(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save({f"\x1b[2J{'x' * 10_000}{key}": torch.zeros(1) for key in range(50)}))
    write_card(path)
    with pytest.raises(WeightsError, match=r"50 unknown: .* and 45 more") as caught:
        load_weights(str(path))
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_numbers_of_other_types_are_refused(tmp_path, dtype):
    tensors = BNInception(10, num_classes=0).state_dict()
    tensors["inception_3a_1x1.bias"] = torch.zeros(64).to(dtype)
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save(tensors))
    write_card(path)
    with pytest.raises(WeightsError, match=r"inception_3a_1x1\.bias holds values that are not finite numbers"):
        load_weights(str(path))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def larger_than_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)  # a hole, which takes no place on the disk


@pytest.mark.parametrize("make", [pipe, folder, endless, larger_than_memory])
def test_what_is_no_file_or_too_large_is_not_read(tmp_path, make):
    weights, card, checkpoint = (tmp_path / name for name in ("mine.safetensors", "mine.toml", "mine.pth"))
    make(checkpoint)
    with pytest.raises(WeightsError, match=r"cannot read .*mine\.pth: it (is no file|has 4,398,046,511,104 bytes)"):
        read_checkpoint(checkpoint)
    make(weights)
    write_card(weights, sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"cannot read the weights .*mine\.safetensors: it (is no file|has 4,398)"):
        load_weights(str(weights))
    card.unlink()
    make(card)
    with pytest.raises(WeightsError, match=r"cannot read the card .*mine\.toml: it (is no file|has 4,398)"):
        read_card(card)


def test_a_card_with_an_endless_schedule_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    write_card(path, extra="[tvnet]\nnum_iterations = 1000000000000")
    with pytest.raises(WeightsError, match=r"scales x warps x iterations must be at most 1,000,000"):
        read_card(path.with_suffix(".toml"))
    assert TVNetOptions(num_iterations=1_000_000).num_iterations == 1_000_000


def test_a_card_of_many_levels_is_refused(tmp_path):
    card = tmp_path / "mine.toml"
    card.write_text("a = " + "[" * 50_000)
    with pytest.raises(WeightsError, match="cannot read the card"):
        read_card(card)


@pytest.mark.parametrize("value", ["a." * 500_000 + "a = 1", '"a" . ' * 100_000 + "a = 1", "x = " + "1" * 500_000])
def test_a_card_that_takes_its_parser_hours_is_refused_at_once(tmp_path, value):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    write_card(path, extra=f"[training]\n{value}")
    begun = time.process_time()
    with pytest.raises(WeightsError, match=r"cannot read the card .*mine\.toml: (a key in it has more|Exceeds)"):
        read_card(path.with_suffix(".toml"))
    assert time.process_time() - begun < 2


def test_a_card_with_dates_and_tables_in_lists_is_shown_as_it_is(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    write_card(
        path, extra="[training]\nwhen = 2020-01-02T03:04:05Z\ndays = [2020-01-01, 2021-01-01]\nruns = [{seed = 1}]"
    )
    card = path.with_suffix(".toml")
    shown = CliRunner().invoke(main, ["weights", "show", str(path)]).stdout
    assert tomllib.loads(shown)["training"] == tomllib.loads(card.read_text())["training"]
    as_json = CliRunner().invoke(main, ["weights", "show", str(path), "--json"]).stdout
    assert json.loads(as_json)["training"]["days"] == ["2020-01-01", "2021-01-01"]


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"fc.bias": torch.zeros(1_000_000)}, path)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    assert packed.stat().st_size < 100_000
    assert read_checkpoint(path).tensors["fc.bias"].shape == (1_000_000,)
    with pytest.raises(WeightsError, match="an archive that unpacks to more than its size"):
        read_checkpoint(packed)


ODD_TENSORS = {
    "strides of 0": lambda: torch.zeros(1).expand(1 << 40),
    "no numbers": lambda: torch.zeros(1 << 50, device="meta"),
    "sparse": lambda: torch.eye(1 << 10).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8),
}


@pytest.mark.parametrize("make", ODD_TENSORS.values(), ids=ODD_TENSORS)
@pytest.mark.filterwarnings("ignore")  # of torch, about what it has put aside
def test_tensors_that_claim_more_than_they_hold_are_refused(tmp_path, make):
    path = tmp_path / "mine.pth"
    torch.save({"fc.bias": make()}, path)
    with pytest.raises(WeightsError, match=r"fc\.bias is no plain tensor, or claims to be larger than the file"):
        read_checkpoint(path)


class Hostile:
    """Runs a command if it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.made}",)


def test_a_pickle_that_would_run_a_command_does_not(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": {"fc.bias": torch.zeros(1)}, "more": Hostile(tmp_path / "made")}, path)
    with pytest.raises(WeightsError, match=r"holds more than tensors \(\w+\.system\)"):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()


def archive(pickled: bytes, path: Path) -> bytes:
    """A PyTorch file with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
    return path.read_bytes()


def before_archives(pickled: bytes, path: Path) -> bytes:
    """The same before torch 1.6: pickles in a row."""
    rows = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, [])]
    path.write_bytes(b"".join([*rows[:3], pickled, rows[3]]))
    return path.read_bytes()


# A pair of a pair of a pair ..., as the key of a dict: its hash takes 2^60 steps.
PAIRS = b"\x80\x02K\x01K\x02\x86q\x01" + b"h\x01h\x01\x86q\x01" * 60
HANGS = PAIRS + b"}h\x01K\x00s."
SWELLS = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (1 << 42).to_bytes(6, "little") + b"\x85R."


@pytest.mark.parametrize("wrap", [archive, before_archives])
def test_a_pickle_that_never_ends_is_given_up(tmp_path, monkeypatch, wrap):
    monkeypatch.setattr(pickles, "SECONDS", 1)
    path = tmp_path / "mine.pth"
    wrap(HANGS, path)
    with pytest.raises(WeightsError, match=r"cannot read .*mine\.pth: it took longer than 1 s"):
        read_checkpoint(path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited where there is /proc")
@pytest.mark.parametrize("wrap", [archive, before_archives])
def test_a_pickle_that_swells_is_given_up(tmp_path, wrap):
    path = tmp_path / "mine.pth"
    wrap(SWELLS, path)
    with pytest.raises(WeightsError, match=r"cannot read .*mine\.pth: it needs more memory than weights do"):
        read_checkpoint(path)


def test_the_process_that_reads_a_pickle_limits_itself_too(monkeypatch):
    """What it does may not outlive this one."""
    asked = {}
    monkeypatch.setattr(pickles, "_limit", lambda kind, value: asked.update({kind: value}))
    pickles._limit_itself(10)
    assert 0 < asked[resource.RLIMIT_CPU] - time.process_time() <= 2 * pickles.SECONDS
    assert asked.get(resource.RLIMIT_AS, 1 << 30) >= 1 << 30


def test_ctrl_c_ends_the_reading_of_a_pickle_that_never_ends(tmp_path):
    archive(HANGS, tmp_path / "mine.pth")
    code = (
        "from tvnet_cli.network import pickles\nfrom tvnet_cli.cli import main\n"
        "asked = pickles.subprocess.Popen.communicate\n"
        "def told(self, *arguments, **more):\n    print(self.pid, flush=True)\n"
        "    return asked(self, *arguments, **more)\n"
        "pickles.subprocess.Popen.communicate = told\n"
        "main(['weights', 'import', 'mine.pth', '--name', 'mine'])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path, env=env, text=True)
    reader = int(running.stdout.readline())
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) == 130
    running.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.kill(reader, 0)


def test_tensors_that_share_one_storage_are_not_multiplied(tmp_path):
    one, path = torch.zeros(100_000), tmp_path / "mine.pth"
    torch.save({"a": one, "b": one}, path)
    assert read_checkpoint(path).tensors["b"].shape == one.shape
    torch.save(dict.fromkeys(map(str, range(100)), one), path)
    with pytest.raises(WeightsError, match="its tensors together claim to be larger than the file"):
        read_checkpoint(path)


def test_the_hash_and_the_tensors_are_of_the_same_bytes(tmp_path, monkeypatch):
    path, read = tmp_path / "mine.pth", checkpoints.read_whole
    torch.save({"fc.bias": torch.ones(1)}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def then_changed(path: Path, most: int) -> bytes:
        content = read(path, most)
        torch.save({"fc.bias": torch.zeros(1)}, path)
        return content

    monkeypatch.setattr(checkpoints, "read_whole", then_changed)
    found = read_checkpoint(path)
    assert (found.sha256, found.tensors["fc.bias"].item()) == (sha256, 1)


def test_a_safetensors_file_of_millions_of_empty_tensors_is_refused_before_it_is_read(tmp_path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "mine.safetensors"
    path.write_bytes(safetensors({str(key): empty for key in range(100_000)}))
    write_card(path)
    for read in (lambda: load_weights(str(path)), lambda: read_checkpoint(path)):
        with pytest.raises(WeightsError, match=r"its header has [\d,]+ bytes, at most 4,194,304 are taken"):
            read()


INPUTS = {
    "flow": (
        "scale = inf, scale = nan, scale = -6.375, scale = 0, scale = 1e30, scale = 1e-30, scale = 1" + "0" * 400,
        "clip_pixels = inf, clip_pixels = nan, clip_pixels = -1.0, clip_pixels = 0.0, clip_pixels = 1e30",
    ),
    "rgb": (
        "mean = [inf; 0; 0], mean = [nan; 0; 0], mean = [0; 0; 1e9], mean = [0; 0; -1]",
        "mean = [1" + "0" * 400 + "; 0; 0]",
    ),
}


@pytest.mark.parametrize(
    ("stream", "entry"),
    [(stream, entry.replace(";", ",")) for stream, texts in INPUTS.items() for entry in ", ".join(texts).split(", ")],
)
def test_an_input_that_is_nan_infinite_or_out_of_range_is_refused_by_verify_and_wherever_weights_load(
    tmp_path, stream, entry
):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    write_card(path, stream)
    card = path.with_suffix(".toml")
    card.write_text(re.sub(rf"(?m)^{entry.split()[0]} = .*$", entry, card.read_text()))
    for read in (lambda: load_weights(str(path)), lambda: load_tvnet(str(path), TVNetOptions())):
        with pytest.raises(WeightsError, match=r"mine\.toml: (flow|RGB) input needs"):
            read()
    result = CliRunner().invoke(main, ["weights", "verify", str(path)])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


LONG = varint((1 << 64) - 1)
CAFFE = {
    "a layer of 2^64 bytes": varint(100 << 3 | 2) + LONG,
    "a name of 2^64 bytes": message(100, varint(1 << 3 | 2) + LONG),
    "a size that overflows": layer("fc", [message(7, message(1, LONG * 3)) + message(5, bytes(16))]),
    "many sizes": layer("fc", [message(7, message(1, b"\1" * 1_000_000)) + message(5, bytes(4))]),
    "many sizes one by one": layer("fc", [message(7, number(1, 1) * 100_000) + message(5, bytes(4))]),
    "a number that never ends": b"\xff" * 1_000_000,
    "a long name": message(100, message(1, b"x" * 10_000_000)),
    "a layer within a layer within a layer": message(100, message(7, message(7, message(7, LONG)))),
}


@pytest.mark.parametrize("content", CAFFE.values(), ids=CAFFE)
def test_caffe_files_made_to_do_harm_are_refused(tmp_path, content):
    path = tmp_path / "mine.caffemodel"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"as a Caffe model: .*") as caught:
        read_checkpoint(path)
    assert len(str(caught.value)) < 500


MANY_FIELDS = {
    "millions of empty fields": b"\x7a\0" * 2_000_000,
    "millions of empty fields of one layer": message(100, b"\x7a\0" * 2_000_000),
    "millions of empty fields of one blob": message(100, message(7, b"\x7a\0" * 2_000_000)),
    "millions of empty layers": message(100, b"") * 2_000_000,
    "a hundred thousand empty fields in each layer": message(100, b"\x7a\0" * 100_000) * 100,
}


@pytest.mark.parametrize("content", MANY_FIELDS.values(), ids=MANY_FIELDS)
def test_a_caffe_file_of_tiny_fields_is_given_up_after_so_many(content):
    with pytest.raises(ValueError, match=r"it has more than 200,000 fields$"):
        read_caffemodel(content)


def test_single_numbers_of_two_kinds_in_turn_take_no_longer_than_others(monkeypatch):
    """As many bytes are looked at as the file has, and not 65,536 elements for each element."""
    looked_at = 0
    from_buffer = np.frombuffer

    def counted(*arguments, **more):
        nonlocal looked_at
        found = from_buffer(*arguments, **more)
        looked_at += found.nbytes
        return found

    monkeypatch.setattr(np, "frombuffer", counted)
    single = struct.pack("<f", 1.0)
    in_turn = (varint(5 << 3 | 5) + single + varint(6 << 3 | 5) + single) * 2000
    content = layer("fc", [in_turn + message(7, message(1, varint(2000)))])
    assert read_caffemodel(content)["fc"][0].shape == (2000,)
    assert looked_at < 30 * len(content)
    assert read_caffemodel(layer("fc", [blob(np.ones(5000, np.float32), packed=False)]))["fc"][0].shape == (5000,)
