from __future__ import annotations

import csv
import errno
import itertools
import os
import shutil
import socket
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from films import numbered_picture, read_number, without_privileges, write_film
from PIL import Image

from tvnet_cli.errors import REASONS, VideoReadError
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


def test_interlaced_video_gives_a_note(tmp_path):
    film = write_film(
        tmp_path / "film.mpg", 20, codec="mpeg2video", options={"flags": "+ilme+ildct", "alternate_scan": "1"}
    )
    assert read_clips(film).notes == (
        "interlaced: the two fields of a frame are of different times and are taken as one",
    )


@pytest.mark.parametrize("suffix", [".ts", ".h264"])
def test_a_change_of_size_gives_a_note(tmp_path, suffix):
    film = write_film(tmp_path / f"film{suffix}", 60, options=B_FRAMES)
    wide = tmp_path / f"wide{suffix}"
    write_film(wide, 30, pts=lambda i: i + 60, options=B_FRAMES, picture=lambda i: numbered_picture(60 + i, 128, 192))
    film.write_bytes(film.read_bytes() + wide.read_bytes())
    (note,) = read_clips(film).notes
    assert note.startswith("its frames change size: 128 x 128 pixels, and 192 x 128")


def test_a_change_of_size_between_two_clips_is_noted_too(tmp_path):
    film, small = tmp_path / "film.ts", tmp_path / "small.ts"
    write_film(film, 20, options=B_FRAMES, picture=lambda i: numbered_picture(i, 64, 64))
    write_film(small, 3000, pts=lambda i: i + 20, options=B_FRAMES)
    film.write_bytes(film.read_bytes() + small.read_bytes())
    clips = read_clips(film)
    assert clips.frame_index.min() >= 20
    assert any("its frames change size: 64 x 64 pixels, and 128 x 128" in note for note in clips.notes)


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


def test_a_few_bad_packets_are_passed_over_and_counted(tmp_path):
    film = write_film(tmp_path / "film.mp4", 200, options={"g": "1", "preset": "ultrafast"})
    with av.open(str(film)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(film.read_bytes())
    for number in (20, 90, 150):
        place, size = places[number]
        content[place : place + size] = b"\xff" * size
    film.write_bytes(content)
    clips = read_clips(film)
    assert (clips.num_frames, clips.bad_packets) == (197, 3)
    shown = [number for number in range(200) if number not in (20, 90, 150)]
    assert numbers_shown(clips) == np.array(shown)[clips.frame_index].tolist()
    assert clips.notes == ("3 of 200 packets cannot be decoded (Invalid data found when processing input)",)


def test_a_film_that_is_still_being_written_is_refused(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.ts", 100)
    whole = decode.scan

    def written_to(path: Path):
        found = whole(path)
        with path.open("ab") as file:
            file.write(bytes(188))
        return found

    monkeypatch.setattr(decode, "scan", written_to)
    with pytest.raises(VideoReadError, match="it changed while it was read") as caught:
        read_clips(film)
    assert caught.value.code == "changed"


def test_a_disk_that_fails_in_the_middle_is_no_damage_to_the_film(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", 100)
    packets = decode._packets

    def broken_off(*arguments):
        yield from itertools.islice(packets(*arguments), 50)
        raise av.error.FFmpegError(errno.EIO, "Input/output error")

    monkeypatch.setattr(decode, "_packets", broken_off)
    assert read_clips(film).num_frames == 50  # demuxers say so of films that are cut off, too

    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(VideoReadError, match="cannot read: Input/output error") as caught:
        read_clips(film)
    assert caught.value.code == "unreadable"


def not_a_video(path: Path) -> None:
    path.write_text("not a video")


def empty(path: Path) -> None:
    path.touch()


def half_a_header(path: Path) -> None:
    cut(write_film(path, 50), 0.02)


def header_only(path: Path) -> None:
    content = write_film(path, 50, container_options={"movflags": "faststart"}).read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])


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


def huge_by_its_header(path: Path) -> None:
    path.write_bytes(b"YUV4MPEG2 W9000 H9000 F25:1 C420\nFRAME\n" + bytes(1000))


def huge_from_its_fourth_frame_on(path: Path) -> None:
    parts = []
    for number, side in enumerate((64, 8200)):
        part = path.with_name(f"{number}.mjpeg")
        black = np.zeros((side, side), np.uint8)
        write_film(part, 3, codec="mjpeg", pixel_format="yuvj420p", picture=lambda number, black=black: black)
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))


def huge_when_resized(path: Path) -> None:
    size = (65_000).to_bytes(2, "little") + (16).to_bytes(2, "little")
    header = b"GIF89a" + size + bytes.fromhex("f00000 000000 ffffff")
    path.write_bytes(header + bytes.fromhex("2c 00000000") + size + bytes.fromhex("00 02 02 4401 00 3b"))


