"""Files that lead to others, listen, or never end: refused before anything behind them is opened."""

from __future__ import annotations

import io
import os
import shutil
import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from films import write_film
from PIL import Image

from tvnet_cli.cli import main
from tvnet_cli.errors import FlowFileError, VideoReadError
from tvnet_cli.flow.files import read_flow
from tvnet_cli.options import DecodeLimits, FrameOptions
from tvnet_cli.video import decode, images, reader
from tvnet_cli.video.decode import scan
from tvnet_cli.video.images import read_image
from tvnet_cli.video.reader import Decoders, decoders
from tvnet_cli.video.remote import RemoteFilm
from tvnet_cli.video.sequence import open_sequence
from tvnet_cli.video.thumbnails import thumbnail

LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile pipe\n",
    "HLS playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\npipe\n#EXT-X-ENDLIST\n",
    "SDP session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 18778 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "DASH, IMF or other XML list": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n',
}


@pytest.fixture(params=LISTS, ids=[name.split()[0] for name in LISTS])
def listed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "evil.mp4").write_text(LISTS[request.param])
    return tmp_path / "evil.mp4"


def test_a_list_is_refused_by_every_way_of_reading(listed: Path):
    for read in (scan, thumbnail, decoders().scan, lambda path: open_sequence([path], FrameOptions())):
        with pytest.raises(VideoReadError, match=r"cannot open: a list of other files \(.*\), not a video"):
            read(listed)


def test_a_list_ends_tvnet_flow_in_one_line(listed: Path):
    result = CliRunner().invoke(main, ["flow", str(listed), "-o", str(listed.with_name("e.h5"))])
    assert result.exit_code == 1
    assert "a list of other files" in result.stderr


def test_a_remote_text_that_describes_a_stream_opens_no_port():
    film = RemoteFilm(io.BytesIO(LISTS["SDP session"].encode()), "a.mp4")
    with pytest.raises(av.error.FFmpegError):  # before its demuxer could listen
        decode._container(film)
    with pytest.raises(VideoReadError, match="SDP session"):
        scan(film)


def test_planes_in_files_of_their_own_are_not_opened(tmp_path: Path):
    (tmp_path / "v%d.y").write_bytes(bytes(352 * 288))
    os.mkfifo(tmp_path / "v%d.u")
    with Decoders(DecodeLimits(timeout=5)) as held, pytest.raises(VideoReadError, match="cannot open: not a video"):
        held.scan(tmp_path / "v%d.y")


@pytest.mark.parametrize("command", ["train actions", "train flow", "visualize figure", "visualize scales"])
def test_every_command_refuses_a_list_in_one_line(listed: Path, command: str):
    folders = [listed.parent / "data" / name for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(listed, folder / "1.mp4")
        shutil.copy(listed, folder / "2.mp4")
    place = folders[0].parent if command.startswith("train") else listed
    output = listed.with_name("out.png" if command.startswith("visualize") else "out")
    result = CliRunner().invoke(main, [*command.split(), str(place), "-o", str(output)])
    assert result.exit_code == 1
    assert "a list of other files" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "command",
    ["flow", "features", "train actions", "train flow", "visualize features", "visualize figure", "visualize scales"],
)
def test_every_command_that_decodes_has_the_same_limits(tmp_path: Path, command: str):
    film = write_film(tmp_path / "a.mp4", 9)
    result = CliRunner().invoke(main, [*command.split(), str(film), "--decoder-memory", "1"])
    assert result.exit_code == 2
    assert "at least 256 MiB" in result.stderr


def test_y4m_of_giant_frames_is_too_large_before_memory_is_taken(tmp_path: Path):
    path = tmp_path / "a.y4m"
    path.write_bytes(b"YUV4MPEG2 W100000 H100000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000))
    with pytest.raises(VideoReadError, match="100000 x 100000") as error:
        scan(path)
    assert error.value.code == "too_large"


def test_a_text_that_describes_a_stream_is_no_image(tmp_path: Path):
    path = tmp_path / "sdp.png"
    path.write_text(LISTS["SDP session"])
    with pytest.raises(FlowFileError, match="not a PNG image"):
        read_flow(path)
    with pytest.raises(VideoReadError, match="not an image"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".flo"])
