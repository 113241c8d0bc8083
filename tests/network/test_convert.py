from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    Tensors,
    blob,
    caffemodel,
    epic,
    layer,
    nested,
    python2,
    renamed,
    rows,
    ssn,
    tensors_of,
    without_head,
)
from network_weights import recipe_weights
from safetensors.torch import save_file

from tvnet_cli.errors import WeightsError
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.cards import FlowInput, RGBInput, find_weights
from tvnet_cli.network.checkpoints import Checkpoint, read_checkpoint
from tvnet_cli.network.convert import Converted, Imported, convert, import_weights
from tvnet_cli.network.weights import load_weights
from tvnet_cli.options import ImportOptions

CAFFE = ImportOptions(bn_statistics="variance")
STACK = torch.randn(1, 10, 64, 64, generator=torch.Generator().manual_seed(0)) * 30
BGR_123, BGR_128 = RGBInput((104, 117, 123), "BGR"), RGBInput((104, 117, 128), "BGR")


def network(in_channels: int) -> BNInception:
    made = BNInception(in_channels, num_classes=5).eval()
    made.load_state_dict(recipe_weights(made), strict=False)
    return made


@pytest.fixture(scope="module")
def original() -> BNInception:
    return network(10)


@pytest.fixture(scope="module")
def activations(original) -> Tensors:
    with torch.inference_mode():
        return {**original.features(STACK), "fc": original(STACK)}


@pytest.fixture(scope="module")
def flow(original) -> Tensors:
    return tensors_of(original)


@pytest.fixture(scope="module")
def rgb() -> Tensors:
    return tensors_of(network(3))


def converted(tensors: Tensors, kind: str = "PyTorch", **options: object) -> Converted:
    """What becomes of tensors that are in no file."""
    return convert(Checkpoint(kind, tensors, ""), Path("published"), ImportOptions(**options))


@pytest.fixture
def file(tmp_path) -> Path:
    """A file that does not stay: forty megabytes each are too many."""
    path = tmp_path / "published"
    yield path
    path.unlink(missing_ok=True)


def saved(content: object, path: Path, **how: bool) -> None:
    torch.save(content, path, **how)


