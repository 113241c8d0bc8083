"""One video becomes a row: clips -> flow -> network -> values."""

from __future__ import annotations

import math
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tvnet_cli.device import num_workers, thread_pool, true_float32
from tvnet_cli.errors import VideoReadError
from tvnet_cli.features.sources import source_values
from tvnet_cli.network.cards import FlowInput, RGBInput
from tvnet_cli.network.inference import InferenceNetwork
from tvnet_cli.network.stack import frame_pairs, prepare_rgb, stack_flow
from tvnet_cli.network.weights import StreamModel
from tvnet_cli.options import DEFAULT_BATCH_SIZE, DecodeLimits, DType, ExtractOptions, Stream, as_dict
from tvnet_cli.recipe import Recipe, software
from tvnet_cli.video.decode import VideoClips
from tvnet_cli.video.identity import Identity, identify
from tvnet_cli.video.reader import ClipReader

# Clips in one pass of the network, one piece of work. Fixed, because the rounding of a convolution depends on the size
# of the batch: so features do not depend on --batch-size. Of 1, 2, 3, 5, 8, 13 and 25, on a CPU, 5 is the fastest.
NETWORK_BATCH = {"cpu": 5, "cuda": 25}
GPU_BYTES_PER_CLIP = 100e6  # twice what flow of 5 pairs takes in torch; two passes are on their way at once

Models = dict[Stream, StreamModel]


@dataclass(frozen=True)
class VideoRow:
    """What a feature file keeps of one video, and what people should know about it.

    Attributes
    ----------
    values : dict of dataset name to its value
    num_frames : int
    padded : bool
    notes : tuple of str
        What was not as it should be.
    """

    values: dict[str, ArrayLike]
    num_frames: int
    padded: bool
    notes: tuple[str, ...]


def recipe(options: ExtractOptions, models: Models, device: torch.device) -> Recipe:
    """All that decides the values in a feature file, and the software and device that ran."""
    return {
        "options": as_dict(options),
        "weights": {
            stream: {"name": model.name, "sha256": model.card.sha256, "input": asdict(model.card.input)}
            for stream, model in models.items()
        },
        "tvnet": {stream: as_dict(model.tvnet.options) for stream, model in models.items() if model.tvnet is not None},
        "software": software(device),
    }


class RowSource(Protocol):
    """What turns videos into rows, such as ``Extractor``; the other ways offer the same."""

    recipe: Recipe
    jobs: int

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def row(self, place: Path | str) -> VideoRow:
        """See ``Extractor.row``."""


