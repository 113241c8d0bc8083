"""The command line: options in, one call, text out."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from tvnet_cli import __version__
from tvnet_cli.errors import DatasetError, OutputError, TVNetError, VideoReadError, WeightsError
from tvnet_cli.options import (
    ACTION_PRESETS,
    BATCH_NORMS,
    BENCH_SUBJECTS,
    BN_STATISTICS,
    DEFAULT_BATCH_SIZE,
    DEFAULT_JOBS,
    DEFAULT_PRESET,
    DTYPES,
    EVAL_PRESETS,
    FLOW_FORMATS,
    INPUT_CONVENTIONS,
    NEGATIVES,
    PAIR_MODELS,
    PRESETS,
    SAMPLERS,
    SCALES,
    SOLVERS,
    STREAMS,
    ActionOptions,
    DType,
    EvalOptions,
    ExtractOptions,
    FieldOptions,
    FlowFormat,
    FlowTrainingOptions,
    FrameOptions,
    ImportOptions,
    PretrainOptions,
    Stage,
    Stream,
    TVNetOptions,
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
        except OutputError as error:
            raise click.UsageError(str(error)) from error
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
@click.option(
    "--weights", multiple=True, help="A name in tvnet weights list, a .safetensors file, or 'untrained'; one a stream."
)
@click.option("--streams", default=",".join(ExtractOptions.streams), show_default=True, help="flow, rgb or flow,rgb.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=ExtractOptions.dtype,
    show_default=True,
    help="What the networks compute in; bfloat16 is for machines with instructions for it.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:i].")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Clips whose flow is computed at once.  [default: {cpu}, GPU {cuda} or what fits]".format(
        **DEFAULT_BATCH_SIZE
    ),
)
@click.option("-j", "--jobs", type=click.IntRange(1), help="Videos at work at once.  [default: by the cores]")
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
    dtype: DType,
    device: str,
    batch_size: int | None,
    jobs: int | None,
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
    options = ExtractOptions(streams=_parse_streams(streams), dtype=dtype)

    videos = find_videos(paths)

    # From here on torch is needed; --help answers without it.
    from tvnet_cli.device import choose_device
    from tvnet_cli.features.extract import extract_features
    from tvnet_cli.network.weights import load_models
    from tvnet_cli.progress import VideoProgress

    chosen = choose_device(device)
    models = load_models(weights, options.streams)
    interrupted = False
    with VideoProgress(len(videos), quiet, verbose) as progress:
        for model in models.values():
            progress.announce(model, chosen)
        results = extract_features(
            videos,
            output,
            models,
            device=chosen,
            batch_size=batch_size,
            jobs=jobs,
            overwrite=overwrite,
            options=options,
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


def _parse_size(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)x(\d+)", text or "")
    if text is not None and not match:
        raise click.BadParameter(f"{text!r} is no size: height x width, as in 240x320")
    return (int(match[1]), int(match[2])) if match else None


# The numbers of the solver, by their names in TVNetOptions; each replaces that of the preset.
_SOLVER_OPTIONS = [
    click.option("--scales", "num_scales", type=int, help="Levels of the pyramid at most."),
    click.option("--warps", "num_warps", type=int, help="Linearisations at each level."),
    click.option("--iterations", "num_iterations", type=int, help="Updates in each warp."),
    click.option("--zoom-factor", type=float, help="Size of a level relative to the next finer one."),
    click.option("--tau", type=float, help="Time step of the dual update."),
    click.option("--lambda", "lambda_", type=float, help="Weight of the data term: larger follows the pictures."),
    click.option("--theta", type=float, help="Coupling of the flow and its auxiliary field."),
    click.option("--sampler", type=click.Choice(SAMPLERS), help="How frames are read between pixels."),
    click.option("--presmoothing", metavar="SIGMA|authors", help="Smooth the frames first; 0 does not."),
    click.option("--antialias/--no-antialias", default=None, help="Average when frames are made smaller."),
    click.option("--coarsest-side", type=int, metavar="PIXELS", help="No level of the pyramid is smaller."),
    click.option("--ignore-outside/--no-ignore-outside", default=None, help="No data term outside the frame."),
    click.option("--median-size", type=int, metavar="PIXELS", help="Side of a median filter after each warp, or 0."),
    click.option("--edge-weight", type=float, help="How much cheaper the flow bends at edges of the frame."),
]
_FIELD_OPTIONS = {"backward": "backward", "occlusion": "occlusion", "show_scales": "scales"}


def _solver_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_SOLVER_OPTIONS):
        command = option(command)
    return command


@main.command()
@click.argument("paths", nargs=-1, type=PATH, required=True, metavar="FILM | IMAGE IMAGE... | FOLDER")
@click.option("-o", "--output", "outputs", multiple=True, type=PATH, help="File or folder; several are allowed.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(FLOW_FORMATS), help="Where the name of -o does not say it."
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help=f"Schedule of TV-L1.  [default: {DEFAULT_PRESET}]")
@_solver_options
@click.option(
    "--weights", help="Trained kernels with their schedule: a name in tvnet weights list or a .safetensors file."
)
@click.option("--start", type=float, metavar="SECONDS", help="Begin at this time.")
@click.option("--end", type=float, metavar="SECONDS", help="Stop before this time.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take each Nth frame only.")
@click.option("--fps", type=float, default=FrameOptions.fps, show_default=True, help="Rate of images as a film.")
@click.option("--short-side", type=int, metavar="PIXELS", help="Resize frames to this short side.")
@click.option("--size", metavar="HxW", callback=_parse_size, help="Resize frames to this height and width.")
@click.option("--backward", is_flag=True, help="Also compute the flow from the second frame to the first.")
@click.option("--occlusion", is_flag=True, help="Also mask the pixels that the second frame does not show.")
@click.option("--show-scales", is_flag=True, help="Also write the flow of every level of the pyramid.")
@click.option("--half", is_flag=True, help="Flow as float16 in .h5 and .npz.")
@click.option("--max-flow", type=click.FloatRange(0, min_open=True), metavar="PIXELS", help="Length in full colour.")
@click.option("--truth", type=PATH, help="True flow, .flo or KITTI .png, or a folder of them: print the error.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:i].")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Pairs computed at once.  [default: {cpu}, GPU {cuda}]".format(**DEFAULT_BATCH_SIZE),
)
@click.option("--overwrite", is_flag=True, help="Begin anew where .h5 files and folders would be gone on with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what failed.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks.")
@with_clear_errors
def flow(
    paths: tuple[Path, ...],
    outputs: tuple[Path, ...],
    formats: tuple[FlowFormat, ...],
    preset: str | None,
    weights: str | None,
    half: bool,
    max_flow: float | None,
    truth: Path | None,
    device: str,
    batch_size: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Compute optical flow, as data and as pictures.

    From each frame to the next, of a film, of images in the order given, or of a folder of images in natural order.
    The suffix of -o says what to write: .h5 .flo .npz .png (colours) .mp4 (frame and flow side by side); a folder needs
    --format flo, png or xy-jpg. Without -o a film gives .flow.h5 and .flow.mp4 beside it, two images give .flow.h5 and
    .flow.png, and --truth only prints. A run that was stopped goes on where it was in .h5 files and folders.
    """
    frames, fields, solver = _flow_options(options, preset, weights)

    # From here on torch is needed; --help answers without it.
    from tvnet_cli.device import choose_device
    from tvnet_cli.flow.colour import colour_scale
    from tvnet_cli.flow.compute import flow_recipe, sample_fields, write_flow
    from tvnet_cli.flow.outputs import check_kept, choose_targets, make_outputs
    from tvnet_cli.flow.truth import FlowErrors
    from tvnet_cli.network.weights import load_tvnet
    from tvnet_cli.progress import FlowProgress
    from tvnet_cli.video.sequence import open_sequence

    targets = choose_targets(paths, outputs, formats) if outputs or formats or truth is None else []
    check_kept(targets, fields)
    sequence = open_sequence(paths, frames)
    errors = FlowErrors(truth, sequence)
    chosen = choose_device(device)
    tvnet, sha256 = load_tvnet(weights, solver)
    tvnet.to(chosen)
    progress = FlowProgress(sequence, quiet)
    if verbose:
        progress.announce(tvnet, chosen)
    sampled = {}
    if max_flow is None and any(target.coloured for target in targets):
        progress.announce_sampling()
        sampled = sample_fields(sequence, tvnet, fields)
        max_flow = colour_scale([arrays["flow"] for arrays in sampled.values()])
    recipe = flow_recipe(sequence, frames, fields, tvnet, sha256, chosen)
    writing = make_outputs(targets, sequence, recipe, half=half, overwrite=overwrite, max_flow=max_flow)

    broken, interrupted = "", False
    with progress:
        batch_size = batch_size or DEFAULT_BATCH_SIZE[chosen.type]
        results = write_flow(
            sequence,
            tvnet,
            writing,
            fields,
            batch_size=batch_size,
            sampled=sampled,
            every_field=bool(errors.truths),
        )
        try:
            with closing(results):
                for field in results:
                    progress.show(field)
                    errors.add(field)
        except VideoReadError as error:
            broken = str(error)
        except KeyboardInterrupt:
            interrupted = True
    progress.close(targets, max_flow, interrupted)
    if as_json:
        click.echo(json.dumps({**progress.summary(targets, max_flow), **errors.means()}))
    elif errors.means():
        click.echo(errors)
    broken = broken or (f"{paths[0]}: {sequence.damage}" if sequence.damage else "")
    if broken:
        raise VideoReadError(f"{broken}; {progress.kept()}")
    if interrupted:
        sys.exit(INTERRUPTED)


