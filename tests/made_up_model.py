"""A flow or RGB network with named classes, for the tests of pictures."""

from __future__ import annotations

import dataclasses

from network_weights import recipe_weights

from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.weights import StreamModel, untrained_model

CLASSES = ["walk", "turn_left", "turn_right", "7-9"]


def make_model(channels: int = 10, **card: object) -> StreamModel:
    """A network of random weights of its own, with four classes."""
    network = BNInception(channels, num_classes=len(CLASSES)).eval()
    network.load_state_dict(recipe_weights(network), strict=False)
    model = untrained_model("flow" if channels == 10 else "rgb")
    card = {"training": {"classes": CLASSES}, **card}
    return StreamModel("mine", dataclasses.replace(model.card, **card), network, model.tvnet)
