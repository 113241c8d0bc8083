from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from feature_files import RECIPE, as_version_1, assert_same_content, damage, row, write

from tvnet_cli.cli import main
from tvnet_cli.errors import DamagedError, FeatureFileError
from tvnet_cli.features import format as format_module
from tvnet_cli.features import store
from tvnet_cli.features import verify as verify_module
from tvnet_cli.features.format import read_contents, write_row
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.features.verify import repair_features, verify_features


def tvnet(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_good_file_is_called_good(tmp_path):
    path = write(tmp_path / "f.h5", "a", "b", failing=("c",))
    result = tvnet("verify", path)
    assert (result.exit_code, result.stdout) == (0, f"good  {path}: 2 rows, 1 failures\n")
    assert tvnet("verify", path, "-q").output == ""
    assert json.loads(tvnet("verify", path, "--json").stdout) == {
        **{"path": str(path), "good": True, "num_rows": 2, "num_failures": 1, "has_checksums": True},
        **{"wrong_rows": {}, "problems": [], "num_waiting": 0, "set_aside": []},
    }


@pytest.mark.parametrize("portion", [1, 2**25])
def test_changed_bits_in_any_dataset_are_found_and_named(tmp_path, monkeypatch, portion):
    monkeypatch.setattr(format_module, "PORTION_BYTES", portion)
    write(tmp_path / "whole.h5", "a", "b", "c")
    names = [*read_contents(tmp_path / "whole.h5").fields, "checksum"]
    names.remove("notes")  # a text, whose bits lie elsewhere
    assert len(names) == 7
    for name in names:
        path = tmp_path / "f.h5"
        path.write_bytes((tmp_path / "whole.h5").read_bytes())
        damage(path, name, 1)
        assert verify_features(path).wrong_rows == {"b": "differs from its checksum"}, name
    result = tvnet("verify", path, tmp_path / "whole.h5")
    assert result.exit_code == 1
    assert f"{path}: b: differs from its checksum\nbad   {path}: 3 rows" in result.stdout
    assert "good  " in result.stdout


def test_a_changed_name_is_found(tmp_path):
    path = write(tmp_path / "f.h5", "first", "other")
    raw = path.read_bytes()
    assert raw.count(b"first") == 1
    path.write_bytes(raw.replace(b"first", b"fjrst"))
    assert verify_features(path).wrong_rows == {"fjrst": "differs from its checksum"}


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "holds what is no number"), (np.inf, "holds what is no number"), (5.0, "has the norm 5")],
)
def test_odd_values_are_named_whatever_the_checksum_says(tmp_path, value, said):
    with FeatureStore(tmp_path / "f.h5", RECIPE) as made:
        values = row(1)
        values["flow/global_pool"] = np.where(np.arange(1024) == 7, value, 0).astype(np.float32)
        made.add("a", values)
        made.add("zeros", {**row(2), "flow/global_pool": np.zeros(1024, np.float32)})
    found = verify_features(tmp_path / "f.h5").wrong_rows
    assert list(found) == ["a"]
    assert said in found["a"]


def test_rows_out_of_order_and_of_different_number_are_found(tmp_path):
    path = write(tmp_path / "f.h5", "a", "b")
    with h5py.File(path, "r+") as file:
        file["video_id"][:] = ["b", "a"]
    assert "rows are not sorted by video_id" in verify_features(path).problems
    write(tmp_path / "g.h5", "a", "b")
    with h5py.File(tmp_path / "g.h5", "r+") as file:
        del file["padded"]
        file["padded"] = [True]
    (problem,) = verify_features(tmp_path / "g.h5").problems
    assert "padded" in problem


def test_files_without_checksums_are_said_to_have_none(tmp_path):
    path = as_version_1(write(tmp_path / "f.h5", "a"), "1a")
    result = tvnet("verify", path)
    assert result.exit_code == 0
    assert "no checksums" in result.stdout


