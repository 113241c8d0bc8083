"""`tvnet visualize`."""

from __future__ import annotations

from pathlib import Path

import click

from tvnet_cli.commands.common import PATH, check_writable, with_clear_errors
from tvnet_cli.options import MOST_VIDEOS_SHOWN, NEIGHBOURS_SHOWN


@click.group()
def visualize() -> None:
    """Pictures of what the networks see."""


@visualize.command()
@click.argument("file", type=PATH, default="features.h5", metavar="[features.h5]")
@click.option("-o", "--output", type=PATH, metavar="PAGE.html", help="The page.  [default: beside the file]")
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
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def features(
    file: Path,
    output: Path | None,
    videos: tuple[Path, ...],
    labels: Path | None,
    layers: tuple[str, ...],
    neighbours: int,
    max_videos: int,
    quiet: bool,
    verbose: int,
) -> None:
    """Show a feature file as one page: a map of the videos, and what is most similar to each.

    The page needs no other file and no network. It holds a map of the videos by PCA and by t-SNE, the nearest
    neighbours of each, and the similarities of all, for every layer.
    """
    output = output or file.with_suffix(".html")
    check_writable(output, ".html", ".htm")

    from tvnet_cli.aslan.progress import StageProgress
    from tvnet_cli.visualize.feature_page import feature_page

    with StageProgress(quiet) as progress:
        page = feature_page(
            file,
            layers=layers,
            labels=labels,
            films=videos,
            num_neighbours=neighbours,
            max_videos=max_videos,
            progress=progress,
        )
        progress.notes(page.notes)
    output.write_bytes(page.html.encode("utf-8", "backslashreplace"))
    if not quiet:
        size = output.stat().st_size / 2**20
        click.echo(f"{page.num_videos} videos, {page.num_layers} layers: {output}, {size:.1f} MB", err=True)
