"""`tvnet features`."""

from __future__ import annotations

import json
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import click

from tvnet_cli.commands.common import (
    FAILED,
    INTERRUPTED,
    LOG_FILE,
    PATH,
    PathType,
    complete,
    complete_weights,
    with_clear_errors,
    with_decode_limits,
    with_log,
)
from tvnet_cli.errors import DatasetError, printable
from tvnet_cli.features.shards import Shard, parse_shard, shard_of_this_job
from tvnet_cli.interrupt import interruptible, nothing_begun
from tvnet_cli.log import EventLog
from tvnet_cli.options import (
    DEFAULT_BATCH_SIZE,
    DTYPES,
    STREAMS,
    DecodeLimits,
    DType,
    ExtractOptions,
    Stream,
)
from tvnet_cli.url import is_url
from tvnet_cli.video.files import find_sources


class _Place(PathType):
    """A path, or text that is an address."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and is_url(value) else super().convert(value, param, ctx)


PLACE = _Place(path_type=Path)


@click.command()
@click.argument("places", nargs=-1, type=PLACE, metavar="DIR|FILE|URL...")
@click.option("--from-file", type=click.File("rb"), help="Also read paths and URLs from this list; - is stdin.")
@click.option("-o", "--output", type=PATH, default="features.h5", show_default=True, help="The HDF5 feature file.")
@click.option(
    "--weights",
    multiple=True,
    help="A name in tvnet weights list, a .safetensors file, or 'untrained'; one a stream.",
    shell_complete=complete_weights("untrained"),
)
@click.option(
    "--streams",
    default=",".join(ExtractOptions.streams),
    show_default=True,
    help="flow, rgb or flow,rgb.",
    shell_complete=complete(*STREAMS, ",".join(STREAMS)),
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=ExtractOptions.dtype,
    show_default=True,
    help="What the networks compute in; bfloat16 is for machines with instructions for it.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda[:i], several such as cuda:0,cuda:1, or all: every GPU.",
    shell_complete=complete("auto", "cpu", "cuda", "all"),
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Clips whose flow is computed at once.  [default: {cpu}, GPU {cuda} or what fits]".format(
        **DEFAULT_BATCH_SIZE
    ),
)
@click.option("-j", "--jobs", type=click.IntRange(1), help="Videos at work at once.  [default: by the cores]")
@with_decode_limits
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Let the machines of a Ray cluster work: auto, or HOST:PORT of its head.",
    shell_complete=complete("auto"),
)
@click.option("--overwrite", is_flag=True, help="Drop what the output file holds and start anew.")
@click.option("--retry-failed", is_flag=True, help="Try videos again that failed in an earlier run.")
@click.option(
    "--recompute-changed",
    is_flag=True,
    help="Compute features again of videos that changed since their rows were made; otherwise these fail.",
)
@click.option("--wait", is_flag=True, help="Wait for another run that is writing the output file.")
@click.option(
    "--shard",
    "shard_name",
    metavar="I/N",
    help="Part I of N of the videos, into a file of its own; 0/1 is all of them.  [default: what SLURM_ARRAY_TASK_ID, "
    "or RANK and WORLD_SIZE, say]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done, about how long it takes and how large it is; write nothing.",
)
@LOG_FILE
@click.option("--json", "as_json", is_flag=True, help="One JSON object a video on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what failed.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks.")
@with_clear_errors
@with_log
def features(
    places: tuple[Path | str, ...],
    from_file: Any,
    output: Path,
    weights: tuple[str, ...],
    streams: str,
    dtype: DType,
    device: str,
    batch_size: int | None,
    jobs: int | None,
    limits: DecodeLimits,
    ray: str | None,
    overwrite: bool,
    retry_failed: bool,
    recompute_changed: bool,
    wait: bool,
    shard_name: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log: EventLog,
) -> None:
    """Extract motion features from videos into one HDF5 file.

    Folders are searched for videos at any depth. Each video gives 25 clips, TVNet-50 flow and BN-Inception
    features, averaged over the clips and L2-normalised. A run that was stopped goes on where it was; --batch-size
    and -j change speed and memory, not results.
    """
    places += tuple(_listed_places(from_file)) if from_file else ()
    if not places:
        raise click.UsageError("give folders or video files, or --from-file LIST")
    options = ExtractOptions(streams=_parse_streams(streams), dtype=dtype)

    videos = find_sources(places, note=lambda line: click.echo(f"note {printable(line)}", err=True))
    shard, said_by = _shard(shard_name)
    if said_by:
        whole, videos = len(videos), [video for video in videos if shard.holds(video.video_id)]
        output = shard.output(output)
        said = f"shard {shard} ({said_by}): {len(videos)} of {whole} videos, into {output}; --shard 0/1 takes all"
        click.echo(said, err=True)

    with nothing_begun():  # from here on torch is needed; --help answers without it
        from tvnet_cli.aslan.progress import StageProgress
        from tvnet_cli.device import choose_devices
        from tvnet_cli.features.extract import extract_features
        from tvnet_cli.features.extractor import Extractor, recipe
        from tvnet_cli.features.plan import plan_run
        from tvnet_cli.network.weights import load_models
        from tvnet_cli.progress import VideoProgress

    if ray and device not in ("auto", "cpu", "cuda"):
        raise click.BadParameter(f"with --ray it is auto, cpu or cuda, not {device}", param_hint="--device")
    try:
        devices = choose_devices("cpu" if ray else device)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error
    place = f"{device} of the Ray cluster" if ray else ",".join(map(str, devices))
    models = load_models(weights, options.streams)
    log.started(
        videos=len(videos),
        output=str(output),
        device=place,
        recipe=recipe(options, models, devices[0]),
    )
    if dry_run:
        extractor = Extractor(models, options, devices[0], batch_size=batch_size, limits=limits)
        with StageProgress(quiet) as stages:
            plan = plan_run(
                videos,
                output,
                extractor,
                devices=len(devices),
                jobs=jobs,
                overwrite=overwrite,
                retry_failed=retry_failed,
                recompute_changed=recompute_changed,
                progress=stages,
            )
        click.echo(json.dumps(plan.summary()) if as_json else plan)
        return
    interrupted = False
    with VideoProgress(len(videos), quiet, verbose) as progress, interruptible(hard=True) as stop:
        for model in models.values():
            progress.announce(model, place)
        results = extract_features(
            videos,
            output,
            models,
            device=device if ray else devices,
            ray=ray,
            batch_size=batch_size,
            jobs=jobs,
            overwrite=overwrite,
            retry_failed=retry_failed,
            recompute_changed=recompute_changed,
            wait=wait,
            options=options,
            limits=limits,
            stop=stop,
            note=progress.note,
            checking=progress.checking,
            packing=progress.packing,
        )
        try:
            with closing(results):
                for result in results:
                    progress.show(result)
                    log.video(result.summary())
                    if as_json:
                        click.echo(json.dumps(result.summary()))
            interrupted = stop.is_set()
        except KeyboardInterrupt:
            interrupted = True
    progress.close(output, interrupted)
    if interrupted or progress.failures:
        sys.exit(INTERRUPTED if interrupted else FAILED)


def _shard(name: str | None) -> tuple[Shard, str]:
    """Which videos are meant, and who said so; nobody did if it is all of them."""
    try:
        if name is not None:
            shard = parse_shard(name)
            return shard, "" if shard.count == 1 else "--shard"
        return shard_of_this_job(os.environ) or (Shard(0, 1), "")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shard") from None


def _listed_places(lines: BinaryIO) -> Iterator[Path | str]:
    """Paths as bytes of the file system, and addresses, one a line; blank lines and a mark of UTF-8 do not count."""
    for number, line in enumerate(lines, 1):
        if b"\0" in line:
            raise DatasetError(
                f"line {number} of {lines.name} holds a NUL byte, which no path does: a list is text, UTF-8 as a rule, "
                "with one path a line"
            )
        name = os.fsdecode(line.removeprefix(BOM_UTF8 if number == 1 else b"").rstrip(b"\r\n"))
        if name.strip():
            yield name if is_url(name) else Path(name)


def _parse_streams(text: str) -> tuple[Stream, ...]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STREAMS]
    if unknown:
        raise click.BadParameter(f"no stream is called {unknown[0]!r}: flow, rgb or flow,rgb", param_hint="--streams")
    return tuple(stream for stream in STREAMS if stream in names)
