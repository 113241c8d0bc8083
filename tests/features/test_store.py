from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import feature_files
import h5py
import numpy as np
import pytest
from feature_files import RECIPE, as_version_1, assert_same_content, damage, row, write

from tvnet_cli.errors import DamagedError, DiskFullError, FeatureFileError, FileAccessError, RefusedFileError
from tvnet_cli.features import format as format_module
from tvnet_cli.features import store as module
from tvnet_cli.features.format import Failure, read_contents
from tvnet_cli.features.merge import merge_features
from tvnet_cli.features.store import FeatureStore, read_ids
from tvnet_cli.features.verify import repair_features, verify_features
from tvnet_cli.locks import MARKER


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def nothing_is_quick(monkeypatch):
    """A run that is interrupted leaves its rows as they are, however few."""
    monkeypatch.setattr(module, "QUICK_BYTES", 0)


def interrupted_run(path: Path, *ids: str, failing: tuple[str, ...] = (), **how: object) -> None:
    stop = threading.Event()
    with FeatureStore(path, RECIPE, stop=stop, **how) as store:
        for video_id in ids:
            store.add(video_id, row(feature_files.number_of(video_id)))
        for video_id in failing:
            store.add_failure(video_id, "no such file")
        stop.set()


def test_rows_are_sorted_packed_and_plain_hdf5(tmp_path):
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        for number, video_id in enumerate(["b.mp4", "ä.mp4", "a/c.mp4"]):
            store.add(video_id, row(number))
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["video_id"].asstr()[:].tolist() == ["a/c.mp4", "b.mp4", "ä.mp4"]
        assert file["num_frames"][:].tolist() == [2, 0, 1]
        assert file["padded"][:].tolist() == [False, False, True]
        assert file["padded"].dtype == bool
        assert file["flow/global_pool"].shape == (3, 1024)
        assert file["flow/global_pool"].dtype == np.float32
        assert (file["flow/inception_4e_output"][2] == row(1)["flow/inception_4e_output"]).all()
        assert file.attrs["format"] == "tvnet-features"
        assert file.attrs["format_version"] == 2
        assert json.loads(file.attrs["recipe"]) == RECIPE
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in found:
            assert file[name].attrs["description"]
            assert file[name].attrs["unit"]
    assert names(tmp_path) == ["f.h5"]


def test_a_second_run_adds_rows_between_the_old_ones(tmp_path):
    write(tmp_path / "f.h5", "a", "c")
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        assert "a" in store
        assert "b" not in store
        store.add("b", row(feature_files.number_of("b")))
    assert_same_content(tmp_path / "f.h5", write(tmp_path / "g.h5", "b", "a", "c"))


def test_a_run_without_new_rows_leaves_the_file_untouched(tmp_path):
    write(tmp_path / "f.h5", "a")
    before = (tmp_path / "f.h5").stat()
    write(tmp_path / "f.h5")
    after = (tmp_path / "f.h5").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_run_without_any_row_leaves_no_file_unless_it_is_asked_to(tmp_path):
    write(tmp_path / "f.h5")
    assert names(tmp_path) == []
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        store.write_empty()
    assert read_ids(tmp_path / "f.h5") == ([], RECIPE)
    write(tmp_path / "f.h5", "a")
    assert read_ids(tmp_path / "f.h5") == (["a"], RECIPE)


def test_failures_are_kept_until_a_row_takes_their_place(tmp_path):
    write(tmp_path / "f.h5", "a", failing=("b", "c"))
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["failures/video_id"].asstr()[:].tolist() == ["b", "c"]
        assert file["failures/reason"].asstr()[:].tolist() == ["no video stream (audio only)"] * 2
        assert file["failures/code"].asstr()[:].tolist() == ["no_video_stream"] * 2
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        assert "b" not in store
        assert store.failures == {
            video_id: Failure("no video stream (audio only)", "no_video_stream") for video_id in "bc"
        }
        store.add("b", row(2))
        store.add_failure("c", "the file is empty", "empty")
        assert store.failures == {"c": Failure("the file is empty", "empty")}
    contents = read_contents(tmp_path / "f.h5")
    assert list(contents.rows) == ["a", "b"]
    assert contents.failures == {"c": Failure("the file is empty", "empty")}


