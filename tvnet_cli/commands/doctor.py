"""`tvnet doctor`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from tvnet_cli.commands.common import FAILED, PATH, with_clear_errors


@click.command()
@click.argument("folder", type=PATH, default=".", metavar="[FOLDER]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def doctor(folder: Path, as_json: bool, verbose: int) -> None:
    """Check that everything works here; its report belongs into a report of an error.

    Versions, machine, GPU, decoders, weights, writing in FOLDER (the current one if none is given) and in the cache,
    and the flow solver against its reference. Exit code 1 if something that is needed does not work. The report holds
    paths, with ~ for the home folder, and nothing else of yours.
    """
    from tvnet_cli.doctor import as_text, examine, summary

    findings = []
    for finding in examine(folder, tracebacks=verbose >= 2):
        findings.append(finding)
        if not as_json:
            click.echo(as_text(finding))
    failed = any(finding.state == "failed" for finding in findings)
    if as_json:
        click.echo(json.dumps({"works": not failed, "checks": [dataclasses.asdict(one) for one in findings]}))
    else:
        click.echo(f"\n{summary(findings)}")
    if failed:
        sys.exit(FAILED)
