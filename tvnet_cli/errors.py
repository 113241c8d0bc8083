"""The errors a user can meet, all one line long: what, which file, what to do.

TVNetError
    VideoReadError       a video that cannot be read
        FrameListError   decoded frames that differ from the packet scan; met and answered inside ``video``
    WeightsError         weights or their card, missing or wrong
    FeatureFileError     a feature file that is not ours, or was made in another way
    FlowFileError        a file of flow that cannot be read, or was made in another way
    OutputError          outputs that cannot be told apart, or that would be written over something
    TrainingError        a training that cannot begin or go on
    DatasetError         a set of inputs that cannot be worked on
    DeviceError          a device that was asked for and is not there
"""

from __future__ import annotations


class TVNetError(Exception):
    """Base of all errors that are the input's fault and not the program's."""


class VideoReadError(TVNetError):
    """A video that cannot be read; the message is the reason, without the file's name."""


class FrameListError(VideoReadError):
    """The decoder gave other frames than the packet scan promised."""


class WeightsError(TVNetError):
    """Weights or their card are missing, damaged or of another kind."""


class FeatureFileError(TVNetError):
    """A feature file that is not ours, or that another recipe made."""


class FlowFileError(TVNetError):
    """A file or folder of flow that cannot be read, or that another recipe made."""


class OutputError(TVNetError):
    """Outputs that were asked for in a way that does not work: wrong usage, exit code 2."""


class TrainingError(TVNetError):
    """A training that cannot begin, or cannot go on."""


class DatasetError(TVNetError):
    """A set of inputs that cannot be worked on."""


class DeviceError(TVNetError):
    """A device that was asked for and is not there."""
