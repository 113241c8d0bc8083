"""`tvnet visualize`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click

from tvnet_cli.commands.common import (
    DEVICE,
    PATH,
    check_writable,
    complete_weights,
    with_clear_errors,
    with_decode_limits,
    with_options,
)
from tvnet_cli.commands.flow import read_schedule
from tvnet_cli.options import (
    CHANNEL_VIEWS,
    DEFAULT_DRAW_PRESET,
    DEFAULT_ROWS,
    DRAW_PRESETS,
    FIGURE_COLUMNS,
    FIGURE_LEAK,
    FIGURE_SCALES,
    MOST_VIDEOS_SHOWN,
    NEIGHBOURS_SHOWN,
    PRESETS,
    SHEET_SUFFIXES,
    ChannelView,
    DecodeLimits,
    DrawOptions,
    ExtractOptions,
    FrameOptions,
    Octave,
)


@click.group()
def visualize() -> None:
    """Pictures of what the networks see."""


@visualize.command()
@click.argument("file", type=PATH, default="features.h5", metavar="[features.h5]")
@click.option("-o", "--output", type=PATH, metavar="PAGE.html", help="The page.  [default: beside the file]")
@click.option("--overwrite", is_flag=True, help="Also replace a file that tvnet did not make.")
@click.option(
    "--videos", type=PATH, multiple=True, metavar="DIR", help="Where the films lie, for thumbnails; repeatable."
)
@click.option("--labels", type=PATH, metavar="TABLE.csv", help="Columns video_id,label: colours.  [default: by folder]")
@click.option("--layer", "layers", multiple=True, help="Such as flow/global_pool; repeatable.  [default: all]")
@click.option(
    "--neighbours", type=click.IntRange(1, 100), default=NEIGHBOURS_SHOWN, show_default=True, help="Shown of a video."
)
@click.option(
    "--max-videos",
    type=click.IntRange(2),
    default=MOST_VIDEOS_SHOWN,
    show_default=True,
    help="Of more, so many are shown, evenly spaced by name.",
)
@with_decode_limits
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def features(
    file: Path,
    output: Path | None,
    overwrite: bool,
    videos: tuple[Path, ...],
    labels: Path | None,
    layers: tuple[str, ...],
    neighbours: int,
    max_videos: int,
    quiet: bool,
    verbose: int,
    limits: DecodeLimits,
) -> None:
    """Show a feature file as one page: a map of the videos, and what is most similar to each.

    The page needs no other file and no network. It holds a map of the videos by PCA and by t-SNE, the nearest
    neighbours of each, and the similarities of all, for every layer.
    """
    output = output or file.with_suffix(".html")
    ours = output.exists() and file.exists() and output.samefile(file)
    check_writable(output, ".html", ".htm", overwrite=overwrite or ours)
    if ours:
        raise click.UsageError(f"{output} is the feature file: choose another output")

    from tvnet_cli.aslan.progress import StageProgress
    from tvnet_cli.visualize.feature_page import feature_page
    from tvnet_cli.writing import write_whole

    with StageProgress(quiet) as progress:
        page = feature_page(
            file,
            layers=layers,
            labels=labels,
            films=videos,
            num_neighbours=neighbours,
            max_videos=max_videos,
            progress=progress,
            limits=limits,
        )
        progress.notes(page.notes)
    write_whole(output, page.html.encode("utf-8", "backslashreplace"))
    if not quiet:
        size = output.stat().st_size / 2**20
        click.echo(f"{page.num_videos} videos, {page.num_layers} layers: {output}, {size:.1f} MB", err=True)


def _parse_octaves(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[Octave, ...] | None:
    """Each as STEPS[xSCALE]:BLUR[-BLUR]:RATE[-RATE]."""
    number = r"(\d+(?:\.\d+)?)"
    octaves = []
    for text in texts:
        match = re.fullmatch(rf"(\d+)(?:x{number})?:{number}(?:-{number})?:{number}(?:-{number})?", text)
        if not match:
            raise click.BadParameter(
                f"{text!r} is no octave: STEPS[xSCALE]:BLUR[-END]:RATE[-END], as 450x1.2:0.9-0.4:6-3"
            )
        blur, rate = ((float(match[start]), float(match[start + 1] or match[start])) for start in (3, 5))
        try:
            octaves.append(Octave(steps=int(match[1]), scale=float(match[2] or 1), blur=blur, rate=rate))
        except ValueError as error:
            raise click.BadParameter(f"{text}: {error}") from None
    return tuple(octaves) or None


def _draw_options(preset: str, given: dict[str, Any]) -> DrawOptions:
    """The numbers of a preset, and those that were given."""
    try:
        return dataclasses.replace(
            DRAW_PRESETS[preset], **{name: value for name, value in given.items() if value is not None}
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None


_PRESET = click.option(
    "--preset",
    type=click.Choice(list(DRAW_PRESETS)),
    default=DEFAULT_DRAW_PRESET,
    show_default=True,
    help="Of the gradient ascent: "
    + ", ".join(f"{name} {options.num_steps} steps" for name, options in DRAW_PRESETS.items())
    + ".",
)
_LEAK = click.option("--leak", type=float, help="Share of the gradient that passes a shut ReLU.  [default: of preset]")
_SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of noise and crops.")
_COMMON_OPTIONS = [
    click.option("--overwrite", is_flag=True, help="Also replace files that tvnet did not make."),
    DEVICE,
    click.option("-q", "--quiet", is_flag=True, help="Say only what failed."),
    click.option("-v", "--verbose", count=True, help="-vv shows tracebacks."),
]


@visualize.command()
@click.option("--layer", "name", required=True, help="fc, global_pool, inception_5b_output and others before it.")
@click.option(
    "--unit", "words", multiple=True, required=True, metavar="N|N-M|CLASS", help="Number, range or class; repeatable."
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=PATH,
    help="Picture (.png, .svg, .pdf), film (.mp4), or folder of both for each unit; repeatable.  [default: LAYER.png]",
)
@click.option(
    "--weights",
    help="A name in tvnet weights list or a .safetensors file.  [default: those of flow that come with the program]",
    shell_complete=complete_weights("untrained"),
)
@_PRESET
@click.option(
    "--octave",
    "octaves",
    multiple=True,
    callback=_parse_octaves,
    metavar="STEPS[xSCALE]:BLUR[-END]:RATE[-END]",
    help="In place of those of the preset, repeatable: steps, growth of the canvas before them, sigma of the blur in "
    "pixels, grey levels a step.  [coherent: " + ", ".join(map(str, DRAW_PRESETS["coherent"].octaves)) + "]",
)
@_LEAK
@click.option("--background", type=float, help="Grey level to begin with.  [default: flow 128, no motion; RGB 200]")
@_SEED
@click.option(
    "--channels",
    "view",
    type=click.Choice(CHANNEL_VIEWS),
    default="mean",
    show_default=True,
    help="The mean of all channels; the means of x and of y beside it; or each channel as well.",
)
@with_options(_COMMON_OPTIONS)
@with_clear_errors
def deepdraw(
    name: str,
    words: tuple[str, ...],
    outputs: tuple[Path, ...],
    weights: str | None,
    preset: str,
    view: ChannelView,
    overwrite: bool,
    device: str,
    quiet: bool,
    verbose: int,
    **numbers: Any,
) -> None:
    """Draw what a unit answers to most, by gradient ascent from noise (DeepDraw).

    The picture is the mean over the channels in grey, 128 where it asks for no motion; the film moves a texture as the
    five flow fields ask, beside their colours. Several units are drawn side by side on all cores, or as one batch on a
    GPU. Exit code 1 if a unit is dead, without any gradient; the others are drawn.
    """
    options = _draw_options(preset, numbers)
    outputs = outputs or (Path(f"{name.replace('/', '_')}.png"),)
    for path in outputs:
        if path.suffix and not path.is_dir():
            check_writable(path, *SHEET_SUFFIXES, ".mp4", overwrite=overwrite)

    from tvnet_cli.device import choose_device
    from tvnet_cli.network.weights import load_model
    from tvnet_cli.progress import DrawingProgress
    from tvnet_cli.visualize.deepdraw import draw_units
    from tvnet_cli.visualize.drawings import check_outputs, write_drawings
    from tvnet_cli.visualize.units import NetworkLayer

    chosen = choose_device(device)
    layer = NetworkLayer(load_model(weights), name, options.leak, chosen)
    units = layer.find(words)
    check_outputs(outputs, layer, units, overwrite=overwrite)
    with DrawingProgress(len(units) * options.num_steps, quiet) as progress:
        drawings = draw_units(layer, units, layer.space(options), options, chosen, progress.step)
        write_drawings(outputs, layer, drawings, view)
    progress.close(outputs)


_FILM = click.argument("film", type=PATH, metavar="FILM | FOLDER")


@visualize.command()
@_FILM
@click.option("-o", "--output", type=PATH, help=".png, .svg or .pdf.  [default: FILM.figure.png]")
@click.option("--at", "times", multiple=True, type=float, metavar="SECONDS", help="A moment to show; repeatable.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=DEFAULT_ROWS,
    show_default=True,
    help="Without --at: parts of the film, of each of which the liveliest moment is shown.",
)
@click.option(
    "--columns",
    default=",".join(FIGURE_COLUMNS),
    show_default=True,
    help="Some of these in any order; other layers of the network are drawn as global_pool is.",
)
@click.option(
    "--weights",
    help="Of flow: a name in tvnet weights list or a .safetensors file.  [default: those that come with the program]",
    shell_complete=complete_weights("untrained"),
)
@_PRESET
@click.option(
    "--leak",
    type=float,
    help=f"Share of the gradient that passes a shut ReLU, as a moment may excite units that have none on noise.  "
    f"[default: {FIGURE_LEAK}]",
)
@_SEED
@with_decode_limits
@with_options(_COMMON_OPTIONS)
@with_clear_errors
def figure(
    film: Path,
    output: Path | None,
    times: tuple[float, ...],
    rows: int,
    columns: str,
    weights: str | None,
    preset: str,
    leak: float | None,
    overwrite: bool,
    device: str,
    quiet: bool,
    verbose: int,
    limits: DecodeLimits,
    **numbers: Any,
) -> None:
    """Show what TVNet sees in a film, as Figure 2 of its supplement does.

    A row for each moment: the frame, its flow by TV-L1 and by TVNet before and after training in the colours of
    MPI-Sintel, one scale a row; and what the unit of global_pool and the class that the moment excites most ask for,
    drawn by gradient ascent, with all the contrast that there is room for. The dashed square is what the network sees.
    """
    options = _draw_options(preset, numbers | {"leak": FIGURE_LEAK if leak is None else leak})
    output = output or _beside(film, "figure")
    check_writable(output, *SHEET_SUFFIXES, overwrite=overwrite)

    from tvnet_cli.device import choose_device
    from tvnet_cli.network.weights import load_model
    from tvnet_cli.progress import DrawingProgress
    from tvnet_cli.video.reader import Decoders
    from tvnet_cli.video.sequence import open_sequence
    from tvnet_cli.visualize.figures import FilmFigure
    from tvnet_cli.visualize.moments import liveliest_moments, moments_at
    from tvnet_cli.visualize.sheet import write_sheet

    plan = FilmFigure(load_model(weights), columns.split(","), options, choose_device(device))
    reader = click.get_current_context().with_resource(Decoders(limits))
    sequence = open_sequence([film], FrameOptions(short_side=ExtractOptions.short_side), reader)
    moments = moments_at(sequence, times) if times else liveliest_moments(sequence, rows)
    units = plan.most_active(moments)
    with DrawingProgress(plan.num_steps(units), quiet) as progress:
        sheet = plan.rows(moments, units, progress.step)
    write_sheet(output, sheet, plan.titles)
    if not times and len(moments) < rows:
        progress.note(f"{len(moments)} of {rows} rows: the film has no more parts in which something moves")
    progress.close([output])


@visualize.command()
@_FILM
@click.option("-o", "--output", type=PATH, help=".png, .svg or .pdf.  [default: FILM.scales.png]")
@click.option("--at", "time", type=float, metavar="SECONDS", help="The moment to show.  [default: the liveliest]")
@click.option("--short-side", type=int, metavar="PIXELS", help="Resize frames to this short side.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Schedule of TV-L1.  [default: tv-l1]")
@click.option("--scales", "num_scales", type=int, help="Levels of the pyramid at most.  [default: 3, as in the paper]")
@click.option("--zoom-factor", type=float, help="Size of a level relative to the next finer one.  [default: 0.5]")
@click.option(
    "--weights",
    help="Trained kernels with their schedule: a name in tvnet weights list or a .safetensors file.",
    shell_complete=complete_weights(),
)
@with_decode_limits
@with_options(_COMMON_OPTIONS)
@with_clear_errors
def scales(
    film: Path,
    output: Path | None,
    time: float | None,
    short_side: int | None,
    preset: str | None,
    weights: str | None,
    overwrite: bool,
    device: str,
    quiet: bool,
    verbose: int,
    limits: DecodeLimits,
    **numbers: Any,
) -> None:
    """Show the flow of every scale of the pyramid, coarse to fine, as Figure 1 of the supplement of TVNet does.

    A pair of frames, and its flow in the colours of MPI-Sintel, all scales in those of the finest.
    """
    given = {name: value for name, value in numbers.items() if value is not None}
    if weights is not None and (preset or given):
        raise click.UsageError("--weights bring the schedule that they were trained with: leave out its numbers")
    schedule = read_schedule(preset or "tv-l1", FIGURE_SCALES | given)
    output = output or _beside(film, "scales")
    check_writable(output, *SHEET_SUFFIXES, overwrite=overwrite)
    try:
        frames = FrameOptions(short_side=short_side)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    from tvnet_cli.device import choose_device
    from tvnet_cli.network.weights import load_tvnet
    from tvnet_cli.video.reader import Decoders
    from tvnet_cli.video.sequence import open_sequence
    from tvnet_cli.visualize.figures import scale_rows
    from tvnet_cli.visualize.moments import liveliest_moments, moments_at
    from tvnet_cli.visualize.sheet import write_sheet

    tvnet, _ = load_tvnet(weights, schedule)
    reader = click.get_current_context().with_resource(Decoders(limits))
    sequence = open_sequence([film], frames, reader)
    (moment,) = liveliest_moments(sequence, 1) if time is None else moments_at(sequence, [time])
    write_sheet(output, scale_rows(moment, tvnet.to(choose_device(device))))
    if not quiet:
        click.echo(f"wrote {output}: the moment {moment.seconds:.2f} s", err=True)


def _beside(film: Path, what: str) -> Path:
    """A picture beside a film, named after it."""
    return film.resolve().with_suffix(f".{what}.png")
