"""The main job, one straight line: videos -> clips -> flow -> network -> rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tvnet_cli.device import true_float32
from tvnet_cli.errors import VideoReadError
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.network.inference import InferenceNetwork
from tvnet_cli.network.stack import prepare_rgb, stack_flow
from tvnet_cli.network.weights import FlowInput, RGBInput, StreamModel
from tvnet_cli.options import DEFAULT_BATCH_SIZE, DEFAULT_JOBS, DType, ExtractOptions, Stream, as_dict
from tvnet_cli.recipe import Recipe, software
from tvnet_cli.video.decode import VideoClips, read_clips
from tvnet_cli.video.files import Video

# Clips in one pass of the network. Fixed, because the rounding of a convolution depends on the size of the batch:
# so features do not depend on --batch-size. Of 1, 2, 3, 5, 8, 13 and 25, on a CPU, 5 is the fastest.
NETWORK_BATCH = 5

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
        Spent on flow and networks.
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
    jobs: int = DEFAULT_JOBS,
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
    batch_size : int
        Clips whose flow is computed at once. Decides memory and speed, not results.
    jobs : int
        Videos decoded at once, ahead of flow and network. Decides memory and speed, not results.
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

    def read(video: Video) -> VideoClips:
        return read_clips(video.path, options.num_clips, options.clip_length, options.short_side, options.crop_size)

    with FeatureStore(output, recipe(options, models, device), overwrite) as store:
        todo = [video for video in videos if video.video_id not in store]
        yield from (VideoResult(video.video_id, "skipped") for video in videos if video.video_id in store)
        for video, future in _read_ahead(read, todo, jobs):
            try:
                clips = future.result()
            except Exception as error:  # whatever a decoder meets in one film must not stop the others
                yield VideoResult(video.video_id, "failed", reason=_reason(error), error=error)
                continue
            started = time.perf_counter()
            features = video_features(clips, models, device, batch_size or DEFAULT_BATCH_SIZE[device.type])
            store.add(video.video_id, {**features, **_frames_used(clips)})
            yield VideoResult(
                video.video_id,
                "done",
                notes=clips.notes,
                num_frames=clips.num_frames,
                padded=clips.padded,
                seconds=time.perf_counter() - started,
            )


@torch.inference_mode()
def video_features(clips: VideoClips, models: Models, device: torch.device, batch_size: int) -> dict[str, ArrayLike]:
    """The features of one video.

    Parameters
    ----------
    clips : VideoClips
    models : dict of stream to StreamModel
    device : torch.device
    batch_size : int
        Clips whose flow is computed at once.

    Returns
    -------
    dict of dataset name to ndarray, float32
        Each layer averaged over the clips, then divided by its L2 norm over all its values.
    """
    features: dict[str, ArrayLike] = {}
    with true_float32():
        if "flow" in models:
            parts = _on_device(clips.frames, device, batch_size)
            stacks = torch.cat([_flow_stacks(part, models["flow"]) for part in parts])
            for layer, tensor in _mean_layers(stacks, models["flow"]).items():
                features[f"flow/{layer}"] = _unit_norm(tensor)
        if "rgb" in models:
            middle = clips.frames[:, clips.frames.shape[1] // 2]
            frames = torch.cat([_rgb_input(part, models["rgb"]) for part in _on_device(middle, device, batch_size)])
            features["rgb/global_pool"] = _unit_norm(_mean_layers(frames, models["rgb"])["global_pool"])
    return features


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


def _flow_stacks(frames: Tensor, model: StreamModel) -> Tensor:
    """Clips (B, 6, 3, H, W) to flow stacks (B, 10, H, W)."""
    assert model.tvnet is not None
    assert isinstance(model.card.input, FlowInput)
    first, second = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)  # (B * 5, 3, H, W)
    flow = model.tvnet(first, second)
    how = model.card.input
    return stack_flow(flow, how.scale, how.clip_pixels, how.order, fields=frames.shape[1] - 1)


def _rgb_input(frames: Tensor, model: StreamModel) -> Tensor:
    """Frames (B, 3, H, W) to network input of the same shape."""
    assert isinstance(model.card.input, RGBInput)
    return prepare_rgb(frames.float(), model.card.input.mean, model.card.input.order)


def _on_device(pictures: np.ndarray[Any, Any], device: torch.device, batch_size: int) -> Iterator[Tensor]:
    """Pictures (N, ..., H, W, 3) in batches (B, ..., 3, H, W) on the device."""
    for start in range(0, len(pictures), batch_size):
        yield torch.from_numpy(pictures[start : start + batch_size]).to(device).movedim(-1, -3)


def _mean_layers(inputs: Tensor, model: StreamModel) -> dict[str, Tensor]:
    """Each layer of the network, averaged over the inputs."""
    passes = [model.network.features(batch) for batch in torch.split(inputs, NETWORK_BATCH)]
    return {layer: torch.cat([one[layer] for one in passes]).mean(0) for layer in passes[0]}


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


def _read_ahead(
    read: Callable[[Video], VideoClips], videos: Iterable[Video], jobs: int
) -> Iterator[tuple[Video, Future[VideoClips]]]:
    """Read ``jobs`` videos at once, and hand them on in order."""
    waiting: deque[tuple[Video, Future[VideoClips]]] = deque()
    pool = ThreadPoolExecutor(jobs)
    try:
        for video in videos:
            waiting.append((video, pool.submit(read, video)))
            if len(waiting) > jobs:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, VideoReadError) else f"{type(error).__name__}: {error}"
