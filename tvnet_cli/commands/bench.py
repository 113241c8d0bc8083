"""`tvnet bench`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tvnet_cli.commands.common import PATH, check_writable, with_clear_errors
from tvnet_cli.options import (
    BENCH_SUBJECTS,
)


@click.command()
@click.argument("subject", type=click.Choice(BENCH_SUBJECTS), default="all", metavar=f"[{'|'.join(BENCH_SUBJECTS)}]")
@click.option("-o", "--output", type=PATH, metavar="PICTURE.svg", help="Also draw the ratios as bars.")
@click.option("--json", "json_file", type=PATH, metavar="FILE.json", help="Also write everything as JSON.")
@click.option("--overwrite", is_flag=True, help="Also replace files that tvnet did not make.")
@click.option("--pairs", type=PATH, metavar="DIR", help="Folders with frame10.png, frame11.png, flow10.flo for tv-l1.")
@click.option("--videos", type=click.IntRange(10), help="How many for scale, which is not one of all.  [default: 200]")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def bench(
    subject: str,
    output: Path | None,
    json_file: Path | None,
    overwrite: bool,
    pairs: Path | None,
    videos: int | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Measure how fast this machine runs tvnet, beside other programs.

    Every claim of speed is measured in turns with its peer, with the machine's own limits: a minute or two each, best
    when nothing else runs. pip install 'tvnet[bench]' brings the peers; what cannot be measured here is named. Exit
    code 0 whatever is measured.
    """
    if videos and subject != "scale":
        raise click.UsageError("--videos is for tvnet bench scale")
    for path, suffix in ((output, ".svg"), (json_file, ".json")):
        if path:
            check_writable(path, suffix, overwrite=overwrite)

    from tvnet_cli.aslan.progress import StageProgress
    from tvnet_cli.bench.pairs import read_pairs
    from tvnet_cli.bench.report import as_json, as_picture, as_table, as_text
    from tvnet_cli.bench.run import run_bench
    from tvnet_cli.bench.scale import NUM_VIDEOS
    from tvnet_cli.console import PrintableConsole
    from tvnet_cli.writing import MARK, require_replaceable, write_together

    known = read_pairs(pairs) if pairs else []
    with StageProgress(quiet) as progress:
        report = run_bench(subject, progress, known, num_videos=videos or NUM_VIDEOS)
    console = PrintableConsole(highlight=False)
    if console.is_terminal:
        console.print(as_table(report))
    else:
        click.echo(as_text(report))
    plain = {"generator": MARK, **as_json(report)}
    files = {json_file: json.dumps(plain, indent=1) + "\n"} if json_file else {}
    files |= {output: as_picture(report)} if output else {}
    for path in files:  # it took minutes
        require_replaceable(path, overwrite=overwrite)
    write_together({path: text.encode() for path, text in files.items()})
