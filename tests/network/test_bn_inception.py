from __future__ import annotations

import numpy as np
import pytest
import torch
from network_weights import recipe_weights

from tvnet_cli.network.bn_inception import LAYERS, BNInception, check_size


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layers_equal_the_published_port(shared_data, layout):
    golden = np.load(shared_data / "bninception_golden" / "rgb224.npz")
    network = BNInception(in_channels=3, num_classes=1000).eval()
    network.load_state_dict(recipe_weights(network))
    network.to(memory_format=layout)
    frame = torch.from_numpy(golden["input_bgr"]).to(memory_format=layout)
    with torch.inference_mode():
        found = {**network.features(frame), "fc": network(frame)}
    for layer in (*LAYERS, "fc"):
        assert found[layer].shape == golden[layer].shape
        assert np.abs(found[layer].numpy() - golden[layer]).max() <= 2e-5 * np.abs(golden[layer]).max(), layer


def test_ten_equal_channels_with_the_mean_kernel_equal_the_rgb_network():
    rgb, flow = BNInception(3, num_classes=0).eval(), BNInception(10, num_classes=0).eval()
    weights = recipe_weights(rgb)
    rgb.load_state_dict(weights)
    conv1 = weights["conv1_7x7_s2.weight"].mean(1, keepdim=True)
    flow.load_state_dict({**weights, "conv1_7x7_s2.weight": conv1.expand(-1, 10, -1, -1)})
    grey = torch.randn(1, 1, 95, 95) * 30
    with torch.inference_mode():
        # Ten channels of 3/10 of the level weigh what three channels of the level do.
        expected, found = rgb.features(grey.expand(-1, 3, -1, -1)), flow.features(0.3 * grey.expand(-1, 10, -1, -1))
    for layer in LAYERS:
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-3, atol=1e-3)


def test_names_and_sizes_are_the_published_ones():
    network = BNInception(10, num_classes=101)
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    assert len(keys) == 69 * 6 + 2
    for key in ("conv1_7x7_s2.weight", "inception_4c_double_3x3_2_bn.running_var", "inception_5b_pool_proj.bias"):
        assert key in keys
    backbone = sum(parameter.numel() for parameter in BNInception(10, num_classes=0).parameters())
    assert backbone == 10_292_192
    assert sum(parameter.numel() for parameter in network.parameters()) == backbone + 103_525


def test_loading_is_strict():
    network = BNInception(3, num_classes=0)
    weights = recipe_weights(network)
    network.load_state_dict(weights)
    del weights["inception_3a_1x1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*inception_3a_1x1\.bias"):
        network.load_state_dict(weights)


def test_exactly_the_sizes_that_the_graph_cannot_take_are_refused(monkeypatch):
    with torch.device("meta"):
        network = BNInception(10, num_classes=0).eval()
    refused = []
    for side in range(58, 106):
        try:
            check_size(side, 64)
        except ValueError:
            refused.append(side)
    monkeypatch.setattr("tvnet_cli.network.bn_inception.check_size", lambda height, width: None)
    fail = []
    for side in range(58, 106):
        try:
            network.features(torch.empty(1, 10, side, 64, device="meta"))
        except RuntimeError:
            fail.append(side)
    assert refused == fail
    assert [side for side in range(58, 106) if side not in fail] == [*range(63, 71), *range(95, 103)]


def test_a_refused_size_is_named_with_sizes_that_work():
    with pytest.raises(ValueError, match="240 is not in 223 to 230 or 255 to 262"):
        BNInception(10).features(torch.zeros(1, 10, 224, 240))
    with pytest.raises(ValueError, match="20 is not in 31 to 38"):
        check_size(20, 224)


def test_a_wrong_number_of_channels_and_a_missing_classifier_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 10, H, W\), not \(1, 3, 224, 224\)"):
        BNInception(10).features(torch.zeros(1, 3, 224, 224))
    with pytest.raises(ValueError, match="without a classifier"):
        BNInception(10, num_classes=0)(torch.zeros(1, 10, 224, 224))
