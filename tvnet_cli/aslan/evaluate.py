"""The benchmark, one straight line: feature types -> numbers of each pair -> folds -> accuracy, AUC.

Protocol: Kliper-Gross, Hassner, Wolf, TPAMI 34(3), 2012, section 3.2: each split is tested once by a classifier
trained on the others; nothing is ever fitted to test pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_curve
from sklearn.svm import SVC, LinearSVC

from tvnet_cli.aslan.features import FeatureType
from tvnet_cli.aslan.pairs import PairSplits, some
from tvnet_cli.aslan.similarity import PairSums, norms_and_totals, one_shot_similarity
from tvnet_cli.errors import DatasetError, FeatureFileError
from tvnet_cli.features.table import VideoTable
from tvnet_cli.options import DEFAULT_JOBS, EvalOptions

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]  # what goes on, steps done, all steps

KERNEL_CACHE_MB = 500  # holds the kernel of 5,400 pairs
# A column whose spread is below this part of its largest value is constant but for rounding.
CONSTANT = 1e-12


@dataclass(frozen=True)
class EvaluationResult:
    """How well decision values tell same from not-same pairs. All figures in percent.

    Attributes
    ----------
    scores : ndarray, (N,), float64
        Decision value of each pair, positive: same; NaN: never tested.
    fold_accuracy, fold_auc : tuple of float
        By tested split.
    auc : float
        Area under the one ROC curve of all tested pairs, ties counting half.
    """

    scores: Floats = field(repr=False)
    fold_accuracy: tuple[float, ...]
    fold_auc: tuple[float, ...]
    auc: float

    @property
    def accuracy_mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(np.mean(self.fold_accuracy))

    @property
    def accuracy_se(self) -> float | None:
        """Standard error of the mean accuracy; None for a single fold."""
        return _standard_error(self.fold_accuracy)

    @property
    def auc_fold_mean(self) -> float:
        """Mean of the areas under the ROC curve of each fold."""
        return float(np.mean(self.fold_auc))

    @property
    def auc_fold_se(self) -> float | None:
        """Standard error of that mean; None for a single fold."""
        return _standard_error(self.fold_auc)


@dataclass(frozen=True)
class Evaluation:
    """The result with all numbers of a pair, and with parts of them alone.

    Attributes
    ----------
    overall : EvaluationResult
    by_type : dict of feature type to EvaluationResult
    by_measure : dict of (feature type, measure) to EvaluationResult
        Empty for models other than the measures.
    num_numbers : int
        Numbers of a pair.
    notes : tuple of str
        What people should know, such as a solver that gave up.
    """

    overall: EvaluationResult
    by_type: dict[str, EvaluationResult]
    by_measure: dict[tuple[str, int], EvaluationResult]
    num_numbers: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairNumbers:
    """The numbers that classifiers see.

    Attributes
    ----------
    values : ndarray, (1 or folds, N, M), float64
        By fold where they differ, by pair.
    columns : tuple of (feature type, measure), M
        Measure 0 is one-shot similarity.
    """

    values: Floats = field(repr=False)
    columns: tuple[tuple[str, int], ...]

    def of_fold(self, fold: int) -> Floats:
        """(N, M)."""
        numbers: Floats = self.values[fold if len(self.values) > 1 else 0]
        return numbers


def evaluate(
    types: Sequence[FeatureType],
    pairs: PairSplits,
    options: EvalOptions,
    *,
    jobs: int = DEFAULT_JOBS,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Run the benchmark.

    Parameters
    ----------
    types : sequence of FeatureType
        From ``tvnet_cli.aslan.features.open_features``; each has all videos of the pairs.
    pairs : PairSplits
    options : EvalOptions
    jobs : int
        Threads. They change speed, not results.
    progress : callable of (str, int, int)
        Told what goes on, steps done and steps in all.

    Returns
    -------
    Evaluation
        Feature types and measures alone are judged by the same scaled numbers, and a classifier of their own.

    Raises
    ------
    FeatureFileError
        If features are NaN, infinite, or negative where the measures need them not to be; names video and layer.
    DatasetError
        If the splits are too few for the model.
    """
    notes: list[str] = []
    numbers = pair_numbers(types, pairs, options, jobs, progress, notes)
    scaled = [scale(numbers.of_fold(fold), pairs.split != split, options) for fold, split in enumerate(pairs.tested)]
    names = list(dict.fromkeys(name for name, _ in numbers.columns))
    singles = list(numbers.columns) if options.model == "svm" else []
    groups: list[tuple[object, ...]] = [(), *((name,) for name in names), *singles]
    results: dict[tuple[int, ...], EvaluationResult] = {}  # by the columns used: with one feature type alone is all
    for done, group in enumerate(groups):
        progress("classifiers", done, len(groups))
        chosen = _columns_of(group, numbers)
        if chosen not in results:
            results[chosen] = _cross_validate([fold[:, chosen] for fold in scaled], pairs, options, notes)
    progress("classifiers", len(groups), len(groups))
    return Evaluation(
        overall=results[_columns_of((), numbers)],
        by_type={name: results[_columns_of((name,), numbers)] for name in names},
        by_measure={single: results[_columns_of(single, numbers)] for single in singles},
        num_numbers=len(numbers.columns),
        notes=tuple(dict.fromkeys(notes)),
    )


