"""BN-Inception with the graph and the layer names of the published TSN models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvnet_cli.options import suits_network

LAYERS = ("global_pool", "inception_5b_output", "inception_5a_output", "inception_4e_output")

# Published names of all layers follow from these tables: inception_3a/1x1 is inception_3a_1x1 here, its batch
# normalisation inception_3a_1x1_bn.


class Block(NamedTuple):
    """Output channels of the branches of one inception block; the pool is "average", "max" or "pass-through"."""

    single: int  # 1x1; 0 in the pass-through blocks
    reduce: int  # 3x3_reduce
    three: int  # 3x3
    double_reduce: int  # double_3x3_reduce
    double: int  # double_3x3_1 and double_3x3_2
    pool: str
    project: int  # pool_proj; 0 in the pass-through blocks

    @property
    def stride(self) -> int:
        return 2 if self.pool == "pass-through" else 1

    @property
    def first_units(self) -> dict[str, int]:
        """The 1x1 units that read the input of the block, and their output channels."""
        units = {"1x1": self.single, "3x3_reduce": self.reduce, "double_3x3_reduce": self.double_reduce}
        return {unit: channels for unit, channels in units.items() if channels}

    def out_channels(self, in_channels: int) -> int:
        pooled = in_channels if self.pool == "pass-through" else self.project
        return self.single + self.three + self.double + pooled


BLOCKS = {
    "inception_3a": Block(64, 64, 64, 64, 96, "average", 32),
    "inception_3b": Block(64, 64, 96, 64, 96, "average", 64),
    "inception_3c": Block(0, 128, 160, 64, 96, "pass-through", 0),
    "inception_4a": Block(224, 64, 96, 96, 128, "average", 128),
    "inception_4b": Block(192, 96, 128, 96, 128, "average", 128),
    "inception_4c": Block(160, 128, 160, 128, 160, "average", 128),
    "inception_4d": Block(96, 128, 192, 160, 192, "average", 128),
    "inception_4e": Block(0, 128, 192, 192, 256, "pass-through", 0),
    "inception_5a": Block(352, 192, 320, 160, 224, "average", 128),
    "inception_5b": Block(352, 192, 320, 192, 224, "max", 128),
}


class BNInception(nn.Module):
    """BN-Inception as in the TSN models: every convolution with bias, then batch normalisation, then ReLU.

    Parameters
    ----------
    in_channels : int
        10 for a stack of 5 flow fields, 3 for RGB.
    num_classes : int
        Outputs of the classifier ``fc``; 0 builds none.

    Raises
    ------
    ValueError
        On an input whose size the graph cannot take: see ``check_size``.

    References
    ----------
    Ioffe, Szegedy: Batch Normalization, ICML 2015; Wang et al.: Temporal Segment Networks, ECCV 2016, whose
    released models define the graph. We differ in one point: ``global_pool`` is the mean over the whole map,
    which at 224 x 224 is their 7 x 7 window.

    Examples
    --------
    >>> import torch
    >>> features = BNInception(in_channels=10, num_classes=0).features(torch.zeros(1, 10, 224, 224))
    >>> {name: tuple(tensor.shape) for name, tensor in features.items()}["inception_4e_output"]
    (1, 1056, 7, 7)
    """

    def __init__(self, in_channels: int = 10, num_classes: int = 1000) -> None:
        super().__init__()
        self.in_channels = in_channels
        self._add_unit("conv1_7x7_s2", in_channels, 64, 7, stride=2)
        self._add_unit("conv2_3x3_reduce", 64, 64, 1)
        self._add_unit("conv2_3x3", 64, 192, 3)
        channels = 192
        for name, block in BLOCKS.items():
            self._add_block(name, channels, block)
            channels = block.out_channels(channels)
        self.fc = nn.Linear(channels, num_classes) if num_classes else None

    def _add_unit(self, name: str, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        convolution = nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2)
        self.add_module(name, convolution)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1))

    def _add_block(self, name: str, channels: int, block: Block) -> None:
        if block.single:
            self._add_unit(f"{name}_1x1", channels, block.single, 1)
        self._add_unit(f"{name}_3x3_reduce", channels, block.reduce, 1)
        self._add_unit(f"{name}_3x3", block.reduce, block.three, 3, stride=block.stride)
        self._add_unit(f"{name}_double_3x3_reduce", channels, block.double_reduce, 1)
        self._add_unit(f"{name}_double_3x3_1", block.double_reduce, block.double, 3)
        self._add_unit(f"{name}_double_3x3_2", block.double, block.double, 3, stride=block.stride)
        if block.project:
            self._add_unit(f"{name}_pool_proj", channels, block.project, 1)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The four feature layers in one pass.

        Parameters
        ----------
        x : Tensor, (B, in_channels, H, W), float
            Flow stack or RGB frame, prepared as the card of the weights says.

        Returns
        -------
        dict of str to Tensor, all values >= 0
            At 224 x 224: ``global_pool`` (B, 1024), ``inception_5b_output`` and ``inception_5a_output``
            (B, 1024, 7, 7), ``inception_4e_output`` (B, 1056, 7, 7).
        """
        kept = {name: values for name, values in self._layers(x) if name in LAYERS}
        return {layer: kept[layer] for layer in LAYERS}

    def activation(self, x: Tensor, layer: str) -> Tensor:
        """One layer, and nothing behind it is computed.

        Parameters
        ----------
        x : Tensor, (B, in_channels, H, W), float
        layer : str
            Of ``layer_units``.

        Returns
        -------
        Tensor, (B, units, height, width), or (B, units) of ``global_pool`` and ``fc``
            After the ReLU; ``fc`` before softmax.
        """
        if layer == "fc":
            scores: Tensor = self(x)
            return scores
        return next(values for name, values in self._layers(x) if name == layer)

    def layer_units(self) -> dict[str, int]:
        """The layers that ``activation`` gives, from input to output, and the units or channels of each."""
        channels = 192
        units = {"conv1_7x7_s2": 64, "conv2_3x3": channels}
        for name, block in BLOCKS.items():
            channels = block.out_channels(channels)
            units[f"{name}_output"] = channels
        units["global_pool"] = channels
        return units if self.fc is None else {**units, "fc": self.fc.out_features}

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax, (B, num_classes)."""
        if self.fc is None:
            raise ValueError("this network was built without a classifier (num_classes=0)")
        scores: Tensor = self.fc(self.features(x)["global_pool"])
        return scores

    def _layers(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each layer up to ``global_pool`` as soon as it is computed, by name."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"input must be (B, {self.in_channels}, H, W), not {tuple(x.shape)}")
        check_size(*x.shape[-2:])
        x = self._unit("conv1_7x7_s2", x)
        yield "conv1_7x7_s2", x
        x = self._unit("conv2_3x3_reduce", F.max_pool2d(x, 3, 2, ceil_mode=True))
        x = self._unit("conv2_3x3", x)
        yield "conv2_3x3", x
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for name, block in BLOCKS.items():
            x = self._run_block(name, block, x)
            yield f"{name}_output", x
        yield "global_pool", x.mean((2, 3))

    def _unit(self, name: str, x: Tensor) -> Tensor:
        convolution, normalisation = self.get_submodule(name), self.get_submodule(f"{name}_bn")
        return F.relu(normalisation(convolution(x)), inplace=True)

    def _first_units(self, name: str, block: Block, x: Tensor) -> list[Tensor]:
        return [self._unit(f"{name}_{unit}", x) for unit in block.first_units]

    def _run_block(self, name: str, block: Block, x: Tensor) -> Tensor:
        *branches, three, double = self._first_units(name, block, x)
        branches.append(self._unit(f"{name}_3x3", three))
        branches.append(self._unit(f"{name}_double_3x3_2", self._unit(f"{name}_double_3x3_1", double)))
        if block.pool == "pass-through":
            branches.append(F.max_pool2d(x, 3, 2, ceil_mode=True))
        elif block.pool == "max":
            branches.append(self._unit(f"{name}_pool_proj", F.max_pool2d(x, 3, 1, padding=1, ceil_mode=True)))
        else:
            # Caffe counts the padding in the average, and so does torch by default.
            branches.append(self._unit(f"{name}_pool_proj", F.avg_pool2d(x, 3, 1, padding=1, ceil_mode=True)))
        return torch.cat(branches, 1)


def check_size(height: int, width: int) -> None:
    """Refuse input sizes that the graph cannot take.

    In the pass-through blocks a pool that rounds up meets convolutions that round down; their sizes agree only
    where each side lies in 32k-1 .. 32k+6.

    Raises
    ------
    ValueError
        Naming the sides nearby that work.
    """
    for side in (height, width):
        if not suits_network(side):
            k = (side + 1) // 32
            below = f"{32 * k - 1} to {32 * k + 6} or " if k >= 1 else ""
            raise ValueError(
                f"BN-Inception cannot take {height} x {width} (height x width): {side} is not in "
                f"{below}{32 * k + 31} to {32 * k + 38}"
            )
