from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from tvnet_cli.errors import DiskFullError, FlowFileError
from tvnet_cli.flow import store as store_module
from tvnet_cli.flow.field import FlowField
from tvnet_cli.flow.store import FlowStore


def make_field(position: int, size: tuple[int, int] = (16, 24)) -> FlowField:
    rng = np.random.default_rng(position)
    picture = np.zeros((*size, 3), np.uint8)
    arrays = {
        "flow": rng.normal(0, 4, (2, *size)).astype(np.float32),
        "backward": rng.normal(0, 4, (2, *size)).astype(np.float32),
        "occlusion": rng.integers(0, 2, size).astype(np.uint8),
        "flow_scale_1": rng.normal(0, 4, (2, 8, 12)).astype(np.float32),
    }
    return FlowField(position, (position, position + 1), (position / 10, position / 10 + 0.1), picture, picture, arrays)


def store(path: Path, num_fields: int = 4, recipe: object = "one", **more: bool) -> FlowStore:
    return FlowStore(path, num_fields, {"recipe": recipe}, more.get("half", False), more.get("overwrite", False))


def write(path: Path, positions: range, **more: object) -> None:
    with store(path, **more) as output:
        for position in positions:
            output.write(make_field(position))


def check(path: Path, count: int) -> None:
    with h5py.File(path, "r") as file:
        for name in ("flow", "backward", "occlusion", "flow_scale_1"):
            expected = np.stack([make_field(position).arrays[name] for position in range(count)])
            assert file[name].dtype == expected.dtype
            np.testing.assert_array_equal(file[name][:], expected)
        np.testing.assert_array_equal(file["pts_seconds"][:], np.arange(count) / 10)
        np.testing.assert_array_equal(file["frame_index"][:], [(i, i + 1) for i in range(count)])


