"""Feature files of several runs as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tvnet_cli.errors import FeatureFileError
from tvnet_cli.features.datasets import DATASETS
from tvnet_cli.features.format import (
    Contents,
    RowProgress,
    join,
    named,
    read_contents,
    read_rows,
    require_replaceable,
)
from tvnet_cli.features.lock import (
    OVERWRITES,
    behind_links,
    has_own_parts,
    locked,
    part_files,
    parts_folder,
    require_own_parts,
)
from tvnet_cli.features.shards import missing_shards
from tvnet_cli.features.sources import MTIME, SOURCE_DATASETS, is_unknown
from tvnet_cli.recipe import first_difference


def merge_features(
    paths: Sequence[Path],
    output: Path,
    *,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
    progress: RowProgress = lambda done, total: None,
) -> Contents:
    """Write one feature file that holds what others hold, as one run over all their videos would have.

    Parameters
    ----------
    paths : sequence of Path
        Feature files, and folders ``.parts`` of runs that did not end. A row counts before a failure.
    output : Path
        May be among them.
    overwrite : bool
        ``output`` may be there already.
    note : callable
        Is told what people should know.
    progress : callable
        Is told how many of all rows are written.

    Returns
    -------
    Contents
        Of the new file.

    Raises
    ------
    FeatureFileError
        If the files cannot be one: other recipes, other rows for the same video, a run that did not end.
    DamagedError
        If rows do not fit their checksums.
    DiskFullError
    """
    output = behind_links(output)
    if output.exists() and not overwrite:
        raise FeatureFileError(f"{output} is there already: choose another output, or --overwrite")
    require_replaceable(output)
    require_own_parts(parts_folder(output))
    sources = [read_contents(path) for path in _files(paths)]
    if not sources:
        raise FeatureFileError(f"nothing to merge in {', '.join(map(str, paths))}")
    first = sources[0]
    for source in sources[1:]:
        difference = first_difference(first.recipe, source.recipe)
        if difference:
            raise FeatureFileError(f"{first.path} and {source.path} were made in different ways: {difference}")
        if source.recipe.get("software") != first.recipe.get("software"):
            note(f"{source.path} was made by other software than {first.path}: written_by tells which rows are whose")
    _require_equal_twins(sources)
    missing = missing_shards(paths)
    if missing:
        note(f"not among the files: shard {named(missing)}")
    with locked(output) as parts:
        if {path.resolve() for path in part_files(parts)} - {source.path.resolve() for source in sources}:
            raise FeatureFileError(
                f"the run that writes {output} has not ended: give its command again, choose another output, or delete "
                f"{parts} to do without what it has finished"
            )
        join(output, first.recipe, sources, progress, parts / "merged.new")
        (parts / OVERWRITES).unlink(missing_ok=True)  # whose rows, if there are any, are in the new file now
    return read_contents(output)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The feature files in what was given, each once."""
    files: list[Path] = []
    given = {path.resolve() for path in paths}
    for path in paths:
        parts = parts_folder(behind_links(path))
        if has_own_parts(parts) and parts.resolve() not in given:
            raise FeatureFileError(
                f"the run that writes {path} has not ended: give its command again, or name {parts} too, "
                "to merge what it has finished"
            )
        files += sorted(path.glob("*.h5")) if path.is_dir() else [path]
    return list(dict.fromkeys(files))


def _require_equal_twins(sources: Sequence[Contents]) -> None:
    """Rows of one video in two files have to be the same, bit for bit."""
    home: dict[str, Contents] = {}
    for source in sources:
        for videos in source.portions([video_id for video_id in source.rows if video_id in home]):
            for video_id in videos:
                mine, theirs = (read_rows(one, [video_id])[0] for one in (source, home[video_id]))
                both = [name for name in mine if name in theirs]
                compared = [name for name in both if DATASETS[name].computed or name in SOURCE_DATASETS]
                different = [name for name in compared if _differ(name, mine[name], theirs[name])]
                if different:
                    raise FeatureFileError(
                        f"{home[video_id].path} and {source.path} hold different rows of {video_id}: {named(different)}"
                    )
        home.update(dict.fromkeys(source.rows, source))


def _differ(name: str, mine: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Return whether two rows differ; copies of a video may have other times, and some rows keep nothing of it."""
    if name == MTIME or (name in SOURCE_DATASETS and any(is_unknown(values) for values in (mine, theirs))):
        return False
    return mine.tobytes() != theirs.tobytes()
