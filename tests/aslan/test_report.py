from __future__ import annotations

import csv
import io
import json
import re
from base64 import b64decode
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from browser import chromium, needs_chromium
from films import write_film
from pair_files import class_features, pair_numbers, sample_ids, write_csv, write_features

from tvnet_cli.aslan import report as module
from tvnet_cli.aslan.evaluate import EvaluationResult, evaluate
from tvnet_cli.aslan.features import open_features
from tvnet_cli.aslan.pairs import read_pairs
from tvnet_cli.aslan.report import MiddleFrames, Report, as_json, as_text, headline, make_folder, write_report
from tvnet_cli.errors import DatasetError, DiskFullError, OutputError
from tvnet_cli.options import EvalOptions


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("run")
    path = write_csv(folder / "pairs.csv", pair_numbers())
    options = EvalOptions(solver="liblinear")
    layers = {"flow/global_pool": class_features(180, 20), "rgb/<odd>": class_features(180, 9, seed=1)}
    write_features(folder / "f.h5", sample_ids(180), layers)
    pairs = read_pairs(path)
    with open_features([folder / "f.h5"], pairs) as types:
        evaluation = evaluate(types, pairs, options)
        recipe = module.recipe(types, pairs, options, "tvnet", [path])
    return Report(evaluation, pairs, recipe, (*pairs.notes, "a <note>"), comparable=False)


@pytest.fixture(scope="module")
def written(report, tmp_path_factory) -> Path:
    """A report with middle frames; a film is missing, and one is broken."""
    folder = tmp_path_factory.mktemp("report")
    films, shown = folder / "films", confident(report)
    films.mkdir()
    for video in {video for pairs in shown.values() for pair in pairs for video in pair}:
        write_film(films / video.replace("avi", "mp4"), 3)
    first, second = shown["right", True][0]
    (films / first.replace("avi", "mp4")).unlink()
    (films / second.replace("avi", "mp4")).write_text("no film")
    made = make_folder(folder / "deep" / "report")
    write_report(made, report, MiddleFrames(films))
    return made


def confident(report: Report) -> dict[tuple[str, bool], list[tuple[str, str]]]:
    """The four surest pairs of each kind, found by sorting."""
    rows = zip(
        report.pairs.video_a, report.pairs.video_b, report.pairs.same, report.evaluation.overall.scores, strict=True
    )
    kinds: dict[tuple[str, bool], list[tuple[float, tuple[str, str]]]] = {}
    for a, b, same, score in rows:
        kinds.setdefault(("right" if (score > 0) == same else "wrong", bool(same)), []).append((-abs(score), (a, b)))
    return {kind: [pair for _, pair in sorted(found)[:4]] for kind, found in kinds.items()}


