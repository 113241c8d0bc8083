"""Find, verify and load weights. Each weight file has a card beside it that says what it is and how to feed it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from tvnet_cli.errors import WeightsError
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.stack import ChannelOrder, StackOrder
from tvnet_cli.options import STREAMS, Stream, TVNetOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNTRAINED = "untrained"
IN_CHANNELS: dict[Stream, int] = {"flow": 10, "rgb": 3}
ARCHITECTURE = "bn_inception"
TVNET_PREFIX = "tvnet."  # of the solver's tensors in a flow file; all others are the network's

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class FlowInput:
    """How flow becomes network input; see ``tvnet_cli.network.stack.stack_flow``."""

    scale: float
    clip_pixels: float
    order: StackOrder

    def __post_init__(self) -> None:
        if self.order not in get_args(StackOrder) or not self.scale > 0 or not self.clip_pixels > 0:
            raise ValueError(
                f"flow input needs scale > 0, clip_pixels > 0, order in {get_args(StackOrder)}, not {self}"
            )


@dataclass(frozen=True)
class RGBInput:
    """How RGB frames become network input; see ``tvnet_cli.network.stack.prepare_rgb``."""

    mean: tuple[float, float, float]
    order: ChannelOrder

    def __post_init__(self) -> None:
        if self.order not in get_args(ChannelOrder) or len(self.mean) != 3:
            raise ValueError(f"RGB input needs three means and order in {get_args(ChannelOrder)}, not {self}")
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))  # a card gives a list


@dataclass(frozen=True)
class WeightCard:
    """What a weight file is: the TOML file beside it.

    Attributes
    ----------
    architecture, stream, source, licence, training_data, sha256 : str
    input : FlowInput or RGBInput
        The ``[input]`` table.
    numbers : dict
        The ``[numbers]`` table: what was measured with these weights.
    tvnet : TVNetOptions
        The ``[tvnet]`` table, optional: the schedule that the network was trained with.
    """

    architecture: str
    stream: Stream
    source: str
    licence: str
    training_data: str
    sha256: str
    input: FlowInput | RGBInput
    numbers: dict[str, Any] = field(default_factory=dict)
    tvnet: TVNetOptions = field(default_factory=TVNetOptions)


@dataclass(frozen=True)
class StreamModel:
    """All that one stream needs: its network and, for flow, the solver before it."""

    name: str
    card: WeightCard
    network: BNInception
    tvnet: TVNet | None


def weights_folder() -> Path:
    """The folder of the weights that come with the program: inside an installed package, beside a checkout's."""
    installed = _PACKAGE / "weights"
    return installed if installed.is_dir() else _PACKAGE.parent / "weights"


