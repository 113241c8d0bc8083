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
from tvnet_cli.errors import DatasetError, TVNetError
from tvnet_cli.options import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_JOBS,
    NEGATIVES,
    PAIR_MODELS,
    PRESETS,
    SCALES,
    SOLVERS,
    STREAMS,
    EvalOptions,
    ExtractOptions,
    Stream,
)
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


@main.command("aslan-eval")
@click.argument("features", nargs=-1, type=PATH, metavar="[FEATURES]...")
@click.option("--pairs", type=PATH, help="View2.mat, view2.txt or a CSV.  [default: the first two, where they are]")
@click.option("--test-pairs", type=PATH, help="Test pairs of View 1; --pairs are then its training pairs.")
@click.option("-o", "--output", type=PATH, help="Folder for the report: page, ROC curve, decision values, JSON.")
@click.option("--feature", "names", multiple=True, help="A feature type to use, such as flow/global_pool; repeatable.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="tvnet", show_default=True, help="Whose recipe.")
@click.option("--model", type=click.Choice(PAIR_MODELS), help="12 measures, or one-shot similarity.  [default: svm]")
@click.option("--measures", help="Numbers of the measures to use, such as 1,5,9.  [default: all 12]")
@click.option("--scale", type=click.Choice(SCALES), help="Of the numbers of a pair.  [default: of the preset]")
@click.option("--solver", type=click.Choice(SOLVERS), help="liblinear: faster, another loss.  [default: libsvm]")
@click.option("--C", "penalty", type=float, help=f"Weight of the loss of the SVM.  [default: {EvalOptions.C:g}]")
@click.option("--max-iterations", type=int, help="Of libsvm; -1: no limit.  [default: of the preset]")
@click.option("--eps", type=float, help="Added inside the logarithms of measure 10.  [default: 2^-52]")
@click.option("--negatives", type=click.Choice(NEGATIVES), help="Negative features.  [default: error]")
@click.option("--allow-missing", is_flag=True, help="Leave out pairs without features; the result is not comparable.")
@click.option("--per-measure", is_flag=True, help="Also print the result of each measure alone.")
@click.option("--videos", type=PATH, help="Folder of the films: the page of the report shows their middle frames.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=DEFAULT_JOBS, show_default=True, help="Threads.")
@click.option("--json", "as_json", is_flag=True, help="The result and its recipe as one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def aslan_eval(
    features: tuple[Path, ...],
    pairs: Path | None,
    test_pairs: Path | None,
    output: Path | None,
    names: tuple[str, ...],
    preset: str,
    allow_missing: bool,
    per_measure: bool,
    videos: Path | None,
    jobs: int,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **recipe: Any,
) -> None:
    """Evaluate features on the ASLAN benchmark: do two videos show the same action?

    FEATURES are files of tvnet features, or .npz, .npy, folders and .mat of others; features.h5 if none is given.
    Each pair of videos becomes 12 measures for each feature type; a linear SVM is trained on all splits but one,
    and tested on that.
    """
    options = _eval_options(preset, recipe)
    if videos and not output:
        raise click.UsageError("--videos is for the page of the report: give its folder with -o")

    from tvnet_cli.aslan import report as results
    from tvnet_cli.aslan.evaluate import evaluate, pairs_with_features
    from tvnet_cli.aslan.features import open_features
    from tvnet_cli.aslan.pairs import read_pairs
    from tvnet_cli.aslan.progress import StageProgress

    features, pairs = _found_here(features, pairs)
    # What can be wrong shows before the work.
    folder = results.make_folder(output) if output else None
    frames = results.MiddleFrames(videos) if videos else None
    splits = read_pairs(pairs, test_pairs)
    with StageProgress(quiet) as progress, open_features(features, splits, names) as types:
        complete = pairs_with_features(types, splits, allow_missing)
        progress.notes(complete.notes)
        evaluation = evaluate(types, complete, options, jobs=jobs, progress=progress)
        progress.notes(evaluation.notes)
        report = results.Report(
            evaluation,
            complete,
            results.recipe(types, complete, options, preset, [pairs, test_pairs] if test_pairs else [pairs]),
            (*complete.notes, *evaluation.notes),
            comparable=complete.official,
        )
    if folder:
        results.write_report(folder, report, frames)
    click.echo(json.dumps(results.as_json(report)) if as_json else results.as_text(report, per_measure))


def _eval_options(preset: str, given: dict[str, Any]) -> EvalOptions:
    """The options of a preset, and those that were given."""
    given = {**given, "C": given["penalty"]}
    del given["penalty"]
    try:
        if given["measures"] is not None:
            given["measures"] = tuple(int(number) for number in given["measures"].split(","))
        return EvalOptions(**(PRESETS[preset] | {name: value for name, value in given.items() if value is not None}))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _found_here(features: tuple[Path, ...], pairs: Path | None) -> tuple[tuple[Path, ...], Path]:
    """What was given, and else the files of the usual names in the current folder."""
    usual = {name: Path(name).exists() for name in ("features.h5", "View2.mat", "view2.txt")}
    missing = [] if features or usual["features.h5"] else ["no features.h5"]
    if not (pairs or usual["View2.mat"] or usual["view2.txt"]):
        missing.append("no View2.mat or view2.txt (--pairs FILE names another)")
    if missing:
        raise DatasetError(f"{' and '.join(missing)} in {Path.cwd()}")
    return features or (Path("features.h5"),), pairs or Path("View2.mat" if usual["View2.mat"] else "view2.txt")
