from __future__ import annotations

import json

import h5py
import pytest
from click.testing import CliRunner, Result
from feature_files import RECIPE, assert_same_content, damage, row, write

from tvnet_cli.cli import main
from tvnet_cli.features import format as format_module
from tvnet_cli.features import store
from tvnet_cli.features.format import read_contents
from tvnet_cli.features.store import FeatureStore


def tvnet(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("portion", [1, 2**25])
def test_the_union_equals_one_run_bit_for_bit(tmp_path, monkeypatch, portion):
    monkeypatch.setattr(format_module, "PORTION_BYTES", portion)
    one = write(tmp_path / "one.h5", "c", "a", failing=("x", "d"))
    two = write(tmp_path / "two.h5", "b", "d", "e", failing=("y",))
    none = write(tmp_path / "none.h5")
    with FeatureStore(none, RECIPE) as empty:
        empty.write_empty()
    result = tvnet("merge", one, none, two, "-o", tmp_path / "all.h5")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert f"5 rows and 2 failures in {tmp_path / 'all.h5'}" in result.stderr
    whole = write(tmp_path / "whole.h5", *"abcde", failing=("x", "y"))
    assert_same_content(tmp_path / "all.h5", whole)
    with h5py.File(tmp_path / "all.h5") as file:
        assert json.loads(file.attrs["recipe"]) == RECIPE
    assert not (tmp_path / "all.h5.parts").exists()


def test_equal_rows_in_two_files_are_one_and_others_are_an_error_that_names_them(tmp_path):
    one, two = write(tmp_path / "one.h5", "a", "b"), write(tmp_path / "two.h5", "b", "c")
    assert tvnet("merge", one, two, one, "-o", tmp_path / "all.h5", "-q").output == ""
    assert_same_content(tmp_path / "all.h5", write(tmp_path / "whole.h5", *"abc"))
    with FeatureStore(tmp_path / "three.h5", RECIPE) as other:
        other.add("b", row(5))
    result = tvnet("merge", one, tmp_path / "three.h5", "-o", tmp_path / "none.h5")
    assert result.exit_code == 1
    assert "one.h5 and " in result.stderr
    assert "hold different rows of b: flow/global_pool" in result.stderr
    assert not (tmp_path / "none.h5").exists()


def test_other_recipes_are_an_error_and_other_software_is_a_note(tmp_path):
    one = write(tmp_path / "one.h5", "a")
    two = write(tmp_path / "two.h5", "b", recipe={**RECIPE, "options": {"streams": ["rgb"]}})
    result = tvnet("merge", one, two, "-o", tmp_path / "all.h5")
    assert result.exit_code == 1
    assert 'options.streams was ["flow"], now ["rgb"]' in result.stderr
    newer = write(tmp_path / "newer.h5", "b", recipe={**RECIPE, "software": {"torch": "3"}})
    result = tvnet("merge", one, newer, "-o", tmp_path / "all.h5")
    assert result.exit_code == 0
    assert "newer.h5 was made by other software" in result.stderr


def test_damaged_rows_are_not_merged(tmp_path):
    one, two = write(tmp_path / "one.h5", "a"), write(tmp_path / "two.h5", "b")
    damage(two, "flow/global_pool", 0)
    result = tvnet("merge", one, two, "-o", tmp_path / "all.h5")
    assert result.exit_code == 1
    assert "two.h5 is damaged (b differ from their checksums)" in result.stderr
    assert not (tmp_path / "all.h5").exists()


def test_what_is_there_is_overwritten_on_request_only_and_may_be_among_the_files(tmp_path):
    one, two = write(tmp_path / "one.h5", "a"), write(tmp_path / "two.h5", "b")
    result = tvnet("merge", one, two, "-o", one)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert tvnet("merge", one, two, "-o", one, "--overwrite").exit_code == 0
    assert_same_content(one, write(tmp_path / "whole.h5", "a", "b"))


def test_a_run_that_did_not_end_is_an_error_unless_its_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "QUICK_BYTES", 0)
    one, two = write(tmp_path / "one.h5", "a"), write(tmp_path / "two.h5", "b")

    def stopped() -> None:
        with FeatureStore(two, RECIPE) as waiting:
            waiting.add("c", row(ord("c")))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    result = tvnet("merge", one, two, "-o", tmp_path / "all.h5")
    assert result.exit_code == 1
    assert f"the run that writes {two} has not ended" in result.stderr
    assert tvnet("merge", one, two, f"{two}.parts", "-o", tmp_path / "all.h5").exit_code == 0
    assert_same_content(tmp_path / "all.h5", write(tmp_path / "whole.h5", *"abc"))
    result = tvnet("merge", f"{two}.parts", "-o", tmp_path / "part.h5")
    assert list(read_contents(tmp_path / "part.h5").rows) == ["c"]


