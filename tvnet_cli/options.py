"""The options of the program, each default written once.

No torch in this module: the command line reads its help texts from here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

Sampler = Literal["authors", "exact", "bicubic"]
Presmoothing = float | Literal["authors"]
Stream = Literal["flow", "rgb"]
FlowSolver = Literal["auto", "torch", "numba", "triton"]
DType = Literal["float32", "bfloat16"]
StackOrder = Literal["interleaved", "grouped"]
ChannelOrder = Literal["RGB", "BGR"]
BatchNorm = Literal["partial", "full", "frozen"]
InputConvention = Literal["tsn-caffe", "tsn-pytorch"]
BNStatistics = Literal["variance", "inverse-std"]
ChannelView = Literal["mean", "xy", "all"]
FlowFormat = Literal["h5", "flo", "npz", "png", "mp4", "xy-jpg"]

SAMPLERS: tuple[Sampler, ...] = ("authors", "exact", "bicubic")
STREAMS: tuple[Stream, ...] = ("flow", "rgb")
FLOW_SOLVERS: tuple[FlowSolver, ...] = ("auto", "torch", "numba", "triton")
DTYPES: tuple[DType, ...] = ("float32", "bfloat16")
BATCH_NORMS: tuple[BatchNorm, ...] = ("partial", "full", "frozen")
FLOW_FORMATS: tuple[FlowFormat, ...] = ("h5", "flo", "npz", "png", "mp4", "xy-jpg")
CHANNEL_VIEWS: tuple[ChannelView, ...] = ("mean", "xy", "all")
SHEET_SUFFIXES = (".png", ".svg", ".pdf")  # of pictures for print
INPUT_CONVENTIONS: tuple[InputConvention, ...] = ("tsn-caffe", "tsn-pytorch")
BN_STATISTICS: tuple[BNStatistics, ...] = ("variance", "inverse-std")
DEFAULT_WEIGHTS: dict[Stream, str] = {"flow": "tvnet50-motion"}  # that come with the program
DEFAULT_JOBS = 2  # threads of tvnet aslan-eval
DEFAULT_PRESET = "tvnet-50"
NEIGHBOURS_SHOWN = 12  # of a video, by tvnet visualize features
MOST_VIDEOS_SHOWN = 3000  # by it; the time of t-SNE and the size of the page grow with them
MAX_SMOOTHING = 10  # pixels
MAX_MEDIAN_SIZE = 11  # pixels; the time of a median grows with the fourth power
MAX_OCTAVE_SCALE = 4  # the canvas of gradient ascent grows to this by an octave
MAX_UPDATES = 1_000_000  # of all scales, warps and iterations: the preset tv-l1 has 3,000
MAX_SEED = 2**32 - 1  # with the number of a step it still fits the 64 bits that torch takes
MAX_CLIP_SIDE = 1030  # pixels, of drawn clips
MIN_FRAME_SIDE = 16  # pixels, of the frames that the solver takes
MAX_FRAME_PIXELS = 1 << 26  # 8192 x 8192; what declares more is taken for an attack
MIN_DECODER_MEMORY = 256  # MiB
# Clips whose flow is computed at once: few keep a CPU's caches warm, many fill a GPU.
DEFAULT_BATCH_SIZE = {"cpu": 1, "cuda": 25}


# What numbers must be, in words and as a test that NaN does not pass.
Rule = tuple[str, Callable[[float], bool]]
COUNT: Rule = ("at least 1", lambda value: value >= 1)
POSITIVE: Rule = ("a positive number", lambda value: 0 < value < math.inf)
# Far beyond all that converges, and within what float32 can square.
MODERATE: Rule = ("a positive number, 1e-6 to 1e6", lambda value: 1e-6 <= value <= 1e6)
NOT_NEGATIVE: Rule = ("0 or more", lambda value: 0 <= value < math.inf)
SEED: Rule = (f"0 to {MAX_SEED}", lambda value: 0 <= value <= MAX_SEED)
SHARE: Rule = ("at least 0 and less than 1", lambda value: 0 <= value < 1)


def _require(options: object, rule: Rule, names: str) -> None:
    """Refuse options of which one of the numbers breaks the rule."""
    words, allowed = rule
    for name in names.split():
        value = getattr(options, name)
        if not allowed(value):
            raise ValueError(f"{name} must be {words}, not {value}")


@dataclass(frozen=True, kw_only=True)
class TVNetOptions:
    """Schedule and weights of the TV-L1 solver. The defaults are TVNet-50 of the paper.

    Attributes
    ----------
    num_scales : int
        Levels of the pyramid; small frames use fewer.
    num_warps : int
        Linearisations of the data term at each level.
    num_iterations : int
        Primal-dual updates in each warp; all of them run, there is no early stop.
    zoom_factor : float, in (0, 1)
        Size of a level relative to the next finer one.
    tau : float
        Time step of the dual update.
    lambda_ : float
        Weight of the data term, for frames in 0..255: larger follows the pictures, smaller is smoother.
    theta : float
        Coupling of the flow and its auxiliary field: smaller is tighter and slower.
    sampler : {"authors", "exact", "bicubic"}
        How frames are read between pixels; see ``tvnet_cli.flow.operators.warp``.
    presmoothing : float, pixels, or "authors"
        Sigma of the Gaussian that smooths the frames first: less noise, but less fine texture to hold on to; 0: none.
        ``authors`` is their filter of about 0.85, with their dark rim.
    coarsest_side : int, pixels
        No level is smaller: on a tiny one the flow soon leaves the frame, where nothing calls it back.
    antialias : bool
        Average over as many pixels as a coarser level drops, so that fine texture cannot pose as coarse texture.
    ignore_outside : bool
        No data term where the flow leaves the frame: what is there was not filmed.
    median_size : int, pixels, 0 or odd, at most 11
        Side of the median filter of the flow after each warp, which takes outliers away and keeps edges; 0: none.
    edge_weight : float
        How much cheaper the flow bends along edges of the first frame, where things end; 0: not at all.
    """

    num_scales: int = 1
    num_warps: int = 1
    num_iterations: int = 50
    zoom_factor: float = 0.5
    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    sampler: Sampler = "authors"
    presmoothing: Presmoothing = "authors"
    coarsest_side: int = 3  # a centred difference needs three
    antialias: bool = False
    ignore_outside: bool = False
    median_size: int = 0
    edge_weight: float = 0.0

    def __post_init__(self) -> None:
        _require(self, COUNT, "num_scales num_warps num_iterations")
        updates = self.num_scales * self.num_warps * self.num_iterations
        if updates > MAX_UPDATES:
            raise ValueError(f"scales x warps x iterations must be at most {MAX_UPDATES:,}, not {updates:,}")
        _require(self, MODERATE, "tau lambda_ theta")
        if not 0 < self.zoom_factor < 1:
            raise ValueError(f"zoom_factor must lie between 0 and 1, not {self.zoom_factor}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        smoothing = self.presmoothing
        if smoothing != "authors" and not (isinstance(smoothing, (int, float)) and 0 <= smoothing <= MAX_SMOOTHING):
            raise ValueError(f"presmoothing must be 'authors' or 0 to {MAX_SMOOTHING} pixels, not {smoothing!r}")
        for name in ("antialias", "ignore_outside"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.coarsest_side < 3:
            raise ValueError(f"coarsest_side must be at least 3, not {self.coarsest_side}")
        if self.median_size not in (0, *range(3, MAX_MEDIAN_SIZE + 1, 2)):
            raise ValueError(
                f"median_size must be 0 or an odd number of 3 to {MAX_MEDIAN_SIZE}, not {self.median_size}"
            )
        _require(self, NOT_NEGATIVE, "edge_weight")


# tv-l1: the scheme is that of Zach, Pock, Bischof, DAGM 2007; fine pyramid, warps and iterations follow Sanchez
# Perez et al., IPOL 2013; median and bicubic reading follow Wedel et al., An improved algorithm for TV-L1 optical flow,
# 2009, and Sun, Roth, Black, Secrets of optical flow estimation, CVPR 2010; lambda is what serves OpenCV's TV-L1 best.
# The helpers were chosen on 28 drawn pairs of known flow (layers, thin things, rotations, occlusions, up to 16 px);
# the smoothing is a compromise with real pairs, which have the noise of cameras.
PRESETS: dict[str, TVNetOptions] = {
    "tvnet-10": TVNetOptions(num_iterations=10),
    "tvnet-30": TVNetOptions(num_iterations=30),
    "tvnet-50": TVNetOptions(num_iterations=50),
    "tv-l1": TVNetOptions(
        num_scales=20,
        num_warps=10,
        num_iterations=15,
        zoom_factor=0.7,
        lambda_=0.25,
        sampler="bicubic",
        presmoothing=0.5,
        coarsest_side=8,
        antialias=True,
        ignore_outside=True,
        median_size=5,
        edge_weight=10.0,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What ``tvnet features`` computes. Everything here is part of the recipe of a feature file.

    Attributes
    ----------
    streams : tuple of {"flow", "rgb"}
        ``flow``: TVNet and the 10-channel network; ``rgb``: each clip's middle frame and the RGB network.
    num_clips : int
        Clips of equal length that a video is split into.
    clip_length : int, frames
        Consecutive frames read from the middle of each clip; 6 frames give 5 flow fields.
    short_side : int, pixels
        The short side of each frame is resized to this, keeping the ratio of the stored picture.
    crop_size : int, pixels
        Side of the centre crop that the solver and the networks see.
    dtype : {"float32", "bfloat16"}
        What the networks compute in; flow is always float32.
    """

    streams: tuple[Stream, ...] = ("flow",)
    num_clips: int = 25
    clip_length: int = 6
    short_side: int = 256
    crop_size: int = 224
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        if not self.streams or not set(self.streams) <= set(STREAMS):
            raise ValueError(f"streams must be some of {', '.join(STREAMS)}, not {self.streams}")
        if self.num_clips < 1 or self.clip_length < 2:
            raise ValueError(f"{self.num_clips} clips of {self.clip_length} frames: at least 1 of 2 are needed")
        if not 0 < self.crop_size <= self.short_side:
            raise ValueError(f"a crop of {self.crop_size} pixels does not fit a short side of {self.short_side}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What reading one video may take. Decides which videos fail, never the values of a row.

    Attributes
    ----------
    timeout : float, seconds
        Time for one video; 0: any.
    memory : int, MiB
        Memory of the process that decodes, of which it has 60 MiB before it begins; 0: any. Kept on Linux only, where
        it is looked at twenty times a second.
    """

    timeout: float = 600.0
    memory: int = 4096

    def __post_init__(self) -> None:
        _require(self, NOT_NEGATIVE, "timeout memory")
        if 0 < self.memory < MIN_DECODER_MEMORY:
            raise ValueError(f"memory must be 0 or at least {MIN_DECODER_MEMORY} MiB, not {self.memory}")


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """Which frames optical flow is computed on, and at which size.

    Attributes
    ----------
    start, end : float, seconds from the first frame, or None
        Frames from ``start`` on and before ``end``; None is the beginning and the end of the film.
    every : int
        Of these each Nth frame; flow then leads from each one kept to the next one kept.
    short_side : int, pixels, or None
        The short side of each frame is resized to this, the other in the same ratio.
    size : (int, int), pixels, or None
        Height and width that frames are resized to. With neither, frames keep their size.
    fps : float
        Frames a second of pictures, which have no times of their own, and of films without times.
    """

    start: float | None = None
    end: float | None = None
    every: int = 1
    short_side: int | None = None
    size: tuple[int, int] | None = None
    fps: float = 25.0

    def __post_init__(self) -> None:
        _require(self, COUNT, "every")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"the end, {self.end:g} s, does not lie behind the start, {self.start:g} s")
        if self.short_side is not None and self.size is not None:
            raise ValueError("give a short side or a size, not both")
        if min(self.size or (self.short_side or MIN_FRAME_SIDE,)) < MIN_FRAME_SIDE:
            raise ValueError(f"frames must be at least {MIN_FRAME_SIDE} pixels on each side")
        _require(self, POSITIVE, "fps")


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """What is computed for each pair of frames beside the flow from the first to the second.

    Attributes
    ----------
    backward : bool
        The flow from the second frame to the first.
    occlusion : bool
        The mask of pixels whose forward and backward flow contradict each other.
    scales : bool
        The flow of every level of the pyramid.
    """

    backward: bool = False
    occlusion: bool = False
    scales: bool = False


@dataclass(frozen=True, kw_only=True)
class ActionOptions:
    """The recipe of ``tvnet train actions``. The defaults are that of Temporal Segment Networks for flow.

    Attributes
    ----------
    stream : {"flow", "rgb"}
        ``flow``: TVNet and the 10-channel network, trained together; ``rgb``: the network alone, on single frames.
    size : int, pixels
        Side of the square that TVNet and the network see.
    short_side : int, pixels
        The short side of each frame is resized to this before it is cut.
    crop_scales : tuple of float, in (0, 1]
        Sides of the crops that are resized to ``size``, as shares of the short side, in order.
    flip : bool
        Mirror half of the videos left and right. Not where classes differ in that alone.
    num_segments : int
        Parts of a video that give a snippet each; their class scores are averaged.
    num_iterations : int
        Steps of the optimiser.
    batch_size : int
        Videos in a step, of all processes together.
    learning_rate, momentum, weight_decay : float
        Of the stochastic gradient descent. Weights alone decay: no biases, no batch normalisation, no TVNet.
    milestones : tuple of int
        Iterations from which on each learning rate is a tenth of what it was.
    bias_factor, first_layer_factor : float
        Learning rates of the biases and of the first convolution, as multiples.
    tvnet_learning_rate : float
        Of TVNet's kernels and start field; 0 freezes TVNet.
    flow_weight : float
        Of the flow loss beside the loss of the classes.
    clip_norm : float
        Largest norm of all gradients together.
    dropout : float, in [0, 1)
        Before the classifier.
    batch_norm : {"partial", "full", "frozen"}
        Which normalisations learn from the batches: all but those behind the first convolution are frozen, none is,
        all are. Frozen ones need the statistics of trained weights.
    dtype : {"float32", "bfloat16"}
        What the network computes in; flow is always float32.
    validation_clips : int
        Clips of a video, of equal distance and cut from the centre, whose class scores are averaged in validation.
    validate_every : int
        Iterations between two validations; the last iteration always has one.
    checkpoint_every : int
        Iterations between two checkpoints, from which a run goes on that was stopped.
    seed : int
        Of the start of the classifier, of all that is drawn for batches, and of dropout.
    """

    stream: Stream = "flow"
    size: int = 224
    short_side: int = 256
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.65625)
    flip: bool = True
    num_segments: int = 3
    num_iterations: int = 18_000
    batch_size: int = 128
    learning_rate: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = (10_000, 16_000)
    bias_factor: float = 2.0
    first_layer_factor: float = 5.0
    tvnet_learning_rate: float = 0.005
    flow_weight: float = 0.1
    clip_norm: float = 20.0
    dropout: float = 0.7
    batch_norm: BatchNorm = "partial"
    dtype: DType = "float32"
    validation_clips: int = 25
    validate_every: int = 1000
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"stream": STREAMS, "batch_norm": BATCH_NORMS, "dtype": DTYPES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        _require(self, COUNT, "num_segments num_iterations batch_size validation_clips validate_every checkpoint_every")
        _require(self, NOT_NEGATIVE, "weight_decay bias_factor first_layer_factor tvnet_learning_rate flow_weight")
        _require(self, POSITIVE, "learning_rate clip_norm")
        _require(self, SHARE, "dropout momentum")
        if not 0 < self.size <= self.short_side:
            raise ValueError(f"a crop of {self.size} pixels does not fit a short side of {self.short_side}")
        if not self.crop_scales or not all(0 < scale <= 1 for scale in self.crop_scales):
            raise ValueError(f"crop_scales are shares of the short side, between 0 and 1, not {self.crop_scales}")
        _require(self, SEED, "seed")

    @property
    def clip_length(self) -> int:
        """Consecutive frames of a snippet: 6 give 5 flow fields."""
        return 6 if self.stream == "flow" else 1


# Wang et al., Temporal Segment Networks, ECCV 2016: the solvers and networks of the published models, and for TVNet,
# whose joint training was never published, the learning rate that its authors trained it alone with.
ACTION_PRESETS: dict[str, ActionOptions] = {
    "tsn-flow": ActionOptions(),
    "tsn-rgb": ActionOptions(
        stream="rgb",
        num_iterations=3500,
        learning_rate=0.001,
        milestones=(1500, 3000),
        first_layer_factor=1.0,
        clip_norm=40.0,
        dropout=0.8,
        validate_every=500,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How a checkpoint becomes weights of this program. What is None, the file decides.

    Attributes
    ----------
    stream : {"flow", "rgb"} or None
        Flow from a file of 3 channels is the cross-modality start: the mean of its first kernels for all 10 channels.
    input : {"tsn-caffe", "tsn-pytorch"} or None
        How the RGB network saw frames: BGR less 104, 117, 123, or less 104, 117, 128. Flow is the same in both.
    head : str or None
        The classifier to keep as ``fc``, by its name in the file, or ``none``. None keeps the only one.
    bn_statistics : {"variance", "inverse-std"} or None
        What the fourth tensor of a batch normalisation is: early Caffe files hold 1 / sqrt(variance + eps).
    ignore_unused : bool
        Leave out tensors that the network has no place for.
    allow_pickle : bool
        Read PyTorch files that hold more than tensors, which is to run code from them.
    source, licence, training_data : str or None
        For the card.
    """

    stream: Stream | None = None
    input: InputConvention | None = None
    head: str | None = None
    bn_statistics: BNStatistics | None = None
    ignore_unused: bool = False
    allow_pickle: bool = False
    source: str | None = None
    licence: str | None = None
    training_data: str | None = None


def as_dict(options: TVNetOptions | ExtractOptions | FrameOptions | FieldOptions | ActionOptions) -> dict[str, object]:
    """The options by name, ready for JSON."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def suits_network(side: int) -> bool:
    """Whether BN-Inception can take a picture with this side, in pixels: 32k-1 to 32k+6."""
    return side >= 31 and (side + 1) % 32 <= 7


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a training on drawn motion: so many steps on clips of one size.

    Attributes
    ----------
    steps, batch_size : int
    size : int, pixels
        Side of the clips; it must suit BN-Inception. A scene fills its clip, so a small one shows the same smaller.
    train_flow : bool
        Train the kernels and the start of TVNet as well; before that they stay as they are.
    """

    steps: int
    batch_size: int
    size: int
    train_flow: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise ValueError("steps and clips must be at least 1")
        if not 95 <= self.size <= MAX_CLIP_SIDE or not suits_network(self.size):
            raise ValueError(
                f"clips of {self.size} pixels do not suit BN-Inception: 95 to 102, 127 to 134, ... 223 to 230, ... "
                f"{MAX_CLIP_SIDE - 7} to {MAX_CLIP_SIDE}"
            )
        if self.steps > MAX_UPDATES:
            raise ValueError(f"steps must be at most {MAX_UPDATES:,}, not {self.steps:,}")
        if self.batch_size * self.size**2 > MAX_FRAME_PIXELS:
            raise ValueError(
                f"{self.batch_size:,} clips of {self.size} pixels are too much for one step: at most "
                f"{MAX_FRAME_PIXELS // self.size**2:,}"
            )

    def __str__(self) -> str:
        """As ``tvnet train motion --stage`` takes it."""
        return f"{self.steps}x{self.batch_size}@{self.size}" + ("+flow" if self.train_flow else "")


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """The recipe of ``tvnet train motion``; the defaults made the weights that come with the program.

    Attributes
    ----------
    seed : int
    stream : {"flow", "rgb"}
        Flow by TVNet, or the middle frame of each clip.
    stages : tuple of Stage
        From small clips, of which many are seen, to the size that features are extracted at.
    learning_rate, flow_learning_rate, weight_decay : float
        Of AdamW; the second for TVNet. All rates rise while the first 6 % of all pixels are seen, then fall to 0 as a
        half cosine.
    clip_norm : float
    dropout, label_smoothing : float
    direction_weight : float
        Of the error of the directions of flow that are read off inception_5b_output; the flow stream alone has it.
    flow_weight : float
        Of the flow loss of TVNet, where TVNet is trained.
    dtype : {"float32", "bfloat16"}
        What the network computes in while it is trained; its weights, and TVNet, are float32.
    validate_every : int, steps
    held_out : str or tuple of str
        Classes whose names begin so are left out: families to choose recipes by.
    """

    seed: int = 0
    stream: Stream = "flow"
    stages: tuple[Stage, ...] = (
        Stage(steps=600, batch_size=64, size=96),
        Stage(steps=400, batch_size=48, size=128),
        Stage(steps=300, batch_size=32, size=160),
        Stage(steps=1000, batch_size=32, size=224),
        Stage(steps=80, batch_size=32, size=224, train_flow=True),
    )
    learning_rate: float = 2e-3
    flow_learning_rate: float = 2e-2
    weight_decay: float = 0.02
    clip_norm: float = 5.0
    dropout: float = 0.3
    label_smoothing: float = 0.1
    direction_weight: float = 0.2
    flow_weight: float = 0.1
    dtype: DType = "float32"
    validate_every: int = 200
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a training needs a stage")
        with_flow = [stage.train_flow for stage in self.stages]
        if with_flow != sorted(with_flow):  # their flow would depend on when it was computed ahead
            raise ValueError("once TVNet is trained, it is trained to the end: stages with +flow come last")
        if self.stream == "rgb" and any(with_flow):
            raise ValueError("the rgb stream has no TVNet to train: leave out stages with +flow")
        for name, known in (("stream", STREAMS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        _require(self, POSITIVE, "learning_rate flow_learning_rate")
        _require(self, NOT_NEGATIVE, "weight_decay clip_norm direction_weight flow_weight validate_every")
        _require(self, SEED, "seed")
        _require(self, SHARE, "dropout label_smoothing")

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def num_clips(self) -> int:
        """Clips drawn in all stages."""
        return sum(stage.steps * stage.batch_size for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class FlowTrainingOptions:
    """The recipe of ``tvnet train flow``.

    Attributes
    ----------
    steps, batch_size : int
        Updates, and pairs in each.
    crop : int, pixels
        Side of the squares that are cut out of the pairs.
    learning_rate : float
        Of Adam, for kernels, for the start field in pixels, and for the logarithms of tau, lambda and theta. It rises
        over 6 % of the steps and falls to 0 as a half cosine. The authors took 0.005 all along.
    clip_norm : float
        Longer gradients are shortened to this norm; 0: never.
    train_u0, train_numbers : bool
        Also train the start field, meant for motion that has its places, as seen from a car: in drawn pairs there is
        none to learn; also train tau, lambda and theta.
    mirror : bool
        Mirror half of the pairs left to right and half top to bottom, so that all directions are equally likely.
    data_weight : float
        Of the first term of the flow loss, for films.
    seed : int
        Of pairs, crops and mirrors.
    validate_every : int, steps
    """

    steps: int = 400
    batch_size: int = 8
    crop: int = 128
    learning_rate: float = 0.03
    clip_norm: float = 1.0
    train_u0: bool = False
    train_numbers: bool = True
    mirror: bool = True
    data_weight: float = 0.15
    seed: int = 0
    validate_every: int = 100

    def __post_init__(self) -> None:
        _require(self, COUNT, "steps batch_size")
        if self.crop < MIN_FRAME_SIDE:
            raise ValueError(f"crop must be at least {MIN_FRAME_SIDE} pixels, not {self.crop}")
        _require(self, POSITIVE, "learning_rate data_weight")
        _require(self, NOT_NEGATIVE, "clip_norm validate_every")
        _require(self, SEED, "seed")


@dataclass(frozen=True, kw_only=True)
class Octave:
    """A part of a gradient ascent: so many steps on a canvas of one size.

    Attributes
    ----------
    steps : int
    scale : float
        By which the canvas is made larger before it.
    blur : (float, float), pixels
        Sigma of the Gaussian after the first step, and what it goes towards; the last step falls one short of it.
    rate : (float, float), grey levels
        Mean size of the step of a pixel, likewise.
    """

    steps: int
    scale: float = 1.0
    blur: tuple[float, float]
    rate: tuple[float, float]

    def __post_init__(self) -> None:
        _require(self, COUNT, "steps")
        if not 1 <= self.scale <= MAX_OCTAVE_SCALE:
            raise ValueError(f"an octave's scale must be 1 to {MAX_OCTAVE_SCALE}, not {self.scale:g}")
        if not all(0 <= sigma <= MAX_SMOOTHING for sigma in self.blur):
            raise ValueError(f"an octave's blur must be 0 to {MAX_SMOOTHING} pixels, not {_span(self.blur)}")
        if not all(0 < rate < math.inf for rate in self.rate):
            raise ValueError(f"an octave's steps must be more than 0 grey levels, not {_span(self.rate)}")

    def at(self, step: int) -> tuple[float, float]:
        """Blur and rate of a step, counted from 0."""
        done = step / self.steps
        blur, rate = (start + (end - start) * done for start, end in (self.blur, self.rate))
        return blur, rate

    def __str__(self) -> str:
        """As ``tvnet visualize deepdraw --octave`` takes it."""
        larger = "" if self.scale == 1 else f"x{self.scale:g}"
        return f"{self.steps}{larger}:{_span(self.blur)}:{_span(self.rate)}"


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g}-{ends[1]:g}"


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """The recipe of ``tvnet visualize deepdraw``.

    Attributes
    ----------
    octaves : tuple of Octave
    leak : float
        Of its gradient, what passes backwards through a ReLU that is shut; 0: nothing. The way forwards stays as it is.
    background, noise : float, grey levels
        Mean and deviation of the Gaussian noise that the canvas begins with. None is 128 for flow, which is no motion,
        and 200 for RGB, the light ground of DeepDraw.
    seed : int
        Of noise and crops, with the number of the unit.
    """

    octaves: tuple[Octave, ...]
    leak: float = 0.0
    background: float | None = None
    noise: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.octaves:
            raise ValueError("a gradient ascent needs an octave")
        _require(self, SHARE, "leak")
        _require(self, NOT_NEGATIVE, "noise")
        _require(self, SEED, "seed")
        if self.background is not None and not 0 <= self.background <= 255:
            raise ValueError(f"background must be a grey level of 0 to 255, not {self.background:g}")

    @property
    def num_steps(self) -> int:
        """Steps of all octaves."""
        return sum(octave.steps for octave in self.octaves)


# The presets of DeepDraw (https://github.com/auduno/deepdraw) as far as they carry over. `detailed` changes there to
# the classifiers at half depth of GoogLeNet in its last octaves, which BN-Inception of the TSN models does not have:
# here all octaves are of the layer that was asked for. `filter` begins there on a ground of 250, which as flow would be
# a gale. `quick` is ours: `coherent` with a third of the steps.
DRAW_PRESETS: dict[str, DrawOptions] = {
    "coherent": DrawOptions(
        octaves=(
            Octave(steps=190, blur=(2.5, 0.78), rate=(11, 11)),
            Octave(steps=450, scale=1.2, blur=(0.936, 0.4), rate=(6, 3)),
        )
    ),
    "detailed": DrawOptions(
        octaves=(
            Octave(steps=190, blur=(2.5, 0.78), rate=(11, 11)),
            Octave(steps=150, scale=1.2, blur=(0.936, 0.78), rate=(6, 6)),
            Octave(steps=150, scale=1.2, blur=(0.936, 0.44), rate=(6, 3)),
            Octave(steps=10, blur=(0.44, 0.304), rate=(3, 3)),
        )
    ),
    "filter": DrawOptions(
        octaves=(
            Octave(steps=200, blur=(2.5, 1.1), rate=(12, 10)),
            Octave(steps=100, blur=(1.1, 0.858), rate=(10, 8)),
            Octave(steps=100, scale=1.05, blur=(0.858, 0.78), rate=(8, 6)),
            Octave(steps=50, scale=1.05, blur=(0.858, 0.4), rate=(6, 1.5)),
            Octave(steps=25, scale=1.05, blur=(0.4, 0.3), rate=(1.5, 0.5)),
        ),
        leak=0.01,
    ),
    "quick": DrawOptions(
        octaves=(
            Octave(steps=70, blur=(2.5, 0.78), rate=(11, 11)),
            Octave(steps=140, scale=1.2, blur=(0.936, 0.4), rate=(6, 3)),
        )
    ),
}
DEFAULT_DRAW_PRESET = "coherent"

# Columns of `tvnet visualize figure`, as in Figure 2 of the supplement; any layer may stand for the last two.
FLOW_COLUMNS = ("frame", "tv-l1", "untrained", "trained")
FIGURE_COLUMNS = (*FLOW_COLUMNS, "global_pool", "fc")
DEFAULT_ROWS = 3
FIGURE_LEAK = 0.01  # as in DeepDraw's filter preset
FIGURE_SCALES = {"num_scales": 3, "zoom_factor": 0.5}  # of its Figure 1


# What `tvnet bench` measures.
BENCH_SUBJECTS = ("flow", "network", "features", "measures", "scale", "all")

Scale = Literal["zscore", "l2", "none"]
Solver = Literal["libsvm", "liblinear"]
PairModel = Literal["svm", "oss"]
Negatives = Literal["error", "clip"]
SCALES: tuple[Scale, ...] = ("zscore", "l2", "none")
SOLVERS: tuple[Solver, ...] = ("libsvm", "liblinear")
PAIR_MODELS: tuple[PairModel, ...] = ("svm", "oss")
NEGATIVES: tuple[Negatives, ...] = ("error", "clip")
NUM_MEASURES = 12


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The recipe of ``tvnet aslan-eval``. The defaults are the TVNet paper's.

    Attributes
    ----------
    model : {"svm", "oss"}
        What is computed from the features of a pair: the 12 measures of similarity, or one-shot similarity.
    measures : tuple of int
        Which of the 12 measures, numbered from 1 as in Table 3 of the ASLAN paper.
    scale : {"zscore", "l2", "none"}
        Of the numbers of a pair: each to mean 0 and variance 1 over the training pairs, all to L2 norm 1, or none.
    solver : {"libsvm", "liblinear"}
        libsvm minimises the hinge loss with a free bias; liblinear, which is faster, the squared hinge loss with a
        penalised bias.
    C : float
        Weight of the loss.
    tolerance : float
        Where the solver stops.
    max_iterations : int
        Of libsvm, after which it stops with a note; -1: no limit.
    eps : float
        Added inside the logarithms of measure 10.
    negatives : {"error", "clip"}
        What becomes of negative features, for which the measures are not defined.
    """

    model: PairModel = "svm"
    measures: tuple[int, ...] = tuple(range(1, NUM_MEASURES + 1))
    scale: Scale = "zscore"
    solver: Solver = "libsvm"
    C: float = 1.0
    tolerance: float = 1e-3
    max_iterations: int = -1
    eps: float = 2.0**-52
    negatives: Negatives = "error"

    def __post_init__(self) -> None:
        choices = {"model": PAIR_MODELS, "scale": SCALES, "solver": SOLVERS, "negatives": NEGATIVES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not self.measures or len(set(self.measures)) < len(self.measures):
            raise ValueError(f"each measure once, and at least one: {self.measures}")
        if not set(self.measures) <= set(range(1, NUM_MEASURES + 1)):
            raise ValueError(f"measures are numbered 1 to {NUM_MEASURES}: {self.measures}")
        if self.max_iterations < -1 or self.max_iterations == 0:
            raise ValueError(f"max_iterations must be at least 1, or -1 for no limit, not {self.max_iterations}")
        _require(self, POSITIVE, "C tolerance eps")
        if self.eps < sys.float_info.min:
            raise ValueError(f"eps must be at least {sys.float_info.min:g}, not {self.eps}")


# What papers did otherwise. C3D and TVNet differ in their features alone. TPAMI: unscaled numbers, on which libsvm may
# not converge in any reasonable time.
EVAL_PRESETS: dict[str, dict[str, Any]] = {
    "tvnet": {},
    "c3d": {},
    "p3d": {"scale": "l2"},
    "tpami": {"scale": "none", "max_iterations": 1_000_000},
}
