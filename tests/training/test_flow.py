from __future__ import annotations

import csv
import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from films import write_film
from flow_pairs import write_pair
from PIL import Image

from tvnet_cli.cli import main
from tvnet_cli.errors import DatasetError, DiskFullError, TrainingError
from tvnet_cli.flow.accuracy import endpoint_error
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network.cards import read_card
from tvnet_cli.network.weights import load_tvnet
from tvnet_cli.options import FlowTrainingOptions, TVNetOptions
from tvnet_cli.training import flow as training
from tvnet_cli.training.drawn import drawn_pair
from tvnet_cli.training.pairs import find_named_pairs
from tvnet_cli.training.sources import open_source

SCHEDULE = TVNetOptions(num_iterations=10)
SHORT = FlowTrainingOptions(steps=4, batch_size=2, crop=32, train_u0=True)


@pytest.fixture(autouse=True)
def _few_tests(monkeypatch):
    """Fewer and smaller drawn pairs to test on."""
    monkeypatch.setattr(training, "NUM_DRAWN", 4)
    monkeypatch.setattr(training, "DRAWN_SIZE", 48)


def trained(folder: Path, *paths: Path, options: FlowTrainingOptions = SHORT, **arguments) -> TVNet:
    source = open_source(paths, options.seed, options.crop)
    net = training.train_flow(folder, source, SCHEDULE, options, **arguments)
    assert net is not None
    return net


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(net: TVNet) -> dict[str, torch.Tensor]:
    options = net.options
    return {"numbers": torch.tensor([options.tau, options.lambda_, options.theta]), **net.state_dict()}


def test_training_lowers_the_error_on_drawn_pairs_that_it_has_not_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "NUM_DRAWN", 12)
    monkeypatch.setattr(training, "DRAWN_SIZE", 64)
    options = FlowTrainingOptions(steps=40, batch_size=4, crop=64, learning_rate=0.05)
    source, solver = open_source([], options.seed, options.crop), TVNetOptions(num_iterations=30)
    net = training.train_flow(tmp_path, source, solver, options)
    (row,) = training.compare(net, solver, source, options)
    assert row.pairs == 12
    assert row.after < 0.98 * row.before
    untrained = TVNet.from_options(solver)
    errors = [endpoint_error(training.solve(untrained, pair), pair.truth) for pair in training.drawn_tests(0)]
    assert row.before == pytest.approx(np.mean(errors))
    assert row.change == pytest.approx(row.after / row.before - 1)
    assert float(log(tmp_path)[-1]["validation_error"]) == pytest.approx(row.after, rel=1e-6)


@pytest.mark.parametrize("frozen", ["nothing", "train_u0", "train_numbers"])
def test_all_that_is_not_frozen_learns(tmp_path, frozen):
    frozen_ones = {} if frozen == "nothing" else {frozen: False}
    options = dataclasses.replace(SHORT, **frozen_ones)
    before, after = numbers(TVNet.from_options(SCHEDULE)), numbers(trained(tmp_path, options=options))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"nothing": set(), "train_u0": {"u0"}, "train_numbers": {"numbers"}}[frozen]
    kernels = after["gradient_kernels"][0, 0, :-1]  # those of the last iteration have no effect
    assert bool((kernels.abs() != 1).all())
    assert bool((after["divergence_kernels"][0, 0, 1:].abs() != 1).all())


def test_the_same_seed_gives_the_same_curve_and_another_seed_another(tmp_path):
    nets = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = dataclasses.replace(SHORT, seed=seed)
        nets[name] = trained(tmp_path / name, options=options)
    assert log(tmp_path / "a") == log(tmp_path / "b")
    assert log(tmp_path / "a")[1]["loss"] != log(tmp_path / "c")[1]["loss"]
    for name, tensor in numbers(nets["a"]).items():
        assert torch.equal(tensor, numbers(nets["b"])[name])


def test_what_is_not_known_does_not_matter(tmp_path):
    """Unknown flow in the file, and any values there, give the same kernels."""
    pair = drawn_pair(0, 0, 40)
    nets = []
    for name, unknown in (("a", 1e10), ("b", np.nan)):
        truth = pair.truth.copy()
        truth[:, 10:30, 5:25] = unknown
        write_pair(tmp_path / name / "pair", pair._replace(truth=truth))
        nets.append(trained(tmp_path / f"{name}-out", tmp_path / name))
    whole = write_pair(tmp_path / "c" / "pair", pair)
    nets.append(trained(tmp_path / "c-out", whole))
    kernels = [net.divergence_kernels for net in nets]
    assert torch.equal(kernels[0], kernels[1])
    assert not torch.equal(kernels[0], kernels[2])
    assert all(bool(tensor.isfinite().all()) for net in nets for tensor in net.state_dict().values())