def _columns_of(group: tuple[object, ...], numbers: PairNumbers) -> tuple[int, ...]:
    """The columns whose feature type, or feature type and measure, are these."""
    return tuple(number for number, column in enumerate(numbers.columns) if column[: len(group)] == group)


def pair_numbers(
    types: Sequence[FeatureType],
    pairs: PairSplits,
    options: EvalOptions,
    jobs: int = DEFAULT_JOBS,
    progress: Progress = lambda what, done, total: None,
    notes: list[str] | None = None,
) -> PairNumbers:
    """The numbers of each pair: ``[type 1: measures ..., type 2: measures ..., ...]``.

    Parameters
    ----------
    types, pairs, options, jobs, progress
        As in ``evaluate``.
    notes : list of str, optional
        Takes notes for people.
    """
    videos = pairs.videos
    place = {video: number for number, video in enumerate(videos)}
    first = np.array([place[video] for video in pairs.video_a], np.int64)
    second = np.array([place[video] for video in pairs.video_b], np.int64)
    wanted = list(options.measures) if options.model == "svm" else [0]
    values = []
    for features in types:
        by_fold = []
        for table, fold in zip(features.tables(videos, pairs.tested), pairs.tested, strict=False):
            report = _Steps(progress, features.name)
            if options.model == "svm":
                measures = _measures(table, first, second, options, jobs, report, notes)
                by_fold.append(measures[:, np.array(wanted) - 1])
            else:
                served = [fold] if features.by_split else pairs.tested
                products = table.inner_products(partial(report.values, table))
                by_fold += _one_shot(products, pairs, first, second, served, report)
        values.append(np.stack(by_fold))
    folds = max(len(one) for one in values)
    joined = np.concatenate([np.broadcast_to(one, (folds, *one.shape[1:])) for one in values], axis=2)
    return PairNumbers(joined, tuple((features.name, measure) for features in types for measure in wanted))


def pairs_with_features(types: Sequence[FeatureType], pairs: PairSplits, allow_missing: bool = False) -> PairSplits:
    """The pairs both of whose videos have all features.

    Parameters
    ----------
    types : sequence of FeatureType
    pairs : PairSplits
    allow_missing : bool
        Leave pairs out, with a note, where features are missing.

    Raises
    ------
    DatasetError
        If features are missing and may not be, or if too few pairs are left.
    """
    missing = {features.name: features.missing(pairs.videos) for features in types}
    videos = sorted({video for names in missing.values() for video in names})
    if not videos:
        return pairs
    where = ", ".join(name for name, names in missing.items() if names)
    what = f"{len(videos)} of {len(pairs.videos)} videos have no features ({where}): {some(videos)}"
    if not allow_missing:
        raise DatasetError(f"{what}; extract them, or leave their pairs out with --allow-missing")
    gone = set(videos)
    kept = np.array([a not in gone and b not in gone for a, b in zip(pairs.video_a, pairs.video_b, strict=True)])
    counts = ", ".join(f"{name}: {kept[pairs.split == number].sum()}" for number, name in enumerate(pairs.split_names))
    return pairs.keep(kept, f"{what}; {len(kept) - kept.sum()} pairs left out, pairs by split {counts}")


