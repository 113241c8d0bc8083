"""`tvnet weights`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from tvnet_cli.commands.common import FAILED, PATH, complete_weights, with_clear_errors, with_options
from tvnet_cli.errors import TVNetError, WeightsError, printable
from tvnet_cli.options import (
    BN_STATISTICS,
    INPUT_CONVENTIONS,
    STREAMS,
    ImportOptions,
)


@click.group()
def weights() -> None:
    """List, import, download and check trained weights.

    What is imported or downloaded lies in the user's cache, or in the folder that TVNET_CACHE names.
    """


_VERBOSE = click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Say only what failed.")
_IMPORT_OPTIONS = [
    click.option(
        "--stream", type=click.Choice(STREAMS), help="What the network is to see.  [default: by its channels]"
    ),
    click.option("--input", type=click.Choice(INPUT_CONVENTIONS), help="Means of RGB frames.  [default: by the file]"),
    click.option("--head", metavar="NAME|none", help="The classifier to keep.  [default: the only one]"),
    click.option(
        "--bn-statistics",
        type=click.Choice(BN_STATISTICS),
        help="What batch normalisations hold in Caffe files.  [default: by their values, where those tell]",
    ),
    click.option("--ignore-unused", is_flag=True, help="Leave out tensors that the network has no place for."),
    click.option("--allow-pickle", is_flag=True, help="Run code from a PyTorch file that holds more than tensors."),
    click.option("--source", help="Where it comes from, for the card."),
    click.option("--licence", help="For the card."),
    click.option("--training-data", help="For the card."),
    click.option("--overwrite", is_flag=True, help="Replace weights of the same name."),
]


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
@_VERBOSE
@with_clear_errors
def list_weights(as_json: bool, verbose: int) -> None:
    """List the weights that are here, and published ones that may be had."""
    from tvnet_cli.network.cards import list_cards
    from tvnet_cli.network.registry import PUBLISHED

    entries = list_cards()
    here = {entry["name"] for entry in entries}
    entries += [published.summary() for name, published in PUBLISHED.items() if name not in here]
    if as_json:
        click.echo(json.dumps(entries, default=str))
        return
    names = [printable(entry["name"]) for entry in entries]
    width = max(map(len, names))
    for name, entry in zip(names, entries, strict=True):
        text = printable("; ".join(filter(None, (entry["source"], entry.get("note")))))
        click.echo(f"{name:{width}}  {entry['stream']:4}  {entry['state']:9}  {text}")


@weights.command("show")
@click.argument("name", shell_complete=complete_weights(published=True))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@_VERBOSE
@with_clear_errors
def show_weights(name: str, as_json: bool, verbose: int) -> None:
    """Show the card of weights, or what is known of published ones."""
    from tvnet_cli.network.cards import as_toml, card_table, find_weights, known_weights, read_card
    from tvnet_cli.network.registry import PUBLISHED

    if name in PUBLISHED and name not in known_weights():
        table = PUBLISHED[name].summary()
    else:
        table = card_table(read_card(find_weights(name).with_suffix(".toml")))
    click.echo(json.dumps(table, default=str) if as_json else as_toml(table).rstrip("\n"))


@weights.command("import")
@click.argument("file", type=PATH)
@click.option("--name", required=True, help="By which --weights finds them from then on.")
@with_options(_IMPORT_OPTIONS)
@_QUIET
@_VERBOSE
@with_clear_errors
def import_weights(file: Path, name: str, overwrite: bool, quiet: bool, verbose: int, **options: Any) -> None:
    """Make weights from a published BN-Inception checkpoint.

    FILE is of tsn-pytorch, Cadene, mmaction, SSN, TBN, EPIC Kitchens, TSM or caffe2pytorch-tsn, a .caffemodel of TSN,
    or a .safetensors file without a card. Every tensor of the network has to be in it; what is decided is said.
    """
    from tvnet_cli.network import convert
    from tvnet_cli.network.registry import PUBLISHED
    from tvnet_cli.progress import DownloadProgress

    imported = convert.import_weights(file, name, ImportOptions(**options), overwrite=overwrite)
    notes = [*imported.notes]
    if name in PUBLISHED:
        notes.append(f"{name} is also the name of published weights; this file was not compared with theirs")
    DownloadProgress(name, quiet).close(imported.path, notes)


@weights.command("fetch")
@click.argument("published", metavar="NAME", shell_complete=complete_weights(here=False, published=True))
@click.option("--url", "mirrors", multiple=True, help="A mirror to try first; repeatable.")
@click.option("--trust", is_flag=True, help="Also take a file whose full sha256 is not known.")
@click.option("--offline", is_flag=True, help="Download nothing; TVNET_OFFLINE=1 says the same.")
@click.option("--name", help="By which --weights finds them from then on.  [default: NAME]")
@with_options(_IMPORT_OPTIONS)
@_QUIET
@_VERBOSE
@with_clear_errors
def fetch_weights(
    published: str,
    mirrors: tuple[str, ...],
    trust: bool,
    offline: bool,
    name: str | None,
    overwrite: bool,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Download published weights and import them.

    NAME is one that tvnet weights list calls fetchable. A download that was cut goes on where it was. The files are
    others' work under their own terms.
    """
    from tvnet_cli.network import convert
    from tvnet_cli.network.fetch import fetch_published
    from tvnet_cli.network.registry import PUBLISHED
    from tvnet_cli.progress import DownloadProgress

    if published in PUBLISHED:
        convert.import_path(name or published, overwrite)  # what is taken shows before the download
    with DownloadProgress(name or published, quiet) as progress:
        file = fetch_published(published, mirrors=mirrors, trust=trust, offline=offline, progress=progress.show)
    said = PUBLISHED[published]
    for text in ("source", "licence", "training_data"):
        options[text] = options[text] or getattr(said, text)
    imported = convert.import_weights(file, name or published, ImportOptions(**options), overwrite=overwrite)
    progress.close(imported.path, imported.notes)


@weights.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_weights())
@_QUIET
@_VERBOSE
@with_clear_errors
def verify_weights(names: tuple[str, ...], quiet: bool, verbose: int) -> None:
    """Check weights: their hash, their card and every tensor.

    Without a NAME all that are here. Exit code 1 if one is not as it should be.
    """
    from tvnet_cli.network.cards import find_weights, known_weights
    from tvnet_cli.network.weights import check_weights

    bad = 0
    for name in names or known_weights():
        try:
            card = check_weights(find_weights(name))
        except TVNetError as error:
            bad += 1
            click.echo(f"bad   {printable(name)}: {printable(str(error))}", err=True)
        else:
            if not quiet:
                click.echo(f"good  {printable(name)}: {card.stream}, sha256 {card.sha256}")
    if bad:
        sys.exit(FAILED)


@weights.command("path")
@click.argument("name", required=False, shell_complete=complete_weights())
@_VERBOSE
@with_clear_errors
def weights_path(name: str | None, verbose: int) -> None:
    """Print where weights lie; without a NAME, the folder of imported ones."""
    from tvnet_cli.network.cards import find_weights, imported_folder

    path = find_weights(name) if name else imported_folder()
    if name and not path.exists():
        raise WeightsError(f"there is no file {path}")
    click.echo(path)
