from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pair_files import (
    class_features,
    pair_numbers,
    sample_ids,
    twelve_measures,
    write_csv,
    write_text,
)
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from tvnet_cli.aslan.evaluate import evaluate, pairs_with_features, roc_points, scale
from tvnet_cli.aslan.evaluate import pair_numbers as numbers_of
from tvnet_cli.aslan.features import FileFeatures
from tvnet_cli.aslan.pairs import PairSplits, read_pairs
from tvnet_cli.errors import DatasetError, FeatureFileError
from tvnet_cli.features.table import Source
from tvnet_cli.options import EvalOptions

ROWS = pair_numbers()
FAST = EvalOptions(solver="liblinear")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> PairSplits:
    return read_pairs(write_csv(tmp_path_factory.mktemp("pairs") / "pairs.csv", ROWS))


@pytest.fixture(scope="module")
def view2(shared_data) -> PairSplits:
    return read_pairs(shared_data / "aslan/view2.txt")


def features_of(folder: Path, values: np.ndarray, name: str = "fc6") -> FileFeatures:
    np.save(folder / f"{name}.npy", values)
    ids = tuple(sample_ids(len(values)))
    return FileFeatures(name, [Source(name, folder / f"{name}.npy", "", ids, values.shape)])


def expected_numbers(pairs: PairSplits, *layers: np.ndarray) -> np.ndarray:
    rows = [(int(a[:4]) - 1, int(b[:4]) - 1) for a, b in zip(pairs.video_a, pairs.video_b, strict=True)]
    by_layer = [[twelve_measures(values[a], values[b]) for a, b in rows] for values in layers]
    return np.concatenate(by_layer, axis=1)


def expected_result(pairs: PairSplits, numbers: np.ndarray, machine) -> tuple[float, float, np.ndarray]:
    scores = np.full(len(pairs), np.nan)
    for split in pairs.tested:
        train = pairs.split != split
        machine.fit(numbers[train], pairs.same[train])
        scores[~train] = machine.decision_function(numbers[~train])
    accuracy = [100 * np.mean((scores > 0)[pairs.split == s] == pairs.same[pairs.split == s]) for s in pairs.tested]
    return np.mean(accuracy), 100 * roc_auc_score(pairs.same, scores), scores


def test_the_numbers_of_a_pair_stand_by_type_then_measure(tmp_path, pairs):
    one, other = class_features(180, 20), class_features(180, 9, seed=1)
    types = [features_of(tmp_path, one, "b"), features_of(tmp_path, other, "a")]
    numbers = numbers_of(types, pairs, EvalOptions())
    np.testing.assert_allclose(numbers.of_fold(3), expected_numbers(pairs, one, other), rtol=1e-12, atol=1e-13)
    assert numbers.columns == tuple((name, measure) for name in "ba" for measure in range(1, 13))
    some = numbers_of(types, pairs, EvalOptions(measures=(9, 1)))
    assert np.array_equal(some.of_fold(0), numbers.of_fold(0)[:, [8, 0, 20, 12]])
    assert some.columns == (("b", 9), ("b", 1), ("a", 9), ("a", 1))


@pytest.mark.parametrize(
    ("options", "machine"),
    [
        (EvalOptions(), make_pipeline(StandardScaler(), SVC(kernel="linear"))),
        (EvalOptions(C=0.01), make_pipeline(StandardScaler(), SVC(kernel="linear", C=0.01))),
        (EvalOptions(scale="l2"), make_pipeline(Normalizer(), SVC(kernel="linear"))),
        (EvalOptions(scale="none"), SVC(kernel="linear")),
        (FAST, make_pipeline(StandardScaler(), LinearSVC(dual=False))),
    ],
)
def test_a_run_equals_plain_formulas_and_sklearn(tmp_path, pairs, options, machine):
    one, other = class_features(180, 20), class_features(180, 9, seed=1)
    types = [features_of(tmp_path, one, "b"), features_of(tmp_path, other, "a")]
    accuracy, auc, scores = expected_result(pairs, expected_numbers(pairs, one, other), machine)
    assert 55 < accuracy < 95
    found = evaluate(types, pairs, options)
    assert found.num_numbers == 24
    assert found.overall.accuracy_mean == pytest.approx(accuracy, abs=0.2)
    assert found.overall.auc == pytest.approx(auc, abs=0.1)
    np.testing.assert_allclose(found.overall.scores, scores, atol=0.02)
    accuracy, auc, _ = expected_result(pairs, expected_numbers(pairs, other), machine)
    if options.scale != "l2":  # there the norm is that of all numbers together
        assert found.by_type["a"].accuracy_mean == pytest.approx(accuracy, abs=0.2)
        assert found.by_type["a"].auc == pytest.approx(auc, abs=0.1)


def test_one_measure_alone_equals_libsvm(tmp_path, pairs):
    values = class_features(180, 20)
    found = evaluate([features_of(tmp_path, values)], pairs, EvalOptions()).by_measure
    numbers = expected_numbers(pairs, values)
    assert len(found) == 12
    for measure in (1, 6, 10, 12):
        machine = make_pipeline(StandardScaler(), SVC(kernel="linear", tol=1e-8))
        _, _, scores = expected_result(pairs, numbers[:, [measure - 1]], machine)
        np.testing.assert_allclose(found["fc6", measure].scores, scores, atol=1e-3)


