"""Which files a run writes, by their suffixes or by named formats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tvnet_cli.errors import DatasetError, FlowFileError, OutputError
from tvnet_cli.flow.compute import Output
from tvnet_cli.flow.files import FieldFile, FieldFolder, NpzFile, encode_flo, encode_jpg_pair, encode_png
from tvnet_cli.flow.film import FlowFilm
from tvnet_cli.flow.store import FlowStore, is_complete
from tvnet_cli.locks import lock_folder, locked
from tvnet_cli.options import FieldOptions, FlowFormat
from tvnet_cli.recipe import Recipe
from tvnet_cli.video.sequence import FrameSequence
from tvnet_cli.writing import writing

SUFFIXES: dict[str, FlowFormat] = {".h5": "h5", ".flo": "flo", ".npz": "npz", ".png": "png", ".mp4": "mp4"}
IN_FOLDERS: tuple[FlowFormat, ...] = ("flo", "png", "xy-jpg")  # a file or more for each field
COLOURED: tuple[FlowFormat, ...] = ("png", "mp4")
HOLD_MASKS: tuple[FlowFormat, ...] = ("h5", "npz", "flo", "png")  # beside the forward flow


@dataclass(frozen=True)
class Target:
    """A file or folder to write, and its format."""

    format: FlowFormat
    path: Path
    folder: bool = False

    @property
    def coloured(self) -> bool:
        return self.format in COLOURED

    @property
    def resumes(self) -> bool:
        return self.format == "h5" or self.folder


def default_targets(inputs: Sequence[Path], formats: Sequence[FlowFormat]) -> list[Target]:
    """Beside the input, named after it: data and a film, or data and a picture for two images."""
    pair = len(inputs) == 2
    base = inputs[0].parent if inputs[0].name else inputs[0].resolve().parent
    targets = []
    for format_ in formats or (("h5", "png") if pair else ("h5", "mp4")):
        folder = format_ in IN_FOLDERS and not (pair and format_ != "xy-jpg")
        name = _name(inputs) if folder else f"{_name(inputs)}.{format_}"
        targets.append(Target(format_, base / name, folder))
    return targets


def choose_targets(inputs: Sequence[Path], outputs: Sequence[Path], formats: Sequence[FlowFormat]) -> list[Target]:
    """What to write.

    Parameters
    ----------
    inputs : sequence of Path
        A film, a folder, or images.
    outputs : sequence of Path
        A known suffix says the format; anything else is a folder, or a file of the format that is named.
    formats : sequence of str
        For the outputs whose suffix says nothing; without outputs, what to write beside the input.

    Raises
    ------
    OutputError
        If an output has no format, a format no output, or an output lies on an input or on another output.
    FlowFileError
        If a file stands where a folder is needed.
    """
    if not outputs:
        return default_targets(inputs, formats)
    targets, open_formats = [], list(formats)
    for output in outputs:
        known = SUFFIXES.get(output.suffix.lower())
        if known and not output.is_dir():
            targets.append(Target(known, output))
            open_formats = [format_ for format_ in open_formats if format_ != known]
            continue
        if not formats:
            raise OutputError(
                f"{output}: its name does not say what to write; add --format, or end it in {' '.join(SUFFIXES)}"
            )
        for format_ in formats:
            if format_ in IN_FOLDERS:
                targets.append(Target(format_, output, folder=True))
            else:
                file = output if output.suffix and not output.is_dir() else output / f"{_name(inputs)}.{format_}"
                targets.append(Target(format_, file))
        open_formats = []
    if open_formats:
        raise OutputError(f"--format {open_formats[0]}: no output is left for it; add -o DIR")
    _check_places(inputs, targets)
    return targets


def check_kept(targets: Sequence[Target], options: FieldOptions) -> None:
    """All that is computed must be kept somewhere.

    Raises
    ------
    OutputError
    """
    formats = {target.format for target in targets}
    for wanted, name, holders in (
        (options.backward, "--backward", HOLD_MASKS),
        (options.occlusion, "--occlusion", HOLD_MASKS),
        (options.scales, "--show-scales", (*HOLD_MASKS, "mp4")),
    ):
        if wanted and not formats & set(holders):
            raise OutputError(f"{name}: no output holds it; {' '.join(holders)} do")


@contextmanager
def reserved(targets: Sequence[Target], *, overwrite: bool) -> Iterator[None]:
    """Keep other runs from all outputs, inside a ``with`` block; a complete flow file is only read, and stays free.

    Raises
    ------
    FlowFileError
        If another run is writing one of them.
    DiskFullError, OSError
        If a lock cannot be written.
    """
    with ExitStack() as held:
        to_write = (t.path for t in targets if overwrite or t.format != "h5" or not is_complete(t.path))
        for folder, path in {lock_folder(path): path for path in to_write}.items():
            with writing(path):
                held.enter_context(locked(path, folder, FlowFileError))
        yield


def check_outputs(outputs: Sequence[Output]) -> list[str]:
    """Refuse outputs that cannot be written, before anything is computed.

    Returns
    -------
    list of str
        What people should know about outputs that are resumed.

    Raises
    ------
    OutputError
        If a file exists that this program did not make, and that it was not asked to replace.
    FlowFileError
        If a file or folder cannot be resumed.
    """
    for output in outputs:
        output.check()
    return list(dict.fromkeys(note for output in outputs for note in output.notes))


def make_outputs(
    targets: Sequence[Target],
    sequence: FrameSequence,
    recipe: Recipe,
    *,
    half: bool = False,
    overwrite: bool = False,
    max_flow: float | None = None,
) -> list[Output]:
    """The outputs of a run, not yet opened.

    Parameters
    ----------
    targets : sequence of Target
    sequence : FrameSequence
    recipe : dict
    half : bool
        Flow as float16 in .h5 and .npz.
    overwrite : bool
        Begin anew where .h5 and folders would be resumed, and replace files that this program did not make.
    max_flow : float, pixels
        Scale of the colours, if any target is coloured; None, where they are not known yet and the outputs are only to
        be checked.

    Raises
    ------
    DatasetError
        If there are more fields than a target holds.
    """
    num_fields = len(sequence.frame_index) - 1
    outputs: list[Output] = []
    scale = math.nan if max_flow is None else max_flow
    for target in targets:
        path = target.path
        if target.format in IN_FOLDERS and not target.folder and num_fields > 1:
            raise DatasetError(
                f"{path} holds one field, and {sequence.name} gives {num_fields}: "
                f"take a folder, -o {path.with_suffix('')} --format {target.format}"
            )
        if target.format == "h5":
            outputs.append(FlowStore(path, num_fields, {**recipe, "half": half}, half, overwrite))
        elif target.format == "npz":
            outputs.append(NpzFile(path, half, overwrite=overwrite))
        elif target.format == "mp4":
            outputs.append(FlowFilm(path, scale, sequence.time_base, overwrite=overwrite))
        elif target.format == "xy-jpg":
            names = ["flow_x.jpg", "flow_y.jpg"]
            outputs.append(FieldFolder(path, encode_jpg_pair, names[-1], recipe, overwrite, names))
        else:
            encode, own = encode_flo, recipe
            if target.coloured:
                encode = partial(encode_png, max_flow=scale)
                own = recipe if max_flow is None else {**recipe, "max_flow": max_flow}
            names = _field_files(target.format, recipe)
            if target.folder:
                outputs.append(FieldFolder(path, encode, names[0], own, overwrite, names))
            else:
                outputs.append(FieldFile(path, encode, overwrite=overwrite, names=names))
    return outputs


def _field_files(suffix: str, recipe: Recipe) -> list[str]:
    """Return the files that a field may have in a format, the flow first."""
    asked = recipe["fields"]
    names = [f"flow.{suffix}"]
    if asked["scales"]:
        names += [f"flow_scale_{number}.{suffix}" for number in range(1, recipe["tvnet"]["num_scales"])]
    if asked["backward"]:
        names.append(f"backward.{suffix}")
    if asked["occlusion"]:
        names.append("occlusion.png")
    return names


def _name(inputs: Sequence[Path]) -> str:
    """What the flow of an input is called: video.flow, or frames.flow for a folder."""
    first = inputs[0].resolve()
    return f"{first.name if first.is_dir() else first.stem}.flow"


def _check_places(inputs: Sequence[Path], targets: Sequence[Target]) -> None:
    taken = {(path.resolve(), ""): f"the input {path}" for path in inputs}
    for target in targets:
        place = target.path.resolve()
        name = place, target.format if target.folder else ""  # several formats may go into one folder
        if name in taken:
            raise OutputError(f"{target.path} would be written over {taken[name]}")
        if target.folder and any(place == path.resolve() for path in inputs):
            raise OutputError(f"{target.path} is the input: choose another folder for the output")
        folder = target.path if target.folder else target.path.parent
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise FlowFileError(f"{nearest} is a file, and {target.format} needs a folder there: choose another output")
        taken[name] = f"another output, {target.path}"
