"""What a run leaves: text and JSON, a CSV of decision values, the ROC curve, and a page that needs no other file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import h5py
import numba
import numpy as np
import scipy
import sklearn
from numpy.typing import NDArray

from tvnet_cli import __version__
from tvnet_cli.aslan.evaluate import Evaluation, EvaluationResult, roc_points
from tvnet_cli.aslan.features import FeatureType, VideoFinder
from tvnet_cli.aslan.pairs import PairSplits
from tvnet_cli.aslan.similarity import MEASURES
from tvnet_cli.errors import DatasetError, OutputError, VideoReadError
from tvnet_cli.options import EvalOptions
from tvnet_cli.video.files import find_videos
from tvnet_cli.video.thumbnails import thumbnail
from tvnet_cli.writing import MARK, require_replaceable, write_together

# Table 1 of the supplement to Fan et al., End-to-End Learning of Motion Representation for Video Understanding, CVPR
# 2018: method, model, accuracy and AUC in percent.
PUBLISHED = (
    ("C3D", "linear", 78.3, 86.5),
    ("Imagenet", "linear", 67.5, 73.8),
    ("STIP", "linear", 60.9, 65.3),
    ("STIP", "metric", 64.3, 69.1),
    ("MIP", "metric", 65.5, 71.9),
    ("MIP+STIP+MBH", "metric", 66.1, 73.2),
    ("iDT+FV", "metric", 68.7, 75.4),
    ("TVNet", "linear", 79.2, 84.3),
)
PAGE = "index.html"  # holds the hashes of the two tables, whose formats have no room for a mark
TABLES = ("scores.csv", "roc.txt")
FILES = ("report.json", *TABLES, "roc.svg", PAGE)
PAIRS_SHOWN = 4  # of each kind, on the page
ROC_SIDE, ROC_MARGIN = 320, 46  # pixels, of the plot and around it


@dataclass(frozen=True)
class Report:
    """All that is known about a run when it is done.

    Attributes
    ----------
    evaluation : Evaluation
    pairs : PairSplits
        Those that were evaluated.
    recipe : dict
        All that decides the numbers, ready for JSON; see ``recipe``.
    notes : tuple of str
        For people.
    comparable : bool
        Whether all of View 2 was evaluated.
    """

    evaluation: Evaluation = field(repr=False)
    pairs: PairSplits
    recipe: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...]
    comparable: bool


def recipe(
    types: Sequence[FeatureType], pairs: PairSplits, options: EvalOptions, preset: str, pairs_files: Sequence[Path]
) -> dict[str, Any]:
    """All that decides the numbers of a run, ready for JSON."""
    modules = {"numpy": np, "scipy": scipy, "scikit-learn": sklearn, "numba": numba, "h5py": h5py}
    return {
        "preset": preset,
        **asdict(options),
        "feature_types": [{"name": one.name, "num_values": one.num_values, "files": list(one.files)} for one in types],
        "pairs": {"files": [str(path) for path in pairs_files], "sha256": pairs.sha256},
        "software": {
            "tvnet": __version__,
            "python": platform.python_version(),
            **{name: module.__version__ for name, module in modules.items()},
        },
    }


def as_json(report: Report) -> dict[str, Any]:
    """The result and its recipe as plain values; accuracies and areas in percent."""
    evaluation, pairs = report.evaluation, report.pairs
    return {
        **_figures(evaluation.overall),
        "generator": MARK,
        "num_pairs": len(pairs),
        "num_numbers": evaluation.num_numbers,
        "splits": [
            {
                "fold": pairs.split_names[split],
                "num_test": int((pairs.split == split).sum()),
                "num_train": int((pairs.split != split).sum()),
            }
            for split in pairs.tested
        ],
        "by_feature": {name: _figures(result) for name, result in evaluation.by_type.items()},
        "by_measure": [
            {"feature": name, "measure": measure, "formula": MEASURES[measure - 1], **_figures(result)}
            for (name, measure), result in evaluation.by_measure.items()
        ],
        "comparable": report.comparable,
        "notes": list(report.notes),
        "recipe": report.recipe,
    }


def as_text(report: Report, per_measure: bool = False) -> str:
    """The result for a terminal."""
    lines = [headline(report.evaluation.overall), ""]
    tables = [_fold_rows(report), _type_rows(report), _published_rows(report)]
    if per_measure:
        tables.insert(2, _measure_rows(report))
    for rows in tables:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            first, *others = (
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *others]).rstrip())
        lines.append("")
    return "\n".join(lines[:-1])


def headline(result: EvaluationResult) -> str:
    """Accuracy and AUC in one line."""
    folds = len(result.fold_accuracy)
    if result.accuracy_se is None:
        return f"Acc {result.accuracy_mean:.2f} (one test set)  AUC {result.auc:.2f}"
    return (
        f"Acc {result.accuracy_mean:.2f} +- {result.accuracy_se:.2f} (SE, {folds} folds)  AUC {result.auc:.2f} (pooled)"
        f"  {result.auc_fold_mean:.2f} +- {result.auc_fold_se:.2f} (fold mean, SE)"
    )


def make_folder(folder: Path, *, overwrite: bool = False) -> Path:
    """Return the folder of a report, made if it is not there, in which a report can be written.

    Raises
    ------
    DatasetError
        If it cannot be made.
    OutputError
        If it holds a file of a report's name that this program did not write, and ``overwrite`` is false; or if it
        may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write into the folder {folder}: permission denied")
    for name in FILES:
        require_replaceable(folder / name, overwrite=overwrite, voucher=folder / PAGE)
    return folder


