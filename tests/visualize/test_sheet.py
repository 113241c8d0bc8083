from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvnet_cli.visualize.sheet import DPI, ROW_HEIGHT, Panel, Row, legend, write_sheet

RED, GREEN = np.array([255, 0, 0]), np.array([0, 128, 0])


def plain(colour: np.ndarray, height: int = 50, width: int = 100) -> np.ndarray:
    return np.broadcast_to(colour, (height, width, 3)).astype(np.uint8)


ROWS = [
    Row([Panel(plain(RED)), Panel(plain(GREEN, width=50), "a caption"), legend(2.5)], "first row"),
    Row([Panel(plain(GREEN), box=(10, 10, 30, 30))], "second row"),
]


def extent(picture: np.ndarray, colour: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns between which a colour is seen."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_panels_stand_in_rows_and_columns_as_large_as_they_should(tmp_path):
    write_sheet(tmp_path / "a.png", ROWS, ["One", "Two\nlines", ""])
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    side = round(ROW_HEIGHT * DPI)
    top, bottom, left, right = extent(picture, RED)
    assert abs(bottom - top - side) <= 3
    assert abs(right - left - 2 * side) <= 3
    top_2, bottom_2, left_2, right_2 = extent(picture[:bottom], GREEN)
    assert abs(top_2 - top) <= 3
    assert abs(bottom_2 - bottom) <= 3
    assert right < left_2 < right_2 < picture.shape[1]
    assert abs(right_2 - left_2 - side) <= 3
    below = extent(picture[bottom:, : left_2 - 10], GREEN)
    assert (abs(below[2] - left), abs(below[3] - right)) <= (3, 3)
    assert (picture[0] == 255).all()


def test_long_names_are_written_smaller_and_not_cut(tmp_path):
    name = "object/translate_down_right"
    write_sheet(tmp_path / "a.png", [Row([Panel(plain(RED, width=50), name)], name)], [f"DeepDraw\n{name}"])
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    written = np.argwhere(picture < 128)
    assert (written.min(0) >= 3).all()
    assert (picture.shape - written.max(0) > 3).all()
    _, bottom, left, right = extent(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), RED)
    columns = np.nonzero((picture[bottom + 5 :] < 128).any(0))[0]
    assert left - 3 <= columns.min() < left + 20
    assert right - 20 < columns.max() <= right + 3


def test_the_legend_is_a_wheel_with_its_scale(tmp_path):
    panel = legend(12.3456)
    assert panel.caption == "12.3 px"
    middle = panel.picture.shape[0] // 2
    assert (panel.picture[middle, middle] > 240).all()  # stands still
    assert panel.picture[middle, -4].tolist()[0] > 240  # to the right is red
    assert panel.picture[middle, -4].max() - panel.picture[middle, -4].min() > 200


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_the_same_rows_give_the_same_file(tmp_path, suffix):
    for name in ("a", "b"):
        write_sheet(tmp_path / f"{name}{suffix}", ROWS, ["One", "Two", ""])
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_print_has_letters_and_no_date(tmp_path):
    write_sheet(tmp_path / "a.pdf", ROWS)
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content.replace(b" ", b"")
    assert b"CreationDate" not in content
    write_sheet(tmp_path / "a.svg", ROWS)
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()


def test_names_with_signs_of_formulas_are_letters(tmp_path):
    write_sheet(tmp_path / "a.svg", [Row([Panel(plain(RED), "a$x_2$b")])])
    assert len(re.findall("<use", (tmp_path / "a.svg").read_text())) == 7


def test_nothing_of_the_user_s_settings_is_changed(tmp_path: Path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_sheet(tmp_path / "a.png", ROWS)
    assert dict(matplotlib.rcParams) == before
