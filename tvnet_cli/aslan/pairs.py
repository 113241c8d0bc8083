"""Pairs of videos, the same action or not, in splits: the official files, plain text or CSV.

The ASLAN benchmark: O. Kliper-Gross, T. Hassner, L. Wolf, The Action Similarity Labeling Challenge, TPAMI 34(3), 2012.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.aslan.matlab import matlab_shapes, read_matlab
from tvnet_cli.errors import DatasetError
from tvnet_cli.hdf5 import is_hdf5
from tvnet_cli.reading import looks_like_utf_16, read_text, require_file

NUM_SPLITS = 10  # of View 2, and of a table without splits
PAIRS_OF_A_LABEL = 300  # in a split of View 2
LABELS = {"1": True, "same": True, "0": False, "-1": False, "not-same": False}
CSV_COLUMNS = ("video_a", "video_b", "label", "fold")
VIEW2 = "action_splits_pairs"  # variable of the official View2.mat
NAMES_SHOWN = 5
MAX_MATLAB_BYTES = 1 << 30  # of a file; one that holds features too is read as well
MAX_MATLAB_VALUES = 50_000_000  # of the matrix of pairs, five for each


@dataclass(frozen=True)
class PairSplits:
    """Labelled pairs of videos, in splits.

    Attributes
    ----------
    video_a, video_b : tuple of str, N
        The two videos of each pair: ASLAN sample ids such as ``"0001"``, or names.
    same : ndarray, (N,), bool
        True: the two show the same action.
    split : ndarray, (N,), int64
        Index of the pair's split in ``split_names``.
    split_names : tuple of str
    tested : tuple of int
        Splits that are tested, each by a classifier trained on all other splits.
    class_a, class_b : tuple of str, N, or empty
        Action classes, where the file tells them.
    sha256 : str
        Of the file or files.
    notes : tuple of str
        What is not as it should be, for people.

    Raises
    ------
    DatasetError
        If a pair holds the same video twice, or a split lacks one of the two labels.
    """

    video_a: tuple[str, ...] = field(repr=False)
    video_b: tuple[str, ...] = field(repr=False)
    same: NDArray[np.bool_] = field(repr=False)
    split: NDArray[np.int64] = field(repr=False)
    split_names: tuple[str, ...]
    tested: tuple[int, ...]
    class_a: tuple[str, ...] = field(default=(), repr=False)
    class_b: tuple[str, ...] = field(default=(), repr=False)
    sha256: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        twice = [a for a, b in zip(self.video_a, self.video_b, strict=True) if a == b]
        if twice:
            raise DatasetError(f"{len(twice)} pairs hold the same video twice: {some(twice)}; take them out")
        if len(self.split_names) < 2:
            raise DatasetError("all pairs are in one split: at least 2 are needed, one to train on and one to test")
        for number, name in enumerate(self.split_names):
            labels = self.same[self.split == number]
            if not len(labels) or labels.all() or not labels.any():
                have = "no pairs" if not len(labels) else f"only {'same' if labels.all() else 'not-same'} pairs"
                raise DatasetError(f"split {name} has {have}: each split needs pairs of both labels")

    def __len__(self) -> int:
        return len(self.video_a)

    @property
    def videos(self) -> list[str]:
        """All videos, sorted, each once."""
        return sorted({*self.video_a, *self.video_b})

    @property
    def official(self) -> bool:
        """Whether the splits have the shape of View 2: ten times 300 same and 300 not-same pairs."""
        counts = Counter(zip(self.split.tolist(), self.same.tolist(), strict=True))
        return len(self.tested) == NUM_SPLITS == len(self.split_names) and set(counts.values()) == {PAIRS_OF_A_LABEL}

    def keep(self, chosen: NDArray[np.bool_], note: str) -> PairSplits:
        """The chosen pairs only, with a note that says why."""
        texts: dict[str, Any] = {
            name: tuple(value for value, wanted in zip(getattr(self, name), chosen, strict=False) if wanted)
            for name in ("video_a", "video_b", "class_a", "class_b")
        }
        return replace(self, same=self.same[chosen], split=self.split[chosen], notes=(*self.notes, note), **texts)


class _Pair(NamedTuple):
    """A pair as it stands in a file; texts are empty where the file does not tell."""

    video_a: str
    video_b: str
    same: bool
    split: str = ""
    class_a: str = ""
    class_b: str = ""


def read_pairs(path: Path, test_path: Path | None = None) -> PairSplits:
    """Read pairs, in whatever format the file holds.

    Parameters
    ----------
    path : Path
        - MATLAB: the official ``View2.mat`` with ``action_splits_pairs`` (pairs x 5 x splits), or another file with
          one matrix of that shape, or (pairs x 5); version 7.3 too.
        - Text: five whole numbers a line: two sample ids, label, two class ids.
        - CSV with the columns ``video_a,video_b,label,fold`` and maybe ``class_a,class_b``; others are ignored.

        Labels are 1 or 0 (CSV: also same, not-same; -1 counts as 0). Five numbers a line and no split: ten
        splits of equal length, in order.
    test_path : Path, optional
        The test pairs of View 1; ``path`` are then its training pairs, and there is one split of each.

    Returns
    -------
    PairSplits
        Its notes tell what is doubtful: videos or classes that occur in several splits (a leak), pairs that
        occur twice, labels that contradict the classes, and sizes other than View 2's.

    Raises
    ------
    DatasetError
        If the file is of no such format, or holds something impossible; the message says where.
    """
    if test_path is None:
        rows = _read_table(path)
        return _checked([path], rows if rows[0].split else _ten_in_order(path, rows))
    train = [pair._replace(split="train") for pair in _read_table(path)]
    test = [pair._replace(split="test") for pair in _read_table(test_path)]
    return _checked([path, test_path], train + test, ["test"])


def _checked(paths: Sequence[Path], rows: Sequence[_Pair], tested: Sequence[str] | None = None) -> PairSplits:
    """The pairs of the files, with notes on what is doubtful; all splits are tested unless some are named."""
    names = tuple(dict.fromkeys(pair.split for pair in rows))
    know_classes = all(pair.class_a and pair.class_b for pair in rows)
    try:
        pairs = PairSplits(
            video_a=tuple(pair.video_a for pair in rows),
            video_b=tuple(pair.video_b for pair in rows),
            same=np.array([pair.same for pair in rows], np.bool_),
            split=np.array([names.index(pair.split) for pair in rows], np.int64),
            split_names=names,
            tested=tuple(names.index(name) for name in tested or names),
            class_a=tuple(pair.class_a for pair in rows) if know_classes else (),
            class_b=tuple(pair.class_b for pair in rows) if know_classes else (),
            sha256=hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest(),
        )
    except DatasetError as error:
        raise DatasetError(f"{' and '.join(map(str, paths))}: {error}") from None
    return replace(pairs, notes=tuple(_doubts(pairs)))


def _doubts(pairs: PairSplits) -> Iterator[str]:
    """What may make the result mean less than it seems."""
    if not pairs.official:
        yield (
            f"not the official View 2: {len(pairs)} pairs in {len(pairs.split_names)} splits, where View 2 has "
            f"{NUM_SPLITS} splits of {PAIRS_OF_A_LABEL} same and {PAIRS_OF_A_LABEL} not-same pairs"
        )
        yield from _unbalanced(pairs)
    yield from _leaks("videos", [pairs.video_a, pairs.video_b], pairs)
    if pairs.class_a:
        yield from _leaks("classes", [pairs.class_a, pairs.class_b], pairs)
        equal = np.array([a == b for a, b in zip(pairs.class_a, pairs.class_b, strict=True)])
        wrong = np.flatnonzero(equal != pairs.same)
        if len(wrong):
            yield f"{len(wrong)} labels contradict the classes: pairs {some(str(row + 1) for row in wrong)}"
    counts = Counter(tuple(sorted(pair)) for pair in zip(pairs.video_a, pairs.video_b, strict=True))
    repeated = [f"{a} {b}" for (a, b), count in counts.items() if count > 1]
    if repeated:
        yield f"{len(repeated)} pairs occur more than once: {some(repeated)}"


def _unbalanced(pairs: PairSplits) -> Iterator[str]:
    counts = Counter(zip(pairs.split.tolist(), pairs.same.tolist(), strict=True))
    uneven = [
        f"{name} ({counts[number, True]} same, {counts[number, False]} not-same)"
        for number, name in enumerate(pairs.split_names)
        if counts[number, True] != counts[number, False]
    ]
    if uneven:
        yield f"unbalanced, so that guessing gives other than 50 %: split {some(uneven)}"


def _leaks(what: str, columns: Sequence[Sequence[str]], pairs: PairSplits) -> Iterator[str]:
    """Names that occur in several splits."""
    where: dict[str, set[int]] = defaultdict(set)
    for column in columns:
        for name, split in zip(column, pairs.split.tolist(), strict=True):
            where[name].add(split)
    shared = sorted(name for name, splits in where.items() if len(splits) > 1)
    if shared:
        yield f"leak: {len(shared)} {what} occur in several splits, so tests meet what was trained on: {some(shared)}"


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are, for messages."""
    known = list(names)
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    return ", ".join(known[:NAMES_SHOWN]) + more


