"""``tvnet aslan-eval``, and the way from films to a result."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from click.testing import CliRunner, Result
from pair_files import class_features, pair_numbers, sample_ids, write_features, write_text

from tvnet_cli.cli import main
from tvnet_cli.options import EVAL_PRESETS

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = pair_numbers(num_splits=10, pairs_of_a_label=6)
FIGURES = ["accuracy_mean", "accuracy_se", "auc", "auc_fold_mean", "auc_fold_se", "fold_accuracy", "fold_auc"]


def aslan_eval(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["aslan-eval", *(str(argument) for argument in arguments)])


def figures(*arguments: object) -> dict:
    result = aslan_eval(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with features.h5 and view2.txt, which is the current one."""
    monkeypatch.chdir(tmp_path)
    layers = {"flow/global_pool": class_features(360, 20), "rgb/global_pool": class_features(360, 9, seed=1)}
    write_features(tmp_path / "features.h5", sample_ids(360), layers)
    write_text(tmp_path / "view2.txt", ROWS)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_without_arguments_it_takes_what_lies_here():
    result = aslan_eval()
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Acc ")
    assert "all 24 numbers" in result.stdout
    assert "note not the official View 2: 120 pairs in 10 splits" in result.stderr
    assert "classifiers: " in result.stderr
    assert aslan_eval("-q").stderr == ""


def test_the_official_matlab_file_goes_first(here):
    scipy.io.savemat(here / "View2.mat", {"action_splits_pairs": ROWS[:60].reshape(10, 6, 5).transpose(1, 2, 0)})
    assert "split 1 has only same pairs" in aslan_eval().stderr


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ((), "no features.h5 and no View2.mat or view2.txt (--pairs FILE names another) in "),
        (("view2.txt",), "no features.h5 in "),
        (("features.h5",), "no View2.mat or view2.txt (--pairs FILE names another) in "),
    ],
)
def test_what_is_missing_is_said_in_one_line(here, there, message):
    for name in {"features.h5", "view2.txt"} - set(there):
        (here / name).unlink()
    result = aslan_eval()
    assert result.exit_code == 1
    assert result.stderr == f"Error: {message}{here}\n"


@pytest.mark.usefixtures("here")
def test_json_is_the_one_thing_on_stdout():
    found = figures()
    assert list(found)[:7] == FIGURES
    assert found["num_numbers"] == 24
    assert len(found["fold_accuracy"]) == 10
    assert found["recipe"]["preset"] == "tvnet"
    assert found["comparable"] is False


@pytest.mark.usefixtures("here")
def test_the_same_run_twice_gives_the_same_numbers():
    one, other = figures(), figures("-j", 1)
    assert one == other


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("preset", "scale", "limit"),
    [("tvnet", "zscore", -1), ("c3d", "zscore", -1), ("p3d", "l2", -1), ("tpami", "none", 10**6)],
)
def test_presets(preset, scale, limit):
    recipe = figures("--preset", preset)["recipe"]
    assert (recipe["scale"], recipe["max_iterations"]) == (scale, limit)
    assert (recipe["solver"], recipe["C"], recipe["measures"]) == ("libsvm", 1, list(range(1, 13)))
    assert preset in EVAL_PRESETS


@pytest.mark.usefixtures("here")
def test_options_change_the_recipe_and_the_result():
    plain = figures()
    for options, name, value in (
        (["--C", "0.01"], "C", 0.01),
        (["--solver", "liblinear"], "solver", "liblinear"),
        (["--scale", "none"], "scale", "none"),
        (["--measures", "5, 10"], "measures", [5, 10]),
        (["--model", "oss"], "model", "oss"),
        (["--feature", "rgb/global_pool"], "feature_types", None),
        (["--eps", "1e-3"], "eps", 1e-3),
    ):
        found = figures(*options)
        assert found["recipe"][name] == value or value is None
        assert found["auc"] != plain["auc"], options
    with_preset = figures("--preset", "tpami", "--scale", "l2", "--max-iterations", 500)["recipe"]
    assert (with_preset["scale"], with_preset["max_iterations"]) == ("l2", 500)


def test_view_1(here):
    train, test = write_text(here / "train.txt", ROWS[:72]), write_text(here / "test.txt", ROWS[72:])
    found = figures("--pairs", train, "--test-pairs", test)
    assert found["accuracy_se"] is None
    assert found["splits"] == [{"fold": "test", "num_test": 48, "num_train": 72}]
    assert "(one test set)" in aslan_eval("--pairs", train, "--test-pairs", test).stdout


def test_features_of_others(here):
    np.savez(
        here / "c3d.npz", video_id=np.arange(1, 361), prob=class_features(360, 20), fc6=class_features(360, 9, seed=1)
    )
    ours, theirs = figures(), figures("c3d.npz")
    assert theirs["fold_auc"] == ours["fold_auc"]
    assert list(theirs["by_feature"]) == ["prob", "fc6"]


