from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tvnet_cli.errors import FeatureFileError
from tvnet_cli.features.store import FeatureStore, read_ids

RECIPE = {
    "options": {"streams": ["flow"], "num_clips": 25},
    "weights": {"flow": {"name": "a.safetensors", "sha256": "1"}},
    "software": {"torch": "2.6"},
}


def row(number: int) -> dict[str, object]:
    return {
        "flow/global_pool": np.full(1024, number, np.float32),
        "flow/inception_4e_output": np.full((1056, 7, 7), number, np.float32),
        "num_frames": np.int64(number),
        "padded": np.bool_(number % 2),
    }


def write(path: Path, *ids: str, recipe: dict = RECIPE, overwrite: bool = False) -> None:
    with FeatureStore(path, recipe, overwrite) as store:
        for number, video_id in enumerate(ids):
            store.add(video_id, row(number))


def test_rows_are_sorted_packed_and_plain_hdf5(tmp_path):
    write(tmp_path / "f.h5", "b.mp4", "ä.mp4", "a/c.mp4")
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["video_id"].asstr()[:].tolist() == ["a/c.mp4", "b.mp4", "ä.mp4"]
        assert file["num_frames"][:].tolist() == [2, 0, 1]
        assert file["padded"][:].tolist() == [False, False, True]
        assert file["padded"].dtype == bool
        assert file["flow/global_pool"].shape == (3, 1024)
        assert file["flow/global_pool"].dtype == np.float32
        assert (file["flow/inception_4e_output"][2] == 1).all()
        assert file.attrs["format"] == "tvnet-features"
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["recipe"]) == RECIPE
        for name in ("video_id", "flow/global_pool", "num_frames"):
            assert file[name].attrs["description"]
            assert file[name].attrs["unit"]
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]


def test_a_second_run_adds_rows_between_the_old_ones(tmp_path):
    write(tmp_path / "f.h5", "a", "c")
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        assert "a" in store
        assert "b" not in store
        store.add("b", row(7))
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["video_id"].asstr()[:].tolist() == ["a", "b", "c"]
        assert file["num_frames"][:].tolist() == [0, 7, 1]


def test_a_run_without_new_rows_leaves_the_file_untouched(tmp_path):
    write(tmp_path / "f.h5", "a")
    before = (tmp_path / "f.h5").stat()
    write(tmp_path / "f.h5")
    after = (tmp_path / "f.h5").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_run_without_any_row_leaves_no_file(tmp_path):
    write(tmp_path / "f.h5")
    assert list(tmp_path.iterdir()) == []


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
        file.attrs["format"], file.attrs["format_version"] = "tvnet-features", 2
    with pytest.raises(FeatureFileError, match="format version 2"):
        write(path, "a")


def test_a_second_run_on_the_same_file_is_kept_out(tmp_path):
    with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
        store.add("a", row(1))
        with pytest.raises(FeatureFileError, match="another run is writing"):
            write(tmp_path / "f.h5", "b")
        write(tmp_path / "g.h5", "b")
        store.add("c", row(2))
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "c"]
    write(tmp_path / "f.h5", "b")
    assert read_ids(tmp_path / "f.h5")[0] == ["a", "b", "c"]


def test_an_error_in_the_middle_keeps_the_rows_before_it(tmp_path):
    def run() -> None:
        with FeatureStore(tmp_path / "f.h5", RECIPE) as store:
            store.add("a", row(1))
            store.add("b", {"flow/global_pool": object()})

    with pytest.raises(TypeError):
        run()
    assert read_ids(tmp_path / "f.h5")[0] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]


WRITER = """
import sys
sys.path[:] = sys.argv[2].split("|")
from pathlib import Path
from test_store import FeatureStore, RECIPE, row
with FeatureStore(Path(sys.argv[1]), RECIPE) as store:
    for number in range(150):
        if f"{number:03}" not in store:
            store.add(f"{number:03}", row(number))
            print(number, flush=True)
"""


def test_killed_at_any_moment_no_finished_row_is_lost_and_the_file_opens(tmp_path):
    output, finished = tmp_path / "f.h5", set()
    path = "|".join([str(Path(__file__).parent), *sys.path])
    for attempt in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(output), path], stdout=subprocess.PIPE, text=True)
        finished |= {int(line) for line in writer.stdout.readline().split()}
        time.sleep(0.013 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        finished |= {int(line) for line in writer.stdout.read().split()}
        writer.wait()
        writer.stdout.close()
        if output.exists():
            read_ids(output)
        with FeatureStore(output, RECIPE) as store:
            assert all(f"{number:03}" in store for number in finished)
    subprocess.run([sys.executable, "-c", WRITER, str(output), path], check=True, stdout=subprocess.DEVNULL)
    with h5py.File(output) as file:
        assert file["num_frames"][:].tolist() == list(range(150))
        assert (file["flow/inception_4e_output"][:, 5, 3, 2] == np.arange(150)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]