class Page(HTMLParser):
    """What a page holds: rows of its tables by id, captions and pictures of its sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.sections: list[dict[str, list[str]]] = []
        self.notes: list[str] = []
        self.links: list[str] = []
        self._path: list[tuple[str, dict[str, str]]] = []
        self._table = ""
        self.feed(text)
        assert not self._path, "each tag is closed"

    def handle_starttag(self, tag, attributes):
        own = {name: value or "" for name, value in attributes}
        self.links += [value for name, value in own.items() if name in ("src", "href")]
        if tag == "table":
            self._table = own["id"]
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag == "section":
            self.sections.append({"captions": [], "empty": [], "images": []})
        if tag == "img":
            self.sections[-1]["images"].append(own["src"])
        if tag not in ("img", "meta"):
            self._path.append((tag, own))

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self._path.pop()[0] == tag

    def handle_data(self, data):
        tag, own = self._path[-1] if self._path else ("", {})
        if tag in ("td", "th"):
            self.tables[self._table][-1].append(data)
        if tag == "figcaption":
            self.sections[-1]["captions"].append(data)
        if own.get("class") == "empty":
            self.sections[-1]["empty"].append(data)
        if own.get("class") == "note":
            self.notes.append(data)


def test_json_holds_the_figures_and_the_recipe(report, written):
    found = json.loads((written / "report.json").read_text())
    assert found == json.loads(json.dumps(as_json(report)))
    overall = report.evaluation.overall
    for name in ("accuracy_mean", "accuracy_se", "auc", "auc_fold_mean", "auc_fold_se"):
        assert found[name] == getattr(overall, name)
    assert found["fold_accuracy"] == list(overall.fold_accuracy)
    assert found["fold_auc"] == list(overall.fold_auc)
    assert found["splits"][4] == {"fold": "4", "num_test": 60, "num_train": 240}
    assert found["by_feature"]["flow/global_pool"]["auc"] == report.evaluation.by_type["flow/global_pool"].auc
    assert len(found["by_measure"]) == 24
    assert found["by_measure"][13]["formula"] == "sqrt(sum(x*y))"
    assert found["comparable"] is False
    recipe = found["recipe"]
    assert (recipe["C"], recipe["eps"], recipe["scale"], recipe["solver"]) == (1, 2.0**-52, "zscore", "liblinear")
    assert recipe["feature_types"][0]["num_values"] == 20
    assert recipe["pairs"]["sha256"] == report.pairs.sha256


def test_the_csv_gives_back_the_result(report, written):
    with (written / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert rows[299]["pair"] == "300"
    assert [row["video_b"] for row in rows] == list(report.pairs.video_b)
    assert [float(row["score"]) for row in rows] == report.evaluation.overall.scores.tolist()
    by_fold = [
        [(float(row["score"]) > 0) == (row["label"] == "1") for row in rows if row["fold"] == f] for f in "01234"
    ]
    assert [100 * np.mean(fold) for fold in by_fold] == pytest.approx(report.evaluation.overall.fold_accuracy)


def test_the_roc_text_starts_with_true_positives(report, written):
    true_positives, false_positives = np.loadtxt(written / "roc.txt").T
    area = np.sum(np.diff(false_positives) * (true_positives[1:] + true_positives[:-1]) / 2)
    assert 100 * area == pytest.approx(report.evaluation.overall.auc, abs=1e-3)
    assert report.evaluation.overall.auc > 55  # so that columns that changed places would show


def test_the_roc_picture_has_a_point_for_each_step(report, written):
    picture = ElementTree.parse(written / "roc.svg").getroot()
    (line,) = picture.iter("{http://www.w3.org/2000/svg}polyline")
    points = np.array([point.split(",") for point in line.get("points").split()], float)
    assert points[0].tolist() == [46, 366]
    assert points[-1].tolist() == [366, 46]
    assert (np.diff(points[:, 0]) >= 0).all()
    assert (np.diff(points[:, 1]) <= 0).all()


def test_the_page_shows_tables_pairs_and_middle_frames(report, written):
    page = Page((written / "index.html").read_text())
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links), "it needs no other file"
    assert page.notes == list(report.notes)
    assert page.tables["published"][1] == ["C3D", "linear", "78.3", "86.5"]
    assert page.tables["published"][8] == ["TVNet", "linear", "79.2", "84.3"]
    overall = report.evaluation.overall
    ours = ["this run (not comparable)", "linear", f"{overall.accuracy_mean:.1f}", f"{overall.auc:.1f}"]
    assert page.tables["published"][9] == ours
    assert [row[0] for row in page.tables["folds"]] == ["split", *"01234"]
    assert [row[0] for row in page.tables["features"][1:]] == ["flow/global_pool", "rgb/<odd>", "all 24 numbers"]
    assert len(page.tables["measures"]) == 25
    shown = [[caption.split(":")[0] for caption in section["captions"]] for section in page.sections]
    kinds = [("right", True), ("right", False), ("wrong", True), ("wrong", False)]
    assert shown == [[" / ".join(pair) for pair in confident(report)[kind]] for kind in kinds]
    empty = page.sections[0]["empty"]
    assert empty[0] == "no such film"
    assert empty[1].startswith("cannot open: not a video, or damaged")
    image = b64decode(page.sections[2]["images"][0].split(",")[1])
    with av.open(io.BytesIO(image), format="mjpeg") as container:
        (frame,) = container.decode(video=0)
    assert (frame.width, frame.height) == (160, 160)


def test_the_middle_frame_is_the_middle_one(tmp_path):
    write_film(tmp_path / "a.mp4", 9, picture=lambda number: np.full((64, 96), 20 * number, np.uint8))
    (tmp_path / "picture.jpg").write_bytes(MiddleFrames(tmp_path)("a"))
    with av.open(str(tmp_path / "picture.jpg")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="gray")
    assert abs(picture.mean() - 80) < 4


def test_text_for_the_terminal(report):
    text = as_text(report)
    lines = text.splitlines()
    assert lines[0] == headline(report.evaluation.overall)
    assert lines[0].startswith(f"Acc {report.evaluation.overall.accuracy_mean:.2f} +- ")
    assert "(SE, 5 folds)  AUC " in lines[0]
    assert "TVNet" in text
    assert "sum(x*y)" not in text
    assert as_text(report, per_measure=True).count("sqrt(sum(x*y))") == 2


def test_one_test_set_has_no_standard_error(report):
    result = EvaluationResult(np.zeros(3), (60.0,), (62.5,), 62.5)
    assert headline(result) == "Acc 60.00 (one test set)  AUC 62.50"
    alone = replace(report, evaluation=replace(report.evaluation, by_type={"a": result}))
    assert re.search(r"^a +60\.00 +-  62\.50$", as_text(alone), re.MULTILINE)


def test_folders_that_are_none_are_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "report")
    with pytest.raises(DatasetError, match="no such folder of videos"):
        MiddleFrames(tmp_path / "gone")


@needs_chromium
def test_a_browser_shows_the_page(written, tmp_path):
    with chromium(tmp_path / "profile") as browser:
        browser.open(written / "index.html", width=1000, height=3000)
        picture = browser.screenshot()
        page = Page(browser.value("document.documentElement.outerHTML"))
        assert browser.errors == []
    with av.open(io.BytesIO(picture)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert shown.shape == (3000, 1000, 3)
    blue = (np.abs(shown.astype(int) - (0x0A, 0x58, 0xCA)).sum(axis=2) < 30).sum()
    assert blue > 200  # the ROC curve
    assert len(page.tables["published"]) == 10
    assert len(page.sections) == 4


def test_a_report_is_replaced_by_the_next_one(report, written):
    write_report(written, report)
    assert len(list(written.iterdir())) == len(module.FILES)


@pytest.mark.parametrize("name", module.FILES)
def test_files_that_no_report_made_are_replaced_on_request_alone(report, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=rf"{name} exists, and nothing in it says that tvnet made it.*--overwrite"):
        write_report(tmp_path, report)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
    write_report(tmp_path, report, overwrite=True)
    assert (tmp_path / name).read_text() != "mine"


@pytest.mark.parametrize("name", module.TABLES)
def test_a_table_that_was_edited_since_is_not_ours(report, tmp_path, name):
    write_report(tmp_path, report)
    with (tmp_path / name).open("a") as file:
        file.write("my notes\n")
    with pytest.raises(OutputError, match=name):
        write_report(tmp_path, report)


def test_a_full_disk_is_named_and_the_old_report_stays(report, small_disk):
    write_report(small_disk, report)
    before = {path: path.read_bytes() for path in small_disk.iterdir()}
    with (small_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with pytest.raises(DiskFullError, match=rf"cannot write {small_disk}/.*: the disk at {small_disk} is full"):
        write_report(small_disk, report)
    (small_disk / "fill").unlink()
    assert {path: path.read_bytes() for path in small_disk.iterdir()} == before