def _flow_options(
    given: dict[str, Any], preset: str | None, weights: str | None
) -> tuple[FrameOptions, FieldOptions, TVNetOptions]:
    """The options of one command as those of its three parts: frames, fields, solver."""
    fields = FieldOptions(**{name: given.pop(option) for option, name in _FIELD_OPTIONS.items()})
    frames = {field.name: given.pop(field.name) for field in dataclasses.fields(FrameOptions)}
    numbers = {name: value for name, value in given.items() if value is not None}
    if weights is not None and (preset or numbers):
        raise click.UsageError(
            "--weights bring the schedule that they were trained with: leave out --preset and its numbers"
        )
    solver = _schedule(preset, numbers)
    try:
        return FrameOptions(**frames), fields, solver
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _schedule(preset: str | None, numbers: dict[str, Any]) -> TVNetOptions:
    """The numbers of a preset, and those that were given."""
    try:
        if numbers.get("presmoothing", "authors") != "authors":
            numbers["presmoothing"] = float(numbers["presmoothing"])
        return dataclasses.replace(PRESETS[preset or DEFAULT_PRESET], **numbers)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


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
@click.option(
    "--preset", type=click.Choice(list(EVAL_PRESETS)), default="tvnet", show_default=True, help="Whose recipe."
)
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
        return EvalOptions(
            **(EVAL_PRESETS[preset] | {name: value for name, value in given.items() if value is not None})
        )
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