# What was published: how it was written, whether its classifier stays, and the options that it needs.
FORMATS = {
    "tsn-pytorch ImageNet": (lambda t, path: saved(rows(t), path), True, None),
    "Cadene, by Python 2": (lambda t, path: python2(path, rows(renamed(t, "", "last_linear")), [*t][:3]), True, None),
    "Cadene": (lambda t, path: saved(renamed(t, "", "last_linear"), path), True, None),
    "tsn-pytorch training, dropout": (
        lambda t, path: saved(
            {"epoch": 80, "arch": "BNInception", "state_dict": renamed(t, "module.base_model.", "new_fc", "module.")},
            path,
        ),
        True,
        None,
    ),
    "tsn-pytorch training": (lambda t, path: saved({"state_dict": renamed(t, "module.base_model.")}, path), True, None),
    "mmaction": (
        lambda t, path: saved(
            {"meta": {"epoch": 1}, "state_dict": renamed(t, "backbone.", "fc_cls", "cls_head."), "optimizer": {}}, path
        ),
        True,
        None,
    ),
    "caffe2pytorch-tsn": (lambda t, path: saved(nested(t), path), True, None),
    "caffe2pytorch-tsn Kinetics": (lambda t, path: saved(renamed(t, "base_model.", "fc_action.1"), path), True, None),
    "SSN init": (lambda t, path: saved({"state_dict": rows(without_head(t))}, path), False, None),
    "SSN reference": (lambda t, path: saved(ssn(t), path), False, None),
    "EPIC Kitchens": (lambda t, path: saved(epic(t), path), False, None),
    "TBN": (
        lambda t, path: saved(rows(t) | {"consensus.x": torch.ones(2)}, path),
        True,
        ImportOptions(ignore_unused=True),
    ),
    "TSM": (
        lambda t, path: saved({"model": t | {"conv1_7x7_s2_bn.num_batches_tracked": torch.tensor(1)}}, path),
        True,
        None,
    ),
    "torch before 1.6": (lambda t, path: saved(t, path, _use_new_zipfile_serialization=False), True, None),
    "safetensors": (save_file, True, None),
    "Caffe": (lambda t, path: path.write_bytes(caffemodel(t)), True, CAFFE),
    "Caffe, double": (lambda t, path: path.write_bytes(caffemodel(t, double=True)), True, CAFFE),
    "Caffe V1, old sizes": (
        lambda t, path: path.write_bytes(caffemodel(t, 1, "fc_action", old_shape=True, packed=False)),
        True,
        CAFFE,
    ),
    "Caffe init": (lambda t, path: path.write_bytes(caffemodel(without_head(t))), False, CAFFE),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_published_format_gives_the_same_network_to_the_last_bit(activations, flow, file, name):
    write, with_head, options = FORMATS[name]
    write(flow, file)
    tensors, stream, how, _ = convert(read_checkpoint(file), file, options or ImportOptions())
    assert stream == "flow"
    assert how == FlowInput(6.375, 20.0, "interleaved")
    with torch.device("meta"):
        found = BNInception(10, num_classes=5 if with_head else 0).eval()
    found.load_state_dict(tensors, strict=False, assign=True)
    with torch.inference_mode():
        for layer, values in found.features(STACK).items():
            assert torch.equal(values, activations[layer]), layer
        assert not with_head or torch.equal(found(STACK), activations["fc"])


def imported(file: Path, **options: object) -> Imported:
    return import_weights(file, "mine", ImportOptions(**options), overwrite=True)


def test_imported_weights_are_there_by_name_with_a_card_that_says_where_they_are_from(rgb, file, cache_folder):
    saved(rgb, file)
    done = import_weights(file, "mine", ImportOptions(licence="BSD-2"))
    assert done.path == find_weights("mine") == cache_folder / "weights" / "mine.safetensors"
    model = load_weights("mine")
    assert all(torch.equal(model.network.state_dict()[key], tensor) for key, tensor in rgb.items())
    card = model.card
    assert (card.stream, card.input, card.licence) == ("rgb", BGR_128, "BSD-2")
    assert card.source == "imported from published (PyTorch)"
    assert card.training_data == "unknown: imported from published"
    assert card.training["imported_sha256"] == read_checkpoint(file).sha256
    assert card.training["notes"] == list(done.notes)
    with pytest.raises(WeightsError, match="there are weights called mine already"):
        import_weights(file, "mine")
    assert imported(file, stream="flow", licence="MIT").card.licence == "MIT"


@pytest.mark.parametrize(
    ("content", "options", "how"),
    [
        (lambda t: t, {}, BGR_128),
        (lambda t: t, {"input": "tsn-caffe"}, BGR_123),
        (nested, {}, BGR_123),
        (nested, {"input": "tsn-pytorch"}, BGR_128),
    ],
)
def test_the_means_follow_from_who_trained_it(rgb, content, options, how):
    _, stream, found, notes = converted(content(rgb), **options)
    assert (stream, found) == ("rgb", how)
    assert any("input: BGR less 104, 117, " in note for note in notes)


def test_caffe_files_have_the_means_of_caffe(rgb):
    assert converted(rgb, "Caffe", bn_statistics="variance").input == BGR_123


def test_a_flow_network_can_begin_with_rgb_kernels_and_that_is_said(rgb):
    tensors, stream, how, notes = converted(rgb, stream="flow")
    assert (stream, how.scale) == ("flow", 6.375)
    first, found = rgb["conv1_7x7_s2.weight"], tensors["conv1_7x7_s2.weight"]
    assert found.shape == (64, 10, 7, 7)
    assert torch.equal(found, first.mean(1, keepdim=True).repeat(1, 10, 1, 1))
    assert torch.equal(tensors["conv1_7x7_s2.bias"], rgb["conv1_7x7_s2.bias"])
    assert any("cross-modality" in note for note in notes)


def test_of_several_networks_in_a_file_one_is_chosen(rgb, flow):
    both = renamed(rgb, "module.rgb.") | renamed(flow, "module.flow.")
    with pytest.raises(WeightsError, match="networks for flow and rgb: choose one with --stream"):
        converted(both)
    for stream, tensors in (("flow", flow), ("rgb", rgb)):
        found = converted(both, stream=stream).tensors
        assert torch.equal(found["conv1_7x7_s2.weight"], tensors["conv1_7x7_s2.weight"])


def test_one_classifier_is_kept_and_of_several_the_one_that_is_named(flow):
    several, other = epic(flow)["state_dict"], ssn(flow)["state_dict"]
    tensors, _, _, notes = converted(several)
    assert "fc.weight" not in tensors
    assert "classifiers left out: fc_verb, fc_noun; --head NAME keeps one that reads the 1024 features" in notes
    assert converted(several, head="fc-noun").tensors["fc.weight"].shape == (352, 1024)
    with pytest.raises(WeightsError, match="no classifier is called fc; there are fc_verb, fc_noun"):
        converted(several, head="fc")
    with pytest.raises(WeightsError, match=r"completeness_fc is no classifier of 1024.*weight \(20, 3072\), bias"):
        converted(other, head="completeness_fc")
    assert "fc.bias" not in converted(flow, head="none").tensors


def test_a_classifier_of_one_class_keeps_its_shape(flow):
    one = flow | {"fc.weight": flow["fc.weight"][:1], "fc.bias": flow["fc.bias"][:1]}
    assert converted(one).tensors["fc.weight"].shape == (1, 1024)


def changed(tensors: Tensors, **changes: torch.Tensor | None) -> Tensors:
    """Other tensors at some names, with __ for the dot; None leaves one out."""
    new = tensors | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in new.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "options", "error"),
    [
        (
            {"inception_3a_1x1__bias": None, "conv2_3x3_bn__running_var": None},
            {},
            r"2 of 416 tensors of BN-Inception are missing: conv2_3x3_bn\.running_var, inception_3a_1x1\.bias$",
        ),
        (
            {"module.x": torch.ones(1), "inception_9z/1x1.weight": torch.ones(1)},
            {},
            r"2 tensors have no place in it: inception_9z/1x1\.weight, module\.x \(--ignore-unused",
        ),
        ({"backbone.fc.bias": torch.ones(5)}, {}, r"fc\.bias and backbone\.fc\.bias are both fc\.bias"),
        ({"conv2_3x3__bias": torch.ones(1, 192)}, {}, r"conv2_3x3\.bias is \(1, 192\), expected \(192,\)"),
        ({"conv2_3x3_bn__bias": torch.ones(191)}, {}, r"conv2_3x3_bn\.bias is \(191,\), expected \(192,\)"),
        ({"conv2_3x3__bias": torch.full((192,), torch.nan)}, {}, r"conv2_3x3\.bias holds values that are not finite"),
        ({"conv2_3x3__bias": torch.full((192,), 1e300, dtype=torch.float64)}, {}, "holds values that are not finite"),
        ({"conv2_3x3__bias": torch.ones(192, dtype=torch.int64)}, {}, "holds int64, not floating-point numbers"),
        ({"conv2_3x3_bn__running_var": -torch.ones(192)}, {}, r"conv2_3x3_bn\.running_var holds negative values"),
        ({}, {"stream": "rgb"}, r"conv1_7x7_s2\.weight takes 10 channels, expected 3"),
        ({"conv1_7x7_s2__weight": torch.ones(64, 15, 7, 7)}, {}, "takes 15 channels, expected 3 or 10"),
    ],
)
def test_what_is_not_the_network_is_refused_with_every_name(flow, changes, options, error):
    with pytest.raises(WeightsError, match=error) as caught:
        converted(changed(flow, **changes), **options)
    assert "\n" not in str(caught.value)