def load_models(names: Sequence[str], streams: Sequence[Stream]) -> dict[Stream, StreamModel]:
    """A model for each stream.

    Parameters
    ----------
    names : sequence of str
        ``untrained``, the name of shipped weights, or a ``.safetensors`` file. The cards tell the streams;
        ``untrained`` serves the streams that no other name does.
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
    if not names:
        raise WeightsError(
            "no trained weights come with this version: give --weights FILE.safetensors, "
            "or --weights untrained for a seeded random network"
        )
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
        if stream not in models and UNTRAINED not in names:
            raise WeightsError(f"no weights for the {stream} stream: add --weights FILE.safetensors or untrained")
        if stream not in models:
            models[stream] = untrained_model(stream)
    return {stream: models[stream] for stream in streams}


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
        architecture=ARCHITECTURE,
        stream=stream,
        source=f"seeded random numbers, seed {seed}",
        licence="none needed",
        training_data="none",
        sha256=_sha256_of_tensors(network.state_dict()),
        input=FlowInput(6.375, 20.0, "interleaved") if flow else RGBInput((104, 117, 123), "BGR"),
    )
    return StreamModel(UNTRAINED, card, network.eval(), TVNet().eval() if flow else None)


def load_weights(name: str) -> StreamModel:
    """Load shipped weights by name, or a ``.safetensors`` file, after checking it against its card.

    Raises
    ------
    WeightsError
    """
    path = _find(name)
    card = read_card(path.with_suffix(".toml"))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise WeightsError(f"{path} is damaged or not the file of its card: sha256 {found}, expected {card.sha256}")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    solver = {key.removeprefix(TVNET_PREFIX): tensors.pop(key) for key in list(tensors) if key.startswith(TVNET_PREFIX)}
    if solver and card.stream != "flow":
        raise WeightsError(f"{path} holds a TVNet, but its card says {card.stream}")
    classifier = tensors.get("fc.weight")
    network = BNInception(IN_CHANNELS[card.stream], num_classes=0 if classifier is None else len(classifier))
    _load_strictly(network, tensors, path)
    tvnet = None
    if card.stream == "flow":
        u0 = solver.get("u0")
        size = {} if u0 is None or u0.dim() != 4 else {"u0_size": (u0.shape[2], u0.shape[3])}
        tvnet = TVNet.from_options(card.tvnet, **size)
        if solver:
            _load_strictly(tvnet, solver, path)
        tvnet.eval()
    return StreamModel(name, card, network.eval(), tvnet)


def load_tvnet(name: str | None, options: TVNetOptions) -> tuple[TVNet, str | None]:
    """The solver of weights, and their sha256; without a name an untrained one with the schedule of ``options``.

    Raises
    ------
    WeightsError
        Also if the weights hold no trained kernels.
    """
    if name is None:
        return TVNet.from_options(options).eval(), None
    model = load_weights(name)
    if model.tvnet is None:
        raise WeightsError(f"{name} is for the {model.card.stream} stream and holds no TVNet")
    untrained = TVNet.from_options(model.tvnet.options, u0_size=tuple(model.tvnet.u0.shape[2:])).state_dict()
    if all(torch.equal(tensor, untrained[key]) for key, tensor in model.tvnet.state_dict().items()):
        raise WeightsError(f"{name} holds no trained TVNet kernels: leave out --weights, or choose another file")
    return model.tvnet, model.card.sha256


def read_card(path: Path) -> WeightCard:
    """Read the card of a weight file.

    Raises
    ------
    WeightsError
        Naming the entry that is missing, unknown or wrong.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"the weights have no card: {path} is missing; weights/README.md says what it holds"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WeightsError(f"cannot read the card {path}: {error}") from error
    texts = {key: _entry(table, key, str, path) for key in _CARD_TEXTS}
    if texts["architecture"] != ARCHITECTURE:
        raise WeightsError(f"{path}: architecture is {texts['architecture']!r}, this version knows {ARCHITECTURE!r}")
    if texts["stream"] not in STREAMS:
        raise WeightsError(f"{path}: stream is {texts['stream']!r}, expected {' or '.join(STREAMS)}")
    stream_input = _entry(table, "input", dict, path)
    numbers, schedule = table.pop("numbers", {}), table.pop("tvnet", {})
    try:
        how = FlowInput(**stream_input) if texts["stream"] == "flow" else RGBInput(**stream_input)
        card = WeightCard(**texts, input=how, numbers=numbers, tvnet=TVNetOptions(**schedule))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error
    if table:
        raise WeightsError(f"{path}: unknown entry {next(iter(table))!r}")
    return card


_CARD_TEXTS = ("architecture", "stream", "source", "licence", "training_data", "sha256")


def _entry(table: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    value = table.pop(key, None)
    if not isinstance(value, kind):
        raise WeightsError(f"{path}: {key} is missing or not a {'table' if kind is dict else 'text'}")
    return value


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix == ".safetensors":
        return path
    if path.exists():
        raise WeightsError(
            f"{name} is no safetensors file: this version reads .safetensors with a card (.toml) beside it; "
            "published PyTorch and Caffe checkpoints cannot be read yet"
        )
    shipped = weights_folder() / f"{name}.safetensors"
    if not shipped.exists():
        names = [found.stem for found in sorted(weights_folder().glob("*.safetensors"))]
        raise WeightsError(
            f"no weights called {name!r}: it is no file, and {weights_folder()} holds {', '.join(names) or 'none'}"
        )
    return shipped


def _load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """All tensors of the module from the file, and no other; half precision becomes float32."""
    expected = {
        key: tensor.shape for key, tensor in module.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    given = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unknown:
        said = [
            f"{len(keys)} {word} ({keys[0]} ...)" for keys, word in ((missing, "missing"), (unknown, "unknown")) if keys
        ]
        raise WeightsError(f"{path} does not hold this network: tensors {', '.join(said)}")
    for key, tensor in sorted(given.items()):
        if tensor.shape != expected[key]:
            raise WeightsError(f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(expected[key])}")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {key} holds values that are not finite numbers")
    module.load_state_dict({key: tensor.float() for key, tensor in given.items()}, strict=False)


def _sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
