"""Sets of labelled videos: official lists of UCF101 and HMDB51, folders, and tables."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tvnet_cli.errors import DatasetError
from tvnet_cli.reading import read_text
from tvnet_cli.video.files import find_videos

TRAIN = ("train", "training")
VALIDATION = ("validation", "val", "test")
NAMED = 3  # of the entries that are wrong, in a message


@dataclass(frozen=True)
class LabelledVideo:
    """A video of a data set.

    Attributes
    ----------
    video_id : str
        Its name inside the data set.
    path : Path
    label : int
        Number of its class.
    """

    video_id: str
    path: Path
    label: int


@dataclass(frozen=True)
class ActionDataset:
    """Videos to train on and to validate with.

    Attributes
    ----------
    classes : tuple of str
        In the order of the labels.
    train, validation : tuple of LabelledVideo
        Without a common video.
    """

    classes: tuple[str, ...]
    train: tuple[LabelledVideo, ...] = field(repr=False)
    validation: tuple[LabelledVideo, ...] = field(repr=False)


def read_dataset(
    data: Path, *, splits: Path | None = None, split: int | None = None, validation_share: float = 0.2, seed: int = 0
) -> ActionDataset:
    """The videos of a data set with their classes and their parts.

    Parameters
    ----------
    data : Path
        A table, ``.csv`` with the columns video, label and split, paths relative to it. Or a folder: with official
        lists of UCF101 (``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``) or HMDB51 (``*_test_split1.txt``),
        which name videos in one folder a class; with ``train`` and ``val`` or ``test``, each of one folder a class;
        or of one folder a class.
    splits : Path, optional
        Folder of the official lists. By default they are looked for in ``data`` and the folders in it.
    split : int, optional
        Which of the official splits, 1 to 3; by default the first.
    validation_share : float, in [0, 1)
        Of the videos of each class, where ``data`` does not say which are for validation.
    seed : int
        Draws that share.

    Returns
    -------
    ActionDataset
        Classes in the order of ``classInd.txt``, else of their names.

    Raises
    ------
    DatasetError
        If videos are missing, a class has none to train on, there is one class only, or a video is in both parts;
        if a split is asked for where there are none.
    """
    if data.suffix.lower() == ".csv":
        if splits:
            raise DatasetError(f"{data} says itself what is for training and what for validation: leave out --splits")
        _refuse_split(data, split)
        return _checked(data, *_read_table(data))
    if not data.is_dir():
        raise DatasetError(f"{data} is no folder and no .csv table of videos")
    lists = _find_lists(splits or data, here_only=splits is not None)
    if splits and not lists:
        raise DatasetError(f"{splits} holds no official lists: classInd.txt of UCF101 or *_test_split1.txt of HMDB51")
    if lists:
        read = _read_ucf101 if (lists / "classInd.txt").is_file() else _read_hmdb51
        return _checked(data, *read(data, lists, split or 1))
    _refuse_split(data, split)
    folders = _class_folders(data)
    parts = {folder.name.lower(): folder for folder in folders}
    train = [parts[name] for name in TRAIN if name in parts]
    validation = [parts[name] for name in VALIDATION if name in parts]
    if len(train) == 1 and len(folders) == 1 + len(validation):
        if len(validation) != 1:
            raise DatasetError(f"{data} holds {train[0].name}: give it one folder val or test beside that")
        return _checked(data, None, _read_folders(train[0]), _read_folders(validation[0]))
    return _checked(data, None, *_draw(_read_folders(data), validation_share, seed))


def _refuse_split(data: Path, split: int | None) -> None:
    if split is not None:
        raise DatasetError(f"{data} has no official lists, which a split {split} would be one of: leave out --split")


Entry = tuple[str, str, Path]  # of a part: video id, class, file
Parts = tuple[Sequence[str] | None, list[Entry], list[Entry]]  # classes where their order is given


def _checked(data: Path, classes: Sequence[str] | None, train: list[Entry], validation: list[Entry]) -> ActionDataset:
    """The data set, if nothing is wrong with it."""
    ordered = tuple(classes or sorted({label for _, label, _ in [*train, *validation]}))
    if len(ordered) < 2:
        raise DatasetError(f"{data} has {len(ordered)} class{'es' * (len(ordered) != 1)}: at least two are needed")
    number = {name: label for label, name in enumerate(ordered)}
    _refuse(data, "videos of no known class", [name for name, label, _ in [*train, *validation] if label not in number])
    _refuse(data, "videos missing", [name for name, _, path in [*train, *validation] if not path.is_file()])
    trained = {label for _, label, _ in train}
    _refuse(data, "classes without videos to train on", [name for name in ordered if name not in trained])
    files = [{path.resolve() for _, _, path in part} for part in (train, validation)]
    _refuse(data, "videos in training and in validation", [path.name for path in sorted(files[0] & files[1])])
    times = Counter(path.resolve() for _, _, path in [*train, *validation])
    _refuse(data, "videos twice", [path.name for path, count in times.items() if count > 1])
    videos = [
        tuple(LabelledVideo(name, path, number[label]) for name, label, path in part) for part in (train, validation)
    ]
    return ActionDataset(ordered, *videos)


def _refuse(data: Path, what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise DatasetError(f"{data}: {len(names)} {what}: {', '.join(names[:NAMED])}{more}")


def _read_table(path: Path) -> Parts:
    parts: dict[bool, list[Entry]] = {True: [], False: []}
    rows = csv.DictReader(_text(path).splitlines())
    try:
        missing = [name for name in ("video", "label", "split") if name not in (rows.fieldnames or ())]
        if missing:
            raise DatasetError(f"{path} has no column {missing[0]}: the first line should be video,label,split")
        for row in rows:
            name, label, split = ((row[column] or "").strip() for column in ("video", "label", "split"))
            if not name or not label or split.lower() not in TRAIN + VALIDATION:
                raise DatasetError(
                    f"{path}, line {rows.line_num}: a video, its label and the split train or val are needed, "
                    f"not {name!r}, {label!r}, {split!r}"
                )
            parts[split.lower() in TRAIN].append((name, label, path.parent / name))
    except csv.Error as error:
        raise DatasetError(f"cannot read the table {path}, line {rows.line_num}: {error}") from error
    return None, parts[True], parts[False]


def _find_lists(folder: Path, here_only: bool) -> Path | None:
    """The first folder with official lists."""
    for place in [folder] if here_only else [folder, *_class_folders(folder)]:
        if (place / "classInd.txt").is_file() or any(place.glob("*_test_split[0-9].txt")):
            return place
    return None


def _read_ucf101(data: Path, lists: Path, split: int) -> Parts:
    numbers = {}
    for row, line in _lines(lists / "classInd.txt"):
        number, _, name = line.strip().partition(" ")
        if not number.isdecimal() or not name:
            raise DatasetError(f"{lists / 'classInd.txt'}, line {row}: {line.strip()!r} is no number and class")
        numbers[int(number)] = name
    parts = []
    for part in ("train", "test"):
        path = lists / f"{part}list{split:02d}.txt"
        if not path.is_file():
            raise _no_split(lists, split, path.name)
        entries = []
        for row, line in _lines(path):
            name, _, number = line.strip().rpartition(" ")
            if not number.isdecimal():  # test lists have no labels
                name, number = line.strip(), ""
            label = name.partition("/")[0]
            if number and numbers.get(int(number)) != label:
                raise DatasetError(
                    f"{path}, line {row}: {name} has the label {number}, which is not {label} in classInd.txt"
                )
            entries.append((name, label, data / name))
        parts.append(entries)
    return [numbers[number] for number in sorted(numbers)], parts[0], parts[1]


def _read_hmdb51(data: Path, lists: Path, split: int) -> Parts:
    suffix = f"_test_split{split}.txt"
    paths = sorted(lists.glob(f"*{suffix}"))
    if not paths:
        raise _no_split(lists, split, f"*{suffix}")
    parts: dict[str, list[Entry]] = {"0": [], "1": [], "2": []}  # 0: in neither part
    for path in paths:
        label = path.name.removesuffix(suffix)
        for row, line in _lines(path):
            name, _, part = line.strip().rpartition(" ")
            if part not in parts:
                raise DatasetError(f"{path}, line {row}: {line.strip()!r} is no video and 0, 1 or 2")
            parts[part].append((f"{label}/{name.strip()}", label, data / label / name.strip()))
    return None, parts["1"], parts["2"]


def _no_split(lists: Path, split: int, name: str) -> DatasetError:
    return DatasetError(f"no split {split} in {lists}: {name} is missing")


def _read_folders(data: Path) -> list[Entry]:
    """One folder a class."""
    entries = []
    for folder in _class_folders(data):
        try:
            videos = find_videos([folder])
        except DatasetError as error:
            raise DatasetError(f"the class {folder.name} is empty: {error}") from None
        entries += [(f"{folder.name}/{video.video_id}", folder.name, video.path) for video in videos]
    return entries


def _draw(entries: list[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """A share of each class for validation; at least one video of each stays for training."""
    chosen: set[str] = set()
    for number, label in enumerate(sorted({label for _, label, _ in entries})):
        names = [name for name, of_class, _ in entries if of_class == label]
        count = min(round(len(names) * share), len(names) - 1)
        chosen.update(np.random.default_rng([seed, number]).permutation(names)[:count].tolist())
    train = [entry for entry in entries if entry[0] not in chosen]
    return train, [entry for entry in entries if entry[0] in chosen]


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text that are not empty, each with its number, from 1 on."""
    return [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip()]


def _text(path: Path) -> str:
    if not path.exists():
        raise DatasetError(f"no such file: {path}")
    return read_text(path, "the list" if path.suffix == ".txt" else "the table")
