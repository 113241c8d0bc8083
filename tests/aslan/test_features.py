from __future__ import annotations

import os
import resource
import tempfile
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
from feature_files import damage
from pair_files import class_features, pair_numbers, sample_ids, write_csv, write_features

from tvnet_cli.aslan import arrays
from tvnet_cli.aslan.features import VideoFinder, open_features
from tvnet_cli.aslan.pairs import read_pairs
from tvnet_cli.errors import DamagedError, DatasetError, DiskFullError, FeatureFileError
from tvnet_cli.features import table as module
from tvnet_cli.features.store import FeatureStore

ROWS = pair_numbers()
VALUES = class_features(180, 12)


@pytest.fixture
def pairs(tmp_path):
    pairs = read_pairs(write_csv(tmp_path / "pairs.csv", ROWS))
    cut = {name: tuple(video[:4] for video in getattr(pairs, name)) for name in ("video_a", "video_b")}
    return replace(pairs, **cut)


def read_types(paths, pairs, names=()):
    """Each type's features of all videos of the pairs, read once by rows and once by columns."""
    read = {}
    with open_features(paths, pairs, names) as types:
        for features in types:
            (table,) = features.tables(pairs.videos, pairs.tested)
            by_rows = np.full((len(pairs.videos), features.num_values), np.nan)
            for places, block in table.rows():
                by_rows[places] = block
            by_columns = np.concatenate(list(table.columns()), axis=1)
            assert np.array_equal(by_rows, by_columns)
            read[features.name] = by_rows
    return read


def rows_of(pairs, values):
    return values[[int(video) - 1 for video in pairs.videos]]


@pytest.fixture(params=[1, 400, 2**26])
def block_bytes(request, monkeypatch):
    """Blocks of one value, of a few, of all."""
    monkeypatch.setattr(module, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
def test_our_files_give_all_layers_in_the_order_of_the_paper(tmp_path, pairs):
    layers = {
        "rgb/global_pool": VALUES,
        "flow/inception_4e_output": VALUES.reshape(180, 3, 2, 2) * 2,
        "flow/global_pool": VALUES * 3,
        "flow/inception_5b_output": VALUES[:, :8].reshape(180, 2, 2, 2),
        "flow/another": VALUES[:, :2],
    }
    read = read_types([write_features(tmp_path / "f.h5", sample_ids(180), layers)], pairs)
    order = ["flow/global_pool", "flow/inception_5b_output", "flow/inception_4e_output", "rgb/global_pool"]
    assert list(read) == [*order, "flow/another"]
    for name, values in layers.items():
        assert np.array_equal(read[name], rows_of(pairs, values).reshape(len(pairs.videos), -1))


def test_feature_types_can_be_chosen(tmp_path, pairs):
    path = write_features(tmp_path / "f.h5", sample_ids(180), {"flow/b": VALUES, "flow/a": VALUES})
    assert list(read_types([path], pairs, ["flow/b"])) == ["flow/b"]
    assert list(read_types([path], pairs, ["flow/b", "flow/a"])) == ["flow/b", "flow/a"]
    with pytest.raises(FeatureFileError, match="no features are called flow/c; there are flow/a, flow/b"):
        read_types([path], pairs, ["flow/c"])


@pytest.mark.usefixtures("block_bytes")
def test_files_are_joined_by_video_id(tmp_path, pairs):
    ids = np.array(sample_ids(180))
    odd, even = np.arange(0, 180, 2), np.arange(1, 180, 2)[::-1]
    paths = [
        write_features(tmp_path / "odd.h5", ids[odd], {"flow/global_pool": VALUES[odd]}),
        write_features(tmp_path / "even.h5", ids[even], {"flow/global_pool": VALUES[even]}),
        write_features(tmp_path / "rgb.h5", ids[::-1], {"rgb/global_pool": 2 * VALUES[::-1]}),
    ]
    read = read_types(paths, pairs)
    assert np.array_equal(read["flow/global_pool"], rows_of(pairs, VALUES))
    assert np.array_equal(read["rgb/global_pool"], rows_of(pairs, 2 * VALUES))


def test_one_video_in_two_files_is_an_error(tmp_path, pairs):
    paths = [write_features(tmp_path / name, sample_ids(180), {"flow/a": VALUES}) for name in ("a.h5", "b.h5")]
    with pytest.raises(
        DatasetError, match=r"flow/a in .*a\.h5, .*b\.h5: 0001.avi and 0001.avi both fit the video 0001"
    ):
        read_types(paths, pairs)
    other = write_features(tmp_path / "c.h5", ["x"], {"flow/a": VALUES[:1, :5]})
    with pytest.raises(FeatureFileError, match=r"flow/a has rows of 12 in .* and of 5 in"):
        read_types([paths[0], other], pairs)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, pairs, save):
    save(
        tmp_path / "c3d.npz", video_id=np.arange(1, 181), prob=VALUES, fc6=VALUES.astype(np.float64).reshape(180, 4, 3)
    )
    read = read_types([tmp_path / "c3d.npz"], pairs)
    assert list(read) == ["prob", "fc6"]
    assert np.array_equal(read["fc6"], rows_of(pairs, VALUES))


