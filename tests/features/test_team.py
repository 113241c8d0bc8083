from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tvnet_cli.features.team import Team


def test_work_goes_to_whoever_has_the_least_for_its_size():
    team: Team[str] = Team()
    team.join("small", places=1)
    team.join("large", places=3)
    with team.free() as first, team.free() as second, team.free() as third, team.free() as fourth:
        assert sorted([first, second, third, fourth]) == ["large", "large", "large", "small"]
        assert {first, second} == {"small", "large"}


def test_who_asks_waits_for_a_place_or_for_a_new_member():
    team: Team[str] = Team()
    given = []

    def work(_: int) -> None:
        with team.free() as member:
            given.append(member)

    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(work, number) for number in range(8)]
        assert not given
        team.join("late", places=2)
        for one in waiting:
            one.result(timeout=60)
    assert given == ["late"] * 8


def test_nobody_has_more_work_than_places():
    team: Team[int] = Team()
    for member in range(3):
        team.join(member, places=2)
    lock, at_work, most = threading.Lock(), [0] * 3, []
    together = threading.Barrier(6)

    def work(_: int) -> None:
        with team.free() as member:
            with lock:
                at_work[member] += 1
                most.append(max(at_work))
            together.wait(60)
            with lock:
                at_work[member] -= 1

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(24)))
    assert max(most) == 2


def test_a_member_that_left_gets_no_work_and_leaves_once():
    team: Team[str] = Team()
    team.join("here", places=1)
    team.join("gone", places=1)
    with team.free() as first, team.free() as second:
        assert {first, second} == {"here", "gone"}
        assert team.leave("gone")
        assert not team.leave("gone")
    assert len(team) == 1
    for _ in range(3):
        with team.free() as member:
            assert member == "here"


def test_an_error_gives_the_place_back():
    team: Team[str] = Team()
    team.join("here", places=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), team.free():
            raise ValueError("broken")


def test_who_waits_for_a_member_that_never_comes_gets_the_error():
    team: Team[str] = Team()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(team.free().__enter__) for _ in range(2)]
        team.break_up(OSError("all machines are gone"))
        for one in waiting:
            with pytest.raises(OSError, match="all machines are gone"):
                one.result(timeout=60)