def _check_writable(path: Path | None, suffix: str) -> None:
    """Before minutes of work, that a file can be written after it."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise click.UsageError(f"{path} should end in {suffix}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise click.UsageError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'no such folder'}")


@main.command()
@click.argument("subject", type=click.Choice(BENCH_SUBJECTS), default="all", metavar=f"[{'|'.join(BENCH_SUBJECTS)}]")
@click.option("-o", "--output", type=PATH, metavar="PICTURE.svg", help="Also draw the ratios as bars.")
@click.option("--json", "json_file", type=PATH, metavar="FILE.json", help="Also write everything as JSON.")
@click.option("--pairs", type=PATH, metavar="DIR", help="Folders with frame10.png, frame11.png, flow10.flo for tv-l1.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def bench(
    subject: str, output: Path | None, json_file: Path | None, pairs: Path | None, quiet: bool, verbose: int
) -> None:
    """Measure how fast this machine runs tvnet, beside other programs.

    Every claim of speed is measured in turns with its peer, with the machine's own limits: a minute or two each, best
    when nothing else runs. pip install 'tvnet[bench]' brings the peers; what cannot be measured here is named. Exit
    code 0 whatever is measured.
    """
    _check_writable(output, ".svg")
    _check_writable(json_file, ".json")

    from rich.console import Console

    from tvnet_cli.aslan.progress import StageProgress
    from tvnet_cli.bench.pairs import read_pairs
    from tvnet_cli.bench.report import as_json, as_picture, as_table, as_text
    from tvnet_cli.bench.run import run_bench

    known = read_pairs(pairs) if pairs else []
    with StageProgress(quiet) as progress:
        report = run_bench(subject, progress, known)
    if json_file:
        json_file.write_text(json.dumps(as_json(report), indent=1) + "\n", "utf-8")
    if output:
        output.write_text(as_picture(report), "utf-8")
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(as_table(report))
    else:
        click.echo(as_text(report))


@main.group()
def train() -> None:
    """Train TVNet and the network behind it."""


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Numbers with commas between them."""
    try:
        return None if text is None else tuple(float(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} are no numbers with commas between them") from None


def _whole_numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    numbers = _numbers(context, parameter, text)
    return None if numbers is None else tuple(round(number) for number in numbers)


def _action_option(flag: str, help_text: str, **arguments: Any) -> Callable[[Any], Any]:
    """An option for a field of ActionOptions, by default that of the preset, which the help names."""
    name = arguments.pop("name", flag.lstrip("-").partition("/")[0].replace("-", "_"))
    flow, rgb = (str(getattr(options, name)).strip("()") for options in ACTION_PRESETS.values())
    default = f"{flow}; rgb {rgb}" if flow != rgb else flow
    return click.option(flag, name, default=None, help=f"{help_text}  [default: {default}]", **arguments)


# Each replaces the number of the preset.
_ACTION_OPTIONS = [
    click.option("--stream", type=click.Choice(STREAMS), help="Flow by TVNet, or single frames.  [default: flow]"),
    _action_option("--size", "Side of what TVNet and the network see.", type=int, metavar="PIXELS"),
    click.option("--short-side", type=int, metavar="PIXELS", help="Of the frames.  [default: 256, or --size * 8/7]"),
    _action_option("--crop-scales", "Crops as shares of the short side.", callback=_numbers, metavar="SHARES"),
    _action_option("--flip/--no-flip", "Mirror half of the videos; not where left is not right."),
    _action_option("--segments", "Parts of a video that give a snippet each.", name="num_segments", type=int),
    _action_option("--iterations", "Steps of the optimiser.", name="num_iterations", type=int),
    _action_option("--batch-size", "Videos in a step, of all processes together.", type=int),
    _action_option("--learning-rate", "Of the weights of the network.", type=float),
    _action_option("--momentum", "Of the gradient descent.", type=float),
    _action_option("--weight-decay", "Of the weights of the network.", type=float),
    _action_option("--milestones", "From each on, rates fall to a tenth.", callback=_whole_numbers, metavar="STEPS"),
    _action_option("--bias-factor", "Learning rate of biases, as a multiple.", type=float),
    _action_option("--first-layer-factor", "Learning rate of the first convolution, as a multiple.", type=float),
    _action_option("--tvnet-learning-rate", "Of TVNet's kernels and start field.", type=float),
    _action_option("--flow-weight", "Of the flow loss.", type=float),
    _action_option("--clip-norm", "Largest norm of the gradient.", type=float),
    _action_option("--dropout", "Before the classifier.", type=float),
    click.option(
        "--bn",
        "batch_norm",
        type=click.Choice(BATCH_NORMS),
        help="Normalisations that learn: the first, all or none.  [default: partial with --weights, else full]",
    ),
    _action_option("--dtype", "What the network computes in; flow is float32.", type=click.Choice(DTYPES)),
    _action_option("--validation-clips", "Clips of a video in validation.", type=int),
    _action_option("--validate-every", "Validate so often, and at the end.", type=int, metavar="STEPS"),
    _action_option("--checkpoint-every", "Keep a checkpoint so often.", type=int, metavar="STEPS"),
    _action_option("--seed", "Of all that is drawn.", type=int),
]


def _action_command_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_ACTION_OPTIONS):
        command = option(command)
    return command


