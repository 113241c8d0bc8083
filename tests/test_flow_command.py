"""``tvnet flow`` as a user runs it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import flow_vis
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from films import write_film
from PIL import Image
from safetensors.torch import save_file

from tvnet_cli import TVNet, optical_flow
from tvnet_cli.cli import main
from tvnet_cli.flow.accuracy import angular_error, endpoint_error
from tvnet_cli.flow.files import read_flow, write_flo
from tvnet_cli.network import weights as weights_module

REPOSITORY = Path(__file__).resolve().parents[1]


def flow(*arguments: object) -> Result:
    """With few iterations: what is held here does not depend on them."""
    words = [str(argument) for argument in arguments]
    quick = [] if {"--preset", "--weights", "--iterations"} & set(words) else ["--iterations", "3"]
    return CliRunner().invoke(main, ["flow", *words, *quick])


def moving(number: int) -> np.ndarray:
    """A texture (72, 96) that moves two pixels a frame, by numbers that are always the same."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).normal(128, 160, (72, 400)), (0, 0), 2)
    texture = np.clip(128 + 3 * (texture - 128), 0, 255)
    return texture[:, 2 * number : 2 * number + 96].astype(np.uint8)


@pytest.fixture
def film(tmp_path) -> Path:
    return write_film(tmp_path / "film.mp4", 8, picture=moving)


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    paths = tmp_path / "a.png", tmp_path / "b.png"
    for number, path in enumerate(paths):
        Image.fromarray(moving(number)).convert("RGB").save(path)
    return paths


