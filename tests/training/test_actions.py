from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from training_films import MOTIONS, write_films

from tvnet_cli.cli import main
from tvnet_cli.errors import TrainingError
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ActionOptions, TVNetOptions
from tvnet_cli.progress import TrainingProgress
from tvnet_cli.training import action_network
from tvnet_cli.training.actions import _validate, train_actions
from tvnet_cli.training.datasets import read_dataset

SHORT = TVNetOptions(num_iterations=3)
SMALL = ActionOptions(
    size=95,
    short_side=109,
    num_segments=1,
    num_iterations=4,
    batch_size=2,
    milestones=(),
    dropout=0.5,
    batch_norm="full",
    validation_clips=1,
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    return write_films(tmp_path_factory.mktemp("films") / "set")


@pytest.fixture(scope="module")
def dataset(films):
    return read_dataset(films, validation_share=0.5)


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory):
    """A complete run: its folder and result."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, train_actions(dataset, folder, SMALL, schedule=SHORT)


def log_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def one_process(films: Path, folder: Path, options: ActionOptions, *kill_at: int, **environment: str):
    command = [sys.executable, str(Path(__file__).with_name("one_process.py")), films, folder]
    command += [json.dumps(asdict(options)), *kill_at]
    repository = str(Path(__file__).parents[2])
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        list(map(str, command)), env={**os.environ, **threads, "PYTHONPATH": repository, **environment}
    )


def test_a_few_films_are_learnt_by_heart_and_everything_learns(films, tmp_path):
    dataset = read_dataset(films, validation_share=0)
    options = replace(SMALL, num_iterations=12, batch_size=8, learning_rate=0.01, dropout=0.0, flip=False)
    options = replace(options, crop_scales=(0.875,), first_layer_factor=1.0)
    before = action_network.new_model(4, options, SHORT)[0].state_dict()
    result = train_actions(dataset, tmp_path, options, schedule=SHORT)
    log = log_of(tmp_path)
    assert [row["step"] for row in log] == list(range(1, 13))
    assert all(row["accuracy"] == 1 for row in log[-3:])
    assert log[-1]["classification"] < 0.7 * log[0]["classification"]
    assert all(abs(value) < 100 for row in log for value in row.values())
    after = result.model.state_dict()
    moved = {key: after[key] != value for key, value in before.items()}
    for key, changed in moved.items():
        assert torch.isfinite(after[key]).all()
        # A bias before a normalisation has no effect.
        assert changed.any() or (key.endswith(".bias") and "_bn" not in key and "fc" not in key), key
    # The first divergence is one of zeros, and what the last gradient makes is not read.
    assert moved["tvnet.divergence_kernels"][0, 0, 1:].all()
    assert moved["tvnet.gradient_kernels"][0, 0, :-1].all()
    assert moved["tvnet.u0"].float().mean() > 0.9
    for name in ("gradient_kernels", "divergence_kernels", "u0"):
        assert (after[f"tvnet.{name}"] - before[f"tvnet.{name}"]).abs().max() < 0.5
    assert result.confusion.sum() == 0


def test_the_same_seed_gives_the_same_curve(dataset, unbroken, tmp_path):
    train_actions(dataset, tmp_path, replace(SMALL, num_iterations=2), schedule=SHORT)
    expected = (unbroken[0] / "log.csv").read_text().splitlines()
    found = (tmp_path / "log.csv").read_text().splitlines()
    # The shorter run validates after its last step.
    assert [row.split(",")[:6] for row in found] == [row.split(",")[:6] for row in expected[:3]]
    other = tmp_path / "other"
    train_actions(dataset, other, replace(SMALL, num_iterations=1, seed=1), schedule=SHORT)
    assert log_of(other)[0]["loss"] != log_of(tmp_path)[0]["loss"]


def test_a_run_that_was_killed_goes_on_to_the_same_weights(films, dataset, unbroken, tmp_path):
    # Killed after the third step, one step behind its checkpoint.
    assert one_process(films, tmp_path, SMALL, 3).wait() == -signal.SIGKILL
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    result = train_actions(dataset, tmp_path, SMALL, schedule=SHORT)
    expected = unbroken[1].model.state_dict()
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert (tmp_path / "log.csv").read_text() == (unbroken[0] / "log.csv").read_text()


def test_two_processes_train_as_one(films, dataset, tmp_path):
    options = replace(SMALL, num_iterations=2, batch_size=4, dropout=0.0, batch_norm="frozen", learning_rate=1e-3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    # A thread each, and none beside them: more threads than cores wait for each other most of the time.
    group["OMP_NUM_THREADS"] = "1"
    pair = [one_process(films, tmp_path, options, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"]
    assert [process.wait(600) for process in pair] == [0, 0]
    alone = train_actions(dataset, tmp_path / "alone", options, schedule=SHORT)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    start = action_network.new_model(4, options, SHORT)[0].state_dict()
    for key, value in alone.model.state_dict().items():
        assert torch.equal(first["model"][key], second["model"][key]), key
        moved = (value - start[key]).abs().max()
        assert (first["model"][key] - value).abs().max() <= 1e-3 * moved + 1e-7, key
    assert first["confusion"] == second["confusion"] == alone.confusion.tolist()


def test_a_batch_that_processes_cannot_share_is_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tvnet_cli.training.actions.rank_and_world", lambda: (0, 3))
    with pytest.raises(TrainingError, match="a batch of 2 cannot be shared equally by 3 processes"):
        train_actions(dataset, tmp_path, SMALL)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(dataset, tmp_path, monkeypatch):
    flow_loss, calls = action_network.flow_loss, []

    def broken(*arguments):
        calls.append(0)
        return flow_loss(*arguments) * (torch.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(action_network, "flow_loss", broken)
    with pytest.raises(TrainingError, match=r"step 4: loss is nan; the last checkpoint is kept"):
        train_actions(dataset, tmp_path, SMALL, schedule=SHORT)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 2
    assert all(torch.isfinite(value).all() for value in kept["model"].values())


def test_a_validation_that_is_no_number_stops_the_command_too(films, tmp_path):
    result = run(films, tmp_path, "--iterations", "1", "--learning-rate", "1e20", "--clip-norm", "1e9")
    assert result.exit_code == 1
    assert "Error: step 1: validation_loss is nan; the last checkpoint is kept" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_learning_rates_fall_at_the_milestones(dataset, tmp_path):
    options = replace(SMALL, stream="rgb", milestones=(1, 2), num_iterations=3, batch_size=1)
    train_actions(dataset, tmp_path, options)
    assert [row["learning_rate"] for row in log_of(tmp_path)] == pytest.approx([5e-3, 5e-4, 5e-5])
    assert all(row["flow"] == 0 for row in log_of(tmp_path))


def test_the_loss_is_that_of_the_classes_and_a_part_of_the_flow_loss(unbroken):
    for row in log_of(unbroken[0]):
        assert row["loss"] == pytest.approx(row["classification"] + 0.1 * row["flow"], rel=1e-5)
        assert row["flow"] > 0


def test_validation_counts_each_video_by_its_class_and_changes_nothing(dataset):
    model, _ = action_network.new_model(4, replace(SMALL, stream="rgb"))
    model.network.fc.weight.data.normal_()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with ThreadPoolExecutor(1) as pool:
        confusion, loss = _validate(model.train(), dataset.validation, "cpu", pool)
        assert _validate(model.train(), dataset.validation, "cpu", pool)[1] == loss
    assert confusion.sum(1).tolist() == [1, 1, 1, 1]
    assert loss > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


ARGUMENTS = (
    "--size 95 --segments 1 --iterations 2 --batch-size 1 --validation-share 0.5 --validation-clips 1 "
    "--tvnet tvnet-10 --dropout 0 --device cpu --crop-scales 0.875 --no-flip"
).split()


def run(films: Path, folder: Path, *more: str):
    return CliRunner().invoke(main, ["train", "actions", str(films), "-o", str(folder), *ARGUMENTS, *more])


def test_the_command_leaves_weights_for_features_and_goes_on_only_with_itself(films, tmp_path):
    result = run(films, tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["iterations"], found["validation_videos"]) == (2, 4)
    assert "[2/2] loss" in result.stderr
    model = load_models([found["weights"]], ["flow"])["flow"]
    assert model.tvnet.options == TVNetOptions(num_iterations=10)
    assert model.card.numbers["validation_accuracy"] == found["validation_accuracy"]
    assert model.card.training["classes"] == list(MOTIONS)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert torch.equal(model.tvnet.gradient_kernels, kept["tvnet.gradient_kernels"])
    assert torch.equal(model.network.fc.weight, kept["network.fc.weight"])
    assert "accuracy" in (tmp_path / "confusion.svg").read_text()
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 5

    written = (tmp_path / "log.csv").read_text()
    again = run(films, tmp_path)
    assert (again.exit_code, (tmp_path / "log.csv").read_text()) == (0, written)
    assert f"of 4 validation videos; weights in {tmp_path}/weights.safetensors" in again.stdout
    other = run(films, tmp_path, "--learning-rate", "0.1")
    assert other.exit_code == 1
    assert "options.learning_rate was 0.005, now 0.1; choose another folder, or --overwrite" in other.stderr
    assert run(films, tmp_path, "--learning-rate", "0.1", "--overwrite", "-q").exit_code == 0
    assert (tmp_path / "log.csv").read_text() != written


def test_ctrl_c_keeps_a_checkpoint_behind_the_step(films, tmp_path, monkeypatch):
    def press_once(self, step, values):
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "show", press_once)
    result = run(films, tmp_path, "--iterations", "5")
    assert result.exit_code == 130
    assert "interrupted: the same command goes on from the checkpoint" in result.stderr
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "120"], "BN-Inception cannot take 120 x 120"),
        (["--stream", "rgb"], "the rgb stream has no TVNet"),
        (["--dropout", "1"], "dropout must be at least 0 and less than 1, not 1.0"),
        (["--iterations", "0"], "num_iterations must be at least 1"),
        (["--clip-norm", "0"], "clip_norm must be a positive number"),
        (["--crop-scales", "2"], "crop_scales are shares"),
        (["--milestones", "a"], "'a' are no numbers"),
        (["--short-side", "50"], "does not fit a short side of 50"),
        (["--preset", "tsn-rgb", "--stream", "flow"], "the preset tsn-rgb is not for the flow stream"),
        (["--freeze-tvnet", "--tvnet-learning-rate", "1"], "give one"),
    ],
)
def test_wrong_usage_is_said_in_one_line(films, tmp_path, arguments, message):
    result = run(films, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_each_number(tmp_path, monkeypatch):
    from tvnet_cli.training.board import tensorboard

    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tensorboard(tmp_path) is None
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    monkeypatch.setattr(sys.modules["torch.utils.tensorboard"], "SummaryWriter", Writer, raising=False)
    report = tensorboard(tmp_path)
    report(7, {"loss": 0.5})
    report(8, {"loss": 0.25})
    assert written == [(str(tmp_path), 7), ("loss", 0.5, 7), ("loss", 0.25, 8)]


@pytest.mark.parametrize("place", [".", "actions"])
def test_results_do_not_go_among_the_classes(films, place):
    result = run(films, films / place)
    assert result.exit_code == 2
    assert "where each folder is a class of videos: choose another -o" in result.stderr
    assert not (films / "actions").exists()
