"""`tvnet train actions`: TVNet and BN-Inception learn together, end to end, to tell the actions in videos apart."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tvnet_cli.device import thread_pool, true_float32
from tvnet_cli.errors import TrainingError
from tvnet_cli.network.cards import WeightCard
from tvnet_cli.network.weights import tensors_to_keep, write_weights
from tvnet_cli.options import ActionOptions, DecodeLimits, TVNetOptions, as_dict
from tvnet_cli.recipe import Recipe, software
from tvnet_cli.training.action_network import ActionNetwork, new_model, parameter_groups
from tvnet_cli.training.clips import ActionBatch, TrainingClips, refuse_unreadable, validation_clips
from tvnet_cli.training.confusion import CONFUSION, accuracy, write_confusion
from tvnet_cli.training.datasets import ActionDataset, LabelledVideo
from tvnet_cli.training.loop import WEIGHTS, Pace, Report, fit, require_training_folder
from tvnet_cli.training.processes import add_over_processes, rank_and_world
from tvnet_cli.video.reader import Decoders
from tvnet_cli.writing import MARK

RESULTS = ("weights.toml", WEIGHTS, *CONFUSION)
CLIPS_AT_ONCE = 5  # in validation
VIDEOS_AHEAD = 4  # read while others are worked on
BATCHES_AHEAD = 2  # read while a step runs


@dataclass(frozen=True)
class ActionResult:
    """What a training ended with.

    Attributes
    ----------
    model : ActionNetwork
        In evaluation mode, on its device.
    recipe : dict
        All that decided the result.
    confusion : ndarray, (classes, classes), int64
        Validation videos by class and answer.
    """

    model: ActionNetwork = field(repr=False)
    recipe: Recipe = field(repr=False)
    confusion: NDArray[np.int64] = field(repr=False)

    def summary(self, folder: Path) -> dict[str, object]:
        """The result as plain values, ready for JSON; the accuracy is a share."""
        validated = int(self.confusion.sum())
        return {
            "iterations": self.model.options.num_iterations,
            "validation_accuracy": accuracy(self.confusion) if validated else None,
            "validation_videos": validated,
            "weights": str(folder / WEIGHTS),
        }

    def headline(self, folder: Path) -> str:
        """The result in one line."""
        validated = int(self.confusion.sum())
        found = (
            f"accuracy {100 * accuracy(self.confusion):.2f} % of {validated} validation videos; " if validated else ""
        )
        return f"{found}weights in {folder / WEIGHTS}"


def train_actions(
    dataset: ActionDataset,
    folder: Path,
    options: ActionOptions,
    *,
    schedule: TVNetOptions | None = None,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    overwrite: bool = False,
    report: Report = lambda step, values: None,
    limits: DecodeLimits | None = None,
) -> ActionResult | None:
    """Train on a data set, or go on with a training that was stopped.

    Parameters
    ----------
    dataset : ActionDataset
    folder : Path
        Of the checkpoint and the log; see ``tvnet_cli.training.loop.fit``.
    options : ActionOptions
    schedule : TVNetOptions, optional
        Of TVNet; see ``new_model``.
    weights : str, optional
        To begin with; see ``new_model``.
    device : torch.device or str
    jobs : int
        Threads that read videos.
    overwrite : bool
        Begin anew, whatever the folder holds.
    report : callable
        Called with the number of iterations done and what was logged.
    limits : DecodeLimits, optional
        What decoding one video, or one frame, may take.

    Returns
    -------
    ActionResult or None
        None: it was interrupted, and the checkpoint holds what was reached.

    Raises
    ------
    TrainingError
        If the folder holds another training, if a loss or gradient is no finite number, or if the batch cannot be
        shared equally by the processes of a group.
    DatasetError, VideoReadError, WeightsError
    """
    rank, world = rank_and_world()
    if not rank:
        require_training_folder(folder, RESULTS, overwrite=overwrite)
    if options.batch_size % world:
        raise TrainingError(f"a batch of {options.batch_size} cannot be shared equally by {world} processes")
    model, sha256 = new_model(len(dataset.classes), options, schedule, weights)
    model.to(device)
    optimizer = torch.optim.SGD(parameter_groups(model), options.learning_rate, options.momentum)
    recipe: Recipe = {
        "options": as_dict(options),
        "tvnet": as_dict(model.tvnet.options) if model.tvnet is not None else None,
        "weights": sha256,
        "classes": list(dataset.classes),
        "videos": _sha256(dataset),
        "processes": world,
        "software": software(torch.device(device)),
    }
    last: list[NDArray[np.int64]] = []

    def losses(step: int, batch: ActionBatch) -> dict[str, Tensor]:
        model.train()
        labels = batch.labels.to(device)
        scores, bent = model(batch.frames.to(device))
        classes = F.cross_entropy(scores, labels)
        return {
            "loss": classes + options.flow_weight * bent,
            "classification": classes,
            "flow": bent,
            "accuracy": (scores.argmax(1) == labels).float().mean(),
        }

    def validate() -> dict[str, float]:
        confusion, loss = _validate(model, dataset.validation, device, pool, reader)
        last.append(confusion)
        return {"validation_accuracy": accuracy(confusion), "validation_loss": loss}

    def rate(step: int) -> float:
        return float(0.1 ** bisect_right(options.milestones, step))

    pace = Pace(
        steps=options.num_iterations,
        learning_rate=rate,
        clip_norm=options.clip_norm,
        seed=options.seed,
        checkpoint_every=options.checkpoint_every,
        validate_every=options.validate_every,
        ahead=BATCHES_AHEAD,
    )
    # The reader ends first: then no thread waits for a video any more.
    with thread_pool(jobs) as pool, true_float32(), Decoders(limits or DecodeLimits()) as reader:
        refuse_unreadable([*dataset.train, *dataset.validation], pool, reader)
        clips = TrainingClips(dataset.train, options, pool, rank, world, reader)
        done = fit(
            folder,
            model,
            optimizer,
            clips,
            losses,
            pace,
            recipe,
            validate=validate if dataset.validation else None,
            report=report,
            overwrite=overwrite,
            abandon=reader.close,
        )
        if done and not last:  # all was done before, or there is nothing to validate with
            validate()
    return ActionResult(model.eval(), recipe, last[-1]) if done else None


@torch.no_grad()
def _validate(
    model: ActionNetwork,
    videos: tuple[LabelledVideo, ...],
    device: torch.device | str,
    pool: Executor,
    reader: Decoders | None = None,
) -> tuple[NDArray[np.int64], float]:
    """The confusion of classes and the mean loss over the videos, each process having its part of them."""
    model.eval()
    rank, world = rank_and_world()
    own = videos[rank::world]
    classes = model.network.fc.out_features  # type: ignore[union-attr]
    counts, loss = torch.zeros(classes, classes, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    for video, clips in _clips_of(own, model.options, pool, reader):
        scores = torch.cat([model(part.to(device))[0] for part in torch.split(clips, CLIPS_AT_ONCE)]).mean(0).cpu()
        counts[video.label, int(scores.argmax())] += 1
        loss += F.cross_entropy(scores[None], torch.tensor([video.label]))
    add_over_processes(counts)
    add_over_processes(loss)
    return counts.numpy(), float(loss) / max(1, len(videos))


def _clips_of(
    videos: Sequence[LabelledVideo], options: ActionOptions, pool: Executor, reader: Decoders | None
) -> Iterator[tuple[LabelledVideo, Tensor]]:
    """Each video and its clips, few of them read ahead, so that memory stays small."""
    reading = [pool.submit(validation_clips, video, options, reader) for video in videos[:VIDEOS_AHEAD]]
    for number, video in enumerate(videos):
        clips = reading.pop(0).result()
        if number + VIDEOS_AHEAD < len(videos):
            reading.append(pool.submit(validation_clips, videos[number + VIDEOS_AHEAD], options, reader))
        yield video, clips


def _sha256(dataset: ActionDataset) -> str:
    """Of the names, labels and parts of all videos."""
    parts = [[(video.video_id, video.label) for video in part] for part in (dataset.train, dataset.validation)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_result(
    folder: Path, data: str, dataset: ActionDataset, result: ActionResult, *, overwrite: bool = False
) -> None:
    """Write ``weights.safetensors`` with its card, ``classes.csv`` and ``confusion.svg``.

    Parameters
    ----------
    folder : Path
    data : str
        What the data set is called.
    dataset : ActionDataset
    result : ActionResult
    overwrite : bool
        Also replace files that this program did not write.

    Raises
    ------
    OutputError
        As ``require_training_folder``.
    WeightsError
        If they cannot be written.
    """
    require_training_folder(folder, RESULTS, overwrite=overwrite)
    model, confusion = result.model, result.confusion
    validated = int(confusion.sum())
    card = WeightCard(
        stream=model.options.stream,
        source="trained with tvnet train actions",
        licence="as its training data and the weights that it began with allow",
        training_data=f"{data}: {len(dataset.train)} videos of {len(dataset.classes)} classes",
        input=model.how,
        numbers={"validation_accuracy": accuracy(confusion), "validation_videos": validated} if validated else {},
        training={"generator": MARK}
        | {key: value for key, value in result.recipe.items() if value is not None and key != "tvnet"},
        tvnet=model.tvnet.options if model.tvnet is not None else TVNetOptions(),
    )
    write_weights(folder / WEIGHTS, tensors_to_keep(model.network, model.tvnet), card, overwrite=True)
    if validated:
        write_confusion(folder, confusion, dataset.classes)