@pytest.fixture
def frames(tmp_path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(moving(number)).convert("RGB").save(folder / f"frame{number}.png")
    return folder


def read_film(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in decoded], [frame.time for frame in decoded]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def test_a_film_gives_data_and_a_film_beside_it_and_says_so(film):
    result = flow(film)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert files(film.parent) == ["film.flow.h5", "film.flow.mp4", "film.mp4"]
    assert "7 of 7 fields of 96 x 72 pixels" in result.stderr
    assert f"wrote {film.with_suffix('.flow.h5')}, {film.with_suffix('.flow.mp4')}" in result.stderr
    assert re.search(r"colours: full at \d\S* pixels", result.stderr)
    pictures, times = read_film(film)
    shown, shown_times = read_film(film.with_suffix(".flow.mp4"))
    assert shown_times == times
    assert len(shown) == 8
    assert shown[0].shape == (72, 192, 3)
    with h5py.File(film.with_suffix(".flow.h5")) as file:
        assert file["flow"].shape == (7, 2, 72, 96)
        np.testing.assert_allclose(file["pts_seconds"][:], times[:-1])
        for number in range(7):
            expected = optical_flow(*pictures[number : number + 2], TVNet(num_iterations=3).options)
            np.testing.assert_array_equal(file["flow"][number], expected)
        recipe = json.loads(file.attrs["recipe"])
    assert recipe["tvnet"]["num_iterations"] == 3
    assert recipe["input"]["first"] == "film.mp4"


def test_a_pair_gives_data_and_a_picture_beside_it(pair):
    result = flow(*pair)
    assert result.exit_code == 0, result.stderr
    assert files(pair[0].parent) == ["a.flow.h5", "a.flow.png", "a.png", "b.png"]
    with h5py.File(pair[0].with_suffix(".flow.h5")) as file:
        theirs = flow_vis.flow_to_color(file["flow"][0].transpose(1, 2, 0)).astype(int)
    assert np.abs(np.asarray(Image.open(pair[0].with_suffix(".flow.png"))) - theirs).max() <= 1


def test_a_pair_as_flo_and_its_error(pair, tmp_path):
    assert flow(*pair, "-o", tmp_path / "ab.flo", "--preset", "tv-l1").exit_code == 0
    found = cv2.readOpticalFlow(str(tmp_path / "ab.flo")).transpose(2, 0, 1)
    assert np.abs(found[0, 10:-10, 10:-10] + 2).max() < 0.2  # the texture goes to the left
    truth = np.zeros((2, 72, 96), np.float32)
    truth[0] = -2
    (tmp_path / "gt.flo").write_bytes(write_flo(truth))
    before = files(tmp_path)
    result = flow(*pair, "--truth", tmp_path / "gt.flo", "--preset", "tv-l1")
    expected = endpoint_error(found, truth), angular_error(found, truth)
    assert result.stdout == f"endpoint error {expected[0]:.3f} px, angular error {expected[1]:.2f} degrees\n"
    assert files(tmp_path) == before
    result = flow(*pair, "--truth", tmp_path / "gt.flo", "--preset", "tv-l1", "--json")
    assert json.loads(result.stdout)["endpoint_error_pixels"] == pytest.approx(expected[0])


def test_the_error_counts_fields_of_earlier_runs_too(frames, tmp_path):
    (tmp_path / "truth").mkdir()
    for number in range(11):
        truth = np.full((2, 72, 96), -float(number), np.float32)
        (tmp_path / "truth" / f"{number}.flo").write_bytes(write_flo(truth))
    command = [frames, "-o", tmp_path / "a.h5", "--truth", tmp_path / "truth"]
    first, second = flow(*command), flow(*command)
    assert first.stdout.endswith("(mean of 11 fields)\n")
    assert second.stdout == first.stdout
    with h5py.File(tmp_path / "a.h5") as file:
        errors = [endpoint_error(field, np.full_like(field, -number)) for number, field in enumerate(file["flow"][:])]
    assert first.stdout.startswith(f"endpoint error {np.mean(errors):.3f} px")


def test_the_authors_output_is_reproduced_from_picture_files(shared_data, tmp_path):
    with np.load(shared_data / "tvnet_golden" / "sample240_s1w1i50.npz") as archive:
        golden = dict(archive)
    for name in ("img1_rgb", "img2_rgb"):
        Image.fromarray(golden[name][0]).save(tmp_path / f"{name}.png")
    images = tmp_path / "img1_rgb.png", tmp_path / "img2_rgb.png"
    assert flow(*images, "--preset", "tvnet-50", "-o", tmp_path / "f.flo").exit_code == 0
    difference = np.abs(read_flow(tmp_path / "f.flo") - np.stack([golden["u1"][0], golden["u2"][0]]))
    assert difference.mean() < 1e-5
    assert difference.max() < 2e-3


def test_the_classic_method_is_better_than_its_peers_on_real_pairs(shared_data):
    errors = []
    for name in ("Dimetrodon", "RubberWhale", "Venus"):
        folder = shared_data / "flow_gt" / f"middlebury_{name}"
        images = folder / "frame10.png", folder / "frame11.png"
        result = flow(*images, "--truth", folder / "flow10.flo", "--preset", "tv-l1", "--json")
        errors.append(json.loads(result.stdout)["endpoint_error_pixels"])
    assert np.mean(errors) < 0.20


def test_a_folder_of_images_in_natural_order(frames, tmp_path):
    result = flow(frames, "-o", tmp_path / "out", "--format", "flo", "--format", "png", "--format", "xy-jpg")
    assert result.exit_code == 0, result.stderr
    names = [f"{kind}_{number:05d}.{suffix}" for number in range(1, 12) for kind, suffix in
             (("flow", "flo"), ("flow", "png"), ("flow_x", "jpg"), ("flow_y", "jpg"))]  # fmt: skip
    assert files(tmp_path / "out") == sorted(names)
    images = [np.asarray(Image.open(frames / f"frame{number}.png")) for number in range(12)]
    for number in range(11):
        expected = optical_flow(*images[number : number + 2], TVNet(num_iterations=3).options)
        np.testing.assert_array_equal(read_flow(tmp_path / "out" / f"flow_{number + 1:05d}.flo"), expected)
    assert files(tmp_path) == ["frames", "out"]


def test_one_scale_for_all_pictures_of_a_film(frames, tmp_path):
    flow(frames, "-o", tmp_path / "out", "--format", "png", "--format", "flo", "--max-flow", "1.5")
    for number in (1, 11):
        with Image.open(tmp_path / "out" / f"flow_{number:05d}.png") as picture:
            assert picture.text["max_flow"] == "1.5 pixels"
            ours = np.asarray(picture).astype(int)
        field = read_flow(tmp_path / "out" / f"flow_{number:05d}.flo") / 1.5
        assert np.abs(ours - flow_vis.flow_uv_to_colors(*field)).max() <= 1


def test_many_outputs_at_once(film, tmp_path):
    names = ["x.h5", "y.npz", "z.mp4"]
    result = flow(film, *(word for name in names for word in ("-o", tmp_path / name)), "--json", "--end", "0.17")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) | {"seconds": 0, "max_flow_pixels": 0} == {
        "input": [str(film)],
        "outputs": [str(tmp_path / name) for name in names],
        "fields": 4,
        "size": [72, 96],
        "max_flow_pixels": 0,
        "notes": [],
        "seconds": 0,
    }
    with h5py.File(tmp_path / "x.h5") as file, np.load(tmp_path / "y.npz") as archive:
        np.testing.assert_array_equal(file["flow"][:], archive["flow"])
    assert len(read_film(tmp_path / "z.mp4")[0]) == 5