def write_report(folder: Path, report: Report, frames: MiddleFrames | None = None, *, overwrite: bool = False) -> None:
    """Write ``report.json``, ``scores.csv``, ``roc.txt``, ``roc.svg`` and ``index.html``, all of them or none.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    report : Report
    frames : MiddleFrames, optional
        Pictures for the page.
    overwrite : bool
        Also replace files that this program did not write.

    Raises
    ------
    DatasetError, OutputError
        As ``make_folder``.
    DiskFullError, OSError
        As ``tvnet_cli.writing.write_together``.
    """
    make_folder(folder, overwrite=overwrite)
    true_positives, false_positives = roc_points(report.evaluation.overall, report.pairs)
    # The format of the benchmark's site: true positive rate first.
    lines = (f"{true:.6f} {false:.6f}\n" for true, false in zip(true_positives, false_positives, strict=True))
    picture = roc_picture(true_positives, false_positives, report.evaluation.overall.auc)
    texts = (json.dumps(as_json(report), indent=1) + "\n", _scores(report), "".join(lines), picture)
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in zip(FILES, texts, strict=False)}
    hashes = ", ".join(f"{name} {hashlib.sha256(contents[name]).hexdigest()}" for name in TABLES)
    contents[PAGE] = f"{page(report, picture, frames)}<!-- sha256: {hashes} -->\n".encode("utf-8", "backslashreplace")
    write_together({folder / name: content for name, content in contents.items()})


