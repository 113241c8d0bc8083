"""Where weight files lie, and their cards: a TOML file beside each that says what it is and how to feed it.

No torch in this module: cards are listed and shown without it.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any, get_args, get_type_hints

from platformdirs import user_cache_dir

from tvnet_cli.errors import WeightsError, printable
from tvnet_cli.network.registry import PUBLISHED
from tvnet_cli.options import STREAMS, ChannelOrder, StackOrder, Stream, TVNetOptions, as_dict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ARCHITECTURE = "bn_inception"
TVNET_ALONE = "tvnet"  # trained kernels for flow, without a network that makes features of it

MAX_WEIGHT_BYTES = 2 << 30  # of a weight file or checkpoint; published ones have up to 0.3 GiB
MAX_CARD_BYTES = 1 << 20

# A key of many parts, a.a.a.a..., takes the parser time with their square: one of a megabyte takes hours.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""")
LARGEST = 1e6  # scale and limit of flow; 1 / LARGEST is the smallest scale
LEVELS = 255  # of RGB frames

_PACKAGE = Path(__file__).resolve().parents[1]
_TEXTS = ("architecture", "stream", "source", "licence", "training_data", "sha256")


@dataclass(frozen=True)
class FlowInput:
    """How flow becomes network input; see ``tvnet_cli.network.stack.stack_flow``."""

    scale: float
    clip_pixels: float
    order: StackOrder

    def __post_init__(self) -> None:
        in_range = 1 / LARGEST <= self.scale <= LARGEST and 0 < self.clip_pixels <= LARGEST  # NaN is not
        if self.order not in get_args(StackOrder) or not in_range:
            raise ValueError(
                f"flow input needs scale > 0, clip_pixels > 0, both at most {LARGEST:,.0f}, scale at least "
                f"{1 / LARGEST:g}, order in {get_args(StackOrder)}, not {self}"
            )


@dataclass(frozen=True)
class RGBInput:
    """How RGB frames become network input; see ``tvnet_cli.network.stack.prepare_rgb``."""

    mean: tuple[float, float, float]
    order: ChannelOrder

    def __post_init__(self) -> None:
        if self.order not in get_args(ChannelOrder) or len(self.mean) != 3:
            raise ValueError(f"RGB input needs three means and order in {get_args(ChannelOrder)}, not {self}")
        if not all(0 <= value <= LEVELS for value in self.mean):  # NaN is not
            raise ValueError(f"RGB input needs means from 0 to {LEVELS}, not {self}")
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))  # a card gives a list


@dataclass(frozen=True)
class FrameInput:
    """A TVNet alone takes frames as they are; its card has no ``[input]`` table."""


@dataclass(frozen=True, kw_only=True)
class WeightCard:
    """What a weight file is: the TOML file beside it.

    Attributes
    ----------
    architecture : str
        ``bn_inception``, with or without a TVNet before it, or ``tvnet``, a TVNet alone.
    stream, source, licence, training_data : str
    sha256 : str
        Of the weight file, filled in by ``tvnet_cli.network.weights.write_weights``.
    input : FlowInput, RGBInput or FrameInput
        The ``[input]`` table.
    numbers : dict
        The ``[numbers]`` table: what was measured with these weights.
    training : dict
        The ``[training]`` table, optional: how they came about, such as command, data, seed, hardware, seconds.
    tvnet : TVNetOptions
        The ``[tvnet]`` table, optional: the schedule that the network was trained with.
    """

    architecture: str = ARCHITECTURE
    stream: Stream
    source: str
    licence: str
    training_data: str
    sha256: str = ""
    input: FlowInput | RGBInput | FrameInput
    numbers: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tvnet: TVNetOptions = field(default_factory=TVNetOptions)


def weights_folder() -> Path:
    """The folder of the weights that come with the program: inside an installed package, beside a checkout's."""
    installed = _PACKAGE / "weights"
    return installed if installed.is_dir() else _PACKAGE.parent / "weights"


