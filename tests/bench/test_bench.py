"""What ``tvnet bench`` says, with next to no work: nothing here depends on how fast anything is."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from functools import partial
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from tvnet_cli.bench import run
from tvnet_cli.bench.features import PIPELINE, START
from tvnet_cli.bench.flow import (
    CLASSIC,
    MEMORY,
    OTHER_METHODS,
    SAME_WORK,
    TRAINING,
    TWO_THREADS,
    classic,
    memory,
    same_frames,
)
from tvnet_cli.bench.gpu import AGAINST_TORCH, BANDWIDTH, measure_gpu
from tvnet_cli.bench.machine import Floor
from tvnet_cli.bench.measures import ONE_THREAD
from tvnet_cli.bench.network import BFLOAT16, FLOAT32
from tvnet_cli.bench.pairs import drawn_pair
from tvnet_cli.bench.report import Report, as_json, as_picture, as_text
from tvnet_cli.bench.run import run_bench
from tvnet_cli.bench.timing import Claim, Effort, Row, Share
from tvnet_cli.cli import main

TINY = Effort(repetitions=1, slot_seconds=0, shrink=24)
OPENCV = [SAME_WORK["opencv"], *OTHER_METHODS.values(), CLASSIC]


def unseen(*_: object) -> None:
    """Progress that nobody watches."""


@pytest.fixture(autouse=True)
def _one_core(monkeypatch):
    """So that nothing is done twice."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)


def by_claim(rows: list[Row]) -> dict[Claim, Row]:
    return {row.claim: row for row in rows}


