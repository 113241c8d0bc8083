from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from network_weights import FLOW_INPUT, write_card
from safetensors.torch import save_file

from tvnet_cli.errors import DiskFullError, WeightsError
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network import cards, weights
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.cards import (
    TVNET_ALONE,
    FlowInput,
    FrameInput,
    RGBInput,
    WeightCard,
    find_weights,
    imported_folder,
    known_weights,
    read_card,
    weights_folder,
)
from tvnet_cli.network.weights import (
    check_weights,
    load_models,
    load_tvnet,
    load_weights,
    untrained_model,
    write_weights,
)
from tvnet_cli.options import DEFAULT_WEIGHTS, TVNetOptions


def write_network(path: Path, in_channels: int = 10, dtype: torch.dtype = torch.float32, **extra: torch.Tensor) -> Path:
    tensors = BNInception(in_channels, num_classes=7).state_dict()
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    save_file({**tensors, **extra}, path)
    write_card(path, "flow" if in_channels == 10 else "rgb")
    return path


def test_a_file_with_its_card_goes_round(tmp_path):
    model = load_weights(str(write_network(tmp_path / "mine.safetensors")))
    assert model.card.stream == "flow"
    assert model.card.input == FlowInput(6.375, 20.0, "interleaved")
    assert model.card.numbers == {"accuracy": 50.0}
    assert model.tvnet is not None
    assert not model.network.training
    assert model.network.fc.out_features == 7


def test_half_precision_is_computed_in_float32(tmp_path):
    model = load_weights(str(write_network(tmp_path / "mine.safetensors", dtype=torch.float16)))
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}


def test_an_rgb_file_brings_its_means(tmp_path):
    model = load_weights(str(write_network(tmp_path / "mine.safetensors", in_channels=3)))
    assert model.card.input == RGBInput((104.0, 117.0, 128.0), "BGR")
    assert model.tvnet is None


def test_trained_kernels_are_loaded_with_their_schedule(tmp_path):
    net = TVNet(num_iterations=10, u0_size=(30, 40))
    torch.nn.init.normal_(net.gradient_kernels)
    path = tmp_path / "mine.safetensors"
    write_network(path, **{f"tvnet.{key}": tensor for key, tensor in net.state_dict().items()})
    write_card(path, extra="[tvnet]\nnum_iterations = 10")
    model = load_weights(str(path))
    assert torch.equal(model.tvnet.gradient_kernels, net.gradient_kernels)
    assert model.tvnet.u0.shape == (1, 2, 30, 40)


def test_kernels_of_another_schedule_are_refused(tmp_path):
    net = TVNet(num_iterations=10)
    path = tmp_path / "mine.safetensors"
    write_network(path, **{f"tvnet.{key}": tensor for key, tensor in net.state_dict().items()})
    with pytest.raises(WeightsError, match=r"divergence_kernels is \(1, 1, 10, 2, 2, 2\), expected \(1, 1, 50"):
        load_weights(str(path))