def test_films_are_learned_from_without_known_flow(tmp_path):
    texture = np.random.default_rng(0).integers(0, 256, (80, 140, 3)).astype(np.uint8)
    film = write_film(
        tmp_path / "a.mp4", 24, picture=lambda number: np.ascontiguousarray(texture[:64, number : number + 96])
    )
    options = FlowTrainingOptions(steps=25, batch_size=2, crop=64, learning_rate=0.03)
    source = open_source([film], 0, 64)
    net = training.train_flow(tmp_path / "out", source, SCHEDULE, options)
    drawn, films = training.compare(net, SCHEDULE, source, options)
    assert (drawn.unit, films.unit, films.pairs) == ("px", "", 2)
    assert films.after < films.before


def test_a_stopped_run_goes_on_and_another_one_is_refused(tmp_path):
    whole = trained(tmp_path / "whole", options=SHORT)
    source = open_source([], 0, SHORT.crop)

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    assert training.train_flow(tmp_path / "out", source, SCHEDULE, SHORT, report=stop) is None
    assert 2 <= len(log(tmp_path / "out")) < SHORT.steps
    again = trained(tmp_path / "out", options=SHORT)
    for name, tensor in numbers(whole).items():
        assert torch.equal(tensor, numbers(again)[name])
    assert log(tmp_path / "out") == log(tmp_path / "whole")
    with pytest.raises(TrainingError, match=r"tvnet.num_iterations was 10, now 5"):
        training.train_flow(tmp_path / "out", source, TVNetOptions(num_iterations=5), SHORT)
    with pytest.raises(TrainingError, match=r"training.seed was 0, now 1"):
        trained(tmp_path / "out", options=dataclasses.replace(SHORT, seed=1))
    write_pair(tmp_path / "pairs" / "0", drawn_pair(0, 0, 40))
    with pytest.raises(TrainingError, match=r"source.drawn was 1, now null"):
        trained(tmp_path / "out", tmp_path / "pairs", options=SHORT)


def test_the_weights_give_the_same_flow_again(tmp_path):
    source = open_source([], 0, SHORT.crop)
    net = trained(tmp_path)
    rows = training.compare(net, SCHEDULE, source, SHORT)
    training.write_result(tmp_path, net, SCHEDULE, source, SHORT, rows)
    loaded, _ = load_tvnet(str(tmp_path / "tvnet.safetensors"), TVNetOptions())
    pair = drawn_pair(5, 0, 48)
    np.testing.assert_array_equal(training.solve(loaded, pair), training.solve(net, pair))
    assert loaded.options == net.options != SCHEDULE
    card = read_card(tmp_path / "tvnet.toml")
    assert card.training_data == "drawn pairs, seed 0"
    assert card.numbers["drawn pairs"]["after"] == rows[0].after
    assert card.training["steps"] == 4
    with Image.open(tmp_path / "flow.png") as picture:
        assert picture.size == (4 * 48, 48)


def test_a_picture_on_a_full_disk_is_named(tmp_path, no_room_for):
    source = open_source([], 0, SHORT.crop)
    no_room_for("flow.png")
    with pytest.raises(DiskFullError, match=r"cannot write .*flow.png: the disk at .* is full: No space left"):
        training.write_result(tmp_path, TVNet.from_options(SCHEDULE), SCHEDULE, source, SHORT, [])


def tvnet(*arguments: object):
    return CliRunner().invoke(main, ["train", "flow", *map(str, arguments)])


SMALL = ("--iterations", 10, "--steps", 3, "--batch-size", 2, "--crop", 32)