@pytest.mark.parametrize("name", ["ids.txt", "video_id.txt", "video_id.npy", "ids.npy"])
def test_npy_beside_a_list_of_ids(tmp_path, pairs, name):
    folder = tmp_path / "features"
    folder.mkdir()
    ids = [f"v_{number:04d}" for number in range(1, 181)]
    if name.endswith("txt"):
        (folder / name).write_text("\n".join(ids) + "\n")
    else:
        np.save(folder / name, np.array(ids, "S"))
    for layer, factor in (("fc6", 1), ("fc7", 2)):
        np.save(folder / f"{layer}.npy", np.asfortranarray(VALUES * factor))
    for paths in ([folder], [folder / "fc6.npy", folder / "fc7.npy"]):
        read = read_types(paths, pairs)
        assert list(read) == ["fc6", "fc7"]
        assert np.array_equal(read["fc7"], rows_of(pairs, 2 * VALUES))


def test_a_folder_of_one_file_a_video(tmp_path, pairs):
    folder = tmp_path / "fc6"
    (folder / "more").mkdir(parents=True)
    for number, values in enumerate(VALUES, start=1):
        np.save(folder / ("more" if number % 2 else "") / f"clip-{number:04d}.npy", values)
    assert np.array_equal(read_types([folder], pairs)["fc6"], rows_of(pairs, VALUES))


def test_clips_of_a_video_are_averaged_then_normalised(tmp_path, pairs):
    clips = np.random.default_rng(0).random((180, 3, 12)).astype(np.float32)
    clips[4] = 0
    for number in range(180):
        np.savez(tmp_path / f"{number + 1:04d}.npz", prob=clips[number], fc6=VALUES[number])
    read = read_types([tmp_path], pairs)
    mean = clips.astype(np.float64).mean(axis=1)
    norms = np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(read["prob"], rows_of(pairs, mean / np.where(norms > 0, norms, 1)), rtol=1e-12)
    assert np.array_equal(read["fc6"], rows_of(pairs, VALUES))


def stip_matrix(pairs, by_split):
    """Pairs x D x 2 x splits: the test pairs of a split first, then all others in order."""
    slices = []
    for split, values in enumerate(by_split):
        order = [*np.flatnonzero(pairs.split == split), *np.flatnonzero(pairs.split != split)]
        sides = [[values[int(names[row]) - 1] for row in order] for names in (pairs.video_a, pairs.video_b)]
        slices.append(np.stack(sides, axis=2))  # (pairs, D, 2)
    return np.stack(slices, axis=3)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("kind", ["old", "new", "chunks"])
def test_the_official_descriptors_differ_by_split(tmp_path, pairs, kind):
    by_split = [class_features(180, 7, seed=split).astype(np.float64) for split in range(len(pairs.split_names))]
    matrix, path = stip_matrix(pairs, by_split), tmp_path / "ASLAN_HOG_pairs.mat"
    if kind == "old":
        scipy.io.savemat(path, {"STIP_HOG_pairs_mat": matrix})
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            chunks = (1, 1, 5, 13) if kind == "chunks" else None
            file.create_dataset("STIP_HOG_pairs_mat", data=matrix.T, chunks=chunks)
    with open_features([path], pairs) as (features,):
        assert (features.name, features.num_values, features.by_split) == ("HOG", 7, True)
        tables = features.tables(pairs.videos, pairs.tested)
        for values, table in zip(by_split, tables, strict=True):
            assert np.array_equal(np.concatenate(list(table.columns()), axis=1), rows_of(pairs, values))