def _read_table(path: Path) -> list[_Pair]:
    """Return the pairs of one file, whose format shows in its first bytes."""
    require_file(path, MAX_MATLAB_BYTES, "the pairs")
    try:
        with path.open("rb") as file:
            start = file.read(128)
        if is_hdf5(path) or (b"\0" in start and not looks_like_utf_16(start)):
            rows = list(_from_matrix(path))
        else:
            rows = list(_from_text(path, read_text(path, "the pairs")))
    except OSError as error:
        raise DatasetError(f"cannot read the pairs {path}: {error.strerror or error}") from error
    if not rows:
        raise DatasetError(f"{path} holds no pairs")
    return rows


def _from_matrix(path: Path) -> Iterator[_Pair]:
    """Pairs of a MATLAB file: (pairs, 5, splits) or (pairs, 5)."""

    def wanted(name: str, shape: tuple[int, ...]) -> bool:
        fits = name == VIEW2 or (2 <= len(shape) <= 3 and shape[1] == 5)
        if fits and math.prod(shape) > MAX_MATLAB_VALUES:
            size = " x ".join(map(str, shape))
            raise DatasetError(f"{path}: {name} is {size}; pairs of at most {MAX_MATLAB_VALUES:,} values are taken")
        return fits

    matrices = read_matlab(path, wanted)
    if VIEW2 in matrices:
        matrices = {VIEW2: matrices[VIEW2]}
    if len(matrices) != 1 or next(iter(matrices.values())).shape[1:2] != (5,):
        found = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in matlab_shapes(path).items())
        raise DatasetError(
            f"{path}: expected the variable {VIEW2}, or one matrix of pairs x 5 or pairs x 5 x splits; "
            f"it holds {found or 'no numbers'}"
        )
    ((name, matrix),) = matrices.items()
    if matrix.ndim == 2:
        yield from (_from_numbers(f"{path}, {name}, row {row + 1}", five) for row, five in enumerate(matrix.tolist()))
        return
    for split in range(matrix.shape[2]):
        for row, five in enumerate(matrix[:, :, split].tolist()):
            yield _from_numbers(f"{path}, {name}, split {split + 1}, row {row + 1}", five, str(split + 1))


