from __future__ import annotations

import numpy as np
import pytest
from checkpoint_files import blob, layer, message, number, varint

from tvnet_cli.network.caffe import read_caffemodel

VALUES = np.arange(24, dtype=np.float32).reshape(4, 3, 2) - 7.25


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", [{}, {"packed": False}, {"double": True}, {"double": True, "packed": False}])
def test_every_way_of_writing_a_blob_gives_the_same_values(version, how):
    content = message(1, b"net") + layer("conv1/7x7_s2", [blob(VALUES, **how), blob(VALUES[0], **how)], version)
    found = read_caffemodel(content + layer("pool", [], version))
    assert list(found) == ["conv1/7x7_s2"]
    first, second = found["conv1/7x7_s2"]
    np.testing.assert_array_equal(first, VALUES)
    np.testing.assert_array_equal(second, VALUES[0])
    assert first.dtype == np.float32


def test_old_files_give_four_sizes():
    (found,) = read_caffemodel(layer("a", [blob(VALUES, old_shape=True)], 1))["a"]
    np.testing.assert_array_equal(found, VALUES[None])


def test_more_numbers_than_are_read_at_once_are_read_in_order():
    many = np.arange(70_000, dtype=np.float32)
    (found,) = read_caffemodel(layer("a", [blob(many, packed=False)]))["a"]
    np.testing.assert_array_equal(found, many)


def test_single_numbers_end_where_another_field_begins():
    shape, singles = blob(VALUES, packed=False)[:7], blob(VALUES, packed=False)[7:]
    assert len(singles) == VALUES.size * 5
    (found,) = read_caffemodel(layer("a", [singles + shape]))["a"]
    np.testing.assert_array_equal(found, VALUES)


def test_sizes_may_come_one_by_one_and_gradients_are_left_alone():
    shape = message(7, number(1, 4) + number(1, 3) + number(1, 2))
    one = message(5, VALUES.tobytes()) + shape + message(6, b"\0" * 96) + message(9, b"\0" * 8)
    (found,) = read_caffemodel(layer("a", [one]))["a"]
    np.testing.assert_array_equal(found, VALUES)


GOOD = layer("a", [blob(VALUES)])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "no layer of it holds weights"),
        (message(1, b"net"), "no layer of it holds weights"),
        (GOOD[:-1], "cut off: a field of"),
        (GOOD[:1], "cut off inside a number"),
        (GOOD + GOOD, "layer a is there twice"),
        (b"\x0b" + GOOD, "no field of a message is at byte 0"),
        (b"\x00" + GOOD, "no field of a message is at byte 0"),
        (b"\xff" * 20, "more than ten bytes"),
        (number(100, 3), "a message was expected"),
        (layer("a", [message(5, VALUES.tobytes())]), "layer a: a blob of shape None"),
        (layer("a", [message(5, VALUES.tobytes()) + number(1, 24)]), r"shape \[24, 0, 0, 0\]"),
        (layer("a", [blob(VALUES)[:-1] + b"\x03"]), r"shape \[4, 3, 3\] with 96 bytes of float32"),
        (layer("a", [blob(VALUES)[:-1] + b"\x00"]), r"shape \[4, 3, 0\]"),
        (layer("a", [message(7, message(1, varint(1 << 62) * 3)) + message(5, b"")]), "with 0 bytes of float32"),
        (layer("a", [message(7, message(1, varint((1 << 64) - 1))) + message(5, b"")]), "with 0 bytes"),
        (layer("a", [blob(VALUES) + message(8, b"\0" * 8)]), "with 8 bytes of float64"),
        (layer("a", [number(5, 3)]), "wire type 0"),
        (layer("a", [message(1, b"x")]), "a size was expected"),
        (layer("a", [number(7, 3)]), "a message was expected"),
        (layer("a", [b"\x2d\0\0"]), "cut off: a field of 4 bytes, and 2 are left"),
        (message(100, message(1, b"\xff") + message(7, blob(VALUES))), "utf-8"),
    ],
)
def test_what_is_wrong_is_said(content, error):
    with pytest.raises(ValueError, match=error):
        read_caffemodel(content)


def test_no_damage_goes_further_than_an_error():
    random = np.random.default_rng(0)
    for _ in range(2000):
        content = bytearray(GOOD)
        for position in random.integers(0, len(GOOD) - 96, 3):
            content[position] = random.integers(256)
        try:
            read_caffemodel(bytes(content))
        except ValueError:
            continue
