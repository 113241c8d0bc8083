"""`tvnet verify`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import click

from tvnet_cli.commands.common import FAILED, PATH, with_clear_errors
from tvnet_cli.errors import TVNetError, printable


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FEATURES.h5...")
@click.option("--repair", is_flag=True, help="Put a damaged file aside, and its good rows in its place.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a file on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what is damaged.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def verify(files: tuple[Path, ...], repair: bool, as_json: bool, quiet: bool, verbose: int) -> None:
    """Check that feature files are what was written.

    Every row is held against its checksum, and so are the recipe, the list of software and the failures; values, types
    and lengths are looked at, and finished videos that wait in FEATURES.h5.parts too. What you added to a file is
    neither checked nor in the way. A file that cannot be opened now, such as one that another program is writing, is
    not called damaged and never moved. Exit code 1 if something is damaged or cannot be read.
    """
    from tvnet_cli.aslan.progress import StageProgress
    from tvnet_cli.features.verify import repair_features, verify_features

    all_good = True
    for path in files:
        try:
            with StageProgress(quiet) as progress:
                check = repair_features if repair else verify_features
                found = check(path, partial(progress, f"checking {path}"))
        except (TVNetError, OSError) as error:
            all_good = False
            bad = {"path": str(path), "good": False, "problems": [str(error)]}
            click.echo(json.dumps(bad) if as_json else printable(str(error)))
            continue
        all_good &= found.good or repair
        if as_json:
            click.echo(json.dumps(found.summary()))
        elif not (quiet and found.good):
            click.echo("\n".join(map(printable, found.lines())))
    if not all_good:
        sys.exit(FAILED)
