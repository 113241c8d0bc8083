"""`tvnet merge`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from tvnet_cli.commands.common import PATH, with_clear_errors


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FEATURES.h5...")
@click.option("-o", "--output", type=PATH, required=True, help="The HDF5 feature file to write.")
@click.option("--overwrite", is_flag=True, help="Write it even if it is there; it may be one of the files.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def merge(files: tuple[Path, ...], output: Path, overwrite: bool, quiet: bool, verbose: int) -> None:
    """Join feature files, such as those of tvnet features --shard, into one.

    The result is what one run over all the videos would have written. Every row is held against its checksum. Files
    that were made with other options or weights cannot be joined, nor can different rows of one video.
    """
    from tvnet_cli.aslan.progress import StageProgress
    from tvnet_cli.features.merge import merge_features

    with StageProgress(quiet) as progress:
        merged = merge_features(
            files,
            output,
            overwrite=overwrite,
            note=lambda line: progress.notes([line]),
            progress=partial(progress, f"writing {output}"),
        )
    if not quiet:
        click.echo(f"{len(merged.rows)} rows and {len(merged.failures)} failures in {output}", err=True)