def test_backward_flow_occlusion_and_scales(film, tmp_path):
    more = ["--backward", "--occlusion", "--show-scales", "--scales", "3", "--half", "--every", "2"]
    result = flow(film, "-o", tmp_path / "a.h5", "-o", tmp_path / "out", "--format", "png", *more)
    assert result.exit_code == 0, result.stderr
    with h5py.File(tmp_path / "a.h5") as file:
        assert {name: (file[name].shape, str(file[name].dtype)) for name in file} == {
            "flow": ((3, 2, 72, 96), "float16"),
            "backward": ((3, 2, 72, 96), "float16"),
            "occlusion": ((3, 72, 96), "uint8"),
            "flow_scale_1": ((3, 2, 36, 48), "float16"),
            "flow_scale_2": ((3, 2, 18, 24), "float16"),
            "frame_index": ((3, 2), "int64"),
            "pts_seconds": ((3,), "float64"),
        }
        assert file["frame_index"][:].tolist() == [[0, 2], [2, 4], [4, 6]]
        assert file["flow"][0, 0].mean() * file["backward"][0, 0].mean() < 0
    kinds = {re.sub(r"_\d{5}\.png", "", name) for name in files(tmp_path / "out")}
    assert kinds == {"flow", "backward", "occlusion", "flow_scale_1", "flow_scale_2"}


def test_frames_are_resized_before(film, tmp_path):
    flow(film, "-o", tmp_path / "a.h5", "--size", "36x100")
    flow(film, "-o", tmp_path / "b.h5", "--short-side", "36")
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert a["flow"].shape == (7, 2, 36, 100)
        assert b["flow"].shape == (7, 2, 36, 48)


def test_numbers_replace_those_of_the_preset(pair, tmp_path):
    given = "--preset tv-l1 --scales 4 --warps 3 --iterations 2 --zoom-factor 0.7 --tau 0.2 --lambda 0.1 --theta 0.25 "
    given += "--sampler authors --presmoothing 0.7 --no-antialias --median-size 3 --edge-weight 0"
    assert flow(*pair, "-o", tmp_path / "a.h5", *given.split()).exit_code == 0
    with h5py.File(tmp_path / "a.h5") as file:
        options = json.loads(file.attrs["recipe"])["tvnet"]
    expected = {"num_scales": 4, "num_warps": 3, "num_iterations": 2, "zoom_factor": 0.7, "tau": 0.2, "lambda_": 0.1}
    expected |= {"theta": 0.25, "sampler": "authors", "presmoothing": 0.7, "antialias": False, "median_size": 3}
    assert options.items() >= expected.items()


