from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tvnet_cli.errors import DatasetError, FlowFileError
from tvnet_cli.flow.files import write_flo
from tvnet_cli.training.pairs import KnownPair, crop, find_named_pairs, find_pairs, mirror, read_pair, stack

HEIGHT, WIDTH = 20, 26


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def field(seed: int) -> np.ndarray:
    # Quarters, which KITTI's files hold exactly.
    return np.random.default_rng(seed).integers(-40, 40, (2, HEIGHT, WIDTH)).astype(np.float32) / 4


def save(path: Path, content: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".flo":
        path.write_bytes(write_flo(content))
    elif content.dtype == np.uint8:
        Image.fromarray(content).save(path)
    else:  # KITTI
        known = ~np.isnan(content).any(0)
        levels = np.where(known, np.nan_to_num(content) * 64 + 32768, 0)
        rgb = np.stack((*levels, known), -1).astype(np.uint16)
        cv2.imwrite(str(path), rgb[..., ::-1])


LAYOUTS = {
    "chairs": ("00001_flow.flo", [("00001_img1.ppm", "00001_img2.ppm")]),
    "middlebury": ("Venus/flow10.flo", [("Venus/frame10.png", "Venus/frame11.png")]),
    "middlebury-as-published": (
        "other-gt-flow/Venus/flow09.flo",
        [("other-data/Venus/frame09.png", "other-data/Venus/frame10.png")],
    ),
    "sintel": (
        "flow/alley_1/frame_0009.flo",
        [(f"{kind}/alley_1/frame_0009.png", f"{kind}/alley_1/frame_0010.png") for kind in ("clean", "final")],
    ),
    "kitti-2015": ("flow_occ/000003_10.png", [("image_2/000003_10.png", "image_2/000003_11.png")]),
    "kitti-2012": ("flow_occ/000003_10.png", [("colored_0/000003_10.png", "colored_0/000003_11.png")]),
    "alone": ("sub/gt.flo", [("sub/img0.ppm", "sub/img1.ppm")]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_and_read(tmp_path, layout):
    truth, frames = LAYOUTS[layout]
    save(tmp_path / truth, field(0))
    for number, (first, second) in enumerate(frames):
        save(tmp_path / first, picture(2 * number))
        save(tmp_path / second, picture(2 * number + 1))
    pairs = find_pairs(tmp_path)
    assert [tuple(path.relative_to(tmp_path).as_posix() for path in pair) for pair in pairs] == [
        (*names, truth) for names in frames
    ]
    for number, pair in enumerate(pairs):
        first, second, flow = read_pair(pair)
        np.testing.assert_array_equal(first, picture(2 * number))
        np.testing.assert_array_equal(second, picture(2 * number + 1))
        np.testing.assert_array_equal(flow, field(0))


def test_pairs_come_in_natural_order_and_kitti_once(tmp_path):
    for number in ("2", "10"):
        save(tmp_path / "a" / f"{number}_flow.flo", field(0))
        for which in (1, 2):
            save(tmp_path / "a" / f"{number}_img{which}.png", picture(0))
    for folder in ("flow_occ", "flow_noc"):
        save(tmp_path / "kitti" / folder / "000000_10.png", field(0))
    for name in ("000000_10.png", "000000_11.png"):
        save(tmp_path / "kitti" / "image_2" / name, picture(0))
    found = [pair.truth.relative_to(tmp_path).as_posix() for pair in find_pairs(tmp_path)]
    assert found == ["a/2_flow.flo", "a/10_flow.flo", "kitti/flow_occ/000000_10.png"]


def test_pairs_are_called_by_their_flow(tmp_path):
    for name in ("a/x", "b"):
        save(tmp_path / name / "gt.flo", field(0))
        for frame in ("img0.png", "img1.png"):
            save(tmp_path / name / frame, picture(0))
    assert [name for name, _ in find_named_pairs([tmp_path])] == ["a/x/gt", "b/gt"]
    assert [name for name, _ in find_named_pairs([tmp_path / "a", tmp_path / "b"])] == ["a/x/gt", "b/gt"]


@pytest.mark.parametrize(("name", "unknown"), [("flow10.flo", 1e10), ("flow10.flo", np.nan), ("kitti", np.nan)])
def test_unknown_flow_is_nan(tmp_path, name, unknown):
    flow = field(0)
    flow[1, 3:5, 4:9] = unknown
    if name == "kitti":
        save(tmp_path / "flow_occ" / "a_10.png", flow)
        frames = [tmp_path / "image_2" / "a_10.png", tmp_path / "image_2" / "a_11.png"]
    else:
        save(tmp_path / name, flow)
        frames = [tmp_path / "frame10.png", tmp_path / "frame11.png"]
    for path in frames:
        save(path, picture(0))
    (files,) = find_pairs(tmp_path)
    expected = field(0)
    expected[:, 3:5, 4:9] = np.nan
    np.testing.assert_array_equal(read_pair(files).truth, expected)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no known flow in"):
        find_pairs(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot read the folder .*gone"):
        find_pairs(tmp_path / "gone")
    save(tmp_path / "flow10.flo", field(0))
    save(tmp_path / "frame10.png", picture(0))
    with pytest.raises(DatasetError, match=r"flow10.flo: the two frames of this flow are not where"):
        find_pairs(tmp_path)
    save(tmp_path / "frame11.png", picture(1, width=30))
    (files,) = find_pairs(tmp_path)
    with pytest.raises(DatasetError, match=r"frame11.png has 30 x 20 pixels, frame10.png has 26 x 20"):
        read_pair(files)
    save(tmp_path / "frame11.png", picture(1))
    save(tmp_path / "flow10.flo", field(0)[:, 1:])
    with pytest.raises(DatasetError, match=r"flow10.flo has 26 x 19 pixels"):
        read_pair(files)
    (tmp_path / "flow10.flo").write_text("no flow")
    with pytest.raises(FlowFileError, match="is no flow file"):
        read_pair(files)


def pair_of_places(height: int, width: int) -> KnownPair:
    """A pair whose flow and second frame say where a pixel was."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack((x, y, x + y), -1).astype(np.uint8)
    return KnownPair(frame, frame + np.uint8(100), np.stack((x, y)).astype(np.float32))


def test_a_crop_is_the_same_piece_of_all_three():
    whole = pair_of_places(30, 40)
    random = np.random.default_rng(0)
    corners = set()
    for _ in range(300):
        piece = crop(whole, 28, 37, random)
        assert piece.first.shape == (28, 37, 3)
        np.testing.assert_array_equal(piece.second, piece.first + np.uint8(100))
        np.testing.assert_array_equal(piece.truth, piece.first[..., :2].transpose(2, 0, 1))
        corners.add(tuple(piece.truth[:, 0, 0].astype(int).tolist()))
    assert corners == {(x, y) for x in range(4) for y in range(3)}


def test_a_mirror_image_has_the_mirrored_flow():
    """A pixel of the first frame is found again, where the flow leads."""
    random = np.random.default_rng(0)
    frame = picture(0)
    seen = set()
    for dx, dy in ((3, 1), (-2, 4)):
        second = np.roll(frame, (dy, dx), (0, 1))
        truth = np.broadcast_to(np.float32([[[dx]], [[dy]]]), (2, HEIGHT, WIDTH))
        for _ in range(20):
            turned = mirror(KnownPair(frame, second, truth), random)
            y, x = 10, 12
            u, v = turned.truth[:, y, x].astype(int)
            assert (abs(u), abs(v)) == (abs(dx), abs(dy))
            np.testing.assert_array_equal(turned.second[y + v, x + u], turned.first[y, x])
            seen.add((u / dx, v / dy))
            whole = mirror(pair_of_places(HEIGHT, WIDTH), random)
            np.testing.assert_array_equal(abs(whole.truth), whole.first[..., :2].transpose(2, 0, 1))
    assert len(seen) == 4


def test_pairs_of_all_sizes_make_one_batch():
    pairs = [pair_of_places(30, 40), pair_of_places(50, 24), pair_of_places(33, 60)]
    first, second, truth = stack(pairs, 32, np.random.default_rng(0))
    assert first.shape == second.shape == (3, 30, 24, 3)
    assert truth.shape == (3, 2, 30, 24)
    same = stack(pairs, 32, np.random.default_rng(0))
    np.testing.assert_array_equal(first, same.first)
    assert not np.array_equal(first, stack(pairs, 32, np.random.default_rng(1)).first)
    assert stack(pairs[:1], 16, np.random.default_rng(0)).truth.shape == (1, 2, 16, 16)