def cache_folder() -> Path:
    """The folder of what was imported and downloaded; ``TVNET_CACHE`` names another than the system's."""
    return Path(os.environ.get("TVNET_CACHE") or user_cache_dir("tvnet", appauthor=False))


def imported_folder() -> Path:
    """The folder of imported weights."""
    return cache_folder() / "weights"


def known_weights() -> dict[str, Path]:
    """The weight files that come with the program, then those that were imported, by name."""
    found = (path for folder in (imported_folder(), weights_folder()) for path in folder.glob("*.safetensors"))
    by_name = {path.stem: path for path in found}  # those of the program hide imported ones of the same name
    shipped = weights_folder()
    return dict(sorted(by_name.items(), key=lambda item: (item[1].parent != shipped, item[0])))


def find_weights(name: str) -> Path:
    """The weight file that a name means.

    Parameters
    ----------
    name : str
        A ``.safetensors`` file, or the name of weights that come with the program or were imported.

    Raises
    ------
    WeightsError
        If nothing has this name; a file with a suffix need not exist.
    """
    path = Path(name)
    if path.suffix == ".safetensors":
        return path
    known = known_weights()
    if name in known:
        return known[name]
    if path.exists():
        raise WeightsError(
            f"{name} is no .safetensors file with a card: tvnet weights import {name} --name NAME reads PyTorch and "
            "Caffe checkpoints"
        )
    if name in PUBLISHED:
        raise WeightsError(f"no weights called {name!r}: tvnet weights fetch {name} gets them from their publishers")
    raise WeightsError(f"no weights called {name!r}: {suggestion(name, known)}; tvnet weights list shows all")


def list_cards() -> list[dict[str, Any]]:
    """Name, state, path and card of all weights that are here; of one whose card is wrong, what is wrong."""
    entries = []
    for name, path in known_weights().items():
        state = "shipped" if path.parent == weights_folder() else "imported"
        try:
            card = card_table(read_card(path.with_suffix(".toml")))
        except WeightsError as error:
            card, state = {"stream": "?", "source": str(error)}, "bad"
        entries.append({"name": name, "state": state, "path": str(path), **card})
    return entries


