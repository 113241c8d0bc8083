from __future__ import annotations

import os
from contextlib import suppress

import pytest
import torch

from tvnet_cli.bench import machine, timing
from tvnet_cli.bench.timing import Claim, Effort, Row, Timing, faster, interleave, num_threads, slower


def unseen(*_: object) -> None:
    """Progress that nobody watches."""


def test_calls_take_turns_with_each_number_of_threads():
    before, seen = torch.get_num_threads(), []
    calls = {name: lambda name=name: seen.append((name, torch.get_num_threads())) for name in "ab"}
    times = interleave(calls, 2, 0, threads=[1, 3], progress=unseen, stage="")
    turn = [("a", 1), ("b", 1), ("a", 3), ("b", 3)]
    assert seen[-8:] == turn + turn
    assert torch.get_num_threads() == before
    assert set(times) == {"a", "b"}
    assert set(times["a"]) == {1, 3}


@pytest.fixture
def clock(monkeypatch) -> list[int]:
    """How often a call is made each time that it is timed, of a call that takes 10 ms."""
    seen: list[int] = []
    monkeypatch.setattr(timing, "_clocked", lambda _, times: seen.append(times) or Timing(0.01, 0.01))
    return seen


def test_short_calls_are_repeated_in_each_turn(clock):
    interleave({"short": int}, 2, 0.15, threads=[1], progress=unseen, stage="")
    assert clock == [1, 1, 15, 15]


def test_when_it_takes_too_long_there_are_no_more_turns_for_any_call(clock, monkeypatch):
    monkeypatch.setattr(timing, "PATIENCE", 0)
    interleave({"slow": int, "quick": int}, 5, 0, threads=[1], progress=unseen, stage="")
    assert clock == [1, 1, 1, 1]  # once before, and one turn


def test_progress_is_told():
    said = []
    interleave({"a": int}, 2, 0, threads=[1], progress=lambda *words: said.append(words), stage="some work")
    assert said == [("some work", 0, 2), ("some work", 1, 2), ("some work", 2, 2)]


def test_threads_are_as_before_after_an_error():
    before = torch.get_num_threads()
    with suppress(ZeroDivisionError), num_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_opencv_gets_the_threads_too():
    cv2 = pytest.importorskip("cv2")
    before = cv2.getNumThreads()
    with num_threads(before + 1):
        assert cv2.getNumThreads() == before + 1
    assert cv2.getNumThreads() == before


FASTER = Claim("flow", "ours", aim=10, must=5)
CHEAPER = Claim("flow", "ours", aim=1.1, must=1.3, smaller_is_better=True)


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (Row(FASTER, value=10), "aim"),
        (Row(FASTER, value=9.9), "must"),
        (Row(FASTER, value=4.9), "no"),
        (Row(FASTER, value=11, worse="the fields differ"), "no"),
        (Row(CHEAPER, value=1.1), "aim"),
        (Row(CHEAPER, value=1.2), "must"),
        (Row(CHEAPER, value=1.31), "no"),
        (Row(FASTER, why_not="no GPU"), None),
    ],
)
def test_a_row_says_what_it_reaches(row, reached):
    assert row.reached == reached


def test_a_ratio_is_by_processor_time_on_one_thread_and_by_wall_time_on_all_cores():
    ours = {1: Timing(cpu=2, wall=3), 2: Timing(cpu=2, wall=1)}
    peer = {1: Timing(cpu=20, wall=90), 2: Timing(cpu=50, wall=15)}
    row = faster(FASTER, ours, peer, per=4)
    assert (row.value, row.wall_value, row.ours_seconds, row.peer_seconds) == (10, 15, 0.5, 5)
    row = slower(CHEAPER, peer, ours, work=5)
    assert (row.value, row.wall_value, row.ours_seconds, row.peer_seconds) == (2, 3, 20, 10)


CPUINFO = "model name\t: A Fast One @ 9 GHz\nflags\t\t: fpu avx2 avx512f amx_bf16 lahf_lm\n\nmodel name\t: Another\n"


def test_the_machine_is_described(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    caches = (1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2048K")
    for number, (level, kind, size) in enumerate(caches):
        index = tmp_path / f"index{number}"
        index.mkdir()
        for name, text in {"level": level, "type": kind, "size": size}.items():
            (index / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    found = machine.describe()
    assert found["cpu"] == "A Fast One @ 9 GHz"
    assert found["vector_extensions"] == ["avx2", "avx512f", "amx_bf16"]
    assert found["cache_bytes"] == {"L1d": 48 << 10, "L2": 2 << 20}
    assert machine.has_amx()
    assert found["software"]["torch"] == torch.__version__


def test_a_machine_that_tells_nothing_is_described_too(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    found = machine.describe()
    assert found["cpu"]
    assert found["cache_bytes"] == {}
    assert len(found["vector_extensions"]) == 1
    assert not machine.has_amx()


def test_the_floors_are_copies_and_products(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    floors = machine.measure_floors(Effort(repetitions=1, slot_seconds=0, shrink=64), unseen)
    assert [(floor.name, floor.unit) for floor in floors] == [
        ("copy, memory", "GB/s"),
        ("copy, L3", "GB/s"),
        ("copy, L2", "GB/s"),
        ("matrix product, float32", "GFLOP/s"),
        ("matrix product, bfloat16", "GFLOP/s"),
    ]
    assert all(floor.one_thread > 0 and floor.all_threads > 0 for floor in floors)