def test_pipes_are_no_images_and_no_flow(tmp_path: Path, suffix: str):
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    with pytest.raises(FlowFileError, match="a pipe or a device"):
        read_flow(path)
    with pytest.raises(VideoReadError, match="pipe, device or socket"):
        decoders().image(path)


def test_images_are_opened_as_images_of_known_formats_alone(tmp_path: Path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.tga")
    shutil.move(tmp_path / "a.tga", tmp_path / "a.png")
    with pytest.raises(VideoReadError, match="not an image"):
        read_image(tmp_path / "a.png")


def test_frames_of_another_process_are_those_of_this_one(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", 12)
    sequence = open_sequence([path], FrameOptions(every=2))
    there = list(sequence.read())
    assert len(there) == 6
    again = list(sequence.read([1, 3], convert_from=3))
    assert again[0] is None
    np.testing.assert_array_equal(again[1], there[3])


def test_a_video_that_changes_under_a_sequence_is_counted_anew(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", 12)
    sequence = open_sequence([path], FrameOptions())
    assert len(list(sequence.read())) == 12
    write_film(path, 9)
    decoders().scan(path)
    assert len(list(sequence.read())) == 9


@pytest.mark.parametrize("what", ["frames", "image"])
def test_decoding_that_hangs_ends_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str):
    hang = "import time; from tvnet_cli.video import decode, images\n"
    hang += "decode.read_frames = images.read_image = lambda *rest: time.sleep(1000)\n"
    start = reader.START.replace("from tvnet_cli", f"exec({hang!r}); from tvnet_cli")
    monkeypatch.setattr(reader, "START", start)
    path = write_film(tmp_path / "a.mp4", 3)
    with Decoders(DecodeLimits(timeout=3.0)) as held, pytest.raises(VideoReadError, match="took longer") as error:
        list(held.frames(held.scan(path), [0])) if what == "frames" else held.image(path)
    assert error.value.code == "timeout"


def test_a_reader_that_is_left_half_way_reads_on(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", 12)
    with Decoders(DecodeLimits()) as held:
        frames = held.frames(held.scan(path), list(range(12)))
        next(frames)
        frames.close()  # type: ignore[attr-defined]
        assert len(list(held.frames(held.scan(path), [0, 5]))) == 2


def test_threads_read_at_once(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", 12)
    found: list[int] = []

    def read() -> None:
        found.append(len(list(open_sequence([path], FrameOptions()).read())))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [12, 12, 12]


def test_ctrl_c_does_not_wait_for_a_frame_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hang = "import time; from tvnet_cli.video import decode; decode.read_frames = lambda *rest: time.sleep(1000)"
    start = reader.START.replace("from tvnet_cli", f"exec({hang!r}); from tvnet_cli")
    monkeypatch.setattr(reader, "START", start)
    monkeypatch.setattr(reader, "TICK", 0.05)
    path = write_film(tmp_path / "a.mp4", 3)
    with Decoders(DecodeLimits()) as held:
        video = held.scan(path)
        held.stop = threading.Event()
        held.stop.set()
        with pytest.raises(KeyboardInterrupt):
            list(held.frames(video, [0]))


def test_a_closed_reader_starts_no_process(tmp_path: Path):
    with Decoders(DecodeLimits()) as held:
        pass
    with pytest.raises(RuntimeError, match="was closed"):
        held.scan(tmp_path / "a.mp4")
    assert not any(worker.runs() for worker in held._workers)


def test_true_flow_of_kitti_is_decoded_in_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((20, 30, 3), 40000, np.uint16))
    monkeypatch.setattr(images, "read_levels", None)  # of this process
    assert read_flow(path).shape == (2, 20, 30)


def test_an_image_whose_header_says_that_it_is_giant_is_too_large(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(VideoReadError, match="too large: 9000 x 9000 pixels") as error:
        decoders().image(path)
    assert error.value.code == "too_large"
