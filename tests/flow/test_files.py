"""Each format that others read, read back by a reader that is not ours."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import cv2
import flow_vis
import numpy as np
import pytest
from PIL import Image

from tvnet_cli.errors import FlowFileError, OutputError
from tvnet_cli.flow import files as files_module
from tvnet_cli.flow.field import FlowField
from tvnet_cli.flow.files import FieldFile, FieldFolder, NpzFile, encode_flo, encode_jpg_pair, encode_png, read_flow
from tvnet_cli.flow.files import write_flo as flo_content
from tvnet_cli.writing import MARK


def make_field(position: int = 0, size: tuple[int, int] = (40, 60), spread: float = 6.0, **more: object) -> FlowField:
    rng = np.random.default_rng(position)
    picture = np.zeros((*size, 3), np.uint8)
    flow = rng.normal(0, spread, (2, *size)).astype(np.float32)
    arrays = {"flow": flow, **more}
    return FlowField(position, (position, position + 1), (position / 25, (position + 1) / 25), picture, picture, arrays)


def all_arrays(position: int = 0) -> FlowField:
    rng = np.random.default_rng(100 + position)
    return make_field(
        position,
        backward=rng.normal(0, 3, (2, 40, 60)).astype(np.float32),
        occlusion=rng.integers(0, 2, (40, 60)).astype(np.uint8),
        flow_scale_1=rng.normal(0, 3, (2, 20, 30)).astype(np.float32),
    )


def test_flo_is_read_by_opencv(tmp_path):
    field = make_field()
    with FieldFile(tmp_path / "a.flo", encode_flo) as output:
        output.write(field)
    theirs = cv2.readOpticalFlow(str(tmp_path / "a.flo"))
    np.testing.assert_array_equal(theirs.transpose(2, 0, 1), field.flow)


def test_flo_of_opencv_is_read(tmp_path):
    flow = make_field().flow
    cv2.writeOpticalFlow(str(tmp_path / "a.flo"), np.ascontiguousarray(flow.transpose(1, 2, 0)))
    np.testing.assert_array_equal(read_flow(tmp_path / "a.flo"), flow)


def test_kitti_files_are_read(tmp_path):
    rng = np.random.default_rng(0)
    levels = rng.integers(20000, 45000, (20, 30, 2))
    valid = rng.integers(0, 2, (20, 30))
    rgb = np.concatenate((levels, valid[..., None]), 2).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1])  # OpenCV writes BGR
    flow = read_flow(tmp_path / "a.png")
    expected = np.where(valid, ((levels - 32768) / 64).transpose(2, 0, 1), np.nan)
    np.testing.assert_array_equal(flow, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.flo", None, "No such file"),
        ("a.flo", b"PIEH", "is no flow file"),
        ("a.flo", b"x" * 100, "is no flow file"),
        ("a.flo", flo_content(np.zeros((2, 4, 5)))[:-1], "is damaged: 171 bytes do not make 5 x 4"),
        ("a.flo", struct.pack("<fii", 202021.25, -1, 4), "is damaged"),
        ("a.png", b"text", "cannot read the flow"),
    ],
)
def test_files_that_hold_no_flow_are_named(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FlowFileError, match=reason) as caught:
        read_flow(tmp_path / name)
    assert name in str(caught.value)


def test_an_ordinary_picture_is_no_true_flow(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    with pytest.raises(FlowFileError, match=r"a\.png is no flow file"):
        read_flow(tmp_path / "a.png")


def test_colour_pictures_are_those_of_the_established_tool(tmp_path):
    field = make_field()
    with FieldFile(tmp_path / "a.png", lambda field: encode_png(field, 9.0)) as output:
        output.write(field)
    with Image.open(tmp_path / "a.png") as picture:
        ours = np.asarray(picture).astype(int)
        assert picture.text == {"max_flow": "9 pixels", "Software": MARK}
    theirs = flow_vis.flow_uv_to_colors(*(field.flow / 9.0))
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("spread", [0.0, 0.05, 2.0, 15.0])
def test_grey_pairs_are_read_back_within_half_a_level(tmp_path, spread):
    size = (120, 160)
    rough = np.random.default_rng(1).normal(0, spread, (2, 12, 16)).astype(np.float32)
    flow = np.stack([cv2.resize(part, size[::-1], interpolation=cv2.INTER_CUBIC) for part in rough])
    field = make_field(size=size)
    field.arrays["flow"] = flow
    with FieldFolder(tmp_path, encode_jpg_pair, "flow_y.jpg", {}, overwrite=False) as output:
        output.write(field)
    for name, part in zip(("flow_x_00001.jpg", "flow_y_00001.jpg"), flow, strict=True):
        levels = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
        assert levels.dtype == np.uint8
        assert levels.shape == size
        exact = np.clip((part.astype(np.float64) + 20) * 255 / 40, 0, 255)
        assert np.abs(levels - exact).mean() <= 0.5
        assert np.abs(levels - np.rint(exact)).mean() < 0.15
        assert np.abs(levels - exact).max() <= 2.5


def test_no_motion_is_level_128_and_long_vectors_are_cut_off():
    for value, level in ((0.0, 128), (20.0, 255), (-20.0, 0), (99.0, 255), (-99.0, 0), (10.0, 191)):
        field = make_field()
        field.arrays["flow"] = np.full((2, 40, 60), value, np.float32)
        for content in encode_jpg_pair(field).values():
            assert (cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) == level).all()


@pytest.mark.parametrize("half", [False, True])
def test_npz_is_read_by_numpy(tmp_path, half):
    fields = [all_arrays(position) for position in range(3)]
    with NpzFile(tmp_path / "a.npz", half) as output:
        for field in fields:
            output.write(field)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz") as archive:
        assert set(archive) == {*fields[0].arrays, "frame_index", "pts_seconds"}
        for name in fields[0].arrays:
            expected = np.stack([field.arrays[name] for field in fields])
            expected = expected.astype(np.float16) if half and name != "occlusion" else expected
            assert archive[name].dtype == expected.dtype
            np.testing.assert_array_equal(archive[name], expected)
        np.testing.assert_array_equal(archive["frame_index"], [[0, 1], [1, 2], [2, 3]])
        np.testing.assert_allclose(archive["pts_seconds"], [0, 0.04, 0.08])


def test_an_interrupted_npz_holds_the_whole_fields(tmp_path):
    with suppress(KeyboardInterrupt), NpzFile(tmp_path / "a.npz", half=False) as output:
        output.write(make_field(0))
        output._files["flow"][0].write(b"half a fie")
        raise KeyboardInterrupt
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["flow"], make_field(0).flow[None])
        assert archive.zip.getinfo("flow.npy").file_size == 128 + make_field(0).flow.nbytes


def test_the_fields_of_an_npz_wait_in_files_without_a_name(tmp_path):
    with NpzFile(tmp_path / "a.npz", half=False) as output:
        output.write(make_field())
        assert not list(tmp_path.iterdir())  # so a kill leaves nothing
    assert (tmp_path / "a.npz").read_bytes().endswith(MARK.encode())


def test_npz_without_fields_is_no_file(tmp_path):
    with NpzFile(tmp_path / "a.npz", half=False):
        pass
    assert not list(tmp_path.iterdir())


def test_one_field_leaves_its_other_arrays_beside_it(tmp_path):
    field = all_arrays()
    with FieldFile(tmp_path / "ab.flo", encode_flo) as output:
        output.write(field)
    names = {"ab.flo", "ab.backward.flo", "ab.occlusion.png", "ab.flow_scale_1.flo"}
    assert {path.name for path in tmp_path.iterdir()} == names
    np.testing.assert_array_equal(read_flow(tmp_path / "ab.backward.flo"), field.arrays["backward"])
    np.testing.assert_array_equal(read_flow(tmp_path / "ab.flow_scale_1.flo"), field.arrays["flow_scale_1"])
    mask = np.asarray(Image.open(tmp_path / "ab.occlusion.png"))
    np.testing.assert_array_equal(mask, field.arrays["occlusion"] * 255)


def test_capital_suffixes_are_the_same_formats(tmp_path):
    with FieldFile(tmp_path / "AB.FLO", encode_flo) as output:
        output.write(make_field())
    assert [path.name for path in tmp_path.iterdir()] == ["AB.FLO"]


def test_coarse_scales_are_coloured_in_pixels_of_the_finest():
    field = make_field(flow_scale_1=np.full((2, 20, 30), 2.0, np.float32))
    field.arrays["flow"] = np.full((2, 40, 60), 4.0, np.float32)
    pictures = encode_png(field, 8.0)
    fine, coarse = (
        cv2.imdecode(np.frombuffer(pictures[name], np.uint8), cv2.IMREAD_COLOR)
        for name in ("flow.png", "flow_scale_1.png")
    )
    assert coarse.shape == (20, 30, 3)
    assert (fine[0, 0] == coarse[0, 0]).all()


def folder(path: Path, recipe: object = "one", overwrite: bool = False) -> FieldFolder:
    names = ["flow.flo", "flow_scale_1.flo", "backward.flo", "occlusion.png"]
    return FieldFolder(path, encode_flo, "flow.flo", {"recipe": recipe}, overwrite, names)


def visible(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.name[0] != ".")


def test_a_folder_goes_on_behind_its_last_whole_field(tmp_path):
    with folder(tmp_path / "out") as output:
        for position in range(2):
            output.write(all_arrays(position))
    # A run killed between the files of a field: its card says that the field was begun, and the flow comes last.
    (tmp_path / "out" / "backward_00003.flo").write_bytes(b"old")
    card = tmp_path / "out" / ".tvnet-flow.flo.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"begun": 3}))
    with folder(tmp_path / "out") as output:
        assert output.num_done == 2
        before = (tmp_path / "out" / "flow_00001.flo").stat().st_mtime_ns
        for position in range(3):
            output.write(all_arrays(position))
    assert (tmp_path / "out" / "flow_00001.flo").stat().st_mtime_ns == before
    assert len(visible(tmp_path / "out")) == 12
    for position in range(3):
        path = tmp_path / "out" / f"backward_{position + 1:05d}.flo"
        np.testing.assert_array_equal(read_flow(path), all_arrays(position).arrays["backward"])


def test_the_file_that_tells_that_a_field_is_whole_comes_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(files_module, "write_whole", lambda path, content: written.append(path.name))
    with folder(tmp_path) as output:
        output.write(all_arrays())
    assert len(written) == 5
    assert written[-1] == "flow_00001.flo"


def test_a_folder_of_another_recipe_or_of_unknown_origin_is_left_alone(tmp_path):
    with folder(tmp_path) as output:
        output.write(make_field())
    with pytest.raises(FlowFileError, match='recipe was "one", now "two"'), folder(tmp_path, "two"):
        pass
    (tmp_path / ".tvnet-flow.flo.json").unlink()
    with pytest.raises(OutputError, match=r"flow_00001\.flo exists, and nothing in it says"), folder(tmp_path):
        pass
    assert visible(tmp_path) == ["flow_00001.flo"]


def test_overwrite_removes_the_fields_and_nothing_else(tmp_path):
    with folder(tmp_path) as output:
        for position in range(3):
            output.write(all_arrays(position))
    others = ["notes.txt", "flow_1.flo", "myflow_00001.flo", "flow_00001.npz"]
    for name in others:
        (tmp_path / name).touch()
    with folder(tmp_path, "two", overwrite=True) as output:
        assert output.num_done == 0
        output.write(make_field(0))
    assert visible(tmp_path) == sorted([*others, "flow_00001.flo"])