@pytest.fixture(scope="module")
def everything() -> Report:
    pytest.importorskip("cv2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        return run_bench("all", unseen, effort=TINY)


def test_every_claim_has_a_row(everything):
    assert len(everything.rows) == 20
    assert {row.claim.subject for row in everything.rows} == {"flow", "gpu", "network", "features", "measures"}
    for row in everything.rows:
        assert (row.value is None) == bool(row.why_not), row
        assert row.value is None or row.value > 0 or "peak memory" in row.claim.text  # small ones need none


def test_agreement_is_computed(everything):
    rows = by_claim(everything.rows)
    for claim in SAME_WORK.values():
        assert rows[claim].figures["max_difference_px"] < 1e-3
        assert not rows[claim].worse
    for claim in (*OTHER_METHODS.values(), CLASSIC):
        assert rows[claim].figures["endpoint_error_px"] > 0
        assert rows[claim].figures["peer_endpoint_error_px"] > 0
    assert rows[TRAINING].figures["max_relative_gradient_difference"] < 1e-2
    assert rows[FLOAT32].figures["max_relative_difference"] < 1e-4
    assert rows[ONE_THREAD].figures["max_relative_difference"] < 1e-4
    assert set(rows[PIPELINE].figures) == {f"{name}_seconds_a_video" for name in ("whole", "decode", "flow", "network")}
    assert rows[START].claim.unit == "s"


def test_what_one_core_cannot_show_is_said(everything):
    assert by_claim(everything.rows)[TWO_THREADS].why_not == "this process has one core"


def test_the_json_has_the_documented_fields(everything):
    found = json.loads(json.dumps(as_json(everything)))
    assert set(found) == {"subject", "date", "seconds", "machine", "floors", "rows", "shares"}
    assert set(found["machine"]) == {
        "cpu",
        "cores",
        "vector_extensions",
        "cache_bytes",
        "gpu",
        "system",
        "software",
        "load",
    }
    assert all(set(floor) == {"name", "unit", "one_thread", "all_threads"} for floor in found["floors"])
    fields = (
        "claim subject aim must unit smaller_is_better value wall_value ours_seconds peer_seconds figures worse remark "
        "why_not reached"
    )
    assert all(set(row) == set(fields.split()) for row in found["rows"])
    share_fields = "floor what unit one_thread all_threads one_thread_share all_threads_share"
    assert all(set(share) == set(share_fields.split()) for share in found["shares"])
    assert {share["floor"] for share in found["shares"]} <= {floor["name"] for floor in found["floors"]}
    assert len(found["shares"]) >= 6


def test_every_row_is_in_the_table_and_every_ratio_in_the_picture(everything):
    text, picture = as_text(everything), as_picture(everything)
    drawn = " ".join(element.text or "" for element in ElementTree.fromstring(picture).iter())
    for row in everything.rows:
        assert row.claim.text in text
        assert (row.claim.text in drawn) == (row.claim.unit == "x")
    assert "not measured here" in text


def test_a_missing_peer_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    rows = by_claim([*same_frames(TINY, unseen).rows, classic(TINY, unseen)])
    for claim in OPENCV:
        assert rows[claim].value is None
        assert "pip install 'tvnet[bench]'" in rows[claim].why_not
    assert rows[SAME_WORK["numpy"]].value


def test_an_opencv_without_its_contributed_modules_is_a_missing_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", os)
    assert "opencv-contrib" in classic(TINY, unseen).why_not


def test_speed_is_worth_nothing_with_another_flow(monkeypatch):
    monkeypatch.setattr("tvnet_cli.bench.flow.ALLOWED_DIFFERENCE", 0.0)
    row = by_claim(same_frames(TINY, unseen).rows)[SAME_WORK["numpy"]]
    assert (row.worse, row.reached) == ("the fields differ", "no")


def test_tv_l1_may_not_have_the_larger_error():
    pytest.importorskip("cv2")
    pair = drawn_pair(64, 64, 1.0)
    from tvnet_cli import optical_flow

    ours = pair._replace(truth=optical_flow(pair.first, pair.second, preset="tv-l1"))
    row = classic(TINY, unseen, [ours])
    assert row.figures["endpoint_error_px"] == pytest.approx(0, abs=1e-4)
    assert not row.worse
    assert row.remark == "given pairs"
    shifted = ours._replace(truth=ours.truth + 1000)
    assert classic(TINY, unseen, [shifted]).figures["endpoint_error_px"] == pytest.approx(1000 * 2**0.5, rel=1e-3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_peak_memory_is_that_of_the_work():
    row = memory(Effort(shrink=3), unseen)  # 2 pairs of 74 x 74: 28 MB each, in plain torch
    assert row.claim == MEMORY
    assert row.figures["peer_megabytes"] > 30


def test_peak_memory_needs_linux(monkeypatch, tmp_path):
    monkeypatch.setattr("tvnet_cli.bench.flow.STATUS", tmp_path / "none")
    assert "only Linux" in memory(TINY, unseen).why_not


def test_without_amx_there_is_no_bfloat16(monkeypatch):
    monkeypatch.setattr("tvnet_cli.bench.network.has_amx", lambda: False)
    rows = by_claim(run_bench("network", unseen, effort=TINY).rows)
    assert "no AMX" in rows[BFLOAT16].why_not


def test_bfloat16_is_measured_where_there_is_amx(monkeypatch):
    monkeypatch.setattr("tvnet_cli.bench.network.has_amx", lambda: True)
    row = by_claim(run_bench("network", unseen, effort=TINY).rows)[BFLOAT16]
    assert 1e-5 < row.figures["max_relative_difference"] < 0.1


def test_without_a_gpu_two_rows_say_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [(row.claim, row.why_not) for row in measure_gpu(TINY, unseen).rows] == [
        (AGAINST_TORCH, "no GPU that torch can use"),
        (BANDWIDTH, "no GPU that torch can use"),
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_rows_of_a_gpu(device):
    against, bandwidth = measure_gpu(TINY, unseen, device).rows
    assert against.figures["max_difference_px"] < 1e-3
    assert against.value
    assert bandwidth.value == pytest.approx(
        100 * bandwidth.figures["gigabytes_a_second"] / bandwidth.figures["copy_gigabytes_a_second"]
    )


HAND_MADE = Report(
    "flow",
    "2026-01-01T00:00:00+00:00",
    12.3,
    {
        "cpu": "A & B",
        "cores": 2,
        "vector_extensions": ["avx2"],
        "cache_bytes": {"L1d": 32 << 10, "L3": 32 << 20},
        "gpu": None,
        "system": "Linux",
        "software": {"torch": "2", "opencv": None},
        "load": 0.5,
    },
    [Floor("copy, memory", "GB/s", 10, 20)],
    [
        Row(Claim("flow", "fast", 10, 5), 20.0, 15.0, 0.001, 0.02, figures={"max_difference_px": 2e-6}),
        Row(Claim("flow", "so-so", 10, 5), 7.0),
        Row(Claim("flow", "dear", 1.1, 1.3, smaller_is_better=True), 1.5),
        Row(Claim("flow", "slow", 10, 5), 0.5),
        Row(Claim("flow", "wrong", 10, 5), 20.0, worse="the fields differ"),
        Row(Claim("flow", "start", 3, 5, "s", smaller_is_better=True), 2.5),
        Row(Claim("gpu", "absent", 6, 4), why_not="no <GPU>"),
    ],
    [Share("copy, memory", "sweeps", 5, 30)],
)


def test_the_table_line_by_line():
    lines = as_text(HAND_MADE).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert lines[0] == "A & B, 2 cores, avx2, L1d 32 kB, L3 32 MB, no GPU"
    assert lines[1] == "torch 2, opencv not installed, load before 0.5"
    found = {words[0]: words[1:] for words in (re.split(r"\s{2,}", line.strip()) for line in lines) if words}
    assert found["fast"] == ["20.0 x", "10", "5", "15.0 x", "1 ms", "20 ms", "differs by 2e-06 px"]
    assert found["so-so"] == ["7.00 x", "10", "5", "below the aim"]
    assert found["dear"] == ["1.50 x", "< 1.1", "< 1.3", "missed"]
    assert found["wrong"] == ["20.0 x", "10", "5", "the fields differ"]
    assert found["start"] == ["2.50 s", "< 3", "< 5"]
    assert found["absent"] == ["-", "6", "4", "not measured here: no <GPU>"]
    assert found["copy, memory"] == ["10 GB/s", "20 GB/s"]
    assert found["sweeps"] == ["5 = 50 %", "30 = 150 %"]


def test_the_picture_has_bars_on_a_logarithmic_axis_and_lines_at_the_marks():
    root = ElementTree.fromstring(as_picture(HAND_MADE))
    space = "{http://www.w3.org/2000/svg}"
    background, *bars = root.iter(f"{space}rect")
    assert len(bars) == 5
    long, middle, short, slow, _ = (float(bar.get("width")) for bar in bars)
    assert long / middle == pytest.approx(1.539, abs=0.01)  # log 20 / log 7
    assert long / short == pytest.approx(7.388, abs=0.05)  # log 20 / log 1.5
    assert long / slow == pytest.approx(4.322, abs=0.03)  # log 20 / -log 0.5
    ends = [float(bar.get("x")) + float(bar.get("width")) for bar in bars]
    assert ends[3] == pytest.approx(float(bars[0].get("x")), abs=0.2)  # to the left of 1
    colours = [bar.get("fill") for bar in bars]
    assert colours[2] == colours[3] == colours[4]
    assert len(set(colours)) == 3
    aim = [float(line.get("x1")) for line in root.iter(f"{space}line") if line.get("stroke-width")]
    assert len(aim) == 10
    assert background.get("fill") == "#fff"
    assert any(text.text == "no <GPU>" for text in root.iter(f"{space}text"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run, "run_bench", partial(run_bench, effort=TINY))


def bench(*arguments: object):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_table_and_writes_what_is_asked_for(tmp_path):
    result = bench("measures", "--json", tmp_path / "b.json", "-o", tmp_path / "b.svg")
    assert result.exit_code == 0, result.stderr
    assert ONE_THREAD.text in result.stdout
    assert "copy, memory" in result.stdout
    assert "12 measures: " in result.stderr
    assert json.loads((tmp_path / "b.json").read_text())["subject"] == "measures"
    assert ElementTree.parse(tmp_path / "b.svg")


@pytest.mark.usefixtures("quick")
def test_a_report_of_before_is_replaced_and_other_files_on_request(tmp_path):
    outputs = ("--json", tmp_path / "b.json", "-o", tmp_path / "b.svg")
    for path in outputs[1::2]:
        path.write_text("mine")
    assert bench("measures", *outputs, "--overwrite").exit_code == 0
    assert bench("measures", *outputs).exit_code == 0


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_named_after_the_table_is_shown(tmp_path, small_disk):
    with (small_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    result = bench("measures", "--json", tmp_path / "b.json", "-o", small_disk / "b.svg")
    assert result.exit_code == 1
    assert ONE_THREAD.text in result.stdout
    assert f"cannot write {small_disk / 'b.svg'}: the disk at {small_disk} is full" in result.stderr
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.usefixtures("quick")
def test_quiet_leaves_only_the_table():
    assert bench("measures", "-q").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["sound"], 2, "'sound' is not one of"),
        (["-o", "b.png"], 2, "should end in .svg"),
        (["--json", "b.txt"], 2, "should end in .json"),
        (["--json", "nowhere/b.json"], 2, "no such folder"),
        (["-o", "{tmp}/folder.svg"], 2, "it is a folder"),
        (["-o", "{tmp}/mine.svg"], 2, "mine.svg exists, and nothing in it says that tvnet made it"),
        (["--json", "{tmp}/mine.json"], 2, "mine.json exists, and nothing in it says that tvnet made it"),
        (["--pairs", "{tmp}"], 1, "no folder in"),
    ],
)
def test_mistakes_show_before_the_work(tmp_path, monkeypatch, arguments, exit_code, message):
    monkeypatch.setattr(run, "run_bench", None)
    (tmp_path / "folder.svg").mkdir()
    for name in ("mine.svg", "mine.json"):
        (tmp_path / name).write_text("{}")
    result = bench(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
