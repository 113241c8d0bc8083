"""BN-Inception for inference only: the same layers with less work."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tvnet_cli.network.bn_inception import BLOCKS, Block, BNInception


class InferenceNetwork(BNInception):
    """A copy of a network that computes its layers with fewer operations.

    Batch normalisation is folded into the convolution before it, and the 1x1 convolutions of a block that read the
    same input are one. The layers equal those of the network up to rounding, at most 3e-6 of the largest value. The
    copy has other tensors than the network, so it is neither saved nor trained.

    Parameters
    ----------
    network : BNInception
        In evaluation mode; stays as it is.
    dtype : torch.dtype
        Of weights and arithmetic. Inputs may be of any, and the layers come out as float32.

    Raises
    ------
    ValueError
        If ``network`` is in training mode, where batch normalisation is no fixed factor.
    """

    def __init__(self, network: BNInception, dtype: torch.dtype = torch.float32) -> None:
        if network.training:
            raise ValueError("a network in training mode cannot be folded: call eval() first")
        nn.Module.__init__(self)
        self.in_channels, self.fc, self.dtype = network.in_channels, copy.deepcopy(network.fc), dtype
        units = {
            name: fuse_conv_bn_eval(unit, getattr(network, f"{name}_bn"))
            for name, unit in network.named_children()
            if isinstance(unit, nn.Conv2d)
        }
        for name, block in BLOCKS.items():
            units[f"{name}_first"] = _side_by_side([units.pop(f"{name}_{unit}") for unit in block.first_units])
        for name, unit in units.items():
            self.add_module(name, unit)
        self.eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The four feature layers in one pass, float32; see ``BNInception.features``."""
        return {layer: values.float() for layer, values in super().features(x).items()}

    def _layers(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        return super()._layers(x.to(dtype=self.dtype, memory_format=torch.channels_last))

    def _unit(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(name)(x), inplace=True)

    def _first_units(self, name: str, block: Block, x: Tensor) -> list[Tensor]:
        joined = self._unit(f"{name}_first", x)
        return list(torch.split(joined, list(block.first_units.values()), 1))


def _side_by_side(units: list[nn.Conv2d]) -> nn.Conv2d:
    """One 1x1 convolution with the outputs of all."""
    joined = nn.Conv2d(units[0].in_channels, sum(unit.out_channels for unit in units), 1)
    joined.weight = nn.Parameter(torch.cat([unit.weight for unit in units]))
    joined.bias = nn.Parameter(torch.cat([unit.bias for unit in units if unit.bias is not None]))
    return joined