def test_figures_of_folds_and_of_all_pairs(tmp_path, pairs):
    result = evaluate([features_of(tmp_path, class_features(180, 20))], pairs, FAST).overall
    accuracies, areas = [], []
    for split in range(5):
        scores, same = result.scores[pairs.split == split], pairs.same[pairs.split == split]
        accuracies.append(100 * np.mean((scores > 0) == same))
        wins = scores[same][:, None] - scores[~same]
        areas.append(100 * np.mean((wins > 0) + 0.5 * (wins == 0)))
    assert result.fold_accuracy == pytest.approx(accuracies)
    assert result.fold_auc == pytest.approx(areas)
    assert result.accuracy_mean == pytest.approx(sum(accuracies) / 5)
    assert result.accuracy_se == pytest.approx(np.sqrt(np.sum((accuracies - np.mean(accuracies)) ** 2) / 4 / 5))
    assert result.auc_fold_mean == pytest.approx(np.mean(areas))
    assert result.auc_fold_se == pytest.approx(np.std(areas, ddof=1) / np.sqrt(5))
    wins = result.scores[pairs.same][:, None] - result.scores[~pairs.same]
    assert result.auc == pytest.approx(100 * np.mean((wins > 0) + 0.5 * (wins == 0)))
    true_positives, false_positives = roc_points(result, pairs)
    assert (true_positives[0], false_positives[0], true_positives[-1], false_positives[-1]) == (0, 0, 1, 1)
    assert 100 * np.trapezoid(true_positives, false_positives) == pytest.approx(result.auc)


def test_equal_scores_count_half(tmp_path, pairs):
    result = evaluate([features_of(tmp_path, np.ones((180, 4)))], pairs, FAST).overall
    assert result.auc == pytest.approx(50)
    assert result.fold_auc == pytest.approx([50] * 5)


def test_a_measure_that_tells_nothing_decides_nothing(tmp_path, pairs):
    found = evaluate([features_of(tmp_path, np.ones((180, 4)))], pairs, EvalOptions())
    assert not found.by_measure["fc6", 9].scores.any()
    assert found.overall.auc == 50


@pytest.mark.parametrize("kind", ["zscore", "l2", "none"])
def test_scaling_sees_training_pairs_only(kind):
    numbers, training = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) < 40
    numbers[:, 3] = 7
    options = EvalOptions(scale=kind)
    scaled = scale(numbers, training, options)
    if kind == "zscore":
        np.testing.assert_allclose(scaled[:40, :3].mean(axis=0), 0, atol=1e-14)
        np.testing.assert_allclose(scaled[:40, :3].std(axis=0), 1)
        assert not scaled[:, 3].any()
    elif kind == "l2":
        np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1)
    else:
        assert np.array_equal(scaled, numbers)
    numbers[40:] *= 100
    assert np.array_equal(scale(numbers, training, options)[:40], scaled[:40])


def test_view_1_is_one_run_without_standard_error(tmp_path):
    train, test = write_text(tmp_path / "a.txt", ROWS[:240]), write_text(tmp_path / "b.txt", ROWS[240:])
    pairs = read_pairs(train, test)
    result = evaluate([features_of(tmp_path, class_features(180, 20))], pairs, FAST).overall
    assert len(result.fold_accuracy) == 1
    assert result.accuracy_se is None
    assert result.auc_fold_se is None
    assert np.isfinite(result.scores).tolist() == [False] * 240 + [True] * 60
    assert result.auc == result.fold_auc[0]


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (np.nan, {}, "fc6 of the video 0005.avi has NaN or infinite values"),
        (-np.inf, {"negatives": "clip"}, "fc6 of the video 0005.avi has NaN or infinite values"),
        (np.inf, {"model": "oss"}, "fc6 of the video 0005.avi has NaN or infinite values"),
        (-0.25, {}, r"fc6 of the video 0005.avi has negative values \(-0.25\).*--negatives clip"),
    ],
)
def test_impossible_features_name_video_and_layer(tmp_path, pairs, value, options, message):
    values = class_features(180, 20)
    values[4, 3] = value
    with pytest.raises(FeatureFileError, match=message):
        evaluate([features_of(tmp_path, values)], pairs, EvalOptions(**options))


def test_negative_features_can_count_as_nothing(tmp_path, pairs):
    values = np.random.default_rng(0).normal(size=(180, 20))
    clipped = numbers_of([features_of(tmp_path, np.maximum(values, 0))], pairs, EvalOptions())
    notes: list[str] = []
    found = numbers_of([features_of(tmp_path, values)], pairs, EvalOptions(negatives="clip"), notes=notes)
    assert np.array_equal(found.values, clipped.values)
    assert notes == [f"fc6: negative values of {len(pairs.videos)} videos count as 0"]


