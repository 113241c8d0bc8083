"""The errors a user can meet, all one line long: what, which file, what to do.

TVNetError
    VideoReadError       a video that cannot be read
        FrameListError   decoded frames that differ from the packet scan; met and answered inside ``video``
    WeightsError         weights or their card, missing or wrong
    FeatureFileError     a feature file that is not ours, or was made in another way
        DamagedError     a feature file that cannot be read, or whose rows are not what was written
    FileAccessError      a file that cannot be looked at now: a lock, permissions, a failing disk, too little memory
    RefusedFileError     a file that leads to other files, or declares more than it holds
    DiskFullError        no room for what is to be written
    InputChangedError    frames that changed while their flow was computed
    FlowFileError        a file of flow that cannot be read, or was made in another way
    FlowValueError       flow that the solver cannot compute with these numbers
    OutputError          outputs that cannot be told apart, or that would be written over something
    TrainingError        a training that cannot begin or go on
    DatasetError         a set of inputs that cannot be worked on
    UnitError            a layer or a unit that a network does not have, or that cannot be drawn
    DeviceError          a device that was asked for and is not there
    ClusterError         a Ray cluster that cannot be joined or cannot work
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

Reason = Literal[
    "no_such_file",
    "not_a_file",
    "unreadable",
    "empty",
    "changed",
    "source_changed",
    "cannot_open",
    "no_video_stream",
    "no_decoder",
    "encrypted",
    "too_small",
    "too_large",
    "no_decodable_frame",
    "damaged",
    "timeout",
    "out_of_memory",
    "decoder_crashed",
    "network",
    "worker_lost",
    "unexpected",
]

# All that can keep a video from being read, for programs; the message of the error says more.
REASONS: dict[Reason, str] = {
    "no_such_file": "it is not there, or not there any more",
    "not_a_file": "a pipe, a device, a socket or a folder, which is never opened",
    "unreadable": "the system does not let it be read: permissions, a loop of links, a failing disk, a folder",
    "empty": "0 bytes",
    "changed": "it changed while it was read: it is still being written",
    "source_changed": "it is not the file any more that its row was made of, which is kept: see --recompute-changed",
    "cannot_open": "not a video, or damaged where it begins",
    "no_video_stream": "sound alone, or sound with a cover picture",
    "no_decoder": "a codec that FFmpeg does not know",
    "encrypted": "its pictures are encrypted",
    "too_small": "frames below 16 x 16 pixels",
    "too_large": "frames of more than 2^26 pixels (8192 x 8192)",
    "no_decodable_frame": "nothing of it can be decoded",
    "damaged": "more than 5 % of its packets cannot be decoded",
    "timeout": "decoding took longer than --timeout",
    "out_of_memory": "decoding needs more than --decoder-memory",
    "network": "the server of its address cannot be reached, or breaks off",
    "worker_lost": "several workers of the Ray cluster were lost while they had it",
    "decoder_crashed": "the process that decoded it broke down",
    "unexpected": "an error that nobody thought of: please report it",
}


# Control characters, marks of direction, line and paragraph separators, marks without width, tags, and halves of
# surrogate pairs. Joiners (U+200C, U+200D) stay between letters of other scripts and between emoji, which need them.
_BESIDE_JOINERS = "[\u0300-\u1fff\u2070-\ud7ff\ue000-\U000dffff]"
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
    f"|(?<!{_BESIDE_JOINERS})[\u200c\u200d]|[\u200c\u200d](?!{_BESIDE_JOINERS})"
)


def printable(text: str) -> str:
    """Text as it is shown on one line: characters that steer a terminal or hide, as escapes; all others as they are."""
    return _STEERING.sub(lambda found: _escaped(found[0]), text)


def printable_lines(text: str) -> str:
    """The same for text of several lines, which may have tabs."""
    return _STEERING.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found[0]), text)


def _escaped(char: str) -> str:
    # json.dumps leaves this one as it is, and JSON knows no \x7f.
    return "\\u007f" if char == "\x7f" else ascii(char)[1:-1]


# What libraries say for want of memory or address space, beside MemoryError.
_NO_MEMORY = re.compile(
    "allocate memory|out of memory|not enough memory|bad_alloc|failed to map segment|unable to allocate|"
    "start new thread",
    re.IGNORECASE,
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, of whatever library, or one that it comes from, is for want of memory."""
    if error is None:
        return False
    libraries = isinstance(error, (OSError, RuntimeError, ImportError)) and bool(_NO_MEMORY.search(str(error)))
    return isinstance(error, MemoryError) or libraries or lacks_memory(error.__cause__ or error.__context__)


class TVNetError(Exception):
    """Base of all errors that are the input's fault and not the program's."""


class VideoReadError(TVNetError):
    """A video that cannot be read; the message is the reason, without the file's name.

    Attributes
    ----------
    code : str
        The kind of reason, one of ``REASONS``.
    """

    def __init__(self, message: str, code: Reason = "damaged") -> None:
        super().__init__(message)
        self.code: Reason = code


class FrameListError(VideoReadError):
    """The decoder gave other frames than the packet scan promised."""


class WeightsError(TVNetError):
    """Weights or their card are missing, damaged or of another kind."""


class FeatureFileError(TVNetError):
    """A feature file that is not ours, or that another recipe made."""


class DamagedError(FeatureFileError):
    """A feature file that cannot be read, or rows that are not what was written.

    Attributes
    ----------
    path : Path
    reason : str
    video_ids : tuple of str
        Whose rows are damaged; empty: nothing of the file is of use.
    """

    def __init__(self, path: Path, reason: str, video_ids: tuple[str, ...] = ()) -> None:
        super().__init__(
            f"{path} is damaged ({reason}): tvnet verify --repair {path} keeps its good rows; the run that made it, "
            "given again, does the others"
        )
        self.path, self.reason, self.video_ids = path, reason, video_ids


class FileAccessError(TVNetError):
    """A file that could not be opened or read for a reason that says nothing about its content."""


class RefusedFileError(TVNetError):
    """A file that is not read: it leads to other files, or declares more than it holds."""


class DiskFullError(TVNetError):
    """No room for what is to be written."""


class InputChangedError(TVNetError):
    """Frames that changed while their flow was computed: nothing of it is kept."""


class FlowFileError(TVNetError):
    """A file or folder of flow that cannot be read, or that another recipe made."""


class FlowValueError(TVNetError):
    """Flow that overflows: the solver does not stand its weights or options."""


class OutputError(TVNetError):
    """Outputs that were asked for in a way that does not work: wrong usage, exit code 2."""


class TrainingError(TVNetError):
    """A training that cannot begin, or cannot go on."""


class DatasetError(TVNetError):
    """A set of inputs that cannot be worked on."""


class UnitError(TVNetError):
    """A layer or a unit that a network does not have, or that cannot be drawn."""


class DeviceError(TVNetError):
    """A device that was asked for and is not there."""


class ClusterError(TVNetError):
    """A Ray cluster that cannot be joined, or cannot work."""
