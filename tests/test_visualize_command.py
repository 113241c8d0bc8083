"""``tvnet visualize`` as a user runs it, with fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from films import write_film
from made_up_model import make_model
from PIL import Image

from tvnet_cli.cli import main
from tvnet_cli.network.cards import RGBInput
from tvnet_cli.network.weights import tensors_to_keep, write_weights
from tvnet_cli.options import DRAW_PRESETS, DrawOptions, Octave

QUICK = ("--octave", "1:1:10", "--octave", "1x1.1:1-0.5:6-3")


def visualize(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["visualize", *map(str, arguments)])


def deepdraw(*arguments: object) -> Result:
    return visualize("deepdraw", *QUICK, *arguments)


def moving(number: int) -> np.ndarray:
    """(128, 160), a pattern that moves a pixel a frame to the right."""
    y, x = np.mgrid[:128, :160].astype(float)
    x = x - number
    return (128 + 50 * np.sin(x / 5) * np.cos(y / 7) + 40 * np.sin((x + 2 * y) / 17)).astype(np.uint8)


@pytest.fixture
def film(tmp_path) -> Path:
    return write_film(tmp_path / "film.mp4", 30, picture=moving)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Of flow without a trained TVNet, of flow without a class head, and of RGB."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {name: folder / f"{name}.safetensors" for name in ("flow", "headless", "rgb")}
    model, rgb = make_model(), make_model(3, stream="rgb", input=RGBInput((104, 117, 123), "BGR"))
    tensors = tensors_to_keep(model.network, None)
    write_weights(paths["flow"], tensors, model.card)
    headless = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    write_weights(paths["headless"], headless, model.card)
    write_weights(paths["rgb"], tensors_to_keep(rgb.network, None), rgb.card)
    return paths


def test_a_unit_is_drawn_and_the_same_run_gives_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        result = deepdraw(
            "--layer", "fc", "--unit", "object/rotate_cw", "-o", tmp_path / name, "-o", tmp_path / "a.mp4"
        )
        assert result.exit_code == 0, result.stderr
        assert result.stdout == ""
        assert f"wrote {tmp_path / name}, {tmp_path / 'a.mp4'} in " in result.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (246, 246)
    assert (tmp_path / "a.mp4").stat().st_size > 0


def test_several_units_make_a_sheet_and_it_is_called_after_the_layer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = deepdraw("--layer", "fc", "--unit", "0-1", "--channels", "xy", "-q")
    assert (result.exit_code, result.output) == (0, "")
    with Image.open("fc.png") as sheet:
        assert sheet.width > sheet.height


def test_a_dead_unit_is_named_and_the_others_are_drawn(tmp_path, weights):
    """More than half of the units of 5b are silent at its middle."""
    arguments = ["--layer", "inception_5b_output", "--unit", "0-3", "--weights", weights["flow"], "--octave", "1:1:10"]
    result = visualize("deepdraw", *arguments, "-o", tmp_path / "units")
    assert result.exit_code == 1
    said = result.stderr.splitlines()[-1]
    assert said.startswith("Error: dead, without any gradient to begin with: unit ")
    assert said.endswith(" of inception_5b_output; --leak 0.01 gives them one")
    drawn = [path.stem.rpartition("_")[2] for path in (tmp_path / "units").glob("*.png")]
    named = re.findall(r"unit (\d+)", said)
    assert sorted([*drawn, *named]) == ["0", "1", "2", "3"]
    assert min(len(drawn), len(named)) > 0
    result = visualize("deepdraw", *arguments, "-o", tmp_path / "units.png", "--leak", "0.01")
    assert result.exit_code == 0, result.stderr


def test_rgb_weights_are_drawn_in_colour(tmp_path, weights):
    result = deepdraw("--layer", "fc", "--unit", "walk", "--weights", weights["rgb"], "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_figure_of_a_film(film, suffix):
    output = film.with_name(f"figure{suffix}")
    result = visualize("figure", film, "-o", output, "--columns", "frame,tv-l1,untrained,trained", "--rows", 2)
    assert result.exit_code == 0, result.stderr
    assert f"wrote {output} in " in result.stderr
    assert output.stat().st_size > 20_000


def test_the_figure_draws_units(film, monkeypatch):
    monkeypatch.setitem(DRAW_PRESETS, "quick", DrawOptions(octaves=(Octave(steps=1, blur=(1, 1), rate=(9, 9)),)))
    result = visualize("figure", film, "--at", 0.4, "--preset", "quick")
    assert result.exit_code == 0, result.stderr
    with Image.open(film.with_name("film.figure.png")) as figure:
        assert figure.width > 5 * figure.height


def test_figures_lie_beside_the_film(film):
    assert visualize("figure", film, "--columns", "frame,trained", "--rows", 1, "-q").output == ""
    result = visualize("scales", film, "--at", 0.5, "--short-side", 64)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"wrote {film.with_name('film.scales.png')}: the moment 0.48 s\n"
    assert film.with_name("film.figure.png").exists()
    with Image.open(film.with_name("film.scales.png")) as sheet:
        assert sheet.width > 5 * sheet.height


@pytest.mark.parametrize("command", ["figure", "scales", "deepdraw"])
def test_a_full_disk_leaves_the_picture_that_was_there(film, small_disk, command):
    output = small_disk / "old.png"
    output.write_bytes(b"old made by tvnet")
    (small_disk / "fill").write_bytes(bytes(2040 << 10))
    if command == "deepdraw":
        result = deepdraw("--layer", "fc", "--unit", "0", "-o", output)
    else:
        columns = ["--columns", "frame,tv-l1", "--rows", 1] if command == "figure" else []
        result = visualize(command, film, "-o", output, *columns)
    assert result.exit_code == 1, result.output
    assert f"Error: cannot write {output}: the disk at {small_disk} is full: No space left on device" in result.stderr
    assert output.read_bytes() == b"old made by tvnet"
    assert sorted(path.name for path in small_disk.iterdir()) == ["fill", "old.png"]


@pytest.mark.parametrize("command", ["figure", "scales", "deepdraw"])
@pytest.mark.parametrize("by_default", [True, False], ids=["default name", "name"])
def test_a_picture_of_others_is_refused_before_the_work(film, monkeypatch, command, by_default):
    monkeypatch.chdir(film.parent)
    usual = "fc.png" if command == "deepdraw" else f"film.{command}.png"
    (film.parent / (usual if by_default else "mine.png")).write_bytes(b"mine")
    what = ["--layer", "fc", "--unit", "0", *QUICK] if command == "deepdraw" else [film]
    result = visualize(command, *what, *([] if by_default else ["-o", "mine.png"]))
    assert result.exit_code == 2, result.output
    assert (
        ".png exists, and nothing in it says that tvnet made it: choose another output, or --overwrite" in result.stderr
    )
    assert {path.read_bytes() for path in film.parent.glob("*.png")} == {b"mine"}


def test_a_picture_of_before_is_replaced_and_one_of_others_on_request(film):
    picture = film.with_name("film.scales.png")
    picture.write_bytes(b"mine")
    for more in (["--overwrite"], []):
        assert visualize("scales", film, "--at", 0.5, "--short-side", 64, *more).exit_code == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_figure_says_when_the_film_has_fewer_moments_than_rows(tmp_path):
    film = write_film(tmp_path / "film.mp4", 10, picture=moving)
    result = visualize("figure", film, "--columns", "frame,tv-l1", "--rows", 500)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"note \d of 500 rows: the film has no more parts in which something moves", result.stderr)


def test_scales_may_be_more(film):
    for scales, name in ((2, "a.png"), (4, "b.png")):
        result = visualize("scales", film, "--scales", scales, "--preset", "tvnet-50", "-o", film.with_name(name))
        assert result.exit_code == 0, result.stderr
    with Image.open(film.with_name("a.png")) as few, Image.open(film.with_name("b.png")) as many:
        assert few.height < many.height


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ("deepdraw --unit 0", 2, "Missing option '--layer'"),
        ("deepdraw --layer fc", 2, "Missing option '--unit'"),
        (
            "deepdraw --layer inception_5b --unit 0",
            1,
            "no layer is called 'inception_5b': did you mean inception_5b_output",
        ),
        ("deepdraw --layer global_pool --unit 1024", 1, "no unit 1024 in global_pool: its units are 0 to 1023"),
        ("deepdraw --layer fc --unit object/rotate", 1, "did you mean object/rotate_cw"),
        ("deepdraw --layer fc --unit 0 --weights {headless}", 1, "has no class head"),
        ("deepdraw --layer fc --unit 0 --weights untrained", 1, "untrained has no class head"),
        ("deepdraw --layer fc --unit 0 --weights best", 1, "no weights called 'best'"),
        ("deepdraw --layer fc --unit 0 -o a.gif", 2, "a.gif should end in .png or .svg or .pdf or .mp4"),
        ("deepdraw --layer fc --unit 0 -o nowhere/a.png", 2, "cannot be written: no such folder"),
        ("deepdraw --layer fc --unit 0-1 -o a.mp4", 2, "a film shows one unit, and 2 were asked for"),
        ("deepdraw --layer fc --unit 0 -o a.mp4 --weights {rgb}", 2, "a picture gives no film"),
        ("deepdraw --layer fc --unit 0 --octave 190", 2, "'190' is no octave: STEPS"),
        ("deepdraw --layer fc --unit 0 --octave 190x9:1:1", 2, "scale must be 1 to 4"),
        ("deepdraw --layer fc --unit 0 --leak 2", 2, "leak must be at least 0 and less than 1"),
        ("deepdraw --layer fc --unit 0 --background 300", 2, "background must be a grey level of 0 to 255"),
        ("deepdraw --layer fc --unit 0 --device cuda:77", 1, "cuda:77 was asked for"),
        ("figure gone.mp4", 1, "gone.mp4"),
        ("figure {film} -o a.jpg", 2, "a.jpg should end in .png or .svg or .pdf"),
        ("figure {film} --at 9", 1, "film.mp4 has no moment 9 s: it lasts 1.16 s"),
        ("figure {film} --columns frame,flow", 1, "no layer is called 'flow'"),
        ("figure {film} --weights {flow}", 1, "holds no trained TVNet: choose other weights, or --columns without it"),
        ("figure {film} --weights {headless} --columns frame,fc", 1, "has no class head"),
        ("figure {film} --weights {rgb}", 1, "is for the rgb stream, and the figure is of flow"),
        ("figure {still}", 1, "still.mp4: nothing moves in it"),
        ("figure {short}", 1, "short.mp4 has 4 frames: 6 are needed"),
        ("scales {still}", 1, "still.mp4: nothing moves in it"),
        ("scales {film} --scales 0", 2, "num_scales must be at least 1"),
        ("scales {film} --weights tvnet50-motion --scales 2", 2, "leave out its numbers"),
        ("scales {film} --short-side 3", 2, "frames must be at least 16 pixels"),
    ],
)
def test_each_mistake_has_one_clear_line(film, weights, tmp_path, monkeypatch, arguments, exit_code, message):
    monkeypatch.chdir(tmp_path)
    paths = {"film": film, **weights}
    if "{still}" in arguments:
        paths["still"] = write_film(tmp_path / "still.mp4", 20, picture=lambda number: moving(0))
    if "{short}" in arguments:
        paths["short"] = write_film(tmp_path / "short.mp4", 4, picture=moving)
    result = visualize(*(word.format(**paths) for word in arguments.split()))
    assert result.exit_code == exit_code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    if exit_code == 1:
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("Error: ")
    assert not list(tmp_path.glob("*.png"))


def test_a_real_film(shared_data, tmp_path):
    film = shared_data / "videos" / "co-tracker__bear.mp4"
    result = visualize("figure", film, "--columns", "frame,untrained,trained", "--rows", 2, "-o", tmp_path / "a.pdf")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "a.pdf").stat().st_size > 100_000