def test_shards_that_are_missing_are_named(tmp_path):
    paths = [write(tmp_path / f"f.shard-{number:04}-of-0004.h5", str(number)) for number in (0, 2)]
    result = tvnet("merge", *paths, "-o", tmp_path / "all.h5")
    assert result.exit_code == 0
    assert "not among the files: shard 1/4, 3/4" in result.stderr


@pytest.mark.parametrize("name", ["nowhere.h5", "text.h5", "folder"])
def test_what_is_no_feature_file_is_one_clear_line(tmp_path, name):
    (tmp_path / "text.h5").write_text("my thesis")
    (tmp_path / "folder").mkdir()
    result = tvnet("merge", tmp_path / name, "-o", tmp_path / "all.h5")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert name in result.stderr


def test_a_run_that_writes_the_output_keeps_merging_out(tmp_path):
    one = write(tmp_path / "one.h5", "a")
    with FeatureStore(tmp_path / "all.h5", RECIPE):
        result = tvnet("merge", one, "-o", tmp_path / "all.h5")
    assert result.exit_code == 1
    assert "another run is writing" in result.stderr


def test_what_waits_beside_the_output_is_not_forgotten(tmp_path):
    one, output, parts = write(tmp_path / "one.h5", "a"), tmp_path / "all.h5", tmp_path / "all.h5.parts"
    parts.mkdir()
    write(parts / "000000001.h5", "b")
    (parts / "overwrites").touch()
    result = tvnet("merge", one, "-o", output)
    assert result.exit_code == 1
    assert f"the run that writes {output} has not ended" in result.stderr
    assert tvnet("merge", one, parts, "-o", output).exit_code == 0
    with FeatureStore(output, RECIPE) as store:
        assert "a" in store
        assert "b" in store
    assert_same_content(output, write(tmp_path / "whole.h5", "a", "b"))


def test_a_link_stays_one(tmp_path):
    one, old = write(tmp_path / "one.h5", "a"), write(tmp_path / "old.h5", "b")
    (tmp_path / "link.h5").symlink_to("old.h5")
    assert tvnet("merge", one, "-o", tmp_path / "link.h5", "--overwrite").exit_code == 0
    assert (tmp_path / "link.h5").is_symlink()
    assert_same_content(old, one)
    parts = tmp_path / "old.h5.parts"
    parts.mkdir()
    write(parts / "000000001.h5", "c")
    assert "has not ended" in tvnet("merge", tmp_path / "link.h5", "-o", tmp_path / "all.h5").stderr


def test_overwriting_costs_feature_files_only(tmp_path):
    one = write(tmp_path / "one.h5", "a")
    (tmp_path / "film.mp4").write_bytes(b"a film")
    result = tvnet("merge", one, "-o", tmp_path / "film.mp4", "--overwrite")
    assert result.exit_code == 1
    assert "film.mp4 is not a readable feature file" in result.stderr
    assert (tmp_path / "film.mp4").read_bytes() == b"a film"