def test_the_command_trains_and_compares(tmp_path):
    for index in range(2):
        write_pair(tmp_path / "pairs" / str(index), drawn_pair(0, index, 40))
    arguments = (tmp_path / "pairs", "-o", tmp_path / "out", "--validate", tmp_path / "pairs", *SMALL)
    result = tvnet(*arguments)
    assert result.exit_code == 0, result.output
    assert "2 pairs with known flow" in result.stderr
    assert "[3/3] loss" in result.stderr
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == ["drawn pairs", "0/flow10", "1/flow10", "mean of them"]
    assert lines[-1].endswith("flow.png")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint.pt",
        "flow.png",
        "log.csv",
        "tvnet.safetensors",
        "tvnet.toml",
    ]
    assert tvnet(*arguments).exit_code == 0
    again = tvnet(*arguments, "--overwrite", "--json", "--log-file", tmp_path / "log.jsonl")
    started, *steps, ended = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (started["event"], started["options"]["steps"]) == ("started", 3)
    assert [one["event"] for one in steps] == ["step"] * len(steps)
    assert steps[-1]["step"] == 3
    assert steps[-1]["loss"] > 0
    assert (ended["event"], ended["exit_code"]) == ("ended", 0)
    rows = json.loads(again.stdout)["comparisons"]
    assert [row["name"] for row in rows] == ["drawn pairs", "0/flow10", "1/flow10", "mean of them"]
    assert rows[3]["after"] == pytest.approx((rows[1]["after"] + rows[2]["after"]) / 2)
    shown = float(lines[2].split()[3])
    assert shown == pytest.approx(rows[1]["after"], abs=5e-4)


def test_a_run_that_is_interrupted_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train_flow", lambda *arguments, **more: None)
    result = tvnet("-o", tmp_path / "out", *SMALL)
    assert result.exit_code == 130
    assert "interrupted: the same command goes on from the checkpoint in" in result.stderr
    assert not (tmp_path / "out" / "tvnet.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ("--seed 99999999999999999999", 2, "seed"),
        ("--steps 0", 2, "steps must be at least 1"),
        ("--crop 8", 2, "crop must be at least 16 pixels"),
        ("--learning-rate -1", 2, "learning_rate must be a positive number"),
        ("--tau nan", 2, "tau must be a positive number"),
        ("--preset best", 2, "'best' is not one of"),
        ("{tmp}/empty", 1, "no videos in"),
        ("--validate {tmp}/empty", 1, "no known flow in"),
        ("--device cuda:77", 1, "cuda:77 was asked for"),
        ("{tmp}/empty -o {tmp}/empty", 2, "empty is a folder of pairs or videos: choose another -o"),
        ("-o {tmp}/mine", 2, "flow.png exists, and nothing in it says that tvnet made it"),
        ("-o {tmp}/mine/flow.png", 2, "flow.png is no folder"),
    ],
)
def test_each_mistake_has_one_clear_line(tmp_path, arguments, exit_code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "flow.png").write_bytes(b"mine")
    result = tvnet("-o", tmp_path / "out", *arguments.format(tmp=tmp_path).split())
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("unknown", [np.nan, 1e10])
def test_pairs_of_which_nothing_is_known_are_not_trained_on_but_named(tmp_path, unknown):
    pair = drawn_pair(0, 0, 40)
    write_pair(tmp_path / "pairs" / "0", pair._replace(truth=np.full_like(pair.truth, unknown)))
    result = tvnet(tmp_path / "pairs", "-o", tmp_path / "out", *SMALL)
    assert result.exit_code == 1
    assert "0/flow10.flo: no vector in it is known" in result.stderr
    assert not (tmp_path / "out" / "tvnet.safetensors").exists()


def test_a_crop_larger_than_pairs_is_said(tmp_path):
    for index, side in enumerate((40, 64)):
        write_pair(tmp_path / "pairs" / str(index), drawn_pair(0, index, side))
    result = tvnet(tmp_path / "pairs", "-o", tmp_path / "out", *SMALL, "--crop", 50)
    assert result.exit_code == 0
    assert (
        "note 1 of 2 pairs are smaller than the crop of 50 pixels; crops of batches with them are too" in result.stderr
    )
    assert "smaller" not in tvnet(tmp_path / "pairs", "-o", tmp_path / "out", *SMALL, "--overwrite").stderr


def test_pairs_of_which_nothing_is_known_are_named(tmp_path):
    pair = drawn_pair(0, 0, 40)
    write_pair(tmp_path / "pairs" / "0", pair._replace(truth=np.full_like(pair.truth, np.nan)))
    source = open_source([], 0, SHORT.crop)
    with pytest.raises(DatasetError, match=r"0/flow10.flo: no vector in it is known"):
        training.compare(TVNet.from_options(SCHEDULE), SCHEDULE, source, SHORT, find_named_pairs([tmp_path / "pairs"]))