def test_official_descriptors_in_another_order_are_noticed(tmp_path, pairs):
    by_split = [class_features(180, 7, seed=split) for split in range(len(pairs.split_names))]
    matrix = stip_matrix(pairs, by_split)
    matrix = np.concatenate([matrix[:6], matrix[6:][::-1]])
    scipy.io.savemat(tmp_path / "a.mat", {"STIP_HOG_pairs_mat": matrix})
    with (
        open_features([tmp_path / "a.mat"], pairs) as (features,),
        pytest.raises(FeatureFileError, match=r"row \d+ of slice 1 should hold the video \d{4}, but differs"),
    ):
        list(features.tables(pairs.videos, pairs.tested))
    scipy.io.savemat(tmp_path / "b.mat", {"STIP_HOG_pairs_mat": matrix[:-1]})
    with (
        pytest.raises(FeatureFileError, match="is 299 x 7 x 2 x 5, for 300 pairs in 5 splits it should be 300 x D"),
        open_features([tmp_path / "b.mat"], pairs),
    ):
        pass


def test_missing_videos_are_told(tmp_path, pairs):
    path = write_features(tmp_path / "f.h5", sample_ids(180)[2:], {"flow/a": VALUES[2:]})
    with open_features([path], pairs) as (features,):
        assert features.missing(["0001", "0002", "0003", "walk"]) == ["0001", "0002", "walk"]


@pytest.mark.parametrize(
    ("video", "found"),
    [
        ("0084", "x/clip-0084.mp4"),
        ("0007", "7.avi"),
        ("5678", None),
        ("walk.avi", "walk.avi"),
        ("walk", "walk.avi"),
        ("films/walk.mp4", "walk.avi"),
        ("x/run", "x/run.mp4"),
        ("y/run", None),
        ("v1.0", "v1.0.avi"),
        ("", None),
        ("unknown", None),
    ],
)
def test_videos_are_found_by_name_or_sample_id(video, found):
    names = ["x/clip-0084.mp4", "7.avi", "012345678.avi", "walk.avi", "x/run.mp4", "v1.0.avi"]
    assert VideoFinder([(name, name) for name in names], "here")(video) == found


def test_two_files_of_one_sample_are_an_error():
    find = VideoFinder([("0084.avi", 1), ("clip-0084.mp4", 2)], "here")
    with pytest.raises(DatasetError, match=r"here: 0084.avi and clip-0084.mp4 both fit the video 0084"):
        find("0084")


