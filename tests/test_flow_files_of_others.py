"""What ``tvnet flow`` leaves alone: files of others, flow of other inputs, outputs of other runs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from films import write_film
from PIL import Image

from tvnet_cli.cli import main
from tvnet_cli.errors import FlowFileError
from tvnet_cli.flow import compute
from tvnet_cli.flow.store import FlowStore
from tvnet_cli.locks import lock_folder, locked
from tvnet_cli.writing import MARK, CalmFile

SOLVE_PAIRS = compute.solve_pairs


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


def test_a_copy_of_the_frames_is_the_same_input_which_is_noted(frames: Path):
    output = frames.parent / "f.h5"
    assert flow(frames, "-o", output).exit_code == 0
    for path in frames.iterdir():
        os.utime(path, (1, 1))
    result = flow(frames, "-o", output)
    assert (result.exit_code, "nothing to do" in result.stderr) == (0, True)
    assert result.stderr.count("note frame_00001.png was written at another time than when") == 1


def test_flow_of_version_0_1_0_is_resumed_if_name_number_and_size_agree(frames: Path):
    output = frames.parent / "f.h5"
    flow(frames, "-o", output)
    with h5py.File(output, "a") as file:
        recipe = json.loads(file.attrs["recipe"])
        recipe["input"] = {name: recipe["input"][name] for name in ("first", "files", "bytes")}
        file.attrs["recipe"] = json.dumps(recipe)
    result = flow(frames, "-o", output)
    assert "nothing to do" in result.stderr
    assert "made by an older version, which kept less about its input" in result.stderr
    with h5py.File(output, "a") as file:
        recipe["input"]["bytes"] += 1
        file.attrs["recipe"] = json.dumps(recipe)
    assert "has changed since" in flow(frames, "-o", output).stderr


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img_1.jpg", "img_2.jpg", "flow_x_1.jpg", "flow_x_2.jpg"], "flow_x_*.jpg (2), img_*.jpg (2)"),
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
    assert "frame_*.png (3), a.mp4 (video)" in result.stderr


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


@pytest.fixture
def changing(frames: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Frames of which the first changes while the flow is computed."""
    solve = compute.solve_pairs

    def change(*arguments: object) -> object:
        (frames / "frame_00001.png").write_bytes((frames / "frame_00002.png").read_bytes())
        return solve(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compute, "solve_pairs", change)
    return frames


@pytest.mark.parametrize(
    "output",
    ["-o f.h5", "-o f.npz", "-o f.mp4 --max-flow 2", "-o out --format flo", "-o out --format xy-jpg", "-o f.mp4"],
)
def test_nothing_is_kept_of_frames_that_change_during_the_run(
    changing: Path, monkeypatch: pytest.MonkeyPatch, output: str
):
    monkeypatch.chdir(changing.parent)
    result = flow(changing, *output.split())
    assert result.exit_code == 1
    assert "frames changed while its flow was computed: nothing of this run is kept" in result.stderr
    left = [path for path in changing.parent.rglob("*") if path.is_file() and path.parent != changing]
    assert [path.name for path in left] in ([], [".tvnet-flow.flo.json"], [".tvnet-flow_y.jpg.json"])
    monkeypatch.setattr(compute, "solve_pairs", SOLVE_PAIRS)
    assert flow(changing, *output.split()).exit_code == 0


def test_a_pair_that_changes_during_the_run_replaces_nothing(changing: Path):
    output = changing.parent / "f.png"
    Image.new("RGB", (9, 9)).save(output)
    before = output.read_bytes()
    result = flow(*sorted(changing.iterdir())[:2], "-o", output, "--overwrite")
    assert result.exit_code == 1
    assert output.read_bytes() == before


def test_fields_of_an_earlier_run_stay_when_the_frames_change_in_the_next(changing: Path, monkeypatch):
    with monkeypatch.context() as unchanged:
        unchanged.setattr(compute, "solve_pairs", SOLVE_PAIRS)
        stop = FlowStore.write
        unchanged.setattr(FlowStore, "write", lambda store, field: stop(store, field) if field.position < 1 else fail())
        flow(changing, "-o", changing.parent / "f.h5", "--batch-size", 1)
    assert flow(changing, "-o", changing.parent / "f.h5").exit_code == 1
    with h5py.File(changing.parent / "f.h5") as file:
        assert (len(file["flow"]), bool(file.attrs["complete"])) == (1, False)


