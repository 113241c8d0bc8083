from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import feature_files
import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tvnet_cli import hdf5
from tvnet_cli.aslan.matlab import matlab_shapes, read_matlab
from tvnet_cli.cli import main
from tvnet_cli.errors import FileAccessError, RefusedFileError, TVNetError
from tvnet_cli.features.format import read_contents
from tvnet_cli.features.merge import merge_features
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.features.table import read_layers
from tvnet_cli.features.verify import repair_features, verify_features

TEXT = h5py.string_dtype("utf-8")
LAYER = "flow/global_pool"


def tvnet(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def made(path: Path, *, ids: bool = True) -> h5py.File:
    """A file that says it is one of an older program, of three videos."""
    file = h5py.File(path, "w")
    file.attrs["format"], file.attrs["format_version"], file.attrs["recipe"] = "tvnet-features", 1, json.dumps({})
    if ids:
        file.create_dataset("video_id", (3,), TEXT)[:] = ["a", "b", "c"]
    return file


def external_storage(path: Path) -> None:
    with made(path) as file:
        file.create_dataset(LAYER, (3, 4), np.float32, external=[(str(path.with_name("secret")), 0, 48)])


def external_link(path: Path) -> None:
    with made(path) as file:
        file["flow"] = h5py.ExternalLink(str(path.with_name("secret")), "/")


def link_of_a_user(path: Path) -> None:
    with made(path) as file:
        file["mine"] = h5py.ExternalLink(str(path.with_name("secret")), "/")


def soft_link(path: Path) -> None:
    with made(path) as file:
        file[LAYER] = h5py.SoftLink("/elsewhere")


def virtual(path: Path) -> None:
    with made(path) as file:
        layout = h5py.VirtualLayout((3, 4), np.float32)
        layout[:] = h5py.VirtualSource(str(path.with_name("secret")), "x", (3, 4))
        file.create_virtual_dataset(LAYER, layout)


@pytest.mark.parametrize("make", [external_storage, external_link, link_of_a_user, soft_link, virtual])
@pytest.mark.parametrize(
    "read",
    [
        read_contents,
        read_layers,
        verify_features,
        repair_features,
        matlab_shapes,
        lambda path: merge_features([path], path.with_name("out.h5")),
        lambda path: FeatureStore(path, {}).__enter__(),
    ],
)
def test_what_leads_out_of_a_file_is_refused_by_name_and_the_file_stays(tmp_path, make, read):
    path = tmp_path / "f.h5"
    path.with_name("secret").write_bytes(bytes(range(48)))
    make(path)
    with pytest.raises(RefusedFileError, match=r"f\.h5: (flow|mine).* (stored in another|link|virtual)"):
        read(path)
    assert path.exists()
    assert not path.with_name("out.h5").exists()


def billions_of_ids(path: Path) -> None:
    with made(path, ids=False) as file:
        file.create_dataset("video_id", (4 * 10**9,), TEXT)


def billions_of_ids_in_chunks(path: Path) -> None:
    with made(path, ids=False) as file:
        file.create_dataset("video_id", (4 * 10**9,), TEXT, chunks=(2**20,), compression="gzip")


def one_text_for_all(path: Path) -> None:
    with made(path, ids=False) as file:
        file.create_dataset("video_id", (500,), TEXT)[:1] = ["x" * 100_000]
        place = file["video_id"].id.get_offset()
    with path.open("r+b") as raw:
        raw.seek(place)
        one = raw.read(16)
        raw.seek(place)
        raw.write(500 * one)


def groups_in_groups(path: Path) -> None:
    with made(path) as file:
        file.create_group("a/" * 40)


def layer_of_nothing(path: Path) -> None:
    with made(path, ids=False) as file:
        file.create_dataset("video_id", (20_000,), TEXT)[:] = [f"{number}" for number in range(20_000)]
        file.create_dataset(LAYER, (20_000, 1024), np.float32, chunks=(1, 1024), compression="gzip")[0] = 1


@pytest.mark.parametrize(
    "make", [billions_of_ids, billions_of_ids_in_chunks, one_text_for_all, groups_in_groups, layer_of_nothing]
)
@pytest.mark.parametrize("read", [read_contents, read_layers, verify_features])
def test_a_file_that_declares_more_than_it_holds_is_refused_before_it_is_read(tmp_path, make, read):
    make(tmp_path / "f.h5")
    with pytest.raises(RefusedFileError, match=r"f\.h5.*(declares|larger than the file|levels)"):
        read(tmp_path / "f.h5")


def test_a_matrix_of_numbers_that_are_not_there_is_refused(tmp_path):
    with h5py.File(tmp_path / "pairs.mat", "w", userblock_size=512) as file:
        file.create_dataset("pairs", (5, 2 * 10**7), np.float64)
    with pytest.raises(RefusedFileError, match=r"pairs\.mat: pairs declares 800000000 bytes"):
        read_matlab(tmp_path / "pairs.mat", lambda name, shape: True)
    with h5py.File(tmp_path / "more.mat", "w", userblock_size=512) as file:
        file.create_dataset("pairs", (5, 10**10), np.float64)
    with pytest.raises(TVNetError, match=r"more\.mat: pairs is too large"):
        read_matlab(tmp_path / "more.mat", lambda name, shape: True)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (LAYER, np.array([b"a", b"b", b"c"]), "holds text of fixed length where float32 should be"),
        (LAYER, np.ones((3, 4), np.complex64), "holds complex64"),
        (LAYER, np.ones((3, 4), np.int64), "holds int64"),
        (LAYER, np.ones((3, 4, 4), np.float32), r"has the shape \(3, 4, 4\), where N x 1024 should be"),
        (LAYER, np.ones((3, 1025), np.float32), r"has rows of \(1025,\), larger than \(1024,\)"),
        (LAYER, np.ones((2, 4), np.float32), "differs in length"),
        ("flow", np.ones((3, 4), np.float32), "is not a group"),
        ("num_frames/x", np.ones(3), "num_frames is a group"),
    ],
)
def test_types_ranks_and_rows_other_than_documented_are_named(tmp_path, name, values, said):
    with made(tmp_path / "f.h5") as file:
        file[name] = values
    assert tvnet("verify", tmp_path / "f.h5").exit_code == 1
    for read in (read_contents, read_layers):
        with pytest.raises(TVNetError, match=rf"f\.h5.*{name.split('/')[0]}.*{said.removeprefix('num_frames ')}"):
            read(tmp_path / "f.h5")