def test_a_changed_file_is_refused(tmp_path):
    path = write_network(tmp_path / "mine.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"mine\.safetensors is damaged or not the file of its card"):
        load_weights(str(path))


def test_what_is_no_safetensors_file_is_refused_even_if_its_card_agrees(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"\xff" * 100)
    write_card(path)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_weights(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "inception_3a_1x1.bias"}, r"tensors 1 missing: inception_3a_1x1\.bias$"),
        ({"add": "inception_9z.weight"}, r"tensors 1 unknown: inception_9z\.weight$"),
        ({"shape": "inception_3a_1x1.bias"}, r"inception_3a_1x1\.bias is \(1, 64\), expected \(64,\)"),
        ({"nan": "inception_3a_1x1.bias"}, "not finite numbers"),
    ],
)
def test_tensors_that_are_not_the_network_are_refused_by_name(tmp_path, change, message):
    tensors = BNInception(10, num_classes=0).state_dict()
    ((how, key),) = change.items()
    if how == "drop":
        del tensors[key]
    else:
        values = torch.ones(64) if how == "add" else tensors[key]
        tensors[key] = {"shape": values[None], "nan": values / 0, "add": values}[how]
    path = tmp_path / "mine.safetensors"
    save_file(tensors, path)
    write_card(path)
    with pytest.raises(WeightsError, match=message):
        load_weights(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": "left out"}, "licence is missing"),
        ({"stream": "sound"}, "stream is 'sound', expected flow or rgb"),
        ({"architecture": "resnet"}, "architecture is 'resnet'"),
        ({"extra": "[tvnet]\nnum_iterations = 0"}, "num_iterations must be at least 1"),
        ({"extra": "[tvnet]\nspeed = 0"}, r"mine.toml: unknown entry 'speed' in \[tvnet\]$"),
        ({"extra": "[tvnet]\ntau = 'a'"}, r"mine.toml: tau in \[tvnet\] should be a number, not 'a'$"),
        ({"extra": "[tvnet]\ntau = true"}, r"mine.toml: tau in \[tvnet\] should be a number, not True$"),
        ({"extra": "[tvnet]\nnum_warps = 1.5"}, r"num_warps in \[tvnet\] should be a whole number, not 1.5$"),
        ({"extra": "[[training]]"}, "training is missing or not a table"),
        ({"extra": "[more]\nx = 1"}, "unknown entry 'more'"),
        ({"extra": "]"}, "cannot read the card"),
    ],
)
def test_a_card_that_lacks_or_confuses_something_is_refused(tmp_path, changes, message):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    write_card(path, **changes)
    with pytest.raises(WeightsError, match=message):
        read_card(path.with_suffix(".toml"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("scale = 1", r"clip_pixels is missing in \[input\]"),
        (FLOW_INPUT.replace("6.375", "'a'"), r"scale in \[input\] should be a number, not 'a'"),
        (FLOW_INPUT.replace("inter", "over"), "order in"),
    ],
)
def test_an_input_table_must_be_whole(tmp_path, entries, message):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    write_card(path)
    card = path.with_suffix(".toml")
    card.write_text(card.read_text().replace(FLOW_INPUT, entries))
    with pytest.raises(WeightsError, match=message):
        read_card(card)


def test_the_means_of_a_card_are_numbers(tmp_path):
    card = tmp_path / "mine.toml"
    card.with_suffix(".safetensors").touch()
    write_card(card, "rgb")
    card.write_text(card.read_text().replace("104", "'a'"))
    with pytest.raises(WeightsError, match=r"mine.toml: mean in \[input\] should be a list of numbers, not \['a', 117"):
        read_card(card)


def test_weights_without_a_card_or_a_file_are_refused(tmp_path):
    path = write_network(tmp_path / "mine.safetensors")
    path.with_suffix(".toml").unlink()
    with pytest.raises(WeightsError, match=r"mine\.toml is missing"):
        load_weights(str(path))
    checkpoint = tmp_path / "bn_inception.pth"
    checkpoint.write_bytes(b"pickle")
    with pytest.raises(
        WeightsError, match=r"no \.safetensors file with a card: tvnet weights import .*bn_inception\.pth"
    ):
        load_weights(str(checkpoint))
    with pytest.raises(WeightsError, match=r"no weights called 'best'.*tvnet weights list"):
        load_weights("best")


