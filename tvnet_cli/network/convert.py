"""Published BN-Inception checkpoints as weights of this program: names, shapes, classifiers and input conventions.

Forward, all ports of the network are the same function; what differs is how their files name and shape the tensors, and
what the network was fed. Canonical names are the Caffe layer names with ``/`` and ``-`` written as ``_``.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tvnet_cli.errors import WeightsError
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.cards import FlowInput, RGBInput, WeightCard, imported_folder, weights_folder
from tvnet_cli.network.checkpoints import Checkpoint, read_checkpoint
from tvnet_cli.network.weights import IN_CHANNELS, UNTRAINED, write_weights
from tvnet_cli.options import STREAMS, BNStatistics, ImportOptions, InputConvention, Stream

# The names that projects gave to the last layer.
HEADS = (
    "fc last_linear new_fc fc_action fc_action.1 cls_head.fc_cls "
    "fc_verb fc_noun activity_fc completeness_fc regressor_fc"
).split()
RGB_INPUTS: dict[InputConvention, RGBInput] = {
    "tsn-caffe": RGBInput((104, 117, 123), "BGR"),
    "tsn-pytorch": RGBInput((104, 117, 128), "BGR"),  # a slip that became the setting of all later ports
}
FLOW_INPUT = FlowInput(scale=255 / 40, clip_pixels=20.0, order="interleaved")  # grey levels of -20..20 pixels less 128
FIRST = "conv1_7x7_s2.weight"
FEATURES = 1024  # of the classifier
BN_EPS = 1e-5
FALL = -0.2  # mean rank correlation of kernel norms and statistics below which these are taken for inverse


@dataclass(frozen=True)
class Imported:
    """Weights that were imported, and what people should know about them."""

    path: Path
    card: WeightCard
    notes: tuple[str, ...]


class Converted(NamedTuple):
    """The tensors of ``BNInception``, float32, how to feed them, and what was decided on the way."""

    tensors: dict[str, Tensor]
    stream: Stream
    input: FlowInput | RGBInput
    notes: tuple[str, ...]


@dataclass
class _Tensors:
    """The tensors of one checkpoint on their way, and what was done with them."""

    file: Path
    found: dict[str, Tensor]
    origin: dict[str, str]  # of each of them: its name in the file
    notes: list[str] = field(default_factory=list)

    def take(self, key: str) -> Tensor:
        return self.found.pop(key)

    def error(self, what: str) -> WeightsError:
        return WeightsError(f"{self.file}: {what}")


def import_weights(file: Path, name: str, options: ImportOptions | None = None, *, overwrite: bool = False) -> Imported:
    """Make weights of this program from a published checkpoint, and keep them under a name.

    Parameters
    ----------
    file : Path
        A checkpoint of PyTorch or Caffe, or a safetensors file without a card.
    name : str
        By which ``--weights`` finds them from then on.
    options : ImportOptions
    overwrite : bool
        Replace what was imported under this name.

    Raises
    ------
    WeightsError
        If the file is not this network, in full, or does not tell enough about itself.
    """
    options = options or ImportOptions()
    path = import_path(name, overwrite)
    if file.suffix == ".safetensors" and file.with_suffix(".toml").exists():
        raise WeightsError(f"{file} has a card and needs no import: give it to --weights as it is")
    checkpoint = read_checkpoint(file, options.allow_pickle)
    tensors, stream, how, notes = convert(checkpoint, file, options)
    shown = os.fsencode(file.name).decode("utf-8", "replace")
    unknown = f"unknown: imported from {shown}"
    card = WeightCard(
        stream=stream,
        source=options.source or f"imported from {shown} ({checkpoint.format})",
        licence=options.licence or unknown,
        training_data=options.training_data or unknown,
        input=how,
        training={
            "imported_from": shown,
            "imported_sha256": checkpoint.sha256,
            "format": checkpoint.format,
            "notes": list(notes),
        },
    )
    return Imported(path, write_weights(path, tensors, card, overwrite=overwrite), notes)


def import_path(name: str, overwrite: bool = False) -> Path:
    """Where weights of this name are to be kept.

    Raises
    ------
    WeightsError
        If it is no name for a file, or taken.
    """
    reasons = {
        "--weights untrained is a seeded random network": name == UNTRAINED,
        "--weights would take it for a file: leave out .safetensors": name.endswith(".safetensors"),
        "take letters, digits, dots, - and _": not re.fullmatch(r"[A-Za-z0-9._-]+", name),
        "begin with a letter or a digit": not name[:1].isalnum(),
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    if reason:
        raise WeightsError(f"weights cannot be called {name!r}: {reason}")
    if (weights_folder() / f"{name}.safetensors").exists():
        raise WeightsError(f"{name} is the name of weights that come with the program: choose another --name")
    path = imported_folder() / f"{name}.safetensors"
    if (path.exists() or path.with_suffix(".toml").exists()) and not overwrite:
        raise WeightsError(f"there are weights called {name} already: choose another --name, or --overwrite")
    return path


def convert(checkpoint: Checkpoint, file: Path, options: ImportOptions) -> Converted:
    """A checkpoint as weights of ``BNInception``; ``file`` is its name in errors.

    Raises
    ------
    WeightsError
        Naming every tensor that is missing or has no place.
    """
    work = _by_canonical_name(checkpoint, file, options.stream)
    stream = _stream(work, options.stream)
    how = _input_convention(work, checkpoint, stream, options)
    kept = _head(work, options.head)
    with torch.device("meta"):
        classes = len(kept["fc.bias"]) if kept else 0
        network = BNInception(IN_CHANNELS[stream], num_classes=classes)
    shapes = {key: t.shape for key, t in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    work.found |= kept
    _require_complete(work, shapes, options.ignore_unused)
    tensors = {key: _fitted(work, key, shape, checkpoint.format == "Caffe") for key, shape in shapes.items()}
    _settle_statistics(work, tensors, checkpoint, options.bn_statistics)
    return Converted(tensors, stream, how, tuple(work.notes))


def _by_canonical_name(checkpoint: Checkpoint, file: Path, stream: Stream | None) -> _Tensors:
    """The tensors by canonical names; those of another stream in the same file are left out."""
    names = {key: _canonical_name(key) for key in checkpoint.tensors if not key.endswith("num_batches_tracked")}
    streams = sorted({of for of, _ in names.values() if of})
    if len(streams) > 1 and stream is None:
        raise WeightsError(f"{file} holds networks for {' and '.join(streams)}: choose one with --stream")
    work = _Tensors(file, {}, {})
    for key, (of, name) in names.items():
        if len(streams) > 1 and of and of != stream:
            continue
        if name in work.origin:
            raise work.error(f"{work.origin[name]} and {key} are both {name}")
        work.found[name], work.origin[name] = checkpoint.tensors[key], key
    if len(streams) > 1:
        work.notes.append(f"the file holds networks for {' and '.join(streams)}: the {stream} one was taken")
    return work


def _canonical_name(key: str) -> tuple[str, str]:
    """The stream that a name in a file says, or nothing, and the canonical name."""
    # TSN's models wrap a base_model; converted ones have numbers of nested Sequentials before it.
    name, stream = key.rpartition("base_model.")[2], ""
    while cut := re.match(r"(?:module|backbone|(flow|rgb))\.", name, re.IGNORECASE):
        name, stream = name[cut.end() :], (cut[1] or stream).lower()
    return stream, re.sub(r"[/-]", "_", name)


def _stream(work: _Tensors, asked: Stream | None) -> Stream:
    """What the network sees, by the channels of its first layer; RGB kernels can begin a flow network."""
    first = work.found.get(FIRST)
    if first is None or first.dim() != 4:
        return asked or "flow"  # which of the tensors are there is said later
    channels = first.shape[1]
    by_channels: dict[int, Stream] = {IN_CHANNELS[stream]: stream for stream in STREAMS}
    if channels not in by_channels or (asked == "rgb" and channels != IN_CHANNELS["rgb"]):
        expected = IN_CHANNELS[asked] if asked else " or ".join(map(str, sorted(by_channels)))
        raise work.error(f"{work.origin[FIRST]} takes {channels} channels, expected {expected}")
    if asked == "flow" and channels == IN_CHANNELS["rgb"]:
        mean = first.float().mean(1, keepdim=True)
        work.found[FIRST] = mean.expand(-1, IN_CHANNELS["flow"], -1, -1)
        work.notes.append(
            "cross-modality start: this RGB network becomes a flow network whose 10 channels all have the mean of "
            "the 3 RGB kernels; without training on flow it has not learned motion"
        )
    return asked or by_channels[channels]


def _input_convention(
    work: _Tensors, checkpoint: Checkpoint, stream: Stream, options: ImportOptions
) -> FlowInput | RGBInput:
    if stream == "flow":
        work.notes.append("input: flow cut at 20 pixels, 6.375 levels a pixel, x and y in turn, as in TSN")
        return FLOW_INPUT
    # Files that were converted from Caffe to PyTorch still say fc-action, as no other ones do.
    from_caffe = checkpoint.format == "Caffe" or any(key.startswith("fc_action") for key in work.found)
    convention = options.input or ("tsn-caffe" if from_caffe else "tsn-pytorch")
    how = RGB_INPUTS[convention]
    said = "" if options.input else "; --input says otherwise"
    work.notes.append(f"input: {how.order} less {', '.join(f'{m:g}' for m in how.mean)}, as {convention}{said}")
    return how


def _head(work: _Tensors, asked: str | None) -> dict[str, Tensor]:
    """The classifier as ``fc``; all classifiers leave the other tensors."""
    heads: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in list(work.found):
        layer, _, leaf = key.rpartition(".")
        if layer in HEADS and leaf in ("weight", "bias"):
            heads[layer][leaf] = work.take(key)
    wanted = None if asked is None else re.sub(r"[/-]", "_", asked)
    names = ", ".join(heads) or "none"
    if wanted not in (None, "none", *heads):
        raise work.error(f"no classifier is called {asked}; there are {names}")
    fitting = [layer for layer, tensors in heads.items() if _fits(tensors)]
    if wanted is None:
        wanted = fitting[0] if len(heads) == 1 and fitting else "none"
        if heads and wanted == "none":
            work.notes.append(f"classifiers left out: {names}; --head NAME keeps one that reads the 1024 features")
        elif heads:
            work.notes.append(f"classifier: {wanted}, {len(heads[wanted]['bias'].flatten())} classes")
    if wanted == "none":
        return {}
    if wanted not in fitting:
        raise work.error(f"{wanted} is no classifier of {FEATURES} features: it has {_shapes(heads[wanted])}")
    tensors = heads[wanted]
    for leaf in tensors:
        work.origin[f"fc.{leaf}"] = f"{wanted}.{leaf}"
    return {"fc.weight": tensors["weight"], "fc.bias": tensors["bias"].flatten()}


def _fits(head: dict[str, Tensor]) -> bool:
    if set(head) != {"weight", "bias"} or not head["bias"].numel():
        return False
    return head["weight"].squeeze().shape == torch.empty(head["bias"].numel(), FEATURES, device="meta").squeeze().shape


def _shapes(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{leaf} {tuple(tensor.shape)}" for leaf, tensor in tensors.items())


def _require_complete(work: _Tensors, shapes: dict[str, torch.Size], ignore_unused: bool) -> None:
    missing = sorted(shapes.keys() - work.found.keys())
    unused = sorted(work.origin[key] for key in work.found.keys() - shapes.keys())
    said = []
    if len(missing) == len(shapes):
        raise work.error(
            f"it holds none of the {len(shapes)} tensors of BN-Inception, but {', '.join(unused) or 'none'}"
        )
    if missing:
        said.append(f"{len(missing)} of {len(shapes)} tensors of BN-Inception are missing: {', '.join(missing)}")
    if unused and not ignore_unused:
        said.append(f"{len(unused)} tensors have no place in it: {', '.join(unused)} (--ignore-unused leaves them out)")
    if said:
        raise work.error("; ".join(said))
    if unused:
        work.notes.append(f"tensors left out: {', '.join(unused)}")


def _fitted(work: _Tensors, key: str, shape: torch.Size, caffe: bool) -> Tensor:
    """One tensor in the shape of the network, float32 and finite."""
    tensor = work.found[key]
    name = work.origin[key]
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        raise work.error(f"{name} holds {tensor.dtype}, not floating-point numbers".replace("torch.", ""))
    row = key.rpartition(".")[0].endswith("_bn") and tensor.shape == (1, *shape)  # (1, C), as early ports keep them
    # Old Caffe files give all four sizes: (1, 1, 101, 1024), (1, 1, 1, 101).
    padded = caffe and [size for size in tensor.shape if size > 1] == [size for size in shape if size > 1]
    if row or padded:
        tensor = tensor.reshape(shape)
    if tensor.shape != shape:
        raise work.error(f"{name} is {tuple(tensor.shape)}, expected {tuple(shape)}")
    tensor = tensor.float().contiguous()
    if not torch.isfinite(tensor).all():
        raise work.error(f"{name} holds values that are not finite numbers")
    return tensor


def _settle_statistics(
    work: _Tensors, tensors: dict[str, Tensor], checkpoint: Checkpoint, asked: BNStatistics | None
) -> None:
    """Have variances in all batch normalisations.

    TSN's Caffe had a time, from December 2015 to April 2016, when the fourth blob was 1 / sqrt(variance + eps). A value
    above 1 / sqrt(eps), or of 0, cannot be that. Nothing in a file proves the contrary, but variances grow with the
    kernels before them, and their inverses fall. What is decided is noted, and can be said otherwise.
    """
    keys = [key for key in tensors if key.endswith("running_var")]
    for key in keys:
        if (tensors[key] < 0).any():
            raise work.error(f"{work.origin[key]} holds negative values, which no variance is")
    proven = any((tensors[key] > 1.001 * BN_EPS**-0.5).any() or (tensors[key] == 0).any() for key in keys)
    growth = _growth_with_kernels(tensors, keys)
    measured = f"(mean rank correlation {growth:.2f})"
    statistics = asked or ("inverse-std" if growth < FALL and not proven else "variance")
    if statistics == "inverse-std" and not asked and checkpoint.format != "Caffe":
        raise work.error(
            f"its batch normalisations hold what falls with the kernels {measured}, as 1 / sqrt(variance + eps) does: "
            "say --bn-statistics variance or inverse-std"
        )
    if statistics == "inverse-std" and proven:
        raise work.error("its fourth BN tensors hold values that 1 / sqrt(variance + eps) cannot be")
    if asked:
        why = "as asked"
    elif proven:
        why = "as their values prove"
    elif statistics == "inverse-std":
        why = f"as the values fall with the kernels {measured}; --bn-statistics variance reads them otherwise"
    else:
        way = "grow" if growth > 0.05 else "neither grow nor fall"
        why = f"though nothing proves it: they {way} with the kernels {measured}; or say --bn-statistics inverse-std"
    if statistics == "inverse-std":
        for key in keys:
            tensors[key] = (tensors[key].double() ** -2 - BN_EPS).clamp(min=0).float()
        work.notes.append(f"batch normalisation: variances from 1 / sqrt(variance + eps), {why}")
    elif checkpoint.format == "Caffe":
        work.notes.append(f"batch normalisation: variances, {why}")


def _growth_with_kernels(tensors: dict[str, Tensor], keys: list[str]) -> float:
    """Mean over layers of the rank correlation of kernel norms and fourth BN tensors; variances grow with kernels."""
    found = []
    for key in keys:
        norms = tensors[key.replace("_bn.running_var", ".weight")].flatten(1).norm(dim=1)
        statistics = tensors[key]
        if statistics.min() < statistics.max():
            ranks = torch.stack([norms.argsort().argsort(), statistics.argsort().argsort()]).double()
            found.append(torch.corrcoef(ranks)[0, 1].item())
    return sum(found) / len(found) if found else 0.0
