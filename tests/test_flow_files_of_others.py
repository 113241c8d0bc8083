"""What ``tvnet flow`` leaves alone: files of others, flow of other inputs, outputs of other runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from films import write_film
from PIL import Image

from tvnet_cli.cli import main
from tvnet_cli.errors import FlowFileError
from tvnet_cli.locks import lock_folder, locked


def flow(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["flow", *map(str, arguments), "--iterations", "2"])


def write_images(folder: Path, names: list[str], seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return write_images(tmp_path / "frames", [f"frame_{number:05d}.png" for number in range(1, 4)])


@pytest.mark.parametrize(
    ("output", "arguments"),
    [
        ("mine.mp4", ["-o", "mine.mp4"]),
        ("mine.npz", ["-o", "mine.npz"]),
        ("mine.h5", ["-o", "mine.h5"]),
        ("frames.flow.mp4", []),
        ("out/flow_00002.png", ["-o", "out", "--format", "png"]),
        ("out/flow_00003.flo", ["-o", "out", "--format", "flo"]),
        ("out/flow_x_00002.jpg", ["-o", "out", "--format", "xy-jpg"]),
    ],
)
def test_files_of_others_are_replaced_on_request_alone(
    frames: Path, monkeypatch: pytest.MonkeyPatch, output: str, arguments: list[str]
):
    monkeypatch.chdir(frames.parent)
    path = Path(output)
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    for _ in range(2):
        result = flow(frames.name, *arguments)
        assert result.exit_code in (1, 2)
        assert path.name in result.stderr
        assert path.read_text() == "precious"
    assert flow(frames.name, *arguments, "--overwrite").exit_code == 0


@pytest.mark.parametrize("suffix", ["png", "flo"])
def test_single_files_of_others_are_replaced_on_request_alone(frames: Path, suffix: str):
    path = frames.parent / f"one.{suffix}"
    path.write_text("precious")
    pair = sorted(frames.iterdir())[:2]
    assert flow(*pair, "-o", path).exit_code == 2
    assert path.read_text() == "precious"
    assert flow(*pair, "-o", path, "--overwrite").exit_code == 0
    assert flow(*pair, "-o", path).exit_code == 0  # ours, or the same again


@pytest.mark.parametrize("name", ["a.mp4", "a.npz", "a.png"])
def test_our_own_files_are_replaced_without_a_word(frames: Path, name: str):
    inputs = sorted(frames.iterdir())[:2]
    for _ in range(2):
        result = flow(*inputs, "-o", frames.parent / name)
        assert result.exit_code == 0, result.stderr


def test_a_folder_beside_an_npz_is_left_alone(frames: Path):
    (frames.parent / "p.npz.parts").mkdir()
    (frames.parent / "p.npz.parts" / "thesis.txt").write_text("thesis")
    assert flow(frames, "-o", frames.parent / "p.npz").exit_code == 0
    assert (frames.parent / "p.npz.parts" / "thesis.txt").read_text() == "thesis"
    assert not [path for path in frames.parent.iterdir() if path.name[0] == "."]


@pytest.mark.parametrize("arguments", [["-o", "f.h5"], ["-o", "f", "--format", "flo"]])
def test_frames_rendered_anew_under_the_same_names_are_noticed(
    frames: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    monkeypatch.chdir(frames.parent)
    assert flow(frames, *arguments).exit_code == 0
    sizes = {path: path.stat() for path in frames.iterdir()}
    for path, before in sizes.items():  # the same size and time, another content
        content = bytearray(path.read_bytes())
        content[before.st_size // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = flow(frames, *arguments)
    assert result.exit_code == 1
    assert "has changed since" in result.stderr
    assert "--overwrite" in result.stderr


def test_a_copy_of_the_frames_is_the_same_input_which_is_noted(frames: Path, caplog: pytest.LogCaptureFixture):
    output = frames.parent / "f.h5"
    assert flow(frames, "-o", output).exit_code == 0
    for path in frames.iterdir():
        os.utime(path, (1, 1))
    with caplog.at_level("WARNING"):
        result = flow(frames, "-o", output)
    assert (result.exit_code, "nothing to do" in result.stderr) == (0, True)
    assert "another time of change, and the same content" in caplog.text


def test_flow_of_version_0_1_0_is_resumed_if_name_number_and_size_agree(frames: Path):
    output = frames.parent / "f.h5"
    flow(frames, "-o", output)
    with h5py.File(output, "a") as file:
        recipe = json.loads(file.attrs["recipe"])
        recipe["input"] = {name: recipe["input"][name] for name in ("first", "files", "bytes")}
        file.attrs["recipe"] = json.dumps(recipe)
    assert "nothing to do" in flow(frames, "-o", output).stderr
    with h5py.File(output, "a") as file:
        recipe["input"]["bytes"] += 1
        file.attrs["recipe"] = json.dumps(recipe)
    assert "has changed since" in flow(frames, "-o", output).stderr


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img_1.jpg", "img_2.jpg", "flow_x_1.jpg", "flow_x_2.jpg"], "img_*.jpg (2), flow_x_*.jpg (2)"),
        (["f1.jpg", "f2.jpg", "f1.png", "f2.png"], "f*.jpg (2), f*.png (2)"),
        (["f1.png", "f2.png", "cover.png"], "f*.png (2), cover.png (1)"),
        (["f1.png", "f01.png", "f2.png"], "one number twice"),
    ],
)
def test_folders_that_are_no_sequence_are_named_with_patterns_and_counts(
    tmp_path: Path, names: list[str], message: str
):
    folder = write_images(tmp_path / "frames", names)
    result = flow(folder, "-o", tmp_path / "f.h5")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "f.h5").exists()


def test_images_beside_videos_are_no_sequence(frames: Path):
    write_film(frames / "a.mp4", 3)
    result = flow(frames, "-o", frames.parent / "f.h5")
    assert result.exit_code == 1
    assert "holds 3 images and 1 videos (a.mp4)" in result.stderr


def test_times_and_frame_numbers_follow_the_numbers_of_the_images(tmp_path: Path):
    folder = write_images(tmp_path / "frames", ["take2_00001.png", "take2_00002.png", "take2_00005.png"])
    result = flow(folder, "-o", tmp_path / "f.h5", "--fps", 25)
    assert result.exit_code == 0
    assert "2 numbers are missing among the 3 images, the first after take2_00002.png" in result.stderr
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["frame_index"][:].tolist() == [[0, 1], [1, 4]]
        np.testing.assert_allclose(file["pts_seconds"][:], [0, 1 / 25])


@pytest.mark.parametrize("name", ["f.h5", "f.mp4", "f.npz", "folder"])
def test_an_output_that_another_run_is_writing_is_named(frames: Path, name: str):
    output = frames.parent / name
    arguments = ["--format", "png"] if name == "folder" else []
    with locked(output, lock_folder(output), FlowFileError):
        result = flow(frames, "-o", output, *arguments)
    assert result.exit_code == 1
    assert f"another run is writing {output}" in result.stderr
    assert not output.exists()


def test_a_complete_flow_file_that_is_open_elsewhere_is_nothing_to_do(frames: Path):
    output = frames.parent / "f.h5"
    flow(frames, "-o", output)
    with h5py.File(output):
        result = flow(frames, "-o", output)
    assert (result.exit_code, "nothing to do" in result.stderr) == (0, True)


def test_frames_that_change_during_the_run_are_an_error(frames: Path, monkeypatch: pytest.MonkeyPatch):
    from tvnet_cli.flow import compute

    solve = compute.solve_pairs

    def change(*arguments: object) -> object:
        (frames / "frame_00001.png").write_bytes((frames / "frame_00002.png").read_bytes())
        return solve(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compute, "solve_pairs", change)
    result = flow(frames, "-o", frames.parent / "f.h5")
    assert result.exit_code == 1
    assert "frames changed while it was read" in result.stderr
    with h5py.File(frames.parent / "f.h5") as file:
        assert not file.attrs["complete"]