def _from_text(path: Path, text: str) -> Iterator[_Pair]:
    """Pairs of a CSV with a header, or five numbers a line."""
    lines = text.splitlines()
    try:
        header = [name.strip().lower() for name in next(csv.reader(lines[:1]), [])]
        if "video_a" in header:
            yield from _from_csv(path, lines, header)
            return
    except csv.Error as error:
        raise DatasetError(f"cannot read the pairs {path}: {error}") from error
    other = next((mark for mark in ";\t" if "video_a" in header[0].split(mark)), "") if header else ""
    if other:
        raise DatasetError(f"{path}, line 1: the columns are separated by {other!r}; commas are expected")
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if words:
            try:
                yield _from_numbers(f"{path}, line {number}", [float(word) for word in words])
            except ValueError:
                raise DatasetError(
                    f"{path}, line {number}: expected five whole numbers, or a CSV with the columns "
                    f"{','.join(CSV_COLUMNS)}; got {line.strip()[:60]!r}"
                ) from None


def _from_csv(path: Path, lines: Sequence[str], header: Sequence[str]) -> Iterator[_Pair]:
    missing = [name for name in CSV_COLUMNS[:3] if name not in header]
    if missing:
        raise DatasetError(f"{path}: no column {', '.join(missing)}; expected {','.join(CSV_COLUMNS)}")
    reader = csv.DictReader(lines[1:], fieldnames=header, restval="")
    for row in reader:
        values = {name: (row.get(name) or "").strip() for name in (*CSV_COLUMNS, "class_a", "class_b")}
        where = f"{path}, line {reader.line_num + 1}"
        if not values["video_a"] or not values["video_b"]:
            raise DatasetError(f"{where}: two video names are needed")
        if values["label"].lower() not in LABELS:
            raise DatasetError(f"{where}: the label is {values['label']!r}; 1 or same, 0 or not-same are known")
        if "fold" in header and not values["fold"]:
            raise DatasetError(f"{where}: the fold is empty")
        yield _Pair(
            sample_id(values["video_a"]),
            sample_id(values["video_b"]),
            LABELS[values["label"].lower()],
            values["fold"],
            values["class_a"],
            values["class_b"],
        )


def _from_numbers(where: str, numbers: Sequence[float], split: str = "") -> _Pair:
    """A pair out of five numbers: two ids, label, two classes."""
    if len(numbers) != 5 or not all(float(number).is_integer() for number in numbers):
        raise DatasetError(f"{where}: expected five whole numbers, got {' '.join(f'{one:g}' for one in numbers[:8])}")
    id_1, id_2, label, class_1, class_2 = (str(int(number)) for number in numbers)
    if min(int(id_1), int(id_2)) < 1:
        raise DatasetError(f"{where}: sample ids start at 1, got {id_1} and {id_2}")
    if label not in LABELS:
        raise DatasetError(f"{where}: the label is {label}; 1 is same, 0 is not-same")
    return _Pair(sample_id(id_1), sample_id(id_2), LABELS[label], split, class_1, class_2)


def sample_id(name: str) -> str:
    """A name as it is, a number of up to four digits as an ASLAN sample id.

    Examples
    --------
    >>> sample_id("84"), sample_id("walk.avi")
    ('0084', 'walk.avi')
    """
    return name.zfill(4) if name.isascii() and name.isdigit() else name


def _ten_in_order(path: Path, rows: Sequence[_Pair]) -> list[_Pair]:
    """Ten splits of equal length, as in the text export of View 2."""
    if len(rows) % NUM_SPLITS:
        raise DatasetError(
            f"{path} has {len(rows)} pairs and no splits, and {len(rows)} is not a multiple of {NUM_SPLITS}: "
            "give a CSV with a column fold, or the test pairs with --test-pairs"
        )
    return [pair._replace(split=str(row * NUM_SPLITS // len(rows) + 1)) for row, pair in enumerate(rows)]
