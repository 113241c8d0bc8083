from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from made_up_model import make_model

from tvnet_cli.errors import UnitError
from tvnet_cli.network.cards import FlowInput, RGBInput
from tvnet_cli.network.weights import StreamModel, untrained_model
from tvnet_cli.options import DRAW_PRESETS
from tvnet_cli.visualize.deepdraw import unit_gradient, unit_values
from tvnet_cli.visualize.units import NetworkLayer


@pytest.fixture(scope="module")
def model() -> StreamModel:
    return make_model()


def test_every_layer_is_the_one_of_the_network(model):
    windows = torch.randn(1, 10, 63, 63) * 30
    with torch.inference_mode():
        features, scores = model.network.features(windows), model.network(windows)
    expected = {**features, "fc": scores}
    sizes = model.network.layer_units()
    assert list(sizes)[:3] == ["conv1_7x7_s2", "conv2_3x3", "inception_3a_output"]
    assert list(sizes)[-2:] == ["global_pool", "fc"]
    for name, size in sizes.items():
        layer = NetworkLayer(model, name)
        with torch.inference_mode():
            values = layer(windows)
        assert layer.num_units == values.shape[1] == size, name
        if name in expected:
            torch.testing.assert_close(values, expected[name], rtol=0, atol=3e-5 * float(expected[name].max()))


def test_names_as_published_are_taken_too(model):
    assert NetworkLayer(model, "inception_4e/output").name == "inception_4e_output"


def test_a_network_sees_grey_levels_on_the_scale_of_its_card(model):
    card = dataclasses.replace(model.card, input=FlowInput(12.75, 20.0, "interleaved"))
    twice = NetworkLayer(dataclasses.replace(model, card=card), "global_pool")
    windows = torch.randn(1, 10, 63, 63) * 30
    with torch.inference_mode():
        expected = NetworkLayer(model, "global_pool").of_input(2 * windows)
        assert torch.equal(twice(windows), expected)


def test_the_ground_is_no_motion_for_flow_and_light_for_rgb(model):
    options = DRAW_PRESETS["coherent"]
    space = NetworkLayer(model, "fc").space(options)
    assert (space.mean.tolist(), space.side, space.background) == ([128.0] * 10, 224, 128.0)
    rgb = make_model(3, input=RGBInput((104, 117, 123), "BGR"))
    space = NetworkLayer(rgb, "fc").space(options)
    assert (space.mean.tolist(), space.background) == ([104.0, 117.0, 123.0], 200.0)
    assert NetworkLayer(rgb, "fc").space(dataclasses.replace(options, background=30.0)).background == 30.0


def test_a_leak_opens_shut_relus_backwards_and_changes_no_layer(model):
    windows = torch.randn(1, 10, 63, 63) * 30
    strict, leaky = NetworkLayer(model, "inception_5b_output"), NetworkLayer(model, "inception_5b_output", leak=0.01)
    with torch.inference_mode():
        values = unit_values(strict(windows))[0]
        assert torch.equal(unit_values(leaky(windows))[0], values)
    shut = int(values.argmin())
    assert values[shut] == 0
    assert not unit_gradient(strict, windows, [shut]).any()
    assert unit_gradient(leaky, windows, [shut]).any()


def test_a_leak_is_its_share_of_the_gradient():
    model = make_model()
    windows = torch.randn(1, 10, 63, 63) * 30
    layer = "conv1_7x7_s2"  # one ReLU alone
    shut = int(unit_values(NetworkLayer(model, layer)(windows))[0].argmin())
    part, all_of_it = (unit_gradient(NetworkLayer(model, layer, leak), windows, [shut]) for leak in (0.25, 0.999))
    torch.testing.assert_close(part, all_of_it * 0.25 / 0.999)


@pytest.mark.parametrize(
    ("words", "units"),
    [
        (["3"], [3]),
        (["2", "0-1", "1"], [2, 0, 1]),
        (["turn_left", "0"], [1, 0]),
        (["7-9"], [3]),  # a class may be called so
    ],
)
def test_units_are_numbers_ranges_and_classes(model, words, units):
    assert NetworkLayer(model, "fc").find(words) == units


@pytest.mark.parametrize(
    ("layer", "word", "message"),
    [
        ("fc", "4", "no unit 4 in fc: its units are 0 to 3"),
        ("fc", "3-1", "no unit 3-1 in fc"),
        ("fc", "turn", "no class of mine is called 'turn': did you mean turn_left or turn_right?"),
        ("global_pool", "1024", "no unit 1024 in global_pool: its units are 0 to 1023"),
        ("global_pool", "walk", "no unit 'walk' in global_pool of mine: only those of fc have names"),
    ],
)
def test_a_unit_that_is_not_there_is_named(model, layer, word, message):
    with pytest.raises(UnitError, match=message.replace("?", r"\?")):
        NetworkLayer(model, layer).find([word])


def test_classes_without_names_have_numbers(model):
    nameless = dataclasses.replace(model, card=dataclasses.replace(model.card, training={}))
    layer = NetworkLayer(nameless, "fc")
    assert (layer.title(2), NetworkLayer(model, "fc").title(2)) == ("unit 2", "turn_right")
    with pytest.raises(UnitError, match="its card names no classes"):
        layer.find(["walk"])


@pytest.mark.parametrize("name", ["inception_5b", "global-pool", "pool", "inception_9a_output"])
def test_a_layer_that_is_not_there_is_named(model, name):
    with pytest.raises(UnitError, match=f"no layer is called '{name}': "):
        NetworkLayer(model, name)


def test_weights_without_a_class_head_have_no_fc():
    with pytest.raises(UnitError, match="untrained has no class head"):
        NetworkLayer(untrained_model("flow"), "fc")


def test_a_step_on_the_network_is_that_of_float64(model):
    """Where ReLUs and pools take the same way, the gradient is the same to 5 digits."""
    windows = torch.randn(1, 10, 95, 95) * 30
    plain = make_model().network.double()
    ours = unit_gradient(NetworkLayer(model, "fc"), windows, [1])
    expected = unit_gradient(lambda x: plain(x), windows.double(), [1]).float()
    assert (ours - expected).norm() < 1e-4 * expected.norm()
    assert np.isfinite(ours.numpy()).all()
