"""Training on drawn motion: it learns, goes on exactly where it was, and ends with weights that serve."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tvnet_cli.cli import main
from tvnet_cli.errors import OutputError, TrainingError, WeightsError
from tvnet_cli.network.weights import load_models, load_weights
from tvnet_cli.options import PretrainOptions, Stage
from tvnet_cli.training import pretrain
from tvnet_cli.training.pretrain import (
    MotionModel,
    MotionResult,
    directions_of_flow,
    train_motion,
    write_motion_result,
)
from tvnet_cli.writing import is_marked

FEW = PretrainOptions(
    stages=(Stage(steps=2, batch_size=6, size=96), Stage(steps=2, batch_size=4, size=95, train_flow=True)),
    held_out=("figure", "pair", "arm", "camera"),
    validate_every=0,
)


@pytest.fixture(autouse=True)
def _few_clips_to_validate(monkeypatch):
    monkeypatch.setattr(pretrain, "VALIDATION_CLIPS", 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, MotionResult]:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "VALIDATION_CLIPS", 1)
        result = train_motion(folder, FEW)
    assert result is not None
    return folder, result


def test_flow_kernels_start_and_network_all_change(trained):
    start, model = MotionModel(range(21), FEW), trained[1].model
    before, after = start.state_dict(), model.state_dict()
    parameters = [name for name, _ in start.named_parameters()]
    unchanged = [name for name in parameters if torch.equal(before[name], after[name])]
    # A bias before batch normalisation has no gradient but rounding.
    assert not [name for name in unchanged if not name.endswith("bias")]
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_flow_stays_as_it_is_until_its_stage(tmp_path):
    model = train_motion(tmp_path, dataclasses.replace(FEW, stages=FEW.stages[:1])).model
    assert torch.equal(model.tvnet.gradient_kernels, MotionModel(range(21), FEW).tvnet.gradient_kernels)
    assert torch.equal(model.tvnet.u0, torch.zeros_like(model.tvnet.u0))


def test_a_stopped_run_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "CHECKPOINT_EVERY", 1)

    def stop(step, values):
        if step == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train_motion(tmp_path, FEW, report=stop)
    model = train_motion(tmp_path, FEW).model
    expected = trained[1].model.state_dict()
    different = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, expected[key])]
    assert not different
    assert (tmp_path / "log.csv").read_bytes() == (trained[0] / "log.csv").read_bytes()


def test_the_weights_serve_feature_extraction(trained, tmp_path):
    path = tmp_path / "mine.safetensors"
    write_motion_result(tmp_path, trained[1])
    path = tmp_path / "weights.safetensors"
    model = load_weights(str(path))
    assert model.card.training["seed"] == FEW.seed
    assert model.card.training["stages"] == ["2x6@96", "2x4@95+flow"]
    assert model.card.numbers["validation_clips"] == 21
    assert path.stat().st_size < 22e6
    assert "object/swing" in (tmp_path / "confusion.svg").read_text()
    assert (tmp_path / "classes.csv").read_text().count("\n") == 22
    stack = torch.randn(1, 10, 96, 96)
    with torch.no_grad():
        expected = trained[1].model.network.features(stack)["global_pool"]
        found = model.network.features(stack)["global_pool"]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)  # kept in half precision
    torch.testing.assert_close(
        model.tvnet.gradient_kernels, trained[1].model.tvnet.gradient_kernels, rtol=1e-3, atol=1e-3
    )


def test_a_training_can_begin_with_weights_of_its_classes_alone(trained, tmp_path):
    write_motion_result(tmp_path, trained[1])
    start = str(tmp_path / "weights.safetensors")
    slow = dataclasses.replace(FEW, stages=FEW.stages[:1], learning_rate=1e-9, flow_learning_rate=1e-9)
    model = train_motion(tmp_path / "on", slow, weights=start).model
    for name, parameter in load_weights(start).network.named_parameters():
        torch.testing.assert_close(dict(model.network.named_parameters())[name], parameter, rtol=0, atol=1e-7)
    assert torch.equal(model.tvnet.u0, load_weights(start).tvnet.u0)
    with pytest.raises(TrainingError, match="weights was"):
        train_motion(tmp_path / "on", slow)
    with pytest.raises(WeightsError, match="is not of these classes: size mismatch for fc"):
        train_motion(tmp_path / "other", dataclasses.replace(slow, held_out=("figure",)), weights=start)


def test_a_network_of_single_frames_learns_and_its_weights_serve(tmp_path):
    options = dataclasses.replace(FEW, stages=FEW.stages[:1], stream="rgb")
    result = train_motion(tmp_path, options)
    start = MotionModel(range(21), options)
    before, after = start.state_dict(), result.model.state_dict()
    unchanged = [name for name, _ in start.named_parameters() if torch.equal(before[name], after[name])]
    assert not [name for name in unchanged if not name.endswith("bias")]
    assert not [name for name in after if name.startswith(("tvnet.", "directions."))]
    result.model.network.conv1_7x7_s2_bn.running_var.fill_(1e5)  # more than half precision holds
    write_motion_result(tmp_path, result)
    model = load_models((str(tmp_path / "weights.safetensors"),), ("rgb",))["rgb"]
    assert model.network.conv1_7x7_s2_bn.running_var[0] == 1e5
    assert model.tvnet is None
    assert model.card.training["stream"] == "rgb"
    # The middle frame is what it sees, in the order and less the mean that the card tells.
    frames = torch.randint(0, 256, (2, 6, 3, 96, 96), dtype=torch.uint8)
    seen = result.model.inputs(frames)
    assert seen.shape == (2, 3, 96, 96)
    blue = frames[:, 3, 2].float() - model.card.input.mean[0]
    assert model.card.input.order == "BGR"
    torch.testing.assert_close(seen[:, 0], blue)


def test_bfloat16_rounds_the_network_and_nothing_else(trained, tmp_path):
    model, clips = trained[1].model, torch.randint(0, 256, (4, 6, 3, 96, 96), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3])
    values = {}
    for dtype in ("float32", "bfloat16"):
        model.options = dataclasses.replace(FEW, dtype=dtype)
        with torch.no_grad():
            values[dtype] = model.losses(model.inputs(clips), labels)["loss"]
    model.options = FEW
    assert values["bfloat16"].dtype == torch.float32
    assert values["bfloat16"] != values["float32"]
    torch.testing.assert_close(values["bfloat16"], values["float32"], rtol=0.03, atol=0)
    few = dataclasses.replace(FEW, stages=FEW.stages[:1])
    train_motion(tmp_path, few)
    with pytest.raises(TrainingError, match="dtype was"):
        train_motion(tmp_path, dataclasses.replace(few, dtype="bfloat16"))


def test_held_out_classes_are_told_apart_by_their_features_alone(trained):
    rows = (trained[0] / "log.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert 0 <= float(last["validation_held_out"]) <= 1
    assert 0 <= float(last["validation_accuracy"]) <= 1


def test_recipes_that_cannot_be_are_refused():
    flow, still = Stage(steps=1, batch_size=1, size=96, train_flow=True), Stage(steps=1, batch_size=1, size=96)
    with pytest.raises(ValueError, match=r"\+flow come last"):
        PretrainOptions(stages=(flow, still))
    with pytest.raises(ValueError, match="do not suit BN-Inception"):
        Stage(steps=1, batch_size=1, size=120)
    with pytest.raises(ValueError, match="learning_rate must be a positive number"):
        PretrainOptions(learning_rate=0.0)
    with pytest.raises(ValueError, match="rgb stream has no TVNet"):
        PretrainOptions(stages=(flow,), stream="rgb")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16"):
        PretrainOptions(dtype="float16")


def test_no_classes_left_is_said(tmp_path):
    everything = dataclasses.replace(FEW, held_out=("camera", "object", "two", "arm", "figure", "pair"))
    with pytest.raises(TrainingError, match="0 classes are left"):
        train_motion(tmp_path, everything)


def test_a_rate_without_bounds_stops_at_its_step_with_advice(tmp_path):
    options = PretrainOptions(stages=(Stage(steps=1, batch_size=2, size=96),), learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"step 1: validation_loss is nan; the last checkpoint is kept.*--learning"):
        train_motion(tmp_path, options)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_what_half_precision_cannot_hold_is_written_as_it_is(trained, tmp_path):
    result = copy.deepcopy(trained[1])
    result.model.network.conv1_7x7_s2.weight.data[0, 0, 0, 0] = 1e5
    write_motion_result(tmp_path, result)
    written = load_weights(str(tmp_path / "weights.safetensors")).network
    assert torch.equal(written.conv1_7x7_s2.weight, result.model.network.conv1_7x7_s2.weight)


def test_classes_to_hold_out_that_there_are_not_are_wrong_usage(tmp_path):
    result = CliRunner().invoke(main, ["train", "motion", "-o", str(tmp_path / "out"), "--held-out", "zzz"])
    assert result.exit_code == 2
    assert "--held-out: no class begins with 'zzz': there are camera, object, two, arm, figure, pair" in result.stderr
    assert not (tmp_path / "out").exists()


def test_weights_of_the_other_stream_are_named_as_such(trained, tmp_path):
    write_motion_result(tmp_path, trained[1])
    start = str(tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"weights.safetensors is for the flow stream, and rgb is trained$"):
        train_motion(tmp_path / "rgb", dataclasses.replace(FEW, stages=FEW.stages[:1], stream="rgb"), weights=start)


def test_directions_say_where_and_whither_and_not_how_fast():
    stacks = torch.zeros(2, 10, 64, 64)
    stacks[0, 0::2, :32, :32] = 8.0  # all fields go right, top left
    stacks[1, 1::2, 32:, :32] = 30.0  # down, bottom left
    found = directions_of_flow(stacks, (2, 2))
    assert found.shape == (2, 8, 2, 2)
    right, down = found[0, :, 0, 0], found[1, :, 1, 0]
    assert right.argmax() == 0
    assert down.argmax() == 2
    assert right[4] < 1e-3  # left
    torch.testing.assert_close(right, down.roll(-2), rtol=0.2, atol=0.01)
    assert found.sum() == pytest.approx(float(right.sum() + down.sum()), rel=1e-5)
    assert directions_of_flow(0.1 * stacks[:1], (2, 2)).square().mean() < 0.4  # hardly anything moves


def test_results_are_replaced_by_those_of_the_next_run(trained, tmp_path):
    for _ in range(2):
        write_motion_result(tmp_path, trained[1])
    assert is_marked(trained[0] / "checkpoint.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(pretrain.RESULTS)


@pytest.mark.parametrize("name", pretrain.RESULTS)
def test_results_that_no_training_made_are_refused_before_the_work(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=rf"{name} exists, and nothing in it says that tvnet made it.*--overwrite"):
        train_motion(tmp_path, FEW)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["weights.safetensors", "classes.csv"])
def test_a_result_that_was_changed_since_is_not_ours(trained, tmp_path, name):
    write_motion_result(tmp_path, trained[1])
    with (tmp_path / name).open("ab") as file:
        file.write(b"my notes")
    with pytest.raises(OutputError, match=name):
        write_motion_result(tmp_path, trained[1])
    write_motion_result(tmp_path, trained[1], overwrite=True)


def test_results_of_version_0_1_0_are_known_by_its_checkpoint(trained, tmp_path):
    """It left no mark in any file."""
    state = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    del state["generator"]
    torch.save(state, tmp_path / "checkpoint.pt")
    for name in pretrain.RESULTS:
        (tmp_path / name).write_text("of 0.1.0")
    assert train_motion(tmp_path, FEW) is not None
