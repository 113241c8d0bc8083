from __future__ import annotations

import csv
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from films import numbered_picture, read_number, write_film

from tvnet_cli.errors import VideoReadError
from tvnet_cli.video import decode
from tvnet_cli.video.decode import VideoClips, read_clips, read_frames, scan, scan_by_decoding, upright_rgb

B_FRAMES = {"bf": "3", "g": "40", "preset": "ultrafast"}
GAPS = np.cumsum(np.random.default_rng(0).choice([20, 40, 120], 5000))

FILMS = {
    "constant rate.mp4": {"options": {"bf": "0", "g": "40", "preset": "ultrafast"}},
    "B-frames.mp4": {"options": B_FRAMES},
    "B-frames.mkv": {"options": B_FRAMES},
    "B-frames.ts": {"options": B_FRAMES},
    "variable rate.mp4": {"pts": lambda i: int(GAPS[i]), "time_base": Fraction(1, 1000), "options": B_FRAMES},
    "variable rate.mkv": {"pts": lambda i: int(GAPS[i]), "time_base": Fraction(1, 1000), "options": B_FRAMES},
    "late start.mp4": {"pts": lambda i: i + 123, "options": B_FRAMES},
    "late start.ts": {"pts": lambda i: i + 123, "options": B_FRAMES},
    "open GOP.mp4": {"options": {"x264-params": "open-gop=1:bframes=3:keyint=40", "preset": "veryfast"}},
    "intra refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=40", "preset": "veryfast"}},
    "one key frame.mp4": {"options": {"g": "100000", "bf": "2", "sc_threshold": "0", "preset": "ultrafast"}},
    "fragmented.mp4": {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "xvid.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "40"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "15"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "g": "15"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "40"}},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "16"}},
    "no times.h264": {"options": B_FRAMES},
    "grey.mp4": {"pixel_format": "gray", "options": B_FRAMES},
    "10 bit.mkv": {"pixel_format": "yuv420p10le", "options": B_FRAMES},
    "turned 90.mp4": {"rotation": 90, "options": B_FRAMES},
    "turned 180.mp4": {"rotation": 180, "options": B_FRAMES},
    "turned 270.mp4": {"rotation": 270, "options": B_FRAMES},
}


def numbers_shown(clips: VideoClips) -> list[list[int]]:
    return [[read_number(picture) for picture in clip] for clip in clips.frames]


