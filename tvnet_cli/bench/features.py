"""``tvnet features`` beside the sum of its stages, and how long it takes to begin."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch

from tvnet_cli.bench.pairs import texture
from tvnet_cli.bench.timing import Claim, Effort, Progress, Results, Row, interleave, num_cores
from tvnet_cli.device import thread_pool
from tvnet_cli.features.extract import extract_features
from tvnet_cli.features.extractor import NETWORK_BATCH
from tvnet_cli.network.cards import FlowInput
from tvnet_cli.network.inference import InferenceNetwork
from tvnet_cli.network.stack import stack_flow
from tvnet_cli.network.weights import StreamModel, untrained_model
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.decode import VideoClips, read_clips
from tvnet_cli.video.files import find_videos

FILMS = 4
FRAMES, RATE, HEIGHT, WIDTH = 150, 25, 240, 320  # of each film, like those of UCF101
STAGES = ("decode", "flow", "network")
PIPELINE = Claim("features", "tvnet features against the sum of its stages (wall)", 0.97, 1.1, smaller_is_better=True)
START = Claim("features", "tvnet features, start until the first clip is done", 3, 5, "s", smaller_is_better=True)


def measure_features(effort: Effort, progress: Progress) -> Results:
    """Both claims about ``tvnet features``, on films that are drawn for it."""
    with TemporaryDirectory(prefix="tvnet-bench-") as folder:
        films = Path(folder) / "films"
        films.mkdir()
        for number in range(effort.size(FILMS)):
            draw_film(films / f"{number}.mp4", effort.size(FRAMES, 8), seed=number)
            progress("drawing films", number + 1, effort.size(FILMS))
        return Results([pipeline(films, effort, progress), start(films / "0.mp4", effort, progress)])


def pipeline(films: Path, effort: Effort, progress: Progress) -> Row:
    """The whole and its stages, each of which gets what the one before it gives.

    Alone, films are decoded one after the other; flow and network have all cores.
    """
    options = ExtractOptions(num_clips=effort.size(ExtractOptions.num_clips))
    videos = find_videos([films])
    model = untrained_model("flow")
    output = films.parent / "features.h5"

    def whole() -> None:
        found = extract_features(videos, output, {"flow": model}, overwrite=True, options=options)
        for result in found:
            if result.status != "done":
                raise RuntimeError(f"{result.video_id}: {result.reason}")

    def decode() -> list[VideoClips]:
        return [
            read_clips(video.path, options.num_clips, options.clip_length, options.short_side, options.crop_size)
            for video in videos
        ]

    clips = decode()
    stacks = [flow_stacks(one, model) for one in clips]
    network = InferenceNetwork(model.network)
    cores = num_cores()

    @torch.inference_mode()
    def through_network(part: torch.Tensor) -> None:
        network.features(part)

    def all_through_network() -> None:
        parts = [part for stack in stacks for part in torch.split(stack, NETWORK_BATCH["cpu"])]
        with thread_pool(cores) as pool:
            list(pool.map(through_network, parts))

    times = interleave(
        {
            "whole": whole,
            "decode": decode,
            "flow": lambda: [flow_stacks(one, model) for one in clips],
            "network": all_through_network,
        },
        effort.few,
        effort.slot_seconds,
        threads=[cores],
        progress=progress,
        stage="tvnet features and its stages",
    )
    took = {name: timing[cores].wall for name, timing in times.items()}
    stages = sum(took[name] for name in STAGES)
    figures = {f"{name}_seconds_a_video": took[name] / len(videos) for name in ("whole", *STAGES)}
    return Row(PIPELINE, value=took["whole"] / stages, ours_seconds=took["whole"], peer_seconds=stages, figures=figures)


@torch.inference_mode()
def flow_stacks(clips: VideoClips, model: StreamModel) -> torch.Tensor:
    """Flow stacks (clips, 10, H, W) of a video, all pairs as one batch."""
    assert model.tvnet is not None
    assert isinstance(model.card.input, FlowInput)
    how, frames = model.card.input, torch.from_numpy(clips.frames).movedim(-1, -3)
    flow = model.tvnet(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
    return stack_flow(flow, how.scale, how.clip_pixels, how.order, fields=frames.shape[1] - 1)


def start(film: Path, effort: Effort, progress: Progress) -> Row:
    """A process of its own from its first instruction until flow and features of one clip are there.

    One thread, so that none spins, and once before, so that what is compiled lies on the disk.
    """
    best = float("inf")
    turns = 1 + effort.few
    for turn in range(turns):
        progress("start", turn, turns)
        command = [sys.executable, "-c", UNTIL_FIRST_CLIP, str(film), "-o", str(film.parent / f"start{turn}.h5")]
        found = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if turn:
            best = min(best, float(found.stdout))
    progress("start", turns, turns)
    return Row(START, value=best, ours_seconds=best)


# The command as it is, stopped after the first clip.
UNTIL_FIRST_CLIP = """
import os, sys, time
from dataclasses import replace
from tvnet_cli.cli import main
from tvnet_cli.features.extractor import Extractor

def one_clip(extractor, clips):
    whole(extractor, replace(clips, frames=clips.frames[:1]))
    print(time.process_time(), flush=True)
    os._exit(0)

whole, Extractor.features = Extractor.features, one_clip
main(["features", *sys.argv[1:], "--weights", "untrained", "--device", "cpu", "-q"])
"""


def draw_film(path: Path, num_frames: int, seed: int) -> None:
    """A camera that moves over a textured surface, 2 pixels a frame at most, as H.264."""
    rng = np.random.default_rng(seed)
    reach = 60  # pixels, the farthest that the camera goes
    surface = texture(HEIGHT + 2 * reach, WIDTH + 2 * reach, rng).clip(0, 255).round().astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, RATE)
        for number, angle in zip(range(num_frames), count(0, 0.03), strict=False):
            top, left = (reach + int(reach * part) for part in (np.sin(angle), np.cos(angle)))
            picture = np.ascontiguousarray(surface[top : top + HEIGHT, left : left + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
