"""`tvnet flow`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from tvnet_cli.commands.common import (
    DEVICE,
    INTERRUPTED,
    LOG_FILE,
    PATH,
    complete_weights,
    with_clear_errors,
    with_decode_limits,
    with_log,
    with_options,
)
from tvnet_cli.errors import DiskFullError, FlowValueError, TVNetError, VideoReadError
from tvnet_cli.log import EventLog
from tvnet_cli.options import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_PRESET,
    FLOW_FORMATS,
    PRESETS,
    SAMPLERS,
    DecodeLimits,
    FieldOptions,
    FlowFormat,
    FrameOptions,
    TVNetOptions,
)


def _parse_size(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)x(\d+)", text or "")
    if text is not None and not match:
        raise click.BadParameter(f"{text!r} is no size: height x width, as in 240x320")
    return (int(match[1]), int(match[2])) if match else None


def _finite(context: click.Context, parameter: click.Parameter, number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise click.BadParameter(f"{number} is no finite number")
    return number


# The numbers of the solver, by their names in TVNetOptions; each replaces that of the preset.
SOLVER_OPTIONS = [
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


@click.command()
@click.argument("paths", nargs=-1, type=PATH, required=True, metavar="FILM | IMAGE IMAGE... | FOLDER")
@click.option("-o", "--output", "outputs", multiple=True, type=PATH, help="File or folder; several are allowed.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(FLOW_FORMATS), help="Where the name of -o does not say it."
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help=f"Schedule of TV-L1.  [default: {DEFAULT_PRESET}]")
@with_options(SOLVER_OPTIONS)
@click.option(
    "--weights",
    help="Trained kernels with their schedule: a name in tvnet weights list or a .safetensors file.",
    shell_complete=complete_weights(),
)
@click.option("--start", type=float, callback=_finite, metavar="SECONDS", help="Begin at this time.")
@click.option("--end", type=float, callback=_finite, metavar="SECONDS", help="Stop before this time.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take each Nth frame only.")
@click.option("--fps", type=float, default=FrameOptions.fps, show_default=True, help="Rate of images as a film.")
@click.option("--short-side", type=int, metavar="PIXELS", help="Resize frames to this short side.")
@click.option("--size", metavar="HxW", callback=_parse_size, help="Resize frames to this height and width.")
@click.option("--backward", is_flag=True, help="Also compute the flow from the second frame to the first.")
@click.option("--occlusion", is_flag=True, help="Also mask the pixels that the second frame does not show.")
@click.option("--show-scales", is_flag=True, help="Also write the flow of every level of the pyramid.")
@click.option("--half", is_flag=True, help="Flow as float16 in .h5 and .npz.")
@click.option(
    "--max-flow",
    type=click.FloatRange(0, min_open=True),
    callback=_finite,
    metavar="PIXELS",
    help="Length in full colour.",
)
@click.option("--truth", type=PATH, help="True flow, .flo or KITTI .png, or a folder of them: print the error.")
@DEVICE
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Pairs computed at once.  [default: {cpu}, GPU {cuda}]".format(**DEFAULT_BATCH_SIZE),
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Begin anew where .h5 files and folders would be resumed, and replace files that tvnet did not make.",
)
@with_decode_limits
@LOG_FILE
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what failed.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks.")
@with_clear_errors
@with_log
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
    limits: DecodeLimits,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log: EventLog,
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
    from tvnet_cli.flow.outputs import check_kept, check_outputs, choose_targets, make_outputs, reserved
    from tvnet_cli.flow.truth import FlowErrors
    from tvnet_cli.interrupt import interruptible
    from tvnet_cli.network.weights import load_tvnet
    from tvnet_cli.progress import FlowProgress
    from tvnet_cli.video.reader import Decoders
    from tvnet_cli.video.sequence import open_sequence

    targets = choose_targets(paths, outputs, formats) if outputs or formats or truth is None else []
    check_kept(targets, fields)
    click.get_current_context().with_resource(reserved(targets, overwrite=overwrite))
    reader = click.get_current_context().with_resource(Decoders(limits))
    sequence = open_sequence(paths, frames, reader)
    errors = FlowErrors(truth, sequence, reader)
    chosen = choose_device(device)
    tvnet, sha256 = load_tvnet(weights, solver)
    tvnet.to(chosen)
    progress = FlowProgress(sequence, quiet)
    if verbose:
        progress.announce(tvnet, chosen)
    recipe = flow_recipe(sequence, frames, fields, tvnet, sha256, chosen)
    prepared = partial(make_outputs, targets, sequence, recipe, half=half, overwrite=overwrite)
    progress.notes(check_outputs(prepared(max_flow=max_flow)))
    sampled = {}
    if max_flow is None and any(target.coloured for target in targets):
        progress.announce_sampling()
        sampled = sample_fields(sequence, tvnet, fields)
        max_flow = colour_scale([arrays["flow"] for arrays in sampled.values()])
    writing = prepared(max_flow=max_flow)
    check_outputs(writing)

    log.started(fields=progress.num_fields, outputs=[str(target.path) for target in targets], recipe=recipe)
    broken: TVNetError | None = None
    interrupted = False
    with progress, interruptible() as asked_to_stop:
        reader.stop = asked_to_stop
        batch_size = batch_size or DEFAULT_BATCH_SIZE[chosen.type]
        results = write_flow(
            sequence,
            tvnet,
            writing,
            fields,
            batch_size=batch_size,
            sampled=sampled,
            every_field=bool(errors.truths),
            recipe=recipe,
        )
        try:
            with closing(results):
                for field in results:
                    progress.show(field)
                    errors.add(field)
                    if asked_to_stop.is_set():
                        interrupted = True
                        break
        except (VideoReadError, FlowValueError, DiskFullError) as error:
            broken = error
        except KeyboardInterrupt:  # asked twice, or while a frame hangs
            interrupted = True
    progress.close(targets, max_flow, interrupted, failed=broken is not None)
    if as_json:
        click.echo(json.dumps({**progress.summary(targets, max_flow), **errors.means()}))
    elif errors.means():
        click.echo(errors)
    if broken is None and sequence.damage:
        broken = VideoReadError(f"{paths[0]}: {sequence.damage}")
    if isinstance(broken, DiskFullError):
        raise DiskFullError(f"{broken}; {progress.once_there_is_room(targets)}")
    if broken:
        raise type(broken)(f"{broken}; {progress.kept()}")
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
    solver = read_schedule(preset, numbers)
    try:
        return FrameOptions(**frames), fields, solver
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def read_schedule(preset: str | None, numbers: dict[str, Any]) -> TVNetOptions:
    """The numbers of a preset, and those that were given."""
    smoothing = numbers.get("presmoothing", "authors")
    try:
        numbers |= {} if smoothing == "authors" else {"presmoothing": float(smoothing)}
    except ValueError:
        raise click.UsageError(f"--presmoothing must be a number of pixels or 'authors', not {smoothing!r}") from None
    try:
        return dataclasses.replace(PRESETS[preset or DEFAULT_PRESET], **numbers)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
