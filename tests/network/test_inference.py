from __future__ import annotations

import numpy as np
import pytest
import torch
from network_weights import recipe_weights

from tvnet_cli.network.bn_inception import LAYERS, BNInception
from tvnet_cli.network.inference import InferenceNetwork


@pytest.fixture(scope="module")
def network() -> BNInception:
    network = BNInception(in_channels=3, num_classes=0).eval()
    network.load_state_dict(recipe_weights(network))
    return network


def test_the_layers_equal_the_published_port(shared_data, network):
    golden = np.load(shared_data / "bninception_golden" / "rgb224.npz")
    with torch.inference_mode():
        found = InferenceNetwork(network).features(torch.from_numpy(golden["input_bgr"]))
    for layer in LAYERS:
        assert found[layer].shape == golden[layer].shape
        assert np.abs(found[layer].numpy() - golden[layer]).max() <= 2e-5 * np.abs(golden[layer]).max(), layer


def test_bfloat16_gives_the_same_layers_with_three_digits_as_float32(network):
    frame = torch.randn(1, 3, 63, 63) * 50
    with torch.inference_mode():
        expected, found = network.features(frame), InferenceNetwork(network, torch.bfloat16).features(frame)
    for layer in LAYERS:
        assert found[layer].dtype == torch.float32
        error = (found[layer] - expected[layer]).norm() / expected[layer].norm()
        assert 1e-4 < error < 5e-2, layer


def test_the_network_it_is_made_of_stays_as_it_is(network):
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    folded = InferenceNetwork(network, torch.bfloat16)
    with torch.inference_mode():
        folded.features(torch.ones(1, 3, 63, 63))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="call eval"):
        InferenceNetwork(BNInception(3, num_classes=0))