def test_failures_alone_are_a_file_too(tmp_path):
    write(tmp_path / "f.h5", failing=("b",))
    assert list(read_contents(tmp_path / "f.h5").failures) == ["b"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": {"streams": ["flow", "rgb"], "num_clips": 25}}, r'options\.streams was \["flow"\], now'),
        ({"weights": {"flow": {"name": "a.safetensors", "sha256": "2"}}}, r'weights\.flow\.sha256 was "1", now "2"'),
        ({"weights": {}}, r"weights\.flow was .* now null"),
    ],
)
def test_another_recipe_is_an_error_that_names_the_field(tmp_path, change, named):
    write(tmp_path / "f.h5", "a")
    with pytest.raises(FeatureFileError, match=named):
        write(tmp_path / "f.h5", recipe={**RECIPE, **change})
    assert read_ids(tmp_path / "f.h5")[0] == ["a"]


def test_newer_software_and_moved_weights_may_go_on(tmp_path):
    write(tmp_path / "f.h5", "a")
    moved = {"flow": {"name": "elsewhere/a.safetensors", "sha256": "1"}}
    write(tmp_path / "f.h5", "b", recipe={**RECIPE, "weights": moved, "software": {"torch": "2.9"}})
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "b"]


def test_overwriting_keeps_the_old_file_until_the_new_one_is_whole(tmp_path):
    write(tmp_path / "f.h5", "a")
    with FeatureStore(tmp_path / "f.h5", {**RECIPE, "options": {}}, overwrite=True) as store:
        assert "a" not in store
        assert read_ids(tmp_path / "f.h5")[0] == ["a"]
        store.add("b", row(1))
    assert read_ids(tmp_path / "f.h5") == (["b"], {**RECIPE, "options": {}})
    assert names(tmp_path) == ["f.h5"]


@pytest.mark.usefixtures("nothing_is_quick")
@pytest.mark.parametrize("again", [True, False])
def test_an_overwriting_run_that_was_interrupted_goes_on(tmp_path, again):
    write(tmp_path / "f.h5", "a", "b")
    interrupted_run(tmp_path / "f.h5", "b", overwrite=True)
    notes: list[str] = []
    with FeatureStore(tmp_path / "f.h5", RECIPE, overwrite=again, note=notes.append) as store:
        assert "a" not in store
        assert "b" in store
        store.add("c", row(3))
    assert read_ids(tmp_path / "f.h5")[0] == ["b", "c"]
    assert len(notes) == 1
    assert "going on with a run that overwrites" in notes[0]
    with FeatureStore(tmp_path / "f.h5", RECIPE, overwrite=True) as store:
        assert "b" not in store
    assert read_ids(tmp_path / "f.h5")[0] == ["b", "c"]


@pytest.mark.usefixtures("nothing_is_quick")
def test_overwriting_drops_what_waits_of_a_run_that_does_not_overwrite(tmp_path):
    interrupted_run(tmp_path / "f.h5", "a")
    with FeatureStore(tmp_path / "f.h5", {**RECIPE, "options": {}}, overwrite=True) as store:
        store.add("b", row(1))
    assert read_ids(tmp_path / "f.h5") == (["b"], {**RECIPE, "options": {}})


@pytest.mark.usefixtures("nothing_is_quick")
def test_an_overwriting_run_that_finished_nothing_leaves_no_mark_on_later_rows(tmp_path):
    write(tmp_path / "f.h5", "a")
    parts = tmp_path / "f.h5.parts"
    parts.mkdir()
    (parts / "overwrites").touch()  # as kill -9 leaves it
    interrupted_run(tmp_path / "f.h5", "b")
    write(tmp_path / "f.h5", "c")
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "b", "c"]


def test_overwriting_costs_feature_files_only_but_damaged_ones_too(tmp_path):
    path = write(tmp_path / "f.h5", "a")
    path.write_bytes(path.read_bytes()[:-100])
    write(path, "b", overwrite=True)
    assert read_ids(path)[0] == ["b"]
    path.write_bytes(b"")
    write(path, "c", overwrite=True)
    assert read_ids(path)[0] == ["c"]
    path.write_bytes(b"a film")
    with pytest.raises(FeatureFileError, match="not a readable feature file"):
        write(path, "d", overwrite=True)
    assert path.read_bytes() == b"a film"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "f.h5")
    for overwrite in (False, True):
        with pytest.raises(FeatureFileError, match=r"f\.h5 is not a feature file but a pipe or a device"):
            write(tmp_path / "f.h5", "a", overwrite=overwrite)


