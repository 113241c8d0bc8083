"""What a benchmark leaves: a table, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tvnet_cli.bench.machine import Floor
from tvnet_cli.bench.timing import Claim, Row, Share
from tvnet_cli.writing import MARK

COLOURS = {"aim": "green", "must": "yellow", "no": "red", None: "dim"}
# How the figures of a row read.
FIGURES = {
    "max_difference_px": "differs by {:.1g} px",
    "max_relative_difference": "differs by {:.1g} of the largest",
    "max_relative_gradient_difference": "differs by {:.1g} of the largest",
    "endpoint_error_px": "error {:.3f} px",
    "peer_endpoint_error_px": "the peer's {:.3f} px",
    "megabytes": "{:.0f} MB",
    "peer_megabytes": "the peer {:.0f} MB",
    "whole_seconds_a_video": "a video {:.2f} s",
    "decode_seconds_a_video": "decode {:.2f}",
    "flow_seconds_a_video": "flow {:.2f}",
    "network_seconds_a_video": "network {:.2f}",
    "gigabytes_a_second": "{:.0f} GB/s",
    "copy_gigabytes_a_second": "copy {:.0f} GB/s",
    "float64_ratio": "against float64 {:.2f} x",
    "pairs_a_second": "{:.0f} pairs/s",
    "videos": "{:.0f} videos",
    "packing_seconds": "end {:.2f} s",
    "handles": "{:.0f} in all",
}


@dataclass(frozen=True)
class Report:
    """All that one run found.

    Attributes
    ----------
    subject : str
    date : str
        UTC, ISO 8601.
    seconds : float
        Of the whole run.
    machine : dict
        From ``tvnet_cli.bench.machine.describe``.
    floors : list of Floor
    rows : list of Row
    shares : list of Share
    """

    subject: str
    date: str
    seconds: float
    machine: dict[str, Any] = field(repr=False)
    floors: list[Floor]
    rows: list[Row]
    shares: list[Share]

    def of_floors(self) -> list[tuple[Floor, list[Share]]]:
        """Each floor and what comes near it."""
        return [(floor, [share for share in self.shares if share.floor == floor.name]) for floor in self.floors]


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values. Seconds and ratios are of processor time on one thread unless named otherwise."""
    rows = []
    for row in report.rows:
        values = asdict(row)
        claim = values.pop("claim")
        rows.append({"claim": claim.pop("text"), **claim, **values, "reached": row.reached})
    shares = [
        {
            **share._asdict(),
            "unit": floor.unit,
            "one_thread_share": share.one_thread / floor.one_thread,
            "all_threads_share": share.all_threads / floor.all_threads,
        }
        for floor, shares in report.of_floors()
        for share in shares
    ]
    return {
        "subject": report.subject,
        "date": report.date,
        "seconds": round(report.seconds, 1),
        "machine": report.machine,
        "floors": [floor._asdict() for floor in report.floors],
        "rows": rows,
        "shares": shares,
    }


def as_table(report: Report) -> RenderableType:
    """The report for a terminal."""
    return Group(*(Text(line) for line in machine_lines(report.machine)), _claims(report.rows), _floors(report))


def as_text(report: Report, width: int = 150) -> str:
    """The same without colours, for a file or a pipe, which have no width of their own."""
    written = StringIO()
    Console(width=width, file=written, highlight=False).print(as_table(report))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """The machine and the software in two lines."""
    caches = [f"{name} {_bytes(size)}" for name, size in machine["cache_bytes"].items()]
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    parts = [machine["cpu"], cores, " ".join(machine["vector_extensions"]), *caches, machine["gpu"] or "no GPU"]
    versions = [f"{name} {version or 'not installed'}" for name, version in machine["software"].items()]
    load = [] if machine["load"] is None else [f"load before {machine['load']}"]
    return [", ".join(parts), ", ".join(versions + load)]


