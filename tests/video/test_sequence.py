from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from films import numbered_picture, read_number, write_film
from PIL import Image

from tvnet_cli.errors import DatasetError, VideoReadError
from tvnet_cli.options import FrameOptions
from tvnet_cli.video.decode import VideoScan, scan, scan_by_decoding
from tvnet_cli.video.reader import Decoders
from tvnet_cli.video.sequence import open_sequence


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (32, 48)) -> Path:
    folder.mkdir()
    for number in range(count):
        picture = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"frame{number + 1}.png")
    return folder


def numbers(sequence) -> list[int]:
    return [read_number(picture) for picture in sequence.read()]


def cut(film: Path, share: float) -> Path:
    content = film.read_bytes()
    film.write_bytes(content[: int(share * len(content))])
    return film


def noisy(number: int) -> np.ndarray:
    """A picture that needs many bytes, so that half a file is about half of the film."""
    noise = np.random.default_rng(number).integers(0, 60, (128, 128))
    return (numbered_picture(number) // 2 + noise).astype(np.uint8)


def test_a_film_gives_all_its_frames_with_their_times(tmp_path):
    times = [0, 1, 5, 6, 20, 21, 22, 40]
    film = write_film(tmp_path / "a.mkv", 8, pts=lambda number: 40 * times[number], time_base=Fraction(1, 1000))
    sequence = open_sequence([film], FrameOptions())
    assert numbers(sequence) == list(range(8))
    np.testing.assert_allclose(sequence.pts_seconds, 0.04 * np.array(times), atol=1e-9)
    np.testing.assert_array_equal(sequence.frame_index, range(8))
    assert sequence.time_base == Fraction(1, 1000)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 1.0}, range(25, 60)),
        ({"end": 1.0}, range(25)),
        ({"start": 0.4, "end": 0.81, "every": 3}, [10, 13, 16, 19]),
        ({"every": 25}, [0, 25, 50]),
    ],
)
def test_ranges_and_steps_choose_frames_by_time(tmp_path, options, expected):
    sequence = open_sequence([write_film(tmp_path / "a.mp4", 60)], FrameOptions(**options))
    assert numbers(sequence) == list(expected)
    np.testing.assert_array_equal(sequence.frame_index, expected)
    np.testing.assert_allclose(sequence.pts_seconds, np.array(expected) / 25)


def test_start_and_end_count_from_the_first_frame_as_in_a_player(tmp_path):
    film = write_film(tmp_path / "a.mkv", 60, pts=lambda number: number + 1000)
    sequence = open_sequence([film], FrameOptions(start=1.0, end=1.2))
    assert numbers(sequence) == [25, 26, 27, 28, 29]
    assert sequence.pts_seconds[0] == pytest.approx(41.0, abs=1e-3)


def test_single_frames_are_read_by_position(tmp_path):
    sequence = open_sequence([write_film(tmp_path / "a.mp4", 400)], FrameOptions(start=1.0))
    assert [read_number(picture) for picture in sequence.read([0, 1, 300, 301])] == [25, 26, 325, 326]


def test_frames_before_a_position_are_gone_through_unconverted(tmp_path):
    sequence = open_sequence([write_film(tmp_path / "a.mp4", 12)], FrameOptions())
    pictures = list(sequence.read(convert_from=10))
    assert pictures[:10] == [None] * 10
    assert [read_number(picture) for picture in pictures[10:]] == [10, 11]


@pytest.mark.parametrize("rotation", [0, 90])
def test_sizes_are_those_of_the_upright_picture(tmp_path, rotation):
    film = write_film(
        tmp_path / "a.mp4", 3, rotation=rotation, picture=lambda number: numbered_picture(number, 96, 160)
    )
    for options, shape in (({}, (96, 160)), ({"size": (48, 100)}, (48, 100)), ({"short_side": 48}, (48, 80))):
        pictures = list(open_sequence([film], FrameOptions(**options)).read())
        assert {picture.shape for picture in pictures} == {(*shape, 3)}
        assert all(picture.flags.c_contiguous for picture in pictures)


def promise(monkeypatch, film: Path, pts: np.ndarray) -> None:
    """Let the scan of the packets find these times in place of the true ones."""
    true = scan(film)
    wrong = VideoScan(film, pts * float(true.time_base), pts, true.keys, true.time_base)
    honest = Decoders.scan
    monkeypatch.setattr(
        Decoders, "scan", lambda self, path, counted=False: honest(self, path, counted=True) if counted else wrong
    )


def test_a_film_that_goes_on_behind_its_promised_end_is_read_to_its_end(tmp_path, monkeypatch):
    film = write_film(tmp_path / "a.mp4", 30)
    promise(monkeypatch, film, scan(film).pts[:26])
    sequence = open_sequence([film], FrameOptions())
    assert len(sequence.frame_index) == 26
    assert numbers(sequence) == list(range(30))
    assert len(sequence.frame_index) == 30