def suggestion(name: str, known: Iterable[str]) -> str:
    """What may have been meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known) or 'none yet'}"


def read_whole(path: Path, most: int) -> bytes:
    """The content of a file of at most so many bytes; pipes and devices, which may never end, are not opened.

    Raises
    ------
    OSError
        Also if there is not enough memory for it.
    """
    found = path.stat()
    if stat.S_ISREG(found.st_mode):
        try:
            return _content(path, most)
        except MemoryError:
            what = f"there is not enough memory for its {found.st_size:,} bytes"
            raise OSError(errno.ENOMEM, what, str(path)) from None
    raise OSError(errno.EINVAL, "it is no file", str(path))


def _content(path: Path, most: int) -> bytes:
    # Without waiting for the other end, should a pipe have taken the place of the file meanwhile.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # noqa: PTH123
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, at most {most:,} are taken", str(path))
        return file.read(found.st_size)


def read_card(path: Path) -> WeightCard:
    """Read the card of a weight file.

    Raises
    ------
    WeightsError
        Naming the entry that is missing, unknown or wrong.
    """
    try:
        text = read_whole(path, MAX_CARD_BYTES).decode("utf-8")
        if _LONG_KEY.search(text):
            raise ValueError("a key in it has more than 100 parts")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise WeightsError(
            f"the weights have no card: {path} is missing; weights/README.md says what it holds"
        ) from None
    except OSError as error:
        raise WeightsError(f"cannot read the card {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of text, of TOML, and of numbers of many digits
        raise WeightsError(f"cannot read the card {path}: {error}") from error
    texts = {key: _entry(table, key, str, path) for key in _TEXTS}
    known, alone = (ARCHITECTURE, TVNET_ALONE), texts["architecture"] == TVNET_ALONE
    if texts["architecture"] not in known:
        raise WeightsError(
            f"{path}: architecture is {texts['architecture']!r}, this version knows {' and '.join(map(repr, known))}"
        )
    streams = ("flow",) if alone else STREAMS
    if texts["stream"] not in streams:
        raise WeightsError(f"{path}: stream is {texts['stream']!r}, expected {' or '.join(streams)}")
    stream_input = {} if alone else _entry(table, "input", dict, path)
    numbers, training, schedule = (
        _entry(table, key, dict, path) if key in table else {} for key in ("numbers", "training", "tvnet")
    )
    try:
        reader = FrameInput if alone else FlowInput if texts["stream"] == "flow" else RGBInput
        _check_types(reader, stream_input, "input", path)
        _check_types(TVNetOptions, schedule, "tvnet", path)
        how: FlowInput | RGBInput | FrameInput = reader(**stream_input)
        card = WeightCard(**texts, input=how, numbers=numbers, training=training, tvnet=TVNetOptions(**schedule))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error
    if table:
        raise WeightsError(f"{path}: unknown entry {next(iter(table))!r}")
    return card


def _check_types(kind: type[Any], table: dict[str, Any], name: str, path: Path) -> None:
    """Refuse a table that has not the entries of a dataclass, or numbers of another type; the rest it says itself."""
    expected = get_type_hints(kind)
    needed = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    for key in needed:
        if key not in table:
            raise WeightsError(f"{path}: {key} is missing in [{name}]")
    for key, value in table.items():
        if key not in expected:
            raise WeightsError(f"{path}: unknown entry {key!r} in [{name}]")
        words, fits = _TYPES.get(expected[key], ("", lambda value: True))
        if not fits(value):
            raise WeightsError(f"{path}: {key} in [{name}] should be {words}, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Of entries of cards: what they should be, in words and as a test.
_TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", _is_number),
    tuple[float, float, float]: (
        "a list of numbers",
        lambda value: isinstance(value, list) and all(map(_is_number, value)),
    ),
}


def card_table(card: WeightCard) -> dict[str, Any]:
    """The entries of a card in the order of its file; empty tables are left out, and RGB weights have no schedule."""
    tables = {
        "input": {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(card.input).items()},
        "numbers": card.numbers,
        "training": card.training,
        "tvnet": as_dict(card.tvnet) if card.stream == "flow" else {},
    }
    return {key: getattr(card, key) for key in _TEXTS} | {name: table for name, table in tables.items() if table}


def as_toml(table: dict[str, Any], name: str = "") -> str:
    r"""A table of plain values as TOML.

    Parameters
    ----------
    table : dict
        Of str, bool, int, float, dates and times, lists of such, and tables.
    name : str
        Dotted, of the table inside the file; empty for the whole file.

    Raises
    ------
    TypeError
        On a value that TOML cannot hold, such as None.

    Examples
    --------
    >>> print(as_toml({"source": 'a "test"', "numbers": {"accuracy": 87.7}}), end="")
    source = "a \"test\""
    <BLANKLINE>
    [numbers]
    accuracy = 87.7
    """
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    text = "".join(f"{_toml_key(key)} = {_toml_value(value)}\n" for key, value in values.items())
    if name and (values or not tables):
        text = f"\n[{name}]\n{text}"
    return text + "".join(as_toml(value, f"{name}.{_toml_key(key)}".lstrip(".")) for key, value in tables.items())


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        # TOML escapes as JSON does, the delete character too; all else that steers a terminal is escaped as well.
        text = json.dumps(value, ensure_ascii=False)
        if printable(text) == text:
            return text
        return "".join(char if printable(char) == char else _toml_escape(char) for char in text)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):  # in a list
        return f"{{{', '.join(f'{_toml_key(key)} = {_toml_value(one)}' for key, one in value.items())}}}"
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise TypeError(f"a card cannot hold {value!r}")


def _toml_escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def _entry(table: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    value = table.pop(key, None)
    if not isinstance(value, kind):
        raise WeightsError(f"{path}: {key} is missing or not a {'table' if kind is dict else 'text'}")
    return value
