from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.video.images import find_images, read_image

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (20, 30, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "ppm", "bmp", "tiff"])
def test_pixels_are_read_as_they_are(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), PICTURE[..., ::-1])
    np.testing.assert_array_equal(read_image(path), PICTURE)


@pytest.mark.parametrize("suffix", ["png", "pgm", "tiff"])
def test_sixteen_bits_keep_their_range(tmp_path, suffix):
    levels = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), levels)
    picture = read_image(path)
    assert picture.shape == (20, 30, 3)
    assert np.abs(picture - levels[..., None] / 257).max() <= 0.5


def test_grey_palette_and_transparent_pictures_become_rgb(tmp_path):
    image = Image.fromarray(PICTURE)
    for mode in ("L", "P", "RGBA", "1", "LA"):
        image.convert(mode).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (20, 30, 3)


def test_a_camera_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(PICTURE, -1))


def test_folders_are_in_natural_order_without_hidden_and_other_files(tmp_path):
    names = ["f10.png", "f2.png", "f001.PNG", ".f0.png", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["f001.PNG", "f2.png", "f10.png"]


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no images in .*looked for \.bmp"):
        find_images(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot read the folder .*missing"):
        find_images(tmp_path / "missing")


def damaged_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (200, 200, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:5000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"text", "not an image"),
        (damaged_png(), "cannot read this image"),
        (None, "no such file"),
    ],
)
def test_unreadable_pictures_are_named_with_the_reason(tmp_path, content: bytes | None, reason):
    path: Path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoReadError, match=f"a.png: {reason}"):
        read_image(path)