def test_a_film_whose_packets_promise_too_much_is_counted_anew(tmp_path, monkeypatch):
    film = write_film(tmp_path / "a.mp4", 30)
    wrong = scan(film).pts.copy()
    wrong[20:] += wrong[1] - wrong[0]
    promise(monkeypatch, film, wrong)
    sequence = open_sequence([film], FrameOptions())
    assert sequence.pts_seconds[25] == pytest.approx(26 / 25)
    assert numbers(sequence) == list(range(30))
    np.testing.assert_allclose(sequence.pts_seconds, np.arange(30) / 25)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"movflags": "faststart"}),
        ("mkv", "libx264", {}),
        ("avi", "mpeg4", {}),
        ("webm", "libvpx", {}),
    ],
)
def test_a_film_that_breaks_off_gives_what_is_there_and_says_when(tmp_path, suffix, codec, options):
    film = write_film(tmp_path / f"a.{suffix}", 120, codec=codec, container_options=options, picture=noisy)
    whole = open_sequence([film], FrameOptions())
    assert whole.damage == ""
    sequence = open_sequence([cut(film, 0.5)], FrameOptions())
    count = len(list(sequence.read()))
    assert 5 < count < 110
    seconds = sequence.pts_seconds[-1]
    assert seconds == pytest.approx((count - 1) / 25, abs=1e-3)
    assert f"breaks after {seconds:.2f} s" in sequence.damage
    # What is missing behind the part that was asked for does no harm.
    assert open_sequence([film], FrameOptions(end=seconds - 0.1)).damage == ""


def test_damage_in_the_middle_is_named_and_gone_over(tmp_path):
    film = write_film(tmp_path / "a.mp4", 100, picture=noisy, options={"g": "10", "bf": "0"})
    content = bytearray(film.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    film.write_bytes(content)
    sequence = open_sequence([film], FrameOptions())
    count = len(list(sequence.read()))
    assert 90 <= count < 100
    assert "packets cannot be decoded" in sequence.damage
    assert 1 < float(sequence.damage.split()[2]) < 3
    assert sequence.pts_seconds[-1] == pytest.approx(99 / 25)


def test_a_film_that_changes_its_size_ends_there_unless_resized(tmp_path):
    parts = [
        write_film(
            tmp_path / f"{side}.ts",
            10,
            picture=lambda number, side=side: numbered_picture(number, side, 128),
            pts=lambda number, side=side: number + (side != 64) * 10,
        )
        for side in (64, 96)
    ]
    film = tmp_path / "a.ts"
    film.write_bytes(b"".join(part.read_bytes() for part in parts))
    pictures = open_sequence([film], FrameOptions()).read()
    for _ in range(10):
        assert next(pictures).shape == (64, 128, 3)
    with pytest.raises(VideoReadError, match=r"a\.ts: changes from 128 x 64 to 128 x 96 pixels at \S+ s: --size"):
        next(pictures)
    whole = open_sequence([film], FrameOptions(size=(64, 64)))
    resized = list(whole.read())
    assert {picture.shape for picture in resized} == {(64, 64, 3)}
    assert len(resized) == 20
    assert any("its frames change size: 128 x 64 pixels, and 128 x 96 at" in note for note in whole.notes)


def test_sound_that_goes_on_after_the_pictures_is_no_damage(shared_data):
    checked = 0
    for path in sorted((shared_data / "videos").iterdir()):
        if path.suffix in (".mp4", ".avi", ".mpg", ".ogv"):
            assert scan(path).damage is None, path.name
            checked += 1
    assert checked == 17


def test_both_scans_tell_the_same_damage(tmp_path):
    film = write_film(tmp_path / "a.mkv", 120, picture=noisy)
    cut(film, 0.5)
    assert scan(film).damage == scan_by_decoding(film).damage


def test_a_folder_of_pictures_is_a_film_at_a_constant_rate(tmp_path):
    folder = write_pictures(tmp_path / "frames", 12)
    sequence = open_sequence([folder], FrameOptions(fps=10))
    assert sequence.name == "frames"
    np.testing.assert_allclose(sequence.pts_seconds, np.arange(12) / 10)
    for number, picture in enumerate(sequence.read()):
        np.testing.assert_array_equal(picture, np.asarray(Image.open(folder / f"frame{number + 1}.png")))
    assert len(list(open_sequence([folder], FrameOptions(start=0.2, fps=10, every=2)).read())) == 5


def test_pictures_are_taken_in_the_order_given(tmp_path):
    folder = write_pictures(tmp_path / "frames", 3)
    paths = [folder / "frame3.png", folder / "frame1.png"]
    first, second = open_sequence(paths, FrameOptions()).read()
    np.testing.assert_array_equal(first, np.asarray(Image.open(paths[0])))
    np.testing.assert_array_equal(second, np.asarray(Image.open(paths[1])))


def test_pictures_of_two_sizes_are_refused_with_both_sizes(tmp_path):
    folder = write_pictures(tmp_path / "frames", 3)
    Image.new("RGB", (50, 32)).save(folder / "frame3.png")
    pictures = open_sequence([folder], FrameOptions()).read()
    next(pictures), next(pictures)
    with pytest.raises(VideoReadError, match=r"frame3.png has 50 x 32 pixels, frame1.png has 48 x 32"):
        next(pictures)


def test_one_frame_is_not_enough(tmp_path):
    folder = write_pictures(tmp_path / "frames", 1)
    film = write_film(tmp_path / "a.mp4", 1)
    for paths in ([folder], [folder / "frame1.png"], [film]):
        with pytest.raises(DatasetError, match="needs two frames, and here 1"):
            open_sequence(paths, FrameOptions())


def test_what_is_no_film_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(VideoReadError, match=r"a\.txt: cannot open: not a video"):
        open_sequence([tmp_path / "a.txt"], FrameOptions())


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"start": 2.0, "end": 1.0},
        {"size": (15, 99)},
        {"short_side": 8},
        {"fps": 0.0},
        {"size": (32, 32), "short_side": 32},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=r"\w"):
        FrameOptions(**options)