class Extractor:
    """Turns videos into rows on one device, inside a ``with`` block. Threads may ask at once, each for its video.

    Parameters
    ----------
    models : dict of stream to StreamModel
        From ``tvnet_cli.network.weights.load_models``; their networks stay as they are.
    options : ExtractOptions
        Its streams are those of ``models``.
    device : torch.device or str
        See ``tvnet_cli.device.choose_device``.
    batch_size : int, optional
        Clips whose flow is computed at once, at most a pass of the network. Decides memory and speed, not results.
    limits : DecodeLimits, optional
        What reading one video may take.

    Attributes
    ----------
    recipe : dict
        All that decides the values of a row, and the software and device that run.
    jobs : int
        Threads that ask at once and keep the device busy.
    """

    def __init__(
        self,
        models: Models,
        options: ExtractOptions,
        device: torch.device | str = "cpu",
        *,
        batch_size: int | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        if options.streams != tuple(models):
            raise ValueError(f"the options ask for the streams {options.streams}, the models are for {tuple(models)}")
        self.options, self.device = options, torch.device(device)
        self.recipe = recipe(options, models, self.device)
        self.jobs = default_jobs(self.device, torch.get_num_threads(), options.num_clips)
        self._models, self._batch_size = models, batch_size or _default_batch_size(self.device)
        self._clips = ClipReader(options, limits or DecodeLimits())

    def __enter__(self) -> Extractor:
        with ExitStack() as stack:
            stack.enter_context(self._clips)
            stack.enter_context(true_float32())
            # The passes of all videos go to as many threads as there are cores, or to two that feed a GPU, one while
            # the other waits for it. The last step of a video has its own, so that it waits for no pass of another.
            self._compute = stack.enter_context(thread_pool(num_workers(self.device)))
            self._last = stack.enter_context(thread_pool(1))
            dtype = self.options.dtype
            self._ready = {stream: _ready(model, dtype, self.device) for stream, model in self._models.items()}
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def row(self, place: Path | str) -> VideoRow:
        """The row of one video, a file or text that is an address; the thread that asks mostly waits.

        It holds the identity of a file; who asks for a remote video adds what the server says.

        Raises
        ------
        VideoReadError
            If the video cannot be read, or changes meanwhile. Whatever else is raised is no fault of it.
        """
        source = _identity(place)
        row = self.compute(self.read(place))
        if _identity(place) != source:
            raise VideoReadError("it changed while it was read: try again when it is whole", "changed")
        return replace(row, values={**row.values, **source_values(source)}) if source else row

    def read(self, place: Path | str) -> VideoClips:
        """The first half of ``row``."""
        return self._clips.read(place)

    def compute(self, clips: VideoClips) -> VideoRow:
        """The second half of ``row``."""
        return VideoRow({**self.features(clips), **_frames_used(clips)}, clips.num_frames, clips.padded, clips.notes)

    def features(self, clips: VideoClips) -> dict[str, ArrayLike]:
        """The features of one video.

        Returns
        -------
        dict of dataset name to ndarray, float32
            Each layer averaged over the clips, then divided by its L2 norm over all its values.

        Raises
        ------
        VideoReadError
            If that gives no finite numbers.
        """
        frames = torch.from_numpy(clips.frames)
        if self.device.type == "cuda":
            frames = frames.pin_memory()  # so that copies need not wait for the GPU
        parts = torch.split(frames, NETWORK_BATCH[self.device.type])
        passes = [
            self._compute.submit(_pass_layers, part, self._ready, self.device, self._batch_size) for part in parts
        ]
        layers = self._last.submit(_over_clips, [one.result() for one in passes]).result()
        for name, values in layers.items():
            if not np.isfinite(values).all():
                reason = f"{name} holds numbers that are not finite: the weights are too large for {self.options.dtype}"
                raise VideoReadError(reason, "unexpected")
        return layers


def _ready(model: StreamModel, dtype: DType, device: torch.device) -> StreamModel:
    """The model with its network for inference, on the device."""
    network = InferenceNetwork(model.network, getattr(torch, dtype)).to(device)
    return replace(model, network=network, tvnet=deepcopy(model.tvnet).to(device) if model.tvnet else None)


@torch.inference_mode()
def _pass_layers(frames: Tensor, models: Models, device: torch.device, batch_size: int) -> dict[str, Tensor]:
    """The layers of clips (B, 6, H, W, 3), by name of dataset."""
    frames = frames.to(device, non_blocking=True).movedim(-1, -3)
    layers: dict[str, Tensor] = {}
    if "flow" in models:
        stacks = torch.cat([flow_stacks(part, models["flow"]) for part in torch.split(frames, batch_size)])
        layers |= {f"flow/{layer}": values for layer, values in models["flow"].network.features(stacks).items()}
    if "rgb" in models:
        middle = _rgb_input(frames[:, frames.shape[1] // 2], models["rgb"])
        layers["rgb/global_pool"] = models["rgb"].network.features(middle)["global_pool"]
    return layers


def flow_stacks(frames: Tensor, model: StreamModel) -> Tensor:
    """Clips (B, 6, 3, H, W) of frames 0..255 to flow stacks (B, 10, H, W), the input of the network."""
    assert model.tvnet is not None
    assert isinstance(model.card.input, FlowInput)
    flow = model.tvnet(*frame_pairs(frames))
    how = model.card.input
    return stack_flow(flow, how.scale, how.clip_pixels, how.order, fields=frames.shape[1] - 1)


def _rgb_input(frames: Tensor, model: StreamModel) -> Tensor:
    """Frames (B, 3, H, W) to network input of the same shape."""
    assert isinstance(model.card.input, RGBInput)
    return prepare_rgb(frames.float(), model.card.input.mean, model.card.input.order)


@torch.inference_mode()
def _over_clips(passes: list[dict[str, Tensor]]) -> dict[str, ArrayLike]:
    return {name: _unit_norm(torch.cat([one[name] for one in passes]).mean(0)) for name in passes[0]}


def _unit_norm(values: Tensor) -> ArrayLike:
    """Divided by the L2 norm over all values; all zeros stay zeros."""
    norm = torch.linalg.vector_norm(values, dtype=torch.float64)
    return (values / norm if norm > 0 else values).float().cpu().numpy()


def _frames_used(clips: VideoClips) -> dict[str, ArrayLike]:
    return {
        "frame_index": clips.frame_index,
        "pts_seconds": clips.pts_seconds,
        "num_frames": np.int64(clips.num_frames),
        "padded": np.bool_(clips.padded),
        "bad_packets": np.int64(clips.bad_packets),
        "notes": "; ".join(clips.notes),
    }


def _identity(place: Path | str) -> Identity | None:
    """Return the identity of a file; None if it has none, so that reading it tells why, and of a remote video."""
    try:
        return identify(place) if isinstance(place, Path) else None
    except OSError:
        return None


def _default_batch_size(device: torch.device) -> int:
    if device.type == "cpu":
        return DEFAULT_BATCH_SIZE["cpu"]
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(DEFAULT_BATCH_SIZE["cuda"], int(free / GPU_BYTES_PER_CLIP)))


def default_jobs(device: torch.device, cores: int, num_clips: int) -> int:
    """So many that each core has a pass while the next video is read; a GPU is fast, and all cores read for it."""
    if device.type == "cuda":
        return max(2, cores)
    return 2 + cores // math.ceil(num_clips / NETWORK_BATCH["cpu"])