def test_a_file_in_the_place_of_the_parts_is_named(tmp_path):
    (tmp_path / "f.h5.parts").write_text("mine")
    with pytest.raises(FeatureFileError, match=r"f\.h5\.parts is in the way.*move it away"):
        write(tmp_path / "f.h5", "a")


@pytest.mark.parametrize("name", ["notes.txt", "data.h5", "draft.new", "000000001.h5", "lock", "holder.json"])
def test_a_folder_of_others_in_the_place_of_the_parts_is_named_and_not_touched(tmp_path, name):
    parts = tmp_path / "f.h5.parts"
    parts.mkdir()
    (parts / name).write_text("precious")
    for how in ({}, {"overwrite": True}):
        with pytest.raises(FeatureFileError, match=r"f\.h5\.parts is in the way.*move it away"):
            write(tmp_path / "f.h5", "a", **how)
        with pytest.raises(FeatureFileError, match=r"f\.h5\.parts is in the way"):
            module.already_there(tmp_path / "f.h5", RECIPE, **how)
    write(tmp_path / "g.h5", "a")
    with pytest.raises(FeatureFileError, match=r"f\.h5\.parts is in the way"):
        merge_features([tmp_path / "g.h5"], tmp_path / "f.h5")
    assert {path.name: path.read_text() for path in parts.iterdir()} == {name: "precious"}
    assert names(tmp_path) == ["f.h5.parts", f"f.h5.parts/{name}", "g.h5"]


@pytest.mark.usefixtures("nothing_is_quick")
def test_files_of_others_among_our_parts_stay(tmp_path):
    interrupted_run(tmp_path / "f.h5", "a")
    parts = tmp_path / "f.h5.parts"
    others = ["notes.txt", "data.h5", "draft.new", "000000001.h5.backup"]
    for name in others:
        (parts / name).write_text("precious")
    for name in ("000000007.h5.new", "packed.new", ".packed.0123abcd.new"):
        (parts / name).write_text("a leftover")
    write(tmp_path / "f.h5", "b")
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "b"]
    assert sorted(path.name for path in parts.iterdir()) == sorted([*others, MARKER])
    write(tmp_path / "f.h5", "c", overwrite=True)
    assert read_ids(tmp_path / "f.h5")[0] == ["c"]
    assert all((parts / name).read_text() == "precious" for name in others)


@pytest.mark.usefixtures("nothing_is_quick")
def test_parts_of_version_0_1_0_without_a_marker_are_resumed(tmp_path):
    interrupted_run(tmp_path / "f.h5", "a", "b")
    (tmp_path / "f.h5.parts" / MARKER).unlink()
    assert set(module.already_there(tmp_path / "f.h5", RECIPE)[0]) == {"a", "b"}
    write(tmp_path / "f.h5", "c")
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "b", "c"]
    assert names(tmp_path) == ["f.h5"]


@pytest.mark.usefixtures("nothing_is_quick")
def test_a_part_that_the_system_keeps_from_being_read_is_not_set_aside(tmp_path, monkeypatch):
    interrupted_run(tmp_path / "f.h5", "a")

    def unreadable(path: Path) -> None:
        raise FileAccessError(f"{path} cannot be opened: Input/output error")

    monkeypatch.setattr(module, "read_contents", unreadable)
    with pytest.raises(FileAccessError, match=r"000000001\.h5 cannot be opened"):
        write(tmp_path / "f.h5", "b")
    monkeypatch.undo()
    assert "f.h5.parts/000000001.h5" in names(tmp_path)


def test_an_empty_run_replaces_no_file_of_others(tmp_path):
    (tmp_path / "f.h5.new").write_text("precious")
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        store.write_empty()
    assert read_ids(tmp_path / "f.h5")[0] == []
    assert (tmp_path / "f.h5.new").read_text() == "precious"


def test_what_is_no_feature_file_is_never_written_to(tmp_path):
    path = tmp_path / "f.h5"
    path.write_bytes(b"my thesis")
    with pytest.raises(FeatureFileError, match="not a readable feature file"):
        write(path, "a")
    assert path.read_bytes() == b"my thesis"
    with h5py.File(path, "w") as file:
        file["data"] = 1
    with pytest.raises(FeatureFileError, match="not of tvnet features"):
        write(path, "a")
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "tvnet-features", 3
    with pytest.raises(FeatureFileError, match="format version 3"):
        write(path, "a")