def seeks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the frame numbers that are reached by seeking."""
    reached: list[int] = []
    seek = decode._seek

    def counted(*arguments):
        frames, position = seek(*arguments)
        reached.append(position)
        return frames, position

    monkeypatch.setattr(decode, "_seek", counted)
    return reached


@pytest.mark.parametrize("num_frames", [200, 3200])
@pytest.mark.parametrize("name", FILMS)
def test_every_frame_of_every_clip_is_the_one_it_says(tmp_path, name, num_frames):
    film = write_film(tmp_path / name, num_frames, **FILMS[name])
    clips = read_clips(film)
    assert clips.num_frames == num_frames
    assert clips.frames.shape == (25, 6, 224, 224, 3)
    assert numbers_shown(clips) == clips.frame_index.tolist()
    assert not clips.padded
    assert not clips.notes


@pytest.mark.parametrize("name", ["B-frames.mp4", "B-frames.mkv", "B-frames.ts"])
def test_a_long_film_is_read_by_seeking(tmp_path, monkeypatch, name):
    reached = seeks(monkeypatch)
    film = write_film(tmp_path / name, 3200, **FILMS[name])
    assert numbers_shown(read_clips(film)) == decode.clip_frames(3200).tolist()
    assert len(reached) >= 12


@pytest.mark.parametrize(("name", "start"), [("variable rate.mp4", 0), ("variable rate.mkv", 0), ("late start.mp4", 0)])
def test_times_are_those_of_the_container(tmp_path, name, start):
    film = write_film(tmp_path / name, 200, **FILMS[name])
    clips = read_clips(film)
    unit = FILMS[name].get("time_base", Fraction(1, 25))
    expected = np.vectorize(lambda i: float(FILMS[name]["pts"](i) * unit))(clips.frame_index)
    np.testing.assert_allclose(clips.pts_seconds, expected, atol=1e-3)


def test_a_film_without_times_says_so(tmp_path):
    film = write_film(tmp_path / "film.h264", 60, options=B_FRAMES)
    assert np.isnan(read_clips(film).pts_seconds).all()


@pytest.mark.parametrize("num_frames", [1, 3, 5])
def test_a_film_shorter_than_a_clip_is_padded(tmp_path, num_frames):
    clips = read_clips(write_film(tmp_path / "film.mp4", num_frames))
    assert clips.padded
    assert numbers_shown(clips) == clips.frame_index.tolist()


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_pictures_stand_upright_as_another_reader_shows_them(tmp_path, angle):
    def picture(number: int) -> np.ndarray:
        return np.ascontiguousarray(numbered_picture(777, 96, 160))

    film = write_film(tmp_path / "film.mp4", 8, rotation=angle, picture=picture)
    video, converter = scan(film), av.video.reformatter.VideoReformatter()
    ours = upright_rgb(next(read_frames(video, [0])), converter)
    capture = cv2.VideoCapture(str(film))
    theirs = capture.read()[1][..., ::-1]
    capture.release()
    assert ours.shape == theirs.shape == (96, 160, 3)
    assert np.abs(ours.astype(int) - theirs).mean() < 1


def test_the_short_side_is_resized_and_the_middle_cut(tmp_path):
    def picture(number: int) -> np.ndarray:
        columns = np.zeros((120, 200), np.uint8)
        columns[:, 99:101] = 255  # the middle of the width
        return columns

    clips = read_clips(write_film(tmp_path / "film.mp4", 30, picture=picture))
    profile = clips.frames[0, 0].mean((0, 2))
    assert abs((profile * np.arange(224)).sum() / profile.sum() - 111.5) < 1


def test_a_wrong_promise_of_the_packets_is_seen_and_repaired(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", 300, options=B_FRAMES)
    true = scan(film)
    for wrong in (
        np.append(true.pts, true.pts[-1] + 512),  # one frame too many at the end
        np.delete(true.pts, -1),  # the last one is missing
        np.sort(np.append(true.pts, true.pts[150] + 1)),  # one in the middle that is never shown
        np.delete(true.pts, 150),
        np.sort(np.append(np.delete(true.pts, 150), true.pts[150] + 1)),  # one at another time
    ):
        promise = decode.VideoScan(film, wrong / 12800, wrong, true.keys)
        monkeypatch.setattr(decode, "scan", lambda path, promise=promise: promise)
        clips = read_clips(film)
        assert clips.num_frames == 300
        assert numbers_shown(clips) == clips.frame_index.tolist()
        assert np.array_equal(clips.pts_seconds, true.pts_seconds[clips.frame_index])


def test_counting_by_decoding_agrees_with_the_packets(tmp_path):
    film = write_film(tmp_path / "film.mp4", 120, **FILMS["variable rate.mp4"])
    np.testing.assert_allclose(scan(film).pts_seconds, scan_by_decoding(film).pts_seconds)


def cut(film: Path, share: float) -> Path:
    content = film.read_bytes()
    film.write_bytes(content[: int(share * len(content))])
    return film


def test_a_film_cut_short_gives_what_is_there_and_a_note(tmp_path):
    film = write_film(tmp_path / "film.mp4", 400, options=B_FRAMES, container_options={"movflags": "faststart"})
    clips = read_clips(cut(film, 0.5))
    assert 100 < clips.num_frames < 300
    assert numbers_shown(clips)[:24] == clips.frame_index[:24].tolist()
    assert (np.diff(numbers_shown(clips)[24]) > 0).all()  # at the cut, B-frames are lost before a later P-frame
    assert any("promises 400 frames" in note for note in clips.notes)


def test_a_film_that_lacks_whole_packets_at_its_end_has_a_note_too(tmp_path):
    options = {"bf": "0", "preset": "ultrafast"}
    film = write_film(tmp_path / "film.mp4", 100, options=options, container_options={"movflags": "faststart"})
    with av.open(str(film)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        end = packets[59].pos + packets[59].size
    film.write_bytes(film.read_bytes()[:end])
    clips = read_clips(film)
    assert clips.num_frames == 60
    assert clips.notes == ("the container promises 100 frames, 60 are there",)


def test_titles_in_another_encoding_are_no_trouble(tmp_path):
    film = write_film(tmp_path / "film.mp4", 10)
    content = film.read_bytes()
    assert b"VideoHandler" in content  # the name of the stream
    film.write_bytes(content.replace(b"VideoHandler", b"Caf\xe9 Handler"))
    assert read_clips(film).num_frames == 10


def test_a_film_with_many_bad_packets_is_refused_with_their_number(tmp_path):
    film = write_film(
        tmp_path / "film.mkv", 300, picture=lambda i: np.random.default_rng(i).integers(0, 256, (64, 64), np.uint8)
    )
    content = bytearray(film.read_bytes())
    for place in range(5000, len(content) - 5000, 700):
        content[place : place + 60] = bytes(60)
    film.write_bytes(content)
    with pytest.raises(VideoReadError, match=r"damaged after \d+\.\d\d s: \d+ of \d+ packets"):
        read_clips(film)


def not_a_video(path: Path) -> None:
    path.write_text("not a video")


def empty(path: Path) -> None:
    path.touch()


def header_only(path: Path) -> None:
    cut(write_film(path, 50), 0.02)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def sound_with_cover_picture(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        sound, cover = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.rate = 8000
        for stream, frame in ((cover, picture), (cover, None), (sound, samples), (sound, None)):
            container.mux(stream.encode(frame))


def tiny(path: Path) -> None:
    write_film(path, 9, picture=lambda number: np.zeros((8, 40), np.uint8))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (not_a_video, "cannot open: not a video, or damaged"),
        (empty, "the file is empty"),
        (header_only, "cannot open|no decodable frame"),
        (sound_only, "no video stream"),
        (sound_with_cover_picture, "no video stream"),
        (tiny, "too small: 40 x 8 pixels"),
        (lambda path: path.mkdir(), "cannot open|not a video"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_cannot_be_read_has_one_clear_reason(tmp_path, make, reason):
    path = tmp_path / "film.mp4"
    make(path)
    with pytest.raises(VideoReadError, match=reason) as caught:
        read_clips(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["-dash.mp4", "a:b.mp4", "%03d.mp4", 'it\'s "quoted".mp4', "file:x.mp4", "späße 雪.mp4"]
)
def test_odd_names_are_no_trouble(tmp_path, name, monkeypatch):
    shutil.copy(write_film(tmp_path / "plain.mp4", 10), tmp_path / name)
    assert read_clips(tmp_path / name).num_frames == 10
    monkeypatch.chdir(tmp_path)
    assert read_clips(Path(name)).num_frames == 10


def test_a_name_that_is_not_utf8_is_no_trouble(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    try:
        shutil.copy(write_film(tmp_path / "plain.mp4", 10), path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert read_clips(path).num_frames == 10


def test_the_number_of_frames_is_right_for_all_real_films(shared_data):
    with (shared_data / "manifest.csv").open(newline="") as table:
        expected = {row["file"]: int(row["frames"] or 0) for row in csv.DictReader(table)}
    films = sorted((shared_data / "videos").iterdir())
    assert len(films) == 17
    for film in films:
        assert read_clips(film).num_frames == expected[f"videos/{film.name}"], film.name