def test_finished_videos_that_wait_are_checked_too(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "QUICK_BYTES", 0)
    parts = tmp_path / "f.h5.parts"
    parts.mkdir()
    write_row(parts / "000000001.h5", RECIPE, "a", row(1))
    write_row(parts / "000000002.h5", RECIPE, "b", row(2))
    result = tvnet("verify", tmp_path / "f.h5")
    assert (result.exit_code, result.stdout) == (
        0,
        f"good  {tmp_path / 'f.h5'}: 0 rows, 0 failures, 2 more videos wait to be packed\n",
    )
    damage(parts / "000000001.h5", "num_frames", 0)
    (parts / "000000002.h5").write_bytes(b"nothing")
    found = verify_features(tmp_path / "f.h5")
    assert found.wrong_rows == {"a": "differs from its checksum"}
    assert found.problems == ("000000002.h5: not a feature file",)


@pytest.mark.parametrize("name", ["nowhere.h5", "text.h5", "folder"])
def test_what_is_no_feature_file_is_one_line_and_exit_code_1(tmp_path, name):
    (tmp_path / "text.h5").write_text("my thesis")
    (tmp_path / "folder").mkdir()
    good = write(tmp_path / "f.h5", "a")
    result = tvnet("verify", tmp_path / name, good)
    assert result.exit_code == 1
    assert result.stdout.count("\n") == 2
    assert name in result.stdout.splitlines()[0]
    assert "good  " in result.stdout
    objects = [json.loads(line) for line in tvnet("verify", tmp_path / name, good, "--json").stdout.splitlines()]
    assert [one["good"] for one in objects] == [False, True]


def test_repairing_keeps_the_good_rows_and_the_next_run_does_the_others(tmp_path):
    path = write(tmp_path / "f.h5", "a", "b", "c", failing=("d",))
    damage(path, "flow/inception_4e_output", 1)
    damaged = path.read_bytes()
    result = tvnet("verify", path, "--repair")
    assert result.exit_code == 0
    assert f"{path}: b: differs from its checksum" in result.stdout
    assert f"the damaged file is now {path}.damaged" in result.stdout
    assert (tmp_path / "f.h5.damaged").read_bytes() == damaged
    assert_same_content(path, write(tmp_path / "g.h5", "a", "c", failing=("d",)))
    write(path, "b")
    assert_same_content(path, write(tmp_path / "h.h5", "a", "b", "c", failing=("d",)))
    assert tvnet("verify", path).exit_code == 0
    damage(path, "flow/inception_4e_output", 0)
    assert repair_features(path).set_aside == (tmp_path / "f.h5.damaged2",)


def test_repairing_a_good_file_leaves_it_as_it_is(tmp_path):
    path = write(tmp_path / "f.h5", "a")
    before = path.stat().st_ino
    assert repair_features(path).set_aside == ()
    assert path.stat().st_ino == before
    assert [one.name for one in tmp_path.iterdir()] == ["f.h5"]


def test_a_file_that_cannot_be_read_at_all_is_put_aside(tmp_path):
    path = write(tmp_path / "f.h5", "a")
    path.write_bytes(path.read_bytes()[:-100])
    result = tvnet("verify", path, "--repair")
    assert result.exit_code == 0
    assert "cannot be read: " in result.stdout
    assert "truncated" in result.stdout
    assert not path.exists()
    assert (tmp_path / "f.h5.damaged").exists()


def test_repairing_keeps_other_runs_out(tmp_path):
    path = write(tmp_path / "f.h5", "a")
    with FeatureStore(path, RECIPE):
        result = tvnet("verify", path, "--repair")
    assert result.exit_code == 1
    assert "another run is writing" in result.stdout