def test_a_damaged_feature_file_is_left_alone_and_the_error_says_what_to_do(tmp_path):
    write(tmp_path / "f.h5", "a", "b")
    whole = (tmp_path / "f.h5").read_bytes()
    (tmp_path / "f.h5").write_bytes(whole[:-1000])
    with pytest.raises(DamagedError, match=r"truncated file.*tvnet verify --repair .*f\.h5"):
        write(tmp_path / "f.h5", "c")
    assert (tmp_path / "f.h5").read_bytes() == whole[:-1000]
    (tmp_path / "f.h5").write_bytes(whole)
    damage(tmp_path / "f.h5", "flow/inception_4e_output", 1)
    with pytest.raises(DamagedError, match="b differ from their checksums"):
        write(tmp_path / "f.h5", "c")
    assert names(tmp_path) == ["f.h5", "f.h5.parts", "f.h5.parts/000000001.h5", f"f.h5.parts/{MARKER}"]
    with FeatureStore(tmp_path / "g.h5", RECIPE):
        pass


def test_a_file_of_an_older_program_without_checksums_is_gone_on_with(tmp_path):
    write(tmp_path / "f.h5", "a", "c")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        del file["padded"], file["num_frames"], file["pts_seconds"]
    as_version_1(tmp_path / "f.h5", "1a")
    assert not read_contents(tmp_path / "f.h5").has_checksums
    write(tmp_path / "f.h5", "b")
    found = feature_files.content(tmp_path / "f.h5")
    assert found["num_frames"].tolist() == [-1, feature_files.number_of("b"), -1]
    assert found["padded"].tolist() == [False, bool(feature_files.number_of("b") % 2), False]
    assert np.isnan(found["pts_seconds"][[0, 2]]).all()
    write(tmp_path / "f.h5", "d")  # the checksums are of what is in the file now
    assert read_contents(tmp_path / "f.h5").has_checksums


def test_rows_of_another_shape_are_an_error(tmp_path):
    write(tmp_path / "f.h5", "a")
    with (
        pytest.raises(FeatureFileError, match=r"flow/global_pool has rows of .*1024.* in .*f\.h5 and of .*7"),
        FeatureStore(tmp_path / "f.h5", RECIPE) as store,
    ):
        store.add("b", {"flow/global_pool": np.ones(7, np.float32)})


def test_a_link_stays_a_link_and_leads_to_the_same_lock(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "f.h5").symlink_to(tmp_path / "disk" / "real.h5")
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        store.add("a", row(1))
        with pytest.raises(FeatureFileError, match="another run"):
            write(tmp_path / "disk" / "real.h5", "b")
    assert (tmp_path / "f.h5").is_symlink()
    assert read_ids(tmp_path / "disk" / "real.h5")[0] == ["a"]


def test_an_error_in_the_middle_keeps_the_rows_before_it(tmp_path):
    def run() -> None:
        with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
            store.add("a", row(1))
            store.add("b", {"flow/global_pool": object()})

    with pytest.raises(TypeError):
        run()
    assert read_ids(tmp_path / "f.h5")[0] == ["a"]
    assert names(tmp_path) == ["f.h5"]


def test_an_interrupted_run_packs_if_that_takes_a_moment(tmp_path):
    interrupted_run(tmp_path / "f.h5", "b", failing=("c",))
    assert names(tmp_path) == ["f.h5"]


@pytest.mark.usefixtures("nothing_is_quick")
def test_an_interrupted_run_leaves_its_rows_and_the_next_one_packs_them(tmp_path):
    write(tmp_path / "f.h5", "a")
    interrupted_run(tmp_path / "f.h5", "b", failing=("c",))
    assert read_ids(tmp_path / "f.h5")[0] == ["a"]
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        assert "b" in store
        assert list(store.failures) == ["c"]
        assert store.waits
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "b"]
    assert names(tmp_path) == ["f.h5"]


@pytest.mark.usefixtures("nothing_is_quick")
def test_packing_stops_when_the_run_is_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(format_module, "PORTION_BYTES", 1)
    stop = threading.Event()

    def run() -> None:
        with FeatureStore(tmp_path / "f.h5", RECIPE, stop=stop, progress=lambda done, total: stop.set()) as store:
            store.add("a", row(1))
            store.add("b", row(2))

    run()
    assert not (tmp_path / "f.h5").exists()
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        assert "a" in store
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "b"]