@train.command()
@click.argument("data", type=PATH)
@click.option("-o", "--output", type=PATH, default="actions", show_default=True, help="Folder of all that is written.")
@click.option("--splits", type=PATH, metavar="DIR", help="Folder of the official lists.  [default: in DATA]")
@click.option("--split", type=click.IntRange(1, 3), default=1, show_default=True, help="Which official split.")
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="Of each class, where DATA does not say.",
)
@click.option("--preset", type=click.Choice(list(ACTION_PRESETS)), help="Whose numbers.  [default: of the stream]")
@click.option("--weights", help="Weights to begin with; those of an RGB network serve flow too.")
@click.option("--tvnet", "schedule", type=click.Choice(list(PRESETS)), help=f"Solver.  [default: {DEFAULT_PRESET}]")
@click.option("--freeze-tvnet", is_flag=True, help="Leave TVNet as it is.")
@_action_command_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:i].")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Threads that read videos.  [default: one a core]")
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever the folder holds.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def actions(
    data: Path,
    output: Path,
    splits: Path | None,
    split: int,
    validation_share: float,
    preset: str | None,
    weights: str | None,
    schedule: str | None,
    freeze_tvnet: bool,
    device: str,
    jobs: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **numbers: Any,
) -> None:
    """Train TVNet and BN-Inception together to tell the actions in videos apart.

    DATA is a folder of UCF101 or HMDB51 with their official lists, a folder of one folder a class, or a .csv table
    with the columns video, label and split. The weights that it ends with serve tvnet features --weights. A run that
    was stopped goes on where it was; torchrun starts several processes for one training.
    """
    options = _read_action_options(preset, weights, freeze_tvnet, numbers)
    if options.stream == "rgb" and (schedule or freeze_tvnet):
        raise click.UsageError("the rgb stream has no TVNet: leave out --tvnet and --freeze-tvnet")

    # From here on torch is needed; --help answers without it.
    import torch

    from tvnet_cli.device import choose_device
    from tvnet_cli.network.bn_inception import check_size
    from tvnet_cli.progress import TrainingProgress
    from tvnet_cli.training.actions import train_actions, write_result
    from tvnet_cli.training.board import tensorboard
    from tvnet_cli.training.datasets import read_dataset
    from tvnet_cli.training.processes import process_group, rank_and_world

    try:
        check_size(options.size, options.size)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    chosen = choose_device(device)
    dataset = read_dataset(data, splits=splits, split=split, validation_share=validation_share, seed=options.seed)
    with process_group(chosen) as chosen:
        is_first = rank_and_world()[0] == 0
        board = tensorboard(output / "tensorboard") if is_first else None
        with TrainingProgress(options.num_iterations, quiet or not is_first) as progress:
            progress.announce(
                f"{options.stream} stream on {chosen}: {len(dataset.train)} videos of {len(dataset.classes)} classes, "
                f"{len(dataset.validation)} to validate with"
            )

            def report(step: int, values: dict[str, float]) -> None:
                progress.show(step, values)
                if board:
                    board(step, values)

            result = train_actions(
                dataset,
                output,
                options,
                schedule=PRESETS[schedule] if schedule else None,
                weights=weights,
                device=chosen,
                jobs=jobs or torch.get_num_threads(),
                overwrite=overwrite,
                report=report,
            )
        if result is None:
            progress.interrupted(output)
            sys.exit(INTERRUPTED)
        if is_first:
            write_result(output, data.resolve().name, dataset, result)
            click.echo(json.dumps(result.summary(output)) if as_json else result.headline(output))