def test_what_waits_is_repaired_too(tmp_path):
    path, parts = write(tmp_path / "f.h5", "x"), tmp_path / "f.h5.parts"
    parts.mkdir()
    write(parts / "000000001.h5", "a", "b")
    damage(parts / "000000001.h5", "num_frames", 0)
    (parts / "000000002.h5").write_bytes(b"nothing")
    result = tvnet("verify", path, "--repair")
    assert result.exit_code == 0
    assert f"{path}: a: differs from its checksum" in result.stdout
    assert "f.h5.parts/000000001.h5.damaged" in result.stdout
    assert "f.h5.parts/000000002.h5.damaged" in result.stdout
    assert (parts / "000000001.h5.damaged").exists()
    for whichever in (path, parts):
        assert tvnet("verify", whichever).exit_code == 0
    write(path, "a")
    assert_same_content(path, write(tmp_path / "g.h5", "a", "b", "x"))


def test_parts_alone_are_repaired(tmp_path):
    parts = tmp_path / "f.h5.parts"
    parts.mkdir()
    write(parts / "000000001.h5", "a", "b")
    damage(parts / "000000001.h5", "num_frames", 0)
    assert repair_features(parts).set_aside == (parts / "000000001.h5.damaged",)
    assert repair_features(tmp_path / "f.h5").good


def test_a_link_leads_to_the_file_that_is_checked_and_repaired(tmp_path):
    path = write(tmp_path / "f.h5", "a", "b")
    (tmp_path / "link.h5").symlink_to("f.h5")
    damage(path, "num_frames", 0)
    assert tvnet("verify", tmp_path / "link.h5", "--repair").exit_code == 0
    assert (tmp_path / "link.h5").is_symlink()
    assert verify_features(path).good
    assert (tmp_path / "f.h5.damaged").exists()


def test_nothing_is_made_where_there_is_nothing_to_repair(tmp_path):
    assert tvnet("verify", tmp_path / "no" / "f.h5", "--repair").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_odd_does_not_keep_the_others_from_being_checked(tmp_path):
    odd, good = write(tmp_path / "odd.h5", "a"), write(tmp_path / "f.h5", "a")
    with h5py.File(odd, "r+") as file:
        file["one"] = 3
    result = tvnet("verify", odd, tmp_path / ("n" * 300), "/dev/null", good)
    assert result.exit_code == 1
    assert "odd.h5" in result.stdout
    assert "/dev/null is not a feature file but a pipe or a device" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("good  ")


def test_names_steer_no_terminal(tmp_path):
    path = write(tmp_path / "f.h5", "\x1b[31mred", "a\nb")
    damage(path, "num_frames", 0)
    damage(path, "num_frames", 1)
    lines = tvnet("verify", path).stdout.splitlines()
    assert len(lines) == 3
    assert r"\x1b[31mred: differs" in lines[0]


def changed_json(file: h5py.File, name: str, change: Callable[[Any], None]) -> None:
    value = json.loads(file.attrs[name])
    change(value)
    file.attrs[name] = json.dumps(value)


def rename_a_failure(file: h5py.File) -> None:
    file["failures/video_id"][0] = "other"


def without_checksum(file: h5py.File) -> None:
    del file["checksum"]
    file["num_frames"][0] = 7


def as_text(file: h5py.File) -> None:
    del file["flow/global_pool"]
    file["flow/global_pool"] = np.array([b"a"] * 2)


