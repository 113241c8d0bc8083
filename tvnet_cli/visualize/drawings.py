"""Drawn units as files: pictures, sheets of pictures, and films of the motion that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from tvnet_cli.errors import OutputError, UnitError
from tvnet_cli.flow.colour import colour_scale
from tvnet_cli.flow.field import FlowField
from tvnet_cli.flow.film import FlowFilm
from tvnet_cli.options import SHEET_SUFFIXES, ChannelView
from tvnet_cli.video.sequence import Picture
from tvnet_cli.visualize.deepdraw import Canvas, Drawing
from tvnet_cli.visualize.pictures import as_png, canvas_pictures, imagined_flow
from tvnet_cli.visualize.sheet import Panel, Row, write_sheet
from tvnet_cli.visualize.units import Input, NetworkLayer
from tvnet_cli.writing import require_replaceable, write_whole

FILM_SUFFIX = ".mp4"
FIELD_SECONDS, ROUNDS = Fraction(1, 5), 4  # how long a film shows a field, and how often all of them
GRAIN, GRAIN_CONTRAST = 2.0, 60.0  # pixels and grey levels, of the texture that a film moves
SHEET_COLUMNS = 6


def check_outputs(
    outputs: Sequence[Path], layer: NetworkLayer, units: Sequence[int], *, overwrite: bool = False
) -> None:
    """Refuse, before minutes of work, outputs that cannot be written after it.

    Raises
    ------
    OutputError
        Also if a file is there that this program did not write, and ``overwrite`` is false.
    """
    for path in outputs:
        suffix = "" if _is_folder(path) else path.suffix.lower()
        if suffix == FILM_SUFFIX and not layer.sees_flow:
            raise OutputError(f"{path}: {layer.weights} see pictures, not flow, and a picture gives no film")
        if suffix == FILM_SUFFIX and len(units) > 1:
            raise OutputError(f"{path}: a film shows one unit, and {len(units)} were asked for: give a folder")
        files = [file for unit in units for file in _files_of(path, layer, unit)] if _is_folder(path) else [path]
        for file in files:
            require_replaceable(file, overwrite=overwrite)


def write_drawings(
    outputs: Sequence[Path], layer: NetworkLayer, drawings: Iterable[Drawing], view: ChannelView
) -> None:
    """Write drawings as they come.

    Parameters
    ----------
    outputs : sequence of Path
        A folder gets a picture and, of flow, a film of each unit as soon as it is drawn; a ``.mp4`` is the film of the
        one unit; a ``.png``, ``.svg`` or ``.pdf`` is the picture of one unit, or a sheet of many.
    layer : NetworkLayer
    drawings : iterable of Drawing
    view : {"mean", "xy", "all"}

    Raises
    ------
    UnitError
        After all else is written, if units are dead, naming them.
    """
    rows: dict[str, dict[str, Picture]] = {}
    dead: list[str] = []
    for drawing in drawings:
        title = layer.title(drawing.unit)
        if drawing.dead:
            dead.append(title)
            continue
        rows[title] = canvas_pictures(drawing.canvas, layer.how, view)
        for path in outputs:
            if _is_folder(path):
                path.mkdir(parents=True, exist_ok=True)
                picture, *film = _files_of(path, layer, drawing.unit)
                _write_pictures(picture, {title: rows[title]})
                if film:
                    write_film(film[0], drawing.canvas, layer.how)
            elif path.suffix.lower() == FILM_SUFFIX:
                write_film(path, drawing.canvas, layer.how)
    for path in outputs:
        if rows and not _is_folder(path) and path.suffix.lower() in SHEET_SUFFIXES:
            _write_pictures(path, rows)
    if dead:
        named = f"{', '.join(dead)} of {layer.name}"
        raise UnitError(f"dead, without any gradient to begin with: {named}; --leak 0.01 gives them one")


def _is_folder(path: Path) -> bool:
    return not path.suffix or path.is_dir()


def _files_of(folder: Path, layer: NetworkLayer, unit: int) -> list[Path]:
    """Return the picture of a unit in a folder and, of flow, its film."""
    name = layer.file_name(unit)
    return [folder / f"{name}{suffix}" for suffix in (".png", *([FILM_SUFFIX] if layer.sees_flow else []))]


def write_film(path: Path, canvas: Canvas, how: Input) -> None:
    """The motion that a canvas stands for, over and over: a texture that is carried by it, beside its colours."""
    fields = imagined_flow(canvas, how)
    frames = [_texture(canvas.shape[1:])]
    for flow in fields:
        frames.append(_carried(frames[-1], flow))
    pictures = [np.repeat(np.clip(np.rint(frame), 0, 255).astype(np.uint8)[..., None], 3, axis=2) for frame in frames]
    with FlowFilm(path, colour_scale(list(fields)), FIELD_SECONDS) as film:
        for position in range(ROUNDS * len(fields)):
            number = position % len(fields)
            times = float(position * FIELD_SECONDS), float((position + 1) * FIELD_SECONDS)
            first, second = pictures[number : number + 2]
            film.write(FlowField(position, (position, position + 1), times, first, second, {"flow": fields[number]}))


def _texture(shape: tuple[int, ...]) -> NDArray[np.float64]:
    noise = gaussian_filter(np.random.default_rng(0).standard_normal(shape), GRAIN, mode="wrap")
    texture: NDArray[np.float64] = 128 + GRAIN_CONTRAST * noise / noise.std()
    return texture


def _carried(texture: NDArray[np.float64], flow: NDArray[np.float32]) -> NDArray[np.float64]:
    """A texture after a flow (2, H, W), which is read where it arrives: nearly where it began, if it is smooth."""
    places = np.indices(texture.shape) - flow[::-1]
    moved: NDArray[np.float64] = map_coordinates(texture, places, order=1, mode="mirror")
    return moved


def _write_pictures(path: Path, rows: dict[str, dict[str, Picture]]) -> None:
    """One picture as it is; more as a sheet, a row for each unit, or units side by side where each has one."""
    pictures = [picture for row in rows.values() for picture in row.values()]
    if len(pictures) == 1 and path.suffix.lower() == ".png":
        write_whole(path, as_png(pictures[0]))
    elif len(pictures) == len(rows):
        panels = [Panel(picture, title) for title, picture in zip(rows, pictures, strict=True)]
        starts = range(0, len(panels), SHEET_COLUMNS)
        write_sheet(path, [Row(panels[start : start + SHEET_COLUMNS]) for start in starts])
    else:
        sheet = [Row([Panel(picture) for picture in row.values()], title) for title, row in rows.items()]
        write_sheet(path, sheet, columns=list(next(iter(rows.values()))))