def test_the_file_is_plain_hdf5_with_one_chunk_a_field(tmp_path):
    write(tmp_path / "a.h5", range(4))
    check(tmp_path / "a.h5", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file["flow"].shape == (4, 2, 16, 24)
        assert file["flow"].chunks == (1, 2, 16, 24)
        assert file.attrs["format"] == "tvnet-flow"
        assert file.attrs["complete"]
        assert json.loads(file.attrs["recipe"]) == {"recipe": "one"}
        assert all(file[name].attrs["description"] and file[name].attrs["unit"] for name in file)
        assert file["flow"].attrs["unit"] == "pixels"


def test_half_precision_is_asked_for(tmp_path):
    write(tmp_path / "a.h5", range(2), half=True)
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file["flow"].dtype == np.float16
        assert file["occlusion"].dtype == np.uint8
        np.testing.assert_array_equal(file["flow"][1], make_field(1).flow.astype(np.float16))


def test_an_interrupted_run_leaves_the_fields_that_are_there_and_goes_on(tmp_path):
    path = tmp_path / "a.h5"
    with suppress(KeyboardInterrupt), store(path) as output:
        output.write(make_field(0))
        output.write(make_field(1))
        raise KeyboardInterrupt
    check(path, 2)
    with h5py.File(path, "r") as file:
        assert not file.attrs["complete"]
    with store(path) as output:
        assert output.num_done == 2
        np.testing.assert_array_equal(output.read(1)["flow"], make_field(1).flow)
        np.testing.assert_array_equal(output.times(), [0, 0.1])
        for position in range(4):
            output.write(make_field(position))
    check(path, 4)
    with h5py.File(path, "r") as file:
        assert file.attrs["complete"]


def test_long_films_get_their_space_piece_by_piece(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    monkeypatch.setattr(store_module, "SPACE_BYTES", 3 * 16 * 24 * 20)  # of three fields
    sizes = set()
    with store(path, num_fields=1000) as output:
        for position in range(10):
            output.write(make_field(position))
            sizes.add(path.stat().st_size)
    assert 3 <= len(sizes) <= 5
    assert max(sizes) < 200_000  # a thousand fields would be 8 MB
    check(path, 10)


@pytest.mark.parametrize("promised", [2, 9])
def test_more_or_fewer_fields_than_promised(tmp_path, promised):
    write(tmp_path / "a.h5", range(5), num_fields=promised)
    check(tmp_path / "a.h5", 5)


def test_what_a_kill_would_leave_at_any_moment(tmp_path, monkeypatch):
    path, snapshots = tmp_path / "a.h5", []
    write(path, range(2), num_fields=2)  # an earlier run; this one adds two fields, of which it gets one done
    flush = h5py.File.flush

    def flush_and_copy(file: h5py.File) -> None:
        flush(file)
        snapshots.append(path.read_bytes())

    monkeypatch.setattr(h5py.File, "flush", flush_and_copy)
    with store(path) as output:
        output.write(make_field(2))
        size = path.stat().st_size
        output.write(make_field(3))
        assert path.stat().st_size == size  # no space was asked for, so no table was moved
    states = []
    for number, content in enumerate(snapshots):
        copy = tmp_path / f"{number}.h5"
        copy.write_bytes(content)
        with h5py.File(copy, "r", locking=False) as file:
            states.append(np.isfinite(file["pts_seconds"][:]).tolist())
            for position in range(min(2 + (number + 1) // 2, 4)):
                np.testing.assert_array_equal(file["flow"][position], make_field(position).flow)
    # Room, then for each field the field first and then the mark that it is there; behind it nothing; and the end.
    there = [[True] * count + [False] * (4 - count) for count in (2, 2, 3, 3, 4, 4)]
    assert states == there


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_store import make_field, store
with store(Path(sys.argv[1]), 300) as output:
    print(output.num_done, flush=True)
    for position in range(300):
        output.write(make_field(position))
        print(position, flush=True)
"""


def test_a_killed_run_leaves_every_field_that_it_had_written(tmp_path):
    path, done = tmp_path / "a.h5", 0
    package = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, str(path), str(package), str(Path(__file__).parent)]
    for stop_at in (3, 40, 41, 160):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            assert int(run.stdout.readline()) >= done
            for line in run.stdout:
                done = int(line) + 1
                if done > stop_at:
                    os.kill(run.pid, signal.SIGKILL)
                    break
            run.wait()
        with h5py.File(path, "r") as file:
            times = file["pts_seconds"][:]
            count = int(np.isfinite(times).sum())
            assert count >= done
            assert np.isfinite(times[:count]).all()
            assert not file.attrs["complete"]
            for position in range(count):
                np.testing.assert_array_equal(file["flow"][position], make_field(position).flow)
        done = count
    write(path, range(300), num_fields=300)
    check(path, 300)


def test_a_file_made_in_another_way_is_left_alone(tmp_path):
    path = tmp_path / "a.h5"
    write(path, range(4))
    with pytest.raises(FlowFileError, match='recipe was "one", now "two"'):
        write(path, range(4), recipe="two")
    check(path, 4)
    write(path, range(2), recipe="two", num_fields=2, overwrite=True)
    check(path, 2)


def test_files_that_are_not_ours_are_left_alone(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(b"text")
    with pytest.raises(FlowFileError, match=r"a\.h5 is not a readable flow file"), store(path):
        pass
    assert path.read_bytes() == b"text"
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(FlowFileError, match="an HDF5 file, but no flow file"), store(path):
        pass
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(FlowFileError, match="it is a folder"), store(tmp_path / "folder.h5"):
        pass


def test_a_second_run_on_the_file_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    code = KILLED.replace("300", "3") + "    sys.stdin.readline()\n"
    package = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(path), str(package), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert [run.stdout.readline() for _ in range(4)]
        with (
            pytest.raises(FlowFileError, match=r"a\.h5 is not complete, and is open in another program"),
            store(path, 3),
        ):
            pass
        run.communicate("go on\n")
    check(path, 3)


@pytest.mark.parametrize("surprise", [False, True], ids=["room was counted", "another program took the room"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_keeps_the_fields_that_are_there_and_with_room_the_run_goes_on(
    small_disk, monkeypatch, surprise, overwrite
):
    path, size = small_disk / "a.h5", (64, 96)  # about 110 kB a field
    if overwrite:
        write(path, range(2), num_fields=2, recipe="old")
    if surprise:
        monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**9))
    todo = iter(range(40))

    def run() -> None:
        with store(path, 40, overwrite=overwrite) as output:
            for position in todo:
                output.write(make_field(position, size))

    with pytest.raises(DiskFullError, match=rf"cannot write {path}: the disk at {small_disk} is full: .* MB are free"):
        run()
    done = next(todo) - 1
    assert done > 10
    with h5py.File(path, "r") as file:
        assert not file.attrs["complete"]
        assert np.isfinite(file["pts_seconds"][:]).sum() == done
        np.testing.assert_array_equal(file["flow"][done - 1], make_field(done - 1, size).flow)
    assert [one.name for one in small_disk.iterdir()] == ["a.h5"]
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    with store(path, 40) as output:
        assert output.num_done == done
        for position in range(40):
            output.write(make_field(position, size))
    with h5py.File(path, "r") as file:
        assert file.attrs["complete"]
        np.testing.assert_array_equal(file["flow"][:], np.stack([make_field(n, size).flow for n in range(40)]))
        np.testing.assert_array_equal(file["pts_seconds"][:], np.arange(40) / 10)


def test_a_run_that_has_all_fields_on_a_full_disk_is_complete(small_disk):
    path = small_disk / "a.h5"
    write(path, range(4))
    (small_disk / "fill").write_bytes(bytes(1 << 20))
    with suppress(OSError), (small_disk / "more").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    write(path, range(4))
    check(path, 4)
    with h5py.File(path, "r") as file:
        assert file.attrs["complete"]