CHANGES: dict[str, Callable[[h5py.File], None]] = {
    "recipe": lambda file: changed_json(file, "recipe", lambda it: it["weights"]["flow"].update(sha256="2")),
    "failures": rename_a_failure,
    "without checksum": without_checksum,
    "without flow": lambda file: file.pop("flow"),
    "without a layer": lambda file: file.pop("flow/inception_4e_output"),
    "without notes": lambda file: file.pop("notes"),
    "without failures": lambda file: file.pop("failures"),
    "list of datasets": lambda file: changed_json(file, "datasets", lambda it: it.pop("num_frames")),
    "root checksums": lambda file: file.attrs.pop("checksums"),
    "older version": lambda file: file.attrs.modify("format_version", 1),
    "text": as_text,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_by_hand_is_found_and_its_rows_are_not_called_done(tmp_path, name):
    path = write(tmp_path / "f.h5", "a", "b", failing=("c",))
    with h5py.File(path, "r+") as file:
        CHANGES[name](file)
    found = verify_features(path)
    assert not found.good
    assert found.problems
    with pytest.raises(DamagedError, match="verify --repair"):
        write(path)
    assert tvnet("verify", path, "--repair").exit_code == 0
    assert (tmp_path / "f.h5.damaged").exists()
    write(path, *"ab", failing=("c",))
    assert_same_content(path, write(tmp_path / "g.h5", "a", "b", failing=("c",)))
    assert verify_features(path).good


@pytest.mark.parametrize("name", ["flow/inception_5a_output", "flow", "checksum"])
def test_files_of_version_1_have_the_datasets_that_their_programs_wrote(tmp_path, name):
    path = as_version_1(write(tmp_path / "f.h5", "a"))
    assert verify_features(path).good
    with h5py.File(path, "r+") as file:
        del file[name]
    assert f"missing: {name}" in " ".join(verify_features(path).problems)
    with pytest.raises(DamagedError, match="missing"):
        write(path)


def test_changed_software_is_found_and_does_not_stop_a_run(tmp_path):
    path = write(tmp_path / "f.h5", "a")
    with h5py.File(path, "r+") as file:
        changed_json(file, "recipe", lambda it: it["software"].update(torch="1"))
    assert verify_features(path).problems == ("the list of software differs from its checksum",)
    notes: list[str] = []
    write(path, "b", note=notes.append)
    assert len(notes) == 1
    assert "the list of software differs from its checksum" in notes[0]
    assert verify_features(path).good


def test_what_users_add_is_no_damage_and_survives_a_repair(tmp_path):
    path = write(tmp_path / "f.h5", "a", "b", "c")
    with h5py.File(path, "r+") as file:
        file["labels"], file["names"] = [10, 11, 12], ["x", "y"]
        file.attrs["mine"], file["labels"].attrs["by"] = "note", "me"
    assert verify_features(path).good
    damage(path, "num_frames", 1)
    assert list(verify_features(path).wrong_rows) == ["b"]
    repair_features(path)
    with h5py.File(path) as file:
        assert file["labels"][:].tolist() == [10, 12]
        assert file["names"].asstr()[:].tolist() == ["x", "y"]
        assert (file.attrs["mine"], file["labels"].attrs["by"]) == ("note", "me")
    assert verify_features(path).good


def test_an_interrupted_repair_loses_nothing_even_if_its_copy_is_damaged(tmp_path):
    path, parts = write(tmp_path / "f.h5", "a", "b"), tmp_path / "f.h5.parts"
    damage(path, "num_frames", 0)
    parts.mkdir()
    path.rename(tmp_path / "f.h5.damaged")  # so far an older program came, and its copy was damaged too
    copy = write(parts / "repaired.h5", "b", "c")
    damage(copy, "num_frames", 0)
    result = tvnet("verify", path, "--repair")
    assert result.exit_code == 0
    assert verify_features(path).good
    assert list(read_contents(copy).rows) == ["c"]
    assert list(read_contents(parts / "repaired.h5.damaged").rows) == ["b", "c"]
    assert (tmp_path / "f.h5.damaged").exists()


def test_a_repair_that_is_interrupted_or_goes_wrong_leaves_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "f.h5", "a", "b")
    damage(path, "num_frames", 0)
    before = path.read_bytes()

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    def damaging(output: Path, *arguments: object) -> None:
        damage(write(output, "b"), "num_frames", 0)

    for name, replacement, error in (
        ("_keep_as", interrupted, KeyboardInterrupt),
        ("join", damaging, FeatureFileError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(verify_module, name, replacement)
            with pytest.raises(error):
                repair_features(path)
        assert path.read_bytes() == before
        assert not (tmp_path / "f.h5.damaged").exists()
    assert list(read_contents(path).rows) == ["a", "b"]
    repair_features(path)
    assert verify_features(path).good
