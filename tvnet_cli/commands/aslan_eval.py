"""`tvnet aslan-eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tvnet_cli.commands.common import PATH, with_clear_errors
from tvnet_cli.errors import DatasetError
from tvnet_cli.options import (
    DEFAULT_JOBS,
    EVAL_PRESETS,
    NEGATIVES,
    PAIR_MODELS,
    SCALES,
    SOLVERS,
    EvalOptions,
)


@click.command("aslan-eval")
@click.argument("features", nargs=-1, type=PATH, metavar="[FEATURES]...")
@click.option("--pairs", type=PATH, help="View2.mat, view2.txt or a CSV.  [default: the first two, where they are]")
@click.option("--test-pairs", type=PATH, help="Test pairs of View 1; --pairs are then its training pairs.")
@click.option("-o", "--output", type=PATH, help="Folder for the report: page, ROC curve, decision values, JSON.")
@click.option("--overwrite", is_flag=True, help="Also replace files in that folder that tvnet did not make.")
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
    overwrite: bool,
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
    if overwrite and not output:
        raise click.UsageError("--overwrite is for the files of the report: give its folder with -o")
    if videos and not output:
        raise click.UsageError("--videos is for the page of the report: give its folder with -o")

    from tvnet_cli.aslan import report as results
    from tvnet_cli.aslan.evaluate import evaluate, pairs_with_features
    from tvnet_cli.aslan.features import open_features
    from tvnet_cli.aslan.pairs import read_pairs
    from tvnet_cli.aslan.progress import StageProgress

    features, pairs = _found_here(features, pairs)
    # What can be wrong shows before the work.
    folder = results.make_folder(output, overwrite=overwrite) if output else None
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
    try:
        if folder:
            results.write_report(folder, report, frames, overwrite=overwrite)
    finally:  # what was computed is not lost with a disk that is full
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
