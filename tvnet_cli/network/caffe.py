"""Read the weights in a Caffe model file: as much of protobuf as they need, and every size checked.

The file is one ``NetParameter`` message of ``caffe.proto``. Its layers are ``layers`` (V1) or ``layer``; of each we
want the name and the blobs. A message is a row of fields, each a number, a wire type and a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Blobs = dict[str, list[NDArray[np.float32]]]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which caffe.proto does not use
FIXED_SIZE = {FIXED64: 8, FIXED32: 4}
LONGEST_RUN = 1 << 16  # elements of a fixed size looked at together
MOST_SIZES = 32  # of a blob
MOST_FIELDS = 200_000  # of a file, runs as one; published ones have some thousands
MOST_NAME_BYTES = 1000  # of a layer

# Field numbers of caffe.proto.
LAYERS = {2: (4, 6), 100: (1, 7)}  # V1 layers and layer: the numbers of their name and blobs
NUM, CHANNELS, HEIGHT, WIDTH, DATA, SHAPE, DOUBLE_DATA = 1, 2, 3, 4, 5, 7, 8
DIM = 1


def read_caffemodel(content: bytes) -> Blobs:
    """The blobs of each layer that has any.

    Parameters
    ----------
    content : bytes
        Of a ``.caffemodel`` file.

    Returns
    -------
    dict of layer name to list of ndarray, float32
        In the shapes of the file: any number of sizes, or the four of old files, such as (1, 1, 101, 1024).

    Raises
    ------
    ValueError
        If it is no such file, is cut off, has too many fields, or a size in it does not agree with its data.
    """
    found: Blobs = {}
    budget = iter(range(MOST_FIELDS))
    for number, kind, value in _fields(memoryview(content), budget):
        if number in LAYERS:
            name, blobs = _layer(_message(value, kind), *LAYERS[number], budget)
            if name in found:
                raise ValueError(f"layer {name} is there twice")
            if blobs:
                found[name] = blobs
    if not found:
        raise ValueError("no layer of it holds weights")
    return found


def _layer(
    message: memoryview, name_number: int, blobs_number: int, budget: Iterator[int]
) -> tuple[str, list[NDArray[np.float32]]]:
    name, blobs = "", []
    for number, kind, value in _fields(message, budget):
        if number == name_number:
            if len(_message(value, kind)) > MOST_NAME_BYTES:
                raise ValueError(f"the name of a layer has more than {MOST_NAME_BYTES} bytes")
            name = bytes(_message(value, kind)).decode("utf-8")
        elif number == blobs_number:
            blobs.append(_message(value, kind))
    try:
        return name, [_blob(blob, budget) for blob in blobs]
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from None


def _blob(message: memoryview, budget: Iterator[int]) -> NDArray[np.float32]:
    old_shape: dict[int, int] = {}
    shape: list[int] | None = None
    data: dict[int, list[memoryview]] = {DATA: [], DOUBLE_DATA: []}
    for number, kind, value in _fields(message, budget):
        if number in (NUM, CHANNELS, HEIGHT, WIDTH):
            old_shape[number] = _integer(value)
        elif number == SHAPE:
            shape = _dims(_message(value, kind), budget)
        elif number in data:
            if kind not in (BYTES, FIXED32 if number == DATA else FIXED64):
                raise ValueError(f"its data are of wire type {kind}")
            data[number].append(_message(value, BYTES))
    if shape is None and old_shape:
        shape = [old_shape.get(number, 0) for number in (NUM, CHANNELS, HEIGHT, WIDTH)]
    if not shape or min(shape) < 1:
        raise ValueError(f"a blob of shape {shape}")
    kept, dtype = (DOUBLE_DATA, np.dtype("<f8")) if data[DOUBLE_DATA] else (DATA, np.dtype("<f4"))
    values = b"".join(data[kept])
    if len(values) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a blob of shape {shape} with {len(values)} bytes of {dtype.name} data")
    return np.frombuffer(values, dtype).astype(np.float32).reshape(shape)


def _dims(message: memoryview, budget: Iterator[int]) -> list[int]:
    dims: list[int] = []
    for number, _, value in _fields(message, budget):
        if len(dims) > MOST_SIZES or (not isinstance(value, int) and len(value) > 10 * MOST_SIZES):
            raise ValueError(f"a blob of more than {MOST_SIZES} sizes")
        if number != DIM:
            continue
        if isinstance(value, int):
            dims.append(value)
        else:
            position = 0
            while position < len(value):
                dim, position = _varint(value, position)
                dims.append(dim)
    return dims


def _fields(message: memoryview, budget: Iterator[int]) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of each field; neighbours of the same number and fixed size come as one.

    All messages of a file share a budget of fields: each of its two bytes can be one, which takes a microsecond.
    """
    position = 0
    while position < len(message):
        if next(budget, None) is None:
            raise ValueError(f"it has more than {MOST_FIELDS:,} fields")
        start = position
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if number == 0 or kind not in (VARINT, FIXED64, BYTES, FIXED32):
            raise ValueError(f"no field of a message is at byte {start} of {len(message)}")
        if kind == VARINT:
            value, position = _varint(message, position)
            yield number, kind, value
            continue
        if kind in FIXED_SIZE:
            size = FIXED_SIZE[kind]
            run = _run(message, start, position - start, size)
            end = start + run.size
            values = memoryview(run[:, position - start :].tobytes())
        else:
            size, position = _varint(message, position)
            end = position + size
            values = message[position:end]
        if len(values) < size:
            raise ValueError(f"it is cut off: a field of {size} bytes, and {len(message) - position} are left")
        yield number, kind, values
        position = end


def _run(message: memoryview, start: int, key_size: int, size: int) -> NDArray[np.uint8]:
    """The rows of key and value from ``start`` on that have the key of the first: data that are not packed."""
    row = key_size + size
    there = min((len(message) - start) // row, LONGEST_RUN)
    look = 1
    while True:  # far only where the run is long
        count = min(look, there)
        rows = np.frombuffer(message, np.uint8, count * row, start).reshape(count, row)
        other = (rows[:, :key_size] != rows[:1, :key_size]).any(1)
        if other.any() or count == there:
            return rows[: int(other.argmax())] if other.any() else rows
        look *= 8


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it is cut off inside a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than ten bytes ends at byte {position}")


def _message(value: int | memoryview, kind: int) -> memoryview:
    if kind != BYTES or isinstance(value, int):
        raise ValueError(f"a message was expected, not wire type {kind}")
    return value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a size was expected, not bytes")
    return value
