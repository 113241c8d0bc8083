"""Exact frames of a video: the frame list from its packets, and only the frames that are needed.

A scan of the packets gives the times of all frames without decoding. It is a promise and not yet a fact: some
packets give no frame. So every frame that is decoded is held against it, and where they differ the frame list is
made again by decoding the whole video.
"""

from __future__ import annotations

import errno
import re
import stat
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import av
import numpy as np
from numpy.typing import NDArray

from tvnet_cli.errors import FrameListError, VideoReadError
from tvnet_cli.options import MAX_FRAME_PIXELS, MIN_FRAME_SIDE, ExtractOptions
from tvnet_cli.video.clips import clip_frames
from tvnet_cli.video.images import IMAGE_SUFFIXES
from tvnet_cli.video.orientation import orientation
from tvnet_cli.video.remote import RemoteFilm

SEEK_GAP = 100  # frames; a shorter gap is decoded through, which also checks the frame list there
MAX_BAD_PACKETS = 0.05  # share of the packets; clips of a video with more are refused
MAX_MISSING = 0.05  # share of what the container promises; headers are often a little wrong, and no more than this

# How libswscale makes RGB, by its numbers, which older versions of PyAV have no names for. Without the last two its
# short cut rounds down: frames of more than 8 bits become 1.3 to 3 levels too dark where the width is even. Frames
# of 8 bits keep the short cut, so that they stay equal to what ffmpeg gives by default.
BILINEAR, FULL_CHROMA, ACCURATE_ROUNDING = 0x2, 0x2000, 0x40000

# Titles in another encoding are no reason to refuse a film. From PyAV 19 on they are none anyway.
_LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}

LARGEST_ALLOCATION = (1 << 31) - 1  # bytes that FFmpeg asks for; what would be larger is an error of memory, too
_DISK_ERRORS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EPERM}

# A film must not lead to addresses, and %03d.png is one picture and not a hundred.
# Demuxers that open further files, listen on the network or run scripts are refused: libav stops behind its probe.
LISTS = frozenset(
    "alsa avisynth concat dash dvdvideo fbdev hls image2 imf jack kmsgrab lavfi libgme libmodplug libopenmpt mlv oss "
    "pulse rtp rtsp sap sdp sndio v4l2 vapoursynth video4linux2 vobsub webm_dash_manifest x11grab xcbgrab".split()
)
_OTHERS = ",".join(sorted(name for name in av.formats_available if name not in LISTS))
_THIS_FILE_ALONE = {"protocol_whitelist": "file", "format_whitelist": _OTHERS}
_THESE_BYTES_ALONE = {"protocol_whitelist": "none", "format_whitelist": _OTHERS}
# By a name such as %03d.png libav would take an image for a sequence of them: what these begin with is said to it.
_PATTERN = re.compile(r"[%*?{\[]")
_IMAGES = {
    b"\x89PNG": "png_pipe",
    b"\xff\xd8\xff": "jpeg_pipe",
    b"BM": "bmp_pipe",
    b"II*\0": "tiff_pipe",
    b"MM\0*": "tiff_pipe",
    b"RIFF": "webp_pipe",
}
# How texts begin that only name other files, by what they are called.
_BEGINNINGS = {
    "ffconcat": r"ffconcat\s",
    "HLS playlist": r"#EXTM3U",
    "SDP session": r"v=0\s",
    "DASH, IMF or other XML list": r"<\?xml|<MPD|<CompositionPlaylist|<SmoothStreamingMedia|<smil|<asx",
    "playlist": r"\[playlist\]|\[Reference\]|\[InternetShortcut\]|RTSPtext|rtsptext",
}
_BEGINNING_BYTES = 1 << 12

