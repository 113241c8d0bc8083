from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tvnet_cli.errors import WeightsError
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.weights import untrained_model, write_weights
from tvnet_cli.options import ActionOptions, TVNetOptions
from tvnet_cli.training.action_network import FIRST_LAYER, new_model, parameter_groups

OPTIONS = ActionOptions(size=95, short_side=109, num_segments=2)
SHORT = TVNetOptions(num_iterations=2)


def normalisations(model, which):
    norms = [(name, layer) for name, layer in model.network.named_children() if isinstance(layer, nn.BatchNorm2d)]
    return [name for name, layer in norms if which(layer)]


@pytest.mark.parametrize("batch_norm", ["partial", "frozen", "full"])
def test_frozen_normalisations_keep_statistics_and_weights(batch_norm):
    model, _ = new_model(3, replace(OPTIONS, stream="rgb", batch_norm=batch_norm))
    every = normalisations(model, lambda layer: True)
    learning = {"partial": [f"{FIRST_LAYER}_bn"], "frozen": [], "full": every}[batch_norm]
    assert len(every) == 69
    assert normalisations(model.train(), lambda layer: layer.training) == learning
    assert normalisations(model.eval(), lambda layer: layer.training) == []
    assert normalisations(model, lambda layer: layer.weight.requires_grad and layer.bias.requires_grad) == learning


def test_each_kind_of_parameter_has_its_rate_and_decay():
    model, _ = new_model(3, replace(OPTIONS, batch_norm="partial"), SHORT)
    groups = parameter_groups(model)
    found = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    # 68 convolutions behind the first, and the classifier; the first; one normalisation; TVNet's three.
    assert found == [
        (69, 0.005, 5e-4), (69, 0.01, 0.0), (1, 0.025, 5e-4), (1, 0.05, 0.0), (2, 0.005, 0.0), (3, 0.005, 0.0),
    ]  # fmt: skip
    assert groups[2]["params"][0] is model.network.conv1_7x7_s2.weight
    everything = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for group in groups for parameter in group["params"]} == everything


def test_a_frozen_tvnet_is_not_trained():
    model, _ = new_model(3, replace(OPTIONS, tvnet_learning_rate=0.0), SHORT)
    assert not any(parameter.requires_grad for parameter in model.tvnet.parameters())
    assert len(parameter_groups(model)) == 5


def test_scores_are_the_mean_over_snippets_whatever_the_batch():
    model, _ = new_model(3, OPTIONS, SHORT)
    model.network.fc.weight.data.normal_()
    model.eval()
    frames = torch.randint(0, 256, (3, 2, 6, 3, 95, 95), dtype=torch.uint8)
    with torch.no_grad():
        together, bent = model(frames)
        alone = [model(one[None]) for one in frames]
        snippets = [model(frames[:, number : number + 1])[0] for number in range(2)]
    torch.testing.assert_close(together, torch.cat([scores for scores, _ in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bent, torch.stack([one for _, one in alone]).mean())
    torch.testing.assert_close(together, (snippets[0] + snippets[1]) / 2, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_for_the_network_alone():
    frames = torch.randint(0, 256, (1, 1, 6, 3, 95, 95), dtype=torch.uint8)
    results = {}
    for dtype in ("float32", "bfloat16"):
        model, _ = new_model(3, replace(OPTIONS, dtype=dtype), SHORT)
        model.network.fc.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        results[dtype] = model.eval()(frames)
    assert torch.equal(results["bfloat16"][1], results["float32"][1])
    assert results["bfloat16"][0].dtype == torch.float32
    difference = (results["bfloat16"][0] - results["float32"][0]).abs().max() / results["float32"][0].abs().max()
    assert 0 < difference < 0.05


@pytest.fixture(scope="module")
def rgb_weights(tmp_path_factory):
    start = untrained_model("rgb", seed=5)
    network = BNInception(3, num_classes=7)
    network.load_state_dict(start.network.state_dict(), strict=False)
    path = tmp_path_factory.mktemp("weights") / "rgb.safetensors"
    tensors = {key: tensor for key, tensor in network.state_dict().items() if tensor.is_floating_point()}
    write_weights(path, tensors, start.card)
    return path, network


def test_an_rgb_network_starts_a_flow_network(rgb_weights):
    path, network = rgb_weights
    model, sha256 = new_model(3, OPTIONS, SHORT, str(path))
    assert len(sha256) == 64
    first = model.network.conv1_7x7_s2.weight
    assert first.shape == (64, 10, 7, 7)
    for channel in range(10):
        torch.testing.assert_close(first[:, channel], network.conv1_7x7_s2.weight.mean(1))
    assert torch.equal(model.network.inception_5b_1x1.weight, network.inception_5b_1x1.weight)
    assert model.network.fc.weight.shape == (3, 1024)
    assert model.how.scale == 6.375
    assert model.tvnet.options == SHORT
    assert model.tvnet.u0.shape == (1, 2, 95, 95)


def test_weights_of_the_same_stream_start_with_their_input(rgb_weights):
    model, _ = new_model(3, replace(OPTIONS, stream="rgb"), None, str(rgb_weights[0]))
    assert torch.equal(model.network.conv1_7x7_s2.weight, rgb_weights[1].conv1_7x7_s2.weight)
    assert model.tvnet is None
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 2, 1, 3, 95, 95))[0].shape == (2, 3)


def test_weights_of_the_flow_stream_bring_their_tvnet(tmp_path):
    start = untrained_model("flow")
    start.tvnet.u0.data.fill_(0.5)
    tensors = {key: tensor for key, tensor in start.network.state_dict().items() if tensor.is_floating_point()}
    tensors |= {f"tvnet.{key}": tensor for key, tensor in start.tvnet.state_dict().items()}
    path = str(tmp_path / "flow.safetensors")
    write_weights(tmp_path / "flow.safetensors", tensors, start.card)
    model, _ = new_model(3, OPTIONS, None, path)
    assert torch.equal(model.tvnet.u0, start.tvnet.u0)
    with pytest.raises(WeightsError, match="brings the schedule of its TVNet"):
        new_model(3, OPTIONS, SHORT, path)
    with pytest.raises(WeightsError, match="cannot start an RGB network"):
        new_model(3, replace(OPTIONS, stream="rgb"), None, path)


def test_the_start_is_that_of_the_seed():
    def start(seed):
        return new_model(3, replace(OPTIONS, seed=seed), SHORT)[0].state_dict()

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])