def test_a_second_run_has_nothing_to_do_and_other_options_are_refused(film, tmp_path):
    flow(film, "-o", tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    result = flow(film, "-o", tmp_path / "a.h5")
    assert result.exit_code == 0
    assert "nothing to do: all 7 fields are in" in result.stderr
    result = flow(film, "-o", tmp_path / "a.h5", "--tau", "0.2")
    assert result.exit_code == 1
    assert "tvnet.tau was 0.25, now 0.2; choose another output, or --overwrite" in result.stderr
    assert (tmp_path / "a.h5").read_bytes() == before
    assert flow(film, "-o", tmp_path / "a.h5", "--tau", "0.2", "--overwrite").exit_code == 0


def test_a_film_that_breaks_half_way_keeps_what_was_computed(tmp_path):
    def noisy(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, (64, 64)).astype(np.uint8)

    whole = write_film(tmp_path / "a.mp4", 60, picture=noisy, container_options={"movflags": "faststart"})
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    result = flow(whole)
    assert result.exit_code == 1
    with h5py.File(tmp_path / "a.flow.h5") as file:
        count, last = len(file["flow"]), file["pts_seconds"][-1]
        assert 20 < count < 40
        assert np.abs(file["flow"][:]).max(axis=(1, 2, 3)).min() > 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert f"a.mp4: breaks after {last + 0.04:.2f} s" in line
    assert line.endswith(f"{count} fields are kept")
    assert len(read_film(tmp_path / "a.flow.mp4")[0]) == count + 1


@pytest.mark.parametrize("broken", [2, 6])
def test_a_broken_picture_keeps_the_fields_before_it(frames, tmp_path, broken):
    (frames / f"frame{broken}.png").write_text("no picture")
    result = flow(frames)
    assert result.exit_code == 1
    assert f"frame{broken}.png: not an image, or damaged; {broken - 1} fields are kept" in result.stderr
    with h5py.File(tmp_path / "frames.flow.h5") as file:
        assert len(file["flow"]) == broken - 1
    assert len(read_film(tmp_path / "frames.flow.mp4")[0]) == broken


def interrupted_run(arguments: list[str], ready: Path, how: int) -> tuple[int, str]:
    """Run the command in a process of its own and stop it when ``ready`` has been there for a moment."""
    command = [sys.executable, "-m", "tvnet_cli", "flow", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    for _ in range(1200):
        if ready.exists() or running.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(running.pid, how)
    _, said = running.communicate(timeout=60)
    return running.returncode, said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_readable_files_and_goes_on(tmp_path, how):
    film = write_film(tmp_path / "film.mp4", 400, picture=lambda number: moving(number % 100))
    outputs = ["-o", str(tmp_path / "a.h5"), "-o", str(tmp_path / "out"), "--format", "flo", "--iterations", "1000"]
    code, said = interrupted_run([str(film), *outputs], tmp_path / "out" / "flow_00002.flo", how)
    with h5py.File(tmp_path / "a.h5") as file:
        done = int(np.isfinite(file["pts_seconds"][:]).sum())
        assert 2 <= done < 399
        assert not file.attrs["complete"]
        if how == signal.SIGINT:
            assert len(file["flow"]) == done
    if how == signal.SIGINT:
        assert code == 130
        assert re.search(rf"interrupted: ({done}|{done - 1}) fields are kept; the same command goes on", said)
        assert "Traceback" not in said
    result = flow(film, *outputs)
    assert result.exit_code == 0
    assert "were there already" in result.stderr
    assert flow(film, "-o", tmp_path / "whole.h5", "--iterations", "1000").exit_code == 0
    with h5py.File(tmp_path / "a.h5") as file, h5py.File(tmp_path / "whole.h5") as whole:
        for name in whole:
            np.testing.assert_array_equal(file[name][:], whole[name][:])
        for number in range(0, 399, 57):
            field = read_flow(tmp_path / "out" / f"flow_{number + 1:05d}.flo")
            np.testing.assert_array_equal(field, whole["flow"][number])


def test_an_interrupted_film_plays(tmp_path):
    film = write_film(tmp_path / "film.mp4", 400, picture=lambda number: moving(number % 100))
    arguments = [str(film), "--max-flow", "3", "--iterations", "500"]
    code, _ = interrupted_run(arguments, tmp_path / "film.flow.h5", signal.SIGINT)
    assert code == 130
    with h5py.File(tmp_path / "film.flow.h5") as file:
        done = len(file["flow"])
    assert len(read_film(tmp_path / "film.flow.mp4")[0]) in (done, done + 1)


def test_memory_does_not_grow_with_the_film(tmp_path):
    code = (
        "import resource, sys\nfrom tvnet_cli.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (60, 1200):
        film = write_film(tmp_path / f"{count}.mp4", count, picture=lambda number: moving(number % 100))
        outputs = [
            "-o",
            tmp_path / f"{count}.h5",
            "-o",
            tmp_path / f"{count}.npz",
            "-o",
            tmp_path / f"{count}.flow.mp4",
        ]
        command = [sys.executable, "-c", code, "flow", film, *outputs, "--iterations", "1", "--batch-size", "4"]
        run = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, cwd=REPOSITORY)
        peaks.append(int(run.stdout) / 1024)
    assert peaks[1] - peaks[0] < 40  # the fields of the longer film alone are 66 MB, its frames 25 MB


def trained(folder: Path, change: float = 0.9, divergence: float = 1) -> Path:
    """Weights with a TVNet of two scales, its kernels multiplied by numbers."""
    model = weights_module.untrained_model("flow")
    net = TVNet(2, 1, 3, u0_size=(18, 24))
    with torch.no_grad():
        net.gradient_kernels.mul_(change)
        net.divergence_kernels.mul_(divergence)
    tensors = model.network.state_dict() | {f"tvnet.{name}": tensor for name, tensor in net.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "w.safetensors")
    sha256 = hashlib.sha256((folder / "w.safetensors").read_bytes()).hexdigest()
    (folder / "w.toml").write_text(
        f'architecture = "bn_inception"\nstream = "flow"\nsource = "test"\nlicence = "MIT"\ntraining_data = "none"\n'
        f'sha256 = "{sha256}"\n[input]\nscale = 6.375\nclip_pixels = 20.0\norder = "interleaved"\n'
        "[tvnet]\nnum_scales = 2\nnum_iterations = 3\n"
    )
    return folder / "w.safetensors"


def test_trained_kernels_come_with_their_schedule(pair, tmp_path):
    weights = trained(tmp_path)
    assert flow(*pair, "-o", tmp_path / "a.h5", "--weights", weights).exit_code == 0
    net = TVNet(2, 1, 3)
    with torch.no_grad():
        net.gradient_kernels.mul_(0.9)
        images = (torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0)[None] for path in pair)
        expected = net(*images)[0].numpy()
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["flow"][0], expected)
        assert len(json.loads(file.attrs["recipe"])["weights"]) == 64
    result = flow(*pair, "--weights", weights, "--preset", "tvnet-10")
    assert result.exit_code == 2
    assert "bring the schedule" in result.stderr
    assert flow(*pair, "--weights", weights, "--tau", "0.2").exit_code == 2
    result = flow(*pair, "--weights", trained(tmp_path, change=1))
    assert result.exit_code == 1
    assert "holds no trained TVNet kernels" in result.stderr