def broken(folder, kind):
    path = folder / "broken"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file["x"] = 1
    elif kind == "npz":
        path = folder / "a.npz"
        np.savez(path, fc6=VALUES)
    elif kind == "rows":
        path = folder / "a.npz"
        np.savez(path, video_id=np.arange(3), fc6=VALUES)
    elif kind == "text":
        path.write_text("hello")
    elif kind == "npy":
        path = folder / "a.npy"
        np.save(path, VALUES)
    elif kind == "short":
        path = folder / "a.npy"
        path.write_bytes(b"\x93NUMPY")
        (folder / "ids.txt").write_text("1\n")
    elif kind == "words":
        path = folder / "a.npy"
        np.save(path, np.array([["a"]]))
        (folder / "ids.txt").write_text("1\n")
    elif kind == "mat":
        path = folder / "a.mat"
        scipy.io.savemat(path, {"x": np.ones((3, 4))})
    elif kind in ("empty", "maps", "uneven"):
        path = folder / "videos"
        path.mkdir()
        if kind != "empty":
            np.save(path / "0001.npy", np.ones((2, 3, 4)) if kind == "maps" else np.ones(3))
            np.save(path / "0002.npy", np.ones(4))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gone", "no such feature file"),
        ("h5", "is an HDF5 file, but not of tvnet features: choose another file"),
        ("npz", "has no array video_id; it holds fc6"),
        ("rows", "fc6 is 180 x 12, for 3 videos it should be 3 x D"),
        ("text", "is no feature file: expected a feature file of this program"),
        ("npy", "no list of ids in .*: expected one of video_id.txt"),
        ("short", "is not a readable feature file"),
        ("words", "holds <U1, no numbers"),
        ("mat", "holds no matrix of pairs x values x 2 x splits"),
        ("empty", "holds no .npy or .npz"),
        ("maps", r"0001.npy: videos is float64 of shape \(2, 3, 4\); expected numbers \(D,\) or \(clips, D\)"),
        ("uneven", "0002.npy: videos has 4 values, the files before it 3"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, pairs, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(FeatureFileError, match=message) as error, open_features([path], pairs):
        pass
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_a_temporary_folder_without_room_is_named_and_not_the_input(tmp_path, pairs, monkeypatch, kind):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "folder").mkdir()
    values = np.ones((4, 100_000))
    np.savez_compressed(tmp_path / "archive", video_id=["a", "b", "c", "d"], f=values)
    for row in range(4):
        np.savez_compressed(tmp_path / "folder" / f"{row}.npz", f=values[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / ("archive.npz" if kind == "archive" else "folder")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(DiskFullError, match=r"cannot write .*/temporary/tvnet-.*TMPDIR names") as caught:  # noqa: SIM117
            with open_features([path], pairs):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) not in str(caught.value)


def test_a_damaged_row_is_named_and_never_used(tmp_path, pairs):
    ids = sample_ids(180)
    with FeatureStore(tmp_path / "f.h5", {}) as store:
        for video_id, values in zip(ids, VALUES, strict=True):
            store.add(video_id, {"flow/global_pool": values, "num_frames": 5})
    assert list(read_types([tmp_path / "f.h5"], pairs)) == ["flow/global_pool"]
    damage(tmp_path / "f.h5", "num_frames", 7)
    with pytest.raises(DamagedError, match=rf"f\.h5 is damaged \(the row of {ids[7]} differs from its checksum\)"):
        read_types([tmp_path / "f.h5"], pairs)


def npy_header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write_archive(path: Path, **members: bytes) -> Path:
    ids = BytesIO()
    np.save(ids, np.array(sample_ids(180)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"video_id": ids.getvalue(), **members}.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy_header((180, 10**10)) + bytes(100), "says that it holds 1800000000000 values, but has"),
        (npy_header((180,), "|O") + b"cos\nsystem\n(S'touch pwned'\ntR.", "holds Python objects, which are not read"),
        (b"no array", "is not a readable feature file"),
    ],
)
def test_arrays_that_say_more_than_they_hold_and_pickles_are_refused(tmp_path, pairs, content, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "f.npy").write_bytes(content)
    (tmp_path / "folder" / "ids.txt").write_text("\n".join(sample_ids(180)))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "0001.npy").write_bytes(content)
    places = [write_archive(tmp_path / "f.npz", fc6=content), tmp_path / "folder", tmp_path / "videos"]
    places += [write_archive(tmp_path / "g.npz", video_id=content)]
    for path in places:
        with pytest.raises(FeatureFileError, match=said), open_features([path], pairs):
            pass


def test_an_archive_has_to_fit_its_disk_and_a_bound(tmp_path, pairs, monkeypatch):
    path = write_archive(tmp_path / "f.npz", fc6=npy_header((180, 1000)) + bytes(8 * 180_000))
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with pytest.raises(DiskFullError, match=r"f\.npz needs 1 MB in the temporary folder .* set TMPDIR"):
        read_types([path], pairs)
    monkeypatch.setattr(arrays, "MOST_UNPACKED_BYTES", 10_000)
    with pytest.raises(FeatureFileError, match=r"f\.npz is too large: 14\d+ bytes when unpacked"):
        read_types([path], pairs)


def test_a_pipe_is_refused_without_waiting(tmp_path, pairs):
    os.mkfifo(tmp_path / "f.npz")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "0001.npy")
    for path in (tmp_path / "f.npz", tmp_path / "folder"):
        with pytest.raises(FeatureFileError, match=r"is (a pipe or a device|not a file)"), open_features([path], pairs):
            pass
