"""The main job, one straight line: videos -> clips -> flow -> network -> rows."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tvnet_cli.device import num_workers, thread_pool, true_float32
from tvnet_cli.errors import VideoReadError
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.network.cards import FlowInput, RGBInput
from tvnet_cli.network.inference import InferenceNetwork
from tvnet_cli.network.stack import frame_pairs, prepare_rgb, stack_flow
from tvnet_cli.network.weights import StreamModel
from tvnet_cli.options import DEFAULT_BATCH_SIZE, DType, ExtractOptions, Stream, as_dict
from tvnet_cli.recipe import Recipe, software
from tvnet_cli.video.decode import VideoClips, read_clips
from tvnet_cli.video.files import Video

# Clips in one pass of the network, one piece of work. Fixed, because the rounding of a convolution depends on the size
# of the batch: so features do not depend on --batch-size. Of 1, 2, 3, 5, 8, 13 and 25, on a CPU, 5 is the fastest.
NETWORK_BATCH = {"cpu": 5, "cuda": 25}
GPU_BYTES_PER_CLIP = 100e6  # twice what flow of 5 pairs takes in torch; two passes are on their way at once

Models = dict[Stream, StreamModel]


@dataclass(frozen=True)
class VideoResult:
    """What became of one video.

    Attributes
    ----------
    video_id : str
    status : {"done", "skipped", "failed"}
        ``skipped``: its row was there already.
    reason : str
        Why it failed.
    notes : tuple of str
        What was not as it should be in a video that is done.
    num_frames, padded
        As in the feature file; None unless done.
    seconds : float
        From opening its file to keeping its row; other videos are at work meanwhile.
    error : Exception or None
        Behind the reason.
    """

    video_id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    notes: tuple[str, ...] = ()
    num_frames: int | None = None
    padded: bool | None = None
    seconds: float = 0.0
    error: Exception | None = None

    def summary(self) -> dict[str, object]:
        """The result as plain values, ready for JSON."""
        known = {key: value for key, value in vars(self).items() if key != "error" and value not in ("", (), None)}
        return {**known, "seconds": round(self.seconds, 3)}


def extract_features(
    videos: Sequence[Video],
    output: Path,
    models: Models,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    options: ExtractOptions | None = None,
) -> Generator[VideoResult, None, None]:
    """Extract the features of videos into a feature file.

    Parameters
    ----------
    videos : sequence of Video
        From ``tvnet_cli.video.files.find_videos``.
    output : Path
        The feature file. Videos that it holds already are skipped.
    models : dict of stream to StreamModel
        From ``tvnet_cli.network.weights.load_models``; their networks stay as they are.
    device : torch.device or str
        See ``tvnet_cli.device.choose_device``.
    batch_size : int, optional
        Clips whose flow is computed at once, at most a pass of the network. Decides memory and speed, not results.
    jobs : int, optional
        Videos at work at once, which are in memory. Decides memory and speed, not results.
    overwrite : bool
        Drop what ``output`` holds.
    options : ExtractOptions
        Its streams are those of ``models``.

    Yields
    ------
    VideoResult
        One for each video, in order. A video that cannot be read fails alone.

    Raises
    ------
    FeatureFileError
        If ``output`` is no feature file or was made by another recipe.
    """
    options = options or ExtractOptions(streams=tuple(models))
    if options.streams != tuple(models):
        raise ValueError(f"the options ask for the streams {options.streams}, the models are for {tuple(models)}")
    device = torch.device(device)
    models = {stream: _ready(model, options.dtype, device) for stream, model in models.items()}
    batch_size = batch_size or _default_batch_size(device)
    cores = torch.get_num_threads()  # knows of affinity and OMP_NUM_THREADS
    jobs = jobs or _default_jobs(device, cores, options.num_clips)

    def work(video: Video) -> VideoResult:
        started = time.perf_counter()
        try:
            clips = read_clips(
                video.path, options.num_clips, options.clip_length, options.short_side, options.crop_size
            )
        except Exception as error:  # whatever a decoder meets in one film must not stop the others
            return VideoResult(video.video_id, "failed", reason=_reason(error), error=error)
        features = video_features(clips, models, device, batch_size, compute)
        store.add(video.video_id, {**features, **_frames_used(clips)})
        return VideoResult(
            video.video_id,
            "done",
            notes=clips.notes,
            num_frames=clips.num_frames,
            padded=clips.padded,
            seconds=time.perf_counter() - started,
        )

    # A thread for each video at work, which mostly waits; the passes of all of them go to as many threads as there are
    # cores, or to two that feed a GPU, one while the other waits for it. At the end, or when something breaks, passes
    # go first and the file is packed last.
    with (
        FeatureStore(output, recipe(options, models, device), overwrite) as store,
        true_float32(),
        thread_pool(jobs) as at_work,
        thread_pool(num_workers(device)) as compute,
    ):
        todo = [video for video in videos if video.video_id not in store]
        yield from (VideoResult(video.video_id, "skipped") for video in videos if video.video_id in store)
        yield from at_work.map(work, todo)


@torch.inference_mode()
def video_features(
    clips: VideoClips, models: Models, device: torch.device, batch_size: int, compute: Executor
) -> dict[str, ArrayLike]:
    """The features of one video.

    Parameters
    ----------
    clips : VideoClips
    models : dict of stream to StreamModel
        Ready for inference, on the device.
    device : torch.device
    batch_size : int
        Clips whose flow is computed at once, inside a pass of the network.
    compute : Executor
        Where the passes run.

    Returns
    -------
    dict of dataset name to ndarray, float32
        Each layer averaged over the clips, then divided by its L2 norm over all its values.
    """
    frames = torch.from_numpy(clips.frames)
    if device.type == "cuda":
        frames = frames.pin_memory()  # so that copies need not wait for the GPU
    parts = torch.split(frames, NETWORK_BATCH[device.type])
    passes = [compute.submit(_pass_layers, part, models, device, batch_size) for part in parts]
    layers = [one.result() for one in passes]
    return {name: _unit_norm(torch.cat([one[name] for one in layers]).mean(0)) for name in layers[0]}


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


def _ready(model: StreamModel, dtype: DType, device: torch.device) -> StreamModel:
    """The model with its network for inference, on the device."""
    network = InferenceNetwork(model.network, getattr(torch, dtype)).to(device)
    return replace(model, network=network, tvnet=model.tvnet and model.tvnet.to(device))


@torch.inference_mode()
def _pass_layers(frames: Tensor, models: Models, device: torch.device, batch_size: int) -> dict[str, Tensor]:
    """The layers of clips (B, 6, H, W, 3), by name of dataset."""
    frames = frames.to(device, non_blocking=True).movedim(-1, -3)
    layers: dict[str, Tensor] = {}
    if "flow" in models:
        stacks = torch.cat([_flow_stacks(part, models["flow"]) for part in torch.split(frames, batch_size)])
        layers |= {f"flow/{layer}": values for layer, values in models["flow"].network.features(stacks).items()}
    if "rgb" in models:
        middle = _rgb_input(frames[:, frames.shape[1] // 2], models["rgb"])
        layers["rgb/global_pool"] = models["rgb"].network.features(middle)["global_pool"]
    return layers


def _flow_stacks(frames: Tensor, model: StreamModel) -> Tensor:
    """Clips (B, 6, 3, H, W) to flow stacks (B, 10, H, W)."""
    assert model.tvnet is not None
    assert isinstance(model.card.input, FlowInput)
    flow = model.tvnet(*frame_pairs(frames))
    how = model.card.input
    return stack_flow(flow, how.scale, how.clip_pixels, how.order, fields=frames.shape[1] - 1)


def _rgb_input(frames: Tensor, model: StreamModel) -> Tensor:
    """Frames (B, 3, H, W) to network input of the same shape."""
    assert isinstance(model.card.input, RGBInput)
    return prepare_rgb(frames.float(), model.card.input.mean, model.card.input.order)


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
    }


def _default_batch_size(device: torch.device) -> int:
    if device.type == "cpu":
        return DEFAULT_BATCH_SIZE["cpu"]
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(DEFAULT_BATCH_SIZE["cuda"], int(free / GPU_BYTES_PER_CLIP)))


def _default_jobs(device: torch.device, cores: int, num_clips: int) -> int:
    """So many that each core has a pass while the next video is read; a GPU is fast, and all cores read for it."""
    if device.type == "cuda":
        return max(2, cores)
    return 2 + cores // math.ceil(num_clips / NETWORK_BATCH["cpu"])


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, VideoReadError) else f"{type(error).__name__}: {error}"