def test_missing_features_are_listed_or_their_pairs_left_out(tmp_path, pairs):
    types = [features_of(tmp_path, class_features(179, 5), "a"), features_of(tmp_path, class_features(178, 5), "b")]
    with pytest.raises(DatasetError, match=r"2 of 1\d\d videos have no features \(a, b\): 0179.avi, 0180.avi; extract"):
        pairs_with_features(types, pairs)
    left = pairs_with_features(types, pairs, allow_missing=True)
    gone = {"0179.avi", "0180.avi"}
    assert len(left) == sum(gone.isdisjoint(pair) for pair in zip(pairs.video_a, pairs.video_b, strict=True)) < 300
    assert "pairs left out, pairs by split 0: 60, 1: 60, 2: 60, 3: 60, 4: " in left.notes[-1]
    evaluate(types, left, FAST)


def test_libsvm_that_gives_up_says_so(tmp_path, pairs):
    found = evaluate([features_of(tmp_path, class_features(180, 20))], pairs, EvalOptions(max_iterations=5))
    assert any("libsvm stopped before it converged, after 5 iterations" in note for note in found.notes)


def test_one_shot_similarity_learns_without_the_pairs_it_scores(tmp_path, pairs):
    values = class_features(180, 20, strength=1.5) - 0.1  # negative features are no harm here
    found = evaluate([features_of(tmp_path, values)], pairs, EvalOptions(model="oss"))
    assert found.num_numbers == 1
    assert found.by_measure == {}
    assert found.overall.auc > 75
    moved = values.copy()
    moved[: 6 * 6] = values[: 6 * 6][::-1]  # another first split: its scores in other folds do not enter here
    first, again = (
        numbers_of([features_of(tmp_path, one)], pairs, EvalOptions(model="oss")) for one in (values, moved)
    )
    assert np.isfinite(first.values).all()
    own = pairs.split == 2
    assert np.array_equal(first.of_fold(0)[own], again.of_fold(0)[own])
    assert not np.array_equal(first.of_fold(1)[own], again.of_fold(1)[own])


def test_one_shot_similarity_needs_three_splits(tmp_path):
    path = write_csv(tmp_path / "two.csv", ROWS[:120], num_splits=2)
    with pytest.raises(DatasetError, match="needs at least 3 splits"):
        evaluate([features_of(tmp_path, class_features(180, 5))], read_pairs(path), EvalOptions(model="oss"))


def test_random_features_are_right_half_of_the_time(tmp_path, view2):
    values = np.random.default_rng(0).random((3700, 16))
    result = evaluate([features_of(tmp_path, values)], view2, FAST).overall
    assert result.accuracy_mean == pytest.approx(50, abs=2)
    assert result.auc == pytest.approx(50, abs=2)


def test_features_that_tell_the_class_are_always_right(tmp_path, view2):
    values = np.zeros((3700, 433), np.float32)
    for names, classes in ((view2.video_a, view2.class_a), (view2.video_b, view2.class_b)):
        values[[int(name) - 1 for name in names], [int(one) for one in classes]] = 1
    result = evaluate([features_of(tmp_path, values)], view2, EvalOptions(measures=(1, 6, 9, 10))).overall
    assert (result.accuracy_mean, result.auc) == (100, 100)
    assert result.accuracy_se == 0


def test_swapping_all_pairs_changes_nothing(tmp_path, view2):
    features = features_of(tmp_path, np.random.default_rng(0).random((3700, 16)))
    swapped = replace(view2, video_a=view2.video_b, video_b=view2.video_a)
    one, other = (evaluate([features], pairs, FAST) for pairs in (view2, swapped))
    assert np.array_equal(one.overall.scores, other.overall.scores)
    assert one.overall.auc == other.overall.auc


def test_memory_does_not_grow_with_the_length_of_the_features(tmp_path):
    """280 MB of features, 560 as float64, go through much less; the measured process does nothing else."""
    rows = pair_numbers(num_splits=4, pairs_of_a_label=20)
    write_csv(tmp_path / "p.csv", rows, 4)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs["format"], file.attrs["format_version"], file.attrs["recipe"] = "tvnet-features", 1, "{}"
        file["video_id"] = sample_ids(144)
        long = file.create_dataset("flow/long", (144, 10000, 7, 7), "f4")
        for row in range(144):
            long[row] = np.random.default_rng(row).random((10000, 7, 7), np.float32)
        file["flow/short"] = np.random.default_rng(0).random((144, 20, 7, 7), np.float32)
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from tvnet_cli.aslan.evaluate import *; from tvnet_cli.aslan.features import *\n"
        "from tvnet_cli.aslan.pairs import read_pairs\n"
        "from tvnet_cli.features import table; table.BLOCK_BYTES = 2**24\n"
        "pairs = read_pairs(Path('p.csv'))\n"
        "with open_features([Path('f.h5')], pairs, [sys.argv[1]]) as types: pair_numbers(types, pairs, EvalOptions())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    short, long = (
        int(subprocess.run([sys.executable, "-c", code, name], check=True, capture_output=True, cwd=tmp_path).stdout)
        for name in ("flow/short", "flow/long")
    )
    assert (tmp_path / "f.h5").stat().st_size > 260 * 2**20
    assert long - short < 100 * 2**10 * (1 if sys.platform == "linux" else 1024)
