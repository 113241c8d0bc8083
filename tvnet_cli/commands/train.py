"""`tvnet train`: actions, flow, motion."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
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
from tvnet_cli.commands.flow import SOLVER_OPTIONS, read_schedule
from tvnet_cli.log import EventLog
from tvnet_cli.options import (
    ACTION_PRESETS,
    BATCH_NORMS,
    DEFAULT_PRESET,
    DTYPES,
    PRESETS,
    STREAMS,
    ActionOptions,
    DecodeLimits,
    FlowTrainingOptions,
    PretrainOptions,
    Stage,
)

_RUN_OPTIONS = [
    DEVICE,
    click.option("--overwrite", is_flag=True, help="Begin anew, whatever the folder holds."),
    LOG_FILE,
    click.option("--json", "as_json", is_flag=True, help="The result as one JSON object on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    click.option("-v", "--verbose", count=True, help="-vv shows tracebacks."),
]


Report = Callable[[int, dict[str, float]], None]


def _tell(*listeners: Report) -> Report:
    """Each of them hears of each step."""

    def report(step: int, values: dict[str, float]) -> None:
        for listener in listeners:
            listener(step, values)

    return report


@click.group()
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


@train.command()
@click.argument("data", type=PATH)
@click.option("-o", "--output", type=PATH, default="actions", show_default=True, help="Folder of all that is written.")
@click.option("--splits", type=PATH, metavar="DIR", help="Folder of the official lists.  [default: in DATA]")
@click.option("--split", type=click.IntRange(1, 3), help="Which official split.  [default: 1]")
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="Of each class, where DATA does not say.",
)
@click.option("--preset", type=click.Choice(list(ACTION_PRESETS)), help="Whose numbers.  [default: of the stream]")
@click.option(
    "--weights",
    help="Weights to begin with; those of an RGB network serve flow too.",
    shell_complete=complete_weights(),
)
@click.option("--tvnet", "schedule", type=click.Choice(list(PRESETS)), help=f"Solver.  [default: {DEFAULT_PRESET}]")
@click.option("--freeze-tvnet", is_flag=True, help="Leave TVNet as it is.")
@with_options(_ACTION_OPTIONS)
@click.option("-j", "--jobs", type=click.IntRange(1), help="Threads that read videos.  [default: one a core]")
@with_decode_limits
@with_options(_RUN_OPTIONS)
@with_clear_errors
@with_log
def actions(
    data: Path,
    output: Path,
    splits: Path | None,
    split: int | None,
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
    limits: DecodeLimits,
    log: EventLog,
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
    if data.is_dir() and output.resolve().is_relative_to(data.resolve()):
        raise click.UsageError(
            f"{output} lies in {data}, where each folder is a class of videos: choose another -o for the results"
        )
    dataset = read_dataset(data, splits=splits, split=split, validation_share=validation_share, seed=options.seed)
    with process_group(chosen) as chosen:
        is_first = rank_and_world()[0] == 0
        board = tensorboard(output / "tensorboard") if is_first else None
        log.started(device=str(chosen), output=str(output), options=dataclasses.asdict(options))
        with TrainingProgress(options.num_iterations, quiet or not is_first) as progress:
            progress.announce(
                f"{options.stream} stream on {chosen}: {len(dataset.train)} videos of {len(dataset.classes)} classes, "
                f"{len(dataset.validation)} to validate with"
            )
            result = train_actions(
                dataset,
                output,
                options,
                schedule=PRESETS[schedule] if schedule else None,
                weights=weights,
                device=chosen,
                jobs=jobs or torch.get_num_threads(),
                overwrite=overwrite,
                report=_tell(progress.show, *([log.step] if is_first else []), *([board] if board else [])),
                limits=limits,
            )
        if result is None:
            progress.interrupted(output)
            sys.exit(INTERRUPTED)
        if is_first:
            write_result(output, data.resolve().name, dataset, result, overwrite=overwrite)
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
@with_options(SOLVER_OPTIONS)
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
@with_decode_limits
@with_options(_RUN_OPTIONS)
@with_clear_errors
@with_log
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
    limits: DecodeLimits,
    log: EventLog,
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
    solver = read_schedule(preset, {name: value for name, value in given.items() if value is not None})

    # From here on torch is needed; --help answers without it.
    from tvnet_cli.device import choose_device
    from tvnet_cli.progress import TrainingProgress
    from tvnet_cli.training import flow as training
    from tvnet_cli.training.loop import require_training_folder
    from tvnet_cli.training.pairs import find_named_pairs
    from tvnet_cli.training.sources import open_source
    from tvnet_cli.video.reader import Decoders

    if any(path.is_dir() and output.resolve() == path.resolve() for path in (*paths, *validation)):
        raise click.UsageError(f"{output} is a folder of pairs or videos: choose another -o for the results")
    require_training_folder(output, training.RESULTS, overwrite=overwrite)
    tests = find_named_pairs(validation)
    reader = click.get_current_context().with_resource(Decoders(limits))
    source = open_source(paths, options.seed, options.crop, reader)
    chosen = choose_device(device)
    log.started(
        device=str(chosen), output=str(output), options=dataclasses.asdict(options), tvnet=dataclasses.asdict(solver)
    )
    with TrainingProgress(options.steps, quiet) as progress:
        progress.announce(f"kernels of TVNet on {chosen}: {source.name}")
        progress.notes(source.notes)
        tvnet = training.train_flow(
            output,
            source,
            solver,
            options,
            device=chosen,
            report=_tell(progress.show, log.step),
            overwrite=overwrite,
            abandon=reader.close,
        )
    if tvnet is None:
        progress.interrupted(output)
        sys.exit(INTERRUPTED)
    rows = training.compare(tvnet, solver, source, options, tests)
    training.write_result(output, tvnet, solver, source, options, rows, tests, chosen, overwrite=overwrite)
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


# The fields of PretrainOptions.
_PRETRAIN_OPTIONS = [
    click.option(
        "--seed",
        type=int,
        default=PretrainOptions.seed,
        show_default=True,
        help="Of the clips, and of the network before training.",
    ),
    click.option(
        "--stream",
        type=click.Choice(STREAMS),
        default=PretrainOptions.stream,
        show_default=True,
        help="Flow by TVNet, or the middle frame of each clip.",
    ),
    click.option(
        "--stage",
        "stages",
        multiple=True,
        callback=_parse_stages,
        metavar="STEPSxBATCH@SIZE[+flow]",
        help="Steps, clips a step and pixels a side; +flow trains TVNet too. Once for each stage.  [default: "
        + ", ".join(map(str, PretrainOptions.stages))
        + "]",
    ),
    click.option(
        "--learning-rate", type=float, default=PretrainOptions.learning_rate, show_default=True, help="Of the network."
    ),
    click.option(
        "--flow-learning-rate",
        type=float,
        default=PretrainOptions.flow_learning_rate,
        show_default=True,
        help="Of TVNet.",
    ),
    click.option(
        "--weight-decay",
        type=float,
        default=PretrainOptions.weight_decay,
        show_default=True,
        help="Of the matrices of the network.",
    ),
    click.option(
        "--clip-norm",
        type=float,
        default=PretrainOptions.clip_norm,
        show_default=True,
        help="Largest norm of the gradient.",
    ),
    click.option(
        "--dropout", type=float, default=PretrainOptions.dropout, show_default=True, help="Before the classifier."
    ),
    click.option(
        "--label-smoothing",
        type=float,
        default=PretrainOptions.label_smoothing,
        show_default=True,
        help="Of the classes.",
    ),
    click.option(
        "--direction-weight",
        type=float,
        default=PretrainOptions.direction_weight,
        show_default=True,
        help="Of the directions read off inception_5b_output.",
    ),
    click.option(
        "--flow-weight",
        type=float,
        default=PretrainOptions.flow_weight,
        show_default=True,
        help="Of the flow loss, where TVNet is trained.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default=PretrainOptions.dtype,
        show_default=True,
        help="What the network computes in; TVNet is float32.",
    ),
    click.option(
        "--validate-every",
        type=int,
        default=PretrainOptions.validate_every,
        show_default=True,
        metavar="STEPS",
        help="Validate so often, and at the end.",
    ),
    click.option("--held-out", multiple=True, metavar="CLASSES", help="Leave out classes whose names begin so."),
]


@train.command()
@click.option("-o", "--output", type=PATH, default="motion", show_default=True, help="Folder of all that is written.")
@with_options(_PRETRAIN_OPTIONS)
@click.option(
    "--weights",
    metavar="NAME|FILE",
    help="Weights of the stream to begin with.  [default: random numbers]",
    shell_complete=complete_weights(),
)
@with_options(_RUN_OPTIONS)
@with_clear_errors
@with_log
def motion(
    output: Path,
    weights: str | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log: EventLog,
    **numbers: Any,
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
    from tvnet_cli.training.pretrain import classes_without, train_motion, write_motion_result

    try:
        classes_without(options.held_out)
    except ValueError as error:
        raise click.UsageError(f"--held-out: {error}") from None
    chosen = choose_device(device)
    log.started(device=str(chosen), output=str(output), options=dataclasses.asdict(options))
    with TrainingProgress(options.num_steps, quiet) as progress:
        progress.announce(f"drawn motion on {chosen}: {options.num_clips} clips in {options.num_steps} steps")
        result = train_motion(
            output, options, weights=weights, device=chosen, report=_tell(progress.show, log.step), overwrite=overwrite
        )
    if result is None:
        progress.interrupted(output)
        sys.exit(INTERRUPTED)
    write_motion_result(output, result, overwrite=overwrite)
    click.echo(json.dumps(result.summary(output)) if as_json else result.headline(output))