def scale(numbers: Floats, training: NDArray[np.bool_], options: EvalOptions) -> Floats:
    """Scale the numbers of pairs by what the training pairs show.

    Parameters
    ----------
    numbers : ndarray, (N, M), float64
    training : ndarray, (N,), bool
    options : EvalOptions
        ``zscore``: mean 0 and variance 1 (of the population) over the training pairs; a constant number becomes 0.
        ``l2``: each pair to L2 norm 1. ``none``: as they are.

    Returns
    -------
    ndarray, (N, M), float64
    """
    if options.scale == "zscore":
        mean, spread = numbers[training].mean(axis=0), numbers[training].std(axis=0)
        constant = spread <= CONSTANT * np.abs(numbers[training]).max(axis=0)
        scaled: Floats = (numbers - mean) / np.where(constant, np.inf, spread)
        return scaled
    if options.scale == "l2":
        norms = np.linalg.norm(numbers, axis=1, keepdims=True)
        return numbers / np.where(norms > 0, norms, 1)
    return numbers


def roc_points(result: EvaluationResult, pairs: PairSplits) -> tuple[Floats, Floats]:
    """True and false positive rates of the pooled ROC curve, both from 0 to 1, a point for each threshold."""
    tested = np.isfinite(result.scores)
    false_positives, true_positives, _ = roc_curve(pairs.same[tested], result.scores[tested], drop_intermediate=False)
    return true_positives, false_positives


def _cross_validate(
    folds: Sequence[Floats], pairs: PairSplits, options: EvalOptions, notes: list[str]
) -> EvaluationResult:
    """Test each split with a classifier trained on the others."""
    scores = np.full(len(pairs), np.nan)
    accuracies, areas = [], []
    for numbers, split in zip(folds, pairs.tested, strict=True):
        test = pairs.split == split
        weights, bias = _fit(numbers[~test], pairs.same[~test], options, notes)
        scores[test] = numbers[test] @ weights + bias
        accuracies.append(100 * float(np.mean((scores[test] > 0) == pairs.same[test])))
        areas.append(_area(scores[test], pairs.same[test]))
    tested = np.isfinite(scores)
    return EvaluationResult(scores, tuple(accuracies), tuple(areas), _area(scores[tested], pairs.same[tested]))


def _fit(numbers: Floats, same: NDArray[np.bool_], options: EvalOptions, notes: list[str]) -> tuple[Floats, float]:
    """Weights and bias of a linear SVM; the decision value is positive for same."""
    if options.solver == "libsvm" and numbers.shape[1] == 1:
        return _fit_one_number(numbers[:, 0], same, options.C)
    if options.solver == "libsvm":
        machine = SVC(
            kernel="linear",
            C=options.C,
            tol=options.tolerance,
            max_iter=options.max_iterations,
            cache_size=KERNEL_CACHE_MB,
        )
    else:
        machine = LinearSVC(C=options.C, dual=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        machine.fit(numbers, same)
    if any(issubclass(one.category, ConvergenceWarning) for one in caught):
        notes.append(
            f"{options.solver} stopped before it converged, after {np.max(machine.n_iter_):,} iterations: "
            "the result depends on where; --scale zscore converges"
        )
    return machine.coef_[0], float(machine.intercept_[0])


def _fit_one_number(x: Floats, same: NDArray[np.bool_], penalty: float) -> tuple[Floats, float]:
    """The minimum of libsvm's objective for one number a pair, w^2 / 2 + C sum(hinge), found exactly and at once.

    For a given w, the loss as a function of the bias has slope -P far to the left, P same pairs, and one more past
    each of the points 1 - w x (same) and -1 - w x (not-same): it is least between the P-th and the next of them.
    """
    sign = np.where(same, 1.0, -1.0)
    positives = int(same.sum())

    def best_bias(w: float) -> float:
        turns = np.partition(sign - w * x, (positives - 1, positives))
        return float(turns[positives - 1] + turns[positives]) / 2

    def loss(w: float) -> float:
        return w * w / 2 + penalty * float(np.maximum(0, 1 - sign * (w * x + best_bias(w))).sum())

    bound = float(np.sqrt(2 * loss(0.0)))  # beyond it w^2 / 2 alone is more
    w = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-12 * bound}).x
    return np.array([w]), best_bias(float(w))