def failing(number: int) -> Callable[..., int]:
    def call(*arguments: object, **more: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    "number", [errno.EAGAIN, errno.ENOLCK, errno.EOPNOTSUPP, 524, errno.EACCES, errno.EIO, errno.ESTALE]
)
def test_errors_of_the_system_are_no_damage_and_nothing_is_moved(tmp_path, monkeypatch, number):
    path = feature_files.write(tmp_path / "f.h5", "a")
    before, real, fail = path.read_bytes(), os.open, failing(number)

    def only_it(name: object, *more: int) -> int:
        return fail() if name == path else real(name, *more)

    for owner, name, replacement in ((hdf5.os, "open", only_it), (hdf5._RawFile, "readinto", fail)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            for read in (read_contents, read_layers, verify_features, repair_features):
                with pytest.raises(FileAccessError, match=os.strerror(number)):
                    read(path)
    assert [one.name for one in tmp_path.iterdir()] == ["f.h5"]
    assert path.read_bytes() == before


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    path = feature_files.write(tmp_path / "f.h5", "a")

    def no_memory(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(hdf5.OpenFile, "text", no_memory)
    result = tvnet("verify", path, "--repair")
    assert (result.exit_code, result.stdout) == (1, f"cannot read {path}: memory does not suffice\n")
    assert [one.name for one in tmp_path.iterdir()] == ["f.h5"]


def test_a_file_that_another_program_writes_is_not_damaged_and_stays(tmp_path):
    path = feature_files.write(tmp_path / "f.h5", "a")
    before = path.stat()
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as HDF5 does
        result = tvnet("verify", path, "--repair")
        assert result.exit_code == 1
        assert f"{path} is open in another program (lock)" in result.stdout
        with pytest.raises(FileAccessError, match="open in another program"):
            feature_files.write(path, "b")
    assert [one.name for one in tmp_path.iterdir()] == ["f.h5"]
    assert path.stat().st_ino == before.st_ino
    assert verify_features(path).good


@pytest.mark.parametrize("locking", [True, False, "best-effort"])
def test_a_file_that_is_open_in_this_process_is_read(tmp_path, locking):
    path = feature_files.write(tmp_path / "f.h5", "a")
    with h5py.File(path, "r", locking=locking):
        assert list(read_contents(path).rows) == ["a"]


def test_a_disk_that_knows_no_locks_is_read(tmp_path, monkeypatch):
    path = feature_files.write(tmp_path / "f.h5", "a")
    monkeypatch.setattr(hdf5.fcntl, "flock", failing(524))
    assert list(read_contents(path).rows) == ["a"]


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "f.h5")
    for read in (read_contents, read_layers, verify_features):
        with pytest.raises(TVNetError, match=r"f\.h5"):
            read(tmp_path / "f.h5")
    assert not hdf5.is_hdf5(tmp_path / "f.h5")