def test_many_parts_become_one_and_order_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUNDLE_FILES", 4)
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        store.add_failure("x", "first")
        for number in range(9):
            store.add(f"{number}", row(number))
            assert len(list((tmp_path / "f.h5.parts").glob("*.h5"))) <= 3 + number // 4 + 1
        store.add_failure("x", "second")
    contents = read_contents(tmp_path / "f.h5")
    assert list(contents.rows) == [f"{number}" for number in range(9)]
    assert contents.failures == {"x": Failure("second")}


@pytest.mark.parametrize("kind", ["cut", "bits", "nonsense", "empty"])
@pytest.mark.usefixtures("nothing_is_quick")
def test_a_damaged_part_is_set_aside_and_named_and_its_video_done_again(tmp_path, kind):
    interrupted_run(tmp_path / "f.h5", "a", "b", "c")
    part = tmp_path / "f.h5.parts" / "000000002.h5"
    if kind == "bits":
        damage(part, "flow/global_pool", 0)
    else:
        part.write_bytes({"cut": part.read_bytes()[:-5000], "nonsense": b"no HDF5", "empty": b""}[kind])
    notes: list[str] = []
    with FeatureStore(tmp_path / "f.h5", RECIPE, note=notes.append) as store:
        assert [video_id in store for video_id in "abc"] == [True, False, True]
        store.add("b", row(feature_files.number_of("b")))
    assert len(notes) == 1
    assert "000000002.h5 is damaged" in notes[0]
    assert "000000002.h5.damaged" in notes[0]
    assert_same_content(tmp_path / "f.h5", write(tmp_path / "g.h5", "a", "b", "c"))
    assert (tmp_path / "f.h5.parts" / "000000002.h5.damaged").exists()


@pytest.mark.usefixtures("nothing_is_quick")
@pytest.mark.parametrize("kind", ["cut", "bits"])
def test_damage_found_when_packing_costs_the_damaged_rows_only(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "BUNDLE_FILES", 4)
    interrupted_run(tmp_path / "f.h5", *"abcdef")
    bundle = tmp_path / "f.h5.parts" / "000000004.h5"
    assert list(read_contents(bundle).rows) == list("abcd")
    notes: list[str] = []
    with FeatureStore(tmp_path / "f.h5", RECIPE, note=notes.append) as store:
        assert "b" in store
        if kind == "bits":
            damage(bundle, "flow/global_pool", 1)
        else:
            bundle.write_bytes(bundle.read_bytes()[:-5000])
        assert not store.pack()
        lost = "b" if kind == "bits" else "abcd"
        assert [video_id for video_id in "abcdef" if video_id not in store] == list(lost)
        for video_id in lost:
            store.add(video_id, row(feature_files.number_of(video_id)))
        assert store.pack()
    assert "000000004.h5 is damaged" in notes[0]
    assert_same_content(tmp_path / "f.h5", write(tmp_path / "g.h5", *"abcdef"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_between_packing_and_tidying_up_nothing_is_lost_or_doubled(tmp_path, monkeypatch, overwrite):
    write(tmp_path / "f.h5", "a")
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "000000002.h5":
            raise SystemExit
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(SystemExit):
        write(tmp_path / "f.h5", "b", "c", overwrite=overwrite)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "f.h5.parts").glob("*.h5")) == ["000000002.h5"]
    write(tmp_path / "f.h5", "d")
    assert_same_content(tmp_path / "f.h5", write(tmp_path / "g.h5", *("bcd" if overwrite else "abcd")))


def kill_and_resume(output: Path, kills: int, rows: int) -> set[str]:
    """Kill a run again and again; the ids that it kept. Each must be there at once, and the file must open."""
    finished: set[str] = set()
    random = np.random.default_rng(0)
    for _ in range(kills):
        command = [sys.executable, feature_files.__file__, str(output), str(rows), "7"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=with_path()) as writer:
            finished |= set(writer.stdout.readline().split())
            time.sleep(random.uniform(0, 0.4))
            os.kill(writer.pid, signal.SIGKILL)
            finished |= set(writer.stdout.read().split())
        if output.exists():
            with h5py.File(output) as file:
                assert len(file["flow/global_pool"][:]) == len(file["video_id"])
        with FeatureStore(output, RECIPE, stop=stopped()) as store:
            assert not [video_id for video_id in finished if video_id not in store and video_id not in store.failures]
    return finished


