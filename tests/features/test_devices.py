from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from films import write_film

from tvnet_cli import device
from tvnet_cli.cli import main
from tvnet_cli.device import choose_devices
from tvnet_cli.errors import DeviceError
from tvnet_cli.features.extract import extract_features
from tvnet_cli.features.extractor import Extractor
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.files import find_videos

SMALL = ExtractOptions(num_clips=2)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(4):
        write_film(folder / f"{number}.mp4", 12 + number)
    return folder


@pytest.fixture
def gpus(monkeypatch) -> None:
    """Three GPUs, as far as their names go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def content(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def run(films: Path, output: Path, devices) -> dict[str, np.ndarray]:
    models = load_models(["untrained"], ("flow",))
    results = list(extract_features(find_videos([films]), output, models, device=devices, options=SMALL))
    assert [result.status for result in results] == ["done"] * 4
    return content(output)


def test_two_devices_share_the_videos_and_give_the_rows_of_one(tmp_path, films, monkeypatch):
    one = run(films, tmp_path / "one.h5", "cpu")
    asked = []
    row = Extractor.row
    monkeypatch.setattr(Extractor, "row", lambda self, place: asked.append(self) or row(self, place))
    two = run(films, tmp_path / "two.h5", [torch.device("cpu")] * 2)
    assert len(asked) == 4
    assert len(set(asked)) == 2
    for name in one:
        assert np.array_equal(one[name], two[name]), name


@pytest.mark.usefixtures("gpus")
def test_devices_are_named_with_commas():
    first, second, third = (torch.device("cuda", index) for index in range(3))
    assert choose_devices("cuda:0,cuda:2") == (first, third)
    assert choose_devices("cuda, cuda:1") == (first, second)
    assert choose_devices("all") == (first, second, third)
    assert choose_devices("cuda") == (torch.device("cuda"),)
    assert choose_devices("cpu") == (torch.device("cpu"),)
    with pytest.raises(DeviceError, match="cuda:3 was asked for"):
        choose_devices("cuda:0,cuda:3")
    for wrong in ("cuda:1,cuda:1", "cuda,cuda:0", "cpu,cuda", "cpu,cpu", "auto,cuda:1", "all,cuda:0", "cuda:0,"):
        with pytest.raises(ValueError, match=wrong):
            choose_devices(wrong)


def test_all_gpus_are_an_error_where_there_is_none(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="all GPUs were asked for"):
        choose_devices("all")


@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "cpu,cuda"])
def test_devices_that_cannot_share_the_work_are_wrong_usage(films, tmp_path, devices):
    result = CliRunner().invoke(main, ["features", str(films), "-o", str(tmp_path / "f.h5"), "--device", devices])
    assert result.exit_code == 2
    assert "--device" in result.stderr
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.cuda
def test_all_gpus_give_the_rows_of_one(tmp_path, films):
    one = run(films, tmp_path / "one.h5", "cuda:0")
    every = run(films, tmp_path / "all.h5", choose_devices("all"))
    for name in one:
        assert np.array_equal(one[name], every[name]), name