# Never seek where a packet may hold two frames or none that is shown, or where times after a seek are guesses:
# then all frames up to the last one are decoded, and so checked.
_UNSURE = {"mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "vp8", "mpeg"}


class KeyFrame(NamedTuple):
    """A frame at which decoding can start: its number, and its times of showing and decoding in stream units."""

    number: int
    pts: int
    dts: int


@dataclass(frozen=True)
class Damage:
    """What of a video cannot be decoded.

    Attributes
    ----------
    reason : str
    seconds : float
        Time of the last frame before it; NaN where the container has no times.
    bad_packets, packets : int
        Packets that cannot be decoded, out of all that are there.
    """

    reason: str
    seconds: float
    bad_packets: int
    packets: int


@dataclass(frozen=True)
class VideoScan:
    """The frame list of a video.

    Attributes
    ----------
    path : Path or RemoteFilm
    pts_seconds : ndarray, (T,), float64, seconds
        Times of the frames in the order they are shown, from the container; NaN where it has none.
    pts : ndarray, (T,), int64, or None
        The same in units of the stream, as promised by the packets. None: the frames were counted by decoding.
    keys : tuple of KeyFrame
        Where decoding can start, in order; empty: only at the beginning.
    time_base : Fraction, seconds, or None
        Unit of the stream's times, which are whole multiples of it.
    notes : tuple of str
        What is not as it should be, for people.
    damage : Damage or None
        None: as far as the scan can tell, all of it can be decoded.
    """

    path: Path | RemoteFilm
    pts_seconds: NDArray[np.float64] = field(repr=False)
    pts: NDArray[np.int64] | None = field(default=None, repr=False)
    keys: tuple[KeyFrame, ...] = field(default=(), repr=False)
    time_base: Fraction | None = None
    notes: tuple[str, ...] = ()
    damage: Damage | None = None

    @property
    def num_frames(self) -> int:
        return len(self.pts_seconds)

    @property
    def checksum(self) -> int:
        """CRC-32 of the frame list, by which two scans of a file are compared."""
        return zlib.crc32((self.pts_seconds if self.pts is None else self.pts).tobytes())


@dataclass(frozen=True)
class VideoClips:
    """The frames of a video's clips.

    Attributes
    ----------
    frames : ndarray, (clips, frames, H, W, 3), uint8, RGB
    frame_index : ndarray, (clips, frames), int64
        Numbers of these frames among the decodable ones.
    pts_seconds : ndarray, (clips, frames), float64, seconds
    num_frames : int
        Decodable frames of the video.
    padded : bool
        True if the video is shorter than one clip, whose last frame then repeats.
    notes : tuple of str
    bad_packets : int
        Packets that cannot be decoded and were passed over, as far as the video was decoded.
    """

    frames: NDArray[np.uint8] = field(repr=False)
    frame_index: NDArray[np.int64] = field(repr=False)
    pts_seconds: NDArray[np.float64] = field(repr=False)
    num_frames: int
    padded: bool
    notes: tuple[str, ...] = ()
    bad_packets: int = 0


def read_clips(
    path: Path | RemoteFilm,
    num_clips: int = ExtractOptions.num_clips,
    clip_length: int = ExtractOptions.clip_length,
    short_side: int = ExtractOptions.short_side,
    crop_size: int = ExtractOptions.crop_size,
) -> VideoClips:
    """Read the clips of a video, each frame resized and cropped.

    Parameters
    ----------
    path : Path or RemoteFilm
    num_clips, clip_length : int
        See ``tvnet_cli.video.clips.clip_frames``.
    short_side : int, pixels
        The short side of a frame becomes this, the other keeps the ratio of the stored pixels.
    crop_size : int, pixels
        Side of the square cut from the middle.

    Returns
    -------
    VideoClips
        Upright: turned and mirrored as the display matrix asks.

    Raises
    ------
    VideoReadError
        Whose message is the reason.
    """
    before = _require_file(path)
    try:
        clips = _read_clips(scan(path), num_clips, clip_length, short_side, crop_size)
    except FrameListError:
        clips = _read_clips(scan_by_decoding(path), num_clips, clip_length, short_side, crop_size)
    finally:  # half a copy of a film looks damaged, or like a whole film that is shorter
        if _require_file(path) != before:
            raise VideoReadError("it changed while it was read: try again when it is whole", "changed")
    return clips


def _read_clips(video: VideoScan, num_clips: int, clip_length: int, short_side: int, crop_size: int) -> VideoClips:
    refuse_damaged(video)
    frame_index = clip_frames(video.num_frames, num_clips, clip_length)
    wanted, place = np.unique(frame_index, return_inverse=True)
    pictures = np.empty((len(wanted), crop_size, crop_size, 3), np.uint8)
    # One converter for the whole video: each frame's own would allocate a context of its own.
    converter, seen = av.video.reformatter.VideoReformatter(), FrameNotes()
    for number, frame in enumerate(read_frames(video, wanted.tolist(), seen)):
        pictures[number] = center_crop(upright_rgb(frame, converter, short_side), crop_size)
    return VideoClips(
        frames=pictures[place.reshape(frame_index.shape)],
        frame_index=frame_index,
        pts_seconds=video.pts_seconds[frame_index],
        num_frames=video.num_frames,
        padded=video.num_frames < clip_length,
        notes=(*video.notes, *seen.notes),
        bad_packets=video.damage.bad_packets if video.damage else 0,
    )


def refuse_damaged(video: VideoScan) -> None:
    """Refuse a video whose clips would be picked from what is left of it.

    Raises
    ------
    VideoReadError
        If more than 5 % of the packets cannot be decoded, as far as the scan can tell.
    """
    if video.damage and video.damage.bad_packets > MAX_BAD_PACKETS * video.damage.packets:
        at = f" after {video.damage.seconds:.2f} s" if np.isfinite(video.damage.seconds) else ""
        raise VideoReadError(f"damaged{at}: {video.damage.reason}", "damaged")


def scan(path: Path | RemoteFilm) -> VideoScan:
    """The frame list of a video from its packets, without decoding; by decoding where the packets do not tell.

    Raises
    ------
    VideoReadError
        Whose message is the reason.
    """
    pts: list[int] = []
    keys: list[tuple[int, int]] = []
    packets = 0
    with _opened(path) as (container, stream):
        promised, time_base = stream.frames, stream.time_base
        names = {stream.codec_context.name, container.format.name}
        try:
            for packet in _packets(container, stream):
                packets += bool(packet.size)
                if not packet.size or packet.is_discard:
                    continue
                if packet.pts is None or packet.is_corrupt:
                    return scan_by_decoding(path)
                pts.append(packet.pts)
                if packet.is_keyframe:
                    keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        except av.error.FFmpegError:
            return scan_by_decoding(path)
    times = np.unique(np.array(pts, np.int64))
    if not pts or len(times) != len(pts) or time_base is None:
        return scan_by_decoding(path)
    numbers = np.searchsorted(times, [key_pts for key_pts, _ in keys]).tolist()
    key_frames = sorted(KeyFrame(number, *key) for number, key in zip(numbers, keys, strict=True))
    seconds = times * time_base.numerator / time_base.denominator
    unsure = names & _UNSURE
    notes, damage = _missing_frames(path, promised, packets, seconds)
    return VideoScan(path, seconds, times, () if unsure else tuple(key_frames), time_base, notes, damage)


def scan_by_decoding(path: Path | RemoteFilm) -> VideoScan:
    """The frame list of a video, made by decoding all of it. Packets that cannot be decoded are passed over.

    Raises
    ------
    VideoReadError
        If nothing can be decoded.
    """
    times = []
    with _opened(path) as (container, stream):
        decoder = _TolerantDecoder(path, container, stream)
        for frame in decoder.frames():
            times.append(np.nan if frame.time is None else frame.time)
        promised, time_base = stream.frames, stream.time_base
    error = decoder.first_error or "the stream holds no pictures"
    if not times:
        raise VideoReadError(f"no decodable frame ({error})", "no_decodable_frame")
    seconds = np.array(times, np.float64)
    notes, damage = _missing_frames(path, promised, decoder.packets, seconds)
    if decoder.bad_packets:
        reason = f"{decoder.bad_packets} of {decoder.packets} packets cannot be decoded ({error})"
        notes += (reason,)
        # A film that was cut off ends in one bad packet, behind which the decoder still had frames to give.
        cut_off = damage is not None and decoder.bad_packets == 1
        broken = seconds[-1] if cut_off else decoder.seconds_before_error
        damage = Damage(reason, float(broken), decoder.bad_packets, decoder.packets)
    elif decoder.first_error:
        notes += (f"ends early ({error})",)
        damage = damage or Damage(notes[-1], decoder.seconds_before_error, 0, decoder.packets)
    return VideoScan(path, seconds, time_base=time_base, notes=notes, damage=damage)


class FrameNotes:
    """What of the frames is not as it should be, seen while they are decoded; each kind of thing is noted once."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None
        self._notes: dict[str, str] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """For people."""
        return tuple(self._notes.values())

    def look(self, frame: av.VideoFrame) -> None:
        """Take a decoded frame into account."""
        turned = orientation(frame)
        size = (frame.height, frame.width) if turned.transposed else (frame.width, frame.height)
        self._size = self._size or size
        if size != self._size:
            at = "" if frame.time is None else f" at {frame.time:.2f} s"
            before, after = (f"{width} x {height}" for width, height in (self._size, size))
            self._notes.setdefault("size", f"its frames change size: {before} pixels, and {after}{at}")
        if frame.interlaced_frame:
            self._notes.setdefault(
                "interlaced", "interlaced: the two fields of a frame are of different times and are taken as one"
            )
        if turned.note:
            self._notes.setdefault("matrix", turned.note)


def read_frames(video: VideoScan, wanted: Sequence[int], seen: FrameNotes | None = None) -> Iterator[av.VideoFrame]:
    """The frames with these numbers.

    Parameters
    ----------
    video : VideoScan
    wanted : sequence of int
        Frame numbers, each larger than the one before.
    seen : FrameNotes, optional
        Looks at all frames that are decoded, those between the wanted ones too.

    Yields
    ------
    av.VideoFrame
        As decoded; drop it before the next one to keep memory flat.

    Raises
    ------
    FrameListError
        If the decoder gives other frames than ``video`` promises. The end of the video is checked too.
    VideoReadError
        If the video cannot be opened.
    """
    seen = seen or FrameNotes()
    with _opened(video.path) as (container, stream):
        if video.pts is None:
            yield from _pick(_TolerantDecoder(video.path, container, stream).frames(), wanted, seen)
        else:
            yield from _seek_and_pick(container, stream, video, wanted, seen)


def upright_rgb(
    frame: av.VideoFrame,
    converter: av.video.reformatter.VideoReformatter,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return a decoded frame as an RGB picture, turned and mirrored as its display matrix asks.

    Parameters
    ----------
    frame : av.VideoFrame
        Of any pixel format.
    converter : VideoReformatter
    short_side : int, pixels, or None
        New length of the short side; the other keeps the ratio.
    size : (int, int), pixels, or None
        New height and width of the upright picture. With neither the size stays.

    Returns
    -------
    ndarray, (H, W, 3), uint8

    Raises
    ------
    VideoReadError
        If a side is below 16 pixels.
    """
    height, width = frame.height, frame.width
    if min(height, width) < MIN_FRAME_SIDE:
        raise VideoReadError(
            f"too small: {width} x {height} pixels, at least {MIN_FRAME_SIDE} x {MIN_FRAME_SIDE} are needed",
            "too_small",
        )
    if short_side is not None:
        ratio = Fraction(short_side, min(height, width))
        height, width = int(height * ratio + Fraction(1, 2)), int(width * ratio + Fraction(1, 2))
    upright = orientation(frame)
    if size is not None:
        height, width = size[::-1] if upright.transposed else size
    _refuse_large(width, height)  # of a thin strip, say
    deep = any(component.bits > 8 for component in frame.format.components)
    flags = BILINEAR | FULL_CHROMA | ACCURATE_ROUNDING if deep else BILINEAR
    picture = converter.reformat(frame, width=width, height=height, format="rgb24", interpolation=flags)
    return upright.apply(picture.to_ndarray())


def center_crop(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The square of ``size`` pixels in the middle of a picture (H, W, 3)."""
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[top : top + size, left : left + size]


@contextmanager
def _opened(path: Path | RemoteFilm) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first true video stream; cover pictures of sound files do not count."""
    _require_file(path)
    try:
        container = _container(path)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        _require_file(path)  # it may have gone meanwhile
        _require_no_other_cause(path, error)
        _refuse_by_beginning(path)
        raise VideoReadError(f"cannot open: not a video, or damaged ({_reason(error)})", "cannot_open") from error
    with container:
        if not LISTS.isdisjoint(container.format.name.split(",")):  # of a remote video
            raise _a_list(container.format.name)
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise VideoReadError("no video stream", "no_video_stream")
        stream = streams[0]
        if "enc_key_id" in stream.metadata:  # of Matroska
            raise VideoReadError("encrypted", "encrypted")
        if stream.codec_context is None:
            raise VideoReadError("no decoder for its video stream", "no_decoder")
        _refuse_large(stream.codec_context.width, stream.codec_context.height)
        # One thread a video; several videos are read at once. Threads inside a decoder would cost 10 to 30 %
        # more and start anew after each seek.
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


def _refuse_by_beginning(path: Path | RemoteFilm) -> None:
    """Say what a file is that libav does not open.

    Raises
    ------
    VideoReadError
        If it is a list of other files, or y4m with frames that are too large.
    """
    with suppress(OSError):
        if isinstance(path, Path):
            with path.open("rb") as file:
                beginning = file.read(_BEGINNING_BYTES)
        else:
            path.seek(0)
            beginning = path.read(_BEGINNING_BYTES)
        text = beginning.decode("latin-1").removeprefix("\xef\xbb\xbf").lstrip()
        for name, pattern in _BEGINNINGS.items():
            if re.match(pattern, text, re.IGNORECASE):
                raise _a_list(name)
        if sides := re.match(r"YUV4MPEG2 .*?W(\d{1,9}) .*?H(\d{1,9})\s", text):
            _refuse_large(int(sides[1]), int(sides[2]))


def _a_list(kind: str) -> VideoReadError:
    return VideoReadError(f"cannot open: a list of other files ({kind}), not a video: name the videos", "cannot_open")


def _container(path: Path | RemoteFilm) -> av.container.InputContainer:
    container: av.container.InputContainer
    if isinstance(path, RemoteFilm):
        path.seek(0)
        # The callback does not cover sockets that libav opens itself, as a text that describes a stream asks for.
        container = av.open(path, io_open=_refuse_to_open, options=_THESE_BYTES_ALONE, **_LENIENT)
    else:
        # The scheme keeps names such as "a:b.mp4" from being taken for an address.
        container = av.open(f"file:{path}", format=_pinned(path), options=_THIS_FILE_ALONE, **_LENIENT)
    return container


def _pinned(path: Path) -> str | None:
    """Return the format of an image whose name libav would take for a pattern; None: libav finds the format."""
    if path.suffix.lower() not in IMAGE_SUFFIXES or not _PATTERN.search(path.name):
        return None
    with path.open("rb") as file:
        beginning = file.read(4)
    return next((name for signature, name in _IMAGES.items() if beginning.startswith(signature)), None)


def _refuse_to_open(*_: object) -> NoReturn:
    """What comes from elsewhere leads nowhere either, neither there nor here."""
    raise PermissionError(errno.EPERM, "a film is one file")


def _require_file(path: Path | RemoteFilm) -> tuple[int, int]:
    """Size and time of a file with something in it; pipes and devices, which may never answer, are not opened."""
    if isinstance(path, RemoteFilm):
        if not path.size:
            raise VideoReadError("the file is empty", "empty")
        return path.size, 0
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            next(path.iterdir(), None)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last one: no name of a file
        raise VideoReadError("no such file", "no_such_file") from None
    except OSError as error:
        raise VideoReadError(f"cannot read: {error.strerror}", "unreadable") from error
    if not stat.S_ISREG(found.st_mode):
        what = "folder" if stat.S_ISDIR(found.st_mode) else "pipe, device or socket"
        raise VideoReadError(f"cannot open: a {what} is no file", "not_a_file")
    if not found.st_size:
        raise VideoReadError("the file is empty", "empty")
    return found.st_size, found.st_mtime_ns


def _require_no_other_cause(path: Path | RemoteFilm, error: Exception) -> None:
    """Errors of the disk and of the memory are no damage to the film, but damage gives such errors too: so try both.

    Raises
    ------
    VideoReadError
        If the file cannot be read.
    MemoryError
        If memory is short: what is decoded must not depend on how much of it there is.
    """
    if isinstance(error, MemoryError):
        np.empty(LARGEST_ALLOCATION, np.uint8)  # which takes none, as it is not written to
    if isinstance(path, RemoteFilm):
        return  # which knows itself what became of it
    if getattr(error, "errno", None) in _DISK_ERRORS:
        try:
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        except OSError as of_disk:
            raise VideoReadError(f"cannot read: {of_disk.strerror}", "unreadable") from of_disk


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise VideoReadError(
            f"too large: {width} x {height} pixels, at most {MAX_FRAME_PIXELS:,} are taken", "too_large"
        )


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet[av.VideoStream]]:
    """The packets of a stream, as long as they are not encrypted, from where on what is decoded is noise."""
    for packet in container.demux(stream):
        if packet.has_sidedata("encryption_info"):
            raise VideoReadError("encrypted", "encrypted")
        yield packet


class _TolerantDecoder:
    """Decodes from the beginning, counting and passing over packets that cannot be decoded."""

    def __init__(self, path: Path | RemoteFilm, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.path, self.container, self.stream = path, container, stream
        self.packets = self.bad_packets = 0
        self.first_error = ""
        self.seconds_before_error = self._seconds = np.nan

    def frames(self) -> Iterator[av.VideoFrame]:
        packets = _packets(self.container, self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:  # the file breaks off here
                self._remember(error)
                packet = None
            self.packets += bool(packet is not None and packet.size)
            try:
                for frame in self.stream.decode(packet):
                    _refuse_large(frame.width, frame.height)
                    self._seconds = np.nan if frame.time is None else frame.time
                    yield frame
            except av.error.EOFError:
                pass
            except av.error.FFmpegError as error:
                self._remember(error)
                self.bad_packets += bool(packet is not None and packet.size)
            if packet is None:
                return

    def _remember(self, error: Exception) -> None:
        _require_no_other_cause(self.path, error)
        if not self.first_error:
            self.first_error, self.seconds_before_error = _reason(error), self._seconds


def _pick(frames: Iterator[av.VideoFrame], wanted: Sequence[int], seen: FrameNotes) -> Iterator[av.VideoFrame]:
    remaining = set(wanted)
    for number, frame in enumerate(frames):
        seen.look(frame)
        if number in remaining:
            yield frame
            remaining.discard(number)
            if not remaining:
                return
    raise VideoReadError("decoding gave fewer frames the second time")


def _seek_and_pick(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    video: VideoScan,
    wanted: Sequence[int],
    seen: FrameNotes,
) -> Iterator[av.VideoFrame]:
    """The frames wanted, by seeking over long gaps, each decoded frame held against the scan."""
    assert video.pts is not None
    try:
        frames, position = _decode(container.demux(stream)), 0
        # One past the last frame is wanted too, to see that the last is there and that none follows.
        for number in [*wanted, video.num_frames]:
            key = _last_key(video, min(number, video.num_frames - 1))
            if key is not None and key.number - position > SEEK_GAP:
                frames, position = _seek(container, stream, video, key, position)
            for frame in frames:
                if position == video.num_frames or frame.pts != video.pts[position]:
                    raise FrameListError(f"frame {position} is not the one that the packets promise")
                seen.look(frame)
                position += 1
                if position > number:
                    yield frame
                    break
            else:
                if position != video.num_frames:
                    raise FrameListError(f"{position} frames, where the packets promise {video.num_frames}")
    except av.error.FFmpegError as error:
        raise FrameListError(_reason(error)) from error


def _seek(
    container: av.container.InputContainer, stream: av.VideoStream, video: VideoScan, key: KeyFrame | None, after: int
) -> tuple[Iterator[av.VideoFrame], int]:
    """Decode from the frame ``key``, or from an earlier one behind ``after`` if the container leads there."""
    assert video.pts is not None
    while key is not None and key.number > after:
        # Some containers look up the time of showing, others that of decoding.
        for time in (key.pts, key.dts):
            container.seek(time, stream=stream, backward=True)
            packets = container.demux(stream)
            packet = next((packet for packet in packets if packet.is_keyframe), None)
            if packet is None or packet.pts is None:
                continue
            landed = int(np.searchsorted(video.pts, packet.pts))
            if after < landed <= key.number and video.pts[landed] == packet.pts:
                return _decode(chain([packet], packets)), landed
        key = _last_key(video, key.number - 1)
    raise FrameListError("no way to the frame by seeking")


def _decode(packets: Iterable[av.Packet[av.VideoStream]]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        for frame in packet.decode():
            _refuse_large(frame.width, frame.height)
            yield frame


def _last_key(video: VideoScan, number: int) -> KeyFrame | None:
    """The last key frame at or before frame ``number``."""
    at = bisect_right(video.keys, number, key=lambda key: key.number)
    return video.keys[at - 1] if at else None


def _missing_frames(
    path: Path | RemoteFilm, promised: int, packets: int, seconds: NDArray[np.float64]
) -> tuple[tuple[str, ...], Damage | None]:
    """A note if the container promises more than there is, and damage if it promises much more."""
    if promised > packets:
        note = f"the container promises {promised} frames, {len(seconds)} are there"
        missing = (promised - packets) / promised
    else:
        stated, found = (0.0, 0.0) if promised else _seconds_stated_and_found(path, seconds)
        note = f"the container promises {stated:.1f} s, {found:.1f} s are there"
        missing = (stated - found) / stated if stated - found > 1 else 0.0
    if missing > MAX_MISSING:
        return (note,), Damage(note, float(seconds[-1]), 0, packets)
    return (note,) if promised > packets else (), None


def _seconds_stated_and_found(path: Path | RemoteFilm, seconds: NDArray[np.float64]) -> tuple[float, float]:
    """How long a container says that it is, and is: a film cut off looks whole where no frames are counted."""
    with _opened(path) as (container, _):
        stated = (container.duration or 0) / av.time_base
        if not stated - (seconds[-1] - seconds[0]) > MAX_MISSING * stated:
            return stated, stated
        # The pictures may end before the sound does.
        ends = []
        with suppress(av.error.FFmpegError):
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    ends.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        start = (container.start_time or 0) / av.time_base
        return stated, max(ends, default=start) - start


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
