"""Find, verify, load and write weights. Each weight file has a card beside it: see ``tvnet_cli.network.cards``."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tvnet_cli.errors import WeightsError, lacks_memory
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.cards import (
    MAX_WEIGHT_BYTES,
    TVNET_ALONE,
    FlowInput,
    RGBInput,
    WeightCard,
    as_toml,
    card_table,
    find_weights,
    read_card,
    read_whole,
    weights_folder,
)
from tvnet_cli.options import DEFAULT_WEIGHTS, Stream, TVNetOptions
from tvnet_cli.writing import write_together

UNTRAINED = "untrained"
IN_CHANNELS: dict[Stream, int] = {"flow": 10, "rgb": 3}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FEATURES = 1024  # that the classifier reads
MAX_HEADER_BYTES = 4 << 20  # of a safetensors file: names and shapes of all tensors; ours have 50 kB
SHOWN = 5  # names of tensors in an error
TVNET_PREFIX = "tvnet."  # of the solver's tensors in a flow file; all others are the network's


@dataclass(frozen=True)
class StreamModel:
    """All that one stream needs: its network and, for flow, the solver before it."""

    name: str
    card: WeightCard
    network: BNInception
    tvnet: TVNet | None


def load_models(names: Sequence[str], streams: Sequence[Stream]) -> dict[Stream, StreamModel]:
    """A model for each stream.

    Parameters
    ----------
    names : sequence of str
        ``untrained``, or what ``tvnet_cli.network.cards.find_weights`` finds. The cards tell the streams. A stream
        that no name serves gets ``untrained`` if that was named, else the weights that come with the program.
    streams : sequence of {"flow", "rgb"}

    Returns
    -------
    dict of stream to StreamModel
        In evaluation mode, on the CPU.

    Raises
    ------
    WeightsError
        If weights are missing, are not what their card says, or two serve one stream.
    """
    models: dict[Stream, StreamModel] = {}
    for name in names:
        if name == UNTRAINED:
            continue
        model = load_weights(name)
        stream = model.card.stream
        if stream not in streams:
            raise WeightsError(f"{name} is for the {stream} stream, which was not asked for: add --streams {stream}")
        if stream in models:
            raise WeightsError(f"{models[stream].name} and {name} are both for the {stream} stream: give one")
        models[stream] = model
    for stream in streams:
        if stream not in models:
            models[stream] = untrained_model(stream) if UNTRAINED in names else _default_model(stream)
    return {stream: models[stream] for stream in streams}


def _default_model(stream: Stream) -> StreamModel:
    """The model that comes with the program."""
    name = DEFAULT_WEIGHTS.get(stream)
    if name is None:
        raise WeightsError(
            f"no {stream.upper()} weights come with the program: tvnet weights import FILE --name NAME "
            f"--stream {stream} takes published ones, then add --weights NAME; or add --weights untrained"
        )
    path = weights_folder() / f"{name}.safetensors"
    if not path.exists():
        raise WeightsError(
            f"no trained weights for the {stream} stream come with this version: give --weights FILE.safetensors, "
            "or --weights untrained for a seeded random network"
        )
    return _load_file(path, name)


def untrained_model(stream: Stream, seed: int = 0) -> StreamModel:
    """A seeded random network: the same on every run, without any learned motion.

    Parameters
    ----------
    stream : {"flow", "rgb"}
    seed : int

    Returns
    -------
    StreamModel
    """
    network = BNInception(IN_CHANNELS[stream], num_classes=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                # Not zero: a film without motion should still have features.
                assert module.bias is not None
                module.bias.normal_(0, 0.1, generator=generator)
    flow = stream == "flow"
    card = WeightCard(
        stream=stream,
        source=f"seeded random numbers, seed {seed}",
        licence="none needed",
        training_data="none",
        sha256=_sha256_of_tensors(network.state_dict()),
        input=FlowInput(6.375, 20.0, "interleaved") if flow else RGBInput((104, 117, 123), "BGR"),
    )
    return StreamModel(UNTRAINED, card, network.eval(), TVNet().eval() if flow else None)


def load_model(name: str | None) -> StreamModel:
    """The model of one name, whatever its stream; without a name that of flow which comes with the program.

    Raises
    ------
    WeightsError
    """
    if name is None or name == UNTRAINED:
        return load_models([name] if name else [], ["flow"])["flow"]
    return load_weights(name)


def load_weights(name: str) -> StreamModel:
    """Load weights by name, or a ``.safetensors`` file, after checking it against its card.

    Raises
    ------
    WeightsError
    """
    return _load_file(find_weights(name), name)


def check_weights(path: Path) -> WeightCard:
    """Check a weight file, of a network or of a TVNet alone: its hash, its card and every tensor.

    Raises
    ------
    WeightsError
    """
    card, _, _ = _opened(path)
    return card


def _load_file(path: Path, name: str) -> StreamModel:
    card, network, tvnet = _opened(path)
    if network is None:
        raise WeightsError(f"{path} holds a TVNet alone: tvnet flow takes it, features need a network too")
    return StreamModel(name, card, network.eval(), tvnet and tvnet.eval())


def _opened(path: Path) -> tuple[WeightCard, BNInception | None, TVNet | None]:
    """The card of a weight file, its network and its solver, once all agree."""
    try:
        card, tensors = _read(path)
        return card, *_build(tensors, card, path)
    except Exception as error:
        if lacks_memory(error):
            raise WeightsError(f"there is not enough memory to load the weights {path}") from error
        raise


def _read(path: Path) -> tuple[WeightCard, dict[str, Tensor]]:
    """The card of a weight file and its tensors, once they agree."""
    card = read_card(path.with_suffix(".toml"))
    try:
        content = read_whole(path, MAX_WEIGHT_BYTES)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise WeightsError(f"{path} is damaged or not the file of its card: sha256 {found}, expected {card.sha256}")
    try:
        tensors = read_tensors(content)
    except (SafetensorError, KeyError, ValueError) as error:  # a KeyError where a type of numbers has no name in torch
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    return card, tensors


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises
    ------
    ValueError, KeyError, SafetensorError
        If it is none, or lists millions of tensors, each of which takes memory even where it is empty.
    """
    header = int.from_bytes(content[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {header:,} bytes, at most {MAX_HEADER_BYTES:,} are taken")
    return load(content)


def tensors_to_keep(network: BNInception, tvnet: TVNet | None) -> dict[str, Tensor]:
    """What ``write_weights`` writes of a network and the solver before it, by name."""
    tensors = {key: tensor for key, tensor in network.state_dict().items() if tensor.is_floating_point()}
    if tvnet is not None:
        tensors |= {TVNET_PREFIX + key: tensor for key, tensor in tvnet.state_dict().items()}
    return tensors


def write_weights(path: Path, tensors: dict[str, Tensor], card: WeightCard, *, overwrite: bool = False) -> WeightCard:
    """Write a weight file and its card, whole or not at all.

    Parameters
    ----------
    path : Path
        ``NAME.safetensors``; the card becomes ``NAME.toml`` beside it.
    tensors : dict of str to Tensor, float
        Of a ``BNInception`` under their names there, in the precision in which they are to be kept; those of a
        ``TVNet``, for flow, with ``tvnet.`` before their names, and they alone where the card says ``tvnet``.
    card : WeightCard
        Its ``sha256`` is not looked at.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    WeightCard
        With the sha256 of the file.

    Raises
    ------
    DiskFullError
    WeightsError
        If a file is there, or the tensors are not those of the network of the card.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> card = WeightCard(
    ...     stream="rgb", source="nowhere", licence="MIT", training_data="none", input=RGBInput((104, 117, 123), "BGR")
    ... )
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "mine.safetensors")
    ...     written = write_weights(path, BNInception(3, num_classes=5).state_dict(), card)
    ...     load_weights(str(path)).card == written
    True
    """
    beside = path.with_suffix(".toml")
    there = next((str(file) for file in (path, beside) if file.exists()), None)
    if there and not overwrite:
        raise WeightsError(f"{there} is there already: choose another name, or --overwrite")
    _build(tensors, card, path)
    content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest())
    text = as_toml(card_table(card))
    try:
        # Were it to end between the two, weights with another card would be refused.
        write_together({path: content, beside: text.encode()}, sync=True)
    except OSError as error:
        raise WeightsError(str(error.strerror)) from error
    return card


def load_tvnet(name: str | None, options: TVNetOptions) -> tuple[TVNet, str | None]:
    """The solver of weights, and their sha256; without a name an untrained one with the schedule of ``options``.

    Raises
    ------
    WeightsError
        Also if the weights hold no trained kernels.
    """
    if name is None:
        return TVNet.from_options(options).eval(), None
    path = find_weights(name)
    card, _, tvnet = _opened(path)
    if tvnet is None:
        raise WeightsError(f"{name} is for the {card.stream} stream and holds no TVNet")
    if not is_trained(tvnet):
        raise WeightsError(f"{name} holds no trained TVNet kernels: leave out --weights, or choose another file")
    return tvnet.eval(), card.sha256


def is_trained(tvnet: TVNet) -> bool:
    """Whether it is anything else than the untrained solver."""
    untrained = TVNet.from_options(tvnet.options, u0_size=tuple(tvnet.u0.shape[2:])).to(tvnet.u0).state_dict()
    return not all(torch.equal(tensor, untrained[key]) for key, tensor in tvnet.state_dict().items())


def _build(tensors: dict[str, Tensor], card: WeightCard, path: Path) -> tuple[BNInception | None, TVNet | None]:
    """The network and, for flow, the solver that these tensors are; no network for a TVNet alone."""
    solver = {key.removeprefix(TVNET_PREFIX): value for key, value in tensors.items() if key.startswith(TVNET_PREFIX)}
    layers = {key: value for key, value in tensors.items() if not key.startswith(TVNET_PREFIX)}
    if solver and card.stream != "flow":
        raise WeightsError(f"{path} holds a TVNet, but its card says {card.stream}")
    alone = card.architecture == TVNET_ALONE
    network = None
    if not alone:
        classes = _num_classes(layers, path)
        network = BNInception(IN_CHANNELS[card.stream], num_classes=classes)
        _load_strictly(network, layers, path)
    if card.stream != "flow":
        return network, None
    u0 = solver.get("u0")
    size = {} if u0 is None or u0.dim() != 4 or not u0.numel() else {"u0_size": (u0.shape[2], u0.shape[3])}
    tvnet = TVNet.from_options(card.tvnet, **size)
    if alone:
        _load_strictly(tvnet, solver | layers, path)
    elif solver:
        _load_strictly(tvnet, solver, path)
    return network, tvnet


def _num_classes(layers: dict[str, Tensor], path: Path) -> int:
    """Of the classifier, once its weights are there, too: a network is not made larger than the file."""
    if "fc.bias" not in layers:
        return 0
    classes = layers["fc.bias"].numel()
    weight = layers.get("fc.weight")
    if weight is not None and weight.shape != (classes, FEATURES):
        raise WeightsError(f"{path}: fc.weight is {tuple(weight.shape)}, expected {(classes, FEATURES)}")
    return classes if weight is not None else 1


def _load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """All tensors of the module from the file, and no other; half precision becomes float32."""
    expected = {
        key: tensor.shape for key, tensor in module.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    given = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unknown:
        said = [
            f"{len(keys)} {word}: {_some(keys)}" for keys, word in ((missing, "missing"), (unknown, "unknown")) if keys
        ]
        raise WeightsError(f"{path} does not hold this network: tensors {'; '.join(said)}")
    for key, tensor in sorted(given.items()):
        if tensor.shape != expected[key]:
            raise WeightsError(f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(expected[key])}")
        if tensor.dtype not in DTYPES or not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {key} holds values that are not finite numbers")
    module.load_state_dict({key: tensor.float() for key, tensor in given.items()}, strict=False)


def _some(names: list[str]) -> str:
    """Names for people: the first of many, none of them long."""
    shown = ", ".join(name if len(name) <= 80 else f"{name[:80]}..." for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