def test_another_network_is_refused_by_what_it_holds():
    with pytest.raises(WeightsError, match=r"none of the 414 tensors of BN-Inception, but layer1\.0\.conv1\.weight"):
        converted({"layer1.0.conv1.weight": torch.ones(1)})


class Hostile:
    """Would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_not_executed_unless_it_is_allowed(flow, file, tmp_path, zipped):
    made = tmp_path / "made"
    saved({"state_dict": flow, "arch": Hostile(made)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"holds more than tensors \(\w+\.mkdir\).*--allow-pickle") as caught:
        imported(file)
    assert "\n" not in str(caught.value)
    assert not made.exists()
    imported(file, allow_pickle=True)
    assert made.exists()


def odd_archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("hello.txt", "world")
    return content.getvalue()


def test_what_cannot_be_read_is_one_clear_line(flow, file):
    torch.save({"state_dict": {"fc.weight": flow["fc.weight"]}}, file)
    whole = file.read_bytes()
    contents = {
        whole[:-100]: "cannot read .*: it is damaged, or no file of a known format$",
        whole[:1000]: "cannot read .*: it is damaged, or no file of a known format$",
        odd_archive(): "cannot read .*: it is damaged, or no file of a known format$",
        b"": "is empty",
        b"\n<!DOCTYPE html><html>": "is a web page",
        b"version https://git-lfs.github.com/spec/v1\n": "pointer of Git LFS",
        b"\x80\x02nothing": "cannot read",
        pickle.dumps([1, 2]): "cannot read .*: it is damaged, or no file of a known format$",
        pickle.dumps([1, 2], 4): "cannot read .*: it is damaged, or no file of a known format$",
        b"\x04\0\0\0\0\0\0\0{}  ": "damaged safetensors file|none of the 414",
        b"hello, world": "neither PyTorch nor safetensors, and as a Caffe model",
    }
    for content, error in contents.items():
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=error) as caught:
            imported(file)
        assert "\n" not in str(caught.value)
    for content, error in (
        ([flow], "holds a list and no tensors by name"),
        ({}, "holds a dict and no tensors"),
        ({"epoch": 3, "net": {}}, r"not tensors are epoch \(int\), net \(dict\)"),
    ):
        torch.save(content, file)
        with pytest.raises(WeightsError, match=error):
            imported(file)
    file.unlink()
    with pytest.raises(WeightsError, match=r"cannot read .*: No such file"):
        imported(file)


@pytest.mark.parametrize("blobs", [1, 3])
def test_caffe_layers_of_other_kinds_are_refused(file, flow, blobs):
    one = blob(flow["fc.bias"].numpy())
    file.write_bytes(caffemodel(flow) + layer("other", [one] * blobs))
    message = {1: r"1 tensors have no place in it: other\.weight", 3: "layer other has 3 blobs"}[blobs]
    with pytest.raises(WeightsError, match=message):
        imported(file, bn_statistics="variance")


def test_inverse_standard_deviations_become_variances(flow):
    inverse = {k: (v.double() + 1e-5).rsqrt().float() if "running_var" in k else v for k, v in flow.items()}
    tensors, _, _, notes = converted(inverse, "Caffe", bn_statistics="inverse-std")
    for key, tensor in flow.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=1e-4, atol=1e-7)
    assert "batch normalisation: variances from 1 / sqrt(variance + eps), as asked" in notes


def with_growth(tensors: Tensors, power: float) -> Tensors:
    """Variances that go with the kernels, as in trained networks, to some power."""
    norms = {k: v.flatten(1).norm(dim=1) for k, v in tensors.items() if v.dim() == 4}
    return {
        k: norms[k.replace("_bn.running_var", ".weight")] ** power if "running_var" in k else v
        for k, v in tensors.items()
    }


def test_what_the_statistics_of_a_caffe_file_are_is_said_and_why(flow):
    tensors, _, _, notes = converted(flow, "Caffe")
    assert torch.equal(tensors["conv1_7x7_s2_bn.running_var"], flow["conv1_7x7_s2_bn.running_var"])
    assert any("though nothing proves it: they neither grow nor fall" in note for note in notes)
    grown = with_growth(flow, 2)
    tensors, _, _, notes = converted(grown, "Caffe")
    assert torch.equal(tensors["conv1_7x7_s2_bn.running_var"], grown["conv1_7x7_s2_bn.running_var"])
    assert any("they grow with the kernels" in note for note in notes)


def test_statistics_that_fall_with_the_kernels_are_inverse_in_caffe_files_and_refused_in_others(flow):
    variances = with_growth(flow, 2)
    inverse = {k: (v.double() + 1e-5).rsqrt().float() if "running_var" in k else v for k, v in variances.items()}
    tensors, _, _, notes = converted(inverse, "Caffe")
    for key, tensor in variances.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=1e-4, atol=1e-7)
    assert any("the values fall with the kernels" in note and "--bn-statistics variance" in note for note in notes)
    kept = converted(inverse, "Caffe", bn_statistics="variance").tensors
    assert torch.equal(kept["conv1_7x7_s2_bn.running_var"], inverse["conv1_7x7_s2_bn.running_var"])
    with pytest.raises(WeightsError, match="say --bn-statistics variance or inverse-std"):
        converted(inverse)  # a PyTorch file that was converted from such a file


@pytest.mark.parametrize("value", [0.0, 320.0])
def test_values_that_only_a_variance_has_prove_it(flow, value):
    flow = flow | {"conv1_7x7_s2_bn.running_var": flow["conv1_7x7_s2_bn.running_var"].clone()}
    flow["conv1_7x7_s2_bn.running_var"][3] = value
    *_, notes = converted(flow, "Caffe")
    assert "batch normalisation: variances, as their values prove" in notes
    with pytest.raises(WeightsError, match="cannot be"):
        converted(flow, "Caffe", bn_statistics="inverse-std")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "take letters, digits"),
        ("../up", "take letters, digits"),
        ("a/b", "take letters, digits"),
        ("with space", "take letters, digits"),
        ("-x", "begin with a letter or a digit"),
        (".hidden", "begin with a letter or a digit"),
        ("untrained", "--weights untrained is a seeded random network"),
        ("a.safetensors", "--weights would take it for a file: leave out .safetensors"),
    ],
)
def test_names_that_are_no_names_are_refused(file, name, reason):
    with pytest.raises(WeightsError, match=f"weights cannot be called {name!r}: {reason}"):
        import_weights(file, name)


def test_files_with_a_card_and_names_of_the_program_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "theirs.safetensors").touch()
    (tmp_path / "theirs.toml").touch()
    with pytest.raises(WeightsError, match="has a card and needs no import"):
        import_weights(tmp_path / "theirs.safetensors", "mine")
    monkeypatch.setattr("tvnet_cli.network.convert.weights_folder", lambda: tmp_path)
    with pytest.raises(WeightsError, match="theirs is the name of weights that come with the program"):
        import_weights(tmp_path / "x.pth", "theirs")