def animate(path: Path) -> Path:
    first, *others = (Image.fromarray(moving(number)).convert("RGB") for number in range(4))
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


def test_an_animation_of_four_pictures_is_a_film(tmp_path):
    result = flow(animate(tmp_path / "a.gif"), "-o", tmp_path / "a.h5")
    assert result.exit_code == 0, result.stderr
    assert "3 of 3 fields" in result.stderr


@pytest.mark.parametrize("scale", [1e20, 1e30, 3e38])
def test_weights_too_large_to_compute_with_are_an_error_and_no_field(film, tmp_path, recwarn, scale):
    weights = trained(tmp_path, divergence=scale)
    for how in (["-o", tmp_path / "a.h5"], ["-o", tmp_path / "a.mp4"]):
        result = flow(film, *how, "--weights", weights)
        assert result.exit_code == 1, result.output
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert line.startswith("Error: film.mp4: the flow from frame 0 to 1 overflows: the numbers of the weights or ")
        assert not how[1].exists()
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_small_films_say_how_many_fields_are_looked_at(film, tmp_path):
    assert "looking at all 7 fields for the scale" in flow(film, "-o", tmp_path / "a.mp4").stderr


def test_rounding_noise_of_equal_frames_is_white(pair, tmp_path):
    assert flow(pair[0], pair[0], "-o", tmp_path / "same.png", "--iterations", "50").exit_code == 0
    assert np.asarray(Image.open(tmp_path / "same.png")).min() >= 254


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ("", 2, "Missing argument"),
        ("{a}", 1, "optical flow needs two frames, and here 1"),
        ("{a} {small}", 1, "small.png has 60 x 50 pixels, a.png has 96 x 72"),
        ("{a} {film}", 1, "film.mp4 is no image: give one film, two or more images, or one folder"),
        ("{a} {text}", 1, "text.txt: not an image"),
        ("{text}", 1, "text.txt: cannot open: not a video"),
        ("{tmp}/gone.mp4", 1, "gone.mp4: no such file"),
        ("{tmp}/empty", 1, "no images in"),
        ("{tmp}/sub", 1, "no images in"),
        ("{film} --preset tvnet-51", 2, "'tvnet-51' is not one of"),
        ("{film} --sampler nearest", 2, "'nearest' is not one of"),
        ("{film} --zoom-factor 1.5", 2, "zoom_factor must lie between 0 and 1"),
        ("{film} --iterations 0", 2, "num_iterations must be at least 1"),
        ("{film} --tau nan", 2, "tau must be a positive number"),
        ("{film} --presmoothing -1", 2, "presmoothing must be 'authors' or 0 to 10 pixels"),
        ("{film} --presmoothing much", 2, "'much'"),
        ("{film} --median-size 4", 2, "median_size must be 0 or an odd number"),
        ("{film} --median-size 99", 2, "median_size must be 0 or an odd number of 3 to 11"),
        ("{film} --tau 1e30", 2, "tau must be a positive number, 1e-6 to 1e6, not 1e+30"),
        ("{film} --presmoothing x", 2, "--presmoothing must be a number of pixels or 'authors', not 'x'"),
        ("{film} --start nan", 2, "Invalid value for '--start': nan is no finite number"),
        ("{film} --max-flow nan", 2, "Invalid value for '--max-flow': nan is no finite number"),
        ("{film} --max-flow inf", 2, "Invalid value for '--max-flow': inf is no finite number"),
        ("{film} -o {tmp}/precious --format flo", 1, "precious is a file, and flo needs a folder there"),
        ("{film} -o {tmp}/precious --format h5", 1, "precious is a file, and h5 needs a folder there"),
        ("{tmp}/2x2.png {tmp}/2x2.png", 1, "2x2.png: too small: 2 x 2 pixels"),
        ("{tmp}/moving.gif {a}", 1, "moving.gif holds 4 pictures: give a film, or take them apart"),
        ("{tmp}/moving.webp", 1, "moving.webp holds 4 pictures: give a film, or take them apart"),
        ("{film} --every 0", 2, "--every"),
        ("{film} --start 2 --end 1", 2, "does not lie behind the start"),
        ("{film} --start 99", 1, "optical flow needs two frames, and here 0"),
        ("{film} --size 100", 2, "'100' is no size: height x width, as in 240x320"),
        ("{film} --size 8x100", 2, "at least 16 pixels on each side"),
        ("{film} --size 32x32 --short-side 32", 2, "not both"),
        ("{film} -o {tmp}/out", 2, "does not say what to write"),
        ("{film} -o {tmp}/a.flo", 1, "holds one field, and film.mp4 gives 7: take a folder"),
        ("{film} -o {film}", 2, "would be written over the input"),
        ("{film} --backward -o {tmp}/x.mp4", 2, "--backward: no output holds it"),
        ("{film} --format tiff", 2, "'tiff' is not one of"),
        ("{film} --device cuda:77", 1, "cuda:77 was asked for"),
        ("{film} --max-flow 0", 2, "--max-flow"),
        ("{film} --weights best", 1, "no weights called 'best'"),
        ("{film} -o {text}/x.h5", 1, "text.txt"),
        ("{a} {b} --truth {tmp}/gone.flo", 1, "cannot read the flow"),
        ("{a} {b} --truth {text}", 1, "text.txt is no flow file"),
        ("{a} {b} --truth {truth}", 1, "the truth is 60 x 50, the flow 96 x 72 pixels"),
        ("{film} --truth {truth}", 1, "holds 1 true fields, film.mp4 gives 7"),
        ("{tiny}", 1, "too small: 8 x 12 pixels"),
    ],
)
def test_each_mistake_has_one_clear_line(film, pair, tmp_path, arguments, exit_code, message):
    small, text, truth, tiny = (tmp_path / name for name in ("small.png", "text.txt", "gt.flo", "tiny.mkv"))
    Image.new("RGB", (60, 50)).save(small)
    text.write_text("text")
    truth.write_bytes(write_flo(np.zeros((2, 50, 60))))
    (tmp_path / "precious").write_text("text")
    Image.new("RGB", (2, 2)).save(tmp_path / "2x2.png")
    for name in ("moving.gif", "moving.webp"):
        animate(tmp_path / name)
    write_film(tiny, 4, picture=lambda number: np.full((12, 8), 40 * number, np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub" / "frames").mkdir(parents=True)
    places = {"a": pair[0], "b": pair[1], "film": film, "small": small, "text": text, "truth": truth, "tiny": tiny}
    before = files(tmp_path)
    result = flow(*(word.format(tmp=tmp_path, **places) for word in arguments.split()))
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert film.read_bytes()[4:8] == b"ftyp"
    if exit_code == 2:
        assert files(tmp_path) == before


def test_quiet_says_nothing_v_more_and_vv_shows_tracebacks(film, tmp_path):
    assert flow(film, "-q").output == ""
    assert (
        "flow on cpu by numba: num_scales=1, num_warps=1, num_iterations=3,"
        in flow(film, "-v", "--device", "cpu").stderr
    )
    (tmp_path / "broken.mp4").write_text("no film")
    assert "Traceback" in flow(tmp_path / "broken.mp4", "-vv").stderr


def test_the_film_that_flow_leaves_is_no_film_for_features(film):
    from tvnet_cli.video.files import find_videos

    assert flow(film).exit_code == 0
    assert [video.video_id for video in find_videos([film.parent])] == ["film.mp4"]


def test_a_log_file_tells_what_was_done(pair, tmp_path):
    result = flow(*pair, "-o", tmp_path / "ab.flo", "-q", "--log-file", tmp_path / "log.jsonl")
    assert result.exit_code == 0
    started, ended = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (started["event"], started["fields"], started["outputs"]) == ("started", 1, [str(tmp_path / "ab.flo")])
    assert started["recipe"]["tvnet"]["num_iterations"] == 3
    assert (ended["event"], ended["exit_code"]) == ("ended", 0)


@pytest.mark.parametrize(
    ("output", "fill", "named", "kept"),
    [
        ("a.h5", 0, "a.h5", r"\d\d fields are kept; once there is room the same command goes on from here"),
        ("a.h5 --half --overwrite", 0, "a.h5", r"\d\d fields are kept; once there is room the same command goes on"),
        ("out --format flo", 0, "out/flow_000\\d\\d.flo", r"\d\d fields are kept; once there is room the same command"),
        ("out --format png", 2000, "out/flow_000\\d\\d.png", r"\d+ fields are kept; once there is room the same"),
        ("a.npz", 0, "a.npz", "make room, or choose another output"),
        ("a.mp4", 2000, "a.mp4", "make room, or choose another output"),
    ],
)
def test_a_full_disk_is_one_clear_line_and_with_room_the_run_goes_on(tmp_path, small_disk, output, fill, named, kept):
    film = write_film(tmp_path / "film.mp4", 99, picture=moving)
    place, *how = output.split()
    (small_disk / "fill").write_bytes(bytes(1024 * fill))
    command = [film, "-o", small_disk / place, *how, "--max-flow", "3"]
    result = flow(*command)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    said = rf"Error: cannot write {small_disk}/{named}: the disk at {small_disk} is full: .* MB are free; {kept}"
    assert re.match(said, line)
    assert "nothing to do" not in flow(*[word for word in command if word != "--overwrite"]).stderr
    left = {path.name for path in small_disk.iterdir()}
    assert left == {"fill", place} if how or place.endswith("h5") else left == {"fill"}
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    result = flow(*[word for word in command if word != "--overwrite"])
    assert result.exit_code == 0, result.output
    assert "98 of 98 fields" in result.stderr
    assert ("were there already" in result.stderr) == ("kept" in kept)
