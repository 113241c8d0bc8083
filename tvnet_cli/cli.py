"""The command line: options in, one call, text out."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from tvnet_cli import __version__
from tvnet_cli.errors import TVNetError
from tvnet_cli.options import DEFAULT_BATCH_SIZE, DEFAULT_JOBS, STREAMS, ExtractOptions, Stream
from tvnet_cli.video.files import find_videos

PATH = click.Path(path_type=Path)
FAILED, INTERRUPTED = 1, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tvnet")
def main() -> None:
    """Motion features and optical flow from videos, with TVNet."""


def with_clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Errors as one line and exit code 1, Ctrl-C as exit code 130; tracebacks only with -vv."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        try:
            command(**arguments)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            if arguments["verbose"] >= 2:
                traceback.print_exc()
            click.echo(f"Error: {_one_line(error)}", err=True)
            sys.exit(FAILED)

    return wrapped


@main.command()
@click.argument("paths", nargs=-1, type=PATH, metavar="DIR|FILE...")
@click.option("--from-file", type=click.File("rb"), help="Also read paths from this list, one a line; - is stdin.")
@click.option("-o", "--output", type=PATH, default="features.h5", show_default=True, help="The HDF5 feature file.")
@click.option("--weights", multiple=True, help="Shipped weights, a .safetensors file, or 'untrained'; one a stream.")
@click.option("--streams", default=",".join(ExtractOptions.streams), show_default=True, help="flow, rgb or flow,rgb.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:i].")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Clips whose flow is computed at once.  [default: {cpu}, GPU {cuda}]".format(**DEFAULT_BATCH_SIZE),
)
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=DEFAULT_JOBS, show_default=True, help="Videos decoded at once."
)
@click.option("--overwrite", is_flag=True, help="Drop what the output file holds and start anew.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a video on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what failed.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks.")
@with_clear_errors
def features(
    paths: tuple[Path, ...],
    from_file: Any,
    output: Path,
    weights: tuple[str, ...],
    streams: str,
    device: str,
    batch_size: int | None,
    jobs: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Extract motion features from videos into one HDF5 file.

    Folders are searched for videos at any depth. Each video gives 25 clips, TVNet-50 flow and BN-Inception
    features, averaged over the clips and L2-normalised. A run that was stopped goes on where it was; --batch-size
    and -j change speed and memory, not results.
    """
    paths += tuple(_listed_paths(from_file)) if from_file else ()
    if not paths:
        raise click.UsageError("give folders or video files, or --from-file LIST")
    wanted = _parse_streams(streams)

    videos = find_videos(paths)

    # From here on torch is needed; --help answers without it.
    from tvnet_cli.features.extract import choose_device, extract_features
    from tvnet_cli.network.weights import load_models
    from tvnet_cli.progress import VideoProgress

    chosen = choose_device(device)
    models = load_models(weights, wanted)
    interrupted = False
    with VideoProgress(len(videos), quiet, verbose) as progress:
        for model in models.values():
            progress.announce(model, chosen)
        results = extract_features(
            videos, output, models, device=chosen, batch_size=batch_size, jobs=jobs, overwrite=overwrite
        )
        try:
            with closing(results):
                for result in results:
                    progress.show(result)
                    if as_json:
                        click.echo(json.dumps(result.summary()))
        except KeyboardInterrupt:
            interrupted = True
    progress.close(output, interrupted)
    if interrupted or progress.failures:
        sys.exit(INTERRUPTED if interrupted else FAILED)


def _listed_paths(lines: Iterator[bytes]) -> Iterator[Path]:
    """Paths, one a line, as bytes of the file system; empty lines do not count."""
    for line in lines:
        name = line.rstrip(b"\r\n")
        if name:
            yield Path(os.fsdecode(name))


def _parse_streams(text: str) -> tuple[Stream, ...]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STREAMS]
    if unknown:
        raise click.BadParameter(f"no stream is called {unknown[0]!r}: flow, rgb or flow,rgb", param_hint="--streams")
    return tuple(stream for stream in STREAMS if stream in names)


def _one_line(error: Exception) -> str:
    if isinstance(error, TVNetError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (-vv shows where)"