def _read_action_options(
    preset: str | None, weights: str | None, freeze_tvnet: bool, given: dict[str, Any]
) -> ActionOptions:
    """The options of a preset, and those that were given."""
    numbers = {name: value for name, value in given.items() if value is not None}
    preset = preset or ("tsn-rgb" if numbers.get("stream") == "rgb" else "tsn-flow")
    if numbers.get("stream", ACTION_PRESETS[preset].stream) != ACTION_PRESETS[preset].stream:
        raise click.UsageError(f"the preset {preset} is not for the {numbers['stream']} stream")
    if freeze_tvnet and numbers.get("tvnet_learning_rate"):
        raise click.UsageError("--freeze-tvnet and --tvnet-learning-rate: give one")
    if freeze_tvnet:
        numbers["tvnet_learning_rate"] = 0.0
    if not weights:  # random weights have no statistics that could be frozen
        numbers.setdefault("batch_norm", "full")
    if "size" in numbers:
        numbers.setdefault("short_side", round(numbers["size"] * ActionOptions.short_side / ActionOptions.size))
    try:
        return dataclasses.replace(ACTION_PRESETS[preset], **numbers)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


_FLOW_RECIPE = FlowTrainingOptions()


@train.command("flow")
@click.argument("paths", nargs=-1, type=PATH, metavar="[PAIRS | VIDEOS]...")
@click.option("-o", "--output", type=PATH, default="flow-training", show_default=True, help="Folder of the results.")
@click.option("--validate", "validation", multiple=True, type=PATH, help="More pairs with known flow, to test on.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help=f"Schedule of TV-L1.  [default: {DEFAULT_PRESET}]")
@_solver_options
@click.option("--steps", type=int, default=_FLOW_RECIPE.steps, show_default=True, help="Updates.")
@click.option("--batch-size", type=int, default=_FLOW_RECIPE.batch_size, show_default=True, help="Pairs in each.")
@click.option("--crop", type=int, metavar="PIXELS", default=_FLOW_RECIPE.crop, show_default=True, help="Their sides.")
@click.option("--learning-rate", type=float, default=_FLOW_RECIPE.learning_rate, show_default=True, help="Of Adam.")
@click.option("--clip-norm", type=float, default=_FLOW_RECIPE.clip_norm, show_default=True, help="Longest gradient.")
@click.option(
    "--data-weight", type=float, default=_FLOW_RECIPE.data_weight, show_default=True, help="Of the flow loss."
)
@click.option("--train-u0/--freeze-u0", default=_FLOW_RECIPE.train_u0, show_default=True, help="Train the start field.")
@click.option(
    "--train-numbers/--freeze-numbers",
    default=_FLOW_RECIPE.train_numbers,
    show_default=True,
    help="Train tau, lambda and theta.",
)
@click.option("--mirror/--no-mirror", default=_FLOW_RECIPE.mirror, show_default=True, help="Mirror pairs at random.")
@click.option("--seed", type=int, default=_FLOW_RECIPE.seed, show_default=True, help="Of pairs, crops and mirrors.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:i].")
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever the folder holds.")
@click.option("--json", "as_json", is_flag=True, help="The results as one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def train_flow(
    paths: tuple[Path, ...],
    output: Path,
    validation: tuple[Path, ...],
    preset: str | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **given: Any,
) -> None:
    """Train the kernels of TVNet for optical flow.

    Without PAIRS or VIDEOS on pairs drawn for the purpose, endlessly. PAIRS are folders of frames with known flow, as
    FlyingChairs, Middlebury, MPI-Sintel and KITTI come. From VIDEOS it learns without known flow, by the flow loss.
    The results are weights for tvnet flow --weights, their errors beside those of the untrained solver on pairs
    that it did not see, and a picture. A run that was stopped goes on where it was.
    """
    recipe = {field.name: given.pop(field.name) for field in dataclasses.fields(_FLOW_RECIPE) if field.name in given}
    try:
        options = FlowTrainingOptions(**recipe)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    solver = _schedule(preset, {name: value for name, value in given.items() if value is not None})

    # From here on torch is needed; --help answers without it.
    from tvnet_cli.device import choose_device
    from tvnet_cli.progress import TrainingProgress
    from tvnet_cli.training import flow as training
    from tvnet_cli.training.pairs import find_named_pairs
    from tvnet_cli.training.sources import open_source

    tests = find_named_pairs(validation)
    source = open_source(paths, options.seed, options.crop)
    chosen = choose_device(device)
    with TrainingProgress(options.steps, quiet) as progress:
        progress.announce(f"kernels of TVNet on {chosen}: {source.name}")
        progress.notes(source.notes)
        tvnet = training.train_flow(
            output, source, solver, options, device=chosen, report=progress.show, overwrite=overwrite
        )
    if tvnet is None:
        progress.interrupted(output)
        sys.exit(INTERRUPTED)
    rows = training.compare(tvnet, solver, source, options, tests)
    training.write_result(output, tvnet, solver, source, options, rows, tests, chosen)
    result = {"weights": str(output / training.WEIGHTS), "comparisons": [dataclasses.asdict(row) for row in rows]}
    click.echo(json.dumps(result) if as_json else training.as_text(rows, output))


def _parse_stages(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[Stage, ...] | None:
    """Each as STEPSxBATCH@SIZE, with +flow behind it where TVNet is trained too."""
    stages = []
    for text in texts:
        match = re.fullmatch(r"(\d+)x(\d+)@(\d+)(\+flow)?", text)
        if not match:
            raise click.BadParameter(
                f"{text!r} is no stage: STEPSxBATCH@SIZE or STEPSxBATCH@SIZE+flow, as in 600x64@96"
            )
        steps, batch, size = (int(match[group]) for group in (1, 2, 3))
        try:
            stages.append(Stage(steps=steps, batch_size=batch, size=size, train_flow=bool(match[4])))
        except ValueError as error:
            raise click.BadParameter(f"{text}: {error}") from None
    return tuple(stages) or None


# The fields of PretrainOptions; those that are not given are as for the weights that come with the program.
_PRETRAIN_OPTIONS = [
    click.option("--seed", type=click.IntRange(0), help="Of the clips, and of the network before training."),
    click.option(
        "--stage",
        "stages",
        multiple=True,
        callback=_parse_stages,
        metavar="STEPSxBATCH@SIZE[+flow]",
        help="Steps, clips a step and pixels a side; +flow trains TVNet too. Once for each stage.",
    ),
    click.option("--learning-rate", type=float, help="Of the network."),
    click.option("--flow-learning-rate", type=float, help="Of TVNet."),
    click.option("--weight-decay", type=float, help="Of the matrices of the network."),
    click.option("--clip-norm", type=float, help="Largest norm of the gradient."),
    click.option("--dropout", type=float, help="Before the classifier."),
    click.option("--label-smoothing", type=float, help="Of the classes."),
    click.option("--direction-weight", type=float, help="Of the directions read off inception_5b_output."),
    click.option("--flow-weight", type=float, help="Of the flow loss, where TVNet is trained."),
    click.option("--validate-every", type=int, metavar="STEPS", help="Validate so often, and at the end."),
    click.option("--held-out", multiple=True, metavar="CLASSES", help="Leave out classes whose names begin so."),
]


def _pretrain_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_PRETRAIN_OPTIONS):
        command = option(command)
    return command


@train.command()
@click.option("-o", "--output", type=PATH, default="motion", show_default=True, help="Folder of all that is written.")
@_pretrain_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:i].")
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever the folder holds.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks.")
@with_clear_errors
def motion(
    output: Path, device: str, overwrite: bool, as_json: bool, quiet: bool, verbose: int, **numbers: Any
) -> None:
    """Train TVNet and BN-Inception on drawn motion; no data are needed.

    Textured shapes, arms and figures move as one of many classes says, and the network learns to tell them apart. With
    the defaults this made the weights that come with the program. It writes weights that serve tvnet features
    --weights, and a picture of what it took for what. A run that was stopped goes on where it was.
    """
    given = {name: value for name, value in numbers.items() if value not in (None, ())}
    try:
        options = dataclasses.replace(PretrainOptions(), **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    # From here on torch is needed; --help answers without it.
    from tvnet_cli.device import choose_device
    from tvnet_cli.progress import TrainingProgress
    from tvnet_cli.training.pretrain import train_motion, write_motion_result

    chosen = choose_device(device)
    with TrainingProgress(options.num_steps, quiet) as progress:
        progress.announce(f"drawn motion on {chosen}: {options.num_clips} clips in {options.num_steps} steps")
        result = train_motion(output, options, device=chosen, report=progress.show, overwrite=overwrite)
    if result is None:
        progress.interrupted(output)
        sys.exit(INTERRUPTED)
    write_motion_result(output, result)
    click.echo(json.dumps(result.summary(output)) if as_json else result.headline(output))


@main.group()
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


def _import_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_IMPORT_OPTIONS):
        command = option(command)
    return command


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
        click.echo(json.dumps(entries))
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        text = "; ".join(filter(None, (entry["source"], entry.get("note"))))
        click.echo(f"{entry['name']:{width}}  {entry['stream']:4}  {entry['state']:9}  {text}")