def fail() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("precious", "arguments"),
    [
        ("p.png", ["-o", "p.png"]),
        ("p.backward.png", ["-o", "p.png", "--backward"]),
        ("p.occlusion.png", ["-o", "p.flo", "--occlusion"]),
        ("p.flow_scale_2.png", ["-o", "p.png", "--show-scales", "--scales", 3]),
        ("p.flo", ["-o", "p.flo"]),
        ("p.npz", ["-o", "p.npz"]),
        ("p.mp4", ["-o", "p.h5", "-o", "p.mp4"]),
        ("p.h5", ["-o", "p.mp4", "-o", "p.h5"]),
        ("out/flow_00002.flo", ["-o", "out", "--format", "flo"]),
        ("out/backward_00009.png", ["-o", "out", "--format", "png", "--backward"]),
        ("out/.tvnet-flow.png.json", ["-o", "out", "--format", "png"]),
    ],
)
def test_all_outputs_are_checked_before_the_first_frame_is_computed(
    frames: Path, monkeypatch: pytest.MonkeyPatch, precious: str, arguments: list[object]
):
    monkeypatch.chdir(frames.parent)
    monkeypatch.setattr(compute, "solve_pairs", lambda *arguments: pytest.fail("a frame was computed"))
    Path(precious).parent.mkdir(exist_ok=True)
    Path(precious).write_text("precious")
    inputs = sorted(frames.iterdir())[:2]
    result = flow(*inputs, *arguments)
    assert result.exit_code in (1, 2)
    assert precious in result.stderr
    assert "--overwrite" in result.stderr
    assert Path(precious).read_text() == "precious"


def test_files_with_other_names_than_the_outputs_are_in_nobodys_way(frames: Path):
    folder = frames.parent / "out"
    folder.mkdir()
    others = [frames.parent / "p.backward.png", folder / "occlusion_00001.png", folder / "flow_00001.png"]
    for path in others:
        path.write_text("precious")
    for more in ([], ["--overwrite"]):
        assert flow(frames, "-o", folder, "--format", "flo", *more).exit_code == 0
        assert flow(*sorted(frames.iterdir())[:2], "-o", frames.parent / "p.png", *more).exit_code == 0
    assert [path.read_text() for path in others] == ["precious"] * 3


def test_a_file_dropped_under_the_number_of_the_next_field_stays_and_is_no_field(frames: Path):
    folder = frames.parent / "out"
    assert flow(frames, "-o", folder, "--format", "flo").exit_code == 0
    card = folder / ".tvnet-flow.flo.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"begun": 1}))  # as if the run had been stopped there
    (folder / "flow_00002.flo").write_text("precious")
    result = flow(frames, "-o", folder, "--format", "flo")
    assert result.exit_code == 2
    assert "flow_00002.flo exists, and nothing in it says that tvnet made it" in result.stderr
    assert (folder / "flow_00002.flo").read_text() == "precious"


def test_a_folder_of_version_0_1_0_is_resumed(frames: Path):
    folder = frames.parent / "out"
    arguments = [frames, "-o", folder, "--format", "png", "--max-flow", 3]
    flow(*arguments)
    card = folder / ".tvnet-flow.png.json"
    recipe = json.loads(card.read_text())["recipe"]
    recipe["input"] = {name: recipe["input"][name] for name in ("first", "files", "bytes")}
    card.write_text(json.dumps(recipe))
    Image.new("RGB", (9, 9)).save(folder / "flow_00002.png")  # without a mark, as that version did, and half-written
    result = flow(*arguments)
    assert (result.exit_code, "nothing to do" in result.stderr) == (0, True)
    assert "made by an older version" in result.stderr


def test_overwrite_removes_the_fields_of_a_longer_run_and_no_others(frames: Path):
    folder = frames.parent / "out"
    both = ["--format", "flo", "--format", "png", "--max-flow", 3]
    flow(frames, "-o", folder, *both, "--backward")
    (folder / "flow_00009.flo").write_text("named as an output")
    (folder / "backward_00009.flo").write_text("precious")
    assert flow(frames, "-o", folder, "--format", "flo", "--end", 0.05, "--overwrite").exit_code == 0
    assert sorted(path.name for path in folder.glob("*.flo")) == ["backward_00009.flo", "flow_00001.flo"]
    assert len(list(folder.glob("*.png"))) == 4


def test_one_folder_under_two_names_is_one_output_and_locked_once(frames: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(frames.parent)
    result = flow(frames, "-o", "out", "-o", frames.parent / "out", "--format", "flo")
    assert result.exit_code == 2
    assert "would be written over another output, out" in result.stderr
    assert flow(frames, "-o", "out", "--format", "flo", "--format", "png").exit_code == 0
    assert not list(frames.parent.glob(".*"))


def test_an_empty_flow_file_is_written(frames: Path):
    (frames.parent / "f.h5").touch()
    assert flow(frames, "-o", frames.parent / "f.h5").exit_code == 0
    with h5py.File(frames.parent / "f.h5") as file:
        assert file.attrs["complete"]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "x"), OSError(errno.ENOLCK, "x"), MemoryError()])
def test_errors_of_opening_say_nothing_about_the_content(
    frames: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
):
    output = frames.parent / "f.h5"
    flow(frames, "-o", output)

    def read(*_: object) -> bytes:
        raise failure

    monkeypatch.setattr(CalmFile, "read", read)
    result = flow(frames, "-o", output)
    assert result.exit_code == 1
    assert f"cannot open {output}, whose content was not read: " in result.stderr
    assert "--overwrite" not in result.stderr


def test_a_flow_video_is_marked_for_people_and_at_its_very_end(frames: Path):
    output = frames.parent / "f.mp4"
    flow(frames, "-o", output)
    assert output.read_bytes().endswith(b"free" + MARK.encode())
    with av.open(str(output)) as container:
        assert container.metadata["comment"] == MARK
