"""Pictures in rows and columns with titles, for print: PNG, SVG or PDF by the suffix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from tvnet_cli.flow.colour import colour_disc
from tvnet_cli.video.sequence import Picture
from tvnet_cli.writing import MARK, write_whole

# In inches, as print is measured; at this resolution a frame with 256 rows is about as large as its picture.
DPI = 300
ROW_HEIGHT = 0.9
MARGIN, GAP = 0.04, 0.05
LINE = 0.13  # a line of text
SIDE_TITLE = 0.17
LEGEND_SHARE, LEGEND_PIXELS = 0.4, 121

# The same file from the same rows: no date, and no random names of parts. Letters are letters in PDF, paths in SVG.
SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 6.5,
    "text.color": "black",
    "text.parse_math": False,
    "text.usetex": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "tvnet",
}
METADATA = {
    ".png": {"Software": MARK},
    ".svg": {"Creator": MARK, "Date": None},
    ".pdf": {"Creator": MARK, "CreationDate": None},
}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes
    ----------
    picture : ndarray, (H, W) or (H, W, 3), uint8
    caption : str
        Below it.
    box : (int, int, int, int), pixels, or None
        Left, top, width and height of a part to be framed.
    share : float
        Its height as a part of its row's.
    framed : bool
        A thin line around it, since much of flow is white.
    """

    picture: Picture = field(repr=False)
    caption: str = ""
    box: tuple[int, int, int, int] | None = None
    share: float = 1.0
    framed: bool = True

    @property
    def width(self) -> float:
        """In inches."""
        height, width = self.picture.shape[:2]
        return ROW_HEIGHT * self.share * float(width / height)


def legend(max_flow: float) -> Panel:
    """The wheel of colours of flow, with the length at its rim, in pixels."""
    return Panel(colour_disc(LEGEND_PIXELS), f"{max_flow:.3g} px", share=LEGEND_SHARE, framed=False)


@dataclass(frozen=True)
class Row:
    """Panels beside each other, and a title at their left."""

    panels: Sequence[Panel]
    title: str = ""


def write_sheet(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Write rows of panels as one picture, the same file for the same rows.

    Parameters
    ----------
    path : Path
        ``.png``, ``.svg`` or ``.pdf``.
    rows : sequence of Row
    columns : sequence of str
        Titles over the first row, of a line or more.
    """
    widths = [max(panel.width for panel in column) for column in _columns(rows)]
    left = MARGIN + (SIDE_TITLE if any(row.title for row in rows) else 0)
    starts = [left + sum(widths[:number]) + GAP * number for number in range(len(widths))]
    heights = [
        ROW_HEIGHT + (LINE if any(panel.caption for panel in row.panels if panel.share == 1) else 0) for row in rows
    ]
    head = LINE * max((title.count("\n") + 1 for title in columns), default=0)
    top = MARGIN + head
    size = (starts[-1] + widths[-1] + MARGIN, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN)
    with matplotlib.rc_context(SETTINGS):
        page = _Page(size)
        for title, start, width in zip(columns, starts, widths, strict=False):
            page.write(title, start + width / 2, top - LINE * (title.count("\n") + 1) / 2, room=width)
        for row, height in zip(rows, heights, strict=True):
            page.write(row.title, MARGIN + SIDE_TITLE / 2, top + ROW_HEIGHT / 2, room=ROW_HEIGHT, rotation=90)
            for panel, start, width in zip(row.panels, starts, widths, strict=False):
                page.show(panel, start + width / 2, top)
            top += height + GAP
        page.save(path)


class _Page:
    """A figure that is measured in inches from its upper left corner."""

    def __init__(self, size: tuple[float, float]) -> None:
        self.width, self.height = size
        self.figure = Figure(figsize=size, dpi=DPI, facecolor="white")

    def write(self, text: str, x: float, y: float, room: float, **more: Any) -> None:
        """A text about a point, smaller where it would be longer than its room."""
        longest = max((_length(line) for line in text.split("\n")), default=0.0)
        size = SETTINGS["font.size"] * min(1, room / max(longest, room))
        self.figure.text(x / self.width, 1 - y / self.height, text, ha="center", va="center", fontsize=size, **more)

    def show(self, panel: Panel, middle: float, top: float) -> None:
        """A panel in the middle of the height of its row, its caption below it."""
        height = ROW_HEIGHT * panel.share
        top += (ROW_HEIGHT - height) / 2
        place = (middle - panel.width / 2, self.height - top - height, panel.width, height)
        left, bottom, width, high = (
            value / side for value, side in zip(place, (self.width, self.height) * 2, strict=True)
        )
        axes = self.figure.add_axes((left, bottom, width, high))
        axes.imshow(panel.picture, cmap="gray", vmin=0, vmax=255, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=panel.framed, linewidth=0.3, color="0.6")
        if panel.box:
            x, y, wide, tall = panel.box
            frame = Rectangle((x - 0.5, y - 0.5), wide, tall, fill=False, linewidth=0.5, linestyle="--", color="white")
            axes.add_patch(frame)
        self.write(panel.caption, middle, top + height + LINE / 2, room=panel.width)

    def save(self, path: Path) -> None:
        written = BytesIO()
        suffix = path.suffix.lower()
        self.figure.savefig(written, format=suffix[1:], dpi=DPI, metadata=METADATA[suffix])
        write_whole(path, written.getvalue())


def _length(line: str) -> float:
    """Of a line of text in inches."""
    font = FontProperties(family=SETTINGS["font.family"], size=SETTINGS["font.size"])
    width, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return float(width) / 72


def _columns(rows: Sequence[Row]) -> list[list[Panel]]:
    """The panels below each other; a short row ends early."""
    longest = max(len(row.panels) for row in rows)
    return [[row.panels[number] for row in rows if number < len(row.panels)] for number in range(longest)]
