"""Films damaged at random: each case is a function of its number alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from films import write_film

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EXTREMES = [bytes(4), b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\x80" + bytes(3), b"\xff" * 3 + b"\x7f", bytes(3) + b"\1"]
LARGEST = 1_000_000  # bytes

Damage = Callable[[bytearray, np.random.Generator], None]


def whole_films(folder: Path, more: Path | None = None) -> list[Path]:
    """Films to damage: of many kinds, small and written in ``folder``; the examples; real ones in ``more``."""
    quick = {"preset": "ultrafast", "g": "12"}
    films = [write_film(folder / f"h264.{suffix}", 24, options=quick) for suffix in "mp4 mkv ts avi h264 flv".split()]
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    films += [
        write_film(folder / "first.mp4", 24, options=quick, container_options={"movflags": "faststart"}),
        write_film(folder / "fragments.mp4", 24, options=quick, container_options=fragments),
        write_film(folder / "turned.mov", 24, options=quick, rotation=90),
        write_film(folder / "hevc.mp4", 12, codec="libx265", options={"x265-params": "log-level=none"}),
        write_film(folder / "vp8.webm", 24, codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}),
        write_film(folder / "vp9.webm", 24, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
        write_film(folder / "mpeg4.avi", 24, codec="mpeg4", options={"bf": "2"}),
        write_film(folder / "mpeg2.mpg", 24, codec="mpeg2video"),
        write_film(folder / "mjpeg.avi", 12, codec="mjpeg", pixel_format="yuvj420p"),
        write_film(folder / "picture.gif", 12, codec="gif", pixel_format="rgb8"),
        write_film(folder / "old.wmv", 24, codec="wmv2"),
        write_film(folder / "lossless.mkv", 12, codec="ffv1"),
    ]
    found = [*EXAMPLES.glob("*.mp4"), *(more.iterdir() if more else ())]
    return films + sorted(path for path in found if path.stat().st_size <= LARGEST)


def damaged(film: Path, number: int, folder: Path) -> Path:
    """A copy of a film with the damage of this number."""
    random = np.random.default_rng([2018, number])
    content = bytearray(film.read_bytes())
    for damage in random.integers(0, len(DAMAGES), random.integers(1, 3)):
        if content:
            DAMAGES[damage](content, random)
    copy = folder / f"{number}{film.suffix}"
    copy.write_bytes(content)
    return copy


def flipped(content: bytearray, random: np.random.Generator) -> None:
    """Some bits anywhere."""
    for place in random.integers(0, len(content), 1 + int(200 ** random.random())):
        content[place] ^= 1 << int(random.integers(8))


def flipped_in_header(content: bytearray, random: np.random.Generator) -> None:
    """Bytes replaced at the beginning or the end, where containers keep their tables."""
    reach = min(len(content), 1500)
    begin = 0 if random.random() < 0.6 else len(content) - reach
    for place in random.integers(begin, begin + reach, 1 + int(20 ** random.random())):
        content[place] = int(random.integers(256))


def cut(content: bytearray, random: np.random.Generator) -> None:
    del content[int(len(content) * random.random()) :]


def hole(content: bytearray, random: np.random.Generator) -> None:
    """A piece taken out: all behind it moves."""
    begin, end = _piece(content, random)
    del content[begin:end]


def blank(content: bytearray, random: np.random.Generator) -> None:
    """Zeros, as a download leaves that came in pieces."""
    begin, end = _piece(content, random)
    content[begin:end] = bytes(end - begin)


def swapped(content: bytearray, random: np.random.Generator) -> None:
    """Two pieces that changed places."""
    begin, end = _piece(content, random)
    other = int(random.integers(0, len(content) - (end - begin) + 1))
    first, second = content[begin:end], content[other : other + end - begin]
    content[begin:end], content[other : other + end - begin] = second, first


def doubled(content: bytearray, random: np.random.Generator) -> None:
    begin, end = _piece(content, random)
    content[end:end] = content[begin:end]


def extreme(content: bytearray, random: np.random.Generator) -> None:
    """Sizes and counts that promise the most or nothing."""
    reach = len(content) if random.random() < 0.3 else min(len(content), 2000)
    for place in random.integers(0, reach, 1 + int(6 * random.random())):
        content[place : place + 4] = EXTREMES[int(random.integers(len(EXTREMES)))]


def _piece(content: bytearray, random: np.random.Generator) -> tuple[int, int]:
    begin = int(random.integers(0, len(content)))
    return begin, min(len(content), begin + 1 + int((len(content) / 4) ** random.random()))


DAMAGES: list[Damage] = [flipped, flipped_in_header, cut, hole, blank, swapped, doubled, extreme]