def test_the_official_descriptors(here):
    values = class_features(360, 15).astype(np.float64)
    slices = []
    for split in range(10):
        order = [*range(12 * split, 12 * split + 12), *range(12 * split), *range(12 * split + 12, 120)]
        slices.append(np.stack([values[ROWS[order, side] - 1] for side in (0, 1)], axis=2))
    scipy.io.savemat(here / "ASLAN_HOF_pairs.mat", {"STIP_HOF_pairs_mat": np.stack(slices, axis=3)})
    np.savez(here / "hof.npz", video_id=np.arange(1, 361), HOF=values)
    official, by_video = (figures(name, "--solver", "liblinear") for name in ("ASLAN_HOF_pairs.mat", "hof.npz"))
    assert official["fold_auc"] == by_video["fold_auc"]
    assert figures("ASLAN_HOF_pairs.mat", "--model", "oss")["auc"] == figures("hof.npz", "--model", "oss")["auc"]
    assert figures("features.h5", "ASLAN_HOF_pairs.mat")["num_numbers"] == 36


def test_a_report_is_written(here):
    result = aslan_eval("-o", here / "a" / "report")
    assert result.exit_code == 0
    names = ["index.html", "report.json", "roc.svg", "roc.txt", "scores.csv"]
    assert sorted(path.name for path in (here / "a" / "report").iterdir()) == names


def test_missing_videos_stop_the_run_or_are_left_out(here):
    write_features(here / "features.h5", sample_ids(355), {"flow/global_pool": class_features(355, 20)})
    result = aslan_eval()
    assert result.exit_code == 1
    assert "videos have no features (flow/global_pool): 0356" in result.stderr
    found = figures("--allow-missing")
    assert found["num_pairs"] < 120
    assert any("pairs left out" in note for note in found["notes"])


@pytest.mark.parametrize(
    "arguments",
    [["--C", "0"], ["--measures", "0"], ["--measures", "1,1"], ["--measures", "a"], ["--eps", "-1"], ["--scale", "x"]],
)
def test_wrong_usage_exits_2(arguments):
    assert aslan_eval(*arguments).exit_code == 2


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--videos", "films"], 2, "give its folder with -o"),
        (["--videos", "films", "-o", "report"], 1, "no such folder of videos: films"),
        (["-o", "view2.txt"], 1, "cannot make the folder view2.txt"),
        (["gone.h5"], 1, "no such feature file: gone.h5"),
        (["--pairs", "gone.txt"], 1, "cannot read the pairs gone.txt: No such file or directory"),
        (["--feature", "fc9"], 1, "no features are called fc9"),
    ],
)
def test_errors_are_one_line(arguments, code, message):
    result = aslan_eval(*arguments)
    assert result.exit_code == code
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_damaged_feature_file_is_named(here):
    whole = (here / "features.h5").read_bytes()
    (here / "features.h5").write_bytes(whole[: len(whole) // 2])
    result = aslan_eval()
    assert result.exit_code == 1
    assert "Error: features.h5 is not a readable feature file" in result.stderr


def test_films_to_result(shared_data, tmp_path, monkeypatch):
    """Real films of two actions in four sequences, folds by sequence, through the whole chain."""
    from tvnet_cli.features import extract

    whole = extract.extract_features

    def one_clip(*arguments, options, **more):
        return whole(*arguments, options=replace(options, num_clips=1), **more)

    monkeypatch.setattr(extract, "extract_features", one_clip)
    actions, features = shared_data / "actions", tmp_path / "f.h5"
    lines = (actions / "labels.csv").read_text().splitlines()
    chosen = [line for line in lines if re.match(r"ut_interaction/(hug|kick)/set1", line)]
    films = [str(actions / line.split(",")[0]) for line in chosen]
    command = ["features", *films, "-o", str(features), "--weights", "untrained", "-q"]
    assert CliRunner().invoke(main, command).exit_code == 0
    (tmp_path / "labels.csv").write_text("\n".join([lines[0], *chosen]))
    script = [sys.executable, REPOSITORY / "examples/pair_up.py", tmp_path / "labels.csv", "--folds", "2"]
    pairs = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    (tmp_path / "pairs.csv").write_text(pairs)
    videos = actions / "ut_interaction"
    found = figures(features, "--pairs", tmp_path / "pairs.csv", "-o", tmp_path / "report", "--videos", videos)
    assert [split["num_test"] for split in found["splits"]] == [4] * 2
    assert found["num_numbers"] == 48
    assert not any("leak" in note for note in found["notes"])
    assert (tmp_path / "report" / "index.html").read_text().count("data:image/jpeg") >= 8


def test_pairs_of_labelled_films_keep_groups_apart(tmp_path):
    lines = [f"{group}_{action}.avi,{action},{group}" for group in "abcdef" for action in ("run", "sit", "go")]
    (tmp_path / "labels.csv").write_text("\n".join(["file,class,group", *lines]))
    script = [sys.executable, REPOSITORY / "examples/pair_up.py", tmp_path / "labels.csv", "--folds", "3"]
    rows = [
        line.split(",") for line in subprocess.run(script, check=True, capture_output=True, text=True).stdout.split()
    ]
    assert len(rows) == 1 + 3 * 6
    for one, other, label, fold in rows[1:]:
        assert "abcdef".index(one[0]) // 2 == "abcdef".index(other[0]) // 2 == int(fold) - 1
        assert (one[1:] == other[1:]) == (label == "1")
    assert sum(row[2] == "1" for row in rows[1:]) == 9


def test_what_no_report_made_is_refused_before_the_work(here):
    (here / "index.html").write_text("my homepage")
    result = aslan_eval("-o", here)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"{here / 'index.html'} exists, and nothing in it says that tvnet made it" in result.stderr
    assert aslan_eval("-o", here, "--overwrite").exit_code == 0
    assert aslan_eval("-o", here).exit_code == 0