def _measures(
    table: VideoTable,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    options: EvalOptions,
    jobs: int,
    report: _Steps,
    notes: list[str] | None,
) -> Floats:
    """The 12 measures of each pair, (N, 12), from two passes over the features: norms, then sums over coordinates."""
    clip = options.negatives == "clip"
    norms, totals = np.zeros(len(table.videos)), np.zeros(len(table.videos))
    clipped = 0
    for places, features in table.rows():
        negative = _check(table, places, features, clip)
        clipped += negative
        norms[places], totals[places] = norms_and_totals(np.maximum(features, 0) if negative else features)
        report.values(table, features.size)
    if clipped and notes is not None:
        notes.append(f"{table.name}: negative values of {clipped} videos count as 0")
    sums = PairSums(norms, totals, first, second, eps=options.eps, jobs=jobs)
    for block in table.columns():
        sums.add(np.maximum(block, 0) if clipped else block)
        report.values(table, block.size)
    return sums.measures()


def _check(table: VideoTable, places: NDArray[np.int64], features: NDArray[np.floating], clip: bool) -> int:
    """Refuse features that no measure is defined for; how many videos have negative ones, where those are allowed."""
    wrong = ~np.isfinite(features).all(axis=1)
    if wrong.any():
        raise table.no_numbers(int(places[wrong][0]))
    least = features.min(axis=1)
    if not clip and (least < 0).any():
        video, value = table.videos[places[least < 0][0]], least[least < 0][0]
        raise FeatureFileError(
            f"{table.name} of the video {video} has negative values ({value:g}), and the measures have roots: take "
            "features that are not negative (such as prob, not logits), or --negatives clip to count them as 0"
        )
    return int((least < 0).sum())


def _one_shot(
    gram: Floats,
    pairs: PairSplits,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    folds: Sequence[int],
    report: _Steps,
) -> list[Floats]:
    """One-shot similarity of each pair, (N, 1), for each fold.

    The background of a pair are the videos of all splits but its own and the tested one, so that training and test
    pairs are alike unknown to it. So two folds share the background of their two splits.
    """
    splits = range(len(pairs.split_names))
    if len(splits) < 3:
        raise DatasetError("--model oss needs at least 3 splits: to test, to train, and background videos")
    scores = {fold: np.full((len(pairs), 1), np.nan) for fold in folds}
    left_out = [two for two in combinations_with_replacement(splits, 2) if not scores.keys().isdisjoint(two)]
    for done, (one, other) in enumerate(left_out):
        out = np.isin(pairs.split, (one, other))
        known = np.setdiff1d(np.union1d(first[~out], second[~out]), np.union1d(first[out], second[out]))
        if len(known) < 2:
            names = f"{pairs.split_names[one]} and {pairs.split_names[other]}"
            raise DatasetError(f"--model oss finds no background: all videos occur in the splits {names}")
        found = np.full((len(pairs), 1), np.nan)
        found[out, 0] = one_shot_similarity(gram, known, first[out], second[out])
        for fold, own in ((one, other), (other, one)):
            if fold in scores:
                scores[fold][pairs.split == own] = found[pairs.split == own]
        report.share(done + 1, len(left_out))
    return list(scores.values())


class _Steps:
    """Tells how much of a table was worked on, in two halves."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name, self.done = progress, name, 0

    def values(self, table: VideoTable, count: int) -> None:
        """So many more values were read, once out of twice."""
        self.done += count
        self.progress(self.name, self.done, 2 * len(table.videos) * table.num_values)

    def share(self, done: int, total: int) -> None:
        """So much of the second half is done."""
        self.progress(self.name, total + done, 2 * total)


def _area(scores: Floats, same: NDArray[np.bool_]) -> float:
    """Area under the ROC curve in percent, as Mann and Whitney count it: ties are half a win."""
    positives = int(same.sum())
    wins = rankdata(scores)[same].sum() - positives * (positives + 1) / 2
    return 100 * float(wins) / (positives * (len(same) - positives))


def _standard_error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
