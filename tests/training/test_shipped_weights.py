"""The weights that come with the program: whole, described, and able to do what their card says."""

from __future__ import annotations

import numpy as np
import torch

from tvnet_cli.network.cards import weights_folder
from tvnet_cli.network.stack import stack_flow
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import DEFAULT_WEIGHTS
from tvnet_cli.training.motion import CLASS_NAMES, motion_clip


def test_they_are_the_default_and_their_card_says_how_they_came_about():
    model = load_models((), ("flow",))["flow"]
    assert model.name == DEFAULT_WEIGHTS["flow"]
    assert model.card.licence == "MIT"
    assert model.card.training["command"] == "tvnet train motion --dtype bfloat16"
    assert model.card.training["classes"] == list(CLASS_NAMES)
    assert {"egogestar", "ut_interaction"} <= model.card.numbers.keys()
    assert not torch.equal(model.tvnet.gradient_kernels, torch.sign(model.tvnet.gradient_kernels))  # trained too
    assert sum(file.stat().st_size for file in weights_folder().glob("*.safetensors")) <= 45e6


@torch.no_grad()
def test_they_tell_motions_apart_that_they_never_saw():
    """Six times in ten among 73 classes is far from chance, and less than the card says."""
    model = load_models((), ("flow",))["flow"]
    how, right = model.card.input, 0
    for index in range(40):
        clip = motion_clip(12345, index, 224)
        frames = torch.from_numpy(clip.frames).movedim(-1, 1)
        stack = stack_flow(model.tvnet(frames[:-1], frames[1:]), how.scale, how.clip_pixels, how.order)
        right += int(model.network(stack).argmax()) == clip.label
    assert right >= 24
    assert np.isclose(model.card.numbers["validation_accuracy"], 0.791, atol=0.01)