def with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def stopped() -> threading.Event:
    """Of a run that is to leave everything as it is."""
    event = threading.Event()
    event.set()
    return event


@pytest.mark.usefixtures("nothing_is_quick")
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_no_finished_row_is_lost_and_the_file_opens(tmp_path, kills):
    rows = 12 * kills
    kill_and_resume(tmp_path / "f.h5", kills, rows)
    command = [sys.executable, feature_files.__file__]
    for name in ("f.h5", "unbroken.h5"):
        subprocess.run(
            [*command, str(tmp_path / name), str(rows), "7"], check=True, stdout=subprocess.DEVNULL, env=with_path()
        )
    assert_same_content(tmp_path / "f.h5", tmp_path / "unbroken.h5")
    assert names(tmp_path) == ["f.h5", "unbroken.h5"]


def test_two_processes_on_one_output_do_each_video_once(tmp_path):
    command = [sys.executable, feature_files.__file__, str(tmp_path / "f.h5"), "12"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=with_path()) for _ in range(2)]
    said = [one.communicate()[0].split() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sorted(said[0] + said[1]) == [f"{number:04}" for number in range(12)]
    assert len(read_ids(tmp_path / "f.h5")[0]) == 12
    assert names(tmp_path) == ["f.h5"]


@pytest.mark.parametrize("small_disk", [3], indirect=True)
def test_on_a_full_disk_what_is_finished_is_kept_and_a_larger_one_completes_it(small_disk):
    output = small_disk / "f.h5"

    def run(*rows: int) -> None:
        with FeatureStore(output, RECIPE) as store:
            for number in rows:
                if f"{number:02}" not in store:
                    store.add(f"{number:02}", row(number))

    message = (
        rf"the disk at {small_disk} is full: No space left on device, .* MB are free; \d+ finished videos are kept"
    )
    with pytest.raises(DiskFullError, match=message):
        run(*range(20))
    kept = len(list((small_disk / "f.h5.parts").glob("*.h5")))
    assert kept > 10
    with pytest.raises(DiskFullError, match=rf"MB more are needed.*{kept} finished videos are kept"):
        run()  # no room to pack
    assert len(list((small_disk / "f.h5.parts").glob("*.h5"))) == kept
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    run(*range(20))
    assert_same_content(output, write_numbered(small_disk / "g.h5", 20))


def write_numbered(path: Path, count: int, **how: object) -> Path:
    with FeatureStore(path, RECIPE, **how) as store:
        for number in range(count):
            store.add(f"{number:02}", row(number))
    return path


def test_a_limit_on_the_size_of_files_while_packing_keeps_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(format_module, "PORTION_BYTES", 1)
    packed: list[int] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(DiskFullError, match=r"File too large.*8 finished videos are kept"):
            write_numbered(tmp_path / "f.h5", 8, progress=lambda done, total: packed.append(done))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(packed) < 8  # it stops when there is no room
    assert not (tmp_path / "f.h5").exists()
    assert_same_content(write_numbered(tmp_path / "f.h5", 8), write_numbered(tmp_path / "g.h5", 8))
    assert names(tmp_path) == ["f.h5", "g.h5"]


def test_threads_may_add_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUNDLE_FILES", 5)
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        threads = [
            threading.Thread(
                target=lambda first=first: [store.add(f"{n:02}", row(n)) for n in range(first, first + 10)]
            )
            for first in (0, 10, 20, 30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_same_content(tmp_path / "f.h5", write_numbered(tmp_path / "g.h5", 40))


NEWER = {**RECIPE, "software": {"torch": "3"}}


def makers(path: Path) -> dict[str, str]:
    """The torch that made the row of each video."""
    with h5py.File(path) as file:
        records = json.loads(file.attrs["software"])
        assert json.loads(file.attrs["recipe"])["software"] == records[0]
        ids = file["video_id"].asstr()[:].tolist()
        return {name: records[number]["torch"] for name, number in zip(ids, file["written_by"][:], strict=True)}


def test_rows_keep_the_software_that_made_them(tmp_path):
    write(tmp_path / "f.h5", "a", "c")
    write(tmp_path / "f.h5", "b", recipe=NEWER)
    assert makers(tmp_path / "f.h5") == {"a": "2.6", "b": "3", "c": "2.6"}
    write(tmp_path / "f.h5", "d")
    merged = merge_features([write(tmp_path / "g.h5", "e", recipe=NEWER), tmp_path / "f.h5"], tmp_path / "all.h5")
    assert merged.software == ({"torch": "3"}, {"torch": "2.6"})
    assert makers(tmp_path / "all.h5") == {"a": "2.6", "b": "3", "c": "2.6", "d": "2.6", "e": "3"}
    for name in "abe":
        damage(tmp_path / "all.h5", "padded", "abcde".index(name))
    repair_features(tmp_path / "all.h5")
    assert makers(tmp_path / "all.h5") == {"c": "2.6", "d": "2.6"}


def test_a_file_of_version_1_is_gone_on_with_and_left_alone_if_nothing_is_new(tmp_path):
    path = as_version_1(write(tmp_path / "f.h5", "a", "c", failing=("d",)))
    before, old = path.stat(), feature_files.content(path)
    write(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    layers = {f"flow/inception_5{one}_output": np.full((1024, 1, 1), 1 / 32, np.float32) for one in "ab"}
    with FeatureStore(path, NEWER) as store:
        store.add("b", {**row(1), **layers})
    assert makers(path) == {"a": "2.6", "b": "3", "c": "2.6"}
    new = feature_files.content(path)
    for name in old.keys() - {"checksum"}:
        rows = slice(None) if name.startswith("failures/") else [0, 2]
        assert np.array_equal(new[name][rows], old[name], equal_nan=old[name].dtype.kind == "f"), name
    assert new["notes"].tolist() == [b""] * 3
    assert verify_features(path).good


def test_notes_of_a_row_are_kept(tmp_path):
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        store.add("a", {**row(1), "notes": "ä; b"})
        store.add("b", row(2))
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["notes"].asstr()[:].tolist() == ["ä; b", ""]
        file_lines = file["notes"].attrs["description"]
    assert "'; '" in file_lines
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["notes"][0] = "ö; b"
    assert verify_features(tmp_path / "f.h5").wrong_rows == {"a": "differs from its checksum"}


def test_what_users_add_follows_its_videos(tmp_path):
    path = write(tmp_path / "f.h5", "b", "d")
    added = {
        "labels": np.array([1, 2]),
        "mine/scores": np.array([[0.5], [0.25]]),
        "mine/good": np.array([True, True]),
        "mine/kind": np.array([b"x", b"yz"]),
        "mine/classes": np.array([5, 6, 7], np.uint8),
    }
    with h5py.File(path, "r+") as file:
        for name, values in added.items():
            file[name] = values
        file.create_dataset("words", data=["é", "two"], dtype=h5py.string_dtype())
        file.attrs["mine"], file["mine"].attrs["by"] = "note", [1, 2]
        file["flow/global_pool"].attrs["seen"] = True
    write(path, "a", "c")
    found = feature_files.content(path)
    assert found["labels"].tolist() == [-1, 1, -1, 2]
    assert np.array_equal(found["mine/scores"][:, 0], [np.nan, 0.5, np.nan, 0.25], equal_nan=True)
    assert found["mine/good"].tolist() == [False, True, False, True]
    assert found["mine/kind"].tolist() == [b"", b"x", b"", b"yz"]
    assert found["mine/classes"].tolist() == [5, 6, 7]
    assert found["words"].tolist() == [b"", "é".encode(), b"", b"two"]
    with h5py.File(path) as file:
        assert (file.attrs["mine"], file["mine"].attrs["by"].tolist()) == ("note", [1, 2])
        assert file["flow/global_pool"].attrs["seen"]
    assert verify_features(path).good


def test_what_users_add_and_cannot_be_copied_is_named_before_anything_is_written(tmp_path):
    path = write(tmp_path / "f.h5", "a")
    with h5py.File(path, "r+") as file:
        file.create_dataset("lists", (1,), h5py.vlen_dtype(np.int64))
    before = path.stat().st_ino
    with pytest.raises(FeatureFileError, match="lists holds references or lists"):
        write(path, "b")
    assert path.stat().st_ino == before
    with h5py.File(path, "r+") as file:
        del file["lists"]
        file.create_dataset("lists", (1, 10**9), np.uint8, chunks=(1, 2**20), compression="gzip")
    with pytest.raises(RefusedFileError, match="lists declares 1000000000 bytes"):
        write(path)
    assert "b" in read_ids(write(tmp_path / "g.h5", "b"))[0]