@weights.command("show")
@click.argument("name")
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
    click.echo(json.dumps(table) if as_json else as_toml(table).rstrip("\n"))


@weights.command("import")
@click.argument("file", type=PATH)
@click.option("--name", required=True, help="By which --weights finds them from then on.")
@_import_options
@_QUIET
@_VERBOSE
@with_clear_errors
def import_weights(file: Path, name: str, overwrite: bool, quiet: bool, verbose: int, **options: Any) -> None:
    """Make weights from a published BN-Inception checkpoint.

    FILE is of tsn-pytorch, Cadene, mmaction, SSN, TBN, EPIC Kitchens, TSM or caffe2pytorch-tsn, a .caffemodel of TSN,
    or a .safetensors file without a card. Every tensor of the network has to be in it; what is decided is said.
    """
    from tvnet_cli.network import convert
    from tvnet_cli.progress import DownloadProgress

    imported = convert.import_weights(file, name, ImportOptions(**options), overwrite=overwrite)
    DownloadProgress(name, quiet).close(imported.path, imported.notes)


@weights.command("fetch")
@click.argument("published", metavar="NAME")
@click.option("--url", "mirrors", multiple=True, help="A mirror to try first; repeatable.")
@click.option("--trust", is_flag=True, help="Also take a file whose full sha256 is not known.")
@click.option("--offline", is_flag=True, help="Download nothing; TVNET_OFFLINE=1 says the same.")
@click.option("--name", help="By which --weights finds them from then on.  [default: NAME]")
@_import_options
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
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_QUIET
@_VERBOSE
@with_clear_errors
def verify_weights(names: tuple[str, ...], quiet: bool, verbose: int) -> None:
    """Check weights: their hash, their card and every tensor.

    Without a NAME all that are here. Exit code 1 if one is not as it should be.
    """
    from tvnet_cli.network.cards import known_weights
    from tvnet_cli.network.weights import load_weights

    bad = 0
    for name in names or known_weights():
        try:
            card = load_weights(name).card
        except TVNetError as error:
            bad += 1
            click.echo(f"bad   {name}: {error}", err=True)
        else:
            if not quiet:
                click.echo(f"good  {name}: {card.stream}, sha256 {card.sha256}")
    if bad:
        sys.exit(FAILED)


@weights.command("path")
@click.argument("name", required=False)
@_VERBOSE
@with_clear_errors
def weights_path(name: str | None, verbose: int) -> None:
    """Print where weights lie; without a NAME, the folder of imported ones."""
    from tvnet_cli.network.cards import find_weights, imported_folder

    path = find_weights(name) if name else imported_folder()
    if name and not path.exists():
        raise WeightsError(f"there is no file {path}")
    click.echo(path)
