"""The model of ``tvnet train actions``: TVNet and BN-Inception in one, its start, and its learning rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvnet_cli.errors import WeightsError
from tvnet_cli.flow.tvnet import TVNet, pyramid_sizes
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.cards import FlowInput, FrameInput, RGBInput
from tvnet_cli.network.stack import frame_pairs, prepare_rgb, stack_flow
from tvnet_cli.network.weights import load_weights, untrained_model
from tvnet_cli.options import ActionOptions, TVNetOptions
from tvnet_cli.training.losses import flow_loss

FIRST_LAYER = "conv1_7x7_s2"
CLASSIFIER_SPREAD = 0.001  # standard deviation of its first weights, as in the published models


class ActionNetwork(nn.Module):
    """Frames of a video to scores of its classes.

    Parameters
    ----------
    tvnet : TVNet or None
        None: the RGB stream.
    network : BNInception
        With a classifier.
    how : FlowInput or RGBInput
        How flow or frames become its input.
    options : ActionOptions
    """

    def __init__(
        self, tvnet: TVNet | None, network: BNInception, how: FlowInput | RGBInput, options: ActionOptions
    ) -> None:
        super().__init__()
        self.tvnet, self.network = tvnet, network
        self.how, self.options = how, options
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if tvnet is not None:
            tvnet.requires_grad_(options.tvnet_learning_rate > 0)
        for normalisation in self._frozen():
            normalisation.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        """The batch normalisations that keep their statistics and weights."""
        learning = {"full": "", "partial": FIRST_LAYER, "frozen": "none"}[self.options.batch_norm]
        return [
            module
            for name, module in self.network.named_children()
            if isinstance(module, nn.BatchNorm2d) and not name.startswith(learning)
        ]

    def train(self, mode: bool = True) -> ActionNetwork:
        """Training mode for all but the frozen batch normalisations."""
        super().train(mode)
        for normalisation in self._frozen():
            normalisation.eval()
        return self

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores before softmax, the mean over the snippets of a video, and the flow loss.

        Parameters
        ----------
        frames : Tensor, (B, snippets, frames, 3, H, W), uint8 or float, RGB, 0..255

        Returns
        -------
        scores : Tensor, (B, classes), float32
        flow_loss : Tensor, ()
            0 for RGB.
        """
        snippets = frames.flatten(0, 1).float()
        bent = snippets.new_zeros(())
        if isinstance(self.how, FlowInput):
            assert self.tvnet is not None
            first, second = frame_pairs(snippets)
            flow = self.tvnet(first, second)
            bent = flow_loss(first, second, flow)
            stack = stack_flow(flow, self.how.scale, self.how.clip_pixels, self.how.order, fields=snippets.shape[1] - 1)
        else:
            stack = prepare_rgb(snippets[:, snippets.shape[1] // 2], self.how.mean, self.how.order)
        with torch.autocast(stack.device.type, torch.bfloat16, enabled=self.options.dtype == "bfloat16"):
            pooled = self.network.features(stack.contiguous(memory_format=torch.channels_last))["global_pool"]
            assert self.network.fc is not None
            scores: Tensor = self.network.fc(F.dropout(pooled, self.options.dropout, self.training))
        return scores.float().view(*frames.shape[:2], -1).mean(1), bent


def new_model(
    num_classes: int, options: ActionOptions, schedule: TVNetOptions | None = None, weights: str | None = None
) -> tuple[ActionNetwork, str | None]:
    """A model to be trained, and the sha256 of the weights that it starts from.

    Parameters
    ----------
    num_classes : int
    options : ActionOptions
    schedule : TVNetOptions, optional
        Of TVNet, by default TVNet-50. Weights of the flow stream bring their own.
    weights : str, optional
        Name or file. Weights of an RGB network serve the flow stream too: each of its first filters is the mean of
        theirs over red, green and blue. The classifier always begins anew. Without weights all begins with random
        numbers of Kaiming's variance.

    Raises
    ------
    WeightsError
        If the weights are of the flow stream, and RGB is trained or a schedule is given.
    """
    start = load_weights(weights) if weights else untrained_model(options.stream, options.seed)
    network, tvnet, how = start.network, start.tvnet, start.card.input
    if weights and start.card.stream == "flow":
        if options.stream == "rgb":
            raise WeightsError(f"{weights} is for the flow stream, and cannot start an RGB network")
        if schedule is not None:
            raise WeightsError(f"{weights} brings the schedule of its TVNet: leave out --tvnet")
    elif options.stream == "flow":
        if start.card.stream == "rgb":
            fresh = untrained_model("flow")
            network, how = _for_flow(network, fresh.network), fresh.card.input
        schedule = schedule or TVNetOptions()
        sizes = pyramid_sizes(
            options.size, options.size, schedule.num_scales, schedule.zoom_factor, schedule.coarsest_side
        )
        tvnet = TVNet.from_options(schedule, u0_size=sizes[-1])
    network.fc = nn.Linear(1024, num_classes)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        network.fc.weight.normal_(0, CLASSIFIER_SPREAD, generator=generator)
        network.fc.bias.zero_()
    assert not isinstance(how, FrameInput)  # a TVNet alone is no network
    return ActionNetwork(tvnet, network, how, options), start.card.sha256 if weights else None


def _for_flow(rgb: BNInception, flow: BNInception) -> BNInception:
    """The weights of an RGB network in a flow network, as Temporal Segment Networks start it; no rescaling by 3/10."""
    state = {key: tensor for key, tensor in rgb.state_dict().items() if not key.startswith("fc.")}
    first = state[f"{FIRST_LAYER}.weight"]
    state[f"{FIRST_LAYER}.weight"] = first.mean(1, keepdim=True).repeat(1, flow.in_channels, 1, 1)
    flow.load_state_dict(state)
    return flow


def parameter_groups(model: ActionNetwork) -> list[dict[str, Any]]:
    """All parameters that are trained, with their learning rates; the first group has the base rate."""
    options = model.options
    rate, decay, first, bias = (
        options.learning_rate,
        options.weight_decay,
        options.first_layer_factor,
        options.bias_factor,
    )
    groups: list[dict[str, Any]] = []

    def add(parameters: Iterable[Tensor | None], rate: float, decay: float = 0.0) -> None:
        trained = [one for one in parameters if one is not None and one.requires_grad]
        if trained:
            groups.append({"params": trained, "lr": rate, "weight_decay": decay})

    layers = [layer for layer in model.network.children() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    norms = [layer for layer in model.network.children() if isinstance(layer, nn.BatchNorm2d)]
    stem, others = layers[0], layers[1:]
    add([layer.weight for layer in others], rate, decay)
    add([layer.bias for layer in others], rate * bias)
    add([stem.weight], rate * first, decay)
    add([stem.bias], rate * first * bias)
    add([parameter for norm in norms for parameter in (norm.weight, norm.bias)], rate)
    # Decay would pull the kernels away from the differences that they are.
    add(model.tvnet.parameters() if model.tvnet is not None else [], options.tvnet_learning_rate)
    return groups