def test_a_name_is_shipped_or_imported_weights_in_this_order(tmp_path, cache_folder, monkeypatch):
    monkeypatch.setattr(cards, "weights_folder", lambda: tmp_path)
    (cache_folder / "weights").mkdir()
    for file in (cache_folder / "weights" / "mine", tmp_path / "theirs", cache_folder / "weights" / "theirs"):
        file.with_suffix(".safetensors").touch()
    assert find_weights("mine") == cache_folder / "weights" / "mine.safetensors"
    assert find_weights("theirs") == tmp_path / "theirs.safetensors"
    assert list(known_weights()) == ["theirs", "mine"]
    with pytest.raises(WeightsError, match=r"no weights called 'their': did you mean theirs\?"):
        find_weights("their")
    monkeypatch.delenv("TVNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert imported_folder() == tmp_path / "tvnet" / "weights"


def test_untrained_weights_are_the_same_every_time_and_differ_by_stream():
    one, two = untrained_model("flow"), untrained_model("flow")
    assert one.card.sha256 == two.card.sha256
    assert one.card.sha256 != untrained_model("flow", seed=1).card.sha256
    assert untrained_model("rgb").network.in_channels == 3


def test_untrained_features_tell_videos_apart_and_are_alive_without_motion():
    network = untrained_model("flow").network
    with torch.inference_mode():
        still, moving = (network.features(scale * torch.randn(1, 10, 224, 224)) for scale in (0, 10))
    for layer in still:
        assert still[layer].abs().max() > 0
        assert not torch.allclose(still[layer], moving[layer])


def test_each_stream_gets_its_weights(tmp_path):
    flow, rgb = write_network(tmp_path / "flow.safetensors"), write_network(tmp_path / "rgb.safetensors", 3)
    models = load_models([str(rgb), str(flow)], ("flow", "rgb"))
    assert [models["flow"].name, models["rgb"].name] == [str(flow), str(rgb)]
    assert load_models([str(flow), "untrained"], ("flow", "rgb"))["rgb"].name == "untrained"
    with pytest.raises(WeightsError, match="no RGB weights come with the program: tvnet weights import"):
        load_models([str(flow)], ("flow", "rgb"))
    with pytest.raises(WeightsError, match="both for the flow stream"):
        load_models([str(flow), str(flow)], ("flow",))
    with pytest.raises(WeightsError, match="for the rgb stream, which was not asked for"):
        load_models([str(flow), str(rgb)], ("flow",))


def test_a_stream_without_a_name_gets_the_weights_that_come_with_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path)
    with pytest.raises(WeightsError, match=r"no trained weights for the flow stream.*--weights untrained"):
        load_models([], ("flow",))
    shipped = write_network(tmp_path / f"{DEFAULT_WEIGHTS['flow']}.safetensors")
    rgb = write_network(tmp_path / "rgb.safetensors", 3)
    assert load_models([], ("flow",))["flow"].name == shipped.stem
    assert load_models([str(rgb)], ("flow", "rgb"))["flow"].name == shipped.stem
    assert load_models(["untrained"], ("flow",))["flow"].name == "untrained"
    with pytest.raises(
        WeightsError, match=r"no RGB weights come with the program: tvnet weights import .*--stream rgb"
    ):
        load_models([], ("flow", "rgb"))


CARD = WeightCard(
    stream="flow",
    source='the "best"\nweights\x7f, \\',
    licence="MIT",
    training_data="Filme, größtenteils",
    input=FlowInput(6.375, 20.0, "interleaved"),
    numbers={"accuracy": 87.7, "per fold": [1e-7, 2.0]},
    training={"command": "train", "seed": 3, "amp": True, "data": {"films": 7, "of 2 kinds": {}}},
    tvnet=TVNetOptions(num_iterations=2, presmoothing=0.5),
)


def test_what_is_written_is_read_again_to_the_last_bit(tmp_path):
    net, tvnet = BNInception(10, num_classes=3), TVNet.from_options(CARD.tvnet)
    torch.nn.init.normal_(tvnet.gradient_kernels)
    tensors = net.state_dict() | {f"tvnet.{key}": tensor for key, tensor in tvnet.state_dict().items()}
    written = write_weights(tmp_path / "new" / "mine.safetensors", tensors, CARD)
    model = load_weights(str(tmp_path / "new" / "mine.safetensors"))
    assert model.card == written == dataclasses.replace(CARD, sha256=written.sha256)
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in model.network.state_dict().items())
    assert torch.equal(model.tvnet.gradient_kernels, tvnet.gradient_kernels)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mine.safetensors", "mine.toml"]