class MiddleFrames:
    """The middle frames of films in a folder, as JPEG.

    Parameters
    ----------
    folder : Path
        Searched as ``tvnet features`` does.

    Raises
    ------
    DatasetError
        If it is no folder, or holds no videos.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DatasetError(f"no such folder of videos: {folder}")
        self._find = VideoFinder([(video.video_id, video.path) for video in find_videos([folder])], str(folder))

    def __call__(self, video: str) -> bytes | str:
        """The picture, or why there is none."""
        path = self._find(video)
        if path is None:
            return "no such film"
        try:
            return thumbnail(path)
        except VideoReadError as error:
            return str(error)


def roc_picture(true_positives: NDArray[np.float64], false_positives: NDArray[np.float64], auc: float) -> str:
    """The ROC curve as SVG."""
    side, margin = ROC_SIDE, ROC_MARGIN
    whole = side + 2 * margin
    points = np.stack([margin + side * false_positives, margin + side * (1 - true_positives)], axis=1)
    moved = np.any(np.abs(np.diff(points, axis=0, prepend=-1)) > 0, axis=1)
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points[moved])
    ticks = "".join(
        f'<text x="{margin + side * part:g}" y="{margin + side + 18}" text-anchor="middle">{part:g}</text>'
        f'<text x="{margin - 8}" y="{margin + side * (1 - part) + 4:g}" text-anchor="end">{part:g}</text>'
        for part in (0, 0.2, 0.4, 0.6, 0.8, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {whole}" width="{whole}" height="{whole}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="ROC curve"><!-- {MARK} -->'
        f'<rect x="{margin}" y="{margin}" width="{side}" height="{side}" fill="none" stroke="#888"/>'
        f'<line x1="{margin}" y1="{margin + side}" x2="{margin + side}" y2="{margin}" stroke="#bbb" '
        'stroke-dasharray="4"/>'
        f'<polyline points="{path}" fill="none" stroke="#0a58ca" stroke-width="2"/>{ticks}'
        f'<text x="{whole / 2}" y="{whole - 8}" text-anchor="middle">false positive rate</text>'
        f'<text x="12" y="{whole / 2}" text-anchor="middle" transform="rotate(-90 12 {whole / 2})">true positive rate'
        f'</text><text x="{whole / 2}" y="{margin - 14}" text-anchor="middle">ROC, AUC {auc:.2f} %</text></svg>'
    )


def page(report: Report, picture: str, frames: MiddleFrames | None = None) -> str:
    """The page: tables, the ROC curve, and the pairs that the classifier was surest of, rightly and wrongly."""
    overall = report.evaluation.overall
    sections = [
        f"<h1>Action similarity (ASLAN)</h1><p class='headline'>{escape(headline(overall))}</p>",
        "".join(f"<p class='note'>{escape(note)}</p>" for note in report.notes),
        _html_table("published", "Beside the published results", _published_rows(report)),
        f"<h2>ROC</h2>{picture}",
        _html_table("folds", "By split", _fold_rows(report)),
        _html_table("features", "Each feature type alone", _type_rows(report)),
    ]
    if report.evaluation.by_measure:
        sections.append(_html_table("measures", "Each measure alone", _measure_rows(report)))
    sections += _confident_pairs(report, frames)
    sections.append(f"<h2>Recipe</h2><pre id='recipe'>{escape(json.dumps(report.recipe, indent=1))}</pre>")
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='generator' content='{MARK}'><title>tvnet aslan-eval</title>"
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}"
    ".headline{font-size:1.2em;font-weight:bold}.note{background:#fff3cd;padding:.4em .8em}"
    "table{border-collapse:collapse}th,td{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child{text-align:left}tr.ours{font-weight:bold;background:#e7f1ff}"
    ".pairs{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;max-width:340px;overflow-wrap:anywhere}"
    "figure img,figure .empty{width:160px;height:160px}"
    ".empty{display:inline-block;background:#eee;font-size:12px}figcaption{font-size:13px}pre{overflow-x:auto}"
)


def _confident_pairs(report: Report, frames: MiddleFrames | None) -> Iterator[str]:
    """The pairs with the largest decision values: right and wrong, same and not same."""
    scores, same = report.evaluation.overall.scores, report.pairs.same
    for right in (True, False):
        for label in (True, False):
            chosen = np.flatnonzero(np.isfinite(scores) & (same == label) & (((scores > 0) == same) == right))
            surest = chosen[np.argsort(-np.abs(scores[chosen]), kind="stable")][:PAIRS_SHOWN]
            kind = f"{'right' if right else 'wrong'}: {'same' if label else 'not same'}"
            title = f"Most confident, {kind}" + ("" if right else f", called {'not same' if label else 'same'}")
            figures = "".join(_figure(report, int(pair), frames) for pair in surest)
            yield f"<section class='confident'><h2>{title}</h2><div class='pairs'>{figures or 'none'}</div></section>"


def _figure(report: Report, pair: int, frames: MiddleFrames | None) -> str:
    names = report.pairs.video_a[pair], report.pairs.video_b[pair]
    pictures = "".join(_picture(name, frames(name)) for name in names) if frames else ""
    score = report.evaluation.overall.scores[pair]
    return f"<figure>{pictures}<figcaption>{escape(' / '.join(names))}: {score:+.3f}</figcaption></figure>"


def _picture(name: str, found: bytes | str) -> str:
    if isinstance(found, str):
        return f"<span class='empty'>{escape(found)}</span>"
    return f"<img alt='middle frame of {escape(name)}' src='data:image/jpeg;base64,{b64encode(found).decode()}'>"


def _html_table(name: str, title: str, rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = "".join(
        f"<tr{' class=ours' if row[0].startswith(OURS) else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in body
    )
    return (
        f"<h2>{title}</h2><table id='{name}'><thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"
        f"</thead><tbody>{lines}</tbody></table>"
    )


OURS = "this run"


def _published_rows(report: Report) -> list[tuple[str, ...]]:
    overall, model = report.evaluation.overall, "metric" if report.recipe["model"] == "oss" else "linear"
    note = "" if report.comparable else " (not comparable)"
    rows = [(name, kind, f"{accuracy:.1f}", f"{auc:.1f}") for name, kind, accuracy, auc in PUBLISHED]
    ours = (OURS + note, model, f"{overall.accuracy_mean:.1f}", f"{overall.auc:.1f}")
    return [("method", "model", "accuracy", "AUC"), *rows, ours]


def _fold_rows(report: Report) -> list[tuple[str, ...]]:
    overall, names = report.evaluation.overall, report.pairs.split_names
    figures = zip(report.pairs.tested, overall.fold_accuracy, overall.fold_auc, strict=True)
    return [
        ("split", "pairs", "accuracy", "AUC"),
        *(
            (names[split], str((report.pairs.split == split).sum()), f"{accuracy:.2f}", f"{auc:.2f}")
            for split, accuracy, auc in figures
        ),
    ]


def _type_rows(report: Report) -> list[tuple[str, ...]]:
    rows = [(name, *_cells(result)) for name, result in report.evaluation.by_type.items()]
    together = (f"all {report.evaluation.num_numbers} numbers", *_cells(report.evaluation.overall))
    return [("feature type", "accuracy", "SE", "AUC"), *rows, together]


def _measure_rows(report: Report) -> list[tuple[str, ...]]:
    rows = [
        (f"{name} {measure:2} {MEASURES[measure - 1]}", *_cells(result))
        for (name, measure), result in report.evaluation.by_measure.items()
    ]
    return [("measure", "accuracy", "SE", "AUC"), *rows]


def _cells(result: EvaluationResult) -> tuple[str, str, str]:
    error = "-" if result.accuracy_se is None else f"{result.accuracy_se:.2f}"
    return f"{result.accuracy_mean:.2f}", error, f"{result.auc:.2f}"


def _figures(result: EvaluationResult) -> dict[str, Any]:
    return {
        "accuracy_mean": result.accuracy_mean,
        "accuracy_se": result.accuracy_se,
        "auc": result.auc,
        "auc_fold_mean": result.auc_fold_mean,
        "auc_fold_se": result.auc_fold_se,
        "fold_accuracy": list(result.fold_accuracy),
        "fold_auc": list(result.fold_auc),
    }


def _scores(report: Report) -> str:
    """The decision value of each tested pair as CSV; larger: more similar, above 0: same."""
    pairs = report.pairs
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pair", "video_a", "video_b", "label", "fold", "score"])
    for row, score in enumerate(report.evaluation.overall.scores.tolist()):
        if np.isfinite(score):
            names = pairs.video_a[row], pairs.video_b[row]
            writer.writerow([row + 1, *names, int(pairs.same[row]), pairs.split_names[pairs.split[row]], score])
    return text.getvalue()
