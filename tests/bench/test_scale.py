from __future__ import annotations

import pytest
from click.testing import CliRunner

from tvnet_cli.bench import scale
from tvnet_cli.bench.run import run_bench
from tvnet_cli.bench.scale import HANDLES, LAST_VIDEO, MEMORY, Moment, measure_scale, rows
from tvnet_cli.bench.timing import Effort, Row
from tvnet_cli.cli import main


def moments(count: int, *, slower: float = 1.0, larger: float = 1.0, more: int = 0) -> list[Moment]:
    """Videos of one second each; the last fifth takes longer, more memory and more files."""
    found, wall = [], 0.0
    for number in range(count):
        late = number >= 0.8 * count
        wall += slower if late else 1.0
        found.append(Moment(wall, 2 * wall, 1e8 * (larger if late else 1.0), 20 + (more if late else 0)))
    return found


def values(found: list[Row]) -> dict[str, float | None]:
    return {row.claim.text: row.value for row in found}


def test_what_does_not_change_reaches_all_aims():
    found = rows(moments(100), packing=3.0)
    assert [row.claim for row in found] == [LAST_VIDEO, MEMORY, HANDLES]
    assert [row.value for row in found] == pytest.approx([1, 0, 0])
    assert [row.reached for row in found] == ["aim"] * 3
    assert found[0].figures == {"videos": 100, "packing_seconds": 3.0}


@pytest.mark.parametrize(
    ("change", "claim", "value"),
    [({"slower": 2.0}, LAST_VIDEO, 2), ({"larger": 1.1}, MEMORY, 10), ({"more": 1}, HANDLES, 1)],
)
def test_what_grows_is_missed(change, claim, value):
    found = {row.claim: row for row in rows(moments(100, **change), packing=0)}
    assert found[claim].value == pytest.approx(value)
    assert found[claim].reached == "no"
    assert [row.reached for other, row in found.items() if other != claim] == ["aim"] * 2


def test_where_the_system_tells_nothing_it_is_said():
    silent = [Moment(one.wall, one.cpu, float("nan"), float("nan")) for one in moments(50)]
    assert [row.why_not for row in rows(silent, packing=0)[1:]] == ["this system has no /proc"] * 2


def test_videos_are_made_and_extracted():
    seen = []
    report = run_bench(
        "scale", lambda *what: seen.append(what), effort=Effort(repetitions=1, slot_seconds=0, shrink=24)
    )
    assert ("many videos", 10, 10) in seen
    assert [row.claim for row in report.rows] == [LAST_VIDEO, MEMORY, HANDLES]
    assert all(row.value is not None or row.why_not for row in report.rows)


def test_the_number_of_videos_is_for_scale_only():
    result = CliRunner().invoke(main, ["bench", "flow", "--videos", "20"])
    assert result.exit_code == 2
    assert "--videos is for tvnet bench scale" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not scale.PROCESS.exists(), reason="needs /proc")
def test_five_thousand_videos_pile_up_nothing(capsys):
    found = {row.claim: row for row in measure_scale(Effort(), lambda *what: None, num_videos=5000).rows}
    with capsys.disabled():
        print(values(list(found.values())), found[LAST_VIDEO].figures)
    assert found[LAST_VIDEO].figures["videos"] == 5000
    assert found[MEMORY].value < 5
    assert found[HANDLES].value <= 0