def tvnet_alone(net: TVNet) -> tuple[dict[str, torch.Tensor], WeightCard]:
    card = WeightCard(
        architecture=TVNET_ALONE,
        stream="flow",
        source="a test",
        licence="MIT",
        training_data="none",
        input=FrameInput(),
        tvnet=net.options,
    )
    return {f"tvnet.{key}": tensor for key, tensor in net.state_dict().items()}, card


def test_a_tvnet_alone_goes_round_and_is_no_network_of_features(tmp_path):
    net = TVNet(2, 1, 3, u0_size=(18, 24), lambda_=0.1)
    torch.nn.init.normal_(net.gradient_kernels)
    path = tmp_path / "mine.safetensors"
    card = write_weights(path, *tvnet_alone(net))
    assert check_weights(path) == card
    assert read_card(path.with_suffix(".toml")) == card
    assert "[input]" not in path.with_suffix(".toml").read_text()
    loaded, sha256 = load_tvnet(str(path), TVNetOptions())
    assert sha256 == card.sha256
    assert loaded.options == net.options
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not loaded.training
    with pytest.raises(WeightsError, match="holds a TVNet alone"):
        load_weights(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("tvnet.u0"), "1 missing: u0"),
        (lambda tensors: tensors.update({"fc.bias": torch.zeros(3)}), r"1 unknown: fc\.bias"),
        (lambda tensors: tensors.clear(), "3 missing"),
    ],
)
def test_a_tvnet_alone_is_whole_and_alone(tmp_path, change, message):
    tensors, card = tvnet_alone(TVNet(u0_size=(16, 16)))
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        write_weights(tmp_path / "mine.safetensors", tensors, card)


def test_the_card_of_a_tvnet_alone_says_flow_and_nothing_of_a_network(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    write_card(path, architecture=TVNET_ALONE)
    with pytest.raises(WeightsError, match="unknown entry 'input'"):
        read_card(path.with_suffix(".toml"))
    write_card(path, stream="rgb", architecture=TVNET_ALONE)
    with pytest.raises(WeightsError, match="stream is 'rgb', expected flow"):
        read_card(path.with_suffix(".toml"))


def test_nothing_is_overwritten_unless_asked_and_nothing_wrong_is_written(tmp_path):
    tensors, path = BNInception(10, num_classes=0).state_dict(), tmp_path / "mine.safetensors"
    with pytest.raises(WeightsError, match=r"1 missing: conv2_3x3_reduce_bn\.running_var$"):
        write_weights(path, {k: v for k, v in tensors.items() if k != "conv2_3x3_reduce_bn.running_var"}, CARD)
    with pytest.raises(TypeError, match="a card cannot hold None"):
        write_weights(path, tensors, dataclasses.replace(CARD, numbers={"accuracy": None}))
    assert not list(tmp_path.iterdir())
    first = write_weights(path, tensors, CARD)
    tensors["conv1_7x7_s2.bias"] += 1
    with pytest.raises(WeightsError, match=r"mine\.safetensors is there already"):
        write_weights(path, tensors, CARD)
    path.unlink()
    with pytest.raises(WeightsError, match=r"mine\.toml is there already"):
        write_weights(path, tensors, CARD)
    assert write_weights(path, tensors, CARD, overwrite=True).sha256 != first.sha256
    load_weights(str(path))


def test_a_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    tensors, path = BNInception(10, num_classes=0).state_dict(), tmp_path / "mine.safetensors"
    write_weights(path, tensors, CARD)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFullError, match=r"cannot write .*mine\.safetensors: the disk at .* is full: No space left"):
        write_weights(path, tensors, CARD, overwrite=True)
    load_weights(str(path))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_weights_folder_is_found_and_every_shipped_file_has_a_valid_card():
    assert (weights_folder() / "README.md").is_file()
    for path in weights_folder().glob("*.safetensors"):
        load_weights(path.stem)
