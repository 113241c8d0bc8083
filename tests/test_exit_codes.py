"""The exit codes that the README promises: 0 all done, 1 something failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tvnet_cli.cli import main
from tvnet_cli.features.extract import VideoResult
from tvnet_cli.options import DEFAULT_WEIGHTS


def run(words: str, folder: Path) -> Result:
    """A command, in which {tmp} is a folder."""
    return CliRunner().invoke(main, words.format(tmp=folder, weights=DEFAULT_WEIGHTS["flow"]).split())


def commands(group: click.Group = main, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))
        else:
            yield (*names, name)


COMMANDS = [" ".join(names) for names in commands()]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures to compute flow of, and a file that is nothing."""
    for name in "ab":
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "film.mp4").write_text("no film")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_0_and_an_unknown_option_is_2_everywhere(command, tmp_path):
    assert run(f"{command} --help", tmp_path).exit_code == 0
    result = run(f"{command} --no-such-option", tmp_path)
    assert result.exit_code == 2
    assert "no-such-option" in result.stderr.lower()


def test_an_unknown_command_is_2(tmp_path):
    assert run("features2", tmp_path).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        "flow {tmp}/a.png {tmp}/b.png -o {tmp}/ab.flo --iterations 1 -q",
        "weights list",
        "weights show {weights}",
        "weights verify {weights}",
        "weights path",
        "weights path {weights}",
        "completion bash",
        "--version",
    ],
)
def test_what_is_done_is_0(words, folder):
    result = run(words, folder)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "words",
    [
        "features {tmp}/nowhere.mp4 --weights untrained -o {tmp}/f.h5",
        "features {tmp}/film.mp4 --weights untrained -o {tmp}/f.h5",
        "features {tmp} --weights best",
        "features {tmp} --device cuda:99",
        "features {tmp} --weights untrained -o {tmp}/film.mp4",
        "flow {tmp}/nowhere.mp4 -o {tmp}/x.h5",
        "flow {tmp}/film.mp4 -o {tmp}/x.h5",
        "flow {tmp}/a.png {tmp}/b.png -o {tmp}/ab.flo --weights best",
        "flow {tmp}/a.png {tmp}/b.png -o {tmp}/ab.flo --device cuda:99",
        "aslan-eval {tmp}/nowhere.h5 --pairs {tmp}/nowhere.csv",
        "train actions {tmp}/nowhere -o {tmp}/out",
        "train flow {tmp}/nowhere -o {tmp}/out",
        "train motion -o {tmp}/out --weights best",
        "weights show best",
        "weights verify best",
        "weights path best",
        "weights import {tmp}/nowhere.pth --name mine",
        "weights import {tmp}/film.mp4 --name mine",
        "weights fetch best",
        "bench flow --pairs {tmp}/nowhere",
        "doctor {tmp}/nowhere",
        "visualize features {tmp}/nowhere.h5",
        "visualize features {tmp}/film.mp4",
    ],
)
def test_what_failed_is_1_and_says_why(words, folder):
    result = run(words, folder)
    assert result.exit_code == 1, result.output
    assert result.output.strip()
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "words",
    [
        "features",
        "features {tmp} --streams sound",
        "features {tmp} --batch-size 0",
        "features {tmp} --log-file {tmp}",
        "flow",
        "flow {tmp}/a.png {tmp}/b.png --size 3",
        "flow {tmp}/a.png {tmp}/b.png -o {tmp}/x.doc",
        "flow {tmp}/a.png {tmp}/b.png --tau 0",
        "aslan-eval --measures one",
        "visualize features {tmp}/film.mp4 -o {tmp}/x.png",
        "visualize features --neighbours 0",
        "aslan-eval --videos {tmp}",
        "train",
        "train actions",
        "train actions {tmp} --stream rgb --freeze-tvnet",
        "train flow --steps 0",
        "train motion --stage many",
        "train motion --stage 2x2@100000",
        "train motion --stage 2x100000@96",
        "train motion --stage 10000000000x2@96",
        "train motion --seed 99999999999999999999",
        "train flow --seed 99999999999999999999",
        "train actions {tmp} --seed 99999999999999999999",
        "weights",
        "weights show",
        "weights import {tmp}/film.mp4",
        "bench sound",
        "bench -o {tmp}/x.png",
        "completion cmd",
    ],
)
def test_wrong_usage_is_2_and_says_what_is_wrong(words, folder):
    result = run(words, folder)
    assert result.exit_code == 2, result.output
    assert "Usage: " in result.stderr


# Where Ctrl-C meets each command: the function that does its work.
INTERRUPTED = {
    "features {tmp}/film.mp4 --weights untrained -o {tmp}/f.h5": "tvnet_cli.features.extract.extract_features",
    "flow {tmp}/a.png {tmp}/b.png -o {tmp}/ab.flo": "tvnet_cli.flow.compute.write_flow",
    "aslan-eval {tmp}/f.h5 --pairs {tmp}/p.csv": "tvnet_cli.aslan.pairs.read_pairs",
    "train actions {tmp}/classes -o {tmp}/out": "tvnet_cli.training.datasets.read_dataset",
    "train flow -o {tmp}/out": "tvnet_cli.training.flow.train_flow",
    "train motion -o {tmp}/out": "tvnet_cli.training.pretrain.train_motion",
    "weights import {tmp}/film.mp4 --name mine": "tvnet_cli.network.convert.import_weights",
    "weights fetch tsn-ucf101-flow": "tvnet_cli.network.fetch.fetch_published",
    "weights verify": "tvnet_cli.network.weights.check_weights",
    "bench measures": "tvnet_cli.bench.run.run_bench",
    "doctor {tmp}": "tvnet_cli.doctor.examine",
}


def interrupt(*arguments: object, **more: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "function"), INTERRUPTED.items(), ids=[words.split(" {")[0] for words in INTERRUPTED]
)
def test_ctrl_c_is_130_without_a_traceback(words, function, folder, monkeypatch):
    monkeypatch.setattr(function, interrupt)
    result = run(words, folder)
    assert result.exit_code == 130, result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("function", ["train_flow", "train_motion"])
def test_a_training_that_ctrl_c_ended_well_is_130_too(function, folder, monkeypatch):
    module = {"train_flow": "flow", "train_motion": "pretrain"}[function]
    monkeypatch.setattr(f"tvnet_cli.training.{module}.{function}", lambda *arguments, **more: None)
    assert run(f"train {function.removeprefix('train_')} -o {{tmp}}/out", folder).exit_code == 130


@pytest.mark.parametrize(
    ("statuses", "exit_code"),
    [(["done"], 0), (["skipped", "skipped"], 0), (["done", "failed", "done"], 1), (["skipped", "failed"], 1)],
)
def test_features_is_0_only_if_every_video_is_there(statuses, exit_code, folder, monkeypatch):
    def results(*arguments: object, **more: object) -> Iterator[VideoResult]:
        yield from (VideoResult(f"{number}.mp4", status) for number, status in enumerate(statuses))

    monkeypatch.setattr("tvnet_cli.features.extract.extract_features", results)
    assert run("features {tmp} --weights untrained -o {tmp}/f.h5", folder).exit_code == exit_code


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_run_of_features_that_was_interrupted_is_130_whatever_became_of_its_videos(status, folder, monkeypatch):
    def results(*arguments: object, **more: object) -> Iterator[VideoResult]:
        yield VideoResult("a.mp4", status)
        raise KeyboardInterrupt

    monkeypatch.setattr("tvnet_cli.features.extract.extract_features", results)
    result = run("features {tmp} --weights untrained -o {tmp}/f.h5", folder)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
