"""What a classifier takes for what: counts, accuracies and a picture."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvnet_cli.writing import MARK, write_together

TABLE, PICTURE = CONFUSION = "classes.csv", "confusion.svg"
CELL, NAME_WIDTH, MARGIN = 16, 180, 40  # pixels of the picture
RIGHT, WRONG = "#0a58ca", "#b02a37"


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Share of right answers; NaN of none."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def write_confusion(folder: Path, confusion: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Write ``classes.csv``, the table, and ``confusion.svg``, the picture, which holds the hash of the table.

    Raises
    ------
    DiskFullError, OSError
    """
    table = class_table(confusion, classes).encode()
    mark = f"<!-- {MARK}; sha256 of {TABLE}: {hashlib.sha256(table).hexdigest()} -->\n"
    write_together({folder / TABLE: table, folder / PICTURE: (mark + confusion_picture(confusion, classes)).encode()})


def class_table(confusion: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Each class with its videos, its share of right answers and what it is most often taken for, as CSV."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "videos", "accuracy", "most_often_taken_for"])
    for label, name in enumerate(classes):
        total, right = int(confusion[label].sum()), int(confusion[label, label])
        wrong = confusion[label].copy()
        wrong[label] = 0
        taken_for = classes[int(wrong.argmax())] if wrong.any() else ""
        rows.writerow([name, total, f"{right / total:.4f}" if total else "", taken_for])
    return text.getvalue()


def confusion_picture(confusion: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The matrix as SVG: a row for each class, a column for each answer, the darker the more often.

    Parameters
    ----------
    confusion : ndarray, (classes, classes), int64
        Videos by class and answer.
    classes : sequence of str
    """
    side = CELL * len(classes)
    left, top = NAME_WIDTH, MARGIN + NAME_WIDTH
    width, height = left + side + MARGIN, top + side + MARGIN
    names, cells = [], []
    for label, name in enumerate(classes):
        at = CELL * label + CELL * 0.7
        names.append(f'<text x="{left - 6}" y="{top + at:g}" text-anchor="end">{escape(name)}</text>')
        names.append(f'<text transform="translate({left + at:g} {top - 6}) rotate(-90)">{escape(name)}</text>')
        total = max(1, int(confusion[label].sum()))
        for answer in np.flatnonzero(confusion[label]).tolist():
            count = int(confusion[label, answer])
            colour = RIGHT if answer == label else WRONG
            cells.append(
                f'<rect x="{left + CELL * answer}" y="{top + CELL * label}" width="{CELL}" height="{CELL}" '
                f'fill="{colour}" fill-opacity="{count / total:.3f}">'
                f"<title>{escape(name)} taken for {escape(classes[answer])}: {count} of {total}</title></rect>"
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11" role="img" aria-label="confusion of classes">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(cells)}'
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#888"/>{"".join(names)}'
        f'<text x="{left}" y="{MARGIN / 2}" font-size="14">accuracy {100 * accuracy(confusion):.2f} % of '
        f"{int(confusion.sum())} videos; rows are classes, columns answers</text></svg>\n"
    )