def _claims(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=CAPTION, caption_justify="left")
    table.add_column("claim", no_wrap=True)
    for name in ("measured", "aim", "must", "wall", "ours", "peer"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        claim = row.claim
        table.add_row(
            claim.text,
            Text("-" if row.value is None else _value(row.value, claim), COLOURS[row.reached]),
            _mark(claim.aim, claim),
            _mark(claim.must, claim),
            "" if row.wall_value is None else _value(row.wall_value, claim),
            _seconds(row.ours_seconds),
            _seconds(row.peer_seconds),
            Text(remarks(row)),
        )
    return table


CAPTION = (
    "measured: by processor time on one thread, or by wall time where it says so; wall: by wall time on all cores\n"
    "ours, peer: the times behind what was measured, of one pair of frames, 25 clips of a video, or the whole"
)


def remarks(row: Row) -> str:
    """All that is to be said about a row beside its numbers."""
    if row.value is None:
        return f"not measured here: {row.why_not}"
    figures = [FIGURES[name].format(value) for name, value in row.figures.items()]
    verdict = {"aim": "", "must": "below the aim", "no": "missed", None: ""}[row.reached]
    return "; ".join(filter(None, [row.worse or verdict, ", ".join(figures), row.remark]))


def _floors(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("floor of the machine, and what comes near it")
    for name in ("one thread", "all cores"):
        table.add_column(name, justify="right", no_wrap=True)
    for floor, shares in report.of_floors():
        table.add_row(floor.name, *(f"{rate:.3g} {floor.unit}" for rate in (floor.one_thread, floor.all_threads)))
        for share in shares:
            pairs = (share.one_thread, floor.one_thread), (share.all_threads, floor.all_threads)
            table.add_row(f"  {share.what}", *(f"{rate:.3g} = {100 * rate / best:.0f} %" for rate, best in pairs))
    return table


def _value(value: float, claim: Claim) -> str:
    return f"{value:.{2 if value < 10 else 1}f} {claim.unit}" if claim.unit else f"{value:g}"


def _mark(mark: float, claim: Claim) -> str:
    return f"{'<' if claim.smaller_is_better else ''} {mark:g}".strip()


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _bytes(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} kB"


# Of the picture, in pixels.
LEFT, RIGHT, TOP, LINE, BAR = 430, 60, 64, 24, 14
AXIS = 440
FILLS = {"aim": "#2e8b57", "must": "#e0a800", "no": "#c0392b"}


def as_picture(report: Report) -> str:
    """The ratios as bars on a logarithmic axis, with lines where the aim and the least that must be are, as SVG."""
    rows = [row for row in report.rows if row.claim.unit == "x"]
    shown = [value for row in rows for value in (row.value, row.claim.aim, row.claim.must) if value]
    decades = range(math.floor(math.log10(min([1, *shown]))), math.ceil(math.log10(max([10, *shown]))) + 1)
    low, high = decades[0], decades[-1]

    def place(value: float) -> float:
        return LEFT + AXIS * (math.log10(max(value, 10.0**low)) - low) / (high - low)

    bottom = TOP + LINE * len(rows)
    width, height = LEFT + AXIS + RIGHT, bottom + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="tvnet bench"><!-- {MARK} -->'
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(
            f'<text x="12" y="{20 + 18 * number}" fill="#555">{escape(line)}</text>'
            for number, line in enumerate(machine_lines(report.machine)[:1])
        ),
    ]
    for decade in decades:
        x = place(10.0**decade)
        parts.append(
            f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**decade:g}</text>'
        )
    for number, row in enumerate(rows):
        parts.append(_bar(row, TOP + LINE * number, place))
    parts.append(
        f'<text x="{LEFT}" y="{bottom + 38}">times; bars begin at 1; full line: aim, broken line: must; '
        "&lt;: smaller is better</text></svg>"
    )
    return "".join(parts) + "\n"


def _bar(row: Row, top: float, place: Callable[[float], float]) -> str:
    """One claim: its text, its bar from 1 on, its number, and its two marks."""
    claim, middle = row.claim, top + LINE / 2
    sign = " (<)" if claim.smaller_is_better else ""
    parts = [f'<text x="{LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(claim.text + sign)}</text>']
    if row.value is None:
        parts.append(f'<text x="{LEFT + 6}" y="{middle + 4}" fill="#888">{escape(row.why_not)}</text>')
        return "".join(parts)
    start, end = sorted((place(1), place(row.value)))
    parts.append(
        f'<rect x="{start:.1f}" y="{middle - BAR / 2}" width="{max(end - start, 1):.1f}" height="{BAR}" '
        f'fill="{FILLS[row.reached or "no"]}"/>'
    )
    for mark, dashes in ((claim.aim, ""), (claim.must, ' stroke-dasharray="3"')):
        parts.append(
            f'<line x1="{place(mark):.1f}" y1="{top + 1}" x2="{place(mark):.1f}" y2="{top + LINE - 1}" '
            f'stroke="#222" stroke-width="1.5"{dashes}/>'
        )
    text = max(end, place(claim.aim), place(claim.must)) + 6
    parts.append(f'<text x="{text:.1f}" y="{middle + 4}">{_value(row.value, claim)}</text>')
    return "".join(parts)
