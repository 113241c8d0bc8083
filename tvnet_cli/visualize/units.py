"""The units of a network's layers: which there are, what they are called, and what they see of a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvnet_cli.errors import UnitError
from tvnet_cli.flow.files import JPG_BOUND
from tvnet_cli.network.cards import FlowInput, FrameInput, RGBInput, suggestion
from tvnet_cli.network.inference import InferenceNetwork
from tvnet_cli.network.weights import StreamModel
from tvnet_cli.options import DrawOptions, ExtractOptions
from tvnet_cli.visualize.deepdraw import Space

# Flow as grey levels, as the training sets of two-stream networks keep it.
LEVELS_PER_PIXEL = 255 / (2 * JPG_BOUND)
STILL_LEVEL = 128.0
Input = FlowInput | RGBInput | FrameInput
LIGHT_GROUND = 200.0  # grey level; DeepDraw's for classes


class NetworkLayer:
    """One layer of a network as a function of grey levels, ready for ``tvnet_cli.visualize.deepdraw``.

    Parameters
    ----------
    model : StreamModel
        Stays as it is.
    name : str
        Of ``BNInception.layer_units``, with ``/`` or ``_`` between its parts.
    leak : float
        Share of its gradient that passes backwards through a ReLU that is shut.
    device : torch.device or str

    Attributes
    ----------
    name : str
    num_units : int
        Units, or channels of a map.
    classes : tuple of str
        Names of the units, where the card of the weights has them.
    weights : str
        Their name.
    how : FlowInput or RGBInput
        How the network sees what it is given.

    Raises
    ------
    UnitError
        If the network has no such layer.
    """

    def __init__(self, model: StreamModel, name: str, leak: float = 0.0, device: torch.device | str = "cpu") -> None:
        layers = model.network.layer_units()
        self.name = name.replace("/", "_")
        if self.name == "fc" and "fc" not in layers:
            raise UnitError(
                f"{model.name} has no class head, and so no layer fc: leave fc out, or choose other weights"
            )
        if self.name not in layers:
            raise UnitError(f"no layer is called {name!r}: {suggestion(self.name, layers)}")
        self.num_units = layers[self.name]
        classes = model.card.training.get("classes", ()) if self.name == "fc" else ()
        self.classes = tuple(map(str, classes)) if len(classes) == self.num_units else ()
        self.weights, self.how = model.name, model.card.input
        self._network = (_LeakyNetwork(model.network, leak) if leak else InferenceNetwork(model.network)).to(device)

    def __call__(self, windows: Tensor) -> Tensor:
        """The layer for windows (B, C, H, W) of grey levels less their mean."""
        if isinstance(self.how, FlowInput):
            windows = windows * (self.how.scale / LEVELS_PER_PIXEL)
        return self.of_input(windows)

    def of_input(self, inputs: Tensor) -> Tensor:
        """The layer for inputs of the network (B, C, H, W), as its card says."""
        return self._network.activation(inputs, self.name)

    @property
    def sees_flow(self) -> bool:
        return isinstance(self.how, FlowInput)

    def space(self, options: DrawOptions) -> Space:
        """The pictures that the layer sees, and the ground to begin with."""
        mean = self.how.mean if isinstance(self.how, RGBInput) else [STILL_LEVEL] * self._network.in_channels
        ground = STILL_LEVEL if self.sees_flow else LIGHT_GROUND
        background = ground if options.background is None else options.background
        return Space(np.array(mean, np.float32), ExtractOptions.crop_size, background)

    def title(self, unit: int) -> str:
        """What a unit is called: its class, or its number."""
        return self.classes[unit] if self.classes else f"unit {unit}"

    def file_name(self, unit: int) -> str:
        """The same for a file, with the layer and without signs that a file system may not like."""
        name = self.classes[unit] if self.classes else str(unit)
        return f"{self.name}_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"

    def find(self, words: Sequence[str]) -> list[int]:
        """The units that are meant by numbers from 0, ranges such as ``0-7``, and names of classes, each once.

        Raises
        ------
        UnitError
            If there is no such unit.
        """
        units: dict[int, None] = {}
        for word in words:
            span = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
            if word in self.classes:
                units[self.classes.index(word)] = None
            elif span:
                first, last = int(span[1]), int(span[2] or span[1])
                if not first <= last < self.num_units:
                    raise UnitError(f"no unit {word} in {self.name}: its units are 0 to {self.num_units - 1}")
                units |= dict.fromkeys(range(first, last + 1))
            elif self.classes:
                raise UnitError(f"no class of {self.weights} is called {word!r}: {suggestion(word, self.classes)}")
            else:
                why = "its card names no classes" if self.name == "fc" else "only those of fc have names"
                raise UnitError(f"no unit {word!r} in {self.name} of {self.weights}: {why}; give a number or a range")
        return list(units)


class _LeakyNetwork(InferenceNetwork):
    """A network whose shut ReLUs let a share of the gradient through backwards; its layers are the same."""

    def __init__(self, network: Any, leak: float) -> None:
        super().__init__(network)
        self.leak = leak

    def _unit(self, name: str, x: Tensor) -> Tensor:
        passed: Tensor = _LeakyReLU.apply(self.get_submodule(name)(x), self.leak)  # type: ignore[no-untyped-call]
        return passed


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, leak: float) -> Tensor:
        ctx.save_for_backward(x > 0)
        ctx.leak = leak
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (opened,) = ctx.saved_tensors
        return torch.where(opened, gradients[0], gradients[0] * ctx.leak), None