def encrypted(path: Path) -> None:
    key = {"encryption_key": "76a6c65c5ea762046bd749a2e632ccbb", "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}
    write_film(path, 9, container_options={"encryption_scheme": "cenc-aes-ctr", **key})


def encrypted_matroska(path: Path) -> None:
    """A track with one element more, which says how it is encrypted; the padding before the tracks makes room."""
    content = bytearray(write_film(path.with_suffix(".mkv"), 9).read_bytes())
    encodings = bytes.fromhex("6d8094 624091 50338101 50358a 47e18105 47e2836b6579")  # ContentEncodings ... KeyID "key"
    padding = content.index(bytes.fromhex("ec01000000"))
    tracks = content.index(bytes.fromhex("1654ae6b40"), padding)
    track = content.index(bytes.fromhex("ae01000000"), tracks)
    content[track + 9 : track + 9] = encodings
    for size, change in ((track + 8, len(encodings)), (tracks + 5, len(encodings)), (padding + 8, -len(encodings))):
        content[size] += change
    del content[padding + 9 : padding + 9 + len(encodings)]
    path.write_bytes(content)


def unknown_codec(path: Path) -> None:
    write_film(path, 9)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))


def list_of_files(path: Path) -> None:
    write_film(path.with_name("other.mp4"), 9)
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def address(path: Path) -> None:
    path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n")


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize(
    ("make", "code", "reason"),
    [
        (not_a_video, "cannot_open", "cannot open: not a video, or damaged"),
        (empty, "empty", "the file is empty"),
        (half_a_header, "cannot_open", "cannot open: not a video, or damaged"),
        (header_only, "no_decodable_frame", "no decodable frame"),
        (sound_only, "no_video_stream", "no video stream"),
        (sound_with_cover_picture, "no_video_stream", "no video stream"),
        (tiny, "too_small", "too small: 40 x 8 pixels"),
        (huge_by_its_header, "too_large", "too large: 9000 x 9000 pixels, at most 67,108,864 are taken"),
        (huge_from_its_fourth_frame_on, "too_large", "too large: 8200 x 8200 pixels"),
        (huge_when_resized, "too_large", "too large: 1040000 x 256 pixels"),
        (encrypted, "encrypted", "encrypted"),
        (encrypted_matroska, "encrypted", "encrypted"),
        (unknown_codec, "no_decoder", "no decoder for its video stream"),
        (list_of_files, "cannot_open", "cannot open: a list of other files"),
        (address, "cannot_open", "cannot open: a list of other files"),
        (lambda path: path.mkdir(), "not_a_file", "cannot open: a folder is no file"),
        (os.mkfifo, "not_a_file", "cannot open: a pipe, device or socket is no file"),
        (socket_file, "not_a_file", "cannot open: a pipe, device or socket is no file"),
        (lambda path: path.symlink_to("/dev/zero"), "not_a_file", "cannot open: a pipe, device or socket is no file"),
        (lambda path: path.symlink_to(path), "unreadable", "cannot read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("gone.mp4"), "no_such_file", "no such file"),
        (lambda path: None, "no_such_file", "no such file"),
    ],
)
def test_what_cannot_be_read_has_one_clear_reason(tmp_path, monkeypatch, make, code, reason):
    monkeypatch.chdir(tmp_path)  # a path of a socket must be short
    path = Path("film.mp4")
    make(path)
    with pytest.raises(VideoReadError, match=reason) as caught:
        read_clips(path)
    assert caught.value.code == code
    assert code in REASONS
    assert "\n" not in str(caught.value)


def test_a_name_that_no_file_can_have_is_no_such_file(tmp_path):
    for name in ("a\0b.mp4", "film.mp4/inside.mp4"):
        (tmp_path / "film.mp4").touch()
        with pytest.raises(VideoReadError, match="no such file"):
            read_clips(tmp_path / name)
    with pytest.raises(VideoReadError, match="cannot read: File name too long"):
        read_clips(tmp_path / f"{'x' * 300}.mp4")


def test_errors_of_memory_are_damage_only_if_there_is_memory(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", 100)
    packets = decode._packets

    def broken_off(*arguments):
        yield from itertools.islice(packets(*arguments), 50)
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(decode, "_packets", broken_off)
    assert read_clips(film).num_frames == 50  # a size that damage makes up
    monkeypatch.setattr(decode, "LARGEST_ALLOCATION", 1 << 60)
    with pytest.raises(MemoryError):
        read_clips(film)


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", 9)
    (tmp_path / "folder").mkdir()
    for path in (film, tmp_path / "folder"):
        path.chmod(0)
    with without_privileges(tmp_path, monkeypatch):
        for path in ("film.mp4", "folder", "folder/film.mp4"):
            with pytest.raises(VideoReadError, match="cannot read: Permission denied") as caught:
                read_clips(Path(path))
            assert caught.value.code == "unreadable"


def test_a_name_with_a_pattern_is_one_picture(tmp_path):
    for number, name in enumerate(("000.png", "001.png", "%03d.png")):
        Image.fromarray(numbered_picture(number)).save(tmp_path / name)
    clips = read_clips(tmp_path / "%03d.png")
    assert clips.num_frames == 1
    assert numbers_shown(clips)[0][0] == 2


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
