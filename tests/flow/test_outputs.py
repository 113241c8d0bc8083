from __future__ import annotations

from pathlib import Path

import pytest

from tvnet_cli.errors import OutputError
from tvnet_cli.flow.outputs import Target, check_kept, choose_targets
from tvnet_cli.options import FieldOptions

FILM = [Path("films/a.mp4")]
PAIR = [Path("x/a.png"), Path("x/b.png")]


def chosen(inputs: list[Path], *outputs: str, formats: tuple[str, ...] = ()) -> list[tuple[str, str, bool]]:
    targets = choose_targets(inputs, [Path(output) for output in outputs], formats)
    return [(target.format, str(target.path), target.folder) for target in targets]


def test_without_outputs_they_lie_beside_the_input(tmp_path):
    assert chosen(FILM) == [("h5", "films/a.flow.h5", False), ("mp4", "films/a.flow.mp4", False)]
    assert chosen(PAIR) == [("h5", "x/a.flow.h5", False), ("png", "x/a.flow.png", False)]
    folder = tmp_path / "frames"
    folder.mkdir()
    assert chosen([folder])[0] == ("h5", str(tmp_path / "frames.flow.h5"), False)
    assert chosen(FILM, formats=("flo", "npz")) == [("flo", "films/a.flow", True), ("npz", "films/a.flow.npz", False)]
    assert chosen(PAIR, formats=("flo", "xy-jpg")) == [("flo", "x/a.flow.flo", False), ("xy-jpg", "x/a.flow", True)]


def test_the_current_folder_has_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "frames").mkdir()
    monkeypatch.chdir(tmp_path / "frames")
    assert chosen([Path()])[0] == ("h5", str(tmp_path / "frames.flow.h5"), False)


@pytest.mark.parametrize("suffix", ["h5", "flo", "npz", "png", "mp4", "PNG"])
def test_a_suffix_says_the_format(suffix):
    assert chosen(FILM, f"out.{suffix}") == [(suffix.lower(), f"out.{suffix}", False)]


def test_folders_take_the_formats(tmp_path):
    assert chosen(FILM, "out", formats=("flo", "png", "xy-jpg")) == [
        ("flo", "out", True),
        ("png", "out", True),
        ("xy-jpg", "out", True),
    ]
    assert chosen(FILM, "out", "b.h5", formats=("mp4",)) == [("mp4", "out/a.flow.mp4", False), ("h5", "b.h5", False)]
    assert chosen(FILM, "data.bin", formats=("npz",)) == [("npz", "data.bin", False)]
    (tmp_path / "run.h5").mkdir()
    assert chosen(FILM, str(tmp_path / "run.h5"), formats=("png",)) == [("png", str(tmp_path / "run.h5"), True)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "formats", "reason"),
    [
        (FILM, ["out"], (), "out: its name does not say what to write; add --format"),
        (FILM, ["out.h5"], ("png",), "--format png: no output is left"),
        (FILM, ["films/a.mp4"], (), r"films/a\.mp4 would be written over the input"),
        (FILM, ["films/../films/a.mp4"], (), "over the input"),
        (FILM, ["a.h5", "./a.h5"], (), r"a\.h5 would be written over another output"),
        ([Path("frames")], ["frames"], ("png",), "frames is the input"),
    ],
)
def test_outputs_that_cannot_work_are_refused(inputs, outputs, formats, reason):
    with pytest.raises(OutputError, match=reason):
        chosen(inputs, *outputs, formats=formats)


@pytest.mark.parametrize(
    ("options", "formats", "works"),
    [
        ({"backward": True}, ["mp4", "xy-jpg"], False),
        ({"backward": True}, ["mp4", "npz"], True),
        ({"occlusion": True}, ["mp4"], False),
        ({"occlusion": True}, ["flo"], True),
        ({"scales": True}, ["mp4"], True),
        ({"scales": True}, ["xy-jpg"], False),
        ({}, [], True),
        ({"backward": True}, [], False),
    ],
)
def test_what_no_output_holds_is_refused(options, formats, works):
    targets = [Target(format_, Path("a")) for format_ in formats]
    if works:
        check_kept(targets, FieldOptions(**options))
    else:
        with pytest.raises(OutputError, match=r"--\S+: no output holds it"):
            check_kept(targets, FieldOptions(**options))
